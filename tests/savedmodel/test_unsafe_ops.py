"""Ops that act outside of a model are named, wherever a load or a replay would run them, and no others."""

from __future__ import annotations

import pathlib
import re

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf

import keras_warmup as kw
from keras_warmup._protos import registered_op
from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.savedmodel.unsafe_ops import (
    _EFFECTS,
    UnsafeOp,
    find_unsafe_ops,
    render_unsafe_ops,
)

TEXT = tf.TensorSpec([None], tf.string, "x")


def save(function, path, specs=(TEXT,), **tracked) -> str:
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    module.serve = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    return str(path)


def effects_of(export_dir) -> set[tuple[str, str]]:
    return {(one.op, one.effect) for one in kw.inspect(export_dir).unsafe_ops}


def read_file(x):
    return {"y": tf.map_fn(tf.io.read_file, x)}


def write_file(x):
    tf.io.write_file("/nonexistent/keras_warmup", x[0])
    return {"y": x}


def print_to_stderr(x):
    tf.print(tf.shape(x))
    return {"y": x}


def print_to_a_file(x):
    tf.print(tf.shape(x), output_stream="file:///nonexistent/keras_warmup")
    return {"y": x}


def call_python(x):
    return {"y": tf.numpy_function(lambda text: text, [x], tf.string)}


def read_records(x):
    dataset = tf.data.TFRecordDataset(x)
    return {"y": dataset.reduce(0, lambda count, _: count + 1)}


def cache_to_a_file(x):
    dataset = tf.data.Dataset.from_tensor_slices(x).cache("/nonexistent/keras_warmup")
    return {"y": dataset.reduce(0, lambda count, _: count + 1)}


def read_in_a_branch(x):
    return {"y": tf.cond(tf.size(x) > 3, lambda: tf.io.read_file(x[0]), lambda: x[0])}


def restore_another_checkpoint(x):
    (value,) = tf.raw_ops.RestoreV2(
        prefix=x[0], tensor_names=["v"], shape_and_slices=[""], dtypes=[tf.float32]
    )
    return {"y": value}


UNSAFE = {
    read_file: {("ReadFile", "reads files")},
    write_file: {("WriteFile", "writes files")},
    print_to_stderr: {("PrintV2", "prints")},
    print_to_a_file: {("PrintV2", "writes files")},
    call_python: {("PyFunc", "runs Python")},
    read_records: {("TFRecordDataset", "reads files")},
    cache_to_a_file: {("CacheDatasetV2", "writes files")},
    read_in_a_branch: {("ReadFile", "reads files")},
    restore_another_checkpoint: {("RestoreV2", "reads files")},
}


@pytest.mark.parametrize(
    ("function", "effects"), UNSAFE.items(), ids=[one.__name__ for one in UNSAFE]
)
def test_ops_that_act_outside_are_found_in_a_signature(function, effects, tmp_path):
    assert effects_of(save(function, tmp_path / "1")) == effects


def test_the_place_of_each_is_told(tmp_path):
    (found,) = kw.inspect(save(write_file, tmp_path / "1")).unsafe_ops
    assert re.fullmatch(
        r"signature 'serving_default', function '__inference_write_file_\d+', node 'WriteFile'",
        found.where,
    )


class ReadsAtLoad(tf.Module):
    """Its init op reads a file into a table."""

    def __init__(self, path: str) -> None:
        super().__init__()
        keys = tf.lookup.TextFileInitializer(
            path,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self.table = tf.lookup.StaticHashTable(keys, -1)

    @tf.function(input_signature=[TEXT])
    def serve(self, x):
        return {"y": self.table.lookup(x)}


@pytest.fixture
def vocabulary_dir(tmp_path) -> str:
    (tmp_path / "vocabulary").write_text("a\nb\n")
    module = ReadsAtLoad(str(tmp_path / "vocabulary"))
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.serve})
    return str(tmp_path / "1")


def test_a_vocabulary_of_the_models_own_is_not_named(vocabulary_dir):
    assert kw.inspect(vocabulary_dir).unsafe_ops == ()


def rewritten(export_dir, change):
    """The graph of a SavedModel, and its signatures, after a change."""
    meta_graph = read_meta_graph(export_dir)
    change(meta_graph)
    return find_unsafe_ops(ModelGraph(meta_graph), read_signatures(meta_graph))


def forget_assets(meta_graph):
    del meta_graph.asset_file_def[:]


def leave_assets(meta_graph):
    meta_graph.asset_file_def[0].filename = "../../etc/passwd"


@pytest.mark.parametrize("change", [forget_assets, leave_assets])
def test_a_vocabulary_of_another_place_is_named(change, vocabulary_dir):
    (found,) = rewritten(vocabulary_dir, change)
    assert (found.op, found.effect) == ("InitializeTableFromTextFileV2", "reads files")
    assert found.where.startswith("init op, function ")


