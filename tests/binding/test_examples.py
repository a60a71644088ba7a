from __future__ import annotations

import gzip
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_warmup.binding.examples import (
    build_examples,
    check_examples,
    feature_casts,
    look_like_examples,
    parsing_spec,
    refuse_unbuildable,
)
from keras_warmup.errors import BindingError, DataError
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.savedmodel.string_formats import (
    Base64,
    Compressed,
    ExampleParser,
    FeatureKind,
    FeatureSpec,
    PlainText,
    SequenceExampleParser,
    StringFormat,
)
from keras_warmup.savedmodel.string_inputs import find_string_formats

CURE = (
    "Change the data, or pass warmup={'transform': ...} to give the serialized Examples yourself."
)


def objects(*values: Any) -> np.ndarray[Any, Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def parse(rows: Any, spec: Any) -> dict[str, Any]:
    return tf.io.parse_example(rows, parsing_spec(spec))


def dense(dtype: str, *shape: Any, default: Any = None) -> FeatureSpec:
    return FeatureSpec("dense", dtype, shape, default)


BIG = 2**53 + 1
ROUND_TRIPS = {
    "dense": (dense("float32", 2), np.array([[1.5, np.nan], [-np.inf, 0.1]], np.float32), None),
    "matrix": (dense("int64", 2, 2), np.arange(8).reshape(2, 2, 2), None),
    "scalar_from_column": (dense("int64"), np.array([[1], [2]]), np.array([1, 2])),
    "column_from_scalar": (dense("int64", 1), np.array([1, 2]), np.array([[1], [2]])),
    "beyond_float_precision": (dense("int64"), np.array([BIG, -BIG]), None),
    "int64_limits": (dense("int64"), np.array([2**63 - 1, -(2**63)]), None),
    "uint64": (dense("int64"), np.array([2**63 - 1, 0], np.uint64), np.array([2**63 - 1, 0])),
    "bool": (dense("int64"), np.array([True, False]), np.array([1, 0])),
    "float64": (dense("float32"), np.array([0.1, np.nan]), np.array([0.1, np.nan], np.float32)),
    "float16": (
        dense("float32"),
        np.array([0.1, 2], np.float16),
        np.array([0.1, 2], np.float16).astype(np.float32),
    ),
    "bfloat16": (
        dense("float32"),
        tf.constant([0.1, 2], tf.bfloat16).numpy(),
        tf.constant([0.1, 2], tf.bfloat16),
    ),
    "int_to_float": (
        dense("float32"),
        np.array([1, -(2**24)]),
        np.array([1, -(2.0**24)], np.float32),
    ),
    "big_endian": (dense("int64"), np.array([1, 2], ">i4"), np.array([1, 2])),
    "binary": (dense("string"), objects(b"\x00\xff\x00", b""), None),
    "unicode": (dense("string"), np.array(["ß", "日本"]), objects("ß".encode(), "日本".encode())),
    "str_objects": (dense("string", 1), objects("a", b"b"), np.array([[b"a"], [b"b"]], object)),
    "default": (dense("int64", default=(7,)), objects(1, None), np.array([1, 7])),
    "vector_default": (
        dense("float32", 2, default=(1.0, 2.0)),
        objects(None, [3.0, 4.0]),
        np.array([[1, 2], [3, 4.0]]),
    ),
    "no_rows_missing": (dense("string", default=(b"d",)), objects(b"a", None), objects(b"a", b"d")),
    "sequence": (dense("int64", None), np.array([[1, 2], [3, 4]]), None),
    "ragged_sequence": (
        dense("int64", None),
        tf.ragged.constant([[1, 2], []], dtype=tf.int64),
        np.array([[1, 2], [0, 0]]),
    ),
    "sequence_of_vectors": (
        dense("float32", None, 2),
        tf.RaggedTensor.from_row_lengths(tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), [1, 2]),
        np.array([[[1, 2], [0, 0]], [[3, 4], [5, 6]]], np.float32),
    ),
}


