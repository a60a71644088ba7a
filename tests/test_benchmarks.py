"""The scripts in benchmarks/ print and write what they measured, and README.md has their table."""

from __future__ import annotations

import json
import os
import pathlib
import re
import runpy
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results" / "first_request.json"
READY_RESULTS = BENCHMARKS / "results" / "time_to_ready.json"

# Modules that the scripts import from their own directory.
HELPERS = (
    "checkouts",
    "documents",
    "first_request_report",
    "stopwatch",
    "time_to_ready_report",
    "zoo",
)


@pytest.fixture(autouse=True)
def modules_of_the_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the scripts' directory on the path, as for a script, and forgets their modules again."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in HELPERS:
        if name not in before:
            sys.modules.pop(name, None)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *argv: object) -> Any:
    """Runs a script as its own program would run; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    return exit_.value.code


SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if path.stem not in HELPERS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_how_to_run_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    assert f"python benchmarks/{name}" in capsys.readouterr().out


def result(model: str = "LSTM", ours: float = 2.0, shared: float = 50.0) -> dict[str, Any]:
    """Makes the figures of one model, as first_request.py writes them."""

    def row(file: str, first: float, added: float, warm: bool) -> dict[str, Any]:
        firsts = [first, 1.0]
        return {
            "file": file,
            "records": 1,
            "bytes": 10,
            "first_ms": firsts,
            "first_range_ms": [[one, one] for one in firsts],
            "load_added_ms": added,
            "load_added_range_ms": [added, added],
            "warm": [warm, True],
        }

    rows = [row("none", 90.0, 0.0, False), row("batch 1, default signature", 40.0, 40.0, False)]
    rows += [
        row("batch 1, each signature", 20.0, 80.0, False),
        row("100 copies of one", 40.0, 90.0, False),
    ]
    rows += [
        row("keras_warmup", ours, shared, ours <= 4),
        row("keras_warmup, twins apart", 2.0, 100.0, True),
    ]
    rows += [row("smallest found by trial", 2.0, 45.0, True)]
    probes: list[dict[str, Any]] = [
        {"signature_key": key, "kind": "predict", "output_filter": []}
        for key in ("serving_default", "serve")
    ]
    return {"model": model, "probes": probes, "steady_ms": [1.0, 1.0], "files": rows}


def test_claims_say_no_where_the_figures_do() -> None:
    from first_request_report import claims_of

    assert claims_of([result()]) == [
        "LSTM: every first request warm: yes; batch 1, default signature: no; "
        "batch 1, each signature: no; 100 copies of one: no",
        "LSTM: load added, ours / smallest by trial: 1.11 (claim: <= 1.2)",
        "LSTM: load added, twins shared / apart: 0.50 (claim: <= 0.65)",
    ]
    assert claims_of([result(ours=9.0)])[0].startswith("LSTM: every first request warm: NO;")
    assert claims_of([result("MLP")])[2] == "MLP: load added, twins shared / apart: 0.50"


@pytest.mark.parametrize(
    ("first", "steady", "warm"),
    [(3.9, 1.0, True), (4.1, 1.0, False), (149.0, 100.0, True), (151.0, 100.0, False)],
)
def test_warm_is_one_and_a_half_times_steady_or_within_3_ms(
    first: float, steady: float, warm: bool
) -> None:
    from first_request_report import is_warm

    assert is_warm(first, steady) is warm


def documents(directory: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A README and a docs/benchmarks.md with marks, and the results beside them."""
    (directory / "first_request.json").write_text(
        json.dumps({"about": {"cpus": 2}, "results": [result()]})
    )
    readme, page = directory / "README.md", directory / "docs" / "benchmarks.md"
    readme.write_text(
        "before\n<!-- headline -->\noutdated\n<!-- /headline -->\nbetween\n"
        "<!-- first request -->\noutdated\n<!-- /first request -->\nafter\n"
    )
    page.parent.mkdir()
    page.write_text("before\n<!-- first request -->\noutdated\n<!-- /first request -->\nafter\n")
    return readme, page


