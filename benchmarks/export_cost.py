"""What an export with a warmup file costs beside what it cannot do without.

Each round times, in turns and in one process: `model.export`; loading that SavedModel into a Session, replaying the file's records
once, and calling the model on their rows; `export_with_warmup`; and the same with `verify=False`. Printed are medians, and the
median over the rounds of

- verified: `export_with_warmup` / (export + load + replay + call), where load and replay are a server's: restoring, and what the
  export runs only to compare twin signatures, it runs without TensorFlow's graph optimizer,
- unverified: `verify=False` / export.
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
from collections.abc import Callable, Iterator, Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from zoo import ZOO, Specimen

import keras_warmup as kw
from keras_warmup.replay import open_session

EXAMPLE = """example:
  python benchmarks/export_cost.py
  python benchmarks/export_cost.py --models LSTM --rounds 9 --json
"""
# Those that model.export writes: a custom export_fn costs what its author makes it cost.
MODELS = {specimen.name: specimen for specimen in ZOO if specimen.export_fn is None}
# As many rounds as fit into this time, up to this many.
SECONDS, MOST_ROUNDS = 60, 41
PLAIN, LOAD, REPLAY, CALL = "export", "load", "replay", "call"
WHOLE, UNVERIFIED = "export_with_warmup", "verify=False"


class Stopwatch:
    """Seconds by name, a value for each round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Times a block."""
        started = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)


def measure(specimen: Specimen, rounds: int) -> dict[str, list[float]]:
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
                return kw.export_with_warmup(model, whole, data=data, warmup=warmup, overwrite=os.path.exists(whole))

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
        plainly = [log.predict_log.request for log in records if not log.predict_log.request.output_filter]
        rows = [tf.make_ndarray(tensor) for request in plainly for tensor in request.inputs.values()]
        # Two rounds before: what is loaded or started once is no part of an export; the second tells how many can follow.
        turn, began = -2, 0.0
        while turn < rounds:
            if turn == 0:
                rounds = max(rounds, min(MOST_ROUNDS, round(SECONDS / (time.perf_counter() - began))))
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
        return statistics.median(taken / total for taken, total in zip(seconds[name], sums, strict=True))

    return {
        "verified": median_ratio(WHOLE, [PLAIN, LOAD, REPLAY, CALL]),
        "unverified": median_ratio(UNVERIFIED, [PLAIN]),
    }


def main() -> int:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(MODELS)
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=9, help="least rounds of a model (default: 9)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {}
    for name in arguments.models:
        seconds = measure(MODELS[name], arguments.rounds)
        results[name] = {"seconds": seconds, "ratios": ratios_of(seconds)}
        if not arguments.json:
            medians = ", ".join(f"{way} {statistics.median(taken):.2f} s" for way, taken in seconds.items())
            ratios = ", ".join(f"{way} {ratio:.2f} x" for way, ratio in results[name]["ratios"].items())
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
