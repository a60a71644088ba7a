"""Keeps TensorFlow's C++ log from quoting tensor values while a model runs.

When an op fails, TensorFlow logs its status as a warning (`local_rendezvous.cc`, `op_kernel.cc`).
The status quotes the op's inputs, which are training data. It is also raised as an error, of which
`op_errors.py` shows the part that holds no values.
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
_FIRST_VERSION = (2, 21)
_lock = threading.Lock()
_running = 0
_previous_level = 0


@contextlib.contextmanager
def no_status_log() -> Iterator[None]:
    """Raises TensorFlow's log level to errors, in all threads of the process.

    Other output to stderr is not changed. Before TensorFlow 2.21 this does nothing: the log level
    is fixed when TensorFlow logs first, so TF_CPP_MIN_LOG_LEVEL=2 must be set before the import.
    """
    global _running, _previous_level  # noqa: PLW0603
    functions = log_level_functions()
    if functions is None:
        yield
        return
    level, set_level = functions
    with _lock:
        if _running == 0:
            _previous_level = level()
            set_level(max(_previous_level, _ERROR))
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0:
                set_level(_previous_level)


@functools.cache
def log_level_functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Loads `absl::MinLogLevel` and `absl::SetMinLogLevel`; `None` where TensorFlow lacks them.

    TensorFlow before 2.21 may have them, but its own log does not heed them. Python has no access
    to the log level. The mangled names contain the inline namespace of the Abseil release, which a
    header of TensorFlow tells.
    """
    if tuple(map(int, tf.__version__.split(".")[:2])) < _FIRST_VERSION:
        return None
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
