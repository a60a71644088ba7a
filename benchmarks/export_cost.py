"""Measures what an export with a warmup file costs, compared with the work it cannot avoid.

Each round times, in turns and in one process: `model.export`; loading that SavedModel into a
Session, replaying the file's records once, and calling the model on their rows;
`export_with_warmup`; and `export_with_warmup` with `verify=False`. The output holds medians, and
the median over the rounds of

- verified: `export_with_warmup` / (export + load + replay + call). Load and replay are measured as
  a server does them; the export itself restores variables, and runs what it needs only to compare
  twin signatures, without TensorFlow's graph optimizer,
- unverified: `verify=False` / export.

The time of fsync is measured separately ("fsync", milliseconds of one export) and is in neither
ratio: `model.export` leaves its files to the operating system, and the time of a shared disk varies
with its other users.

With `--against`, the package of another checkout is measured in turns with this one, and the times
of its exports are compared with those of this one.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from checkouts import add_arguments, run_in_turns
from stopwatch import Stopwatch
from zoo import ZOO, Specimen

import keras_warmup as kw
from keras_warmup.serving.replay import open_session

EXAMPLE = """example:
  python benchmarks/export_cost.py
  python benchmarks/export_cost.py --models LSTM --rounds 9 --json
  git worktree add ../before HEAD~10
  python benchmarks/export_cost.py --against ../before --seconds 15
"""
# The models that model.export writes; the cost of a custom export_fn is its author's.
MODELS = {specimen.name: specimen for specimen in ZOO if specimen.export_fn is None}
# Upper bound of the rounds of one model, however short they are.
MOST_ROUNDS = 41
PLAIN, LOAD, REPLAY, CALL = "export", "load", "replay", "call"
WHOLE, UNVERIFIED = "export_with_warmup", "verify=False"
FSYNC = "fsync"


def measure(specimen: Specimen, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Times the exports of one model.

    Args:
        specimen: the model.
        rounds: least number of rounds.
        seconds: time to fill with more rounds. Noise of the machine is larger compared with a quick
            export, which gets more rounds.

    Returns:
        What was timed -> seconds of each round.
    """
    keras.utils.set_random_seed(0)
    model = specimen.build()
    data = specimen.rows(64, 1)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="keras-warmup-") as directory:
        plain, whole = os.path.join(directory, "plain"), os.path.join(directory, "whole", "1")

        def export_plainly() -> None:
            with watch.timing(PLAIN):
                model.export(plain, verbose=False)

        def export_warm(name: str, **options: bool) -> None:
            warmup = specimen.options(**options)
            with watch.timing(name):
                kw.export_with_warmup(
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
        # One call of the model for each signature, whichever outputs its records ask for.
        unfiltered = [
            log.predict_log.request for log in records if not log.predict_log.request.output_filter
        ]
        rows = [
            tf.make_ndarray(tensor) for request in unfiltered for tensor in request.inputs.values()
        ]
        # Two rounds are discarded: the first loads what a process loads once, the second shows how
        # many rounds fit into the time.
        turn, began = -2, 0.0
        while turn < rounds:
            if turn == 0:
                rounds = max(
                    rounds, min(MOST_ROUNDS, round(seconds / (time.perf_counter() - began)))
                )
                watch.clear()
            began = time.perf_counter()
            steps: list[Callable[[], object]] = [export_plainly, run_parts]
            steps.insert(2 * (turn % 2), lambda: export_warm(WHOLE))
            steps.insert(3 * (turn % 2), lambda: export_warm(UNVERIFIED, verify=False))
            for step in steps:
                # Graphs are garbage in cycles: no step should pay for collecting those of another.
                gc.collect()
                step()
            turn += 1
    return {**watch.seconds, FSYNC: watch.fsync_seconds[WHOLE]}


def ratios_of(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Computes the ratios, as medians over the rounds."""

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
    names: Sequence[str], rounds: int, seconds: float, *, against: str, turns: int
) -> dict[str, dict[str, float]]:
    """Measures this package and that of another checkout in turns, each in its own processes.

    Returns:
        Model -> median seconds here / there, for each kind of export, and the medians of both.
    """
    compared = {}
    for name in names:
        arguments = ["--models", name, "--rounds", str(rounds), "--seconds", str(seconds)]
        here, there = run_in_turns(__file__, arguments, against=against, turns=turns)
        after, before = _medians_of(name, here), _medians_of(name, there)
        compared[name] = {
            "export_with_warmup": after[WHOLE] / before[WHOLE],
            "verify=False": after[UNVERIFIED] / before[UNVERIFIED],
            "model.export": after[PLAIN] / before[PLAIN],
            "here_s": after[WHOLE],
            "there_s": before[WHOLE],
            "fsync_ms": after[FSYNC] * 1000,
        }
        ratios = compared[name]
        print(
            f"{name}: here / there: export_with_warmup {ratios['export_with_warmup']:.2f} x "
            f"({after[WHOLE]:.3f} s / {before[WHOLE]:.3f} s), "
            f"verify=False {ratios['verify=False']:.2f} x, "
            f"model.export (the same code) {ratios['model.export']:.2f} x; "
            f"fsync here {ratios['fsync_ms']:.1f} ms, not in the ratios",
            file=sys.stderr,
            flush=True,
        )
    return compared


def _medians_of(name: str, printed: Sequence[Any]) -> dict[str, float]:
    """Returns the median seconds of one model over the rounds of all processes."""
    rounds: dict[str, list[float]] = {}
    for results in printed:
        for way, taken in results[name]["seconds"].items():
            rounds.setdefault(way, []).extend(taken)
    return {way: statistics.median(taken) for way, taken in rounds.items()}


def main() -> int:
    """Measures the exports and prints the figures; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(MODELS)
    parser.add_argument(
        "--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names)
    )
    parser.add_argument(
        "--rounds", type=int, default=9, help="least number of rounds of a model (default: 9)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help="time to fill with more rounds of a model (default: 60)",
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.against:
        compared = compare(
            arguments.models,
            arguments.rounds,
            arguments.seconds,
            against=arguments.against,
            turns=arguments.turns,
        )
        if arguments.json:
            print(json.dumps(compared, indent=1))
        return 0
    warnings.simplefilter("ignore")
    results: dict[str, dict[str, Any]] = {}
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
