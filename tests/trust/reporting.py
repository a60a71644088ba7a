"""A pytest plugin with the option `--trust-report`, which writes the tables of the attacks.

Figures are passed as properties of the tests' reports, since pytest-xdist runs the attacks in other
processes.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.trust.figures import Figures, HostileFigures

BEGIN = "<!-- figures: written by pytest -m trust --trust-report -->"
END = "<!-- end of figures -->"
# Each type has a table of its own.
_TYPES = {type_.__name__: type_ for type_ in (Figures, HostileFigures)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option `--trust-report`."""
    parser.addoption(
        "--trust-report",
        metavar="FILE",
        help="write the figures of the attacks into FILE, between its markers (docs/trust.md)",
    )


@pytest.fixture
def report_figures(
    record_property: Callable[[str, object], None],
) -> Callable[[Figures | HostileFigures], None]:
    """Function that reports the figures of an attack, and fails the test if it counted a fault."""

    def report(figures: Figures | HostileFigures) -> None:
        record_property(type(figures).__name__, dataclasses.asdict(figures))
        assert figures.trials > 0
        faults = {name: count for name, count in figures.faults.items() if count}
        assert not faults, "\n".join([str(faults), *figures.examples])

    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the tables of a run of all attacks, and writes them where the option says."""
    path = config.getoption("--trust-report")
    if not path and config.getoption("markexpr") != "trust":
        return
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    tables = [
        render_table(rows)
        for name, type_ in _TYPES.items()
        if (
            rows := [
                type_(**figures)
                for report in reports
                if getattr(report, "when", "") == "call"
                for key, figures in report.user_properties
                if key == name
            ]
        )
    ]
    if not tables:
        return
    terminalreporter.section("attacks on publishing and on hostile files")
    terminalreporter.write_line("\n\n".join(tables))
    if path:
        write_tables(pathlib.Path(path), [machine(), *tables])


def render_table(rows: Sequence[Figures | HostileFigures]) -> str:
    """Renders figures of one type as a Markdown table, ordered by the name of the attack."""
    cells = [one.row for one in sorted(rows, key=lambda one: one.attack)]
    head = list(cells[0])
    lines = [head, ["---"] * len(head), *(list(row.values()) for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """Describes what the figures depend on: cores, kernel, file system, TensorFlow."""
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


def write_tables(path: pathlib.Path, paragraphs: Sequence[str]) -> None:
    """Replaces the text between the markers of a file."""
    content = path.read_text()
    before, found, rest = content.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{path} does not hold the markers {BEGIN!r} and {END!r}")
    path.write_text("\n\n".join([f"{before}{BEGIN}", *paragraphs, f"{END}{after}"]))
