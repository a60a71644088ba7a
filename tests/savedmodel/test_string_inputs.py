"""Tests of `keras_warmup.savedmodel.string_inputs`."""

from __future__ import annotations

import gzip
import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef
from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.savedmodel.string_formats import (
    Base64,
    Compressed,
    CsvDecoder,
    ExampleParser,
    FeatureSpec,
    ImageDecoder,
    PlainText,
    RawDecoder,
    SequenceExampleParser,
    StringFormat,
    TensorParser,
    Unknown,
)
from keras_warmup.savedmodel.string_inputs import find_string_formats
from tests.builders import save_function, signature_of, signature_over
from tests.trust.hostile_models import HOSTILE

FEATURES = {
    "dense": tf.io.FixedLenFeature([2], tf.float32),
    "default": tf.io.FixedLenFeature([], tf.int64, default_value=3),
    "text": tf.io.FixedLenFeature([2], tf.string, default_value=["a", "ß"]),
    "sequence": tf.io.FixedLenSequenceFeature([2], tf.float32, allow_missing=True),
    "sparse": tf.io.VarLenFeature(tf.string),
}
RAGGED = {"ragged": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)}
DENSE_SPEC = {
    "dense": FeatureSpec("dense", "float32", (2,)),
    "default": FeatureSpec("dense", "int64", (), (3,)),
    "text": FeatureSpec("dense", "string", (2,), (b"a", "ß".encode())),
}
SPEC = {
    **DENSE_SPEC,
    "sequence": FeatureSpec("dense", "float32", (None, 2), (0.0,)),
    "sparse": FeatureSpec("sparse", "string"),
}
RAGGED_SPEC = {"ragged": FeatureSpec("ragged", "int64", row_splits="int64")}
DENSE = {key: FEATURES[key] for key in DENSE_SPEC}


def formats_of(
    export_dir: str | os.PathLike[str], key: str = "serving_default"
) -> dict[str, StringFormat]:
    meta_graph = read_meta_graph(export_dir)
    before = meta_graph.SerializeToString(deterministic=True)
    found = find_string_formats(meta_graph, signature_of(meta_graph, key))
    assert meta_graph.SerializeToString(deterministic=True) == before, "the proto was changed"
    return found


def export(
    function: Callable[[Any], Any],
    export_dir: pathlib.Path,
    shape: tuple[int | None, ...] = (None,),
    **tracked: Any,
) -> str:
    specs = [tf.TensorSpec(shape, tf.string, "inputs")]
    return save_function(function, export_dir, specs, **tracked)


def parsed_sum(parsed: Any) -> Any:
    return {
        "y": sum(
            tf.reduce_sum(
                tf.strings.length(leaf) if leaf.dtype == tf.string else tf.cast(leaf, tf.int32)
            )
            for leaf in map(as_dense, parsed.values())
        )
    }


def as_dense(leaf: Any) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        return leaf.values
    return leaf.flat_values if isinstance(leaf, tf.RaggedTensor) else leaf


def single(features: Any) -> Any:
    return lambda row: parsed_sum(tf.io.parse_single_example(row, features))["y"]


def in_branches(x: Any) -> Any:
    return {
        "y": tf.cond(
            tf.size(x) > 1, lambda: parsed_sum(tf.io.parse_example(x, FEATURES))["y"], lambda: 0
        )
    }


def in_case(x: Any) -> Any:
    branches = [lambda: 0, lambda: parsed_sum(tf.io.parse_example(tf.identity(x), FEATURES))["y"]]
    return {"y": tf.switch_case(tf.size(x), branches)}


def in_loop(x: Any) -> Any:
    def body(i: Any, total: Any) -> Any:
        return i + 1, total + parsed_sum(tf.io.parse_example(x[i : i + 1], FEATURES))["y"]

    return {"y": tf.while_loop(lambda i, _: i < tf.size(x), body, (0, 0))[1]}


