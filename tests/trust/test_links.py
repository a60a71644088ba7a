"""Links that lead outside: removing a tree never follows them."""

from __future__ import annotations

from tests.trust.links import follow_links


def test_what_links_name_survives_every_removal(trials, report_figures):
    report_figures(follow_links(trials))
