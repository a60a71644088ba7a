import base64
import pickle
import re
import shutil
import traceback

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import ModelSpec, PredictionLog, SavedModel, TensorProto
from keras_warmup.errors import ReplayError, SignatureError
from keras_warmup.op_errors import WITHHELD, describe_op_error
from keras_warmup.records.prediction_logs import (
    describe_log,
    log_kind,
    log_signature_key,
    log_signature_keys,
)
from keras_warmup.serving.replay import open_session
from keras_warmup.serving.rules import CLASSIFY_METHOD, REGRESS_METHOD

FLOATS = tf.TensorSpec([None], tf.float32)
ROWS = np.array([1, 2, 3], "float32")


def predict(key="", output_filter=(), **inputs) -> PredictionLog:
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = key
    request.output_filter.extend(output_filter)
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(
            value if isinstance(value, TensorProto) else tf.make_tensor_proto(value)
        )
    return log


def example(**features: float) -> tf.train.Example:
    floats = {name: tf.train.FloatList(value=[value]) for name, value in features.items()}
    return tf.train.Example(
        features=tf.train.Features(
            feature={name: tf.train.Feature(float_list=value) for name, value in floats.items()}
        )
    )


def task_log(kind, key, *examples) -> PredictionLog:
    log = PredictionLog()
    request = getattr(log, f"{kind}_log").request
    request.model_spec.signature_name = key
    request.input.example_list.examples.extend(examples)
    return log


def multi(*tasks, examples=(), name="m") -> PredictionLog:
    log = PredictionLog()
    request = log.multi_inference_log.request
    for key, method_name in tasks:
        request.tasks.add(
            model_spec=ModelSpec(name=name, signature_name=key), method_name=method_name
        )
    request.input.example_list.examples.extend(examples)
    return log


def refusal(session, log) -> str:
    """What the server says, without our words around it."""
    with pytest.raises(ReplayError) as caught:
        session.replay(log)
    message = str(caught.value)
    return re.sub(
        r"^.* would keep TensorFlow Serving from loading the model: ", "", message, count=1
    )


class Functions(tf.Module):
    """Signatures of every kind, over Examples with one float feature `x`."""

    def __init__(self):
        super().__init__()
        self.scale = tf.Variable(2.0)
        self.calls = tf.Variable(0.0)

    @tf.function(input_signature=[FLOATS, FLOATS])
    def two(self, x, w):
        return {"y": x * self.scale + w, "n": tf.size(x), "text": tf.constant(b"a\0\0")}

    @tf.function(input_signature=[FLOATS])
    def count(self, x):
        self.calls.assign_add(1.0)
        return {"y": x + self.calls}

    def x(self, examples):
        return tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]

    def returns(self, make):
        spec = tf.TensorSpec([None], tf.string)
        return tf.function(lambda inputs: make(self.x(inputs))).get_concrete_function(inputs=spec)


def labels(x):
    return tf.strings.as_string(tf.stack([x, x], axis=1))


@pytest.fixture(scope="session")
def functions_dir(tmp_path_factory):
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
def session(functions_dir):
    with open_session(functions_dir) as session:
        yield session


@pytest.fixture(scope="session")
def graph_dir(tmp_path_factory):
    """A TensorFlow 1 export: fixed shapes, an input as output, a tensor under two names, a default."""
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
def graph_session(graph_dir):
    with open_session(graph_dir) as session:
        yield session


def test_predict_gives_every_output_by_alias(session):
    replayed = session.replay(predict(x=ROWS, w=ROWS))
    assert sorted(replayed.outputs) == ["n", "text", "y"]
    np.testing.assert_array_equal(replayed.outputs["y"], [3, 6, 9])
    assert replayed.outputs["n"] == 3
    assert replayed.outputs["text"].item() == b"a\0\0"
    assert replayed.ms > 0
    assert session.load_ms > 0


def test_output_filter_gives_the_outputs_asked_for(session):
    assert list(session.replay(predict(output_filter=["y"], x=ROWS, w=ROWS)).outputs) == ["y"]


def test_one_executor_for_each_set_of_feeds_and_fetches(functions_dir):
    with open_session(functions_dir) as session:
        for log in (
            predict(x=ROWS, w=ROWS),
            predict("serving_default", x=ROWS[:1], w=ROWS[:1]),
            predict(output_filter=["text", "y", "n"], x=ROWS, w=ROWS),
        ):
            session.replay(log)
        assert len(session._executors) == 1
        session.replay(predict(output_filter=["y"], x=ROWS, w=ROWS))
        assert len(session._executors) == 2


