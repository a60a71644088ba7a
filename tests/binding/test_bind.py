"""Binding: which leaf is which input, which casts are made, and every refusal with its text."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_warmup.binding.bind import bind_batch, match_inputs
from keras_warmup.binding.match import sanitize
from keras_warmup.data.batch import Batch, walk
from keras_warmup.errors import BindingError
from keras_warmup.savedmodel.signatures import (
    Signature,
    SignatureTensor,
)


def signature(inputs, *, structure=None, defaults=(), key="serving_default"):
    specs = {
        name: SignatureTensor(name, f"{name}:0", dtype, shape)
        for name, (dtype, shape) in inputs.items()
    }
    outputs = {"output_0": SignatureTensor("output_0", "out:0", "float32", (None, 1))}
    return Signature(
        key, "tensorflow/serving/predict", specs, outputs, frozenset(defaults), structure
    )


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
            {"q": rows(1, 4), "p": rows(2, 4)},
            ({"q": "aa", "p": "zz"},),
            {"aa": ("q",), "zz": ("p",)},
            id="dict",
        ),
        pytest.param(
            [rows(1, 4), rows(2, 4)], (["zz", "aa"],), {"zz": (0,), "aa": (1,)}, id="list"
        ),
        pytest.param(
            (rows(1, 4), rows(2, 4)), ("zz", "aa"), {"zz": (0,), "aa": (1,)}, id="two arguments"
        ),
        pytest.param(
            {"p": [rows(1, 4), rows(2, 4)], "q": {"r": rows(3, 4)}},
            ({"p": ["args_0", "args_0_1"], "q": {"r": "args_0_2"}},),
            {"args_0": ("p", 0), "args_0_1": ("p", 1), "args_0_2": ("q", "r")},
            id="nested",
        ),
        pytest.param(
            {"aa": rows(1, 4), "zz": rows(2, 4)},
            (["zz", "aa"],),
            {"zz": ("zz",), "aa": ("aa",)},
            id="dict for list",
        ),
        pytest.param(
            {"user-id": rows(1, 4)}, ("user_id",), {"user_id": ("user-id",)}, id="sanitized name"
        ),
        pytest.param(
            {"1a": rows(1, 4), "b": rows(1, 4)},
            (["arg_1a", "b"],),
            {"arg_1a": ("1a",), "b": ("b",)},
            id="digit",
        ),
        pytest.param(
            {"a": rows(1, 4), "b": rows(1, 4)},
            None,
            {"a": ("a",), "b": ("b",)},
            id="names without structure",
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
        match_inputs(
            [rows(1, 4), rows(2, 4)],
            signature({"a": F4, "b": F4}, structure=({"p": "b", "q": "a"},)),
        )


CURE_BY_NAME = "Pass transform= to name the inputs."


def test_match_refuses_a_name_that_two_leaves_have():
    x = {"user": {"id": rows(1, dtype="int64")}, "item": {"id": rows(2, dtype="int64")}}
    with pytest.raises(BindingError) as error:
        match_inputs(x, signature({"id": ("int64", (None,))}))
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': input 'id' may be x['item']['id'] (int64 [3]) or x['user']['id'] "
        f"(int64 [3]), and the SavedModel does not tell which. {CURE_BY_NAME}"
    )
    found, _ = match_inputs(
        x, signature({"id": ("int64", (None,))}, structure=({"user": {"id": "id"}},))
    )
    assert found == {"id": ("user", "id")}


def test_match_refuses_names_that_differ_only_in_what_tensorflow_replaces():
    with pytest.raises(BindingError, match=r"input 'a_b' may be x\['a-b'\] .* or x\['a_b'\]"):
        match_inputs({"a-b": rows(1, 4), "a_b": rows(2, 4)}, signature({"a_b": F4, "a_b_1": F4}))
    found, _ = match_inputs({"a-b": rows(1, 4), "a_b": rows(2, 4)}, signature({"a-b": F4}))
    assert found == {"a-b": ("a-b",)}


def test_match_refuses_keys_that_may_be_numbers_in_another_order():
    names = ["x", *(f"x_{number}" for number in range(1, 11))]
    with pytest.raises(BindingError) as error:
        match_inputs({name: rows(1, 4) for name in names}, signature(dict.fromkeys(names, F4)))
    assert str(error.value) == (
        f"Cannot bind batch to signature 'serving_default': the names of the inputs {names} may be keys of the batch, or numbers "
        f"that TensorFlow gave in another order, and the SavedModel does not tell which. {CURE_BY_NAME}"
    )
    assert (
        len(
            match_inputs(
                {name: rows(1, 4) for name in names[:10]}, signature(dict.fromkeys(names[:10], F4))
            )[0]
        )
        == 10
    )


def test_keys_of_features_are_not_taken_for_names_of_inputs():
    wanted = signature({"x": F4, "x_1": F4}, structure=({"x_1": "x", "x_2": "x_1"},))
    with pytest.raises(BindingError, match="missing inputs 'x', 'x_1'"):
        match_inputs({"x": rows(1, 4), "x_1": rows(2, 4)}, wanted)


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
        {"a": rows(1, 4), "note": rows(1)},
        signature({"a": F4, "t": ("float32", ())}, defaults=["t"]),
    )
    assert found == {"a": ("a",)}
    assert ignored == ("x['note']",)


def test_bind_collects_all_mismatches_in_one_error():
    wanted = signature(
        {
            "image": ("float32", (None, 224, 224, 3)),
            "ids": ("int64", (None, 7)),
            "text": ("string", (None,)),
        }
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
    with pytest.raises(
        BindingError, match=r"got float32 \[3, 5\] from x \(shape differs in dimension 1\)"
    ):
        bind_batch(batch(rows(1, 5)), signature({"a": F4}))


@pytest.mark.parametrize(
    ("array", "dtype", "cast"),
    [
        pytest.param(
            rows(1.5, 4, dtype="float64"), "float32", "float64 -> float32", id="as fit casts"
        ),
        pytest.param(rows(7, 4, dtype="int32"), "float32", "int32 -> float32", id="ids survive"),
        pytest.param(
            rows(200, 4, dtype="uint8"), "float32", "uint8 -> float32", id="bytes survive"
        ),
        pytest.param(rows(7, 4, dtype="int64"), "int32", "int64 -> int32", id="narrower survives"),
        pytest.param(
            rows(1.5, 4, dtype="float32"), "bfloat16", "float32 -> bfloat16", id="mixed precision"
        ),
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
        pytest.param(rows(70000, 4, dtype="int32"), "float16", id="float16 cannot hold it"),
    ],
)
def test_bind_refuses_casts_that_lose(array, dtype):
    with pytest.raises(BindingError):
        bind_batch(batch(array), signature({"a": (dtype, (None, 4))}))


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [
        (1e300, "float64", "float32"),
        (1e6, "float32", "float16"),
        (1e39, "float64", "bfloat16"),
        (1e300, "complex128", "complex64"),
    ],
)
def test_bind_refuses_finite_values_that_become_infinite(value, dtype, wanted):
    with pytest.raises(BindingError, match=r"\(dtype differs: some sampled values overflow\)"):
        bind_batch(batch(rows(value, 4, dtype=dtype)), signature({"a": (wanted, (None, 4))}))


def test_bind_lets_infinity_and_nan_pass():
    array = np.array([[np.inf, -np.inf, np.nan, 1.0]])
    (bound,) = bind_batch(batch(array, 1), signature({"a": ("float16", (None, 4))}))
    np.testing.assert_array_equal(bound.arrays["a"], array.astype("float16"))


def test_bind_makes_bytes_of_strings_and_native_order_of_big_endian():
    (text,) = bind_batch(batch(np.array(["é", "b", "c"])), signature({"a": ("string", (None,))}))
    assert text.arrays["a"].tolist() == ["é".encode(), b"b", b"c"]
    (big,) = bind_batch(batch(rows(1.5, 4).astype(">f4")), signature({"a": F4}))
    assert big.arrays["a"].dtype.byteorder in "=<"
    assert big.arrays["a"].tolist() == rows(1.5, 4).tolist()


def test_bind_groups_ragged_rows_by_shape_and_pads_nothing():
    ragged = tf.ragged.constant([[1.0, 2.0], [3.0], [4.0, 5.0]])
    bound = bind_batch(
        batch({"r": ragged, "d": rows(1, 4)}), signature({"r": ("float32", (None, None)), "d": F4})
    )
    assert [one.arrays["r"].tolist() for one in bound] == [[[1.0, 2.0], [4.0, 5.0]], [[3.0]]]
    assert [one.arrays["d"].shape for one in bound] == [(2, 4), (1, 4)]
    assert [one.size for one in bound] == [2, 1]


def test_ragged_leaves_that_no_input_takes_neither_split_nor_refuse():
    ragged_inside = tf.ragged.constant([[[1.0], [2.0, 3.0]], [[1.0], []], [[1.0, 2.0], [3.0]]])
    lengths = tf.ragged.constant([[1], [2, 3], [4]])
    sparse = tf.sparse.from_dense([[0, 1], [2, 0], [0, 3]])
    x = {
        "a": rows(1, 4),
        "r": tf.ragged.constant([[1.0], [2.0, 3.0], [4.0]]),
        "no": ragged_inside,
        "l": lengths,
        "s": sparse,
    }
    (whole,) = bind_batch(batch(x), signature({"a": F4}))
    assert (whole.size, whole.x, whole.ignored) == (
        3,
        None,
        ("x['l']", "x['no']", "x['r']", "x['s']"),
    )
    del x["no"]
    first, second = bind_batch(batch(x), signature({"a": F4, "r": ("float32", (None, None))}))
    assert first.x["r"].tolist() == [[1.0], [4.0]]
    assert first.x["l"].tolist() == [[1], [4]]
    assert first.x["s"].tolist() == [[0, 1], [0, 3]]
    assert second.x["l"].tolist() == [[2, 3]]


def test_bind_makes_sparse_dense():
    sparse = tf.sparse.from_dense([[0.0, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 3.0]])
    (bound,) = bind_batch(batch(sparse), signature({"a": F4}))
    assert bound.arrays["a"].tolist() == tf.sparse.to_dense(sparse).numpy().tolist()


def test_transform_replaces_matching_but_not_the_checks():
    wanted = signature({"bytes": ("string", (None,))})
    (bound,) = bind_batch(
        batch(rows(1, 4)), wanted, lambda x: {"bytes": [str(row[0]) for row in x]}
    )
    assert bound.arrays["bytes"].tolist() == [b"1.0"] * 3
    with pytest.raises(BindingError) as error:
        bind_batch(batch(rows(1, 4)), wanted, lambda x: {"other": x})
    assert str(error.value) == (
        "transform returned ['other'] for signature 'serving_default', which takes 'bytes' string [None]: ['bytes'] missing."
    )
    with pytest.raises(BindingError, match=r"must return a mapping .*; got ndarray"):
        bind_batch(batch(rows(1, 4)), wanted, lambda x: x)


def test_what_transform_returns_is_checked_at_once():
    wanted = signature(
        {"a": F4, "b": ("string", (None,)), "c": ("int64", (None,)), "d": ("float32", (None,))}
    )
    made = {
        "a": np.zeros((2, 4), "float32"),
        "b": [1, None, "x"],
        "c": [[1], [2, 3]],
        "d": np.array(["2020-01-01"], "datetime64[D]"),
    }
    with pytest.raises(BindingError) as error:
        bind_batch(batch(rows(1, 4)), wanted, lambda x: made)
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': input 'b' expects string [None], got list from transform(x)['b'] "
        "(objects that are neither bytes nor str: NoneType, int); input 'c' expects int64 [None], got list from "
        "transform(x)['c'] (numpy makes no array of it: ValueError); input 'd' expects float32 [None], got datetime64[D] [1] from "
        "transform(x)['d'] (datetime64[D] is no dtype of TensorFlow). Cast or reshape it in the dataset, or pass transform=."
    )


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (
            {"a": np.zeros((2, 4), "float32"), "b": np.zeros((3, 4), "float32")},
            "the inputs differ in rows ('a' has 2, 'b' has 3)",
        ),
        (
            {"a": np.zeros((0, 4), "float32"), "b": np.zeros((0, 4), "float32")},
            "no rows in 'a', 'b'",
        ),
    ],
    ids=["differ", "none"],
)
def test_rows_of_a_transform_must_be_some_and_equal(made, problem):
    with pytest.raises(BindingError) as error:
        bind_batch(batch(rows(1, 4)), signature({"a": F4, "b": F4}), lambda x: made)
    assert str(error.value) == (
        f"Cannot bind batch to signature 'serving_default': {problem}. Cast or reshape it in the dataset, or pass transform=."
    )


def test_objects_in_a_numeric_input_are_refused():
    with pytest.raises(BindingError, match="objects that are neither bytes nor str: int"):
        bind_batch(
            batch(rows(1, 4)),
            signature({"a": ("int64", (None,))}),
            lambda x: {"a": np.array([1, 2], object)},
        )
    with pytest.raises(BindingError, match="a ragged tensor for a dense input"):
        bind_batch(
            batch(rows(1, 4)),
            signature({"a": F4}),
            lambda x: {"a": tf.ragged.constant([[1.0], []])},
        )


def test_an_error_inside_transform_names_transform_and_no_value():
    def transform(x):
        return {"a": x["secret"]}

    with pytest.raises(BindingError) as error:
        bind_batch(batch({"a": rows(1, 4)}), signature({"a": F4}), transform)
    assert str(error.value) == (
        "transform raised KeyError for signature 'serving_default', which takes 'a' float32 [None, 4]; transform was given x['a'] "
        "(float32 [3, 4]). Change transform= so that it takes x as the model was fed it."
    )
    assert isinstance(error.value.__cause__, KeyError)


def test_a_constant_that_the_signature_fixes_may_stand_beside_the_rows():
    wanted = signature({"a": F4, "t": ("float32", (1,))})
    (bound,) = bind_batch(batch(rows(1, 4)), wanted, lambda x: {"a": x, "t": [0.5]})
    assert (bound.size, bound.row_inputs) == (3, {"a"})
    with pytest.raises(BindingError, match="the inputs differ in rows"):
        bind_batch(batch(rows(1, 4)), wanted, lambda x: {"a": x, "t": [0.5, 0.5]})


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
    (bound,) = bind_batch(
        batch(x), signature(dict.fromkeys(names.values(), F4), structure=structure)
    )
    assert {name: array[0, 0] for name, array in bound.arrays.items()} == {
        names[path]: index for path, index in number.items()
    }


@settings(max_examples=200, deadline=None)
@given(nested(st.just(0)), st.booleans())
def test_bind_never_swaps_where_only_names_tell(shape_of_x, numbered):
    """Without the structure, TensorFlow's names of the inputs are all there is: the leaves' own keys, or numbers in flatten order;
    equal names are numbered. Whatever the keys are, a batch is bound right or refused.
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

    def build(node, path):
        if isinstance(node, dict):
            return {key: build(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [build(value, (*path, index)) for index, value in enumerate(node)]
        return rows(paths.index(path), 4)

    try:
        (bound,) = bind_batch(
            batch(build(shape_of_x, ())), signature(dict.fromkeys(names.values(), F4))
        )
    except BindingError as error:
        assert "transform=" in str(error)
        return
    assert {name: array[0, 0] for name, array in bound.arrays.items()} == {
        names[path]: index for index, path in enumerate(paths)
    }
