"""A C++ Session loads models and runs records as the Session of a replay does."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog, SavedModel
from keras_warmup.bench.native_session import NativeSession, c_api, find_graph
from keras_warmup.errors import ReplayError, SignatureError
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.serving.replay import ServingSession, open_session
from keras_warmup.serving.rules import CLASSIFY_METHOD, REGRESS_METHOD
from tests.bench.models import RequestCounter, examples_of
from tests.builders import multi_inference_log, predict_log, task_log

pytestmark = pytest.mark.skipif(c_api() is None, reason="TensorFlow does not export its C API")

EXAMPLES = examples_of([[1, 2], [3, 4], [5, 6]])
ROWS = np.array([[1, 2], [3, 4]], np.float32)


class Vocabulary(tf.Module):
    """A lookup table with an asset, and outputs of several dtypes and ranks."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        path.write_text("red\ngreen\n")
        self.table = tf.lookup.StaticVocabularyTable(
            tf.lookup.TextFileInitializer(
                str(path),
                *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
                *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
            ),
            num_oov_buckets=1,
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
    def call(self, words: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "ids": self.table.lookup(words),
            "long": tf.strings.join([words, "-" * 100]),
            "half": tf.cast(tf.strings.length(words), tf.bfloat16)[:, None],
            "flags": tf.equal(words, "red"),
            "none": words[:0],
            "count": tf.size(words),
        }


@pytest.fixture(scope="module")
def vocabulary_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("vocabulary")
    module = Vocabulary(directory / "words.txt")
    path = str(directory / "1")
    tf.saved_model.save(module, path, signatures={"serving_default": module.call})
    (directory / "words.txt").unlink()
    return path


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tasks") / "1"
    RequestCounter().save(path, "serving_default", "classify", "regress")
    return str(path)


@pytest.fixture(scope="module")
def sessions(tasks_dir: str) -> Iterator[tuple[NativeSession, ServingSession]]:
    with open_native(tasks_dir) as native, open_session(tasks_dir) as session:
        yield native, session


def open_native(export_dir: str) -> NativeSession:
    return NativeSession(export_dir, read_meta_graph(export_dir))


@pytest.mark.parametrize(
    "log",
    [
        predict_log("serving_default", x=ROWS),
        predict_log("serving_default", output_filter=["sum"], x=ROWS),
        task_log("classify", "classify", *EXAMPLES),
        task_log("regress", "regress", *EXAMPLES),
        multi_inference_log(
            ("classify", CLASSIFY_METHOD), ("regress", REGRESS_METHOD), examples=EXAMPLES
        ),
        PredictionLog(),
    ],
    ids=["predict", "output-filter", "classify", "regress", "multi-inference", "no-type"],
)
def test_outputs_are_those_of_the_session_in_python(
    log: PredictionLog, sessions: tuple[NativeSession, ServingSession]
) -> None:
    native, session = (one.replay(log) for one in sessions)
    assert native.outputs.keys() == session.outputs.keys()
    for alias, expected in session.outputs.items():
        got = native.outputs[alias]
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(got, expected)


def test_tables_are_filled_from_assets_and_strings_of_any_length_come_back(
    vocabulary_dir: str,
) -> None:
    words = np.array([b"green", b"red\0", b"blue", b"x" * 200], object)
    log = predict_log("serving_default", words=words)
    with open_native(vocabulary_dir) as session:
        outputs = session.replay(log).outputs
    assert session.load_ms > 0
    assert outputs["ids"].tolist() == [1, 2, 2, 2]
    assert outputs["long"].tolist() == [word + b"-" * 100 for word in words]
    assert outputs["half"].shape == (4, 1) and outputs["half"].dtype.name == "bfloat16"
    assert outputs["flags"].tolist() == [False] * 4
    assert outputs["none"].shape == (0,)
    assert (outputs["count"].shape, outputs["count"].item()) == ((), 4)


@pytest.mark.parametrize(
    ("log", "refusal"),
    [
        (
            predict_log("nope", x=ROWS),
            'FAILED_PRECONDITION: Serving signature key "nope" not found.',
        ),
        (
            predict_log("serving_default", x=ROWS.astype(np.float64)),
            "INVALID_ARGUMENT: Expects arg[0] to be float but double is provided",
        ),
        (task_log("classify", "classify"), "INVALID_ARGUMENT: Input is empty."),
    ],
    ids=["signature", "dtype", "empty"],
)
def test_what_a_server_refuses_is_refused(
    log: PredictionLog, refusal: str, sessions: tuple[NativeSession, ServingSession]
) -> None:
    with pytest.raises(ReplayError) as caught:
        sessions[0].replay(log)
    assert refusal in str(caught.value)


def test_a_tensor_that_cannot_be_parsed_is_refused(
    sessions: tuple[NativeSession, ServingSession],
) -> None:
    log = predict_log("serving_default", x=ROWS)
    log.predict_log.request.inputs["x"].tensor_content = b"123"
    with pytest.raises(ReplayError) as caught:
        sessions[0].replay(log)
    assert str(caught.value).endswith("INVALID_ARGUMENT: tensor parsing error: x")


def test_an_output_that_is_not_in_the_graph_is_an_error(tasks_dir: str) -> None:
    meta_graph = read_meta_graph(tasks_dir)
    meta_graph.signature_def["serving_default"].outputs["sum"].name = "nowhere:0"
    with NativeSession(tasks_dir, meta_graph) as session, pytest.raises(ReplayError) as caught:
        session.replay(predict_log("serving_default", x=ROWS))
    assert caught.value.status == "INVALID_ARGUMENT"


def test_a_model_without_a_graph_is_an_error(tasks_dir: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(SignatureError) as caught:
        NativeSession(str(tmp_path), read_meta_graph(tasks_dir))
    assert str(caught.value).startswith(f"Cannot read the graph of SavedModel {str(tmp_path)!r}: ")


def test_a_step_that_fails_is_named(tasks_dir: str, tmp_path: pathlib.Path) -> None:
    damaged = tmp_path / "1"
    shutil.copytree(tasks_dir, damaged)
    (data,) = (damaged / "variables").glob("variables.data*")
    data.write_bytes(b"")
    with pytest.raises(ReplayError) as caught:
        open_native(str(damaged))
    assert str(caught.value).startswith(
        f"Cannot restore the variables of SavedModel {str(damaged)!r}"
    )


def test_the_graph_is_found_beside_other_meta_graphs() -> None:
    saved_model = SavedModel(saved_model_schema_version=1)
    for tags in (["serve", "tpu"], ["serve"]):
        meta_graph = saved_model.meta_graphs.add()
        meta_graph.meta_info_def.tags.extend(tags)
        meta_graph.graph_def.node.add(name="-".join(tags), op="NoOp")
        meta_graph.signature_def["a"].method_name = "x" * 300
    content = saved_model.SerializeToString()
    start, end = find_graph(content)
    assert content[start:end] == saved_model.meta_graphs[1].graph_def.SerializeToString()
    with pytest.raises(IndexError):
        find_graph(content[:end])
    del saved_model.meta_graphs[1]
    with pytest.raises(IndexError):
        find_graph(saved_model.SerializeToString())


def test_without_the_library_there_is_no_c_api(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(tf.sysconfig, "get_lib", lambda: str(tmp_path))
    c_api.cache_clear()
    try:
        assert c_api() is None
    finally:
        c_api.cache_clear()
