import gzip
import io
import json
import shutil

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf

from keras_warmup._protos import ModelSpec, PredictionLog, SavedModel
from keras_warmup.errors import SignatureError
from keras_warmup.records.warmup_file import FRAME_BYTES, warmup_path, write_records
from keras_warmup.serving.replay import open_session
from keras_warmup.serving.rules import CLASSIFY_METHOD
from keras_warmup.verification import verify

FLOATS = tf.TensorSpec([None], tf.float32)
ROWS = np.array([1, 2], "float32")
REFUSED = "would keep TensorFlow Serving from loading the model"


def predict(key="", **inputs) -> PredictionLog:
    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = key
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log


def classify(key) -> PredictionLog:
    log = PredictionLog()
    log.classify_log.request.model_spec.signature_name = key
    log.classify_log.request.input.example_list.examples.add()
    return log


class Functions(tf.Module):
    def __init__(self):
        super().__init__()
        self.scale = tf.Variable(2.0)
        self.calls = tf.Variable(0.0)

    @tf.function(input_signature=[FLOATS])
    def double(self, x):
        return {"y": x * self.scale}

    @tf.function(input_signature=[FLOATS, FLOATS])
    def dot(self, x, w):
        return {"total": tf.reduce_sum(x) * tf.reduce_sum(w), "y": x}

    @tf.function(input_signature=[FLOATS, tf.TensorSpec([], tf.float32)])
    def scaled(self, x, by):
        return {"y": x * by}

    @tf.function(input_signature=[FLOATS])
    def count(self, x):
        self.calls.assign_add(1.0)
        return {"y": x + self.calls}

    @tf.function(input_signature=[FLOATS], jit_compile=True)
    def compiled(self, x):
        return {"y": x * self.scale}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def classify(self, inputs):
        return {"scores": tf.ones([tf.size(inputs), 2])}


@pytest.fixture(scope="session")
def functions_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("functions") / "1")
    m = Functions()
    keys = ["dot", "scaled", "count", "classify"]
    signatures = {"serving_default": m.double} | {key: getattr(m, key) for key in keys}
    tf.saved_model.save(m, path, signatures=signatures)
    return path


@pytest.fixture
def export_dir(functions_dir, tmp_path):
    return shutil.copytree(functions_dir, str(tmp_path / "1"))


def write(export_dir, *logs):
    write_records(warmup_path(export_dir), logs, max_records=10_000, max_bytes=2**20)
    return export_dir


# What the spec of `scaled` says without any record.
SCALAR_NOTE = "Signature 'scaled' does not work with --enable_batching: input 'by' is a scalar."


def test_good_records_have_no_failures(export_dir):
    logs = [predict(x=ROWS), predict("serving_default", x=ROWS[:1])]
    report = verify(write(export_dir, *logs))
    assert report.ok
    assert report.failures == ()
    assert report.server_notes == (SCALAR_NOTE,)
    assert [(r.index, r.kind, r.signature_key, r.ok, r.message) for r in report.records] == [
        (0, "predict", "serving_default", True, ""),
        (1, "predict", "serving_default", True, ""),
    ]
    assert [record.bytes for record in report.records] == [log.ByteSize() for log in logs]
    assert all(record.replay_ms > 0 for record in report.records)


def test_no_warmup_file_is_not_ok(export_dir):
    report = verify(export_dir)
    assert not report.ok
    assert report.records == ()
    assert report.failures == (
        f"No warmup file at {warmup_path(export_dir)!r}: the first requests will be cold. "
        "Write one with keras_warmup.add_warmup.",
    )


def test_a_directory_in_place_of_the_warmup_file_is_not_ok(export_dir):
    tf.io.gfile.makedirs(warmup_path(export_dir))
    report = verify(export_dir)
    assert not report.ok
    assert report.failures == (
        f"Cannot read warmup file {warmup_path(export_dir)!r}: it is a directory. Remove it, and write the file with "
        "keras_warmup.add_warmup.",
    )


