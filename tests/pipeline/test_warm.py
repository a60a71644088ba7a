"""Tests of `keras_warmup.pipeline.warm`: which twins share tensors, and the notes of the report."""

from __future__ import annotations

import pathlib

import keras
import pytest
import tensorflow as tf

import keras_warmup as kw
from tests.builders import (
    float_parser,
    functional_model,
    image_model,
    input_of_four,
    random_rows,
)

IMAGES = random_rows(8, 8, 1, rows=6)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A model whose signatures `serving_default` and `serve` are twins."""
    return image_model()


def test_one_record_warms_both_twins_and_the_filters_of_either_key_are_kept(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    options = {"output_filters": {"serve": [["a"]], "serving_default": [["b"]]}}
    report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES, warmup=options)
    assert [
        (record.signature_key, record.output_filter, record.warms) for record in report.records
    ] == [
        ("serving_default", (), ("serving_default", "serve")),
        ("serving_default", ("b",), ("serving_default", "serve")),
        ("serving_default", ("a",), ("serving_default", "serve")),
    ]
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    assert kw.verify(tmp_path / "1").ok


def test_random_twins_share_a_record(tmp_path: pathlib.Path) -> None:
    x = input_of_four("x")
    noisy = keras.Model(x, keras.layers.Dropout(0.5)(x, training=True))
    with pytest.warns(UserWarning, match="are random at inference"):
        report = kw.export_with_warmup(noisy, tmp_path / "1", data=random_rows(4))
    assert report.shared_signatures == {"serve": "serving_default"}
    assert [record.warms for record in report.records] == [("serving_default", "serve")]


class Counter(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def count(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        self.seen.assign_add(1)
        return {"y": x * 2.0}


class Counting(Counter):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def count(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + tf.cast(self.seen.assign_add(1), tf.float32)}


def test_twins_whose_state_changes_their_outputs_share_a_record(tmp_path: pathlib.Path) -> None:
    module = Counting()
    signatures = {"serving_default": module.count, "serve": module.count}
    with pytest.warns(UserWarning, match="are random at inference"):
        report = kw.save(module, tmp_path / "1", signatures, data=random_rows())
    assert report.shared_signatures == {"serve": "serving_default"}
    assert [record.warms for record in report.records] == [("serving_default", "serve")]
    assert set(report.random_signatures) == set(signatures)


def test_stateful_twins_share_a_record_and_a_note_says_that_warmup_changes_state(
    tmp_path: pathlib.Path,
) -> None:
    module = Counter()
    signatures = {"serving_default": module.count, "serve": module.count}
    report = kw.save(module, tmp_path / "1", signatures, data=random_rows())
    assert report.shared_signatures == {"serve": "serving_default"}
    assert [record.warms for record in report.records] == [("serving_default", "serve")]
    assert report.random_signatures == ()
    for key in signatures:
        assert (
            f"Signature {key!r} writes variables or tables: the warmup requests change its state "
            "before the first client's request."
        ) in report.notes


def test_twins_that_no_record_can_reach_share_their_first_slow_request(
    tmp_path: pathlib.Path,
) -> None:
    module = tf.Module()
    double = tf.function(
        lambda x: {"y": x * 2.0},
        input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")],
        autograph=False,
        jit_compile=True,
    )
    signatures = {"serving_default": double, "serve": double}
    with pytest.warns(UserWarning, match="stays cold: it compiles with XLA"):
        report = kw.save(module, tmp_path / "1", signatures, data={"x": random_rows(4)})
    assert report.shared_signatures == {"serve": "serving_default"}
    assert [one.same_tensors_as for one in kw.inspect(tmp_path / "1").signatures] == [
        ("serving_default",),
        ("serve",),
    ]


def test_a_twin_of_a_task_shares_its_record(tmp_path: pathlib.Path) -> None:
    x = keras.Input((1,), name="x")
    model = keras.Model(x, keras.layers.Dense(2, activation="softmax")(x))
    one, other = (
        kw.endpoints.classify(model, float_parser("x"), classes)
        for classes in (["no", "yes"], ["p", "q"])
    )
    report = kw.save(
        model,
        tmp_path / "1",
        {"a": one, "b": one, "c": other},
        data={"x": random_rows(1)},
        warmup={"kinds": ["multi_inference"]},
    )
    assert [(record.signature_key, record.warms) for record in report.records] == [("a+c", ())]
    assert report.shared_signatures == {"b": "a"}


def test_add_warmup_changes_no_signature_unless_asked_to(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    model.export(tmp_path / "1", verbose=False)
    before = (tmp_path / "1" / "saved_model.pb").read_bytes()
    assert len(kw.add_warmup(tmp_path / "1", IMAGES).records) == 2
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == before
    report = kw.add_warmup(tmp_path / "1", IMAGES, warmup={"share_twin_signatures": True})
    assert report.shared_signatures == {"serve": "serving_default"}
    assert len(report.records) == 1


def test_doubled_weights_are_noted_where_keras_wrote_the_export(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    model.export(tmp_path / "1", verbose=False)
    note = (
        "6 variables are stored twice, and a server restores both: keras-warmup repair makes them "
        "one."
    )
    assert note in kw.add_warmup(tmp_path / "1", IMAGES).notes
    assert not any(
        "stored twice" in one
        for one in kw.export_with_warmup(model, tmp_path / "2", data=IMAGES).notes
    )


def test_extra_features_are_ignored_and_reported(tmp_path: pathlib.Path) -> None:
    model = functional_model({"a": input_of_four("a"), "b": input_of_four("b")})
    data = {"a": random_rows(4), "b": random_rows(4), "customer": random_rows(1)}
    report = kw.export_with_warmup(model, tmp_path / "1", data=data)
    assert report.ignored_features == ("x['customer']",)
    assert "Features that no signature takes were left out: x['customer']." in report.notes
    assert set(report.proofs.values()) == {"proved"}
