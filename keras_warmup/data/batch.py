"""The `Batch`: rows of model input on the host, and the functions that inspect and slice them."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from keras_warmup.errors import DataError
from keras_warmup.options import REAL, Privacy

Source = Literal["captured", "data", "synthetic", "log"]
FeaturePath = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Batch:
    """A few rows of model input.

    Attributes:
        x: nested dicts, lists and tuples of leaves. A leaf is a `np.ndarray` of shape
            `[size, ...]` (strings are object arrays of `bytes`), a `tf.RaggedTensor` or
            `tf.SparseTensor` whose first dimension is `size`, or `None`.
            A leaf of rank 0 belongs to every row.
        size: rows in the batch; 1 for a whole batch.
        source: where the rows come from.
        is_whole: whether the batch is one request, whose arrays may differ in their first
            dimension: it is never sliced.
        full_size: rows of the batch that these rows were taken from; 0 where they are all of it.
        privacy: what was asked to be replaced when these rows were read.
        hidden: names of the features that were replaced.
        hidden_paths: their paths, as `render_path` renders them.
        columns: names of the columns of leaves that were DataFrames: the arrays do not have them.
    """

    x: Any
    size: int
    source: Source = "data"
    is_whole: bool = False
    full_size: int = 0
    privacy: Privacy = REAL
    hidden: frozenset[str] = frozenset()
    hidden_paths: frozenset[str] = frozenset()
    columns: frozenset[str] = frozenset()


def walk(x: Any, path: FeaturePath = ()) -> Iterator[tuple[FeaturePath, Any]]:
    """Yields `(path, leaf)` in the order in which `tf.nest` and `keras.tree` flatten.

    Raises:
        DataError: the keys of a dict cannot be sorted.
    """
    if isinstance(x, Mapping):
        try:
            keys = sorted(x)
        except TypeError as error:
            types = sorted({type(key).__name__ for key in x})
            raise DataError(
                f"Cannot flatten {render_path(path)}: its keys have types {types}, which cannot be "
                "sorted together. Use keys of one type, such as str."
            ) from error
        for key in keys:
            yield from walk(x[key], (*path, key))
    elif is_sequence(x):
        for index, item in enumerate(x):
            yield from walk(item, (*path, index))
    else:
        yield path, x


def map_leaves(function: Callable[[FeaturePath, Any], Any], x: Any, path: FeaturePath = ()) -> Any:
    """Rebuilds `x` with each leaf replaced by `function(path, leaf)`.

    Keeps namedtuples, and `OrderedDict`s, which Keras flattens in another order than a dict.
    """
    if isinstance(x, Mapping):
        made = {key: map_leaves(function, value, (*path, key)) for key, value in x.items()}
        return OrderedDict(made) if isinstance(x, OrderedDict) else made
    if is_sequence(x):
        items = [map_leaves(function, item, (*path, index)) for index, item in enumerate(x)]
        if isinstance(x, tuple):
            return type(x)(*items) if hasattr(x, "_fields") else tuple(items)
        return items
    return function(path, x)


def is_sequence(x: Any) -> bool:
    """Returns whether `x` is a list or tuple, which is a node of the structure and not a leaf."""
    return isinstance(x, Sequence) and not isinstance(x, (str, bytes, bytearray))


def render_path(path: FeaturePath, root: str = "x") -> str:
    """Renders `("image", 0)` as `x['image'][0]`, for messages."""
    return root + "".join(f"[{part!r}]" for part in path)


def describe(leaf: Any) -> str:
    """Renders the dtype and shape of a leaf, such as `float32 [32, 224, 224, 3]`, for messages."""
    if leaf is None:
        return "None"
    shape = getattr(leaf, "shape", None)
    dtype = getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return type(leaf).__name__
    name = "string" if getattr(dtype, "kind", "?") in "OSUT" else getattr(dtype, "name", str(dtype))
    kind = {tf.RaggedTensor: "ragged ", tf.SparseTensor: "sparse "}.get(type(leaf), "")
    return f"{kind}{name} {render_shape(tuple(shape))}"


def render_shape(shape: Sequence[int | None] | None) -> str:
    """Renders `(None, 3)` as `[None, 3]`, and an unknown rank as `<unknown rank>`."""
    return "<unknown rank>" if shape is None else "[" + ", ".join(str(size) for size in shape) + "]"


def leaf_nbytes(leaf: Any) -> int:
    """Returns the bytes that the values of a leaf take on the host; strings by their length."""
    if leaf is None:
        return 0
    if isinstance(leaf, np.ndarray):
        if leaf.dtype.kind == "O":
            return sum(
                len(value) if isinstance(value, (bytes, str)) else 8 for value in leaf.ravel()
            )
        return int(leaf.nbytes)
    values = leaf.flat_values if isinstance(leaf, tf.RaggedTensor) else leaf.values
    return int(values.shape[0] or 0) * max(1, int(values.dtype.size))


def slice_rows(batch: Batch, start: int, stop: int) -> Batch:
    """Returns the rows `start` to `stop` of a batch; its arrays are views of those of `batch`.

    A whole batch is returned as it is.
    """
    if batch.is_whole:
        return batch
    x = map_leaves(lambda _, leaf: slice_leaf(leaf, start, stop), batch.x)
    full_size = batch.full_size or batch.size
    return dataclasses.replace(batch, x=x, size=stop - start, full_size=full_size)


def slice_leaf(leaf: Any, start: int, stop: int) -> Any:
    """Returns the rows `start` to `stop` of a leaf, which may be on a device.

    `None` and leaves of rank 0 are returned as they are.
    """
    if isinstance(leaf, tf.SparseTensor):
        shape = [stop - start, *leaf.dense_shape.numpy()[1:]]
        return tf.sparse.slice(leaf, [start] + [0] * (len(shape) - 1), shape)
    return leaf if leaf is None or len(leaf.shape) == 0 else leaf[start:stop]


def stack_rows(rows: Sequence[Any]) -> np.ndarray:
    """Stacks rows of one shape, each an array or a string.

    `np.stack` of `bytes` makes fixed-width strings, which lose trailing NULs.
    """
    if isinstance(rows[0], (bytes, str)):
        return as_objects(rows)
    if isinstance(rows[0], np.ndarray) and rows[0].dtype.kind == "O":
        return np.concatenate([row[np.newaxis] for row in rows])
    return np.stack(rows)


def is_string_vector(batch: Batch) -> bool:
    """Returns whether x is one vector of bytes: text, or rows that are already serialized."""
    leaves = [leaf for _, leaf in walk(batch.x) if leaf is not None]
    return (
        len(leaves) == 1
        and isinstance(leaves[0], np.ndarray)
        and leaves[0].dtype.kind == "O"
        and leaves[0].ndim == 1
    )


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """Returns an object array `[n]`: NumPy's string arrays lose trailing NULs."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def encode_strings(array: np.ndarray) -> np.ndarray:
    """Encodes strings as `bytes`.

    Args:
        array: any shape, of a NumPy string dtype or of objects.

    Returns:
        An object array of the same shape; `str` in UTF-8.

    Raises:
        TypeError: some objects are not strings; the text lists their types.
    """
    values = array.ravel().tolist()
    types = sorted(
        {type(value).__name__ for value in values if not isinstance(value, (bytes, str))}
    )
    if types:
        raise TypeError(", ".join(types))
    return as_objects(
        [value.encode() if isinstance(value, str) else bytes(value) for value in values]
    ).reshape(array.shape)
