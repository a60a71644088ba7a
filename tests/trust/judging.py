"""Judges a base path after a disturbed run: it must hold the right versions, whole, and no more."""

from __future__ import annotations

import os
import pathlib

from tests.trust.completeness import IncompleteError, Version, read_version
from tests.trust.scenarios import Scenario, files_of, versions_of

# Every file and directory that a version of `scenarios` may hold.
ENTRIES = frozenset(
    {
        "assets",
        "assets.extra",
        "assets.extra/keras_warmup.json",
        "assets.extra/tf_serving_warmup_requests",
        "fingerprint.pb",
        "saved_model.pb",
        "variables",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    }
)

Fault = tuple[str, str]


def judge_disturbed(
    scenario: Scenario, base: str | os.PathLike[str], *, gap_allowed: bool = False
) -> list[Fault]:
    """Judges what a server finds after a disturbed run.

    Args:
        scenario: what ran.
        base: the base path.
        gap_allowed: whether version 1 may be missing for a moment, since directories cannot be
            exchanged.

    Returns:
        (fault, words) for each fault.
    """
    faults: list[Fault] = []
    versions = versions_of(base)
    allowed_sets: frozenset[frozenset[int]] = scenario.versions
    if gap_allowed:
        allowed_sets |= {frozenset()}
    if frozenset(versions) not in allowed_sets:
        faults.append(("missing", f"versions {versions} are listed"))
    for version in versions:
        found = _read(base, version, faults)
        if found is not None and found.state not in scenario.allowed.get(version, frozenset()):
            faults.append(
                ("half_written", f"version {version} holds the generations {found.state}")
            )
    return faults


def judge_done(base: str | os.PathLike[str], state: tuple[int, int]) -> list[Fault]:
    """Judges a base path after an undisturbed run.

    All versions must be whole, and the newest one must hold `state`.
    """
    faults: list[Fault] = []
    versions = versions_of(base)
    read = {version: _read(base, version, faults) for version in versions}
    newest = read[versions[-1]] if versions else None
    if newest is None or newest.state != state or not newest.has_fingerprint:
        faults.append(
            (
                "failed",
                f"the newest of the versions {versions} is {newest}, expected the generations "
                f"{state}",
            )
        )
    return faults


def leftovers_of(root: str | os.PathLike[str], base: str | os.PathLike[str]) -> list[str]:
    """Lists the entries below `root` that belong to no version under `base`, except its parents."""
    prefix = str(pathlib.Path(base).relative_to(root))
    parents = {str(parent) for parent in pathlib.PurePath(prefix, "x").parents}
    left = []
    for entry in sorted(files_of(root)):
        version, _, inside = entry.removeprefix(f"{prefix}/").partition("/")
        is_version = (
            entry.startswith(f"{prefix}/")
            and version.isdecimal()
            and (not inside or inside in ENTRIES)
        )
        if entry not in parents and not is_version:
            left.append(entry)
    return left


def _read(base: str | os.PathLike[str], version: int, faults: list[Fault]) -> Version | None:
    try:
        return read_version(pathlib.Path(base, str(version)))
    except IncompleteError as error:
        faults.append(("half_written", f"version {version}: {error}"))
        return None
