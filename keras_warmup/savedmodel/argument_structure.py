"""Which argument of the exported function is which input of a signature, read from the SavedModel's object graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras_warmup._protos import (
    FunctionDef,
    MetaGraphDef,
    NodeDef,
    SignatureDef,
    StructuredValue,
    TensorInfo,
)
from keras_warmup.savedmodel.graph_limits import VisitBudget, functions_in

# Attributes of a node that number the trace, or say where the graph was made.
_TRACE_ATTRIBUTES = frozenset({"_gradient_op_type", "_construction_context", "config_proto"})
_CALL_OPS = ("PartitionedCall", "StatefulPartitionedCall")


class ArgumentStructures:
    """What the file tells of the arguments of the function behind each signature.

    Comparing functions follows their calls, which `graph_limits.check_graph` has found to end.

    In the main graph a signature calls a wrapper, which calls the exported function with the same tensors, in the order
    in which that function's own arguments flatten. So the pairing of input names with arguments is read along the
    tensors, never guessed from names.
    """

    def __init__(self, meta_graph: MetaGraphDef) -> None:
        self._budget = VisitBudget.of(meta_graph.graph_def)
        self._nodes = {node.name: node for node in meta_graph.graph_def.node}
        self._functions: dict[str, FunctionDef] = {
            function.signature.name: function for function in meta_graph.graph_def.library.function
        }
        self._concrete_functions = meta_graph.object_graph_def.concrete_functions
        self._alike: dict[tuple[str, str], bool] = {}

    def of(self, definition: SignatureDef) -> Any:
        """`Signature.structure` of a signature, or `None`."""
        callers = {
            name.split(":")[0] for info in definition.outputs.values() for name in _tensors_of(info)
        }
        caller = self._nodes.get(callers.pop()) if len(callers) == 1 else None
        wrapper = self._called_by(caller)
        if caller is None or wrapper is None:
            return None
        self._budget.spend(len(wrapper.node_def) + len(caller.input), wrapper.signature.name)
        calls = [node for node in wrapper.node_def if node.op in _CALL_OPS]
        exported = self._called_by(calls[0]) if len(calls) == 1 else None
        if exported is None:
            return None
        name_of_tensor = {info.name.split(":")[0]: name for name, info in definition.inputs.items()}
        name_of_argument = {
            argument.name: name_of_tensor.get(tensor.split(":")[0])
            for argument, tensor in zip(wrapper.signature.input_arg, caller.input, strict=False)
        }
        passed = [name_of_argument.get(tensor.split(":")[0]) for tensor in calls[0].input]

        self._budget.spend(len(calls[0].input), wrapper.signature.name)
        positional, keywords = self._arguments_of(exported)
        count = sum(map(_count_tensors, positional))
        self._budget.spend(count, wrapper.signature.name)
        if count != len(definition.inputs) or set(passed[:count]) != set(definition.inputs):
            return None
        if any(map(_count_tensors, keywords)):
            return None
        feed = iter(passed)
        try:
            arguments = [_fill(argument, feed) for argument in positional]
        except _Untold:
            return None
        while (
            arguments and arguments[-1] is None
        ):  # `mask=None` and the like: the function's own defaults
            arguments.pop()
        return tuple(arguments)

    def _called_by(self, node: NodeDef | None) -> FunctionDef | None:
        return (
            None
            if node is None or node.op not in _CALL_OPS
            else self._functions.get(node.attr["f"].func.name)
        )

    def _arguments_of(
        self, function: FunctionDef
    ) -> tuple[list[StructuredValue], list[StructuredValue]]:
        """Positional and keyword arguments of an exported function.

        A concrete function given as `signatures=` is not itself in the object graph; a second trace of the same Python
        function usually is: same name but for the number, same names of arguments, same body to the last node. A mere
        namesake may take the same tensors in another order, which would swap them.
        """
        name = function.signature.name
        traces = [name] if name in self._concrete_functions else []
        if not traces:
            self._budget.spend(len(self._concrete_functions), name)
            stem = name.rpartition("_")[0]
            same = [other for other in self._concrete_functions if other.rpartition("_")[0] == stem]
            traces = [other for other in same if self._are_alike(name, other)]
        found = [
            self._concrete_functions[trace].canonicalized_input_signature.tuple_value.values
            for trace in traces
        ]
        if not found or any(parts != found[0] for parts in found) or len(found[0]) != 2:
            return [], []
        positional, keywords = found[0]
        return list(positional.tuple_value.values), list(keywords.dict_value.fields.values())

    def _are_alike(self, name: str, other: str) -> bool:
        """Whether two functions are traces of the same code, those that they call included."""
        pair = (name, other)
        if name != other and pair not in self._alike:
            self._alike[pair] = True  # of a function that calls itself
            self._alike[pair] = self._bodies_alike(name, other)
        return name == other or self._alike[pair]

    def _bodies_alike(self, name: str, other: str) -> bool:
        one, two = self._functions.get(name), self._functions.get(other)
        if one is None or two is None or _interface_of(one) != _interface_of(two):
            return False
        if dict(one.ret) != dict(two.ret) or dict(one.control_ret) != dict(two.control_ret):
            return False
        self._budget.spend(len(one.node_def) + len(two.node_def), name)
        nodes = {node.name: node for node in two.node_def}
        return len(one.node_def) == len(two.node_def) and all(
            node.name in nodes and self._nodes_alike(node, nodes[node.name])
            for node in one.node_def
        )

    def _nodes_alike(self, node: NodeDef, other: NodeDef) -> bool:
        if (node.op, node.device, list(node.input)) != (other.op, other.device, list(other.input)):
            return False
        names = set(node.attr) - _TRACE_ATTRIBUTES
        return names == set(other.attr) - _TRACE_ATTRIBUTES and all(
            self._attributes_alike(node.attr[name], other.attr[name]) for name in names
        )

    def _attributes_alike(self, value: Any, other: Any) -> bool:
        called, also_called = functions_in(value), functions_in(other)
        if called and len(called) == len(also_called):
            return all(map(self._are_alike, called, also_called))
        # As bytes: NaN, which a proto may hold, differs from itself.
        return bool(
            value.SerializeToString(deterministic=True)
            == other.SerializeToString(deterministic=True)
        )


def _interface_of(
    function: FunctionDef,
) -> tuple[list[tuple[str, int, bytes]], list[tuple[str, int]]]:
    """Name, dtype and given name of each argument, name and dtype of each result."""
    arguments = [
        (argument.name, argument.type, function.arg_attr[index].attr["_user_specified_name"].s)
        if index in function.arg_attr and "_user_specified_name" in function.arg_attr[index].attr
        else (argument.name, argument.type, b"")
        for index, argument in enumerate(function.signature.input_arg)
    ]
    return arguments, [(result.name, result.type) for result in function.signature.output_arg]


class _Untold(Exception):
    """An argument that input names alone cannot describe."""


def _children(value: StructuredValue) -> list[StructuredValue]:
    """Children of a structure node in flatten order: dict keys sorted, sequences in place."""
    kind = value.WhichOneof("kind")
    if kind in ("tuple_value", "list_value"):
        return list(getattr(value, kind).values)
    if kind == "dict_value":
        return [value.dict_value.fields[key] for key in sorted(value.dict_value.fields)]
    if kind == "named_tuple_value":
        return [pair.value for pair in value.named_tuple_value.values]
    return []


def _count_tensors(value: StructuredValue) -> int:
    if value.WhichOneof("kind") in ("tensor_spec_value", "bounded_tensor_spec_value"):
        return 1
    return sum(_count_tensors(child) for child in _children(value))


def _fill(value: StructuredValue, feed: Iterator[str | None]) -> Any:
    """The structure with the next input name of `feed` at each tensor."""
    kind = value.WhichOneof("kind")
    if kind in ("tensor_spec_value", "bounded_tensor_spec_value"):
        return next(feed)
    if kind == "list_value":
        return [_fill(child, feed) for child in _children(value)]
    if kind in ("tuple_value", "named_tuple_value"):
        return tuple(_fill(child, feed) for child in _children(value))
    if kind == "dict_value":
        return {
            key: _fill(value.dict_value.fields[key], feed)
            for key in sorted(value.dict_value.fields)
        }
    if kind == "type_spec_value":  # ragged, sparse: more than one tensor behind one argument
        raise _Untold
    # A Python value (`training=False`) or None: the function fixed it when it was traced.
    return None


def _tensors_of(info: TensorInfo) -> list[str]:
    """Names of the graph tensors behind an input or output: several for a composite one."""
    encoding = info.WhichOneof("encoding")
    if encoding == "composite_tensor":
        return [
            name
            for component in info.composite_tensor.components
            for name in _tensors_of(component)
        ]
    if encoding == "coo_sparse":
        sparse = info.coo_sparse
        return [
            sparse.indices_tensor_name,
            sparse.values_tensor_name,
            sparse.dense_shape_tensor_name,
        ]
    return [info.name]
