"""`data=` is read as `fit` reads it; errors say what cannot be read and what to do."""

from __future__ import annotations

import collections
import itertools
import pathlib
import re
import subprocess
import sys
import traceback
import types
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_warmup.data.batch import Batch, describe, walk
from keras_warmup.data.leaves import read_leaf
from keras_warmup.data.sources import first_batch, read_batches, unpack_x
from keras_warmup.errors import DataError

ACCEPTED = (
    "Pass what fit takes: an array, a list, tuple or dict of arrays, a DataFrame, a "
    "tf.data.Dataset, a PyDataset, a torch DataLoader, a generator or a function that returns one."
)
SAME_ROWS = (
    "Pass arrays with the same number of rows; where each batch is one request, as a graph of "
    "nodes and edges is, pass warmup={'whole_batches': True}."
)

X = np.arange(20, dtype=np.float32).reshape(5, 4)
Y = np.arange(5)
Pair = collections.namedtuple("Pair", ["first", "second"])


def sizes(data: Any, **options: Any) -> list[int]:
    return [batch.size for batch in read_batches(data, **options)]


def only(data: Any, **options: Any) -> Batch:
    (batch,) = read_batches(data, **options)
    return batch


def message_of(data: Any) -> str:
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(read_batches(data))
    return str(caught.value)


class Pairs(keras.utils.PyDataset):
    def __init__(self, count: int | None) -> None:
        super().__init__()
        self.count = count

    @property
    def num_batches(self) -> int | None:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        return X + index, Y


# Arrays and structures of them are x.


def test_arrays_are_cut_into_batches_in_order() -> None:
    read = list(read_batches(X, batch_size=2))
    assert [batch.size for batch in read] == [2, 2, 1]
    assert {batch.source for batch in read} == {"data"}
    np.testing.assert_array_equal(np.concatenate([batch.x for batch in read]), X)


@pytest.mark.parametrize(
    "x",
    [
        X,
        [X, Y],
        (X, Y),
        {"b": X, "a": [Y, None]},
        Pair(X, {"k": Y}),
    ],
    ids=["array", "list", "tuple", "dict", "namedtuple"],
)
def test_structures_keep_their_shape(x: Any) -> None:
    read = only(x)
    assert type(read.x) is type(x)
    assert [(path, describe(leaf)) for path, leaf in walk(read.x)] == [
        (path, describe(leaf)) for path, leaf in walk(x)
    ]


class ArrayLike:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return X


@pytest.mark.parametrize(
    "leaf",
    [tf.constant(X), tf.Variable(X), keras.Variable(X), ArrayLike(), pd.DataFrame(X)],
    ids=["tensor", "variable", "keras_variable", "array_like", "data_frame"],
)
def test_array_likes_become_arrays(leaf: Any) -> None:
    read = only(leaf).x
    assert isinstance(read, np.ndarray)
    np.testing.assert_array_equal(read, X)


def test_a_mapping_such_as_an_npz_file_is_a_dict(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "x.npz", a=X, b=Y)
    with np.load(tmp_path / "x.npz") as file:
        assert sorted(only(file).x) == ["a", "b"]


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float64", "uint8", "int64", "bool", "complex64", "uint32"]
)
def test_dtypes_are_kept(dtype: str) -> None:
    array = np.zeros((3, 2), tf.as_dtype(dtype).as_numpy_dtype)
    assert only(array).x.dtype == array.dtype
    assert only(tf.data.Dataset.from_tensors(tf.constant(array))).x.dtype == array.dtype


@settings(deadline=None)
@given(rows=st.integers(1, 40), batch_size=st.integers(1, 12))
def test_every_row_of_an_array_is_in_one_batch(rows: Any, batch_size: int) -> None:
    read = list(read_batches({"a": np.arange(rows), "b": [np.arange(rows)]}, batch_size=batch_size))
    assert all(batch.size == len(batch.x["a"]) <= batch_size for batch in read)
    assert np.concatenate([batch.x["a"] for batch in read]).tolist() == list(range(rows))


@pytest.mark.parametrize(
    "x",
    [
        np.array(["é", "b"]),
        np.array([b"\xc3\xa9", b"b"]),
        np.array(["é", b"b"], object),
        tf.constant(["é", "b"]),
        ["é", "b"],
        [b"\xc3\xa9", b"b"],
    ],
    ids=["U", "S", "object", "tensor", "list_of_str", "list_of_bytes"],
)
def test_strings_become_objects_of_bytes(x: Any) -> None:
    read = only(x).x
    assert (read.dtype, read.shape) == (np.dtype(object), (2,))
    assert read.tolist() == ["é".encode(), b"b"]


