"""Compares two SavedModels: the same requests must give the same outputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, PredictionLog
from keras_warmup.binding.synthesize import synthesize_rows
from keras_warmup.errors import ProofError, ReplayError, SignatureError
from keras_warmup.op_errors import describe_op_error
from keras_warmup.pipeline.draft import ERRORS_OF_VALUES, REPLAYS_OF_RANDOM
from keras_warmup.pipeline.proof import describe_difference, same_values
from keras_warmup.pipeline.warm import require_restorable
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import build_log
from keras_warmup.records.prediction_logs import log_kind, log_signature_key, log_signature_keys
from keras_warmup.savedmodel.graph import GraphFacts, ModelGraph, graph_facts
from keras_warmup.savedmodel.signatures import Signature, read_meta_graph, read_signatures
from keras_warmup.savedmodel.string_inputs import find_string_formats
from keras_warmup.serving.replay import ServingSession
from keras_warmup.serving.rules import (
    CLASSIFY_METHOD,
    Outputs,
    ServerStatusError,
    classify_task,
    host_array,
    output_aliases,
    regress_task,
    to_array,
    to_examples,
)
from keras_warmup.serving.session import TENSORFLOW_ERRORS, with_type

NOT_COMPARED = "not compared: "
_BIT_IDENTICAL = "bit-identical to"
_ROUNDED = "equal up to rounding to"
_SEED = 0


@dataclasses.dataclass(frozen=True)
class _Request:
    """A request to run on both models.

    Attributes:
        log: its `PredictionLog`.
        is_made_up: whether its rows are made up; otherwise it is a record of the warmup file.
    """

    log: PredictionLog
    is_made_up: bool


class _LoadedModel:
    """A SavedModel that `tf.saved_model.load` loads and runs, on the CPU."""

    def __init__(self, export_dir: str, meta_graph: MetaGraphDef) -> None:
        self._meta_graph = meta_graph
        try:
            with tf.device("/CPU:0"):
                self._signatures: Any = tf.saved_model.load(export_dir).signatures
        except (OSError, *TENSORFLOW_ERRORS) as error:
            raise ReplayError(
                f"SavedModel {export_dir!r} runs neither in a Session nor with "
                f"tf.saved_model.load: {with_type(error, describe_op_error(error))}. Export the "
                "model again."
            ) from None

    def run(self, log: PredictionLog) -> Outputs:
        """Runs a request, and returns the outputs as `ServingSession.replay` names them.

        A record that no server can run gives none; its replay on the result says why.
        """
        try:
            return self._run(log)
        except ServerStatusError as error:
            raise ReplayError(
                f"A {log_kind(log)} request cannot be read: {error}", status=error.status
            ) from None

    def _run(self, log: PredictionLog) -> Outputs:
        definitions = self._meta_graph.signature_def
        keys = log_signature_keys(log)
        if not keys or not set(keys) <= set(definitions):
            return {}
        if log_kind(log) == "predict":
            request = log.predict_log.request
            definition = definitions[keys[0]]
            inputs = {
                name: to_array(
                    name,
                    request.inputs[name] if name in request.inputs else definition.defaults[name],
                )
                for name in definition.inputs
            }
            aliases = output_aliases(definition, request)
            return self._call(keys[0], inputs, aliases)
        request = getattr(log, f"{log_kind(log)}_log").request
        examples = to_examples(request.input)
        if log_kind(log) != "multi_inference":
            return self._run_task(keys[0], log_kind(log) == "classify", examples)
        return {
            f"{key}/{alias}": value
            for key, task in zip(keys, request.tasks, strict=True)
            for alias, value in self._run_task(
                key, task.method_name == CLASSIFY_METHOD, examples
            ).items()
        }

    def _run_task(self, key: str, classifies: bool, examples: np.ndarray) -> Outputs:
        definition = self._meta_graph.signature_def[key]
        task = (classify_task if classifies else regress_task)(definition)
        return self._call(key, dict.fromkeys(definition.inputs, examples), task.fetches)

    def _call(self, key: str, inputs: Mapping[str, np.ndarray], aliases: Iterable[str]) -> Outputs:
        try:
            with tf.device("/CPU:0"):
                outputs = self._signatures[key](
                    **{name: tf.constant(array) for name, array in inputs.items()}
                )
            return {alias: host_array(outputs[alias].numpy()) for alias in aliases}
        except TENSORFLOW_ERRORS as error:
            raise ReplayError(
                f"tf.saved_model.load cannot run signature {key!r}: "
                f"{with_type(error, describe_op_error(error))}"
            ) from None


def compare_models(
    source: str,
    result: str,
    logs: Sequence[PredictionLog],
    *,
    rounding: float | None = None,
) -> dict[str, str]:
    """Runs the same requests on two SavedModels and compares the outputs.

    The models are loaded one after the other. The source runs in a Session, or, where a Session
    does not find its variables, with `tf.saved_model.load`. The result runs in a Session.

    Args:
        source: the SavedModel to compare with.
        result: the SavedModel made of it.
        logs: the records of the warmup file. Signatures for which they hold no request for all
            outputs are run on made-up rows too.
        rounding: `None` requires outputs that are equal bit by bit where both run in a Session. A
            number allows differences, as `proof.same_values` takes them.

    Returns:
        signature_key -> how its outputs were compared, or `not compared: ` and the reason.

    Raises:
        ProofError: the result has other signatures or gives other outputs.
        ReplayError: the result cannot be loaded into a Session, or a record fails.
        SignatureError: a SavedModel cannot be read.
    """
    meta_graph, changed = read_meta_graph(source), read_meta_graph(result)
    signatures = read_signatures(meta_graph)
    _require_equal_signatures(signatures, read_signatures(changed), result)
    graph = ModelGraph(meta_graph)
    facts = {one.key: graph_facts(graph, one) for one in signatures}
    require_restorable(ModelGraph(changed), read_signatures(changed), result)
    comparisons: dict[str, str] = {}
    requests = [_Request(log, False) for log in logs]
    covered = {key for log in logs for key in _keys_with_all_outputs(log)}
    for signature in signatures:
        if facts[signature.key].python_ops:
            comparisons[signature.key] = f"{NOT_COMPARED}it calls Python functions"
        elif signature.key not in covered:
            try:
                requests.append(_Request(_made_up_log(graph, signature), True))
            except SignatureError as error:
                comparisons[signature.key] = f"{NOT_COMPARED}{error}"
    del graph
    in_session = not any(one.unrestored_variables for one in facts.values())
    expected = _run_source(source, meta_graph, requests, in_session)
    if in_session:
        against = "what a Session gives for the source"
    else:
        against = "what tf.saved_model.load gives for the source (no Session can run it)"
    found: dict[str, list[tuple[_Request, str]]] = {}
    with ServingSession(result, changed) as session:
        for request, theirs in zip(requests, expected, strict=True):
            ours = _run_on_result(session, request, theirs)
            if isinstance(theirs, ReplayError) or ours is None:
                outcome = f"{NOT_COMPARED}made-up rows do not run"
            else:
                outcome = _judge(
                    request,
                    theirs,
                    ours,
                    facts,
                    None if in_session and rounding is None else rounding or 0.0,
                    replay_again=functools.partial(_outputs_of, session, request.log),
                )
            for key in log_signature_keys(request.log):
                found.setdefault(key, []).append((request, outcome))
    for key, outcomes in found.items():
        comparisons[key] = _summary(outcomes, against)
    return {key: comparisons[key] for key in sorted(comparisons)}


def _require_equal_signatures(
    theirs: Sequence[Signature], ours: Sequence[Signature], result: str
) -> None:
    """Raises a `ProofError` where the names, dtypes or shapes of two models differ."""

    def interface(signature: Signature) -> dict[str, Any]:
        return {
            "method name": signature.method_name,
            "inputs": {n: (one.dtype, one.shape) for n, one in signature.inputs.items()},
            "outputs": {n: (one.dtype, one.shape) for n, one in signature.outputs.items()},
            "defaults": signature.defaults,
        }

    before = {one.key: interface(one) for one in theirs}
    after = {one.key: interface(one) for one in ours}
    if set(before) != set(after):
        raise ProofError(
            f"The SavedModel made in {result!r} has the signatures {sorted(after)}, expected "
            f"{sorted(before)}. Nothing was published."
        )
    differ = [
        f"the {what} of {key!r}"
        for key in before
        for what in before[key]
        if before[key][what] != after[key][what]
    ]
    if differ:
        raise ProofError(
            f"The SavedModel made in {result!r} differs from its source in "
            f"{', '.join(sorted(differ))}. Nothing was published."
        )


def _keys_with_all_outputs(log: PredictionLog) -> tuple[str, ...]:
    """Returns the keys of the signatures of which a record fetches all outputs of a Predict."""
    is_whole = log_kind(log) == "predict" and not log.predict_log.request.output_filter
    return log_signature_keys(log) if is_whole else ()


def _made_up_log(graph: ModelGraph, signature: Signature) -> PredictionLog:
    rows = synthesize_rows(signature, find_string_formats(graph, signature), _SEED)
    key = signature.key
    return build_log(PlannedRequest(key, "predict", (rows,), None, (), (key,)))


def _run_source(
    source: str, meta_graph: MetaGraphDef, requests: Sequence[_Request], in_session: bool
) -> list[Outputs | ReplayError]:
    """Returns the outputs of each request; the error where made-up rows do not run."""
    if not in_session:
        model = _LoadedModel(source, meta_graph)
        return [_outputs_or_error(model.run, request) for request in requests]
    with ServingSession(source, meta_graph) as session:
        run = functools.partial(_outputs_of, session)
        return [_outputs_or_error(run, request) for request in requests]


def _outputs_of(session: ServingSession, log: PredictionLog) -> Outputs:
    return session.replay(log).outputs


def _outputs_or_error(
    run: Callable[[PredictionLog], Outputs], request: _Request
) -> Outputs | ReplayError:
    try:
        return run(request.log)
    except ReplayError as error:
        # Made-up rows may be nonsense to the model. A record of the warmup file is not.
        if not request.is_made_up:
            raise
        return error


def _run_on_result(
    session: ServingSession, request: _Request, theirs: Outputs | ReplayError
) -> Outputs | None:
    """Returns the outputs; `None` where made-up rows run on neither model."""
    try:
        return session.replay(request.log).outputs
    except ReplayError as error:
        fails_too = isinstance(theirs, ReplayError)
        if request.is_made_up and fails_too and error.status in ("", *ERRORS_OF_VALUES):
            return None
        raise


def _judge(
    request: _Request,
    theirs: Outputs,
    ours: Outputs,
    facts: Mapping[str, GraphFacts],
    rounding: float | None,
    *,
    replay_again: Callable[[], Outputs],
) -> str:
    """Returns how the outputs of one request compare.

    Raises:
        ProofError: they differ, and equal requests give equal outputs.
    """
    if set(theirs) == set(ours) and all(_same_bits(theirs[name], ours[name]) for name in theirs):
        return _BIT_IDENTICAL
    differ = [
        name
        for name in sorted({*theirs, *ours})
        if name not in ours
        or name not in theirs
        or not (
            _same_bits(theirs[name], ours[name])
            if rounding is None
            else same_values(theirs[name], ours[name], rounding=rounding)
        )
    ]
    if not differ and rounding is not None:
        return _ROUNDED
    keys = log_signature_keys(request.log)
    changing = any(facts[key].random or facts[key].writes_state for key in keys)
    is_random = any(
        not all(_same_bits(ours[name], again[name]) for name in ours)
        for again in (replay_again() for _ in range(REPLAYS_OF_RANDOM))
    )
    if is_random and changing:
        return f"{NOT_COMPARED}an equal request gives other outputs"
    # Some kernels add in the order in which threads finish.
    if is_random and all(
        name in ours and name in theirs and same_values(theirs[name], ours[name])
        for name in {*theirs, *ours}
    ):
        return _ROUNDED
    listed = "; ".join(
        f"{name!r} {describe_difference(theirs[name], ours[name])}"
        if name in ours and name in theirs
        else f"{name!r} is missing in one of them"
        for name in differ
    )
    raise ProofError(
        f"The changed SavedModel does not give what its source gives for a "
        f"{log_kind(request.log)} request of signature {log_signature_key(request.log)!r}. Outputs "
        f"that differ: {listed}. Nothing was published."
    )


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype == object:
        return bool(np.array_equal(one, other))
    return one.tobytes() == other.tobytes()


def _summary(outcomes: Sequence[tuple[_Request, str]], against: str) -> str:
    """Returns one line for the requests of a signature; the weakest outcome counts."""
    compared = [
        (request, outcome) for request, outcome in outcomes if not outcome.startswith(NOT_COMPARED)
    ]
    if not compared:
        return outcomes[0][1]
    weakest = max((outcome for _, outcome in compared), key=(_BIT_IDENTICAL, _ROUNDED).index)
    records = sum(not request.is_made_up for request, _ in compared)
    rows = [f"{records} records of the warmup file"] if records else []
    rows += ["made-up rows"] if any(request.is_made_up for request, _ in compared) else []
    skipped = next((outcome for _, outcome in outcomes if outcome.startswith(NOT_COMPARED)), "")
    line = f"{weakest} {against}, on {' and '.join(rows)}"
    return f"{line}; {skipped}" if skipped else line
