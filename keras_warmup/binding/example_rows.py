"""Splits a leaf into the rows of one tf.Example feature; casts only what a client would cast."""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import tensorflow as tf

from keras_warmup.binding.cast import MismatchError, overflows
from keras_warmup.data.batch import encode_strings, render_shape
from keras_warmup.savedmodel.string_formats import FeatureSpec

Array = np.ndarray[Any, Any]


def feature_rows(leaf: Any, feature: FeatureSpec) -> list[Array | None]:
    """Splits a leaf into rows of the feature's dtype.

    Args:
        leaf: `np.ndarray`, `tf.RaggedTensor` or `tf.SparseTensor` of `n` rows.
        feature: how the model's parser reads it.

    Returns:
        `n` rows, dense ones in the feature's shape, others flat; `None` for a missing value.

    Raises:
        MismatchError: the leaf does not fit the feature; the text contains no values.
    """
    if isinstance(leaf, tf.SparseTensor):
        if feature.kind == "dense" and not feature.is_sequence:
            raise MismatchError("a sparse tensor cannot fill a dense feature")
        return [_convert(row, feature) for row in sparse_rows(leaf)]
    if isinstance(leaf, tf.RaggedTensor):
        if feature.kind == "dense" and not feature.is_sequence:
            raise MismatchError("a ragged tensor cannot fill a dense feature")
        if leaf.ragged_rank != 1:
            raise MismatchError(
                "more than one ragged dimension needs partitions, which the parser's spec does not "
                "show"
            )
        return [_reshape(_convert(row, feature), feature) for row in ragged_rows(leaf)]
    array = np.asarray(leaf)
    if array.ndim == 0:
        raise MismatchError("a scalar has no rows")
    if array.dtype.kind == "O" and array.ndim == 1:
        return _object_rows(array, feature)
    return [_reshape(row, feature) for row in split_rows(_convert(array, feature))]


def _object_rows(column: Array, feature: FeatureSpec) -> list[Array | None]:
    """Splits an object column, whose rows are strings, numbers, sequences or `None`."""
    rows: list[Array | None] = []
    for value in column:
        if value is None:
            if feature.required:
                raise MismatchError("a row is None, but the feature is required")
            rows.append(None)
            continue
        array = value if isinstance(value, np.ndarray) else np.array(value, dtype=object)
        rows.append(_reshape(_convert(array, feature), feature))
    return rows


def split_rows(array: Array) -> list[Array]:
    """Splits an array into rows; a row of one string is an array too, which keeps trailing NULs."""
    return [array[row : row + 1].reshape(array.shape[1:]) for row in range(len(array))]


def _reshape(row: Array, feature: FeatureSpec) -> Array:
    """Returns a row in the shape of the feature, if only dimensions of size 1 differ."""
    if feature.kind != "dense" or feature.shape is None:
        if row.ndim > 1:
            raise MismatchError(
                f"a row of a {feature.kind} feature is a list of values, not "
                f"{render_shape(row.shape)}"
            )
        return row.reshape(-1)
    if feature.is_sequence:
        rest = cast(tuple[int, ...], feature.shape[1:])
        if row.shape[1:] != rest or row.ndim == 0:
            raise MismatchError(f"a row has shape {render_shape(row.shape)}")
        return row
    wanted = cast(tuple[int, ...], feature.shape)
    if row.shape != wanted and not (row.shape in ((), (1,)) and wanted in ((), (1,))):
        raise MismatchError(f"a row has shape {render_shape(row.shape)}")
    return row.reshape(wanted)


def ragged_rows(leaf: Any) -> list[Array]:
    """Splits a `tf.RaggedTensor` `[n, None, ...]` with one ragged dimension into rows."""
    splits, values = leaf.row_splits.numpy(), np.asarray(leaf.values.numpy())
    return [values[start:stop] for start, stop in itertools.pairwise(splits)]


def sparse_rows(leaf: Any) -> list[Array]:
    """Splits a `tf.SparseTensor` `[n, columns]` with values at columns 0, 1, 2, ... into rows.

    Raises:
        MismatchError: its rank is not 2, or values are at other columns.
    """
    if len(leaf.shape) != 2:
        raise MismatchError("only sparse tensors of rank 2, [rows, values], can be written")
    indices, values = leaf.indices.numpy(), np.asarray(leaf.values.numpy())
    order = np.lexsort((indices[:, 1], indices[:, 0]))
    indices, values = indices[order], values[order]
    counts = np.bincount(indices[:, 0], minlength=int(leaf.dense_shape.numpy()[0]))
    starts = np.cumsum(counts) - counts
    if np.any(indices[:, 1] != np.arange(len(indices)) - np.repeat(starts, counts)):
        raise MismatchError(
            "rows have holes (their values are not at columns 0, 1, 2, ...), and an Example holds "
            "a plain list: this may be a SparseFeature, whose index and value features must be "
            "given under their own keys"
        )
    return [values[start : start + count] for start, count in zip(starts, counts, strict=True)]


def _convert(array: Array, feature: FeatureSpec) -> Array:
    """Casts the values to the feature's dtype; refuses casts that a client would not make."""
    kind = array.dtype.kind
    if feature.dtype == "string":
        return _to_bytes(array)
    if kind == "O":
        array = _plain_numbers(array, feature.dtype)
        kind = array.dtype.kind
    if kind in "SUT":
        raise MismatchError(f"strings for a feature of {feature.dtype}")
    name = array.dtype.name
    if feature.dtype == "int64":
        if kind in "fV" or name.startswith(("bfloat16", "float8")):
            raise MismatchError("floats for a feature of int64 are not cast")
        if kind == "u" and array.size and int(array.max()) >= 2**63:
            raise MismatchError("values of 2**63 and more do not fit in an int64")
        if kind not in "iub":
            raise MismatchError(f"{name} for a feature of int64")
        return array.astype(np.int64)
    if kind not in "fiubV" or kind == "c":
        raise MismatchError(f"{name} for a feature of float32")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(np.float32)
    if kind in "fV" and overflows(array, converted):
        raise MismatchError("values beyond the range of float32")
    if kind in "iu" and not _survives(array, converted):
        raise MismatchError("integers that a float32 cannot represent exactly")
    return converted


def _survives(integers: Array, floats: Array) -> bool:
    """Returns whether every integer equals its float32; Python numbers compare without rounding."""
    return all(
        int(a) == int(b)
        for a, b in zip(integers.reshape(-1).tolist(), floats.reshape(-1).tolist(), strict=True)
    )


def _plain_numbers(array: Array, dtype: str) -> Array:
    """Converts an object array of numbers to float64, or to int64 if none is a float."""
    values = array.reshape(-1).tolist()
    if any(isinstance(value, (bytes, str)) for value in values):
        raise MismatchError(f"strings for a feature of {dtype}")
    if not all(isinstance(value, (bool, int, float, np.generic)) for value in values):
        raise MismatchError("objects that are not numbers")
    if any(isinstance(value, (float, np.floating)) for value in values):
        return np.array(values, dtype=np.float64).reshape(array.shape)
    if any(not -(2**63) <= int(value) < 2**63 for value in values):
        raise MismatchError("values beyond the range of int64")
    return np.array([int(value) for value in values], dtype=np.int64).reshape(array.shape)


def _to_bytes(array: Array) -> Array:
    if array.dtype.kind not in "SUTO":
        raise MismatchError(f"{array.dtype.name} for a feature of strings")
    try:
        return encode_strings(array)
    except TypeError as error:
        raise MismatchError(f"{error} among strings") from error
