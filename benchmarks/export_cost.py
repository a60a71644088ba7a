"""What an export with a warmup file costs beside what it cannot do without.

Each round times, in turns and in one process: `model.export`; loading that SavedModel into a Session, replaying the file's records
once, and calling the model on their rows; `export_with_warmup`; and the same with `verify=False`. Printed are medians, and the
median over the rounds of

- verified: `export_with_warmup` / (export + load + replay + call), where load and replay are a server's: restoring, and what the
  export runs only to compare twin signatures, it runs without TensorFlow's graph optimizer,
- unverified: `verify=False` / export.

The time that fsync takes is measured apart ("fsync", milliseconds of one export) and is in neither ratio: `model.export` leaves its
files to the operating system, and a disk shared with others takes what it takes.

With `--against`, the package of another checkout is measured in turns with this one, and what an export takes here is compared with
what it takes there.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from zoo import ZOO, Specimen

import keras_warmup as kw
from keras_warmup.serving.replay import open_session

EXAMPLE = """example:
  python benchmarks/export_cost.py
  python benchmarks/export_cost.py --models LSTM --rounds 9 --json
  git worktree add ../before HEAD~10 && python benchmarks/export_cost.py --against ../before --seconds 15
"""
# Those that model.export writes: a custom export_fn costs what its author makes it cost.
MODELS = {specimen.name: specimen for specimen in ZOO if specimen.export_fn is None}
# Most rounds that fit into the time for a model.
MOST_ROUNDS = 41
PLAIN, LOAD, REPLAY, CALL = "export", "load", "replay", "call"
WHOLE, UNVERIFIED = "export_with_warmup", "verify=False"
FSYNC = "fsync"
# Fresh processes of each checkout that `--against` compares.
TURNS = 3


class Stopwatch:
    """Seconds by name, a value for each round; those of fsync under a name of their own."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._fsync_s = 0.0
        self._fsync = os.fsync
        os.fsync = self._timed_fsync

    def _timed_fsync(self, descriptor: int) -> None:
        started = time.perf_counter()
        self._fsync(descriptor)
        self._fsync_s += time.perf_counter() - started

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Times a block, fsync apart."""
        self._fsync_s = 0.0
        started = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - started - self._fsync_s)
        if name == WHOLE:
            self.seconds.setdefault(FSYNC, []).append(self._fsync_s)


def measure(specimen: Specimen, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each round of a model; of a quick one there are more, as the machine's hiccups are larger beside it."""
    keras.utils.set_random_seed(0)
    model = specimen.build()
    data = specimen.rows(64, 1)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="keras-warmup-") as directory:
        plain, whole = os.path.join(directory, "plain"), os.path.join(directory, "whole", "1")

        def export_plainly() -> None:
            with watch.timing(PLAIN):
                model.export(plain, verbose=False)

        def export_warm(name: str, **options: bool) -> kw.WarmupReport:
            warmup = specimen.options(**options)
            with watch.timing(name):
                return kw.export_with_warmup(
                    model, whole, data=data, warmup=warmup, overwrite=os.path.exists(whole)
                )

        def run_parts() -> None:
            with contextlib.ExitStack() as stack:
                with watch.timing(LOAD):
                    session = stack.enter_context(open_session(plain))
                with watch.timing(REPLAY):
                    for log in records:
                        session.replay(log)
            with watch.timing(CALL):
                for x in rows:
                    model(x, training=False)

        export_warm(WHOLE)
        records = list(kw.read_records(whole))
        # The model is called once for the records of a signature, whichever outputs they ask for.
        plainly = [
            log.predict_log.request for log in records if not log.predict_log.request.output_filter
        ]
        rows = [
            tf.make_ndarray(tensor) for request in plainly for tensor in request.inputs.values()
        ]
        # Two rounds before: what is loaded or started once is no part of an export; the second tells how many can follow.
        turn, began = -2, 0.0
        while turn < rounds:
            if turn == 0:
                rounds = max(
                    rounds, min(MOST_ROUNDS, round(seconds / (time.perf_counter() - began)))
                )
                watch.seconds.clear()
            began = time.perf_counter()
            steps: list[Callable[[], object]] = [export_plainly, run_parts]
            steps.insert(2 * (turn % 2), lambda: export_warm(WHOLE))
            steps.insert(3 * (turn % 2), lambda: export_warm(UNVERIFIED, verify=False))
            for step in steps:
                # The graphs of one export are garbage in cycles: none must pay for collecting another's.
                gc.collect()
                step()
            turn += 1
    return watch.seconds


