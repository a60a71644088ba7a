"""Runs a benchmark of this checkout and of another one in turns, for the option `--against`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--against` and `--turns`."""
    parser.add_argument(
        "--against", metavar="CHECKOUT", help="compare with the package of another checkout"
    )
    parser.add_argument(
        "--turns",
        type=int,
        default=3,
        help="with --against, fresh processes of each checkout (default: 3)",
    )


def run_in_turns(
    script: str, arguments: Sequence[str], *, against: str, turns: int
) -> tuple[list[Any], list[Any]]:
    """Runs a script of this checkout and of another one alternately, each in fresh processes.

    Each checkout runs its own copy of the script on its own package, so that a comparison works
    where modules have moved in between. Both copies must take `arguments` and print the same JSON.

    Args:
        script: path of the script in this checkout.
        arguments: its arguments, without `--json`.
        against: root directory of the other checkout.
        turns: processes of each checkout.

    Returns:
        What the processes of this checkout printed, and what those of the other one printed.
    """
    printed: dict[str, list[Any]] = {HERE: [], os.path.abspath(against): []}
    for turn in range(turns):
        # Here, there, there, here: a steady drift of the machine affects both.
        for checkout in list(printed)[:: -1 if turn % 2 else 1]:
            copy = os.path.join(checkout, "benchmarks", os.path.basename(script))
            done = subprocess.run(
                [sys.executable, copy, *arguments, "--json"],
                env={**os.environ, "PYTHONPATH": checkout},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise SystemExit(
                    f"{copy} failed with exit code {done.returncode}:\n{done.stderr.strip()}"
                )
            printed[checkout].append(json.loads(done.stdout))
    here, there = printed.values()
    return here, there
