"""Train a small CNN on scikit-learn's digits, export it warm, and measure what that is worth.

    python examples/quickstart.py [DIRECTORY]

Writes DIRECTORY/1 (default: ./digits/1), a SavedModel with its warmup file inside.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from rich.console import Console
from sklearn.datasets import load_digits

import keras_warmup as kw


def build_model() -> keras.Model:
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Rescaling(1 / 16)(image)
    x = keras.layers.Conv2D(32, 3, activation="relu")(x)
    x = keras.layers.Conv2D(64, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10, activation="softmax", name="digit")(x))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory",
        nargs="?",
        default="./digits",
        help="base path of the model (default: ./digits)",
    )
    parser.add_argument(
        "--processes", type=int, default=3, help="fresh processes for each figure (default: 3)"
    )
    arguments = parser.parse_args()
    console = Console()

    digits = load_digits()
    images, labels = digits.images[..., None].astype("float32"), digits.target
    model = build_model()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

    # The one line that matters: the batches fit trains on become the warmup records.
    warm = kw.WarmupExport(os.path.join(arguments.directory, "{version}"))
    model.fit(images[:1500], labels[:1500], epochs=3, batch_size=32, verbose=2, callbacks=[warm])

    report = warm.reports[-1]
    console.print(report)
    console.print(
        "\nMeasuring the first request in fresh processes, without and with the warmup file ..."
    )
    console.print(
        kw.benchmark(report.export_dir, data=images[1500:], processes=arguments.processes)
    )


if __name__ == "__main__":
    main()