def strings_through_a_loop(x: Any) -> Any:
    def body(i: Any, rows: Any) -> Any:
        return i + 1, tf.concat([rows[1:], rows[:1]], 0)

    rows = tf.while_loop(
        lambda i, _: i < 2, body, (0, x), (tf.TensorShape([]), tf.TensorShape([None]))
    )[1]
    return parsed_sum(tf.io.parse_example(rows, FEATURES))


def batched(x: Any) -> Any:
    @tf.nondifferentiable_batch_function(1, 8, 1000)
    def parse(rows: Any) -> Any:
        return tf.io.parse_example(rows, {"dense": FEATURES["dense"]})["dense"]

    return {"y": parse(x)}


def keys_in_a_caller(x: Any) -> Any:
    @tf.function
    def inner(rows: Any, keys: Any) -> Any:
        return tf.raw_ops.ParseExampleV2(
            serialized=rows,
            names=[],
            sparse_keys=tf.constant([], tf.string),
            dense_keys=tf.identity(keys),
            ragged_keys=tf.constant([], tf.string),
            dense_defaults=[tf.constant([], tf.float32)],
            num_sparse=0,
            sparse_types=[],
            ragged_value_types=[],
            ragged_split_types=[],
            dense_shapes=[[2]],
        ).dense_values[0]

    return {"y": inner(x, tf.constant(["dense"]))}


def v1_ops(x: Any) -> Any:
    return {
        "y": tf.raw_ops.ParseExample(
            serialized=x,
            names=[],
            sparse_keys=["sparse"],
            dense_keys=["dense", "default"],
            dense_defaults=[tf.constant([], tf.float32), tf.constant(3, tf.int64)],
            sparse_types=[tf.string],
            dense_shapes=[[2], []],
        ).dense_values[0]
    }


def v1_single(x: Any) -> Any:
    def parse(row: Any) -> Any:
        return tf.raw_ops.ParseSingleExample(
            serialized=row,
            dense_defaults=[tf.constant([], tf.float32), tf.constant(3, tf.int64)],
            num_sparse=1,
            sparse_keys=["sparse"],
            dense_keys=["dense", "default"],
            sparse_types=[tf.string],
            dense_shapes=[[2], []],
        ).dense_values[0]

    return {"y": tf.map_fn(parse, x, fn_output_signature=tf.float32)}


ONE = {"dense": SPEC["dense"]}
V1 = {"sparse": SPEC["sparse"], "dense": SPEC["dense"], "default": SPEC["default"]}
EXAMPLE_FORMS = {
    "parse_example": (
        lambda x: parsed_sum(tf.io.parse_example(x, {**FEATURES, **RAGGED})),
        {**SPEC, **RAGGED_SPEC},
    ),
    "map_fn": (lambda x: {"y": tf.map_fn(single(FEATURES), x, fn_output_signature=tf.int32)}, SPEC),
    "vectorized_map": (lambda x: {"y": tf.vectorized_map(single(DENSE), x)}, DENSE_SPEC),
    "cond": (in_branches, SPEC),
    "switch_case": (in_case, SPEC),
    "while_loop": (in_loop, SPEC),
    "strings_through_a_loop": (strings_through_a_loop, SPEC),
    "reshaped": (
        lambda x: parsed_sum(tf.io.parse_example(tf.reshape(tf.expand_dims(x, 1), [-1]), FEATURES)),
        SPEC,
    ),
    "batch_function": (batched, ONE),
    "keys_in_a_caller": (keys_in_a_caller, ONE),
    "ParseExample": (v1_ops, V1),
    "ParseSingleExample": (v1_single, V1),
}


@pytest.mark.parametrize(("function", "spec"), EXAMPLE_FORMS.values(), ids=EXAMPLE_FORMS)
def test_the_whole_feature_spec_is_recovered(
    function: Any, spec: dict[str, FeatureSpec], tmp_path: pathlib.Path
) -> None:
    assert formats_of(export(function, tmp_path / "m")) == {"inputs": ExampleParser(spec)}


