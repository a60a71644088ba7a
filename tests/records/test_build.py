"""Requests: every dtype a TensorProto carries goes on the wire and comes back as it was."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_warmup._protos import PredictionLog, TensorProto
from keras_warmup.binding.bind import BoundBatch
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import build_log, encode_log, fill_tensor
from keras_warmup.records.prediction_logs import describe_log

DTYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
    "complex64", "complex128", "bfloat16", "float8_e5m2", "float8_e4m3fn", "int4", "uint4",
]  # fmt: skip


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_bit_for_bit_through_tensorflow(name, shape):
    dtype = numpy_dtype(name)
    array = (np.arange(int(np.prod(shape))) % 3).astype("int8").reshape(shape).astype(dtype)
    proto = TensorProto()
    fill_tensor(proto, array)
    assert tf.as_dtype(proto.dtype) == tf.as_dtype(dtype)
    # tf.io.parse_tensor reads it in C++, by the code a server reads requests with.
    back = tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(dtype)).numpy()
    assert back.dtype == dtype
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()


@given(st.lists(st.binary(), min_size=0, max_size=4))
def test_strings_keep_every_byte(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    proto = TensorProto()
    fill_tensor(proto, array)
    assert tf.io.parse_tensor(proto.SerializeToString(), tf.string).numpy().tolist() == values


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4), elements=st.floats(width=32))
)
def test_floats_keep_nan_infinity_and_signed_zero(array):
    proto = TensorProto()
    fill_tensor(proto, np.asarray(array))
    assert (
        tf.io.parse_tensor(proto.SerializeToString(), tf.float32).numpy().tobytes()
        == array.tobytes()
    )


def planned(arrays, **changes):
    size = 2
    bound = BoundBatch(arrays, None, size, frozenset(arrays), "data")
    fields = {"picks": ((0, 0), (0, 1)), "output_filter": (), "warms": ("serve",), **changes}
    return PlannedRequest("serve", "predict", (bound,), **fields)


def test_a_predict_log_names_signature_inputs_and_filter_and_describes_itself():
    log = build_log(
        planned({"a": np.zeros((2, 3), "f"), "b": np.ones((2,), "i")}, output_filter=("y",))
    )
    request = log.predict_log.request
    assert request.model_spec.signature_name == "serve"
    assert list(request.output_filter) == ["y"]
    assert {name: tf.make_ndarray(proto).shape for name, proto in request.inputs.items()} == {
        "a": (2, 3),
        "b": (2,),
    }
    assert describe_log(log) == {
        "signature_key": "serve",
        "kind": "predict",
        "batch_size": 2,
        "shapes": {"a": (2, 3), "b": (2,)},
        "output_filter": ("y",),
    }


def test_logs_the_server_does_not_run_are_described_by_their_own_name():
    assert describe_log(PredictionLog())["kind"] is None
    log = PredictionLog()
    log.session_run_log.SetInParent()
    assert describe_log(log)["kind"] == "session_run_log"


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_encoded_as_protobuf_encodes_it(name, shape):
    array = (
        (np.arange(int(np.prod(shape))) % 3).astype("int8").reshape(shape).astype(numpy_dtype(name))
    )
    request = planned({"x": array}, picks=None)
    assert encode_log(request) == build_log(request).SerializeToString(deterministic=True)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
ARRAYS = st.one_of(
    # From bytes: a NaN is equal to itself as the bytes of a proto.
    hnp.arrays(np.uint32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=9)).map(
        lambda bits: bits.view(np.float32)
    ),
    hnp.arrays(np.int8, st.sampled_from([(1,), (127,), (128,), (16383,), (16384,), (3, 0)])),
    st.lists(st.binary(max_size=200), max_size=4).map(
        lambda values: np.array([*values, None], dtype=object)[:-1]
    ),
)


@given(st.dictionaries(NAMES, ARRAYS, max_size=4), st.lists(NAMES, max_size=2), st.text(max_size=3))
def test_any_request_is_encoded_as_the_message_it_is(arrays, output_filter, model_name):
    request = planned(
        {"first": np.zeros(1), **arrays}, picks=None, output_filter=tuple(output_filter)
    )
    # Not the bytes: protobuf has an order of its own for names of which one begins with the other.
    assert PredictionLog.FromString(encode_log(request, model_name)) == build_log(
        request, model_name
    )


def test_the_same_request_gives_the_same_bytes_whatever_the_order_of_its_inputs():
    arrays = {"inputs_1": np.ones(2), "inputs": np.zeros(2), "b": np.zeros(2)}
    turned = dict(reversed(arrays.items()))
    assert encode_log(planned(arrays)) == encode_log(planned(turned))


PICKS = [((0, 0), (0, 1)), ((0, 1), (0, 0)), ((1, 0), (0, 0), (0, 1), (1, 1)), ((0, 1), (0, 1))]


@pytest.mark.parametrize("picks", PICKS, ids=str)
def test_rows_of_several_batches_are_encoded_in_their_order(picks):
    def batch(start):
        turned = np.arange(start, start + 24, dtype="f").reshape(2, 3, 4).transpose(0, 2, 1)
        words = np.array([b"one\0", b"%d" % start], dtype=object)
        return {
            "a": turned,
            "b": np.arange(start, start + 2),
            "words": words,
            "scalar": np.float64(start)[...],
        }

    pool = tuple(
        BoundBatch(batch(start), None, 2, frozenset({"a", "b", "words"}), "data")
        for start in (0, 100)
    )
    request = PlannedRequest("serve", "predict", pool, picks, (), ("serve",))
    log = PredictionLog.FromString(encode_log(request))
    assert log == build_log(request)
    sent = log.predict_log.request.inputs
    for name in ("a", "b", "words"):
        expected = np.stack([pool[index].arrays[name][row : row + 1] for index, row in picks])[:, 0]
        np.testing.assert_array_equal(tf.make_ndarray(sent[name]), expected)
    assert tf.make_ndarray(sent["scalar"]) == 0
