"""What a signature's graph does, read from the GraphDef and its function library; runs and loads nothing.

`ModelGraph` indexes a MetaGraphDef once and is shared by both directions of travel: backwards from a signature's
outputs (`graph_facts`) and forwards from its inputs (`consumers.py`). Functions are indexed when first met, and what a
function reaches is remembered, so a graph costs what is reachable in it, once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from keras_warmup.savedmodel.graph_bodies import (
    Call,
    CallFrame,
    GraphBody,
    attribute,
    canonical,
    identity_of,
    input_of,
    output_index,
    source_of,
)
from keras_warmup.savedmodel.graph_limits import (
    VisitBudget,
    check_graph,
    function_attributes,
    functions_in,
)
from keras_warmup.savedmodel.ops import CONVOLVES, PYTHON, RANDOM, WRITES, is_core

# How the inputs of a calling node map to the arguments of the functions it calls: attribute -> number of leading inputs
# that are no arguments (the predicate of If, the branch index of Case, the target of RemoteCall).
_CALLS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "PartitionedCall": (("f", 0),),
    "StatefulPartitionedCall": (("f", 0),),
    "TPUPartitionedCall": (("f", 0),),
    "BatchFunction": (("f", 0),),
    "SymbolicGradient": (("f", 0),),
    "RemoteCall": (("f", 1),),
    "While": (("cond", 0), ("body", 0)),
    "StatelessWhile": (("cond", 0), ("body", 0)),
    "If": (("then_branch", 1), ("else_branch", 1)),
    "StatelessIf": (("then_branch", 1), ("else_branch", 1)),
    "Case": (("branches", 1),),
    "StatelessCase": (("branches", 1),),
}
LOOPS = frozenset({"While", "StatelessWhile"})
# One tensor in, the same values out (v1 control flow included).
SAME_VALUE = frozenset(
    {
        "Identity",
        "IdentityN",
        "RefIdentity",
        "DeepCopy",
        "Copy",
        "Snapshot",
        "StopGradient",
        "PreventGradient",
    }
    | {"PlaceholderWithDefault", "EnsureShape", "CheckNumerics", "ReadVariableOp"}
    | {"DebugIdentity", "DebugIdentityV2", "DebugIdentityV3"}
    | {
        "Enter",
        "Exit",
        "NextIteration",
        "Switch",
        "LoopCond",
        "RefEnter",
        "RefExit",
        "RefNextIteration",
        "RefSwitch",
    }
)
_ASSIGNS = frozenset({"AssignVariableOp", "Assign"})


class _TensorSpec(Protocol):
    @property
    def tensor(self) -> str: ...


class SignatureLike(Protocol):
    """The part of `signatures.Signature` that the graph needs."""

    @property
    def inputs(self) -> Mapping[str, _TensorSpec]:
        """Input name -> what names its tensor."""

    @property
    def outputs(self) -> Mapping[str, _TensorSpec]:
        """Output alias -> what names its tensor."""


@dataclasses.dataclass(frozen=True)
class GraphFacts:
    """What running one signature involves.

    Attributes:
        compiles: a reachable node or function must be compiled by XLA (`jit_compile=True`).
        convolves: a convolution (or its transpose) is reachable: oneDNN keeps primitives per shape for those.
        unrestored_variables: variables that the signature reads and that neither the restore op nor the init op
            assigns, sorted; a Session (so TensorFlow Serving) fails on the first of them.
        foreign_ops: ops that core TensorFlow does not have, sorted; a stock server refuses to load the model.
        writes_state: a variable or lookup table is written: warmup requests change what clients get.
        random: random ops are reachable, stateless ones included: the same request may give other outputs.
        python_ops: ops that call Python functions (`tf.py_function`, `tf.numpy_function`), sorted; they run in the
            process that made them only, never in a server.
    """

    compiles: bool
    convolves: bool
    unrestored_variables: tuple[str, ...]
    foreign_ops: tuple[str, ...]
    writes_state: bool
    random: bool
    python_ops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Reach:
    """What is reachable backwards from tensors of one body, called functions included."""

    ops: frozenset[str]
    names: frozenset[str]  # of nodes and arguments
    arguments: frozenset[int]  # positions of those of the function itself
    variables: frozenset[
        tuple[str, str]
    ]  # (container, shared name): a variable's identity in a Session
    compiles: bool


class ModelGraph:
    """A MetaGraphDef indexed for traversal. Build it once where several signatures are looked at.

    Args:
        meta_graph: the MetaGraphDef; not copied, must not change afterwards.

    Attributes:
        meta_graph: the same.
        budget: what all walks over the graph may visit, together.

    Raises:
        SignatureError: the graph cannot be walked (`graph_limits.check_graph`); any walk raises it when it exhausts the
            budget.
    """

    def __init__(self, meta_graph: Any) -> None:
        check_graph(meta_graph.graph_def)
        self.meta_graph = meta_graph
        self.budget = VisitBudget.of(meta_graph.graph_def)
        self.main = GraphBody("", meta_graph.graph_def.node)
        self._functions = {
            function.signature.name: function for function in meta_graph.graph_def.library.function
        }
        self._bodies: dict[str, GraphBody] = {}
        self._reaches: dict[str, _Reach] = {}
        self._main_reaches: dict[tuple[frozenset[str], frozenset[str]], _Reach] = {}
        self._roles: dict[str, tuple[tuple[str, int | None], ...]] = {}

    @functools.cached_property
    def main_ops(self) -> frozenset[str]:
        """Every op of the main graph."""
        return frozenset(node.op for node in self.main.nodes.values())

    def has_function(self, name: str) -> bool:
        """Whether the function library defines `name`."""
        return name in self._functions

    def function(self, name: str) -> GraphBody | None:
        """The body of a function, or `None` when the library does not hold it."""
        if name not in self._bodies:
            definition = self._functions.get(name)
            if definition is None:
                return None
            signature = definition.signature
            self.budget.spend(len(definition.node_def), name)
            self._bodies[name] = GraphBody(
                name,
                definition.node_def,
                tuple(arg.name for arg in signature.input_arg),
                tuple(definition.ret.get(arg.name, "") for arg in signature.output_arg),
                tuple(definition.control_ret.values()),
            )
        return self._bodies[name]

    def calls(self, node: Any) -> Iterator[Call]:
        """The functions a node calls, in the order of its attributes; none for most nodes."""
        roles = self._roles.get(node.op)
        if roles is None:
            roles = self._roles_of(node)
        for role, offset in roles:
            if not role:
                yield Call(node.op, role, offset)
                continue
            for function in functions_in(attribute(node, role)):
                yield Call(function.name, role, offset)

    def _roles_of(self, node: Any) -> tuple[tuple[str, int | None], ...]:
        """Function-valued attributes of a node; kept for ops that are known, where they are those of the op."""
        if node.op in _CALLS:
            roles: tuple[tuple[str, int | None], ...] = _CALLS[node.op]
        elif node.op in self._functions:  # a v1 Defun: the op is the function's name
            roles = (("", 0),)
        else:
            names = function_attributes(node.op)
            if names is None:
                self.budget.spend(len(node.attr), "")
                return tuple(
                    (role, None) for role, value in node.attr.items() if functions_in(value)
                )
            roles = tuple((role, None) for role in names)
        self._roles[node.op] = roles
        return roles

    def enter(self, frame: CallFrame, node: Any, call: Call) -> CallFrame | None:
        """The frame of a function called by `node` of `frame`; `None` when the library does not hold it."""
        body = self.function(call.function)
        return (
            None
            if body is None
            else CallFrame(body, frame, node, call, (*frame.path, node.name, call.function))
        )

    def origin(
        self, frame: CallFrame, tensor: str | None, fed: frozenset[str] = frozenset()
    ) -> tuple[CallFrame, Any] | None:
        """Follows a tensor back to the node that makes its value: through same-value ops, arguments and calls.

        Args:
            frame: where `tensor` is read.
            tensor: a node input, such as `x`, `x:1` or `x:output:0`.
            fed: tensors of the main graph whose values are given, so that their nodes make them.

        Returns:
            The node and its frame, or `None`: an argument of the signature's own, or a value that changes in a loop.
        """
        for _ in range(10_000):  # v1 loops can be cyclic
            if tensor is None:  # the call, or the node, lacks the input
                return None
            self.budget.spend(1, frame.body.name)
            name = source_of(tensor)
            index = frame.body.arg_index.get(name)
            if index is not None:
                call, caller = frame.call, frame.caller
                if call is None or caller is None or call.offset is None:
                    return None
                if frame.node.op in LOOPS and not self.is_invariant(frame, index):
                    return None
                tensor, frame = input_of(frame.node, index + call.offset), caller
                continue
            node = frame.body.nodes.get(name)
            if node is None:
                return None
            if frame.caller is None and canonical(tensor) in fed:
                return frame, node
            if node.op in SAME_VALUE:
                tensor = input_of(node, output_index(tensor) if node.op == "IdentityN" else 0)
                continue
            calls = [] if node.op in LOOPS else list(self.calls(node))
            inner = (
                self.enter(frame, node, calls[0])
                if len(calls) == 1 and calls[0].offset is not None
                else None
            )
            if inner is not None and output_index(tensor) < len(inner.body.returns):
                tensor, frame = inner.body.returns[output_index(tensor)], inner
                continue
            return frame, node
        return None

    def is_invariant(self, frame: CallFrame, index: int) -> bool:
        """Whether a while loop passes its argument `index` on unchanged."""
        names = [call.function for call in self.calls(frame.node) if call.role == "body"]
        body = self.function(names[0]) if names else None
        if body is None or index >= len(body.returns):
            return False
        name = source_of(body.returns[index])
        seen: set[str] = set()
        while name in body.nodes and body.nodes[name].op == "Identity" and name not in seen:
            self.budget.spend(1, body.name)
            seen.add(name)  # they may read each other in a circle
            name = source_of(input_of(body.nodes[name], 0) or "")
        return body.arg_index.get(name) == index

    def assigned_variables(self) -> frozenset[tuple[str, str]]:
        """Variables that the restore op and the init op assign, as `(container, shared name)`."""
        return frozenset(self.assignments)

    @functools.cached_property
    def assignments(self) -> Mapping[tuple[str, str], list[tuple[CallFrame, Any] | None]]:
        """Each variable that the restore op and the init op assign -> where the values come from, as `origin` says."""
        found: dict[tuple[str, str], list[tuple[CallFrame, Any] | None]] = {}
        self._collect_assigned(
            CallFrame(self.main), [*self.restore_starts, *self.init_starts], found
        )
        return found

    def ops_run_by(self, starts: list[str]) -> frozenset[str]:
        """Ops that running some nodes of the main graph runs, those of called functions included."""
        return self._reach(self.main, starts).ops

    @property
    def restore_starts(self) -> list[str]:
        """Names of the nodes that restoring the variables runs and feeds; none for a model without variables."""
        saver = self.meta_graph.saver_def
        return [
            source_of(name) for name in (saver.restore_op_name, saver.filename_tensor_name) if name
        ]

    @property
    def init_starts(self) -> list[str]:
        """Names of the nodes that run after restoring: TensorFlow 2's init op, and those of TensorFlow 1's two places."""
        starts: list[str] = []
        for key in ("saved_model_main_op", "legacy_init_op"):
            if key in self.meta_graph.collection_def:
                starts += self.meta_graph.collection_def[key].node_list.value
        if "__saved_model_init_op" in self.meta_graph.signature_def:
            outputs = self.meta_graph.signature_def["__saved_model_init_op"].outputs
            starts += [info.name for info in outputs.values()]
        return [source_of(name) for name in starts if name]

    def _collect_assigned(
        self,
        frame: CallFrame,
        starts: list[str],
        found: dict[tuple[str, str], list[tuple[CallFrame, Any] | None]],
    ) -> None:
        for name in frame.body.ancestors(starts):
            self.budget.spend(1, frame.body.name)
            node = frame.body.nodes.get(name)
            if node is None:
                continue
            if node.op in _ASSIGNS:
                at = self.origin(frame, input_of(node, 0))
                if at is not None and at[1].op in ("VarHandleOp", "VariableV2", "Variable"):
                    found.setdefault(identity_of(at[1]), []).append(
                        self.origin(frame, input_of(node, 1))
                    )
            for call in self.calls(node):
                self.budget.spend(1, frame.body.name)
                reach = self._reach_of_function(call.function)
                inner = self.enter(frame, node, call)
                if reach is not None and inner is not None and not reach.ops.isdisjoint(_ASSIGNS):
                    self._collect_assigned(inner, inner.body.roots, found)

    def reach(self, signature: SignatureLike) -> _Reach:
        """What is reachable backwards from a signature's outputs, down to what it feeds: a Session runs nothing above."""
        starts, fed = _fetches_and_feeds(signature)
        key = (frozenset(starts), fed)
        if key not in self._main_reaches:
            self._main_reaches[key] = self._reach(self.main, starts, fed)
        return self._main_reaches[key]

    def needed(self, body: GraphBody, signature: SignatureLike) -> frozenset[str]:
        """Names of the nodes and arguments of a body that running a signature runs; a function runs for its returns."""
        if body is self.main:
            return self.reach(signature).names
        reach = self._reach_of_function(body.name)
        return reach.names if reach is not None else frozenset()

    def _reach_of_function(self, name: str) -> _Reach | None:
        if name not in self._reaches:
            body = self.function(name)
            if body is None:
                return None
            found = self._reach(body, body.roots)
            if attribute(self._functions[name], "_XlaMustCompile").b:
                found = dataclasses.replace(found, compiles=True)
            self._reaches[name] = found
        return self._reaches[name]

    def _reach(
        self, body: GraphBody, starts: list[str], fed: frozenset[str] = frozenset()
    ) -> _Reach:
        ops: set[str] = set()
        variables: set[tuple[str, str]] = set()
        compiles = False
        seen: set[str] = set()
        stack = list(starts)
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            node = body.nodes.get(name)
            if node is None:
                continue
            self.budget.spend(1 + len(node.input), body.name)
            op = node.op  # a new str at each look
            ops.add(op)
            if op in ("VarHandleOp", "VariableV2", "Variable"):
                variables.add(identity_of(node))
                continue
            calls = list(self.calls(node)) if self._roles.get(op) != () else []
            if not calls:
                stack.extend(body.sources(name, fed))
                continue
            compiles = compiles or attribute(node, "_XlaMustCompile").b
            self.budget.spend(len(calls), body.name)
            found = [(call, self._reach_of_function(call.function)) for call in calls]
            for _, inner in found:
                if inner is not None:
                    self.budget.spend(
                        len(inner.ops) + len(inner.variables) + len(inner.arguments), body.name
                    )
                    ops |= inner.ops
                    variables |= inner.variables
                    compiles = compiles or inner.compiles
            used = self._used_inputs(node, found)
            stack.extend(source_of(tensor) for tensor in used if canonical(tensor) not in fed)
        arguments = frozenset(body.arg_index[name] for name in seen if name in body.arg_index)
        return _Reach(frozenset(ops), frozenset(seen), arguments, frozenset(variables), compiles)

    def _used_inputs(self, node: Any, calls: list[tuple[Call, _Reach | None]]) -> list[str]:
        """Inputs of a calling node that some called function reads: a variable passed but never read does no harm."""
        used: set[int] = set()
        for call, inner in calls:
            if inner is None or call.offset is None:
                return list(node.input)
            used.update(range(call.offset))
            used.update(position + call.offset for position in inner.arguments)
        return [
            tensor
            for index, tensor in enumerate(node.input)
            if index in used or tensor.startswith("^")
        ]


