"""Finds the copies of variables that Keras 3 writes into a SavedModel, and makes them one.

`keras.Variable._export_to_saved_model_graph` (keras/src/backend/tensorflow/core.py) exports its
value as one variable of the graph, the *original*, and itself as a second one,
`tf.Variable(original)`, the *copy*. The initial value of the copy reads the original, so the graph
says which variable is a copy of which. Two faults come from it:

- `tf.saved_model.save` of a Keras model tracks the `keras.Variable` alone. The restore op fills the
  copies, and the signatures read the originals: no Session can run them.
- `model.export` and `ExportArchive` track the `keras.Variable` and its value. The checkpoint holds
  each weight twice, and a server restores both.

In both cases the restore op is made to fill each original once, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, TrackableObjectGraph
from keras_warmup.errors import SignatureError
from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.graph_bodies import (
    CallFrame,
    attribute,
    input_of,
    output_index,
    source_of,
)
from keras_warmup.savedmodel.graph_limits import constant_value, functions_in, text_of_bytes

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
# What tf.Variable adds to a graph beside the handle, for its own use.
_OWN_NODES = frozenset({"AssignVariableOp", "ReadVariableOp", "VarIsInitializedOp"})


@dataclasses.dataclass(frozen=True)
class RestoredVariable:
    """A variable that the restore op fills.

    Attributes:
        key: its key in the checkpoint.
        handle: name of its VarHandleOp in the main graph.
        restore: name of the RestoreV2 node, in the function of the restore op, that reads it.
        position: which output of that node.
        nodes: names of the nodes of the function that assign it, and of those between.
    """

    key: str
    handle: str
    restore: str
    position: int
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class VariableCopies:
    """The copies in a SavedModel.

    Attributes:
        originals: VarHandleOp of a copy -> VarHandleOp of its original.
        unfilled: VarHandleOps of originals that the graph reads and the restore op does not fill.
        doubled: copies of which the original is filled too, or that are filled twice -> the
            checkpoint key of the original.
        dtypes: checkpoint key -> number of the dtype, for each tensor that the restore op reads as
            a whole.
    """

    originals: Mapping[str, str]
    unfilled: frozenset[str]
    doubled: Mapping[RestoredVariable, str]
    dtypes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def find_copies(graph: ModelGraph) -> VariableCopies:
    """Finds the copies of variables in a graph that TensorFlow 2 saved.

    Args:
        graph: the graph of the model.

    Returns:
        The copies that make one of the two faults; empty for a graph without an object graph.
    """
    restored, dtypes = _read_restore_op(graph)
    if not graph.meta_graph.object_graph_def.nodes:
        return VariableCopies({}, frozenset(), {})
    by_handle: dict[str, list[RestoredVariable]] = {}
    for variable in restored:
        by_handle.setdefault(variable.handle, []).append(variable)
    originals: dict[str, str] = {}
    unfilled: set[str] = set()
    doubled: dict[RestoredVariable, str] = {}
    for variables in by_handle.values():
        first, *others = variables
        doubled.update(dict.fromkeys(others, first.key))
    links = _links(graph)
    copies_of: dict[str, list[str]] = {}
    for copy, original in links.items():
        copies_of.setdefault(original, []).append(copy)
    for original, copies in copies_of.items():
        filled = [copy for copy in copies if copy in by_handle]
        if original in by_handle:
            for copy in filled:
                originals[copy] = original
                doubled.update(dict.fromkeys(by_handle[copy], by_handle[original][0].key))
        elif len(filled) == 1 and _is_used(graph, original):
            originals[filled[0]] = original
            unfilled.add(original)
    return VariableCopies(originals, frozenset(unfilled), doubled, dtypes)


def merge_copies(meta_graph: MetaGraphDef, copies: VariableCopies) -> None:
    """Makes the restore op fill each original once, in place of the copies.

    Signatures, tensors that they name, and functions stay as they are; the copies and the nodes
    that only they use are removed from the main graph.

    Args:
        meta_graph: the MetaGraphDef to change.
        copies: those of `find_copies`, or some of them.

    Raises:
        SignatureError: the restore op has another form than TensorFlow gives it.
    """
    graph_def = meta_graph.graph_def
    if copies.doubled:
        call = next(
            node for node in graph_def.node if node.name == meta_graph.saver_def.restore_op_name
        )
        name = call.attr["f"].func.name
        function = next(one for one in graph_def.library.function if one.signature.name == name)
        _drop_restored(function, copies.doubled)
    removed = _own_nodes(meta_graph, copies.originals)
    _remove_nodes(graph_def.node, removed)
    for node in graph_def.node:
        for index, tensor in enumerate(node.input):
            name = source_of(tensor)
            if name in copies.originals:
                node.input[index] = tensor.replace(name, copies.originals[name], 1)


def saved_nodes_of(
    meta_graph: MetaGraphDef, object_graph: TrackableObjectGraph
) -> dict[str, tuple[int, int]]:
    """Finds the objects that the checkpoint keys belong to.

    Args:
        meta_graph: the MetaGraphDef, for its object graph.
        object_graph: the object graph of the checkpoint.

    Returns:
        Checkpoint key -> (number of the node in the object graph of the SavedModel, number in that
        of the checkpoint). Objects that do not have the same path in both are left out.

    Raises:
        SignatureError: an object graph names a node that it does not have.
    """
    saved = meta_graph.object_graph_def
    for graph in (saved, object_graph):
        _check_references(graph)
    number_of = {0: 0}
    stack = [0]
    contradicted: set[int] = set()
    while stack:
        number = stack.pop()
        children = {one.local_name: one.node_id for one in saved.nodes[number_of[number]].children}
        for child in object_graph.nodes[number].children:
            if child.local_name not in children:
                continue
            other = children[child.local_name]
            if child.node_id not in number_of:
                number_of[child.node_id] = other
                stack.append(child.node_id)
            elif number_of[child.node_id] != other:
                contradicted.add(child.node_id)
    return {
        one.checkpoint_key: (number_of[number], number)
        for number, node in enumerate(object_graph.nodes)
        if number in number_of and number not in contradicted
        for one in node.attributes
    }


def are_equal_variables(meta_graph: MetaGraphDef, one: int, other: int) -> bool:
    """Returns whether two nodes of the object graph are variables that can be one.

    Their names, dtypes, shapes and flags must be equal, and they must not hold anything else.
    """
    nodes = [meta_graph.object_graph_def.nodes[number] for number in (one, other)]
    return (
        one != other
        and all(
            node.WhichOneof("kind") == "variable"
            and not node.children
            and not node.dependencies
            and not node.slot_variables
            and not node.saveable_objects
            and not node.registered_name
            and not node.registered_saver
            for node in nodes
        )
        and nodes[0].variable == nodes[1].variable
    )


def merge_objects(graph: Any, merged: Mapping[int, int]) -> None:
    """Removes nodes of an object graph; what refers to them refers to the kept ones then.

    Args:
        graph: a `SavedObjectGraph` or a `TrackableObjectGraph`.
        merged: number of a removed node -> number of the node that takes its place, which is kept.
    """
    kept = [number for number in range(len(graph.nodes)) if number not in merged]
    new = {number: index for index, number in enumerate(kept)}
    new.update({number: new[target] for number, target in merged.items()})
    for node in graph.nodes:
        for reference in (*node.children, *getattr(node, "dependencies", ())):
            reference.node_id = new[reference.node_id]
        for slot in node.slot_variables:
            slot.original_variable_node_id = new[slot.original_variable_node_id]
            slot.slot_variable_node_id = new[slot.slot_variable_node_id]
        for saveable in getattr(node, "saveable_objects", {}).values():
            saveable.save_function = new[saveable.save_function]
            saveable.restore_function = new[saveable.restore_function]
    for function in getattr(graph, "concrete_functions", {}).values():
        function.bound_inputs[:] = [new[number] for number in function.bound_inputs]
    for number in sorted(merged, reverse=True):
        del graph.nodes[number]


def _check_references(graph: Any) -> None:
    """Checks that the nodes of an object graph name nodes that exist."""
    numbers: set[int] = {0}
    for node in graph.nodes:
        numbers.update(
            child.node_id for child in (*node.children, *getattr(node, "dependencies", ()))
        )
        for slot in node.slot_variables:
            numbers |= {slot.original_variable_node_id, slot.slot_variable_node_id}
        for saveable in getattr(node, "saveable_objects", {}).values():
            numbers |= {saveable.save_function, saveable.restore_function}
    for function in getattr(graph, "concrete_functions", {}).values():
        numbers.update(function.bound_inputs)
    if min(numbers) < 0 or max(numbers) >= len(graph.nodes):
        raise SignatureError(
            "Cannot read the object graph of the SavedModel: it names a node that it does not "
            "have. Export the model again."
        )


def _read_restore_op(graph: ModelGraph) -> tuple[list[RestoredVariable], dict[str, int]]:
    """Returns what the restore op fills, and the dtypes of the tensors that it reads.

    As TensorFlow 2 writes it, it calls a function with the handles, which reads tensors from the
    checkpoint with RestoreV2 and assigns them. What has another form is left out.
    """
    call = graph.main.nodes.get(graph.meta_graph.saver_def.restore_op_name)
    called = functions_in(attribute(call, "f")) if call is not None else []
    body = graph.function(called[0].name) if called else None
    if call is None or call.op not in _CALLS or body is None:
        return [], {}
    main = CallFrame(graph.main)
    keys = {
        node.name: _keys_of(graph, body.nodes, node)
        for node in body.nodes.values()
        if node.op == "RestoreV2"
    }
    dtypes = {
        key: number
        for name, read in keys.items()
        for key, number in zip(read, attribute(body.nodes[name], "dtypes").list.type, strict=False)
        if key
    }
    found = []
    for node in body.nodes.values():
        if node.op != "AssignVariableOp" or len(node.input) < 2:
            continue
        index = body.arg_index.get(source_of(node.input[0]))
        handle = None if index is None else graph.origin(main, input_of(call, index))
        names = [node.name]
        tensor = input_of(node, 1) or ""
        source = body.nodes.get(source_of(tensor))
        while source is not None and source.op == "Identity" and source.name not in names:
            names.append(source.name)
            tensor = input_of(source, 0) or ""
            source = body.nodes.get(source_of(tensor))
        if handle is None or handle[1].op != "VarHandleOp":
            continue
        if source is None or source.op != "RestoreV2":
            continue
        position = output_index(tensor)
        if position < len(keys[source.name]) and keys[source.name][position]:
            found.append(
                RestoredVariable(
                    keys[source.name][position],
                    handle[1].name,
                    source.name,
                    position,
                    tuple(names),
                )
            )
    return found, dtypes


def _keys_of(graph: ModelGraph, nodes: Mapping[str, Any], restore: Any) -> list[str]:
    """Returns the keys that a RestoreV2 reads whole; an empty string for a slice of a tensor."""
    constants = [nodes.get(source_of(input_of(restore, index) or "")) for index in (1, 2)]
    if any(node is None or node.op != "Const" for node in constants):
        return []
    names, slices = (constant_value(node, graph.budget, "") for node in constants)
    if names is None or slices is None or names.shape != slices.shape:
        return []
    return [
        "" if part else bytes(name).decode()
        for name, part in zip(names.ravel(), slices.ravel(), strict=True)
    ]


def _links(graph: ModelGraph) -> dict[str, str]:
    """Returns the VarHandleOps whose initial value reads another variable -> that of the other.

    An initializer that the init op runs, or that restoring runs, is none of Keras.
    """
    run = set(graph.main.ancestors([*graph.init_nodes, *graph.restore_nodes]))
    main = CallFrame(graph.main)
    links: dict[str, str] = {}
    for node in graph.main.nodes.values():
        if node.op != "AssignVariableOp" or node.name in run:
            continue
        copy = graph.origin(main, input_of(node, 0))
        original = graph.origin(main, input_of(node, 1))
        if (
            copy is not None
            and original is not None
            and copy[1].op == original[1].op == "VarHandleOp"
            and copy[1].name != original[1].name
            and attribute(copy[1], "dtype") == attribute(original[1], "dtype")
            and attribute(copy[1], "shape") == attribute(original[1], "shape")
        ):
            links[copy[1].name] = original[1].name
    return links


def _is_used(graph: ModelGraph, handle: str) -> bool:
    """Returns whether anything but the nodes that `tf.Variable` adds for itself takes a handle."""
    return any(node.op not in _OWN_NODES for node, _ in graph.main.readers.get(handle, ()))


def _drop_restored(function: Any, dropped: Iterable[RestoredVariable]) -> None:
    """Removes variables from the function of the restore op."""
    nodes = {node.name: node for node in function.node_def}
    readers: dict[str, set[str]] = {}
    for node in function.node_def:
        for tensor in node.input:
            readers.setdefault(source_of(tensor), set()).add(node.name)
    removed: set[str] = set()
    positions: dict[str, set[int]] = {}
    for variable in dropped:
        # From the assignment back to RestoreV2: a node that something else reads stays.
        for name in variable.nodes:
            data = {
                reader
                for reader in readers.get(name, set()) - removed
                if any(
                    source_of(tensor) == name and not tensor.startswith("^")
                    for tensor in nodes[reader].input
                )
            }
            if data:
                _refuse_restore("a value that it restores has other uses")
            removed.add(name)
        positions.setdefault(variable.restore, set()).add(variable.position)
    new_names: dict[str, str] = {}
    for name, dropped_positions in positions.items():
        new_names.update(_shrink_restore(nodes, readers, name, dropped_positions))
    for node in function.node_def:
        inputs = [
            new_names.get(tensor, tensor)
            for tensor in node.input
            if source_of(tensor) not in removed
        ]
        if inputs != list(node.input):
            node.input[:] = inputs
    for output in list(function.control_ret):
        if function.control_ret[output] in removed:
            del function.control_ret[output]
            function.signature.control_output.remove(output)
    _remove_nodes(function.node_def, removed)


def _remove_nodes(nodes: Any, names: Collection[str]) -> None:
    """Removes nodes from a repeated field, without a copy of the others."""
    for index in range(len(nodes) - 1, -1, -1):
        if nodes[index].name in names:
            del nodes[index]


def _shrink_restore(
    nodes: Mapping[str, Any],
    readers: Mapping[str, Collection[str]],
    name: str,
    dropped: Collection[int],
) -> dict[str, str]:
    """Removes outputs of a RestoreV2 node.

    Returns:
        The names of its tensors -> their new names.
    """
    node = nodes[name]
    dtypes = list(node.attr["dtypes"].list.type)
    kept = [position for position in range(len(dtypes)) if position not in dropped]
    if not kept:
        _refuse_restore("it restores the copies apart from the originals")
    for tensor in node.input[1:3]:
        constant = nodes[source_of(tensor)]
        if set(readers[constant.name]) != {name}:
            _refuse_restore("its list of names has other uses")
        values = tf.make_ndarray(constant.attr["value"].tensor).ravel()
        constant.attr["value"].tensor.CopyFrom(
            tf.make_tensor_proto([values[position] for position in kept], tf.string, [len(kept)])
        )
        _set_shapes(constant, [[len(kept)]])
    node.attr["dtypes"].list.type[:] = [dtypes[position] for position in kept]
    if "_output_shapes" in node.attr:
        shapes = list(node.attr["_output_shapes"].list.shape)
        if len(shapes) == len(dtypes):
            chosen = [shapes[position].SerializeToString() for position in kept]
            del node.attr["_output_shapes"].list.shape[:]
            for serialized in chosen:
                node.attr["_output_shapes"].list.shape.add().ParseFromString(serialized)
        else:
            del node.attr["_output_shapes"]
    return {
        f"{name}:tensors:{position}": f"{name}:tensors:{index}"
        for index, position in enumerate(kept)
    }


def _set_shapes(node: Any, shapes: Iterable[Iterable[int]]) -> None:
    if "_output_shapes" in node.attr:
        del node.attr["_output_shapes"].list.shape[:]
        for shape in shapes:
            proto = node.attr["_output_shapes"].list.shape.add()
            for size in shape:
                proto.dim.add().size = size


def _refuse_restore(why: str) -> None:
    raise SignatureError(
        f"Cannot change the restore op of the SavedModel: {why}. Export the model again with "
        "keras_warmup.save or export_with_warmup."
    )


def _own_nodes(meta_graph: MetaGraphDef, originals: Mapping[str, str]) -> set[str]:
    """Returns the names of the copies' handles and of the nodes that `tf.Variable` adds for them.

    A node that anything else reads or names stays.
    """
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    readers: dict[str, set[str]] = {}
    for node in nodes.values():
        for tensor in node.input:
            readers.setdefault(source_of(tensor), set()).add(node.name)
    named = {
        source_of(info.name)
        for definition in meta_graph.signature_def.values()
        for info in (*definition.inputs.values(), *definition.outputs.values())
    }
    named |= {
        source_of(name)
        for collection in meta_graph.collection_def.values()
        for name in collection.node_list.value
    }
    colocated: dict[str, set[str]] = {}
    for node in nodes.values():
        for place in attribute(node, "_class").list.s:
            colocated.setdefault(text_of_bytes(place).removeprefix("loc:@"), set()).add(node.name)
    removed: set[str] = set()
    for copy in originals:
        own = {
            name
            for name in readers.get(copy, ())
            if nodes[name].op in _OWN_NODES and not readers.get(name) and name not in named
        }
        # The reading of the original, which only the assignment of the copy uses.
        stack = [
            source_of(nodes[name].input[1])
            for name in own
            if nodes[name].op == "AssignVariableOp" and len(nodes[name].input) > 1
        ]
        removed |= own
        while stack:
            name = stack.pop()
            is_unused = name in nodes and readers.get(name, set()) <= removed
            if is_unused and nodes[name].op in ("ReadVariableOp", "Identity") and name not in named:
                removed.add(name)
                stack += [source_of(tensor) for tensor in nodes[name].input]
        if copy not in named and colocated.get(copy, set()) <= {copy, *removed}:
            removed.add(copy)
    return removed
