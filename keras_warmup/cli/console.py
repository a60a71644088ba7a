"""Prints what the command line prints: reports on stdout; progress, warnings, errors on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from keras_warmup.report import printable

# The width of tables where stdout is not a terminal: in 80 columns, they could not be read in logs.
_LOG_WIDTH = 160


def print_line(text: str) -> None:
    """Prints a line on stderr, with control characters escaped: they may come from a model."""
    print(f"keras-warmup: {printable(text)}", file=sys.stderr)


def print_report(report: Any, as_json: bool) -> None:
    """Prints a report on stdout."""
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else _LOG_WIDTH
    Console(width=width, highlight=False).print(report)


@contextlib.contextmanager
def show_status(text: str, quiet: bool) -> Iterator[None]:
    """Shows on stderr what the block does: a spinner on a terminal, a line elsewhere."""
    if quiet:
        yield
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        print_line(f"{text} ...")
        yield
        return
    with console.status(text):
        yield


@contextlib.contextmanager
def show_progress(quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """Shows the progress of a measurement: a bar on a terminal, a line for each tenth elsewhere.

    Yields:
        A function to call with `(done, total, step)`; `None` if `quiet`.
    """
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

        def print_tenths(done: int, total: int, step: str) -> None:
            if done == total or done * 10 // total > (done - 1) * 10 // total:
                print_line(f"measuring {done}/{total}")

        yield print_tenths


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Prints warnings for users as one line, without a source line; hides those for developers."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, UserWarning):
            print_line(f"warning: {message}")

    with warnings.catch_warnings():  # restores `showwarning`
        warnings.showwarning = show
        yield
