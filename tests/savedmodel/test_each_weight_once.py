"""Tests that exports with each weight once are, to every loader, what Keras writes.

Each kind of model is exported twice, as Keras does it and with `each_weight_once`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.savedmodel.saving import each_weight_once
from keras_warmup.serving.replay import open_session
from tests.builders import predict_log

ROWS = np.random.default_rng(0).random((4, 6), "float32")
WORDS = np.array([["a"], ["b"], ["c"], ["d"]])
IDS = np.array([[1, 2, 3], [3, 2, 1], [0, 0, 1], [2, 2, 2]], "int32")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of export.

    Attributes:
        export: writes the SavedModel of a new model into a directory.
        rows: rows for its signatures.
        trains: whether it has weights that a TFSMLayer can train.
        input_name: the input of each of its signatures.
        keys: its signatures.
    """

    export: Callable[[str], None]
    rows: np.ndarray
    trains: bool = True
    input_name: str = "x"
    keys: tuple[str, ...] = ("serve", "serving_default")


def exported(build: Callable[[], keras.Model]) -> Callable[[str], None]:
    def export(directory: str) -> None:
        build().export(directory, verbose=False)

    return export


def functional() -> keras.Model:
    x = keras.Input((6,), name="x")
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, activation="relu")(x))
    return keras.Model(x, keras.layers.Dense(2)(hidden))


def sequential() -> keras.Model:
    layers = [keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((6,), name="x"), *layers])


