"""Measures how long exports of a model take until they are ready to serve, and what they take up.

    python benchmarks/time_to_ready.py --output benchmarks/results

Each model is exported by `model.export`, by `export_with_warmup`, and by `export_with_warmup` with
`freeze=True`, for requests of 4 rows to `serving_default`. That of `model.export` gets the warmup
file of the second one, which has one record. The exports are loaded in turns, in fresh processes,
into a C++ Session as in a server; figures are medians, and ratios are medians over the rounds.

Writes time_to_ready.json, time_to_ready.png and time_to_ready.md to the output directory; with
`--readme` also a short table into the README and the full one into docs/benchmarks.md beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from time_to_ready_report import (
    DEFAULT,
    FROZEN,
    MEASURED,
    PLAIN,
    claims_of,
    read_results,
    table_of,
    update_tables,
    write_results,
)
from zoo import CLIENT_BATCH, READY, Specimen, batches_of

import keras_warmup as kw
from keras_warmup.bench.benchmark import disk_bytes
from keras_warmup.bench.native_session import c_api
from keras_warmup.bench.plot import new_figure
from keras_warmup.bench.probes import Probe, plan_probes
from keras_warmup.bench.processes import ProcessEngine, RunTiming, Timings
from keras_warmup.errors import OptionsError
from keras_warmup.records.warmup_file import read_all_records, warmup_path
from keras_warmup.savedmodel.signatures import read_meta_graph

EXAMPLE = """example:
  python benchmarks/time_to_ready.py --output benchmarks/results --readme README.md
  python benchmarks/time_to_ready.py --models MLP LSTM --rounds 3 --output /tmp/ready --json
"""
RESULTS = "benchmarks/results"
WAYS: dict[str, dict[str, Any] | None] = {PLAIN: None, DEFAULT: {}, FROZEN: {"freeze": True}}


@dataclasses.dataclass
class Export:
    """An export of a model, and the runs of it.

    Attributes:
        name: its name in tables.
        export_dir: the SavedModel.
        warmup_file: the warmup file that is replayed when it is loaded.
        runs: a run for each round.
    """

    name: str
    export_dir: str
    warmup_file: str
    runs: list[RunTiming] = dataclasses.field(default_factory=list)

    def figure(self, aspect: str) -> list[float]:
        """Returns a figure of each round, such as `ready_ms`."""
        figures: dict[str, Callable[[RunTiming], float]] = {
            "memory_bytes": lambda run: run.memory_bytes or 0,
            "peak_bytes": lambda run: run.peak_bytes or 0,
            "load_ms": lambda run: run.load_ms,
            "warmup_ms": lambda run: sum(run.replay_ms),
            "ready_ms": lambda run: run.load_ms + sum(run.replay_ms),
            "first_ms": lambda run: run.request_ms[0],
            "steady_ms": lambda run: Timings(run.request_ms[1:]).median,
        }
        if aspect == "disk_bytes":
            return [disk_bytes(self.export_dir)] * len(self.runs)
        return [figures[aspect](run) for run in self.runs]


def measure(specimen: Specimen, directory: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Exports a model in each way and measures the exports; returns figures, ready for JSON."""
    exports = export_in_each_way(specimen, directory)
    probe = probe_of(specimen, exports[1].export_dir)
    for turn in range(arguments.rounds):
        first = turn % len(exports)
        for export in [*exports[first:], *exports[:first]]:
            # The file cache holds the files of all exports.
            run = ProcessEngine(export.export_dir).time_run(
                probe.logs, arguments.requests + 1, export.warmup_file
            )
            export.runs.append(run)
        print(
            f"{specimen.name}: round {turn + 1} of {arguments.rounds}", file=sys.stderr, flush=True
        )
    return summary_of(specimen, exports)


def export_in_each_way(specimen: Specimen, directory: str) -> list[Export]:
    """Builds a model and exports it, first as Keras does and second with the default options."""
    keras.utils.set_random_seed(0)
    model = specimen.build()
    data = specimen.rows(2 * CLIENT_BATCH, 1)
    exports = []
    for index, (name, options) in enumerate(WAYS.items()):
        path = os.path.join(directory, str(index), "1")
        if options is None:
            specimen.export(model, path)
        else:
            warmup = {**specimen.warmup, "batch_sizes": [CLIENT_BATCH], **options}
            report = kw.export_with_warmup(model, path, data=data, warmup=warmup)
            if name == DEFAULT and len(report.records) != 1:
                raise SystemExit(f"{specimen.name}: expected one record, got {report.records}.")
        exports.append(Export(name, path, warmup_path(path)))
    exports[0].warmup_file = exports[1].warmup_file
    keras.utils.clear_session(free_memory=True)
    gc.collect()
    return exports


