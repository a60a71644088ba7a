"""Power cuts, and the order of fsync and rename, which is checked in every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.trust.faults import Trials
from tests.trust.figures import Figures
from tests.trust.power import NoDiskError, broken_rules, check_order, cut_power
from tests.trust.shim import Operation

Report = Callable[[Figures], None]


def test_everything_is_synced_before_it_is_shown(trials: Trials, report_figures: Report) -> None:
    report_figures(check_order(trials))


@pytest.mark.trust
def test_the_milliseconds_of_fsync_are_measured(trials: Trials, report_figures: Report) -> None:
    report_figures(check_order(trials, runs=10))


@pytest.mark.trust
def test_a_power_cut_leaves_the_old_version_or_a_complete_one(
    trials: Trials, report_figures: Report
) -> None:
    try:
        figures = cut_power(trials, 110)
    except NoDiskError as error:
        pytest.skip(f"no power cut can be made: {error}")
    report_figures(figures)


BASE = "/b"
WHOLE = [
    ("mkdir", "/b/.w", ""),
    ("fopen", "/b/.w/saved_model.pb", ""),
    ("fwrite", "/b/.w/saved_model.pb", ""),
    ("fclose", "/b/.w/saved_model.pb", ""),
    ("fsync", "/b/.w/saved_model.pb", ""),
    ("fsync", "/b/.w", ""),
    ("exchange", "/b/.w", "/b/1"),
    ("fsync", "/b", ""),
    ("unlink", "/b/.w/saved_model.pb", ""),
    ("rmdir", "/b/.w", ""),
]


def without(*indices: int) -> list[tuple[str, str, str]]:
    """Returns the operations of a whole export, some left out."""
    return [one for index, one in enumerate(WHOLE) if index not in indices]


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        pytest.param(WHOLE, [], id="all_synced"),
        pytest.param(
            without(4),
            [("half_written", "/b/1 is shown before fsync of /b/.w/saved_model.pb")],
            id="a_file_not_synced",
        ),
        pytest.param(
            without(5),
            [("half_written", "/b/1 is shown before fsync of /b/.w")],
            id="a_directory_not_synced",
        ),
        pytest.param(
            without(7),
            [("missing", "/b/.w/saved_model.pb is removed before fsync of /b")],
            id="the_parent_not_synced",
        ),
        pytest.param(
            without(7, 8, 9),
            [("missing", "the call returns before fsync of /b")],
            id="the_parent_not_synced_at_return",
        ),
    ],
)
def test_the_rule_finds_what_is_not_synced(
    operations: Sequence[tuple[str, str, str]], expected: list[tuple[str, str]]
) -> None:
    recorded = [Operation(name, path, other, 0, 0.0) for name, path, other in operations]
    assert broken_rules(recorded, BASE, [1]) == expected
