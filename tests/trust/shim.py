"""Builds the shim (`shim.c`) and controls it from a process that has it preloaded."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

SOURCE = pathlib.Path(__file__).with_name("shim.c")

# Classes of operations, with the numbers of shim.c.
CHANGE, READ, LOOK = 1, 2, 4
# Actions at an operation.
COUNT, KILL, INTERRUPT, FAIL, STOP = range(5)
LASTING = sys.maxsize


def build_shim(directory: pathlib.Path) -> pathlib.Path | str:
    """Compiles the shim.

    Returns:
        The library, or the reason why there is none.
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
    """How the shim disturbs the file operations below a directory.

    Attributes:
        action: `COUNT`, `KILL`, `INTERRUPT`, `FAIL` or `STOP`.
        first: number of the first operation to act at, from 1.
        last: number of the last one; `LASTING` for all that follow.
        classes: classes of operations that count, a sum of `CHANGE`, `READ` and `LOOK`.
        error: the errno of `FAIL`.
        deny_exchange: whether `renameat2` refuses flags, as file systems without them do.
    """

    action: int = COUNT
    first: int = 0
    last: int = 0
    classes: int = CHANGE
    error: int = 0
    deny_exchange: bool = False

    @classmethod
    def at(cls, number: int, action: int, **options: int) -> Arm:
        """Makes an `Arm` that acts at one operation."""
        return cls(action, number, number, **options)  # type: ignore[arg-type]


def arm(arm: Arm, root: str, log: str | None) -> None:
    """Arms the shim of this process.

    Args:
        arm: how to disturb operations.
        root: real path of the directory below which operations count.
        log: file outside `root` to log the operations to; `None` for no log.
    """
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
    """One line of the shim's log.

    Attributes:
        name: the C function; `exchange` for a `renameat2` that exchanges.
        path: the path it acts on.
        other: the second path, of a rename for instance; empty without one.
        error: its errno; 0 on success.
        ms: its duration, milliseconds.
    """

    name: str
    path: str
    other: str
    error: int
    ms: float


def read_log(path: str | os.PathLike[str]) -> list[Operation]:
    """Reads a log of the shim."""
    operations = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            name, where, other, error, ms = line.rstrip("\n").split("\t")
            operations.append(Operation(name, where, other, int(error), float(ms)))
    return operations