@pytest.mark.parametrize(("feature", "leaf", "expected"), ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_parsing_gives_the_rows_back(feature: FeatureSpec, leaf: Any, expected: Any) -> None:
    rows = build_examples({"x": leaf}, {"x": feature})
    assert (
        rows.shape == (2,) and rows.dtype == object and all(isinstance(row, bytes) for row in rows)
    )
    np.testing.assert_array_equal(
        parse(rows, {"x": feature})["x"].numpy(), leaf if expected is None else expected
    )
    check_examples(rows, {"x": feature})


@pytest.mark.parametrize("kind", ["sparse", "ragged"])
@pytest.mark.parametrize(
    "leaf",
    [
        tf.ragged.constant([["a", "b"], [], ["c"]]),
        tf.sparse.from_dense([["a", "b"], ["", ""], ["c", ""]]),
        objects([b"a", b"b"], None, [b"c"]),
        objects(np.array(["a", "b"]), np.array([], "U"), np.array(["c"])),
    ],
    ids=["ragged", "sparse", "object_lists", "object_arrays"],
)
def test_variable_length_features_round_trip(kind: FeatureKind, leaf: Any) -> None:
    spec = {"x": FeatureSpec(kind, "string", row_splits="int32" if kind == "ragged" else None)}
    parsed = parse(build_examples({"x": leaf}, spec), spec)["x"]
    ragged = tf.RaggedTensor.from_sparse(parsed) if kind == "sparse" else parsed
    assert ragged.to_list() == [[b"a", b"b"], [], [b"c"]]


def test_a_column_is_one_value_a_row_for_a_sparse_feature() -> None:
    spec = {"x": FeatureSpec("sparse", "int64")}
    parsed = parse(build_examples({"x": np.array([5, 6])}, spec), spec)["x"]
    assert tf.sparse.to_dense(parsed).numpy().tolist() == [[5], [6]]


def test_several_features_with_unicode_keys_share_rows_and_bytes_are_deterministic() -> None:
    spec = {
        "größe": dense("float32"),
        "名": dense("string", 1),
        "opt": FeatureSpec("sparse", "int64"),
    }
    features = {
        "größe": np.array([1.0, 2.0], np.float32),
        "名": np.array([["a"], ["b"]]),
        "unused": np.zeros((2, 3)),
    }
    rows = build_examples(features, spec)
    backwards = build_examples(dict(reversed(features.items())), dict(reversed(spec.items())))
    assert rows.tolist() == backwards.tolist()
    assert set(tf.train.Example.FromString(rows[0]).features.feature) == {"größe", "名"}


def test_casts_are_named() -> None:
    spec = {
        "a": dense("float32"),
        "b": dense("int64"),
        "c": dense("string"),
        "d": dense("int64"),
        "e": dense("float32"),
    }
    features = {
        "a": np.zeros(1),
        "b": np.zeros(1, bool),
        "c": np.array(["x"]),
        "d": np.zeros(1, np.int64),
        "e": None,
    }
    assert feature_casts(features, spec) == {"a": "float64 -> float32", "b": "bool -> int64"}


REFUSALS = {
    "missing": (
        dense("float32", 2),
        None,
        "feature 'x' (dense float32 [2]) is required, but the data does not have it",
    ),
    "uint64": (
        dense("int64"),
        np.array([2**63], np.uint64),
        "feature 'x' expects dense int64 [], got uint64 [1]: values of 2**63 and more do not fit "
        "in an int64",
    ),
    "float_for_int": (
        dense("int64"),
        np.array([1.0]),
        "feature 'x' expects dense int64 [], got float64 [1]: floats for a feature of int64 are "
        "not cast",
    ),
    "bfloat16_for_int": (
        dense("int64"),
        tf.constant([1.0], tf.bfloat16).numpy(),
        "feature 'x' expects dense int64 [], got bfloat16 [1]: floats for a feature of int64 are "
        "not cast",
    ),
    "wrong_shape": (
        dense("float32", 2),
        np.zeros((4, 3), np.float32),
        "feature 'x' expects dense float32 [2], got float32 [4, 3]: a row has shape [3]",
    ),
    "same_size_other_shape": (
        dense("float32", 2, 3),
        np.zeros((4, 6), np.float32),
        "feature 'x' expects dense float32 [2, 3], got float32 [4, 6]: a row has shape [6]",
    ),
    "wrong_rest_of_sequence": (
        dense("float32", None, 2),
        np.zeros((4, 5, 3), np.float32),
        "feature 'x' expects dense float32 [None, 2], got float32 [4, 5, 3]: a row has shape [5, "
        "3]",
    ),
    "no_rows": (
        dense("float32"),
        np.float32(1),
        "feature 'x' expects dense float32 [], got float32 []: a scalar has no rows",
    ),
    "string_for_number": (
        dense("float32"),
        np.array(["1"]),
        "feature 'x' expects dense float32 [], got string [1]: strings for a feature of float32",
    ),
    "number_for_string": (
        dense("string"),
        np.array([1]),
        "feature 'x' expects dense string [], got int64 [1]: int64 for a feature of strings",
    ),
    "number_among_strings": (
        dense("string"),
        objects("a", 1.0),
        "feature 'x' expects dense string [], got string [2]: float among strings",
    ),
    "string_among_numbers": (
        dense("int64"),
        objects(1, "2"),
        "feature 'x' expects dense int64 [], got string [2]: strings for a feature of int64",
    ),
    "none_for_required": (
        dense("int64"),
        objects(1, None),
        "feature 'x' expects dense int64 [], got string [2]: a row is None, but the feature is "
        "required",
    ),
    "float32_overflow": (
        dense("float32"),
        np.array([1e300]),
        "feature 'x' expects dense float32 [], got float64 [1]: values beyond the range of float32",
    ),
    "int_that_float32_rounds": (
        dense("float32"),
        np.array([2**24 + 1]),
        "feature 'x' expects dense float32 [], got int64 [1]: integers that a float32 cannot "
        "represent exactly",
    ),
    "complex": (
        dense("float32"),
        np.array([1j]),
        "feature 'x' expects dense float32 [], got complex128 [1]: complex128 for a feature of "
        "float32",
    ),
    "dates": (
        dense("int64"),
        np.array(["2020-01-01"], "datetime64[D]"),
        "feature 'x' expects dense int64 [], got datetime64[D] [1]: datetime64[D] for a feature of "
        "int64",
    ),
    "sparse_for_dense": (
        dense("int64", 1),
        tf.sparse.from_dense([[1], [2]]),
        "feature 'x' expects dense int64 [1], got sparse int32 [2, 1]: a sparse tensor cannot fill "
        "a dense feature",
    ),
    "ragged_for_dense": (
        dense("int64", 1),
        tf.ragged.constant([[1], [2]]),
        "feature 'x' expects dense int64 [1], got ragged int32 [2, None]: a ragged tensor cannot "
        "fill a dense feature",
    ),
    "holes": (
        FeatureSpec("sparse", "int64"),
        tf.SparseTensor([[0, 0], [0, 2]], [1, 2], [1, 3]),
        "feature 'x' expects sparse int64, got sparse int32 [1, 3]: rows have holes (their values "
        "are not at columns 0, 1, 2, ...), and an Example holds a plain list: this may be a "
        "SparseFeature, whose index and value features must be given under their own keys",
    ),
    "sparse_rank_3": (
        FeatureSpec("sparse", "int64"),
        tf.SparseTensor([[0, 0, 0]], [1], [1, 1, 1]),
        "feature 'x' expects sparse int64, got sparse int32 [1, 1, 1]: only sparse tensors of rank "
        "2, [rows, values], can be written",
    ),
    "ragged_rank_2": (
        FeatureSpec("ragged", "int64", row_splits="int32"),
        tf.ragged.constant([[[1], []]]),
        "feature 'x' expects ragged int64, got ragged int32 [1, None, None]: more than one ragged "
        "dimension needs partitions, which the parser's spec does not show",
    ),
    "matrix_for_sparse": (
        FeatureSpec("sparse", "int64"),
        np.zeros((2, 2, 2), np.int64),
        "feature 'x' expects sparse int64, got int64 [2, 2, 2]: a row of a sparse feature is a "
        "list of values, not [2, 2]",
    ),
}


@pytest.mark.parametrize(("feature", "leaf", "problem"), REFUSALS.values(), ids=REFUSALS)
def test_features_that_do_not_fit_are_refused(
    feature: FeatureSpec, leaf: Any, problem: str
) -> None:
    with pytest.raises(BindingError) as error:
        build_examples({} if leaf is None else {"x": leaf}, {"x": feature})
    assert str(error.value) == f"Cannot build tf.Examples: {problem}. {CURE}"


def test_all_mismatches_are_in_one_message() -> None:
    spec = {"a": dense("int64"), "b": dense("float32")}
    with pytest.raises(BindingError) as error:
        build_examples({"a": np.zeros(1)}, spec)
    assert str(error.value) == (
        "Cannot build tf.Examples: feature 'a' expects dense int64 [], got float64 [1]: floats for "
        "a feature of int64 are not cast; feature 'b' (dense float32 []) is required, but the data "
        f"does not have it. {CURE}"
    )


def test_features_of_different_lengths_are_refused() -> None:
    spec = {"a": dense("int64"), "b": dense("int64")}
    with pytest.raises(BindingError) as error:
        build_examples({"a": np.zeros(1, int), "b": np.zeros(2, int)}, spec)
    assert str(error.value) == (
        "Cannot build tf.Examples: features have different numbers of rows: {'a': 1, 'b': 2}. "
        f"{CURE}"
    )


def test_data_with_none_of_the_features_is_refused() -> None:
    with pytest.raises(BindingError) as error:
        build_examples({"b": np.zeros(1)}, {"a": FeatureSpec("sparse", "int64")})
    assert str(error.value) == (
        f"Cannot build tf.Examples: the data has none of the features ['a'], only ['b']. {CURE}"
    )


@pytest.mark.parametrize(
    "leaf", [tf.ragged.constant([[[1], []]]), tf.SparseTensor([[0, 7]], [1.0], [1, 10])]
)
def test_a_composite_feature_that_shows_as_raw_keys_is_refused(leaf: Any) -> None:
    spec = {
        "id": dense("int64"),
        "index": FeatureSpec("sparse", "int64"),
        "value": FeatureSpec("sparse", "float32"),
    }
    with pytest.raises(BindingError) as error:
        build_examples({"id": np.array([1]), "s": leaf}, spec)
    assert str(error.value) == (
        "Cannot build tf.Examples: features ['s'] are sparse or ragged and the parser does not "
        "read them, while it reads ['index', 'value'], which the data does not have: these may be "
        "the raw keys of a SparseFeature or of a RaggedFeature with partitions, and the graph does "
        f"not show how they combine. {CURE}"
    )


def test_raw_keys_given_as_such_are_built() -> None:
    spec = {"index": FeatureSpec("sparse", "int64"), "value": FeatureSpec("sparse", "float32")}
    rows = build_examples(
        {"index": np.array([7, 8]), "value": np.array([1.0, 2.0], np.float32)}, spec
    )
    features = {"s": tf.io.SparseFeature("index", "value", tf.float32, 10)}
    parsed = tf.io.parse_example(rows, features)["s"]
    assert parsed.indices.numpy().tolist() == [[0, 7], [1, 8]]


@pytest.mark.parametrize(
    ("string_format", "reason"),
    [
        (
            SequenceExampleParser(),
            "it takes serialized tf.SequenceExamples, which cannot be built from a batch of "
            "features",
        ),
        (
            Compressed("GZIP"),
            "it takes compressed bytes, and the graph does not show their content",
        ),
        (
            Base64(Compressed("GZIP")),
            "it takes compressed bytes, and the graph does not show their content",
        ),
    ],
)
def test_inputs_that_nothing_can_be_built_for_are_refused(
    string_format: StringFormat, reason: str
) -> None:
    with pytest.raises(BindingError) as error:
        refuse_unbuildable("examples", string_format)
    assert str(error.value) == (
        f"Cannot bind features to input 'examples': {reason}. Give the serialized bytes as data, "
        "or pass warmup={'transform': ...}."
    )


@pytest.mark.parametrize("string_format", [PlainText(), ExampleParser({})])
def test_other_inputs_are_let_through(string_format: StringFormat) -> None:
    refuse_unbuildable("examples", string_format)


def example(**features: Any) -> bytes:
    built = tf.train.Example()
    for key, feature in features.items():
        built.features.feature[key].CopyFrom(feature)
    return built.SerializeToString()


INTS = tf.train.Feature(int64_list=tf.train.Int64List(value=[1, 2]))
FLOATS = tf.train.Feature(float_list=tf.train.FloatList(value=[1.0]))
MISFITS = {
    "missing": (
        dense("int64", 2),
        example(y=INTS),
        "feature 'x' (dense int64 [2]) is required, but missing",
    ),
    "wrong_type": (
        dense("int64", 2),
        example(x=FLOATS),
        "feature 'x' (dense int64 [2]) expects int64_list, got float_list",
    ),
    "wrong_count": (
        dense("int64"),
        example(x=INTS),
        "feature 'x' (dense int64 []) number of values is 2, expected 1",
    ),
    "wrong_count_of_default": (
        dense("int64", 3, default=(0,)),
        example(x=INTS),
        "feature 'x' (dense int64 [3]) number of values is 2, expected 3",
    ),
    "wrong_multiple": (
        dense("int64", None, 3),
        example(x=INTS),
        "feature 'x' (dense int64 [None, 3]) number of values is 2, expected a multiple of 3",
    ),
    "wrong_type_of_sparse": (
        FeatureSpec("sparse", "string"),
        example(x=INTS),
        "feature 'x' (sparse string) expects bytes_list, got int64_list",
    ),
}


@pytest.mark.parametrize(("feature", "row", "problem"), MISFITS.values(), ids=MISFITS)
def test_serialized_examples_that_do_not_fit_are_refused(
    feature: FeatureSpec, row: Any, problem: str
) -> None:
    with pytest.raises(BindingError) as error:
        check_examples([row], {"x": feature})
    assert str(error.value) == (
        f"The serialized tf.Examples do not fit the model's parser: row 0: {problem}. "
        "Give Examples written for this model."
    )
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.parse_example([row], parsing_spec({"x": feature}))


def test_at_most_five_problems_of_serialized_examples_are_listed() -> None:
    with pytest.raises(BindingError) as error:
        check_examples([example()] * 9, {"x": dense("int64")})
    assert str(error.value).count("is required, but missing") == 5


SEQUENCE = tf.train.SequenceExample()
SEQUENCE.feature_lists.feature_list["a"].feature.add().CopyFrom(INTS)
NO_EXAMPLES = {
    "garbage": (b"garbage\xff", "Row 1 (8 bytes) is not a serialized tf.Example."),
    "gzip": (
        gzip.compress(b"x"),
        "Row 1 is GZIP-compressed, not a serialized tf.Example. Read the file with "
        "compression_type='GZIP'.",
    ),
    "sequence_example": (
        SEQUENCE.SerializeToString(),
        "Row 1 is a serialized tf.SequenceExample, not a tf.Example.",
    ),
    "str": ("text", "Row 1 is str, not bytes: expected serialized tf.Examples."),
}


@pytest.mark.parametrize(("row", "text"), NO_EXAMPLES.values(), ids=NO_EXAMPLES)
def test_rows_that_are_not_examples_are_refused(row: Any, text: str) -> None:
    with pytest.raises(DataError) as error:
        check_examples([example(x=INTS), row], {"x": FeatureSpec("sparse", "int64")})
    assert str(error.value) == text


def test_examples_with_missing_optional_and_extra_features_pass() -> None:
    spec = {
        "x": dense("int64", 2),
        "d": dense("int64", default=(1,)),
        "s": FeatureSpec("sparse", "string"),
    }
    check_examples(objects(example(x=INTS, other=FLOATS), example(x=INTS)), spec)


DTYPES = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32),
    "string": st.binary(max_size=5),
}


