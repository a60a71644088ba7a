"""Times requests in fresh processes, and compares a few such timings."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from keras_warmup._protos import PredictionLog
from keras_warmup.errors import OptionsError, ReplayError
from keras_warmup.options import is_integer
from keras_warmup.paths import absolute
from keras_warmup.records.warmup_file import write_records
from keras_warmup.savedmodel.files import check_load_files
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.serving.child_process import child_environment, describe_exit

# What loads the model in a process: a C++ Session, as in a server, or a Session of Python.
Loader = Literal["c++", "python"]
# Called with (runs done, runs in total, what was run) after each run.
Progress = Callable[[int, int, str], None]

# Fewer values than this have no spread to compare a gain with.
MIN_VALUES = 3
# Files of a measurement are deleted with it, so the limits of a server do not apply.
UNLIMITED = 2**62


@dataclasses.dataclass(frozen=True)
class RunTiming:
    """The times of one run: a process or server that loaded the model and answered requests.

    Attributes:
        load_ms: time to load the model. Without the replay of the warmup file for a process; until
            the model is `AVAILABLE`, replay included, for a server.
        replay_ms: time of each record of the warmup file; empty where none was replayed, and for a
            server, which does not report it.
        request_ms: time of each request, in the order they were sent.
        memory_bytes: how far the process grew, at its peak, while it loaded the model and replayed
            the warmup file; `None` where that is not known, and for a server.
        peak_bytes: all memory of the process at that peak, Python and TensorFlow included.
        loader: what loaded the model; `None` for a server.
    """

    load_ms: float
    replay_ms: tuple[float, ...]
    request_ms: tuple[float, ...]
    memory_bytes: int | None = None
    peak_bytes: int | None = None
    loader: Loader | None = None


@dataclasses.dataclass(frozen=True)
class Timings:
    """Repeated timings of the same thing, milliseconds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return min(self.values), max(self.values)

    @property
    def spread(self) -> float:
        """The interquartile range, or the whole range of fewer than four values."""
        if len(self.values) < 4:
            return max(self.values) - min(self.values)
        lower, _, upper = statistics.quantiles(self.values, n=4, method="inclusive")
        return upper - lower

    def exceeds(self, other: Timings) -> bool:
        """Returns whether these are larger than the others beyond the noise of both.

        Every value must be larger than every one of `other`, and the medians must differ by more
        than either spread. Too few values never exceed others.
        """
        if min(len(self.values), len(other.values)) < MIN_VALUES:
            return False
        gain = self.median - other.median
        return min(self.values) > max(other.values) and gain > max(self.spread, other.spread)


class Engine(Protocol):
    """A process or server that can be started again and again, and answers requests."""

    def time_run(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        """Starts, loads the model, replays the warmup file, and times `count` requests in turn."""


class ProcessEngine:
    """Starts a process for each run, which loads the model as TensorFlow Serving does.

    Args:
        export_dir: a SavedModel.
    """

    def __init__(self, export_dir: str) -> None:
        self._export_dir = absolute(export_dir, os.getcwd())

    def time_run(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        """Times requests in a new process.

        Args:
            requests: requests to send; they are repeated in this order.
            count: number of requests to send.
            warmup_file: TFRecord of records to replay first; `None` for a cold start.

        Raises:
            SignatureError: there is no SavedModel, or it is damaged.
            ReplayError: the model does not load, a record or request fails, or the process ends.
        """
        with tempfile.TemporaryDirectory(prefix="keras-warmup-") as directory:
            requests_file, result_file, job_file = (
                pathlib.Path(directory, name) for name in ("requests", "result.json", "job.json")
            )
            write_records(requests_file, requests, max_records=UNLIMITED, max_bytes=UNLIMITED)
            job = {
                "export_dir": self._export_dir,
                "meta_graph": self._meta_graph.hex(),
                "warmup_file": None if warmup_file is None else absolute(warmup_file, os.getcwd()),
                "requests_file": str(requests_file),
                "requests": count,
                "result_file": str(result_file),
            }
            job_file.write_text(json.dumps(job), "utf-8")
            ended = subprocess.run(
                [sys.executable, "-m", "keras_warmup.bench.measure_process", str(job_file)],
                # Not the caller's directory: a module there could hide one of Python's.
                cwd=directory,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
            if not result_file.exists():
                # A model with tf.print writes values to stderr, so it is not quoted.
                raise ReplayError(
                    f"The process that measured {self._export_dir!r} "
                    f"{describe_exit(ended.returncode, ended.stderr)} before it returned a result."
                )
            result = json.loads(result_file.read_text("utf-8"))
        if "error" in result:
            raise ReplayError(result["error"])
        return RunTiming(
            load_ms=result["load_ms"],
            replay_ms=tuple(result["replay_ms"]),
            request_ms=tuple(result["request_ms"]),
            memory_bytes=result["memory_bytes"],
            peak_bytes=result["peak_bytes"],
            loader=result["loader"],
        )

    @functools.cached_property
    def _meta_graph(self) -> bytes:
        """The serialized `MetaGraphDef` without its graph.

        The process need not parse the graph in Python, which would count as its memory.
        """
        meta_graph = read_meta_graph(self._export_dir)
        check_load_files(self._export_dir, meta_graph)
        meta_graph.ClearField("graph_def")
        meta_graph.ClearField("object_graph_def")
        return bytes(meta_graph.SerializeToString())


def check_count(name: str, value: object, at_least: int = 1) -> None:
    """Raises an `OptionsError` where the value of an option is not an integer, or too small."""
    if not is_integer(value, at_least=at_least):
        raise OptionsError(f"{name} must be an integer >= {at_least}, got {value!r}.")
