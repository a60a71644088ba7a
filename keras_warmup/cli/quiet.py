"""Keeps the messages that TensorFlow logs while it starts from stderr.

TensorFlow logs while it is imported, before it reads `TF_CPP_MIN_LOG_LEVEL`
(https://github.com/tensorflow/tensorflow/issues/100442). So file descriptor 2 is redirected during
the import, to a process that holds the messages until the import has ended. The process outlives
this one: if TensorFlow crashes or aborts, all that it wrote still appears.

The process runs this file as a script, so nothing of the package can be imported here.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator

# Written last if TensorFlow started.
_STARTED = b"\0started\n"
# Lines that say nothing about the command: information, and what GPU builds of TensorFlow log on
# every start (two copies of XLA register the same plugins) or where there is no GPU. The models run
# on the CPU.
_START_UP_LINE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called"
    rb"|^I\d{4} [\d:.]+ +\d+ \S+:\d+\] "  # the log format of Abseil
    rb"|^[\d-]{10} [\d:.]+: I \S+:\d+\] "  # the log format of TensorFlow before 2.21
    rb"|^To enable the following instructions: "
    rb"|Unable to register cu\w+ factory: "
    rb"|computation placer already registered"
    rb"|TF-TRT Warning: Could not find TensorRT"
    rb"|failed call to cuInit: "
)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Hides TensorFlow's start-up messages in the block that imports it.

    Where the block raises an error, or the process ends in it, everything that was written to file
    descriptor 2 appears. Otherwise all but the known messages does, at the end of the block.
    Nothing is hidden if `TF_CPP_MIN_LOG_LEVEL` is 0.
    """
    shows_all = os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"
    if shows_all or "tensorflow" in sys.modules or sys.stderr is None:
        yield
        return
    printer = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Ctrl-C in a terminal must not end it before it has printed.
        start_new_session=True,
    )
    last = _STARTED
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(printer.stdin.fileno(), 2)  # type: ignore[union-attr]
    try:
        yield
    except Exception:
        last = b""
        raise
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        printer.communicate(last)


def _print_messages() -> None:
    """Prints what comes from stdin, without the start-up lines if TensorFlow started."""
    messages = sys.stdin.buffer.read()
    if messages.endswith(_STARTED):
        lines = messages.removesuffix(_STARTED).splitlines(keepends=True)
        messages = b"".join(line for line in lines if not _START_UP_LINE.search(line))
    sys.stderr.buffer.write(messages)


if __name__ == "__main__":
    _print_messages()
