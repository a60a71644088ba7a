"""Binds a batch to the inputs of a signature; reports every mismatch in one error.

The leaf for each input is found by `match.py` or given by `transform=`. If a signature takes dense
rows and the batch has ragged ones, they are grouped by shape and not padded (`dense_rows.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_warmup.binding.cast import MismatchError, as_array, cast_array
from keras_warmup.binding.components import InputLeaf, find_components, split_composites
from keras_warmup.binding.dense_rows import dense_parts, dense_structure
from keras_warmup.binding.match import (
    CAPTURED_CURE,
    hint_of_components,
    match_inputs,
    render_inputs,
)
from keras_warmup.data.batch import (
    Batch,
    FeaturePath,
    Source,
    describe,
    render_path,
    render_shape,
    walk,
)
from keras_warmup.errors import BindingError
from keras_warmup.options import Transform
from keras_warmup.savedmodel.signatures import Signature, SignatureTensor

_CURE = "Cast or reshape it in the dataset, or pass warmup={'transform': ...}."


@dataclasses.dataclass(frozen=True)
class BoundBatch:
    """Rows as one signature takes them.

    Attributes:
        arrays: input name -> array of the signature's dtype.
        x: the same rows, dense, in the structure of the batch; `None` if `transform` made the
            arrays or a leaf is not dense.
        size: rows; 1 if no input has a batch dimension. That includes the components of a ragged or
            sparse tensor: such a request is sent whole.
        row_inputs: names of the inputs whose first dimension is the batch.
        source: where the rows come from.
        casts: input name -> cast applied, such as `int64 -> float32`.
        ignored: features of the batch that the signature does not take.
        hidden_inputs: names of the inputs that hold no real value, but made-up ones.
        hidden_features: names of features of serialized Examples that hold none.
    """

    arrays: Mapping[str, np.ndarray]
    x: Any
    size: int
    row_inputs: frozenset[str]
    source: Source
    casts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    hidden_inputs: frozenset[str] = frozenset()
    hidden_features: frozenset[str] = frozenset()

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """`(input name, shape without the batch dimension)`, sorted.

        Rows of equal `shapes` can share a record.
        """
        return tuple(
            (name, tuple(array.shape[1:] if name in self.row_inputs else array.shape))
            for name, array in sorted(self.arrays.items())
        )


def bind_batch(
    batch: Batch, signature: Signature, transform: Transform | None = None
) -> list[BoundBatch]:
    """Binds a batch to the inputs of a signature.

    Args:
        batch: rows of model input.
        signature: the signature to serve.
        transform: `transform(x) -> {input name: array}` replaces the matching of leaves to inputs;
            dtypes, shapes and rows are still checked. A ragged or sparse argument of the exported
            function is given as the tensor, under the name of the first of its inputs.

    Returns:
        One `BoundBatch`; if the batch is ragged and the signature dense, one for each row shape.

    Raises:
        BindingError: inputs are missing, or have another dtype, rank, shape or number of rows; all
            mismatches in one error.
    """
    if transform is not None:
        leaves, ignored = _transformed_leaves(batch, signature, transform)
        return [_bind_arrays(leaves, None, batch, signature, ignored)]
    composite = find_components(batch.x, signature)
    if composite is not None:
        path, components = composite
        ignored = tuple(
            render_path(other)
            for other, leaf in walk(batch.x)
            if leaf is not None and other != path
        )
        return [_bind_arrays(components, None, batch, signature, ignored)]
    return bind_leaves(batch, signature, *match_inputs(batch.x, signature, source=batch.source))


def bind_leaves(
    batch: Batch,
    signature: Signature,
    paths: Mapping[str, FeaturePath],
    ignored: tuple[str, ...] = (),
    encoded: Mapping[str, np.ndarray] | None = None,
) -> list[BoundBatch]:
    """Binds leaves whose inputs are known.

    Args:
        batch: rows of model input.
        signature: the signature to serve.
        paths: input name -> path in the batch.
        ignored: rendered paths of the leaves that no input takes.
        encoded: input name -> object array `[rows]` of `bytes`, made from the rows.

    Returns:
        As `bind_batch`.

    Raises:
        BindingError: as `bind_batch`.
    """
    bound = []
    for part in dense_parts(batch, set(paths.values())):
        by_path = dict(walk(part.batch.x))
        leaves = {}
        for name, path in paths.items():
            where = render_path(path)
            leaves[name] = InputLeaf(by_path[path], where, path=where)
        for name, values in (encoded or {}).items():
            rows = values if part.rows is None else values[part.rows]
            leaves[name] = InputLeaf(rows, "the encoded rows")
        x = dense_structure(part.batch.x)
        bound.append(_bind_arrays(leaves, x, part.batch, signature, ignored))
    return bound


def _transformed_leaves(
    batch: Batch, signature: Signature, transform: Transform
) -> tuple[dict[str, InputLeaf], tuple[str, ...]]:
    """Returns input name -> leaf of what `transform` returns, and the leaves no input takes."""
    try:
        made = transform(batch.x)
    except Exception as error:  # the user's code may raise anything
        got = ", ".join(f"{render_path(path)} ({describe(leaf)})" for path, leaf in walk(batch.x))
        raise BindingError(
            f"transform raised {type(error).__name__} for signature {signature.key!r}, which "
            f"takes {render_inputs(signature)}; transform was given {got}. Change the transform "
            "so that it takes x as the model was given it."
        ) from error
    if not isinstance(made, Mapping):
        raise BindingError(
            "transform must return a mapping of input name to array for signature "
            f"{signature.key!r}, with the inputs {sorted(signature.inputs)}; got "
            f"{type(made).__name__}."
        )
    leaves = split_composites(
        {
            name: InputLeaf(made[name], f"transform(x)[{name!r}]")
            for name in signature.inputs
            if name in made
        },
        signature,
    )
    missing = sorted(set(signature.inputs) - set(leaves) - signature.defaults)
    if missing:
        raise BindingError(
            f"transform returned {sorted(map(str, made))} for signature {signature.key!r}, which "
            f"takes {render_inputs(signature)}: {missing} missing."
        )
    ignored = sorted(f"transform(x)[{name!r}]" for name in set(made) - set(signature.inputs))
    return leaves, tuple(ignored)


def _bind_arrays(
    leaves: Mapping[str, InputLeaf],
    x: Any,
    batch: Batch,
    signature: Signature,
    ignored: tuple[str, ...],
) -> BoundBatch:
    arrays, casts, problems, hint = {}, {}, [], ""
    for name in sorted(leaves):
        spec, leaf, where = signature.inputs[name], leaves[name].leaf, leaves[name].where
        reasons = []
        try:
            leaf = as_array(leaf)
            if spec.shape == () and leaf.ndim == 1 and len(leaf) and not batch.is_whole:
                leaf = leaf[:1].reshape(())  # a scalar takes one row
            reasons = _shape_problems(spec, leaf)
            arrays[name], cast = cast_array(leaf, spec.dtype)
            if cast:
                casts[name] = cast
        except MismatchError as mismatch:
            reasons.insert(0, str(mismatch))
        if reasons:
            problems.append(
                f"input {name!r} expects {spec.dtype} {render_shape(spec.shape)}, got "
                f"{describe(leaf)} from {where} ({'; '.join(reasons)})"
            )
    composite_rows = {name: one.rows for name, one in leaves.items() if one.rows is not None}
    rows = {} if batch.is_whole else _rows_of_inputs(arrays, signature) | composite_rows
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{name!r} has {count}" for name, count in sorted(rows.items()))
        problems.append(f"the inputs have different numbers of rows ({listed})")
        hint = hint_of_components(rows, signature)
    elif 0 in rows.values():
        problems.append(f"no rows in {', '.join(map(repr, sorted(rows)))}")
    if problems:
        raise BindingError(
            f"Cannot bind batch to signature {signature.key!r}: {'; '.join(problems)}.{hint} "
            f"{CAPTURED_CURE if batch.source == 'captured' else _CURE}"
        )
    hidden = frozenset(name for name, one in leaves.items() if one.path in batch.hidden_paths)
    if composite_rows or batch.is_whole:
        whole_x = None if composite_rows else x
        return BoundBatch(arrays, whole_x, 1, frozenset(), batch.source, casts, ignored, hidden)
    batched = {name: array.shape[0] for name, array in arrays.items() if array.ndim}
    size = next(iter(rows.values()), max(batched.values(), default=1))
    row_inputs = frozenset(name for name, count in batched.items() if count == size)
    return BoundBatch(arrays, x, size, row_inputs, batch.source, casts, ignored, hidden)


def _rows_of_inputs(arrays: Mapping[str, np.ndarray], signature: Signature) -> dict[str, int]:
    """Returns input name -> rows of the arrays whose first dimension must be the batch.

    That is where the signature leaves the dimension free or fixes another size: such arrays are
    sliced or tiled. An array of exactly the fixed size may be a constant beside the rows.
    """
    rows = {}
    for name, array in arrays.items():
        fixed = (signature.inputs[name].shape or (None,))[0]
        if array.ndim and fixed != array.shape[0]:
            rows[name] = array.shape[0]
    return rows


def _shape_problems(spec: SignatureTensor, leaf: np.ndarray) -> list[str]:
    if spec.shape is None:
        return []
    shape = leaf.shape
    if len(shape) != len(spec.shape):
        return ["rank differs" if shape else "no batch dimension: batch the data, as for fit"]
    # The first dimension is the batch: rows are sliced or tiled to the size in the signature.
    axes = [axis for axis in range(1, len(shape)) if spec.shape[axis] not in (None, shape[axis])]
    return [f"shape differs in dimensions {axes}"] if axes else []
