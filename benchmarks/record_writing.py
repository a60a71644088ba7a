"""What building and writing large records costs, beside the plain way, and the memory it takes.

Each round writes the same records both ways, in turns; the median ratio of the rounds is printed. Memory is the growth of
the resident set at its peak, each way in a process of its own, in multiples of one record.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.binding import BoundBatch
from keras_warmup.planned_request import PlannedRequest
from keras_warmup.records import read_records, write_records
from keras_warmup.requests import encode_log

EXAMPLE = """example:
  python benchmarks/record_writing.py
  python benchmarks/record_writing.py --records 5 --rounds 3 --json
"""
SHAPE = (32, 224, 224, 3)


def write_plainly(path: str, x: np.ndarray, records: int) -> None:
    """As the tutorials do it."""
    with tf.io.TFRecordWriter(path) as writer:
        for _ in range(records):
            log = PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = "model"
            request.model_spec.signature_name = "serving_default"
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
            writer.write(log.SerializeToString())


def write_ours(path: str, x: np.ndarray, records: int) -> None:
    """As an export of ours does it."""
    bound = BoundBatch({"x": x}, None, len(x), frozenset({"x"}), "data")
    picks = tuple((0, row) for row in range(len(x)))
    request = PlannedRequest("serving_default", "predict", (bound,), picks, (), ("serving_default",))
    write_records(path, (encode_log(request, "model") for _ in range(records)), max_records=1000, max_bytes=2**40)


WAYS: dict[str, Callable[[str, np.ndarray, int], None]] = {"plain": write_plainly, "keras_warmup": write_ours}


def measure_seconds(directory: str, x: np.ndarray, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round, each way."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    # One round before: files, allocator and imports are then alike for both.
    for turn in range(-1, arguments.rounds):
        for name in list(WAYS) if turn % 2 == 0 else reversed(WAYS):
            path = os.path.join(directory, name)
            # Neither way must wait until the disk has taken, or freed, what another one wrote.
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
            os.sync()
            started = time.perf_counter()
            WAYS[name](path, x, arguments.records)
            taken = time.perf_counter() - started
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def peak_of(name: str, directory: str, x: np.ndarray, records: int) -> float:
    """Growth of this process' resident set at its peak, in multiples of one record; Linux only."""
    # Whatever a first write loads is no part of a record.
    WAYS[name](os.path.join(directory, name), x[:1], 1)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the peak begins anew (proc(5))
    before = _status_bytes("VmRSS")
    WAYS[name](os.path.join(directory, name), x, records)
    return (_status_bytes("VmHWM") - before) / x.nbytes


def _status_bytes(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))


def main() -> int:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=20, help="records of a file (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)  # what a process of its own is asked for
    arguments = parser.parse_args()
    x = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="keras-warmup-") as directory:
        if arguments.peak:
            print(peak_of(arguments.peak, directory, x, arguments.records))
            return 0
        seconds = measure_seconds(directory, x, arguments)
        # A figure for the same thing only.
        plain, ours = (list(read_records(os.path.join(directory, name))) for name in WAYS)
        if plain != ours:
            raise SystemExit("The two ways wrote different records.")
    peaks = {}
    if os.path.exists("/proc/self/clear_refs"):
        for name in WAYS:
            command = [sys.executable, __file__, "--peak", name, "--records", str(arguments.records)]
            peaks[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ratio = statistics.median(
        plain / ours for plain, ours in zip(seconds["plain"], seconds["keras_warmup"], strict=True)
    )
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    if arguments.json:
        print(json.dumps({"seconds": seconds, "ratio": ratio, "peak_records": peaks}, indent=1))
        return 0
    print(f"{arguments.records} records of {'x'.join(map(str, SHAPE))} float32, median of {arguments.rounds} rounds:")
    for name, taken in medians.items():
        peak = f", peak memory {peaks[name]:.2f} x one record" if peaks else ""
        print(f"  {name:<13} {taken:.3f} s{peak}")
    print(f"  keras_warmup is {ratio:.2f} x as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