def test_state_stays_in_the_session_and_out_of_the_file(functions_dir):
    for _ in range(2):
        with open_session(functions_dir) as session:
            assert session.replay(predict("count", x=ROWS)).outputs["y"][0] == 2
            assert session.replay(predict("count", x=ROWS)).outputs["y"][0] == 3


REFUSED_PREDICTS = {
    "missing": (
        predict(x=ROWS),
        "INVALID_ARGUMENT: input size does not match signature: 1!=2 len({x}) != len({w,x}). Sent extra: {}. "
        "Missing but required: {w}.",
    ),
    "extra": (
        predict(x=ROWS, w=ROWS, q=ROWS),
        "INVALID_ARGUMENT: input size does not match signature: 3!=2 len({q,w,x}) != len({w,x}). Sent extra: {q}. "
        "Missing but required: {}.",
    ),
    "other-name": (
        predict(x=ROWS, q=ROWS),
        "INVALID_ARGUMENT: Signature input alias: w(feed name: serving_default_w:0) not found in request and no "
        "default value provided. Inputs expected to be in the request {q,x}, or default input alias set: {}",
    ),
    "dtype": (
        predict(x=ROWS, w=ROWS.astype("float64")),
        "INVALID_ARGUMENT: Expects arg[0] to be float but double is provided (feed serving_default_w:0)",
    ),
    "unknown-signature": (
        predict("nope", x=ROWS),
        'FAILED_PRECONDITION: Serving signature key "nope" not found.',
    ),
    "unknown-output": (
        predict(output_filter=["y", "z"], x=ROWS, w=ROWS),
        "INVALID_ARGUMENT: output tensor alias not found in signature: z Outputs expected to be in the set {n,text,y}.",
    ),
    "output-twice": (
        predict(output_filter=["y", "y"], x=ROWS, w=ROWS),
        "INVALID_ARGUMENT: duplicate output tensor alias: y",
    ),
    "bad-proto": (
        predict(x=TensorProto(dtype=1, tensor_content=b"12345"), w=ROWS),
        "INVALID_ARGUMENT: tensor parsing error: x",
    ),
    "no-dtype": (predict(x=TensorProto(), w=ROWS), "INVALID_ARGUMENT: tensor parsing error: x"),
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
def test_predict_is_refused_as_the_server_refuses_it(session, log, text):
    assert refusal(session, log) == text


def test_the_error_names_the_record(session):
    with pytest.raises(ReplayError) as caught:
        session.replay(predict("nope", x=ROWS))
    assert str(caught.value) == (
        "predict record for signature 'nope' would keep TensorFlow Serving from loading the model: "
        'FAILED_PRECONDITION: Serving signature key "nope" not found.'
    )


def test_the_graphs_own_errors_come_through(session):
    assert refusal(session, predict(x=ROWS, w=ROWS[:2])) == (
        "INVALID_ARGUMENT: Incompatible shapes: [3] vs. [2] (node add, op AddV2)"
    )


def test_a_log_without_type_runs_nothing(session):
    replayed = session.replay(PredictionLog())
    assert (replayed.ms, replayed.outputs) == (0.0, {})


def test_fixed_shapes_are_not_checked(graph_session):
    np.testing.assert_array_equal(graph_session.replay(predict(x=ROWS)).outputs["y"], [2, 3, 4])


def test_two_aliases_of_one_tensor(graph_session):
    outputs = graph_session.replay(predict("aliases", x=ROWS)).outputs
    np.testing.assert_array_equal(outputs["y"], outputs["again"])


def test_defaults_fill_absent_inputs_only(graph_session):
    assert graph_session.replay(predict("default", x=ROWS)).outputs["y"] == 11
    assert graph_session.replay(predict("default", x=ROWS, w=ROWS[:1])).outputs["y"] == 2


REFUSED_GRAPHS = {
    "fed-and-fetched": (
        predict("identity", x=ROWS),
        "INVALID_ARGUMENT: x:0 is both fed and fetched.",
    ),
    "fed-twice": (
        predict("fed_twice", x=ROWS, also_x=ROWS),
        'INVALID_ARGUMENT: Endpoint "x:0" fed more than once.',
    ),
    "dtype-of-an-unused-input": (
        predict("unused", x=ROWS, w=np.int64([1])),
        "INVALID_ARGUMENT: Expects arg[0] to be float but int64 is provided (feed w:0)",
    ),
    "extra-for-default": (
        predict("default", x=ROWS, q=ROWS),
        "INVALID_ARGUMENT: Inputs contains invalid name. Used request inputs: x, request input: q,x",
    ),
    "only-the-default": (
        predict("default", w=ROWS),
        "INVALID_ARGUMENT: Signature input alias: x(feed name: x:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {w}, or default input alias set: {w}",
    ),
}


@pytest.mark.parametrize(("log", "text"), REFUSED_GRAPHS.values(), ids=REFUSED_GRAPHS)
def test_graphs_are_refused_as_the_server_refuses_them(graph_session, log, text):
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
def test_every_dtype_goes_in_and_out_unchanged(tmp_path, dtype):
    m = tf.Module()
    m.f = tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[tf.TensorSpec(None, dtype)])
    tf.saved_model.save(m, tmp_path, signatures=m.f)
    array = np.array([0, 1, 1], getattr(ml_dtypes, dtype, dtype))
    with open_session(tmp_path) as session:
        for value in (array, array[1]):
            output = session.replay(predict(x=tf.make_tensor_proto(value, dtype=dtype))).outputs[
                "y"
            ]
            assert output.dtype == array.dtype
            np.testing.assert_array_equal(output, value)