def test_results_are_redrawn_and_put_between_the_marks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    readme, page = documents(tmp_path)
    assert (
        run(monkeypatch, "first_request.py", "--redraw", "--output", tmp_path, "--readme", readme)
        == 0
    )
    assert readme.read_text() == (
        "before\n<!-- headline -->\n"
        "First request after loading LSTM on 2 cores: **90.0 ms** without the file,\n"
        "**2.00 ms** with it; later requests take 1.00 ms.\n<!-- /headline -->\nbetween\n"
        "<!-- first request -->\n\n"
        "| model | no file | best common file | keras_warmup | later requests |\n"
        "|---|--:|--:|--:|--:|\n"
        "| LSTM | 90.0 | 20.0 | 2.00 | 1.00 |\n"
        "\n<!-- /first request -->\nafter\n"
    )
    text = page.read_text()
    assert text.startswith("before\n<!-- first request -->\n\n| model |")
    assert text.endswith("\n<!-- /first request -->\nafter\n")
    assert "| LSTM | keras_warmup | 1 | 10 | **2.00** / **1.00** | 1.00 / 1.00 | 50 |" in text
    assert "outdated" not in text
    assert (tmp_path / "first_request.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "first_request.md").read_text() in text
    assert "claim: <= 1.2" in capsys.readouterr().out


def test_some_models_only_are_no_results_to_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    before = RESULTS.read_bytes()
    for argv in (
        ["--models", "MLP"],
        ["--models", "MLP", "--output", tmp_path, "--readme", tmp_path / "README.md"],
    ):
        assert run(monkeypatch, "first_request.py", *argv) == 2
        assert "--models measures some of the zoo" in capsys.readouterr().err
    assert RESULTS.read_bytes() == before


def test_without_matplotlib_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(monkeypatch, "first_request.py", "--output", tmp_path / "results") == 2
    assert "Plots require matplotlib" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def ready_result(model: str = "MobileNetV2", ready: float = 0.6) -> dict[str, Any]:
    """Makes the figures of one model, as time_to_ready.py writes them."""
    plain = {
        "disk_bytes": 20.0 * 2**20,
        "memory_bytes": 100.0 * 2**20,
        "peak_bytes": 600.0 * 2**20,
        "load_ms": 600.0,
        "warmup_ms": 300.0,
        "ready_ms": 900.0,
        "first_ms": 12.0,
        "steady_ms": 10.0,
    }

    def row(export: str, **ratios: float) -> dict[str, Any]:
        ratio = {aspect: ratios.get(aspect, 1.0) for aspect in plain}
        median = {aspect: value * ratio[aspect] for aspect, value in plain.items()}
        ranges = {aspect: [value, value] for aspect, value in median.items()}
        return {"export": export, "median": median, "range": ranges, "ratio": ratio}

    return {
        "model": model,
        "weights_share": 0.92,
        "exports": [
            row("model.export"),
            row("keras_warmup", disk_bytes=0.5, ready_ms=ready),
            row("keras_warmup, freeze=True", ready_ms=0.3, steady_ms=0.5, first_ms=2.0),
        ],
    }


def test_claims_about_the_time_to_ready_say_no_where_the_figures_do() -> None:
    from time_to_ready_report import claims_of

    assert claims_of([ready_result()]) == [
        "MobileNetV2, keras_warmup: disk, MiB: 0.50 x (claim: <= 0.55): yes",
        "MobileNetV2, keras_warmup: load + warmup, ms: 0.60 x (claim: <= 0.7): yes",
        "MobileNetV2, keras_warmup: first request warm: yes",
        "MobileNetV2, keras_warmup, freeze=True: load + warmup, ms: 0.30 x (claim: <= 0.35): yes",
        "MobileNetV2, keras_warmup, freeze=True: steady, ms: 0.50 x (claim: <= 1.02): yes",
        "MobileNetV2, keras_warmup, freeze=True: peak of the process, MiB: 1.00 x (claim: <= 1.1): "
        "yes",
        "MobileNetV2, keras_warmup, freeze=True: first request warm: NO",
    ]
    slow = claims_of([ready_result(ready=0.8)])
    assert slow[1] == "MobileNetV2, keras_warmup: load + warmup, ms: 0.80 x (claim: <= 0.7): NO"
    assert not any("load + warmup" in line for line in claims_of([ready_result("LSTM")]))


def test_the_time_to_ready_is_redrawn_and_put_between_the_marks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "time_to_ready.json").write_text(
        json.dumps({"about": {}, "results": [ready_result()]})
    )
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    for path in (readme, page):
        path.write_text("before\n<!-- time to ready -->\n<!-- /time to ready -->\nafter\n")
    argv = ["--redraw", "--output", tmp_path, "--readme", readme]
    assert run(monkeypatch, "time_to_ready.py", *argv) == 0
    assert readme.read_text() == (
        "before\n<!-- time to ready -->\n\n"
        "| model | disk, MiB | memory, MiB | load + warmup, ms | steady, ms |\n"
        "|---|--:|--:|--:|--:|\n"
        "| MobileNetV2 | 20.0 / 10.0 / 20.0 | 100 / 100 / 100 | 900 / 540 / 270 | "
        "10.0 / 10.0 / 5.00 |\n"
        "\n<!-- /time to ready -->\nafter\n"
    )
    assert (tmp_path / "time_to_ready.md").read_text() in page.read_text()
    assert (tmp_path / "time_to_ready.png").read_bytes().startswith(b"\x89PNG")
    assert "claim: <= 0.35" in capsys.readouterr().out


