"""Where the walks over a graph end, and what they say then."""

from __future__ import annotations

import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.errors import SignatureError
from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.graph_bodies import output_index
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
from tests.trust.hostile_models import (
    FLOAT,
    HOSTILE,
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


def problem_of(meta_graph) -> str:
    with pytest.raises(SignatureError) as caught:
        check_graph(meta_graph.graph_def)
    text = str(caught.value)
    assert text.startswith(PREFIX) and text.endswith(SUFFIX)
    return text.removeprefix(PREFIX).removesuffix(SUFFIX)


def circle(length):
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
def test_a_circle_of_calls_is_named(length, steps):
    assert problem_of(circle(length)) == f"functions call each other in a circle: {steps}"


def chain(depth):
    meta_graph = tiny().meta_graphs[0]
    _chain(meta_graph, depth - 1, 1, tf.float32)
    return meta_graph


def test_calls_may_be_as_deep_as_the_limit_and_no_deeper():
    check_graph(chain(MAX_CALL_DEPTH).graph_def)
    assert (
        problem_of(chain(MAX_CALL_DEPTH + 1))
        == f"calls are nested more than {MAX_CALL_DEPTH} deep below the main graph"
    )


def test_functions_that_are_called_often_are_no_circle():
    meta_graph = tiny().meta_graphs[0]
    _chain(meta_graph, 60, 2, tf.float32)
    check_graph(meta_graph.graph_def)


def test_a_node_has_a_name():
    meta_graph = tiny().meta_graphs[0]
    add_node(meta_graph.graph_def.node, "", "NoOp")
    assert problem_of(meta_graph) == "the main graph has a node without a name"


def test_a_function_defined_twice_alike_is_one_function():
    meta_graph = tiny().meta_graphs[0]
    add_function(meta_graph, "f")
    add_function(meta_graph, "f")
    check_graph(meta_graph.graph_def)
    add_function(meta_graph, "f", returns="other")
    assert problem_of(meta_graph) == "its library has two functions 'f'"


@pytest.mark.parametrize("branches", [MAX_BRANCHES, MAX_BRANCHES + 1])
def test_a_node_names_so_many_functions_and_no_more(branches):
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
def test_a_graph_has_so_many_nodes_and_no_more(nodes):
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


def test_a_spent_budget_names_the_place():
    budget = VisitBudget(10)
    budget.spend(10, "f")
    assert budget.left == 0
    with pytest.raises(SignatureError, match="stopped in function 'f' after 10 visits"):
        budget.spend(1, "f")
    with pytest.raises(SignatureError, match="stopped in the main graph after"):
        budget.spend(1, "")


def const(tensor):
    nodes = tiny().meta_graphs[0].graph_def.node
    return add_node(nodes, "c", "Const", value=tensor, dtype=tf.as_dtype(tensor.dtype))


def test_a_constant_is_filled_up_as_far_as_the_limit():
    filled = constant_value(
        const(constant([MAX_CONSTANT_ELEMENTS], FLOAT, float_val=[2.0])), VisitBudget(), "f"
    )
    assert filled.shape == (MAX_CONSTANT_ELEMENTS,) and (filled == 2).all()
    assert (
        constant_value(
            const(constant([MAX_CONSTANT_ELEMENTS + 1], FLOAT, float_val=[2.0])), VisitBudget(), "f"
        )
        is None
    )


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
def test_a_constant_that_contradicts_itself_is_none(tensor):
    assert constant_value(const(tensor), VisitBudget(), "") is None


@pytest.mark.parametrize(
    ("tensor", "index"),
    [
        ("x", 0),
        ("x:2", 2),
        ("x:out:3", 3),
        ("x:" + "9" * 5000, 0),
        ("x:²", 0),
        ("x:٣", 0),
        ("x:-1", 0),
    ],
)
def test_the_number_of_an_output_is_read_or_zero(tensor, index):
    assert output_index(tensor) == index


def test_bytes_that_are_no_text_are_escaped():
    assert text_of_bytes(b"ok \xc3\xbc \xff") == "ok ü \\xff"


def test_a_chain_that_doubles_is_walked_once_a_function():
    meta_graph = tiny().meta_graphs[0]
    _chain(meta_graph, 60, 2, tf.float32)
    graph = ModelGraph(meta_graph)
    signature = next(iter(kw_signatures(meta_graph)))
    assert graph.reach(signature).ops == {"StatefulPartitionedCall", "Identity"}
    assert MAX_VISITS - graph.budget.left < 2000


def kw_signatures(meta_graph):
    from keras_warmup.savedmodel.signatures import read_signatures

    return read_signatures(meta_graph)


# What a hostile graph is told to read, where it is no error.
UNKNOWN = {
    "DecodeCSV with a delimiter that is not UTF-8": "DecodeCSV reads it, with attributes that are not UTF-8",
    "DecodeRaw of an unknown dtype": "DecodeRaw reads it, with DataType 77, which this TensorFlow does not know",
    "more types than feature keys": (
        "ParseExampleV2 reads it, with other numbers of keys than of types, shapes or defaults"
    ),
    "feature keys that are not UTF-8": "ParseExampleV2 reads it, with attributes that are not UTF-8",
    "feature keys that are numbers": "ParseExampleV2 reads it, with feature keys that are no strings",
    "a parser of two inputs": "ParseExampleV2 reads it, with fewer inputs than it has",
    "DecodePng of a negative number of channels": (
        f"DecodePng reads it, with {-(2**40)} channels, expected one of (0, 1, 3, 4)"
    ),
}


@pytest.mark.parametrize(("name", "reason"), UNKNOWN.items(), ids=UNKNOWN)
def test_a_damaged_reader_is_unknown_with_its_reason(name, reason, tmp_path):
    HOSTILE[name](tmp_path / "1")
    (inspected,) = kw.inspect(tmp_path / "1").signatures
    assert inspected.consumers["x"].reason == reason