def test_strings_keep_trailing_nuls_and_raw_bytes(tmp_path):
    m = tf.Module()
    m.f = tf.function(
        lambda x: {"y": tf.identity(x)}, input_signature=[tf.TensorSpec(None, tf.string)]
    )
    tf.saved_model.save(m, tmp_path, signatures=m.f)
    values = [b"a\0\0", b"\xff\0", b""]
    with open_session(tmp_path) as session:
        output = session.replay(predict(x=np.array(values, dtype=object))).outputs["y"]
        assert (output.dtype, output.tolist()) == (object, values)
        output = session.replay(
            predict(x=TensorProto(dtype=7, string_val=[b"a\0\0"], tensor_shape={}))
        ).outputs["y"]
        assert (output.dtype, output.item()) == (object, b"a\0\0")


def test_classify_and_regress_run_on_tf2_exports(session):
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


def test_context_goes_into_every_example(session):
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
        'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature has '
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
        multi(("classify", CLASSIFY_METHOD), examples=TWO, name=""),
        "Found ModelSpec with an empty model name.",
    ),
    "multi-twice": (
        multi(("classify", CLASSIFY_METHOD), ("classify", CLASSIFY_METHOD), examples=TWO),
        "Duplicate evaluation of signature: classify",
    ),
    "multi-unknown": (
        multi(("nope", CLASSIFY_METHOD), examples=TWO),
        "Requested signature not found in model graph: nope",
    ),
    "multi-inputs": (
        multi(("count", CLASSIFY_METHOD), ("nope", CLASSIFY_METHOD)),
        "No classification inputs found in SignatureDef: expected 'inputs', got {x}",
    ),
    "multi-empty": (
        multi(("classify", CLASSIFY_METHOD), ("regress", REGRESS_METHOD)),
        "Input is empty.",
    ),
    "multi-outputs": (
        multi(("regress", REGRESS_METHOD), ("first_score", CLASSIFY_METHOD), examples=TWO),
        "Expected scores output batch size of 2. Got: 1",
    ),
}


@pytest.mark.parametrize(("log", "text"), REFUSED_TASKS.values(), ids=REFUSED_TASKS)
def test_tasks_are_refused_as_the_server_refuses_them(session, log, text):
    assert refusal(session, log) == f"INVALID_ARGUMENT: {text}"


def test_multi_inference_needs_a_method_and_one_model(session):
    assert refusal(session, multi(("classify", ""), examples=TWO)) == (
        "UNIMPLEMENTED: Unsupported signature method_name: "
    )
    log = multi(("classify", CLASSIFY_METHOD), ("regress", REGRESS_METHOD), examples=TWO)
    log.multi_inference_log.request.tasks[1].model_spec.name = "other"
    assert refusal(session, log) == (
        "INVALID_ARGUMENT: All ModelSpecs in a MultiInferenceRequest must access the same model name."
    )


def test_tasks_of_a_multi_inference_read_the_same_examples_from_their_own_tensors(session):
    keys = ["classify", "regress", "scores_only"]
    feeds = {session.meta_graph.signature_def[key].inputs["inputs"].name for key in keys}
    assert len(feeds) == 3
    methods = [CLASSIFY_METHOD, REGRESS_METHOD, CLASSIFY_METHOD]
    outputs = session.replay(multi(*zip(keys, methods, strict=True), examples=TWO)).outputs
    for key, kind in zip(keys, ["classify", "regress", "classify"], strict=True):
        alone = session.replay(task_log(kind, key, *TWO)).outputs
        for alias, array in alone.items():
            np.testing.assert_array_equal(outputs.pop(f"{key}/{alias}"), array)
    assert outputs == {}


