"""Sends the requests of `PredictionLog`s to a TensorFlow Serving model server, over gRPC."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import tensorflow as tf

# The gRPC stubs are generated modules of tensorflow-serving-api, with no other way to them. They
# import grpc, so this module is imported only where a server is asked for.
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.processes import RunTiming
from keras_warmup.errors import ReplayError, ServerError
from keras_warmup.op_errors import describe_op_error
from keras_warmup.records.prediction_logs import log_kind, log_signature_key

_CHANNEL_OPTIONS = (
    # gRPC's default limit is 4 MB; a batch of images is larger.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server does not listen while it loads: reconnect at once, not after a backoff of seconds.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 50),
    # A server on this machine is not behind the proxy that the environment names.
    ("grpc.enable_http_proxy", 0),
)
_POLL_S = 0.01
_METHODS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}


class PredictionClient(contextlib.AbstractContextManager["PredictionClient"]):
    """A gRPC client of one model on one server; a context manager.

    Args:
        address: `HOST:PORT` of the server's gRPC port.
        model_name: name that the server serves the model by.
    """

    def __init__(self, address: str, model_name: str) -> None:
        self.address = address
        self.model_name = model_name
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._prediction = PredictionServiceStub(self._channel)
        self._model = ModelServiceStub(self._channel)

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def wait_available(
        self, timeout_s: float, is_running: Callable[[], bool] = lambda: True
    ) -> None:
        """Waits until the newest version of the model is `AVAILABLE`.

        Args:
            timeout_s: seconds to wait.
            is_running: called before each poll; the wait ends where it returns `False`.

        Raises:
            ReplayError: the server cannot load the model.
            ServerError: the model is not available in time.
        """
        request = GetModelStatusRequest()
        request.model_spec.name = self.model_name
        answer = "nothing"
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and is_running():
            try:
                versions = self._model.GetModelStatus(request, timeout=5.0).model_version_status
            except grpc.RpcError as error:
                answer = f"{error.code().name}: {error.details()}"
                if error.code() not in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.NOT_FOUND,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ):
                    break
                time.sleep(_POLL_S)
                continue
            newest = max(versions, key=lambda status: status.version, default=None)
            if newest is not None and newest.state == ModelVersionStatus.AVAILABLE:
                return
            if newest is not None and newest.state == ModelVersionStatus.END:
                reason = without_values(newest.status.error_message) or "no reason given"
                raise ReplayError(
                    f"The server at {self.address} refuses to load model {self.model_name!r}: "
                    f"{reason}."
                )
            answer = "no version" if newest is None else ModelVersionStatus.State.Name(newest.state)
            time.sleep(_POLL_S)
        raise ServerError(
            f"Model {self.model_name!r} did not become AVAILABLE at {self.address} within "
            f"{timeout_s:g} s; the server's last answer: {answer}. Check the address (the gRPC "
            "port), the model name and the server's own output."
        )

    def prepare(self, log: PredictionLog) -> Callable[[], Any]:
        """Returns a function that sends a record's request to the model and returns the response.

        Raises:
            ReplayError: a server does not answer requests of this kind.
        """
        kind = log.WhichOneof("log_type")
        if kind not in _METHODS:
            raise ReplayError(
                f"{_describe(log)} cannot be sent to a server: expected one of "
                f"{', '.join(_METHODS)}."
            )
        request = copy.deepcopy(getattr(log, kind).request)
        parts = request.tasks if kind == "multi_inference_log" else [request]
        for part in parts:
            part.model_spec.name = self.model_name
            part.model_spec.ClearField("version_choice")
        method = getattr(self._prediction, _METHODS[kind])

        def send() -> Any:
            try:
                return method(request)
            except grpc.RpcError as error:
                raise ReplayError(
                    f"{_describe(log)}, sent to {self.address}, failed: {error.code().name}: "
                    f"{without_values(error.details() or '')}"
                ) from error

        return send

    def time_requests(self, logs: Sequence[PredictionLog], count: int) -> tuple[float, ...]:
        """Sends `count` of the requests in turn; returns the time of each, milliseconds."""
        calls = [self.prepare(log) for log in logs]
        times_ms = []
        for index in range(count):
            started = time.perf_counter()
            calls[index % len(calls)]()
            times_ms.append((time.perf_counter() - started) * 1000)
        return tuple(times_ms)


class RunningServer:
    """A server that someone else started. It is not restarted, so requests are cold only once.

    Args:
        address: `HOST:PORT` of its gRPC port.
        model_name: name that it serves the model by.
        timeout_s: seconds to wait for the model.
    """

    def __init__(self, address: str, model_name: str, timeout_s: float) -> None:
        self.address, self.model_name, self.timeout_s = address, model_name, timeout_s

    def time_run(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        """Times `count` of the requests in turn.

        `warmup_file` is not used: the server loaded the model before, with or without a file.
        """
        with PredictionClient(self.address, self.model_name) as client:
            client.wait_available(self.timeout_s)
            return RunTiming(0.0, (), client.time_requests(requests, count))


def without_values(text: str) -> str:
    """Removes tensor values, which are training data, from a message of a server."""
    return describe_op_error(tf.errors.UnknownError(None, None, text))


def _describe(log: PredictionLog) -> str:
    return f"{log_kind(log)} request for signature {log_signature_key(log)!r}"
