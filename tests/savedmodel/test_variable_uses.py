"""Tests of `keras_warmup.savedmodel.variable_uses`: which variables can become constants."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, NodeDef
from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.served_graph import copy_served_part
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.savedmodel.variable_uses import (
    VariableUse,
    find_variable_uses,
    split_gathers,
    variables_in_functions,
)
from tests.builders import save_function

X = tf.TensorSpec([None], tf.float32, "x")


def graph_of(function: Any, tmp_path: pathlib.Path, **tracked: Any) -> ModelGraph:
    path = save_function(function, tmp_path / "1", [X], **tracked)
    served = MetaGraphDef()
    copy_served_part(read_meta_graph(path), served)
    return ModelGraph(served)


def uses_by_name(graph: ModelGraph) -> dict[str, VariableUse]:
    """Returns the uses by the name that the test gave to the variable."""
    return {name.partition("/")[0]: use for name, use in find_variable_uses(graph).items()}


def test_reads_have_no_obstacle(tmp_path: pathlib.Path) -> None:
    one, two = tf.Variable(1.0, name="one"), tf.Variable(2.0, name="two")
    uses = uses_by_name(graph_of(lambda x: {"y": x * one + two}, tmp_path, one=one, two=two))
    assert {name: use.obstacle for name, use in uses.items()} == {"one": "", "two": ""}
    assert uses["one"].group != uses["two"].group


@pytest.mark.parametrize(
    ("write", "op"),
    [
        (lambda v: v.assign(tf.ones_like(v)), "AssignVariableOp"),
        (lambda v: v.assign_sub(tf.ones_like(v)), "AssignSubVariableOp"),
        (
            lambda v: v.scatter_add(tf.IndexedSlices(tf.ones([1]), tf.constant([0]))),
            "ResourceScatterAdd",
        ),
    ],
)
def test_a_write_is_an_obstacle(write: Any, op: str, tmp_path: pathlib.Path) -> None:
    weights, other = tf.Variable([1.0, 2.0], name="weights"), tf.Variable(1.0, name="other")

    def serve(x: Any) -> Any:
        write(weights)
        return {"y": x * other + tf.reduce_sum(weights)}

    uses = uses_by_name(graph_of(serve, tmp_path, weights=weights, other=other))
    assert uses["weights"].obstacle == f"the op {op} writes it"
    assert uses["other"].obstacle == ""


def test_an_op_that_is_not_converted_is_an_obstacle(tmp_path: pathlib.Path) -> None:
    weights = tf.Variable(2.0, name="weights")

    def serve(x: Any) -> Any:
        dataset = tf.data.Dataset.from_tensor_slices(x).map(lambda one: one * weights)
        return {"y": dataset.reduce(0.0, lambda total, one: total + one)}

    uses = uses_by_name(graph_of(serve, tmp_path, weights=weights))
    assert uses["weights"].obstacle == (
        "TensorFlow does not convert the op MapDataset, which uses it"
    )


def called_twice(tmp_path: pathlib.Path, *, writes: bool) -> ModelGraph:
    """Returns a graph that calls one function twice, the second time with exchanged variables."""
    one, two = tf.Variable(1.0, name="one"), tf.Variable(2.0, name="two")
    graph = graph_of(lambda x: {"y": x * one + two}, tmp_path, one=one, two=two)
    graph_def = graph.meta_graph.graph_def
    call = the_call(graph)
    other = graph_def.node.add()
    other.CopyFrom(call)
    other.name = "other"
    places = [i for i, name in enumerate(call.input) if name in ("one", "two")]
    other.input[places[0]], other.input[places[1]] = (call.input[i] for i in reversed(places))
    if writes:
        write = graph_def.node.add(name="write", op="AssignVariableOp", input=["one", "value"])
        write.attr["dtype"].type = tf.float32.as_datatype_enum
    return ModelGraph(graph.meta_graph)


def the_call(graph: ModelGraph) -> NodeDef:
    (call,) = (node for node in graph.main.nodes.values() if node.op == "StatefulPartitionedCall")
    return call


def test_variables_of_one_argument_are_one_group(tmp_path: pathlib.Path) -> None:
    uses = find_variable_uses(called_twice(tmp_path, writes=False))
    assert len({use.group for use in uses.values()}) == 1
    assert not any(use.obstacle for use in uses.values())


def test_an_obstacle_of_one_variable_is_one_for_its_group(tmp_path: pathlib.Path) -> None:
    uses = find_variable_uses(called_twice(tmp_path, writes=True))
    assert uses["one"].obstacle == "the op AssignVariableOp writes it"
    assert uses["two"].obstacle == "a function takes it or 'one', which stays one"


def test_a_function_that_something_else_calls_too_is_an_obstacle(tmp_path: pathlib.Path) -> None:
    weights = tf.Variable(2.0, name="weights")
    graph = graph_of(lambda x: {"y": x * weights}, tmp_path, weights=weights)
    graph_def = graph.meta_graph.graph_def
    call = the_call(graph)
    remote = graph_def.node.add(name="remote", op="RemoteCall", input=call.input)
    remote.attr["f"].func.name = call.attr["f"].func.name
    remote.input[:] = ["target", *(f"other_{i}" for i, _ in enumerate(call.input))]
    (use,) = find_variable_uses(ModelGraph(graph.meta_graph)).values()
    assert use.obstacle.endswith("is also called by the op RemoteCall with something else")


def test_a_function_that_makes_the_variable_again_is_an_obstacle(tmp_path: pathlib.Path) -> None:
    weights = tf.Variable(2.0, name="weights")
    graph = graph_of(lambda x: {"y": x * weights}, tmp_path, weights=weights)
    graph_def = graph.meta_graph.graph_def
    (node,) = (node for node in graph_def.node if node.op == "VarHandleOp")
    function = graph_def.library.function[0]
    function.node_def.add().CopyFrom(node)
    changed_graph = ModelGraph(graph.meta_graph)
    (use,) = find_variable_uses(changed_graph).values()
    assert use.obstacle == f"function {function.signature.name!r} holds it too"
    assert [name for name, _ in variables_in_functions(changed_graph)] == [function.signature.name]


def test_reference_variables_of_tensorflow_1(tmp_path: pathlib.Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        read, written = (
            tf.compat.v1.Variable(2.0, name=name, use_resource=False)
            for name in ("read", "written")
        )
        y = x * read + tf.compat.v1.assign_add(written, 1.0)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "1"), {"x": x}, {"y": y})
    served = MetaGraphDef()
    copy_served_part(read_meta_graph(tmp_path / "1"), served)
    uses = find_variable_uses(ModelGraph(served))
    assert {name: use.obstacle for name, use in uses.items()} == {
        "read": "",
        "written": "the op AssignAdd writes it",
    }


def test_gathers_are_split_into_a_read_and_a_gather(tmp_path: pathlib.Path) -> None:
    table = tf.Variable(np.arange(6, dtype="float32").reshape(3, 2), name="table")
    graph = graph_of(
        lambda x: {"y": tf.nn.embedding_lookup(table, tf.cast(x, tf.int32))}, tmp_path, table=table
    )
    uses = find_variable_uses(graph)
    ((function, name),) = next(iter(uses.values())).gathers
    split_gathers(graph, uses)
    bodies = {
        one.signature.name: one.node_def for one in graph.meta_graph.graph_def.library.function
    }
    nodes = {node.name: node for node in bodies[function]}
    assert nodes[name].op == "GatherV2"
    assert nodes[name].input[0] == f"{name}/read:value:0"
    assert nodes[name].input[2] == f"{name}/axis:output:0"
    assert nodes[f"{name}/read"].op == "ReadVariableOp"
    assert "ResourceGather" not in {node.op for node in bodies[function]}
