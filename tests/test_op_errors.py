"""Errors of graphs that were made to keep whoever describes them busy."""

from __future__ import annotations

import time

import pytest
import tensorflow as tf

from keras_warmup.op_errors import describe_op_error, message_of
from tests.trust.hostile_models import add_call, add_function, add_node, tiny


def error_of(text) -> tf.errors.OpError:
    return tf.errors.InvalidArgumentError(None, None, text)


@pytest.mark.parametrize(
    "text", ["\n" * 10**6, "x" * 10**7, "{{node x}} " * 10**5, "[[" * 10**6, " : /" * 10**6]
)
def test_long_messages_take_no_time(text):
    started = time.perf_counter()
    describe_op_error(error_of(text), tiny().meta_graphs[0].graph_def)
    assert time.perf_counter() - started < 5


def test_the_ends_of_a_long_message_stay():
    message = message_of(error_of("Table not initialized " + "x" * 10**6 + " {{node end}}"))
    assert message.startswith("Table not initialized xxx") and message.endswith("xxx {{node end}}")
    assert len(message) < 20_000


def test_names_that_can_be_taken_apart_in_many_ways_are_looked_up_once():
    meta_graph = tiny().meta_graphs[0]
    levels, names = 25, ["a", "a/a", "a/a/a"]
    for level in range(levels):
        nodes = add_function(meta_graph, f"f{level}")
        for name in names:
            add_call(nodes, name, "x", f"f{level + 1}")
    add_node(add_function(meta_graph, f"f{levels}"), "b", "NoOp")
    path = "/".join(["a"] * 2 * levels + ["b"])
    started = time.perf_counter()
    said = describe_op_error(
        error_of(f"Table not initialized\n\t [[{{{{node {path}}}}}]]"), meta_graph.graph_def
    )
    assert time.perf_counter() - started < 5
    assert said == "Table not initialized (node b, op NoOp)"
