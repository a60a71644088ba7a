"""A record that runs here is noted where a server that is started otherwise would refuse it."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.serving.rules import CLASSIFY_METHOD, REGRESS_METHOD
from keras_warmup.verification import verify
from tests.builders import multi_inference_log, predict_log, task_log, write_warmup_file

FLOATS = tf.TensorSpec([None], tf.float32)
STRINGS = tf.TensorSpec([None], tf.string)
ROWS = np.array([1, 2], "float32")
EXAMPLE = tf.train.Example()


class Functions(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0.0)

    @tf.function(input_signature=[FLOATS])
    def double(self, x: Any) -> dict[str, Any]:
        return {"y": x * 2.0}

    @tf.function(input_signature=[FLOATS, FLOATS])
    def dot(self, x: Any, w: Any) -> dict[str, Any]:
        return {"total": tf.reduce_sum(x) * tf.reduce_sum(w), "y": x}

    @tf.function(input_signature=[FLOATS, tf.TensorSpec([], tf.float32)])
    def scaled(self, x: Any, by: Any) -> dict[str, Any]:
        return {"y": x * by}

    @tf.function(input_signature=[FLOATS])
    def count(self, x: Any) -> dict[str, Any]:
        self.calls.assign_add(1.0)
        return {"y": x + self.calls}

    @tf.function(input_signature=[FLOATS], jit_compile=True)
    def compiled(self, x: Any) -> dict[str, Any]:
        return {"y": x * 2.0}

    @tf.function(input_signature=[STRINGS])
    def classify(self, inputs: Any) -> dict[str, Any]:
        return {"scores": tf.ones([tf.size(inputs), 2])}

    @tf.function(input_signature=[STRINGS])
    def regress(self, inputs: Any) -> dict[str, Any]:
        return {"outputs": tf.ones([tf.size(inputs)])}


def notes_of(directory: pathlib.Path, keys: list[str], *logs: PredictionLog) -> tuple[str, ...]:
    """Exports functions under their names, and verifies logs that all run."""
    m = Functions()
    signatures = {key: getattr(m, key) for key in keys}
    tf.saved_model.save(m, directory, signatures=signatures)
    report = verify(write_warmup_file(directory, *logs))
    assert report.ok, report.failures
    return report.server_notes


def test_a_scalar_input_is_noted_without_a_record_of_its_signature(tmp_path: pathlib.Path) -> None:
    assert notes_of(tmp_path, ["double", "scaled"], predict_log("double", x=ROWS)) == (
        "Signature 'scaled' does not work with --enable_batching: input 'by' is a scalar.",
    )


def test_batching_needs_one_batch_dimension_everywhere(tmp_path: pathlib.Path) -> None:
    logs = [
        predict_log("dot", x=ROWS, w=ROWS),
        predict_log("dot", x=ROWS, w=ROWS[:1]),
        predict_log("scaled", x=ROWS, by=ROWS[0]),
    ]
    assert notes_of(tmp_path, ["dot", "scaled"], *logs) == (
        "Signature 'scaled' does not work with --enable_batching: input 'by' is a scalar.",
        "Signature 'dot' does not work with --enable_batching: output 'total' is [] for a batch of "
        "2, so it is not batch-major; its inputs differ in dimension 0 (w [1], x [2]).",
    )


def test_writing_state_is_noted_where_a_record_does_it(tmp_path: pathlib.Path) -> None:
    keys = ["double", "count"]
    assert notes_of(tmp_path / "1", keys, predict_log("double", x=ROWS)) == ()
    assert notes_of(tmp_path / "2", keys, predict_log("count", x=ROWS)) == (
        "Signature 'count' writes state: the warmup requests change it before the first request of "
        "a client.",
    )


def method_name_note(key: str, *requests: tuple[str, str]) -> str:
    reasons = [
        f"its method_name is 'tensorflow/serving/predict', {request} expects {expected!r}"
        for request, expected in requests
    ]
    return (
        f"With --enable_signature_method_name_check the records of signature {key!r} keep the "
        f"model from loading: {'; '.join(reasons)}. "
        "tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater changes it."
    )


def test_method_names_matter_under_the_check(tmp_path: pathlib.Path) -> None:
    logs = [
        task_log("classify", "classify", EXAMPLE),
        task_log("regress", "regress", EXAMPLE),
        multi_inference_log(("classify", CLASSIFY_METHOD), examples=[EXAMPLE]),
    ]
    assert notes_of(tmp_path, ["classify", "regress"], *logs) == (
        method_name_note(
            "classify", ("Classify", CLASSIFY_METHOD), ("MultiInference", CLASSIFY_METHOD)
        ),
        method_name_note("regress", ("Regress", REGRESS_METHOD)),
    )


@pytest.mark.parametrize("several", [False, True], ids=["one-input", "two-inputs"])
def test_tasks_over_different_input_tensors_need_a_server_of_2_4(
    several: bool, tmp_path: pathlib.Path
) -> None:
    tasks = [("classify", CLASSIFY_METHOD), ("regress", REGRESS_METHOD)]
    log = multi_inference_log(*(tasks if several else tasks[:1]), examples=[EXAMPLE])
    notes = notes_of(tmp_path, ["classify", "regress"], log, log)
    expected = (
        "TensorFlow Serving before 2.4 refuses to load the model with the MultiInference records "
        "for 'classify+regress': their tasks read different input tensors."
    )
    assert [note for note in notes if "2.4" in note] == [expected] * several


def test_xla_needs_a_flag(tmp_path: pathlib.Path) -> None:
    keys = ["double", "compiled"]
    needs = (
        "Signature 'compiled' must be compiled by XLA: a server needs "
        "--xla_cpu_compilation_enabled (CPU) or --xla_gpu_compilation_enabled (GPU) to run it"
    )
    assert notes_of(tmp_path / "1", keys, predict_log("double", x=ROWS)) == (f"{needs}.",)
    assert notes_of(tmp_path / "2", keys, predict_log("compiled", x=ROWS)) == (
        f"{needs}; without the flag its records keep the model from loading.",
    )
