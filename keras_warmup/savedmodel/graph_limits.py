"""Bounds of what is read from the graph of a SavedModel, so that a hostile one ends in an error and not in a hang.

Two mechanisms, instead of a check in each walk: `check_graph` looks once at names and at which function calls which, so
that every chain of calls is finite and short, and recursion along calls is safe; each owner of walks (a `ModelGraph`,
say) spends one `VisitBudget`, so that chains of calls that double at each level end as well.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from keras_warmup._protos import GraphDef, registered_op
from keras_warmup.errors import SignatureError

# Calls inside calls; Keras exports have 2 to 8.
MAX_CALL_DEPTH = 100
# Functions that one node names: the branches of a Case. Also attributes of an op that this TensorFlow does not have, where
# all are looked at.
MAX_BRANCHES = 1000
# Of the main graph and all functions; `inspect` takes up to 10 us for each. EfficientNetB7 has 32 044. Twice as many, all read
# by each of 300 signatures, took 30 s.
MAX_NODES = 500_000
# What all walks over one graph may visit, 1 us each; of a large graph, as many for each node as below. `inspect` visits 101 786
# of EfficientNetB7 (29 times fewer, and 3 a node), 83 587 of a transformer of 48 layers, 17 859 of an estimator's 4 signatures,
# 12 182 of a parser of 500 features, 5 803 of 500 inputs, 2 792 of 20 signatures, 458 of a lookup of 500 000 words.
MAX_VISITS = 3_000_000
MAX_VISITS_PER_NODE = 10
# Elements of a constant that is read: keys and default values of a parser. An image as a default has 150 528.
MAX_CONSTANT_ELEMENTS = 2**20
# TensorShape::MaxDimensions in TensorFlow.
MAX_DIMENSIONS = 254
_SHOWN_NAME = 100


class VisitBudget:
    """Counts what the walks over one graph visit, and ends them."""

    def __init__(self, visits: int = MAX_VISITS) -> None:
        self._left = self._all = visits

    @classmethod
    def of(cls, graph_def: GraphDef) -> VisitBudget:
        """Returns the budget for a graph of this size."""
        return cls(max(MAX_VISITS, MAX_VISITS_PER_NODE * count_nodes(graph_def)))

    @property
    def left(self) -> int:
        """Visits that remain."""
        return self._left

    def spend(self, visits: int, function: str) -> None:
        """Counts visits in a function; the empty name stands for the main graph.

        Raises:
            SignatureError: more visits than any real model needs.
        """
        self._left -= visits
        if self._left < 0:
            refuse_graph(
                f"stopped in {place_of(function)} after {self._all} visits, more than any real model needs: calls, "
                "outputs or constants multiply"
            )


def refuse_graph(problem: str) -> NoReturn:
    """Raises the `SignatureError` for a graph that no walk is worth."""
    raise SignatureError(
        f"Cannot read the graph of the SavedModel: {problem}. Export the model again."
    )


def place_of(function: str) -> str:
    """A body in words: `function 'f'` or `the main graph`."""
    return f"function {shown(function)}" if function else "the main graph"


def shown(name: str) -> str:
    """A name of the file in quotes, control characters escaped, cut where it is very long."""
    return repr(name if len(name) <= _SHOWN_NAME else f"{name[:_SHOWN_NAME]}...")


def text_of_bytes(value: bytes) -> str:
    """A `bytes` attribute as text, whatever it holds: bytes that are not UTF-8 are escaped."""
    return value.decode(errors="backslashreplace")


@functools.lru_cache(maxsize=1024)
def function_attributes(op: str) -> tuple[str, ...] | None:
    """Names of the attributes of an op that hold functions; `None` for an op that this TensorFlow does not have."""
    definition = registered_op(op)
    if definition is None:
        return None
    return tuple(one.name for one in definition.attr if one.type in ("func", "list(func)"))


def called_functions(node: Any, library: Collection[str]) -> Iterator[str]:
    """Names of the functions that a node calls, or passes on to be called."""
    if node.op in library:  # a v1 Defun: the op is the function's name
        yield node.op
    names: Iterable[str] | None = function_attributes(node.op)
    for name in node.attr if names is None else names:
        value = node.attr.get(name)
        if value is not None:
            yield from (function.name for function in functions_in(value))


def functions_in(value: Any) -> list[Any]:
    """Returns the functions (NameAttrList) in an attribute."""
    kind = value.WhichOneof("value")
    if kind == "func":
        return [value.func]
    return list(value.list.func) if kind == "list" else []


def count_nodes(graph_def: GraphDef) -> int:
    """Counts the nodes of the main graph and of all functions."""
    return len(graph_def.node) + sum(
        len(function.node_def) for function in graph_def.library.function
    )


def check_graph(graph_def: GraphDef) -> None:
    """Checks what every walk over a graph relies on.

    Args:
        graph_def: the main graph with its function library.

    Raises:
        SignatureError: a node or function has no name, a function that of another one, functions call each other in a circle,
            calls are nested more than `MAX_CALL_DEPTH` deep, or there are more than `MAX_NODES` nodes, or more than
            `MAX_BRANCHES` functions named by one.
    """
    nodes = count_nodes(graph_def)
    if nodes > MAX_NODES:
        refuse_graph(f"it has {nodes} nodes, more than the {MAX_NODES} that are read")
    library: dict[str, Any] = {}
    for function in graph_def.library.function:
        name = function.signature.name
        if not name:
            refuse_graph("a function of its library has no name")
        if library.setdefault(name, function) is not function and library[name] != function:
            refuse_graph(f"its library has two functions {shown(name)}")
    calls = {
        name: _check_body(name, function.node_def, library) for name, function in library.items()
    }
    _check_calls({**calls, "": _check_body("", graph_def.node, library)})


def _check_body(name: str, nodes: Sequence[Any], library: Mapping[str, Any]) -> list[str]:
    """The functions that a body calls, each once."""
    called: dict[str, None] = {}
    for node in nodes:
        if not node.name:
            refuse_graph(f"{place_of(name)} has a node without a name")
        # Most ops call nothing, and are told by the op alone.
        if function_attributes(node.op) != () or node.op in library:
            if len(node.attr) > MAX_BRANCHES:
                refuse_graph(
                    f"node {shown(node.name)} of {place_of(name)} has {len(node.attr)} attributes"
                )
            names_of_node = list(
                itertools.islice(called_functions(node, library), MAX_BRANCHES + 1)
            )
            if len(names_of_node) > MAX_BRANCHES:
                refuse_graph(
                    f"node {shown(node.name)} of {place_of(name)} names more than {MAX_BRANCHES} functions"
                )
            called.update(dict.fromkeys(one for one in names_of_node if one in library))
    return list(called)


def _check_calls(calls: Mapping[str, Sequence[str]]) -> None:
    """Depth-first and without recursion; the depth of a function is that of the longest chain of calls below it."""
    depth: dict[str, int] = {}
    for start in calls:
        path: list[str] = []
        on_path: set[str] = set()
        stack = [(start, False)]
        while stack:
            name, done = stack.pop()
            if done:
                path.pop()
                on_path.discard(name)
                depth[name] = 1 + max((depth[one] for one in calls[name]), default=0)
                if depth[name] > MAX_CALL_DEPTH + 1:
                    refuse_graph(
                        f"calls are nested more than {MAX_CALL_DEPTH} deep below {place_of(name)}"
                    )
            elif name in on_path:
                circle = [*path[path.index(name) :], name]
                steps = " -> ".join(map(shown, circle[:4])) + (" -> ..." if len(circle) > 4 else "")
                refuse_graph(f"functions call each other in a circle: {steps}")
            elif name not in depth:
                path.append(name)
                on_path.add(name)
                stack.append((name, True))
                stack += [(one, False) for one in calls[name]]


def constant_value(node: Any, budget: VisitBudget, function: str) -> np.ndarray[Any, Any] | None:
    """The value of a Const node.

    Args:
        node: a NodeDef; its tensor may claim more elements than it holds values, which `tf.make_ndarray` fills up.
        budget: the elements are spent of it.
        function: where the node stands.

    Returns:
        The value; `None` where the attribute is no tensor that can be read, or one of more than `MAX_CONSTANT_ELEMENTS`
        elements.
    """
    value = node.attr.get("value")
    if value is None or value.WhichOneof("value") != "tensor":
        return None
    sizes = [dim.size for dim in value.tensor.tensor_shape.dim]
    if len(sizes) > MAX_DIMENSIONS or any(size < 0 for size in sizes):
        return None
    count = math.prod(sizes)
    if count > MAX_CONSTANT_ELEMENTS:
        return None
    budget.spend(count, function)
    try:
        array: np.ndarray[Any, Any] = tf.make_ndarray(value.tensor)
    except (
        TypeError,
        ValueError,
        OverflowError,
    ):  # unknown dtype, content of another size, number out of range
        return None
    return array
