"""How the figures read, and what is claimed from them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from keras_warmup.bench.report import (
    BenchmarkReport,
    describe_noise,
    measurement_notes,
    render_count,
    render_gain,
    render_ms,
)
from tests.builders import benchmark_entry as entry
from tests.builders import benchmark_report as report_of
from tests.builders import ready_entry


def lines_of(report: BenchmarkReport) -> list[str]:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report)
    return [line.rstrip() for line in console.export_text().splitlines() if line.strip()]


def test_the_table_can_be_read_by_a_newcomer() -> None:
    assert lines_of(report_of(entry(), entry(signature_key="serve", faster=False))) == [
        "First request after loading ./digits/1",
        "  signature         batch   cold, ms   warm, ms      faster   steady, ms",
        " ────────────────────────────────────────────────────────────────────────",
        "  serving_default       2        120       1.50         80x         0.80",
        "  serve                 2        120       1.50   not shown         0.80",
        "cold: without the warmup file. warm: after the file was replayed. Medians of 5 fresh "
        "processes each,",
        "taking turns. steady: the median of the 20 requests that follow in each.",
        "The file (1 record, 400 bytes) adds 150 ms to a load of 300 ms.",
        "Noise: little.",
    ]


def test_the_time_to_ready_has_a_table_of_its_own() -> None:
    ready = (ready_entry(warmed=False, warmup_ms=None, ready_ms=300.0), ready_entry())
    lines = lines_of(report_of(entry(), ready=ready, loader="c++"))
    assert lines[4:10] == [
        "Time to ready",
        "  file   disk, MiB   load, ms   warmup, ms   ready, ms   memory, MiB   steady, ms",
        " ─────────────────────────────────────────────────────────────────────────────────",
        "  none        4.00        300            -         300          80.0         0.80",
        "  yes         4.00        300          150         450          80.0         0.80",
        "cold: without the warmup file. warm: after the file was replayed. Medians of 5 fresh "
        "processes each,",
    ]
    assert lines[12:14] == [
        "ready: load and warmup. memory: growth of the process until then, at its peak. "
        "The model is loaded",
        "in C++, as in a server.",
    ]


def test_two_exports_are_told_apart() -> None:
    lines = lines_of(report_of(entry(), ready=(ready_entry(), ready_entry(export_dir="./p/1"))))
    assert [line.split()[0] for line in lines[5:9]] == ["export", "─" * 90, "this", "other"]
    assert "other: ./p/1" in lines


@pytest.mark.parametrize(
    ("loader", "sentence"),
    [
        ("python", "The model is loaded by Python, which takes another time than a server: "),
        (None, "ready: from the start of the server until the model is available."),
    ],
)
def test_the_report_says_what_loaded_the_model(loader: Any, sentence: str) -> None:
    report = report_of(entry(), ready=(ready_entry(),), loader=loader)
    assert any(sentence in line for line in report.sentences())


def test_kinds_and_output_sets_have_columns_where_they_differ() -> None:
    lines = lines_of(
        report_of(entry(), entry(kind="classify", output_filter=("scores", "classes")))
    )
    assert lines[1] == (
        "  signature         kind       outputs           batch   cold, ms   warm, ms   faster   "
        "steady, ms"
    )
    cells = "serving_default classify scores, classes 2 120 1.50 80x 0.80"
    assert lines[4].split() == cells.split()


def test_a_running_server_has_one_column_of_first_requests() -> None:
    report = report_of(entry(cold_ms=None, ratio=None, faster=None), engine="server", processes=1)
    assert lines_of(report) == [
        "First request to the running server, ./digits/1",
        "  signature         batch   first, ms   steady, ms",
        " ──────────────────────────────────────────────────",
        "  serving_default       2        1.50         0.80",
        "steady: the median of the 20 requests after the first one.",
        "Noise: little.",
    ]


def test_without_a_warmup_file_there_is_no_warm_column() -> None:
    report = report_of(
        entry(warm_ms=None, ratio=None, faster=None), records=0, processes=1, engine="docker"
    )
    lines = lines_of(report)
    assert lines[1].split() == ["signature", "batch", "cold,", "ms", "steady,", "ms"]
    assert lines[4] == "cold: medians of 1 newly started server. A load takes 300 ms."


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "80x"),
        ({"ratio": 3.21}, "3.2x"),
        ({"faster": False}, "not shown"),
        ({"faster": None}, "?"),
        ({"ratio": None, "faster": None}, "-"),
    ],
)
def test_a_gain_reads(changes: dict[str, Any], text: str) -> None:
    assert render_gain(entry(**changes)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1234.5, "1234"), (99.94, "99.9"), (12.34, "12.3"), (0.567, "0.57")],
)
def test_milliseconds_keep_three_digits(value: float | None, text: str) -> None:
    assert render_ms(value) == text


def test_a_count_of_one_is_singular() -> None:
    counts = [render_count(count, "process", "processes") for count in (0, 1, 2)]
    assert counts == ["0 processes", "1 process", "2 processes"]


def test_the_noise_is_the_largest_relative_range() -> None:
    sentence = describe_noise([entry()], "process", 5)
    assert sentence.startswith(
        "Noise: equal first requests differed, cold ones by up to 33 % and warm ones by up to 53 % "
        "of their median"
    )
    assert sentence.endswith(" No gain smaller than that is claimed.")
    assert describe_noise([entry()], "process", 2) == (
        "Noise: fewer than 3 processes show no spread, so no gain is claimed."
    )


def test_notes_name_rows_that_make_a_measurement_less_fair() -> None:
    assert measurement_notes([entry()], "process", 1) == []
    assert measurement_notes([entry(rows="warmed")], "process", 1) == [
        "Some requests were the rows of the warmup file themselves, which has no others: pass "
        "data= for a fair measurement."
    ]
