"""Five hundred exports in one `fit` need no more resources than plain `model.export`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.trust.endurance import export_for_long
from tests.trust.faults import Trials
from tests.trust.figures import Figures


@pytest.mark.trust
def test_five_hundred_exports_in_one_fit_stay_flat(
    trials: Trials, report_figures: Callable[[Figures], None]
) -> None:
    report_figures(export_for_long(trials, 500))
