"""Measures how far the memory of this process grows."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import pathlib
import re

STATUS = pathlib.Path("/proc/self/status")
_CLEAR_REFS = pathlib.Path("/proc/self/clear_refs")


class PeakMemory:
    """The growth of this process from here on to its peak; resident memory, Linux only."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):
            # Freed memory that the process still holds would hide as much growth (glibc only).
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            # Sets VmHWM back to VmRSS (https://docs.kernel.org/filesystems/proc.html).
            _CLEAR_REFS.write_text("5", "ascii")
        self._start_bytes = _status_bytes("VmRSS")

    def peak_bytes(self) -> int | None:
        """Returns the peak of the whole process since the start; `None` if unknown."""
        return _status_bytes("VmHWM")

    def growth_bytes(self) -> int | None:
        """Returns the peak since the start less the memory at the start; `None` if unknown."""
        peak_bytes = self.peak_bytes()
        if peak_bytes is None or self._start_bytes is None:
            return None
        return max(0, peak_bytes - self._start_bytes)


def _status_bytes(field: str) -> int | None:
    """Reads a field of `/proc/self/status`; `None` where there is no such file or field."""
    try:
        status = STATUS.read_text("ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
