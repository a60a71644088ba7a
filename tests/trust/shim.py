"""Builds the shim (`shim.c`) and speaks to it from inside a process that has it preloaded."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

SOURCE = pathlib.Path(__file__).with_name("shim.c")

# Classes of operations, as shim.c numbers them.
CHANGE, READ, LOOK = 1, 2, 4
# What happens at an operation.
COUNT, KILL, INTERRUPT, FAIL, STOP = range(5)
LASTING = sys.maxsize


def build_shim(directory: pathlib.Path) -> pathlib.Path | str:
    """Compiles the shim.

    Returns:
        The library, or a sentence that says why there is none.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux"):
        return "the shim needs Linux"
    if compiler is None:
        return "there is no C compiler (cc) to build the shim with"
    library = directory / "shim.so"
    command = [
        compiler,
        "-O1",
        "-shared",
        "-fPIC",
        "-U_FORTIFY_SOURCE",
        "-o",
        str(library),
        str(SOURCE),
        "-ldl",
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    return (
        library
        if built.returncode == 0
        else f"the shim does not compile here: {built.stderr[:500]}"
    )


@dataclasses.dataclass(frozen=True)
class Arm:
    """What happens to the file operations below a directory.

    Attributes:
        action: `COUNT`, `KILL`, `INTERRUPT`, `FAIL` or `STOP`.
        first: number of the first operation it happens to, from 1.
        last: number of the last one; `LASTING` for all that follow.
        classes: which operations count, a sum of `CHANGE`, `READ` and `LOOK`.
        error: the errno of `FAIL`.
        deny_exchange: whether `renameat2` refuses flags, as on file systems without them.
    """

    action: int = COUNT
    first: int = 0
    last: int = 0
    classes: int = CHANGE
    error: int = 0
    deny_exchange: bool = False

    @classmethod
    def at(cls, number: int, action: int, **options: int) -> Arm:
        """Acts at one operation."""
        return cls(action, number, number, **options)  # type: ignore[arg-type]


def arm(arm: Arm, root: str, log: str | None) -> None:
    """Arms the shim of this process; `log` is a file outside `root`."""
    library = ctypes.CDLL(None)
    library.trust_arm.argtypes = [
        ctypes.c_char_p,
        *[ctypes.c_int],
        *[ctypes.c_long] * 2,
        *[ctypes.c_int] * 3,
    ]
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644) if log else -1
    library.trust_deny_exchange(int(arm.deny_exchange))
    library.trust_arm(
        root.encode(), arm.classes, arm.first, arm.last, arm.action, arm.error, descriptor
    )


def disarm() -> int:
    """Disarms the shim, and returns how many operations it counted."""
    library = ctypes.CDLL(None)
    library.trust_count.restype = ctypes.c_long
    count = int(library.trust_count())
    library.trust_deny_exchange(0)
    library.trust_arm(b"", 0, 0, 0, 0, 0, -1)
    return count


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of the shim's log."""

    name: str
    path: str
    other: str
    error: int
    ms: float


def read_log(path: str | os.PathLike[str]) -> list[Operation]:
    """Reads the operations that a process logged."""
    operations = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            name, where, other, error, ms = line.rstrip("\n").split("\t")
            operations.append(Operation(name, where, other, int(error), float(ms)))
    return operations
