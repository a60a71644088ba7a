"""Models with random weights: those of the benchmarks.

`ZOO` covers the lazy initialisations of TensorFlow Serving. Each of its models has two outputs, an
embedding and a score: some clients ask for both, some for the score alone. `READY` and `SCALE` are
large, or have much of one thing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_warmup import endpoints
from keras_warmup.data.sampling import select_batches
from keras_warmup.data.sources import read_batches

COLOURS = ("red", "green", "blue")
# The output filter that clients use, in addition to both outputs.
SCORE = ["score"]
# Rows in each of their requests.
CLIENT_BATCH = 4


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


def batches_of(data: Any) -> list[Any]:
    """Samples a few batches of the rows."""
    return select_batches(read_batches(data), num_batches=2, rows=32, seed=0)


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


def _transformer(layers: int) -> keras.Model:
    tokens = keras.Input((32,), dtype="int64", name="tokens")
    x = keras.layers.Embedding(1000, 64)(tokens)
    for _ in range(layers):
        attended = keras.layers.MultiHeadAttention(4, 16)(x, x)
        x = keras.layers.LayerNormalization()(x + attended)
        hidden = keras.layers.Dense(128, activation="gelu")(x)
        x = keras.layers.LayerNormalization()(x + keras.layers.Dense(64)(hidden))
    return _scored(tokens, keras.layers.GlobalAveragePooling1D()(x), keras.layers.Dense(4))


def _convolutions(application: Callable[..., keras.Model], size: int) -> keras.Model:
    base = application(weights=None, input_shape=(size, size, 3), include_top=False, pooling="avg")
    return _scored(base.input, base.output, keras.layers.Dense(10, activation="softmax"))


def _large_embedding() -> keras.Model:
    tokens = keras.Input((32,), dtype="int64", name="tokens")
    x = keras.layers.Embedding(2_000_000, 128)(tokens)  # 1.02 GB
    return _scored(tokens, keras.layers.GlobalAveragePooling1D()(x), keras.layers.Dense(4))


def _many_inputs() -> keras.Model:
    inputs = {name: keras.Input((1,), name=name) for name in _many_names()}
    x = keras.layers.Concatenate()(list(inputs.values()))
    return _scored(inputs, keras.layers.Dense(64)(x), keras.layers.Dense(1))


def _many_names() -> list[str]:
    return [f"feature_{index:03}" for index in range(500)]


def _many_rows(count: int, seed: int) -> dict[str, np.ndarray]:
    columns = _floats(500)(count, seed)
    return {name: columns[:, index : index + 1] for index, name in enumerate(_many_names())}


def _word(index: int) -> str:
    return f"word{index:06}"


def _vocabulary() -> keras.Model:
    word = keras.Input((1,), dtype="string", name="word")
    lookup = keras.layers.StringLookup(vocabulary=[_word(index) for index in range(500_000)])
    x = keras.layers.Flatten()(keras.layers.Embedding(lookup.vocabulary_size(), 8)(lookup(word)))
    return _scored(word, keras.layers.Dense(16)(x), keras.layers.Dense(1))


def _words(count: int, seed: int) -> np.ndarray:
    chosen = np.random.default_rng(seed).choice(500_000, (count, 1), replace=False)
    return np.array([[_word(index)] for (index,) in chosen], dtype=object)


def _export_endpoints(model: keras.Model, export_dir: str) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = [tf.TensorSpec((None, 32), tf.float32, name="x")]

    # Constants of their own: otherwise all would be twins, of which one record warms all.
    def shifted(shift: float) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        return lambda x: {name: value + shift for name, value in model(x).items()}

    for index in range(20):
        key = f"endpoint_{index}" if index else "serving_default"
        archive.add_endpoint(key, shifted(float(index)), spec)
    archive.write_out(export_dir, verbose=False)


def _large_row() -> keras.Model:
    x = keras.Input((5000, 5000), name="x")  # 100 MB
    return _scored(x, keras.layers.GlobalAveragePooling1D()(x), keras.layers.Dense(1))


_MOBILE_NET = Specimen(
    "MobileNetV2",
    functools.partial(_convolutions, keras.applications.MobileNetV2, 96),
    _floats(96, 96, 3),
    sizes_matter=True,
)
_EFFICIENT_NET = Specimen(
    "EfficientNetB4",
    functools.partial(_convolutions, keras.applications.EfficientNetB4, 96),
    _floats(96, 96, 3),
    sizes_matter=True,
)
_DEEP_TRANSFORMER = Specimen("transformer, 48 layers", functools.partial(_transformer, 48), _tokens)
_LARGE_EMBEDDING = Specimen("embedding, 1 GB", _large_embedding, _tokens)

ZOO = (
    Specimen("MLP", _mlp, _floats(32)),
    Specimen("ParseExample table", _table, _table_rows, export_fn=_export_table),
    Specimen(
        "XLA", _compiled, _floats(32), {"xla": True}, sizes_matter=True, export_fn=_export_compiled
    ),
    Specimen("LSTM", _lstm, _floats(40, 16)),
    Specimen("transformer", functools.partial(_transformer, 2), _tokens),
    _MOBILE_NET,
)
# Models whose time to ready is measured.
READY = (
    Specimen("MLP", _mlp, _floats(32)),
    Specimen("LSTM", _lstm, _floats(40, 16)),
    Specimen("transformer, 3 layers", functools.partial(_transformer, 3), _tokens),
    _MOBILE_NET,
    _EFFICIENT_NET,
    _DEEP_TRANSFORMER,
    _LARGE_EMBEDDING,
)
# Models that are large in some way, whose export is measured.
SCALE = (
    _MOBILE_NET,
    _EFFICIENT_NET,
    _DEEP_TRANSFORMER,
    _LARGE_EMBEDDING,
    Specimen("500 inputs", _many_inputs, _many_rows),
    Specimen("lookup of 500 000 words", _vocabulary, _words),
    Specimen("20 signatures", _mlp, _floats(32), export_fn=_export_endpoints),
    Specimen("row of 100 MB", _large_row, _floats(5000, 5000), {"max_bytes": 2**30}),
)