def test_half_plus_two_runs_every_kind(saved_models):
    with open_session(saved_models / "half_plus_two_tf1" / "1") as session:
        np.testing.assert_array_equal(
            session.replay(predict(x=np.float32([[1], [2]]))).outputs["y"], [[2.5], [3]]
        )
        scores = session.replay(task_log("classify", "classify_x_to_y", *TWO)).outputs["scores"]
        np.testing.assert_array_equal(scores, [[2.5], [3]])
        log = multi(
            ("classify_x_to_y", CLASSIFY_METHOD), ("regress_x_to_y2", REGRESS_METHOD), examples=TWO
        )
        outputs = session.replay(log).outputs
        assert sorted(outputs) == ["classify_x_to_y/scores", "regress_x_to_y2/outputs"]
        np.testing.assert_array_equal(outputs["regress_x_to_y2/outputs"], [[3.5], [4]])
        assert refusal(session, task_log("regress", "regress_x2_to_y3", *TWO)) == (
            "INVALID_ARGUMENT: Expects arg[0] to be float but string is provided (feed x2:0)"
        )


def test_an_estimator_loads_its_vocabularies(saved_models):
    records = tf.data.TFRecordDataset(
        str(saved_models / "chicago_taxi_examples.tfrecord.gz"), compression_type="GZIP"
    )
    examples = [tf.train.Example.FromString(record.numpy()) for record in records.take(3)]
    with open_session(saved_models / "chicago_taxi_estimator" / "1") as session:
        outputs = session.replay(task_log("classify", "", *examples)).outputs
        assert outputs["classes"].tolist() == [[b"0", b"1"]] * 3
        np.testing.assert_allclose(outputs["scores"].sum(axis=1), 1, rtol=1e-5)


def test_a_vocabulary_asset_of_tf2_is_found(tmp_path):
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("cat\ndog\n")
    m = tf.Module()
    m.lookup = keras.layers.StringLookup(vocabulary=str(vocabulary))
    m.f = tf.function(
        lambda x: {"ids": m.lookup(x)}, input_signature=[tf.TensorSpec([None], tf.string)]
    )
    tf.saved_model.save(m, tmp_path / "1", signatures=m.f)
    vocabulary.unlink()
    with open_session(tmp_path / "1") as session:
        assert session.replay(predict(x=np.array([b"dog", b"cow"], object))).outputs[
            "ids"
        ].tolist() == [2, 0]


SECRET = "SECRET4242"
NUMBER = 774242
STRINGS, INTS = tf.TensorSpec([None], tf.string, "x"), tf.TensorSpec([None], tf.int32, "x")
PAIRS = tf.TensorSpec([None, None], tf.int32, "x")
ANY, OTHER = tf.TensorSpec(None, tf.float32, "x"), tf.TensorSpec(None, tf.float32, "z")


def strings(*values):
    return np.array(
        [value.encode() if isinstance(value, str) else value for value in values], object
    )


def each(function, dtype):
    return lambda x: {"y": tf.map_fn(function, x, fn_output_signature=dtype)}


def checked(x):
    with tf.control_dependencies([tf.debugging.assert_equal(x, [[1.0]], message="x must be one")]):
        return {"y": x + 1}


def asserted(x):
    with tf.control_dependencies([tf.Assert(tf.size(x) > 3, [x])]):
        return {"y": tf.identity(x)}


