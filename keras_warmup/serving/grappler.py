"""Leaves Grappler, TensorFlow's graph optimizer, out of loading a model.

Grappler takes 80 to 90 % of the time of restoring the variables and of filling the tables, which
run functions too, and several copies of a large vocabulary. It is not needed where only the results
of a load are.

A Session inlines the functions that its main graph calls, and optimizes the whole graph. With its
optimizer off, the kernel of each call optimizes the function that it calls, as the node's
`config_proto` says (`partitioned_function_ops.cc`). It runs the same passes, but does not see the
nodes around the call. So Grappler is left out only where these nodes make no difference: every
signature is one call that reads only placeholders, variables, tables and constants that no rounding
touches, calls functions in no other way, and computes nothing in half precision, where the order of
operations shows. A SavedModel with floating-point constants around a call, such as a captured
array, is loaded as a server does: a Session would fold them into the function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup._protos import MetaGraphDef
from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.graph_bodies import GraphBody, source_of
from keras_warmup.savedmodel.signatures import RESERVED_PREFIX

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_HANDLES = frozenset({"VarHandleOp", "HashTableV2", "MutableHashTableV2"})
_HALVES = frozenset({tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum})
_EXACT = frozenset(dtype.as_datatype_enum for dtype in (tf.int32, tf.int64, tf.bool, tf.string))


@contextlib.contextmanager
def optimizing_only_signatures(
    meta_graph: MetaGraphDef, config: tf.compat.v1.ConfigProto
) -> Iterator[None]:
    """Leaves Grappler out of all that no signature runs, if the graph is imported in the context.

    Nothing is changed where the signatures would then not be optimized as in a server.

    Args:
        meta_graph: the MetaGraphDef to import; calls in its main graph are changed, and changed
            back when the context ends.
        config: the configuration of the Session; its optimizer is switched off.
    """
    graph = ModelGraph(meta_graph)
    # A composite tensor has no name, so a signature with one is not taken for a call.
    served = {
        source_of(info.name)
        for key, definition in meta_graph.signature_def.items()
        if not key.startswith(RESERVED_PREFIX)
        for info in definition.outputs.values()
    }
    if not (
        all(_reads_nothing_to_fold(graph, graph.main.nodes.get(name)) for name in served)
        and all(
            _is_optimized_by_its_caller(graph, node) and not _computes_in_half(node)
            for node in _nodes_run(graph, served)
        )
    ):
        yield
        return
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    calls = [node for node in meta_graph.graph_def.node if _is_call(node)]
    before = [(node, node.attr["config_proto"].s) for node in calls]
    for node in calls:
        # A server has the default in place of the `tf.config.optimizer` of the exporter.
        node.attr["config_proto"].s = b"" if node.name in served else _unoptimized(node)
    try:
        yield
    finally:
        for node, config_proto in before:
            node.attr["config_proto"].s = config_proto


def leave_all_unoptimized(meta_graph: MetaGraphDef, config: tf.compat.v1.ConfigProto) -> None:
    """Leaves Grappler out of the main graph and of all functions.

    Args:
        meta_graph: the MetaGraphDef to import; only the calls in its graph are changed.
        config: the configuration of the Session; its optimizer is switched off.
    """
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    graph_def = meta_graph.graph_def
    for nodes in (graph_def.node, *(one.node_def for one in graph_def.library.function)):
        for node in nodes:
            if _is_call(node):
                node.attr["config_proto"].s = _unoptimized(node)


def _nodes_run(graph: ModelGraph, names: set[str]) -> Iterator[Any]:
    """Yields all nodes that run for some nodes of the main graph."""
    functions: set[str] = set()
    bodies: list[tuple[GraphBody, list[str]]] = [(graph.main, list(names))]
    while bodies:
        body, roots = bodies.pop()
        for name in body.ancestors(roots):
            node = body.nodes.get(name)
            if node is None:
                continue
            yield node
            for call in graph.calls(node):
                inner = graph.function(call.function)
                if inner is not None and inner.name not in functions:
                    functions.add(inner.name)
                    bodies.append((inner, list(inner.roots)))


def _is_call(node: Any) -> bool:
    """Returns whether a node is a call that reads its `config_proto`, not the older `config`."""
    return (
        node is not None
        and node.op in _CALLS
        and not ("config" in node.attr and node.attr["config"].s)
    )


def _reads_nothing_to_fold(graph: ModelGraph, node: Any) -> bool:
    """Returns whether a node is a call without computed inputs or floating-point constants."""
    if not _is_call(node):
        return False
    sources = [graph.main.nodes.get(name) for name in graph.main.sources(node.name)]
    return all(
        one is not None
        and (
            one.op == "Placeholder"
            or one.op in _HANDLES
            or (one.op == "Const" and one.attr["dtype"].type in _EXACT)
        )
        for one in sources
    )


def _computes_in_half(node: Any) -> bool:
    return any(
        not _HALVES.isdisjoint((value.type, *value.list.type)) for value in node.attr.values()
    )


def _is_optimized_by_its_caller(graph: ModelGraph, node: Any) -> bool:
    """Returns whether functions that a node runs are optimized with its own, or by its kernel."""
    lowered = "_lower_using_switch_merge" in node.attr and node.attr["_lower_using_switch_merge"].b
    return lowered or _is_call(node) or not any(graph.calls(node))


def _unoptimized(node: Any) -> bytes:
    """Returns the configuration of a call with the optimizer switched off."""
    config = tf.compat.v1.ConfigProto()
    try:
        config.ParseFromString(node.attr["config_proto"].s)
    except DecodeError:  # the kernel raises an error if the node runs
        return bytes(node.attr["config_proto"].s)
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return bytes(config.SerializeToString())
