"""Tests of `keras_warmup.savedmodel.served_graph`: what a server runs is kept, and nothing else."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup._protos import GraphDef, MetaGraphDef
from keras_warmup.savedmodel.served_graph import (
    copy_restoring_part,
    copy_served_part,
    drop_empty_init_op,
    drop_saving_part,
    keep_equal_alternatives,
)
from keras_warmup.savedmodel.signatures import INIT_OP_KEY, read_meta_graph

X = tf.TensorSpec([None, 3], tf.float32, "x")


@pytest.fixture(scope="module")
def meta_graph(tmp_path_factory: pytest.TempPathFactory) -> MetaGraphDef:
    path = tmp_path_factory.mktemp("export") / "1"
    keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2)]).export(
        path, verbose=False
    )
    return read_meta_graph(path)


def served_part(meta_graph: MetaGraphDef) -> MetaGraphDef:
    served = MetaGraphDef()
    copy_served_part(meta_graph, served)
    return served


def functions_of(graph_def: GraphDef) -> set[str]:
    return {function.signature.name for function in graph_def.library.function}


def test_the_served_part_can_be_imported_and_has_no_saver(meta_graph: MetaGraphDef) -> None:
    served = served_part(meta_graph)
    with tf.Graph().as_default():
        tf.graph_util.import_graph_def(served.graph_def, name="")
    assert not served.HasField("saver_def")
    assert not served.HasField("object_graph_def")
    assert served.meta_info_def.tags == ["serve"]
    assert len(served.graph_def.node) < len(meta_graph.graph_def.node)
    assert functions_of(served.graph_def) < functions_of(meta_graph.graph_def)
    ops = {node.op for node in served.graph_def.node}
    assert {one.name for one in served.meta_info_def.stripped_op_list.op} >= ops


def test_the_source_is_not_changed(meta_graph: MetaGraphDef) -> None:
    before = meta_graph.SerializeToString(deterministic=True)
    served_part(meta_graph)
    assert meta_graph.SerializeToString(deterministic=True) == before


def test_an_input_that_no_output_depends_on_is_kept(tmp_path: pathlib.Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        used, unused = (tf.compat.v1.placeholder(tf.float32, [None], one) for one in "ab")
        tf.compat.v1.saved_model.simple_save(
            session, str(tmp_path / "1"), {"a": used, "b": unused}, {"y": used * 2.0}
        )
    served = served_part(read_meta_graph(tmp_path / "1"))
    assert {"a", "b"} <= {node.name for node in served.graph_def.node}


def test_the_node_of_a_colocation_is_kept(tmp_path: pathlib.Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        anchor = tf.constant(1.0, name="anchor")
        with tf.compat.v1.colocate_with(anchor):
            y = x * 2.0
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "1"), {"x": x}, {"y": y})
    served = served_part(read_meta_graph(tmp_path / "1"))
    assert "anchor" in {node.name for node in served.graph_def.node}


def test_the_train_op_and_collections_of_training_are_left_out() -> None:
    meta_graph = MetaGraphDef()
    meta_graph.signature_def["__saved_model_train_op"].outputs["op"].name = "train"
    meta_graph.signature_def["s"].outputs["y"].name = "y:0"
    meta_graph.collection_def["trainable_variables"].bytes_list.value.append(b"v")
    meta_graph.collection_def["legacy_init_op"].node_list.value.append("init")
    for name in ("train", "y", "init"):
        meta_graph.graph_def.node.add(name=name, op="NoOp")
    served = served_part(meta_graph)
    assert set(served.signature_def) == {"s"}
    assert set(served.collection_def) == {"legacy_init_op"}
    assert {node.name for node in served.graph_def.node} == {"y", "init"}


def with_alternatives(types: dict[str, int]) -> MetaGraphDef:
    """Builds a graph that calls the first of some alternative functions, of one argument each."""
    meta_graph = MetaGraphDef()
    first = next(iter(types))
    call = meta_graph.graph_def.node.add(name="y", op="PartitionedCall")
    call.attr["f"].func.name = first
    meta_graph.signature_def["s"].outputs["y"].name = "y:0"
    for name, dtype in types.items():
        function = meta_graph.graph_def.library.function.add()
        function.signature.name = name
        function.signature.input_arg.add(name="a", type=dtype)
        function.attr["api_implements"].s = b"lstm"
    meta_graph.graph_def.library.function.add().signature.name = "unused"
    return meta_graph


def alternatives_of(graph_def: GraphDef) -> list[str]:
    return [
        function.signature.name
        for function in graph_def.library.function
        if "api_implements" in function.attr
    ]


def test_alternatives_of_a_called_function_are_kept() -> None:
    served = served_part(with_alternatives({"cpu": 1, "gpu": 1}))
    assert functions_of(served.graph_def) == {"cpu", "gpu"}
    keep_equal_alternatives(served.graph_def)
    assert alternatives_of(served.graph_def) == ["cpu", "gpu"]


def test_functions_with_other_arguments_are_no_alternatives_any_more() -> None:
    graph_def = with_alternatives({"cpu": 1, "gpu": 20}).graph_def
    keep_equal_alternatives(graph_def)
    assert alternatives_of(graph_def) == []


def test_the_restoring_part_restores_and_nothing_else(
    meta_graph: MetaGraphDef, tmp_path: pathlib.Path
) -> None:
    handles = [node.name for node in meta_graph.graph_def.node if node.op == "VarHandleOp"]
    restoring = MetaGraphDef()
    copy_restoring_part(meta_graph, handles, restoring)
    assert restoring.saver_def == meta_graph.saver_def
    assert not restoring.signature_def
    assert set(handles) <= {node.name for node in restoring.graph_def.node}
    assert "SaveV2" not in str(restoring.graph_def)


def test_nodes_have_no_debug_information(tmp_path: pathlib.Path) -> None:
    @tf.function(input_signature=[X])
    def serve(x: Any) -> Any:
        return {"y": x * np.float32(2.0)}

    module = tf.Module()
    module.serve = serve
    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": serve})
    meta_graph = read_meta_graph(tmp_path / "1")
    for node in meta_graph.graph_def.node:
        node.experimental_debug_info.original_node_names.append("secret")
    assert "secret" not in str(served_part(meta_graph))


# -- exports that stay loadable --------------------------------------------------------------------

SAVING_OPS = {"SaveV2", "MergeV2Checkpoints", "ShardedFilename", "DisableCopyOnRead"}


def ops_of(meta_graph: MetaGraphDef) -> set[str]:
    graph_def = meta_graph.graph_def
    nodes = [
        *graph_def.node,
        *(node for one in graph_def.library.function for node in one.node_def),
    ]
    return {node.op for node in nodes}


def test_an_export_has_no_op_that_only_saves_and_loads_as_before(tmp_path: pathlib.Path) -> None:
    text = keras.Input((1,), dtype="string", name="x")
    index = keras.layers.StringLookup(vocabulary=["a", "b"])(text)
    hidden = keras.layers.Flatten()(keras.layers.Embedding(3, 2)(index))
    model = keras.Model(text, keras.layers.Dense(2)(hidden))
    words = np.array([["a"], ["c"], ["b"]], object)
    model.export(tmp_path / "keras", verbose=False)
    kw.export_with_warmup(model, tmp_path / "1", data=words)
    plain, ours = read_meta_graph(tmp_path / "keras"), read_meta_graph(tmp_path / "1")
    assert ops_of(plain) >= SAVING_OPS
    assert ops_of(ours).isdisjoint(SAVING_OPS)
    assert SAVING_OPS.isdisjoint(op.name for op in ours.meta_info_def.stripped_op_list.op)
    assert INIT_OP_KEY in ours.signature_def  # it fills the table
    rows = tf.constant(words)
    loaded = tf.saved_model.load(tmp_path / "1")
    np.testing.assert_array_equal(loaded.serve(rows), model(rows))
    # What was loaded can be saved again, and is a whole model then.
    tf.saved_model.save(loaded, tmp_path / "again", signatures=loaded.signatures)
    again = tf.saved_model.load(tmp_path / "again")
    np.testing.assert_array_equal(again.signatures["serve"](x=rows)["output_0"], model(rows))
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definition = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "1"))
        signature = definition.signature_def["serving_default"]
        outputs = session.run(
            signature.outputs["output_0"].name, {signature.inputs["x"].name: words}
        )
    np.testing.assert_allclose(outputs, model(rows), rtol=1e-6)


@pytest.mark.parametrize("freeze", [False, True])
def test_an_init_op_that_does_nothing_is_left_out(freeze: bool, tmp_path: pathlib.Path) -> None:
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Dense(2)(x))
    rows = np.ones((2, 3), "float32")
    model.export(tmp_path / "keras", verbose=False)
    kw.export_with_warmup(model, tmp_path / "1", data=rows, warmup={"freeze": freeze})
    assert INIT_OP_KEY in read_meta_graph(tmp_path / "keras").signature_def
    assert INIT_OP_KEY not in read_meta_graph(tmp_path / "1").signature_def
    loaded = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    np.testing.assert_allclose(loaded(x=rows)["output_0"], model(rows), rtol=1e-5)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "1"))
    assert kw.verify(tmp_path / "1").ok


@pytest.mark.parametrize("case", ["input", "op", "collection", "no node"])
def test_an_init_op_that_may_do_something_is_left(case: str) -> None:
    graph = MetaGraphDef()
    graph.signature_def[INIT_OP_KEY].outputs[INIT_OP_KEY].name = "init"
    if case != "no node":
        node = graph.graph_def.node.add(name="init", op="NoOp" if case != "op" else "Fill")
        node.input.extend(["^table"] if case == "input" else [])
    if case == "collection":
        graph.collection_def["legacy_init_op"].node_list.value.append("fill")
        graph.graph_def.node.add(name="fill", op="Fill")
    assert not drop_empty_init_op(graph)
    assert INIT_OP_KEY in graph.signature_def


def test_a_saving_part_that_something_else_reads_is_left() -> None:
    graph = MetaGraphDef()
    assert not drop_saving_part(graph)
    graph.object_graph_def.nodes.add()
    graph.saver_def.save_tensor_name = "save:0"
    graph.saver_def.restore_op_name = "restore"
    graph.graph_def.node.add(name="save", op="NoOp")
    graph.graph_def.node.add(name="restore", op="NoOp", input=["^save"])
    before = graph.SerializeToString()
    assert not drop_saving_part(graph)
    assert graph.SerializeToString() == before
