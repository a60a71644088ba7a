"""The model that is trained is often not the one that is served: VAE, GAN, siamese, two towers."""

from __future__ import annotations

import pathlib
import re
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw

ROWS = np.random.default_rng(0)
IMAGES = ROWS.random((8, 6, 6, 1), "float32")


class StepOnly(keras.Model):
    """A model with its own `train_step` and no `call`."""

    def train_step(self, data: Any) -> Any:
        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            loss = self.loss_of(x)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss}

    def loss_of(self, x: Any) -> Any:
        raise NotImplementedError


class VAE(StepOnly):
    """As in the Keras example: an encoder and a decoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        x = keras.Input((6, 6, 1))
        hidden = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(x))
        self.encoder = keras.Model(
            x, [keras.layers.Dense(2)(hidden), keras.layers.Dense(2)(hidden)]
        )
        self.decoder = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(36), keras.layers.Reshape((6, 6, 1))]
        )

    def loss_of(self, x: Any) -> Any:
        mean, log_variance = self.encoder(x)
        return tf.reduce_mean((self.decoder(mean + 0.0 * log_variance) - x) ** 2)


class GAN(StepOnly):
    """A generator, which takes noise, and a discriminator, which takes the training images."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(36), keras.layers.Reshape((6, 6, 1))]
        )
        self.discriminator = keras.Sequential(
            [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
        )

    def loss_of(self, x: Any) -> Any:
        made = self.generator(tf.random.stateless_normal([2, 4], [1, 2]))
        return tf.reduce_mean(self.discriminator(made)) - tf.reduce_mean(self.discriminator(x))


class Siamese(StepOnly):
    """A triplet model; its `call` is never used in training."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = keras.Sequential(
            [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
        )

    def call(self, x: Any) -> Any:
        return tf.stack([self.embedding(one) for one in x])

    def loss_of(self, x: Any) -> Any:
        anchor, positive, negative = (self.embedding(one) for one in x)
        return tf.reduce_mean((anchor - positive) ** 2) - 0.1 * tf.reduce_mean(negative**2)


class TwoTowers(StepOnly):
    """Two embedding models over different features of one batch."""

    def __init__(self) -> None:
        super().__init__()
        user, item = keras.Input((), name="user_id", dtype="int32"), keras.Input((3,), name="item")
        self.user_model = keras.Model(user, keras.layers.Embedding(10, 2)(user))
        self.item_model = keras.Model(item, keras.layers.Dense(2)(item))

    def loss_of(self, x: Any) -> Any:
        return -tf.reduce_mean(self.user_model(x["user_id"]) * self.item_model(x["item"]))


TOWER_ROWS = {
    "user_id": ROWS.integers(0, 10, 8).astype("int32"),
    "item": ROWS.random((8, 3), "float32"),
}


def fit(
    model: keras.Model, x: Any, *callbacks: keras.callbacks.Callback
) -> keras.callbacks.History:
    model.compile(keras.optimizers.SGD(0.01))
    return model.fit(x, batch_size=4, epochs=1, verbose=0, callbacks=list(callbacks))


@pytest.mark.parametrize(
    ("model_class", "x", "part"),
    [
        (VAE, IMAGES, "encoder"),
        (GAN, IMAGES, "discriminator"),
        (TwoTowers, TOWER_ROWS, "user_model"),
        (TwoTowers, TOWER_ROWS, "item_model"),
    ],
)
@pytest.mark.parametrize("way", ["model", "function", "afterwards"])
def test_a_part_of_the_trained_model_gets_the_rows_trained_on(
    model_class: Any, x: Any, part: str, way: str, tmp_path: pathlib.Path
) -> None:
    model = model_class()
    served = getattr(model, part)
    path = tmp_path / "m" / "{version}"
    if way == "afterwards":
        fit(model, x, kw.BatchCapture())
        report = kw.export_with_warmup(served, path)
    else:
        export_model: Any = served if way == "model" else lambda trained: getattr(trained, part)
        export = kw.WarmupExport(path, export_model=export_model, verbose=0, on_error="raise")
        fit(model, x, export)
        report = export.reports[-1]
    assert {record.source for record in report.records} == {"captured"}
    assert report.proofs["serving_default"] == "proved"
    assert kw.verify(tmp_path / "m" / "1").ok


@pytest.mark.parametrize(("model_class", "part"), [(VAE, "decoder"), (GAN, "generator")])
def test_rows_that_do_not_fit_the_part_are_made_up_with_a_warning(
    model_class: Any, part: str, tmp_path: pathlib.Path
) -> None:
    model = model_class()
    fit(model, IMAGES, kw.BatchCapture())
    with pytest.warns(UserWarning, match="hold made-up rows") as caught:
        report = kw.export_with_warmup(getattr(model, part), tmp_path / "1")
    assert report.synthetic
    (note,) = (note for note in report.notes if "are made up:" in note)
    assert "belong to another model that shares its layers" in note
    (reason,) = report.synthetic_reasons.values()
    assert reason in note and "Pass data= with rows that fit" in note
    (text,) = (str(one.message) for one in caught if "made-up rows" in str(one.message))
    # The model was trained with a callback, on batches that are as its train_step wants them.
    assert reason in text and "callbacks=" not in text and "in the dataset" not in text
    noise = ROWS.random((4, getattr(model, part).input_shape[-1]), "float32")
    given = kw.export_with_warmup(getattr(model, part), tmp_path / "2", data=noise)
    assert not given.synthetic


def test_an_inference_model_made_of_trained_layers_gets_their_rows(tmp_path: pathlib.Path) -> None:
    x = keras.Input((3,), name="x")
    logits = keras.layers.Dense(1)(x)
    model = keras.Model(x, logits)
    model.compile("sgd", "mse")
    model.fit(ROWS.random((8, 3)), np.zeros((8, 1)), verbose=0, callbacks=[kw.BatchCapture()])
    served = keras.Model(x, keras.layers.Activation("sigmoid")(logits))
    del model
    report = kw.export_with_warmup(served, tmp_path / "1")
    assert {record.source for record in report.records} == {"captured"}


@pytest.mark.parametrize("model_class", [VAE, GAN])
def test_a_model_without_a_call_is_refused_before_the_first_step(
    model_class: Any, tmp_path: pathlib.Path
) -> None:
    model = model_class()
    before = [np.array(weight) for weight in model.get_weights()]
    with pytest.raises(kw.WarmupError) as error:
        fit(model, IMAGES, kw.WarmupExport(tmp_path / "m" / "{version}"))
    text = str(error.value)
    assert f"{model_class.__name__} defines no call(), so there is nothing to serve" in text
    parts = {VAE: "decoder, encoder", GAN: "discriminator, generator"}[model_class]
    assert f"export one of its parts ({parts}), as in WarmupExport(..., export_model=" in text
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_a_model_that_was_never_called_as_a_whole_is_built_from_a_batch(
    tmp_path: pathlib.Path,
) -> None:
    model = Siamese()
    x = tuple(IMAGES for _ in range(3))
    fit(model, x, kw.BatchCapture())
    assert not model.built
    report = kw.export_with_warmup(model, tmp_path / "1")
    assert {record.source for record in report.records} == {"captured"}


def test_export_fn_needs_no_build_and_is_given_the_export_model(tmp_path: pathlib.Path) -> None:
    model, given = VAE(), []

    def export_fn(exported: keras.Model, directory: str) -> None:
        given.append(exported)
        model.encoder.export(directory, verbose=False)

    fit(model, IMAGES, kw.WarmupExport(tmp_path / "1", export_fn=export_fn, verbose=0))
    fit(
        model,
        IMAGES,
        kw.WarmupExport(tmp_path / "2", export_fn=export_fn, export_model=model.encoder, verbose=0),
    )
    assert given == [model, model.encoder]


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_sizes": "auto"}, {"whole_batches": True}],
    ids=["default", "auto", "whole batches"],
)
@pytest.mark.parametrize("model_class", [VAE, TwoTowers])
def test_training_is_bit_identical_with_an_export_model(
    model_class: Any, options: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    x = IMAGES if model_class is VAE else TOWER_ROWS
    part = "encoder" if model_class is VAE else "user_model"
    weights = []
    for run in range(2):
        keras.utils.set_random_seed(1)
        model = model_class()
        export = kw.WarmupExport(
            tmp_path / "1", export_model=getattr(model, part), warmup=options, verbose=0
        )
        history = fit(model, x, *([export] if run else []))
        weights.append((history.history, model.get_weights()))
    assert len(export.reports) == 1 and not export.reports[0].cold
    assert weights[0][0] == weights[1][0]
    for one, other in zip(weights[0][1], weights[1][1], strict=True):
        np.testing.assert_array_equal(one, other)


class Parts(keras.Model):
    """Calls only its parts in `train_step`, as siamese networks do."""

    def __init__(self, inputs: str) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.inputs_of_call = inputs

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs if self.inputs_of_call == "batch" else inputs["anchor"])

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.dense(data[0]) ** 2)
        weights = self.dense.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


class Pair(keras.Model):
    """Is called in `train_step` on a list, while batches are dicts, as sequence models do."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs[0] + inputs[1])

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self([data["source"], data["target"]]) ** 2)
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