def test_a_restore_op_that_reads_another_prefix_is_named(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.export(str(tmp_path / "1"), verbose=False)

    def read_elsewhere(meta_graph):
        (prefix,) = [
            node
            for node in meta_graph.graph_def.node
            if node.name == meta_graph.saver_def.filename_tensor_name.split(":")[0]
        ]
        other = meta_graph.graph_def.node.add(name="elsewhere", op="Const")
        other.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(b"/nonexistent"))
        for node in meta_graph.graph_def.node:
            inputs = [("elsewhere" if tensor == prefix.name else tensor) for tensor in node.input]
            del node.input[:]
            node.input.extend(inputs)

    assert rewritten(str(tmp_path / "1"), lambda meta_graph: None) == ()
    assert {
        (one.op, one.where.split(",")[0]) for one in rewritten(str(tmp_path / "1"), read_elsewhere)
    } == {("RestoreV2", "restore op")}


def test_an_op_of_another_library_is_named(tmp_path):
    export_dir = save(lambda x: {"y": tf.strings.upper(x)}, tmp_path / "1")

    def replace(meta_graph):
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "StringUpper":
                    node.op = "Acme>Upper"

    assert [(one.op, one.effect) for one in rewritten(export_dir, replace)] == [
        ("Acme>Upper", "unknown op")
    ]


def keras_dense(path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).export(path, verbose=False)


def keras_lookup(path):
    words = keras.Input((1,), dtype="string")
    looked_up = keras.layers.StringLookup(vocabulary=["a", "b"])(words)
    keras.Model(words, keras.layers.Embedding(3, 2)(looked_up)).export(path, verbose=False)


def keras_text_vectorization(path):
    layer = keras.layers.TextVectorization(output_mode="int")
    layer.adapt(["a b", "c"])
    words = keras.Input((), dtype="string")
    keras.Model(words, layer(words)).export(path, verbose=False)


def keras_lstm_saved(path):
    model = keras.Sequential(
        [keras.Input((None, 2)), keras.layers.LSTM(3), keras.layers.Dropout(0.5)]
    )
    kw.save(model, path, data=np.zeros([2, 3, 2], np.float32))


def cache_in_memory(path):
    save(
        lambda x: {
            "y": tf.data.Dataset.from_tensor_slices(x).cache().reduce(0, lambda n, _: n + 1)
        },
        path,
    )


ORDINARY = (keras_dense, keras_lookup, keras_text_vectorization, keras_lstm_saved, cache_in_memory)


@pytest.mark.parametrize("export", ORDINARY)
def test_ordinary_exports_have_none(export, tmp_path):
    export(str(tmp_path / "1"))
    assert kw.inspect(tmp_path / "1").unsafe_ops == ()


@pytest.mark.parametrize("name", ["chicago_taxi_estimator", "half_plus_two_tf1"])
def test_estimators_and_tf1_exports_have_none(name, saved_models: pathlib.Path):
    assert kw.inspect(saved_models / name / "1").unsafe_ops == ()


def test_the_sentence_escapes_names_and_counts_what_it_leaves_out():
    assert render_unsafe_ops(()) == ""
    one = UnsafeOp("Read\x1b", "unknown op", "init op, node 'n'")
    assert render_unsafe_ops([one]) == (
        "The model runs ops that act outside of it: 'Read\\x1b' (unknown op: init op, node 'n'). Run it only if you trust it."
    )
    assert " and 3 more. Run it" in render_unsafe_ops([one] * 8)


def test_inspect_tells_and_prints_them(tmp_path):
    inspection = kw.inspect(save(print_to_stderr, tmp_path / "1"))
    (found,) = inspection.to_dict()["unsafe_ops"]
    assert (found["op"], found["effect"]) == ("PrintV2", "prints")
    console = rich.console.Console(width=1000)
    with console.capture() as captured:
        console.print(inspection)
    assert (
        "unsafe: The model runs ops that act outside of it: 'PrintV2' (prints: signature"
        in captured.get()
    )


# Ops with an input or attribute of a telling name that do nothing outside of the graph: they pass on what another op opened,
# make a dataset or table in memory, speak of "file" or "path" in another sense, or need a TPU.
HARMLESS = re.compile(
    r"TPU|Xla|BoostedTrees|CudnnRNN|Collective|InTopK|CTCBeamSearchDecoder|ApproxTopK|Copy(Host)?$|AutoShardDataset"
    r"|SetStatsAggregatorDataset|Reader(Num|Read|Reset|Restore|Serialize)|TensorSliceDataset"
)
TELLING = re.compile(
    r"file|path|host|address|target|url|dir|protocol|server|worker|job|python|token|tensor_name|stream|descriptor_source"
    r"|prefix|writer|reader|logdir|db_uri|driver",
    re.IGNORECASE,
)


def test_no_op_of_the_registry_with_a_telling_name_is_overlooked():
    overlooked = []
    for op in dir(tf.raw_ops):
        definition = registered_op(op)
        if (
            definition is None
            or HARMLESS.search(op)
            or any(pattern.fullmatch(op) for _, pattern in _EFFECTS)
        ):
            continue
        names = [one.name for one in (*definition.input_arg, *definition.attr)]
        if any(map(TELLING.search, names)):
            overlooked.append(op)
    assert overlooked == []
