"""A double of TensorFlow Serving's `tensorflow_model_server`, for machines that do not have one.

The model runs in a Session of this package, not in the server. The double takes the server's flags,
loads the newest integer version under the base path, replays the warmup file before it listens,
exits with the server's messages if the load fails, and answers Predict, Classify, Regress,
MultiInference and GetModelStatus. Tests marked `serving` also run against a real server.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any, NoReturn

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from keras_warmup.errors import ReplayError, WarmupError
from keras_warmup.options import MAX_RECORDS
from keras_warmup.records.warmup_file import RecordProblem, parse_log, scan_records, warmup_path
from keras_warmup.serving.replay import ServingSession, open_session

CODES = {code.name: code for code in grpc.StatusCode}
Outputs = Mapping[str, np.ndarray]


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--rest_api_port", type=int, default=0)
    parser.add_argument("--model_name", default="default")
    parser.add_argument("--model_base_path", required=True)
    parser.add_argument("--enable_model_warmup", choices=("true", "false"), default="true")
    parser.add_argument("--max_num_load_retries", type=int, default=5)
    return parser.parse_args(arguments)


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def newest_version(base_path: str) -> int:
    """Waits for a version directory under the base path, as the server does."""
    while True:
        versions = [int(name) for name in os.listdir(base_path) if name.isdecimal()]
        if versions:
            return max(versions)
        log(f"W no versions of the servable found under base path {base_path}")
        time.sleep(1)


def replay_warmup_file(session: ServingSession, export_dir: str) -> int:
    """Runs each record, and fails on the 1001st after it ran the others.

    Follows saved_model_warmup_util.cc.

    Returns:
        The number of records.

    Raises:
        ValueError: with the status that the server would report.
    """
    count = 0
    with contextlib.suppress(WarmupError):  # there is no file: a cold start
        for _, item in list(scan_records(warmup_path(export_dir))):
            if isinstance(item, RecordProblem):
                if not item.loads:
                    raise ValueError(f"Data loss: {item.detail}")
                break
            record = parse_log(item)
            if record is None:
                raise ValueError("Invalid argument: Failed to parse warmup record")
            if count == MAX_RECORDS:
                raise ValueError(
                    "Invalid argument: Number of warmup records exceeds the maximum "
                    f"({MAX_RECORDS})"
                )
            try:
                session.replay(record)
            except ReplayError as error:
                status, message = status_of(error)
                raise ValueError(f"{status}: {message}" if status else message) from error
            count += 1
    return count


def status_of(error: ReplayError) -> tuple[str, str]:
    """Splits the server's status and message from a ReplayError; the status may be empty."""
    found = re.search(r": ([A-Z_]+): (.*)$", str(error), re.DOTALL)
    return (found.group(1), found.group(2)) if found else ("", str(error))


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers requests to one model."""

    def __init__(self, session: ServingSession, model_name: str) -> None:
        self._session = session
        self._model_name = model_name

    def _run(self, record: Any, model_names: Iterable[str], context: Any) -> Outputs:
        for name in model_names:
            if name != self._model_name:
                context.abort(
                    grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})"
                )
        try:
            return self._session.replay(record).outputs
        except ReplayError as error:
            abort(context, error)

    def Predict(self, request: Any, context: Any) -> Any:
        record = PredictionLog()
        record.predict_log.request.CopyFrom(request)
        response = predict_pb2.PredictResponse()
        for alias, array in self._run(record, [request.model_spec.name], context).items():
            response.outputs[alias].CopyFrom(tf.make_tensor_proto(array))
        return response

    def Classify(self, request: Any, context: Any) -> Any:
        record = PredictionLog()
        record.classify_log.request.CopyFrom(request)
        outputs = self._run(record, [request.model_spec.name], context)
        return classification_pb2.ClassificationResponse(result=classification_result(outputs))

    def Regress(self, request: Any, context: Any) -> Any:
        record = PredictionLog()
        record.regress_log.request.CopyFrom(request)
        outputs = self._run(record, [request.model_spec.name], context)
        return regression_pb2.RegressionResponse(result=regression_result(outputs))

    def MultiInference(self, request: Any, context: Any) -> Any:
        record = PredictionLog()
        record.multi_inference_log.request.CopyFrom(request)
        outputs = self._run(record, [task.model_spec.name for task in request.tasks], context)
        response = inference_pb2.MultiInferenceResponse()
        for task in request.tasks:
            key = task.model_spec.signature_name or "serving_default"
            own = {
                name.removeprefix(f"{key}/"): array
                for name, array in outputs.items()
                if name.startswith(f"{key}/")
            }
            result = response.results.add(model_spec=task.model_spec)
            if task.method_name == "tensorflow/serving/classify":
                result.classification_result.CopyFrom(classification_result(own))
            else:
                result.regression_result.CopyFrom(regression_result(own))
        return response


def abort(context: Any, error: ReplayError) -> NoReturn:
    """Ends a call with the status of an error."""
    status, message = status_of(error)
    context.abort(CODES.get(status, grpc.StatusCode.UNKNOWN), message)
    raise AssertionError("context.abort returned")


def classification_result(outputs: Outputs) -> Any:
    result = classification_pb2.ClassificationResult()
    classes, scores = outputs.get("classes"), outputs.get("scores")
    rows, columns = next(iter(outputs.values())).shape
    for row in range(rows):
        classification = result.classifications.add()
        for column in range(columns):
            classification.classes.add(
                label="" if classes is None else classes[row, column].decode(),
                score=0.0 if scores is None else float(scores[row, column]),
            )
    return result


def regression_result(outputs: Outputs) -> Any:
    result = regression_pb2.RegressionResult()
    for value in outputs["outputs"].ravel():
        result.regressions.add(value=float(value))
    return result


class Model(model_service_pb2_grpc.ModelServiceServicer):
    """Reports the status of one model."""

    def __init__(self, model_name: str, version: int) -> None:
        self._model_name = model_name
        self._version = version

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        if request.model_spec.name != self._model_name:
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Could not find any versions of model {request.model_spec.name}",
            )
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(
            version=self._version, state=get_model_status_pb2.ModelVersionStatus.State.AVAILABLE
        )
        return response


def main(arguments: Sequence[str]) -> int:
    flags = parse_flags(arguments)
    version = newest_version(flags.model_base_path)
    export_dir = os.path.join(flags.model_base_path, str(version))
    try:
        session = open_session(export_dir)
        count = 0
        if flags.enable_model_warmup == "true":
            count = replay_warmup_file(session, export_dir)
    except (WarmupError, ValueError) as error:
        # Message and exit code of main.cc and server_core.cc with --max_num_load_retries=0.
        log(
            "E tensorflow_serving/model_servers/server.cc] Failed to start server. Error: Unknown: "
            f"1 servable(s) did not become available: {{{{name: {flags.model_name} version: "
            f"{version}}} due to error: {error}, }}"
        )
        return 255
    log(f"I Finished reading warmup data. Number of warmup records read: {count}.")
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Prediction(session, flags.model_name), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        Model(flags.model_name, version), server
    )
    server.add_insecure_port(f"127.0.0.1:{flags.port}")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(0))
    server.wait_for_termination()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