def test_claims_about_exports_at_size_depend_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scale.py"])
    script = runpy.run_path(str(BENCHMARKS / "scale.py"))
    figures = {"seconds": 2.0, "fsync_s": 0.1, "peak_bytes": 2.0**20, "growth_bytes": 2.0**19}
    ratio = {"seconds": 1.2, "peak_bytes": 1.0, "growth_bytes": 1.4}
    result = {
        "median": {"model.export": figures, "verified": figures},
        "ratio": {"model.export": dict.fromkeys(ratio, 1.0), "verified": ratio},
    }
    assert script["claims_of"]({"500 inputs": result, "MobileNetV2": result}) == [
        "500 inputs: verified / model.export: seconds 1.20 x (claim: <= 1.3): yes",
        "500 inputs: verified / model.export: peak_bytes 1.00 x (claim: <= 1.3): yes",
        "500 inputs: verified / model.export: growth_bytes 1.40 x (claim: <= 1.3): NO",
        "MobileNetV2: verified / model.export: seconds 1.20 x (claim: <= 1.05): NO",
        "MobileNetV2: verified / model.export: peak_bytes 1.00 x (claim: <= 1.3): yes",
        "MobileNetV2: verified / model.export: growth_bytes 1.40 x (claim: <= 1.3): NO",
    ]
    assert script["table_of"]({"500 inputs": result}) == (
        "| model | export | time, s | peak, MiB | growth, MiB |\n|---|---|--:|--:|--:|\n"
        "| 500 inputs | model.export | 2.00 | 1 | 0 |\n"
        "| 500 inputs | verified | 2.00 (1.20 x) | 1 (1.00 x) | 0 (1.40 x) |\n"
    )


def test_a_stopwatch_counts_fsync_apart(tmp_path: pathlib.Path) -> None:
    from stopwatch import Stopwatch

    def slow_fsync(descriptor: int) -> None:
        time.sleep(0.05)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", slow_fsync)
        watch = Stopwatch()
        with watch.timing("write"), (tmp_path / "file").open("w") as file:
            os.fsync(file.fileno())
    assert watch.fsync_seconds["write"][0] >= 0.05 > watch.seconds["write"][0]
    watch.clear()
    assert watch.seconds == {} == watch.fsync_seconds


def test_ratios_of_an_export_are_medians_over_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["export_cost.py"])
    ratios_of = runpy.run_path(str(BENCHMARKS / "export_cost.py"))["ratios_of"]
    seconds = {"export": [1.0, 1.0, 2.0], "load": [1.0] * 3, "replay": [2.0] * 3}
    seconds |= {
        "call": [0.0] * 3,
        "export_with_warmup": [4.0, 6.0, 5.0],
        "verify=False": [1.0, 3.0, 2.0],
    }
    assert ratios_of(seconds) == {"verified": 1.0, "unverified": 1.0}


