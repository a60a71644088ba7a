"""Every record gets a verdict, whatever precedes it, and the report tells what a server does."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf

from keras_warmup._protos import PredictionLog, SavedModel
from keras_warmup.errors import SignatureError
from keras_warmup.records.warmup_file import FRAME_BYTES, warmup_path
from keras_warmup.serving.replay import open_session
from keras_warmup.verification import verify
from tests.builders import predict_log, task_log, write_warmup_file

FLOATS = tf.TensorSpec([None], tf.float32)
ROWS = np.array([1, 2], "float32")
NO_TYPE = (
    "it has no log type (a serialized tf.Example is read as such a record): the server silently "
    "runs nothing"
)
REFUSED = "would keep TensorFlow Serving from loading the model"


class Functions(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(2.0)

    @tf.function(input_signature=[FLOATS])
    def double(self, x: Any) -> dict[str, Any]:
        return {"y": x * self.scale}

    @tf.function(input_signature=[FLOATS, tf.TensorSpec([], tf.float32)])
    def scaled(self, x: Any, by: Any) -> dict[str, Any]:
        return {"y": x * by}


@pytest.fixture(scope="session")
def functions_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("functions") / "1")
    m = Functions()
    signatures = {"serving_default": m.double, "scaled": m.scaled}
    tf.saved_model.save(m, path, signatures=signatures)
    return path


@pytest.fixture
def export_dir(functions_dir: str, tmp_path: pathlib.Path) -> str:
    return shutil.copytree(functions_dir, str(tmp_path / "1"))


# The spec of `scaled` gives this note without any record.
SCALAR_NOTE = "Signature 'scaled' does not work with --enable_batching: input 'by' is a scalar."


def test_good_records_have_no_failures(export_dir: str) -> None:
    logs = [predict_log(x=ROWS), predict_log("serving_default", x=ROWS[:1])]
    report = verify(write_warmup_file(export_dir, *logs))
    assert report.ok
    assert report.failures == ()
    assert report.server_notes == (SCALAR_NOTE,)
    assert [(r.index, r.kind, r.signature_key, r.ok, r.message) for r in report.records] == [
        (0, "predict", "serving_default", True, ""),
        (1, "predict", "serving_default", True, ""),
    ]
    assert [record.bytes for record in report.records] == [log.ByteSize() for log in logs]
    assert all(record.replay_ms > 0 for record in report.records)


def test_no_warmup_file_is_not_ok(export_dir: str) -> None:
    report = verify(export_dir)
    assert not report.ok
    assert report.records == ()
    assert report.failures == (
        f"No warmup file at {warmup_path(export_dir)!r}: the first requests will be cold. "
        "Write one with keras_warmup.add_warmup.",
    )


def test_a_directory_in_place_of_the_warmup_file_is_not_ok(export_dir: str) -> None:
    tf.io.gfile.makedirs(warmup_path(export_dir))
    report = verify(export_dir)
    assert not report.ok
    assert report.failures == (
        f"Cannot read warmup file {warmup_path(export_dir)!r}: it is a directory. Remove it, and "
        "write the file with keras_warmup.add_warmup.",
    )


def test_every_record_is_judged_behind_one_that_fails(export_dir: str) -> None:
    logs = [
        predict_log(x=ROWS),
        predict_log("nope", x=ROWS),
        predict_log(x=ROWS.astype("float64")),
        predict_log(),
        PredictionLog(),
        PredictionLog(session_run_log={}),
        predict_log(x=ROWS),
    ]
    report = verify(write_warmup_file(export_dir, *logs))
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
        f"record 1: predict record for signature 'nope' {REFUSED}: FAILED_PRECONDITION: Serving "
        "signature key "
        '"nope" not found.',
        f"record 2: predict record for signature 'serving_default' {REFUSED}: INVALID_ARGUMENT: "
        "Expects arg[0] to be float but double is provided (feed serving_default_x:0)",
        f"record 3: predict record for signature 'serving_default' {REFUSED}: INVALID_ARGUMENT: "
        "input size does not "
        "match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
        f"record 4: {NO_TYPE}",
        f"record 5: session_run record {REFUSED}: UNIMPLEMENTED: Unsupported log_type for warmup: "
        "5",
    )


def test_a_thousand_records_are_ok_and_one_more_is_not(export_dir: str) -> None:
    assert verify(write_warmup_file(export_dir, *[predict_log(x=ROWS)] * 1000)).ok
    report = verify(write_warmup_file(export_dir, *[predict_log(x=ROWS)] * 1100))
    assert not report.ok
    assert len(report.records) == 1001
    assert report.failures == (
        "record 1000: TensorFlow Serving accepts 1000 records: it runs them all, then refuses to "
        "load the model",
    )


REFUSES = "; TensorFlow Serving refuses to load the model"
DAMAGED = {
    "empty": (
        lambda data: b"",
        "empty",
        "the file is empty: the server silently loads the model cold",
    ),
    "gzip": (
        gzip.compress,
        "gzip",
        f"it is GZIP; the server reads plain TFRecord only, so decompress it{REFUSES}",
    ),
    "text": (
        lambda data: b"some text that is no record",
        "corrupted",
        f"corrupted record at byte 0 (Is this even a TFRecord file?){REFUSES}",
    ),
    "garbage": (
        lambda data: b"abcde",
        "trailing",
        "5 bytes at byte 0 are too few for a record header: the server silently ignores them",
    ),
}


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_no_warmup_file_is_not_ok(
    export_dir: str, damage: Callable[[bytes], bytes], kind: str, message: str
) -> None:
    path = warmup_path(write_warmup_file(export_dir, predict_log(x=ROWS)))
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
            "11 bytes at byte {end} are too few for a record header: the server silently ignores "
            "them",
        ),
        (
            12,
            "truncated",
            "truncated record at byte {end}: {missing} bytes are missing" + REFUSES,
        ),
    ],
    ids=["in-header", "behind-header"],
)
def test_a_cut_file_is_not_ok_though_its_first_record_runs(
    export_dir: str, cut: int, kind: str, message: str
) -> None:
    log = predict_log("serving_default", x=ROWS[:1])
    path = warmup_path(write_warmup_file(export_dir, log, log))
    end = log.ByteSize() + FRAME_BYTES
    with open(path, "rb+") as file:
        file.truncate(end + cut)
    report = verify(export_dir)
    assert [(record.kind, record.ok) for record in report.records] == [
        ("predict", True),
        (kind, False),
    ]
    assert report.failures == ("record 1: " + message.format(end=end, missing=end - cut),)


def test_a_record_that_is_another_proto_is_not_ok(export_dir: str) -> None:
    path = warmup_path(write_warmup_file(export_dir, predict_log(x=ROWS)))
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(b"\xff\xff no proto")
        writer.write(tf.train.Example(features={"feature": {}}).SerializeToString())
    assert [(record.kind, record.ok, record.message) for record in verify(export_dir).records] == [
        (
            "unparsable",
            False,
            f"it is not a PredictionLog{REFUSES}",
        ),
        (
            "none",
            False,
            NO_TYPE,
        ),
    ]


@pytest.mark.filterwarnings("ignore:SavedModel")
def test_python_functions_fail_though_they_run_here(tmp_path: pathlib.Path) -> None:
    m = Functions()
    m.python = tf.function(
        lambda x: {"y": tf.py_function(lambda rows: rows + 1, [x], tf.float32)},
        input_signature=[FLOATS],
    )
    tf.saved_model.save(m, tmp_path, signatures={"serving_default": m.double, "python": m.python})
    calls = "Signature 'python' calls Python functions (EagerPyFunc)"
    cure = "Replace tf.py_function/tf.numpy_function by TensorFlow ops: a server has no Python."
    with open_session(tmp_path) as session:
        assert session.replay(predict_log("python", x=ROWS)).outputs["y"].tolist() == [2, 3]
    report = verify(
        write_warmup_file(str(tmp_path), predict_log(x=ROWS), predict_log("python", x=ROWS))
    )
    assert report.failures == (f"record 1: {calls}{REFUSES}. {cure}",)
    assert report.records[1].replay_ms is None
    report = verify(write_warmup_file(str(tmp_path), predict_log(x=ROWS)))
    assert report.ok
    assert report.server_notes == (f"{calls}: requests for it fail. {cure}",)


def test_a_foreign_op_is_named_and_nothing_is_replayed(export_dir: str) -> None:
    path = f"{export_dir}/saved_model.pb"
    with open(path, "rb") as file:
        saved_model = SavedModel.FromString(file.read())
    saved_model.meta_graphs[0].graph_def.node.add(name="foreign", op="DecodeMoonbeam")
    with open(path, "wb") as file:
        file.write(saved_model.SerializeToString())
    report = verify(write_warmup_file(export_dir, predict_log(x=ROWS)))
    assert not report.ok
    first, second = report.failures
    assert first.startswith(
        f"Cannot import the graph of SavedModel {export_dir!r}: Op type not registered "
        "'DecodeMoonbeam'"
    )
    assert second == "record 0: it was not replayed: the model does not load"
    assert report.server_notes == (
        "The model needs ops outside core TensorFlow (DecodeMoonbeam), which a stock model server "
        "does not have.",
        SCALAR_NOTE,
    )


@pytest.fixture(scope="session")
def trap_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("trap") / "1")
    tf.saved_model.save(
        keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, name="out")]), path
    )
    return path


def test_a_model_no_session_can_run_is_not_ok_even_without_records(trap_dir: str) -> None:
    report = verify(trap_dir)
    assert not report.ok
    _, failure = report.failures
    assert failure.startswith(
        "Signature 'serving_default' reads variables that the SavedModel's restore op does not "
        "fill, so no Session (and no server) can run it: "
    )
    assert failure.endswith(
        ". Repair it with keras-warmup repair, or write the model with keras_warmup.save, "
        "model.export or keras.export.ExportArchive."
    )
    assert "bias" in failure
    assert "kernel" in failure


def test_a_model_no_session_can_run_is_named_once_where_a_record_shows_it(
    trap_dir: str, tmp_path: pathlib.Path
) -> None:
    path = write_warmup_file(
        shutil.copytree(trap_dir, str(tmp_path / "1")), predict_log(inputs=ROWS[:, None])
    )
    (failure,) = verify(path).failures
    assert failure.startswith(
        f"record 0: predict record for signature 'serving_default' {REFUSED}: FAILED_PRECONDITION: "
        "Could not find variable"
    )


def test_no_model_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SignatureError, match="the directory does not exist"):
        verify(tmp_path / "1")


def test_report_as_json_and_as_text(export_dir: str) -> None:
    report = verify(write_warmup_file(export_dir, predict_log(x=ROWS), predict_log("nope", x=ROWS)))
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


def test_half_plus_two_gets_verified(saved_models: pathlib.Path, tmp_path: pathlib.Path) -> None:
    export_dir = shutil.copytree(saved_models / "half_plus_two_tf1" / "1", str(tmp_path / "1"))
    report = verify(
        write_warmup_file(
            export_dir,
            predict_log(x=ROWS[:, None]),
            task_log("classify", "classify_x_to_y", tf.train.Example()),
        )
    )
    assert [record.ok for record in report.records] == [True, False]
    assert report.failures == (
        f"record 1: classify record for signature 'classify_x_to_y' {REFUSED}: INVALID_ARGUMENT: "
        "Name: <unknown>, Feature: x (data type: float) is required but could not be found. "
        "(node ParseExample/ParseExample, op ParseExample)",
    )
    assert report.server_notes == ()
