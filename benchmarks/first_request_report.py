"""What `first_request.py` measured: as JSON, as a table, as a picture, and against what the project claims."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

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
_TABLE = re.compile(r"(<!-- first request -->\n).*?(<!-- /first request -->)", re.DOTALL)


def is_warm(first_ms: float, steady_ms: float) -> bool:
    """Whether a first request is as good as a steady one."""
    return first_ms <= WARM_RATIO * steady_ms or first_ms <= steady_ms + WARM_MS


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of the README."""
    lines = [
        "| model | warmup file | records | bytes | first request, ms | steady, ms | load added, ms |",
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
                f"| {result['model']} | {row['file']} | {row['records']} | {row['bytes']} | {firsts} | {steady} | "
                f"{row['load_added_ms']:.0f} |"
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
                f"{result['model']}: load added, ours / smallest by trial: {share:.2f} (claim: <= 1.2)"
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


def update_readme(results: Sequence[Mapping[str, Any]], path: str) -> None:
    """Puts the table between its two marks.

    Raises:
        SystemExit: the file has no marks.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    table = table_of(results) + "\n" + legend_of(results)
    written, found = _TABLE.subn(lambda marks: f"{marks[1]}\n{table}\n{marks[2]}", text)
    if not found:
        raise SystemExit(
            f"{path} has no '<!-- first request -->' ... '<!-- /first request -->' to write between."
        )
    with open(path, "w", encoding="utf-8") as file:
        file.write(written)


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
