"""Casts arrays to the dtypes of inputs; refuses casts that would lose sampled values."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.data.batch import encode_strings


class MismatchError(Exception):
    """A leaf does not fit its input or feature; the argument says why, without values."""


def cast_array(array: np.ndarray, dtype: str) -> tuple[np.ndarray, str | None]:
    """Casts an array to the dtype of an input, as `fit` does or if no sampled value changes.

    Args:
        array: as `as_array` returns it.
        dtype: name of the input's `tf.DType`.

    Returns:
        The array and the cast, such as `int64 -> float32`, or `None` if it had the dtype already.

    Raises:
        MismatchError: the cast would change a sampled value.
    """
    if dtype == "string":
        if array.dtype.kind != "O":
            raise MismatchError("a number for a string input")
        return array, None
    if array.dtype.kind == "O":
        raise MismatchError("strings for a numeric input")
    wanted = tf.as_dtype(dtype)
    try:
        got = tf.as_dtype(array.dtype)
    except TypeError as error:
        raise MismatchError(f"{array.dtype} is not a TensorFlow dtype") from error
    if got == wanted:
        return array, None
    cast = f"{got.name} -> {wanted.name}"
    with np.errstate(all="ignore"):
        if (got.is_floating and wanted.is_floating) or (got.is_complex and wanted.is_complex):
            # As `fit` casts to the model's float type.
            made = array.astype(wanted.as_numpy_dtype)
            if overflows(array, made):
                raise MismatchError("dtype differs: some sampled values overflow")
            return made, cast
        if got.is_floating or got.is_complex:
            raise MismatchError("dtype differs: floats are not cast to integers")
        made = array.astype(wanted.as_numpy_dtype)
        if np.array_equal(made.astype(array.dtype), array) and _same_sign(array, made):
            return made, cast
    raise MismatchError("dtype differs: the cast would change some sampled values")


def overflows(array: np.ndarray, made: np.ndarray) -> bool:
    """Returns whether a cast turned a finite value into infinity or NaN."""
    return bool(np.any(np.isfinite(array) & ~np.isfinite(made)))


def as_array(leaf: Any) -> np.ndarray:
    """Converts an array-like to an array in native byte order, with strings as `bytes` objects.

    Raises:
        MismatchError: it is ragged, NumPy cannot convert it, or it has objects other than strings.
    """
    if isinstance(leaf, tf.RaggedTensor):
        raise MismatchError("a ragged tensor for a dense input")
    if isinstance(leaf, tf.SparseTensor):
        leaf = tf.sparse.to_dense(tf.sparse.reorder(leaf))
    try:
        array = np.asarray(leaf)
    # Such as for rows of different shapes, or torch tensors with a gradient.
    except (TypeError, ValueError, RuntimeError) as error:
        raise MismatchError(
            f"NumPy cannot convert it to an array: {type(error).__name__}"
        ) from error
    if array.dtype.kind in "OSUT":
        try:
            return encode_strings(array)
        except TypeError as error:
            raise MismatchError(f"objects that are neither bytes nor str: {error}") from error
    # A TensorProto is little-endian; tf.as_dtype knows native byte order only.
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.byteorder == ">" else array


def _same_sign(array: np.ndarray, made: np.ndarray) -> bool:
    """Returns whether no sign changed, as for int64 -1 -> uint64, which survives a round trip."""
    if array.dtype.kind == "b" or made.dtype.kind == "b":
        return True
    return bool(np.array_equal(array < 0, made < 0))
