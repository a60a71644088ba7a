"""Tests of `keras_warmup.pipeline.keras_model`, through the public exports."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.errors import BindingError, WarmupError
from keras_warmup.pipeline.keras_model import call_model
from tests.builders import functional_model, input_of_four, random_rows


def test_a_model_that_was_never_built_is_refused(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.layers.Dense(3)], name="unbuilt")
    for export in (kw.export_with_warmup, kw.save):
        with pytest.raises(WarmupError) as error:
            export(model, tmp_path / "1")
        assert str(error.value) == (
            "Cannot export model 'unbuilt': it was never built, so it has no signature. Call it on "
            "a batch, train it, or call model.build(input_shape) first."
        )
    assert os.listdir(tmp_path) == []


def test_missing_features_are_reported_with_those_of_the_batch(tmp_path: pathlib.Path) -> None:
    model = functional_model({"a": input_of_four("a"), "b": input_of_four("b")})
    with pytest.raises(BindingError) as error:
        kw.export_with_warmup(model, tmp_path / "1", data={"a": random_rows(4)})
    assert str(error.value) == (
        f"Cannot bind batch to model {model.name!r}: missing features x['b'] ('b' float32 "
        "[None, 4]). The batch has x['a'] (float32 [2, 4]). Add the features to the dataset."
    )


class IdsAndWords(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.look_up = keras.layers.StringLookup(vocabulary=["a", "b"])
        self.embed = keras.layers.Embedding(10, 3)

    def call(self, x: dict[str, Any]) -> Any:
        return keras.ops.mean(self.embed(x["ids"]), 1) + self.embed(self.look_up(x["word"]))


@pytest.mark.parametrize("export", [kw.export_with_warmup, kw.save], ids=["model.export", "save"])
def test_subclassed_models_are_exported_with_the_dtypes_of_their_batches(
    export: Any, tmp_path: pathlib.Path
) -> None:
    x = {"ids": np.arange(24).reshape(12, 2) % 10, "word": np.array(["a", "b", "c"] * 4)}
    model = IdsAndWords()
    model({"ids": x["ids"][:1], "word": tf.constant(["a"])})
    report = export(model, tmp_path / "1", data=x)
    assert set(report.proofs.values()) == {"proved"}
    specs = kw.inspect(report.export_dir).signatures[-1].signature.inputs
    assert {spec.dtype for spec in specs.values()} == {"int64", "string"}
    assert all(spec.shape[0] is None for spec in specs.values())


class ByKey(keras.Model):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.dense = keras.layers.Dense(1)

    def call(self, x: dict[str, Any]) -> Any:
        return self.dense(x[self.key])


@pytest.mark.parametrize("key", ["größe", "a b", "_x", "1a", "self", "a.b"])
@pytest.mark.parametrize("export", [kw.export_with_warmup, kw.save], ids=["model.export", "save"])
def test_subclassed_models_are_exported_with_feature_names_that_tensorflow_changes(
    key: str, export: Any, tmp_path: pathlib.Path
) -> None:
    x = {key: random_rows(3), "a_b": random_rows(3)}
    model = ByKey(key)
    model(x)
    assert set(export(model, tmp_path / "1", data=x).proofs.values()) == {"proved"}


def test_calling_the_model_leaves_weights_seeds_and_metrics_as_they_were() -> None:
    x = keras.Input((3,))
    hidden = keras.layers.BatchNormalization()(x, training=True)
    noisy = keras.Model(x, keras.layers.Dropout(0.5)(hidden, training=True))
    noisy.compile("sgd", "mse")
    before = [keras.ops.convert_to_numpy(variable) for variable in noisy.variables]
    rows = random_rows(3)
    call_model(noisy, rows)
    call_model(noisy, rows)
    for variable, value in zip(noisy.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
