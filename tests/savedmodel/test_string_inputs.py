from __future__ import annotations

import gzip
import pathlib
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.signatures import read_meta_graph
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
    TensorParser,
    Unknown,
    describe_string_format,
)
from keras_warmup.savedmodel.string_inputs import find_string_formats

SAVEDMODELS = pathlib.Path(__file__).parents[3] / "shared" / "savedmodels"

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


def signature_of(meta_graph, key="serving_default"):
    def specs(infos):
        return {
            name: SimpleNamespace(tensor=info.name, dtype=tf.as_dtype(info.dtype).name)
            for name, info in infos.items()
        }

    definition = meta_graph.signature_def[key]
    return SimpleNamespace(inputs=specs(definition.inputs), outputs=specs(definition.outputs))


def consumers_of(export_dir, key="serving_default"):
    meta_graph = read_meta_graph(export_dir)
    before = meta_graph.SerializeToString(deterministic=True)
    found = find_string_formats(meta_graph, signature_of(meta_graph, key))
    assert meta_graph.SerializeToString(deterministic=True) == before, (
        "reading must not change the proto"
    )
    return found


def export(function, export_dir, shape=(None,), **tracked):
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    module.serve = tf.function(
        function, input_signature=[tf.TensorSpec(shape, tf.string, "inputs")]
    )
    tf.saved_model.save(module, str(export_dir), signatures={"serving_default": module.serve})
    return str(export_dir)


def parsed_sum(parsed):
    return {
        "y": sum(
            tf.reduce_sum(
                tf.strings.length(leaf) if leaf.dtype == tf.string else tf.cast(leaf, tf.int32)
            )
            for leaf in map(as_dense, parsed.values())
        )
    }


def as_dense(leaf):
    if isinstance(leaf, tf.SparseTensor):
        return leaf.values
    return leaf.flat_values if isinstance(leaf, tf.RaggedTensor) else leaf


def single(features):
    return lambda row: parsed_sum(tf.io.parse_single_example(row, features))["y"]


def in_branches(x):
    return {
        "y": tf.cond(
            tf.size(x) > 1, lambda: parsed_sum(tf.io.parse_example(x, FEATURES))["y"], lambda: 0
        )
    }


def in_case(x):
    branches = [lambda: 0, lambda: parsed_sum(tf.io.parse_example(tf.identity(x), FEATURES))["y"]]
    return {"y": tf.switch_case(tf.size(x), branches)}


def in_loop(x):
    def body(i, total):
        return i + 1, total + parsed_sum(tf.io.parse_example(x[i : i + 1], FEATURES))["y"]

    return {"y": tf.while_loop(lambda i, _: i < tf.size(x), body, (0, 0))[1]}


def strings_through_a_loop(x):
    def body(i, rows):
        return i + 1, tf.concat([rows[1:], rows[:1]], 0)

    rows = tf.while_loop(
        lambda i, _: i < 2, body, (0, x), (tf.TensorShape([]), tf.TensorShape([None]))
    )[1]
    return parsed_sum(tf.io.parse_example(rows, FEATURES))


def batched(x):
    @tf.nondifferentiable_batch_function(1, 8, 1000)
    def parse(rows):
        return tf.io.parse_example(rows, {"dense": FEATURES["dense"]})["dense"]

    return {"y": parse(x)}


def keys_in_a_caller(x):
    @tf.function
    def inner(rows, keys):
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


def v1_ops(x):
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


def v1_single(x):
    def parse(row):
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
def test_recovers_the_whole_feature_spec(function, spec, tmp_path):
    assert consumers_of(export(function, tmp_path / "m")) == {"inputs": ExampleParser(spec)}


def test_recovers_the_spec_of_a_scalar_input(tmp_path):
    path = export(
        lambda x: parsed_sum(tf.io.parse_single_example(x, FEATURES)), tmp_path / "m", shape=()
    )
    assert consumers_of(path) == {"inputs": ExampleParser(SPEC)}


def test_recovers_the_spec_through_v1_control_flow(tmp_path):
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.string, [None], "examples")

            def parse(row):
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
    assert consumers_of(tmp_path / "m") == {"inputs": ExampleParser(ONE)}


def images(decode, channels=3):
    def serve(x):
        sized = lambda row: tf.image.resize(decode(row), [4, 4])  # noqa: E731
        return {
            "y": tf.map_fn(
                sized, x, fn_output_signature=tf.TensorSpec([4, 4, channels], tf.float32)
            )
        }

    return serve


def text_vectorization():
    layer = keras.layers.TextVectorization(max_tokens=10)
    layer.adapt(["a b", "b c"])
    return layer


