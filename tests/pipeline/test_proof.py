"""Tests of `keras_warmup.pipeline.proof`: which outputs prove a binding, and which refuse it."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.binding import bind
from keras_warmup.errors import ProofError
from keras_warmup.pipeline import keras_model
from keras_warmup.pipeline.keras_model import call_model
from keras_warmup.pipeline.proof import PROVED, prove_signature
from tests.builders import functional_model, input_of_four, random_rows

X = random_rows(3, rows=4)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    x = keras.Input((3,), name="x")
    h = keras.layers.BatchNormalization()(x)
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(h)))


def prove(
    model: keras.Model,
    outputs: Mapping[str, np.ndarray],
    *,
    x: np.ndarray = X,
    own_call: bool = True,
    again: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Proves the signature `serve` whose replay gave `outputs`, and `again` when repeated."""
    return prove_signature(
        model, "serve", x, outputs, replay_again=lambda: again or outputs, own_call=own_call
    )


def test_equal_outputs_prove(model: keras.Model) -> None:
    assert prove(model, {"output_0": call_model(model, X)}) == PROVED
    assert prove(model, {"any_name": call_model(model, X)}) == PROVED


def test_another_order_of_rows_does_not_prove(model: keras.Model) -> None:
    outputs = call_model(model, X)
    with pytest.raises(ProofError) as error:
        prove(model, {"output_0": outputs[::-1]})
    largest = np.abs(outputs - outputs[::-1]).max()
    assert str(error.value) == (
        f"Signature 'serve' does not give what model {model.name!r} gives on the same rows. "
        f"Outputs that differ: 'output_0' [4, 2] by up to {largest:.3g}. Inputs may be swapped, or "
        "the export does not hold the model's weights; nothing was published. Pass "
        "warmup={'transform': ...} to name the inputs, or export with export_fn=."
    )


def test_rounding_of_another_kernel_proves(model: keras.Model) -> None:
    outputs = call_model(model, X)
    assert prove(model, {"output_0": outputs * np.float32(1 + 1e-5)}) == PROVED


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_of_half_precision_is_proved_within_its_rounding(
    policy: str, tmp_path: pathlib.Path
) -> None:
    rows = np.random.default_rng(0).standard_normal((8, 16, 16, 3), "float32")
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        x = keras.Input((16, 16, 3), name="x")
        h = keras.layers.Conv2D(8, 3, activation="relu", dtype=policy)(x)
        h = keras.layers.GlobalAveragePooling2D(dtype=policy)(h)
        h = keras.layers.Dense(64, activation="gelu", dtype=policy)(h)
        half = keras.Sequential([keras.Model(x, h), keras.layers.Dense(10, dtype="float32")])
        report = kw.export_with_warmup(
            half, tmp_path / str(seed), data=rows, warmup={"batch_sizes": [8]}
        )
        assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    with pytest.raises(ProofError):
        prove(half, {"output_0": call_model(half, rows)[::-1]}, x=rows)


def test_a_custom_endpoint_that_differs_is_unproved_and_not_refused(model: keras.Model) -> None:
    assert prove(model, {"output_0": call_model(model, X) + 1}, own_call=False).startswith(
        "unproved: bound by name (a custom"
    )
    assert prove(model, {"a": X, "b": X}).startswith(
        "unproved: bound by name (the signature's outputs are not those"
    )


def test_a_custom_endpoint_that_differs_from_the_call_is_published_unproved(
    tmp_path: pathlib.Path,
) -> None:
    model = functional_model(input_of_four("x"))

    def export(model: keras.Model, export_dir: str) -> None:
        archive = keras.export.ExportArchive()
        archive.track(model)
        spec = [keras.InputSpec(shape=(None, 4), dtype="float32")]
        archive.add_endpoint("serve", lambda x: model(x) * 2 + 1, input_signature=spec)
        archive.write_out(export_dir, verbose=False)

    report = kw.export_with_warmup(model, tmp_path / "1", data=random_rows(4), export_fn=export)
    assert set(report.proofs.values()) == {
        "unproved: bound by name (a custom endpoint, whose outputs differ from the model's own "
        "call)"
    }
    assert kw.verify(tmp_path / "1").ok


