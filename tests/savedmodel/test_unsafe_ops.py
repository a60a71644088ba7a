"""Tests of `keras_warmup.savedmodel.unsafe_ops`."""

from __future__ import annotations

import os
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf

import keras_warmup as kw
from keras_warmup._protos import MetaGraphDef, registered_op
from keras_warmup.errors import UnsafeOpsError
from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.savedmodel.unsafe_ops import (
    EFFECTS,
    UnsafeOp,
    check_saved_model,
    find_unsafe_ops,
    render_unsafe_ops,
)
from tests.builders import save_function

TEXT = tf.TensorSpec([None], tf.string, "x")


def save(function: Callable[[Any], Any], path: str | os.PathLike[str]) -> str:
    return save_function(function, path, [TEXT])


def effects_of(export_dir: str) -> set[tuple[str, str]]:
    return {(one.op, one.effect) for one in kw.inspect(export_dir).unsafe_ops}


def read_file(x: Any) -> Any:
    return {"y": tf.map_fn(tf.io.read_file, x)}


def write_file(x: Any) -> Any:
    tf.io.write_file("/nonexistent/keras_warmup", x[0])
    return {"y": x}


def print_to_stderr(x: Any) -> Any:
    tf.print(tf.shape(x))
    return {"y": x}


def print_to_a_file(x: Any) -> Any:
    tf.print(tf.shape(x), output_stream="file:///nonexistent/keras_warmup")
    return {"y": x}


def call_python(x: Any) -> Any:
    return {"y": tf.numpy_function(lambda text: text, [x], tf.string)}


def read_records(x: Any) -> Any:
    dataset = tf.data.TFRecordDataset(x)
    return {"y": dataset.reduce(0, lambda count, _: count + 1)}


def cache_to_a_file(x: Any) -> Any:
    dataset = tf.data.Dataset.from_tensor_slices(x).cache("/nonexistent/keras_warmup")
    return {"y": dataset.reduce(0, lambda count, _: count + 1)}


def read_in_a_branch(x: Any) -> Any:
    return {"y": tf.cond(tf.size(x) > 3, lambda: tf.io.read_file(x[0]), lambda: x[0])}


def restore_another_checkpoint(x: Any) -> Any:
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
def test_ops_that_act_outside_are_found_in_a_signature(
    function: Callable[[Any], Any], effects: set[tuple[str, str]], tmp_path: pathlib.Path
) -> None:
    assert effects_of(save(function, tmp_path / "1")) == effects


def test_each_is_reported_with_its_place(tmp_path: pathlib.Path) -> None:
    (found,) = kw.inspect(save(write_file, tmp_path / "1")).unsafe_ops
    assert re.fullmatch(
        r"signature 'serving_default', function '__inference_write_file_\d+', node 'WriteFile'",
        found.where,
    )


class ReadsAtLoad(tf.Module):
    """A module whose init op reads a file into a table."""

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
    def serve(self, x: Any) -> Any:
        return {"y": self.table.lookup(x)}


@pytest.fixture
def vocabulary_dir(tmp_path: pathlib.Path) -> str:
    (tmp_path / "vocabulary").write_text("a\nb\n")
    module = ReadsAtLoad(str(tmp_path / "vocabulary"))
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.serve})
    return str(tmp_path / "1")


def test_a_vocabulary_of_the_model_itself_is_not_named(vocabulary_dir: str) -> None:
    assert kw.inspect(vocabulary_dir).unsafe_ops == ()


def unsafe_ops_after(
    change: Callable[[MetaGraphDef], None], export_dir: str
) -> tuple[UnsafeOp, ...]:
    """Finds the unsafe ops of a SavedModel after a change of its meta graph."""
    meta_graph = read_meta_graph(export_dir)
    change(meta_graph)
    return find_unsafe_ops(ModelGraph(meta_graph), read_signatures(meta_graph))


def forget_assets(meta_graph: MetaGraphDef) -> None:
    del meta_graph.asset_file_def[:]


def leave_assets(meta_graph: MetaGraphDef) -> None:
    meta_graph.asset_file_def[0].filename = "../../etc/passwd"


@pytest.mark.parametrize("change", [forget_assets, leave_assets])
def test_a_vocabulary_of_another_place_is_named(
    change: Callable[[MetaGraphDef], None], vocabulary_dir: str
) -> None:
    (found,) = unsafe_ops_after(change, vocabulary_dir)
    assert (found.op, found.effect) == ("InitializeTableFromTextFileV2", "reads files")
    assert found.where.startswith("init op, function ")


