"""`Batch`: rows as the model was fed them, on the host, with what every stage needs to look at and slice them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from keras_warmup.errors import DataError

Source = Literal["captured", "data", "synthetic", "log"]
FeaturePath = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Batch:
    """A few rows of model input.

    Attributes:
        x: nested dicts, lists and tuples of leaves. A leaf is a `np.ndarray` of shape `[size, ...]` (strings are object
            arrays of `bytes`), a `tf.RaggedTensor` or `tf.SparseTensor` whose first dimension is `size`, or `None`.
        size: rows in the batch.
        source: where the rows come from.
    """

    x: Any
    size: int
    source: Source = "data"


def walk(x: Any, path: FeaturePath = ()) -> Iterator[tuple[FeaturePath, Any]]:
    """Yields `(path, leaf)` in the order `tf.nest` and `keras.tree` flatten: dict keys sorted, sequences in place."""
    if isinstance(x, Mapping):
        try:
            keys = sorted(x)
        except TypeError as error:
            kinds = sorted({type(key).__name__ for key in x})
            raise DataError(
                f"Cannot flatten {render_path(path)}: its keys have types {kinds}, which do not sort together. "
                "Use keys of one type, such as str."
            ) from error
        for key in keys:
            yield from walk(x[key], (*path, key))
    elif is_sequence(x):
        for index, item in enumerate(x):
            yield from walk(item, (*path, index))
    else:
        yield path, x


def map_leaves(function: Any, x: Any, path: FeaturePath = ()) -> Any:
    """Rebuilds `x` with `function(path, leaf)` in place of each leaf; namedtuples keep their type."""
    if isinstance(x, Mapping):
        return {key: map_leaves(function, value, (*path, key)) for key, value in x.items()}
    if is_sequence(x):
        items = [map_leaves(function, item, (*path, index)) for index, item in enumerate(x)]
        if isinstance(x, tuple):
            return type(x)(*items) if hasattr(x, "_fields") else tuple(items)
        return items
    return function(path, x)


def is_sequence(x: Any) -> bool:
    """Whether `x` is a structure node (list or tuple), not a leaf."""
    return isinstance(x, Sequence) and not isinstance(x, (str, bytes, bytearray))


def render_path(path: FeaturePath, root: str = "x") -> str:
    """`("image", 0)` as `x['image'][0]`, for messages."""
    return root + "".join(f"[{part!r}]" for part in path)


def describe(leaf: Any) -> str:
    """Dtype and shape of a leaf, for messages: `float32 [32, 224, 224, 3]`. Never a value."""
    if leaf is None:
        return "None"
    shape = getattr(leaf, "shape", None)
    dtype = getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return type(leaf).__name__
    name = "string" if getattr(dtype, "kind", "?") in "OSUT" else getattr(dtype, "name", str(dtype))
    kind = {"RaggedTensor": "ragged ", "SparseTensor": "sparse "}.get(type(leaf).__name__, "")
    return f"{kind}{name} {render_shape(tuple(shape))}"


def render_shape(shape: Sequence[int | None] | None) -> str:
    """`(None, 3)` as `[None, 3]`; unknown rank as `<unknown rank>`."""
    return "<unknown rank>" if shape is None else "[" + ", ".join(str(size) for size in shape) + "]"


def leaf_nbytes(leaf: Any) -> int:
    """Bytes a leaf takes on the host; strings count their own lengths."""
    if leaf is None:
        return 0
    if isinstance(leaf, np.ndarray):
        if leaf.dtype.kind == "O":
            return sum(
                len(value) if isinstance(value, (bytes, str)) else 8 for value in leaf.ravel()
            )
        return int(leaf.nbytes)
    parts = leaf.flat_values if hasattr(leaf, "flat_values") else leaf.values
    return int(parts.shape[0] or 0) * max(1, int(getattr(parts.dtype, "size", 8)))


def slice_rows(batch: Batch, start: int, stop: int) -> Batch:
    """Rows `start` to `stop` of a batch, as a batch of their own (arrays are views)."""

    def take(_: FeaturePath, leaf: Any) -> Any:
        if leaf is None:
            return None
        if type(leaf).__name__ == "SparseTensor":
            import tensorflow as tf

            shape = [stop - start, *list(leaf.dense_shape.numpy()[1:])]
            return tf.sparse.slice(leaf, [start] + [0] * (len(shape) - 1), shape)
        return leaf[start:stop]

    return Batch(map_leaves(take, batch.x), stop - start, batch.source)


def stack_rows(rows: Sequence[Any]) -> np.ndarray:
    """Stacks rows of one shape. `np.stack` of `bytes` would give fixed-width strings, which lose trailing NULs."""
    if isinstance(rows[0], np.ndarray) and rows[0].dtype.kind != "O":
        return np.stack(rows)
    if isinstance(rows[0], np.ndarray):
        return np.concatenate([row[np.newaxis] for row in rows])
    if isinstance(rows[0], (bytes, str)):
        stacked = np.empty(len(rows), dtype=object)
        stacked[:] = rows
        return stacked
    return np.stack(rows)


def is_string_vector(batch: Batch) -> bool:
    """Whether x is one vector of bytes: text, or rows that are serialized already."""
    leaves = [leaf for _, leaf in walk(batch.x) if leaf is not None]
    return (
        len(leaves) == 1
        and isinstance(leaves[0], np.ndarray)
        and leaves[0].dtype.kind == "O"
        and leaves[0].ndim == 1
    )


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """An object array `[n]`: numpy's own string arrays lose trailing NULs."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def encode_strings(array: np.ndarray) -> np.ndarray:
    """Strings as `bytes`.

    Args:
        array: any shape, of numpy's string dtypes or of objects.

    Returns:
        An object array of the same shape; `str` in UTF-8.

    Raises:
        TypeError: objects among them are no strings; the text lists their types.
    """
    values = array.ravel().tolist()
    kinds = sorted(
        {type(value).__name__ for value in values if not isinstance(value, (bytes, str))}
    )
    if kinds:
        raise TypeError(", ".join(kinds))
    return as_objects(
        [value.encode() if isinstance(value, str) else bytes(value) for value in values]
    ).reshape(array.shape)
