"""Kills, interrupts, failing file operations and full disks.

An attack disturbs a scenario at every one of its file operations, or at many of them.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from keras_warmup.errors import WarmupError
from tests.trust import scenarios, shim
from tests.trust.completeness import IncompleteError, read_version
from tests.trust.figures import Figures, timed
from tests.trust.forkserver import ForkServer, Outcome
from tests.trust.judging import Fault, judge_disturbed, judge_done, leftovers_of
from tests.trust.scenarios import SCENARIOS, versions_of

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EMFILE, errno.EROFS)
ALL = tuple(SCENARIOS)
# These replace version 1; where directories cannot be exchanged, it is missing for a moment.
REPLACING = ("overwrite", "save", "repair")


class Trials:
    """Makes a fresh directory for each trial, from templates that were made once.

    Args:
        server: forks the children.
        scratch: an empty directory.
    """

    def __init__(self, server: ForkServer, scratch: pathlib.Path) -> None:
        self.server = server
        self.scratch = scratch
        self._numbers = itertools.count(1)

    def fresh(
        self, name: str, parent: pathlib.Path | None = None, killed: shim.Arm | None = None
    ) -> pathlib.Path:
        """Makes the root of a trial; `m` in it is the base path, prepared for a scenario.

        Args:
            name: the scenario.
            parent: where to make it. Defaults to `None`: in the scratch directory.
            killed: how the scenario was killed there before. Defaults to `None`: not at all.
        """
        template = self.scratch / "templates" / (name if killed is None else f"{name}-killed")
        if not template.exists() and killed is None:
            (template / "m").mkdir(parents=True)
            outcome = self.server.run(
                "tests.trust.scenarios:prepare", {"name": name, "base": str(template / "m")}
            )
            if outcome.ended != "returned":
                raise RuntimeError(f"cannot prepare {name!r}: {outcome}")
        elif not template.exists():
            root = self.fresh(name)
            if self.run(name, root, arm=killed).ended != "killed":
                raise RuntimeError(f"{name!r} ends before operation {killed.first}")
            root.rename(template)
        root = (parent or self.scratch) / f"trial-{next(self._numbers)}"
        shutil.copytree(template, root, symlinks=True)
        return root

    def run(self, name: str, root: pathlib.Path, generation: int = 2, **options: Any) -> Outcome:
        """Runs a scenario in a child."""
        arguments = {"name": name, "base": str(root / "m"), "generation": generation}
        return self.server.run("tests.trust.scenarios:run", arguments, root=root, **options)

    def count(self, name: str, killed: shim.Arm | None = None, **options: Any) -> int:
        """Counts the file operations of a scenario in an undisturbed run."""
        root = self.fresh(name, killed=killed)
        outcome = self.run(name, root, arm=shim.Arm(**options))
        faults = judge_done(root / "m", SCENARIOS[name].done)
        left = leftovers_of(root, root / "m")
        if outcome.ended != "returned" or faults or left:
            raise RuntimeError(
                f"{name!r} fails undisturbed: {outcome}, {faults}, left over: {left}"
            )
        shutil.rmtree(root)
        return outcome.operations


def spread(total: int, count: int) -> list[int]:
    """Returns at most `count` numbers of 1 to `total`, evenly spaced."""
    count = min(count, total)
    return [1 + int((index + 0.5) * total / count) for index in range(count)]


def share_out(totals: dict[str, int], count: int) -> list[tuple[str, int]]:
    """Spreads `count` points over scenarios of `totals` operations, the shortest first.

    A scenario with fewer operations than its share gets all of them; the rest goes to longer ones.
    """
    points: list[tuple[str, int]] = []
    names = sorted(totals, key=totals.__getitem__)
    for index, name in enumerate(names):
        fair = -(-(count - len(points)) // (len(names) - index))
        points += [(name, number) for number in spread(totals[name], max(fair, 0))]
    return points


def kill_everywhere(
    trials: Trials,
    count: int,
    names: Sequence[str] = ALL,
    *,
    deny_exchange: bool = False,
    twice: bool = False,
) -> Figures:
    """Kills an export before file operations that change something; then the next export runs.

    Args:
        trials: makes the directories and children.
        count: kills, over all scenarios.
        names: the scenarios.
        deny_exchange: whether `renameat2` refuses its flags.
        twice: whether the killed export finds, and sweeps, the remains of an earlier kill.
    """
    figures = Figures(
        "kills"
        + (" of an export that sweeps" if twice else "")
        + (", no exchange" if deny_exchange else "")
    )
    newest = dict.fromkeys(names, 0)
    with timed(figures):
        first = {
            name: _first_kill(trials, name, deny_exchange) if twice else None for name in names
        }
        totals = {
            name: trials.count(name, first[name], deny_exchange=deny_exchange) for name in names
        }
        for name, number in share_out(totals, count):
            root = trials.fresh(name, killed=first[name])
            where = f"{name} before operation {number}"
            outcome = trials.run(
                name, root, arm=shim.Arm.at(number, shim.KILL, deny_exchange=deny_exchange)
            )
            if outcome.ended != "killed":
                # The number of operations varies a little, since threads do some of them.
                figures.measure("not reached")
                shutil.rmtree(root)
                continue
            figures.trials += 1
            has_gap = deny_exchange and name in REPLACING
            faults = judge_disturbed(SCENARIOS[name], root / "m", gap_allowed=has_gap)
            # Points come in order: what is published at one must be there at all later ones.
            listed = max(versions_of(root / "m"), default=0)
            if listed < newest[name] and not has_gap:
                faults.append(
                    (
                        "missing",
                        f"version {newest[name]} was listed at an earlier operation, now {listed}",
                    )
                )
            newest[name] = max(newest[name], listed)
            if listed:
                faults += judge_next(name, root, trials.run(name, root, generation=3))
            else:
                figures.measure("gaps")
                faults += _judge_restored(trials, name, root)
            tally(figures, where, faults, root)
    return figures


def _first_kill(trials: Trials, name: str, deny_exchange: bool) -> shim.Arm:
    """Chooses where to kill the first of two exports.

    It is killed half-way, or right after the old version was moved aside.
    """
    root = trials.fresh(name)
    log = trials.scratch / "operations.log"
    trials.run(name, root, arm=shim.Arm(deny_exchange=deny_exchange), log=log)
    operations = shim.read_log(log)
    number = len(operations) // 2
    if deny_exchange and name in REPLACING:
        old = os.path.realpath(root / "m" / "1")
        number = 2 + next(
            index
            for index, one in enumerate(operations)
            if one.path == old and one.other and not one.error
        )
    shutil.rmtree(root)
    return shim.Arm.at(number, shim.KILL, deny_exchange=deny_exchange)


def _judge_restored(trials: Trials, name: str, root: pathlib.Path) -> list[Fault]:
    """Judges the export to another version after a kill in the gap; it restores the old version."""
    following = trials.run("new", root, generation=3)
    faults = judge_next("new", root, following)
    try:
        state = read_version(root / "m" / "1").state
    except IncompleteError as error:
        return [*faults, ("missing", f"version 1 is not brought back: {error}")]
    if state not in SCENARIOS[name].allowed[1]:
        faults.append(
            ("missing", f"version 1 is not brought back, but holds the generations {state}")
        )
    return faults


def interrupt_everywhere(trials: Trials, count: int, names: Sequence[str] = ALL) -> Figures:
    """Sends SIGINT before file operations of any class; the process lives on and exports again."""
    figures = Figures("interrupts (SIGINT)")
    with timed(figures):
        totals = {
            name: trials.count(name, classes=shim.CHANGE | shim.READ | shim.LOOK) for name in names
        }
        for name, number in share_out(totals, count):
            root = trials.fresh(name)
            arm = shim.Arm.at(number, shim.INTERRUPT, classes=shim.CHANGE | shim.READ | shim.LOOK)
            story = _story(trials, name, root, arm, figures, f"{name} before operation {number}")
            if story is None:
                continue
            faults = [tuple(fault) for fault in story["faults"]]
            if story["error"] == "":
                figures.measure("swallowed")
            elif story["error"] != "KeyboardInterrupt":
                # pybind11 raises RuntimeError if a signal arrives while TensorFlow raises an error.
                figures.measure("surfaced as another error")
            if story["left_at_once"]:
                figures.measure("cleaned up by the next export only")
            tally(figures, f"{name} before operation {number}", faults, root)
    return figures


@dataclasses.dataclass(frozen=True)
class Failure:
    """How operations fail.

    Attributes:
        attack: name in the table.
        classes: classes of the operations that fail.
        errnos: error numbers, used in turn.
        lasting: whether all later operations fail as well, clean-up included.
        has_reason: whether the error must hold the reason. TensorFlow drops the reason of a failing
            `stat` or `access`.
    """

    attack: str
    classes: int
    errnos: tuple[int, ...]
    lasting: bool = False
    has_reason: bool = True


FAILURES = (
    Failure("failing changes of files", shim.CHANGE, ERRNOS),
    Failure("changes that fail from then on", shim.CHANGE, (errno.EIO, errno.EROFS), lasting=True),
    Failure("failing reads", shim.READ, (errno.EIO, errno.EACCES, errno.EMFILE)),
    Failure("failing looks (stat)", shim.LOOK, (errno.EIO, errno.EACCES), has_reason=False),
)


def fail_everywhere(
    trials: Trials, count: int, failure: Failure, names: Sequence[str] = ALL
) -> Figures:
    """Makes one file operation fail in each trial; the same process then exports again."""
    figures = Figures(failure.attack)
    with timed(figures):
        totals = {name: trials.count(name, classes=failure.classes) for name in names}
        errnos = itertools.cycle(failure.errnos)
        for name, number in share_out(totals, count):
            error = next(errnos)
            root = trials.fresh(name)
            where = f"{name}, {errno.errorcode[error]} at operation {number}"
            last = shim.LASTING if failure.lasting else number
            arm = shim.Arm(shim.FAIL, number, last, failure.classes, error)
            story = _story(trials, name, root, arm, figures, where)
            if story is None:
                continue
            faults = [tuple(fault) for fault in story["faults"]]
            faults += _judge_error(root, story, os.strerror(error) if failure.has_reason else "")
            if story["left_at_once"]:
                figures.measure("cleaned up by the next export only")
            tally(figures, where, faults, root)
    return figures


def fill_disks(trials: Trials, count: int, names: Sequence[str] = ALL) -> Figures | str:
    """Exports to disks with increasing free space, from none to enough.

    After each export, space is freed and the same process exports again.

    Returns:
        The figures, or the reason why no small disk can be made here.
    """
    figures = Figures("full disks")
    disk = trials.scratch / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        disk.rmdir()
        return f"no tmpfs can be mounted here: {mounted.stderr.strip()}"
    try:
        with timed(figures):
            for index, name in enumerate(names):
                needed = _space_for(trials, name, disk)
                sizes = spread(
                    needed // 4096, max(count // len(names) + (index < count % len(names)), 1)
                )
                for pages in sizes:
                    _fill_and_run(trials, name, disk, pages * 4096, figures)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()
    return figures


def _space_for(trials: Trials, name: str, disk: pathlib.Path) -> int:
    """Finds how many free bytes a scenario needs."""
    low, high = 0, 4 * 1024 * 1024
    while high - low > 4096:
        middle = (low + high) // 8192 * 4096
        root = trials.fresh(name, disk)
        ballast = _leave_free(disk, middle)
        outcome = trials.run(name, root)
        fits = outcome.ended == "returned" and not outcome.value["warned"]
        ballast.unlink()
        shutil.rmtree(root)
        low, high = (low, middle) if fits else (middle, high)
    return high


def _fill_and_run(
    trials: Trials, name: str, disk: pathlib.Path, free: int, figures: Figures
) -> None:
    root = trials.fresh(name, disk)
    where = f"{name} with {free // 1024} KiB free"
    ballast = _leave_free(disk, free)
    story = _story(trials, name, root, None, figures, where, ballast)
    if story is None:
        ballast.unlink()
        return
    faults = [tuple(fault) for fault in story["faults"]]
    faults += _judge_error(root, story, os.strerror(errno.ENOSPC))
    if not story["error"] and not story["warned"]:
        figures.measure("fitted")
    tally(figures, where, faults, root)
    if root.exists():
        shutil.rmtree(root)


def _leave_free(disk: pathlib.Path, free: int) -> pathlib.Path:
    """Fills a file system up to `free` bytes."""
    ballast = disk / "ballast"
    with open(ballast, "wb") as file:
        statistics = os.statvfs(disk)
        available = statistics.f_bavail * statistics.f_frsize
        os.posix_fallocate(file.fileno(), 0, available - free)
    return ballast


def _story(
    trials: Trials,
    name: str,
    root: pathlib.Path,
    arm: shim.Arm | None,
    figures: Figures,
    where: str,
    ballast: pathlib.Path | None = None,
) -> dict[str, Any] | None:
    """Runs a disturbed export and the next one in one child.

    Returns:
        What `disturb` returned; `None` if the operation was not reached, or the child died.
    """
    arguments = {
        "name": name,
        "root": str(root),
        "arm": None if arm is None else dataclasses.asdict(arm),
        "ballast": None if ballast is None else str(ballast),
    }
    outcome = trials.server.run("tests.trust.faults:disturb", arguments)
    if outcome.ended != "returned":
        figures.trials += 1
        figures.add(
            "failed",
            f"{where}: the process {outcome.ended}, {outcome.error} {outcome.message[:300]}",
        )
        return None
    story: dict[str, Any] = outcome.value
    if arm is not None and story["operations"] < arm.first:
        figures.measure("not reached")
        shutil.rmtree(root)
        return None
    figures.trials += 1
    return story


def disturb(
    name: str, root: str, arm: dict[str, Any] | None, ballast: str | None
) -> dict[str, Any]:
    """Runs a scenario under attack, judges the result, and exports again; runs in a child.

    Returns:
        `error`: name of the class raised, or empty; `message`: its text; `known`: whether it is a
        `WarmupError`; `warned`: texts of warnings; `operations`: how many were counted;
        `left_at_once`: left-overs before the next export; `faults`: those of both runs.
    """
    base = f"{root}/m"
    error: BaseException | None = None
    warned: list[str] = []
    operations = 0
    if arm is not None:
        shim.arm(shim.Arm(**arm), os.path.realpath(root), None)
    try:
        try:
            warned = scenarios.run(name, base)["warned"]
        finally:
            operations = shim.disarm()
    # The attack is to find out what is raised.
    except BaseException as raised:
        error = raised
    faults = judge_disturbed(SCENARIOS[name], base)
    left_at_once = leftovers_of(root, base)
    done_faults = [] if error is not None else judge_done(base, SCENARIOS[name].done)
    if ballast is not None:
        os.unlink(ballast)
    following = Outcome("returned")
    try:
        scenarios.run(name, base, generation=3)
    except Exception as raised:
        following = Outcome("raised", error=type(raised).__name__, message=str(raised))
    faults += judge_next(name, pathlib.Path(root), following)
    return {
        "error": "" if error is None else type(error).__name__,
        "message": "" if error is None else str(error),
        "known": isinstance(error, WarmupError),
        "warned": warned,
        "operations": operations,
        "left_at_once": left_at_once,
        "faults": faults,
        "done_faults": done_faults,
    }


def _judge_error(root: pathlib.Path, story: dict[str, Any], reason: str) -> list[Fault]:
    """Judges the effect of a failed operation.

    Allowed are a `WarmupError` with reason and path, a warning in `fit`, or no effect.
    """
    text = story["message"]
    if story["error"]:
        if not story["known"]:
            return [("raw_errors", f"{story['error']}: {text[:300]}")]
    else:
        # Training goes on with a warning. A left-over that cannot be removed is a warning too.
        text = "\n".join(story["warned"])
        if not text:
            return [tuple(fault) for fault in story["done_faults"]]
    if reason not in text or str(root) not in text:
        return [("unexplained", f"{story['error'] or 'warning'}: {text[:300]}")]
    return []


def judge_next(name: str, root: pathlib.Path, following: Outcome) -> list[Fault]:
    """Judges the export after the disturbed one: it must succeed and leave nothing over."""
    if following.ended != "returned":
        return [
            (
                "failed",
                f"the next export {following.ended}: {following.error}: {following.message[:300]}",
            )
        ]
    weights, records = (3 if made == 2 else made for made in SCENARIOS[name].done)
    faults = judge_done(root / "m", (weights, records))
    left = leftovers_of(root, root / "m")
    if left:
        faults.append(("leftovers", ", ".join(left[:5])))
    return faults


def tally(figures: Figures, where: str, faults: Sequence[Fault], root: pathlib.Path) -> None:
    """Counts each kind of fault once for each trial; removes the directory of a good trial."""
    for kind in dict.fromkeys(fault for fault, _ in faults):
        figures.add(
            kind, f"{where}: " + "; ".join(words for fault, words in faults if fault == kind)
        )
    if not faults:
        shutil.rmtree(root)
