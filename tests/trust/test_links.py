"""Links that lead outside: removing a tree never follows them."""

from __future__ import annotations

from collections.abc import Callable

from tests.trust.faults import Trials
from tests.trust.figures import Figures
from tests.trust.links import follow_links


def test_targets_of_links_survive_every_removal(
    trials: Trials, report_figures: Callable[[Figures], None]
) -> None:
    report_figures(follow_links(trials))
