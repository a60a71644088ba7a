"""Power cuts: disk images as found after a cut, and the order of fsync and rename they show."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence

from tests.trust import shim
from tests.trust.faults import ALL, Trials, judge_next, share_out, tally
from tests.trust.figures import Figures, timed
from tests.trust.judging import ENTRIES, judge_disturbed, judge_done
from tests.trust.scenarios import SCENARIOS, versions_of
from tests.trust.shim import Operation

_SIZE = 48 * 1024 * 1024
# Interval of ext4's journal commits, seconds (5 by default): names reach the disk before data that
# was not synced.
_COMMIT_S = 1


class NoDiskError(Exception):
    """No loop device can be made and mounted here."""


class Disk:
    """An ext4 file system in a file.

    What the kernel has not written yet is not in the file, and so is lost in a power cut.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.mounted = directory / "disk"
        self._image = directory / "disk.img"

    @contextlib.contextmanager
    def mount(self) -> Iterator[Disk]:
        """Makes and mounts the file system.

        Raises:
            NoDiskError: this is not possible here.
        """
        with open(self._image, "wb") as file:
            file.truncate(_SIZE)
        self.mounted.mkdir()
        _must(["mkfs.ext4", "-q", "-F", str(self._image)])
        with _mounted(self._image, self.mounted, f"loop,commit={_COMMIT_S}"):
            yield self

    @contextlib.contextmanager
    def cut(self) -> Iterator[pathlib.Path]:
        """Mounts the disk as found after a power cut at this moment; replays its journal."""
        image, found = self._image.with_suffix(".cut"), self.mounted.with_name("found")
        found.mkdir(exist_ok=True)
        while True:
            before = self._writes()
            shutil.copyfile(self._image, image)
            # A copy made while the kernel writes is of no single moment.
            if before == self._writes():
                break
        try:
            with _mounted(image, found, "loop"):
                yield found
        except NoDiskError as error:
            raise RuntimeError(f"the disk cannot be mounted after the cut: {error}") from error
        finally:
            image.unlink()

    def sync(self) -> None:
        """Flushes everything to the disk."""
        subprocess.run(["sync", "-f", str(self.mounted)], check=True)

    def _writes(self) -> tuple[str, ...]:
        """Reads the counters of the loop device: requests written, and requests in flight."""
        device = os.stat(self.mounted).st_dev
        statistics_of = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"
        fields = pathlib.Path(statistics_of).read_text().split()
        return fields[4], fields[8]


@contextlib.contextmanager
def _mounted(image: pathlib.Path, point: pathlib.Path, options: str) -> Iterator[None]:
    _must(["mount", "-o", options, str(image), str(point)])
    try:
        yield
    finally:
        subprocess.run(["umount", str(point)], check=True)


