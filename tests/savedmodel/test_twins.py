"""Tests of `keras_warmup.savedmodel.twins`."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras
import pytest
import tensorflow as tf

from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.savedmodel.twins import find_twins


def twins_of(export_dir: str | os.PathLike[str]) -> dict[str, str]:
    meta_graph = read_meta_graph(export_dir)
    return find_twins(meta_graph, read_signatures(meta_graph))


def test_serve_and_serving_default_are_twins(tmp_path: pathlib.Path) -> None:
    x = keras.Input((4,), name="x")
    keras.Model(x, keras.layers.Dense(2)(x)).export(tmp_path / "1", verbose=False)
    assert twins_of(tmp_path / "1") == {"serve": "serving_default"}


class Pair(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = tf.Variable(1.0)
        self.two = tf.Variable(1.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def add_one(self, x: Any) -> Any:
        return {"y": x + self.one}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def add_two(self, x: Any) -> Any:
        return {"y": x + self.two}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def subtract(self, x: Any) -> Any:
        return {"y": x - self.one}

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def of_a_matrix(self, x: Any) -> Any:
        return {"y": x + self.one}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="other")])
    def other_name(self, other: Any) -> Any:
        return {"y": other + self.one}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="a"),
            tf.TensorSpec([None], tf.float32, name="b"),
        ]
    )
    def difference(self, a: Any, b: Any) -> Any:
        return {"y": a - b}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="b"),
            tf.TensorSpec([None], tf.float32, name="a"),
        ]
    )
    def swapped(self, b: Any, a: Any) -> Any:
        return {"y": b - a}


@pytest.mark.parametrize("other", ["add_two", "subtract", "of_a_matrix", "other_name"])
def test_other_functions_of_the_same_inputs_are_no_twins(
    other: str, tmp_path: pathlib.Path
) -> None:
    pair = Pair()
    tf.saved_model.save(
        pair, tmp_path / "1", {"serving_default": pair.add_one, "b": getattr(pair, other)}
    )
    assert twins_of(tmp_path / "1") == {}


def test_inputs_in_other_positions_are_no_twins(tmp_path: pathlib.Path) -> None:
    pair = Pair()
    tf.saved_model.save(
        pair, tmp_path / "1", {"serving_default": pair.difference, "b": pair.swapped}
    )
    assert twins_of(tmp_path / "1") == {}


def test_two_traces_of_the_same_function_are_twins(tmp_path: pathlib.Path) -> None:
    module = tf.Module()
    module.scale = tf.Variable(2.0)
    spec = tf.TensorSpec([None], tf.float32, name="x")

    def trace(added: float) -> Any:
        inner = tf.function(lambda x: x * module.scale + added)
        return tf.function(lambda x: {"y": inner(x)}, input_signature=[spec])

    module.traces = [trace(1.0), trace(1.0), trace(2.0)]
    signatures = dict(zip(["serving_default", "same", "other"], module.traces, strict=True))
    tf.saved_model.save(module, tmp_path / "1", signatures)
    assert twins_of(tmp_path / "1") == {"same": "serving_default"}


def test_signatures_of_estimators_are_left_alone(saved_models: pathlib.Path) -> None:
    assert twins_of(saved_models / "chicago_taxi_estimator" / "1") == {}