def test_serialized_bytes_keep_trailing_zeros() -> None:
    assert only([b"a\0\0", b"\0"]).x.tolist() == [b"a\0\0", b"\0"]
    assert only({"example": [b"a\0"]}).x["example"].tolist() == [b"a\0"]


def test_ragged_and_sparse_tensors_are_kept() -> None:
    ragged = tf.ragged.constant([[1], [2, 3], [4]])
    read = list(read_batches({"r": ragged, "s": tf.sparse.from_dense(np.eye(3))}, batch_size=2))
    assert [batch.size for batch in read] == [2, 1]
    assert [batch.x["r"].to_list() for batch in read] == [[[1], [2, 3]], [[4]]]
    assert [tf.sparse.to_dense(batch.x["s"]).numpy().tolist() for batch in read] == [
        [[1, 0, 0], [0, 1, 0]],
        [[0, 0, 1]],
    ]


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "coo_array", "lil_matrix"])
def test_scipy_matrices_become_sparse_tensors(form: str) -> None:
    dense = np.array([[0, 2.0], [1, 0], [3, 4]])
    read = only(getattr(scipy.sparse, form)(dense)).x
    assert isinstance(read, tf.SparseTensor)
    np.testing.assert_array_equal(tf.sparse.to_dense(read), dense)


# DataFrames.


def test_a_data_frame_of_numbers_is_one_array_as_in_fit() -> None:
    read = only(pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]})).x
    assert read.tolist() == [[1, 0.5, 1], [2, 1.5, 0]]
    assert read.dtype == np.float64


def test_a_data_frame_of_mixed_columns_is_a_dict_of_them() -> None:
    read = only(pd.DataFrame({"age": [1, 2], "name": ["x", "y"]})).x
    assert {name: (array.tolist(), array.dtype.kind) for name, array in read.items()} == {
        "age": ([[1], [2]], "i"),
        "name": ([[b"x"], [b"y"]], "O"),
    }


def test_a_dict_of_series_has_columns_of_one_as_in_fit() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
    assert {name: array.shape for name, array in only(dict(frame)).x.items()} == {
        "a": (2, 1),
        "b": (2, 1),
    }


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            pd.DataFrame({"a": ["x", None]}, dtype=object),
            "Cannot read x['a'] of data: expected strings in an object array of shape [2, 1], got "
            "values of type NoneType. Fill missing values and make it an array of numbers or of "
            "strings.",
        ),
        (
            pd.DataFrame([[1, "x"]], columns=["a", "a"]),
            "Cannot read data: the DataFrame has columns ['a'] more than once, and a DataFrame of "
            "mixed columns is read by name. Rename them.",
        ),
        (
            [pd.DataFrame({"a": [1], "b": ["x"]}).astype({"b": object})],
            "Cannot read x[0] of data: its columns are not all numbers: 'a' int64, 'b' object. "
            "Pass dict(frame) to give each column to an input of its own.",
        ),
        (
            pd.DataFrame(index=[0, 1]),
            "Cannot read x of data: the DataFrame has no columns. Pass one with the features of "
            "the model.",
        ),
        (
            pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}).astype("datetime64[ns]"),
            "Cannot read x['a'] of data: datetime64[ns] is not a TensorFlow dtype, got "
            "datetime64[ns] [1, 1]. Convert it to numbers or strings first.",
        ),
    ],
    ids=["missing_value", "same_name", "mixed_in_a_structure", "no_columns", "dates"],
)
def test_data_frames_that_are_refused(frame: Any, message: str) -> None:
    assert message_of(frame) == message


# Streams of (x[, y[, sample_weight]]).


@pytest.mark.parametrize(
    "element",
    [(X,), (X, Y), (X, Y, Y), X, [X, Y]],
    ids=["x", "x_y", "x_y_weight", "bare", "list"],
)
@pytest.mark.parametrize("stream", [list, iter], ids=["generator", "iterator"])
def test_x_of_each_element_is_read(element: Any, stream: Any) -> None:
    read = list(read_batches(lambda: iter(stream([element, element]))))
    assert [batch.x.tolist() for batch in read] == [X.tolist()] * 2


