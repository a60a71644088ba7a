"""The public names of the package, and that they are imported only when first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import keras_warmup as kw

PUBLIC = [
    "BatchCapture",
    "ModelServer",
    "PerSignature",
    "WarmupError",
    "WarmupExport",
    "WarmupOptions",
    "__version__",
    "add_warmup",
    "benchmark",
    "disable",
    "enable",
    "endpoints",
    "export_with_warmup",
    "freeze",
    "inspect",
    "read_records",
    "redact",
    "repair",
    "save",
    "verify",
]


def test_public_names_are_these_and_all_resolve() -> None:
    assert sorted(kw.__all__) == PUBLIC
    assert dir(kw) == PUBLIC
    assert all(getattr(kw, name) is not None for name in PUBLIC)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'keras_warmup' has no attribute 'nope'"):
        kw.nope  # noqa: B018


def printed_by(code: str) -> str:
    """Runs code in a new Python process and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_importing_the_package_imports_neither_tensorflow_nor_keras() -> None:
    heavy = "{'tensorflow', 'keras', 'numpy'}"
    assert printed_by(f"import sys, keras_warmup; print({heavy} & set(sys.modules))") == "set()\n"


def test_errors_and_options_need_no_tensorflow() -> None:
    code = (
        "import sys; from keras_warmup import WarmupOptions; WarmupOptions(seed=1); "
        "print('tensorflow' in sys.modules)"
    )
    assert printed_by(code) == "False\n"
