"""Measures whether records of made-up values warm a model as those of real rows do.

    python benchmarks/privacy_modes.py --readme README.md

Each model of the zoo is exported with `privacy="none"`, with `"redacted"` and all its features
named, and with `"synthetic"`. Figures are medians of fresh processes that take turns, for each
signature and output set: the first request, of 4 real rows that no file holds, beside the steady
median. It is warm if it takes at most 1.5 times that, or is within 3 ms of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from documents import update_documents
from first_request import Variant, probes_of, sample
from first_request_report import is_warm
from zoo import CLIENT_BATCH, ZOO, Specimen

import keras_warmup as kw
from keras_warmup.bench.processes import Timings
from keras_warmup.bench.report import render_ms
from keras_warmup.records.warmup_file import warmup_path
from keras_warmup.savedmodel.signatures import read_meta_graph

EXAMPLE = """example:
  python benchmarks/privacy_modes.py --models MLP LSTM --processes 3
"""
MODES = ("none", "redacted", "synthetic")


def measure(specimen: Specimen, directory: str, processes: int, requests: int) -> list[str]:
    """Returns a row of the table for each mode of one model."""
    keras.utils.set_random_seed(0)
    model = specimen.build()
    data = specimen.rows(64, 1)
    variants = []
    for mode in MODES:
        path = os.path.join(directory, specimen.name, mode, "1")
        report = kw.export_with_warmup(
            model,
            path,
            data=data,
            warmup=specimen.options(**options_of(mode, specimen, data)),
            export_fn=specimen.export_fn,
        )
        variants.append(Variant(mode, path, warmup_path(path), len(report.records)))
    probes = probes_of(specimen, read_meta_graph(variants[0].export_dir), variants[0].export_dir)
    for turn in range(processes):
        for index, probe in enumerate(probes):
            for variant in [*variants[turn % 3 :], *variants[: turn % 3]]:
                variant.samples += [[] for _ in range(len(probes) - len(variant.samples))]
                variant.samples[index].append(sample(variant, probe, requests + 1))
    return [row_of(specimen.name, variant) for variant in variants]


def options_of(mode: str, specimen: Specimen, data: Any) -> dict[str, Any]:
    """Returns the options of a mode; `"redacted"` names all features."""
    options: dict[str, Any] = {"privacy": mode}
    if mode == "redacted":
        options["redact"] = list(data) if isinstance(data, Mapping) else ["x"]
    if specimen.sizes_matter:
        options["batch_sizes"] = [CLIENT_BATCH]
    return options


def row_of(model: str, variant: Variant) -> str:
    """Returns a row of the table, in Markdown."""
    firsts = [variant.first(index).median for index in range(len(variant.samples))]
    steadies = [
        Timings(tuple(ms for one in group for ms in one.request_ms[1:])).median
        for group in variant.samples
    ]
    warm = all(is_warm(first, steady) for first, steady in zip(firsts, steadies, strict=True))
    cells = (
        model,
        variant.name,
        str(variant.records),
        " / ".join(map(render_ms, firsts)),
        " / ".join(map(render_ms, steadies)),
        "yes" if warm else "NO",
    )
    return f"| {' | '.join(cells)} |"


def table_of(rows: Sequence[str]) -> str:
    """Returns the table in Markdown."""
    head = "| model | privacy | records | first request, ms | steady, ms | warm |"
    return "\n".join([head, "|---|---|--:|--:|--:|---|", *rows]) + "\n"


def main() -> int:
    """Measures the models and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [specimen.name for specimen in ZOO]
    parser.add_argument(
        "--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names)
    )
    parser.add_argument(
        "--processes", type=int, default=5, help="fresh processes for each figure (default: 5)"
    )
    parser.add_argument(
        "--requests", type=int, default=20, help="requests after the first one (default: 20)"
    )
    parser.add_argument(
        "--readme",
        metavar="FILE",
        help="also write the table into docs/benchmarks.md beside this README",
    )
    arguments = parser.parse_args()
    if set(arguments.models) != set(names) and arguments.readme:
        parser.error("--models measures some of the zoo: give no --readme.")
    warnings.simplefilter("ignore")
    rows: list[str] = []
    with tempfile.TemporaryDirectory(prefix="keras-warmup-privacy-") as directory:
        for specimen in ZOO:
            if specimen.name in arguments.models:
                rows += measure(specimen, directory, arguments.processes, arguments.requests)
                print(f"{specimen.name}: measured", file=sys.stderr, flush=True)
    if arguments.readme:
        update_documents(arguments.readme, {}, {"privacy modes": table_of(rows)})
    print(table_of(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
