"""Every dtype that a TensorProto carries survives encoding, and records are canonical protobuf."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_warmup._protos import PredictionLog, PredictRequest, TensorProto
from keras_warmup.binding.bind import BoundBatch
from keras_warmup.errors import RecordsError
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records import build
from keras_warmup.records.build import build_log, encode_log
from tests.builders import multi_inference_log, task_log

DTYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
    "bfloat16", "float8_e5m2", "float8_e4m3fn", "int4", "uint4",
]  # fmt: skip
Arrays = dict[str, np.ndarray]


def planned(arrays: Arrays, **changes: Any) -> PlannedRequest:
    bound = BoundBatch(arrays, None, 2, frozenset(arrays), "data")
    fields = {"picks": ((0, 0), (0, 1)), "output_filter": (), "warms": ("serve",), **changes}
    return PlannedRequest("serve", fields.pop("kind", "predict"), (bound,), **fields)


def sent(array: np.ndarray) -> TensorProto:
    """Returns the `TensorProto` of an array that was encoded whole."""
    return build_log(planned({"x": array}, picks=None)).predict_log.request.inputs["x"]


def counting(name: str, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    return (np.arange(int(np.prod(shape))) % 3).astype("int8").reshape(shape).astype(dtype)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_bit_for_bit_through_tensorflow(
    name: str, shape: tuple[int, ...]
) -> None:
    array = counting(name, shape)
    proto = sent(array)
    assert tf.as_dtype(proto.dtype) == tf.as_dtype(array.dtype)
    # tf.io.parse_tensor reads it in C++, with the code that a server reads requests with.
    back = tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(array.dtype)).numpy()
    assert back.dtype == array.dtype
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()


@given(st.lists(st.binary(), min_size=0, max_size=4))
def test_strings_keep_every_byte(values: list[bytes]) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    serialized = sent(array).SerializeToString()
    assert tf.io.parse_tensor(serialized, tf.string).numpy().tolist() == values


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4), elements=st.floats(width=32))
)
def test_floats_keep_nan_infinity_and_signed_zero(array: np.ndarray) -> None:
    back = tf.io.parse_tensor(sent(np.asarray(array)).SerializeToString(), tf.float32).numpy()
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_encoded_as_protobuf_encodes_it(name: str, shape: tuple[int, ...]) -> None:
    request = planned({"x": counting(name, shape)}, picks=None)
    assert encode_log(request) == build_log(request).SerializeToString(deterministic=True)


def test_a_predict_log_names_signature_inputs_and_filter() -> None:
    log = build_log(
        planned({"a": np.zeros((2, 3), "f"), "b": np.ones((2,), "i")}, output_filter=("y",)),
        "model",
    )
    request = log.predict_log.request
    assert (request.model_spec.name, request.model_spec.signature_name) == ("model", "serve")
    assert list(request.output_filter) == ["y"]
    assert {name: tf.make_ndarray(proto).shape for name, proto in request.inputs.items()} == {
        "a": (2, 3),
        "b": (2,),
    }


def test_examples_are_sent_as_messages() -> None:
    examples = [tf.train.Example(), tf.train.Example()]
    examples[1].features.feature["x"].float_list.value.append(1.0)
    serialized = np.array([example.SerializeToString() for example in examples], object)
    for kind in ("classify", "regress"):
        log = task_log(kind, "serve", *examples)
        request = planned({"inputs": serialized}, kind=kind)
        assert build_log(request) == log
        assert encode_log(request) == log.SerializeToString(deterministic=True)


def test_a_multi_inference_names_model_signature_and_method_of_each_task() -> None:
    serialized = np.array([b"", b""], object)
    tasks = (("a", "classify"), ("b", "regress"))
    request = planned({"inputs": serialized}, kind="multi_inference", tasks=tasks)
    assert build_log(request, "model") == multi_inference_log(
        ("a", "tensorflow/serving/classify"),
        ("b", "tensorflow/serving/regress"),
        examples=[tf.train.Example(), tf.train.Example()],
        model_name="model",
    )


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
ARRAYS = st.one_of(
    # From bits: as the bytes of a proto, a NaN is equal to itself.
    hnp.arrays(np.uint32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=9)).map(
        lambda bits: bits.view(np.float32)
    ),
    hnp.arrays(np.int8, st.sampled_from([(1,), (127,), (128,), (16383,), (16384,), (3, 0)])),
    st.lists(st.binary(max_size=200), max_size=4).map(
        lambda values: np.array([*values, None], dtype=object)[:-1]
    ),
)


@given(st.dictionaries(NAMES, ARRAYS, max_size=4), st.lists(NAMES, max_size=2), st.text(max_size=3))
def test_any_request_is_encoded_as_the_message_that_tensorflow_builds(
    arrays: Arrays, output_filter: list[str], model_name: str
) -> None:
    arrays = {"first": np.zeros(1), **arrays}
    request = planned(arrays, picks=None, output_filter=tuple(output_filter))
    built = build_log(request, model_name).predict_log.request
    assert sorted(built.inputs) == sorted(arrays)
    for name, array in arrays.items():
        expected = tf.make_tensor_proto(array)
        assert built.inputs[name].dtype == expected.dtype
        back = tf.make_ndarray(built.inputs[name])
        assert (back.shape, back.tolist()) == (array.shape, array.tolist()) or (
            back.tobytes() == array.tobytes()
        )
    rest = PredictRequest(output_filter=output_filter)
    rest.model_spec.name, rest.model_spec.signature_name = model_name, "serve"
    built.inputs.clear()
    assert built == rest


def test_the_same_request_gives_the_same_bytes_whatever_the_order_of_its_inputs() -> None:
    arrays = {"inputs_1": np.ones(2), "inputs": np.zeros(2), "b": np.zeros(2)}
    turned = dict(reversed(arrays.items()))
    assert encode_log(planned(arrays)) == encode_log(planned(turned))


PICKS = [((0, 0), (0, 1)), ((0, 1), (0, 0)), ((1, 0), (0, 0), (0, 1), (1, 1)), ((0, 1), (0, 1))]


@pytest.mark.parametrize("picks", PICKS, ids=str)
def test_rows_of_several_batches_are_encoded_in_their_order(
    picks: tuple[tuple[int, int], ...],
) -> None:
    def batch(start: int) -> Arrays:
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
    inputs = PredictionLog.FromString(encode_log(request)).predict_log.request.inputs
    for name in ("a", "b", "words"):
        expected = np.stack([pool[index].arrays[name][row : row + 1] for index, row in picks])[:, 0]
        np.testing.assert_array_equal(tf.make_ndarray(inputs[name]), expected)
    assert tf.make_ndarray(inputs["scalar"]) == 0


def test_a_request_that_no_proto_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MAX_RECORD_BYTES", 2**20 + 15)
    request = planned({"x": np.zeros((2, 1), np.float32)})
    assert encode_log(request)
    monkeypatch.setattr(build, "MAX_RECORD_BYTES", 2**20 + 7)
    with pytest.raises(RecordsError) as caught:
        encode_log(request)
    assert str(caught.value) == (
        "A request of 2 rows for signature 'serve' takes 8 bytes; a proto holds at most 1048583. "
        "Ask for smaller batch_sizes."
    )
