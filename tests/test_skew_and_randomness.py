"""What a proof can show: training and serving may disagree, and outputs may be random."""

from __future__ import annotations

import collections
import pathlib
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw

ROWS = np.random.default_rng(0)


def table(names: tuple[str, ...]) -> keras.Model:
    """A model of dict inputs, as in the structured data examples."""
    inputs = {name: keras.Input((1,), name=name) for name in names}
    scaled = [value * (index + 1.0) for index, value in enumerate(inputs.values())]
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(scaled)))
    model.compile("sgd", "mse")
    return model


def columns(names: tuple[str, ...]) -> tf.data.Dataset:
    """Batches of an `OrderedDict`, as `make_csv_dataset` yields them."""
    x = collections.OrderedDict((name, ROWS.random((8, 1), "float32")) for name in names)
    return tf.data.Dataset.from_tensor_slices((x, np.zeros((8, 1), "float32"))).batch(4)


@pytest.mark.parametrize("names", [("zz", "aa"), ("thal", "age", "sex")])
@pytest.mark.parametrize("way", ["callback", "export_with_warmup", "save"])
def test_columns_swapped_in_training_are_reported(
    names: tuple[str, ...], way: str, tmp_path: pathlib.Path
) -> None:
    model = table(names)
    with pytest.warns(UserWarning, match="Training and serving of .*'serving_default'"):
        if way == "callback":
            export = kw.WarmupExport(tmp_path / "1", verbose=0)
            model.fit(columns(names), verbose=0, callbacks=[export])
            report = export.reports[-1]
        else:
            model.fit(columns(names), verbose=0, callbacks=[kw.BatchCapture()])
            publish = kw.export_with_warmup if way == "export_with_warmup" else kw.save
            report = publish(model, tmp_path / "1")
    swapped = tuple(name for name, other in zip(sorted(names), names, strict=True) if name != other)
    assert report.training_serving_skew["serving_default"] == swapped
    assert report.proofs["serving_default"] == "proved"


@pytest.mark.parametrize("as_dict", [True, False], ids=["plain dict", "sorted OrderedDict"])
def test_batches_that_agree_are_not_reported(as_dict: bool, tmp_path: pathlib.Path) -> None:
    names = ("zz", "aa") if as_dict else ("aa", "zz")
    data = columns(names)
    if as_dict:
        data = data.map(lambda x, y: (dict(x), y))
    model = table(names)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Training and serving")
        model.fit(data, verbose=0, callbacks=[kw.BatchCapture()])
        report = kw.export_with_warmup(model, tmp_path / "1")
    assert not report.training_serving_skew


class LeftOn(keras.Model):
    """A model that calls a random layer with `training=True`."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        super().__init__()
        self.layer = layer
        self.head = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])

    def call(self, x: Any) -> Any:
        return self.head(self.layer(x, training=True))


IMAGES = ROWS.random((8, 8, 8, 3), "float32")


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.RandomFlip(),
        lambda: keras.layers.RandomRotation(0.4),
        lambda: keras.layers.Dropout(0.5),
    ],
    ids=["flip", "rotation", "dropout"],
)
def test_outputs_that_are_random_at_inference_are_warned_of(
    layer: Any, tmp_path: pathlib.Path
) -> None:
    keras.utils.set_random_seed(0)
    model = LeftOn(layer())
    model(IMAGES)
    with pytest.warns(UserWarning, match="are random at inference"):
        report = kw.export_with_warmup(
            model, tmp_path / "1", data=IMAGES, warmup={"batch_sizes": [8]}
        )
    assert set(report.random_signatures) == {"serve", "serving_default"}
    assert report.proofs["serving_default"].startswith("unproved: outputs are random")
    assert kw.verify(tmp_path / "1").ok


def test_a_flip_of_two_images_is_random_whatever_the_seed(tmp_path: pathlib.Path) -> None:
    # One replay of two images gives equal outputs by chance in every fourth case.
    for seed in range(8):
        keras.utils.set_random_seed(seed)
        model = LeftOn(keras.layers.RandomFlip("horizontal"))
        model(IMAGES)
        with pytest.warns(UserWarning, match="are random at inference"):
            report = kw.export_with_warmup(model, tmp_path / str(seed + 1), data=IMAGES)
        assert set(report.random_signatures) == {"serve", "serving_default"}


def test_augmentation_inside_a_functional_model_is_warned_of(tmp_path: pathlib.Path) -> None:
    """As in the ViT example: Keras' augmentation layers stay on unless `training=False`."""
    x = keras.Input((8, 8, 3))
    augmented = keras.layers.RandomZoom(0.2)(keras.layers.RandomFlip()(x))
    model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Flatten()(augmented)))
    with pytest.warns(UserWarning, match="are random at inference"):
        report = kw.export_with_warmup(model, tmp_path / "1", data=IMAGES)
    assert report.random_signatures


def lstm() -> keras.Model:
    return keras.Sequential(
        [keras.Input((5, 3)), keras.layers.LSTM(4, dropout=0.5), keras.layers.Dense(1)]
    )


def attention() -> keras.Model:
    x = keras.Input((5, 3))
    attended = keras.layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Flatten()(attended)))


SEQUENCES = ROWS.random((8, 5, 3), "float32")


@pytest.mark.parametrize(
    ("make", "rows"),
    [(lstm, SEQUENCES), (attention, SEQUENCES)],
    ids=["LSTM with dropout", "attention with dropout"],
)
def test_random_ops_that_do_not_change_the_outputs_are_proved_and_shared(
    make: Any, rows: Any, tmp_path: pathlib.Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        report = kw.export_with_warmup(make(), tmp_path / "1", data=rows)
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    assert report.shared_signatures == {"serve": "serving_default"}
    assert not report.random_signatures


def test_the_largest_difference_is_given_when_outputs_differ(tmp_path: pathlib.Path) -> None:
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Dense(2)(x), name="m")

    class Other(keras.Model):
        """A model whose export holds other weights than the model has afterwards."""

        def export(self, *arguments: Any, **options: Any) -> None:
            super().export(*arguments, **options)
            self.set_weights([weight + 1.0 for weight in self.get_weights()])

    other = Other(model.inputs, model.outputs, name="m")
    rows = ROWS.random((4, 3), "float32")
    with pytest.raises(kw.WarmupError, match=r"differ: 'output_0' \[2, 2\] by up to \d"):
        kw.export_with_warmup(other, tmp_path / "1", data=rows)


def test_values_that_are_nan_are_named_so(tmp_path: pathlib.Path) -> None:
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Dense(2)(x), name="m")

    class Broken(keras.Model):
        """A model whose weights become NaN after it is exported."""

        def export(self, *arguments: Any, **options: Any) -> None:
            super().export(*arguments, **options)
            self.set_weights([weight * np.nan for weight in self.get_weights()])

    broken = Broken(model.inputs, model.outputs, name="m")
    with pytest.raises(
        kw.WarmupError, match="the model's values are NaN where the other's are not"
    ):
        kw.export_with_warmup(broken, tmp_path / "1", data=ROWS.random((4, 3), "float32"))
