"""Measures time and peak memory of exports at size, beside those of `model.export`.

Each export runs once in a fresh process, which has exported a small model in the same way before:
imports and what a process starts once are in no figure. Memory is the peak of the whole
process, which holds TensorFlow and the built model, and its growth from the built model on (Linux
only). Time is without fsync, which `model.export` leaves to the
operating system; the time of a shared disk varies with its other users. The ways are measured in
turns; the output holds medians, and the median over the rounds of the ratio to `model.export`.

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
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from checkouts import add_arguments, run_in_turns
from documents import update_documents
from stopwatch import Stopwatch
from zoo import READY, SCALE, Specimen

import keras_warmup as kw
from keras_warmup.bench.benchmark import disk_bytes
from keras_warmup.bench.memory import PeakMemory

EXAMPLE = """example:
  python benchmarks/scale.py --readme README.md
  python benchmarks/scale.py --models "embedding, 1 GB" --rounds 3 --json
  git worktree add ../before HEAD~10 && python benchmarks/scale.py --against ../before
"""
MODELS = {specimen.name: specimen for specimen in SCALE}
PLAIN, UNVERIFIED, VERIFIED, FROZEN = "model.export", "unverified", "verified", "frozen"
# Way -> options of export_with_warmup; `None` is model.export, or what the specimen has instead.
WAYS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    UNVERIFIED: {"verify": False},
    VERIFIED: {},
    FROZEN: {"freeze": True},
}
# Rows to bind: enough for the record, which has two.
ROWS = 2
# Largest ratios of a verified export to model.export.
LARGE = ("MobileNetV2", "EfficientNetB4", "transformer, 48 layers", "embedding, 1 GB")
LARGE_SECONDS, SECONDS, MEMORY = 1.05, 1.3, 1.3


def measure_here(specimen: Specimen, way: str) -> dict[str, float]:
    """Measures one export in this process.

    Returns:
        `seconds` without fsync, `fsync_s`, `peak_bytes` of the process, its `growth_bytes` since
        the start, and `disk_bytes`.
    """
    with _exporting(READY[0], way) as export:
        export()
    watch = Stopwatch()
    with _exporting(specimen, way) as export:
        memory = PeakMemory()
        with watch.timing(way):
            path = export()
        peak_bytes, growth_bytes = memory.peak_bytes(), memory.growth_bytes()
        return {
            "seconds": watch.seconds[way][0],
            "fsync_s": watch.fsync_seconds[way][0],
            "peak_bytes": float(peak_bytes or 0),
            "growth_bytes": float(growth_bytes or 0),
            "disk_bytes": float(disk_bytes(path)),
        }


@contextlib.contextmanager
def _exporting(specimen: Specimen, way: str) -> Iterator[Any]:
    """Builds a model; yields a function that exports it and returns the path."""
    keras.utils.set_random_seed(0)
    model = specimen.build()
    data = specimen.rows(ROWS, 1)
    options = WAYS[way]
    with tempfile.TemporaryDirectory(prefix="keras-warmup-scale-") as directory:
        path = os.path.join(directory, "1")

        def export() -> str:
            if options is None:
                specimen.export(model, path)
            else:
                kw.export_with_warmup(
                    model,
                    path,
                    data=data,
                    warmup={**specimen.warmup, **options},
                    export_fn=specimen.export_fn,
                )
            return path

        yield export


def measure(specimen: Specimen, rounds: int) -> dict[str, Any]:
    """Measures each way in fresh processes, in turns.

    Returns:
        `rounds`: way -> figure -> values; `median` and `ratio`, to `model.export`, the same with
        one value.
    """
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in list(WAYS) if turn % 2 == 0 else reversed(WAYS):
            runs[way].append(_in_fresh_process(specimen.name, way))
        print(f"{specimen.name}: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    figures = {
        way: {name: [run[name] for run in done] for name in done[0]} for way, done in runs.items()
    }
    return {
        "rounds": figures,
        "median": {
            way: {name: statistics.median(values) for name, values in own.items()}
            for way, own in figures.items()
        },
        "ratio": {
            way: {
                name: statistics.median(
                    mine / its if its else 1.0
                    for mine, its in zip(values, figures[PLAIN][name], strict=True)
                )
                for name, values in own.items()
                if name != "fsync_s"
            }
            for way, own in figures.items()
        },
    }


def _in_fresh_process(model: str, way: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--models", model, "--way", way],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{model}, {way}: exit code {done.returncode}:\n{done.stderr.strip()}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def table_of(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table: a row for each model and way, each figure with its ratio in parentheses."""
    lines = ["| model | export | time, s | peak, MiB | growth, MiB |", "|---|---|--:|--:|--:|"]
    for name, result in results.items():
        for way, median in result["median"].items():
            ratio = result["ratio"][way]
            cells = [
                _cell(f"{median['seconds']:.2f}", way, ratio["seconds"]),
                _cell(f"{median['peak_bytes'] / 2**20:.0f}", way, ratio["peak_bytes"]),
                _cell(f"{median['growth_bytes'] / 2**20:.0f}", way, ratio["growth_bytes"]),
            ]
            lines.append(f"| {name} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(figure: str, way: str, ratio: float) -> str:
    return figure if way == PLAIN else f"{figure} ({ratio:.2f} x)"


def claims_of(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns whether what the project claims holds in this run, a line each."""
    lines = []
    for name, result in results.items():
        ratio = result["ratio"][VERIFIED]
        bounds = {
            "seconds": LARGE_SECONDS if name in LARGE else SECONDS,
            "peak_bytes": MEMORY,
            "growth_bytes": MEMORY,
        }
        for figure, bound in bounds.items():
            lines.append(
                f"{name}: {VERIFIED} / {PLAIN}: {figure} {ratio[figure]:.2f} x "
                f"(claim: <= {bound}): {'yes' if ratio[figure] <= bound else 'NO'}"
            )
    return lines


def compare(names: Sequence[str], rounds: int, *, against: str, turns: int) -> dict[str, Any]:
    """Measures this package and that of another checkout in turns.

    Returns:
        Model -> way -> figure -> medians `here` and `there`, and their `ratio`.
    """
    compared: dict[str, Any] = {}
    for name in names:
        arguments = ["--models", name, "--rounds", str(rounds)]
        here, there = run_in_turns(__file__, arguments, against=against, turns=turns)
        compared[name] = {}
        for way in WAYS:
            if not all(way in one[name]["rounds"] for one in there):
                continue  # the other checkout does not have it
            compared[name][way] = {
                figure: _here_and_there(
                    *(
                        [value for one in printed for value in one[name]["rounds"][way][figure]]
                        for printed in (here, there)
                    )
                )
                for figure in here[0][name]["rounds"][way]
                if figure in there[0][name]["rounds"][way]
            }
            seconds = compared[name][way]["seconds"]
            print(
                f"{name}, {way}: here / there: {seconds['ratio']:.2f} x ({seconds['here']:.2f} s / "
                f"{seconds['there']:.2f} s)",
                file=sys.stderr,
                flush=True,
            )
    return compared


def _here_and_there(here: Sequence[float], there: Sequence[float]) -> dict[str, float]:
    mine, its = statistics.median(here), statistics.median(there)
    return {"here": mine, "there": its, "ratio": mine / its if its else 1.0}


def main() -> int:
    """Measures the models and prints the figures; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(MODELS)
    parser.add_argument(
        "--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names)
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="fresh processes for each export (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument(
        "--readme",
        metavar="FILE",
        help="also write the table into docs/benchmarks.md beside this README",
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    if set(arguments.models) != set(names) and arguments.readme:
        parser.error("--models measures some of the models: give no --readme.")
    warnings.simplefilter("ignore")
    if arguments.way:
        print(json.dumps(measure_here(MODELS[arguments.models[0]], arguments.way)))
        return 0
    if arguments.against:
        compared = compare(
            arguments.models,
            arguments.rounds,
            against=arguments.against,
            turns=arguments.turns,
        )
        if arguments.json:
            print(json.dumps(compared, indent=1))
        return 0
    results = {name: measure(MODELS[name], arguments.rounds) for name in arguments.models}
    if arguments.readme:
        update_documents(arguments.readme, {}, {"exports at size": table_of(results)})
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        print(table_of(results) + "\n" + "\n".join(claims_of(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
