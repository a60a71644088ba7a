"""A gRPC client of TensorFlow Serving that takes an address, and a server that someone else started."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.processes import RunTiming
from keras_warmup.errors import OptionsError, ReplayError, ServerError
from keras_warmup.op_errors import describe_op_error
from keras_warmup.records.prediction_logs import log_kind, log_signature_key

_CHANNEL_OPTIONS = (
    # gRPC's own limit is 4 MB, a batch of images is more.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # While a server loads nothing listens: look again at once, not after a backoff of seconds.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 50),
    # A server on this machine is not behind the proxy of the environment.
    ("grpc.enable_http_proxy", 0),
)
_POLL_S = 0.01
_METHODS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}


class PredictionClient:
    """A gRPC client of one server; use it as a context manager.

    Args:
        address: `HOST:PORT`.
        model_name: the name the server knows the model by.
    """

    def __init__(self, address: str, model_name: str) -> None:
        if not re.fullmatch(r"\S+:\d+", address):
            raise OptionsError(
                f"A server is given as HOST:PORT (its gRPC port, usually 8500), got {address!r}."
            )
        self.address = address
        self.model_name = model_name
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._prediction = PredictionServiceStub(self._channel)
        self._model = ModelServiceStub(self._channel)

    def __enter__(self) -> PredictionClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def wait_available(self, timeout_s: float, check: Callable[[], None] = lambda: None) -> None:
        """Asks ModelService until the newest version of the model is `AVAILABLE`.

        Args:
            timeout_s: seconds to wait.
            check: called between two questions; raises when there is no use in waiting.

        Raises:
            ReplayError: the server gave the model up.
            ServerError: it did not get ready in time.
        """
        request = GetModelStatusRequest()
        request.model_spec.name = self.model_name
        said = "nothing"
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            check()
            try:
                versions = self._model.GetModelStatus(request, timeout=5.0).model_version_status
            except grpc.RpcError as error:
                said = f"{error.code().name}: {error.details()}"
                if error.code() not in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.NOT_FOUND,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ):
                    break
                time.sleep(_POLL_S)
                continue
            newest = max(versions, key=lambda one: one.version, default=None)
            if newest is not None and newest.state == ModelVersionStatus.AVAILABLE:
                return
            if newest is not None and newest.state == ModelVersionStatus.END:
                raise ReplayError(
                    f"The server at {self.address} refuses to load model {self.model_name!r}: "
                    f"{without_values(newest.status.error_message) or 'it does not say why'}."
                )
            said = "no version" if newest is None else ModelVersionStatus.State.Name(newest.state)
            time.sleep(_POLL_S)
        raise ServerError(
            f"Model {self.model_name!r} did not get AVAILABLE at {self.address} within {timeout_s:g} s; the server last "
            f"said: {said}. Check the address (the gRPC port), the model name and the server's own output."
        )

    def prepare(self, log: PredictionLog) -> Callable[[], Any]:
        """Makes the call that sends a record's request to this server's model.

        Raises:
            ReplayError: it is of a kind that a server does not answer.
        """
        kind = log.WhichOneof("log_type")
        if kind not in _METHODS:
            raise ReplayError(
                f"{_describe(log)} cannot be sent to a server: expected one of {', '.join(_METHODS)}."
            )
        request = type(getattr(log, kind).request)()
        request.CopyFrom(getattr(log, kind).request)
        for spec in (
            [task.model_spec for task in request.tasks]
            if kind == "multi_inference_log"
            else [request.model_spec]
        ):
            spec.name = self.model_name
            spec.ClearField("version_choice")
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
        """Sends `count` of the requests in turn; milliseconds from each call to its answer."""
        calls = [self.prepare(log) for log in logs]
        taken = []
        for index in range(count):
            started = time.perf_counter()
            calls[index % len(calls)]()
            taken.append((time.perf_counter() - started) * 1000)
        return tuple(taken)


class RunningServer:
    """A server that someone else started: it can be asked, not started anew, so its requests are cold only once.

    Args:
        address: `HOST:PORT` of its gRPC port.
        model_name: the name it knows the model by.
        timeout_s: seconds to wait for the model.
    """

    def __init__(self, address: str, model_name: str, timeout_s: float = 10.0) -> None:
        self.address, self.model_name, self.timeout_s = address, model_name, timeout_s

    def sample(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        """Sends the requests; the server has loaded the model, with whatever warmup file, before."""
        with PredictionClient(self.address, self.model_name) as client:
            client.wait_available(self.timeout_s)
            return RunTiming(0.0, (), client.time_requests(requests, count))


def _describe(log: PredictionLog) -> str:
    return f"{log_kind(log)} request for signature {log_signature_key(log)!r}"


def without_values(text: str) -> str:
    """A server's message without values of tensors, which are training data."""
    return describe_op_error(tf.errors.UnknownError(None, None, text))
