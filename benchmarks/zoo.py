"""Models with random weights that cover the lazy initialisations of TensorFlow Serving.

Each has two outputs, an embedding and a score: some clients ask for both, some for the score alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_warmup import endpoints

COLOURS = ("red", "green", "blue")
# The output filter that clients use, in addition to both outputs.
SCORE = ["score"]


@dataclasses.dataclass(frozen=True)
class Specimen:
    """One model of the zoo.

    Attributes:
        name: its name in tables.
        build: builds the model.
        rows: `rows(count, seed)` makes distinct rows, as `fit` takes them.
        warmup: options of the warm export, besides the output filter and the batch sizes.
        sizes_matter: whether the file must hold the batch size that clients send.
        export_fn: writes the SavedModel; `None` for `model.export`.
    """

    name: str
    build: Callable[[], keras.Model]
    rows: Callable[[int, int], Any]
    warmup: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes_matter: bool = False
    export_fn: Callable[[keras.Model, str], Any] | None = None

    def options(self, **more: Any) -> dict[str, Any]:
        """Returns the `WarmupOptions` of the warm export, as a dict."""
        return {"output_filters": [SCORE], **self.warmup, **more}

    def export(self, model: keras.Model, export_dir: str) -> None:
        """Writes the SavedModel without a warmup file."""
        if self.export_fn is None:
            model.export(export_dir, verbose=False)
        else:
            self.export_fn(model, export_dir)


def _mlp() -> keras.Model:
    x = keras.Input((32,), name="x")
    return _scored(
        x,
        keras.layers.Dense(128, activation="relu")(x),
        keras.layers.Dense(1, activation="sigmoid"),
    )


def _scored(inputs: Any, embedding: Any, score: keras.Layer) -> keras.Model:
    return keras.Model(inputs, {"embedding": embedding, "score": score(embedding)})


def _floats(*shape: int) -> Callable[[int, int], np.ndarray]:
    return lambda count, seed: (
        np.random.default_rng(seed).random((count, *shape)).astype(np.float32)
    )


def _tokens(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, (count, 32)).astype(np.int64)


def _table() -> keras.Model:
    inputs = {
        "age": keras.Input((1,), name="age"),
        "income": keras.Input((1,), name="income"),
        "colour": keras.Input((1,), name="colour", dtype="string"),
    }
    colour = keras.layers.StringLookup(vocabulary=list(COLOURS), output_mode="one_hot")(
        inputs["colour"]
    )
    x = keras.layers.Concatenate()([inputs["age"], inputs["income"], colour])
    embedding = keras.layers.Dense(64, activation="relu")(x)
    return _scored(inputs, embedding, keras.layers.Dense(1, activation="sigmoid"))


def _table_rows(count: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "age": random.random((count, 1)).astype(np.float32),
        "income": random.random((count, 1)).astype(np.float32),
        "colour": random.choice(np.array(COLOURS, dtype=object), (count, 1)),
    }


def _export_table(model: keras.Model, export_dir: str) -> None:
    spec = {
        "age": tf.io.FixedLenFeature([1], tf.float32),
        "income": tf.io.FixedLenFeature([1], tf.float32),
        "colour": tf.io.FixedLenFeature([1], tf.string),
    }
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", endpoints.predict_examples(model, spec))
    archive.add_endpoint("classify", endpoints.classify(model, spec, ["no", "yes"], output="score"))
    archive.write_out(export_dir, verbose=False)


def _export_compiled(model: keras.Model, export_dir: str) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = [tf.TensorSpec((None, 32), tf.float32, name="x")]

    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return model(x)

    for key in ("serving_default", "other"):
        compiled = tf.function(call, input_signature=spec, jit_compile=True, autograph=False)
        compiled.get_concrete_function()
        archive.add_endpoint(key, compiled)
    archive.write_out(export_dir, verbose=False)


def _compiled() -> keras.Model:
    x = keras.Input((32,), name="x")
    embedding = keras.layers.Dense(128, activation="relu")(x)
    return _scored(x, embedding, keras.layers.Dense(10, activation="softmax"))


def _lstm() -> keras.Model:
    x = keras.Input((40, 16), name="x")
    return _scored(x, keras.layers.LSTM(64)(x), keras.layers.Dense(5))


def _transformer() -> keras.Model:
    tokens = keras.Input((32,), dtype="int64", name="tokens")
    x = keras.layers.Embedding(1000, 64)(tokens)
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(4, 16)(x, x)
        x = keras.layers.LayerNormalization()(x + attended)
        hidden = keras.layers.Dense(128, activation="gelu")(x)
        x = keras.layers.LayerNormalization()(x + keras.layers.Dense(64)(hidden))
    return _scored(tokens, keras.layers.GlobalAveragePooling1D()(x), keras.layers.Dense(4))


def _mobile_net() -> keras.Model:
    base = keras.applications.MobileNetV2(
        weights=None, input_shape=(96, 96, 3), include_top=False, pooling="avg"
    )
    return _scored(base.input, base.output, keras.layers.Dense(10, activation="softmax"))


ZOO = (
    Specimen("MLP", _mlp, _floats(32)),
    Specimen("ParseExample table", _table, _table_rows, export_fn=_export_table),
    Specimen(
        "XLA", _compiled, _floats(32), {"xla": True}, sizes_matter=True, export_fn=_export_compiled
    ),
    Specimen("LSTM", _lstm, _floats(40, 16)),
    Specimen("transformer", _transformer, _tokens),
    Specimen("MobileNetV2", _mobile_net, _floats(96, 96, 3), sizes_matter=True),
)
