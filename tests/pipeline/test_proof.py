"""The proof compares numbers, and calling the model for it changes nothing in the model."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_warmup as kw
from keras_warmup.errors import ProofError
from keras_warmup.pipeline import proof
from keras_warmup.pipeline.keras_model import call_model
from keras_warmup.pipeline.proof import PROVED, prove_signature


@pytest.fixture(scope="module")
def model():
    x = keras.Input((3,), name="x")
    h = keras.layers.BatchNormalization()(x)
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(h)))


X = np.random.default_rng(0).random((4, 3), "float32")


def prove(model, outputs, *, x=X, own_call=True, again=None):
    return prove_signature(
        model, "serve", x, outputs, replay_again=lambda: again or outputs, own_call=own_call
    )


def test_equal_outputs_prove(model):
    assert prove(model, {"output_0": call_model(model, X)}) == PROVED
    assert prove(model, {"any_name": call_model(model, X)}) == PROVED


def test_another_order_of_rows_does_not_prove(model):
    with pytest.raises(ProofError, match="output 'output_0' differs"):
        prove(model, {"output_0": call_model(model, X)[::-1]})


def test_rounding_of_another_kernel_proves(model):
    outputs = call_model(model, X)
    assert prove(model, {"output_0": outputs * np.float32(1 + 1e-5)}) == PROVED


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_of_half_precision_is_proved_within_its_rounding(policy, tmp_path):
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


def test_a_custom_endpoint_is_told_and_not_refused(model):
    assert prove(model, {"output_0": call_model(model, X) + 1}, own_call=False).startswith(
        "unproved: bound by name (a custom"
    )
    assert prove(model, {"a": X, "b": X}).startswith(
        "unproved: bound by name (the signature's outputs are not those"
    )


def test_a_replay_that_differs_from_itself_is_not_deterministic(model):
    outputs = call_model(model, X)
    assert prove(model, {"output_0": outputs + 1}, again={"output_0": outputs + 2}).startswith(
        "unproved: not deterministic"
    )


def test_nan_equals_nan():
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Identity()(x))
    rows = np.full((2, 3), np.nan, "float32")
    assert prove(model, {"output_0": rows}, x=rows) == PROVED


def test_calling_the_model_leaves_weights_seeds_and_metrics_as_they_were(model):
    x = keras.Input((3,))
    noisy = keras.Model(
        x,
        keras.layers.Dropout(0.5)(
            keras.layers.BatchNormalization()(x, training=True), training=True
        ),
    )
    noisy.compile("sgd", "mse")
    before = [keras.ops.convert_to_numpy(variable) for variable in noisy.variables]
    call_model(noisy, X)
    call_model(noisy, X)
    for variable, value in zip(noisy.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


@pytest.fixture
def says(monkeypatch):
    """A model whose call gives what it is told to."""

    def set_outputs(**outputs):
        monkeypatch.setattr(proof, "call_model", lambda *_, **__: outputs)
        return keras.Sequential([keras.Input((2,))], name="says")

    return set_outputs


FLOATS = np.array([[0.1, 0.9], [0.5, 0.5], [0.7, 0.3]], "float32")
CLASSES = np.array([1, 0, 0])
ONE_TIE = np.array([1, 1, 0])
OTHERS = np.array([0, 1, 1])


def test_nothing_compared_is_not_proved(says):
    assert prove(says(), {}).startswith("unproved: ")
    assert prove(says(y={"nested": FLOATS}), {"y": FLOATS}) == PROVED
    assert prove(says(y=None, z=FLOATS), {"y": FLOATS, "z": FLOATS}).startswith(
        "unproved: bound by name"
    )


def test_ties_beside_equal_floats_are_told_and_not_refused(says):
    model = says(p=FLOATS, c=CLASSES)
    assert (
        prove(model, {"p": FLOATS, "c": ONE_TIE})
        == "unproved: output 'c' differs in 1 of 3 rows (ties?)"
    )
    assert prove(says(p=FLOATS[1:2], c=CLASSES[1:2]), {"p": FLOATS[1:2], "c": ONE_TIE[1:2]}) == (
        "unproved: output 'c' differs in 1 of 1 rows (ties?)"
    )
    strings = np.array([b"a", b"b", b"b"], object)
    assert prove(says(p=FLOATS, s=strings), {"p": FLOATS, "s": strings[[0, 0, 1]]}).endswith(
        "1 of 3 rows (ties?)"
    )


@pytest.mark.parametrize(
    ("mine", "outputs", "named"),
    [
        pytest.param(
            {"p": FLOATS, "c": CLASSES},
            {"p": FLOATS[::-1], "c": ONE_TIE},
            "outputs 'c', 'p' differ",
            id="floats too",
        ),
        pytest.param(
            {"p": FLOATS, "c": CLASSES},
            {"p": FLOATS, "c": OTHERS},
            "output 'c' differs",
            id="every row",
        ),
        pytest.param(
            {"c": CLASSES}, {"c": OTHERS}, "output 'c' differs", id="every row, integers only"
        ),
        pytest.param(
            {"c": CLASSES[:1]},
            {"c": OTHERS[:1]},
            "output 'c' differs",
            id="the one row, integers only",
        ),
        pytest.param({"c": CLASSES}, {"c": CLASSES[:2]}, "output 'c' differs", id="shape"),
    ],
)
def test_more_than_ties_is_refused(says, mine, outputs, named):
    with pytest.raises(ProofError, match=named):
        prove(says(**mine), outputs)


def test_integers_alone_that_differ_in_some_rows_are_told(says):
    model = says(c=CLASSES)
    assert prove(model, {"c": ONE_TIE}) == "unproved: output 'c' differs in 1 of 3 rows (ties?)"
