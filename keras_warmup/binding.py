"""Batch + Signature -> the arrays of a request.

Which leaf of a batch is which input is read from evidence, never guessed from shapes: the structure the exported function
was traced with (kept in the SavedModel), else the names. Rows that a signature takes dense and a batch holds ragged are
grouped by shape, not padded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.batch import Batch, Path, Source, describe, is_sequence, map_leaves, render_path, render_shape, walk
from keras_warmup.errors import BindingError
from keras_warmup.options import Transform
from keras_warmup.signatures import Signature, TensorSpec

CURE = "Cast or reshape it in the dataset, or pass transform=."


@dataclasses.dataclass(frozen=True)
class BoundBatch:
    """Rows as one signature takes them.

    Attributes:
        arrays: input name -> array of the signature's dtype.
        x: the same rows in the structure the batch had, dense; `None` where `transform` made the arrays.
        size: rows; 1 where no input has a batch dimension.
        row_inputs: input names whose first dimension is the batch.
        source: where the rows come from.
        casts: input name -> cast applied, such as `int64 -> float32`.
        ignored: features of the batch that the signature does not take.
    """

    arrays: Mapping[str, np.ndarray]
    x: Any
    size: int
    row_inputs: frozenset[str]
    source: Source
    casts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Input name and shape without the batch dimension, by name: rows of equal `shapes` can share a record."""
        return tuple(
            (name, tuple(array.shape[1:] if name in self.row_inputs else array.shape))
            for name, array in sorted(self.arrays.items())
        )


def bind_batch(batch: Batch, signature: Signature, transform: Transform | None = None) -> list[BoundBatch]:
    """Binds a batch to the inputs of a signature.

    Args:
        batch: rows as the model was fed them.
        signature: the signature to serve.
        transform: `transform(x) -> {input name: array}` replaces the matching of leaves to inputs; dtypes and shapes are
            checked all the same.

    Returns:
        One `BoundBatch`, or one for each row shape where the batch is ragged and the signature dense.

    Raises:
        BindingError: inputs are missing, or have another dtype, rank or shape; all mismatches in one error.
    """
    if transform is not None:
        leaves, ignored = _leaves_of_transform(batch, signature, transform)
        bound = [_bind_dense(leaves, None, batch, signature, ignored)]
        return bound
    paths, ignored = match_inputs(batch.x, signature)
    bound = []
    for part in _dense_parts(batch):
        by_path = dict(walk(part.x))
        leaves = {name: (render_path(path), by_path[path]) for name, path in paths.items()}
        bound.append(_bind_dense(leaves, part.x, part, signature, ignored))
    return bound


