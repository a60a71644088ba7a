"""Reads which argument of the exported function each input of a signature is."""

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
from keras_warmup.savedmodel.function_digests import FunctionDigests
from keras_warmup.savedmodel.graph_limits import VisitBudget

_CALL_OPS = ("PartitionedCall", "StatefulPartitionedCall")


class ArgumentStructures:
    """The arguments of the function behind each signature, as far as the file holds them.

    In the main graph a signature calls a wrapper. The wrapper calls the exported function with the
    same tensors, in the order in which the arguments of that function flatten. So input names are
    paired with arguments along the tensors, and are never guessed from names.

    Args:
        meta_graph: the MetaGraphDef of the signatures; `graph_limits.check_graph` has accepted it.
    """

    def __init__(self, meta_graph: MetaGraphDef) -> None:
        self._budget = VisitBudget.of(meta_graph.graph_def)
        self._nodes = {node.name: node for node in meta_graph.graph_def.node}
        self._functions: dict[str, FunctionDef] = {
            function.signature.name: function for function in meta_graph.graph_def.library.function
        }
        self._concrete_functions = meta_graph.object_graph_def.concrete_functions
        self._digests = FunctionDigests(self._functions, self._budget)

    def of(self, definition: SignatureDef) -> Any:
        """Returns `Signature.structure` of a signature; `None` where the file does not hold it."""
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
        # The components of a ragged or sparse argument are inputs that `count` does not include.
        if count != len(definition.inputs) or set(passed[:count]) != set(definition.inputs):
            return None
        if any(map(_count_tensors, keywords)):
            return None
        input_names = iter(passed)
        arguments = [_fill(argument, input_names) for argument in positional]
        # `mask=None` and the like are defaults of the function.
        while arguments and arguments[-1] is None:
            arguments.pop()
        return tuple(arguments)

    def _called_by(self, node: NodeDef | None) -> FunctionDef | None:
        if node is None or node.op not in _CALL_OPS:
            return None
        return self._functions.get(node.attr["f"].func.name)

    def _arguments_of(
        self, function: FunctionDef
    ) -> tuple[list[StructuredValue], list[StructuredValue]]:
        """Returns the positional and the keyword arguments of an exported function.

        A concrete function given as `signatures=` is not in the object graph itself. A second trace
        of the same Python function usually is: its name differs in the number only, and its
        argument names and body are equal. A function that only has the same name may take the same
        tensors in another order, and using it would swap them.
        """
        name = function.signature.name
        traces = [name] if name in self._concrete_functions else []
        if not traces:
            self._budget.spend(len(self._concrete_functions), name)
            stem = name.rpartition("_")[0]
            same = [other for other in self._concrete_functions if other.rpartition("_")[0] == stem]
            traces = [other for other in same if self._is_second_trace(function, other)]
        found = [
            self._concrete_functions[trace].canonicalized_input_signature.tuple_value.values
            for trace in traces
        ]
        if not found or any(parts != found[0] for parts in found) or len(found[0]) != 2:
            return [], []
        positional, keywords = found[0]
        return list(positional.tuple_value.values), list(keywords.dict_value.fields.values())

    def _is_second_trace(self, function: FunctionDef, other: str) -> bool:
        digest = self._digests.of(other)
        return (
            digest is not None
            and digest == self._digests.of(function.signature.name)
            and _user_names_of(function) == _user_names_of(self._functions[other])
        )


def _user_names_of(function: FunctionDef) -> dict[int, bytes]:
    """Returns the names that the user gave to arguments, by position."""
    return {
        index: attributes.attr["_user_specified_name"].s
        for index, attributes in function.arg_attr.items()
        if "_user_specified_name" in attributes.attr
    }


def _children(value: StructuredValue) -> list[StructuredValue]:
    """Returns the children of a structure in flatten order: dict keys sorted, sequences as is."""
    match value.WhichOneof("kind"):
        case "tuple_value":
            return list(value.tuple_value.values)
        case "list_value":
            return list(value.list_value.values)
        case "dict_value":
            return [value.dict_value.fields[key] for key in sorted(value.dict_value.fields)]
        case "named_tuple_value":
            return [pair.value for pair in value.named_tuple_value.values]
        case _:
            return []


def _count_tensors(value: StructuredValue) -> int:
    if value.WhichOneof("kind") in ("tensor_spec_value", "bounded_tensor_spec_value"):
        return 1
    return sum(_count_tensors(child) for child in _children(value))


def _fill(value: StructuredValue, input_names: Iterator[str | None]) -> Any:
    """Returns the structure with the next one of `input_names` in place of each tensor."""
    match value.WhichOneof("kind"):
        case "tensor_spec_value" | "bounded_tensor_spec_value":
            return next(input_names)
        case "list_value":
            return [_fill(child, input_names) for child in _children(value)]
        case "tuple_value" | "named_tuple_value":
            return tuple(_fill(child, input_names) for child in _children(value))
        case "dict_value":
            return {
                key: _fill(value.dict_value.fields[key], input_names)
                for key in sorted(value.dict_value.fields)
            }
        case _:
            # A Python value (`training=False`) or None, which tracing made part of the function.
            return None


def _tensors_of(info: TensorInfo) -> list[str]:
    """Returns the names of the graph tensors of an input or output; a composite one has several."""
    match info.WhichOneof("encoding"):
        case "composite_tensor":
            return [
                name
                for component in info.composite_tensor.components
                for name in _tensors_of(component)
            ]
        case "coo_sparse":
            return [
                info.coo_sparse.indices_tensor_name,
                info.coo_sparse.values_tensor_name,
                info.coo_sparse.dense_shape_tensor_name,
            ]
        case _:
            return [info.name]
