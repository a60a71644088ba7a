"""Custom signatures of models with several inputs: each is bound from the batch as it was given."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.report import WarmupReport

ROWS = np.random.default_rng(0)
A = ROWS.random((6, 3), "float32")
B = ROWS.random((6, 2), "float32")
WAYS = ["callback", "export_with_warmup", "save", "add_warmup"]


def two_inputs(structure: str) -> keras.Model:
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    inputs: Any = [a, b] if structure == "list" else {"a": a, "b": b}
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()([a, b])))
    model.compile("sgd", "mse")
    return model


def call(model: keras.Model, a: Any, b: Any) -> Any:
    return model([a, b] if isinstance(model.input, list) else {"a": a, "b": b})


def spec(name: str, *shape: int | None, dtype: Any = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name=name)


def by_name(model: keras.Model) -> Any:
    """An endpoint that takes the model's inputs by their names."""

    @tf.function(input_signature=[spec("b", None, 2), spec("a", None, 3)])
    def serve(b: Any, a: Any) -> Any:
        return {"y": call(model, a, b)}

    return serve


def with_raw(model: keras.Model) -> Any:
    """An endpoint that preprocesses a feature the model does not take."""

    @tf.function(input_signature=[spec("raw", None, 5, dtype=tf.uint8)])
    def serve(raw: Any) -> Any:
        scaled = tf.cast(raw, tf.float32) / 255.0
        return {"y": call(model, scaled[:, :3], scaled[:, 3:])}

    return serve


def with_id(model: keras.Model) -> Any:
    """An endpoint that passes an id through."""

    @tf.function(
        input_signature=[spec("id", None, dtype=tf.string), spec("a", None, 3), spec("b", None, 2)]
    )
    def serve(id: Any, a: Any, b: Any) -> Any:
        return {"id": id, "y": call(model, a, b)}

    return serve


DATA: dict[str, tuple[Any, Any]] = {
    "by name, dict": (by_name, {"a": A, "b": B}),
    "raw": (with_raw, {"raw": ROWS.integers(0, 255, (6, 5)).astype("uint8")}),
    "pass-through id": (with_id, {"id": np.array(list("uvwxyz")), "a": A, "b": B}),
}


def publish(
    way: str, model: keras.Model, make: Any, data: Any, path: pathlib.Path, **options: Any
) -> WarmupReport:
    """Publishes a model with one custom signature, `custom`, in one of the four ways."""

    def export_fn(exported: keras.Model, directory: str) -> None:
        tf.saved_model.save(exported, directory, signatures={"custom": make(exported)})

    if way == "save":
        return kw.save(model, path, signatures={"custom": make(model)}, data=data, warmup=options)
    if way == "export_with_warmup":
        return kw.export_with_warmup(model, path, export_fn=export_fn, data=data, warmup=options)
    if way == "add_warmup":
        kw.save(model, path, signatures={"custom": make(model)}, data=data)
        return kw.add_warmup(path, data, warmup=options)
    export = kw.WarmupExport(
        path, export_fn=export_fn, data=data, warmup=options, on_error="raise", verbose=0
    )
    x: Any = [A, B] if isinstance(model.input, list) else {"a": A, "b": B}
    model.fit(x, np.zeros((6, 1)), verbose=0, callbacks=[export])
    return export.reports[-1]


def inputs_in(path: pathlib.Path) -> dict[str, Any]:
    (log,) = kw.read_records(path)
    return {name: tf.make_ndarray(proto) for name, proto in log.predict_log.request.inputs.items()}


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("structure", ["list", "dict"])
@pytest.mark.parametrize("way", WAYS)
def test_a_custom_signature_is_bound_from_the_data_as_given(
    case: str, structure: str, way: str, tmp_path: pathlib.Path
) -> None:
    make, data = DATA[case]
    report = publish(way, two_inputs(structure), make, data, tmp_path / "1")
    assert [record.signature_key for record in report.records] == ["custom"]
    sent = inputs_in(tmp_path / "1")
    assert set(sent) == set(data)
    for name, array in sent.items():
        rows = np.asarray(data[name]).astype(str).reshape(6, -1).tolist()
        assert all(row in rows for row in array.astype(str).reshape(len(array), -1).tolist())
    assert kw.verify(tmp_path / "1").ok


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_the_four_ways_in_send_the_same_rows(structure: str, tmp_path: pathlib.Path) -> None:
    sent = []
    for way in WAYS:
        publish(way, two_inputs(structure), by_name, {"a": A, "b": B}, tmp_path / way / "1")
        sent.append(inputs_in(tmp_path / way / "1"))
    for other in sent[1:]:
        for name, array in sent[0].items():
            np.testing.assert_array_equal(array, other[name])


def test_captured_lists_fit_endpoints_that_parse_examples_by_input_name(
    tmp_path: pathlib.Path,
) -> None:
    model = two_inputs("list")
    features = {
        "a": tf.io.FixedLenFeature([3], tf.float32),
        "b": tf.io.FixedLenFeature([2], tf.float32),
    }
    model.fit([A, B], np.zeros((6, 1)), verbose=0, callbacks=[kw.BatchCapture()])
    signatures = {
        "predict": kw.endpoints.predict_examples(model, features),
        "regress": kw.endpoints.regress(model, features),
    }
    report = kw.save(model, tmp_path / "1", signatures=signatures)
    assert {record.source for record in report.records} == {"captured"}
    assert {record.kind for record in report.records} == {"predict", "regress"}
    assert kw.verify(tmp_path / "1").ok


class Towers(tf.Module):
    """Two endpoints that take different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.query_model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        self.candidate_model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])

    @tf.function(input_signature=[spec("x", None, 3)])
    def query(self, x: Any) -> Any:
        return {"vector": self.query_model(x)}

    @tf.function(input_signature=[spec("x", None, 2)])
    def candidate(self, x: Any) -> Any:
        return {"vector": self.candidate_model(x)}


def test_each_signature_takes_its_own_data(tmp_path: pathlib.Path) -> None:
    towers = Towers()
    signatures = {"query": towers.query, "candidate": towers.candidate}
    data = kw.PerSignature({"query": {"x": A}, "candidate": {"x": B}})
    report = kw.save(towers, tmp_path / "1", signatures=signatures, data=data)
    shapes = {record.signature_key: record.shapes["x"] for record in report.records}
    assert shapes == {"query": (2, 3), "candidate": (2, 2)}
    assert {record.source for record in report.records} == {"data"}
    again = kw.add_warmup(tmp_path / "1", data)
    assert len(again.records) == 2


def test_a_twin_takes_the_data_of_the_other(tmp_path: pathlib.Path) -> None:
    model = two_inputs("dict")
    data = kw.PerSignature({"serving_default": {"a": A, "b": B}})
    report = kw.export_with_warmup(model, tmp_path / "1", data=data)
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    assert not report.synthetic


def test_data_for_a_signature_that_does_not_exist_is_refused(tmp_path: pathlib.Path) -> None:
    data = kw.PerSignature({"nope": {"a": A, "b": B}})
    with pytest.raises(
        kw.WarmupError, match=r"PerSignature has data for the signatures \['nope'\]"
    ):
        kw.export_with_warmup(two_inputs("dict"), tmp_path / "1", data=data)


@pytest.mark.parametrize(("data", "message"), [({}, "at least one entry"), ({1: A}, "must be str")])
def test_data_per_signature_is_a_mapping_of_keys(data: Any, message: str) -> None:
    with pytest.raises(kw.WarmupError, match=message):
        kw.PerSignature(data)
