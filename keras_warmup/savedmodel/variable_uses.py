"""Finds which variables of a graph TensorFlow can convert to constants.

Follows `convert_variables_to_constants` (tensorflow/python/framework/convert_to_constants.py): it
replaces the node of a variable with a constant, and what reads it with an op that takes a value. It
follows the variable into the functions that it knows how to change, and silently leaves other ops
as they are: the graph would be damaged. A function exists once for all its callers, so what one
caller passes to an argument must be converted with what each other caller passes to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import tensorflow as tf

from keras_warmup._protos import NodeDef, registered_op
from keras_warmup.savedmodel.graph import LOOPS, VARIABLES, ModelGraph
from keras_warmup.savedmodel.graph_bodies import (
    GraphBody,
    attribute,
    identity_of,
    output_index,
    source_of,
)
from keras_warmup.savedmodel.graph_limits import place_of
from keras_warmup.savedmodel.ops import WRITES

# An argument of a function: name of the function, position.
_Argument: TypeAlias = tuple[str, int]

_INT32 = tf.int32.as_datatype_enum
_CONVERTED_READS = frozenset({"ReadVariableOp", "ResourceGatherNd"})
_GATHER = "ResourceGather"
_PASSED_ON = frozenset({"Enter", "Exit", "Identity", "NextIteration", "Switch", "_SwitchN"})
_CONVERTED_CALLS = frozenset(
    {"PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "Case"} | LOOPS
)


@dataclasses.dataclass
class VariableUse:
    """What uses one variable.

    Attributes:
        node: its node in the main graph, a `VarHandleOp` or `VariableV2`.
        obstacle: why it must stay a variable; empty where it can become a constant.
        group: number of its group: all variables of a group become constants, or none does.
        gathers: `(function, node)` of each `ResourceGather` that reads it; the function is empty
            for the main graph.
    """

    node: NodeDef
    obstacle: str = ""
    group: int = 0
    gathers: set[tuple[str, str]] = dataclasses.field(default_factory=set)


def find_variable_uses(graph: ModelGraph) -> dict[str, VariableUse]:
    """Finds what uses the variables of the main graph.

    Args:
        graph: a graph that holds nothing but what a server runs (`served_graph.py`): each node of
            it counts as a use.

    Returns:
        Name of the node of a variable -> its use, in the order of the graph.

    Raises:
        SignatureError: the graph is larger than any that is read.
    """
    return _Tracer(graph).trace()


def variables_in_functions(graph: ModelGraph) -> Iterator[tuple[str, NodeDef]]:
    """Yields `(function, node)` for each variable that a function itself makes."""
    for function in graph.meta_graph.graph_def.library.function:
        name = function.signature.name
        body = graph.function(name)
        for node in () if body is None else body.nodes.values():
            if node.op in VARIABLES:
                yield name, node


class _Tracer:
    """Follows the handle of each variable to the ops that use it."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._uses = {
            node.name: VariableUse(node)
            for node in graph.main.nodes.values()
            if node.op in VARIABLES
        }
        # Argument -> the variables that callers pass to it, and `(caller, node)` of those calls.
        self._passed: dict[_Argument, set[str]] = {}
        self._calls: dict[_Argument, set[tuple[str, str]]] = {}

    def trace(self) -> dict[str, VariableUse]:
        for use in self._uses.values():
            if use.node.op == "VarHandleOp":
                self._follow(use)
            else:
                self._check_reference(use)
        self._check_other_callers()
        self._check_functions()
        self._group()
        return self._uses

    def _follow(self, use: VariableUse) -> None:
        """Follows a handle through the main graph and the functions that it is passed to."""
        graph = self._graph
        # Body, node or argument, and the argument of the loop body that it is.
        stack: list[tuple[GraphBody, str, int | None]] = [(graph.main, use.node.name, None)]
        seen = set()
        while stack and not use.obstacle:
            body, name, position = stack.pop()
            if (body.name, name, position) in seen:
                continue
            seen.add((body.name, name, position))
            if any(returned != position for returned in body.returned.get(name, ())):
                use.obstacle = f"{place_of(body.name)} returns it"
            for node, index in body.readers.get(name, ()):
                graph.budget.spend(1, body.name)
                op = node.op
                if op in _CONVERTED_READS:
                    continue
                if op == _GATHER:
                    use.gathers.add((body.name, node.name))
                elif op in _PASSED_ON:
                    stack.append((body, node.name, position))
                elif op in _CONVERTED_CALLS:
                    stack += self._enter(use, body, node, index)
                else:
                    use.obstacle = _describe(op)

    def _enter(
        self, use: VariableUse, body: GraphBody, node: NodeDef, index: int
    ) -> Iterator[tuple[GraphBody, str, int | None]]:
        """Yields the arguments that input `index` of a calling node is passed to."""
        if node.op in LOOPS and _reads_output(body, node.name, index):
            use.obstacle = "it is used after a loop that passes it on"
        for call in self._graph.calls(node):
            inner = self._graph.function(call.function)
            position = index - (call.offset or 0)
            if inner is None or not 0 <= position < len(inner.args):
                use.obstacle = f"it is passed to {call.function!r}, which takes no such argument"
                return
            argument = (call.function, position)
            self._passed.setdefault(argument, set()).add(use.node.name)
            self._calls.setdefault(argument, set()).add((body.name, node.name))
            is_loop_body = node.op in LOOPS and call.role == "body"
            yield inner, inner.args[position], position if is_loop_body else None

    def _check_reference(self, use: VariableUse) -> None:
        """Checks the readers of a variable of TensorFlow 1, which need no op to read its value."""
        if use.node.op != "VariableV2":
            use.obstacle = f"it is a variable of the op {use.node.op}"
            return
        for node, _ in self._graph.main.readers.get(use.node.name, ()):
            self._graph.budget.spend(1, "")
            definition = registered_op(node.op)
            if not self._graph.has_function(node.op) and (
                definition is None or any(one.is_ref for one in definition.input_arg)
            ):
                use.obstacle = _describe(node.op)
                return

    def _check_other_callers(self) -> None:
        """Finds functions that are also called with something that is not followed."""
        arguments: dict[str, list[_Argument]] = {}
        for argument in self._passed:
            arguments.setdefault(argument[0], []).append(argument)
        for body in self._bodies():
            for node in body.nodes.values():
                for call in self._graph.calls(node):
                    for argument in arguments.get(call.function, ()):
                        self._graph.budget.spend(1, body.name)
                        if (body.name, node.name) not in self._calls[argument]:
                            self._refuse(
                                self._passed[argument],
                                f"{place_of(call.function)} is also called by the op {node.op} "
                                "with something else",
                            )

    def _check_functions(self) -> None:
        """Finds variables that a function makes again, by their identity in a Session."""
        names_of: dict[tuple[str, str], set[str]] = {}
        for name, use in self._uses.items():
            names_of.setdefault(identity_of(use.node), set()).add(name)
        for function, node in variables_in_functions(self._graph):
            self._refuse(
                names_of.get(identity_of(node), set()), f"{place_of(function)} holds it too"
            )

    def _refuse(self, names: set[str], obstacle: str) -> None:
        for name in names:
            self._uses[name].obstacle = self._uses[name].obstacle or obstacle

    def _group(self) -> None:
        """Numbers the groups: variables that meet in an argument, or are one in a Session."""
        meetings: dict[object, set[str]] = {}
        for argument, names in self._passed.items():
            meetings[argument] = names
        for name, use in self._uses.items():
            meetings.setdefault(("", *identity_of(use.node)), set()).add(name)
        lead = {name: name for name in self._uses}

        def lead_of(name: str) -> str:
            while lead[name] != name:
                lead[name] = lead[lead[name]]
                name = lead[name]
            return name

        for names in meetings.values():
            first, *others = names
            for other in others:
                lead[lead_of(other)] = lead_of(first)
        numbers: dict[str, int] = {}
        for name, use in self._uses.items():
            use.group = numbers.setdefault(lead_of(name), len(numbers))
        obstacles = {use.group: name for name, use in self._uses.items() if use.obstacle}
        for use in self._uses.values():
            if use.group in obstacles and not use.obstacle:
                use.obstacle = f"a function takes it or {obstacles[use.group]!r}, which stays one"

    def _bodies(self) -> Iterator[GraphBody]:
        yield self._graph.main
        for function in self._graph.meta_graph.graph_def.library.function:
            body = self._graph.function(function.signature.name)
            if body is not None:
                yield body