# What runs, on what, what is left of the error.
LEAKS = {
    "to_number": (
        lambda x: {"y": tf.strings.to_number(x)},
        {STRINGS: strings(SECRET)},
        "StringToNumberOp could not correctly convert string ... (node StringToNumber, op StringToNumber)",
    ),
    "csv": (
        lambda x: {"y": tf.io.decode_csv(x, [[0.0]])[0]},
        {STRINGS: strings(SECRET)},
        "Field 0 in record 0 is not a valid float ... (node DecodeCSV, op DecodeCSV)",
    ),
    "gather": (
        lambda x: {"y": tf.gather([1.0, 2.0], x)},
        {INTS: np.int32([NUMBER])},
        "indices[0] = ... is not in [0, 2) (node GatherV2, op GatherV2)",
    ),
    "gather_nd": (
        lambda x: {"y": tf.gather_nd([1.0, 2.0], x)},
        {PAIRS: np.int32([[0], [NUMBER]])},
        "indices[1] = [...] does not index into param shape [2] ... (node GatherNd, op GatherNd)",
    ),
    "scatter_nd": (
        lambda x: {"y": tf.scatter_nd(x, tf.ones_like(x[:, 0]), [4])},
        {PAIRS: np.int32([[0], [NUMBER]])},
        "indices[1] = [...] does not index into the shape ... (node ScatterNd, op ScatterNd)",
    ),
    "segment_sum": (
        lambda x: {"y": tf.math.unsorted_segment_sum(tf.ones_like(x), x, 4)},
        {INTS: np.int32([NUMBER])},
        "segment_ids[0] = ... is out of range ... (node UnsortedSegmentSum, op UnsortedSegmentSum)",
    ),
    "sparse": (
        lambda x: {
            "y": tf.sparse.to_dense(
                tf.SparseTensor(tf.cast(x, tf.int64), tf.ones_like(x[:, 0]), [4])
            )
        },
        {PAIRS: np.int32([[NUMBER]])},
        "indices[0] = [...] is out of bounds ... (node SparseToDense, op SparseToDense)",
    ),
    "parse_tensor": (
        each(lambda row: tf.io.parse_tensor(row, tf.float32), tf.float32),
        {STRINGS: strings(SECRET)},
        "Could not parse `serialized` as TensorProto ... (node map/while/ParseTensor, op ParseTensor)",
    ),
    "read_file": (
        each(tf.io.read_file, tf.string),
        {STRINGS: strings(f"/{SECRET}/file")},
        "(message withheld: it may hold tensor values) (node map/while/ReadFile, op ReadFile)",
    ),
    "fill": (
        lambda x: {"y": tf.fill(x, 1.0)},
        {INTS: np.int32([-NUMBER])},
        "Dimension ... must be >= 0 (node Fill, op Fill)",
    ),
    "json": (
        lambda x: {"y": tf.io.decode_json_example(x)},
        {STRINGS: strings("{" + SECRET)},
        "Error while parsing JSON ... (node DecodeJSONExample, op DecodeJSONExample)",
    ),
    "regex": (
        lambda x: {"y": tf.strings.regex_replace("a", x[0], "b")},
        {STRINGS: strings("(" + SECRET)},
        "Invalid pattern ... (node RegexReplace, op RegexReplace)",
    ),
    "parse_example": (
        lambda x: tf.io.parse_example(x, {"a": tf.io.FixedLenFeature([], tf.float32)}),
        {STRINGS: strings(b"\x0a\xff" + SECRET.encode())},
        "Could not parse example input ... (node ParseExample/ParseExampleV2, op ParseExampleV2)",
    ),
    "assertion": (
        checked,
        {FLOATS: np.float32([NUMBER])},
        "assertion failed: [x must be one] ... (node assert_equal_1/Assert/AssertGuard/Assert, op Assert)",
    ),
    "assertion_of_values": (
        asserted,
        {STRINGS: strings(SECRET)},
        "assertion failed (message withheld: it may hold tensor values) (node Assert/Assert, op Assert)",
    ),
    "reshape": (
        lambda x, z: {"y": tf.reshape(z, x)},
        {INTS: np.int32([NUMBER]), OTHER: np.ones(2, "f")},
        "Input to reshape is a tensor with 2 values, but the requested shape ... (node Reshape, op Reshape)",
    ),
    "broadcast": (
        lambda x, z: {"y": tf.broadcast_to(z, x)},
        {INTS: np.int32([NUMBER]), OTHER: np.ones(2, "f")},
        "(message withheld: it may hold tensor values) (node BroadcastTo, op BroadcastTo)",
    ),
    "tile": (
        lambda x, z: {"y": tf.tile(z, x)},
        {INTS: np.int32([-NUMBER]), OTHER: np.ones(2, "f")},
        "(message withheld: it may hold tensor values) (node Tile, op Tile)",
    ),
    "slice": (
        lambda x, z: {"y": tf.slice(z, x, [3])},
        {INTS: np.int32([NUMBER]), OTHER: np.ones(2, "f")},
        "Expected begin[0] in [0, 2], but got ... (node Slice, op Slice)",
    ),
}
SHAPES = {
    "concat": (
        lambda x, z: {"y": tf.concat([x, z], 0)},
        {ANY: np.ones((2, 3), "f"), OTHER: np.ones((2, 4), "f")},
        "ConcatOp : Dimension 1 in both shapes must be equal: shape[0] = [2,3] vs. shape[1] = [2,4] "
        "(node concat, op ConcatV2)",
    ),
    "matmul": (
        lambda x, z: {"y": tf.matmul(x, z)},
        {ANY: np.ones((2, 3), "f"), OTHER: np.ones((2, 4), "f")},
        "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,4] (node MatMul, op BatchMatMulV2)",
    ),
    "bias": (
        lambda x: {"y": tf.nn.bias_add(x, tf.ones([3]))},
        {ANY: np.ones((2, 4), "f")},
        "Must provide as many biases as the last dimension of the input tensor: [3] vs. [2,4] "
        "(node BiasAdd, op BiasAdd)",
    ),
    "feature": (
        lambda x: tf.io.parse_example(x, {"a": tf.io.FixedLenFeature([], tf.float32)}),
        {STRINGS: strings(b"")},
        "Name: <unknown>, Feature: a (data type: float) is required but could not be found. "
        "(node ParseExample/ParseExampleV2, op ParseExampleV2)",
    ),
}


