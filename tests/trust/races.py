"""Races: processes that publish to one base path, and a reader that polls it as a server does."""

from __future__ import annotations

import ctypes
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras_warmup as kw
from tests.trust import shim
from tests.trust.completeness import IncompleteError, read_version
from tests.trust.faults import Trials, share_out, tally
from tests.trust.figures import Figures, timed
from tests.trust.forkserver import Child, Outcome
from tests.trust.judging import Fault, leftovers_of
from tests.trust.scenarios import WARMUP, build_model, build_rows, versions_of

RENAME_EXCHANGE = 2


def exchange_works(directory: str | os.PathLike[str]) -> bool:
    """Returns whether two directories can be exchanged there in one step."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        one, other = f"{scratch}/one".encode(), f"{scratch}/other".encode()
        os.mkdir(one)
        os.mkdir(other)
        at_cwd = -100
        return bool(library.renameat2(at_cwd, one, at_cwd, other, RENAME_EXCHANGE) == 0)


def race_exports(trials: Trials, processes: int = 8, exports: int = 40) -> Figures:
    """Runs processes that export to `{version}` of one base path.

    Each version must be whole when it is first listed.
    """
    figures = Figures(f"exports to one base path, {processes} processes")
    root = trials.scratch / "exports"
    base = root / "m"
    base.mkdir(parents=True)
    seen: dict[int, tuple[int, int | None]] = {}

    def look() -> None:
        for version in set(versions_of(base)) - seen.keys():
            try:
                seen[version] = read_version(base / str(version)).state
            except IncompleteError as error:
                seen[version] = (0, None)
                figures.add("half_written", f"version {version}: {error}")

    with timed(figures):
        children = [
            trials.server.start(
                "tests.trust.races:export_often",
                {"base": str(base), "first": 1 + index * exports, "exports": exports},
            )
            for index in range(processes)
        ]
        _watch(children, look, figures)
    figures.trials = processes * exports
    expected = {(generation, generation) for generation in range(1, processes * exports + 1)}
    lost = expected - set(seen.values())
    if len(seen) != len(expected) or lost:
        figures.add(
            "missing", f"{len(seen)} versions for {len(expected)} exports; lost: {sorted(lost)[:5]}"
        )
    _check_leftovers(root, base, figures)
    return figures


def export_often(base: str, first: int, exports: int) -> None:
    """Exports models of the generations `first`, `first + 1`, ...; runs in a child."""
    for generation in range(first, first + exports):
        kw.export_with_warmup(
            build_model(generation),
            f"{base}/{{version}}",
            data=build_rows(generation),
            warmup=WARMUP,
        )


def race_saves(trials: Trials, processes: int = 6, rounds: int = 20) -> Figures:
    """Runs processes that save to one path.

    The path must be listed at all times, and hold one whole model in the end.
    """
    figures = Figures(f"saves to one path, {processes} processes")
    root = trials.fresh("save")
    base = root / "m"
    has_exchange = exchange_works(root)
    figures.measured["exchange of directories"] = "yes" if has_exchange else "no"

    def look() -> None:
        figures.measure("listings")
        if versions_of(base) != [1]:
            if has_exchange:
                figures.add("missing", "a listing without version 1")
            else:
                figures.measure("listings in a gap")

    with timed(figures):
        children = [
            trials.server.start(
                "tests.trust.races:save_often",
                {"base": str(base), "first": 2 + index * rounds, "rounds": rounds},
            )
            for index in range(processes)
        ]
        _watch(children, look, figures)
    figures.trials = processes * rounds
    try:
        weights, records = read_version(base / "1").state
        if weights != records:
            figures.add("half_written", f"version 1 holds the generations {(weights, records)}")
    except IncompleteError as error:
        figures.add("half_written", f"version 1: {error}")
    _check_leftovers(root, base, figures)
    return figures


def save_often(base: str, first: int, rounds: int) -> None:
    """Saves models of the generations `first`, `first + 1`, ...; runs in a child."""
    for generation in range(first, first + rounds):
        kw.save(build_model(generation), f"{base}/1", data=build_rows(generation), warmup=WARMUP)


def overtake(
    trials: Trials, count: int, names: Sequence[str] = ("new", "overwrite", "save")
) -> Figures:
    """Stops an export in the middle, runs another one, and continues the first; both must succeed.

    The files of the stopped export look days old by then, but its process lives, so they must not
    be swept.
    """
    figures = Figures("a stopped export, overtaken by another")
    with timed(figures):
        totals = {name: trials.count(name) for name in names}
        for name, number in share_out(totals, count):
            root = trials.fresh(name)
            base = root / "m"
            where = f"{name} stopped before operation {number}"
            arguments = {"name": name, "base": str(base)}
            child = trials.server.start(
                "tests.trust.scenarios:run",
                arguments,
                arm=shim.Arm.at(number, shim.STOP),
                root=root,
            )
            if child.wait().ended != "stopped":
                figures.measure("not reached")
                continue
            figures.trials += 1
            make_old(root)
            overtaking = trials.run(name, root, generation=3)
            child.resume()
            faults: list[Fault] = [
                (
                    "failed",
                    f"the {which} export {outcome.ended}: {outcome.error}: {outcome.message[:300]}",
                )
                for which, outcome in (("overtaking", overtaking), ("stopped", child.wait()))
                if outcome.ended != "returned"
            ]
            tally(figures, where, faults + _judge_both(name, root), root)
    return figures


def _judge_both(name: str, root: pathlib.Path) -> list[Fault]:
    """Judges the result of two exports: both versions, or one whole version of either."""
    base = root / "m"
    faults: list[Fault] = []
    states = []
    for version in versions_of(base):
        try:
            states.append(read_version(base / str(version)).state)
        except IncompleteError as error:
            faults.append(("half_written", f"version {version}: {error}"))
    if not faults:
        both = (
            sorted(states) == [(1, 1), (2, 2), (3, 3)]
            if name == "new"
            else states in ([(2, 2)], [(3, 3)])
        )
        if not both:
            faults.append(("missing", f"the versions hold the generations {states}"))
    if left := leftovers_of(root, base):
        faults.append(("leftovers", ", ".join(left[:5])))
    return faults


def make_old(root: pathlib.Path) -> None:
    """Makes everything below a directory look two days old."""
    long_ago = time.time() - 2 * 24 * 60 * 60
    for path in root.rglob("*"):
        os.utime(path, (long_ago, long_ago), follow_symlinks=False)


def _watch(children: Sequence[Child], look: Callable[[], None], figures: Figures) -> None:
    """Calls `look` until all children have ended."""
    running = list(children)
    while running:
        for _ in range(20):
            look()
        ended: list[tuple[Child, Outcome | None]] = [(child, child.poll()) for child in running]
        running = [child for child, outcome in ended if outcome is None]
        for _, outcome in ended:
            if outcome is not None and outcome.ended != "returned":
                figures.add(
                    "failed", f"a process {outcome.ended}: {outcome.error}: {outcome.message[:300]}"
                )
    look()


def _check_leftovers(root: pathlib.Path, base: pathlib.Path, figures: Figures) -> None:
    left: list[Any] = leftovers_of(root, base)
    if left:
        figures.add("leftovers", ", ".join(left[:5]))