class Lookup(Pair):
    """Is called on a list of ids that it holds, while batches are a dict."""

    def call(self, inputs: Any) -> Any:
        return self.dense(tf.gather(tf.ones((4, 3)), inputs[0]) + inputs[1])

    def train_step(self, data: Any) -> dict[str, Any]:
        ids = tf.cast(data["ids"][:, 0], tf.int32)
        return super().train_step({"source": ids, "target": data["ids"]})


def batches_of(x: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(x).batch(4)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("steps_per_execution", [1, 2])
@pytest.mark.parametrize("case", ["batch", "other inputs"])
def test_a_model_that_cannot_be_exported_is_refused_before_the_first_step(
    case: str, steps_per_execution: int, jit_compile: bool, tmp_path: pathlib.Path
) -> None:
    rows = np.ones((8, 3), "float32")
    # Keras traces a model that was called on a list with float32, which are no ids.
    model, x = (Parts("dict"), (rows, rows)) if case == "batch" else (Lookup(), {"ids": rows})
    model.compile("sgd", steps_per_execution=steps_per_execution, jit_compile=jit_compile)
    text = f"cannot export model {model.name!r}: its call, as model.export would trace it, raises"
    said = {
        "batch": r"TypeError: Only integers.*got 'anchor'\. Pass data= with what the",
        "other inputs": r"indices.*Lookup is called on other inputs.*Pass data= with what the",
    }
    with pytest.raises(kw.WarmupError, match=text) as error:
        export = kw.WarmupExport(tmp_path / "1", verbose=0)
        model.fit(batches_of(x), verbose=0, callbacks=[export])
    assert re.search(said[case], str(error.value))
    assert model.dense.built and int(model.optimizer.iterations) == 0
    assert not (tmp_path / "1").exists()
    export = kw.WarmupExport(tmp_path / "1", verbose=0, on_error="warn")
    with pytest.warns(UserWarning, match=text):
        model.fit(batches_of(x), verbose=0, callbacks=[export])
    assert int(model.optimizer.iterations) == 2


def test_an_eager_fit_refuses_the_model_after_the_first_step(tmp_path: pathlib.Path) -> None:
    rows = np.ones((8, 3), "float32")
    model = Parts("dict")
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(kw.WarmupError, match=r"its call, as model\.export would trace it, raises"):
        export = kw.WarmupExport(tmp_path / "1", verbose=0)
        model.fit(batches_of((rows, rows)), verbose=0, callbacks=[export])
    assert int(model.optimizer.iterations) == 1


def test_the_trial_builds_no_layer_that_was_not_trained(tmp_path: pathlib.Path) -> None:
    model = Parts("batch")
    model.head = keras.layers.Dense(5)
    model.compile("sgd")
    rows = np.ones((8, 3), "float32")
    with pytest.raises(kw.WarmupError):
        export = kw.WarmupExport(tmp_path / "1", verbose=0)
        model.fit(batches_of((rows, rows)), verbose=0, callbacks=[export])
    assert not model.head.built


def test_a_model_whose_parts_alone_are_called_is_exported(tmp_path: pathlib.Path) -> None:
    rows = np.ones((8, 3), "float32")
    model = Parts("batch")
    model.compile("sgd")
    export = kw.WarmupExport(tmp_path / "1", verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*WarmupExport")
        model.fit(batches_of((rows, rows)), verbose=0, callbacks=[export])
    assert export.reports[-1].proofs["serving_default"] == "proved"


def test_a_model_that_is_called_on_another_structure_is_published_cold(
    tmp_path: pathlib.Path,
) -> None:
    rows = np.ones((8, 3), "float32")
    model = Pair()
    model.compile("sgd")
    export = kw.WarmupExport(tmp_path / "1", verbose=0)
    with pytest.warns(UserWarning) as caught:
        model.fit(batches_of({"source": rows, "target": rows}), verbose=0, callbacks=[export])
    texts = [str(one.message) for one in caught]
    assert any("Pair is called on other inputs than the batches hold" in text for text in texts)
    assert any("is published COLD" in text for text in texts)
    assert "missing inputs" in export.reports[-1].cold
    tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]


class Words(keras.Model):
    """Is called on strings, of which Keras keeps no dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.look_up = keras.layers.StringLookup(vocabulary=["a", "b"])
        self.embed = keras.layers.Embedding(4, 2)
        self.dense = keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        return self.dense(self.embed(self.look_up(inputs["word"])) + inputs["size"])


def words() -> tf.data.Dataset:
    x = {"word": tf.constant(["a", "b"] * 4), "size": np.ones((8, 2), "float32")}
    return batches_of((x, np.ones((8, 1), "float32")))


WRONG_DATA: dict[str, Any] = {
    "cannot be read": lambda: iter([object()]),
    "another structure": lambda: [np.ones((4, 2), "float32"), np.ones((4, 2), "float32")],
    "another width": lambda: {"word": np.array(["a"] * 4), "size": np.ones((4, 3), "float32")},
    "another dtype": lambda: {"word": np.array(["a"] * 4), "size": np.ones((4, 2), "complex64")},
    # Some string inputs read images, which are made of numbers.
    "numbers for strings": lambda: {"word": np.ones(4), "size": np.ones((4, 2), "float32")},
}
TOLD_EARLY = ("another structure", "another width", "another dtype")


@pytest.mark.parametrize("case", WRONG_DATA)
@pytest.mark.parametrize("given", ["now", "late"])
def test_wrong_data_costs_only_the_warmup_of_a_subclassed_model(
    given: str, case: str, tmp_path: pathlib.Path
) -> None:
    model = Words()
    model.compile("sgd", "mse")
    data = WRONG_DATA[case]
    if given == "now" and case != "cannot be read":
        data = data()
    export = kw.WarmupExport(tmp_path / "1", data=data, verbose=0)
    with pytest.warns(UserWarning, match="is published COLD") as caught:
        history = model.fit(words(), epochs=2, verbose=0, callbacks=[export])
    assert len(history.history["loss"]) == 2 and export.reports[-1].cold
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    got = served(word=tf.constant(["a"]), size=tf.ones((1, 2)))
    want = model({"word": tf.constant(["a"]), "size": tf.ones((1, 2))})
    np.testing.assert_allclose(next(iter(got.values())), want, rtol=1e-5)
    early = [one for one in caught if "cannot make warmup records of data=" in str(one.message)]
    assert len(early) == (given == "now" and case in TOLD_EARLY)


def test_wrong_data_for_a_model_that_was_never_called_costs_only_the_warmup(
    tmp_path: pathlib.Path,
) -> None:
    rows = np.ones((8, 3), "float32")
    model = Parts("batch")
    model.compile("sgd")
    export = kw.WarmupExport(tmp_path / "1", data=lambda: iter([np.ones((4, 7))]), verbose=0)
    with pytest.warns(UserWarning, match="is published COLD"):
        model.fit(batches_of((rows, rows)), verbose=0, callbacks=[export])
    tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]


class TwoArguments(keras.Model):
    """Its `call` takes two arguments, which only its `train_step` can give it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def build(self, source_shape: Any, target_shape: Any) -> None:
        self.dense.build(source_shape)

    def call(self, source: Any, target: Any) -> Any:
        return self.dense(source + target)

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self(data["source"], data["target"]) ** 2)
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