@pytest.fixture(scope="session")
def failing_session(tmp_path_factory):
    path, m = tmp_path_factory.mktemp("failing"), tf.Module()
    for key, (function, feeds, _) in {**LEAKS, **SHAPES}.items():
        setattr(m, key, tf.function(function, input_signature=list(feeds), autograph=False))
    tf.saved_model.save(m, path, signatures={key: getattr(m, key) for key in {**LEAKS, **SHAPES}})
    with open_session(path) as session:
        yield session


def failure(session, key) -> ReplayError:
    arrays = {**LEAKS, **SHAPES}[key][1].values()
    names = sorted(session.meta_graph.signature_def[key].inputs)
    with pytest.raises(ReplayError) as caught:
        session.replay(predict(key, **dict(zip(names, arrays, strict=True))))
    return caught.value


@pytest.mark.parametrize("key", LEAKS)
def test_errors_do_not_quote_training_data(failing_session, key):
    error = failure(failing_session, key)
    printed = "".join(traceback.format_exception(error)) + repr(
        (error.args, error.__cause__, error.__context__)
    )
    for secret in (SECRET, str(NUMBER), base64.b64encode(SECRET.encode()).decode()[:-4]):
        assert secret not in printed
    assert str(error).endswith(f"{error.status}: {LEAKS[key][2]}")


@pytest.mark.parametrize("key", SHAPES)
def test_errors_say_which_shapes_and_names_do_not_fit(failing_session, key):
    assert str(failure(failing_session, key)).endswith(f"INVALID_ARGUMENT: {SHAPES[key][2]}")


def test_the_status_is_an_attribute_that_survives_pickling(failing_session, session):
    assert failure(failing_session, "read_file").status == "NOT_FOUND"
    with pytest.raises(ReplayError) as caught:
        session.replay(predict("nope", x=ROWS))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.status, str(copy)) == ("FAILED_PRECONDITION", str(caught.value))
    assert ReplayError("no").status == ""


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ('Serving signature key "nope" not found.', 'Serving signature key "nope" not found.'),
        (
            "2 root error(s) found.\n  (0) INVALID_ARGUMENT: indices[3] = 7 is not in [0, 2)\n\t [[{{node a/b}}]]\n\t [[c]]",
            "indices[3] = ... is not in [0, 2) (node a/b)",
        ),
        # Of which op is not known, and of some these shapes are values.
        ("Incompatible shapes: [2] vs. [3]\n\t [[{{node a}}]]", f"{WITHHELD} (node a)"),
        (
            "{{node fed}} is no path\n\t [[{{function_node f}}{{node real}}]]",
            f"{WITHHELD} (node real)",
        ),
        (
            "{{function_node __wrapped__IteratorGetNext}} corrupted record at 12",
            "corrupted record at 12",
        ),
        ("KeyError: 'Jane'\nTraceback (most recent call last)", "KeyError ..."),
        ("KeyErrors: 'Jane'", WITHHELD),
        ("layer : Tensor had Inf and NaN values", "Tensor had Inf and NaN values"),
    ],
    ids=["rule", "several", "shape", "node", "record", "python", "other", "nan"],
)
def test_a_servers_message_is_read_without_its_graph(message, text):
    assert describe_op_error(tf.errors.UnknownError(None, None, message)) == text


