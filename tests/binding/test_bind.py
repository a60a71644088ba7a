"""Bound arrays are right or refused, with all mismatches in one error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_warmup.binding.bind import bind_batch
from keras_warmup.binding.match import sanitize
from keras_warmup.data.batch import Batch, walk
from keras_warmup.errors import BindingError
from tests.builders import filled_rows, make_signature

FLOATS_4 = ("float32", (None, 4))


def test_bind_collects_all_mismatches_in_one_error() -> None:
    wanted = make_signature(
        {
            "image": ("float32", (None, 224, 224, 3)),
            "ids": ("int64", (None, 7)),
            "text": ("string", (None,)),
        }
    )
    x = {"image": filled_rows(1, 224, 3), "ids": filled_rows(0.5, 7), "text": filled_rows(1)}
    with pytest.raises(BindingError) as error:
        bind_batch(Batch(x, 3), wanted)
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': input 'ids' expects int64 [None, 7], "
        "got float32 [3, 7] from x['ids'] (dtype differs: floats are not cast to integers); "
        "input 'image' expects float32 [None, 224, 224, 3], got float32 [3, 224, 3] from "
        "x['image'] (rank differs); input 'text' expects string [None], got float32 [3] from "
        "x['text'] (a number for a string input). Cast or reshape it in the dataset, or pass "
        "warmup={'transform': ...}."
    )


def test_bind_rejects_another_shape() -> None:
    with pytest.raises(
        BindingError, match=r"got float32 \[3, 5\] from x \(shape differs in dimensions \[1\]\)"
    ):
        bind_batch(Batch(filled_rows(1, 5), 3), make_signature({"a": FLOATS_4}))


def test_transform_replaces_matching_but_not_the_checks() -> None:
    wanted = make_signature({"bytes": ("string", (None,))})
    (bound,) = bind_batch(
        Batch(filled_rows(1, 4), 3), wanted, lambda x: {"bytes": [str(row[0]) for row in x]}
    )
    assert bound.arrays["bytes"].tolist() == [b"1.0"] * 3
    with pytest.raises(BindingError) as error:
        bind_batch(Batch(filled_rows(1, 4), 3), wanted, lambda x: {"other": x})
    assert str(error.value) == (
        "transform returned ['other'] for signature 'serving_default', which takes 'bytes' string "
        "[None]: ['bytes'] missing."
    )
    with pytest.raises(BindingError, match=r"must return a mapping .*; got ndarray"):
        bind_batch(Batch(filled_rows(1, 4), 3), wanted, lambda x: x)


def test_all_mismatches_of_a_transform_are_in_one_error() -> None:
    wanted = make_signature(
        {
            "a": FLOATS_4,
            "b": ("string", (None,)),
            "c": ("int64", (None,)),
            "d": ("float32", (None,)),
        }
    )
    made = {
        "a": np.zeros((2, 4), "float32"),
        "b": [1, None, "x"],
        "c": [[1], [2, 3]],
        "d": np.array(["2020-01-01"], "datetime64[D]"),
    }
    with pytest.raises(BindingError) as error:
        bind_batch(Batch(filled_rows(1, 4), 3), wanted, lambda x: made)
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': input 'b' expects string [None], got "
        "list from transform(x)['b'] (objects that are neither bytes nor str: NoneType, int); "
        "input 'c' expects int64 [None], got list from transform(x)['c'] (NumPy cannot convert it "
        "to an array: ValueError); input 'd' expects float32 [None], got datetime64[D] [1] from "
        "transform(x)['d'] (datetime64[D] is not a TensorFlow dtype). Cast or reshape it in the "
        "dataset, or pass warmup={'transform': ...}."
    )


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (
            {"a": np.zeros((2, 4), "float32"), "b": np.zeros((3, 4), "float32")},
            "the inputs have different numbers of rows ('a' has 2, 'b' has 3)",
        ),
        (
            {"a": np.zeros((0, 4), "float32"), "b": np.zeros((0, 4), "float32")},
            "no rows in 'a', 'b'",
        ),
    ],
    ids=["differ", "none"],
)
def test_arrays_of_a_transform_need_equal_numbers_of_rows(made: Any, problem: str) -> None:
    with pytest.raises(BindingError) as error:
        bind_batch(
            Batch(filled_rows(1, 4), 3),
            make_signature({"a": FLOATS_4, "b": FLOATS_4}),
            lambda x: made,
        )
    assert str(error.value) == (
        f"Cannot bind batch to signature 'serving_default': {problem}. Cast or reshape it in the "
        "dataset, or pass warmup={'transform': ...}."
    )


def test_objects_in_a_numeric_input_are_refused() -> None:
    with pytest.raises(BindingError, match="objects that are neither bytes nor str: int"):
        bind_batch(
            Batch(filled_rows(1, 4), 3),
            make_signature({"a": ("int64", (None,))}),
            lambda x: {"a": np.array([1, 2], object)},
        )
    with pytest.raises(BindingError, match="a ragged tensor for a dense input"):
        bind_batch(
            Batch(filled_rows(1, 4), 3),
            make_signature({"a": FLOATS_4}),
            lambda x: {"a": tf.ragged.constant([[1.0], []])},
        )


def test_an_error_inside_transform_is_reported_without_its_text() -> None:
    def transform(x: Any) -> Any:
        return {"a": x["secret"]}

    with pytest.raises(BindingError) as error:
        bind_batch(Batch({"a": filled_rows(1, 4)}, 3), make_signature({"a": FLOATS_4}), transform)
    assert str(error.value) == (
        "transform raised KeyError for signature 'serving_default', which takes 'a' float32 [None, "
        "4]; transform was given x['a'] (float32 [3, 4]). Change the transform so that it takes x "
        "as the model was given it."
    )
    assert isinstance(error.value.__cause__, KeyError)


def test_an_array_of_a_fixed_size_may_be_a_constant_beside_the_rows() -> None:
    wanted = make_signature({"a": FLOATS_4, "t": ("float32", (1,))})
    (bound,) = bind_batch(Batch(filled_rows(1, 4), 3), wanted, lambda x: {"a": x, "t": [0.5]})
    assert (bound.size, bound.row_inputs) == (3, frozenset({"a"}))
    with pytest.raises(BindingError, match="the inputs have different numbers of rows"):
        bind_batch(Batch(filled_rows(1, 4), 3), wanted, lambda x: {"a": x, "t": [0.5, 0.5]})


def test_scalar_inputs_have_no_batch() -> None:
    (bound,) = bind_batch(
        Batch({"a": filled_rows(1, 4)}, 3),
        make_signature({"a": FLOATS_4, "t": ("float32", ())}),
        lambda x: {**x, "t": np.float32(0.5)},
    )
    assert bound.row_inputs == {"a"}
    assert bound.size == 3


def nested(leaves: Any) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=4),
            st.dictionaries(
                st.sampled_from(["x", "x_1", "x_10", "x_2", "b", "a"]),
                inner,
                min_size=1,
                max_size=4,
            ),
        ),
        max_leaves=14,
    )


@given(nested(st.just(0)))
def test_equal_shapes_are_never_swapped_with_a_structure(shape_of_x: Any) -> None:
    """Each leaf holds its own number; inputs are numbered in flatten order, as by tf.function."""
    paths = [path for path, _ in walk(shape_of_x)]
    number = {path: index for index, path in enumerate(paths)}

    def build(node: Any, path: Any, leaf: Any) -> Any:
        if isinstance(node, dict):
            return {key: build(value, (*path, key), leaf) for key, value in node.items()}
        if isinstance(node, list):
            return [build(value, (*path, index), leaf) for index, value in enumerate(node)]
        return leaf(path)

    x = build(shape_of_x, (), lambda path: filled_rows(number[path], 4))
    names = {path: "args_0" if index == 0 else f"args_0_{index}" for path, index in number.items()}
    structure = (build(shape_of_x, (), lambda path: names[path]),)
    (bound,) = bind_batch(
        Batch(x, 3), make_signature(dict.fromkeys(names.values(), FLOATS_4), structure=structure)
    )
    assert {name: array[0, 0] for name, array in bound.arrays.items()} == {
        names[path]: index for path, index in number.items()
    }


@settings(max_examples=200, deadline=None)
@given(nested(st.just(0)), st.booleans())
def test_equal_shapes_are_never_swapped_with_names_only(shape_of_x: Any, numbered: Any) -> None:
    """Without a structure, inputs are named by keys or numbered in flatten order.

    Equal names are numbered. Whatever the keys are, a batch is bound right or refused.
    """
    paths = [path for path, _ in walk(shape_of_x)]
    seen: set[str] = set()
    names = {}
    for path in paths:
        keys = [part for part in path if isinstance(part, str)]
        base = name = "x" if numbered or not keys else sanitize(keys[-1])
        count = 0
        while name in seen:
            count += 1
            name = f"{base}_{count}"
        seen.add(name)
        names[path] = name

    def build(node: Any, path: Any) -> Any:
        if isinstance(node, dict):
            return {key: build(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [build(value, (*path, index)) for index, value in enumerate(node)]
        return filled_rows(paths.index(path), 4)

    try:
        (bound,) = bind_batch(
            Batch(build(shape_of_x, ()), 3), make_signature(dict.fromkeys(names.values(), FLOATS_4))
        )
    except BindingError as error:
        assert "'transform': ..." in str(error)
        return
    assert {name: array[0, 0] for name, array in bound.arrays.items()} == {
        names[path]: index for index, path in enumerate(paths)
    }


def test_data_that_is_not_batched_is_named_so() -> None:
    with pytest.raises(BindingError) as error:
        bind_batch(Batch(np.float32(3), 1), make_signature({"a": FLOATS_4}))
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': input 'a' expects float32 [None, 4], "
        "got float32 [] from x (no batch dimension: batch the data, as for fit). Cast or reshape "
        "it in the dataset, or pass warmup={'transform': ...}."
    )


def test_a_scalar_input_takes_the_first_of_a_column() -> None:
    signature = make_signature({"a": FLOATS_4, "t": ("float32", ())})
    rows = {"a": filled_rows(1, 4), "t": np.array([2, 3, 4], "float32")}
    (bound,) = bind_batch(Batch(rows, 3), signature)
    assert bound.arrays["t"].shape == () and bound.arrays["t"] == 2
    assert (bound.size, bound.row_inputs) == (3, {"a"})


def test_a_whole_batch_is_one_request_of_arrays_that_differ_in_size() -> None:
    signature = make_signature({"a": FLOATS_4, "b": FLOATS_4})
    rows = {"a": filled_rows(1, 4, size=2), "b": filled_rows(2, 4, size=5)}
    (bound,) = bind_batch(Batch(rows, 1, is_whole=True), signature)
    assert {name: len(array) for name, array in bound.arrays.items()} == {"a": 2, "b": 5}
    assert (bound.size, bound.row_inputs) == (1, frozenset())
    with pytest.raises(BindingError, match="different numbers of rows"):
        bind_batch(Batch(rows, 2), signature)
