"""A Keras model with the JAX backend, published warm for TensorFlow Serving.

    pip install "jax<0.11.1" && python examples/jax_backend.py [DIRECTORY]

A server needs `--xla_cpu_compilation_enabled` (or `--xla_gpu_compilation_enabled`) to run what JAX
exports; `xla=True` says that it has the flag. TensorFlow 2.21 runs the exports of JAX up to 0.11.0;
those of a newer JAX are refused, with the versions that fit.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_warmup as kw


def main() -> None:
    """Trains a classifier of two spirals and publishes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", nargs="?", default="./spirals", help="base path (default: ./spirals)"
    )
    directory = parser.parse_args().directory
    keras.utils.set_random_seed(0)
    turns = np.sqrt(np.random.default_rng(0).random(1000)) * 8
    arm = np.arange(1000) % 2
    points = np.stack([np.cos(turns + np.pi * arm), np.sin(turns + np.pi * arm)], axis=1)
    x = (points * turns[:, None]).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((2,), name="point"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid", name="arm"),
        ]
    )
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    warm = kw.WarmupExport(directory + "/{version}", warmup={"xla": True, "batch_sizes": [1, 8]})
    model.fit(x, arm, epochs=20, verbose=0, callbacks=[warm])
    print("proof:", warm.reports[-1].proofs["serving_default"])


if __name__ == "__main__":
    main()
