"""Kills, interrupts, failing operations and full disks: a few in each run, all with `-m trust`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.trust.faults import (
    ALL,
    FAILURES,
    REPLACING,
    Failure,
    Trials,
    fail_everywhere,
    fill_disks,
    interrupt_everywhere,
    kill_everywhere,
)
from tests.trust.figures import Figures

Report = Callable[[Figures], None]

by_failure = pytest.mark.parametrize(
    "failure", FAILURES, ids=lambda failure: failure.attack.replace(" ", "_")
)


def test_a_few_kills_leave_whole_versions(trials: Trials, report_figures: Report) -> None:
    report_figures(kill_everywhere(trials, 12))


def test_a_few_interrupts_leave_whole_versions(trials: Trials, report_figures: Report) -> None:
    report_figures(interrupt_everywhere(trials, 12))


@by_failure
def test_a_few_failing_operations_are_explained(
    trials: Trials, report_figures: Report, failure: Failure
) -> None:
    report_figures(fail_everywhere(trials, 6, failure))


@pytest.mark.trust
def test_kills_leave_whole_versions(trials: Trials, report_figures: Report) -> None:
    figures = kill_everywhere(trials, 500)
    report_figures(figures)
    assert figures.trials >= 360


@pytest.mark.trust
def test_a_kill_without_an_exchange_of_directories_loses_nothing(
    trials: Trials, report_figures: Report
) -> None:
    report_figures(kill_everywhere(trials, 120, REPLACING, deny_exchange=True))


@pytest.mark.trust
@pytest.mark.parametrize(
    ("names", "deny_exchange"),
    [
        pytest.param([name for name in ALL if name != "fit"], False, id="exchange"),
        pytest.param(REPLACING, True, id="no_exchange"),
    ],
)
def test_a_kill_of_an_export_that_sweeps_loses_nothing(
    trials: Trials, report_figures: Report, names: Sequence[str], deny_exchange: bool
) -> None:
    report_figures(kill_everywhere(trials, 80, names, deny_exchange=deny_exchange, twice=True))


@pytest.mark.trust
def test_interrupts_leave_whole_versions(trials: Trials, report_figures: Report) -> None:
    figures = interrupt_everywhere(trials, 520)
    report_figures(figures)
    assert figures.trials >= 500


@pytest.mark.trust
@by_failure
def test_failing_operations_are_explained(
    trials: Trials, report_figures: Report, failure: Failure
) -> None:
    report_figures(fail_everywhere(trials, 130 if failure.lasting else 200, failure))


@pytest.mark.trust
def test_full_disks_are_explained(trials: Trials, report_figures: Report) -> None:
    figures = fill_disks(trials, 120)
    if isinstance(figures, str):
        pytest.skip(figures)
    report_figures(figures)
