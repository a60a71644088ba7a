"""A tutorial script that has never heard of keras_warmup.

    keras-warmup run examples/unchanged.py ./iris/1

publishes `./iris/1` with a warmup file of rows that `fit` trained on.

    python examples/unchanged.py ./iris/1

writes the same model without one.
"""

import argparse

import keras
from sklearn.datasets import load_iris

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "export_dir", nargs="?", default="./iris/1", help="where to export (default: ./iris/1)"
)
export_dir = parser.parse_args().export_dir

iris = load_iris()
x, y = iris.data.astype("float32"), iris.target

model = keras.Sequential(
    [
        keras.Input((4,), name="flower"),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.Dense(3, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x, y, epochs=5, verbose=2)
model.export(export_dir)
