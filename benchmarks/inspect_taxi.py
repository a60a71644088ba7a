"""Measures `inspect` without the import of TensorFlow, on a real estimator export of 4 signatures.

    python benchmarks/inspect_taxi.py [EXPORT_DIR]

EXPORT_DIR defaults to the one in ../shared/savedmodels. Each round is a fresh process that imports
TensorFlow and Keras first, and then times the import of keras_warmup's own modules and one
`inspect`.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

_CHILD = """
import gc, json, sys, time
import keras, tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
import rich.console
gc.collect(); gc.freeze()
started = time.perf_counter()
import keras_warmup.inspection
imported = time.perf_counter()
keras_warmup.inspection.inspect(sys.argv[1])
done = time.perf_counter()
import_ms, inspect_ms = (imported - started) * 1000, (done - imported) * 1000
print(json.dumps({"import_ms": import_ms, "inspect_ms": inspect_ms}))
"""


def main() -> int:
    """Measures `inspect` and prints the figures; returns the exit code."""
    default = (
        pathlib.Path(__file__).resolve().parents[2]
        / "shared"
        / "savedmodels"
        / "chicago_taxi_estimator"
        / "1"
    )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export_dir", nargs="?", default=str(default))
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if not os.path.isdir(arguments.export_dir):
        parser.error(f"no SavedModel in {arguments.export_dir}: give the directory of one")
    rounds = []
    for _ in range(arguments.rounds):
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, arguments.export_dir],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: statistics.median(one[name] for one in rounds) for name in ("import_ms", "inspect_ms")
    }
    if arguments.json:
        print(json.dumps({"medians": medians, "rounds": rounds}, indent=2))
        return 0
    print(f"inspect {arguments.export_dir}, medians of {arguments.rounds} fresh processes:")
    print(f"  importing keras_warmup, after TensorFlow: {medians['import_ms']:.0f} ms")
    print(f"  inspect:                                  {medians['inspect_ms']:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
