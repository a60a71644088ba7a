"""Runs those passes of Grappler, TensorFlow's graph optimizer, that hold on every machine.

A server optimizes the graph of a signature before it first runs it, which is most of the time that
a warmup takes. Where variables are constants, some passes leave a fraction of the nodes: functions
are inlined, and what does not depend on a request is computed. The other passes, which choose fused
ops for the machine and the layout for its device, are left to the server.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from keras_warmup._protos import (
    GraphDef,
    MetaGraphDef,
    NodeDef,
    optimized_graph_def,
    registered_op,
)
from keras_warmup.savedmodel.files import read_assets
from keras_warmup.savedmodel.graph_bodies import source_of
from keras_warmup.savedmodel.graph_limits import text_of_bytes
from keras_warmup.savedmodel.served_graph import (
    drop_unused_info,
    has_alternatives,
    named_nodes,
    tensors_of,
)

_PASSES = ("function", "pruning", "constfold", "dependency", "common_subgraph_elimination")
_COLOCATED = "loc:@"
# A server lowers loops and branches with this attribute to those of TensorFlow 1. An LSTM that was
# lowered here, with constants in place of variables, ran 10 % slower.
_LOWERS, _LOWERS_LATER = "_lower_using_switch_merge", "_lower_using_switch_merge_later"


def optimize_graph(meta_graph: MetaGraphDef, kept: Collection[str]) -> bool:
    """Replaces the graph of a serving-only model by a smaller one that computes the same.

    The tensors that SignatureDefs, assets and init ops name keep their names. The graph stays as it
    is where TensorFlow cannot optimize it, where a node with several outputs is fed, and where a
    server would choose between functions.

    Args:
        meta_graph: a MetaGraphDef without an object graph and a Saver, which is changed.
        kept: names of further nodes that stay.

    Returns:
        Whether the graph was replaced.
    """
    if has_alternatives(meta_graph.graph_def):
        return False
    # Without the signatures: `tf_optimizer` reads the nodes to keep from a collection.
    task = MetaGraphDef()
    task.graph_def.CopyFrom(meta_graph.graph_def)
    nodes = {node.name: node for node in task.graph_def.node}
    starts = {*named_nodes(meta_graph), *kept} & nodes.keys()
    fed: dict[str, NodeDef] = {}
    for node in [nodes[name] for name in _fed_nodes(meta_graph) if name in nodes]:
        if node.op == "Placeholder":
            continue
        dtype = _dtype_of(node)
        if dtype is None:
            return False
        # A server feeds another value than that of this node, which may not be folded.
        fed[node.name] = NodeDef()
        fed[node.name].CopyFrom(node)
        starts.update(map(source_of, node.input))
        node.op = "Placeholder"
        del node.input[:]
        node.attr.clear()
        node.attr["dtype"].type = dtype
    task.collection_def["train_op"].node_list.value.extend(sorted(starts))
    _rename_attribute(task.graph_def, _LOWERS, _LOWERS_LATER)
    optimized = optimized_graph_def(task, _PASSES)
    if optimized is None:
        return False
    _rename_attribute(optimized, _LOWERS_LATER, _LOWERS)
    names = {node.name for node in optimized.node}
    for node in optimized.node:
        if node.name in fed:
            node.CopyFrom(fed[node.name])
        node.ClearField("experimental_debug_info")
        _drop_colocations(node, names)
    meta_graph.graph_def.CopyFrom(optimized)
    drop_unused_info(meta_graph, {one.signature.name for one in optimized.library.function})
    _add_op_definitions(meta_graph)
    return True


def _fed_nodes(meta_graph: MetaGraphDef) -> Iterator[str]:
    """Yields the names of the nodes whose values a server replaces."""
    for definition in meta_graph.signature_def.values():
        for info in definition.inputs.values():
            yield from map(source_of, tensors_of(info))
    for asset in read_assets(meta_graph):
        yield source_of(asset.tensor_info.name)


def _rename_attribute(graph_def: GraphDef, name: str, other: str) -> None:
    """Renames an attribute of all nodes, those of functions included."""
    for nodes in (graph_def.node, *(one.node_def for one in graph_def.library.function)):
        for node in nodes:
            if name in node.attr:
                node.attr[other].CopyFrom(node.attr[name])
                node.attr.pop(name)


def _dtype_of(node: NodeDef) -> int | None:
    """Returns the dtype of the only output of a node; `None` where it has several or none."""
    definition = registered_op(node.op)
    outputs = [] if definition is None else definition.output_arg
    if len(outputs) != 1 or outputs[0].number_attr or outputs[0].type_list_attr:
        return None
    name = outputs[0].type_attr
    dtype = node.attr[name].type if name in node.attr else outputs[0].type
    return int(dtype) or None


def _drop_colocations(node: NodeDef, names: Collection[str]) -> None:
    """Drops what asks for the device of a node that is gone: the import of a graph fails on it."""
    if "_class" not in node.attr:
        return
    left = [
        one
        for one in node.attr["_class"].list.s
        if text_of_bytes(one).removeprefix(_COLOCATED) in names
    ]
    node.attr.pop("_class")
    if left:
        node.attr["_class"].list.s.extend(left)


def _add_op_definitions(meta_graph: MetaGraphDef) -> None:
    """Adds the definitions of ops that are new in the graph to those that a loader compares."""
    known = meta_graph.meta_info_def.stripped_op_list
    if not known.op:
        return
    graph_def = meta_graph.graph_def
    ops = {node.op for node in graph_def.node}
    ops.update(node.op for function in graph_def.library.function for node in function.node_def)
    for name in sorted(ops - {one.name for one in known.op}):
        definition = registered_op(name)
        if definition is not None:
            known.op.add().CopyFrom(definition)
