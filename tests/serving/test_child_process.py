"""The end of a child process is described without what it printed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from keras_warmup.serving.child_process import child_environment, describe_exit

CHECK = b"F0000 00:00:17 1234 tensor.cc:844] Check failed: 1 == NumElements() (1 vs. 774242)\n"
# As TensorFlow before 2.21 logs it.
OLD_CHECK = (
    b"2026-11-26 13:00:10.8: F tensorflow/core/framework/tensor.cc:844] Check failed: 1 == 2\n"
)


@pytest.mark.parametrize(
    ("code", "stderr", "description"),
    [
        (3, b"", "ended with exit code 3"),
        (1, b"Traceback\nImportError: no\n", "ended with exit code 1 (ImportError)"),
        (-signal.SIGSEGV, b"", "died (SIGSEGV)"),
        (-signal.SIGKILL, b"", "died (SIGKILL; the machine may be short of memory)"),
        (-signal.SIGABRT, CHECK, "died (SIGABRT, a CHECK of TensorFlow failed at tensor.cc:844)"),
        (
            -signal.SIGABRT,
            OLD_CHECK,
            "died (SIGABRT, a CHECK of TensorFlow failed at tensor.cc:844)",
        ),
        (-63, b"", "died (signal 63)"),
    ],
    ids=["code", "python", "signal", "killed", "check", "old-check", "real-time"],
)
def test_an_exit_is_described(code: int, stderr: bytes, description: str) -> None:
    assert describe_exit(code, stderr) == description


def test_a_child_finds_the_package_from_another_directory(tmp_path: str) -> None:
    code = "import os, keras_warmup; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(
        command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True, check=True
    ).stdout
    assert printed == "-1\n"
