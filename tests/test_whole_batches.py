"""Inputs with different leading sizes (graphs), and signatures without a batch dimension."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw

ROWS = np.random.default_rng(0)


class GraphNetwork(keras.Model):
    """Nodes, edges and the graph of each node: three leading sizes in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = keras.layers.Dense(4)
        self.head = keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        nodes, edges = inputs["nodes"], inputs["edges"]
        hidden = self.nodes(nodes)
        summed = tf.math.unsorted_segment_sum(
            tf.gather(hidden, edges[:, 0]), edges[:, 1], tf.shape(nodes)[0]
        )
        return self.head(hidden + summed)


class MessagePassing(keras.Model):
    """As in the molecules example: a tuple of atoms, bonds and pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = keras.layers.Dense(4)
        self.head = keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        atoms, bonds, pairs = inputs
        messages = self.embed(bonds) + tf.gather(self.embed(atoms), pairs[:, 0])
        return self.head(tf.math.unsorted_segment_sum(messages, pairs[:, 1], tf.shape(atoms)[0]))


def graphs(kind: str) -> tf.data.Dataset:
    """Six graphs of different sizes, one batch each."""

    def generate() -> Any:
        for nodes in (5, 7, 4, 6, 5, 8):
            edges = ROWS.integers(0, nodes, (nodes + 3, 2)).astype("int32")
            values = ROWS.random((nodes, 3), "float32")
            if kind == "dict":
                yield {"nodes": values, "edges": edges}, np.zeros((nodes, 1), "float32")
            else:
                bonds = ROWS.random((nodes + 3, 3), "float32")
                yield (values, bonds, edges), np.zeros((nodes, 1), "float32")

    float_rows, int_pairs = tf.TensorSpec((None, 3)), tf.TensorSpec((None, 2), tf.int32)
    x: Any = {"nodes": float_rows, "edges": int_pairs}
    if kind != "dict":
        x = (float_rows, float_rows, int_pairs)
    return tf.data.Dataset.from_generator(generate, output_signature=(x, tf.TensorSpec((None, 1))))


MODELS = {"dict": GraphNetwork, "tuple": MessagePassing}


@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_that_is_one_request_is_sent_whole(kind: str, tmp_path: pathlib.Path) -> None:
    model = MODELS[kind]()
    model.compile("sgd", "mse")
    export = kw.WarmupExport(
        tmp_path / "1", warmup={"whole_batches": True}, on_error="raise", verbose=0
    )
    model.fit(graphs(kind), verbose=0, callbacks=[export])
    (record,) = export.reports[-1].records
    assert (record.source, record.batch_size) == ("captured", None)
    sizes = sorted({shape[0] for shape in record.shapes.values()})
    assert len(sizes) == 2 and sizes[1] == sizes[0] + 3
    assert export.reports[-1].proofs["serving_default"] == "proved"
    assert kw.verify(tmp_path / "1").ok


@pytest.mark.parametrize("kind", MODELS)
def test_without_the_option_the_message_suggests_it(kind: str, tmp_path: pathlib.Path) -> None:
    model = MODELS[kind]()
    model.compile("sgd", "mse")
    export = kw.WarmupExport(tmp_path / "1", on_error="warn", verbose=0)
    with pytest.warns(UserWarning, match=r"warmup=\{'whole_batches': True\}"):
        model.fit(graphs(kind), verbose=0, callbacks=[export])
    first = next(iter(graphs(kind)))[0]
    with pytest.raises(kw.WarmupError, match=r"warmup=\{'whole_batches': True\}"):
        kw.export_with_warmup(model, tmp_path / "2", data=first)
    report = kw.export_with_warmup(
        model, tmp_path / "2", data=first, warmup={"whole_batches": True}
    )
    assert report.records[0].source == "data"


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", ["callback", "capture"])
def test_without_the_option_the_model_is_exported_as_it_was_trained(
    way: str, kind: str, tmp_path: pathlib.Path
) -> None:
    model = MODELS[kind]()
    model.compile("sgd", "mse")
    export = kw.WarmupExport(tmp_path / "1", verbose=0)
    with pytest.warns(UserWarning) as caught:
        callback = export if way == "callback" else kw.BatchCapture()
        history = model.fit(graphs(kind), verbose=0, callbacks=[callback])
        report = (
            export.reports[-1]
            if way == "callback"
            else kw.export_with_warmup(model, tmp_path / "1", on_error="warn")
        )
    assert history.history["loss"]
    # Keras would guess float32 for the edges, which no call takes.
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    dtypes = {spec.dtype for spec in served.structured_input_signature[1].values()}
    assert dtypes == {tf.float32, tf.int32}
    # The reason and the cure are in the last warning too, not only in the one at the first step.
    last = str(caught[-1].message)
    assert report.synthetic and "hold made-up rows: sampling of training batches stopped" in last
    assert "different numbers of rows" in last and "warmup={'whole_batches': True}" in last
    assert "callbacks=" not in last
    (reason,) = report.synthetic_reasons.values()
    assert reason in last


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("save_freq", ["train_end", "epoch"])
def test_training_is_bit_identical_with_whole_batches(
    save_freq: Any, kind: str, tmp_path: pathlib.Path
) -> None:
    data = graphs(kind).cache()
    for _ in data:  # the generator draws its rows once
        pass

    def train(*callbacks: keras.callbacks.Callback) -> tuple[Any, list[np.ndarray]]:
        keras.utils.set_random_seed(2)
        model = MODELS[kind]()
        model.compile("sgd", "mse")
        history = model.fit(data, epochs=2, verbose=0, callbacks=list(callbacks))
        return history.history, model.get_weights()

    history, weights = train()
    export = kw.WarmupExport(
        tmp_path / "{version}", warmup={"whole_batches": True}, save_freq=save_freq, verbose=0
    )
    history_with, weights_with = train(export)
    assert len(export.reports) == (2 if save_freq == "epoch" else 1)
    assert history_with == history
    for one, other in zip(weights, weights_with, strict=True):
        np.testing.assert_array_equal(one, other)


class Scaled(tf.Module):
    """A signature with a scalar beside its rows."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="x"),
            tf.TensorSpec([], tf.float32, name="temperature"),
        ]
    )
    def serve(self, x: Any, temperature: Any) -> Any:
        return {"y": x / temperature}


class OneRow(tf.Module):
    """A signature of scalars only."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([], tf.float32, name="a"),
            tf.TensorSpec([], tf.float32, name="b"),
        ]
    )
    def serve(self, a: Any, b: Any) -> Any:
        return {"y": a + b}


@pytest.mark.parametrize(
    ("module", "data"),
    [
        (Scaled, {"x": np.ones((4, 2), "float32"), "temperature": np.float32(2.0)}),
        (Scaled, {"x": np.ones((4, 2), "float32"), "temperature": np.ones(4, "float32")}),
        (OneRow, {"a": np.arange(3, dtype="float32"), "b": np.arange(3, dtype="float32")}),
        (OneRow, {"a": np.float32(1.0), "b": np.float32(2.0)}),
    ],
    ids=["scalar", "column for a scalar", "columns for scalars", "scalars"],
)
def test_scalar_inputs_take_one_row(module: Any, data: Any, tmp_path: pathlib.Path) -> None:
    made = module()
    report = kw.save(made, tmp_path / "1", signatures={"serving_default": made.serve}, data=data)
    (record,) = report.records
    assert record.source == "data"
    assert record.shapes.get("temperature", ()) == () and record.shapes.get("a", ()) == ()
    assert kw.verify(tmp_path / "1").ok
