"""No hostile file crashes, hangs or exhausts the process that calls `verify`.

TensorFlow runs the file in a worker process with limits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

import pytest

from keras_warmup.errors import WarmupError
from keras_warmup.serving import worker
from keras_warmup.verification import verify
from tests.trust.figures import HostileFigures
from tests.trust.fuzz import mutate_model
from tests.trust.hostile_models import HOSTILE
from tests.trust.test_fuzz import exports  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(
    not pathlib.Path("/proc/self/status").exists(), reason="limits and figures of memory need Linux"
)

MAX_SECONDS = 10
MAX_MIB = 1024
# Reading the largest file takes 3 s; loading one that hangs TensorFlow is ended after this.
_TIMEOUT_S = 6

Build = Callable[[pathlib.Path], None]
Report = Callable[[HostileFigures], None]

# Some that hang or crash TensorFlow itself, and one of each other kind; the others are marked
# `trust`.
QUICK = (
    "Abort in the init op",
    "a function that calls itself",
    "60 levels of functions that call the next one twice",
    "Unpack with 10^9 outputs",
    "control characters and markup in names",
    "saved model is noise",
    "variables are fifos",
    "variables are noise",
    "an asset is a fifo",
    "warmup: a header that claims 3 GiB",
    "warmup file is a fifo",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one case.

    Attributes:
        name: name of the case.
        said: the WarmupError, or the first failure of the report; empty on success.
        problem: traceback of another exception; empty without one.
        ended: whether the worker died or had to be ended.
        seconds: duration, without the start of a worker.
        mib: growth of the worker's peak of resident memory since its start, MiB.
    """

    name: str
    said: str
    problem: str
    ended: bool
    seconds: float
    mib: int

    @property
    def is_good(self) -> bool:
        """Whether it ended within both bounds, with a report or a WarmupError."""
        return not self.problem and self.seconds < MAX_SECONDS and self.mib < MAX_MIB

    def __str__(self) -> str:
        outcome = self.problem or self.said or "well"
        return f"{self.name}: {self.seconds:.1f} s, {self.mib} MiB, {outcome}"


class _Peak:
    """Watches the peak of a process's resident memory, even if the process dies meanwhile."""

    def __init__(self, pid: int) -> None:
        self._path = f"/proc/{pid}/status"
        pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets the peak
        self._before = self._peak_kib = self._read()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _read(self) -> int:
        with contextlib.suppress(OSError):
            for line in pathlib.Path(self._path).read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1])
        return 0

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._peak_kib = max(self._peak_kib, self._read())

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._peak_kib = max(self._peak_kib, self._read())
            self._done.set()
            self._thread.join()

    @property
    def mib(self) -> int:
        return (self._peak_kib - self._before) // 1024


def _verify(name: str, export_dir: pathlib.Path) -> Outcome:
    worker.start_worker()
    running = worker._worker
    assert running is not None
    running.wait_until_ready()
    said = problem = ""
    ended = False
    peak = _Peak(running.process.pid)
    started = time.perf_counter()
    with peak.watched():
        try:
            report = verify(
                export_dir, isolated=True, timeout_s=_TIMEOUT_S, memory_limit_bytes=MAX_MIB * 2**20
            )
        except WarmupError as error:
            said = f"{type(error).__name__}: {error}"[:500]
        except Exception:  # must not happen
            problem = traceback.format_exc()
        else:
            said = (report.failures or ("",))[0][:500]
            ended = any("The process that ran the model" in failure for failure in report.failures)
        seconds = time.perf_counter() - started
    return Outcome(name, said, problem, ended, seconds, peak.mib)


def _verify_all(
    attack: str, tmp_path: pathlib.Path, cases: Sequence[tuple[str, Build]]
) -> HostileFigures:
    outcomes = []
    for index, (name, build) in enumerate(cases):
        directory = tmp_path / str(index)
        build(directory / "1")
        outcomes.append(_verify(name, directory / "1"))
        shutil.rmtree(directory, ignore_errors=True)
    return HostileFigures(
        attack,
        len(outcomes),
        crashes=sum(bool(one.problem) for one in outcomes),
        hangs=sum(one.seconds >= MAX_SECONDS for one in outcomes),
        exhausted=sum(one.mib >= MAX_MIB for one in outcomes),
        slowest_s=max(one.seconds for one in outcomes),
        largest_mib=max(one.mib for one in outcomes),
        measured={"workers that TensorFlow or a limit ended": sum(one.ended for one in outcomes)},
        examples=[str(one) for one in outcomes if not one.is_good],
    )


@pytest.mark.filterwarnings("ignore:SavedModel")
def test_quick_hostile_files_are_verified_well(
    tmp_path: pathlib.Path, report_figures: Report
) -> None:
    report_figures(
        _verify_all(
            "some hostile files, verify", tmp_path, [(name, HOSTILE[name]) for name in QUICK]
        )
    )


@pytest.mark.trust
@pytest.mark.filterwarnings("ignore:SavedModel")
def test_all_hostile_files_are_verified_well(
    tmp_path: pathlib.Path, report_figures: Report
) -> None:
    report_figures(_verify_all("hostile files, verify", tmp_path, list(HOSTILE.items())))


def _mutant(base: pathlib.Path, seed: int) -> Build:
    def build(directory: pathlib.Path) -> None:
        shutil.copytree(base, directory, copy_function=shutil.copyfile)
        directory.chmod(0o755)  # the base may be read-only
        saved_model = directory / "saved_model.pb"
        saved_model.write_bytes(mutate_model(saved_model.read_bytes(), seed))

    return build


@pytest.mark.trust
@pytest.mark.filterwarnings("ignore:SavedModel")
def test_mutants_are_verified_well(
    exports: list[pathlib.Path],  # noqa: F811
    tmp_path: pathlib.Path,
    report_figures: Report,
) -> None:
    cases = [
        (f"{base.parent.name}, seed {seed}", _mutant(base, seed))
        for seed, base in zip(range(300), itertools.cycle(exports))
    ]
    report_figures(_verify_all("fuzzed saved_model.pb files, verify", tmp_path, cases))