def match_inputs(x: Any, signature: Signature) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Finds the leaf of `x` for each input of a signature.

    Args:
        x: nested dicts, lists and tuples of leaves.
        signature: the signature; inputs with a default may be absent.

    Returns:
        Input name -> path in `x`, and the rendered paths of the leaves no input takes.

    Raises:
        BindingError: an input has no leaf, or the evidence does not tell which one it is.
    """
    leaves = [(path, leaf) for path, leaf in walk(x) if leaf is not None]
    found = _match_structure(x, signature)
    if found is None:
        found = _match_names(x, leaves, signature)
    missing = sorted(set(signature.inputs) - set(found) - signature.defaults)
    if missing:
        if not isinstance(x, Mapping) and len(leaves) >= len(signature.inputs) > 1:
            raise BindingError(
                f"Cannot bind batch to signature {signature.key!r}: x has {len(leaves)} unnamed leaves and the SavedModel "
                f"does not tell their order among the inputs {sorted(signature.inputs)}. Pass x as a dict keyed by input "
                "name, or pass transform=."
            )
        names = ", ".join(repr(name) for name in missing)
        got = ", ".join(f"{render_path(path)} ({describe(leaf)})" for path, leaf in leaves) or "nothing"
        raise BindingError(
            f"Cannot bind batch to signature {signature.key!r}: missing input{'s' * (len(missing) > 1)} {names}. The signature "
            f"takes {_render_inputs(signature)}; the batch has {got}. Add the features to the dataset, or pass transform=."
        )
    used = set(found.values())
    return found, tuple(render_path(path) for path, _ in leaves if path not in used)


def _match_structure(x: Any, signature: Signature) -> dict[str, Path] | None:
    """Pairs `x` with the positional arguments the exported function was traced with; `None` where they differ."""
    if signature.structure is None:
        return None
    arguments = signature.structure
    target = arguments[0] if is_sequence(arguments) and len(arguments) == 1 else arguments
    found: dict[str, Path] = {}
    if _pair(target, x, (), found):
        return found
    names = [name for _, name in walk(target)]
    flat = [path for path, leaf in walk(x) if leaf is not None]
    if isinstance(x, Mapping):
        by_name = {_sanitize(str(key)): (key,) for key, value in x.items() if not _is_structure(value)}
        if len(by_name) == len(x) and set(names) <= set(by_name):
            return {name: by_name[name] for name in names}
        # One leaf on each side leaves nothing to confuse.
        return {names[0]: flat[0]} if len(names) == len(flat) == 1 else None
    # Sequences flatten in their own order; beside a dict there is no order to trust.
    ordered = not any(isinstance(part, str) for path, _ in walk(target) for part in path)
    return dict(zip(names, flat, strict=True)) if ordered and len(names) == len(flat) else None


def _pair(target: Any, x: Any, path: Path, found: dict[str, Path]) -> bool:
    if isinstance(target, Mapping):
        if not isinstance(x, Mapping) or not set(target) <= set(x):
            return False
        return all(_pair(target[key], x[key], (*path, key), found) for key in target)
    if is_sequence(target):
        items = [(index, item) for index, item in enumerate(x) if item is not None] if is_sequence(x) else []
        if not is_sequence(x) or len(items) != len(target):
            return False
        return all(_pair(part, item, (*path, index), found) for part, (index, item) in zip(target, items, strict=True))
    if target is None:
        return True
    if _is_structure(x) or x is None:
        return False
    found[target] = path
    return True


def _match_names(x: Any, leaves: list[tuple[Path, Any]], signature: Signature) -> dict[str, Path]:
    if isinstance(x, Mapping):
        by_name = {str(path[-1]): path for path, _ in leaves}
        by_sanitized = {_sanitize(name): path for name, path in by_name.items()}
        found = {}
        for name in signature.inputs:
            path = by_name.get(name) or by_sanitized.get(name)
            if path is not None:
                found[name] = path
        return found
    if len(leaves) == 1 and len(signature.inputs) == 1:
        return {next(iter(signature.inputs)): leaves[0][0]}
    return {}


def _dense_parts(batch: Batch) -> list[Batch]:
    """The batch with sparse leaves made dense and ragged rows grouped by shape: nothing is padded."""
    ragged = [path for path, leaf in walk(batch.x) if isinstance(leaf, tf.RaggedTensor)]
    if not ragged:
        return [dataclasses.replace(batch, x=map_leaves(lambda _, leaf: _densify(leaf), batch.x))]
    groups: dict[tuple[Any, ...], list[int]] = {}
    rows: dict[Path, dict[int, np.ndarray]] = {path: {} for path in ragged}
    leaves = dict(walk(batch.x))
    for index in range(batch.size):
        dense = [_dense_row(leaves[path][index]) for path in ragged]
        found = [row for row in dense if row is not None]
        if len(found) == len(ragged):
            for path, row in zip(ragged, found, strict=True):
                rows[path][index] = row
            groups.setdefault(tuple(row.shape for row in found), []).append(index)
    if not groups:
        raise BindingError(
            f"Cannot bind batch: no row of {', '.join(render_path(path) for path in ragged)} is dense by itself, and the "
            "signature takes dense tensors. Pass transform= that pads as your clients do."
        )
    parts = []
    for indices in groups.values():

        def take(path: Path, leaf: Any, indices: list[int] = indices) -> Any:
            if isinstance(leaf, tf.RaggedTensor):
                return np.stack([rows[path][index] for index in indices])
            dense = _densify(leaf)
            return None if dense is None else dense[indices]

        parts.append(Batch(map_leaves(take, batch.x), len(indices), batch.source))
    return parts


def _dense_row(row: Any) -> np.ndarray | None:
    """A row of a ragged tensor as an array; `None` where it is ragged inside."""
    if isinstance(row, tf.RaggedTensor):
        bounding = tuple(int(size) for size in row.bounding_shape())
        if int(np.prod(bounding)) != int(tf.size(row.flat_values)):
            return None
        row = row.to_tensor()
    return np.asarray(row)


def _densify(leaf: Any) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        return np.asarray(tf.sparse.to_dense(tf.sparse.reorder(leaf)))
    return leaf


def _leaves_of_transform(
    batch: Batch, signature: Signature, transform: Transform
) -> tuple[dict[str, tuple[str, Any]], tuple[str, ...]]:
    made = transform(batch.x)
    if not isinstance(made, Mapping):
        raise BindingError(
            f"transform must return a mapping of input name to array for signature {signature.key!r}, with the inputs "
            f"{sorted(signature.inputs)}; got {type(made).__name__}."
        )
    missing = sorted(set(signature.inputs) - set(made) - signature.defaults)
    if missing:
        raise BindingError(
            f"transform returned {sorted(map(str, made))} for signature {signature.key!r}, which takes "
            f"{_render_inputs(signature)}: {missing} missing."
        )
    leaves = {
        name: (f"transform(x)[{name!r}]", _as_array(_densify(made[name]))) for name in signature.inputs if name in made
    }
    return leaves, tuple(sorted(f"transform(x)[{name!r}]" for name in set(made) - set(signature.inputs)))


def _as_array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind in "US" or (array.dtype.kind == "O" and any(isinstance(item, str) for item in array.flat)):
        encoded = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
        array = _object_array(encoded, array.shape)
    # A TensorProto is little-endian; tf.as_dtype knows native byte order only.
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.byteorder == ">" else array


def _object_array(items: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


def _bind_dense(
    leaves: Mapping[str, tuple[str, Any]], x: Any, batch: Batch, signature: Signature, ignored: tuple[str, ...]
) -> BoundBatch:
    arrays, casts, problems = {}, {}, []
    for name in sorted(leaves):
        spec, (where, leaf) = signature.inputs[name], leaves[name]
        shape_problem = _shape_problem(spec, leaf)
        array, cast, dtype_problem = _cast(leaf, spec.dtype)
        reasons = [problem for problem in (dtype_problem, shape_problem) if problem]
        if reasons:
            problems.append(
                f"input {name!r} expects {spec.dtype} {render_shape(spec.shape)}, got {describe(leaf)} from {where} "
                f"({'; '.join(reasons)})"
            )
            continue
        arrays[name] = array
        if cast:
            casts[name] = cast
    if problems:
        raise BindingError(f"Cannot bind batch to signature {signature.key!r}: " + "; ".join(problems) + f". {CURE}")
    size = _size_of(arrays, signature, batch)
    row_inputs = frozenset(name for name, array in arrays.items() if array.ndim >= 1 and array.shape[0] == size)
    if not any(_has_batch(signature.inputs[name]) for name in arrays):
        row_inputs, size = frozenset(), 1
    return BoundBatch(arrays, x, size, row_inputs, batch.source, casts, ignored)


def _size_of(arrays: Mapping[str, np.ndarray], signature: Signature, batch: Batch) -> int:
    """Rows in the bound arrays: `transform` may have made more or fewer than the batch had."""
    for name, array in arrays.items():
        if array.ndim >= 1 and _has_batch(signature.inputs[name]):
            return int(array.shape[0])
    return batch.size


def _has_batch(spec: TensorSpec) -> bool:
    return spec.shape is None or len(spec.shape) >= 1


def _shape_problem(spec: TensorSpec, leaf: Any) -> str | None:
    if spec.shape is None:
        return None
    shape = tuple(leaf.shape)
    if len(shape) != len(spec.shape):
        return "rank differs"
    # The first dimension is the batch: rows are sliced or tiled to what the signature fixes.
    differ = [axis for axis in range(1, len(shape)) if spec.shape[axis] not in (None, shape[axis])]
    return f"shape differs in dimension{'s' * (len(differ) > 1)} {', '.join(map(str, differ))}" if differ else None


def _cast(leaf: Any, dtype: str) -> tuple[np.ndarray, str | None, str | None]:
    """`(array, cast, problem)`: casts as `fit` does or where no sampled value changes; refuses the rest."""
    array = _as_array(leaf)
    if dtype == "string":
        if array.dtype.kind == "O":
            return array, None, None
        return array, None, "a number for a string input"
    if array.dtype.kind == "O":
        return array, None, "strings for a numeric input"
    wanted = tf.as_dtype(dtype)
    target = wanted.as_numpy_dtype
    got = tf.as_dtype(array.dtype)
    if got == wanted:
        return array, None, None
    cast = f"{got.name} -> {wanted.name}"
    if (got.is_floating and wanted.is_floating) or (got.is_complex and wanted.is_complex):
        # As `fit` casts to the model's float type.
        return array.astype(target), cast, None
    if got.is_floating or got.is_complex:
        return array, None, "dtype differs: a float is never cut to an integer"
    with np.errstate(all="ignore"):
        made = array.astype(target)
        survives = bool(np.array_equal(made.astype(array.dtype), array)) and _same_sign(array, made)
    if survives:
        return made, cast, None
    return array, None, "dtype differs: some sampled values do not survive the cast"


def _same_sign(array: np.ndarray, made: np.ndarray) -> bool:
    """Guards against a wrap that a round trip hides, such as int64 -1 -> uint64 -> int64 -1."""
    if array.dtype.kind == "b" or made.dtype.kind == "b":
        return True
    return bool(np.array_equal(array < 0, made < 0))


def _is_structure(value: Any) -> bool:
    return isinstance(value, Mapping) or is_sequence(value)


def _sanitize(name: str) -> str:
    """A name as `tf.function` makes it an argument name (core/function/polymorphism/function_type.py)."""
    cleaned = "".join(character if character.isalnum() else "_" for character in name)
    return cleaned if cleaned[:1].isalpha() else f"arg_{cleaned}"


def _render_inputs(signature: Signature) -> str:
    return ", ".join(
        f"{name!r} {spec.dtype} {render_shape(spec.shape)}" for name, spec in sorted(signature.inputs.items())
    )
