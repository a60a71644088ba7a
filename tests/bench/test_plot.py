"""Plots of a report: which bars are drawn, with which values."""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import pytest

from keras_warmup.bench.plot import MAX_GROUPS, Series, draw_groups, new_figure, plot_report
from keras_warmup.bench.report import BenchmarkEntry, BenchmarkReport, Range
from keras_warmup.errors import OptionsError
from tests.builders import ready_entry

pytest.importorskip("matplotlib", reason="needs matplotlib, the extra plot")


def report_of(
    count: int, warm: tuple[float | None, Range | None] = (1.5, (1.0, 2.0))
) -> BenchmarkReport:
    """Returns a report with entries whose cold requests are slower and slower."""
    warm_ms, warm_range_ms = warm
    entries = tuple(
        BenchmarkEntry(
            signature_key=f"signature_{index}",
            kind="predict",
            output_filter=(),
            batch_size=2,
            shapes={},
            in_file=True,
            rows="data",
            cold_ms=100.0 + index,
            cold_range_ms=(90.0, 120.0),
            warm_ms=warm_ms,
            warm_range_ms=warm_range_ms,
            steady_p50_ms=0.8,
            steady_p99_ms=1.0,
            ratio=None,
            faster=None,
        )
        for index in range(count)
    )
    return BenchmarkReport(
        export_dir="./m/1",
        entries=entries,
        load_ms=1.0,
        load_range_ms=(1.0, 1.0),
        load_added_ms=1.0,
        load_added_range_ms=(1.0, 1.0),
        records=1,
        bytes=1,
        processes=3,
        requests=1,
        seed=0,
        engine="process",
        noise="",
        notes=(),
    )


@pytest.fixture(autouse=True)
def text_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes text into SVG files as text, so that a test can read it."""
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


def test_cold_warm_and_steady_are_drawn_with_their_values(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bench.svg"
    plot_report(report_of(1), path)
    drawn = path.read_text()
    for text in (
        "First request after loading ./m/1",
        "signature_0",
        "batch 2",
        "100 ms",
        "1.50 ms",
        "0.80 ms",
        "cold: ",
        "warm: ",
    ):
        assert text in drawn


def test_the_time_to_ready_of_each_export_is_drawn(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bench.svg"
    ready = (
        ready_entry(warmed=False, ready_ms=301.0),
        ready_entry(ready_ms=451.0),
        ready_entry(export_dir="./plain/1", ready_ms=901.0),
    )
    plot_report(dataclasses.replace(report_of(1), ready=ready), path)
    drawn = path.read_text()
    for text in ("time to ready", "./digits/1", "./plain/1", "301 ms", "451 ms", "901 ms"):
        assert text in drawn


def test_without_a_warmup_file_there_is_no_warm_bar(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bench.svg"
    plot_report(report_of(1, warm=(None, None)), path)
    assert "warm: " not in path.read_text()


def test_the_slowest_are_drawn_where_there_are_many(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bench.svg"
    plot_report(report_of(MAX_GROUPS + 2), path)
    drawn = path.read_text()
    assert "signature_13" in drawn and "signature_2<" in drawn
    assert "signature_0<" not in drawn and "signature_1<" not in drawn


def test_the_scale_is_logarithmic() -> None:
    _, axes = new_figure(1)
    series = [
        Series("cold", "blue", [(100.0, (90.0, 120.0))]),
        Series("warm", "red", [(None, None)]),
    ]
    draw_groups(axes, ["a"], series)
    assert axes.get_xscale() == "log"
    assert [round(bar.get_width()) for bar in axes.patches] == [100, 0]


def test_a_png_is_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bench.png"
    plot_report(report_of(2), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_unknown_suffix_is_refused(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "bench.xyz")
    with pytest.raises(OptionsError) as caught:
        plot_report(report_of(1), path)
    message = str(caught.value)
    assert message.startswith(
        f"A plot cannot be written to {path!r}: expected one of the suffixes "
    )
    assert "png" in message and "svg" in message


def test_without_matplotlib_the_cure_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionsError) as caught:
        plot_report(report_of(1), tmp_path / "bench.png")
    assert str(caught.value) == "Plots require matplotlib: pip install 'keras-warmup[plot]'."
