"""Prepares the environment of child processes that run TensorFlow, and describes how they end."""

from __future__ import annotations

import os
import re
import signal

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Only the position in the source is read: the rest of the line may quote values. A line begins with
# the severity and the date; before TensorFlow 2.21, with the date and the severity.
_FATAL_CHECK = re.compile(
    rb"^(?:F\d{4}|[\d-]{10} [\d:.]+: F) (?:[^\n\]]*[ /])?([\w.-]+:\d+)\] Check failed",
    re.MULTILINE,
)
_PYTHON_ERROR = re.compile(rb"^([A-Za-z_.]+Error)\b", re.MULTILINE)


def child_environment() -> dict[str, str]:
    """Returns the environment of a child process that runs this package.

    It is the caller's, with TensorFlow on the CPU and without its informational log.
    """
    path = os.pathsep.join(filter(None, [PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # The Session runs on the CPU; initializing a GPU would only take its memory.
        "CUDA_VISIBLE_DEVICES": "-1",
        # `import tensorflow` then does not import Keras 3, which halves its time
        # (https://www.tensorflow.org/guide/keras).
        "TF_USE_LEGACY_KERAS": "1",
    }


def describe_exit(code: int, stderr: bytes) -> str:
    """Describes how a process ended, and which CHECK of TensorFlow failed, without values.

    Args:
        code: its return code, as in `subprocess`.
        stderr: the end of what it printed to stderr.
    """
    if code >= 0:
        raised = _PYTHON_ERROR.findall(stderr)
        return f"ended with exit code {code}" + (f" ({raised[-1].decode()})" if raised else "")
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    checks = _FATAL_CHECK.findall(stderr)
    if checks:
        name += f", a CHECK of TensorFlow failed at {checks[-1].decode(errors='replace')}"
    elif code == -signal.SIGKILL:
        name += "; the machine may be short of memory"
    return f"died ({name})"