@pytest.mark.parametrize(
    "data",
    [
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(2),
        Pairs(3),
        lambda: ((X, Y) for _ in range(3)),
        lambda: tf.data.Dataset.from_tensors((X, Y)).repeat(3),
        lambda: [X[:2]],
    ],
    ids=["dataset", "py_dataset", "generator_function", "dataset_function", "array_function"],
)
def test_streams_are_read_silently_and_again(data: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sizes(data) == sizes(data) != []


@pytest.mark.parametrize(
    "data",
    [
        tf.data.Dataset.from_tensors((X, Y)).repeat(),
        Pairs(None),
        lambda: ((X, Y) for _ in itertools.count()),
    ],
    ids=["dataset", "py_dataset", "generator"],
)
def test_infinite_streams_are_read_as_far_as_asked(data: Any) -> None:
    assert [batch.size for batch in itertools.islice(read_batches(data), 4)] == [5] * 4


def test_a_generator_warns_that_it_can_be_read_only_once() -> None:
    generator = ((X + index, Y) for index in range(3))
    with pytest.warns(UserWarning) as recorded:
        read = read_batches(generator)
    assert [str(warning.message) for warning in recorded] == [
        "data= is a generator, which can be read only once: the batches read from it for warmup "
        "records are lost to its next reader. Pass a function that returns a new one to keep it."
    ]
    assert next(read).x[0, 0] == 0
    assert next(generator)[0][0, 0] == 1


def test_scalar_strings_of_a_dataset_are_batched(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "examples")
    with tf.io.TFRecordWriter(path) as writer:
        for index in range(3):
            writer.write(bytes([index]))
    read = list(read_batches(tf.data.TFRecordDataset(path), batch_size=2))
    assert [batch.x.tolist() for batch in read] == [[b"\0", b"\1"], [b"\2"]]


def test_elements_without_rows_are_passed_over() -> None:
    assert sizes(lambda: iter([(X[:0], Y[:0]), (X, Y)])) == [5]


def test_a_missing_optional_is_none() -> None:
    missing = tf.experimental.Optional.empty(tf.TensorSpec((), tf.float32))
    present = tf.experimental.Optional.from_value(tf.constant(X))
    read = only(lambda: iter([({"a": present, "b": missing}, Y)])).x
    assert read["b"] is None
    np.testing.assert_array_equal(read["a"], X)


class Tensor:
    """Behaves as a torch tensor, which must be detached and moved to the CPU to give an array."""

    __module__ = "torch"
    shape = X.shape

    def detach(self) -> Any:
        return types.SimpleNamespace(cpu=lambda: types.SimpleNamespace(numpy=lambda: X))


class DataLoader:
    __module__ = "torch.utils.data.dataloader"

    def __iter__(self) -> Iterator[Any]:
        return iter([[Tensor(), Tensor()]] * 2)


def test_a_torch_data_loader_is_read() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sizes(DataLoader()) == [5, 5]


# Refused data. Messages contain no values.


def two_arguments(first: Any, second: Any) -> Any:
    return X


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, f"Cannot read data: x has no arrays. {ACCEPTED}"),
        ([], f"Cannot read data: x has no arrays. {ACCEPTED}"),
        ({}, f"Cannot read data: x has no arrays. {ACCEPTED}"),
        ({"a": None}, f"Cannot read data: x has no arrays. {ACCEPTED}"),
        ("data.npz", f"Cannot read x of data: expected an array, got str. {ACCEPTED}"),
        (b"data", f"Cannot read x of data: expected an array, got bytes. {ACCEPTED}"),
        (object(), f"Cannot read x of data: expected an array, got object. {ACCEPTED}"),
        ({"a": {1, 2}}, f"Cannot read x['a'] of data: expected an array, got set. {ACCEPTED}"),
        (
            [[0.5, 1.5]],
            "Cannot read x[0][0] of data: expected an array, got float. Make an array of it with "
            "numpy.asarray.",
        ),
        (
            [b"a", 3],
            f"Cannot read x[0] of data: expected an array, got bytes. {ACCEPTED}",
        ),
        (
            keras.KerasTensor((None, 3), name="k"),
            f"Cannot read x of data: expected an array, got KerasTensor. {ACCEPTED}",
        ),
        (
            np.zeros((0, 3)),
            "Cannot read data: it has no rows: x is float64 [0, 3]. Pass data with at least one "
            "row.",
        ),
        (
            {"a": X, "b": [Y[:4]]},
            "Cannot read data: its arrays have different numbers of rows: x['a'] has 5, x['b'][0] "
            f"has 4. {SAME_ROWS}",
        ),
        (
            np.array([1, "x", None], object),
            "Cannot read x of data: expected strings in an object array of shape [3], got values "
            "of type NoneType, int. Fill missing values and make it an array of numbers or of "
            "strings.",
        ),
        (
            {"t": np.zeros(3, "datetime64[s]")},
            "Cannot read x['t'] of data: datetime64[s] is not a TensorFlow dtype, got "
            "datetime64[s] [3]. Convert it to numbers or strings first.",
        ),
        (
            np.zeros(3, [("a", "i4")]),
            "Cannot read x of data: [('a', '<i4')] is not a TensorFlow dtype, got void32 [3]. "
            "Convert it to numbers or strings first.",
        ),
        (
            {1: X, "a": X},
            "Cannot flatten x: its keys have types ['int', 'str'], which cannot be sorted "
            "together. Use keys of one type, such as str.",
        ),
        (
            two_arguments,
            "Cannot read data: the function 'two_arguments' needs arguments ['first', 'second']. "
            "Pass a function without parameters.",
        ),
        (
            lambda: None,
            "Cannot read data: the function '<lambda>' returned None. Return a generator, dataset "
            "or arrays.",
        ),
        (
            tf.data.Dataset.from_tensors((X, Y)).take(0),
            "Cannot read the tf.data.Dataset: it is empty. Pass data with at least one row.",
        ),
        (
            Pairs(0),
            "Cannot read the PyDataset: it is empty. Pass data with at least one row.",
        ),
        (iter([]), "Cannot read the list_iterator: it is empty. Pass data with at least one row."),
        (
            lambda: iter([(X, Y), (X, Y, Y, Y)]),
            "Cannot read element 1 of what the function '<lambda>' returns: expected x, (x,), (x, "
            "y) or (x, y, sample_weight), got a tuple of 4 parts.",
        ),
        (
            lambda: iter([({"a": X, "b": Y[:2]}, Y)]),
            "Cannot read element 0 of what the function '<lambda>' returns: its arrays have "
            f"different numbers of rows: x['a'] has 5, x['b'] has 2. {SAME_ROWS}",
        ),
    ],
    ids=[
        "none",
        "empty_list",
        "empty_dict",
        "only_none",
        "str",
        "bytes",
        "object",
        "set",
        "numbers",
        "mixed_list",
        "keras_tensor",
        "no_rows",
        "rows_differ",
        "objects",
        "dates",
        "structured",
        "keys",
        "arguments",
        "returns_none",
        "empty_dataset",
        "empty_py_dataset",
        "empty_iterator",
        "four_parts",
        "rows_differ_in_element",
    ],
)
def test_data_that_cannot_be_read_is_refused(data: Any, message: str) -> None:
    assert message_of(data) == message