@st.composite
def columns(draw: Any, rows: Any) -> Any:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    kind = draw(st.sampled_from(["dense", "default", "sequence", "sparse", "ragged"]))
    values = DTYPES[dtype]
    numpy_dtype = object if dtype == "string" else dtype
    if kind in ("dense", "default"):
        shape = tuple(draw(st.lists(st.integers(0 if kind == "dense" else 1, 3), max_size=2)))
        size = int(np.prod(shape))
        flat = draw(st.lists(values, min_size=rows * size, max_size=rows * size))
        leaf = np.empty(rows * size, numpy_dtype)
        leaf[:] = flat
        default = (
            tuple(draw(st.lists(values, min_size=size, max_size=size)))
            if kind == "default"
            else None
        )
        spec = FeatureSpec("dense", dtype, shape, default)
        if kind == "default" and draw(st.booleans()):
            return spec, None, None
        leaf = leaf.reshape((rows, *shape))
        return spec, leaf, leaf
    lists = draw(st.lists(st.lists(values, max_size=3), min_size=rows, max_size=rows))
    flat = np.empty(sum(map(len, lists)), numpy_dtype)
    flat[:] = [value for row in lists for value in row]
    leaf = tf.RaggedTensor.from_row_lengths(tf.constant(flat, dtype), [len(row) for row in lists])
    expected = leaf
    if kind == "sequence":
        return FeatureSpec("dense", dtype, (None,), None), leaf, leaf.to_tensor().numpy()
    if kind == "sparse":
        return (
            FeatureSpec("sparse", dtype),
            leaf.to_sparse() if draw(st.booleans()) else leaf,
            expected,
        )
    return (
        FeatureSpec("ragged", dtype, row_splits=draw(st.sampled_from(["int32", "int64"]))),
        leaf,
        expected,
    )