def test_the_spec_of_a_scalar_input_is_recovered(tmp_path: pathlib.Path) -> None:
    path = export(
        lambda x: parsed_sum(tf.io.parse_single_example(x, FEATURES)), tmp_path / "m", shape=()
    )
    assert formats_of(path) == {"inputs": ExampleParser(SPEC)}


def test_the_spec_is_recovered_through_v1_control_flow(tmp_path: pathlib.Path) -> None:
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.string, [None], "examples")

            def parse(row: Any) -> Any:
                return tf.io.parse_single_example(row, {"dense": FEATURES["dense"]})["dense"]

            y = v1.map_fn(parse, x, dtype=tf.float32)
            v1.saved_model.simple_save(session, str(tmp_path / "m"), {"inputs": x}, {"y": y})
    finally:
        v1.enable_control_flow_v2()
    assert {node.op for node in read_meta_graph(tmp_path / "m").graph_def.node} >= {
        "Enter",
        "Switch",
        "TensorArrayReadV3",
    }
    assert formats_of(tmp_path / "m") == {"inputs": ExampleParser(ONE)}


def images(decode: Callable[[Any], Any], channels: int = 3) -> Any:
    def serve(x: Any) -> Any:
        spec = tf.TensorSpec([4, 4, channels], tf.float32)
        return {
            "y": tf.map_fn(
                lambda row: tf.image.resize(decode(row), [4, 4]), x, fn_output_signature=spec
            )
        }

    return serve


def text_vectorization() -> Any:
    layer = keras.layers.TextVectorization(max_tokens=10)
    layer.adapt(["a b", "b c"])
    return layer


def peek_then_decode(row: Any) -> Any:
    is_png = tf.strings.substr(row, 0, 4) == b"\x89PNG"
    return tf.cond(is_png, lambda: tf.io.decode_png(row, 3), lambda: tf.io.decode_jpeg(row, 3))


def column_sum(x: Any) -> Any:
    columns = tf.io.decode_csv(x, [[0.0], [0], ["a"]], field_delim=";")
    return {"y": columns[0] + tf.cast(columns[1], tf.float32)}


def tensor_rows(x: Any) -> Any:
    return {
        "y": tf.map_fn(
            lambda row: tf.ensure_shape(tf.io.parse_tensor(row, tf.float16), [2]), x, tf.float16
        )
    }


FORMATS = {
    "decode_jpeg": (
        images(lambda row: tf.io.decode_jpeg(row, channels=3)),
        ImageDecoder(("jpeg",), 3),
    ),
    "decode_png": (images(lambda row: tf.io.decode_png(row, 1), 1), ImageDecoder(("png",), 1)),
    "decode_png16": (
        images(lambda row: tf.io.decode_png(row, 1, tf.uint16), 1),
        ImageDecoder(("png",), 1, "uint16"),
    ),
    "decode_image": (
        images(lambda row: tf.io.decode_image(row, 3, expand_animations=False)),
        ImageDecoder(("png", "jpeg", "gif", "bmp"), 3),
    ),
    "peek_then_decode": (images(peek_then_decode), ImageDecoder(("png", "jpeg"), 3)),
    "base64_image": (
        images(lambda row: tf.io.decode_jpeg(tf.io.decode_base64(row), channels=3)),
        Base64(ImageDecoder(("jpeg",), 3)),
    ),
    "parse_tensor": (tensor_rows, TensorParser("float16")),
    "decode_raw": (
        lambda x: {"y": tf.io.decode_raw(x, tf.int16, little_endian=False)},
        RawDecoder("int16", False),
    ),
    "csv": (column_sum, CsvDecoder(("float32", "int32", "string"), ";")),
    "text": (lambda x: {"y": tf.strings.length(tf.strings.lower(x))}, PlainText()),
    "hashing": (lambda x: {"y": tf.strings.to_hash_bucket_fast(x, 5)}, PlainText()),
    "sequence_example": (
        lambda x: {"y": tf.io.parse_sequence_example(x, {"a": FEATURES["dense"]}, {})[0]["a"]},
        SequenceExampleParser(),
    ),
    "gzip": (
        lambda x: parsed_sum(tf.io.parse_example(tf.io.decode_compressed(x, "GZIP"), FEATURES)),
        Compressed("GZIP"),
    ),
    "unread": (lambda x: {"y": tf.size(x)}, Unknown("no op reads it on the way to the outputs")),
    "echoed": (
        lambda x: {"y": tf.identity(x)},
        Unknown("no op reads it on the way to the outputs"),
    ),
    "unknown_op": (
        lambda x: {"y": tf.audio.decode_wav(x[0]).audio},
        Unknown("DecodeWav reads it, and the input format of that op is not known"),
    ),
}


