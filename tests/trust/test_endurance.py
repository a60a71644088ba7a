"""Five hundred exports in one `fit`: memory, handles, threads and time stay as flat as with plain `model.export`."""

from __future__ import annotations

import pytest

from tests.trust.endurance import export_for_long


@pytest.mark.trust
def test_five_hundred_exports_in_one_fit_stay_flat(trials, report_figures):
    report_figures(export_for_long(trials, 500))