@st.composite
def tables(draw: Any) -> Any:
    rows = draw(st.integers(1, 4))
    keys = draw(
        st.lists(
            st.text(st.characters(codec="utf-8"), max_size=4), min_size=1, max_size=4, unique=True
        )
    )
    return {key: draw(columns(rows)) for key in keys}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables())
def test_any_spec_and_rows_parse_back_to_the_rows(table: Any) -> None:
    spec = {key: spec for key, (spec, _, _) in table.items()}
    features = {key: leaf for key, (_, leaf, _) in table.items() if leaf is not None}
    if not features:
        with pytest.raises(BindingError, match=r"the data has none of the features "):
            build_examples(features, spec)
        return
    rows = build_examples(features, spec)
    check_examples(rows, spec)
    parsed = parse(rows, spec)
    for key, (_, _, expected) in table.items():
        got = parsed[key]
        if isinstance(got, tf.SparseTensor):
            got = tf.RaggedTensor.from_sparse(got)
        if isinstance(expected, tf.RaggedTensor):
            np.testing.assert_array_equal(got.row_lengths().numpy(), expected.row_lengths().numpy())
            got, expected = got.flat_values, expected.flat_values.numpy()
        if expected is not None:
            np.testing.assert_array_equal(got.numpy(), expected)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.data())
