"""What an export with a warmup file costs beside what it cannot do without.

Each round times, in turns and in one process: `model.export`; loading that SavedModel into a Session, replaying the records once
and calling the model on their rows; `export_with_warmup`; and the same with `verify=False`. Printed are the median over the rounds
of the whole / (export + load + replay + call), and of the unverified / export.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

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
PLAIN, PARTS, WHOLE, UNVERIFIED = "export", "load + replay + call", "export_with_warmup", "verify=False"


def measure(specimen: Specimen, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of a model."""
    keras.utils.set_random_seed(0)
    model = specimen.build()
    data = specimen.rows(64, 1)
    with tempfile.TemporaryDirectory(prefix="keras-warmup-") as directory:
        plain, whole = os.path.join(directory, "plain"), os.path.join(directory, "whole", "1")

        def export_warm(**options: bool) -> None:
            kw.export_with_warmup(
                model, whole, data=data, warmup={**specimen.warmup, **options}, overwrite=os.path.exists(whole)
            )

        def run_parts() -> None:
            # What cannot be saved: the SavedModel is loaded, its records run once, and the model itself on their rows.
            with open_session(plain) as session:
                for log in records:
                    session.replay(log)
            for x in rows:
                model(x, training=False)

        export_warm()
        records = list(kw.read_records(whole))
        rows = [
            tf.make_ndarray(log.predict_log.request.inputs[name])
            for log in records
            for name in log.predict_log.request.inputs
        ]
        ways: dict[str, Callable[[], None]] = {
            PLAIN: lambda: model.export(plain, verbose=False),
            PARTS: run_parts,
            WHOLE: export_warm,
            UNVERIFIED: lambda: export_warm(verify=False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        # One round before: whatever is loaded or started once is no part of an export.
        for turn in range(-1, rounds):
            # `plain` must stand before it is loaded, so the first two keep their order.
            order = [PLAIN, PARTS, WHOLE, UNVERIFIED] if turn % 2 else [UNVERIFIED, WHOLE, PLAIN, PARTS]
            for name in order:
                started = time.perf_counter()
                ways[name]()
                taken = time.perf_counter() - started
                if turn >= 0:
                    seconds[name].append(taken)
    return seconds


def ratios_of(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The two ratios, medians over the rounds."""
    rounds = list(zip(*seconds.values(), strict=True))
    return {
        "verified": statistics.median(whole / (plain + parts) for plain, parts, whole, _ in rounds),
        "unverified": statistics.median(unverified / plain for plain, _, _, unverified in rounds),
    }


def main() -> int:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(MODELS)
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each model (default: 7)")
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
            print(f"{name}: {medians}: {ratios}", flush=True)
    if arguments.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
