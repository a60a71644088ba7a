"""Models whose first requests the tests of this folder measure."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

# The rows of the warmup file of `warm_dir`.
WARMED_ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


class TwoSignatures(tf.Module):
    """Two signatures over tensors of their own, one with two outputs."""

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def call(self, x: Any) -> dict[str, Any]:
        return {"a": tf.matmul(x, tf.ones([3, 4])), "b": tf.reduce_sum(x, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def other(self, x: Any) -> dict[str, Any]:
        return {"c": tf.nn.relu(x)}

    def save(self, path: str | os.PathLike[str]) -> None:
        signatures = {"serving_default": self.call, "other": self.other}
        tf.saved_model.save(self, os.fspath(path), signatures=signatures)


class RequestCounter(tf.Module):
    """Counts the Predict requests it gets, so that a test sees what a server ran before."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
    def predict(self, x: Any) -> dict[str, Any]:
        return {"count": self.requests.assign_add(1), "sum": tf.reduce_sum(x, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs: Any) -> dict[str, Any]:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        labels = tf.tile([["no", "yes"]], [tf.shape(x)[0], 1])
        return {"scores": tf.nn.softmax(x), "classes": labels}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs: Any) -> dict[str, Any]:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        return {"outputs": tf.reduce_sum(x, axis=1)}

    def save(self, path: pathlib.Path, *signature_keys: str) -> None:
        functions = {
            "serving_default": self.predict,
            "classify": self.classify,
            "regress": self.regress,
        }
        tf.saved_model.save(
            self, str(path), signatures={key: functions[key] for key in signature_keys}
        )


def examples_of(rows: Iterable[Iterable[float]]) -> list[tf.train.Example]:
    """Returns rows as the Examples that a `RequestCounter` classifies."""
    examples = []
    for row in rows:
        example = tf.train.Example()
        example.features.feature["x"].float_list.value.extend(row)
        examples.append(example)
    return examples


def count_in(response: Any) -> int:
    """Returns the number of requests that a `RequestCounter` had got with this one."""
    return int(tf.make_ndarray(response.outputs["count"]))
