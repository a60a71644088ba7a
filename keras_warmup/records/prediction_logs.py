"""Describes `PredictionLog`s: their kind, the signatures they run, their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_warmup._protos import Input, PredictionLog
from keras_warmup.report import REQUEST_KINDS
from keras_warmup.savedmodel.signatures import DEFAULT_SIGNATURE_KEY


def log_kind(log: PredictionLog) -> str:
    """Returns the kind of request that a log holds.

    Returns:
        `predict`, `classify`, `regress`, `multi_inference`, `session_run`, `predict_streamed`, or
        `none` where no log type is set.
    """
    return str(log.WhichOneof("log_type") or "none").removesuffix("_log")


def log_signature_keys(log: PredictionLog) -> tuple[str, ...]:
    """Returns the keys of the signatures that a record runs.

    Returns:
        One key for each task of a MultiInference, one for the other kinds that a server runs, and
        none for kinds that it does not run.
    """
    kind = log_kind(log)
    if kind not in REQUEST_KINDS:
        return ()
    request = getattr(log, f"{kind}_log").request
    specs = (
        [task.model_spec for task in request.tasks]
        if kind == "multi_inference"
        else [request.model_spec]
    )
    return tuple(str(spec.signature_name or DEFAULT_SIGNATURE_KEY) for spec in specs)


def log_signature_key(log: PredictionLog) -> str:
    """Returns the keys of `log_signature_keys`, joined by `+`."""
    return "+".join(log_signature_keys(log))


def describe_log(log: PredictionLog) -> dict[str, Any]:
    """Describes what a record holds, without its values.

    Args:
        log: a `PredictionLog`.

    Returns:
        `signature_key`, `kind`, `batch_size`, `shapes` and `output_filter` as `RecordReport` has
        them. Of a log that the server does not run, the signature_key is empty and the kind is the
        name of the log's field, or `None` where no log type is set.
    """
    kind = log_kind(log)
    batch_size: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = {}
    output_filter: tuple[str, ...] = ()
    if kind == "predict":
        request = log.predict_log.request
        shapes = {
            name: tuple(dim.size for dim in proto.tensor_shape.dim)
            for name, proto in sorted(request.inputs.items())
        }
        sizes = {shape[0] for shape in shapes.values() if shape}
        batch_size = sizes.pop() if len(sizes) == 1 else None
        output_filter = tuple(request.output_filter)
    elif kind in REQUEST_KINDS:
        batch_size = _count_examples(getattr(log, f"{kind}_log").request.input)
        shapes = {"inputs": (batch_size,)}
    return {
        "signature_key": log_signature_key(log),
        "kind": kind if kind in REQUEST_KINDS else log.WhichOneof("log_type"),
        "batch_size": batch_size,
        "shapes": dict(shapes),
        "output_filter": output_filter,
    }


def _count_examples(request_input: Input) -> int:
    which = request_input.WhichOneof("kind")
    return len(getattr(request_input, which).examples) if which else 0
