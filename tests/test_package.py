"""The public face: which names there are, and that importing them late is really late."""

from __future__ import annotations

import subprocess
import sys

import pytest

import keras_warmup as kw

PUBLIC = [
    "BatchCapture",
    "WarmupError",
    "WarmupExport",
    "WarmupOptions",
    "__version__",
    "add_warmup",
    "benchmark",
    "endpoints",
    "export_with_warmup",
    "inspect",
    "read_records",
    "save",
    "verify",
]


def test_public_names_are_these_and_all_resolve():
    assert sorted(kw.__all__) == PUBLIC
    assert dir(kw) == PUBLIC
    assert all(getattr(kw, name) is not None for name in PUBLIC)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'keras_warmup' has no attribute 'nope'"):
        kw.nope  # noqa: B018


def test_importing_the_package_imports_neither_tensorflow_nor_keras():
    code = "import sys, keras_warmup; print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_errors_and_options_need_no_tensorflow():
    code = "import sys; from keras_warmup import WarmupOptions; WarmupOptions(seed=1); print('tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"
