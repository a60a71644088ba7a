"""Copies what a server runs of a meta graph, and leaves out the rest.

A server imports the whole main graph and the whole function library. `model.export` also writes the
nodes that save a checkpoint, functions that only `tf.saved_model.load` calls, the Python objects
that it makes again, and where each node was traced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from keras_warmup._protos import GraphDef, MetaGraphDef, NodeDef
from keras_warmup.savedmodel.files import read_assets
from keras_warmup.savedmodel.graph_bodies import attribute, source_of
from keras_warmup.savedmodel.graph_limits import called_functions, text_of_bytes
from keras_warmup.savedmodel.signatures import INIT_COLLECTIONS, INIT_OP_KEY

# The init op and the assets of TensorFlow 1. Other collections serve training, and name nodes that
# a server does not run.
_KEPT_COLLECTIONS = (*INIT_COLLECTIONS, "saved_model_assets")
_TRAIN_OP_KEY = "__saved_model_train_op"
# Functions with equal values of this attribute are alternatives. Grappler's implementation selector
# exchanges them (the layers LSTM and GRU of Keras 2: one for a GPU, one for a CPU), though no node
# calls the other one.
_ALTERNATIVES = "api_implements"


def copy_served_part(meta_graph: MetaGraphDef, served: MetaGraphDef) -> None:
    """Copies what a server runs: signatures, tables, assets, init op and the graph below them.

    Left out: nodes that save and restore, functions that none of these calls, debug information,
    training, and the objects of `tf.saved_model.load`. Nothing is renamed.

    Args:
        meta_graph: a MetaGraphDef; `graph_limits.check_graph` has accepted it.
        served: an empty MetaGraphDef, which is filled. Its variables have no restore op yet.
    """
    served.meta_info_def.CopyFrom(meta_graph.meta_info_def)
    served.asset_file_def.extend(meta_graph.asset_file_def)
    for key, definition in meta_graph.signature_def.items():
        if key != _TRAIN_OP_KEY:
            served.signature_def[key].CopyFrom(definition)
    for key in _KEPT_COLLECTIONS:
        if key in meta_graph.collection_def:
            served.collection_def[key].CopyFrom(meta_graph.collection_def[key])
    called = _copy_needed(meta_graph.graph_def, named_nodes(served), served.graph_def)
    drop_unused_info(served, called)


def copy_restoring_part(
    meta_graph: MetaGraphDef, handles: Iterable[str], restoring: MetaGraphDef
) -> None:
    """Copies what restores the variables, without signatures, assets and init op.

    Args:
        meta_graph: a MetaGraphDef; `graph_limits.check_graph` has accepted it.
        handles: names of the nodes of variables and tables that are read afterwards.
        restoring: an empty MetaGraphDef, which is filled.
    """
    saver = meta_graph.saver_def
    if meta_graph.HasField("saver_def"):
        restoring.saver_def.CopyFrom(saver)
    starts = [saver.restore_op_name, saver.filename_tensor_name, *handles]
    _copy_needed(meta_graph.graph_def, map(source_of, starts), restoring.graph_def)


def drop_saving_part(meta_graph: MetaGraphDef) -> bool:
    """Removes the nodes of the main graph that only save a checkpoint, and their functions.

    A server imports them and never runs them; TensorFlow 2.6 refuses a graph with one of their ops
    (`DisableCopyOnRead`). All that `tf.saved_model.load` uses stays: it makes a save
    function of its own. The Saver of a TensorFlow 1 loader restores, but cannot save.

    Args:
        meta_graph: a MetaGraphDef with an object graph, which is changed.

    Returns:
        Whether there was anything to remove.
    """
    objects, graph_def, saver = (
        meta_graph.object_graph_def,
        meta_graph.graph_def,
        meta_graph.saver_def,
    )
    if not objects.nodes or not saver.save_tensor_name:
        return False
    starts = [saver.restore_op_name, source_of(saver.filename_tensor_name)]
    starts += named_nodes(meta_graph)
    starts += [node.constant.operation for node in objects.nodes if node.HasField("constant")]
    nodes = {node.name: node for node in graph_def.node}
    library = {function.signature.name: function for function in graph_def.library.function}
    save = source_of(saver.save_tensor_name)
    saving = _needed(nodes, [save]) - _needed(nodes, starts)
    if save not in saving:
        return False
    kept = [node for name, node in nodes.items() if name not in saving]
    # Other nodes may read or wait for one of them: then it is not what TensorFlow 2 writes.
    if not saving.isdisjoint(source_of(tensor) for node in kept for tensor in node.input):
        return False
    unused = _called([nodes[name] for name in saving if name in nodes], library)
    others = [function for name, function in library.items() if name not in unused]
    unused -= _called([*kept, *(node for one in others for node in one.node_def)], library)
    unused -= set(objects.concrete_functions)
    _keep(graph_def.node, lambda node: node.name not in saving)
    _keep(graph_def.library.function, lambda function: function.signature.name not in unused)
    # Savers must name a tensor; a server saves nothing.
    saver.save_tensor_name = saver.filename_tensor_name
    drop_unused_info(meta_graph, library.keys() - unused)
    return True


def drop_empty_init_op(meta_graph: MetaGraphDef) -> bool:
    """Removes what names an init op that does nothing.

    TensorFlow 2 writes one for every model. To run it, a server optimizes the whole function
    library once more. Loaders take a model without an init op: those without tables had none in
    TensorFlow 1.

    Args:
        meta_graph: a MetaGraphDef, which is changed.

    Returns:
        Whether there was one.
    """
    definitions, collections = meta_graph.signature_def, meta_graph.collection_def
    names: set[str] = set()
    if INIT_OP_KEY in definitions:
        names.update(source_of(info.name) for info in definitions[INIT_OP_KEY].outputs.values())
    for key in INIT_COLLECTIONS:
        if key in collections:
            names.update(map(source_of, collections[key].node_list.value))
    nodes = [node for node in meta_graph.graph_def.node if node.name in names]
    is_empty = all(node.op == "NoOp" and not node.input for node in nodes)
    if not names or len(nodes) < len(names) or not is_empty:
        return False
    definitions.pop(INIT_OP_KEY, None)
    for key in INIT_COLLECTIONS:
        collections.pop(key, None)
    return True


def _keep(items: Any, is_kept: Callable[[Any], bool]) -> None:
    """Removes items of a repeated field."""
    for index in range(len(items) - 1, -1, -1):
        if not is_kept(items[index]):
            del items[index]


def has_alternatives(graph_def: GraphDef) -> bool:
    """Returns whether Grappler may exchange functions of a graph for the machine they run on."""
    return any(attribute(one, _ALTERNATIVES).s for one in graph_def.library.function)


def keep_equal_alternatives(graph_def: GraphDef) -> None:
    """Ends the exchange of functions whose arguments have other types than their alternatives'.

    The conversion changes functions that nodes call, but not their alternatives, which no node
    calls.

    Args:
        graph_def: a graph; the attribute is removed from such functions.
    """
    arguments: dict[bytes, set[tuple[int, ...]]] = {}
    for function in graph_def.library.function:
        implements = attribute(function, _ALTERNATIVES).s
        if implements:
            types = tuple(one.type for one in function.signature.input_arg)
            arguments.setdefault(implements, set()).add(types)
    for function in graph_def.library.function:
        if len(arguments.get(attribute(function, _ALTERNATIVES).s, ())) > 1:
            function.attr.pop(_ALTERNATIVES)


def _copy_needed(source: GraphDef, starts: Iterable[str], target: GraphDef) -> set[str]:
    """Copies some nodes and all that they need; returns the names of the functions copied."""
    target.versions.CopyFrom(source.versions)
    names = _needed({node.name: node for node in source.node}, starts)
    for node in source.node:
        if node.name in names:
            kept = target.node.add()
            kept.CopyFrom(node)
            kept.ClearField("experimental_debug_info")
    library = {function.signature.name: function for function in source.library.function}
    called = _called(target.node, library)
    for name, function in library.items():
        if name in called:
            copied = target.library.function.add()
            copied.CopyFrom(function)
            for node in copied.node_def:
                node.ClearField("experimental_debug_info")
    for gradient in source.library.gradient:
        if {gradient.function_name, gradient.gradient_func} <= called:
            target.library.gradient.add().CopyFrom(gradient)
    return called


def named_nodes(meta_graph: MetaGraphDef) -> Iterator[str]:
    """Yields the names of the nodes that SignatureDefs, assets and init ops name."""
    for definition in meta_graph.signature_def.values():
        for info in (*definition.inputs.values(), *definition.outputs.values()):
            yield from map(source_of, tensors_of(info))
    for asset in read_assets(meta_graph):
        yield source_of(asset.tensor_info.name)
    for collection in meta_graph.collection_def.values():
        yield from map(source_of, collection.node_list.value)


def tensors_of(info: Any) -> list[str]:
    """Returns the names of the tensors of an input or output, which may be a composite one."""
    encoding = info.WhichOneof("encoding")
    if encoding == "coo_sparse":
        parts = info.coo_sparse
        return [parts.indices_tensor_name, parts.values_tensor_name, parts.dense_shape_tensor_name]
    if encoding == "composite_tensor":
        return [name for part in info.composite_tensor.components for name in tensors_of(part)]
    return [info.name]


def _needed(nodes: Mapping[str, NodeDef], starts: Iterable[str]) -> set[str]:
    """Returns the names of nodes, and of all that they read, wait for or are colocated with."""
    stack = list(starts)
    needed = set(stack)
    while stack:
        node = nodes.get(stack.pop())
        if node is None:
            continue
        sources = [source_of(tensor) for tensor in node.input]
        if "_class" in node.attr:
            # The import fails where the node of a colocation is missing.
            sources += [
                text_of_bytes(name).removeprefix("loc:@") for name in node.attr["_class"].list.s
            ]
        for source in sources:
            if source not in needed:
                needed.add(source)
                stack.append(source)
    return needed


def _called(nodes: Iterable[NodeDef], library: Mapping[str, Any]) -> set[str]:
    """Returns the names of the functions that nodes call, and of their alternatives."""
    alternatives: dict[bytes, list[str]] = {}
    for name, function in library.items():
        implements = attribute(function, _ALTERNATIVES).s
        if implements:
            alternatives.setdefault(implements, []).append(name)
    called: set[str] = set()
    bodies = [nodes]
    while bodies:
        for node in bodies.pop():
            for name in called_functions(node, library):
                if name not in library or name in called:
                    continue
                others = alternatives.get(attribute(library[name], _ALTERNATIVES).s, ())
                for one in {name, *others} - called:
                    called.add(one)
                    bodies.append(library[one].node_def)
    return called


def drop_unused_info(meta_graph: MetaGraphDef, functions: Collection[str]) -> None:
    """Drops the op definitions and the names of functions that the graph does not use."""
    info = meta_graph.meta_info_def
    graph_def = meta_graph.graph_def
    ops = {node.op for node in graph_def.node}
    ops.update(node.op for function in graph_def.library.function for node in function.node_def)
    used = [one for one in info.stripped_op_list.op if one.name in ops]
    info.stripped_op_list.ClearField("op")
    info.stripped_op_list.op.extend(used)
    for name in [name for name in info.function_aliases if name not in functions]:
        del info.function_aliases[name]
