"""Tests of `keras_warmup.savedmodel.twins`, and of SavedModels whose twins share tensors."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.savedmodel.rewriting import share_tensors
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.savedmodel.twins import find_twins
from keras_warmup.serving.replay import open_session
from tests.builders import image_model, predict_log, random_rows

X = random_rows(8, 8, 1, rows=6)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return image_model()


def twins_of(export_dir: pathlib.Path) -> dict[str, str]:
    meta_graph = read_meta_graph(export_dir)
    return find_twins(meta_graph, read_signatures(meta_graph))


def replay(export_dir: pathlib.Path, key: str) -> Mapping[str, np.ndarray]:
    with open_session(export_dir) as session:
        return session.replay(predict_log(key, image=X)).outputs


def test_serve_and_serving_default_are_twins(model: keras.Model, tmp_path: pathlib.Path) -> None:
    model.export(tmp_path / "1", verbose=False)
    assert twins_of(tmp_path / "1") == {"serve": "serving_default"}


def test_sharing_changes_nothing_for_load_tfsmlayer_and_a_session(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    model.export(tmp_path / "apart", verbose=False)
    model.export(tmp_path / "shared", verbose=False)
    before = (tmp_path / "shared" / "fingerprint.pb").read_bytes()
    share_tensors(tmp_path / "shared", {"serve": "serving_default"})
    apart, shared = (
        tf.saved_model.load(tmp_path / "apart"),
        tf.saved_model.load(tmp_path / "shared"),
    )
    assert dir(apart) == dir(shared)
    assert dict(apart.signatures.items()).keys() == dict(shared.signatures.items()).keys()
    for key in ("serve", "serving_default"):
        for alias, value in replay(tmp_path / "apart", key).items():
            np.testing.assert_array_equal(replay(tmp_path / "shared", key)[alias], value)
            np.testing.assert_array_equal(
                shared.signatures[key](tf.constant(X))[alias],
                apart.signatures[key](tf.constant(X))[alias],
            )
    for one in (
        shared.serve(X),
        keras.layers.TFSMLayer(str(tmp_path / "shared"), call_endpoint="serve")(X),
    ):
        np.testing.assert_array_equal(one["a"], apart.serve(X)["a"])
    assert [one.same_tensors_as for one in kw.inspect(tmp_path / "shared").signatures] == [
        ("serving_default",),
        ("serve",),
    ]
    # The old fingerprint would describe another file.
    after = (tmp_path / "shared" / "fingerprint.pb").read_bytes()
    assert after != before
    assert tf.saved_model.experimental.read_fingerprint(str(tmp_path / "shared")) is not None


class Pair(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = tf.Variable(1.0)
        self.two = tf.Variable(1.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def add_one(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + self.one}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def add_two(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + self.two}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def subtract(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x - self.one}

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def of_a_matrix(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + self.one}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="other")])
    def other_name(self, other: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": other + self.one}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="a"),
            tf.TensorSpec([None], tf.float32, name="b"),
        ]
    )
    def difference(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": a - b}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="b"),
            tf.TensorSpec([None], tf.float32, name="a"),
        ]
    )
    def swapped(self, b: tf.Tensor, a: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": b - a}


@pytest.mark.parametrize("other", ["add_two", "subtract", "of_a_matrix", "other_name"])
def test_signatures_that_compute_or_read_something_else_are_no_twins(
    other: str, tmp_path: pathlib.Path
) -> None:
    pair = Pair()
    tf.saved_model.save(
        pair, tmp_path / "1", {"serving_default": pair.add_one, "b": getattr(pair, other)}
    )
    assert twins_of(tmp_path / "1") == {}


def test_inputs_in_other_places_are_no_twins(tmp_path: pathlib.Path) -> None:
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
