"""Compares hundreds of exports in one `fit` with as many plain `model.export`s.

Memory, handles, threads and time must not grow more.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras

import keras_warmup as kw
from tests.trust.faults import Trials
from tests.trust.figures import Figures, timed
from tests.trust.judging import leftovers_of
from tests.trust.scenarios import WARMUP, build_model, build_rows, versions_of

WINDOW = 50
_KEPT = 2
_TIMEOUT_S = 3000.0


@dataclasses.dataclass(frozen=True)
class Growth:
    """A measurement of a process: medians over its first and its last exports."""

    first: float
    last: float

    def __str__(self) -> str:
        return f"{self.first:.4g} -> {self.last:.4g}"


def export_for_long(trials: Trials, epochs: int = 500) -> Figures:
    """Exports at each epoch of one `fit`, and as often with plain `model.export`."""
    figures = Figures(f"{epochs} exports in one fit")
    with timed(figures):
        growth = {}
        for name in ("plain", "warm"):
            root = trials.scratch / name
            (root / "m").mkdir(parents=True)
            child = trials.server.start(
                f"tests.trust.endurance:fit_{name}", {"base": str(root / "m"), "epochs": epochs}
            )
            outcome = child.wait(_TIMEOUT_S)
            if outcome.ended != "returned":
                figures.add("failed", f"{name}: {outcome.error}: {outcome.message[:300]}")
                return figures
            growth[name] = _growth_of(outcome.value)
            for measure, one in growth[name].items():
                figures.measured[f"{measure}, {_LABELS[name]}"] = str(one)
    figures.trials = epochs
    base = trials.scratch / "warm" / "m"
    if versions_of(base) != [epochs - 1, epochs]:
        figures.add("failed", f"the versions left are {versions_of(base)}")
    left = leftovers_of(base.parent, base)
    if left:
        figures.add("leftovers", ", ".join(left[:5]))
    for measure, allowed in _ALLOWED.items():
        plain, warm = growth["plain"][measure], growth["warm"][measure]
        if not allowed(plain, warm):
            figures.add("failed", f"{measure} grows: {warm}, with plain model.export {plain}")
    return figures


_LABELS = {"plain": "model.export", "warm": "WarmupExport"}

# Measurement -> whether (model.export, WarmupExport) is good: it grows no more than plain
# model.export, within the difference of two runs of that.
_ALLOWED: dict[str, Callable[[Growth, Growth], bool]] = {
    "MB": lambda plain, warm: warm.last - warm.first <= 1.5 * (plain.last - plain.first) + 20,
    "handles": lambda plain, warm: warm.last - warm.first <= max(plain.last - plain.first, 0),
    "threads": lambda plain, warm: warm.last - warm.first <= max(plain.last - plain.first, 0),
    # CPU seconds, since wall time depends on what else the machine does.
    "CPU s each": lambda plain, warm: (
        warm.last / warm.first <= max(plain.last / plain.first, 1) * 1.25
    ),
    "s each": lambda plain, warm: True,
}


def _growth_of(samples: list[list[float]]) -> dict[str, Growth]:
    window = min(WINDOW, len(samples) // 2)
    columns = list(zip(*samples, strict=True))
    return {
        measure: Growth(statistics.median(column[:window]), statistics.median(column[-window:]))
        for measure, column in zip(_ALLOWED, columns, strict=True)
    }


def _sample(cpu_s: float, seconds: float) -> list[float]:
    """Measures this process, in the order of `_ALLOWED`.

    The measurements are resident MB, open handles, threads, and both times of its last export.
    """
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return [
        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        float(len(os.listdir("/proc/self/fd"))),
        float(len(os.listdir("/proc/self/task"))),
        cpu_s,
        seconds,
    ]


class _Start(keras.callbacks.Callback):
    """Records when the exports of an epoch begin."""

    began = cpu_began = 0.0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.began, self.cpu_began = time.perf_counter(), time.process_time()


class _Sample(keras.callbacks.Callback):
    """Takes a sample after the export of each epoch."""

    def __init__(self, start: _Start) -> None:
        super().__init__()
        self._start = start
        self.samples: list[list[float]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        cpu_s, seconds = (
            time.process_time() - self._start.cpu_began,
            time.perf_counter() - self._start.began,
        )
        self.samples.append(_sample(cpu_s, seconds))


class _PlainExport(keras.callbacks.Callback):
    """Exports with `model.export` alone, as a user would write it."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self._base = base

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.export(f"{self._base}/{epoch + 1}", verbose=False)
        if epoch + 1 > _KEPT:
            shutil.rmtree(f"{self._base}/{epoch + 1 - _KEPT}")


def _fit(export: keras.callbacks.Callback, epochs: int) -> list[list[float]]:
    model = build_model(2)
    model.compile("sgd", "mse")
    rows = build_rows(2)
    start = _Start()
    sample = _Sample(start)
    model.fit(
        rows, rows[:, :3], batch_size=8, epochs=epochs, verbose=0, callbacks=[start, export, sample]
    )
    return sample.samples


def fit_plain(base: str, epochs: int) -> list[list[float]]:
    """Trains with plain `model.export` at each epoch; runs in a child."""
    return _fit(_PlainExport(base), epochs)


def fit_warm(base: str, epochs: int) -> list[list[float]]:
    """Trains with `WarmupExport` at each epoch; runs in a child."""
    export = kw.WarmupExport(
        f"{base}/{{version}}", save_freq="epoch", max_to_keep=_KEPT, warmup=WARMUP, verbose=0
    )
    return _fit(export, epochs)
