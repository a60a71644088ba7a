"""Runs functions, such as the readers of a SavedModel, in child processes and measures each.

Each child is forked from a process that has imported TensorFlow and done nothing else, so that a
crash or a hang ends only one case, and the memory of a case is the growth of its own peak.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import io
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from tests.trust.figures import HostileFigures

MAX_SECONDS = 10
MAX_MIB = 1024
# When to kill a case that does not end. Generous, since the machine may be busy.
_KILLED_AFTER = 6 * MAX_SECONDS


@dataclasses.dataclass(frozen=True)
class Case:
    """One call to measure.

    Attributes:
        name: name in reports.
        arguments: arguments of the function that JSON can hold.
        function: `module:name`. It may return a number of WarmupErrors, if it reads several files.
    """

    name: str
    arguments: tuple[Any, ...]
    function: str = "tests.trust.measured:look_at"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one case.

    Attributes:
        name: name of the case.
        error: type and message of the WarmupError; empty without one.
        problem: traceback of another exception, or how the process ended; empty without one.
        refused: number of WarmupErrors.
        seconds: wall time, so that a case that waits for something counts as a hang.
        mib: growth of the peak of resident memory since the import of TensorFlow, MiB.
    """

    name: str
    error: str
    problem: str
    refused: int
    seconds: float
    mib: int

    @property
    def is_good(self) -> bool:
        """Whether the case ended within both bounds, with success or a WarmupError."""
        return not self.problem and self.seconds < MAX_SECONDS and self.mib < MAX_MIB

    def __str__(self) -> str:
        outcome = self.problem or self.error or "well"
        return f"{self.name}: {self.seconds:.1f} s, {self.mib} MiB, {outcome}"


def run_measured(cases: Sequence[Case]) -> list[Outcome]:
    """Runs each case in a child of its own."""
    jobs = json.dumps([dataclasses.asdict(case) for case in cases])
    tests = pathlib.Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")]
        ),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # In a new process: this one has threads, and memory of its own.
    ran = subprocess.run(
        [sys.executable, "-m", "tests.trust.measured"],
        input=jobs,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [Outcome(**json.loads(line)) for line in ran.stdout.splitlines()]


def figures_of(attack: str, count: int, outcomes: Sequence[Outcome]) -> HostileFigures:
    """Returns the figures of a run over `count` files."""
    return HostileFigures(
        attack,
        count,
        crashes=sum(bool(one.problem) for one in outcomes),
        hangs=sum(one.seconds >= MAX_SECONDS for one in outcomes),
        exhausted=sum(one.mib >= MAX_MIB for one in outcomes),
        slowest_s=max(one.seconds for one in outcomes),
        largest_mib=max(one.mib for one in outcomes),
        measured={"refused": sum(one.refused for one in outcomes)},
        examples=[str(one) for one in outcomes if not one.is_good],
    )


def look_at(path: str) -> None:
    """Calls all readers of a SavedModel, which do not run it, and prints their results."""
    import rich.console

    import keras_warmup as kw
    from keras_warmup.inspection import list_records
    from keras_warmup.records.warmup_file import WARMUP_PATH
    from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
    from keras_warmup.savedmodel.twins import find_twins

    console = rich.console.Console(file=io.StringIO(), width=100)
    inspection = kw.inspect(path)
    json.dumps(inspection.to_dict()).encode()
    console.print(inspection)
    meta_graph = read_meta_graph(path)
    find_twins(meta_graph, read_signatures(meta_graph))
    if os.path.lexists(os.path.join(path, WARMUP_PATH)):
        records = list_records(path)
        json.dumps(records.to_dict()).encode()
        console.print(records)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    printed.encode()
    if not all(character.isprintable() or character == "\n" for character in printed):
        raise ValueError("control characters were printed")


def _run_child(case: Case) -> dict[str, Any]:
    from keras_warmup.errors import WarmupError

    module, _, name = case.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    error, problem, refused = "", "", 0
    try:
        refused = function(*case.arguments) or 0
    except WarmupError as raised:
        error, refused = f"{type(raised).__name__}: {raised}"[:2000], 1
    except BaseException:
        problem = traceback.format_exc()[-3000:]
    return {"error": error, "problem": problem, "refused": refused}


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _run_forked(case: Case) -> Outcome:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        # The default action of SIGALRM ends the process, whatever it does.
        signal.alarm(_KILLED_AFTER)
        before, started = _peak_mib(), time.perf_counter()
        result = _run_child(case)
        result |= {"seconds": time.perf_counter() - started, "mib": max(0, _peak_mib() - before)}
        with contextlib.suppress(OSError), os.fdopen(writing, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        return Outcome(
            case.name, "", f"the process ended with status {status}", 0, float(_KILLED_AFTER), 0
        )
    return Outcome(case.name, **json.loads(answer))


def main() -> None:
    """Reads cases from standard input and writes one outcome a line."""
    import tensorflow as tf

    import keras_warmup.inspection
    import keras_warmup.savedmodel.twins  # noqa: F401

    hasattr(tf.raw_ops, "Identity")  # imports the raw ops
    # Otherwise the first collection in each child would copy the memory of all imports.
    gc.freeze()
    for fields in json.load(sys.stdin):
        outcome = _run_forked(Case(**fields))
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