def _describe(op: str) -> str:
    if WRITES.match(op):
        return f"the op {op} writes it"
    return f"TensorFlow does not convert the op {op}, which uses it"


def _reads_output(body: GraphBody, name: str, index: int) -> bool:
    """Returns whether output `index` of a node is read or returned."""
    tensors = [node.input[position] for node, position in body.readers.get(name, ())]
    tensors += [tensor for tensor in body.returns if source_of(tensor) == name]
    return any(output_index(tensor) == index for tensor in tensors)


def split_gathers(graph: ModelGraph, uses: Mapping[str, VariableUse]) -> None:
    """Replaces gathers from variables with a read and a gather from the value.

    TensorFlow's conversion leaves `ResourceGather` as it is inside of functions.

    Args:
        graph: the graph; its GraphDef is changed, so it must not be walked afterwards.
        uses: the variables that become constants.
    """
    places = {place for use in uses.values() for place in use.gathers}
    graph_def = graph.meta_graph.graph_def
    bodies = [("", graph_def.node)]
    bodies += [(one.signature.name, one.node_def) for one in graph_def.library.function]
    for function, nodes in bodies:
        names = {name for one, name in places if one == function}
        if not names:
            continue
        taken = {node.name for node in nodes}
        body = graph.function(function) if function else None
        taken.update(body.args if body is not None else ())
        for node in [node for node in nodes if node.name in names]:
            _split_gather(node, nodes, taken, in_function=bool(function))


def _split_gather(node: NodeDef, nodes: Any, taken: set[str], *, in_function: bool) -> None:
    """Makes a `GatherV2` of a `ResourceGather`; outputs of both have the same name."""
    resource, indices, *controls = node.input
    batch_dims = attribute(node, "batch_dims").i
    dtype, index_type = node.attr["dtype"].type, node.attr["Tindices"].type
    read, axis = (_free_name(f"{node.name}/{name}", taken) for name in ("read", "axis"))
    reader = nodes.add(name=read, op="ReadVariableOp", input=[resource], device=node.device)
    reader.attr["dtype"].type = dtype
    constant = nodes.add(name=axis, op="Const", device=node.device)
    constant.attr["dtype"].type = _INT32
    constant.attr["value"].tensor.dtype = _INT32
    constant.attr["value"].tensor.tensor_shape.SetInParent()
    constant.attr["value"].tensor.int_val.append(batch_dims)
    del node.input[:]
    node.input.extend(
        [
            f"{read}:value:0" if in_function else read,
            indices,
            f"{axis}:output:0" if in_function else axis,
            *controls,
        ]
    )
    node.op = "GatherV2"
    for name in [name for name in node.attr if name != "_output_shapes"]:
        del node.attr[name]
    node.attr["Tparams"].type = dtype
    node.attr["Tindices"].type = index_type
    node.attr["Taxis"].type = _INT32
    if batch_dims:
        node.attr["batch_dims"].i = batch_dims


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_1"
    taken.add(name)
    return name