def test_a_model_with_dropout_left_on_is_published_unproved(tmp_path: pathlib.Path) -> None:
    x = input_of_four("x")
    model = keras.Model(x, keras.layers.Dropout(0.5)(keras.layers.Dense(64)(x), training=True))
    with pytest.warns(UserWarning, match="Dropout or data augmentation may be left on"):
        report = kw.export_with_warmup(model, tmp_path / "1", data=random_rows(4))
    assert set(report.proofs.values()) == {
        "unproved: outputs are random at inference (an equal request gives other outputs)"
    }
    assert kw.verify(tmp_path / "1").ok


def test_swapped_inputs_refuse_the_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    model = functional_model([input_of_four("a"), input_of_four("b")])
    real = bind.match_inputs

    def swap(x: Any, signature: Any, **options: Any) -> Any:
        found, ignored = real(x, signature, **options)
        return dict(zip(found, reversed(found.values()), strict=True)), ignored

    monkeypatch.setattr(bind, "match_inputs", swap)
    with pytest.raises(ProofError, match=r"^Signature 'serving_default' does not give what model"):
        kw.export_with_warmup(model, tmp_path / "1", data=[random_rows(4), random_rows(4)])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("structure", ["dict", "list", "one"])
def test_arrays_of_a_transform_prove_a_functional_model(
    structure: str, tmp_path: pathlib.Path
) -> None:
    a, b = input_of_four("a"), input_of_four("b")
    model = functional_model({"dict": {"k": a, "l": b}, "list": [a, b], "one": a}[structure])
    names = ["a"] if structure == "one" else ["a", "b"]
    report = kw.export_with_warmup(
        model,
        tmp_path / "1",
        data=random_rows(8),
        warmup={"transform": lambda x: {name: x[:, 4 * (name == "b") :][:, :4] for name in names}},
    )
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}


def test_a_transform_does_not_hide_that_training_saw_other_features(tmp_path: pathlib.Path) -> None:
    inputs = {"a": input_of_four("a"), "b": input_of_four("b")}
    model = functional_model(inputs)
    model.compile("sgd", "mse")
    swapped = collections.OrderedDict(b=random_rows(4, rows=8), a=np.zeros((8, 4), "float32"))
    dataset = tf.data.Dataset.from_tensors((swapped, np.zeros((8, 1), "float32")))
    model.fit(dataset, verbose=0, callbacks=[kw.BatchCapture()])
    with pytest.warns(UserWarning, match="disagree"):
        report = kw.export_with_warmup(model, tmp_path / "1", warmup={"transform": dict})
    assert report.proofs["serving_default"] == "proved"
    assert set(report.training_serving_skew["serving_default"]) == {"a", "b"}


KEYS = ("serving_default", "a", "b")


@pytest.mark.parametrize(
    ("data", "calls"),
    [(X, 1), (kw.PerSignature({key: X + index for index, key in enumerate(KEYS)}), 3)],
    ids=["rows for all", "rows for each"],
)
def test_the_model_is_called_once_for_the_rows_of_several_signatures(
    data: Any, calls: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = functional_model(keras.Input((3,), name="x"))
    called = []

    def export(model: keras.Model, export_dir: str) -> None:
        archive = keras.export.ExportArchive()
        archive.track(model)
        spec = [tf.TensorSpec((None, 3), tf.float32, name="x")]
        for key in KEYS:
            archive.add_endpoint(key, lambda x: {"y": model(x)}, spec)
        archive.write_out(export_dir, verbose=False)

    def call(*arguments: Any, **options: Any) -> Any:
        called.append(arguments)
        return call_model(*arguments, **options)

    monkeypatch.setattr(keras_model, "call_model", call)
    report = kw.export_with_warmup(
        model,
        tmp_path / "1",
        data=data,
        export_fn=export,
        warmup={"share_twin_signatures": False},
    )
    assert report.proofs == dict.fromkeys(KEYS, "proved")
    assert len(called) == calls


def test_a_replay_that_differs_from_itself_is_not_deterministic(model: keras.Model) -> None:
    outputs = call_model(model, X)
    assert prove(model, {"output_0": outputs + 1}, again={"output_0": outputs + 2}).startswith(
        "unproved: not deterministic"
    )


def test_nan_equals_nan() -> None:
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Identity()(x))
    rows = np.full((2, 3), np.nan, "float32")
    assert prove(model, {"output_0": rows}, x=rows) == PROVED


