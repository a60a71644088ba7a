"""Measures the time and memory of building and writing large records, compared with the plain way.

Each round writes the same records in each way, in turns; the output holds the median ratio of the
rounds. Memory is the growth of the resident set at its peak, in multiples of one record; each way
is measured in a process of its own. The files lie in memory where the system has a place for that,
since the time of a disk does not depend on the code; `--directory` chooses another place.

With `--against`, the package of another checkout is measured in turns with this one.
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
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from checkouts import add_arguments, run_in_turns

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.memory import PeakMemory
from keras_warmup.binding.bind import BoundBatch
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import encode_log
from keras_warmup.records.warmup_file import read_records, write_records

EXAMPLE = """example:
  python benchmarks/record_writing.py
  python benchmarks/record_writing.py --records 5 --rounds 3 --json
  git worktree add ../before HEAD~10 && python benchmarks/record_writing.py --against ../before
"""
IN_MEMORY = "/dev/shm"
SHAPE = (32, 224, 224, 3)


def write_plainly(path: str, x: np.ndarray, records: int) -> None:
    """Writes records as the tutorials do."""
    with tf.io.TFRecordWriter(path) as writer:
        for _ in range(records):
            log = PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = "model"
            request.model_spec.signature_name = "serving_default"
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
            writer.write(log.SerializeToString())


def write_ours(path: str, x: np.ndarray, records: int) -> None:
    """Writes records as an export does, where one batch has all rows of a record."""
    _write_rows(path, [x], [(0, row) for row in range(len(x))], records)


def write_scattered(path: str, x: np.ndarray, records: int) -> None:
    """Writes records whose rows alternate between two batches, so that none lie together."""
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
    """Times each way; returns its name -> seconds of each round."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    # The first round is discarded: files, allocator and imports are then the same for all ways.
    for turn in range(-1, arguments.rounds):
        for name in list(WAYS) if turn % 2 == 0 else reversed(WAYS):
            path = os.path.join(directory, name)
            # No way should wait for the disk to write, or free, the file of another one.
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
    """Measures the peak of this process's memory, in multiples of one record; Linux only."""
    # What the first write of a process loads is not part of a record.
    WAYS[name](os.path.join(directory, name), x[:1], 1)
    memory = PeakMemory()
    WAYS[name](os.path.join(directory, name), x, records)
    return (memory.growth_bytes() or 0) / x.nbytes


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures seconds, ratios to the plain way, and peak memory in records, by way."""
    x = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="keras-warmup-", dir=arguments.directory) as directory:
        seconds = measure_seconds(directory, x, arguments)
        # The ratios are meaningful only where all ways write the same.
        written = [next(read_records(os.path.join(directory, name))) for name in WAYS]
        if any(log != written[0] for log in written):
            raise SystemExit("The ways wrote different records.")
    peaks = {}
    if os.path.exists("/proc/self/clear_refs"):
        for name in WAYS:
            command = [sys.executable, __file__, "--peak", name]
            command += ["--records", str(arguments.records), "--directory", arguments.directory]
            peaks[name] = float(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
    ratios = {
        name: statistics.median(
            plain / ours for plain, ours in zip(seconds["plain"], seconds[name], strict=True)
        )
        for name in OURS
    }
    return {"seconds": seconds, "ratios": ratios, "peak_records": peaks}


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measures this package and that of another checkout in turns.

    Returns:
        Way -> median seconds here / there, the medians of both, and the peaks of memory, in
        records, where the system tells them.
    """
    options = ["--records", str(arguments.records), "--rounds", str(arguments.rounds)]
    options += ["--directory", arguments.directory]
    here, there = run_in_turns(__file__, options, against=arguments.against, turns=arguments.turns)
    compared = {}
    for name in WAYS:
        after, before = (
            statistics.median(taken for one in printed for taken in one["seconds"][name])
            for printed in (here, there)
        )
        compared[name] = {"ratio": after / before, "here_s": after, "there_s": before}
        for where, printed in (("here", here), ("there", there)):
            peaks = [one["peak_records"][name] for one in printed if one["peak_records"]]
            if peaks:
                compared[name][f"{where}_peak_records"] = statistics.median(peaks)
    return compared


def main() -> int:
    """Measures the ways and prints the figures; returns the exit code."""
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
    add_arguments(parser)
    # For the processes that measure memory.
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        x = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
        with tempfile.TemporaryDirectory(prefix="keras-warmup-", dir=arguments.directory) as path:
            print(peak_of(arguments.peak, path, x, arguments.records))
        return 0
    if arguments.against:
        compared = compare(arguments)
        if arguments.json:
            print(json.dumps(compared, indent=1))
            return 0
        for name, figures in compared.items():
            peak = ""
            if "here_peak_records" in figures and "there_peak_records" in figures:
                peak = (
                    f"; peak memory {figures['here_peak_records']:.2f} and "
                    f"{figures['there_peak_records']:.2f} x one record"
                )
            print(
                f"{name}: here / there {figures['ratio']:.2f} x "
                f"({figures['here_s']:.3f} s / {figures['there_s']:.3f} s){peak}"
            )
        return 0
    measured = measure(arguments)
    if arguments.json:
        print(json.dumps(measured, indent=1))
        return 0
    shape = "x".join(map(str, SHAPE))
    print(
        f"{arguments.records} records of {shape} float32 in {arguments.directory}, "
        f"median of {arguments.rounds} rounds:"
    )
    peaks, ratios = measured["peak_records"], measured["ratios"]
    for name, taken in measured["seconds"].items():
        peak = f", peak memory {peaks[name]:.2f} x one record" if peaks else ""
        faster = f", {ratios[name]:.2f} x as fast as plain" if name in ratios else ""
        print(f"  {name:<14} {statistics.median(taken):.3f} s{peak}{faster}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
