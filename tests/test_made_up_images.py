"""Signatures that decode images get made-up ones where their graph shows how they are read."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import tensorflow as tf

import keras_warmup as kw
from tests.builders import predict_inputs, save_function

STRINGS = tf.TensorSpec([None], tf.string, name="x")
SCALAR = tf.TensorSpec([], tf.string, name="x")
PHOTO = {"photo": tf.io.FixedLenFeature([], tf.string)}
# A feature before it and one after it, a sparse and a ragged one: outputs of the parser in between.
TABLE = {
    **PHOTO,
    "caption": tf.io.FixedLenFeature([], tf.string, default_value="none"),
    "tags": tf.io.VarLenFeature(tf.string),
    "words": tf.io.RaggedFeature(tf.string),
    "year": tf.io.FixedLenFeature([1], tf.int64),
    "zoom": tf.io.FixedLenFeature([], tf.string, default_value="near"),
}


def resized(encoded: Any) -> Any:
    image = tf.io.decode_jpeg(encoded, channels=3)
    return tf.image.resize(tf.cast(image, tf.float32), [4, 4])


def each_resized(encoded: Any) -> Any:
    return tf.map_fn(resized, encoded, fn_output_signature=tf.TensorSpec([4, 4, 3], tf.float32))


def photo_of_examples(x: Any) -> Any:
    return {"y": each_resized(tf.io.parse_example(x, PHOTO)["photo"])}


def photo_among_features(x: Any) -> Any:
    parsed = tf.io.parse_example(x, TABLE)
    year = tf.cast(parsed["year"], tf.float32)
    zoom = tf.cast(tf.strings.length(parsed["zoom"]), tf.float32)
    return {"y": tf.reduce_sum(each_resized(parsed["photo"]), [1, 2, 3]) * zoom + year[:, 0]}


def photo_inside_map_fn(x: Any) -> Any:
    def parse(row: Any) -> Any:
        return resized(tf.io.parse_single_example(row, TABLE)["photo"])

    return {"y": tf.map_fn(parse, x, fn_output_signature=tf.TensorSpec([4, 4, 3], tf.float32))}


def one_example(x: Any) -> Any:
    return {"y": resized(tf.io.parse_single_example(x, PHOTO)["photo"])}


def one_image(x: Any) -> Any:
    return {"y": resized(x)}


def one_base64_image(x: Any) -> Any:
    return {"y": resized(tf.io.decode_base64(x))}


def png_of_examples(x: Any) -> Any:
    def decode(encoded: Any) -> Any:
        return tf.reduce_mean(tf.cast(tf.io.decode_png(encoded, 1, tf.uint16), tf.float32))

    photos = tf.io.parse_example(x, PHOTO)["photo"]
    return {"y": tf.map_fn(decode, photos, fn_output_signature=tf.float32)}


@pytest.mark.parametrize(
    ("function", "spec"),
    [
        (photo_of_examples, STRINGS),
        (photo_among_features, STRINGS),
        (photo_inside_map_fn, STRINGS),
        (png_of_examples, STRINGS),
        (one_example, SCALAR),
        (one_image, SCALAR),
        (one_base64_image, SCALAR),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_images_are_made_up_and_run(function: Any, spec: Any, tmp_path: pathlib.Path) -> None:
    path = save_function(function, tmp_path / "1", [spec])
    with pytest.warns(UserWarning, match="hold made-up rows"):
        report = kw.add_warmup(path)
    (record,) = report.records
    assert record.source == "synthetic" and not report.skipped
    assert record.shapes == {"x": () if spec is SCALAR else (2,)}
    assert kw.verify(path).ok
    (log,) = kw.read_records(path)
    assert predict_inputs(log)["x"].size


def photo_in_a_sequence(x: Any) -> Any:
    _, parsed = tf.io.parse_sequence_example(x, sequence_features=PHOTO_SEQUENCE)
    return {"y": each_resized(tf.reshape(parsed["photo"], [-1]))}


PHOTO_SEQUENCE = {"photo": tf.io.FixedLenSequenceFeature([], tf.string)}


def numbers(x: Any) -> Any:
    return {"y": tf.strings.to_number(x)}


def tensors(x: Any) -> Any:
    parse = lambda row: tf.ensure_shape(tf.io.parse_tensor(row, tf.float32), [3])  # noqa: E731
    return {"y": tf.map_fn(parse, x, fn_output_signature=tf.TensorSpec([3]))}


def numbers_of_examples(x: Any) -> Any:
    return {"y": tf.strings.to_number(tf.io.parse_example(x, PHOTO)["photo"])}


@pytest.mark.parametrize(
    ("function", "spec"),
    [(numbers, STRINGS), (tensors, STRINGS), (numbers_of_examples, STRINGS), (numbers, SCALAR)],
    ids=["numbers", "tensors", "numbers in Examples", "a number"],
)
def test_other_strings_that_cannot_be_made_up_ask_for_data(
    function: Any, spec: Any, tmp_path: pathlib.Path
) -> None:
    path = save_function(function, tmp_path / "1", [spec])
    with pytest.raises(kw.WarmupError, match="made-up rows do not run, pass data="):
        kw.add_warmup(path)
    assert not (tmp_path / "1" / "assets.extra").exists()
