"""Twin signatures: one function of the same inputs under two keys, over tensors of their own.

`model.export` and `ExportArchive` write `serve` and `serving_default` so. TensorFlow Serving builds an executor for each set of
tensors and pays the whole cold cost for each: twice the load time, or a slow first request on the key nobody warmed. Where both
are provably the same, one can name the tensors of the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from keras_warmup.savedmodel.graph_bodies import source_of
from keras_warmup.savedmodel.graph_limits import VisitBudget
from keras_warmup.savedmodel.signatures import DEFAULT_SIGNATURE_KEY, Signature

# Names the tracing gave: they differ from trace to trace of one function, and nothing runs differently for them.
_TRACE_ATTRIBUTES = ("_user_specified_name",)


def find_twins(meta_graph: Any, signatures: Sequence[Signature]) -> dict[str, str]:
    """Finds signatures that are the same function of the same inputs, from the graph alone.

    Two signatures are twins if each runs one node of the same op and attributes, fed by its own placeholders under the same
    aliases in the same places and by the very same other tensors (variables), with the same outputs under the same aliases, and
    the functions the two nodes call have the same body, node by node. Anything else - preprocessing outside a function,
    outputs of several nodes, TF1 graphs - is left alone.

    Args:
        meta_graph: the `MetaGraphDef`.
        signatures: signatures of it.

    Returns:
        Signature key -> key of the twin whose tensors it can name; `serving_default` is kept where it is among them.
    """
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    functions = {
        function.signature.name: function for function in meta_graph.graph_def.library.function
    }
    budget = VisitBudget.of(meta_graph.graph_def)
    # Many signatures may call one function.
    body_of = functools.cache(lambda name: _body(functions[name]) if name in functions else None)
    kept: dict[Hashable, Signature] = {}
    twins = {}
    for signature in sorted(
        signatures, key=lambda one: (one.key != DEFAULT_SIGNATURE_KEY, one.key)
    ):
        identity = _identity(signature, nodes, body_of, budget)
        if identity is None:
            continue
        first = kept.setdefault(identity, signature)
        if first is not signature and first.tensors != signature.tensors:
            twins[signature.key] = first.key
    return twins


def _identity(
    signature: Signature,
    nodes: dict[str, Any],
    body_of: Callable[[str], bytes | None],
    budget: VisitBudget,
) -> Hashable | None:
    """What a signature computes, without the names that tracing gave; `None` where that is not plain to see."""
    sources = {source_of(spec.tensor) for spec in signature.outputs.values()}
    if len(sources) != 1 or signature.defaults:
        return None
    node = nodes.get(sources.pop())
    body = body_of(node.attr["f"].func.name) if node is not None and "f" in node.attr else None
    if node is None or body is None:
        return None
    alias_of = {source_of(spec.tensor): alias for alias, spec in signature.inputs.items()}
    fed = [nodes.get(name) for name in alias_of]
    if any(one is None or one.op != "Placeholder" for one in fed) or len(alias_of) != len(
        signature.inputs
    ):
        return None
    if not set(alias_of) <= {source_of(tensor) for tensor in node.input}:
        return None
    budget.spend(
        len(node.input) + node.ByteSize() // 100, ""
    )  # attributes are copied, and may be long
    # Feeds by alias, everything else by the tensor itself.
    inputs = tuple(
        (alias_of.get(source_of(tensor)), None if source_of(tensor) in alias_of else tensor)
        for tensor in node.input
    )
    attributes = tuple(
        (name, node.attr[name].SerializeToString(deterministic=True))
        for name in sorted(node.attr)
        if name != "f" and name not in _TRACE_ATTRIBUTES
    )
    outputs = tuple(
        (alias, spec.tensor.partition(":")[2] or "0")
        for alias, spec in sorted(signature.outputs.items())
    )
    specs = tuple((name, spec.dtype, spec.shape) for name, spec in sorted(signature.inputs.items()))
    return node.op, attributes, inputs, outputs, specs, body


def _body(function: Any) -> bytes:
    """A function's definition without its own name and what tracing named its arguments."""
    bare = type(function)()
    bare.CopyFrom(function)
    bare.signature.name = ""
    for attributes in bare.arg_attr.values():
        for name in _TRACE_ATTRIBUTES:
            attributes.attr.pop(name, None)
    return bytes(bare.SerializeToString(deterministic=True))
