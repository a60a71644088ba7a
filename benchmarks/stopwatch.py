"""Times blocks without the fsync calls in them, which depend on the disk and its other users."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator


class Stopwatch:
    """Seconds by name, one value for each time a block ran.

    Attributes:
        seconds: name -> seconds of its block, without fsync.
        fsync_seconds: name -> seconds of fsync in its block.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.fsync_seconds: dict[str, list[float]] = {}
        self._fsync_s = 0.0
        self._fsync = os.fsync
        os.fsync = self._timed_fsync  # type: ignore[assignment]

    def _timed_fsync(self, descriptor: int) -> None:
        started = time.perf_counter()
        self._fsync(descriptor)
        self._fsync_s += time.perf_counter() - started

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Times a block."""
        self._fsync_s = 0.0
        started = time.perf_counter()
        yield
        taken = time.perf_counter() - started
        self.seconds.setdefault(name, []).append(taken - self._fsync_s)
        self.fsync_seconds.setdefault(name, []).append(self._fsync_s)

    def clear(self) -> None:
        """Forgets all values."""
        self.seconds.clear()
        self.fsync_seconds.clear()