class Subclassed(keras.Model):
    """A model whose layers lie in attributes, a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first = keras.layers.Dense(6)
        self.listed = [keras.layers.Dense(6), keras.layers.Dense(6)]
        self.keyed = {"last": keras.layers.Dense(2)}

    def call(self, x: Any) -> Any:
        x = self.first(x)
        for layer in self.listed:
            x = layer(x)
        return self.keyed["last"](x)


def subclassed() -> keras.Model:
    model = Subclassed()
    model(ROWS)
    return model


def nested() -> keras.Model:
    x = keras.Input((6,), name="x")
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6)])
    return keras.Model(x, keras.layers.Dense(2)(inner(inner(x))))


def shared_layers() -> keras.Model:
    x = keras.Input((6,), name="x")
    dense = keras.layers.Dense(6)
    return keras.Model(x, keras.layers.Dense(2)(dense(x) + dense(dense(x))))


def lookup() -> keras.Model:
    text = keras.Input((1,), dtype="string", name="x")
    index = keras.layers.StringLookup(vocabulary=["a", "b", "c"])(text)
    vector = keras.layers.Flatten()(keras.layers.Embedding(4, 3)(index))
    return keras.Model(text, keras.layers.Dense(2)(vector))


def mixed_precision() -> keras.Model:
    x = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(8, dtype="mixed_float16")(x)
    return keras.Model(x, keras.layers.Dense(2, dtype="float32")(hidden))


def quantized() -> keras.Model:
    model = functional()
    model.quantize("int8")
    return model


def recurrent() -> keras.Model:
    ids = keras.Input((None,), dtype="int32", name="x")
    embedded = keras.layers.Embedding(4, 3)(ids)
    return keras.Model(ids, keras.layers.Dense(2)(keras.layers.LSTM(4, dropout=0.5)(embedded)))


def export_endpoints(directory: str) -> None:
    """Several endpoints over one model, one of them a part of it."""
    model = functional()
    spec = [tf.TensorSpec([None, 6], tf.float32, name="x")]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda x: model(x, training=False), input_signature=spec)
    archive.add_endpoint("hidden", lambda x: model.layers[1](x), input_signature=spec)
    archive.write_out(directory, verbose=False)


def export_by_hand(directory: str) -> None:
    """An archive with a lookup table, a tracked tf.Variable and a collection of its own."""
    model = functional()
    model.compile("adam", "mse")
    model.train_on_batch(ROWS, np.ones((4, 2)))
    initializer = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1.0, 2.0])
    table = tf.lookup.StaticHashTable(initializer, 0.0)
    scale = tf.Variable(3.0, name="scale")

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.string, name="x")])
    def serve(words: Any) -> Any:
        return model(tf.repeat(table.lookup(words), 6, axis=1)) * scale

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(table)
    archive.add_endpoint("serve", serve)
    archive.add_variable_collection("optimizer_variables", model.optimizer.variables)
    archive.add_variable_collection("mixed", [scale, *model.trainable_variables])
    before = [list(one) for one in (archive.variables, archive.trainable_variables)]
    archive.write_out(directory, verbose=False)
    assert [list(one) for one in (archive.variables, archive.trainable_variables)] == before


KINDS = {
    "functional": Kind(exported(functional), ROWS),
    "sequential": Kind(exported(sequential), ROWS),
    "subclassed": Kind(exported(subclassed), ROWS, input_name="args_0"),
    "nested": Kind(exported(nested), ROWS),
    "shared_layers": Kind(exported(shared_layers), ROWS),
    "lookup": Kind(exported(lookup), WORDS),
    "mixed_precision": Kind(exported(mixed_precision), ROWS),
    "int8": Kind(exported(quantized), ROWS, trains=False),
    "recurrent": Kind(exported(recurrent), IDS),
    "endpoints": Kind(export_endpoints, ROWS, keys=("serve", "hidden", "serving_default")),
    "by_hand": Kind(export_by_hand, WORDS),
}


@pytest.fixture(scope="module", params=list(KINDS))
def exports(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kind, str, str]:
    """A kind, its export as Keras writes it, and the one with each weight once."""
    kind = KINDS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    for name, context in (("keras", contextlib.nullcontext()), ("once", each_weight_once())):
        keras.backend.clear_session()  # the same names of layers in both
        keras.utils.set_random_seed(0)
        with context:
            kind.export(str(directory / name))
    return kind, str(directory / "keras"), str(directory / "once")


def checkpoint_bytes(export_dir: str) -> int:
    return sum(path.stat().st_size for path in pathlib.Path(export_dir, "variables").glob("*data*"))


def weight_bytes(export_dir: str) -> int:
    """Returns the bytes of the distinct variables that `tf.saved_model.load` makes."""
    loaded = tf.saved_model.load(export_dir)
    lists = [vars(loaded)[name] for name in vars(loaded) if isinstance(vars(loaded)[name], list)]
    found = {id(one): one for items in lists for one in items if isinstance(one, tf.Variable)}
    return sum(one.numpy().nbytes for one in found.values())


def equal_bits(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def test_no_weight_is_stored_twice(exports: tuple[Kind, str, str]) -> None:
    _, plain, once = exports
    assert checkpoint_bytes(plain) > weight_bytes(once)
    # Beside the weights, the checkpoint holds the object graph.
    names = dict(tf.train.list_variables(f"{once}/variables/variables"))
    weights = [name for name in names if name.endswith("VARIABLE_VALUE")]
    loaded = tf.saved_model.load(once)
    distinct = {id(one) for name in ("_all_variables", "variables") for one in vars(loaded)[name]}
    extra = {id(one) for name in vars(loaded) for one in _variables(vars(loaded)[name])}
    assert len(weights) == len(distinct | extra)


def _variables(value: Any) -> list[Any]:
    return [one for one in value if isinstance(one, tf.Variable)] if isinstance(value, list) else []


def test_load_returns_the_same(exports: tuple[Kind, str, str]) -> None:
    kind, plain, once = exports
    ours, theirs = tf.saved_model.load(once), tf.saved_model.load(plain)
    assert sorted(dir(ours)) == sorted(dir(theirs))
    compared = 0
    for name in vars(theirs):
        if name.startswith("_"):  # in the order of a set
            continue
        expected, got = _variables(vars(theirs)[name]), _variables(vars(ours)[name])
        assert len(expected) == len(got)
        for one, other in zip(expected, got, strict=True):
            assert (one.name, one.trainable) == (other.name, other.trainable)
            assert equal_bits(one, other)
            compared += 1
    assert compared
    rows = tf.constant(kind.rows)
    for key in kind.keys:
        expected, got = (one.signatures[key](**{kind.input_name: rows}) for one in (theirs, ours))
        assert expected.keys() == got.keys()
        assert all(equal_bits(got[name], expected[name]) for name in expected)
    assert equal_bits(ours.serve(rows), theirs.serve(rows))


def test_a_session_returns_the_same(exports: tuple[Kind, str, str]) -> None:
    kind, plain, once = exports
    rows = kind.rows.astype(object) if kind.rows.dtype.kind == "U" else kind.rows
    with open_session(plain) as theirs, open_session(once) as ours:
        for key in kind.keys:
            log = predict_log(key, **{kind.input_name: rows})
            expected, got = theirs.replay(log).outputs, ours.replay(log).outputs
            assert expected.keys() == got.keys()
            assert all(equal_bits(got[name], expected[name]) for name in expected)


def test_a_tfsm_layer_returns_the_same_and_trains_the_same(exports: tuple[Kind, str, str]) -> None:
    kind, plain, once = exports
    trained = []
    for export_dir in (plain, once):
        keras.utils.set_random_seed(0)
        layer = keras.layers.TFSMLayer(export_dir, call_endpoint="serve")
        rows = tf.constant(kind.rows)
        outputs = [layer(rows)]
        if kind.trains:
            optimizer = keras.optimizers.SGD(0.1)
            for _ in range(3):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(tf.cast(layer(rows), "float32") ** 2)
                gradients = tape.gradient(loss, layer.trainable_variables)
                assert any(gradient is not None for gradient in gradients)
                optimizer.apply(gradients, layer.trainable_variables)
        trained.append([*outputs, layer(rows), *layer.variables])
    expected, got = trained
    assert len(expected) == len(got)
    assert all(equal_bits(one, other) for one, other in zip(got, expected, strict=True))


def test_a_module_around_a_keras_model_runs_in_a_session_and_loads_the_same(
    tmp_path: pathlib.Path,
) -> None:
    model = functional()

    class Holder(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x")])
        def serve(self, x: Any) -> Any:
            return {"y": self.model(x)}

    module = Holder()
    for name, context in (("keras", contextlib.nullcontext()), ("once", each_weight_once())):
        with context:
            tf.saved_model.save(module, tmp_path / name, signatures=module.serve)
    theirs, ours = (tf.saved_model.load(tmp_path / name) for name in ("keras", "once"))
    assert equal_bits(ours.serve(ROWS)["y"], theirs.serve(ROWS)["y"])
    with open_session(tmp_path / "once") as session:
        replayed = session.replay(predict_log(x=ROWS)).outputs["y"]
    np.testing.assert_allclose(replayed, model(ROWS), rtol=1e-6)
    assert checkpoint_bytes(str(tmp_path / "once")) == checkpoint_bytes(str(tmp_path / "keras"))
