"""Dtypes: which casts a request may make, and how strings become bytes. Whatever would lose a sampled value is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.data.batch import encode_strings


class MismatchError(Exception):
    """A leaf that does not fit what takes it; the argument says how, without values."""


def cast_array(array: np.ndarray, dtype: str) -> tuple[np.ndarray, str | None]:
    """An array in the dtype of an input: casts as `fit` does, or where no sampled value changes.

    Args:
        array: as `as_array` makes it.
        dtype: name of the input's `tf.DType`.

    Returns:
        The array, and the cast made, such as `int64 -> float32`, or `None`.

    Raises:
        Misfit: the cast would change a sampled value.
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
        raise MismatchError(f"{array.dtype} is no dtype of TensorFlow") from error
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
            raise MismatchError("dtype differs: a float is never cut to an integer")
        made = array.astype(wanted.as_numpy_dtype)
        if np.array_equal(made.astype(array.dtype), array) and _same_sign(array, made):
            return made, cast
    raise MismatchError("dtype differs: some sampled values do not survive the cast")


def overflows(array: np.ndarray, made: np.ndarray) -> bool:
    """Whether a cast made infinity (or NaN, in floats without one) of a finite value; NaN and infinity may stay."""
    return bool(np.any(np.isfinite(array) & ~np.isfinite(made)))


def as_array(leaf: Any) -> np.ndarray:
    """An array-like as an array in native byte order, strings as objects of type `bytes`.

    Raises:
        Misfit: numpy makes no array of it, or it holds objects that are no strings.
    """
    if isinstance(leaf, tf.RaggedTensor):
        raise MismatchError("a ragged tensor for a dense input")
    if isinstance(leaf, tf.SparseTensor):
        leaf = tf.sparse.to_dense(tf.sparse.reorder(leaf))
    try:
        array = np.asarray(leaf)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # rows of different shapes; torch tensors with a gradient
        raise MismatchError(f"numpy makes no array of it: {type(error).__name__}") from error
    if array.dtype.kind in "OSUT":
        try:
            return encode_strings(array)
        except TypeError as error:
            raise MismatchError(f"objects that are neither bytes nor str: {error}") from error
    # A TensorProto is little-endian; tf.as_dtype knows native byte order only.
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.byteorder == ">" else array


def _same_sign(array: np.ndarray, made: np.ndarray) -> bool:
    """Guards against a wrap that a round trip hides, such as int64 -1 -> uint64 -> int64 -1."""
    if array.dtype.kind == "b" or made.dtype.kind == "b":
        return True
    return bool(np.array_equal(array < 0, made < 0))