def graph_facts(meta_graph: Any, signature: SignatureLike) -> GraphFacts:
    """Reads what running a signature involves from the graph alone.

    Args:
        meta_graph: the MetaGraphDef, or a `ModelGraph` of it (build that once for several signatures).
        signature: the signature, or anything with its `inputs` and `outputs`.

    Returns:
        The facts; of a signature whose outputs name nothing in the graph, the facts of an empty graph.
    """
    graph = meta_graph if isinstance(meta_graph, ModelGraph) else ModelGraph(meta_graph)
    reach = graph.reach(signature)
    # The loader imports the whole main graph: an unknown op in it fails the load whether the signature runs it or not.
    ops = reach.ops | graph.main_ops
    unrestored = reach.variables - graph.assigned_variables() if reach.variables else frozenset()
    return GraphFacts(
        compiles=reach.compiles,
        convolves=any(CONVOLVES.match(op) for op in reach.ops),
        unrestored_variables=tuple(sorted(name for _, name in unrestored)),
        foreign_ops=tuple(
            sorted(op for op in ops if not is_core(op) and not graph.has_function(op))
        ),
        writes_state=any(WRITES.match(op) for op in reach.ops),
        random=any(RANDOM.match(op) for op in reach.ops),
        python_ops=tuple(sorted(reach.ops & PYTHON)),
    )


def _fetches_and_feeds(signature: SignatureLike) -> tuple[list[str], frozenset[str]]:
    """Names of the nodes a signature fetches from, and the tensors it feeds."""
    fed = frozenset(canonical(spec.tensor) for spec in signature.inputs.values() if spec.tensor)
    fetched = [spec.tensor for spec in signature.outputs.values() if spec.tensor]
    return [source_of(tensor) for tensor in fetched if canonical(tensor) not in fed], fed