def ratios_of(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The ratios, medians over the rounds."""

    def median_ratio(name: str, parts: Sequence[str]) -> float:
        sums = [sum(one) for one in zip(*(seconds[part] for part in parts), strict=True)]
        return statistics.median(
            taken / total for taken, total in zip(seconds[name], sums, strict=True)
        )

    return {
        "verified": median_ratio(WHOLE, [PLAIN, LOAD, REPLAY, CALL]),
        "unverified": median_ratio(UNVERIFIED, [PLAIN]),
    }


def compare(
    names: Sequence[str], rounds: int, seconds: float, checkout: str
) -> dict[str, dict[str, float]]:
    """Measures this package and that of another checkout in turns, each in processes of its own.

    Returns:
        Model -> median seconds here / there, for each kind of export, and the medians of both.
    """
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    compared = {}
    for name in names:
        measured: dict[str, dict[str, list[float]]] = {here: {}, os.path.abspath(checkout): {}}
        for turn in range(TURNS):
            for package in list(measured)[:: -1 if turn % 2 else 1]:
                command = [sys.executable, __file__, "--models", name, "--rounds", str(rounds)]
                command += ["--seconds", str(seconds), "--json"]
                environment = {**os.environ, "PYTHONPATH": package}
                printed = subprocess.run(
                    command, env=environment, check=True, capture_output=True
                ).stdout
                for way, taken in json.loads(printed)[name]["seconds"].items():
                    measured[package].setdefault(way, []).extend(taken)
        after, before = (
            {way: statistics.median(taken) for way, taken in seconds.items()}
            for seconds in measured.values()
        )
        compared[name] = {
            "export_with_warmup": after[WHOLE] / before[WHOLE],
            "verify=False": after[UNVERIFIED] / before[UNVERIFIED],
            "model.export": after[PLAIN] / before[PLAIN],
            "here_s": after[WHOLE],
            "there_s": before[WHOLE],
            "fsync_ms": after[FSYNC] * 1000,
        }
        print(
            f"{name}: here / there: export_with_warmup {compared[name]['export_with_warmup']:.2f} x "
            f"({after[WHOLE]:.3f} s / {before[WHOLE]:.3f} s), verify=False {compared[name]['verify=False']:.2f} x, "
            f"model.export (the same code) {compared[name]['model.export']:.2f} x; fsync here "
            f"{compared[name]['fsync_ms']:.1f} ms, not in the ratios",
            file=sys.stderr,
            flush=True,
        )
    return compared


def main() -> int:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(MODELS)
    parser.add_argument(
        "--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names)
    )
    parser.add_argument(
        "--rounds", type=int, default=9, help="least rounds of a model (default: 9)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--seconds", type=float, default=60, help="time for more rounds of a model (default: 60)"
    )
    parser.add_argument(
        "--against", metavar="CHECKOUT", help="compare with the package of another checkout"
    )
    arguments = parser.parse_args()
    if arguments.against:
        compared = compare(arguments.models, arguments.rounds, arguments.seconds, arguments.against)
        if arguments.json:
            print(json.dumps(compared, indent=1))
        return 0
    warnings.simplefilter("ignore")
    results = {}
    for name in arguments.models:
        seconds = measure(MODELS[name], arguments.rounds, arguments.seconds)
        results[name] = {"seconds": seconds, "ratios": ratios_of(seconds)}
        if not arguments.json:
            medians = ", ".join(
                f"{way} {statistics.median(taken) * 1000:.1f} ms"
                if way == FSYNC
                else f"{way} {statistics.median(taken):.2f} s"
                for way, taken in seconds.items()
            )
            ratios = ", ".join(
                f"{way} {ratio:.2f} x" for way, ratio in results[name]["ratios"].items()
            )
            print(f"{name}, {len(seconds[PLAIN])} rounds\n  {medians}\n  {ratios}", flush=True)
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        print(
            f"Medians of the rounds. verified: {WHOLE} / ({PLAIN} + {LOAD} + {REPLAY} + {CALL}); "
            f"unverified: {UNVERIFIED} / {PLAIN}."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
