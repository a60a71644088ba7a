"""The limits stated in SECURITY.md are those of the code."""

from __future__ import annotations

import importlib
import pathlib
import re

import pytest

from keras_warmup.serving import worker

_TEXT = (pathlib.Path(__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8")
_BOUNDS = re.findall(r"^\| .+ \| (\d+) \| `([\w.]+)\.(\w+)` \|$", _TEXT, re.MULTILINE)


def test_the_table_of_bounds_is_read() -> None:
    assert len(_BOUNDS) == 12


@pytest.mark.parametrize(
    ("stated", "module", "constant"), _BOUNDS, ids=[constant for *_, constant in _BOUNDS]
)
def test_the_bounds_are_those_of_the_code(stated: str, module: str, constant: str) -> None:
    assert int(stated) == getattr(importlib.import_module(f"keras_warmup.{module}"), constant)


def test_the_default_timeout_is_stated() -> None:
    assert f"`timeout_s` (`--timeout`), {worker.DEFAULT_TIMEOUT_S:g} s by default" in _TEXT
