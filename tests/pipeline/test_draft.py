"""Tests of `keras_warmup.pipeline.draft`: what is replayed, and what follows."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.errors import ProofError, ReplayError
from keras_warmup.report import WarmupReport
from keras_warmup.serving.replay import Replayed, ServingSession
from tests.builders import image_model, random_rows

IMAGES = random_rows(8, 8, 1, rows=6)
X = tf.TensorSpec([None], tf.float32, name="x")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A model whose signatures `serving_default` and `serve` are twins."""
    return image_model()


def warmed_keys(report: WarmupReport) -> list[tuple[str, tuple[str, ...]]]:
    return [(record.signature_key, record.warms) for record in report.records]


@pytest.mark.parametrize("verify", [True, False])
def test_twins_share_one_record_that_is_replayed_once(
    verify: bool, model: keras.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    replayed: list[Any] = []
    real = ServingSession.replay

    def replay(self: ServingSession, log: Any) -> Replayed:
        replayed.append(log)
        return real(self, log)

    monkeypatch.setattr(ServingSession, "replay", replay)
    report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES, warmup={"verify": verify})
    assert report.shared_signatures == {"serve": "serving_default"}
    assert warmed_keys(report) == [("serving_default", ("serving_default", "serve"))]
    assert len(replayed) == int(verify)
    monkeypatch.undo()
    assert kw.verify(tmp_path / "1").ok


@pytest.mark.parametrize("options", [{"share_twin_signatures": False}, {"signatures": ["serve"]}])
def test_twins_stay_apart_if_asked_to_or_if_one_is_not_warmed(
    options: dict[str, Any], model: keras.Model, tmp_path: pathlib.Path
) -> None:
    report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES, warmup=options)
    assert report.shared_signatures == {}


def test_twins_share_beside_records_of_the_old_file(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    kw.export_with_warmup(model, tmp_path / "1", data=IMAGES, warmup={"signatures": ["serve"]})
    options = {"share_twin_signatures": True}
    report = kw.add_warmup(tmp_path / "1", IMAGES, warmup=options, append=True)
    assert [(record.signature_key, record.source) for record in report.records] == [
        ("serve", "log"),
        ("serving_default", "data"),
    ]
    assert report.shared_signatures == {"serve": "serving_default"}
    assert kw.verify(tmp_path / "1").ok


class Clock(tf.Module):
    """Functions to save under several keys; `tell` never gives the same outputs twice."""

    @tf.function(input_signature=[X])
    def tell(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        microseconds = tf.math.floormod(tf.timestamp() * 1e6, 1e6)
        return {"y": tf.cast(x, tf.float64) + microseconds}

    @tf.function(input_signature=[X])
    def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * 2.0}


def test_twins_share_a_record_though_their_outputs_vary(tmp_path: pathlib.Path) -> None:
    module = Clock()
    signatures = {
        "serving_default": module.tell,
        "serve": module.tell,
        "double": module.double,
        "twice": module.double,
    }
    report = kw.save(module, tmp_path / "1", signatures, data=random_rows())
    assert report.shared_signatures == {"serve": "serving_default", "twice": "double"}
    assert sorted(warmed_keys(report)) == [
        ("double", ("double", "twice")),
        ("serving_default", ("serving_default", "serve")),
    ]
    assert kw.verify(tmp_path / "1").ok


def test_a_model_is_compared_as_a_server_runs_it_constants_folded(tmp_path: pathlib.Path) -> None:
    # In half precision the product of the two constants is zero: the optimizer of a server
    # multiplies them first.
    weights = tf.constant(np.full((3, 3, 8, 8), 1e-3), "float16")

    class Blur(keras.layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return tf.nn.conv2d(x, weights, 1, "SAME") * tf.constant(1e-5, tf.float16)

    x = keras.Input((8, 8, 8), dtype="float16", name="x")
    blurred = keras.Model(x, Blur(dtype="float16")(x))
    with pytest.raises(ProofError):
        kw.export_with_warmup(blurred, tmp_path / "1", data=np.full((4, 8, 8, 8), 300, "float16"))
    assert os.listdir(tmp_path) == []


class ReadsMissingFile(tf.Module):
    @tf.function(input_signature=[X])
    def read(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x, "text": tf.io.read_file("/no/such/file")}


def test_a_failure_that_does_not_depend_on_the_rows_refuses_the_export(
    tmp_path: pathlib.Path,
) -> None:
    module = ReadsMissingFile()
    with pytest.raises(ReplayError, match="NOT_FOUND"):
        kw.save(module, tmp_path / "1", signatures=module.read)
    assert os.listdir(tmp_path) == []


class ReadsNumbers(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def read(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.strings.to_number(text)}


def test_made_up_rows_that_do_not_run_leave_the_signature_cold(tmp_path: pathlib.Path) -> None:
    module = ReadsNumbers()
    with pytest.warns(UserWarning, match="stays cold: made-up rows do not run"):
        report = kw.save(module, tmp_path / "1", signatures=module.read)
    assert report.records == ()
    assert report.warmup_path is None
    assert not (tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests").exists()


def test_real_rows_that_do_not_run_refuse_the_export(tmp_path: pathlib.Path) -> None:
    module = ReadsNumbers()
    with pytest.raises(ReplayError, match="would keep TensorFlow Serving from loading the model"):
        kw.save(module, tmp_path / "1", module.read, data=[b"one", b"two"])
    assert os.listdir(tmp_path) == []