def ragged_rows(x: Any) -> Any:
    splits = tf.range(tf.size(x, tf.int64) + 1)
    rows = tf.gather(tf.RaggedTensor.from_row_splits(x, splits, validate=False), [0])
    return parsed_sum(tf.io.parse_example(rows.flat_values, DENSE))


def twice_ragged_rows(x: Any) -> Any:
    splits = tf.range(tf.size(x, tf.int64) + 1)
    rows = tf.RaggedTensor.from_nested_row_splits(x, [splits, splits], validate=False)
    return parsed_sum(tf.io.parse_example(tf.gather(rows, [0]).flat_values, DENSE))


def variant_rows(x: Any) -> Any:
    splits = tf.range(tf.size(x, tf.int64) + 1)
    variant = tf.RaggedTensor.from_row_splits(x, splits, validate=False)._to_variant()
    rows = tf.raw_ops.RaggedTensorFromVariant(
        encoded_ragged=variant,
        input_ragged_rank=1,
        output_ragged_rank=1,
        Tvalues=tf.string,
        Tsplits=tf.int64,
    )
    return parsed_sum(tf.io.parse_example(rows.output_dense_values, DENSE))


def popped_row(x: Any) -> Any:
    rows = tf.raw_ops.TensorListFromTensor(tensor=x, element_shape=tf.constant([], tf.int32))
    popped = tf.raw_ops.TensorListPopBack(
        input_handle=rows, element_shape=tf.constant([], tf.int32), element_dtype=tf.string
    )
    return parsed_sum(tf.io.parse_single_example(popped.tensor, DENSE))


STRINGS_IN_A_LATER_OUTPUT = [ragged_rows, twice_ragged_rows, variant_rows, popped_row]


@pytest.mark.parametrize("function", STRINGS_IN_A_LATER_OUTPUT)
def test_strings_are_followed_into_a_later_output_of_a_function(
    function: Any, tmp_path: pathlib.Path
) -> None:
    assert formats_of(export(function, tmp_path / "m")) == {"inputs": ExampleParser(DENSE_SPEC)}


@pytest.mark.parametrize("function", STRINGS_IN_A_LATER_OUTPUT)
def test_strings_are_followed_into_a_later_output_of_the_main_graph(function: Any) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.string, [None], name="x")
        y = function(x)["y"]
        meta_graph = MetaGraphDef(graph_def=graph.as_graph_def())
    signature = signature_over({"y": y.name}, {"inputs": x.name}, dtype="string")
    assert find_string_formats(meta_graph, signature) == {"inputs": ExampleParser(DENSE_SPEC)}


@pytest.mark.parametrize(("function", "expected"), FORMATS.values(), ids=FORMATS)
def test_the_format_of_a_string_input_is_found(
    function: Any, expected: StringFormat, tmp_path: pathlib.Path
) -> None:
    assert formats_of(export(function, tmp_path / "m")) == {"inputs": expected}


def test_a_vocabulary_reads_plain_text(tmp_path: pathlib.Path) -> None:
    layer = text_vectorization()
    assert formats_of(export(lambda x: {"y": layer(x)}, tmp_path / "m", layer=layer)) == {
        "inputs": PlainText()
    }


