"""Requests to a server over gRPC."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.client import RunningServer
from keras_warmup.bench.servers import LaunchedServer, ServerCommand
from keras_warmup.errors import ReplayError, ServerError
from tests.bench.models import count_in, examples_of
from tests.builders import multi_inference_log, predict_log, task_log

ONES = predict_log("serving_default", x=np.ones((2, 2), np.float32))


def test_every_kind_of_request_is_answered(server_command: ServerCommand, counter_dir: str) -> None:
    server = LaunchedServer(counter_dir, server_command, model_name="counter")
    with server.started(None) as (client, _):
        rows = np.array([[1, 2], [3, 4]], np.float32)
        predicted = client.prepare(predict_log("serving_default", x=rows))()
        assert tf.make_ndarray(predicted.outputs["sum"]).tolist() == [3, 7]
        log = task_log("classify", "classify", *examples_of([[0, 0]]))
        (classification,) = client.prepare(log)().result.classifications
        assert [scored.label for scored in classification.classes] == ["no", "yes"]
        log = task_log("regress", "regress", *examples_of(rows.tolist()))
        regressions = client.prepare(log)().result.regressions
        assert [regression.value for regression in regressions] == [3, 7]
        log = multi_inference_log(
            ("classify", "tensorflow/serving/classify"), examples=examples_of([[0, 0], [0, 0]])
        )
        (result,) = client.prepare(log)().results
        assert len(result.classification_result.classifications) == 2


def test_messages_may_be_larger_than_the_default_limit_of_grpc(
    double: ServerCommand, counter_dir: str
) -> None:
    server = LaunchedServer(counter_dir, double, model_name="counter")
    with server.started(None) as (client, _):
        rows = np.ones((2**20 + 1, 2), np.float32)
        response = client.prepare(predict_log("serving_default", x=rows))()
        assert len(tf.make_ndarray(response.outputs["sum"])) == 2**20 + 1
        assert len(client.time_requests([ONES], 3)) == 3


def test_a_failing_request_shows_the_servers_error_without_values(
    server_command: ServerCommand, counter_dir: str
) -> None:
    server = LaunchedServer(counter_dir, server_command, model_name="counter")
    with server.started(None) as (client, _):
        with pytest.raises(ReplayError) as caught:
            client.prepare(predict_log("nope", x=np.ones((2, 2), np.float32)))()
        assert str(caught.value) == (
            f"predict request for signature 'nope', sent to {client.address}, failed: "
            'FAILED_PRECONDITION: Serving signature key "nope" not found.'
        )
        session_run = PredictionLog()
        session_run.session_run_log.request.SetInParent()
        with pytest.raises(
            ReplayError, match="cannot be sent to a server: expected one of predict_log, "
        ):
            client.prepare(session_run)


def test_a_running_server_is_used_and_not_stopped(double: ServerCommand, counter_dir: str) -> None:
    server = LaunchedServer(counter_dir, double, model_name="counter")
    with server.started(None) as (client, _):
        timing = RunningServer(client.address, "counter", 10.0).time_run([ONES], 3, None)
        assert len(timing.request_ms) == 3
        assert count_in(client.prepare(ONES)()) == 4
        with pytest.raises(ServerError) as caught:
            RunningServer(client.address, "other", 0.5).time_run([ONES], 1, None)
        assert str(caught.value) == (
            f"Model 'other' did not become AVAILABLE at {client.address} within 0.5 s; the "
            "server's last answer: NOT_FOUND: Could not find any versions of model other. Check "
            "the address (the gRPC port), the model name and the server's own output."
        )
