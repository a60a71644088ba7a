"""Raw text in, a class out: the vocabulary ships inside the model.

    python examples/text.py [DIRECTORY]

Trains a small text classifier with a TextVectorization layer on the docstrings of scikit-learn's
own functions (about a dataset or not), and publishes it warm. Strings need nothing special: the
captured batches are strings already.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import sklearn.datasets
import sklearn.metrics
import tensorflow as tf
from rich.console import Console

import keras_warmup as kw


def load_sentences() -> tuple[np.ndarray, np.ndarray]:
    sentences, labels = [], []
    for label, module in enumerate((sklearn.metrics, sklearn.datasets)):
        for name in module.__all__:
            for line in (getattr(module, name).__doc__ or "").splitlines():
                if len(line.split()) >= 4:
                    sentences.append(line.strip())
                    labels.append(label)
    order = np.random.default_rng(0).permutation(len(sentences))
    return np.array(sentences)[order], np.array(labels, "float32")[order]


def build_model(sentences: np.ndarray) -> keras.Model:
    vectorize = keras.layers.TextVectorization(max_tokens=2000, output_sequence_length=16)
    vectorize.adapt(sentences)
    text = keras.Input((), dtype="string", name="text")
    x = keras.layers.Embedding(2000, 16)(vectorize(text))
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(text, keras.layers.Dense(1, activation="sigmoid", name="about_a_dataset")(x))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", nargs="?", default="./sentences", help="base path (default: ./sentences)"
    )
    arguments = parser.parse_args()

    sentences, labels = load_sentences()
    model = build_model(sentences)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    warm = kw.WarmupExport(os.path.join(arguments.directory, "{version}"))
    train = tf.data.Dataset.from_tensor_slices((sentences, labels)).batch(64)
    model.fit(train, epochs=4, verbose=2, callbacks=[warm])
    console = Console()
    console.print(warm.reports[-1])
    console.print(kw.verify(warm.reports[-1].export_dir))


if __name__ == "__main__":
    main()
