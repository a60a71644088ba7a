"""A KerasTuner search; the best model is trained again and published warm.

    pip install keras-tuner tensorboard && python examples/keras_tuner_search.py

The trials need no callback: what is served is the model that is trained with the hyperparameters
found. A `BatchCapture` in `search(callbacks=[...])` works too; KerasTuner copies it for each trial.
"""

import argparse
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from sklearn.datasets import load_digits

import keras_warmup as kw

TRIALS = 3


def build_model(hp) -> keras.Model:
    """Builds a classifier of digits with the hyperparameters of a trial."""
    model = keras.Sequential(
        [
            keras.Input((64,), name="pixels"),
            keras.layers.Rescaling(1 / 16),
            keras.layers.Dense(hp.Choice("units", [16, 32, 64]), activation="relu"),
            keras.layers.Dropout(hp.Float("dropout", 0, 0.4, step=0.2)),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Searches, then trains and publishes the best model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", nargs="?", default="./tuned", help="base path (default: ./tuned)"
    )
    base_path = parser.parse_args().directory
    import keras_tuner

    digits = load_digits()
    x, y = digits.data.astype("float32"), digits.target
    with tempfile.TemporaryDirectory() as directory:
        tuner = keras_tuner.RandomSearch(
            build_model, "val_accuracy", max_trials=TRIALS, seed=0, directory=directory
        )
        tuner.search(x, y, epochs=2, validation_split=0.2, verbose=0)
        best = tuner.get_best_hyperparameters()[0]
    print("best:", best.values)
    model = build_model(best)
    model.fit(x, y, epochs=5, verbose=0, callbacks=[kw.WarmupExport(base_path + "/{version}")])


if __name__ == "__main__":
    main()