def test_keras_export_of_a_model_with_a_lookup_reads_plain_text(tmp_path: pathlib.Path) -> None:
    layer = keras.layers.StringLookup(vocabulary=["a", "b"])
    inputs = keras.Input((1,), dtype="string", name="word")
    model = keras.Model(inputs, keras.layers.Embedding(4, 2)(layer(inputs)))
    model.export(str(tmp_path / "m"), verbose=False)
    assert formats_of(tmp_path / "m") == {"word": PlainText()}


def test_numeric_inputs_have_no_format(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.export(str(tmp_path / "m"), verbose=False)
    assert formats_of(tmp_path / "m") == {}


def test_keys_made_at_run_time_are_not_guessed(tmp_path: pathlib.Path) -> None:
    key = tf.Variable(["dense"])

    def serve(x: Any) -> Any:
        return {
            "y": tf.raw_ops.ParseExampleV2(
                serialized=x,
                names=[],
                sparse_keys=tf.constant([], tf.string),
                dense_keys=key.read_value(),
                ragged_keys=tf.constant([], tf.string),
                dense_defaults=[tf.constant([], tf.float32)],
                num_sparse=0,
                sparse_types=[],
                ragged_value_types=[],
                ragged_split_types=[],
                dense_shapes=[[2]],
            ).dense_values[0]
        }

    unknown = Unknown("ParseExampleV2 reads it, but its feature keys are not constants")
    assert formats_of(export(serve, tmp_path / "m", key=key)) == {"inputs": unknown}


def two_parsers(first: Any, second: Any) -> Any:
    def serve(x: Any) -> Any:
        return {
            "y": tf.io.parse_example(x, first)["dense"],
            "z": parsed_sum(tf.io.parse_example(x, second))["y"],
        }

    return serve


def test_the_specs_of_two_parsers_are_merged_and_the_stricter_one_wins(
    tmp_path: pathlib.Path,
) -> None:
    optional = {"dense": tf.io.FixedLenFeature([2], tf.float32, default_value=[1.0, 2.0])}
    path = export(two_parsers(optional, FEATURES), tmp_path / "m")
    assert formats_of(path) == {"inputs": ExampleParser(SPEC)}


def test_the_format_of_two_parsers_that_disagree_is_unknown(tmp_path: pathlib.Path) -> None:
    other = {"dense": tf.io.FixedLenFeature([1], tf.float32)}
    unknown = Unknown("two parsers read feature 'dense' of it in different ways")
    assert formats_of(export(two_parsers(other, FEATURES), tmp_path / "m")) == {"inputs": unknown}


def test_the_format_of_readers_that_disagree_is_unknown(tmp_path: pathlib.Path) -> None:
    def serve(x: Any) -> Any:
        return {"y": tf.io.parse_example(x, FEATURES)["dense"], "z": tf.io.decode_raw(x, tf.uint8)}

    unknown = Unknown("DecodeRaw and ParseExampleV2 read it, and expect different formats")
    assert formats_of(export(serve, tmp_path / "m")) == {"inputs": unknown}


def test_only_readers_that_the_signature_runs_count(tmp_path: pathlib.Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.string, [None], "x")
        parsed = tf.io.parse_example(x, {"dense": FEATURES["dense"]})["dense"]
        lengths = tf.strings.length(x)
        builder = v1.saved_model.builder.SavedModelBuilder(str(tmp_path / "m"))
        signatures = {
            "parse": v1.saved_model.predict_signature_def({"x": x}, {"y": parsed}),
            "length": v1.saved_model.predict_signature_def({"x": x}, {"y": lengths}),
            "fed_below": v1.saved_model.predict_signature_def(
                {"x": x, "z": parsed}, {"y": parsed * 2.0}
            ),
        }
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    assert formats_of(tmp_path / "m", "parse") == {"x": ExampleParser(ONE)}
    assert formats_of(tmp_path / "m", "length") == {"x": PlainText()}
    assert formats_of(tmp_path / "m", "fed_below") == {
        "x": Unknown("no op reads it on the way to the outputs")
    }


def test_sparse_and_partitioned_features_show_their_raw_keys(tmp_path: pathlib.Path) -> None:
    features = {
        "s": tf.io.SparseFeature("index", "value", tf.float32, 10),
        "r": tf.io.RaggedFeature(tf.int64, "values", [tf.io.RaggedFeature.RowLengths("lengths")]),
    }
    found = formats_of(
        export(lambda x: parsed_sum(tf.io.parse_example(x, features)), tmp_path / "m")
    )
    assert found == {
        "inputs": ExampleParser(
            {
                "index": FeatureSpec("sparse", "int64"),
                "value": FeatureSpec("sparse", "float32"),
                "values": FeatureSpec("ragged", "int64", row_splits="int32"),
                "lengths": FeatureSpec("ragged", "int64", row_splits="int32"),
            }
        )
    }


# Readers in hostile graphs that are damaged, but end in no error -> the reason given for them.
DAMAGED = {
    "DecodeCSV with a delimiter that is not UTF-8": (
        "DecodeCSV reads it, but its keys or attributes are not UTF-8"
    ),
    "DecodeRaw of an unknown dtype": (
        "DecodeRaw reads it, but this TensorFlow does not know its DataType 77"
    ),
    "more types than feature keys": (
        "ParseExampleV2 reads it, but its numbers of keys, types, shapes and defaults differ"
    ),
    "feature keys that are not UTF-8": (
        "ParseExampleV2 reads it, but its keys or attributes are not UTF-8"
    ),
    "feature keys that are numbers": (
        "ParseExampleV2 reads it, but its feature keys are not strings"
    ),
    "a parser of two inputs": "ParseExampleV2 reads it, but it lacks inputs",
    "DecodePng of a negative number of channels": (
        f"DecodePng reads it, but it has {-(2**40)} channels, expected one of (0, 1, 3, 4)"
    ),
}


@pytest.mark.parametrize(("name", "reason"), DAMAGED.items(), ids=DAMAGED)
def test_the_format_of_a_damaged_reader_is_unknown_with_its_reason(
    name: str, reason: str, tmp_path: pathlib.Path
) -> None:
    HOSTILE[name](tmp_path / "1")
    meta_graph = read_meta_graph(tmp_path / "1")
    (signature,) = read_signatures(meta_graph)
    assert find_string_formats(meta_graph, signature)["x"] == Unknown(reason)


def test_the_taxi_model_shows_the_features_its_examples_have(saved_models: pathlib.Path) -> None:
    meta_graph = read_meta_graph(saved_models / "chicago_taxi_estimator" / "1")
    graph = ModelGraph(meta_graph)
    found = [
        find_string_formats(graph, signature_of(meta_graph, key))
        for key in ("classification", "regression", "predict", "serving_default")
    ]
    parser: Any = found[0]["inputs"]
    assert found[2]["examples"] == found[1]["inputs"] == found[3]["inputs"] == parser
    raw = gzip.decompress((saved_models / "chicago_taxi_examples.tfrecord.gz").read_bytes())
    first = tf.train.Example.FromString(raw[12 : 12 + int(np.frombuffer(raw[:8], "<u8")[0])])
    lists = {"int64_list": "int64", "float_list": "float32", "bytes_list": "string"}
    kinds = {
        key: lists[value.WhichOneof("kind")]
        for key, value in first.features.feature.items()
        if value.ByteSize()
    }
    assert set(parser.spec) <= set(first.features.feature)
    assert {key: spec for key, spec in parser.spec.items() if key in kinds} == {
        key: FeatureSpec("sparse", kinds[key]) for key in parser.spec if key in kinds
    }


@pytest.mark.parametrize("key", ["classify_x_to_y", "regress_x_to_y", "regress_x_to_y2"])
def test_half_plus_two_reads_two_floats_from_examples(key: str, saved_models: pathlib.Path) -> None:
    found: Any = formats_of(saved_models / "half_plus_two_tf1" / "1", key)
    assert list(found) == ["inputs"]
    assert {
        feature: (spec.kind, spec.dtype, spec.shape)
        for feature, spec in found["inputs"].spec.items()
    } == {"x": ("dense", "float32", (1,)), "x2": ("dense", "float32", (1,))}
