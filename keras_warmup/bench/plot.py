"""A picture of a `BenchmarkReport`; needs matplotlib, the extra `plot`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_warmup.bench.report import BenchmarkReport, render_ms
from keras_warmup.errors import OptionsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLD, WARM, STEADY = "#3b6fb6", "#e07b39", "#8c8c8c"
Series = tuple[str, str, Sequence[tuple[float | None, tuple[float, float] | None]]]
# More bars than this are not read at a glance.
MAX_GROUPS = 12


def plot_report(report: BenchmarkReport, path: str | os.PathLike[str]) -> None:
    """Draws cold and warm first request beside the steady one, on a log scale.

    Args:
        report: what was measured. Of more than 12 entries those with the slowest first request are drawn.
        path: the picture to write; its ending gives the format, such as `.png` or `.svg`.

    Raises:
        OptionsError: matplotlib is not installed, or cannot write this format.
    """
    entries = sorted(
        report.entries, key=lambda one: one.cold_ms or one.warm_ms or 0.0, reverse=True
    )[:MAX_GROUPS]
    several_kinds = {entry.kind for entry in entries} != {"predict"}
    labels = []
    for entry in entries:
        parts = [entry.kind] * several_kinds + [f"batch {entry.batch_size}"] * (
            entry.batch_size is not None
        )
        parts += [", ".join(entry.output_filter)] * bool(entry.output_filter)
        labels.append(f"{entry.signature_key}\n{', '.join(parts)}")
    running = report.engine == "server"
    series: list[Series] = [
        (
            "cold: first request, no warmup file",
            COLD,
            [(entry.cold_ms, entry.cold_range_ms) for entry in entries],
        ),
        (
            "first request to the running server"
            if running
            else "warm: first request, with the warmup file",
            WARM,
            [(entry.warm_ms, entry.warm_range_ms) for entry in entries],
        ),
        (
            "steady: median of those that follow",
            STEADY,
            [(entry.steady_p50_ms, None) for entry in entries],
        ),
    ]
    figure, axes = new_figure(len(entries))
    draw_groups(
        axes, labels, [one for one in series if any(value is not None for value, _ in one[2])]
    )
    axes.set_title(report.title, loc="left", fontsize=11)
    write_figure(figure, path)


def new_figure(groups: int) -> tuple[Figure, Axes]:
    """An empty figure, high enough for that many groups of bars.

    Raises:
        OptionsError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionsError("Drawing needs matplotlib: pip install 'keras-warmup[plot]'.") from error
    # Not pyplot: it would pick a window system and keep the figure alive.
    figure = Figure(figsize=(8.5, 1.5 + 0.8 * groups), layout="constrained")
    return figure, figure.add_subplot()


def draw_groups(
    axes: Axes,
    labels: Sequence[str],
    series: Sequence[Series],
) -> None:
    """Draws groups of horizontal bars with their values, milliseconds on a log scale.

    Args:
        axes: where to draw.
        labels: one for each group, from the top.
        series: name, colour and, for each group, the value with its least and greatest; `None` leaves a place empty.
    """
    height = 0.8 / len(series)
    for index, (name, colour, bars) in enumerate(series):
        places = [group + (index - (len(series) - 1) / 2) * height for group in range(len(labels))]
        axes.barh(
            places,
            [value or 0 for value, _ in bars],
            height=height * 0.92,
            color=colour,
            label=name,
        )
        for place, (value, span) in zip(places, bars, strict=True):
            if value is None:
                continue
            if span is not None:
                axes.plot(span, [place, place], color="black", linewidth=0.9, alpha=0.7)
            axes.annotate(
                f"{render_ms(value)} ms",
                (max(value, span[1] if span else value), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    known = [value for _, _, bars in series for value, _ in bars if value]
    axes.set_xscale("log")
    axes.set_xlim(min(known) / 2.5, max(known) * 4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, log scale (lines: least to greatest)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", which="major", alpha=0.3)
    axes.set_axisbelow(True)
    axes.figure.legend(
        loc="outside lower center", ncols=min(len(series), 3), fontsize=8, frameon=False
    )


def check_plot_path(path: str | os.PathLike[str]) -> None:
    """Checks that a picture can be written, before long work for it.

    Raises:
        OptionsError: matplotlib is not installed, cannot write a file with this ending, or there is no such directory.
    """
    target = os.fspath(path)
    figure, _ = new_figure(1)
    kinds = figure.canvas.get_supported_filetypes()
    ending = os.path.splitext(target)[1].lstrip(".").lower()
    if ending not in kinds:
        raise OptionsError(
            f"A plot cannot be written to {target!r}: its ending is none of {', '.join(sorted(kinds))}."
        )
    if not os.path.isdir(os.path.dirname(target) or "."):
        raise OptionsError(f"A plot cannot be written to {target!r}: its directory does not exist.")


def write_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure.

    Raises:
        OptionsError: as `check_plot_path`.
    """
    check_plot_path(path)
    target: Any = os.fspath(path)
    figure.savefig(target, dpi=150)