def peek_then_decode(row):
    is_png = tf.strings.substr(row, 0, 4) == b"\x89PNG"
    return tf.cond(is_png, lambda: tf.io.decode_png(row, 3), lambda: tf.io.decode_jpeg(row, 3))


def column_sum(x):
    columns = tf.io.decode_csv(x, [[0.0], [0], ["a"]], field_delim=";")
    return {"y": columns[0] + tf.cast(columns[1], tf.float32)}


def tensor_rows(x):
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
        Unknown("DecodeWav reads it, whose input format is not known"),
    ),
}


def ragged_rows(x):
    splits = tf.range(tf.size(x, tf.int64) + 1)
    rows = tf.gather(tf.RaggedTensor.from_row_splits(x, splits, validate=False), [0])
    return parsed_sum(tf.io.parse_example(rows.flat_values, DENSE))


def twice_ragged_rows(x):
    splits = tf.range(tf.size(x, tf.int64) + 1)
    rows = tf.RaggedTensor.from_nested_row_splits(x, [splits, splits], validate=False)
    return parsed_sum(tf.io.parse_example(tf.gather(rows, [0]).flat_values, DENSE))


def variant_rows(x):
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


def popped_row(x):
    rows = tf.raw_ops.TensorListFromTensor(tensor=x, element_shape=tf.constant([], tf.int32))
    popped = tf.raw_ops.TensorListPopBack(
        input_handle=rows, element_shape=tf.constant([], tf.int32), element_dtype=tf.string
    )
    return parsed_sum(tf.io.parse_single_example(popped.tensor, DENSE))


STRINGS_IN_A_LATER_OUTPUT = [ragged_rows, twice_ragged_rows, variant_rows, popped_row]


@pytest.mark.parametrize("function", STRINGS_IN_A_LATER_OUTPUT)
def test_strings_are_followed_into_a_later_output_of_a_function(function, tmp_path):
    assert consumers_of(export(function, tmp_path / "m")) == {"inputs": ExampleParser(DENSE_SPEC)}


@pytest.mark.parametrize("function", STRINGS_IN_A_LATER_OUTPUT)
def test_strings_are_followed_into_a_later_output_of_the_main_graph(function):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.string, [None], name="x")
        y = function(x)["y"]
        meta_graph = tf.compat.v1.MetaGraphDef(graph_def=graph.as_graph_def())
    signature = SimpleNamespace(
        inputs={"inputs": SimpleNamespace(tensor=x.name)},
        outputs={"y": SimpleNamespace(tensor=y.name)},
    )
    assert find_string_formats(meta_graph, signature) == {"inputs": ExampleParser(DENSE_SPEC)}


@pytest.mark.parametrize(("function", "consumer"), FORMATS.values(), ids=FORMATS)
def test_names_the_format_a_string_input_wants(function, consumer, tmp_path):
    assert consumers_of(export(function, tmp_path / "m")) == {"inputs": consumer}


def test_a_vocabulary_reads_plain_text(tmp_path):
    layer = text_vectorization()
    assert consumers_of(export(lambda x: {"y": layer(x)}, tmp_path / "m", layer=layer)) == {
        "inputs": PlainText()
    }


def test_keras_export_of_a_model_with_a_lookup_reads_plain_text(tmp_path):
    layer = keras.layers.StringLookup(vocabulary=["a", "b"])
    inputs = keras.Input((1,), dtype="string", name="word")
    model = keras.Model(inputs, keras.layers.Embedding(4, 2)(layer(inputs)))
    model.export(str(tmp_path / "m"), verbose=False)
    assert consumers_of(tmp_path / "m") == {"word": PlainText()}