def test_every_record_is_judged_behind_one_that_fails(export_dir):
    logs = [
        predict(x=ROWS),
        predict("nope", x=ROWS),
        predict(x=ROWS.astype("float64")),
        predict(),
        PredictionLog(),
        PredictionLog(session_run_log={}),
        predict(x=ROWS),
    ]
    report = verify(write(export_dir, *logs))
    assert [(r.kind, r.signature_key, r.ok, r.replay_ms is None) for r in report.records] == [
        ("predict", "serving_default", True, False),
        ("predict", "nope", False, True),
        ("predict", "serving_default", False, True),
        ("predict", "serving_default", False, True),
        ("none", "", False, True),
        ("session_run", "", False, True),
        ("predict", "serving_default", True, False),
    ]
    assert report.failures == (
        f"record 1: predict record for signature 'nope' {REFUSED}: FAILED_PRECONDITION: Serving signature key "
        '"nope" not found.',
        f"record 2: predict record for signature 'serving_default' {REFUSED}: INVALID_ARGUMENT: Expects arg[0] to be "
        "float but double is provided (feed serving_default_x:0)",
        f"record 3: predict record for signature 'serving_default' {REFUSED}: INVALID_ARGUMENT: input size does not "
        "match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
        "record 4: it has no log type (a tf.Example looks like that): the server runs nothing, without a word",
        f"record 5: session_run record {REFUSED}: UNIMPLEMENTED: Unsupported log_type for warmup: 5",
    )


def test_a_thousand_records_are_ok_and_one_more_is_not(export_dir):
    assert verify(write(export_dir, *[predict(x=ROWS)] * 1000)).ok
    report = verify(write(export_dir, *[predict(x=ROWS)] * 1100))
    assert not report.ok
    assert len(report.records) == 1001
    assert report.failures == (
        "record 1000: TensorFlow Serving takes 1000 records: it runs them all, then refuses to load the model",
    )


DAMAGED = {
    "empty": (
        lambda data: b"",
        "empty",
        "the file is empty: the server loads the model cold, without a word",
    ),
    "gzip": (
        gzip.compress,
        "gzip",
        "it is GZIP; the server reads plain TFRecord only, so decompress it; TensorFlow Serving refuses to load the model",
    ),
    "text": (
        lambda data: b"some text that is no record",
        "corrupted",
        "corrupted record at byte 0 (Is this even a TFRecord file?); TensorFlow Serving refuses to load the model",
    ),
    "garbage": (
        lambda data: b"abcde",
        "trailing",
        "5 bytes at byte 0 are too few for a record header: the server passes over them without a word",
    ),
}


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_no_warmup_file_is_not_ok(export_dir, damage, kind, message):
    path = warmup_path(write(export_dir, predict(x=ROWS)))
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(damage(data))
    report = verify(export_dir)
    assert not report.ok
    assert report.failures == (f"record 0: {message}",)
    assert [(record.kind, record.ok, record.bytes) for record in report.records] == [
        (kind, False, 0)
    ]


@pytest.mark.parametrize(
    ("cut", "kind", "message"),
    [
        (
            11,
            "trailing",
            "11 bytes at byte {end} are too few for a record header: the server passes over them without a word",
        ),
        (
            12,
            "truncated",
            "truncated record at byte {end}: {missing} bytes are missing; TensorFlow Serving refuses to load the model",
        ),
    ],
    ids=["in-header", "behind-header"],
)
def test_a_cut_file_is_not_ok_though_its_first_record_runs(export_dir, cut, kind, message):
    log = predict("serving_default", x=ROWS[:1])
    path = warmup_path(write(export_dir, log, log))
    end = log.ByteSize() + FRAME_BYTES
    with open(path, "rb+") as file:
        file.truncate(end + cut)
    report = verify(export_dir)
    assert [(record.kind, record.ok) for record in report.records] == [
        ("predict", True),
        (kind, False),
    ]
    assert report.failures == ("record 1: " + message.format(end=end, missing=end - cut),)