@pytest.fixture
def model_that_gives(monkeypatch: pytest.MonkeyPatch) -> Callable[..., keras.Model]:
    """Makes a model whose call gives the outputs it was made with."""

    def make(**outputs: Any) -> keras.Model:
        monkeypatch.setattr(keras_model, "call_model", lambda *_, **__: outputs)
        return keras.Sequential([keras.Input((2,))])

    return make


FLOATS = np.array([[0.1, 0.9], [0.5, 0.5], [0.7, 0.3]], "float32")
CLASSES = np.array([1, 0, 0])
ONE_TIE = np.array([1, 1, 0])
OTHERS = np.array([0, 1, 1])


def test_a_signature_without_comparable_outputs_is_not_proved(
    model_that_gives: Callable[..., keras.Model],
) -> None:
    assert prove(model_that_gives(), {}).startswith("unproved: ")
    assert prove(model_that_gives(y={"nested": FLOATS}), {"y": FLOATS}) == PROVED
    assert prove(model_that_gives(y=None, z=FLOATS), {"y": FLOATS, "z": FLOATS}).startswith(
        "unproved: bound by name"
    )


def test_ties_beside_equal_floats_are_unproved_and_not_refused(
    model_that_gives: Callable[..., keras.Model],
) -> None:
    model = model_that_gives(p=FLOATS, c=CLASSES)
    assert (
        prove(model, {"p": FLOATS, "c": ONE_TIE})
        == "unproved: output 'c' differs in 1 of 3 rows (ties?)"
    )
    model = model_that_gives(p=FLOATS[1:2], c=CLASSES[1:2])
    assert prove(model, {"p": FLOATS[1:2], "c": ONE_TIE[1:2]}) == (
        "unproved: output 'c' differs in 1 of 1 rows (ties?)"
    )
    strings = np.array([b"a", b"b", b"b"], object)
    model = model_that_gives(p=FLOATS, s=strings)
    assert prove(model, {"p": FLOATS, "s": strings[[0, 0, 1]]}).endswith("1 of 3 rows (ties?)")


@pytest.mark.parametrize(
    ("mine", "outputs", "listed"),
    [
        pytest.param(
            {"p": FLOATS, "c": CLASSES},
            {"p": FLOATS[::-1], "c": ONE_TIE},
            "'c' [3] in 1 of 3 values; 'p' [3, 2] by up to 0.6",
            id="floats too",
        ),
        pytest.param(
            {"p": FLOATS, "c": CLASSES},
            {"p": FLOATS, "c": OTHERS},
            "'c' [3] in 3 of 3 values",
            id="every row",
        ),
        pytest.param(
            {"c": CLASSES},
            {"c": OTHERS},
            "'c' [3] in 3 of 3 values",
            id="every row, integers only",
        ),
        pytest.param(
            {"c": CLASSES[:1]},
            {"c": OTHERS[:1]},
            "'c' [1] in 1 of 1 values",
            id="the one row, integers only",
        ),
        pytest.param({"c": CLASSES}, {"c": CLASSES[:2]}, "'c' [2], the model's [3]", id="shape"),
        pytest.param(
            {"p": FLOATS},
            {"p": FLOATS * np.float32("nan")},
            "'p' [3, 2], the signature's values are NaN where the other's are not",
            id="the signature's are NaN",
        ),
        pytest.param(
            {"p": FLOATS * np.float32("nan")},
            {"p": FLOATS},
            "'p' [3, 2], the model's values are NaN where the other's are not",
            id="the model's are NaN",
        ),
        pytest.param(
            {"p": FLOATS * np.float32("inf")},
            {"p": -FLOATS * np.float32("inf")},
            "'p' [3, 2] in infinite values",
            id="infinite",
        ),
    ],
)
def test_differences_that_are_more_than_ties_are_refused(
    mine: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    listed: str,
    model_that_gives: Callable[..., keras.Model],
) -> None:
    with pytest.raises(ProofError) as error:
        prove(model_that_gives(**mine), outputs)
    assert f"Outputs that differ: {listed}. Inputs may" in str(error.value)


def test_integers_alone_that_differ_in_some_rows_are_unproved(
    model_that_gives: Callable[..., keras.Model],
) -> None:
    model = model_that_gives(c=CLASSES)
    assert prove(model, {"c": ONE_TIE}) == "unproved: output 'c' differs in 1 of 3 rows (ties?)"
