"""Encodes planned requests as `PredictionLog` records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_warmup._protos import ModelSpec, PredictionLog, PredictLog, PredictRequest, TensorProto
from keras_warmup.errors import RecordsError
from keras_warmup.records.warmup_file import MAX_RECORD_BYTES
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES

if TYPE_CHECKING:
    from keras_warmup.planning.planned_request import PlannedRequest

# Reserved for everything in a record beside the values: names, shapes, lengths.
_METADATA_BYTES = 2**20
# Field numbers of the entries of every protobuf map, and the wire type of messages and bytes:
# https://protobuf.dev/programming-guides/encoding
_MAP_KEY, _MAP_VALUE = 1, 2
_LENGTH_DELIMITED = 2


def build_log(request: PlannedRequest, model_name: str = "") -> PredictionLog:
    """Builds the `PredictionLog` of a planned request.

    The arguments and errors are those of `encode_log`.
    """
    return PredictionLog.FromString(encode_log(request, model_name))


def encode_log(request: PlannedRequest, model_name: str = "") -> bytes:
    """Serializes the `PredictionLog` of a planned request.

    Equal requests give equal bytes, in every process.

    Args:
        request: the planned request.
        model_name: `model_spec.name`; TensorFlow Serving requires one for MultiInference only.

    Returns:
        The record.

    Raises:
        RecordsError: the request is too large for a proto (2 GiB).
    """
    size = request.wire_bytes
    if size + _METADATA_BYTES > MAX_RECORD_BYTES:
        raise RecordsError(
            f"A request of {request.batch_size} rows for signature {request.signature_key!r} takes "
            f"{size} bytes; a proto holds at most {MAX_RECORD_BYTES}. Ask for smaller batch_sizes."
        )
    spec = ModelSpec(name=model_name, signature_name=request.signature_key)
    if request.kind == "predict":
        return _encode_predict(request, spec)
    log = PredictionLog()
    message = getattr(log, f"{request.kind}_log").request
    if request.kind == "multi_inference":
        for key, kind in request.tasks:
            task_spec = ModelSpec(name=model_name, signature_name=key)
            message.tasks.add(model_spec=task_spec, method_name=METHOD_NAMES[kind])
    else:
        message.model_spec.CopyFrom(spec)
    (serialized,) = request.arrays().values()
    for example in serialized.ravel():
        message.input.example_list.examples.add().MergeFromString(example)
    return bytes(log.SerializeToString(deterministic=True))


def _encode_predict(request: PlannedRequest, spec: ModelSpec) -> bytes:
    """Serializes a Predict request as protobuf would, but copies the values only once.

    Through a message they would be copied into a proto first, then out of it. Fields are written in
    the order of their numbers, and inputs in the order of their names.
    """
    parts = [PredictRequest(model_spec=spec).SerializeToString()]
    for name, arrays in sorted(request.pieces().items()):
        entry = [*_field(_MAP_KEY, [name.encode()]), *_field(_MAP_VALUE, _encode_tensor(arrays))]
        parts += _field(_number(PredictRequest, "inputs"), entry)
    parts.append(PredictRequest(output_filter=request.output_filter).SerializeToString())
    predict_log = _field(_number(PredictLog, "request"), parts)
    return b"".join(_field(_number(PredictionLog, "predict_log"), predict_log))


def encode_array(array: np.ndarray) -> bytes:
    """Serializes an array as a `TensorProto`, as `encode_log` does."""
    return b"".join(_encode_tensor([array]))


def _encode_tensor(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Serializes the concatenation of arrays of one dtype as the parts of a `TensorProto`."""
    first = arrays[0]
    shape = first.shape if len(arrays) == 1 else (sum(map(len, arrays)), *first.shape[1:])
    dtype = tf.string if first.dtype.kind == "O" else tf.as_dtype(first.dtype)
    proto = TensorProto(dtype=dtype.as_datatype_enum)
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    if dtype == tf.string:
        for array in arrays:
            proto.string_val.extend(array.ravel().tolist())
        return [proto.SerializeToString()]
    # As bytes: arrays of bfloat16 and the like do not export a buffer of their own dtype.
    content = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays if a.size]
    parts = [proto.SerializeToString()]
    return [*parts, *_field(_number(TensorProto, "tensor_content"), content)] if content else parts


def _field(number: int, parts: Sequence[Any]) -> list[Any]:
    """Prefixes the parts of a message or of bytes with the tag and length of their field."""
    header = _varint(number << 3 | _LENGTH_DELIMITED) + _varint(sum(map(len, parts)))
    return [header, *parts]


def _varint(value: int) -> bytes:
    """Encodes seven bits a byte, the low bits first; the high bit marks that more bytes follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _number(message: Any, field: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[field].number)
