"""Writes results into the documentation, between `<!-- mark -->` and `<!-- /mark -->`."""

from __future__ import annotations

import os
from collections.abc import Mapping

# The full tables stand there, as seen from the README.
BENCHMARKS_PAGE = os.path.join("docs", "benchmarks.md")


def update_documents(readme: str, short: Mapping[str, str], full: Mapping[str, str]) -> None:
    """Writes contents into the README and into docs/benchmarks.md beside it.

    Args:
        readme: path of the README.
        short: mark -> content to write into the README.
        full: mark -> content to write into docs/benchmarks.md.

    Raises:
        SystemExit: one of them lacks the marks to write between; then neither is changed.
    """
    page = os.path.join(os.path.dirname(readme), BENCHMARKS_PAGE)
    texts = {path: _updated(path, contents) for path, contents in ((readme, short), (page, full))}
    for path, text in texts.items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def _updated(path: str, contents: Mapping[str, str]) -> str:
    """Returns the text of a file with the contents between their marks."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise SystemExit(f"There is no {path} to write the results into.") from None
    for mark, content in contents.items():
        before, opening, rest = text.partition(f"<!-- {mark} -->\n")
        _, closing, after = rest.partition(f"<!-- /{mark} -->")
        if not opening or not closing:
            raise SystemExit(
                f"{path} has no '<!-- {mark} -->' ... '<!-- /{mark} -->' to write between."
            )
        text = before + opening + content + closing + after
    return text
