"""What building and writing large records costs, beside the plain way, and the memory it takes.

Each round writes the same records in each way, in turns; the median ratio of the rounds is printed. Memory is the growth of
the resident set at its peak, each way in a process of its own, in multiples of one record. The files lie in memory where the
system has such a place, since a disk takes its own time whoever writes; `--directory` chooses another.
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
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.binding.bind import BoundBatch
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import encode_log
from keras_warmup.records.warmup_file import read_records, write_records

EXAMPLE = """example:
  python benchmarks/record_writing.py
  python benchmarks/record_writing.py --records 5 --rounds 3 --json
"""
IN_MEMORY = "/dev/shm"
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
    """As an export of ours does it, where one batch has all rows of a record."""
    _write_rows(path, [x], [(0, row) for row in range(len(x))], records)


def write_scattered(path: str, x: np.ndarray, records: int) -> None:
    """The same where no two rows lie together: every other one is of another batch."""
    _write_rows(path, [x, x], [(row % 2, row) for row in range(len(x))], records)


def _write_rows(
    path: str, batches: Sequence[np.ndarray], picks: Sequence[tuple[int, int]], records: int
) -> None:
    pool = tuple(BoundBatch({"x": x}, None, len(x), frozenset({"x"}), "data") for x in batches)
    request = PlannedRequest(
        "serving_default", "predict", pool, tuple(picks), (), ("serving_default",)
    )
    write_records(
        path,
        (encode_log(request, "model") for _ in range(records)),
        max_records=1000,
        max_bytes=2**40,
    )


OURS = ("keras_warmup", "rows scattered")
WAYS: dict[str, Callable[[str, np.ndarray, int], None]] = {
    "plain": write_plainly,
    **dict(zip(OURS, (write_ours, write_scattered), strict=True)),
}


def measure_seconds(
    directory: str, x: np.ndarray, arguments: argparse.Namespace
) -> dict[str, list[float]]:
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
    parser.add_argument(
        "--directory",
        default=IN_MEMORY if os.path.isdir(IN_MEMORY) else tempfile.gettempdir(),
        help="where to write the files (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--peak", choices=WAYS, help=argparse.SUPPRESS
    )  # what a process of its own is asked for
    arguments = parser.parse_args()
    x = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="keras-warmup-", dir=arguments.directory) as directory:
        if arguments.peak:
            print(peak_of(arguments.peak, directory, x, arguments.records))
            return 0
        seconds = measure_seconds(directory, x, arguments)
        # A figure for the same thing only.
        written = [next(read_records(os.path.join(directory, name))) for name in WAYS]
        if any(log != written[0] for log in written):
            raise SystemExit("The ways wrote different records.")
    peaks = {}
    if os.path.exists("/proc/self/clear_refs"):
        for name in WAYS:
            command = [
                sys.executable,
                __file__,
                "--peak",
                name,
                "--records",
                str(arguments.records),
            ]
            command += ["--directory", arguments.directory]
            peaks[name] = float(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
    ratios = {
        name: statistics.median(
            plain / ours for plain, ours in zip(seconds["plain"], seconds[name], strict=True)
        )
        for name in OURS
    }
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    if arguments.json:
        print(json.dumps({"seconds": seconds, "ratios": ratios, "peak_records": peaks}, indent=1))
        return 0
    shape = "x".join(map(str, SHAPE))
    print(
        f"{arguments.records} records of {shape} float32 in {arguments.directory}, median of {arguments.rounds} rounds:"
    )
    for name, taken in medians.items():
        peak = f", peak memory {peaks[name]:.2f} x one record" if peaks else ""
        faster = f", {ratios[name]:.2f} x as fast as plain" if name in ratios else ""
        print(f"  {name:<14} {taken:.3f} s{peak}{faster}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
