"""Converts ragged and sparse leaves to dense rows; groups ragged rows by shape, pads nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.data.batch import Batch, FeaturePath, map_leaves, render_path, walk
from keras_warmup.errors import BindingError


@dataclasses.dataclass(frozen=True)
class DensePart:
    """Rows of a batch that have one shape.

    Attributes:
        batch: the rows; the requested leaves are dense, others are unchanged.
        rows: their indices in the whole batch; `None` if these are all of its rows.
    """

    batch: Batch
    rows: list[int] | None = None


def dense_parts(batch: Batch, paths: Collection[FeaturePath]) -> list[DensePart]:
    """Splits a batch so that the leaves at `paths` are dense in each part.

    Args:
        batch: rows; each leaf of `paths` may be ragged or sparse.
        paths: leaves that must be dense. Other leaves keep their form.

    Returns:
        One part for each shape of the ragged rows, in the order of their first rows. Rows that are
        not dense are left out.

    Raises:
        BindingError: no row is dense.
    """
    leaves = dict(walk(batch.x))
    ragged = [path for path in dict.fromkeys(paths) if isinstance(leaves[path], tf.RaggedTensor)]
    if not ragged or batch.is_whole:
        x = map_leaves(lambda path, leaf: _from_sparse(leaf) if path in paths else leaf, batch.x)
        return [DensePart(dataclasses.replace(batch, x=x))]
    groups: dict[tuple[Any, ...], list[int]] = {}
    rows: dict[FeaturePath, dict[int, np.ndarray]] = {path: {} for path in ragged}
    for index in range(batch.size):
        dense = [_from_ragged(leaves[path][index]) for path in ragged]
        found = [row for row in dense if row is not None]
        if len(found) == len(ragged):
            for path, row in zip(ragged, found, strict=True):
                rows[path][index] = row
            groups.setdefault(tuple(row.shape for row in found), []).append(index)
    if not groups:
        raise BindingError(
            f"Cannot bind batch: no row of {', '.join(render_path(path) for path in ragged)} is "
            "dense, and the signature takes dense tensors. Pass warmup={'transform': ...} with a "
            "function that pads as your clients do."
        )
    parts = []
    for indices in groups.values():

        def take(path: FeaturePath, leaf: Any, indices: list[int] = indices) -> Any:
            if path in rows:
                return np.stack([rows[path][index] for index in indices])
            return _take_rows(_from_sparse(leaf) if path in paths else leaf, indices)

        x = map_leaves(take, batch.x)
        parts.append(DensePart(dataclasses.replace(batch, x=x, size=len(indices)), indices))
    return parts


def dense_structure(x: Any) -> Any:
    """Returns `x` with dense leaves only; `None` if a leaf has rows of different shapes."""
    made = map_leaves(lambda _, leaf: _from_ragged(_from_sparse(leaf)), x)
    pairs = zip(walk(x), walk(made), strict=True)
    if any(leaf is not None and dense is None for (_, leaf), (_, dense) in pairs):
        return None
    return made


def _from_sparse(leaf: Any) -> Any:
    return (
        np.asarray(tf.sparse.to_dense(tf.sparse.reorder(leaf)))
        if isinstance(leaf, tf.SparseTensor)
        else leaf
    )


def _from_ragged(leaf: Any) -> Any:
    """Converts a ragged tensor, or a row of one, to an array; `None` if its rows differ in shape.

    Other leaves are returned unchanged.
    """
    if isinstance(leaf, tf.RaggedTensor):
        bounding = tuple(int(size) for size in leaf.bounding_shape())
        if int(np.prod(bounding)) != int(tf.size(leaf.flat_values)):
            return None
        leaf = leaf.to_tensor()
    return np.asarray(leaf) if isinstance(leaf, tf.Tensor) else leaf


def _take_rows(leaf: Any, rows: list[int]) -> Any:
    if leaf is None or isinstance(leaf, np.ndarray):
        return leaf if leaf is None or leaf.ndim == 0 else leaf[rows]
    if isinstance(leaf, tf.RaggedTensor):
        return tf.gather(leaf, rows)
    indices, shape = leaf.indices.numpy(), leaf.dense_shape.numpy()
    new_row = np.full(shape[0], -1)
    new_row[rows] = np.arange(len(rows))
    indices[:, 0] = new_row[indices[:, 0]]
    kept = indices[:, 0] >= 0
    shape[0] = len(rows)
    return tf.sparse.reorder(tf.SparseTensor(indices[kept], leaf.values.numpy()[kept], shape))
