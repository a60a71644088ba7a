"""Tests of `keras_warmup.savedmodel.optimized_graph`: a smaller graph, the same outputs."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, NodeDef, SavedModel
from keras_warmup.pipeline.freeze import freeze_saved_model
from keras_warmup.pipeline.proof import same_outputs
from keras_warmup.savedmodel.optimized_graph import optimize_graph
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.serving.replay import open_session
from tests.builders import predict_log, save_function


def freeze(source: Any, tmp_path: pathlib.Path) -> str:
    directory = tmp_path / "frozen"
    directory.mkdir()
    freeze_saved_model(str(source), str(directory))
    return str(directory)


def ops_of(meta_graph: MetaGraphDef) -> list[str]:
    graph_def = meta_graph.graph_def
    nodes: list[NodeDef] = list(graph_def.node)
    nodes += [node for function in graph_def.library.function for node in function.node_def]
    return [node.op for node in nodes]


def outputs_of(export_dir: Any, **inputs: Any) -> Any:
    with open_session(str(export_dir)) as session:
        return session.replay(predict_log(**inputs)).outputs


def test_functions_are_inlined_and_constants_folded(tmp_path: pathlib.Path) -> None:
    weights = tf.Variable(np.arange(12, dtype="float32").reshape(4, 3))
    scale = tf.Variable([2.0, 3.0, 4.0])

    @tf.function
    def inner(x: tf.Tensor) -> tf.Tensor:
        return tf.identity(x) @ (weights * scale) + tf.reduce_sum(scale)

    source = save_function(
        lambda x: {"y": inner(inner(x)[:, :2] @ weights[:2, :] @ tf.ones([3, 4]))},
        tmp_path / "1",
        [tf.TensorSpec([None, 4], tf.float32, "x")],
        weights=weights,
        scale=scale,
    )
    frozen = freeze(source, tmp_path)
    before, after = ops_of(read_meta_graph(source)), ops_of(read_meta_graph(frozen))
    assert "StatefulPartitionedCall" in before and before.count("Mul") == 1
    assert not {"StatefulPartitionedCall", "PartitionedCall", "Mul", "Identity"} & set(after)
    # What a server of another machine or version may lack.
    assert not [op for op in after if op.startswith("_")]
    x = np.random.default_rng(0).random((2, 4), "float32")
    assert same_outputs(outputs_of(source, x=x), outputs_of(frozen, x=x))


def test_loops_run_in_a_session_and_in_a_loader(tmp_path: pathlib.Path) -> None:
    weights = tf.Variable(2.0)

    def power(x: tf.Tensor) -> dict[str, tf.Tensor]:
        total = x
        for _ in tf.range(tf.shape(x)[0]):
            if tf.reduce_sum(total) < 50.0:
                total *= weights
        return {"y": total}

    source = save_function(
        power,
        tmp_path / "1",
        [tf.TensorSpec([None, 1], tf.float32, "x")],
        weights=weights,
    )
    frozen = freeze(source, tmp_path)
    loaded = tf.saved_model.load(frozen).signatures["serving_default"]
    for rows in (1, 3, 8):
        x = np.ones((rows, 1), "float32")
        (before,), (after,) = outputs_of(source, x=x).values(), outputs_of(frozen, x=x).values()
        np.testing.assert_array_equal(before, after)
        np.testing.assert_array_equal(before, loaded(x=tf.constant(x))["y"])


def test_what_is_fed_is_not_folded(tmp_path: pathlib.Path) -> None:
    source = str(tmp_path / "1")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        size = tf.compat.v1.placeholder_with_default(tf.constant(2.0), [], name="size")
        # A server feeds any tensor that a SignatureDef names.
        hidden = tf.add(tf.constant([1.0, 2.0]), tf.constant(0.5), name="hidden")
        weights = tf.compat.v1.get_variable("weights", initializer=[10.0, 20.0])
        session.run(weights.initializer)
        inputs = {"size": size, "hidden": hidden}
        tf.compat.v1.saved_model.simple_save(
            session, source, inputs, {"y": hidden * size + weights}
        )
    frozen = freeze(source, tmp_path)
    fed = {"size": np.float32(3.0), "hidden": np.array([1.0, 1.0], "float32")}
    (after,) = outputs_of(frozen, **fed).values()
    np.testing.assert_array_equal(after, [13.0, 23.0])
    ops = {node.name: node.op for node in read_meta_graph(frozen).graph_def.node}
    assert ops["size"] == "PlaceholderWithDefault"


@pytest.mark.parametrize("case", ["alternatives", "several outputs", "no input", "no output"])
def test_a_graph_stays_where_it_cannot_be_optimized(case: str) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [4], name="x")
        first, _ = tf.split(x, 2, name="split")
        y = tf.identity(first, name="y")
    meta_graph = MetaGraphDef(graph_def=graph.as_graph_def())
    signature = meta_graph.signature_def["serving_default"]
    signature.inputs["x"].name = "split:0" if case == "several outputs" else "x:0"
    signature.outputs["y"].name = y.name
    if case == "alternatives":
        function = meta_graph.graph_def.library.function.add()
        function.signature.name = "one"
        function.attr["api_implements"].s = b"layer"
    if case in ("no input", "no output"):
        source = "nothing" if case == "no input" else "split:7"
        broken = meta_graph.graph_def.node.add(name="broken", op="Identity", input=[source])
        broken.attr["T"].type = tf.float32.as_datatype_enum
        signature.outputs["broken"].name = "broken:0"
    before = meta_graph.SerializeToString(deterministic=True)
    assert not optimize_graph(meta_graph, ())
    assert meta_graph.SerializeToString(deterministic=True) == before


def test_a_colocation_with_a_node_that_is_gone_is_dropped() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None], name="x")
        gone = tf.identity(tf.constant(1.0), name="gone")
        with tf.compat.v1.colocate_with(gone):
            tf.multiply(x, gone, name="y")
    meta_graph = MetaGraphDef(graph_def=graph.as_graph_def())
    signature = meta_graph.signature_def["serving_default"]
    signature.inputs["x"].name, signature.outputs["y"].name = "x:0", "y:0"
    assert optimize_graph(meta_graph, ())
    names = {node.name for node in meta_graph.graph_def.node}
    assert "gone" not in names
    with tf.Graph().as_default():
        tf.import_graph_def(meta_graph.graph_def)
    assert SavedModel(meta_graphs=[meta_graph]).ByteSize()
