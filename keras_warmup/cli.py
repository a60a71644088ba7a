"""`keras-warmup inspect | add | verify | records`: faces that parse, call, print and return an exit code.

Exit codes: 0 good, 1 the check failed, 2 usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from keras_warmup._version import __version__
from keras_warmup.errors import WarmupError

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

_INSPECT_EXAMPLE = """example:
  keras-warmup inspect ./digits/1
"""
_ADD_EXAMPLE = """examples:
  keras-warmup add ./digits/1 --data rows.npz        # arrays named as the model's inputs, rows first
  keras-warmup add ./digits/1 --data rows.npz --batch-size 1 --batch-size 32
  keras-warmup add ./digits/1                        # rows made up from the signatures, with a warning

An .npz file is written by numpy.savez("rows.npz", image=images[:8]).
"""
_VERIFY_EXAMPLE = """example:
  keras-warmup verify ./digits/1 && mv ./digits/1 /models/digits/1

Exit code 0: TensorFlow Serving would load the model and replay every record; 1: it would not, or there is no warmup file.
"""
_RECORDS_EXAMPLE = """example:
  keras-warmup records ./digits/1 --json | jq '.records[].signature_key'
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        argv: the arguments after the program's name. Defaults to `sys.argv[1:]`.
    """
    arguments = _parser().parse_args(argv)
    # TensorFlow's start-up chatter belongs in no report; the user's own setting wins.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _plain_warnings():
            return int(arguments.run(arguments))
    except WarmupError as error:
        print(f"keras-warmup: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader (such as `head`) has seen enough; without this Python complains once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-warmup",
        description="Warmup files for TensorFlow Serving: the first real request to a freshly loaded model as fast as the next.",
    )
    parser.add_argument("--version", action="version", version=f"keras-warmup {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def verb(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("export_dir", metavar="EXPORT_DIR", help="a SavedModel (version directory), local or remote")
        one.add_argument("--json", action="store_true", help="print JSON")
        one.set_defaults(run=run)
        return one

    verb(
        "inspect",
        _inspect,
        "show the signatures of a SavedModel and what matters for warmup; runs no graph",
        _INSPECT_EXAMPLE,
    )
    add = verb("add", _add, "write the warmup file of a SavedModel that exists", _ADD_EXAMPLE)
    add.add_argument("--data", metavar="FILE.npz", help="rows to warm with, an array per input")
    add.add_argument("--append", action="store_true", help="keep the records that are there")
    add.add_argument("--signature", action="append", metavar="KEY", help="warm this signature only; may be repeated")
    add.add_argument(
        "--batch-size", action="append", type=int, metavar="N", help="warm exactly this size; may be repeated"
    )
    add.add_argument(
        "--output-filter", action="append", metavar="A,B", help="also warm this set of outputs; may be repeated"
    )
    add.add_argument(
        "--xla", action="store_true", help="also warm signatures that compile with XLA (the server needs its flag)"
    )
    add.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice of rows (default: 0)")
    add.add_argument("--no-verify", action="store_true", help="do not replay the records before they are published")
    verb("verify", _verify, "replay the warmup file as TensorFlow Serving does at load", _VERIFY_EXAMPLE)
    verb("records", _records, "list the records of a warmup file, without their values", _RECORDS_EXAMPLE)
    return parser


def _inspect(arguments: argparse.Namespace) -> int:
    from keras_warmup.inspection import inspect

    _show(inspect(arguments.export_dir), arguments.json)
    return EXIT_OK


def _add(arguments: argparse.Namespace) -> int:
    from keras_warmup.export import add_warmup
    from keras_warmup.files import read_npz
    from keras_warmup.options import WarmupOptions

    options = WarmupOptions(
        signatures=arguments.signature,
        batch_sizes=arguments.batch_size,
        output_filters=[filter_.split(",") for filter_ in arguments.output_filter] if arguments.output_filter else None,
        xla=arguments.xla,
        seed=arguments.seed,
        verify=not arguments.no_verify,
    )
    data = None if arguments.data is None else read_npz(arguments.data)
    with _working("adding warmup records", arguments.json):
        report = add_warmup(arguments.export_dir, data, warmup=options, append=arguments.append)
    _show(report, arguments.json)
    return EXIT_OK


def _verify(arguments: argparse.Namespace) -> int:
    from keras_warmup.verification import verify

    with _working("replaying the warmup file", arguments.json):
        report = verify(arguments.export_dir)
    _show(report, arguments.json)
    return EXIT_OK if report.ok else EXIT_FAILED


def _records(arguments: argparse.Namespace) -> int:
    from keras_warmup.inspection import list_records

    _show(list_records(arguments.export_dir), arguments.json)
    return EXIT_OK


def _show(report: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    from rich.console import Console

    # A pipe has no width of its own; a table folded to 80 columns is unreadable in a log.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(report)


@contextlib.contextmanager
def _working(what: str, quiet: bool) -> Iterator[None]:
    """A spinner on a terminal, a plain line elsewhere; on stderr, so that stdout holds the report alone."""
    if quiet:
        yield
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"keras-warmup: {what} ...", file=sys.stderr)
        yield
        return
    with console.status(what):
        yield


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line a shell user can read, without a source line."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, UserWarning):
            print(f"keras-warmup: warning: {message}", file=sys.stderr)

    original = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original


if __name__ == "__main__":
    sys.exit(main())
