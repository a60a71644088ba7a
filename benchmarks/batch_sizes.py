"""Measures the first request of several batch sizes, with one record and with `"auto"`.

    python benchmarks/batch_sizes.py

Convolutions and attention stay slow at other batch sizes than the warmed ones.
`WarmupOptions(batch_sizes="auto")` warms 1, 4, 16, ... up to the training batch. Each figure is the
median of fresh processes that take turns; a size is warm if its first request takes at most 1.5
times the steady median, or is within 3 ms of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from first_request_report import is_warm
from zoo import ZOO, Specimen

import keras_warmup as kw
from keras_warmup.bench.probes import Probe, plan_probes
from keras_warmup.bench.processes import ProcessEngine, RunTiming
from keras_warmup.bench.report import render_ms
from keras_warmup.data.sources import read_batches
from keras_warmup.records.warmup_file import warmup_path
from keras_warmup.savedmodel.signatures import read_meta_graph

EXAMPLE = """example:
  python benchmarks/batch_sizes.py --models transformer --processes 3
"""
TRAINING_BATCH = 32
SIZES = (1, 4, 16, 32)
FILES: dict[str, dict[str, str]] = {
    "one record": {},
    'batch_sizes="auto"': {"batch_sizes": "auto"},
}


def measure(specimen: Specimen, directory: str, processes: int, requests: int) -> list[str]:
    """Returns a row of the table for each warmup file of a model."""
    keras.utils.set_random_seed(0)
    model = specimen.build()
    sizes: dict[str, list[int | None]] = {}
    runs: dict[tuple[str, int], list[RunTiming]] = {}
    probes: dict[str, list[Probe]] = {}
    for index, (name, options) in enumerate(FILES.items()):
        path = os.path.join(directory, specimen.name, str(index + 1))
        data = specimen.rows(TRAINING_BATCH, 1)
        report = kw.export_with_warmup(model, path, data=data, warmup=options)
        sizes[name] = [record.batch_size for record in report.records]
        other_rows = list(read_batches(specimen.rows(2 * TRAINING_BATCH, 2), batch_size=64))
        found, _ = plan_probes(
            read_meta_graph(path),
            list(kw.read_records(path)),
            batches=other_rows,
            batch_sizes=SIZES,
        )
        probes[name] = [
            one
            for one in found
            if one.signature_key == "serving_default" and one.batch_size in SIZES
        ]
    for _ in range(processes):
        for index, name in enumerate(FILES):
            path = os.path.join(directory, specimen.name, str(index + 1))
            engine = ProcessEngine(path)
            for probe in probes[name]:
                assert probe.batch_size is not None
                timing = engine.time_run(probe.logs, requests + 1, warmup_path(path))
                runs.setdefault((name, probe.batch_size), []).append(timing)
    return [row_of(specimen.name, name, sizes[name], runs) for name in FILES]


def row_of(
    model: str,
    name: str,
    sizes: Sequence[int | None],
    runs: Mapping[tuple[str, int], Sequence[RunTiming]],
) -> str:
    """Renders the row of one warmup file."""
    cells = []
    for size in SIZES:
        timings = runs[name, size]
        first = statistics.median(one.request_ms[0] for one in timings)
        steady = statistics.median(ms for one in timings for ms in one.request_ms[1:])
        shown = f"{render_ms(first)} / {render_ms(steady)}"
        cells.append(f"**{shown}**" if is_warm(first, steady) else shown)
    added = statistics.median(sum(one.replay_ms) for size in SIZES for one in runs[name, size])
    records = ", ".join(map(str, sizes))
    return f"| {model} | {name} | {records} | {' | '.join(cells)} | {render_ms(added)} |"


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [specimen.name for specimen in ZOO]
    parser.add_argument(
        "--models", nargs="+", choices=names, default=["transformer", "MobileNetV2"], metavar="NAME"
    )
    parser.add_argument("--processes", type=int, default=5, metavar="N")
    parser.add_argument("--requests", type=int, default=20, metavar="N")
    arguments = parser.parse_args()
    sizes = " | ".join(f"batch {size}" for size in SIZES)
    print("First request / steady median, ms (bold: warm).\n")
    print(f"| model | warmup file | records | {sizes} | load added, ms |")
    print(f"|---|---|---|{'--:|' * (len(SIZES) + 1)}", flush=True)
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for specimen in ZOO:
            if specimen.name in arguments.models:
                for row in measure(specimen, directory, arguments.processes, arguments.requests):
                    print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
