"""The growth of a process is that since the start, at its peak."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from keras_warmup.bench import memory
from keras_warmup.bench.memory import PeakMemory

MIB = 2**20
needs_proc = pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs the /proc of Linux"
)


@needs_proc
def test_memory_that_is_freed_again_counts() -> None:
    peak = PeakMemory()
    del_me = np.ones(64 * MIB, np.uint8)
    del del_me
    growth_bytes = peak.growth_bytes()
    assert growth_bytes is not None and 60 * MIB < growth_bytes < 90 * MIB
    peak_bytes = peak.peak_bytes()
    assert peak_bytes is not None and peak_bytes > growth_bytes


@needs_proc
def test_growth_before_the_start_does_not_count() -> None:
    before = np.ones(64 * MIB, np.uint8)
    del before
    growth_bytes = PeakMemory().growth_bytes()
    assert growth_bytes is not None and growth_bytes < 16 * MIB


def test_without_proc_the_growth_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert PeakMemory().growth_bytes() is None
    assert PeakMemory().peak_bytes() is None
