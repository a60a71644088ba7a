"""Logs of every kind are described by what they hold."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.records.prediction_logs import (
    describe_log,
    log_kind,
    log_signature_key,
    log_signature_keys,
)
from tests.builders import multi_inference_log, predict_log, task_log

LOGS = {
    "predict": (predict_log("a"), "predict", ("a",), "a"),
    "classify": (task_log("classify", ""), "classify", ("serving_default",), "serving_default"),
    "multi-inference": (
        multi_inference_log(("a", ""), ("", "")),
        "multi_inference",
        ("a", "serving_default"),
        "a+serving_default",
    ),
    "session-run": (PredictionLog(session_run_log={}), "session_run", (), ""),
    "none": (PredictionLog(), "none", (), ""),
}


@pytest.mark.parametrize(("log", "kind", "keys", "key"), LOGS.values(), ids=LOGS)
def test_kind_and_signatures_of_a_log(
    log: PredictionLog, kind: str, keys: tuple[str, ...], key: str
) -> None:
    assert log_kind(log) == kind
    assert log_signature_keys(log) == keys
    assert log_signature_key(log) == describe_log(log)["signature_key"] == key


def test_a_predict_log_is_described_by_its_shapes() -> None:
    log = predict_log("s", output_filter=["y"], b=np.ones(2), a=np.zeros((2, 3)))
    assert describe_log(log) == {
        "signature_key": "s",
        "kind": "predict",
        "batch_size": 2,
        "shapes": {"a": (2, 3), "b": (2,)},
        "output_filter": ("y",),
    }


def test_inputs_of_different_sizes_have_no_batch_size() -> None:
    assert describe_log(predict_log(a=np.ones(2), b=np.ones(3)))["batch_size"] is None
    assert describe_log(predict_log(a=np.float32(1)))["batch_size"] is None


def test_examples_are_counted() -> None:
    described = describe_log(task_log("regress", "", tf.train.Example(), tf.train.Example()))
    assert (described["batch_size"], described["shapes"]) == (2, {"inputs": (2,)})
    assert describe_log(task_log("regress", ""))["batch_size"] == 0


def test_logs_that_the_server_does_not_run_have_the_name_of_their_field() -> None:
    assert describe_log(PredictionLog())["kind"] is None
    assert describe_log(PredictionLog(session_run_log={}))["kind"] == "session_run_log"
