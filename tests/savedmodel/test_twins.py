"""Tests of `keras_warmup.savedmodel.twins`."""

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
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.savedmodel.twins import find_twins

X = np.random.default_rng(0).random((6, 8, 8, 1), "float32")


@pytest.fixture(scope="module")
def model():
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Flatten()(keras.layers.Conv2D(3, 3)(image))
    return keras.Model(image, {"a": keras.layers.Dense(2)(x), "b": keras.layers.Dense(1)(x)})


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


def test_one_record_warms_both_and_filters_of_either_key_are_kept(model, tmp_path):
    options = {"output_filters": {"serve": [["a"]], "serving_default": [["b"]]}}
    report = kw.export_with_warmup(model, tmp_path / "1", data=X, warmup=options)
    assert [
        (record.signature_key, record.output_filter, record.warms) for record in report.records
    ] == [
        ("serving_default", (), ("serving_default", "serve")),
        ("serving_default", ("b",), ("serving_default", "serve")),
        ("serving_default", ("a",), ("serving_default", "serve")),
    ]
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    assert kw.verify(tmp_path / "1").ok


def test_random_and_stateful_twins_stay_apart(tmp_path):
    x = keras.Input((4,), name="x")
    noisy = keras.Model(x, keras.layers.Dropout(0.5)(x, training=True))
    report = kw.export_with_warmup(noisy, tmp_path / "1", data=np.ones((4, 4), "float32"))
    assert report.shared_signatures == {}
    assert [record.warms for record in report.records] == [("serving_default",), ("serve",)]


@pytest.fixture
def opened(monkeypatch):
    """What was left unoptimized in each Session that replayed a draft."""
    from keras_warmup.pipeline import replay_draft as drafts

    found, real = [], drafts.open_session

    def open_session(export_dir, *, unoptimized):
        found.append(set(unoptimized))
        return real(export_dir, unoptimized=unoptimized)

    monkeypatch.setattr(drafts, "open_session", open_session)
    return found


def test_only_the_twin_is_left_unoptimized(model, opened, tmp_path):
    assert kw.export_with_warmup(model, tmp_path / "1", data=X).shared_signatures == {
        "serve": "serving_default"
    }
    assert opened == [{"serve"}]


@pytest.mark.parametrize("options", [{"share_twin_signatures": False}, {"signatures": ["serve"]}])
def test_without_twins_to_compare_all_is_optimized(model, opened, options, tmp_path):
    assert (
        kw.export_with_warmup(model, tmp_path / "1", data=X, warmup=options).shared_signatures == {}
    )
    assert opened == [set()]


def test_beside_records_that_the_file_held_all_is_optimized(model, opened, tmp_path):
    kw.export_with_warmup(model, tmp_path / "1", data=X, warmup={"signatures": ["serve"]})
    options = {"share_twin_signatures": True}
    report = kw.add_warmup(tmp_path / "1", X, warmup=options, append=True)
    assert report.shared_signatures == {"serve": "serving_default"}
    assert opened == [set(), set()]


def test_twins_that_give_something_else_after_all_stay_apart(model, opened, monkeypatch, tmp_path):
    from keras_warmup.pipeline import replay_draft as drafts

    monkeypatch.setattr(drafts, "_gives_the_same", lambda *_: False)
    report = kw.export_with_warmup(model, tmp_path / "1", data=X)
    assert report.shared_signatures == {}
    assert [record.signature_key for record in report.records] == ["serving_default", "serve"]
    assert opened == [{"serve"}, set(), set()]


def test_twins_that_only_rounding_sets_apart_are_compared_as_a_server_runs_them(
    model, opened, monkeypatch, tmp_path
):
    from keras_warmup.pipeline import replay_draft as drafts

    real = drafts._gives_the_same
    monkeypatch.setattr(drafts, "_gives_the_same", lambda *one: len(opened) > 1 and real(*one))
    report = kw.export_with_warmup(model, tmp_path / "1", data=X)
    assert report.shared_signatures == {"serve": "serving_default"}
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    assert [record.signature_key for record in report.records] == ["serving_default"]
    assert opened == [{"serve"}, set()]


def test_twins_that_no_record_can_reach_stay_apart(tmp_path):
    module = tf.Module()
    spec = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    double = tf.function(
        lambda x: {"y": x * 2.0}, input_signature=spec, autograph=False, jit_compile=True
    )
    with pytest.warns(UserWarning, match="stays cold: it compiles with XLA"):
        report = kw.save(
            module,
            tmp_path / "1",
            {"serving_default": double, "serve": double},
            data={"x": np.ones((2, 4))},
        )
    assert report.shared_signatures == {}
    assert [one.same_tensors_as for one in kw.inspect(tmp_path / "1").signatures] == [(), ()]