def test_a_record_that_is_another_proto_is_not_ok(export_dir):
    path = warmup_path(write(export_dir, predict(x=ROWS)))
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(b"\xff\xff no proto")
        writer.write(tf.train.Example(features={"feature": {}}).SerializeToString())
    assert [(record.kind, record.ok, record.message) for record in verify(export_dir).records] == [
        (
            "unparsable",
            False,
            "it is not a PredictionLog; TensorFlow Serving refuses to load the model",
        ),
        (
            "none",
            False,
            "it has no log type (a tf.Example looks like that): the server runs nothing, without a word",
        ),
    ]


def test_batching_needs_one_batch_dimension_everywhere(export_dir):
    logs = [
        predict("dot", x=ROWS, w=ROWS),
        predict("dot", x=ROWS, w=ROWS[:1]),
        predict("scaled", x=ROWS, by=ROWS[0]),
    ]
    report = verify(write(export_dir, *logs))
    assert report.ok
    assert report.server_notes == (
        SCALAR_NOTE,
        "Signature 'dot' does not work with --enable_batching: output 'total' is [] for a batch of 2, so it is not "
        "batch-major; its inputs differ in dimension 0 (w [1], x [2]).",
    )


def test_writing_state_is_noted_where_a_record_does_it(export_dir):
    assert verify(write(export_dir, predict("count", x=ROWS))).server_notes == (
        SCALAR_NOTE,
        "Signature 'count' writes state: it has counted the warmup requests when the first client comes.",
    )


def test_method_names_matter_under_the_check(export_dir):
    multi = PredictionLog()
    task = multi.multi_inference_log.request.tasks.add(method_name=CLASSIFY_METHOD)
    task.model_spec.CopyFrom(ModelSpec(name="m", signature_name="classify"))
    multi.multi_inference_log.request.input.example_list.examples.add()
    report = verify(write(export_dir, classify("classify"), multi))
    assert report.ok
    assert report.server_notes == (
        SCALAR_NOTE,
        "With --enable_signature_method_name_check the records of signature 'classify' keep the model from loading: its "
        "method_name is 'tensorflow/serving/predict', Classify wants 'tensorflow/serving/classify'; its method_name is "
        "'tensorflow/serving/predict', MultiInference wants 'tensorflow/serving/classify'. "
        "tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater changes it.",
    )


def test_xla_needs_a_flag(tmp_path):
    m = Functions()
    tf.saved_model.save(m, tmp_path, signatures={"serving_default": m.double, "xla": m.compiled})
    needs = (
        "Signature 'xla' must be compiled by XLA: a server needs --xla_cpu_compilation_enabled (CPU) or "
        "--xla_gpu_compilation_enabled (GPU) to run it"
    )
    report = verify(write(str(tmp_path), predict(x=ROWS)))
    assert report.ok
    assert report.server_notes == (f"{needs}.",)
    report = verify(write(str(tmp_path), predict("xla", x=ROWS)))
    assert report.ok
    assert report.server_notes == (
        f"{needs}; without the flag its records keep the model from loading.",
    )


def test_python_functions_fail_though_they_run_here(tmp_path):
    m = Functions()
    m.python = tf.function(
        lambda x: {"y": tf.py_function(lambda rows: rows + 1, [x], tf.float32)},
        input_signature=[FLOATS],
    )
    tf.saved_model.save(m, tmp_path, signatures={"serving_default": m.double, "python": m.python})
    calls = "Signature 'python' calls Python functions (EagerPyFunc)"
    cure = "Replace tf.py_function/tf.numpy_function by TensorFlow ops: a server has no Python."
    with open_session(tmp_path) as session:
        assert session.replay(predict("python", x=ROWS)).outputs["y"].tolist() == [2, 3]
    report = verify(write(str(tmp_path), predict(x=ROWS), predict("python", x=ROWS)))
    assert report.failures == (
        f"record 1: {calls}; TensorFlow Serving refuses to load the model. {cure}",
    )
    assert report.records[1].replay_ms is None
    report = verify(write(str(tmp_path), predict(x=ROWS)))
    assert report.ok
    assert report.server_notes == (f"{calls}: requests for it fail. {cure}",)


