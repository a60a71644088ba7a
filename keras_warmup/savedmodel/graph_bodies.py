"""Graph bodies - the main graph, or one function of the library - as something to walk through."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from keras_warmup.savedmodel.graph_limits import text_of_bytes

_EMPTY = tf.compat.v1.AttrValue()


@dataclasses.dataclass(frozen=True)
class Call:
    """One function called by a node.

    Attributes:
        function: name in the function library.
        role: attribute that names it: `f`, `then_branch`, `body`, ...; empty where the op itself is the function.
        offset: argument i is the node's input i + offset; `None` where the mapping is not known (dataset ops).
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
        nodes: Iterable[Any],
        args: tuple[str, ...] = (),
        returns: tuple[str, ...] = (),
        control_returns: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.nodes: dict[str, Any] = {node.name: node for node in nodes}
        self.args = args
        self.returns = returns
        self.control_returns = control_returns
        self._sources: dict[str, list[str]] = {}

    def sources(self, name: str, fed: frozenset[str] = frozenset()) -> list[str]:
        """Names of the nodes and arguments that a node reads or waits for, tensors that are `fed` left out."""
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
        """Names that a function runs for: what it returns and its side effects."""
        return [*map(source_of, self.returns), *self.control_returns]

    def ancestors(self, names: Iterable[str], fed: frozenset[str] = frozenset()) -> Iterator[str]:
        """Names of the nodes and arguments reachable backwards, the given ones included; not through tensors that are `fed`."""
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
        """Argument name -> position."""
        return {name: index for index, name in enumerate(self.args)}

    @functools.cached_property
    def readers(self) -> dict[str, list[tuple[Any, int]]]:
        """Node or argument name -> the `(node, input index)` pairs that read any of its outputs."""
        found: dict[str, list[tuple[Any, int]]] = {}
        for node in self.nodes.values():
            for index, tensor in enumerate(node.input):
                if not tensor.startswith("^"):
                    found.setdefault(source_of(tensor), []).append((node, index))
        return found

    @functools.cached_property
    def returned(self) -> dict[str, list[int]]:
        """Node or argument name -> positions at which any of its outputs is returned."""
        found: dict[str, list[int]] = {}
        for index, tensor in enumerate(self.returns):
            found.setdefault(source_of(tensor), []).append(index)
        return found


@dataclasses.dataclass(frozen=True)
class CallFrame:
    """A body being run: the main graph (`caller` is None), or a function called by `node` of the frame `caller`.

    `path` names the calls that led here: two frames with equal paths are the same.
    """

    body: GraphBody
    caller: CallFrame | None = None
    node: Any = None
    call: Call | None = None
    path: tuple[str, ...] = ()


def source_of(tensor: str) -> str:
    """Node or argument name of an input: `x` of `x`, `x:0`, `x:output:0` and `^x`."""
    name = tensor.partition(":")[0]
    return name[1:] if name.startswith("^") else name


def canonical(tensor: str) -> str:
    """Name of a main graph tensor with its output: `x:0` of `x`."""
    return tensor if ":" in tensor else f"{tensor}:0"


def output_index(tensor: str) -> int:
    """Position in the (only) output list of a node: 2 of `x:2` and `x:output:2`, 0 of `x`."""
    last = tensor.rpartition(":")[2] if ":" in tensor else "0"
    # No node has 10^9 outputs; int() refuses very long numbers, and digits of other scripts are digits too.
    return int(last) if len(last) <= 9 and last.isascii() and last.isdigit() else 0


def input_of(node: Any, index: int) -> str | None:
    """The tensor that a node reads as input `index`; `None` where it has no such input."""
    if not 0 <= index < len(node.input) or node.input[index].startswith("^"):
        return None
    return str(node.input[index])


def identity_of(variable: Any) -> tuple[str, str]:
    """What makes two variable nodes the same variable in a Session: container and shared name (else node name)."""
    container, shared_name = (
        text_of_bytes(attribute(variable, name).s) for name in ("container", "shared_name")
    )
    return container, shared_name or variable.name


def attribute(node: Any, name: str) -> Any:
    """An attribute of a NodeDef or FunctionDef, empty where it is not set; `node.attr[name]` would change the proto."""
    return node.attr.get(name, _EMPTY)
