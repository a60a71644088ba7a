"""Bound inputs -> PredictionLog, and back to what a report says of a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_warmup import _protos
from keras_warmup.errors import RecordsError
from keras_warmup.kinds import METHOD_NAMES
from keras_warmup.report import Kind

if TYPE_CHECKING:
    from keras_warmup.plan import PlannedRequest

# protobuf refuses to serialize messages of 2 GiB and more with a bare EncodeError.
MAX_PROTO_BYTES = 2**31 - 1
_ROOM_FOR_NAMES_BYTES = 2**20


def build_log(request: PlannedRequest, model_name: str = "") -> Any:
    """Builds the `PredictionLog` of a planned request.

    Args:
        request: the planned request.
        model_name: `model_spec.name`; only MultiInference demands one.

    Returns:
        A `PredictionLog`.

    Raises:
        RecordsError: the request does not fit a proto (2 GiB).
    """
    size = request.wire_bytes
    if size + _ROOM_FOR_NAMES_BYTES > MAX_PROTO_BYTES:
        raise RecordsError(
            f"A request of {request.batch_size} rows for signature {request.signature_key!r} takes {size} bytes; a proto holds "
            f"at most {MAX_PROTO_BYTES}. Ask for smaller batch_sizes."
        )
    log = _protos.PredictionLog()
    if request.kind == "predict":
        predict = log.predict_log.request
        _fill_model_spec(predict.model_spec, model_name, request.signature_key)
        predict.output_filter.extend(request.output_filter)
        for name, array in request.arrays().items():
            fill_tensor(predict.inputs[name], array)
        return log
    (serialized,) = request.arrays().values()
    if request.kind == "multi_inference":
        multi = log.multi_inference_log.request
        for key, kind in request.tasks:
            task = multi.tasks.add(method_name=METHOD_NAMES[kind])
            _fill_model_spec(task.model_spec, model_name, key)
        _fill_examples(multi.input, serialized)
        return log
    one = log.classify_log.request if request.kind == "classify" else log.regress_log.request
    _fill_model_spec(one.model_spec, model_name, request.signature_key)
    _fill_examples(one.input, serialized)
    return log


def _fill_model_spec(model_spec: Any, model_name: str, signature_key: str) -> None:
    model_spec.name = model_name
    model_spec.signature_name = signature_key


def _fill_examples(request_input: Any, serialized: np.ndarray) -> None:
    for example in serialized.ravel():
        request_input.example_list.examples.add().MergeFromString(example)


def fill_tensor(proto: Any, array: np.ndarray) -> None:
    """Writes an array into a `TensorProto` in place.

    `tf.make_tensor_proto` followed by `CopyFrom` copies the bytes twice and spells bool, small integers and strings out
    one by one; `tensor_content` takes every dtype whose tensors can be copied as bytes (framework/tensor.cc).

    Args:
        proto: an empty `TensorProto`.
        array: any dtype a TensorProto carries, in native byte order; strings as object array of `bytes`.
    """
    dtype = tf.string if array.dtype.kind == "O" else tf.as_dtype(array.dtype)
    proto.dtype = dtype.as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if dtype == tf.string:
        proto.string_val.extend(array.ravel().tolist())
        return
    proto.tensor_content = array.tobytes()


def describe_log(log: Any) -> dict[str, Any]:
    """What a record holds, without its values.

    Args:
        log: a `PredictionLog`.

    Returns:
        `signature_key`, `kind`, `batch_size`, `shapes` and `output_filter` as `RecordReport` names them; `kind` is the log's own
        field name where the server does not run it, `None` where no log type is set.
    """
    which = log.WhichOneof("log_type")
    if which == "predict_log":
        request = log.predict_log.request
        shapes = {
            name: tuple(dim.size for dim in proto.tensor_shape.dim) for name, proto in sorted(request.inputs.items())
        }
        sizes = {shape[0] for shape in shapes.values() if shape}
        return _description(
            request.model_spec.signature_name,
            "predict",
            sizes.pop() if len(sizes) == 1 else None,
            shapes,
            tuple(request.output_filter),
        )
    kinds: Mapping[str, Kind] = {
        "classify_log": "classify",
        "regress_log": "regress",
        "multi_inference_log": "multi_inference",
    }
    if which not in kinds:
        return _description("", which, None, {}, ())
    request = getattr(log, which).request
    rows = _examples_in(request.input)
    if which == "multi_inference_log":
        key = "+".join(task.model_spec.signature_name or "serving_default" for task in request.tasks)
    else:
        key = request.model_spec.signature_name
    return _description(key, kinds[which], rows, {"inputs": (rows,)}, ())


def _examples_in(request_input: Any) -> int:
    which = request_input.WhichOneof("kind")
    return len(getattr(request_input, which).examples) if which else 0


def _description(
    key: str,
    kind: str | None,
    batch_size: int | None,
    shapes: Mapping[str, tuple[int, ...]],
    output_filter: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "signature_key": key or "serving_default",
        "kind": kind,
        "batch_size": batch_size,
        "shapes": dict(shapes),
        "output_filter": output_filter,
    }
