from __future__ import annotations

import sys

import pytest

from keras_warmup.bench.plot import MAX_GROUPS, draw_groups, new_figure, plot_report
from keras_warmup.bench.report import BenchmarkEntry, BenchmarkReport
from keras_warmup.errors import OptionsError

pytest.importorskip("matplotlib", reason="needs matplotlib, the extra plot")


def report_of(count, **changes):
    entries = tuple(
        BenchmarkEntry(
            f"signature_{index}",
            "predict",
            (),
            2,
            {},
            True,
            "data",
            100.0 + index,
            (90.0, 120.0),
            *changed,
            0.8,
            1.0,
            None,
            None,
        )
        for index in range(count)
        for changed in [changes.get("warm", (1.5, (1.0, 2.0)))]
    )
    return BenchmarkReport(
        "./m/1", entries, 1.0, (1.0, 1.0), 1.0, (1.0, 1.0), 1, 1, 3, 1, 0, "process", "", ()
    )


@pytest.fixture(autouse=True)
def text_stays_text(monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


def test_cold_warm_and_steady_are_drawn_with_their_values(tmp_path):
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


def test_without_a_warmup_file_there_is_no_warm_bar(tmp_path):
    path = tmp_path / "bench.svg"
    plot_report(report_of(1, warm=(None, None)), path)
    assert "warm: " not in path.read_text()


def test_the_slowest_are_drawn_where_there_are_many(tmp_path):
    path = tmp_path / "bench.svg"
    plot_report(report_of(MAX_GROUPS + 2), path)
    drawn = path.read_text()
    assert "signature_13" in drawn and "signature_2<" in drawn
    assert "signature_0<" not in drawn and "signature_1<" not in drawn


def test_the_scale_is_logarithmic():
    _, axes = new_figure(1)
    draw_groups(
        axes, ["a"], [("cold", "blue", [(100.0, (90.0, 120.0))]), ("warm", "red", [(None, None)])]
    )
    assert axes.get_xscale() == "log"
    assert [round(bar.get_width()) for bar in axes.patches] == [100, 0]


def test_a_png_is_written(tmp_path):
    path = tmp_path / "bench.png"
    plot_report(report_of(2), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(OptionsError) as caught:
        plot_report(report_of(1), tmp_path / "bench.xyz")
    assert str(caught.value).startswith(
        f"A plot cannot be written to {str(tmp_path / 'bench.xyz')!r}: its ending is none of "
    )


def test_without_matplotlib_the_cure_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionsError) as caught:
        plot_report(report_of(1), tmp_path / "bench.png")
    assert str(caught.value) == "Drawing needs matplotlib: pip install 'keras-warmup[plot]'."
