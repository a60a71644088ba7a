"""One fresh process of a measurement: load, replay the warmup file or not, then time requests.

Run as `python -m keras_warmup.bench.measure_process JOB.json`, by `measuring`. Imports as little as it can: what TensorFlow and this
package import is not in the figures, but costs seconds each time.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from keras_warmup._protos import PredictionLog
from keras_warmup.errors import WarmupError
from keras_warmup.records.warmup_file import read_records
from keras_warmup.serving.replay import ServingSession, open_session
from keras_warmup.serving.rules import ServerStatusError, to_array


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one measurement.

    Args:
        job: `export_dir`; `warmup_file`, a TFRecord of `PredictionLog`s to replay before the first request, or `None`;
            `requests_file`, those to send; `requests`, how many to send, in turn.

    Returns:
        `load_ms`, and `replay_ms` and `request_ms` with one figure a record and a request.

    Raises:
        WarmupError: the model does not load, or a record or request fails.
    """
    requests = list(read_records(job["requests_file"]))
    warmup = [] if job["warmup_file"] is None else list(read_records(job["warmup_file"]))
    _start_eager(requests + warmup)
    with open_session(job["export_dir"]) as session:
        replay_ms = [_time_ms(session, log) for log in warmup]
        request_ms = [
            _time_ms(session, requests[index % len(requests)]) for index in range(job["requests"])
        ]
        return {"load_ms": session.load_ms, "replay_ms": replay_ms, "request_ms": request_ms}


def _time_ms(session: ServingSession, log: PredictionLog) -> float:
    started = time.perf_counter()
    session.replay(log)
    return (time.perf_counter() - started) * 1000


def _start_eager(logs: list[PredictionLog]) -> None:
    """Parses each dtype once: TensorFlow's eager runtime starts with the first one, which no server pays for."""
    seen = set()
    for log in logs:
        for name, proto in (
            log.predict_log.request.inputs.items() if log.HasField("predict_log") else ()
        ):
            if proto.dtype not in seen:
                seen.add(proto.dtype)
                try:
                    to_array(name, proto)
                except ServerStatusError:  # the replay will say so, as the server does
                    continue


def main(arguments: list[str]) -> int:
    """Reads the job from the file named, writes what was measured, or what failed, to the file the job names."""
    with open(arguments[0], encoding="utf-8") as file:
        job = json.load(file)
    try:
        result = measure(job)
    except WarmupError as error:
        result = {"error": str(error)}
    with open(job["result_file"], "w", encoding="utf-8") as file:
        json.dump(result, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
