"""What a `PredictionLog` is: its kind, the signatures it runs, and what a report says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_warmup._protos import Input, PredictionLog
from keras_warmup.savedmodel.signatures import DEFAULT_SIGNATURE_KEY

# The kinds that name a signature: the server runs these and no others.
_RUN = ("predict", "classify", "regress", "multi_inference")


def log_kind(log: PredictionLog) -> str:
    """`predict`, `classify`, `regress`, `multi_inference`, `session_run`, `predict_streamed`, or `none`."""
    return str(log.WhichOneof("log_type") or "none").removesuffix("_log")


def log_signature_keys(log: PredictionLog) -> tuple[str, ...]:
    """Keys of the signatures a record runs: one, or one for each task of a MultiInference; none for other kinds."""
    kind = log_kind(log)
    if kind not in _RUN:
        return ()
    request = getattr(log, f"{kind}_log").request
    specs = (
        [task.model_spec for task in request.tasks]
        if kind == "multi_inference"
        else [request.model_spec]
    )
    return tuple(str(spec.signature_name or DEFAULT_SIGNATURE_KEY) for spec in specs)


def log_signature_key(log: PredictionLog) -> str:
    """The signature a record runs; a MultiInference's keys joined by `+`; empty where the kind names none."""
    return "+".join(log_signature_keys(log))


def describe_log(log: PredictionLog) -> dict[str, Any]:
    """What a record holds, without its values.

    Args:
        log: a `PredictionLog`.

    Returns:
        `signature_key`, `kind`, `batch_size`, `shapes` and `output_filter` as `RecordReport` names them. `kind` is the
        log's own field name where the server does not run it, `None` where no log type is set; such a log has no
        signature_key.
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
    elif kind in _RUN:
        batch_size = _examples_in(getattr(log, f"{kind}_log").request.input)
        shapes = {"inputs": (batch_size,)}
    return {
        "signature_key": log_signature_key(log),
        "kind": kind if kind in _RUN else log.WhichOneof("log_type"),
        "batch_size": batch_size,
        "shapes": dict(shapes),
        "output_filter": output_filter,
    }


def _examples_in(request_input: Input) -> int:
    which = request_input.WhichOneof("kind")
    return len(getattr(request_input, which).examples) if which else 0
