"""Reads one leaf of a batch into an array on the host: NumPy, tensors, pandas, scipy and torch.

Libraries that may not be installed are recognised by the names of their classes and not imported.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_warmup.data.batch import describe, encode_strings, render_path, walk
from keras_warmup.errors import DataError

ACCEPTED = (
    "Pass what fit takes: an array, a list, tuple or dict of arrays, a DataFrame, a "
    "tf.data.Dataset, a PyDataset, a torch DataLoader, a generator or a function that returns one."
)


def count_rows(x: Any, where: str, *, is_whole: bool = False) -> int:
    """Returns the first dimension that all leaves of `x` share; leaves of rank 0 do not count.

    Args:
        x: nested dicts, lists and tuples of leaves, on the host or on a device.
        where: what x belongs to, for messages.
        is_whole: whether x is one request, so that its first dimensions may differ; it has 1 row.

    Raises:
        DataError: there is no leaf, or the first dimensions differ.
    """
    leaves = [(path, leaf) for path, leaf in walk(x) if leaf is not None]
    if not leaves:
        raise DataError(f"Cannot read {where}: x has no arrays. {ACCEPTED}")
    rows = {render_path(path): _rows_of_leaf(leaf) for path, leaf in leaves if len(leaf.shape)}
    if is_whole:
        return 1 if all(rows.values()) else 0
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in rows.items())
        raise DataError(
            f"Cannot read {where}: its arrays have different numbers of rows: {listed}. Pass "
            "arrays with the same number of rows; where each batch is one request, as a graph of "
            "nodes and edges is, pass warmup={'whole_batches': True}."
        )
    return next(iter(rows.values()), 1)


def read_leaf(leaf: Any, where: str) -> Any:
    """Reads one leaf into host memory.

    Args:
        leaf: array, tensor, pandas Series or DataFrame, scipy sparse matrix, optional or `None`.
        where: name of the leaf, for messages.

    Returns:
        `np.ndarray` (strings as objects of type `bytes`; other dtypes are kept), `tf.RaggedTensor`,
        `tf.SparseTensor` or `None`. Arrays may share memory with `leaf`.

    Raises:
        DataError: the leaf is none of these, or its dtype is not a TensorFlow dtype.
    """
    if isinstance(leaf, tf.experimental.Optional):
        leaf = leaf.get_value() if leaf.has_value() else None
    if leaf is None or isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        return leaf
    if is_class_of(leaf, "scipy.sparse", "sparray", "spmatrix", "_spbase"):
        # A tf.SparseTensor wants indices sorted and without duplicates; scipy's coo has neither.
        coo = leaf.tocsr().sorted_indices().tocoo()
        return tf.SparseTensor(
            np.stack([coo.row, coo.col], axis=1).astype(np.int64), coo.data, coo.shape
        )
    if is_class_of(leaf, "pandas", "DataFrame"):
        return _read_numbers(leaf, where)
    if is_class_of(leaf, "pandas", "Series"):
        return _check_dtype(np.expand_dims(leaf.to_numpy(), -1), where)
    if is_class_of(leaf, "torch", "Tensor"):
        return _check_dtype(leaf.detach().cpu().numpy(), where)
    if isinstance(leaf, np.ndarray):
        return _check_dtype(leaf, where)
    if (
        hasattr(leaf, "__array__")
        and not keras.backend.is_keras_tensor(leaf)
        and not _is_symbolic(leaf)
    ):
        return _check_dtype(
            np.asarray(leaf.numpy() if isinstance(leaf, tf.Tensor) else leaf), where
        )
    is_number = isinstance(leaf, (bool, int, float, complex))
    advice = "Make an array of it with numpy.asarray." if is_number else ACCEPTED
    raise DataError(f"Cannot read {where}: expected an array, got {type(leaf).__name__}. {advice}")


def is_class_of(value: Any, library: str, *names: str) -> bool:
    """Returns whether `value` is an instance of a class of that library with one of the names."""
    return any(
        parent.__name__ in names and f"{parent.__module__}.".startswith(f"{library}.")
        for parent in type(value).__mro__
    )


def has_numbers_only(frame: Any) -> bool:
    """Returns whether every column of a DataFrame has a numeric or boolean NumPy dtype."""
    return all(isinstance(dtype, np.dtype) and dtype.kind in "biuf" for dtype in frame.dtypes)


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor) and not hasattr(leaf, "numpy")


def _rows_of_leaf(leaf: Any) -> int:
    if isinstance(leaf, tf.RaggedTensor):
        return int(leaf.nrows())
    return int(leaf.dense_shape[0]) if isinstance(leaf, tf.SparseTensor) else int(leaf.shape[0])


def _read_numbers(frame: Any, where: str) -> np.ndarray[Any, Any]:
    if not has_numbers_only(frame):
        listed = ", ".join(
            f"{name!r} {dtype}" for name, dtype in zip(frame.columns, frame.dtypes, strict=True)
        )
        raise DataError(
            f"Cannot read {where}: its columns are not all numbers: {listed}. "
            "Pass dict(frame) to give each column to an input of its own."
        )
    if not len(frame.columns):
        raise DataError(
            f"Cannot read {where}: the DataFrame has no columns. Pass one with the features of the "
            "model."
        )
    numbers: np.ndarray[Any, Any] = frame.to_numpy(dtype=np.result_type(*frame.dtypes))
    return numbers


def _check_dtype(array: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    """Returns the array with strings encoded; refuses dtypes that TensorFlow does not have."""
    if array.dtype.kind in "OSUT":
        return _encode_strings(array, where)
    try:
        tf.as_dtype(array.dtype)
    except TypeError as error:
        raise DataError(
            f"Cannot read {where}: {array.dtype} is not a TensorFlow dtype, got {describe(array)}. "
            "Convert it to numbers or strings first."
        ) from error
    return array


def _encode_strings(array: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    try:
        return encode_strings(array)
    except TypeError as error:
        raise DataError(
            f"Cannot read {where}: expected strings in an object array of shape "
            f"{list(array.shape)}, got values of type {error}. Fill missing values and make it an "
            "array of numbers or of strings."
        ) from error
