"""A pytest plugin: the option `--trust-report`, and the table that it writes.

Figures travel as properties of the tests' reports, since under pytest-xdist an attack runs in another process than this.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from trust.figures import FAULTS, Figures

BEGIN = "<!-- figures: written by pytest -m trust --trust-report -->"
END = "<!-- end of figures -->"
_PROPERTY = "trust_figures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--trust-report",
        metavar="FILE",
        help="write the figures of the attacks that ran into FILE, between its markers (docs/trust.md)",
    )


@pytest.fixture
def report_figures(record_property: Callable[[str, object], None]) -> Callable[[Figures], None]:
    """Puts the figures of an attack into the report, and fails the test if one of its faults is not 0."""

    def report(figures: Figures) -> None:
        record_property(_PROPERTY, dataclasses.asdict(figures))
        assert figures.trials > 0
        assert not figures.faults, "\n".join([str(figures.faults), *figures.examples])

    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                rows += [Figures(**figures) for name, figures in report.user_properties if name == _PROPERTY]
    if not rows:
        return
    table = render_table(rows)
    terminalreporter.section("attacks on publishing and on hostile files")
    terminalreporter.write_line(table)
    path = config.getoption("--trust-report")
    if path:
        write_table(pathlib.Path(path), f"{machine()}\n\n{table}")


def render_table(rows: Sequence[Figures]) -> str:
    """Renders the figures as a Markdown table, ordered by the name of the attack."""
    head = ["attack", "trials", *(name.replace("_", "-") for name in FAULTS), "also measured", "seconds"]
    lines = [head, ["---"] * len(head)]
    for row in sorted(rows, key=lambda row: row.attack):
        faults = [str(getattr(row, name)) for name in FAULTS]
        lines.append([row.attack, str(row.trials), *faults, _measured(row.measured), f"{row.seconds:.0f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _measured(measured: Mapping[str, float | str]) -> str:
    return "; ".join(
        f"{name}: {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in sorted(measured.items())
    )


def machine() -> str:
    """Names what the figures depend on: cores, kernel, file system, TensorFlow."""
    import tensorflow as tf

    return (
        f"{os.cpu_count()} cores, Linux {platform.release().partition('-')[0]}, "
        f"{file_system_of(tempfile.gettempdir())}, TensorFlow {tf.__version__}."
    )


def file_system_of(path: str) -> str:
    """Returns the type of the file system that holds `path`."""
    best, found = "", "unknown file system"
    with open("/proc/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, point, kind, *_ = line.split()
            if pathlib.Path(path).resolve().is_relative_to(point) and len(point) >= len(best):
                best, found = point, kind
    return found


def write_table(path: pathlib.Path, text: str) -> None:
    """Replaces what stands between the markers of a file."""
    content = path.read_text()
    before, found, rest = content.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{path} does not hold the markers {BEGIN!r} and {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
