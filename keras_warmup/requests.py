"""Bound inputs -> PredictionLog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_warmup import _protos
from keras_warmup.errors import RecordsError
from keras_warmup.kinds import METHOD_NAMES
from keras_warmup.logs import describe_log as describe_log  # noqa: PLC0414 - for those who import it from here
from keras_warmup.records import MAX_RECORD_BYTES
from keras_warmup.wire import encode_predict

if TYPE_CHECKING:
    from keras_warmup.planned_request import PlannedRequest

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
    _check_size(request)
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


def encode_log(request: PlannedRequest, model_name: str = "") -> bytes:
    """Serializes the `PredictionLog` of a planned request, with each tensor's values copied once.

    Args:
        request: the planned request.
        model_name: `model_spec.name`.

    Returns:
        The bytes of `build_log(request, model_name).SerializeToString(deterministic=True)`.

    Raises:
        RecordsError: the request does not fit a proto (2 GiB).
    """
    if request.kind != "predict":
        return bytes(build_log(request, model_name).SerializeToString(deterministic=True))
    _check_size(request)
    spec = _protos.PredictRequest()
    _fill_model_spec(spec.model_spec, model_name, request.signature_key)
    tensors: dict[str, tuple[Any, np.ndarray | None]] = {}
    for name, array in request.arrays().items():
        proto = _protos.TensorProto()
        tensors[name] = (proto, array if _fill_header(proto, array) else None)
    return encode_predict(spec, tensors, _protos.PredictRequest(output_filter=request.output_filter))


def _check_size(request: PlannedRequest) -> None:
    size = request.wire_bytes
    if size + _ROOM_FOR_NAMES_BYTES > MAX_RECORD_BYTES:
        raise RecordsError(
            f"A request of {request.batch_size} rows for signature {request.signature_key!r} takes {size} bytes; a proto holds "
            f"at most {MAX_RECORD_BYTES}. Ask for smaller batch_sizes."
        )


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
    if _fill_header(proto, array):
        proto.tensor_content = array.tobytes()


def _fill_header(proto: Any, array: np.ndarray) -> bool:
    """Dtype and shape, and the values of strings; whether the values are still to be written as `tensor_content`."""
    dtype = tf.string if array.dtype.kind == "O" else tf.as_dtype(array.dtype)
    proto.dtype = dtype.as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if dtype == tf.string:
        proto.string_val.extend(array.ravel().tolist())
    return bool(dtype != tf.string)
