"""Which signatures a SavedModel's rows can warm: each with its graph's facts, its kinds and the rows bound to its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_warmup.binding.bind import BoundBatch, bind_batch
from keras_warmup.binding.encode import bind_encoded, parse_if_needed
from keras_warmup.binding.match import match_inputs
from keras_warmup.binding.synthesize import synthesize_rows
from keras_warmup.data.batch import Batch
from keras_warmup.errors import BindingError, DataError, SignatureError
from keras_warmup.options import WarmupOptions
from keras_warmup.planning.plan import BoundSignature
from keras_warmup.report import REQUEST_KINDS, RequestKind
from keras_warmup.savedmodel.graph import ModelGraph, graph_facts
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES, default_kind, servable_kinds
from keras_warmup.savedmodel.signatures import Signature
from keras_warmup.savedmodel.string_formats import ExampleParser, StringFormat
from keras_warmup.savedmodel.string_inputs import find_string_formats


@dataclasses.dataclass(frozen=True)
class ExportInputs:
    """The rows at hand for an export.

    Attributes:
        batches: rows in the model's own structure; empty where they must be made up.
        model: the Keras model they belong to, for the proof; `None` where there is none.
        own_calls: keys of the signatures known to be the model's own call.
        ignored: features that the model does not take.
        shapes_seen: row shapes met while sampling, if more than the batches hold.
        structures: signature_key -> structure of its arguments, where the file does not tell and the exporter knows.
    """

    batches: Sequence[Batch]
    model: keras.Model | None = None
    own_calls: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    shapes_seen: int = 0
    structures: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def choose_signatures(signatures: Sequence[Signature], options: WarmupOptions) -> list[Signature]:
    """The signatures asked for; all of them by default.

    Raises:
        SignatureError: one that is asked for is not there.
    """
    if options.signatures is None:
        return list(signatures)
    by_key = {signature.key: signature for signature in signatures}
    unknown = [key for key in options.signatures if key not in by_key]
    if unknown:
        raise SignatureError(
            f"Unknown signature{'s' * (len(unknown) > 1)} {unknown}. The SavedModel has {sorted(by_key)}."
        )
    return [by_key[key] for key in dict.fromkeys(options.signatures)]


def bind_signatures(
    graph: ModelGraph, signatures: Sequence[Signature], rows: ExportInputs, options: WarmupOptions
) -> tuple[list[BoundSignature], dict[str, str]]:
    """Binds the rows to each signature.

    Args:
        graph: the graph the signatures are from.
        signatures: those to warm.
        rows: what to send.
        options: what is asked for.

    Returns:
        The candidates, and signature_key -> why it stays cold for those that the rows do not fit.

    Raises:
        BindingError, SignatureError: the rows do not fit a signature that was asked for or is the model's own call, or they
            fit none.
        DataError: there are no rows, and `on_no_data="error"`.
    """
    # Rows may be serialized for one signature while another takes the features themselves.
    consumers = {signature.key: find_string_formats(graph, signature) for signature in signatures}
    parsers = [
        one
        for found in consumers.values()
        for one in found.values()
        if isinstance(one, ExampleParser)
    ]
    if not rows.batches and options.on_no_data == "error":
        _refuse_no_data(signatures)
    candidates: list[BoundSignature] = []
    cold: dict[str, str] = {}
    errors: list[BindingError | DataError | SignatureError] = []
    for signature in signatures:
        kinds, task, why_not = _kinds_for(signature, options)
        try:
            if not kinds and task is None:
                raise SignatureError(
                    f"No request can be made for signature {signature.key!r}: {why_not}."
                )
            fixed = sorted(
                {
                    spec.shape[0]
                    for spec in signature.inputs.values()
                    if spec.shape and spec.shape[0]
                }
            )
            if len(fixed) > 1:
                raise SignatureError(
                    f"Signature {signature.key!r} fixes different sizes of dimension 0 for its inputs ({fixed}): rows of one "
                    "batch cannot fill them."
                )
            facts = graph_facts(graph, signature)
            if facts.python_ops:
                raise SignatureError(
                    f"Signature {signature.key!r} calls Python ({', '.join(facts.python_ops)}), which a server does not have: "
                    "every request fails there, and a warmup record would keep the model from loading. Replace "
                    "tf.py_function and tf.numpy_function by TensorFlow ops."
                )
            bound = _bind(signature, consumers[signature.key], parsers, rows, options)
        except (BindingError, DataError, SignatureError) as error:
            if options.signatures is not None or signature.key in rows.own_calls:
                raise
            cold[signature.key] = f"{_why_unreachable(signature)}{error}"
            errors.append(error)
            continue
        can_predict = servable_kinds(signature)["predict"] is None
        candidates.append(BoundSignature(signature, facts, bound, kinds, task, can_predict))
    if errors and not candidates and rows.batches:
        raise errors[0]
    return candidates, cold


def _require_agreement(batch: Batch, signature: Signature) -> None:
    """Refuses keys that are names of inputs and, in the exported function's own structure, keys of other ones.

    A model made of `{"aa": Input(name="zz"), "zz": Input(name="aa")}` means one thing by "aa" in `fit` and another in a request;
    without the model nothing tells which the data means.
    """
    if not isinstance(batch.x, Mapping) or not set(signature.inputs) <= set(batch.x):
        return
    found, _ = match_inputs(batch.x, signature)
    crossed = sorted(name for name, path in found.items() if path != (name,))
    if crossed:
        raise BindingError(
            f"Cannot bind batch to signature {signature.key!r}: {', '.join(f'x[{name!r}]' for name in crossed)} may be meant by "
            "the names of the inputs or by the keys of the exported function, and these differ. Pass transform= to name the "
            "inputs, or export with export_with_warmup, which knows the model."
        )


def _refuse_no_data(signatures: Sequence[Signature]) -> None:
    for signature in signatures:
        if signature.inputs:
            raise DataError(
                f"No data to warm signature {signature.key!r} with, and on_no_data='error'. Pass data=, or train with "
                "WarmupExport or BatchCapture in callbacks=."
            )


def _kinds_for(
    signature: Signature, options: WarmupOptions
) -> tuple[tuple[RequestKind, ...], RequestKind | None, str]:
    """The kinds to write for a signature, the one it was made for first; the MultiInference task it can be; why neither."""
    best = default_kind(signature)
    reasons = servable_kinds(signature)
    if options.kinds is None:
        return (
            ((best,), None, "") if reasons[best] is None else ((), None, f"{best}: {reasons[best]}")
        )
    able = [
        kind
        for kind in REQUEST_KINDS
        if kind in options.kinds and reasons[kind] is None and kind != "multi_inference"
    ]
    task = (
        best if "multi_inference" in options.kinds and reasons["multi_inference"] is None else None
    )
    why_not = "; ".join(
        f"{kind}: {reasons[kind]}" for kind in REQUEST_KINDS if kind in options.kinds
    )
    return tuple(sorted(able, key=lambda kind: kind != best)), task, why_not


def _why_unreachable(signature: Signature) -> str:
    """A signature made for a kind that no request of that kind can reach says so first."""
    made_for = {name: kind for kind, name in METHOD_NAMES.items()}.get(signature.method_name)
    reason = servable_kinds(signature)[made_for] if made_for else None
    return f"no {made_for} request can reach it: {reason}. " if reason else ""


def _bind(
    signature: Signature,
    consumers: Mapping[str, StringFormat],
    parsers: Sequence[ExampleParser],
    rows: ExportInputs,
    options: WarmupOptions,
) -> list[BoundBatch]:
    if not signature.inputs:
        return [BoundBatch({}, None, 1, frozenset(), "synthetic")]
    if not rows.batches:
        return [synthesize_rows(signature, consumers, options.seed)]
    if options.transform is not None:
        return [
            bound
            for batch in rows.batches
            for bound in bind_batch(batch, signature, options.transform)
        ]
    if signature.key in rows.structures:
        signature = dataclasses.replace(signature, structure=rows.structures[signature.key])
    batches = [parse_if_needed(batch, signature, consumers, parsers) for batch in rows.batches]
    if rows.model is None:
        for batch in batches:
            _require_agreement(batch, signature)
    return [bound for batch in batches for bound in bind_encoded(batch, signature, consumers)]
