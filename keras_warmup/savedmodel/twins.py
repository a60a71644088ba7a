"""Finds twin signatures: the same function of the same inputs under two signature keys.

`model.export` and `ExportArchive` write `serve` and `serving_default` with tensors of their own.
TensorFlow Serving builds an executor for each set of tensors and pays the cold cost for each of
them: twice the load time, or a slow first request to the key that was not warmed. Where both are
provably the same, one of them can use the tensors of the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from keras_warmup._protos import MetaGraphDef, NodeDef
from keras_warmup.savedmodel.function_digests import TRACE_ATTRIBUTES, FunctionDigests
from keras_warmup.savedmodel.graph_bodies import source_of
from keras_warmup.savedmodel.graph_limits import VisitBudget
from keras_warmup.savedmodel.signatures import DEFAULT_SIGNATURE_KEY, Signature


def find_twins(meta_graph: MetaGraphDef, signatures: Sequence[Signature]) -> dict[str, str]:
    """Finds signatures that are the same function of the same inputs, from the graph alone.

    Two signatures are twins where each runs one node of the same op and attributes; the node reads
    the signature's own placeholders under the same input names at the same positions, and otherwise
    the same tensors (variables); the outputs have the same aliases; and the functions that the two
    nodes call have equal digests. Other signatures are left alone: those with preprocessing outside
    of a function, outputs of several nodes, TensorFlow 1 graphs.

    Args:
        meta_graph: the MetaGraphDef; `graph_limits.check_graph` has accepted it.
        signatures: signatures of it.

    Returns:
        Signature key -> key of the twin whose tensors it can use. `serving_default` keeps its own
        tensors where it is one of them.

    Raises:
        SignatureError: the graph is larger than any that is read.
    """
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    budget = VisitBudget.of(meta_graph.graph_def)
    digests = FunctionDigests(
        {function.signature.name: function for function in meta_graph.graph_def.library.function},
        budget,
    )
    first_of: dict[Hashable, Signature] = {}
    twins = {}
    for signature in sorted(
        signatures, key=lambda one: (one.key != DEFAULT_SIGNATURE_KEY, one.key)
    ):
        computation = _computation_of(signature, nodes, digests, budget)
        if computation is None:
            continue
        first = first_of.setdefault(computation, signature)
        if first is not signature and first.tensors != signature.tensors:
            twins[signature.key] = first.key
    return twins


def _computation_of(
    signature: Signature,
    nodes: Mapping[str, NodeDef],
    digests: FunctionDigests,
    budget: VisitBudget,
) -> Hashable | None:
    """Returns what a signature computes, without the names that tracing gave.

    Returns:
        A value that is equal for twins; `None` where the signature is not one call of one function.
    """
    sources = {source_of(spec.tensor) for spec in signature.outputs.values()}
    if len(sources) != 1 or signature.defaults:
        return None
    node = nodes.get(sources.pop())
    digest = digests.of(node.attr["f"].func.name) if node is not None and "f" in node.attr else None
    if node is None or digest is None:
        return None
    name_of = {source_of(spec.tensor): name for name, spec in signature.inputs.items()}
    fed = [nodes.get(source) for source in name_of]
    if (
        any(one is None or one.op != "Placeholder" for one in fed)
        or len(name_of) != len(signature.inputs)
        or not set(name_of) <= {source_of(tensor) for tensor in node.input}
    ):
        return None
    # The attributes are copied, and may be long.
    budget.spend(len(node.input) + node.ByteSize() // 100, "")
    # Fed tensors by input name, other tensors by their own name.
    inputs = tuple(
        (name_of.get(source_of(tensor)), None if source_of(tensor) in name_of else tensor)
        for tensor in node.input
    )
    attributes = tuple(
        (name, node.attr[name].SerializeToString(deterministic=True))
        for name in sorted(node.attr)
        if name != "f" and name not in TRACE_ATTRIBUTES
    )
    outputs = tuple(
        (alias, spec.tensor.partition(":")[2] or "0")
        for alias, spec in sorted(signature.outputs.items())
    )
    specs = tuple((name, spec.dtype, spec.shape) for name, spec in sorted(signature.inputs.items()))
    return node.op, attributes, inputs, outputs, specs, digest
