"""A tensor of a record is parsed as a server does, unless its shape claims too much memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import TensorProto
from keras_warmup.serving.rules import MAX_EXPANDED_BYTES, ServerStatusError, to_array
from tests.trust.hostile_models import FLOAT, INT64, STRING, constant

PARSING = "tensor parsing error: x"


def expands(count: int) -> str:
    return (
        f"the tensor of input x expands to {count} bytes, more than the {MAX_EXPANDED_BYTES} "
        "allowed for a tensor whose values the record does not hold in full"
    )


REFUSED = {
    "floats": (constant([2**40], FLOAT, float_val=[0.0]), "RESOURCE_EXHAUSTED", expands(2**42)),
    "one-more": (
        constant([2**26 + 1], FLOAT, float_val=[0.0]),
        "RESOURCE_EXHAUSTED",
        expands(2**28 + 4),
    ),
    "overflow": (
        constant([2**62] * 4, FLOAT, float_val=[0.0]),
        "RESOURCE_EXHAUSTED",
        expands(2**250),
    ),
    "strings": (
        constant([2**22], STRING, string_val=[b"abcd"]),
        "RESOURCE_EXHAUSTED",
        expands(2**22 * 76),
    ),
    "negative": (constant([-5], FLOAT, float_val=[0.0]), "INVALID_ARGUMENT", PARSING),
    "dimensions": (constant([1] * 255, FLOAT, float_val=[0.0]), "INVALID_ARGUMENT", PARSING),
    "dtype": (constant([1], 99), "INVALID_ARGUMENT", PARSING),
}


@pytest.mark.parametrize(("proto", "status", "text"), REFUSED.values(), ids=REFUSED)
def test_a_tensor_that_its_shape_expands_is_refused(
    proto: TensorProto, status: str, text: str
) -> None:
    with pytest.raises(ServerStatusError) as caught:
        to_array("x", proto)
    assert (caught.value.status, str(caught.value)) == (status, text)


def test_short_lists_are_filled_up() -> None:
    assert to_array("x", constant([2, 3], FLOAT, float_val=[1.0, 2.0])).tolist() == [
        [1, 2, 2],
        [2, 2, 2],
    ]
    assert to_array("x", constant([2], STRING, string_val=[b"a"])).tolist() == [b"a", b"a"]
    assert to_array("x", constant([0, 2**40], FLOAT)).shape == (0, 2**40)


@pytest.mark.parametrize("shape", [[], [2, 3]], ids=["scalar", "matrix"])
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float16", "bfloat16", "float8_e5m2", "bool", "complex64", "uint16", "qint8"],
)
def test_tensor_content_is_read_as_tensorflow_reads_it(dtype: str, shape: list[int]) -> None:
    tf_dtype = tf.dtypes.as_dtype(dtype)
    content = (np.arange(math.prod(shape) * tf_dtype.size, dtype=np.uint8) % 2).tobytes()
    proto = constant(shape, tf_dtype.as_datatype_enum, tensor_content=content)
    theirs = tf.io.parse_tensor(proto.SerializeToString(), tf_dtype).numpy()
    ours = to_array("x", proto)
    assert (ours.shape, ours.tobytes()) == (theirs.shape, theirs.tobytes())
    assert ours.dtype == (tf_dtype.as_numpy_dtype if tf_dtype.is_quantized else theirs.dtype)


@pytest.mark.parametrize("size", [4, 7, 12])
def test_tensor_content_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ServerStatusError, match=PARSING):
        to_array("x", constant([2], FLOAT, tensor_content=bytes(size)))


def test_values_that_a_record_holds_have_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_warmup.serving.rules.MAX_EXPANDED_BYTES", 100)
    for values in (
        np.zeros(1000, np.float32),
        np.zeros(1000, np.int64),
        np.array([b""] * 1000, object),
    ):
        assert to_array("x", tf.make_tensor_proto(values)).shape == (1000,)
    assert to_array("x", constant([1000], INT64, int64_val=range(1000))).tolist() == list(
        range(1000)
    )
