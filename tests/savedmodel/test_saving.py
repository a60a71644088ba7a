"""Tests of `keras_warmup.savedmodel.saving`."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.savedmodel.saving import each_weight_once, save_saved_model
from keras_warmup.serving.replay import open_session
from tests.builders import predict_log

ROWS = np.ones((2, 3), "float32")


class Holder(tf.Module):
    """A tf.Module that holds a Keras model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    def serve(self, x: Any) -> Any:
        return {"y": self.model(x)}


@pytest.fixture
def model() -> Any:
    return keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2)])


def test_a_keras_model_is_saved_so_that_a_session_can_run_it(
    model: Any, tmp_path: pathlib.Path
) -> None:
    save_saved_model(model, str(tmp_path / "1"))
    with open_session(tmp_path / "1") as session:
        (output,) = session.replay(predict_log(inputs=ROWS)).outputs.values()
    np.testing.assert_allclose(output, model(ROWS), rtol=1e-6)


def test_a_module_that_holds_a_keras_model_is_saved_so_that_a_session_can_run_it(
    model: Any, tmp_path: pathlib.Path
) -> None:
    module = Holder(model)
    save_saved_model(module, str(tmp_path / "1"), {"serving_default": module.serve})
    with open_session(tmp_path / "1") as session:
        replayed = session.replay(predict_log(x=ROWS)).outputs
    np.testing.assert_allclose(replayed["y"], model(ROWS), rtol=1e-6)
    loaded = tf.saved_model.load(tmp_path / "1")
    np.testing.assert_allclose(loaded.serve(ROWS)["y"], replayed["y"], rtol=1e-6)


def test_keras_is_as_before_when_the_context_ends() -> None:
    method = keras.Variable._export_to_saved_model_graph
    with each_weight_once():
        assert keras.Variable._export_to_saved_model_graph is not method
        with each_weight_once():  # an export_fn may call keras_warmup.save
            pass
        assert keras.Variable._export_to_saved_model_graph is not method
    assert keras.Variable._export_to_saved_model_graph is method
    with pytest.raises(RuntimeError), each_weight_once():
        raise RuntimeError
    assert keras.Variable._export_to_saved_model_graph is method