def test_a_symbolic_tensor_is_refused() -> None:
    texts = []

    @tf.function
    def trace(x: Any) -> Any:
        try:
            read_leaf(x, "x")
        except DataError as error:
            texts.append(str(error))
        return x

    trace(tf.constant(X))
    assert texts == [f"Cannot read x: expected an array, got SymbolicTensor. {ACCEPTED}"]


def test_a_distributed_dataset_is_refused() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    data = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors((X, Y)))
    assert message_of(data) == (
        "Cannot read data: DistributedDataset is distributed over replicas. Pass the "
        "tf.data.Dataset it was made from."
    )


def test_bad_arrays_are_refused_at_once() -> None:
    with pytest.raises(DataError):
        read_batches(np.zeros((0, 3)))


SECRET = "Jane Doe"


def broken_generator() -> Iterator[Any]:
    yield X, Y
    raise OSError(SECRET)


class BrokenPyDataset(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        if index:
            raise KeyError(SECRET)
        return X, Y


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(
        (error.args, error.__cause__, error.__context__)
    )


CHECK = "Check that it can be read to its end without keras_warmup."


@pytest.mark.parametrize(
    ("data", "where", "said"),
    [
        (broken_generator, "what the function 'broken_generator' returns", "it raised OSError at "),
        (BrokenPyDataset, "the PyDataset", "it raised KeyError at "),
        (
            lambda: tf.data.Dataset.from_tensor_slices([["1.5"], [SECRET]]).map(
                tf.strings.to_number
            ),
            "the tf.data.Dataset",
            "INVALID_ARGUMENT: StringToNumberOp could not correctly convert string ...",
        ),
    ],
    ids=["generator", "py_dataset", "dataset"],
)
def test_exceptions_of_the_users_code_are_reported_without_their_text(
    data: Any, where: str, said: str
) -> None:
    read = read_batches(data if where.startswith("what") else data())
    next(read)
    with pytest.raises(DataError) as caught:
        next(read)
    text = str(caught.value)
    assert text.startswith(f"Cannot read element 1 of {where}: {said}")
    assert text.endswith(CHECK)
    if "raised" in said:
        assert re.search(rf" at {re.escape(__file__)}:\d+\. Check", text)
    assert SECRET not in printed(caught.value)


def test_the_python_error_behind_a_dataset_is_named_by_its_type() -> None:
    def rows() -> Iterator[Any]:
        yield X
        raise ValueError(SECRET)

    data = tf.data.Dataset.from_generator(rows, output_signature=tf.TensorSpec(X.shape, X.dtype))
    read = read_batches(data)
    next(read)
    with pytest.raises(DataError) as caught:
        next(read)
    assert str(caught.value).startswith(
        "Cannot read element 1 of the tf.data.Dataset: INVALID_ARGUMENT: ValueError ... ("
    )
    assert SECRET not in printed(caught.value)


def test_a_function_that_fails_is_named() -> None:
    def make() -> Any:
        raise RuntimeError(SECRET)

    with pytest.raises(DataError) as caught:
        read_batches(make)
    line = make.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        "Cannot read data: the function 'make' failed: it raised RuntimeError at "
        f"{__file__}:{line}. {CHECK}"
    )
    assert SECRET not in printed(caught.value)


