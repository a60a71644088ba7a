"""Reads `data=` into batches, as `Model.fit` reads it.

Arrays and structures of them, DataFrames, `tf.data.Dataset`, `PyDataset`, torch `DataLoader`,
generators and functions that return one of these are accepted.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_warmup.data.batch import (
    Batch,
    as_objects,
    describe,
    is_sequence,
    map_leaves,
    render_path,
    slice_rows,
    walk,
)
from keras_warmup.data.leaves import count_rows, has_numbers_only, is_class_of, read_leaf
from keras_warmup.errors import DataError, WarmupError
from keras_warmup.op_errors import describe_op_error, status_of

DEFAULT_BATCH_SIZE = 32
_END = object()


def read_batches(
    data: Any, *, batch_size: int = DEFAULT_BATCH_SIZE, whole: bool = False
) -> Iterator[Batch]:
    """Reads data as batches of model input.

    Args:
        data: Bare arrays, DataFrames, and lists, tuples and dicts of arrays are x, with rows in the
            first dimension. A list of `bytes` or `str` is one string array. Elements of a
            `tf.data.Dataset`, `keras.utils.PyDataset`, torch `DataLoader` or generator are
            `(x[, y[, sample_weight]])`, of which x is kept; an element that is not a tuple or list
            is x itself. A dataset of scalar strings (`TFRecordDataset`) is batched. A function
            without parameters is called and what it returns is read. A DataFrame of numbers is one
            2-D array, as in `fit`; a DataFrame of mixed or string columns is a dict of its columns,
            each of shape `[rows, 1]`, as `fit(dict(frame))` reads it. Batches read from an iterator
            are lost to its next reader; a `UserWarning` says so.
        batch_size: rows of each batch made from arrays or from a dataset of scalar strings.
        whole: whether each batch is one request, which is never sliced; arrays are one batch.

    Returns:
        An iterator over batches. It is infinite if the data is, and reads only what is requested.

    Raises:
        DataError: the data cannot be read. Arrays are checked at once, elements when they are read.
            An exception of the user's code is reported by its type and location, since its text may
            contain values.
    """
    _refuse_distributed(data)
    if isinstance(data, tf.data.Dataset):
        return _read_elements(_batch_strings(data, batch_size), "the tf.data.Dataset", whole)
    if is_class_of(data, "keras", "PyDataset") or is_class_of(data, "tf_keras", "Sequence"):
        return _read_elements(_iterate_py_dataset(data), "the PyDataset", whole)
    if is_class_of(data, "torch", "DataLoader"):
        return _read_elements(data, "the DataLoader", whole)
    if isinstance(data, types.GeneratorType) or (
        hasattr(data, "__next__") and not isinstance(data, Mapping)
    ):
        warnings.warn(
            f"data= is a {type(data).__name__}, which can be read only once: the batches read from "
            "it for warmup records are lost to its next reader. Pass a function that returns a new "
            "one to keep it.",
            UserWarning,
            stacklevel=2,
        )
        return _read_elements(data, f"the {type(data).__name__}", whole)
    if callable(data) and not hasattr(data, "__array__"):
        return _read_function(data, batch_size, whole)
    return _read_arrays(data, batch_size, whole)


def first_batch(data: Any, *, whole: bool = False) -> Batch | None:
    """Returns a first batch of data as far as it is known without running anything.

    A training that goes on must not notice: an iterator would lose the batch, a dataset that
    shuffles would give its next reader another order, and the user's code may draw random numbers.

    Args:
        data: as `read_batches` takes it.
        whole: as `read_batches` takes it.

    Returns:
        The first rows of arrays. For a `tf.data.Dataset`, one row whose leaves are the
        `tf.TensorSpec`s of its elements. `None` for other data.

    Raises:
        DataError: the data cannot be read.
    """
    _refuse_distributed(data)
    if isinstance(data, tf.data.Dataset):
        x = unpack_x(data.element_spec, "the tf.data.Dataset")
        specs = [leaf for _, leaf in walk(x)]
        # The rank of a generator's elements may not be known; scalar strings are batched later.
        if any(not isinstance(one, tf.TensorSpec) or not one.shape.rank for one in specs):
            return None
        return Batch(x, 1, is_whole=whole)
    is_array = not callable(data) or hasattr(data, "__array__")
    if hasattr(data, "__next__") or not is_array or _is_loader(data):
        return None
    return next(iter(_read_arrays(data, DEFAULT_BATCH_SIZE, whole)))


def _is_loader(data: Any) -> bool:
    return (
        is_class_of(data, "keras", "PyDataset")
        or is_class_of(data, "tf_keras", "Sequence")
        or is_class_of(data, "torch", "DataLoader")
    )


def _refuse_distributed(data: Any) -> None:
    if is_class_of(data, "tensorflow", "DistributedDataset", "DistributedDatasetsFromFunction"):
        raise DataError(
            f"Cannot read data: {type(data).__name__} is distributed over replicas. "
            "Pass the tf.data.Dataset it was made from."
        )


def unpack_x(element: Any, where: str) -> Any:
    """Returns the x of an element `(x[, y[, sample_weight]])`, or of a structure of its specs.

    Args:
        element: the element; it is x itself if it is not a tuple or list.
        where: name of the element, for messages.

    Raises:
        DataError: the element is a tuple or list of another length.
    """
    # Keras' own error for these prints the element, which is training data.
    if isinstance(element, (tuple, list)) and not 1 <= len(element) <= 3:
        raise DataError(
            f"Cannot read {where}: expected x, (x,), (x, y) or (x, y, sample_weight), got a "
            f"{type(element).__name__} of {len(element)} parts."
        )
    return keras.utils.unpack_x_y_sample_weight(element)[0]


def _read_x(x: Any, where: str, whole: bool) -> Batch:
    """Reads a structure of array-likes as a batch on the host."""
    x = _join_string_lists(x)
    host = map_leaves(lambda path, leaf: read_leaf(leaf, f"{render_path(path)} of {where}"), x)
    columns = {
        str(name)
        for _, leaf in walk(x)
        if is_class_of(leaf, "pandas", "DataFrame")
        for name in leaf.columns
    }
    size = count_rows(host, where, is_whole=whole)
    return Batch(host, size, is_whole=whole, columns=frozenset(columns))


def _read_elements(elements: Iterable[Any], where: str, whole: bool) -> Iterator[Batch]:
    is_empty = True
    for index, element in enumerate(_iterate_safely(elements, where)):
        name = f"element {index} of {where}"
        batch = _read_x(unpack_x(element, name), name, whole)
        # fit accepts elements without rows.
        if batch.size:
            is_empty = False
            yield batch
    if is_empty:
        raise DataError(f"Cannot read {where}: it is empty. Pass data with at least one row.")


def _iterate_safely(elements: Iterable[Any], where: str) -> Iterator[Any]:
    """Yields the elements; raises `DataError` without the text of what the iterator raises."""
    iterator: Iterator[Any] = _call_safely(lambda: iter(elements), f"Cannot read {where}")
    for index in itertools.count():
        element = _call_safely(
            lambda: next(iterator, _END), f"Cannot read element {index} of {where}"
        )
        if element is _END:
            return
        yield element


def _call_safely(function: Callable[[], Any], what: str) -> Any:
    """Calls a function that runs the user's code.

    Raises:
        DataError: the function raised. The text of its exception, which may contain values of the
            data, is left out.
    """
    try:
        return function()
    except WarmupError:
        raise
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        reason = f"{status_of(error)}: {describe_op_error(error)}"
    except Exception as error:  # the user's code may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"it raised {type(error).__name__} at {frame.filename}:{frame.lineno}"
    # Outside the except block: a chained exception would be printed with its text.
    raise DataError(f"{what}: {reason}. Check that it can be read to its end without keras_warmup.")


def _batch_strings(dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    spec = dataset.element_spec
    if isinstance(spec, tf.TensorSpec) and spec.dtype == tf.string and spec.shape.rank == 0:
        return dataset.batch(batch_size)
    return dataset


def _iterate_py_dataset(data: Any) -> Iterator[Any]:
    count = data.num_batches if hasattr(data, "num_batches") else len(data)
    for index in itertools.count() if count is None else range(count):
        yield data[index]


def _read_function(function: Callable[[], Any], batch_size: int, whole: bool) -> Iterator[Batch]:
    name = getattr(function, "__name__", type(function).__name__)
    needed = _required_parameters(function)
    if needed:
        raise DataError(
            f"Cannot read data: the function {name!r} needs arguments {needed}. Pass a function "
            "without parameters."
        )
    made = _call_safely(function, f"Cannot read data: the function {name!r} failed")
    # No warning about one-shot iterators: this one has no other reader.
    if hasattr(made, "__next__"):
        return _read_elements(made, f"what the function {name!r} returns", whole)
    if made is None:
        raise DataError(
            f"Cannot read data: the function {name!r} returned None. Return a generator, dataset "
            "or arrays."
        )
    return read_batches(made, batch_size=batch_size, whole=whole)


def _required_parameters(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _read_arrays(data: Any, batch_size: int, whole: bool) -> Iterator[Batch]:
    if is_class_of(data, "pandas", "DataFrame") and not has_numbers_only(data):
        data = _columns_of(data)
    batch = _read_x(data, "data", whole)
    if not batch.size:
        shapes = ", ".join(
            f"{render_path(path)} is {describe(leaf)}"
            for path, leaf in walk(batch.x)
            if leaf is not None
        )
        raise DataError(
            f"Cannot read data: it has no rows: {shapes}. Pass data with at least one row."
        )
    return (
        dataclasses.replace(
            slice_rows(batch, start, min(start + batch_size, batch.size)), full_size=0
        )
        for start in range(0, batch.size, batch_size)
    )


def _join_string_lists(x: Any) -> Any:
    """Replaces each list of strings in the structure with one array."""
    if is_sequence(x) and len(x) and all(isinstance(item, (bytes, str)) for item in x):
        return as_objects(x)
    if isinstance(x, Mapping):
        return {key: _join_string_lists(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return type(x)(_join_string_lists(item) for item in x)
    return x


def _columns_of(frame: Any) -> dict[Any, Any]:
    names = list(frame.columns)
    repeated = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"Cannot read data: the DataFrame has columns {repeated} more than once, and a "
            "DataFrame of mixed columns is read by name. Rename them."
        )
    return {name: frame[name] for name in names}
