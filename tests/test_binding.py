"""Binding: which leaf is which input, which casts are made, and every refusal with its text."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_warmup.batch import Batch, walk
from keras_warmup.binding import bind_batch, match_inputs
from keras_warmup.errors import BindingError
from keras_warmup.signatures import Signature, TensorSpec


def signature(inputs, *, structure=None, defaults=(), key="serving_default"):
    specs = {name: TensorSpec(name, f"{name}:0", dtype, shape) for name, (dtype, shape) in inputs.items()}
    outputs = {"output_0": TensorSpec("output_0", "out:0", "float32", (None, 1))}
    return Signature(key, "tensorflow/serving/predict", specs, outputs, frozenset(defaults), structure)


def batch(x, size=3):
    return Batch(x, size)


def rows(value, *shape, dtype="float32", size=3):
    return np.full((size, *shape), value, dtype)


F4 = ("float32", (None, 4))


@pytest.mark.parametrize(
    ("x", "structure", "expected"),
    [
        pytest.param(rows(1, 4), ("a",), {"a": ()}, id="tensor"),
        pytest.param(
            {"q": rows(1, 4), "p": rows(2, 4)}, ({"q": "aa", "p": "zz"},), {"aa": ("q",), "zz": ("p",)}, id="dict"
        ),
        pytest.param([rows(1, 4), rows(2, 4)], (["zz", "aa"],), {"zz": (0,), "aa": (1,)}, id="list"),
        pytest.param((rows(1, 4), rows(2, 4)), ("zz", "aa"), {"zz": (0,), "aa": (1,)}, id="two arguments"),
        pytest.param(
            {"p": [rows(1, 4), rows(2, 4)], "q": {"r": rows(3, 4)}},
            ({"p": ["args_0", "args_0_1"], "q": {"r": "args_0_2"}},),
            {"args_0": ("p", 0), "args_0_1": ("p", 1), "args_0_2": ("q", "r")},
            id="nested",
        ),
        pytest.param(
            {"aa": rows(1, 4), "zz": rows(2, 4)}, (["zz", "aa"],), {"zz": ("zz",), "aa": ("aa",)}, id="dict for list"
        ),
        pytest.param({"user-id": rows(1, 4)}, ("user_id",), {"user_id": ("user-id",)}, id="sanitized name"),
        pytest.param(
            {"1a": rows(1, 4), "b": rows(1, 4)}, (["arg_1a", "b"],), {"arg_1a": ("1a",), "b": ("b",)}, id="digit"
        ),
        pytest.param(
            {"a": rows(1, 4), "b": rows(1, 4)}, None, {"a": ("a",), "b": ("b",)}, id="names without structure"
        ),
        pytest.param(rows(1, 4), None, {"a": ()}, id="one leaf, one input"),
    ],
)
def test_match_follows_the_evidence_in_the_file(x, structure, expected):
    found, ignored = match_inputs(x, signature(dict.fromkeys(expected, F4), structure=structure))
    assert (found, ignored) == (expected, ())


def test_match_never_guesses_the_order_of_unnamed_leaves():
    with pytest.raises(BindingError) as error:
        match_inputs([rows(1, 4), rows(2, 4)], signature({"a": F4, "b": F4}))
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': x has 2 unnamed leaves and the SavedModel does not tell their order "
        "among the inputs ['a', 'b']. Pass x as a dict keyed by input name, or pass transform=."
    )


def test_match_never_pairs_a_list_with_a_dict_by_position():
    with pytest.raises(BindingError, match="does not tell their order"):
        match_inputs([rows(1, 4), rows(2, 4)], signature({"a": F4, "b": F4}, structure=({"p": "b", "q": "a"},)))


def test_match_names_every_missing_input():
    with pytest.raises(BindingError) as error:
        match_inputs({"a": rows(1, 4)}, signature({"a": F4, "b": F4, "c": ("int64", (None,))}))
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': missing inputs 'b', 'c'. The signature takes 'a' float32 [None, 4], "
        "'b' float32 [None, 4], 'c' int64 [None]; the batch has x['a'] (float32 [3, 4]). Add the features to the dataset, or "
        "pass transform=."
    )


def test_inputs_with_a_default_may_be_absent_and_extra_features_are_told():
    found, ignored = match_inputs(
        {"a": rows(1, 4), "note": rows(1)}, signature({"a": F4, "t": ("float32", ())}, defaults=["t"])
    )
    assert found == {"a": ("a",)}
    assert ignored == ("x['note']",)


def test_bind_collects_all_mismatches_in_one_error():
    wanted = signature(
        {"image": ("float32", (None, 224, 224, 3)), "ids": ("int64", (None, 7)), "text": ("string", (None,))}
    )
    x = {"image": rows(1, 224, 3), "ids": rows(0.5, 7), "text": rows(1)}
    with pytest.raises(BindingError) as error:
        bind_batch(batch(x), wanted)
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': "
        "input 'ids' expects int64 [None, 7], got float32 [3, 7] from x['ids'] (dtype differs: a float is never cut to an "
        "integer); input 'image' expects float32 [None, 224, 224, 3], got float32 [3, 224, 3] from x['image'] (rank differs); "
        "input 'text' expects string [None], got float32 [3] from x['text'] (a number for a string input). "
        "Cast or reshape it in the dataset, or pass transform=."
    )


def test_bind_rejects_another_shape():
    with pytest.raises(BindingError, match=r"got float32 \[3, 5\] from x \(shape differs in dimension 1\)"):
        bind_batch(batch(rows(1, 5)), signature({"a": F4}))


@pytest.mark.parametrize(
    ("array", "dtype", "cast"),
    [
        pytest.param(rows(1.5, 4, dtype="float64"), "float32", "float64 -> float32", id="as fit casts"),
        pytest.param(rows(7, 4, dtype="int32"), "float32", "int32 -> float32", id="ids survive"),
        pytest.param(rows(200, 4, dtype="uint8"), "float32", "uint8 -> float32", id="bytes survive"),
        pytest.param(rows(7, 4, dtype="int64"), "int32", "int64 -> int32", id="narrower survives"),
        pytest.param(rows(1.5, 4, dtype="float32"), "bfloat16", "float32 -> bfloat16", id="mixed precision"),
        pytest.param(rows(np.nan, 4), "float32", None, id="nan is a value"),
    ],
)
def test_bind_casts_only_what_fit_casts_or_what_survives_and_tells(array, dtype, cast):
    (bound,) = bind_batch(batch(array), signature({"a": (dtype, (None, 4))}))
    assert bound.arrays["a"].dtype == tf.as_dtype(dtype).as_numpy_dtype
    assert bound.casts == ({"a": cast} if cast else {})
    np.testing.assert_array_equal(bound.arrays["a"].astype("float64"), array.astype("float64"))


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        pytest.param(rows(300, 4, dtype="int32"), "uint8", id="overflow"),
        pytest.param(rows(-1, 4, dtype="int64"), "uint64", id="sign"),
        pytest.param(rows(2**24 + 1, 4, dtype="int64"), "float32", id="float32 cannot hold it"),
        pytest.param(rows(1.0, 4), "int32", id="float for int"),
        pytest.param(np.array([["a"] * 4] * 3), "float32", id="string for number"),
        pytest.param(rows(2, 4, dtype="int32"), "bool", id="two is no bool"),
    ],
)
def test_bind_refuses_casts_that_lose(array, dtype):
    with pytest.raises(BindingError):
        bind_batch(batch(array), signature({"a": (dtype, (None, 4))}))


def test_bind_makes_bytes_of_strings_and_native_order_of_big_endian():
    (text,) = bind_batch(batch(np.array(["é", "b", "c"])), signature({"a": ("string", (None,))}))
    assert text.arrays["a"].tolist() == ["é".encode(), b"b", b"c"]
    (big,) = bind_batch(batch(rows(1.5, 4).astype(">f4")), signature({"a": F4}))
    assert big.arrays["a"].dtype.byteorder in "=<"
    assert big.arrays["a"].tolist() == rows(1.5, 4).tolist()


def test_bind_groups_ragged_rows_by_shape_and_pads_nothing():
    ragged = tf.ragged.constant([[1.0, 2.0], [3.0], [4.0, 5.0]])
    bound = bind_batch(batch({"r": ragged, "d": rows(1, 4)}), signature({"r": ("float32", (None, None)), "d": F4}))
    assert [one.arrays["r"].tolist() for one in bound] == [[[1.0, 2.0], [4.0, 5.0]], [[3.0]]]
    assert [one.arrays["d"].shape for one in bound] == [(2, 4), (1, 4)]
    assert [one.size for one in bound] == [2, 1]


def test_bind_makes_sparse_dense():
    sparse = tf.sparse.from_dense([[0.0, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 3.0]])
    (bound,) = bind_batch(batch(sparse), signature({"a": F4}))
    assert bound.arrays["a"].tolist() == tf.sparse.to_dense(sparse).numpy().tolist()


def test_transform_replaces_matching_but_not_the_checks():
    wanted = signature({"bytes": ("string", (None,))})
    (bound,) = bind_batch(batch(rows(1, 4)), wanted, lambda x: {"bytes": [str(row[0]) for row in x]})
    assert bound.arrays["bytes"].tolist() == [b"1.0"] * 3
    with pytest.raises(BindingError) as error:
        bind_batch(batch(rows(1, 4)), wanted, lambda x: {"other": x})
    assert str(error.value) == (
        "transform returned ['other'] for signature 'serving_default', which takes 'bytes' string [None]: ['bytes'] missing."
    )
    with pytest.raises(BindingError, match=r"must return a mapping .*; got ndarray"):
        bind_batch(batch(rows(1, 4)), wanted, lambda x: x)


def test_scalar_inputs_have_no_batch():
    (bound,) = bind_batch(
        Batch({"a": rows(1, 4)}, 3),
        signature({"a": F4, "t": ("float32", ())}),
        lambda x: {**x, "t": np.float32(0.5)},
    )
    assert bound.row_inputs == {"a"}
    assert bound.size == 3


def nested(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=4),
            st.dictionaries(st.sampled_from(["x", "x_1", "x_10", "x_2", "b", "a"]), inner, min_size=1, max_size=4),
        ),
        max_leaves=14,
    )


@given(nested(st.just(0)))
def test_bind_never_swaps_equal_shapes_in_any_nesting(shape_of_x):
    """Every leaf holds its own number; the structure in the file numbers the inputs in flatten order, as tf.function does."""
    paths = [path for path, _ in walk(shape_of_x)]
    number = {path: index for index, path in enumerate(paths)}

    def build(node, path, leaf):
        if isinstance(node, dict):
            return {key: build(value, (*path, key), leaf) for key, value in node.items()}
        if isinstance(node, list):
            return [build(value, (*path, index), leaf) for index, value in enumerate(node)]
        return leaf(path)

    x = build(shape_of_x, (), lambda path: rows(number[path], 4))
    names = {path: "args_0" if index == 0 else f"args_0_{index}" for path, index in number.items()}
    structure = (build(shape_of_x, (), lambda path: names[path]),)
    (bound,) = bind_batch(batch(x), signature(dict.fromkeys(names.values(), F4), structure=structure))
    assert {name: array[0, 0] for name, array in bound.arrays.items()} == {
        names[path]: index for path, index in number.items()
    }
