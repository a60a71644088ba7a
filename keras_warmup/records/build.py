"""Bound inputs -> PredictionLog."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_warmup import _protos
from keras_warmup.errors import RecordsError
from keras_warmup.records.warmup_file import MAX_RECORD_BYTES
from keras_warmup.records.wire import encode_predict
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES

if TYPE_CHECKING:
    from keras_warmup.planning.planned_request import PlannedRequest

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
    """Serializes the `PredictionLog` of a planned request.

    Args:
        request: the planned request.
        model_name: `model_spec.name`.

    Returns:
        The message that `build_log(request, model_name)` is. The values of a Predict request are copied once.

    Raises:
        RecordsError: the request does not fit a proto (2 GiB).
    """
    if request.kind != "predict":
        return bytes(build_log(request, model_name).SerializeToString(deterministic=True))
    _check_size(request)
    head = _protos.PredictRequest()
    _fill_model_spec(head.model_spec, model_name, request.signature_key)
    tensors: dict[str, tuple[Any, Sequence[np.ndarray]]] = {}
    for name, parts in request.pieces().items():
        proto = _protos.TensorProto()
        shape = parts[0].shape if len(parts) == 1 else (sum(map(len, parts)), *parts[0].shape[1:])
        if _fill_header(proto, parts[0].dtype, shape) != tf.string:
            tensors[name] = proto, parts
            continue
        for part in parts:
            proto.string_val.extend(part.ravel().tolist())
        tensors[name] = proto, ()
    return encode_predict(
        head, tensors, _protos.PredictRequest(output_filter=request.output_filter)
    )


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
    if _fill_header(proto, array.dtype, array.shape) == tf.string:
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = array.tobytes()


def _fill_header(proto: Any, numpy_dtype: np.dtype[Any], shape: Sequence[int]) -> tf.DType:
    """Dtype and shape; returns the dtype."""
    dtype = tf.string if numpy_dtype.kind == "O" else tf.as_dtype(numpy_dtype)
    proto.dtype = dtype.as_datatype_enum
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    return dtype
