"""A tutorial script that has never heard of keras_warmup.

    keras-warmup run examples/unchanged.py ./iris/1

publishes `./iris/1` with a warmup file of rows that `fit` trained on. `python examples/unchanged.py
./iris/1` writes the same model without one.
"""

import sys

import keras
from sklearn.datasets import load_iris

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
model.export(sys.argv[1] if len(sys.argv) > 1 else "./iris/1")
