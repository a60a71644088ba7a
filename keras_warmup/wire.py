"""A Predict request as the bytes of its `PredictionLog`, each tensor's memory copied once.

A proto takes the array's bytes in, and `SerializeToString` copies them out again, as often as messages are nested. Here protobuf
writes everything that is small, and the values go from the arrays right into the record (https://protobuf.dev/programming-guides/encoding).
The bytes are those of `SerializeToString(deterministic=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_warmup._protos import PredictionLog, PredictLog, PredictRequest, TensorProto

# Field numbers of a map entry, the same for every map.
_MAP_KEY, _MAP_VALUE = 1, 2
_LENGTH_DELIMITED = 2


def encode_predict(
    model_spec: PredictRequest,
    tensors: Mapping[str, tuple[TensorProto, np.ndarray | None]],
    output_filter: PredictRequest,
) -> bytes:
    """Serializes the `PredictionLog` of a Predict request.

    Args:
        model_spec: a request that holds the model_spec and nothing else.
        tensors: input name -> its `TensorProto`; beside one that lacks its `tensor_content`, the array whose memory that is,
            else `None`.
        output_filter: a request that holds the output_filter and nothing else.

    Returns:
        The record.
    """
    parts: list[Any] = [model_spec.SerializeToString()]
    for name in sorted(tensors):
        proto, array = tensors[name]
        value = [proto.SerializeToString()]
        if array is not None and array.size:
            # A view as bytes: bfloat16 and its like do not lend their memory under their own dtype.
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            value += _delimited(_number(TensorProto, "tensor_content"), [content])
        entry = [*_delimited(_MAP_KEY, [name.encode()]), *_delimited(_MAP_VALUE, value)]
        parts += _delimited(_number(PredictRequest, "inputs"), entry)
    parts.append(output_filter.SerializeToString())
    request = _delimited(_number(PredictLog, "request"), parts)
    return b"".join(_delimited(_number(PredictionLog, "predict_log"), request))


def _delimited(number: int, parts: Sequence[Any]) -> list[Any]:
    """A field of these bytes: its tag, its length, and the bytes."""
    header = _varint(number << 3 | _LENGTH_DELIMITED) + _varint(sum(len(part) for part in parts))
    return [header, *parts]


def _varint(value: int) -> bytes:
    """Seven bits a byte, the low ones first; the high bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _number(message: Any, field: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[field].number)