def test_a_foreign_op_is_named_and_nothing_is_replayed(export_dir):
    path = f"{export_dir}/saved_model.pb"
    with open(path, "rb") as file:
        saved_model = SavedModel.FromString(file.read())
    saved_model.meta_graphs[0].graph_def.node.add(name="foreign", op="DecodeMoonbeam")
    with open(path, "wb") as file:
        file.write(saved_model.SerializeToString())
    report = verify(write(export_dir, predict(x=ROWS)))
    assert not report.ok
    first, second = report.failures
    assert first.startswith(
        f"Cannot import the graph of SavedModel {export_dir!r}: Op type not registered 'DecodeMoonbeam'"
    )
    assert second == "record 0: it was not replayed: the model does not load"
    assert report.server_notes == (
        "Ops outside core TensorFlow, which the server must be built with: DecodeMoonbeam.",
        SCALAR_NOTE,
    )


@pytest.fixture(scope="session")
def trap_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("trap") / "1")
    tf.saved_model.save(
        keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, name="out")]), path
    )
    return path


def test_a_model_no_session_can_run_is_not_ok_even_without_records(trap_dir):
    report = verify(trap_dir)
    assert not report.ok
    _, failure = report.failures
    assert failure.startswith(
        "Signature 'serving_default' reads variables that the SavedModel's restore op does not fill, so no Session (and "
        "no server) can run it: "
    )
    assert failure.endswith(
        ". Write the model with keras_warmup.save, model.export or keras.export.ExportArchive."
    )
    assert "bias" in failure
    assert "kernel" in failure


def test_a_model_no_session_can_run_is_named_once_where_a_record_shows_it(trap_dir, tmp_path):
    path = write(shutil.copytree(trap_dir, str(tmp_path / "1")), predict(inputs=ROWS[:, None]))
    (failure,) = verify(path).failures
    assert failure.startswith(
        f"record 0: predict record for signature 'serving_default' {REFUSED}: FAILED_PRECONDITION: Could not find variable"
    )


def test_no_model_is_an_error(tmp_path):
    with pytest.raises(SignatureError, match="the directory does not exist"):
        verify(tmp_path / "1")


def test_report_as_json_and_as_text(export_dir):
    report = verify(write(export_dir, predict(x=ROWS), predict("nope", x=ROWS)))
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["ok"] is False
    assert plain["export_dir"] == export_dir
    assert [record["index"] for record in plain["records"]] == [0, 1]
    assert sorted(plain["records"][0]) == [
        "bytes",
        "index",
        "kind",
        "message",
        "ok",
        "replay_ms",
        "signature_key",
    ]
    assert plain["failures"] == list(report.failures)
    assert plain["server_notes"] == [SCALAR_NOTE]

    console = rich.console.Console(width=500, record=True, file=io.StringIO())
    console.print(report)
    *_, failure, note, last = console.export_text().strip().splitlines()
    assert failure == f"failure: {report.failures[0]}"
    assert note == f"note: {SCALAR_NOTE}"
    assert last == f"{export_dir}: not ok"


def test_half_plus_two_gets_verified(saved_models, tmp_path):
    export_dir = shutil.copytree(saved_models / "half_plus_two_tf1" / "1", str(tmp_path / "1"))
    report = verify(write(export_dir, predict(x=ROWS[:, None]), classify("classify_x_to_y")))
    assert [record.ok for record in report.records] == [True, False]
    assert report.failures == (
        f"record 1: classify record for signature 'classify_x_to_y' {REFUSED}: INVALID_ARGUMENT: Name: <unknown>, "
        "Feature: x (data type: float) is required but could not be found. (node ParseExample/ParseExample, op "
        "ParseExample)",
    )
    assert report.server_notes == ()
