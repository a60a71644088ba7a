"""What the command line prints: reports on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from keras_warmup.report import printable


def say(text: str) -> None:
    """Prints a line on stderr; names of a SavedModel in it steer no terminal."""
    print(f"keras-warmup: {printable(text)}", file=sys.stderr)


def show_report(report: Any, as_json: bool) -> None:
    """Prints a report on stdout."""
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    from rich.console import Console

    # A pipe has no width of its own; a table folded to 80 columns is unreadable in a log.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(report)


@contextlib.contextmanager
def working(what: str, quiet: bool) -> Iterator[None]:
    """A spinner on a terminal, a plain line elsewhere; on stderr, so that stdout holds the report alone."""
    if quiet:
        yield
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        say(f"{what} ...")
        yield
        return
    with console.status(what):
        yield


@contextlib.contextmanager
def measuring(quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar on a terminal, a line for each tenth elsewhere."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    console = Console(stderr=True)
    if quiet:
        yield None
    elif console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("measuring", total=None)
            yield lambda done, total, step: bar.update(
                task,
                completed=done,
                total=total,
                description=escape(f"measuring {printable(step)}"),
            )
    else:

        def tell(done: int, total: int, step: str) -> None:
            if done == total or done * 10 // total > (done - 1) * 10 // total:
                say(f"measuring {done}/{total}")

        yield tell


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line a shell user can read, without a source line."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, UserWarning):
            say(f"warning: {message}")

    original = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original
