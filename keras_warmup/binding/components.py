"""Ragged and sparse arguments: one argument of a function, several inputs of its signature.

A `tf.function` over a `RaggedTensorSpec` is served as `x` (flat values), `x_1`, ... (row splits, the outermost first); one over a
`SparseTensorSpec` as `x` (indices), `x_1` (values) and `x_2` (dense shape). The first dimensions of these are no batch, so such a
request cannot be cut: it is sent as it was made. A file that tells the structure of the arguments has no such input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.binding.match import names_of, sanitize
from keras_warmup.data.batch import FeaturePath, render_path, walk
from keras_warmup.savedmodel.signatures import Signature, SignatureTensor


@dataclasses.dataclass(frozen=True)
class Composite:
    """Inputs that are together one ragged or sparse tensor.

    Attributes:
        names: the inputs, in the order of the tensor's components.
        rows: first dimension of the tensor.
    """

    names: tuple[str, ...]
    rows: int


def component_leaves(x: Any, signature: Signature) -> dict[str, tuple[str, Any]] | None:
    """The components of the one ragged or sparse leaf of `x`, where they are the inputs of a signature.

    Args:
        x: nested dicts, lists and tuples of leaves.
        signature: the signature.

    Returns:
        Input name -> where it is from, and the array; `None` where the signature's inputs are not exactly these components, or
        other leaves could be meant.
    """
    if signature.structure is not None:
        return None
    leaves = [(path, leaf) for path, leaf in walk(x) if leaf is not None]
    found = [(path, leaf) for path, leaf in leaves if is_composite(leaf)]
    if len(found) != 1:
        return None
    ((path, leaf),) = found
    components = _components_of(leaf)
    names = _numbered(signature.inputs, len(components))
    if names is None or not _takes(signature, names, leaf, components):
        return None
    called = {where: sanitize(name) for name, where in names_of(x)}
    others = [called.get(where) for where, _ in leaves if where != path]
    if others and (called.get(path) != names[0] or set(others) & set(names)):
        return None
    return {
        name: (_render(path, leaf, place), part)
        for place, (name, part) in enumerate(zip(names, components, strict=True))
    }


def is_composite(leaf: Any) -> bool:
    """Whether a leaf is made of several tensors."""
    return isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor))


def find_composites(arrays: Mapping[str, np.ndarray], signature: Signature) -> list[Composite]:
    """Groups of arrays that are the components of ragged or sparse tensors: by names, dtypes, ranks, and values that agree.

    Args:
        arrays: input name -> array of the input's dtype.
        signature: the signature.

    Returns:
        Groups without a common input.
    """
    if signature.structure is not None:
        return []
    groups: list[Composite] = []
    for base in sorted(arrays):
        if any(base in group.names for group in groups):
            continue
        names = [base]
        while f"{base}_{len(names)}" in arrays:
            names.append(f"{base}_{len(names)}")
        for count in range(len(names), 1, -1):
            parts = [arrays[name] for name in names[:count]]
            if not all(
                _fits(signature.inputs[name], part)
                for name, part in zip(names, parts, strict=False)
            ):
                continue
            rows = _rows_of_ragged(parts)
            rows = _rows_of_sparse(parts) if rows is None else rows
            if rows is not None:
                groups.append(Composite(tuple(names[:count]), rows))
                break
    return groups


def _components_of(leaf: Any) -> list[np.ndarray]:
    if isinstance(leaf, tf.RaggedTensor):
        return [np.asarray(part) for part in (leaf.flat_values, *leaf.nested_row_splits)]
    ordered = tf.sparse.reorder(leaf)
    return [np.asarray(part) for part in (ordered.indices, ordered.values, ordered.dense_shape)]


def _render(path: FeaturePath, leaf: Any, place: int) -> str:
    if isinstance(leaf, tf.RaggedTensor):
        return f"{render_path(path)}.{'flat_values' if place == 0 else f'nested_row_splits[{place - 1}]'}"
    return f"{render_path(path)}.{('indices', 'values', 'dense_shape')[place]}"


def _numbered(inputs: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """The inputs as `base`, `base_1`, ..., where they are just these."""
    base = min(inputs, key=len, default="")
    names = (base, *(f"{base}_{index}" for index in range(1, count)))
    return names if set(names) == set(inputs) else None


def _takes(
    signature: Signature, names: Sequence[str], leaf: Any, components: Sequence[np.ndarray]
) -> bool:
    """Whether the inputs have the ranks of the components, and integers where those are places; values may be cast."""
    specs = [signature.inputs[name] for name in names]
    ragged = isinstance(leaf, tf.RaggedTensor)
    places = specs[1:] if ragged else [specs[0], specs[2]]
    return all(
        spec.dtype in (("int32", "int64") if ragged else ("int64",)) for spec in places
    ) and all(_fits(spec, part) for spec, part in zip(specs, components, strict=True))


def _fits(spec: SignatureTensor, part: np.ndarray) -> bool:
    return spec.shape is None or (
        len(spec.shape) == part.ndim
        and all(want in (None, got) for want, got in zip(spec.shape, part.shape, strict=True))
    )


def _rows_of_ragged(parts: Sequence[np.ndarray]) -> int | None:
    """Rows of a ragged tensor of these flat values and row splits; `None` where they are none."""
    values, *splits = parts
    if values.ndim < 1 or any(
        one.ndim != 1 or one.dtype.name not in ("int32", "int64") or not len(one) for one in splits
    ):
        return None
    ends = [*(len(inner) - 1 for inner in splits[1:]), len(values)]
    good = all(
        one[0] == 0 and one[-1] == end and bool(np.all(np.diff(one) >= 0))
        for one, end in zip(splits, ends, strict=True)
    )
    return len(splits[0]) - 1 if good else None


def _rows_of_sparse(parts: Sequence[np.ndarray]) -> int | None:
    if len(parts) != 3:
        return None
    indices, values, shape = parts
    if (indices.ndim, values.ndim, shape.ndim) != (2, 1, 1) or {
        indices.dtype.name,
        shape.dtype.name,
    } != {"int64"}:
        return None
    if indices.shape != (len(values), len(shape)) or bool(
        np.any((indices < 0) | (indices >= shape))
    ):
        return None
    return int(shape[0])