@pytest.fixture(scope="module")
def nested():
    """`outer` of the main graph calls the function that calls `inner`, whose function multiplies."""
    graph = tf.compat.v1.GraphDef()
    graph.node.add(name="outer", op="StatefulPartitionedCall").attr["f"].func.name = "between"
    for name, node, op, called in (
        ("between", "inner", "PartitionedCall", "innermost"),
        ("innermost", "dense/MatMul", "MatMul", ""),
    ):
        function = graph.library.function.add()
        function.signature.name = name
        function.node_def.add(name=node, op=op)
        if called:
            function.node_def[0].attr["f"].func.name = called
    return graph


@pytest.mark.parametrize(
    "node",
    [
        "{{node outer/inner/dense/MatMul}}",
        "{{function_node between}}{{node inner/dense/MatMul}}",
        "{{node dense/MatMul}}",
    ],
)
def test_a_node_that_inlining_renamed_is_found_through_its_calls(nested, node):
    # Some kernels add which of the two are transposed.
    message = f"Matrix size-incompatible: In[0]: [2,3], In[1]: [2,4]MORE\n\t [[{node}]]"
    for more in ("", " 0 0"):
        error = tf.errors.InvalidArgumentError(None, None, message.replace("MORE", more))
        text = "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,4] (node dense/MatMul, op MatMul)"
        assert describe_op_error(error, nested) == text
        stacked = tf.errors.InvalidArgumentError(
            None, None, "{{function_node a}} {{function_node b}} " + message.replace("MORE", more)
        )
        assert describe_op_error(stacked, nested) == text
    error = tf.errors.InvalidArgumentError(None, None, message.replace("MORE", " 0 7"))
    assert describe_op_error(error, nested) == text.replace(" (node", " ... (node")


def test_the_keras_3_session_trap_is_found_and_its_cure_named(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    tf.saved_model.save(model, tmp_path)
    assert tf.saved_model.load(tmp_path).signatures["serving_default"](inputs=tf.ones([2, 3]))
    with open_session(tmp_path) as session:
        text = refusal(session, predict(inputs=np.ones((2, 3), "float32")))
    assert text.startswith("FAILED_PRECONDITION: Could not find variable ")
    assert text.endswith(
        ". The SavedModel's restore op does not fill this variable: tf.saved_model.load works, a Session does not. "
        "tf.saved_model.save of a Keras 3 model gives such files; write it with keras_warmup.save, model.export or "
        "keras.export.ExportArchive."
    )


def test_model_export_runs_in_a_session(tmp_path):
    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2)])
    model.export(tmp_path, verbose=False)
    x = np.ones((2, 3), "float32")
    with open_session(tmp_path) as session:
        for key in ("serve", "serving_default"):
            np.testing.assert_allclose(
                session.replay(predict(key, x=x)).outputs["output_0"], model(x), rtol=1e-6
            )
        assert len(session._executors) == 2


