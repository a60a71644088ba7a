"""Timing requests in fresh processes, and what can be said of a handful of such timings."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Protocol

from keras_warmup._protos import PredictionLog
from keras_warmup.errors import ReplayError
from keras_warmup.records.warmup_file import write_records
from keras_warmup.serving.child_process import child_environment, describe_exit

# Fewer figures than this have no spread to compare a gain with.
MIN_FIGURES = 3
_UNLIMITED = 2**62


@dataclasses.dataclass(frozen=True)
class RunTiming:
    """What one freshly started process (or server) took.

    Attributes:
        load_ms: time to load the model, without replaying; for a server until it says `AVAILABLE`, replay included.
        replay_ms: time of each record of the warmup file; empty where none was replayed or the server does not tell.
        request_ms: time of each request, the first one first.
    """

    load_ms: float
    replay_ms: tuple[float, ...]
    request_ms: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Timings:
    """A few timings of the same thing, milliseconds, and their spread."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The least value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest value."""
        return max(self.values)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return self.low, self.high

    @property
    def spread(self) -> float:
        """Interquartile range; the whole range where there are fewer than four values."""
        if len(self.values) < 4:
            return self.high - self.low
        lower, _, upper = statistics.quantiles(self.values, n=4, method="inclusive")
        return upper - lower

    def exceeds(self, other: Timings) -> bool:
        """Whether these are larger than the others by more than either spreads, and no value of theirs overlaps."""
        if min(len(self.values), len(other.values)) < MIN_FIGURES:
            return False
        return self.low > other.high and self.median - other.median > max(self.spread, other.spread)


class Engine(Protocol):
    """Something that can be started anew, loads the model and answers requests."""

    def sample(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        """Starts anew, loads the model with this warmup file or none, sends `count` of the requests in turn."""


class ProcessEngine:
    """A Python process for each sample, with the model in a Session as TensorFlow Serving has it.

    Args:
        export_dir: a SavedModel.
    """

    def __init__(self, export_dir: str) -> None:
        # The child runs elsewhere, so that no module beside the caller hides one of Python's.
        self._export_dir = _absolute(export_dir)

    def sample(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        """Measures in a new process.

        Args:
            requests: what to send; the first one is sent first.
            count: how many to send, in turn.
            warmup_file: TFRecord of records to replay before; `None` for a cold start.

        Raises:
            ReplayError: the model does not load, a record or request fails, or the process dies.
        """
        with tempfile.TemporaryDirectory(prefix="keras-warmup-") as directory:
            requests_file, result_file, job_file = (
                os.path.join(directory, name) for name in ("requests", "result.json", "job.json")
            )
            write_records(requests_file, requests, max_records=_UNLIMITED, max_bytes=_UNLIMITED)
            job = {
                "export_dir": self._export_dir,
                "warmup_file": None if warmup_file is None else _absolute(warmup_file),
                "requests_file": requests_file,
                "requests": count,
                "result_file": result_file,
            }
            with open(job_file, "w", encoding="utf-8") as file:
                json.dump(job, file)
            ended = subprocess.run(
                [sys.executable, "-m", "keras_warmup.bench.measure_process", job_file],
                cwd=directory,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
            if not os.path.exists(result_file):
                raise ReplayError(_describe_death(self._export_dir, ended.returncode, ended.stderr))
            with open(result_file, encoding="utf-8") as file:
                result = json.load(file)
        if "error" in result:
            raise ReplayError(result["error"])
        return RunTiming(result["load_ms"], tuple(result["replay_ms"]), tuple(result["request_ms"]))


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _describe_death(export_dir: str, code: int, stderr: bytes) -> str:
    # Nothing else of what it printed: a model with tf.print prints values.
    return f"The process that measured {export_dir!r} {describe_exit(code, stderr)} before it had measured anything."
