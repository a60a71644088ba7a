"""Tabular data with strings and numbers, served as tf.Examples through all four request kinds.

    python examples/tabular_examples.py [DIRECTORY]

Trains on scikit-learn's iris table (real data, no download; the species is its string column) to tell the petal width, and
publishes a model with a Classify, a Regress and a Predict endpoint that read serialized tf.Examples. The warmup file holds a
record for each, and a MultiInference over the first two: the Examples are built from the very batches the model was trained on.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from sklearn.datasets import load_iris

import keras_warmup as kw

NUMBERS = ["sepal_length", "sepal_width", "petal_length"]
SPECIES = ["setosa", "versicolor", "virginica"]
# Petals under 1 cm are narrow.
WIDE_CM = 1.0
SPEC = {
    "species": tf.io.FixedLenFeature([], tf.string),
    **{name: tf.io.FixedLenFeature([], tf.float32) for name in NUMBERS},
}


def load_features() -> tuple[dict[str, np.ndarray], np.ndarray]:
    table = load_iris()
    x = {
        name: table.data[:, index : index + 1].astype("float32")
        for index, name in enumerate(NUMBERS)
    }
    x["species"] = table.target_names[table.target][:, None]
    return x, table.data[:, 3:].astype("float32")


def build_model() -> keras.Model:
    inputs = {name: keras.Input((1,), name=name) for name in NUMBERS}
    inputs["species"] = keras.Input((1,), name="species", dtype="string")
    species = keras.layers.StringLookup(vocabulary=SPECIES, output_mode="one_hot")(
        inputs["species"]
    )
    x = keras.layers.Concatenate()([species, *(inputs[name] for name in NUMBERS)])
    x = keras.layers.Dense(16, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="petal_width")(x))


def write(model: keras.Model, export_dir: str) -> None:
    """The SavedModel's endpoints: scores by class, the number itself, and every output of the model."""
    x = model.output
    bands = keras.ops.softmax(keras.ops.concatenate([WIDE_CM - x, x - WIDE_CM], axis=-1))
    classifier = keras.Model(model.input, bands)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", kw.endpoints.predict_examples(model, SPEC))
    archive.add_endpoint(
        "classification", kw.endpoints.classify(classifier, SPEC, classes=["narrow", "wide"])
    )
    archive.add_endpoint("regression", kw.endpoints.regress(model, SPEC))
    archive.write_out(export_dir, verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", nargs="?", default="./iris", help="base path of the model (default: ./iris)"
    )
    arguments = parser.parse_args()

    x, y = load_features()
    model = build_model()
    model.compile("adam", "mse")
    warm = kw.WarmupExport(
        os.path.join(arguments.directory, "{version}"),
        export_fn=write,
        warmup={
            "kinds": ["predict", "classify", "regress", "multi_inference"],
            "method_name": True,
        },
    )
    # fit takes strings from a tf.data.Dataset, not from NumPy.
    train = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=0).batch(32)
    model.fit(train, epochs=3, verbose=2, callbacks=[warm])
    console = Console()
    console.print(warm.reports[-1])
    console.print(kw.verify(warm.reports[-1].export_dir))


if __name__ == "__main__":
    main()
