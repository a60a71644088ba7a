"""Records run as a server runs them, and are refused where a server refuses them."""

from __future__ import annotations

import pathlib
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog, TensorProto
from keras_warmup.errors import ReplayError
from keras_warmup.serving.replay import ServingSession, open_session
from keras_warmup.serving.rules import CLASSIFY_METHOD, REGRESS_METHOD
from tests.builders import multi_inference_log, predict_log, task_log

FLOATS = tf.TensorSpec([None], tf.float32)
ROWS = np.array([1, 2, 3], "float32")


def example(**features: float) -> tf.train.Example:
    floats = {name: tf.train.FloatList(value=[value]) for name, value in features.items()}
    return tf.train.Example(
        features=tf.train.Features(
            feature={name: tf.train.Feature(float_list=value) for name, value in floats.items()}
        )
    )


def refusal(session: ServingSession, log: PredictionLog) -> str:
    """Returns the error of the server, without the words of this package around it."""
    with pytest.raises(ReplayError) as caught:
        session.replay(log)
    message = str(caught.value)
    return re.sub(
        r"^.* would keep TensorFlow Serving from loading the model: ", "", message, count=1
    )


class Functions(tf.Module):
    """Signatures of every kind, over Examples with one float feature `x`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(2.0)
        self.calls = tf.Variable(0.0)

    @tf.function(input_signature=[FLOATS, FLOATS])
    def two(self, x: Any, w: Any) -> dict[str, Any]:
        return {"y": x * self.scale + w, "n": tf.size(x), "text": tf.constant(b"a\0\0")}

    @tf.function(input_signature=[FLOATS])
    def count(self, x: Any) -> dict[str, Any]:
        self.calls.assign_add(1.0)
        return {"y": x + self.calls}

    def x(self, examples: Any) -> Any:
        return tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]

    def returns(self, make: Callable[[Any], dict[str, Any]]) -> Any:
        spec = tf.TensorSpec([None], tf.string)
        return tf.function(lambda inputs: make(self.x(inputs))).get_concrete_function(inputs=spec)


def labels(x: Any) -> Any:
    return tf.strings.as_string(tf.stack([x, x], axis=1))


@pytest.fixture(scope="session")
def functions_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("functions") / "1")
    m = Functions()
    endpoints = {
        "classify": lambda x: {"classes": labels(x), "scores": tf.stack([x, -x], axis=1)},
        "scores_only": lambda x: {"scores": x[:, None]},
        "flat_scores": lambda x: {"scores": x},
        "float_classes": lambda x: {"classes": x[:, None]},
        "double_scores": lambda x: {"scores": tf.cast(x, tf.float64)[:, None]},
        "first_score": lambda x: {"scores": x[:1, None]},
        "uneven": lambda x: {"classes": labels(x), "scores": x[:, None]},
        "neither": lambda x: {"y": x},
        "three": lambda x: {"classes": labels(x), "scores": x[:, None], "y": x},
        "regress": lambda x: {"outputs": x * m.scale},
        "regress_column": lambda x: {"outputs": x[:, None]},
        "regress_wide": lambda x: {"outputs": tf.stack([x, x], axis=1)},
        "regress_first": lambda x: {"outputs": x[:1]},
        "regress_double": lambda x: {"outputs": tf.cast(x, tf.float64)},
    }
    signatures = {"serving_default": m.two, "count": m.count}
    signatures |= {key: m.returns(make) for key, make in endpoints.items()}
    tf.saved_model.save(m, path, signatures=signatures)
    return path


@pytest.fixture(scope="session")
def session(functions_dir: str) -> Iterator[ServingSession]:
    with open_session(functions_dir) as session:
        yield session


@pytest.fixture(scope="session")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """TensorFlow 1 export: fixed shapes, an input as output, a tensor of two names, a default."""
    path = str(tmp_path_factory.mktemp("graph") / "1")
    v1 = tf.compat.v1
    definition = v1.saved_model.signature_def_utils.predict_signature_def
    with tf.Graph().as_default(), v1.Session() as open_graph:
        x = v1.placeholder(tf.float32, [2], name="x")
        w = v1.placeholder(tf.float32, [None], name="w")
        y = x + 1.0
        signatures = {
            "serving_default": definition({"x": x}, {"y": y}),
            "identity": definition({"x": x}, {"y": x}),
            "aliases": definition({"x": x}, {"y": y, "again": y}),
            "fed_twice": definition({"x": x, "also_x": x}, {"y": y}),
            "unused": definition({"x": x, "w": w}, {"y": y}),
            "default": definition({"x": x, "w": w}, {"y": x[:1] + w}),
        }
        signatures["default"].defaults["w"].CopyFrom(tf.make_tensor_proto(np.float32([10])))
        builder = v1.saved_model.Builder(path)
        builder.add_meta_graph_and_variables(open_graph, ["serve"], signature_def_map=signatures)
        builder.save()
    return path


@pytest.fixture(scope="session")
def graph_session(graph_dir: str) -> Iterator[ServingSession]:
    with open_session(graph_dir) as session:
        yield session


def test_predict_gives_every_output_by_alias(session: ServingSession) -> None:
    replayed = session.replay(predict_log(x=ROWS, w=ROWS))
    assert sorted(replayed.outputs) == ["n", "text", "y"]
    np.testing.assert_array_equal(replayed.outputs["y"], [3, 6, 9])
    assert replayed.outputs["n"] == 3
    assert replayed.outputs["text"].item() == b"a\0\0"
    assert replayed.ms > 0
    assert session.load_ms > 0


def test_output_filter_gives_the_outputs_asked_for(session: ServingSession) -> None:
    assert list(session.replay(predict_log(output_filter=["y"], x=ROWS, w=ROWS)).outputs) == ["y"]


def test_one_executor_for_each_set_of_feeds_and_fetches(functions_dir: str) -> None:
    with open_session(functions_dir) as session:
        for log in (
            predict_log(x=ROWS, w=ROWS),
            predict_log("serving_default", x=ROWS[:1], w=ROWS[:1]),
            predict_log(output_filter=["text", "y", "n"], x=ROWS, w=ROWS),
        ):
            session.replay(log)
        assert len(session._executors) == 1
        session.replay(predict_log(output_filter=["y"], x=ROWS, w=ROWS))
        assert len(session._executors) == 2


def test_state_stays_in_the_session_and_out_of_the_file(functions_dir: str) -> None:
    for _ in range(2):
        with open_session(functions_dir) as session:
            assert session.replay(predict_log("count", x=ROWS)).outputs["y"][0] == 2
            assert session.replay(predict_log("count", x=ROWS)).outputs["y"][0] == 3


REFUSED_PREDICTS = {
    "missing": (
        predict_log(x=ROWS),
        "INVALID_ARGUMENT: input size does not match signature: 1!=2 len({x}) != len({w,x}). Sent "
        "extra: {}. Missing but required: {w}.",
    ),
    "extra": (
        predict_log(x=ROWS, w=ROWS, q=ROWS),
        "INVALID_ARGUMENT: input size does not match signature: 3!=2 len({q,w,x}) != len({w,x}). "
        "Sent extra: {q}. Missing but required: {}.",
    ),
    "other-name": (
        predict_log(x=ROWS, q=ROWS),
        "INVALID_ARGUMENT: Signature input alias: w(feed name: serving_default_w:0) not found in "
        "request and no default value provided. Inputs expected to be in the request {q,x}, or "
        "default input alias set: {}",
    ),
    "dtype": (
        predict_log(x=ROWS, w=ROWS.astype("float64")),
        "INVALID_ARGUMENT: Expects arg[0] to be float but double is provided (feed "
        "serving_default_w:0)",
    ),
    "unknown-signature": (
        predict_log("nope", x=ROWS),
        'FAILED_PRECONDITION: Serving signature key "nope" not found.',
    ),
    "unknown-output": (
        predict_log(output_filter=["y", "z"], x=ROWS, w=ROWS),
        "INVALID_ARGUMENT: output tensor alias not found in signature: z Outputs expected to be "
        "in the set {n,text,y}.",
    ),
    "output-twice": (
        predict_log(output_filter=["y", "y"], x=ROWS, w=ROWS),
        "INVALID_ARGUMENT: duplicate output tensor alias: y",
    ),
    "bad-proto": (
        predict_log(x=TensorProto(dtype=1, tensor_content=b"12345"), w=ROWS),
        "INVALID_ARGUMENT: tensor parsing error: x",
    ),
    "no-dtype": (predict_log(x=TensorProto(), w=ROWS), "INVALID_ARGUMENT: tensor parsing error: x"),
    "session-run": (
        PredictionLog(session_run_log={}),
        "UNIMPLEMENTED: Unsupported log_type for warmup: 5",
    ),
    "streamed": (
        PredictionLog(predict_streamed_log={}),
        "UNIMPLEMENTED: Unsupported log_type for warmup: 7",
    ),
}


@pytest.mark.parametrize(("log", "text"), REFUSED_PREDICTS.values(), ids=REFUSED_PREDICTS)
def test_predict_is_refused_as_the_server_refuses_it(
    session: ServingSession, log: PredictionLog, text: str
) -> None:
    assert refusal(session, log) == text


def test_the_error_names_the_record(session: ServingSession) -> None:
    with pytest.raises(ReplayError) as caught:
        session.replay(predict_log("nope", x=ROWS))
    assert str(caught.value) == (
        "predict record for signature 'nope' would keep TensorFlow Serving from loading the model: "
        'FAILED_PRECONDITION: Serving signature key "nope" not found.'
    )


def test_the_graphs_own_errors_come_through(session: ServingSession) -> None:
    assert refusal(session, predict_log(x=ROWS, w=ROWS[:2])) == (
        "INVALID_ARGUMENT: Incompatible shapes: [3] vs. [2] (node add, op AddV2)"
    )


def test_a_log_without_type_runs_nothing(session: ServingSession) -> None:
    replayed = session.replay(PredictionLog())
    assert (replayed.ms, replayed.outputs) == (0.0, {})


def test_fixed_shapes_are_not_checked(graph_session: ServingSession) -> None:
    np.testing.assert_array_equal(graph_session.replay(predict_log(x=ROWS)).outputs["y"], [2, 3, 4])


def test_two_aliases_of_one_tensor(graph_session: ServingSession) -> None:
    outputs = graph_session.replay(predict_log("aliases", x=ROWS)).outputs
    np.testing.assert_array_equal(outputs["y"], outputs["again"])


def test_defaults_fill_absent_inputs_only(graph_session: ServingSession) -> None:
    assert graph_session.replay(predict_log("default", x=ROWS)).outputs["y"] == 11
    assert graph_session.replay(predict_log("default", x=ROWS, w=ROWS[:1])).outputs["y"] == 2


REFUSED_GRAPHS = {
    "fed-and-fetched": (
        predict_log("identity", x=ROWS),
        "INVALID_ARGUMENT: x:0 is both fed and fetched.",
    ),
    "fed-twice": (
        predict_log("fed_twice", x=ROWS, also_x=ROWS),
        'INVALID_ARGUMENT: Endpoint "x:0" fed more than once.',
    ),
    "dtype-of-an-unused-input": (
        predict_log("unused", x=ROWS, w=np.int64([1])),
        "INVALID_ARGUMENT: Expects arg[0] to be float but int64 is provided (feed w:0)",
    ),
    "extra-for-default": (
        predict_log("default", x=ROWS, q=ROWS),
        "INVALID_ARGUMENT: Inputs contains invalid name. Used request inputs: x, request input: "
        "q,x",
    ),
    "only-the-default": (
        predict_log("default", w=ROWS),
        "INVALID_ARGUMENT: Signature input alias: x(feed name: x:0) not found in request and no "
        "default value provided. Inputs expected to be in the request {w}, or default input alias "
        "set: {w}",
    ),
}


@pytest.mark.parametrize(("log", "text"), REFUSED_GRAPHS.values(), ids=REFUSED_GRAPHS)
def test_graphs_are_refused_as_the_server_refuses_them(
    graph_session: ServingSession, log: PredictionLog, text: str
) -> None:
    assert refusal(graph_session, log) == text


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "float16",
        "float32",
        "float64",
        "int4",
        "uint4",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "bool",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
    ],
)
def test_every_dtype_goes_in_and_out_unchanged(tmp_path: pathlib.Path, dtype: str) -> None:
    m = tf.Module()
    m.f = tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[tf.TensorSpec(None, dtype)])
    tf.saved_model.save(m, tmp_path, signatures=m.f)
    array = np.array([0, 1, 1], getattr(ml_dtypes, dtype, dtype))
    with open_session(tmp_path) as session:
        for value in (array, array[1]):
            output = session.replay(
                predict_log(x=tf.make_tensor_proto(value, dtype=dtype))
            ).outputs["y"]
            assert output.dtype == array.dtype
            np.testing.assert_array_equal(output, value)


def test_strings_keep_trailing_nuls_and_raw_bytes(tmp_path: pathlib.Path) -> None:
    m = tf.Module()
    m.f = tf.function(
        lambda x: {"y": tf.identity(x)}, input_signature=[tf.TensorSpec(None, tf.string)]
    )
    tf.saved_model.save(m, tmp_path, signatures=m.f)
    values = [b"a\0\0", b"\xff\0", b""]
    with open_session(tmp_path) as session:
        output = session.replay(predict_log(x=np.array(values, dtype=object))).outputs["y"]
        assert (output.dtype, output.tolist()) == (object, values)
        output = session.replay(
            predict_log(x=TensorProto(dtype=7, string_val=[b"a\0\0"], tensor_shape={}))
        ).outputs["y"]
        assert (output.dtype, output.item()) == (object, b"a\0\0")


def test_classify_and_regress_run_on_tf2_exports(session: ServingSession) -> None:
    two = (example(x=1), example(x=2))
    outputs = session.replay(task_log("classify", "classify", *two)).outputs
    np.testing.assert_array_equal(outputs["scores"], [[1, -1], [2, -2]])
    assert outputs["classes"].shape == (2, 2)
    assert list(session.replay(task_log("classify", "scores_only", *two)).outputs) == ["scores"]
    np.testing.assert_array_equal(
        session.replay(task_log("regress", "regress", *two)).outputs["outputs"], [2, 4]
    )
    assert session.replay(task_log("regress", "regress_column", *two)).outputs["outputs"].shape == (
        2,
        1,
    )


def test_context_goes_into_every_example(session: ServingSession) -> None:
    log = PredictionLog()
    request = log.regress_log.request
    request.model_spec.signature_name = "regress"
    request.input.example_list_with_context.examples.extend([example(), example(x=5)])
    request.input.example_list_with_context.context.CopyFrom(example(x=3))
    np.testing.assert_array_equal(session.replay(log).outputs["outputs"], [6, 10])


TWO = (example(x=1), example(x=2))
REFUSED_TASKS = {
    "unknown": (task_log("classify", "nope", *TWO), "No signature was found with the name: nope"),
    "empty": (task_log("classify", "classify"), "Input is empty."),
    "two-inputs": (task_log("classify", "", *TWO), "Expected one input Tensor."),
    "input-key": (
        task_log("classify", "count", *TWO),
        "No classification inputs found in SignatureDef: expected 'inputs', got {x}",
    ),
    "neither": (
        task_log("classify", "neither", *TWO),
        'Expected classification signature outputs to contain at least one of "classes" or '
        '"scores". Signature has '
        "outputs: {y}",
    ),
    "three-outputs": (
        task_log("classify", "three", *TWO),
        "Expected one or two output Tensors, found 3",
    ),
    "flat": (
        task_log("classify", "flat_scores", *TWO),
        "Expected Tensor shape: [batch_size num_classes] but got [2]",
    ),
    "float-classes": (
        task_log("classify", "float_classes", *TWO),
        "Expected classes Tensor of DT_STRING. Got: DT_FLOAT",
    ),
    "double-scores": (
        task_log("classify", "double_scores", *TWO),
        "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE",
    ),
    "batch": (
        task_log("classify", "first_score", *TWO),
        "Expected scores output batch size of 2. Got: 1",
    ),
    "uneven": (
        task_log("classify", "uneven", *TWO),
        "Tensors class and score should match in dim_size(1). Got 2 vs. 1",
    ),
    "regress-unknown": (
        task_log("regress", "nope", *TWO),
        "No signature was found with the name: nope",
    ),
    "regress-empty": (task_log("regress", "regress"), "Input is empty."),
    "regress-inputs": (task_log("regress", "", *TWO), "Expected one input Tensor."),
    "regress-outputs": (task_log("regress", "classify", *TWO), "Expected one output Tensor."),
    "regress-input-key": (
        task_log("regress", "count", *TWO),
        "No regression inputs found in SignatureDef: expected 'inputs', got {x}",
    ),
    "regress-output-key": (
        task_log("regress", "neither", *TWO),
        "No regression outputs found in SignatureDef: expected 'outputs', got {y}",
    ),
    "regress-wide": (
        task_log("regress", "regress_wide", *TWO),
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]",
    ),
    "regress-batch": (
        task_log("regress", "regress_first", *TWO),
        "Input batch size did not match output batch size: 2 vs. 1",
    ),
    "regress-double": (
        task_log("regress", "regress_double", *TWO),
        "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE",
    ),
    "multi-no-model": (
        multi_inference_log(("classify", CLASSIFY_METHOD), examples=TWO, model_name=""),
        "Found ModelSpec with an empty model name.",
    ),
    "multi-twice": (
        multi_inference_log(
            ("classify", CLASSIFY_METHOD), ("classify", CLASSIFY_METHOD), examples=TWO
        ),
        "Duplicate evaluation of signature: classify",
    ),
    "multi-unknown": (
        multi_inference_log(("nope", CLASSIFY_METHOD), examples=TWO),
        "Requested signature not found in model graph: nope",
    ),
    "multi-no-task": (
        multi_inference_log(examples=TWO),
        "Must specify at least one ...",
    ),
    "multi-inputs": (
        multi_inference_log(("count", CLASSIFY_METHOD), ("nope", CLASSIFY_METHOD)),
        "No classification inputs found in SignatureDef: expected 'inputs', got {x}",
    ),
    "multi-empty": (
        multi_inference_log(("classify", CLASSIFY_METHOD), ("regress", REGRESS_METHOD)),
        "Input is empty.",
    ),
    "multi-outputs": (
        multi_inference_log(
            ("regress", REGRESS_METHOD), ("first_score", CLASSIFY_METHOD), examples=TWO
        ),
        "Expected scores output batch size of 2. Got: 1",
    ),
}


@pytest.mark.parametrize(("log", "text"), REFUSED_TASKS.values(), ids=REFUSED_TASKS)
def test_tasks_are_refused_as_the_server_refuses_them(
    session: ServingSession, log: PredictionLog, text: str
) -> None:
    assert refusal(session, log) == f"INVALID_ARGUMENT: {text}"


def test_multi_inference_needs_a_method_and_one_model(session: ServingSession) -> None:
    assert refusal(session, multi_inference_log(("classify", ""), examples=TWO)) == (
        "UNIMPLEMENTED: Unsupported signature method_name: "
    )
    log = multi_inference_log(
        ("classify", CLASSIFY_METHOD), ("regress", REGRESS_METHOD), examples=TWO
    )
    log.multi_inference_log.request.tasks[1].model_spec.name = "other"
    assert refusal(session, log) == (
        "INVALID_ARGUMENT: All ModelSpecs in a MultiInferenceRequest must access the same model "
        "name."
    )


def test_tasks_of_a_multi_inference_read_the_same_examples_from_their_own_tensors(
    session: ServingSession,
) -> None:
    keys = ["classify", "regress", "scores_only"]
    feeds = {session.meta_graph.signature_def[key].inputs["inputs"].name for key in keys}
    assert len(feeds) == 3
    methods = [CLASSIFY_METHOD, REGRESS_METHOD, CLASSIFY_METHOD]
    log = multi_inference_log(*zip(keys, methods, strict=True), examples=TWO)
    outputs = session.replay(log).outputs
    for key, kind in zip(keys, ["classify", "regress", "classify"], strict=True):
        alone = session.replay(task_log(kind, key, *TWO)).outputs
        for alias, array in alone.items():
            np.testing.assert_array_equal(outputs.pop(f"{key}/{alias}"), array)
    assert outputs == {}


def test_half_plus_two_runs_every_kind(saved_models: pathlib.Path) -> None:
    with open_session(saved_models / "half_plus_two_tf1" / "1") as session:
        np.testing.assert_array_equal(
            session.replay(predict_log(x=np.float32([[1], [2]]))).outputs["y"], [[2.5], [3]]
        )
        scores = session.replay(task_log("classify", "classify_x_to_y", *TWO)).outputs["scores"]
        np.testing.assert_array_equal(scores, [[2.5], [3]])
        log = multi_inference_log(
            ("classify_x_to_y", CLASSIFY_METHOD), ("regress_x_to_y2", REGRESS_METHOD), examples=TWO
        )
        outputs = session.replay(log).outputs
        assert sorted(outputs) == ["classify_x_to_y/scores", "regress_x_to_y2/outputs"]
        np.testing.assert_array_equal(outputs["regress_x_to_y2/outputs"], [[3.5], [4]])
        assert refusal(session, task_log("regress", "regress_x2_to_y3", *TWO)) == (
            "INVALID_ARGUMENT: Expects arg[0] to be float but string is provided (feed x2:0)"
        )


def test_an_estimator_loads_its_vocabularies(saved_models: pathlib.Path) -> None:
    records = tf.data.TFRecordDataset(
        str(saved_models / "chicago_taxi_examples.tfrecord.gz"), compression_type="GZIP"
    )
    examples = [tf.train.Example.FromString(record.numpy()) for record in records.take(3)]
    with open_session(saved_models / "chicago_taxi_estimator" / "1") as session:
        outputs = session.replay(task_log("classify", "", *examples)).outputs
        assert outputs["classes"].tolist() == [[b"0", b"1"]] * 3
        np.testing.assert_allclose(outputs["scores"].sum(axis=1), 1, rtol=1e-5)


def test_model_export_runs_in_a_session(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2)])
    model.export(tmp_path, verbose=False)
    x = np.ones((2, 3), "float32")
    with open_session(tmp_path) as session:
        for key in ("serve", "serving_default"):
            np.testing.assert_allclose(
                session.replay(predict_log(key, x=x)).outputs["output_0"], model(x), rtol=1e-6
            )
        assert len(session._executors) == 2


def test_the_status_is_an_attribute_that_survives_pickling(session: ServingSession) -> None:
    with pytest.raises(ReplayError) as caught:
        session.replay(predict_log("nope", x=ROWS))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.status, str(copy)) == ("FAILED_PRECONDITION", str(caught.value))
    assert ReplayError("no").status == ""
