"""Leaves Grappler, TensorFlow's graph optimizer, out of functions whose run time does not matter.

Grappler takes most of the time of the first run of a set of tensors, and of restoring the
variables, which runs a function too: 80 to 90 % of either, for a Keras export. It is not needed
where only the results of a run are.

A Session inlines the functions that its main graph calls, and optimizes the whole graph. With its
optimizer off, the kernel of each call optimizes the function that it calls, as the node's
`config_proto` says (`partitioned_function_ops.cc`). It runs the same passes, but does not see the
nodes around the call. So Grappler is left out only where these nodes make no difference: every
other signature is one call that reads only placeholders, variables and tables, calls functions in
no other way, and computes nothing in half precision, where the order of operations shows. A
SavedModel with constants around a call, such as a captured array, is left as it is: a Session would
fold them into the function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.graph_bodies import GraphBody, source_of
from keras_warmup.savedmodel.signatures import RESERVED_PREFIX

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_HANDLES = frozenset({"VarHandleOp", "HashTableV2", "MutableHashTableV2"})
_HALVES = frozenset({tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum})


def leave_unoptimized(
    meta_graph: Any, signature_keys: Collection[str], config: tf.compat.v1.ConfigProto
) -> None:
    """Leaves Grappler out of the main graph and of functions that no other signature calls.

    Functions that no signature calls restore and save the variables. Nothing is changed where the
    other signatures would then not be optimized as in a server.

    Args:
        meta_graph: the MetaGraphDef to import; only the calls in its graph are changed.
        signature_keys: the signatures of which only the results are needed.
        config: the configuration of the Session; its optimizer is switched off.
    """
    graph = ModelGraph(meta_graph)
    # A composite tensor has no name, so a signature with one is not taken for a call.
    outputs = {
        key: {source_of(info.name) for info in definition.outputs.values()}
        for key, definition in meta_graph.signature_def.items()
        if key not in signature_keys
    }
    served = {
        name
        for key, names in outputs.items()
        if not key.startswith(RESERVED_PREFIX)
        for name in names
    }
    if not all(_has_only_resource_inputs(graph, graph.main.nodes.get(name)) for name in served):
        return
    reached = list(_reached(graph, set().union(*outputs.values())))
    nodes = [body.nodes[name] for body, name in reached]
    if not all(
        _is_optimized_by_its_caller(graph, node) and not _computes_in_half(node) for node in nodes
    ):
        return
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    kept = {(body.name, name) for body, name in reached}
    graph_def = meta_graph.graph_def
    bodies = [
        ("", graph_def.node),
        *((one.signature.name, one.node_def) for one in graph_def.library.function),
    ]
    for body_name, nodes in bodies:
        for node in nodes:
            if (body_name, node.name) not in kept:
                if _is_call(node):
                    _disable_optimizer(node)
            elif node.name in served and not body_name:
                # The default of a server, in place of the `tf.config.optimizer` of the exporter.
                node.attr["config_proto"].s = b""


def leave_all_unoptimized(meta_graph: Any, config: tf.compat.v1.ConfigProto) -> None:
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
                _disable_optimizer(node)


def _reached(graph: ModelGraph, names: Iterable[str]) -> Iterator[tuple[GraphBody, str]]:
    """Yields all nodes that run for some nodes of the main graph."""
    functions: set[str] = set()
    bodies = [(graph.main, list(names))]
    while bodies:
        body, roots = bodies.pop()
        for name in body.ancestors(roots):
            node = body.nodes.get(name)
            if node is None:
                continue
            yield body, name
            for call in graph.calls(node):
                inner = graph.function(call.function)
                if inner is not None and inner.name not in functions:
                    functions.add(inner.name)
                    bodies.append((inner, inner.roots))


def _is_call(node: Any) -> bool:
    """Returns whether a node is a call that reads its `config_proto`, not the older `config`."""
    return (
        node is not None
        and node.op in _CALLS
        and not ("config" in node.attr and node.attr["config"].s)
    )


def _has_only_resource_inputs(graph: ModelGraph, node: Any) -> bool:
    """Returns whether a node is a call that reads only placeholders, variables and tables."""
    if not _is_call(node):
        return False
    sources = [graph.main.nodes.get(name) for name in graph.main.sources(node.name)]
    return all(
        one is not None and (one.op == "Placeholder" or one.op in _HANDLES) for one in sources
    )


def _computes_in_half(node: Any) -> bool:
    return any(
        not _HALVES.isdisjoint((value.type, *value.list.type)) for value in node.attr.values()
    )


def _is_optimized_by_its_caller(graph: ModelGraph, node: Any) -> bool:
    """Returns whether functions that a node runs are optimized with its own, or by its kernel."""
    lowered = "_lower_using_switch_merge" in node.attr and node.attr["_lower_using_switch_merge"].b
    return lowered or _is_call(node) or not any(graph.calls(node))


def _disable_optimizer(node: Any) -> None:
    config = tf.compat.v1.ConfigProto()
    try:
        config.ParseFromString(node.attr["config_proto"].s)
    except DecodeError:  # the kernel raises an error if the node runs
        return
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    node.attr["config_proto"].s = config.SerializeToString()