def test_a_call_of_two_arguments_is_not_refused(tmp_path: pathlib.Path) -> None:
    rows = np.ones((8, 3), "float32")
    model = TwoArguments()
    model.compile("sgd")
    export = kw.WarmupExport(tmp_path / "1", verbose=0)
    with pytest.warns(UserWarning, match="is published COLD"):
        model.fit(batches_of({"source": rows, "target": rows}), verbose=0, callbacks=[export])
    tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]


@pytest.mark.parametrize("case", ["batch", "other inputs"])
def test_data_that_the_call_takes_cures_a_model_that_cannot_be_exported(
    case: str, tmp_path: pathlib.Path
) -> None:
    rows = np.ones((8, 3), "float32")
    model, x = (Parts("dict"), (rows, rows)) if case == "batch" else (Lookup(), {"ids": rows})
    data: Any = {"anchor": rows} if case == "batch" else [np.ones(8, "int32"), rows]
    model.compile("sgd")
    export = kw.WarmupExport(tmp_path / "1", data=data, on_error="raise", verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*WarmupExport")
        model.fit(batches_of(x), verbose=0, callbacks=[export])
    assert export.reports[-1].proofs["serving_default"] == "proved"


def test_wrong_data_of_a_model_that_cannot_be_exported_is_refused_after_the_first_step(
    tmp_path: pathlib.Path,
) -> None:
    rows = np.ones((8, 3), "float32")
    model = Lookup()
    model.compile("sgd")
    export = kw.WarmupExport(tmp_path / "1", data={"wrong": rows}, verbose=0)
    with pytest.raises(kw.WarmupError, match=r"data= does not help\. Lookup is called on"):
        model.fit(batches_of({"ids": rows}), verbose=0, callbacks=[export])


def test_captured_batches_of_two_structures_cost_only_the_warmup(tmp_path: pathlib.Path) -> None:
    rows = np.ones((8, 3), "float32")
    model = Optional()
    model.compile("sgd", "mse")
    model.fit({"a": rows, "b": rows}, np.ones((8, 1)), verbose=0, callbacks=[kw.BatchCapture()])
    data = lambda: iter([({"a": rows, "b": rows},), ({"a": rows},)])  # noqa: E731
    report = kw.export_with_warmup(model, tmp_path / "1", data=data, on_error="warn")
    assert "missing inputs ['b']" in report.cold and report.published


class Optional(keras.Model):
    """Takes a feature that a batch may lack."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs["a"] + inputs["b"] if "b" in inputs else inputs["a"])


def test_an_export_model_of_another_structure_asks_for_data(tmp_path: pathlib.Path) -> None:
    a, b = keras.Input((1,), name="a"), keras.Input((1,), name="b")
    x = keras.Input((2,))
    dense = keras.layers.Dense(1)
    trained = keras.Model(x, dense(x))
    served = keras.Model([a, b], dense(keras.layers.Concatenate()([a, b])))
    trained.compile("sgd", "mse")
    export = kw.WarmupExport(tmp_path / "1", export_model=served, verbose=0)
    with pytest.warns(UserWarning) as caught:
        trained.fit(np.ones((8, 2)), np.ones((8, 1)), verbose=0, callbacks=[export])
    texts = [str(one.message) for one in caught if "it takes 2 inputs" in str(one.message)]
    assert len(texts) == 2  # before the first step and at the end
    for text in texts:
        assert "Pass data= with rows that fit, or warmup={'transform': ...}" in text
        assert "the model was trained with" not in text
