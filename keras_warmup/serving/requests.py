"""Reads a record as TensorFlow Serving reads its request: what to feed, to fetch and to check.

Follows `predict_util.cc`, `classifier.cc`, `regressor.cc` and `multi_inference.cc` of TensorFlow
Serving 2.20. Nothing here runs a graph: `replay.py` does, and `bench/native_session.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from keras_warmup._protos import (
    ClassificationRequest,
    MultiInferenceRequest,
    PredictionLog,
    PredictRequest,
    RegressionRequest,
    SignatureDef,
    TensorProto,
)
from keras_warmup.errors import ReplayError
from keras_warmup.records.prediction_logs import log_kind, log_signature_key
from keras_warmup.savedmodel.signatures import DEFAULT_SIGNATURE_KEY
from keras_warmup.serving.rules import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    ExamplesTask,
    Outputs,
    ServerStatusError,
    check_input_names,
    classify_task,
    output_aliases,
    refuse,
    regress_task,
    to_examples,
)

_TASK_OF_METHOD = {CLASSIFY_METHOD: classify_task, REGRESS_METHOD: regress_task}

SignatureDefs = Mapping[str, SignatureDef]
# Converts the tensor of a named input to a value that the session feeds.
ReadTensor = Callable[[str, TensorProto], Any]


def _accept(outputs: Outputs) -> None:
    """Checks nothing: the server does not check the outputs of Predict."""


@dataclasses.dataclass(frozen=True)
class TensorRun:
    """What a server runs for a request.

    Attributes:
        feeds: name of a tensor and its value, sorted by name: what `read_tensor` returned, or an
            object array of serialized Examples. A name may be there twice: TensorFlow refuses it,
            as in the server.
        fetches: output alias -> name of its tensor; for MultiInference `signature_key/alias`.
        check: raises `ServerStatusError` where the outputs are not those that the request needs.
    """

    feeds: tuple[tuple[str, Any], ...]
    fetches: Mapping[str, str]
    check: Callable[[Outputs], None] = _accept


def read_run(
    signatures: SignatureDefs, log: PredictionLog, read_tensor: ReadTensor
) -> TensorRun | None:
    """Reads the request of a record.

    Args:
        signatures: signature_key -> SignatureDef.
        log: the record.
        read_tensor: converts the tensors of a Predict request.

    Returns:
        What the server runs; `None` for a record with no log type, which runs nothing.

    Raises:
        ServerStatusError: the server refuses the request before it runs anything.
    """
    match log.WhichOneof("log_type"):
        case "predict_log":
            return _predict(signatures, log.predict_log.request, read_tensor)
        case "classify_log":
            return _examples(signatures, classify_task, log.classify_log.request)
        case "regress_log":
            return _examples(signatures, regress_task, log.regress_log.request)
        case "multi_inference_log":
            return _multi_inference(signatures, log.multi_inference_log.request)
        case None:
            return None
        case kind:
            number = PredictionLog.DESCRIPTOR.fields_by_name[kind].number
            refuse("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")


def refused_load(log: PredictionLog, refusal: ServerStatusError) -> ReplayError:
    """Returns the error for a record with which a server would not load the model."""
    kind, key = log_kind(log), log_signature_key(log)
    record = f"{kind} record for signature {key!r}" if key else f"{kind} record"
    return ReplayError(
        f"{record} would keep TensorFlow Serving from loading the model: "
        f"{refusal.status}: {refusal}",
        status=refusal.status,
    )


def _predict(
    signatures: SignatureDefs, request: PredictRequest, read_tensor: ReadTensor
) -> TensorRun:
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE_KEY
    if key not in signatures:
        refuse("FAILED_PRECONDITION", f'Serving signature key "{key}" not found.')
    definition = signatures[key]
    check_input_names(definition, request)
    feeds = []
    for name in sorted(definition.inputs):
        proto = request.inputs[name] if name in request.inputs else definition.defaults[name]
        feeds.append((str(definition.inputs[name].name), read_tensor(name, proto)))
    aliases = output_aliases(definition, request)
    return TensorRun(_sorted(feeds), {alias: definition.outputs[alias].name for alias in aliases})


def _examples(
    signatures: SignatureDefs,
    task_of: Callable[[SignatureDef], ExamplesTask],
    request: ClassificationRequest | RegressionRequest,
) -> TensorRun:
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE_KEY
    if key not in signatures:
        refuse("INVALID_ARGUMENT", f"No signature was found with the name: {key}")
    task = task_of(signatures[key])
    examples = to_examples(request.input)
    return TensorRun(
        ((task.feed, examples),),
        task.fetches,
        lambda outputs: task.check(outputs, len(examples)),
    )


def _multi_inference(signatures: SignatureDefs, request: MultiInferenceRequest) -> TensorRun:
    model_name = ""
    tasks: dict[str, ExamplesTask] = {}
    for task in request.tasks:
        if not task.model_spec.name:
            refuse("INVALID_ARGUMENT", "Found ModelSpec with an empty model name.")
        if model_name and task.model_spec.name != model_name:
            refuse(
                "INVALID_ARGUMENT",
                "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
            )
        model_name = task.model_spec.name
        key = task.model_spec.signature_name or DEFAULT_SIGNATURE_KEY
        if key in tasks:
            refuse("INVALID_ARGUMENT", f"Duplicate evaluation of signature: {key}")
        if key not in signatures:
            refuse("INVALID_ARGUMENT", f"Requested signature not found in model graph: {key}")
        if task.method_name not in _TASK_OF_METHOD:
            refuse("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        tasks[key] = _TASK_OF_METHOD[task.method_name](signatures[key])
    examples = to_examples(request.input)

    def check(outputs: Outputs) -> None:
        for key, task in tasks.items():
            task.check({alias: outputs[f"{key}/{alias}"] for alias in task.fetches}, len(examples))

    # Tasks may read different input tensors: the server feeds each of them the same Examples.
    return TensorRun(
        _sorted([(feed, examples) for feed in {task.feed for task in tasks.values()}]),
        {
            f"{key}/{alias}": tensor
            for key, task in tasks.items()
            for alias, tensor in task.fetches.items()
        },
        check,
    )


def _sorted(feeds: list[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(feeds, key=lambda feed: feed[0]))
