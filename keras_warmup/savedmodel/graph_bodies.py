"""Bodies of a graph (the main graph, and the functions of its library) in a form for walks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from keras_warmup._protos import NodeDef
from keras_warmup.savedmodel.graph_limits import text_of_bytes

_EMPTY = tf.compat.v1.AttrValue()


@dataclasses.dataclass(frozen=True)
class Call:
    """One function called by a node.

    Attributes:
        function: name in the function library.
        role: attribute that names the function: `f`, `then_branch`, `body`, ...; empty where the op
            itself is the function.
        offset: argument i is the node's input i + offset; `None` where the mapping is not known
            (dataset ops).
    """

    function: str
    role: str
    offset: int | None


class GraphBody:
    """The nodes of the main graph, or of one function.

    Attributes:
        name: function name; empty for the main graph.
        nodes: node name -> NodeDef.
        args: names of the function's arguments, in order.
        returns: tensors returned, in order.
        control_returns: nodes that run for their side effects.
    """

    def __init__(
        self,
        name: str,
        nodes: Iterable[NodeDef],
        args: tuple[str, ...] = (),
        returns: tuple[str, ...] = (),
        control_returns: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.nodes: dict[str, NodeDef] = {node.name: node for node in nodes}
        self.args = args
        self.returns = returns
        self.control_returns = control_returns
        self._sources: dict[str, list[str]] = {}

    def sources(self, name: str, fed: frozenset[str] = frozenset()) -> list[str]:
        """Returns the names of the nodes and arguments that a node reads or waits for.

        Args:
            name: name of the node.
            fed: tensors whose values are given; the nodes that compute them are left out.
        """
        if name not in self._sources:
            self._sources[name] = [source_of(tensor) for tensor in self.nodes[name].input]
        sources = self._sources[name]
        if fed and not self._sources_of(fed).isdisjoint(sources):
            inputs = self.nodes[name].input
            return [
                source
                for source, tensor in zip(sources, inputs, strict=True)
                if canonical(tensor) not in fed
            ]
        return sources

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def _sources_of(fed: frozenset[str]) -> frozenset[str]:
        return frozenset(map(source_of, fed))

    @property
    def roots(self) -> list[str]:
        """Returns the names of the nodes that a function runs for: its returns and side effects."""
        return [*map(source_of, self.returns), *self.control_returns]

    def ancestors(self, names: Iterable[str], fed: frozenset[str] = frozenset()) -> Iterator[str]:
        """Yields the names of the nodes and arguments that some nodes depend on, and their own.

        Args:
            names: names of the nodes to start from.
            fed: tensors whose values are given; the search does not go through them.
        """
        stack = list(names)
        seen = set(stack)
        while stack:
            name = stack.pop()
            yield name
            for source in self.sources(name, fed) if name in self.nodes else ():
                if source not in seen:
                    seen.add(source)
                    stack.append(source)

    @functools.cached_property
    def arg_index(self) -> dict[str, int]:
        """Returns argument name -> position."""
        return {name: index for index, name in enumerate(self.args)}

    @functools.cached_property
    def readers(self) -> dict[str, list[tuple[Any, int]]]:
        """Returns node or argument name -> the `(NodeDef, input index)` that read its outputs."""
        found: dict[str, list[tuple[Any, int]]] = {}
        for node in self.nodes.values():
            for index, tensor in enumerate(node.input):
                if not tensor.startswith("^"):
                    found.setdefault(source_of(tensor), []).append((node, index))
        return found

    @functools.cached_property
    def returned(self) -> dict[str, list[int]]:
        """Returns node or argument name -> positions at which its outputs are returned."""
        found: dict[str, list[int]] = {}
        for index, tensor in enumerate(self.returns):
            found.setdefault(source_of(tensor), []).append(index)
        return found


@dataclasses.dataclass(frozen=True)
class CallFrame:
    """A body while it runs: the main graph, or a function that a node calls.

    Attributes:
        body: the body.
        caller: frame of the node that calls the function; `None` for the main graph.
        node: NodeDef that calls the function; `None` for the main graph.
        call: the call; `None` for the main graph.
        path: names of the nodes and functions on the way here; equal for equal frames.
    """

    body: GraphBody
    caller: CallFrame | None = None
    node: Any = None
    call: Call | None = None
    path: tuple[str, ...] = ()


def source_of(tensor: str) -> str:
    """Returns the node or argument name of an input: `x` of `x`, `x:0`, `x:output:0` and `^x`."""
    name = tensor.partition(":")[0]
    return name[1:] if name.startswith("^") else name


def canonical(tensor: str) -> str:
    """Returns the name of a main graph tensor with its output index: `x:0` of `x`."""
    return tensor if ":" in tensor else f"{tensor}:0"


def output_index(tensor: str) -> int:
    """Returns the index of an output of a node: 2 of `x:2` and `x:output:2`, 0 of `x`."""
    last = tensor.rpartition(":")[2] if ":" in tensor else "0"
    # No node has 10^9 outputs, int() refuses very long numbers, and digits of other scripts count
    # as digits too.
    return int(last) if len(last) <= 9 and last.isascii() and last.isdigit() else 0


def input_of(node: NodeDef, index: int) -> str | None:
    """Returns the tensor that a node reads as input `index`; `None` where it has no such input."""
    if not 0 <= index < len(node.input) or node.input[index].startswith("^"):
        return None
    return str(node.input[index])


def identity_of(variable: NodeDef) -> tuple[str, str]:
    """Returns the identity of a variable in a Session: container and shared name (or node name)."""
    container, shared_name = (
        text_of_bytes(attribute(variable, name).s) for name in ("container", "shared_name")
    )
    return container, shared_name or variable.name


def attribute(node: Any, name: str) -> Any:
    """Returns an attribute of a NodeDef or FunctionDef; an empty one where it is not set.

    `node.attr[name]` would add the attribute to the proto.
    """
    return node.attr.get(name, _EMPTY)
