"""Binds rows to the signatures of a SavedModel that requests can reach."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_warmup.binding.bind import BoundBatch, bind_batch
from keras_warmup.binding.encode import bind_encoded, parse_if_needed
from keras_warmup.binding.match import match_inputs
from keras_warmup.binding.synthesize import synthesize_rows
from keras_warmup.data.batch import Batch, is_string_vector, render_path
from keras_warmup.data.privacy import Hider
from keras_warmup.errors import (
    BindingError,
    DataError,
    NoDataError,
    SignatureError,
    UnservableError,
)
from keras_warmup.keras_api import Model
from keras_warmup.options import WarmupOptions
from keras_warmup.pipeline.keras_model import (
    ArrangedInputs,
    arrange_inputs,
    inputs_by_name,
    takes_one_string,
)
from keras_warmup.planning.bound_signature import BoundSignature
from keras_warmup.report import REQUEST_KINDS, RequestKind
from keras_warmup.savedmodel.graph import GraphFacts, ModelGraph, graph_facts
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES, default_kind, servable_kinds
from keras_warmup.savedmodel.signatures import Signature
from keras_warmup.savedmodel.string_formats import ExampleParser, StringFormat
from keras_warmup.savedmodel.string_inputs import find_string_formats, merge_example_parsers

StringFormats = Mapping[str, StringFormat]


@dataclasses.dataclass(frozen=True)
class ExportInputs:
    """The rows of an export, and what is known of their model.

    Attributes:
        batches: rows as they were given or captured; empty where they must be made up.
        per_signature: signature_key -> rows for it alone, as given with `PerSignature`.
        model: the Keras model that is exported, for the proof; `None` where there is none.
        own_calls: keys of the signatures known to be the model's own call.
        is_borrowed: whether the rows were captured from another model that shares layers with
            `model`: then they need not fit.
        example: a batch that `model` was trained on, without its values; `None` where that is not
            known.
        sampling_problem: why `fit` sampled no batches; empty where it did, or rows were given.
        shapes_seen: number of row shapes seen while sampling, if more than the batches hold.
        training_batch_size: rows of the largest batch seen; 0 where there is none.
        structures: signature_key -> structure of its arguments, where the exporter knows it and the
            SavedModel does not record it.
        recorded_structures: signature_key -> structure of its arguments that the SavedModel
            recorded before it was frozen.
    """

    batches: Sequence[Batch] = ()
    per_signature: Mapping[str, Sequence[Batch]] = dataclasses.field(default_factory=dict)
    model: Model | None = None
    own_calls: frozenset[str] = frozenset()
    is_borrowed: bool = False
    example: Batch | None = None
    sampling_problem: str = ""
    shapes_seen: int = 0
    training_batch_size: int = 0
    structures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recorded_structures: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class BindResult:
    """What binding the rows to the signatures gave.

    Attributes:
        bound: signatures with rows bound to their inputs.
        cold: signature_key -> why it stays cold.
        unfit: signature_key -> why rows are made up although `fit` saw batches. A twin of such a
            signature is left out.
        hidden: names of the features whose values a privacy mode replaced.
    """

    bound: list[BoundSignature]
    cold: dict[str, str]
    unfit: dict[str, str]
    hidden: frozenset[str] = frozenset()


def choose_signatures(
    signatures: Sequence[Signature], options: WarmupOptions
) -> Sequence[Signature]:
    """Returns the signatures that `options.signatures` asks for; all of them by default.

    Raises:
        SignatureError: a signature does not exist.
    """
    if options.signatures is None:
        return signatures
    by_key = {signature.key: signature for signature in signatures}
    unknown = [key for key in options.signatures if key not in by_key]
    if unknown:
        raise SignatureError(
            f"The SavedModel has no signatures {unknown}. It has {sorted(by_key)}."
        )
    return [by_key[key] for key in dict.fromkeys(options.signatures)]


def bind_signatures(
    graph: ModelGraph,
    signatures: Sequence[Signature],
    inputs: ExportInputs,
    options: WarmupOptions,
    *,
    twins: Mapping[str, str] | None = None,
    hider: Hider | None = None,
) -> BindResult:
    """Binds the rows to each signature.

    Args:
        graph: the graph of the signatures.
        signatures: the signatures to warm.
        inputs: the rows to send.
        options: what is asked for.
        twins: signature_key -> key of a signature that is the same function, whose rows it takes
            where `PerSignature` has none for it.
        hider: replaces what has the name of an input, and what a transform returns. Defaults to
            one without vocabularies.

    Raises:
        BindingError: the rows do not fit a signature that was asked for, is the model's own call or
            has rows of its own; or they fit no signature.
        SignatureError: no request can reach such a signature.
        DataError: there are no rows, and `on_no_data="error"`.
    """
    _require_known_signatures(inputs, signatures)
    # Rows may be serialized for one signature while another takes the features themselves.
    formats = {signature.key: find_string_formats(graph, signature) for signature in signatures}
    binder = _Binder(
        inputs, options, formats, twins or {}, hider or Hider(options.effective_privacy())
    )
    bound: list[BoundSignature] = []
    cold: dict[str, str] = {}
    errors: list[BindingError | DataError | SignatureError] = []
    for signature in signatures:
        try:
            bound.append(_bind_signature(graph, signature, binder, options))
        except (BindingError, DataError, SignatureError) as error:
            asked = options.signatures is not None or signature.key in inputs.per_signature
            if asked or signature.key in inputs.own_calls or isinstance(error, NoDataError):
                raise
            cold[signature.key] = f"{_why_unreachable(signature)}{error}"
            errors.append(error)
    if errors and not bound and (inputs.batches or inputs.per_signature):
        raise errors[0]
    unfit = {
        key: why
        for key, why in binder.unfit.items()
        if binder.twins.get(key, key) not in binder.unfit.keys() - {key}
    }
    bound = _bind_common_examples(bound, binder)
    return BindResult(bound, cold, unfit, frozenset(binder.hidden))


def _bind_signature(
    graph: ModelGraph, signature: Signature, binder: _Binder, options: WarmupOptions
) -> BoundSignature:
    kinds, task = _kinds_for(signature, options)
    fixed = sorted(
        {spec.shape[0] for spec in signature.inputs.values() if spec.shape and spec.shape[0]}
    )
    if len(fixed) > 1:
        raise SignatureError(
            f"Signature {signature.key!r} fixes different sizes of dimension 0 for its inputs "
            f"({fixed}), so rows of one batch cannot fill them."
        )
    facts = graph_facts(graph, signature)
    refuse_python_ops(signature, facts)
    batches = binder.bind(signature)
    can_predict = servable_kinds(signature)["predict"] is None
    return BoundSignature(signature, facts, batches, kinds, task, can_predict)


class _Binder:
    """Binds the rows of an export to one signature after another."""

    def __init__(
        self,
        inputs: ExportInputs,
        options: WarmupOptions,
        formats: Mapping[str, StringFormats],
        twins: Mapping[str, str],
        hider: Hider,
    ) -> None:
        self.formats = dict(formats)
        self.unfit: dict[str, str] = {}
        self.twins = twins
        self.hidden: set[str] = set()
        self._hider = hider
        self._inputs = inputs
        self._options = options
        self._parsers = [
            one
            for found in formats.values()
            for one in found.values()
            if isinstance(one, ExampleParser)
        ]

    def bind(self, signature: Signature) -> list[BoundBatch]:
        """Returns the rows as the signature takes them.

        Raises:
            BindingError, DataError, SignatureError: the rows do not fit.
        """
        formats, inputs = self.formats[signature.key], self._inputs
        if not signature.inputs:
            return [BoundBatch({}, None, 1, frozenset(), "synthetic")]
        own = self._own_batches(signature.key)
        batches = own or inputs.batches
        if not batches:
            if self._options.on_no_data == "error":
                raise NoDataError(
                    f"No data to warm signature {signature.key!r}, and on_no_data='error'. "
                    "Pass data=, or train with WarmupExport or BatchCapture in callbacks=."
                )
            if inputs.sampling_problem:
                self.unfit[signature.key] = (
                    f"sampling of training batches stopped: {inputs.sampling_problem}. Pass data= "
                    "for records of real rows."
                )
            return [synthesize_rows(signature, formats, self._options.seed)]
        transform = self._options.transform
        if transform is not None:
            return [
                self._hide(bound, batch)
                for batch in batches
                for bound in bind_batch(batch, signature, transform)
            ]
        try:
            return [
                self._hide(bound, batch)
                for batch in batches
                for bound in self._bind_batch(batch, signature)
            ]
        except BindingError as error:
            if own or not inputs.is_borrowed or self._options.on_no_data == "error":
                raise
            self.unfit[signature.key] = (
                "the batches captured in fit belong to another model that shares its layers, and "
                f"do not fit. {error}"
            )
            return [synthesize_rows(signature, formats, self._options.seed)]

    def _hide(self, bound: BoundBatch, batch: Batch) -> BoundBatch:
        """Returns the rows with what is known to be hidden only by the names of the inputs."""
        self.hidden.update(batch.hidden)
        mode = self._hider.privacy.mode
        if mode == "none":
            return bound
        # What a transform returns may hold real values, whatever it was given.
        is_transformed = self._options.transform is not None
        if mode == "synthetic" and not is_transformed:
            return dataclasses.replace(bound, source="synthetic")
        known = frozenset() if is_transformed else batch.hidden
        self._hider.hidden.clear()
        arrays = self._hider.hide_arrays(bound.arrays, left=bound.hidden_inputs, known=known)
        found = frozenset(self._hider.hidden)
        self.hidden.update(found)
        if mode == "synthetic":
            return dataclasses.replace(bound, arrays=arrays, x=None, source="synthetic")
        is_same = all(arrays[name] is array for name, array in bound.arrays.items())
        return dataclasses.replace(
            bound,
            arrays=arrays,
            # The model's own call would be given other rows than the request.
            x=bound.x if is_same else None,
            hidden_inputs=bound.hidden_inputs.union(found & arrays.keys()),
            hidden_features=known | found,
        )

    def _own_batches(self, key: str) -> Sequence[Batch]:
        """Returns the rows that `PerSignature` has for a signature, or for a twin of it."""
        own = self._inputs.per_signature
        lead = self.twins.get(key, key)
        twins = [other for other in own if lead == self.twins.get(other, other)]
        return own.get(key) or next((own[other] for other in twins), ())

    def _bind_batch(self, batch: Batch, signature: Signature) -> list[BoundBatch]:
        """Binds a batch, by the model's own structure for its own call, else as it was given.

        A custom signature of a model may take other features than the model's inputs. Only where
        the batch does not fit it as given, the structure and the names of the model's inputs are
        tried.
        """
        model = self._inputs.model
        # Serialized Examples have no structure yet: a signature that parses them takes them so.
        if model is None or (is_string_vector(batch) and not takes_one_string(model)):
            return self._bind_as_given(batch, signature)
        if signature.key in self._inputs.own_calls:
            arranged = arrange_inputs(model, batch.x, source=batch.source)
            return [
                dataclasses.replace(bound, ignored=(*bound.ignored, *arranged.ignored))
                for bound in self._encode(_rearranged(batch, arranged), signature)
            ]
        try:
            return self._bind_as_given(batch, signature)
        except BindingError as error:
            with contextlib.suppress(BindingError):
                arranged = arrange_inputs(model, batch.x)
                for one in (arranged, inputs_by_name(model, arranged)):
                    with contextlib.suppress(BindingError):
                        if one is not None:
                            return self._encode(_rearranged(batch, one), signature)
            raise error

    def _bind_as_given(self, batch: Batch, signature: Signature) -> list[BoundBatch]:
        batch = parse_if_needed(batch, signature, self.formats[signature.key], self._parsers)
        _require_agreement(batch, signature)
        return self._encode(batch, signature)

    def _encode(self, batch: Batch, signature: Signature) -> list[BoundBatch]:
        if signature.key in self._inputs.structures:
            structure = self._inputs.structures[signature.key]
            signature = dataclasses.replace(signature, structure=structure)
        return bind_encoded(batch, signature, self.formats[signature.key])


def _rearranged(batch: Batch, arranged: ArrangedInputs) -> Batch:
    """Returns a batch in another structure, with the paths that its hidden leaves have there."""
    hidden = {
        render_path(path)
        for path, given in arranged.paths.items()
        if render_path(given) in batch.hidden_paths
    }
    return dataclasses.replace(batch, x=arranged.x, hidden_paths=frozenset(hidden))


def _bind_common_examples(bound: list[BoundSignature], binder: _Binder) -> list[BoundSignature]:
    """Binds the tasks of a MultiInference to Examples that hold the features of all of them.

    The server feeds the same Examples to each task (multi_inference.cc).
    """
    tasks = [one for one in bound if one.task is not None]
    parsers = [
        one for task in tasks for one in binder.formats[task.key].values()
        if isinstance(one, ExampleParser)
    ]  # fmt: skip
    if len(parsers) < 2 or all(parser.spec == parsers[0].spec for parser in parsers):
        return bound
    merged = merge_example_parsers(parsers)
    if not isinstance(merged, ExampleParser):
        return bound
    for task in tasks:
        binder.formats[task.key] = {
            name: merged if isinstance(one, ExampleParser) else one
            for name, one in binder.formats[task.key].items()
        }
    return [
        one if one.task is None else dataclasses.replace(one, batches=binder.bind(one.signature))
        for one in bound
    ]


def _kinds_for(
    signature: Signature, options: WarmupOptions
) -> tuple[tuple[RequestKind, ...], RequestKind | None]:
    """Returns the kinds to write, the one the signature was made for first, and its task kind.

    Raises:
        SignatureError: no request of the kinds asked for can reach the signature.
    """
    best = default_kind(signature)
    reasons = servable_kinds(signature)
    asked = (best,) if options.kinds is None else options.kinds
    kinds = [
        kind
        for kind in REQUEST_KINDS
        if kind in asked and kind != "multi_inference" and reasons[kind] is None
    ]
    has_task = "multi_inference" in asked and reasons["multi_inference"] is None
    if not kinds and not has_task:
        why = "; ".join(f"{kind}: {reasons[kind]}" for kind in REQUEST_KINDS if kind in asked)
        raise SignatureError(f"No request can be made for signature {signature.key!r}: {why}.")
    return tuple(sorted(kinds, key=lambda kind: kind != best)), best if has_task else None


def _why_unreachable(signature: Signature) -> str:
    """Returns why no request of the kind the signature was made for can reach it, if so."""
    made_for = {name: kind for kind, name in METHOD_NAMES.items()}.get(signature.method_name)
    reason = servable_kinds(signature)[made_for] if made_for else None
    return f"no {made_for} request can reach it: {reason}. " if reason else ""


def refuse_python_ops(signature: Signature, facts: GraphFacts) -> None:
    """Raises an `UnservableError` for a signature that calls Python functions."""
    if facts.python_ops:
        raise UnservableError(
            f"Signature {signature.key!r} calls Python ({', '.join(facts.python_ops)}), which a "
            "server does not have: every request fails there, and a warmup record would keep the "
            "model from loading. Replace tf.py_function and tf.numpy_function by TensorFlow ops."
        )


def _require_known_signatures(inputs: ExportInputs, signatures: Sequence[Signature]) -> None:
    keys = {signature.key for signature in signatures}
    unknown = sorted(set(inputs.per_signature) - keys)
    if unknown:
        raise SignatureError(
            f"PerSignature has data for the signatures {unknown}, which are not warmed. Warmed: "
            f"{sorted(keys)}."
        )


def _require_agreement(batch: Batch, signature: Signature) -> None:
    """Refuses dict keys that are input names, but keys of other inputs in the exported function.

    A model made of `{"aa": Input(name="zz"), "zz": Input(name="aa")}` means one thing by "aa" in
    `fit` and another in a request. Without the model, the data does not show which one is meant.
    """
    if not isinstance(batch.x, Mapping) or not set(signature.inputs) <= set(batch.x):
        return
    found, _ = match_inputs(batch.x, signature)
    crossed = sorted(name for name, path in found.items() if path != (name,))
    if crossed:
        keys = ", ".join(f"x[{name!r}]" for name in crossed)
        raise BindingError(
            f"Cannot bind batch to signature {signature.key!r}: {keys} may be the names of inputs "
            "or the keys of the exported function, and these differ. Pass warmup={'transform': "
            "...} to name the inputs, or export with export_with_warmup, which knows the model."
        )
