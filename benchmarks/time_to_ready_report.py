"""Renders the results of `time_to_ready.py`: JSON, tables, a picture, and the project's claims."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from documents import update_documents
from first_request_report import is_warm

from keras_warmup.bench.plot import COLD, WARM, new_figure, write_figure
from keras_warmup.bench.report import render_mib, render_ms

PLAIN, DEFAULT, FROZEN = "model.export", "keras_warmup", "keras_warmup, freeze=True"
COLOURS = {PLAIN: COLD, DEFAULT: WARM, FROZEN: "#6b8e3d"}
# As docs/benchmarks.md shows it.
PICTURE = (
    "![Size, memory, load, warmup and steady latency, as shares of those of model.export]"
    "(../benchmarks/results/time_to_ready.png)"
)
# Figure -> its title in tables and in the picture.
ASPECTS = {
    "disk_bytes": "disk, MiB",
    "memory_bytes": "memory, MiB",
    "load_ms": "load, ms",
    "warmup_ms": "warmup, ms",
    "ready_ms": "load + warmup, ms",
    "first_ms": "first request, ms",
    "steady_ms": "steady, ms",
}
# The peak of the whole process holds Python and TensorFlow, so it is not in the tables.
MEASURED = {**ASPECTS, "peak_bytes": "peak of the process, MiB"}
DRAWN = ("disk_bytes", "memory_bytes", "load_ms", "warmup_ms", "ready_ms", "steady_ms")
LARGE = ("MobileNetV2", "EfficientNetB4", "transformer, 48 layers")


class Claim(NamedTuple):
    """A bound of a ratio to `model.export`.

    Attributes:
        export: the export it holds for.
        aspect: the figure.
        bound: largest ratio.
        models: models it holds for; `None` for all.
    """

    export: str
    aspect: str
    bound: float
    models: tuple[str, ...] | None = None


CLAIMS = (
    Claim(DEFAULT, "peak_bytes", 0.7, ("embedding, 1 GB",)),
    Claim(DEFAULT, "ready_ms", 0.7, LARGE),
    Claim(FROZEN, "ready_ms", 0.35, LARGE),
    Claim(FROZEN, "ready_ms", 0.5, ("transformer, 3 layers",)),
    Claim(FROZEN, "steady_ms", 1.02),
    Claim(FROZEN, "peak_bytes", 1.1),
)
# At most so much of the disk, where at least so much of an export of Keras is weights.
DISK_BOUND, WEIGHTS_SHARE = 0.55, 0.9


def claims_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns whether what the project claims holds in this run, a line each."""
    lines = []
    for result in results:
        claims = [
            claim for claim in CLAIMS if claim.models is None or result["model"] in claim.models
        ]
        if result["weights_share"] >= WEIGHTS_SHARE:
            claims.insert(0, Claim(DEFAULT, "disk_bytes", DISK_BOUND))
        for row in result["exports"]:
            for claim in claims:
                if claim.export == row["export"]:
                    ratio = row["ratio"][claim.aspect]
                    lines.append(
                        f"{result['model']}, {row['export']}: {MEASURED[claim.aspect]}: "
                        f"{ratio:.2f} x (claim: <= {claim.bound}): "
                        f"{'yes' if ratio <= claim.bound else 'NO'}"
                    )
            if row["export"] != PLAIN:
                first_ms, steady_ms = row["median"]["first_ms"], row["median"]["steady_ms"]
                lines.append(
                    f"{result['model']}, {row['export']}: first request warm: "
                    f"{'yes' if is_warm(first_ms, steady_ms) else 'NO'}"
                )
    return lines


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of docs/benchmarks.md: a row for each model and export."""
    titles = " | ".join(ASPECTS.values())
    lines = [f"| model | export | {titles} |", f"|---|---|{'--:|' * len(ASPECTS)}"]
    for result in results:
        for row in result["exports"]:
            cells = [render(aspect, row["median"][aspect]) for aspect in ASPECTS]
            lines.append(f"| {result['model']} | {row['export']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def short_table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of the README: a row for each model, a figure for each export."""
    shown = ("disk_bytes", "memory_bytes", "ready_ms", "steady_ms")
    titles = " | ".join(ASPECTS[aspect] for aspect in shown)
    lines = [f"| model | {titles} |", f"|---|{'--:|' * len(shown)}"]
    for result in results:
        cells = [
            " / ".join(render(aspect, row["median"][aspect]) for row in result["exports"])
            for aspect in shown
        ]
        lines.append(f"| {result['model']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def render(aspect: str, value: float) -> str:
    """Renders a figure in the unit of its title."""
    return render_mib(value) if aspect.endswith("_bytes") else render_ms(value)


def write_results(
    results: Sequence[Mapping[str, Any]], about: Mapping[str, Any], directory: str
) -> None:
    """Writes time_to_ready.json, .md and .png."""
    base = os.path.join(directory, "time_to_ready")
    with open(f"{base}.json", "w", encoding="utf-8") as file:
        json.dump(
            {"about": about, "results": results, "claims": claims_of(results)}, file, indent=1
        )
        file.write("\n")
    with open(f"{base}.md", "w", encoding="utf-8") as file:
        file.write(table_of(results))
    _draw(results, f"{base}.png")


def read_results(directory: str) -> dict[str, Any]:
    """Reads what `write_results` wrote: `about` and `results`."""
    with open(os.path.join(directory, "time_to_ready.json"), encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def update_tables(results: Sequence[Mapping[str, Any]], readme: str) -> None:
    """Writes the short table into the README and the full one into docs/benchmarks.md beside it.

    Raises:
        SystemExit: as `update_documents` does.
    """
    update_documents(
        readme,
        {"time to ready": f"\n{short_table_of(results)}\n"},
        {"time to ready": f"\n{PICTURE}\n\n{table_of(results)}\n"},
    )


def _draw(results: Sequence[Mapping[str, Any]], path: str) -> None:
    """Draws each figure as a share of that of `model.export`, with its value."""
    from matplotlib.patches import Patch

    figure, unused = new_figure(1)
    figure.delaxes(unused)
    figure.set_size_inches(13, 2 + 1.3 * len(results))
    panels = figure.subplots(2, 3, sharey=True).ravel()
    models = [result["model"] for result in results]
    names = list(dict.fromkeys(row["export"] for one in results for row in one["exports"]))
    height = 0.8 / len(names)
    for axes, aspect in zip(panels, DRAWN, strict=True):
        for index, name in enumerate(names):
            for group, result in enumerate(results):
                row = next((one for one in result["exports"] if one["export"] == name), None)
                if row is None:
                    continue
                place = group + (index - (len(names) - 1) / 2) * height
                share = row["ratio"][aspect]
                axes.barh(place, share, height * 0.92, color=COLOURS[name])
                axes.annotate(
                    render(aspect, row["median"][aspect]),
                    (share, place),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
        axes.axvline(1, color="black", linewidth=0.6, alpha=0.5)
        axes.set_xlim(
            0, 1.25 * max(1.0, *(row["ratio"][aspect] for one in results for row in one["exports"]))
        )
        axes.set_title(ASPECTS[aspect], loc="left", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(models)), models)
    panels[0].invert_yaxis()
    for axes in panels[3:]:
        axes.set_xlabel("share of model.export", fontsize=8)
    handles = [Patch(color=COLOURS[name], label=name) for name in names]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False
    )
    write_figure(figure, path)