def _must(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NoDiskError(f"there is no {command[0]} here") from error
    if done.returncode != 0:
        raise NoDiskError(f"{' '.join(command[:1])} is refused here: {done.stderr.strip()[:300]}")


def cut_power(trials: Trials, count: int, delays_s: Sequence[float] = (0.0, 6.0)) -> Figures:
    """Cuts the power in the middle of exports, and after they returned.

    Args:
        trials: makes the directories and children.
        count: cuts in the middle, over all scenarios.
        delays_s: seconds after the return of a call.

    Raises:
        NoDiskError: no loop device can be made and mounted here.
    """
    figures = Figures("power cuts (ext4)")
    with timed(figures), Disk(trials.scratch).mount() as disk:
        _check_premise(disk)
        for name in ALL:
            for delay in delays_s:
                root = _fresh_on(disk, trials, name)
                outcome = trials.run(name, root)
                if outcome.ended != "returned":
                    raise RuntimeError(f"{name!r} fails on the disk: {outcome}")
                time.sleep(delay)
                _judge_cut(
                    disk,
                    trials,
                    name,
                    root,
                    f"{name}, {delay:g} s after it returned",
                    figures,
                    done=True,
                )
                shutil.rmtree(root)
        totals = {name: trials.count(name) for name in ALL}
        for name, number in share_out(totals, count):
            root = _fresh_on(disk, trials, name)
            child = trials.server.start(
                "tests.trust.scenarios:run",
                {"name": name, "base": str(root / "m")},
                arm=shim.Arm.at(number, shim.STOP),
                root=root,
            )
            if child.wait().ended != "stopped":
                figures.measure("not reached")
                continue
            # Long enough for the journal, too short for the data.
            time.sleep(_COMMIT_S + 0.5)
            _judge_cut(
                disk, trials, name, root, f"{name} before operation {number}", figures, done=False
            )
            child.kill()
            shutil.rmtree(root)
    return figures


def _fresh_on(disk: Disk, trials: Trials, name: str) -> pathlib.Path:
    root = trials.fresh(name, disk.mounted)
    disk.sync()
    return root


def _judge_cut(
    disk: Disk,
    trials: Trials,
    name: str,
    root: pathlib.Path,
    where: str,
    figures: Figures,
    *,
    done: bool,
) -> None:
    figures.trials += 1
    with disk.cut() as found:
        root = found / root.name
        faults = judge_disturbed(SCENARIOS[name], root / "m")
        if done:
            faults += judge_done(root / "m", SCENARIOS[name].done)
        faults += judge_next(name, root, trials.run(name, root, generation=3))
        tally(figures, where, faults, root)


def _check_premise(disk: Disk) -> None:
    """Checks that a cut loses unsynced data, and only that."""
    for name, synced in (("synced", True), ("unsynced", False)):
        with open(disk.mounted / name, "wb") as file:
            file.write(b"x" * 10_000)
            if synced:
                file.flush()
                os.fsync(file.fileno())
    with disk.cut() as found:
        kept = (found / "synced").exists() and (found / "synced").stat().st_size == 10_000
        lost = not (found / "unsynced").exists() or (found / "unsynced").stat().st_size == 0
    if not kept or not lost:
        raise RuntimeError(
            "the image is not that of a power cut: synced file kept: "
            f"{kept}, unsynced file lost: {lost}"
        )


def check_order(trials: Trials, runs: int = 1) -> Figures:
    """Records the file operations of each scenario and checks them with `broken_rules`."""
    figures = Figures("order of fsync and rename")
    with timed(figures):
        for name in ALL:
            costs = []
            for _ in range(runs):
                root = trials.fresh(name)
                base = root / "m"
                old = versions_of(base)
                log = trials.scratch / "operations.log"
                outcome = trials.run(name, root, arm=shim.Arm(), log=log)
                figures.trials += 1
                if outcome.ended != "returned":
                    figures.add("failed", f"{name}: {outcome.error}: {outcome.message[:300]}")
                    continue
                operations = shim.read_log(log)
                for fault, words in broken_rules(operations, str(base), old):
                    figures.add(fault, f"{name}: {words.replace(str(root), '')}")
                costs.append(sum(one.ms for one in operations if one.name in _SYNCS))
                shutil.rmtree(root)
            if costs:
                figures.measured[f"ms of fsync in {name}"] = round(statistics.median(costs), 2)
    return figures


_SYNCS = ("fsync", "fdatasync", "syncfs")
_RENAMES = ("rename", "renameat", "renameat2")
_REMOVALS = ("unlink", "unlinkat", "rmdir", "remove")
# Operations that may create a name.
_MAKES = (
    "fopen",
    "fopen64",
    "open",
    "open64",
    "openat",
    "openat64",
    "creat",
    "mkdir",
    "mkdirat",
    "symlink",
    "link",
)
_WRITES = (
    "write",
    "pwrite",
    "pwrite64",
    "writev",
    "ftruncate",
    "ftruncate64",
    "sendfile",
    "sendfile64",
)


def broken_rules(
    operations: Sequence[Operation], base: str, versions: Sequence[int]
) -> list[tuple[str, str]]:
    """Checks recorded operations against the rules that make publishing survive a power cut.

    - A rename to a numeric name, or into a version, comes after the fsync of each file and each
      directory that it makes visible.
    - The directory that holds the new name is fsynced afterwards, before the call returns.
    - What a server could see before is removed only after that.

    Args:
        operations: recorded operations, in their order.
        base: the base path.
        versions: versions that existed before.

    Returns:
        (fault, words) for each broken rule.
    """
    faults: list[tuple[str, str]] = []
    dirty: set[str] = set()
    buffered: set[str] = set()
    # Directories that hold a new visible name since their last fsync.
    unsynced_names: set[str] = set()
    shown = {f"{base}/{version}" for version in versions}

    def is_visible(path: str) -> bool:
        """Returns whether a server reads this name: a version or an entry of one, but no draft."""
        version, _, entry = path.removeprefix(f"{base}/").partition("/")
        return (
            path.startswith(f"{base}/") and version.isdecimal() and (not entry or entry in ENTRIES)
        )

    def inside(path: str, directory: str) -> bool:
        return path == directory or path.startswith(f"{directory}/")

    def move(source: str, target: str) -> None:
        for paths in (dirty, buffered, shown):
            moved = {path for path in paths if inside(path, source)}
            paths -= moved
            paths |= {target + path[len(source) :] for path in moved}

    for one in operations:
        if one.error:
            continue
        path, parent = one.path, os.path.dirname(one.path)
        if one.name in _MAKES:
            dirty |= {path, parent}
        elif one.name in (*_WRITES, "copy_file_range"):
            dirty.add(path)
        elif one.name == "fwrite":
            buffered.add(path)
        elif one.name in ("fflush", "fclose"):
            if path in buffered:
                dirty.add(path)
            buffered.discard(path)
        elif one.name == "syncfs":
            dirty.clear()
            unsynced_names.clear()
        elif one.name in _SYNCS:
            dirty.discard(path)
            unsynced_names.discard(path)
        elif one.name in (*_RENAMES, "exchange"):
            new = [(one.path, one.other)] + (
                [(one.other, one.path)] if one.name == "exchange" else []
            )
            for source, target in new:
                if not is_visible(target):
                    continue
                late = sorted(path for path in dirty | buffered if inside(path, source))
                if late and source not in shown:
                    faults.append(
                        ("half_written", f"{target} is shown before fsync of {', '.join(late[:4])}")
                    )
            if one.name == "exchange":
                move(one.path, f"{one.path}\0")
                move(one.other, one.path)
                move(f"{one.path}\0", one.other)
            else:
                move(one.path, one.other)
                dirty |= {os.path.dirname(one.path), os.path.dirname(one.other)}
            for _, target in new:
                if is_visible(target):
                    unsynced_names.add(os.path.dirname(target))
                    if os.path.dirname(target) == base:
                        shown.add(target)
        elif one.name in _REMOVALS:
            seen = [directory for directory in shown if inside(path, directory)]
            if seen and unsynced_names:
                faults.append(
                    (
                        "missing",
                        f"{path} is removed before fsync of {', '.join(sorted(unsynced_names))}",
                    )
                )
                unsynced_names.clear()
            shown.discard(path)
            dirty.discard(path)
    if unsynced_names:
        faults.append(
            ("missing", f"the call returns before fsync of {', '.join(sorted(unsynced_names))}")
        )
    return faults
