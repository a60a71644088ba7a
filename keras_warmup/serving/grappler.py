"""Grappler, TensorFlow's graph optimizer, and which functions of a SavedModel it is left out of.

It takes most of the time of the first run of a set of tensors, and of restoring the variables, which runs a function too:
80 to 90 % of either, for a Keras export. Where only the results of a run are wanted, it can be left out.

A Session inlines the functions that its main graph calls, and optimizes the whole. With its optimizer off, the kernel of each call
optimizes the function that it calls, as the node's `config_proto` says (`partitioned_function_ops.cc`): the same passes, but they
do not see what stands around the call. So it is left out only where there is nothing to see: every other signature is one call,
fed by its placeholders and by variables or tables, calls its functions in no other way, and computes in no half precision, which
shows the order of operations. Constants around a call, such as a captured array, would be folded into its function: SavedModels
that have such are left as they were.
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
    """Leaves Grappler out of the main graph, and of every function that only some signatures, or none, call.

    Functions that no signature calls are those that restore and save the variables. Nothing is changed where the other
    signatures would not be optimized as in a server then.

    Args:
        meta_graph: the MetaGraphDef that will be imported; the calls in its graph are changed, nothing else.
        signature_keys: the signatures whose results are wanted, not their time; functions that others call as well stay.
        config: of the Session; its optimizer is switched off.
    """
    graph = ModelGraph(meta_graph)
    # A composite tensor has no name of its own: such a signature is no call.
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
    if not all(_sees_no_more(graph, graph.main.nodes.get(name)) for name in served):
        return
    reached = list(_reached(graph, set().union(*outputs.values())))
    nodes = [body.nodes[name] for body, name in reached]
    if not all(_is_optimized_by_its_caller(graph, node) and not _is_half(node) for node in nodes):
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
                    _leave_out(node)
            elif node.name in served and not body_name:
                # As a server's Session does it, whatever `tf.config.optimizer` was told when the function was traced.
                node.attr["config_proto"].s = b""


def _reached(graph: ModelGraph, names: Iterable[str]) -> Iterator[tuple[GraphBody, str]]:
    """All nodes that run for some nodes of the main graph."""
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
    """Whether a node is a call with a `config_proto`; the `config` of old ones excludes it."""
    return (
        node is not None
        and node.op in _CALLS
        and not ("config" in node.attr and node.attr["config"].s)
    )


def _sees_no_more(graph: ModelGraph, node: Any) -> bool:
    """Whether a node is a call around which there is nothing that could be folded into its function."""
    if not _is_call(node):
        return False
    sources = [graph.main.nodes.get(name) for name in graph.main.sources(node.name)]
    return all(
        one is not None and (one.op == "Placeholder" or one.op in _HANDLES) for one in sources
    )


def _is_half(node: Any) -> bool:
    return any(
        not _HALVES.isdisjoint((value.type, *value.list.type)) for value in node.attr.values()
    )


def _is_optimized_by_its_caller(graph: ModelGraph, node: Any) -> bool:
    """Whether the functions a node runs are optimized along with the one it stands in, or by its own kernel."""
    lowered = "_lower_using_switch_merge" in node.attr and node.attr["_lower_using_switch_merge"].b
    return lowered or _is_call(node) or not any(graph.calls(node))


def _leave_out(node: Any) -> None:
    config = tf.compat.v1.ConfigProto()
    try:
        config.ParseFromString(node.attr["config_proto"].s)
    except DecodeError:  # its kernel says so, if ever it runs
        return
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    node.attr["config_proto"].s = config.SerializeToString()
