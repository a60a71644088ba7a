"""Runs one measurement in a process of its own: loads a model, replays records, times requests.

`ProcessEngine` starts it as `python -m keras_warmup.bench.measure_process JOB.json`. It imports as
little as possible: imports are not part of the figures, but take seconds in each process.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import time
from typing import Any

import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, PredictionLog
from keras_warmup.bench.memory import PeakMemory
from keras_warmup.bench.native_session import NativeSession, c_api
from keras_warmup.errors import WarmupError
from keras_warmup.records.warmup_file import read_records
from keras_warmup.serving.replay import ServingSession, open_session
from keras_warmup.serving.rules import ServerStatusError, to_array


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one measurement.

    Args:
        job: `export_dir`; `meta_graph`, its `MetaGraphDef` without the graph, in hexadecimal;
            `warmup_file`, a TFRecord of `PredictionLog`s to replay before the first request, or
            `None`; `requests_file`, a TFRecord of the requests to send; `requests`, the number of
            requests to send, in turn.

    Returns:
        `load_ms`, `replay_ms` (a figure for each record), `request_ms` (one for each request),
        `memory_bytes` (growth of the process until it is ready), `peak_bytes` and `loader`.

    Raises:
        WarmupError: the model does not load, or a record or request fails.
    """
    requests = list(read_records(job["requests_file"]))
    records = [] if job["warmup_file"] is None else list(read_records(job["warmup_file"]))
    if not _is_native(job["export_dir"]):
        _start_eager_runtime(requests + records)
    memory = PeakMemory()
    with _open_session(job) as session:
        replay_ms = [_time_ms(session, log) for log in records]
        memory_bytes, peak_bytes = memory.growth_bytes(), memory.peak_bytes()
        request_ms = [
            _time_ms(session, requests[index % len(requests)]) for index in range(job["requests"])
        ]
        return {
            "load_ms": session.load_ms,
            "replay_ms": replay_ms,
            "request_ms": request_ms,
            "memory_bytes": memory_bytes,
            "peak_bytes": peak_bytes,
            "loader": "c++" if isinstance(session, NativeSession) else "python",
        }


def _is_native(export_dir: str) -> bool:
    """Returns whether a C++ Session can load the model."""
    return c_api() is not None and tf.io.gfile.exists(os.path.join(export_dir, "saved_model.pb"))


def _open_session(job: dict[str, Any]) -> NativeSession | ServingSession:
    if not _is_native(job["export_dir"]):
        return open_session(job["export_dir"])
    meta_graph = MetaGraphDef.FromString(bytes.fromhex(job["meta_graph"]))
    return NativeSession(job["export_dir"], meta_graph)


def _time_ms(session: NativeSession | ServingSession, log: PredictionLog) -> float:
    started = time.perf_counter()
    session.replay(log)
    return (time.perf_counter() - started) * 1000


def _start_eager_runtime(logs: list[PredictionLog]) -> None:
    """Parses each dtype once.

    The first parsed tensor starts TensorFlow's eager runtime, which a server does not have, so its
    start must not be part of a figure.
    """
    one_of_each_dtype = {
        proto.dtype: (name, proto)
        for log in logs
        for name, proto in log.predict_log.request.inputs.items()
    }
    for name, proto in one_of_each_dtype.values():
        with contextlib.suppress(ServerStatusError):  # the replay will report it
            to_array(name, proto)


def main(arguments: list[str]) -> None:
    """Runs the job in the file named by the argument, and writes its result or its error.

    The job's `result_file` names the file to write.
    """
    job = json.loads(pathlib.Path(arguments[0]).read_text("utf-8"))
    try:
        result = measure(job)
    except WarmupError as error:
        result = {"error": str(error)}
    pathlib.Path(job["result_file"]).write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