def test_an_interrupt_passes_through() -> None:
    def interrupted() -> Iterator[Any]:
        yield X
        raise KeyboardInterrupt

    read = read_batches(interrupted)
    next(read)
    with pytest.raises(KeyboardInterrupt):
        next(read)


@pytest.mark.parametrize("element", [(), (X, Y, Y, Y)], ids=["none", "four"])
def test_unpack_x_refuses_other_lengths_without_showing_values(element: Any) -> None:
    with pytest.raises(DataError) as caught:
        unpack_x(element, "element 0")
    assert str(caught.value) == (
        "Cannot read element 0: expected x, (x,), (x, y) or (x, y, sample_weight), "
        f"got a tuple of {len(element)} parts."
    )


def test_no_optional_library_is_imported_for_reading() -> None:
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "import numpy as np; from keras_warmup.data.sources import read_batches\n"
        "print(next(read_batches(np.zeros((2, 3)))).size, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_an_array_of_rank_0_belongs_to_every_row() -> None:
    batches = list(read_batches({"x": X, "t": np.float32(2)}, batch_size=3))
    assert [batch.size for batch in batches] == [3, 2]
    assert [float(batch.x["t"]) for batch in batches] == [2, 2]
    assert only({"t": np.float32(2)}).size == 1


def test_whole_batches_may_differ_in_their_first_dimension_and_are_never_cut() -> None:
    graph = {"nodes": X, "edges": np.zeros((90, 2), "int32")}
    for data in (graph, lambda: iter([graph])):
        batch = only(data, whole=True, batch_size=2)
        assert (batch.is_whole, batch.size) == (True, 1)
        assert {name: len(array) for name, array in batch.x.items()} == {"nodes": 5, "edges": 90}
    with pytest.raises(DataError, match=r"it has no rows: .*x\['nodes'\] is float32 \[0, 4\]"):
        list(read_batches({"nodes": X[:0], "edges": X}, whole=True))


def test_the_first_batch_of_arrays_is_read() -> None:
    batch = first_batch({"a": X, "b": ["r"] * 5})
    assert batch is not None and batch.size == 5
    np.testing.assert_array_equal(batch.x["a"], X)
    whole = first_batch([X, Y[:2]], whole=True)
    assert whole is not None and whole.is_whole
    with pytest.raises(DataError, match="different numbers of rows"):
        first_batch([X, Y[:2]])
    with pytest.raises(DataError, match="expected an array"):
        first_batch({"a": object()})


def test_the_first_batch_of_a_dataset_is_its_specs_and_no_element_is_made() -> None:
    def fail() -> Iterator[Any]:
        raise AssertionError("read")
        yield

    specs = (
        {"a": tf.TensorSpec((None, 4)), "b": tf.TensorSpec((2,), tf.string)},
        tf.TensorSpec(()),
    )
    batch = first_batch(tf.data.Dataset.from_generator(fail, output_signature=specs))
    assert batch is not None and batch.x == specs[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: iter([X]),
        lambda: lambda: X,
        lambda: tf.data.Dataset.from_tensor_slices(["a", "b"]),
        lambda: tf.data.Dataset.from_tensors(tf.ragged.constant([[1], [2, 3]])),
        lambda: tf.data.Dataset.from_generator(lambda: [X], output_signature=tf.TensorSpec(None)),
    ],
    ids=["iterator", "function", "strings", "ragged", "unknown rank"],
)
def test_the_first_batch_of_other_data_is_not_known(make: Any) -> None:
    data = make()
    assert first_batch(data) is None
    assert list(data() if callable(data) else data)
