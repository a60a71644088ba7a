"""Reads what a signature's graph does, from the GraphDef and its function library.

Nothing is loaded and nothing is run. `ModelGraph` indexes a MetaGraphDef once, for walks in both
directions: backwards from the outputs of a signature (`graph_facts`) and forwards from its inputs
(`string_inputs.py`). A function is indexed when a walk first meets it, and what a function reaches
is remembered, so the cost is that of the reachable part of the graph, once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from keras_warmup._protos import MetaGraphDef, NodeDef
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
from keras_warmup.savedmodel.ops import (
    CONVOLVES,
    MULTIPLIES_BATCHES,
    PYTHON,
    RANDOM,
    WRITES,
    is_core,
)
from keras_warmup.savedmodel.signatures import INIT_COLLECTIONS, INIT_OP_KEY, Signature

# A node, and the frame that it stands in.
NodeInFrame: TypeAlias = tuple[CallFrame, NodeDef]
# Container and shared name: the identity of a variable in a Session.
VariableIdentity: TypeAlias = tuple[str, str]

# How the inputs of a calling node map to the arguments of the functions it calls: attribute ->
# number of leading inputs that are not arguments (the predicate of If, the branch index of Case,
# the target of RemoteCall).
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
# Ops of which the output has the values of the input (v1 control flow included).
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
# Ops that make a variable; the last two are those of TensorFlow 1.
VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
ASSIGNS = frozenset({"AssignVariableOp", "Assign"})


@dataclasses.dataclass(frozen=True)
class GraphFacts:
    """What running one signature involves.

    Attributes:
        compiles: XLA must compile a reachable node or function (`jit_compile=True`, JAX).
        convolves: a convolution (or its transpose) is reachable. oneDNN keeps primitives of
            convolutions per shape.
        multiplies_batches: a batched matrix product is reachable, as in attention.
        unrestored_variables: variables that the signature reads and that neither the restore op nor
            the init op assigns, sorted. A Session (so TensorFlow Serving) fails on the first of
            them.
        foreign_ops: ops that core TensorFlow does not have, sorted. A stock server refuses to load
            the model.
        writes_state: a variable or lookup table is written, so warmup requests change the answers
            that clients get.
        random: random ops are reachable, stateless ones included: the same request may give other
            outputs.
        python_ops: ops that call Python functions (`tf.py_function`, `tf.numpy_function`), sorted.
            They run only in the process that made them, never in a server.
    """

    compiles: bool
    convolves: bool
    unrestored_variables: tuple[str, ...]
    foreign_ops: tuple[str, ...]
    writes_state: bool
    random: bool
    python_ops: tuple[str, ...] = ()
    multiplies_batches: bool = False

    @property
    def size_matters(self) -> bool:
        """Whether requests of another batch size than the warmed one stay slow."""
        return self.convolves or self.multiplies_batches


@dataclasses.dataclass(frozen=True)
class ReachablePart:
    """The part of a body that some of its tensors depend on, called functions included.

    Attributes:
        ops: names of the ops.
        names: names of the nodes and arguments of the body itself.
        arguments: positions of the arguments of the body.
        variables: the variables.
        compiles: XLA must compile some of it.
    """

    ops: frozenset[str]
    names: frozenset[str]
    arguments: frozenset[int]
    variables: frozenset[VariableIdentity]
    compiles: bool


class ModelGraph:
    """A MetaGraphDef indexed for walks. Build it once where several signatures are read.

    Args:
        meta_graph: the MetaGraphDef; it is not copied, and must not change afterwards.

    Attributes:
        meta_graph: the same.
        budget: limits all walks over the graph together.
        main: the main graph.

    Raises:
        SignatureError: the graph cannot be walked (`graph_limits.check_graph`). Each walk raises it
            when it exhausts the budget.
    """

    def __init__(self, meta_graph: MetaGraphDef) -> None:
        check_graph(meta_graph.graph_def)
        self.meta_graph = meta_graph
        self.budget = VisitBudget.of(meta_graph.graph_def)
        self.main = GraphBody("", meta_graph.graph_def.node)
        self._functions = {
            function.signature.name: function for function in meta_graph.graph_def.library.function
        }
        self._bodies: dict[str, GraphBody] = {}
        self._reachable_in_functions: dict[str, ReachablePart] = {}
        self._reachable_in_main: dict[tuple[frozenset[str], frozenset[str]], ReachablePart] = {}
        self._roles: dict[str, tuple[tuple[str, int | None], ...]] = {}

    @functools.cached_property
    def main_ops(self) -> frozenset[str]:
        """Returns the names of all ops of the main graph."""
        return frozenset(node.op for node in self.main.nodes.values())

    def has_function(self, name: str) -> bool:
        """Returns whether the function library defines `name`."""
        return name in self._functions

    def function(self, name: str) -> GraphBody | None:
        """Returns the body of a function; `None` where the library does not hold it."""
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

    def calls(self, node: NodeDef) -> Iterator[Call]:
        """Yields the functions that a node calls, in the order of its attributes."""
        roles = self._roles.get(node.op)
        if roles is None:
            roles = self._roles_of(node)
        for role, offset in roles:
            called = (
                [one.name for one in functions_in(attribute(node, role))] if role else [node.op]
            )
            for function in called:
                yield Call(function, role, offset)

    def _roles_of(self, node: NodeDef) -> tuple[tuple[str, int | None], ...]:
        """Returns the attributes of a node that hold functions, each with `Call.offset`.

        For an op that this TensorFlow has, they are those of the op, and are remembered.
        """
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

    def enter(self, frame: CallFrame, node: NodeDef, call: Call) -> CallFrame | None:
        """Returns the frame of a function that `node` of `frame` calls.

        Returns:
            The frame; `None` where the library does not hold the function.
        """
        body = self.function(call.function)
        if body is None:
            return None
        return CallFrame(body, frame, node, call, (*frame.path, node.name, call.function))

    def origin(
        self, frame: CallFrame, tensor: str | None, fed: frozenset[str] = frozenset()
    ) -> NodeInFrame | None:
        """Follows a tensor back to the node that computes its value.

        The search goes through same-value ops, arguments and calls.

        Args:
            frame: frame in which `tensor` is read.
            tensor: a node input, such as `x`, `x:1` or `x:output:0`.
            fed: tensors of the main graph whose values are given; the search ends at their nodes.

        Returns:
            The node and its frame; `None` for an argument without a caller, and for a value that
            changes in a loop.
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
            inner = None
            if len(calls) == 1 and calls[0].offset is not None:
                inner = self.enter(frame, node, calls[0])
            if inner is not None and output_index(tensor) < len(inner.body.returns):
                tensor, frame = inner.body.returns[output_index(tensor)], inner
                continue
            return frame, node
        return None

    def is_invariant(self, frame: CallFrame, index: int) -> bool:
        """Returns whether a while loop passes its argument `index` on unchanged."""
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

    @functools.cached_property
    def assignments(self) -> Mapping[VariableIdentity, list[NodeInFrame | None]]:
        """Returns the variables that the restore op and the init op assign -> their `origin`s."""
        found: dict[VariableIdentity, list[NodeInFrame | None]] = {}
        starts = [*self.restore_nodes, *self.init_nodes]
        for frame, node in self.nodes_run_by(starts, ASSIGNS):
            variable = self.origin(frame, input_of(node, 0))
            if variable is not None and variable[1].op in VARIABLES:
                found.setdefault(identity_of(variable[1]), []).append(
                    self.origin(frame, input_of(node, 1))
                )
        return found

    def nodes_run_by(self, starts: Sequence[str], ops: frozenset[str]) -> Iterator[NodeInFrame]:
        """Yields the nodes of some ops that running nodes of the main graph runs.

        Args:
            starts: names of the nodes of the main graph.
            ops: names of the ops.
        """
        yield from self._nodes_run_by(CallFrame(self.main), starts, ops)

    def ops_run_by(self, names: list[str]) -> frozenset[str]:
        """Returns the ops that running nodes of the main graph runs, called functions included."""
        return self._reachable(self.main, names).ops

    @property
    def restore_nodes(self) -> list[str]:
        """Returns the names of the nodes that restoring the variables runs and feeds."""
        saver = self.meta_graph.saver_def
        return [
            source_of(name) for name in (saver.restore_op_name, saver.filename_tensor_name) if name
        ]

    @property
    def init_nodes(self) -> list[str]:
        """Returns the names of the nodes that run after restoring.

        They are the init op of TensorFlow 2, and those in the two places of TensorFlow 1.
        """
        names: list[str] = []
        for key in INIT_COLLECTIONS:
            if key in self.meta_graph.collection_def:
                names += self.meta_graph.collection_def[key].node_list.value
        if INIT_OP_KEY in self.meta_graph.signature_def:
            outputs = self.meta_graph.signature_def[INIT_OP_KEY].outputs
            names += [info.name for info in outputs.values()]
        return [source_of(name) for name in names if name]

    def _nodes_run_by(
        self, frame: CallFrame, starts: Sequence[str], ops: frozenset[str]
    ) -> Iterator[NodeInFrame]:
        for name in frame.body.ancestors(starts):
            self.budget.spend(1, frame.body.name)
            node = frame.body.nodes.get(name)
            if node is None:
                continue
            if node.op in ops:
                yield frame, node
            for call in self.calls(node):
                self.budget.spend(1, frame.body.name)
                part = self._reachable_in_function(call.function)
                inner = self.enter(frame, node, call)
                if part is not None and inner is not None and not part.ops.isdisjoint(ops):
                    yield from self._nodes_run_by(inner, inner.body.roots, ops)

    def reachable(self, signature: Signature) -> ReachablePart:
        """Returns what the outputs of a signature depend on, down to the tensors that it feeds.

        A Session does not run what only computes fed tensors.
        """
        fetched, fed = fetches_and_feeds(signature)
        key = (frozenset(fetched), fed)
        if key not in self._reachable_in_main:
            self._reachable_in_main[key] = self._reachable(self.main, fetched, fed)
        return self._reachable_in_main[key]

    def names_run_in(self, body: GraphBody, signature: Signature) -> frozenset[str]:
        """Returns the names of the nodes and arguments of a body that a signature runs.

        A function runs for its returns and side effects, whatever the signature.
        """
        if body is self.main:
            return self.reachable(signature).names
        part = self._reachable_in_function(body.name)
        return part.names if part is not None else frozenset()

    def _reachable_in_function(self, name: str) -> ReachablePart | None:
        if name not in self._reachable_in_functions:
            body = self.function(name)
            if body is None:
                return None
            found = self._reachable(body, body.roots)
            if attribute(self._functions[name], "_XlaMustCompile").b:
                found = dataclasses.replace(found, compiles=True)
            self._reachable_in_functions[name] = found
        return self._reachable_in_functions[name]

    def _reachable(
        self, body: GraphBody, starts: list[str], fed: frozenset[str] = frozenset()
    ) -> ReachablePart:
        ops: set[str] = set()
        variables: set[VariableIdentity] = set()
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
            op = node.op  # reading the field makes a new str each time
            ops.add(op)
            compiles = compiles or op == "XlaCallModule"  # what JAX exports
            if op in VARIABLES:
                variables.add(identity_of(node))
                continue
            calls = list(self.calls(node)) if self._roles.get(op) != () else []
            if not calls:
                stack.extend(body.sources(name, fed))
                continue
            compiles = compiles or attribute(node, "_XlaMustCompile").b
            self.budget.spend(len(calls), body.name)
            found = [(call, self._reachable_in_function(call.function)) for call in calls]
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
        return ReachablePart(
            frozenset(ops), frozenset(seen), arguments, frozenset(variables), compiles
        )

    def _used_inputs(
        self, node: NodeDef, calls: list[tuple[Call, ReachablePart | None]]
    ) -> list[str]:
        """Returns the inputs of a calling node that some called function reads.

        A variable that is passed but never read need not be restored.
        """
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


