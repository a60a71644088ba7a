"""Measures the cost of sampling in `fit`, for a small and a mid-sized model.

One `fit` alternates blocks of steps with sampling and blocks without, so that noise of the machine
affects both. The ratio of a round is the time of all blocks with sampling / the time of all blocks
without; the output holds the median over the rounds. The numbers of steps count one of the two: a
`fit` of 2000 steps with sampling has 2000 more without.

With `--against`, the package of another checkout is measured in turns with this one.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from checkouts import add_arguments, run_in_turns

from keras_warmup.training import capture
from keras_warmup.training.capture import BatchTap

EXAMPLE = """example:
  python benchmarks/fit_overhead.py --steps 2000 --rounds 3
  python benchmarks/fit_overhead.py --model mid --json
  python benchmarks/fit_overhead.py --model mid --mirrored 2
  git worktree add ../before HEAD~10 && python benchmarks/fit_overhead.py --against ../before
"""


class Alternating(keras.callbacks.Callback):
    """Samples in every other block of steps, and times the blocks with and without sampling.

    Args:
        num_batches: batches to keep.
        block: steps of a block.
        tap_all: tap every step of the sampled blocks, whether the sample needs it or not.

    Attributes:
        seconds: whether a block was sampled -> seconds of each such block.
    """

    def __init__(self, num_batches: int, block: int, *, tap_all: bool = False) -> None:
        super().__init__()
        self.tap = BatchTap(num_batches=num_batches, rows=8, seed=0, max_bytes=2**24)
        self.block = block
        self.tap_all = tap_all
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.sampled = False
        self.start = 0.0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Starts sampling."""
        self.tap.begin(self._model)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Ends a block and starts the next one; samples a step that is due in a sampled block."""
        if batch % self.block == 0:
            now = time.perf_counter()
            if batch:
                self.seconds[self.sampled].append(now - self.start)
            self.start = now
            # With, without, without, with: a steady drift of the machine cancels out.
            self.sampled = batch // self.block % 4 in (0, 3)
        if self.sampled:
            if self.tap_all:
                capture.MAX_COST_SHARE = float("inf")
                self.tap.sample_next_step()
            self.tap.before_step(self._model)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Ends the last block, and sampling."""
        self.seconds[self.sampled].append(time.perf_counter() - self.start)
        self.tap.end(self._model)


def small_model() -> tuple[keras.Model, tf.data.Dataset]:
    """Builds a dense model whose step takes about a millisecond."""
    model = keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)]
    )
    x = np.random.default_rng(0).random((4096, 16), dtype=np.float32)
    return model, tf.data.Dataset.from_tensor_slices((x, x.sum(1))).batch(32).repeat()


