"""Limits on reading the graph of a SavedModel: a hostile graph ends in an error, not in a hang.

Two mechanisms replace a check in each walk over a graph. `check_graph` looks once at the names and
at which function calls which: after it every chain of calls is finite and short, and recursion
along calls is safe. A `VisitBudget` is shared by the walks of one owner, such as a `ModelGraph`: it
ends walks over chains of calls that double at each level.
"""

from __future__ import annotations

import functools
import graphlib
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
# Functions that one node names, such as the branches of a Case. Also attributes of a node of an op
# that this TensorFlow does not have, where each attribute is searched for functions.
MAX_BRANCHES = 1000
# Of the main graph and all functions. `inspect` takes up to 10 us for each. EfficientNetB7 has
# 32 044. A graph twice as large as this limit, read in full by each of 300 signatures, took 30 s.
MAX_NODES = 500_000
# Visits of all walks over one graph, 1 us each; for a large graph, visits per node. `inspect` makes
# 101 786 visits to EfficientNetB7 (29 times fewer than the limit, and 3 per node), 83 587 to a
# transformer of 48 layers, 17 859 to an estimator with 4 signatures, 12 182 to a parser of 500
# features, 5 803 to a model with 500 inputs, 2 792 to one with 20 signatures, and 458 to a lookup
# of 500 000 words.
MAX_VISITS = 3_000_000
MAX_VISITS_PER_NODE = 10
# Elements of a constant that is read, such as the keys and default values of a parser. An image as
# a default value has 150 528.
MAX_CONSTANT_ELEMENTS = 2**20
# TensorShape::MaxDimensions in TensorFlow.
MAX_DIMENSIONS = 254
_MAX_SHOWN_CHARACTERS = 100


class VisitBudget:
    """A limit on the nodes that all walks over one graph visit together."""

    def __init__(self, visits: int = MAX_VISITS) -> None:
        self._left = self._all = visits

    @classmethod
    def of(cls, graph_def: GraphDef) -> VisitBudget:
        """Returns a budget for the size of a graph."""
        return cls(max(MAX_VISITS, MAX_VISITS_PER_NODE * count_nodes(graph_def)))

    @property
    def left(self) -> int:
        """Returns the number of visits that remain."""
        return self._left

    def spend(self, visits: int, function: str) -> None:
        """Counts visits to the body of a function.

        Args:
            visits: how many.
            function: name of the function; empty for the main graph.

        Raises:
            SignatureError: the budget is exhausted.
        """
        self._left -= visits
        if self._left < 0:
            refuse_graph(
                f"stopped in {place_of(function)} after {self._all} visits, more than any real "
                "model needs: calls, outputs or constants multiply"
            )


def refuse_graph(problem: str) -> NoReturn:
    """Raises the `SignatureError` for a graph that is not read."""
    raise SignatureError(
        f"Cannot read the graph of the SavedModel: {problem}. Export the model again."
    )


def place_of(function: str) -> str:
    """Returns the name of a body for messages: `function 'f'` or `the main graph`."""
    return f"function {shown(function)}" if function else "the main graph"


def shown(name: str) -> str:
    """Returns a name from the file in quotes, escaped, and cut where it is very long."""
    is_short = len(name) <= _MAX_SHOWN_CHARACTERS
    return repr(name if is_short else f"{name[:_MAX_SHOWN_CHARACTERS]}...")


def text_of_bytes(value: bytes) -> str:
    """Decodes a `bytes` attribute; bytes that are not UTF-8 are escaped."""
    return value.decode(errors="backslashreplace")


@functools.lru_cache(maxsize=1024)
def function_attributes(op: str) -> tuple[str, ...] | None:
    """Returns the attributes of an op that hold functions; `None` for an op of another library."""
    definition = registered_op(op)
    if definition is None:
        return None
    return tuple(one.name for one in definition.attr if one.type in ("func", "list(func)"))


def called_functions(node: Any, library: Collection[str]) -> Iterator[str]:
    """Yields the names of the functions that a node calls or passes on."""
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
    """Checks what the walks over a graph rely on.

    Args:
        graph_def: the main graph with its function library.

    Raises:
        SignatureError: a node or function has no name; two functions have the same name; functions
            call each other in a circle; calls are nested more than `MAX_CALL_DEPTH` deep; there are
            more than `MAX_NODES` nodes; or one node names more than `MAX_BRANCHES` functions.
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
    """Checks the nodes of one body, and returns the functions that it calls, each once."""
    called: dict[str, None] = {}
    for node in nodes:
        if not node.name:
            refuse_graph(f"{place_of(name)} has a node without a name")
        # Most nodes call nothing, which the op alone shows.
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
                    f"node {shown(node.name)} of {place_of(name)} names more than {MAX_BRANCHES} "
                    "functions"
                )
            called.update(dict.fromkeys(one for one in names_of_node if one in library))
    return list(called)


def _check_calls(calls: Mapping[str, Sequence[str]]) -> None:
    """Checks that no chain of calls is a circle or too long.

    The depth of a function is the length of the longest chain of calls below it.
    """
    try:
        called_first = list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        circle = error.args[1][::-1]  # it starts with a function that the next one calls
        steps = " -> ".join(map(shown, circle[:4])) + (" -> ..." if len(circle) > 4 else "")
        refuse_graph(f"functions call each other in a circle: {steps}")
    depth: dict[str, int] = {}
    for name in called_first:
        depth[name] = 1 + max((depth[one] for one in calls[name]), default=0)
        if depth[name] > MAX_CALL_DEPTH + 1:
            refuse_graph(f"calls are nested more than {MAX_CALL_DEPTH} deep below {place_of(name)}")


def constant_value(node: Any, budget: VisitBudget, function: str) -> np.ndarray[Any, Any] | None:
    """Returns the value of a Const node.

    Args:
        node: a NodeDef. Its tensor may have fewer values than elements; `tf.make_ndarray` repeats
            the last value.
        budget: the elements are spent from it.
        function: the function that holds the node; empty for the main graph.

    Returns:
        The value; `None` where the attribute is not a tensor that can be read, or has more than
        `MAX_CONSTANT_ELEMENTS` elements.
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
    except (TypeError, ValueError, OverflowError):
        return None  # unknown dtype, content of another size, number out of range
    return array
