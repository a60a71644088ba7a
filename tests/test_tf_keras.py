"""Models of tf_keras (Keras 2) are captured, exported and proved like those of Keras 3."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.report import WarmupReport
from keras_warmup.training.best_epoch import BestEpoch

tf_keras: Any = pytest.importorskip("tf_keras")
layers: Any = tf_keras.layers
ROOT = pathlib.Path(__file__).resolve().parents[1]
X = np.random.default_rng(11).random((48, 4), dtype=np.float32)
IDS = np.random.default_rng(12).integers(0, 9, (48, 1))


class Ranker(tf_keras.Model):  # type: ignore[misc]
    """A subclassed model of a dict of numbers and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = layers.Embedding(9, 3)
        self.score = layers.Dense(2)

    def call(self, x: Any) -> Any:
        ids = self.embedding(x["ids"])[:, 0]
        return {"score": self.score(tf.concat([x["numbers"], ids], 1)), "again": ids}


def two_inputs() -> tuple[Any, Any, Any]:
    """A functional model whose two inputs are of one shape: only names tell them apart."""
    first, second = layers.Input((4,), name="zz"), layers.Input((4,), name="aa")
    joined = layers.Concatenate()([first, second * 3.0])
    outputs = [layers.Dense(2, name="left")(joined), layers.Dense(3, name="right")(joined)]
    model = tf_keras.Model([first, second], outputs)
    return model, [X, X[::-1].copy()], [X[:, :2], X[:, :3]]


def named_inputs() -> tuple[Any, Any, Any]:
    inputs = {"b": layers.Input((4,), name="b"), "a": layers.Input((4,), name="a")}
    joined = layers.Concatenate()([inputs["b"], inputs["a"] * 3.0])
    model = tf_keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(joined)))
    return model, {"a": X, "b": X[::-1].copy()}, X[:, :2]


def sequential() -> tuple[Any, Any, Any]:
    model = tf_keras.Sequential([layers.Dense(4, "relu"), layers.Dropout(0.5), layers.Dense(2)])
    return model, X, X[:, :2]


def words() -> tuple[Any, Any, Any]:
    lookup = layers.StringLookup(vocabulary=["a", "b", "c"])
    inputs = layers.Input((2,), dtype="string", name="words")
    hidden = layers.Flatten()(layers.Embedding(4, 3)(lookup(inputs)))
    rows = np.random.default_rng(13).choice(np.array([b"a", b"b", b"z"], object), (48, 2))
    return tf_keras.Model(inputs, layers.Dense(1)(hidden)), rows, X[:, :1]


def subclassed() -> tuple[Any, Any, Any]:
    return Ranker(), {"numbers": X, "ids": IDS}, {"score": X[:, :2], "again": X[:, :3]}


MODELS = [two_inputs, named_inputs, sequential, words, subclassed]


def export(model: Any, path: str) -> WarmupReport:
    return kw.export_with_warmup(model, path)


def save_format(model: Any, path: str) -> WarmupReport:
    return kw.export_with_warmup(
        model, path, export_fn=lambda model, directory: model.save(directory)
    )


def drop_in(model: Any, path: str) -> WarmupReport:
    return kw.save(model, path)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("write", [export, save_format, drop_in], ids=lambda one: one.__name__)
def test_a_model_is_published_warm_and_proved(
    make: Any, write: Any, tmp_path: pathlib.Path
) -> None:
    model, x, y = make()
    model.compile("sgd", "mse")
    model.fit(x, y, verbose=0, batch_size=16, callbacks=[kw.BatchCapture()])
    report = write(model, str(tmp_path / "1"))
    assert report.proofs["serving_default"] == "proved"
    assert {record.source for record in report.records} == {"captured"}
    assert not report.skipped
    verified = kw.verify(str(tmp_path / "1"))
    assert verified.ok, verified.failures


def test_swapped_inputs_are_found(tmp_path: pathlib.Path) -> None:
    model, x, y = two_inputs()
    model.compile("sgd", "mse")
    model.fit(x, y, verbose=0, callbacks=[kw.BatchCapture()])

    def swap(model: Any, directory: str) -> None:
        first, second = (tf.TensorSpec((None, 4), name=name) for name in ("zz", "aa"))

        def call(zz: Any, aa: Any) -> Any:
            return dict(zip(("left", "right"), model([aa, zz]), strict=True))

        tf.saved_model.save(
            model, directory, {"serving_default": tf.function(call, [first, second])}
        )

    report = kw.export_with_warmup(model, str(tmp_path / "1"), export_fn=swap)
    assert report.proofs["serving_default"].startswith("unproved: bound by name")


def test_the_callback_exports_best_epochs(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, x, y = sequential()
    model.compile("sgd", "mse", metrics=["mae"])
    export = kw.WarmupExport(
        str(tmp_path / "{version}"), save_freq="epoch", save_best_only=True, monitor="loss"
    )
    model.fit(x, y, epochs=3, verbose=0, callbacks=[export])
    assert export.reports
    assert all(report.proofs["serving_default"] == "proved" for report in export.reports)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("WarmupExport: published ") for line in lines)


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [("val_loss", [3, 2, 4], [True, True, False]), ("accuracy", [3, 2, 4], [True, False, True])],
)
def test_the_direction_of_a_metric_is_that_of_tf_keras(
    monitor: str, values: list[float], best: list[bool]
) -> None:
    model, _, _ = sequential()
    decider = BestEpoch(monitor, "auto")
    assert [
        decider.is_best(model, epoch, {monitor: value}) for epoch, value in enumerate(values, 1)
    ] == best


def test_a_model_without_a_call_is_refused(tmp_path: pathlib.Path) -> None:
    class Parts(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = tf_keras.Sequential([layers.Dense(1)])

        def train_step(self, data: Any) -> dict[str, Any]:
            return {"loss": tf.reduce_mean(self.encoder(data[0]))}

    model = Parts()
    model.compile("sgd")
    with pytest.raises(kw.WarmupError, match=r"defines no call\(\).*export_model=model.encoder"):
        model.fit(X, X, verbose=0, callbacks=[kw.WarmupExport(str(tmp_path / "{version}"))])


def test_two_workers_publish_one_version(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "two_workers.py"), str(tmp_path / "m")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {
        words[1]: (words[3], words[5])
        for line in done.stdout.replace("worker ", "\nworker ").splitlines()
        if len(words := line.replace(":", " ").replace(",", " ").split()) == 6
        and words[0] == "worker"
    }
    assert found.keys() == {"0", "1"}
    assert found["0"][0] == found["1"][0]  # equal weights
    assert (found["0"][1], found["1"][1]) == ("1", "0")
    assert [entry.name for entry in (tmp_path / "m").iterdir()] == ["1"]
    assert not list(tmp_path.glob("keras-warmup-worker-*"))
    report = kw.verify(str(tmp_path / "m" / "1"))
    assert report.ok, report.failures
    known = {row.tobytes() for row in np.random.default_rng(0).random((1024, 20), dtype=np.float32)}
    (log,) = kw.read_records(str(tmp_path / "m" / "1"))
    rows = tf.make_ndarray(log.predict_log.request.inputs["features"])
    assert rows.shape[0] >= 1
    assert all(row.tobytes() in known for row in rows)
