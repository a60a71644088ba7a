"""`batch_sizes="auto"` warms more sizes where the ops make it matter, and one elsewhere."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.records.warmup_file import warmup_path
from keras_warmup.report import WarmupReport

ROWS = np.random.default_rng(0)
AUTO = {"batch_sizes": "auto"}
IMAGES = ROWS.random((40, 8, 8, 1), "float32")
SEQUENCES = ROWS.random((40, 5, 4), "float32")
TABLE = ROWS.random((40, 4), "float32")


def convolution() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="x"),
            keras.layers.Conv2D(2, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )


def depthwise() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="x"),
            keras.layers.DepthwiseConv2D(3),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def attention() -> keras.Model:
    x = keras.Input((5, 4), name="x")
    attended = keras.layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(x, keras.layers.Dense(1)(keras.layers.Flatten()(attended)))


def mlp() -> keras.Model:
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(1)])


def lstm() -> keras.Model:
    return keras.Sequential([keras.Input((5, 4), name="x"), keras.layers.LSTM(3)])


def sizes(report: WarmupReport) -> list[int | None]:
    return [record.batch_size for record in report.records]


@pytest.mark.parametrize(
    ("make", "x", "batch_size", "expected"),
    [
        (convolution, IMAGES, 32, [1, 4, 16, 32]),
        (convolution, IMAGES, 16, [1, 4, 16]),
        (depthwise, IMAGES, 20, [1, 4, 16, 20]),
        (attention, SEQUENCES, 5, [1, 4, 5]),
        (attention, SEQUENCES, 1, [1, 2]),
        (mlp, TABLE, 32, [2]),
        (lstm, SEQUENCES, 32, [2]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_sizes_up_to_the_training_batch_where_they_matter(
    make: Any, x: np.ndarray, batch_size: int, expected: list[int], tmp_path: pathlib.Path
) -> None:
    model = make()
    model.compile("sgd", "mse")
    export = kw.WarmupExport(tmp_path / "1", warmup=AUTO, on_error="raise", verbose=0)
    y = np.zeros(model.compute_output_shape(x.shape))
    model.fit(x, y, batch_size=batch_size, verbose=0, callbacks=[export])
    (report,) = export.reports
    assert sizes(report) == expected
    assert set(report.proofs.values()) == {"proved"}
    assert report.load_added_ms == pytest.approx(sum(one.replay_ms for one in report.records))
    assert not any("are repeated" in note for note in report.notes)
    assert kw.verify(tmp_path / "1").ok


def test_the_default_stays_one_record(tmp_path: pathlib.Path) -> None:
    assert sizes(kw.export_with_warmup(convolution(), tmp_path / "1", data=IMAGES)) == [2]


@pytest.mark.parametrize("make", [convolution, mlp], ids=["convolution", "mlp"])
def test_the_sizes_of_the_server_win(make: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "batching.txt"
    path.write_text("max_batch_size { value: 24 } allowed_batch_sizes: 3 allowed_batch_sizes: 24")
    data = IMAGES if make is convolution else TABLE
    warmup = {**AUTO, "batching_parameters": path}
    assert sizes(kw.export_with_warmup(make(), tmp_path / "1", data=data, warmup=warmup)) == [3, 24]


def test_no_size_is_over_the_maximum_of_the_server(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "batching.txt"
    path.write_text("max_batch_size { value: 8 }")
    warmup = {**AUTO, "batching_parameters": path}
    report = kw.export_with_warmup(convolution(), tmp_path / "1", data=IMAGES, warmup=warmup)
    assert sizes(report) == [1, 4, 8]


def test_rows_of_a_signature_of_its_own_count(tmp_path: pathlib.Path) -> None:
    data = kw.PerSignature({"serving_default": IMAGES[:16]})
    report = kw.export_with_warmup(convolution(), tmp_path / "1", data=data, warmup=AUTO)
    assert sizes(report) == [1, 4, 16]


def test_equal_seeds_and_data_give_equal_files(tmp_path: pathlib.Path) -> None:
    def written(name: str) -> bytes:
        keras.utils.set_random_seed(0)
        path = tmp_path / name / "1"
        warmup = {**AUTO, "seed": 3, "model_name": "m"}
        kw.export_with_warmup(convolution(), path, data=IMAGES, warmup=warmup)
        return pathlib.Path(warmup_path(path)).read_bytes()

    assert written("a") == written("b")


def test_rows_that_are_repeated_are_noted(tmp_path: pathlib.Path) -> None:
    batches = tf.data.Dataset.from_tensor_slices(IMAGES[:3]).batch(3)
    model = convolution()
    report = kw.export_with_warmup(model, tmp_path / "1", data=batches, warmup={**AUTO, "seed": 1})
    assert sizes(report) == [1, 3]
    path = tmp_path / "batching.txt"
    path.write_text("max_batch_size { value: 16 } allowed_batch_sizes: 2 allowed_batch_sizes: 16")
    warmup = {**AUTO, "batching_parameters": path}
    report = kw.export_with_warmup(model, tmp_path / "2", data=batches, warmup=warmup)
    assert sizes(report) == [2, 16]
    assert (
        "Signature 'serving_default': the 3 rows at hand are repeated in the requests of batch "
        "sizes [16]."
    ) in report.notes


def test_a_batch_that_the_signature_fixes_stays(tmp_path: pathlib.Path) -> None:
    module = tf.Module()
    module.model = convolution()
    spec = tf.TensorSpec([3, 8, 8, 1], name="x")
    serve = tf.function(lambda x: {"y": module.model(x)}, input_signature=[spec])
    report = kw.save(module, tmp_path / "1", serve, data={"x": IMAGES}, warmup=AUTO)
    assert sizes(report) == [3]


def test_each_signature_has_the_sizes_of_its_own_ops(tmp_path: pathlib.Path) -> None:
    class Two(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = convolution()

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], name="x")])
        def score(self, x: Any) -> Any:
            return {"y": self.model(x)}

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], name="x")])
        def mean(self, x: Any) -> Any:
            return {"y": tf.reduce_mean(x, [1, 2, 3])}

    two = Two()
    signatures = {"score": two.score, "mean": two.mean}
    report = kw.save(two, tmp_path / "1", signatures, data={"x": IMAGES[:16]}, warmup=AUTO)
    by_key: dict[str, list[int | None]] = {"score": [], "mean": []}
    for record in report.records:
        by_key[record.signature_key].append(record.batch_size)
    assert by_key == {"score": [1, 4, 16], "mean": [2]}


def test_made_up_rows_are_repeated_up_to_the_default_size(tmp_path: pathlib.Path) -> None:
    with pytest.warns(UserWarning, match="hold made-up rows"):
        report = kw.export_with_warmup(convolution(), tmp_path / "1", warmup=AUTO)
    assert sizes(report) == [1, 2]