def test_rows_given_under_another_spec_parse_back_or_are_refused(table: Any, data: Any) -> None:
    """The leaf of one feature is given under the spec of another."""
    spec = {key: spec for key, (spec, _, _) in table.items()}
    keys = data.draw(st.permutations(sorted(table)))
    leaves = {key: table[other][1] for key, other in zip(sorted(table), keys, strict=True)}
    try:
        rows = build_examples(leaves, spec)
    except BindingError as error:
        assert str(error).startswith("Cannot build tf.Examples: ") and str(error).endswith(CURE)
        return
    check_examples(rows, spec)
    for key, leaf in leaves.items():
        if isinstance(leaf, np.ndarray) and spec[key].kind == "dense":
            np.testing.assert_array_equal(
                parse(rows, spec)[key].numpy().reshape(-1),
                leaf.astype(parse(rows, spec)[key].numpy().dtype).reshape(-1),
            )


def test_the_taxi_models_own_examples_fit_the_spec_found_in_its_graph(
    saved_models: pathlib.Path,
) -> None:
    meta_graph = read_meta_graph(saved_models / "chicago_taxi_estimator" / "1")
    signature = next(
        found for found in read_signatures(meta_graph) if found.key == "classification"
    )
    parser = find_string_formats(meta_graph, signature)["inputs"]
    assert isinstance(parser, ExampleParser)
    spec = parser.spec
    dataset = tf.data.TFRecordDataset(
        str(saved_models / "chicago_taxi_examples.tfrecord.gz"), "GZIP"
    )
    rows = list(dataset.as_numpy_iterator())
    assert len(rows) == 424
    check_examples(rows, spec)
    built = build_examples(parse(rows, spec), spec)
    for key, parsed in parse(built, spec).items():
        np.testing.assert_array_equal(parsed.values, parse(rows, spec)[key].values)


def test_rows_that_look_like_examples_are_distinguished_from_text() -> None:
    spec = {"x": dense("int64")}
    examples = build_examples({"x": np.array([1, 2])}, spec)
    sequence = tf.train.SequenceExample()
    sequence.feature_lists.feature_list["x"].feature.add()
    assert look_like_examples(examples)
    assert look_like_examples([b"", examples[0]])
    assert look_like_examples([gzip.compress(b"x")])
    assert look_like_examples([sequence.SerializeToString()])
    assert not look_like_examples(
        [b"", b"good", b"not so bad", b"\xff", "\u00e9t\u00e9".encode(), b"H\x01"]
    )
    assert not look_like_examples(objects("text"))