def test_a_twin_of_a_task_stays_apart_and_cold_and_is_told(tmp_path):
    x = keras.Input((1,), name="x")
    model = keras.Model(x, keras.layers.Dense(2, activation="softmax")(x))
    spec = {"x": tf.io.FixedLenFeature([1], tf.float32)}
    one, other = (
        kw.endpoints.classify(model, spec, classes) for classes in (["no", "yes"], ["p", "q"])
    )
    with pytest.warns(
        UserWarning,
        match="Signature 'b' of .* stays cold: no record was replayed on both it and 'a'",
    ):
        report = kw.save(
            model,
            tmp_path / "1",
            {"a": one, "b": one, "c": other},
            data={"x": np.ones((4, 1), "float32")},
            warmup={"kinds": ["multi_inference"]},
        )
    assert [record.signature_key for record in report.records] == ["a+c"]
    assert report.shared_signatures == {}


def test_a_twin_that_fails_unoptimized_is_run_as_a_server_runs_it(model, monkeypatch, tmp_path):
    from keras_warmup.serving.replay import ServingSession

    replayed, real = [], ServingSession.replay

    def fail_once(self, log):
        replayed.append(log.predict_log.request.model_spec.signature_name)
        if replayed == ["serving_default", "serve"]:
            raise ReplayError("the twin fails unoptimized")
        return real(self, log)

    monkeypatch.setattr(ServingSession, "replay", fail_once)
    report = kw.export_with_warmup(model, tmp_path / "1", data=X)
    assert report.shared_signatures == {"serve": "serving_default"}
    assert replayed == ["serving_default", "serve", "serving_default", "serve"]


@pytest.mark.parametrize("error", [ProofError("not this way"), ReplayError("nor this")])
def test_what_fails_or_cannot_be_proved_is_judged_as_a_server_runs_it(
    error, model, opened, monkeypatch, tmp_path
):
    from keras_warmup.pipeline import replay_draft as drafts

    real = drafts._prove

    def fail_first(*arguments):
        if len(opened) == 1:
            raise error
        return real(*arguments)

    monkeypatch.setattr(drafts, "_prove", fail_first)
    assert kw.export_with_warmup(model, tmp_path / "1", data=X).proofs == {
        "serving_default": "proved",
        "serve": "proved",
    }
    assert opened == [{"serve"}, set()]


def test_a_model_whose_constants_only_a_session_folds_is_run_as_in_a_server(tmp_path):
    # In half precision the two constants' product is zero: a server's optimizer multiplies them first.
    weights = tf.constant(np.full((3, 3, 8, 8), 1e-3), "float16")

    class Blur(keras.layers.Layer):
        def call(self, x):
            return tf.nn.conv2d(x, weights, 1, "SAME") * tf.constant(1e-5, tf.float16)

    x = keras.Input((8, 8, 8), dtype="float16", name="x")
    blurred = keras.Model(x, Blur(dtype="float16")(x))
    with pytest.raises(ProofError):
        kw.export_with_warmup(blurred, tmp_path / "1", data=np.full((4, 8, 8, 8), 300, "float16"))
    assert list(tmp_path.iterdir()) == []


def test_a_twin_that_no_server_could_run_refuses_the_export(model, monkeypatch, tmp_path):
    from keras_warmup.serving.replay import ServingSession

    real = ServingSession.replay

    def fail(self, log):
        if log.predict_log.request.model_spec.signature_name == "serve":
            raise ReplayError("the twin fails")
        return real(self, log)

    monkeypatch.setattr(ServingSession, "replay", fail)
    with pytest.raises(ReplayError, match=r"^the twin fails$"):
        kw.export_with_warmup(model, tmp_path / "1", data=X)
    assert list(tmp_path.iterdir()) == []


def test_add_warmup_changes_no_signature_unless_asked_to(model, tmp_path):
    model.export(tmp_path / "1", verbose=False)
    before = (tmp_path / "1" / "saved_model.pb").read_bytes()
    assert len(kw.add_warmup(tmp_path / "1", X).records) == 2
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == before
    report = kw.add_warmup(tmp_path / "1", X, warmup={"share_twin_signatures": True})
    assert report.shared_signatures == {"serve": "serving_default"}
    assert len(report.records) == 1


def test_without_a_replay_nothing_is_shared(model, tmp_path):
    report = kw.export_with_warmup(model, tmp_path / "1", data=X, warmup={"verify": False})
    assert report.shared_signatures == {}
    assert len(report.records) == 2