def graph_facts(meta_graph: MetaGraphDef | ModelGraph, signature: Signature) -> GraphFacts:
    """Reads what running a signature involves, from the graph alone.

    Args:
        meta_graph: the MetaGraphDef, or a `ModelGraph` of it (build that once for several
            signatures).
        signature: a signature of it.

    Returns:
        The facts. A signature whose outputs are not in the graph has the facts of an empty graph.

    Raises:
        SignatureError: the graph cannot be walked.
    """
    graph = meta_graph if isinstance(meta_graph, ModelGraph) else ModelGraph(meta_graph)
    part = graph.reachable(signature)
    # The loader imports the whole main graph: an unknown op in it fails the load, even where the
    # signature does not run it.
    ops = part.ops | graph.main_ops
    unrestored = part.variables - graph.assignments.keys() if part.variables else frozenset()
    return GraphFacts(
        compiles=part.compiles,
        convolves=any(CONVOLVES.match(op) for op in part.ops),
        multiplies_batches=any(MULTIPLIES_BATCHES.match(op) for op in part.ops),
        unrestored_variables=tuple(sorted(name for _, name in unrestored)),
        foreign_ops=tuple(
            sorted(op for op in ops if not is_core(op) and not graph.has_function(op))
        ),
        writes_state=any(WRITES.match(op) for op in part.ops),
        random=any(RANDOM.match(op) for op in part.ops),
        python_ops=tuple(sorted(part.ops & PYTHON)),
    )


def fetches_and_feeds(signature: Signature) -> tuple[list[str], frozenset[str]]:
    """Returns the names of the nodes that a signature fetches, and the tensors that it feeds.

    A node whose tensor is also fed is left out: a Session does not run it.
    """
    fed = frozenset(canonical(spec.tensor) for spec in signature.inputs.values() if spec.tensor)
    fetched = [spec.tensor for spec in signature.outputs.values() if spec.tensor]
    return [source_of(tensor) for tensor in fetched if canonical(tensor) not in fed], fed
