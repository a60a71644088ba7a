"""What `data=` may be: arrays, structures of them, DataFrames, tf.data, PyDataset, DataLoader, generators -> Batches.

Data is read as `Model.fit` reads it.
"""

from __future__ import annotations

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
    Source,
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


def read_batches(data: Any, *, batch_size: int = DEFAULT_BATCH_SIZE) -> Iterator[Batch]:
    """Reads data as batches of model input.

    Args:
        data: Bare arrays, DataFrames, and lists, tuples and dicts of arrays are x, with rows first. A list of `bytes`
            or `str` is one string array. Elements of a `tf.data.Dataset`, `keras.utils.PyDataset`, torch `DataLoader`
            or generator are `(x[, y[, sample_weight]])`, of which x is kept, or x itself where they are no tuple or
            list.
            A dataset of scalar strings (`TFRecordDataset`) is batched. A function without arguments is called for the
            data. A DataFrame of numbers is one 2-D array, as in `fit`; one of mixed or string columns is a dict
            of its columns, each of shape `[rows, 1]`, as `fit(dict(frame))` reads it. An iterator is one-shot: what is
            read from it is gone, which a `UserWarning` says.
        batch_size: rows of each batch made of arrays, and of a dataset of scalar strings.

    Returns:
        An iterator over batches. It is infinite where the data is, and reads no further than it is asked to.

    Raises:
        DataError: the data cannot be read. For arrays at once, for all else when the bad element is read. What the
            user's code raises while it is read is named by its type and place, since its text may hold values.
    """
    if is_class_of(data, "tensorflow", "DistributedDataset", "DistributedDatasetsFromFunction"):
        raise DataError(
            f"Cannot read data: {type(data).__name__} is spread over replicas. "
            "Pass the tf.data.Dataset it was made from."
        )
    if isinstance(data, tf.data.Dataset):
        return _read_elements(_batch_strings(data, batch_size), "the tf.data.Dataset")
    if is_class_of(data, "keras", "PyDataset") or is_class_of(data, "tf_keras", "Sequence"):
        return _read_elements(_iterate_py_dataset(data), "the PyDataset")
    if is_class_of(data, "torch", "DataLoader"):
        return _read_elements(data, "the DataLoader")
    if isinstance(data, types.GeneratorType) or (
        hasattr(data, "__next__") and not isinstance(data, Mapping)
    ):
        warnings.warn(
            f"data= is a {type(data).__name__}, which can be read once: the batches read from it for warmup records "
            "are gone for whatever reads it next. Pass a function that returns a new one to keep it.",
            UserWarning,
            stacklevel=2,
        )
        return _read_elements(data, f"the {type(data).__name__}")
    if callable(data) and not hasattr(data, "__array__"):
        return _read_made(data, batch_size)
    return _read_arrays(data, batch_size)


def read_element(element: Any, where: str, source: Source = "data") -> Batch:
    """Reads one element `(x[, y[, sample_weight]])` of a stream as a batch of its x.

    Args:
        element: what the stream yields; x itself where it is neither tuple nor list.
        where: what the element is, for messages.
        source: where its rows come from.

    Raises:
        DataError: it is a tuple of another length, or its x cannot be read.
    """
    return read_x(x_of(element, where), where, source)


def x_of(element: Any, where: str) -> Any:
    """The x of an element `(x[, y[, sample_weight]])`, or of a structure of its specs.

    Raises:
        DataError: it is a tuple or list of another length.
    """
    # Keras' own error for these prints the element, which is training data.
    if isinstance(element, (tuple, list)) and not 1 <= len(element) <= 3:
        raise DataError(
            f"Cannot read {where}: expected x, (x,), (x, y) or (x, y, sample_weight), got a {type(element).__name__} "
            f"of {len(element)} parts."
        )
    return keras.utils.unpack_x_y_sample_weight(element)[0]


def read_x(x: Any, where: str, source: Source = "data") -> Batch:
    """Reads a structure of array-likes as a batch on the host.

    Args:
        x: nested dicts, lists and tuples of array-likes with equal first dimensions.
        where: what x belongs to, for messages.
        source: where its rows come from.

    Raises:
        DataError: a leaf is no array of a TensorFlow dtype, has no rows, or another number of rows than the others.
    """
    x = _join_string_lists(x)
    host = map_leaves(lambda path, leaf: read_leaf(leaf, f"{render_path(path)} of {where}"), x)
    return Batch(host, count_rows(host, where), source)


