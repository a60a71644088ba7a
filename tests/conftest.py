"""Fixtures and settings of all tests: TensorFlow's log level, and SavedModels made elsewhere."""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

# Adds the option --trust-report, and writes its tables.
pytest_plugins = ["tests.trust.reporting"]

_SAVED_MODELS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "savedmodels"


@pytest.fixture(scope="session")
def saved_models() -> pathlib.Path:
    """Directory of exports that other programs made; without it, tests that need it are skipped."""
    if not _SAVED_MODELS.is_dir():
        pytest.skip("there is no ../shared/savedmodels beside the checkout")
    return _SAVED_MODELS
