"""Counts of the attacks, and their rows in the tables of the documentation."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

MAX_EXAMPLES = 20


@dataclasses.dataclass
class Figures:
    """The outcome of one attack on publishing.

    Attributes:
        attack: what was done, in a few words.
        trials: number of trials.
        half_written: versions that a server would have listed incomplete, or mixed of two exports.
        missing: listings without a version that had to be there.
        leftovers: trials that left a file behind after the next export.
        raw_errors: errors that are not a `WarmupError`.
        unexplained: errors without the reason ("No space left on device") or without a path.
        failed: undisturbed exports that failed, or did less than they reported.
        measured: other figures, by name, which are not faults.
        examples: the first faults, in words.
        seconds: duration of the attack.
    """

    attack: str
    trials: int = 0
    half_written: int = 0
    missing: int = 0
    leftovers: int = 0
    raw_errors: int = 0
    unexplained: int = 0
    failed: int = 0
    measured: dict[str, float | str] = dataclasses.field(default_factory=dict)
    examples: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def add(self, fault: str, example: str) -> None:
        """Counts a fault by the name of its attribute."""
        setattr(self, fault, getattr(self, fault) + 1)
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"{fault}: {example}")

    def measure(self, name: str, amount: float = 1) -> None:
        """Adds to a figure that is not a fault."""
        self.measured[name] = float(self.measured.get(name, 0)) + amount

    @property
    def faults(self) -> dict[str, int]:
        """Counts that have to be 0, by column of the table."""
        return {
            "half-written": self.half_written,
            "missing": self.missing,
            "left-overs": self.leftovers,
            "raw errors": self.raw_errors,
            "unexplained": self.unexplained,
            "failed": self.failed,
        }

    @property
    def row(self) -> dict[str, str]:
        """Row of the table, by column."""
        return {
            "attack": self.attack,
            "trials": str(self.trials),
            **{name: str(count) for name, count in self.faults.items()},
            "also measured": _text_of(self.measured),
            "seconds": f"{self.seconds:.0f}",
        }


@dataclasses.dataclass
class HostileFigures:
    """The outcome of reading, or running, hostile files.

    Attributes:
        attack: what was done, in a few words.
        trials: number of files.
        crashes: tracebacks that are not a `WarmupError`, and calling processes that ended.
        hangs: files that took longer than the bound.
        exhausted: files that took more memory than the bound.
        slowest_s: time of the slowest file, seconds.
        largest_mib: memory of the largest file, MiB.
        measured: other figures, by name, which are not faults.
        examples: the first faults, in words.
    """

    attack: str
    trials: int
    crashes: int
    hangs: int
    exhausted: int
    slowest_s: float
    largest_mib: int
    measured: dict[str, float | str] = dataclasses.field(default_factory=dict)
    examples: list[str] = dataclasses.field(default_factory=list)

    @property
    def faults(self) -> dict[str, int]:
        """Counts that have to be 0, by column of the table."""
        return {"crashes": self.crashes, "hangs": self.hangs, "exhausted": self.exhausted}

    @property
    def row(self) -> dict[str, str]:
        """Row of the table, by column."""
        return {
            "files": self.attack,
            "trials": str(self.trials),
            **{name: str(count) for name, count in self.faults.items()},
            "slowest, s": f"{self.slowest_s:.1f}",
            "largest, MiB": str(self.largest_mib),
            "also measured": _text_of(self.measured),
        }


def _text_of(measured: Mapping[str, float | str]) -> str:
    return "; ".join(
        f"{name}: {value if isinstance(value, str) else f'{value:.4g}'}"
        for name, value in sorted(measured.items())
    )


@contextlib.contextmanager
def timed(figures: Figures) -> Iterator[None]:
    """Measures the seconds of a block and stores them in the figures."""
    start = time.perf_counter()
    yield
    figures.seconds = time.perf_counter() - start