def _read_elements(elements: Iterable[Any], where: str) -> Iterator[Batch]:
    count = 0
    for index, element in enumerate(_guarded(elements, where)):
        batch = read_element(element, f"element {index} of {where}")
        # fit trains on such an element too; there is no row in it to keep.
        if batch.size:
            count += 1
            yield batch
    if not count:
        raise DataError(f"Cannot read {where}: it is empty. Pass data with at least one row.")


def _guarded(elements: Iterable[Any], where: str) -> Iterator[Any]:
    """The elements; what their owner's code raises becomes a `DataError` without its text."""
    iterator: Iterator[Any] = _called(lambda: iter(elements), f"Cannot read {where}")
    for index in itertools.count():
        element = _called(lambda: next(iterator, _END), f"Cannot read element {index} of {where}")
        if element is _END:
            return
        yield element


def _called(function: Callable[[], Any], what: str) -> Any:
    """What `function`, which runs the user's code, returns.

    Raises:
        DataError: it raised; without the text of the error, which may hold values of the data.
    """
    try:
        return function()
    except WarmupError:
        raise
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        said = f"{status_of(error)}: {describe_op_error(error)}"
    except Exception as error:  # the user's code may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"it raised {type(error).__name__} at {frame.filename}:{frame.lineno}"
    # Out of the except block: a chained error would be printed with its text.
    raise DataError(f"{what}: {said}. Check that it can be read to its end without keras_warmup.")


def _batch_strings(dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    spec = dataset.element_spec
    if isinstance(spec, tf.TensorSpec) and spec.dtype == tf.string and spec.shape.rank == 0:
        return dataset.batch(batch_size)
    return dataset


def _iterate_py_dataset(data: Any) -> Iterator[Any]:
    count = data.num_batches if hasattr(data, "num_batches") else len(data)
    for index in itertools.count() if count is None else range(count):
        yield data[index]


def _read_made(function: Callable[[], Any], batch_size: int) -> Iterator[Batch]:
    name = getattr(function, "__name__", type(function).__name__)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (
        TypeError,
        ValueError,
    ):  # Builtins tell no signature; the call itself then says what is wrong.
        parameters = ()  # type: ignore[assignment]
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise DataError(
            f"Cannot read data: the function {name!r} needs arguments {needed}. Pass one that is called without any."
        )
    made = _called(function, f"Cannot read data: the function {name!r} failed")
    # Made for us alone, so that nobody misses what is read from it: no warning.
    if hasattr(made, "__next__"):
        return _read_elements(made, f"what the function {name!r} returns")
    if made is None:
        raise DataError(
            f"Cannot read data: the function {name!r} returned None. Return a generator, dataset or arrays."
        )
    return read_batches(made, batch_size=batch_size)


def _read_arrays(data: Any, batch_size: int) -> Iterator[Batch]:
    if is_class_of(data, "pandas", "DataFrame") and not has_numbers_only(data):
        data = _columns_of(data)
    whole = read_x(data, "data")
    if not whole.size:
        shapes = ", ".join(
            f"{render_path(path)} is {describe(leaf)}"
            for path, leaf in walk(whole.x)
            if leaf is not None
        )
        raise DataError(
            f"Cannot read data: it has no rows: {shapes}. Pass data with at least one row."
        )
    return (
        slice_rows(whole, start, min(start + batch_size, whole.size))
        for start in range(0, whole.size, batch_size)
    )


def _join_string_lists(x: Any) -> Any:
    """Makes one array of each list of strings, wherever it is in the structure."""
    if is_sequence(x) and len(x) and all(isinstance(item, (bytes, str)) for item in x):
        return as_objects(x)
    if isinstance(x, Mapping):
        return {key: _join_string_lists(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return type(x)(_join_string_lists(item) for item in x)
    return x


def _columns_of(frame: Any) -> dict[Any, Any]:
    names = list(frame.columns)
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"Cannot read data: the DataFrame has columns {twice} more than once, and a DataFrame of mixed columns is "
            "read by name. Rename them."
        )
    return {name: frame[name] for name in names}
