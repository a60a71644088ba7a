"""Shared by all tests: quiet TensorFlow, and the SavedModels made elsewhere."""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

# The option --trust-report, and the table it writes.
pytest_plugins = ["tests.trust.reporting"]

_SAVED_MODELS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "savedmodels"


@pytest.fixture(scope="session")
def saved_models() -> pathlib.Path:
    """Real exports that this project did not make; tests that need them are skipped where they are absent."""
    if not _SAVED_MODELS.is_dir():
        pytest.skip("no ../shared/savedmodels beside the project")
    return _SAVED_MODELS