def probe_of(specimen: Specimen, export_dir: str) -> Probe:
    """Plans requests like the record in the warmup file, with rows that are not in it."""
    probes, notes = plan_probes(
        read_meta_graph(export_dir),
        read_all_records(warmup_path(export_dir)),
        batches=batches_of(specimen.rows(2 * CLIENT_BATCH, 2)),
    )
    for probe in probes:
        if probe.in_file and probe.rows == "data" and probe.batch_size == CLIENT_BATCH:
            return probe
    raise SystemExit(f"{specimen.name}: no request can be made: {notes}")


def summary_of(specimen: Specimen, exports: Sequence[Export]) -> dict[str, Any]:
    """Sums up the figures of one model, ready for JSON."""
    plain = exports[0]
    rows = []
    for export in exports:
        figures = {aspect: Timings(tuple(export.figure(aspect))) for aspect in MEASURED}
        ratios = {
            aspect: Timings(
                tuple(
                    mine / its if its else 1.0
                    for mine, its in zip(export.figure(aspect), plain.figure(aspect), strict=True)
                )
            ).median
            for aspect in MEASURED
        }
        rows.append(
            {
                "export": export.name,
                "median": {aspect: figure.median for aspect, figure in figures.items()},
                "range": {aspect: list(figure.range) for aspect, figure in figures.items()},
                "ratio": ratios,
            }
        )
    variables = disk_bytes(os.path.join(plain.export_dir, "variables"))
    return {
        "model": specimen.name,
        "weights_share": variables / disk_bytes(plain.export_dir),
        "exports": rows,
    }


def main() -> int:
    """Measures the models and writes the results; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [specimen.name for specimen in READY]
    parser.add_argument(
        "--output", default=RESULTS, help="directory to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names)
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="fresh processes for each export (default: 5)"
    )
    parser.add_argument(
        "--requests", type=int, default=50, help="requests after the first one (default: 50)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument(
        "--readme",
        metavar="FILE",
        help="also write the results into this README, and docs/benchmarks.md beside it",
    )
    parser.add_argument(
        "--redraw",
        action="store_true",
        help="measure nothing: render the results in --output again",
    )
    arguments = parser.parse_args()
    if set(arguments.models) != set(names) and (arguments.readme or arguments.output == RESULTS):
        parser.error(
            "--models measures some of the models: give another --output, and no --readme."
        )
    if c_api() is None and not arguments.redraw:
        parser.error("The installed TensorFlow does not export its C API.")
    try:
        new_figure(1)  # Fails without matplotlib, before the first model is measured.
    except OptionsError as error:
        parser.error(str(error))
    warnings.simplefilter("ignore")
    os.makedirs(arguments.output, exist_ok=True)
    if arguments.redraw:
        found = read_results(arguments.output)
        results = found["results"]
        write_results(results, found["about"], arguments.output)
    else:
        results = run_models(arguments)
    if arguments.readme:
        update_tables(results, arguments.readme)
    if arguments.json:
        print(json.dumps({"results": results, "claims": claims_of(results)}, indent=1))
    else:
        print(table_of(results) + "\n" + "\n".join(claims_of(results)))
    return 0


def run_models(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one model after the other; returns the figures of all."""
    started = time.perf_counter()
    results: list[dict[str, Any]] = []
    for specimen in READY:
        if specimen.name in arguments.models:
            with tempfile.TemporaryDirectory(prefix="keras-warmup-ready-") as directory:
                results.append(measure(specimen, directory, arguments))
            # After each model, since a run takes long and may be interrupted.
            about = about_run(arguments, time.perf_counter() - started)
            write_results(results, about, arguments.output)
    return results


def about_run(arguments: argparse.Namespace, seconds: float) -> Mapping[str, Any]:
    """Returns the machine, versions and settings of a run."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "rounds": arguments.rounds,
        "requests": arguments.requests,
        "client_batch_size": CLIENT_BATCH,
        "seconds": round(seconds),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