def test_numeric_inputs_have_no_consumer(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.export(str(tmp_path / "m"), verbose=False)
    assert consumers_of(tmp_path / "m") == {}


def test_keys_made_at_run_time_are_not_guessed(tmp_path):
    key = tf.Variable(["dense"])

    def serve(x):
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

    unknown = Unknown("ParseExampleV2 reads it with feature keys that are no constants")
    assert consumers_of(export(serve, tmp_path / "m", key=key)) == {"inputs": unknown}


def two_parsers(first, second):
    def serve(x):
        return {
            "y": tf.io.parse_example(x, first)["dense"],
            "z": parsed_sum(tf.io.parse_example(x, second))["y"],
        }

    return serve


def test_the_specs_of_two_parsers_are_merged_and_the_stricter_one_rules(tmp_path):
    optional = {"dense": tf.io.FixedLenFeature([2], tf.float32, default_value=[1.0, 2.0])}
    path = export(two_parsers(optional, FEATURES), tmp_path / "m")
    assert consumers_of(path) == {"inputs": ExampleParser(SPEC)}


def test_two_parsers_that_disagree_are_refused(tmp_path):
    other = {"dense": tf.io.FixedLenFeature([1], tf.float32)}
    unknown = Unknown("two parsers read feature 'dense' of it in different ways")
    assert consumers_of(export(two_parsers(other, FEATURES), tmp_path / "m")) == {"inputs": unknown}


def test_readers_that_want_different_formats_are_refused(tmp_path):
    def serve(x):
        return {"y": tf.io.parse_example(x, FEATURES)["dense"], "z": tf.io.decode_raw(x, tf.uint8)}

    unknown = Unknown("DecodeRaw and ParseExampleV2 read it, which want different formats")
    assert consumers_of(export(serve, tmp_path / "m")) == {"inputs": unknown}


def test_only_readers_that_the_signature_runs_count(tmp_path):
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
    assert consumers_of(tmp_path / "m", "parse") == {"x": ExampleParser(ONE)}
    assert consumers_of(tmp_path / "m", "length") == {"x": PlainText()}
    assert consumers_of(tmp_path / "m", "fed_below") == {
        "x": Unknown("no op reads it on the way to the outputs")
    }


def test_sparse_and_partitioned_features_show_their_raw_keys(tmp_path):
    features = {
        "s": tf.io.SparseFeature("index", "value", tf.float32, 10),
        "r": tf.io.RaggedFeature(tf.int64, "values", [tf.io.RaggedFeature.RowLengths("lengths")]),
    }
    found = consumers_of(
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


@pytest.mark.parametrize(
    ("consumer", "text"),
    [
        (ExampleParser(SPEC), "tf.Example with 5 features"),
        (ExampleParser(ONE), "tf.Example with 1 feature"),
        (SequenceExampleParser(), "tf.SequenceExample"),
        (Base64(ImageDecoder(("png", "jpeg"))), "base64 of encoded image (png, jpeg)"),
        (TensorParser("int64"), "serialized tensor of int64"),
        (RawDecoder("uint8"), "raw bytes of uint8"),
        (CsvDecoder(("int32", "string")), "CSV with 2 columns"),
        (PlainText(), "plain text"),
        (Compressed("ZLIB"), "compressed bytes (ZLIB)"),
        (Unknown("no op reads it"), "unknown: no op reads it"),
    ],
)
def test_describes_consumers_in_a_few_words(consumer, text):
    assert describe_string_format(consumer) == text


@pytest.mark.skipif(not SAVEDMODELS.exists(), reason="real SavedModels are absent")
def test_the_taxi_model_shows_the_features_its_examples_have():
    meta_graph = read_meta_graph(SAVEDMODELS / "chicago_taxi_estimator" / "1")
    graph = ModelGraph(meta_graph)
    found = [
        find_string_formats(graph, signature_of(meta_graph, key))
        for key in ("classification", "regression", "predict", "serving_default")
    ]
    consumer = found[0]["inputs"]
    assert found[2]["examples"] == found[1]["inputs"] == found[3]["inputs"] == consumer
    raw = gzip.decompress((SAVEDMODELS / "chicago_taxi_examples.tfrecord.gz").read_bytes())
    first = tf.train.Example.FromString(raw[12 : 12 + int(np.frombuffer(raw[:8], "<u8")[0])])
    lists = {"int64_list": "int64", "float_list": "float32", "bytes_list": "string"}
    kinds = {
        key: lists[value.WhichOneof("kind")]
        for key, value in first.features.feature.items()
        if value.ByteSize()
    }
    assert set(consumer.spec) <= set(first.features.feature)
    assert {key: FeatureSpec("sparse", kinds[key]) for key in consumer.spec if key in kinds} == {
        key: spec for key, spec in consumer.spec.items() if key in kinds
    }


@pytest.mark.skipif(not SAVEDMODELS.exists(), reason="real SavedModels are absent")
@pytest.mark.parametrize("key", ["classify_x_to_y", "regress_x_to_y", "regress_x_to_y2"])
def test_half_plus_two_reads_two_floats_from_examples(key):
    spec = {"x": FeatureSpec("dense", "float32", (1,)), "x2": FeatureSpec("dense", "float32", (1,))}
    found = consumers_of(SAVEDMODELS / "half_plus_two_tf1" / "1", key)
    assert {name: set(consumer.spec) for name, consumer in found.items()} == {"inputs": {"x", "x2"}}
    assert {k: (s.kind, s.dtype, s.shape) for k, s in found["inputs"].spec.items()} == {
        k: (s.kind, s.dtype, s.shape) for k, s in spec.items()
    }
