"""A double of TensorFlow Serving's `tensorflow_model_server`, for machines that have none.

It is not the server: the model runs in a Python Session of this package. It takes the server's flags, loads the newest
numeric version under the base path, replays the warmup file before it listens, ends with the server's words when the
load fails, and answers Predict, Classify, Regress, MultiInference and GetModelStatus. Tests marked `serving` ask the same
of a real one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import time
from concurrent import futures

import grpc
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
from keras_warmup.serving.replay import open_session

CODES = {name.name: name for name in grpc.StatusCode}


def parse_flags(arguments):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--rest_api_port", type=int, default=0)
    parser.add_argument("--model_name", default="default")
    parser.add_argument("--model_base_path", required=True)
    parser.add_argument("--enable_model_warmup", choices=("true", "false"), default="true")
    parser.add_argument("--max_num_load_retries", type=int, default=5)
    return parser.parse_args(arguments)


def newest_version(base_path):
    while True:
        versions = [int(name) for name in os.listdir(base_path) if name.isdecimal()]
        if versions:
            return max(versions)
        print(
            "W no versions of the servable found under base path",
            base_path,
            file=sys.stderr,
            flush=True,
        )
        time.sleep(1)


def warm(session, export_dir):
    """saved_model_warmup_util.cc: runs each record, and fails on the 1001st after running the others."""
    count = 0
    with contextlib.suppress(WarmupError):  # no file: a cold start
        records = list(scan_records(warmup_path(export_dir)))
        for _, item in records:
            if isinstance(item, RecordProblem):
                if not item.loads:
                    raise ValueError(f"Data loss: {item.detail}")
                break
            log = parse_log(item)
            if log is None:
                raise ValueError("Invalid argument: Failed to parse warmup record")
            if count == MAX_RECORDS:
                raise ValueError(
                    f"Invalid argument: Number of warmup records exceeds the maximum ({MAX_RECORDS})"
                )
            try:
                session.replay(log)
            except ReplayError as error:
                raise ValueError(status_of(error)[1]) from error
            count += 1
    return count


def status_of(error):
    """The server's status and text inside a ReplayError."""
    found = re.search(r": ([A-Z_]+): (.*)$", str(error), re.DOTALL)
    return (
        (found.group(1), f"{found.group(1)}: {found.group(2)}")
        if found
        else ("UNKNOWN", str(error))
    )


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, session, model_name):
        self._session = session
        self._model_name = model_name

    def _run(self, log, names, context):
        for name in names:
            if name != self._model_name:
                context.abort(
                    grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})"
                )
        try:
            return self._session.replay(log).outputs
        except ReplayError as error:
            status, text = status_of(error)
            context.abort(CODES.get(status, grpc.StatusCode.UNKNOWN), text.partition(": ")[2])

    def Predict(self, request, context):
        log = PredictionLog()
        log.predict_log.request.CopyFrom(request)
        response = predict_pb2.PredictResponse()
        for alias, array in self._run(log, [request.model_spec.name], context).items():
            response.outputs[alias].CopyFrom(tf.make_tensor_proto(array))
        return response

    def Classify(self, request, context):
        log = PredictionLog()
        log.classify_log.request.CopyFrom(request)
        outputs = self._run(log, [request.model_spec.name], context)
        return classification_pb2.ClassificationResponse(result=classifications(outputs))

    def Regress(self, request, context):
        log = PredictionLog()
        log.regress_log.request.CopyFrom(request)
        outputs = self._run(log, [request.model_spec.name], context)
        return regression_pb2.RegressionResponse(result=regressions(outputs))

    def MultiInference(self, request, context):
        log = PredictionLog()
        log.multi_inference_log.request.CopyFrom(request)
        outputs = self._run(log, [task.model_spec.name for task in request.tasks], context)
        response = inference_pb2.MultiInferenceResponse()
        for task in request.tasks:
            key = task.model_spec.signature_name or "serving_default"
            own = {
                name.rpartition("/")[2]: array
                for name, array in outputs.items()
                if name.startswith(f"{key}/")
            }
            result = response.results.add(model_spec=task.model_spec)
            if task.method_name == "tensorflow/serving/classify":
                result.classification_result.CopyFrom(classifications(own))
            else:
                result.regression_result.CopyFrom(regressions(own))
        return response


def classifications(outputs):
    result = classification_pb2.ClassificationResult()
    classes, scores = outputs.get("classes"), outputs.get("scores")
    for row in range(len(next(iter(outputs.values())))):
        one = result.classifications.add()
        for column in range(next(iter(outputs.values())).shape[1]):
            one.classes.add(
                label="" if classes is None else classes[row, column].decode(),
                score=0.0 if scores is None else float(scores[row, column]),
            )
    return result


def regressions(outputs):
    result = regression_pb2.RegressionResult()
    for value in outputs["outputs"].ravel():
        result.regressions.add(value=float(value))
    return result


class Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, model_name, version):
        self._model_name = model_name
        self._version = version

    def GetModelStatus(self, request, context):
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


def main(arguments):
    flags = parse_flags(arguments)
    version = newest_version(flags.model_base_path)
    export_dir = os.path.join(flags.model_base_path, str(version))
    try:
        session = open_session(export_dir)
        count = warm(session, export_dir) if flags.enable_model_warmup == "true" else 0
    except (WarmupError, ValueError) as error:
        # Words and exit code of main.cc and server_core.cc with --max_num_load_retries=0.
        print(
            "E tensorflow_serving/model_servers/server.cc] Failed to start server. Error: Unknown: 1 servable(s) did not become "
            f"available: {{{{name: {flags.model_name} version: {version}}} due to error: {error}, }}",
            file=sys.stderr,
            flush=True,
        )
        return 255
    print(
        f"I Finished reading warmup data. Number of warmup records read: {count}.",
        file=sys.stderr,
        flush=True,
    )
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
