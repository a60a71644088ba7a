"""Grappler, TensorFlow's graph optimizer, and which functions of a SavedModel it is left out of.

It takes most of the time of the first run of a set of tensors, and of restoring the variables, which runs a function too:
80 to 90 % of either, for a Keras export. Where only the results of a run are wanted, it can be left out.

A Session optimizes the main graph, with the functions it inlines into it; the kernel of a call that was not inlined optimizes the
function, as the node's `config_proto` says (`partitioned_function_ops.cc`). So with the Session's own optimizer off, each call
decides for itself. What `tf.saved_model.save` writes does all its work in functions: there a call that is left as it
was is optimized no less than before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup.bodies import source_of
from keras_warmup.graph import ModelGraph

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


def leave_unoptimized(meta_graph: Any, signature_keys: Collection[str], config: tf.compat.v1.ConfigProto) -> None:
    """Leaves Grappler out of the main graph, and of every function that only some signatures, or none, call.

    Functions that no signature calls are those that restore and save the variables.

    Args:
        meta_graph: the MetaGraphDef that will be imported; the calls in its graph are changed, nothing else.
        signature_keys: the signatures whose results are wanted, not their time; functions that others call as well stay.
        config: of the Session; its optimizer is switched off.
    """
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    optimized = [
        source_of(info.name)
        for key, definition in meta_graph.signature_def.items()
        if key not in signature_keys
        for info in definition.outputs.values()
    ]
    kept = _reached(ModelGraph(meta_graph), optimized)
    graph_def = meta_graph.graph_def
    bodies = [("", graph_def.node), *((one.signature.name, one.node_def) for one in graph_def.library.function)]
    for body, nodes in bodies:
        for node in nodes:
            if node.op in _CALLS and (body, node.name) not in kept:
                _leave_out(node)


def _reached(graph: ModelGraph, names: Iterable[str]) -> set[tuple[str, str]]:
    """`(function, node)` of all that runs for some nodes of the main graph, whose function is empty."""
    found: set[tuple[str, str]] = set()
    functions: set[str] = set()
    bodies = [(graph.main, list(names))]
    while bodies:
        body, roots = bodies.pop()
        for name in body.ancestors(roots):
            node = body.nodes.get(name)
            if node is None:
                continue
            found.add((body.name, name))
            for call in graph.calls(node):
                inner = graph.function(call.function)
                if inner is not None and inner.name not in functions:
                    functions.add(inner.name)
                    bodies.append((inner, inner.roots))
    return found


def _leave_out(node: Any) -> None:
    config = tf.compat.v1.ConfigProto()
    try:
        config.ParseFromString(node.attr["config_proto"].s)
    except DecodeError:  # another TensorFlow's: only time is lost
        return
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    node.attr["config_proto"].s = config.SerializeToString()