def mid_model() -> tuple[keras.Model, tf.data.Dataset]:
    """Builds a small convolutional model whose step takes tens of milliseconds on two cores."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )
    x = np.random.default_rng(0).random((512, 32, 32, 3), dtype=np.float32)
    return model, tf.data.Dataset.from_tensor_slices((x, x.mean((1, 2, 3)))).batch(32).repeat()


MODELS = {"small": small_model, "mid": mid_model}


def train(model: keras.Model, data: tf.data.Dataset, steps: int, callback: Alternating) -> None:
    """Runs one `fit`, of which half of the steps are in sampled blocks."""
    gc.collect()
    model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False, callbacks=[callback])
    if callback.tap.problem:
        raise SystemExit(f"sampling stopped: {callback.tap.problem}")


def measure(
    name: str, *, steps: int, rounds: int, num_batches: int, block: int, replicas: int
) -> dict[str, Any]:
    """Times one model; `steps` are with sampling, and as many without."""
    with _strategy_scope(replicas):
        model, data = MODELS[name]()
        model.compile("sgd", "mse", jit_compile=False)
    # Traces the training step, and loads what the first tap of a process loads.
    train(model, data, 40, Alternating(num_batches, 1))
    totals, ratios = [], []
    for _ in range(rounds):
        callback = Alternating(num_batches, block)
        train(model, data, 2 * steps, callback)
        with_s, without_s = sum(callback.seconds[True]), sum(callback.seconds[False])
        totals.append((with_s, without_s))
        ratios.append(with_s / without_s)
    # Taps are rare, so the cost of one is measured with a tap at every step of a sampled block.
    tapped = Alternating(num_batches, 1, tap_all=True)
    train(model, data, 400, tapped)
    return {
        "model": name,
        "steps": steps,
        "rounds": rounds,
        "without_ms_per_step": statistics.median(without for _, without in totals) / steps * 1e3,
        "with_ms_per_step": statistics.median(with_ for with_, _ in totals) / steps * 1e3,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "taps": callback.tap.taps,
        "ms_per_tap": (
            statistics.median(tapped.seconds[True]) - statistics.median(tapped.seconds[False])
        )
        * 1e3,
    }


def _strategy_scope(replicas: int) -> contextlib.AbstractContextManager[Any]:
    """Returns the scope of a MirroredStrategy over logical CPUs; of none for 0 replicas."""
    if not replicas:
        return contextlib.nullcontext()
    devices = [f"CPU:{index}" for index in range(replicas)]
    scope: contextlib.AbstractContextManager[Any] = tf.distribute.MirroredStrategy(devices).scope()
    return scope


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures this package and that of another checkout in turns.

    Returns:
        For each model, medians over the processes of both: ratio with / without sampling, and
        milliseconds of a tap.
    """
    options = ["--model", arguments.model, "--steps", str(arguments.steps)]
    options += ["--rounds", str(arguments.rounds), "--block", str(arguments.block)]
    options += ["--num-batches", str(arguments.num_batches)]
    options += ["--mirrored", str(arguments.mirrored)]
    here, there = run_in_turns(__file__, options, against=arguments.against, turns=arguments.turns)
    compared = []
    for index, name in enumerate(_names_of(arguments.model)):
        figures: dict[str, Any] = {"model": name}
        for where, printed in (("here", here), ("there", there)):
            results = [one[index] for one in printed]
            ratios = [ratio for result in results for ratio in result["ratios"]]
            figures[f"{where}_ratio"] = statistics.median(ratios)
            figures[f"{where}_ms_per_tap"] = statistics.median(
                result["ms_per_tap"] for result in results
            )
        compared.append(figures)
    return compared


def _names_of(model: str) -> Sequence[str]:
    return list(MODELS) if model == "both" else [model]


def main() -> int:
    """Measures the models and prints the figures; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", choices=[*MODELS, "both"], default="both", help="which model (default: both)"
    )
    parser.add_argument(
        "--steps", type=int, default=2000, help="training steps of each kind (default: 2000)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds (default: 3)")
    parser.add_argument("--num-batches", type=int, default=32, help="batches to keep (default: 32)")
    parser.add_argument("--block", type=int, default=10, help="steps of a block (default: 10)")
    parser.add_argument(
        "--mirrored",
        type=int,
        default=0,
        metavar="N",
        help="train under tf.distribute.MirroredStrategy with N logical CPUs (default: none)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.mirrored > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        logical = [tf.config.LogicalDeviceConfiguration()] * arguments.mirrored
        tf.config.set_logical_device_configuration(cpu, logical)
    if arguments.against:
        compared = compare(arguments)
        if arguments.json:
            print(json.dumps(compared, indent=2))
            return 0
        for figures in compared:
            print(
                f"{figures['model']}: with / without sampling here {figures['here_ratio']:.4f}, "
                f"there {figures['there_ratio']:.4f}; ms per tap here "
                f"{figures['here_ms_per_tap']:.2f}, there {figures['there_ms_per_tap']:.2f}"
            )
        return 0
    results = [
        measure(
            name,
            steps=arguments.steps,
            rounds=arguments.rounds,
            num_batches=arguments.num_batches,
            block=arguments.block,
            replicas=arguments.mirrored,
        )
        for name in _names_of(arguments.model)
    ]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return 0
    print(
        f"{arguments.rounds} rounds of {arguments.steps} steps with and {arguments.steps} without "
        "sampling, medians"
    )
    print(
        f"{'model':<6} {'without ms/step':>16} {'with ms/step':>13} {'ratio':>7} {'taps':>5} "
        f"{'ms/tap':>7}"
    )
    for result in results:
        print(
            f"{result['model']:<6} {result['without_ms_per_step']:>16.3f} "
            f"{result['with_ms_per_step']:>13.3f} {result['ratio']:>7.4f} {result['taps']:>5} "
            f"{result['ms_per_tap']:>7.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
