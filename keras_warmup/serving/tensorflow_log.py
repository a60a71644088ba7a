"""Keeps TensorFlow's C++ log from quoting tensor values while a model runs.

When an op fails, TensorFlow logs its status as a warning (`local_rendezvous.cc`, `op_kernel.cc`), and that quotes what the
op was fed: training data. The same status comes back as an error, of which `op_errors.py` shows what has no values.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator

import tensorflow as tf

_ERROR = 2  # absl::LogSeverityAtLeast::kError
_lock = threading.Lock()
_running = 0
_level_before = 0


@contextlib.contextmanager
def no_status_log() -> Iterator[None]:
    """Logs errors only, while open; TensorFlow's log level is that of the process, so this holds for all its threads.

    Nothing else that is written to stderr is touched. TensorFlow before 2.21 has a log of its own with a level that is
    fixed at its first message: there nothing is changed, and TF_CPP_MIN_LOG_LEVEL=2 has to be set before the import.
    """
    global _running, _level_before  # noqa: PLW0603
    functions = _log_level()
    if functions is None:
        yield
        return
    level, set_level = functions
    with _lock:
        if _running == 0:
            _level_before = level()
            set_level(max(_level_before, _ERROR))
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0:
                set_level(_level_before)


@functools.cache
def _log_level() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """`absl::MinLogLevel` and `absl::SetMinLogLevel` of the running TensorFlow; `None` where it does not log by them."""
    # Their names hold the release of Abseil, which its header tells. There is no other way from Python.
    header = os.path.join(tf.sysconfig.get_include(), "absl", "base", "options.h")
    try:
        with open(header, encoding="utf-8") as file:
            release = re.search(
                r"^#define ABSL_OPTION_INLINE_NAMESPACE_NAME (\w+)$", file.read(), re.MULTILINE
            )
        library = ctypes.CDLL(os.path.join(tf.sysconfig.get_lib(), "libtensorflow_framework.so.2"))
    except OSError:
        return None
    if release is None:
        return None
    namespace = f"_ZN4absl{len(release[1])}{release[1]}"
    try:
        level = getattr(library, f"{namespace}11MinLogLevelEv")
        set_level = getattr(library, f"{namespace}14SetMinLogLevelENS0_18LogSeverityAtLeastE")
    except AttributeError:
        return None
    level.restype, level.argtypes = ctypes.c_int, ()
    set_level.restype, set_level.argtypes = None, (ctypes.c_int,)
    return level, set_level
