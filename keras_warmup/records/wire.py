"""A Predict request as the bytes of its `PredictionLog`: the tensors' values go from the batches right into the record.

A proto takes the array's bytes in, and `SerializeToString` copies them out again, as often as messages are nested. Here protobuf
writes everything that is small, and the values are joined to it once (https://protobuf.dev/programming-guides/encoding).
Inputs come in the order of their names: a map has none, and the same request must give the same file.
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
    head: PredictRequest,
    tensors: Mapping[str, tuple[TensorProto, Sequence[np.ndarray]]],
    tail: PredictRequest,
) -> bytes:
    """Serializes the `PredictionLog` of a Predict request.

    Args:
        head: the request's model_spec alone.
        tensors: input name -> its `TensorProto`, and arrays of one dtype whose memory, one after the other, is the
            `tensor_content` that the proto lacks; none for strings.
        tail: the request's output_filter alone.

    Returns:
        The record.
    """
    parts: list[Any] = [head.SerializeToString()]
    for name in sorted(tensors):
        proto, arrays = tensors[name]
        value = [proto.SerializeToString()]
        # Views as bytes: bfloat16 and its like do not lend their memory under their own dtype.
        content = [
            np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays if array.size
        ]
        if content:
            value += _delimited(_number(TensorProto, "tensor_content"), content)
        entry = [*_delimited(_MAP_KEY, [name.encode()]), *_delimited(_MAP_VALUE, value)]
        parts += _delimited(_number(PredictRequest, "inputs"), entry)
    parts.append(tail.SerializeToString())
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
