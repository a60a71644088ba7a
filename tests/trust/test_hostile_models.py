"""No hostile file hangs, crashes or exhausts `inspect` or the listing of records.

Both succeed or raise a WarmupError.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tests.trust.figures import HostileFigures
from tests.trust.hostile_models import HOSTILE
from tests.trust.measured import Case, Outcome, figures_of, run_measured

# One of each kind of attack that is quick to build; the others are marked `trust`.
QUICK = (
    "a function that calls itself",
    "60 levels of functions of strings that call the next one twice",
    "60 levels of functions that call the next one twice above a file",
    "1000 functions that call the next one",
    "a loop body whose identities read each other in a circle",
    "Unpack with 10^9 outputs",
    "variables whose names are not UTF-8",
    "feature keys of shape [2^40]",
    "more types than feature keys",
    "control characters and markup in names",
    "saved model is a fifo",
    "saved model has 3 GiB",
    "warmup: a header that claims 3 GiB",
    "warmup: 20 000 records",
    "warmup file is a fifo",
)


def _run(tmp_path: pathlib.Path, names: list[str]) -> list[Outcome]:
    for index, name in enumerate(names):
        HOSTILE[name](tmp_path / str(index) / "1")
    return run_measured(
        [Case(name, (str(tmp_path / str(index) / "1"),)) for index, name in enumerate(names)]
    )


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(HOSTILE) >= 70
    assert set(QUICK) <= set(HOSTILE)


def test_quick_hostile_files_end_well(
    tmp_path: pathlib.Path, report_figures: Callable[[HostileFigures], None]
) -> None:
    report_figures(
        figures_of("some hostile files, inspect", len(QUICK), _run(tmp_path, list(QUICK)))
    )


@pytest.mark.trust
def test_all_hostile_files_end_well(
    tmp_path: pathlib.Path, report_figures: Callable[[HostileFigures], None]
) -> None:
    report_figures(
        figures_of("hostile files, inspect", len(HOSTILE), _run(tmp_path, list(HOSTILE)))
    )
