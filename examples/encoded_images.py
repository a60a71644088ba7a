"""An endpoint that takes encoded image files, as a web client sends them.

    python examples/encoded_images.py [DIRECTORY]

Trains on scikit-learn's digits as arrays; the published endpoint decodes PNG or JPEG files itself.
The training batches are encoded as the graph reads them, so the warmup records hold image files.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from sklearn.datasets import load_digits

import keras_warmup as kw


def build_model() -> keras.Model:
    image = keras.Input((8, 8, 1), name="image", dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(16, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10, activation="softmax")(x))


def write(model: keras.Model, export_dir: str) -> None:
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def from_files(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        def decode(one: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.io.decode_png(one, channels=1), [8, 8, 1])

        images = tf.map_fn(decode, image_bytes, fn_output_signature=tf.uint8)
        return {"digit": model(images)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    from_files(tf.constant([tf.io.encode_png(np.zeros((8, 8, 1), "uint8")).numpy()]))
    archive.add_endpoint("serving_default", from_files)
    archive.write_out(export_dir, verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", nargs="?", default="./digit_files", help="base path (default: ./digit_files)"
    )
    arguments = parser.parse_args()

    digits = load_digits()
    images = (digits.images[..., None] * (255 / 16)).astype("uint8")
    model = build_model()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    warm = kw.WarmupExport(os.path.join(arguments.directory, "{version}"), export_fn=write)
    model.fit(images, digits.target, epochs=2, batch_size=64, verbose=2, callbacks=[warm])
    console = Console()
    console.print(warm.reports[-1])
    console.print(kw.verify(warm.reports[-1].export_dir))


if __name__ == "__main__":
    main()
