"""Tests of `keras_warmup.pipeline.draft`: what is replayed, in which Sessions, and what follows."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup._protos import PredictionLog
from keras_warmup.errors import ProofError, ReplayError
from keras_warmup.pipeline import draft
from keras_warmup.report import WarmupReport
from keras_warmup.serving.replay import Replayed, ServingSession
from tests.builders import image_model, random_rows

IMAGES = random_rows(8, 8, 1, rows=6)
X = tf.TensorSpec([None], tf.float32, name="x")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A model whose signatures `serving_default` and `serve` are twins."""
    return image_model()


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The keys of the signatures left unoptimized, for each Session that replayed a draft."""
    opened: list[set[str]] = []
    real = draft.open_session

    def open_session(export_dir: str, *, unoptimized: Collection[str] = ()) -> ServingSession:
        opened.append(set(unoptimized))
        return real(export_dir, unoptimized=unoptimized)

    monkeypatch.setattr(draft, "open_session", open_session)
    return opened


def signature_key_of(log: PredictionLog) -> str:
    return log.predict_log.request.model_spec.signature_name


def warmed_keys(report: WarmupReport) -> list[tuple[str, tuple[str, ...]]]:
    return [(record.signature_key, record.warms) for record in report.records]


def test_only_the_twin_is_left_unoptimized(
    model: keras.Model, sessions: list[set[str]], tmp_path: pathlib.Path
) -> None:
    report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES)
    assert report.shared_signatures == {"serve": "serving_default"}
    assert sessions == [{"serve"}]


@pytest.mark.parametrize("options", [{"share_twin_signatures": False}, {"signatures": ["serve"]}])
def test_without_twins_to_compare_everything_is_optimized(
    options: dict[str, Any], model: keras.Model, sessions: list[set[str]], tmp_path: pathlib.Path
) -> None:
    report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES, warmup=options)
    assert report.shared_signatures == {}
    assert sessions == [set()]


def test_beside_records_of_the_old_file_everything_is_optimized(
    model: keras.Model, sessions: list[set[str]], tmp_path: pathlib.Path
) -> None:
    kw.export_with_warmup(model, tmp_path / "1", data=IMAGES, warmup={"signatures": ["serve"]})
    options = {"share_twin_signatures": True}
    report = kw.add_warmup(tmp_path / "1", IMAGES, warmup=options, append=True)
    assert [(record.signature_key, record.source) for record in report.records] == [
        ("serve", "log"),
        ("serving_default", "data"),
    ]
    assert report.shared_signatures == {"serve": "serving_default"}
    assert sessions == [set(), set()]


class Clock(tf.Module):
    """Functions to save under several keys; `tell` never gives the same outputs twice."""

    @tf.function(input_signature=[X])
    def tell(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        microseconds = tf.math.floormod(tf.timestamp() * 1e6, 1e6)
        return {"y": tf.cast(x, tf.float64) + microseconds}

    @tf.function(input_signature=[X])
    def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * 2.0}


def test_twins_that_give_other_outputs_get_records_of_their_own(
    sessions: list[set[str]], tmp_path: pathlib.Path
) -> None:
    module = Clock()
    signatures = {"serving_default": module.tell, "serve": module.tell}
    report = kw.save(module, tmp_path / "1", signatures, data=random_rows())
    assert report.shared_signatures == {}
    assert warmed_keys(report) == [
        ("serving_default", ("serving_default",)),
        ("serve", ("serve",)),
    ]
    # Compared with the twin unoptimized, compared as a server runs both, and replayed apart.
    assert sessions == [{"serve"}, set(), set()]
    assert kw.verify(tmp_path / "1").ok


def test_equal_twins_beside_unequal_ones_still_share_a_record(
    sessions: list[set[str]], tmp_path: pathlib.Path
) -> None:
    module = Clock()
    signatures = {
        "serving_default": module.tell,
        "serve": module.tell,
        "double": module.double,
        "twice": module.double,
    }
    report = kw.save(module, tmp_path / "1", signatures, data=random_rows())
    assert report.shared_signatures == {"twice": "double"}
    assert sorted(warmed_keys(report)) == [
        ("double", ("double", "twice")),
        ("serve", ("serve",)),
        ("serving_default", ("serving_default",)),
    ]
    assert sessions == [{"serve", "twice"}, set(), {"twice"}]
    assert kw.verify(tmp_path / "1").ok


def test_twins_that_differ_unoptimized_only_are_compared_as_a_server_runs_them(
    model: keras.Model,
    sessions: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    real = draft.same_outputs

    def differ_in_first_session(
        ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
    ) -> bool:
        return len(sessions) > 1 and real(ours, theirs)

    monkeypatch.setattr(draft, "same_outputs", differ_in_first_session)
    report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES)
    assert report.shared_signatures == {"serve": "serving_default"}
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    assert warmed_keys(report) == [("serving_default", ("serving_default", "serve"))]
    assert sessions == [{"serve"}, set()]


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


def test_a_twin_that_fails_unoptimized_is_run_as_a_server_runs_it(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    replayed: list[str] = []
    real = ServingSession.replay

    def fail_once(self: ServingSession, log: PredictionLog) -> Replayed:
        replayed.append(signature_key_of(log))
        if replayed == ["serving_default", "serve"]:
            raise ReplayError("the twin fails unoptimized")
        return real(self, log)

    monkeypatch.setattr(ServingSession, "replay", fail_once)
    report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES)
    assert report.shared_signatures == {"serve": "serving_default"}
    assert replayed == ["serving_default", "serve", "serving_default", "serve"]


def test_a_record_that_fails_beside_an_unoptimized_twin_is_run_as_a_server_runs_it(
    model: keras.Model,
    sessions: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    real = ServingSession.replay

    def fail_in_first_session(self: ServingSession, log: PredictionLog) -> Replayed:
        if len(sessions) == 1:
            raise ReplayError("the record fails beside an unoptimized twin")
        return real(self, log)

    monkeypatch.setattr(ServingSession, "replay", fail_in_first_session)
    report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES)
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    assert sessions == [{"serve"}, set()]


def test_a_record_that_is_disproved_beside_an_unoptimized_twin_is_proved_as_a_server_runs_it(
    model: keras.Model,
    sessions: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    real = draft.prove_request

    def disprove_in_first_session(*arguments: Any, **options: Any) -> str:
        if len(sessions) == 1:
            raise ProofError("its outputs differ beside an unoptimized twin")
        return real(*arguments, **options)

    monkeypatch.setattr(draft, "prove_request", disprove_in_first_session)
    report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES)
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    assert sessions == [{"serve"}, set()]


def test_a_twin_that_no_server_could_run_refuses_the_export(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    real = ServingSession.replay

    def fail_on_twin(self: ServingSession, log: PredictionLog) -> Replayed:
        if signature_key_of(log) == "serve":
            raise ReplayError("the twin fails")
        return real(self, log)

    monkeypatch.setattr(ServingSession, "replay", fail_on_twin)
    with pytest.raises(ReplayError, match=r"^the twin fails$"):
        kw.export_with_warmup(model, tmp_path / "1", data=IMAGES)
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
