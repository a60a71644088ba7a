"""What sampling costs `fit`: paired rounds with and without, for a small and a mid model.

One `fit` alternates blocks of steps with sampling and blocks without, so that whatever else the machine does meets both
alike. A round's ratio is the time of all blocks with / the time of all blocks without; the median over the rounds is
printed. The step numbers count one kind: a `fit` of 2000 steps with sampling has 2000 more without.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from keras_warmup.training.capture import BatchTap

EXAMPLE = """example:
  python benchmarks/fit_overhead.py --steps 2000 --rounds 3
  python benchmarks/fit_overhead.py --model mid --json
"""


class Alternating(keras.callbacks.Callback):
    """Samples in every other block of steps, and times the blocks of either kind.

    Args:
        num_batches: batches to keep.
        block: steps of a block.
        tap_all: tap every step of the sampled blocks, whether the sample needs it or not.
    """

    def __init__(self, num_batches: int, block: int, *, tap_all: bool = False) -> None:
        super().__init__()
        self.tap = BatchTap(num_batches=num_batches, rows=8, seed=0, max_bytes=2**24)
        self.block = block
        self.tap_all = tap_all
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.sampled = False

    def on_train_begin(self, logs=None):
        """Starts sampling."""
        self.tap.begin(self._model)

    def on_train_batch_begin(self, batch, logs=None):
        """Ends one block and starts the next; samples the step if it is due and in a sampled block."""
        if batch % self.block == 0:
            now = time.perf_counter()
            if batch:
                self.seconds[self.sampled].append(now - self.start)
            self.start = now
            # With, without, without, with: a steady drift of the machine cancels out.
            self.sampled = batch // self.block % 4 in (0, 3)
        if self.sampled:
            if self.tap_all:
                self.tap.sample_next_step()
            self.tap.before_step(self._model)

    def on_train_end(self, logs=None):
        """Ends the last block, and sampling."""
        self.seconds[self.sampled].append(time.perf_counter() - self.start)
        self.tap.end(self._model)


def small_model() -> tuple[keras.Model, tf.data.Dataset]:
    """A dense model whose step takes about a millisecond."""
    model = keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)]
    )
    x = np.random.default_rng(0).random((4096, 16), dtype=np.float32)
    return model, tf.data.Dataset.from_tensor_slices((x, x.sum(1))).batch(32).repeat()


def mid_model() -> tuple[keras.Model, tf.data.Dataset]:
    """A small convolutional model whose step takes tens of milliseconds on two cores."""
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
    """One `fit`, half of whose steps are sampled."""
    gc.collect()
    model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False, callbacks=[callback])
    if callback.tap.problem:
        raise SystemExit(f"sampling stopped: {callback.tap.problem}")


def measure(name: str, *, steps: int, rounds: int, num_batches: int, block: int) -> dict:
    """Times one model; `steps` are with sampling, and as many without."""
    model, data = MODELS[name]()
    model.compile("sgd", "mse", jit_compile=False)
    # Traces the training step, and does once what the first tap of a process needs.
    train(model, data, 40, Alternating(num_batches, 1))
    totals, ratios = [], []
    for _ in range(rounds):
        callback = Alternating(num_batches, block)
        train(model, data, 2 * steps, callback)
        with_s, without_s = sum(callback.seconds[True]), sum(callback.seconds[False])
        totals.append((with_s, without_s))
        ratios.append(with_s / without_s)
    # Taps are rare: what one costs is measured where every step of a sampled block is one.
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


def main() -> None:
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
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    names = list(MODELS) if args.model == "both" else [args.model]
    results = [
        measure(
            name,
            steps=args.steps,
            rounds=args.rounds,
            num_batches=args.num_batches,
            block=args.block,
        )
        for name in names
    ]
    if args.json:
        print(json.dumps(results, indent=2))
        return
    print(
        f"{args.rounds} rounds of {args.steps} steps with and {args.steps} without sampling, medians"
    )
    print(
        f"{'model':<6} {'without ms/step':>16} {'with ms/step':>13} {'ratio':>7} {'taps':>5} {'ms/tap':>7}"
    )
    for result in results:
        print(
            f"{result['model']:<6} {result['without_ms_per_step']:>16.3f} {result['with_ms_per_step']:>13.3f} "
            f"{result['ratio']:>7.4f} {result['taps']:>5} {result['ms_per_tap']:>7.2f}"
        )


if __name__ == "__main__":
    main()
