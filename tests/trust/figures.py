"""What an attack counts, and the table of it in the documentation."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

MAX_EXAMPLES = 20


@dataclasses.dataclass
class Figures:
    """The outcome of one attack.

    Attributes:
        attack: what was done, in a few words.
        trials: how often.
        half_written: versions that a server would have listed incomplete, or mixed of two exports.
        missing: listings without a version that had to be there.
        leftovers: trials that left a file behind after the next export.
        raw_errors: errors that are no `WarmupError`.
        unexplained: errors without the reason ("No space left on device") or without a path.
        failed: exports that failed, or did less than they said, where nothing stood in their way.
        measured: other figures, by name; none of them is a fault.
        examples: the first faults, in words.
        seconds: what the attack took.
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
        """Adds to a figure that is no fault."""
        self.measured[name] = float(self.measured.get(name, 0)) + amount

    @property
    def faults(self) -> dict[str, int]:
        """The counts that have to be 0 and are not."""
        return {name: count for name in FAULTS if (count := getattr(self, name))}


FAULTS = ("half_written", "missing", "leftovers", "raw_errors", "unexplained", "failed")


@contextlib.contextmanager
def timed(figures: Figures) -> Iterator[None]:
    """Writes the seconds of a block into figures."""
    start = time.perf_counter()
    yield
    figures.seconds = time.perf_counter() - start
