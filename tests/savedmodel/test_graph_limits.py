"""Tests of `keras_warmup.savedmodel.graph_limits`."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, NodeDef, TensorProto
from keras_warmup.errors import SignatureError
from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.graph_limits import (
    MAX_BRANCHES,
    MAX_CALL_DEPTH,
    MAX_CONSTANT_ELEMENTS,
    MAX_NODES,
    MAX_VISITS,
    VisitBudget,
    check_graph,
    constant_value,
    text_of_bytes,
)
from keras_warmup.savedmodel.signatures import read_signatures
from tests.trust.hostile_models import (
    FLOAT,
    _chain,
    add_call,
    add_function,
    add_node,
    constant,
    many_nodes,
    tiny,
)

PREFIX = "Cannot read the graph of the SavedModel: "
SUFFIX = ". Export the model again."


def problem_of(meta_graph: MetaGraphDef) -> str:
    with pytest.raises(SignatureError) as caught:
        check_graph(meta_graph.graph_def)
    text = str(caught.value)
    assert text.startswith(PREFIX) and text.endswith(SUFFIX)
    return text.removeprefix(PREFIX).removesuffix(SUFFIX)


def circle(length: int) -> MetaGraphDef:
    meta_graph = tiny().meta_graphs[0]
    for index in range(length):
        add_call(add_function(meta_graph, f"f{index}"), "call", "x", f"f{(index + 1) % length}")
    return meta_graph


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        (1, "'f0' -> 'f0'"),
        (3, "'f0' -> 'f1' -> 'f2' -> 'f0'"),
        (9, "'f0' -> 'f1' -> 'f2' -> 'f3' -> ..."),
    ],
)
def test_a_circle_of_calls_is_named(length: int, steps: str) -> None:
    assert problem_of(circle(length)) == f"functions call each other in a circle: {steps}"


def chain(depth: int) -> MetaGraphDef:
    meta_graph = tiny().meta_graphs[0]
    _chain(meta_graph, depth - 1, 1, tf.float32)
    return meta_graph


def test_calls_may_be_as_deep_as_the_limit_and_no_deeper() -> None:
    check_graph(chain(MAX_CALL_DEPTH).graph_def)
    assert (
        problem_of(chain(MAX_CALL_DEPTH + 1))
        == f"calls are nested more than {MAX_CALL_DEPTH} deep below the main graph"
    )


def test_functions_that_are_called_often_are_not_a_circle() -> None:
    meta_graph = tiny().meta_graphs[0]
    _chain(meta_graph, 60, 2, tf.float32)
    check_graph(meta_graph.graph_def)


def test_a_node_has_a_name() -> None:
    meta_graph = tiny().meta_graphs[0]
    add_node(meta_graph.graph_def.node, "", "NoOp")
    assert problem_of(meta_graph) == "the main graph has a node without a name"


def test_two_equal_definitions_of_a_function_are_one_function() -> None:
    meta_graph = tiny().meta_graphs[0]
    add_function(meta_graph, "f")
    add_function(meta_graph, "f")
    check_graph(meta_graph.graph_def)
    add_function(meta_graph, "f", returns="other")
    assert problem_of(meta_graph) == "its library has two functions 'f'"


@pytest.mark.parametrize("branches", [MAX_BRANCHES, MAX_BRANCHES + 1])
def test_a_node_names_at_most_so_many_functions(branches: int) -> None:
    meta_graph = tiny().meta_graphs[0]
    add_function(meta_graph, "f")
    add_node(meta_graph.graph_def.node, "case", "Case", ["x", "x"], branches=["f"] * branches)
    if branches == MAX_BRANCHES:
        check_graph(meta_graph.graph_def)
    else:
        assert (
            problem_of(meta_graph)
            == f"node 'case' of the main graph names more than {MAX_BRANCHES} functions"
        )


@pytest.mark.parametrize("nodes", [MAX_NODES, MAX_NODES + 1])
def test_a_graph_has_at_most_so_many_nodes(nodes: int) -> None:
    meta_graph = tiny().meta_graphs[0]
    graph_def = meta_graph.graph_def
    graph_def.MergeFromString(many_nodes(nodes - len(graph_def.node)))
    if nodes == MAX_NODES:
        check_graph(graph_def)
    else:
        assert (
            problem_of(meta_graph)
            == f"it has {nodes} nodes, more than the {MAX_NODES} that are read"
        )


def test_a_spent_budget_names_the_place() -> None:
    budget = VisitBudget(10)
    budget.spend(10, "f")
    assert budget.left == 0
    with pytest.raises(SignatureError, match="stopped in function 'f' after 10 visits"):
        budget.spend(1, "f")
    with pytest.raises(SignatureError, match="stopped in the main graph after"):
        budget.spend(1, "")


def const(tensor: TensorProto) -> NodeDef:
    nodes = tiny().meta_graphs[0].graph_def.node
    return add_node(nodes, "c", "Const", value=tensor, dtype=tf.as_dtype(tensor.dtype))


def test_a_constant_is_filled_up_as_far_as_the_limit() -> None:
    largest = const(constant([MAX_CONSTANT_ELEMENTS], FLOAT, float_val=[2.0]))
    filled: Any = constant_value(largest, VisitBudget(), "f")
    assert filled.shape == (MAX_CONSTANT_ELEMENTS,) and (filled == 2).all()
    larger = const(constant([MAX_CONSTANT_ELEMENTS + 1], FLOAT, float_val=[2.0]))
    assert constant_value(larger, VisitBudget(), "f") is None


@pytest.mark.parametrize(
    "tensor",
    [
        constant([-1], FLOAT, float_val=[0.0]),
        constant([3], FLOAT, tensor_content=b"1234567"),
        constant([1], FLOAT, float_val=[0.0] * 3),
        constant([2**62] * 300, FLOAT),
    ],
    ids=["negative", "content", "values", "dimensions"],
)
def test_a_constant_that_contradicts_itself_is_none(tensor: TensorProto) -> None:
    assert constant_value(const(tensor), VisitBudget(), "") is None


def test_bytes_that_are_not_text_are_escaped() -> None:
    assert text_of_bytes(b"ok \xc3\xbc \xff") == "ok ü \\xff"


def test_a_chain_that_doubles_is_walked_once_per_function() -> None:
    meta_graph = tiny().meta_graphs[0]
    _chain(meta_graph, 60, 2, tf.float32)
    graph = ModelGraph(meta_graph)
    signature = read_signatures(meta_graph)[0]
    assert graph.reachable(signature).ops == {"StatefulPartitionedCall", "Identity"}
    assert MAX_VISITS - graph.budget.left < 2000
