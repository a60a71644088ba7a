"""Renders the results of `first_request.py`: JSON, tables, a picture, and the project's claims."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from documents import update_documents

from keras_warmup.bench.plot import STEADY, draw_groups, new_figure, write_figure
from keras_warmup.bench.report import render_ms

NONE, DEFAULT_ONLY, BATCH_1, COPIES, OURS, APART, SMALLEST = (
    "none",
    "batch 1, default signature",
    "batch 1, each signature",
    "100 copies of one",
    "keras_warmup",
    "keras_warmup, twins apart",
    "smallest found by trial",
)
PEERS = (DEFAULT_ONLY, BATCH_1, COPIES)
COLOURS = {
    NONE: "#3b6fb6",
    DEFAULT_ONLY: "#6b8e3d",
    BATCH_1: "#b6483b",
    COPIES: "#8e5ba6",
    OURS: "#e07b39",
}
# Warm is at most half as slow again as steady, or as good as that: a client does not feel 3 ms.
WARM_RATIO, WARM_MS = 1.5, 3.0
# Models whose load is more than what a process pays once, which no sharing takes away.
HALVED = ("LSTM", "transformer", "MobileNetV2")


def is_warm(first_ms: float, steady_ms: float) -> bool:
    """Whether a first request is as good as a steady one."""
    return first_ms <= WARM_RATIO * steady_ms or first_ms <= steady_ms + WARM_MS


@dataclasses.dataclass(frozen=True)
class SlowestFirstRequests:
    """The slowest first request of one model over all signatures and output sets, in milliseconds.

    Attributes:
        model: its name.
        none_ms: without a warmup file.
        best_peer_ms: with the file of `PEERS` that does best.
        ours_ms: with the file of keras_warmup.
        steady_ms: the slowest median of later requests.
    """

    model: str
    none_ms: float
    best_peer_ms: float
    ours_ms: float
    steady_ms: float


def slowest_of(result: Mapping[str, Any]) -> SlowestFirstRequests:
    """Returns the slowest first requests of one model's results."""
    slowest = {row["file"]: max(row["first_ms"]) for row in result["files"]}
    return SlowestFirstRequests(
        result["model"],
        none_ms=slowest[NONE],
        best_peer_ms=min(slowest[name] for name in PEERS),
        ours_ms=slowest[OURS],
        steady_ms=max(result["steady_ms"]),
    )


def headline_of(results: Sequence[Mapping[str, Any]], cpus: int) -> str:
    """Returns a sentence about the model with the slowest cold start, for the top of the README."""
    one = max(map(slowest_of, results), key=lambda summary: summary.none_ms)
    return (
        f"First request after loading {one.model} on {cpus} cores: **{render_ms(one.none_ms)} ms** "
        f"without the file,\n**{render_ms(one.ours_ms)} ms** with it; later requests take "
        f"{render_ms(one.steady_ms)} ms.\n"
    )


def short_table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of the README: a row for each model."""
    lines = [
        "| model | no file | best common file | keras_warmup | later requests |",
        "|---|--:|--:|--:|--:|",
    ]
    for one in map(slowest_of, results):
        figures = (one.none_ms, one.best_peer_ms, one.ours_ms, one.steady_ms)
        lines.append(f"| {one.model} | {' | '.join(render_ms(ms) for ms in figures)} |")
    return "\n".join(lines) + "\n"


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of docs/benchmarks.md: a row for each model and file."""
    lines = [
        "| model | warmup file | records | bytes | first request, ms | steady, ms |"
        " load added, ms |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        for row in result["files"]:
            firsts = " / ".join(
                f"**{render_ms(ms)}**" if warm else render_ms(ms)
                for ms, warm in zip(row["first_ms"], row["warm"], strict=True)
            )
            steady = " / ".join(render_ms(ms) for ms in result["steady_ms"])
            lines.append(
                f"| {result['model']} | {row['file']} | {row['records']} | {row['bytes']} | "
                f"{firsts} | {steady} | {row['load_added_ms']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def legend_of(results: Sequence[Mapping[str, Any]]) -> str:
    """What each number of a row is."""
    lines = ["First requests, in this order (bold: warm):", ""]
    for result in results:
        asked = [
            probe["signature_key"]
            + (f" {probe['output_filter']}" if probe["output_filter"] else "")
            for probe in result["probes"]
        ]
        lines.append(f"- {result['model']}: {', '.join(f'`{one}`' for one in asked)}")
    return "\n".join(lines) + "\n"


def claims_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether what the project claims holds in this run, a line each."""
    lines = []
    for result in results:
        rows = {row["file"]: row for row in result["files"]}
        ours = rows[OURS]
        lines.append(
            f"{result['model']}: every first request warm: {'yes' if all(ours['warm']) else 'NO'}; "
            + "; ".join(f"{name}: {'yes' if all(rows[name]['warm']) else 'no'}" for name in PEERS)
        )
        if SMALLEST in rows:
            share = ours["load_added_ms"] / rows[SMALLEST]["load_added_ms"]
            lines.append(
                f"{result['model']}: load added, ours / smallest by trial: {share:.2f} "
                "(claim: <= 1.2)"
            )
        if APART in rows:
            share = ours["load_added_ms"] / rows[APART]["load_added_ms"]
            claim = " (claim: <= 0.65)" if result["model"] in HALVED else ""
            lines.append(f"{result['model']}: load added, twins shared / apart: {share:.2f}{claim}")
    return lines


def write_results(
    results: Sequence[Mapping[str, Any]], about: Mapping[str, Any], directory: str
) -> None:
    """Writes first_request.json, .md and .png."""
    base = os.path.join(directory, "first_request")
    with open(f"{base}.json", "w", encoding="utf-8") as file:
        json.dump(
            {"about": about, "results": results, "claims": claims_of(results)}, file, indent=1
        )
        file.write("\n")
    with open(f"{base}.md", "w", encoding="utf-8") as file:
        file.write(table_of(results) + "\n" + legend_of(results))
    _draw(results, f"{base}.png")


def read_results(directory: str) -> dict[str, Any]:
    """What `write_results` wrote: `about` and `results`."""
    with open(os.path.join(directory, "first_request.json"), encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def update_tables(results: Sequence[Mapping[str, Any]], cpus: int, readme: str) -> None:
    """Writes the figures into the README and the full table into docs/benchmarks.md beside it.

    Raises:
        SystemExit: as `update_documents` does.
    """
    short, full = short_table_of(results), table_of(results) + "\n" + legend_of(results)
    update_documents(
        readme,
        {"headline": headline_of(results, cpus), "first request": f"\n{short}\n"},
        {"first request": f"\n{full}\n"},
    )


def _draw(results: Sequence[Mapping[str, Any]], path: str) -> None:
    """The slowest first request of each model with each file."""
    figure, axes = new_figure(2 * len(results))
    series: list[Any] = []
    for name, colour in COLOURS.items():
        bars = []
        for result in results:
            row = next(one for one in result["files"] if one["file"] == name)
            slowest = max(range(len(row["first_ms"])), key=lambda index: row["first_ms"][index])
            bars.append((row["first_ms"][slowest], tuple(row["first_range_ms"][slowest])))
        series.append(("no warmup file" if name == NONE else name, colour, bars))
    series.append(("steady", STEADY, [(max(result["steady_ms"]), None) for result in results]))
    draw_groups(axes, [result["model"] for result in results], series)
    axes.set_title("Slowest first request of a batch of 4 after loading", loc="left", fontsize=11)
    write_figure(figure, path)