def test_a_restore_op_that_reads_another_prefix_is_named(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.export(str(tmp_path / "1"), verbose=False)

    def read_elsewhere(meta_graph: MetaGraphDef) -> None:
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

    assert unsafe_ops_after(lambda meta_graph: None, str(tmp_path / "1")) == ()
    found = unsafe_ops_after(read_elsewhere, str(tmp_path / "1"))
    assert {(one.op, one.where.split(",")[0]) for one in found} == {("RestoreV2", "restore op")}


def test_an_op_of_another_library_is_named(tmp_path: pathlib.Path) -> None:
    export_dir = save(lambda x: {"y": tf.strings.upper(x)}, tmp_path / "1")

    def replace(meta_graph: MetaGraphDef) -> None:
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "StringUpper":
                    node.op = "Acme>Upper"

    (found,) = unsafe_ops_after(replace, export_dir)
    assert (found.op, found.effect) == ("Acme>Upper", "unknown op")


def keras_dense(path: str) -> None:
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).export(path, verbose=False)


def keras_lookup(path: str) -> None:
    words = keras.Input((1,), dtype="string")
    looked_up = keras.layers.StringLookup(vocabulary=["a", "b"])(words)
    keras.Model(words, keras.layers.Embedding(3, 2)(looked_up)).export(path, verbose=False)


def keras_text_vectorization(path: str) -> None:
    layer = keras.layers.TextVectorization(output_mode="int")
    layer.adapt(["a b", "c"])
    words = keras.Input((), dtype="string")
    keras.Model(words, layer(words)).export(path, verbose=False)


def keras_lstm_saved(path: str) -> None:
    model = keras.Sequential(
        [keras.Input((None, 2)), keras.layers.LSTM(3), keras.layers.Dropout(0.5)]
    )
    kw.save(model, path, data=np.zeros([2, 3, 2], np.float32))


def cache_in_memory(path: str) -> None:
    save(
        lambda x: {
            "y": tf.data.Dataset.from_tensor_slices(x).cache().reduce(0, lambda n, _: n + 1)
        },
        path,
    )


ORDINARY = (keras_dense, keras_lookup, keras_text_vectorization, keras_lstm_saved, cache_in_memory)


@pytest.mark.parametrize("export", ORDINARY)
def test_ordinary_exports_have_none(export: Callable[[str], None], tmp_path: pathlib.Path) -> None:
    export(str(tmp_path / "1"))
    assert kw.inspect(tmp_path / "1").unsafe_ops == ()


@pytest.mark.parametrize("name", ["chicago_taxi_estimator", "half_plus_two_tf1"])
def test_estimators_and_tf1_exports_have_none(name: str, saved_models: pathlib.Path) -> None:
    assert kw.inspect(saved_models / name / "1").unsafe_ops == ()


def test_the_sentence_escapes_names_and_counts_what_it_leaves_out() -> None:
    one = UnsafeOp("Read\x1b", "unknown op", "init op, node 'n'")
    assert render_unsafe_ops([one]) == (
        "The model runs ops that act outside of it: 'Read\\x1b' (unknown op: init op, node 'n'). "
        "Run it only if you trust it."
    )
    assert " and 3 more. Run it" in render_unsafe_ops([one] * 8)


def test_inspect_reports_and_prints_them(tmp_path: pathlib.Path) -> None:
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


def test_a_model_that_is_about_to_be_run_is_warned_about_or_refused(tmp_path: pathlib.Path) -> None:
    export_dir = save(write_file, tmp_path / "1")
    with pytest.warns(UserWarning, match=r"will be run. The model runs ops that act outside of it"):
        check_saved_model(export_dir, refuse=False)
    with pytest.raises(UnsafeOpsError, match=r"nothing was run. The model runs ops"):
        check_saved_model(export_dir, refuse=True)
    harmless = save(lambda x: {"y": tf.strings.upper(x)}, tmp_path / "2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_saved_model(harmless, refuse=True)


# Ops with an input or attribute of a telling name that do nothing outside of the graph: they pass
# on what another op opened, make a dataset or table in memory, use "file" or "path" in another
# sense, or need a TPU.
HARMLESS = re.compile(
    r"TPU|Xla|BoostedTrees|CudnnRNN|Collective|InTopK|CTCBeamSearchDecoder|ApproxTopK|Copy(Host)?$"
    r"|AutoShardDataset|SetStatsAggregatorDataset|Reader(Num|Read|Reset|Restore|Serialize)"
    r"|TensorSliceDataset"
)
TELLING = re.compile(
    r"file|path|host|address|target|url|dir|protocol|server|worker|job|python|token|tensor_name"
    r"|stream|descriptor_source|prefix|writer|reader|logdir|db_uri|driver",
    re.IGNORECASE,
)


def test_no_op_of_the_registry_with_a_telling_name_is_overlooked() -> None:
    overlooked = []
    for op in dir(tf.raw_ops):
        definition = registered_op(op)
        if (
            definition is None
            or HARMLESS.search(op)
            or any(pattern.fullmatch(op) for _, pattern in EFFECTS)
        ):
            continue
        names = [one.name for one in (*definition.input_arg, *definition.attr)]
        if any(map(TELLING.search, names)):
            overlooked.append(op)
    assert overlooked == []
