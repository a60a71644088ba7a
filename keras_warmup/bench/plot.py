"""Plots a `BenchmarkReport`; requires matplotlib, the extra `plot`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from keras_warmup.bench.report import BenchmarkEntry, BenchmarkReport, Range, render_ms
from keras_warmup.errors import OptionsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLD, WARM, STEADY = "#3b6fb6", "#e07b39", "#8c8c8c"
# More groups of bars cannot be read at a glance.
MAX_GROUPS = 12


class Series(NamedTuple):
    """Bars of one colour, one in each group.

    Attributes:
        name: name in the legend.
        colour: colour of the bars.
        bars: value, and its least and greatest, milliseconds; `None` leaves a place empty, or a
            bar without a range.
    """

    name: str
    colour: str
    bars: Sequence[tuple[float | None, Range | None]]


def plot_report(report: BenchmarkReport, path: str | os.PathLike[str]) -> None:
    """Plots first requests beside the steady time, and the time to ready, on a log scale.

    Args:
        report: figures to plot. Of more than 12 kinds of requests, those with the slowest first
            request are plotted.
        path: file to write; its suffix selects the format, such as `.png` or `.svg`.

    Raises:
        OptionsError: matplotlib is not installed, or cannot write this format.
    """
    entries = sorted(
        report.entries, key=lambda entry: entry.cold_ms or entry.warm_ms or 0.0, reverse=True
    )[:MAX_GROUPS]
    with_kind = any(entry.kind != "predict" for entry in entries)
    warm_name = (
        "first request to the running server"
        if report.engine == "server"
        else "warm: with the warmup file"
    )
    export_dirs = list(dict.fromkeys(one.export_dir for one in report.ready))
    ready = {
        (one.export_dir, one.warmed): (one.ready_ms, one.ready_range_ms) for one in report.ready
    }
    series = [
        Series(
            "cold: no warmup file",
            COLD,
            [(entry.cold_ms, entry.cold_range_ms) for entry in entries]
            + [ready.get((path, False), (None, None)) for path in export_dirs],
        ),
        Series(
            warm_name,
            WARM,
            [(entry.warm_ms, entry.warm_range_ms) for entry in entries]
            + [ready.get((path, True), (None, None)) for path in export_dirs],
        ),
        Series(
            "steady: median of the later requests",
            STEADY,
            [(entry.steady_p50_ms, None) for entry in entries] + [(None, None)] * len(export_dirs),
        ),
    ]
    labels = [_label(entry, with_kind) for entry in entries]
    labels += [
        f"time to ready\n{path}" if len(export_dirs) > 1 else "time to ready"
        for path in export_dirs
    ]
    figure, axes = new_figure(len(labels))
    draw_groups(
        axes, labels, [one for one in series if any(value is not None for value, _ in one.bars)]
    )
    axes.set_title(report.title, loc="left", fontsize=11)
    write_figure(figure, path)


def _label(entry: BenchmarkEntry, with_kind: bool) -> str:
    parts = [
        entry.kind if with_kind else "",
        "" if entry.batch_size is None else f"batch {entry.batch_size}",
        ", ".join(entry.output_filter),
    ]
    return f"{entry.signature_key}\n{', '.join(filter(None, parts))}"


def new_figure(groups: int) -> tuple[Figure, Axes]:
    """Creates a figure that is high enough for a number of groups of bars.

    Raises:
        OptionsError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionsError("Plots require matplotlib: pip install 'keras-warmup[plot]'.") from error
    # Not pyplot: it would select a window system and keep the figure alive.
    figure = Figure(figsize=(8.5, 1.5 + 0.8 * groups), layout="constrained")
    return figure, figure.add_subplot()


def draw_groups(axes: Axes, labels: Sequence[str], series: Sequence[Series]) -> None:
    """Draws groups of horizontal bars with their values, on a log scale.

    Args:
        axes: axes to draw on.
        labels: label of each group, from the top.
        series: the bars.
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
    """Checks that a plot can be written, before the long work for it.

    Raises:
        OptionsError: matplotlib is not installed or cannot write this format, or the directory does
            not exist.
    """
    target = os.fspath(path)
    figure, _ = new_figure(1)
    suffixes = figure.canvas.get_supported_filetypes()
    if os.path.splitext(target)[1].lstrip(".").lower() not in suffixes:
        raise OptionsError(
            f"A plot cannot be written to {target!r}: expected one of the suffixes "
            f"{', '.join(sorted(suffixes))}."
        )
    if not os.path.isdir(os.path.dirname(target) or "."):
        raise OptionsError(f"A plot cannot be written to {target!r}: its directory does not exist.")


def write_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file.

    Raises:
        OptionsError: as for `check_plot_path`.
    """
    check_plot_path(path)
    figure.savefig(os.fspath(path), dpi=150)