def test_an_op_of_another_library_fails_the_load(functions_dir, tmp_path):
    saved_model = SavedModel.FromString(
        tf.io.gfile.GFile(f"{functions_dir}/saved_model.pb", "rb").read()
    )
    saved_model.meta_graphs[0].graph_def.node.add(name="foreign", op="DecodeMoonbeam")
    (tmp_path / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    with pytest.raises(ReplayError) as caught:
        open_session(tmp_path)
    text = str(caught.value)
    assert text == (
        f"Cannot import the graph of SavedModel {str(tmp_path)!r}: Op type not registered 'DecodeMoonbeam'. Import "
        "the library that registers the op; the model server must be built with it."
    )


def test_damaged_variables_fail_the_load(functions_dir, tmp_path):
    path = f"{tmp_path}/1"
    for name in ("saved_model.pb", "variables/variables.index"):
        tf.io.gfile.makedirs(f"{path}/variables")
        tf.io.gfile.copy(f"{functions_dir}/{name}", f"{path}/{name}")
    with pytest.raises(ReplayError) as caught:
        open_session(path)
    assert str(caught.value) == (
        f"Cannot restore the variables of SavedModel {path!r}: {path}/variables/variables.data-00000-of-00001; No such "
        "file or directory. Export the model again, with all its files."
    )
    assert caught.value.status == "NOT_FOUND"


def test_garbage_in_the_variables_is_told_in_tensorflows_words(functions_dir, tmp_path):
    path = shutil.copytree(functions_dir, str(tmp_path / "1"))
    with open(f"{path}/variables/variables.index", "wb") as file:
        file.write(b"garbage")
    with pytest.raises(ReplayError) as caught:
        open_session(path)
    text = str(caught.value)
    assert text.startswith(f"Cannot restore the variables of SavedModel {path!r}: ")
    assert text.endswith(". Export the model again, with all its files.")
    assert "sstable" in text
    assert WITHHELD not in text


def test_a_bad_graph_is_told_in_tensorflows_words(functions_dir, tmp_path):
    saved_model = SavedModel.FromString(
        tf.io.gfile.GFile(f"{functions_dir}/saved_model.pb", "rb").read()
    )
    saved_model.meta_graphs[0].graph_def.node.add(name="lost", op="NoOp", input=["^nowhere"])
    (tmp_path / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    with pytest.raises(ReplayError) as caught:
        open_session(tmp_path)
    assert str(caught.value) == (
        f"Cannot import the graph of SavedModel {str(tmp_path)!r}: Node 'lost': Unknown input node '^nowhere'. Export "
        "the model again, with all its files."
    )


def test_an_exception_of_cpp_is_named_and_leaves_tensorflow_usable(functions_dir, tmp_path):
    """The shape function of XlaCallModule reads behind the end of a list, and its exception leaves the graph locked."""
    saved_model = SavedModel.FromString(
        tf.io.gfile.GFile(f"{functions_dir}/saved_model.pb", "rb").read()
    )
    node = saved_model.meta_graphs[0].graph_def.node.add(name="module", op="XlaCallModule")
    node.attr["version"].i = 5
    node.attr["module"].s = b""
    node.attr["Tin"].list.SetInParent()
    node.attr["Tout"].list.type.append(tf.float32.as_datatype_enum)
    for _ in range(2):
        node.attr["Sout"].list.shape.add()
    (tmp_path / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    for _ in range(2):
        with pytest.raises(ReplayError) as caught:
            open_session(tmp_path)
        assert str(caught.value).startswith(
            f"Cannot import the graph of SavedModel {str(tmp_path)!r}: IndexError: vector"
        )
    with open_session(functions_dir) as session:
        session.replay(predict(x=ROWS, w=ROWS))


def test_missing_variables_are_not_taken_for_the_keras_3_trap(functions_dir, tmp_path):
    path = shutil.copytree(functions_dir, str(tmp_path / "1"))
    shutil.rmtree(f"{path}/variables")
    with open_session(path) as session:
        text = refusal(session, predict(x=ROWS, w=ROWS))
    assert text.startswith("FAILED_PRECONDITION: ")
    assert text.endswith(
        ". The variables are missing: the SavedModel has no variables/variables.index. Copy it, or export it again, "
        "with all its files."
    )


def test_an_init_op_does_not_quote_the_vocabulary(tmp_path):
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text(f"cat\n{SECRET}\ndog\n")
    m = tf.Module()
    m.lookup = keras.layers.StringLookup(vocabulary=str(vocabulary))
    m.f = tf.function(lambda x: {"ids": m.lookup(x)}, input_signature=[STRINGS], autograph=False)
    tf.saved_model.save(m, tmp_path / "1", signatures=m.f)
    (tmp_path / "1" / "assets" / "words.txt").write_text(f"cat\n{SECRET}\n{SECRET}\n")
    with pytest.raises(ReplayError) as caught:
        open_session(tmp_path / "1")
    text = str(caught.value)
    assert text.startswith(
        f"Cannot run the init op of SavedModel {str(tmp_path / '1')!r}: HashTable has different value"
    )
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_missing_model_is_a_signature_error(tmp_path):
    with pytest.raises(SignatureError, match="No SavedModel at"):
        open_session(tmp_path)


def test_kind_and_signature_of_a_log():
    logs = [
        predict("a"),
        task_log("classify", ""),
        multi(("a", CLASSIFY_METHOD), ("", REGRESS_METHOD)),
        PredictionLog(session_run_log={}),
        PredictionLog(),
    ]
    assert [log_signature_keys(log) for log in logs] == [
        ("a",),
        ("serving_default",),
        ("a", "serving_default"),
        (),
        (),
    ]
    assert [describe_log(log)["signature_key"] for log in logs] == [
        "a",
        "serving_default",
        "a+serving_default",
        "",
        "",
    ]
    assert [(log_kind(log), log_signature_key(log)) for log in logs] == [
        ("predict", "a"),
        ("classify", "serving_default"),
        ("multi_inference", "a+serving_default"),
        ("session_run", ""),
        ("none", ""),
    ]
