"""A TFX-style `run_fn` in which only the save call is swapped.

    python examples/tfx_run_fn.py [EXPORT_DIR]

TFX calls `run_fn(fn_args)` of a module file in its Trainer. Here `main` calls it, with the few
fields that it reads; TFX need not be installed. The signature reads serialized `tf.Example`s, as
those of TFX do. The rows of the warmup file are those that `fit` trained on, encoded as Examples.
"""

import argparse
import os
import pathlib
import tempfile
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from rich import print

import keras_warmup as kw

FEATURES = ("body_mass", "culmen_depth", "culmen_length", "flipper_length")
SPECIES = 3
_FEATURE_SPEC = {name: tf.io.FixedLenFeature([1], tf.float32) for name in FEATURES}
_LABELED_SPEC = {**_FEATURE_SPEC, "species": tf.io.FixedLenFeature([], tf.int64)}


def _input_fn(pattern: str, batch_size: int) -> tf.data.Dataset:
    def parse(serialized: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        features = tf.io.parse_example(serialized, _LABELED_SPEC)
        return features, features.pop("species")

    files = tf.data.TFRecordDataset(tf.io.gfile.glob(pattern))
    return files.shuffle(1000, seed=0).repeat().batch(batch_size).map(parse)


def _make_model() -> keras.Model:
    inputs = {name: keras.Input((1,), name=name) for name in FEATURES}
    hidden = keras.layers.Concatenate()([inputs[name] for name in FEATURES])
    hidden = keras.layers.Dense(8, activation="relu")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(SPECIES, activation="softmax")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def run_fn(fn_args) -> None:
    """Trains the model and saves it with a signature for serialized Examples."""
    model = _make_model()
    model.fit(
        _input_fn(fn_args.train_files, batch_size=20),
        steps_per_epoch=fn_args.train_steps,
        verbose=2,
        callbacks=[kw.BatchCapture()],
    )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_examples(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"species": model(tf.io.parse_example(serialized, _FEATURE_SPEC))}

    signatures = {"serving_default": serve_examples}
    # Was: tf.saved_model.save(model, fn_args.serving_model_dir, signatures=signatures)
    kw.save(model, fn_args.serving_model_dir, signatures=signatures)


def _write_examples(path: pathlib.Path, count: int = 400) -> None:
    generator = np.random.default_rng(0)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(count):
            values = generator.random(len(FEATURES))
            label = int(values.sum() / len(FEATURES) * SPECIES)
            feature = {
                name: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
                for name, value in zip(FEATURES, values, strict=True)
            }
            feature["species"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def main() -> None:
    """Calls `run_fn` as TFX does, on made-up penguins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "export_dir",
        nargs="?",
        default="./penguins/1",
        help="where to save (default: ./penguins/1)",
    )
    export_dir = parser.parse_args().export_dir
    with tempfile.TemporaryDirectory() as directory:
        _write_examples(pathlib.Path(directory, "train.tfrecord"))
        run_fn(
            SimpleNamespace(
                train_files=f"{directory}/*.tfrecord",
                train_steps=100,
                serving_model_dir=export_dir,
            )
        )
    print(kw.verify(export_dir))


if __name__ == "__main__":
    main()
