"""Errors and warnings of a failed export give its cause, since a warning has no traceback."""

from __future__ import annotations

import errno
import os
import pathlib
from typing import Any

import keras
import numpy as np
import pytest

import keras_warmup as kw

X = np.random.default_rng(0).random((8, 3), "float32")
Y = np.zeros((8, 1), "float32")


def fit(export: kw.WarmupExport, model: keras.Model) -> None:
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0, callbacks=[export])


class NeverExported(keras.Model):
    """A model that can be trained and not exported."""

    def export(self, *arguments: Any, **options: Any) -> None:
        raise NotImplementedError("this layer needs a GPU of the year 2031")


def fail_to_write(model: keras.Model, export_dir: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), export_dir)


@pytest.mark.parametrize("way", ["epoch", "warn"])
@pytest.mark.parametrize(
    ("failure", "cause"),
    [("export", "this layer needs a GPU of the year 2031"), ("disk", "No space left on device")],
)
def test_the_warning_holds_the_text_of_the_cause(
    failure: str, cause: str, way: str, tmp_path: pathlib.Path
) -> None:
    inputs = keras.Input((3,), name="x")
    model_class = NeverExported if failure == "export" else keras.Model
    model = model_class(inputs, keras.layers.Dense(1)(inputs))
    options: dict[str, Any] = {}
    if failure == "disk":
        options["export_fn"] = fail_to_write
    options |= {"save_freq": "epoch"} if way == "epoch" else {"on_error": "warn"}
    with pytest.warns(UserWarning, match="published nothing at") as caught:
        fit(kw.WarmupExport(tmp_path / "{version}", verbose=0, **options), model)
    first = next(str(one.message) for one in caught if "published nothing at" in str(one.message))
    assert cause in first
    assert "its cause" not in first and "error above" not in first
    # Nor does it send the reader to a staging directory that is gone. (OSError names its own file.)
    assert failure == "disk" or ".kw-" not in first


class ExportsAnother(keras.Model):
    """Exports another model of the same inputs, as an `export` of its own may by mistake."""

    def export(self, path: str, **options: Any) -> None:
        x = keras.Input((3,), name="x")
        other = keras.Model(x, keras.layers.Dense(1)(x))
        bias = np.nan if self.name == "nan" else self.get_weights()[1] + 0.25
        other.set_weights([self.get_weights()[0], np.full(1, bias, "float32")])
        other.export(path, verbose=False)


@pytest.mark.parametrize("way", ["epoch", "warn", "raise"])
@pytest.mark.parametrize(
    ("name", "said"),
    [("other", "[2, 1] by up to 0.25"), ("nan", "[2, 1], the signature's values are NaN where")],
)
def test_a_failed_proof_gives_the_difference(
    name: str, said: str, way: str, tmp_path: pathlib.Path
) -> None:
    x = keras.Input((3,), name="x")
    model = ExportsAnother(x, keras.layers.Dense(1)(x), name=name)
    options: dict[str, Any] = {
        "epoch": {"save_freq": "epoch"},
        "warn": {"on_error": "warn"},
        "raise": {},
    }
    export = kw.WarmupExport(tmp_path / "{version}", verbose=0, **options[way])
    if way == "raise":
        with pytest.raises(kw.WarmupError) as error:
            fit(export, model)
        text = str(error.value)
    else:
        with pytest.warns(UserWarning, match="published nothing at") as caught:
            fit(export, model)
        text = str(caught[0].message)
    assert "does not give what model" in text and said in text
    assert not export.reports