@pytest.fixture
def checkouts_of_a_script(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, pathlib.Path]:
    """Makes two checkouts of a script that prints its package path and arguments as JSON."""
    import checkouts

    places = {name: tmp_path / name for name in ("here", "there")}
    for name, place in places.items():
        (place / "benchmarks").mkdir(parents=True)
        (place / "benchmarks" / "script.py").write_text(
            "import json, os, sys\n"
            f"print(json.dumps([{name!r}, os.environ['PYTHONPATH'], sys.argv[1:]]))\n"
        )
    monkeypatch.setattr(checkouts, "HERE", str(places["here"]))
    return places


def test_two_checkouts_run_their_own_script_on_their_own_package(
    checkouts_of_a_script: dict[str, pathlib.Path],
) -> None:
    from checkouts import run_in_turns

    here, there = checkouts_of_a_script.values()
    printed = run_in_turns(
        str(here / "benchmarks" / "script.py"), ["--rounds", "1"], against=str(there), turns=2
    )
    arguments = ["--rounds", "1", "--json"]
    assert printed == (
        [["here", str(here), arguments]] * 2,
        [["there", str(there), arguments]] * 2,
    )


def test_a_checkout_whose_script_fails_ends_the_comparison_with_its_error(
    checkouts_of_a_script: dict[str, pathlib.Path],
) -> None:
    from checkouts import run_in_turns

    here, there = checkouts_of_a_script.values()
    script = there / "benchmarks" / "script.py"
    script.write_text("raise SystemExit('no such model')")
    with pytest.raises(SystemExit) as failed:
        run_in_turns(str(here / "benchmarks" / "script.py"), [], against=str(there), turns=1)
    assert failed.value.code == f"{script} failed with exit code 1:\nno such model"


@pytest.mark.parametrize(
    ("name", "lost", "mark"),
    [
        ("README.md", "<!-- headline -->", "headline"),
        ("README.md", "<!-- /first request -->", "first request"),
        ("docs/benchmarks.md", "<!-- first request -->", "first request"),
    ],
)
def test_without_marks_nothing_is_rewritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, name: str, lost: str, mark: str
) -> None:
    both = documents(tmp_path)
    path = tmp_path / name
    path.write_text(path.read_text().replace(lost, ""))
    before = [one.read_text() for one in both]
    code = run(
        monkeypatch, "first_request.py", "--redraw", "--output", tmp_path, "--readme", both[0]
    )
    assert code == f"{path} has no '<!-- {mark} -->' ... '<!-- /{mark} -->' to write between."
    assert [one.read_text() for one in both] == before


def test_without_the_page_of_benchmarks_nothing_is_rewritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    readme, page = documents(tmp_path)
    page.unlink()
    before = readme.read_text()
    code = run(
        monkeypatch, "first_request.py", "--redraw", "--output", tmp_path, "--readme", readme
    )
    assert code == f"There is no {page} to write the results into."
    assert readme.read_text() == before


def test_our_readme_and_page_of_benchmarks_hold_what_was_measured() -> None:
    from first_request_report import headline_of, legend_of, short_table_of, table_of

    found = json.loads(RESULTS.read_text())
    results = found["results"]
    readme = (ROOT / "README.md").read_text()
    assert headline_of(results, found["about"]["cpus"]) in readme
    assert short_table_of(results) in readme
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert table_of(results) + "\n" + legend_of(results) in page


@pytest.mark.skipif(not READY_RESULTS.exists(), reason="not measured yet")
def test_our_readme_and_page_of_benchmarks_hold_the_time_to_ready() -> None:
    from time_to_ready_report import short_table_of, table_of

    results = json.loads(READY_RESULTS.read_text())["results"]
    assert short_table_of(results) in (ROOT / "README.md").read_text()
    assert table_of(results) in (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_no_figure_is_still_to_be_measured(name: str) -> None:
    assert not re.search(r"TODO|FIXME|RATIO_|XX", (ROOT / name).read_text())
