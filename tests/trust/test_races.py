"""Concurrent exports under a polling reader: a few in each run, hundreds with `-m trust`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.trust.faults import Trials
from tests.trust.figures import Figures
from tests.trust.races import overtake, race_exports, race_saves

Report = Callable[[Figures], None]


def test_a_few_concurrent_exports_take_versions_of_their_own(
    trials: Trials, report_figures: Report
) -> None:
    report_figures(race_exports(trials, processes=3, exports=3))


def test_a_few_concurrent_saves_leave_one_whole_version(
    trials: Trials, report_figures: Report
) -> None:
    report_figures(race_saves(trials, processes=3, rounds=3))


def test_a_few_stopped_exports_are_overtaken_and_not_swept(
    trials: Trials, report_figures: Report
) -> None:
    report_figures(overtake(trials, 6))


@pytest.mark.trust
def test_stopped_exports_are_overtaken_and_not_swept(
    trials: Trials, report_figures: Report
) -> None:
    report_figures(overtake(trials, 90))


@pytest.mark.trust
def test_concurrent_exports_take_versions_of_their_own(
    trials: Trials, report_figures: Report
) -> None:
    report_figures(race_exports(trials, processes=8, exports=40))


@pytest.mark.trust
def test_concurrent_saves_leave_one_whole_version(trials: Trials, report_figures: Report) -> None:
    report_figures(race_saves(trials, processes=6, rounds=30))
