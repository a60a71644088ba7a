"""Tests of `keras_warmup.pipeline.bind_signatures`, through the public exports."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.errors import BindingError, DataError, SignatureError
from tests.builders import float_parser, functional_model, input_of_four, random_rows


def test_an_unknown_signature_is_refused_with_the_known_ones(tmp_path: pathlib.Path) -> None:
    model = functional_model(input_of_four("x"))
    options = {"signatures": ["nope"]}
    with pytest.raises(SignatureError) as error:
        kw.export_with_warmup(model, tmp_path / "1", data=random_rows(4), warmup=options)
    assert str(error.value) == (
        "The SavedModel has no signatures ['nope']. It has ['serve', 'serving_default']."
    )


def test_on_no_data_error_refuses_to_make_rows_up(tmp_path: pathlib.Path) -> None:
    model = functional_model(input_of_four("x"))
    with pytest.raises(DataError) as error:
        kw.export_with_warmup(model, tmp_path / "1", warmup={"on_no_data": "error"})
    assert str(error.value) == (
        "No data to warm signature 'serve', and on_no_data='error'. Pass data=, or train with "
        "WarmupExport or BatchCapture in callbacks=."
    )
    assert os.listdir(tmp_path) == []


class CallsPython(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        doubled = tf.numpy_function(lambda x: x * 2, [x], tf.float32)
        return {"y": tf.ensure_shape(doubled, [None])}


def test_a_model_that_calls_python_is_never_published(tmp_path: pathlib.Path) -> None:
    module = CallsPython()
    with pytest.raises(SignatureError, match="which a server does not have"):
        kw.save(module, tmp_path / "1", signatures=module.double, data=random_rows())
    assert os.listdir(tmp_path) == []


def test_the_own_call_of_a_model_is_refused_and_not_left_cold_without_data(
    tmp_path: pathlib.Path,
) -> None:
    x = input_of_four("x")
    doubled = keras.layers.Lambda(
        lambda x: tf.ensure_shape(tf.numpy_function(np.double, [x], tf.float64), [None, 4]),
        output_shape=(4,),
    )
    with pytest.raises(SignatureError, match="which a server does not have"):
        kw.save(keras.Model(x, doubled(x)), tmp_path / "1")
    assert os.listdir(tmp_path) == []


class SparseAndDense(tf.Module):
    @tf.function(input_signature=[tf.SparseTensorSpec([None, 4], tf.float32)])
    def sparse(self, x: tf.SparseTensor) -> dict[str, tf.SparseTensor]:
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def dense(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + 1}


def test_a_signature_that_no_request_can_reach_leaves_the_others_warm(
    tmp_path: pathlib.Path,
) -> None:
    module = SparseAndDense()
    signatures = {"serving_default": module.dense, "sparse": module.sparse}
    with pytest.warns(UserWarning, match="Signature 'sparse' .* stays cold"):
        report = kw.save(module, tmp_path / "1", signatures, data=random_rows(4))
    assert [record.signature_key for record in report.records] == ["serving_default"]


def test_a_signature_that_was_asked_for_is_refused_and_not_left_cold(
    tmp_path: pathlib.Path,
) -> None:
    module = SparseAndDense()
    signatures = {"serving_default": module.dense, "sparse": module.sparse}
    options = {"signatures": ["serving_default", "sparse"]}
    with pytest.raises(SignatureError, match="No request can be made for signature 'sparse'"):
        kw.save(module, tmp_path / "1", signatures, data=random_rows(4), warmup=options)
    assert os.listdir(tmp_path) == []


class FixesTwoSizes(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec([2], tf.float32, name="a"),
            tf.TensorSpec([3], tf.float32, name="b"),
        ]
    )
    def join(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.concat([a, b], axis=0)}


def test_inputs_that_fix_different_batch_sizes_are_refused(tmp_path: pathlib.Path) -> None:
    module = FixesTwoSizes()
    data = {"a": random_rows(), "b": random_rows()}
    with pytest.raises(SignatureError) as error:
        kw.save(module, tmp_path / "1", module.join, data=data)
    assert str(error.value) == (
        "Signature 'serving_default' fixes different sizes of dimension 0 for its inputs ([2, 3]), "
        "so rows of one batch cannot fill them."
    )


def test_data_keyed_by_crossed_input_names_is_never_swapped(tmp_path: pathlib.Path) -> None:
    first, second = input_of_four("zz"), input_of_four("aa")
    joined = keras.layers.Concatenate()([first * 2.0, second])
    model = keras.Model({"aa": first, "zz": second}, keras.layers.Dense(2)(joined))
    model.export(tmp_path / "1", verbose=False)
    with pytest.raises(BindingError) as error:
        kw.add_warmup(tmp_path / "1", {"aa": random_rows(4), "zz": random_rows(4)})
    assert str(error.value) == (
        "Cannot bind batch to signature 'serve': x['aa'], x['zz'] may be the names of inputs or "
        "the keys of the exported function, and these differ. Pass warmup={'transform': ...} to "
        "name the inputs, or export with export_with_warmup, which knows the model."
    )


class TwoTasks(tf.Module):
    """A classifier and a regressor that read different features of their Examples."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = keras.Sequential(
            [keras.Input((1,), name="a"), keras.layers.Dense(2, activation="softmax")]
        )
        a, b = keras.Input((1,), name="a"), keras.Input((1,), name="b")
        summed = keras.layers.Dense(1)(keras.layers.Concatenate()([a, b]))
        self.regressor = keras.Model({"a": a, "b": b}, summed)

    def endpoints(self) -> dict[str, Any]:
        return {
            "classify": kw.endpoints.classify(self.classifier, float_parser("a")),
            "regress": kw.endpoints.regress(self.regressor, float_parser("a", "b")),
        }


def float_features(example: tf.train.Example) -> dict[str, list[float]]:
    """Returns feature key -> floats of an Example."""
    return {key: list(value.float_list.value) for key, value in example.features.feature.items()}


def test_the_examples_of_a_multi_inference_hold_the_features_of_all_its_tasks(
    tmp_path: pathlib.Path,
) -> None:
    module = TwoTasks()
    data = {"a": np.float32([[1.0], [2.0]]), "b": np.float32([[3.0], [4.0]])}
    options = {"kinds": ["classify", "regress", "multi_inference"]}
    report = kw.save(module, tmp_path / "1", module.endpoints(), data=data, warmup=options)
    assert [(record.kind, record.signature_key) for record in report.records] == [
        ("classify", "classify"),
        ("regress", "regress"),
        ("multi_inference", "classify+regress"),
    ]
    log = list(kw.read_records(tmp_path / "1"))[2]
    request = log.multi_inference_log.request
    assert [(task.model_spec.signature_name, task.method_name) for task in request.tasks] == [
        ("classify", "tensorflow/serving/classify"),
        ("regress", "tensorflow/serving/regress"),
    ]
    examples = [float_features(example) for example in request.input.example_list.examples]
    assert sorted(examples, key=str) == [{"a": [1.0], "b": [3.0]}, {"a": [2.0], "b": [4.0]}]
    verified = kw.verify(tmp_path / "1")
    assert verified.ok, verified.failures


def test_made_up_examples_of_a_multi_inference_hold_the_features_of_all_its_tasks(
    tmp_path: pathlib.Path,
) -> None:
    module = TwoTasks()
    options = {"kinds": ["multi_inference"]}
    with pytest.warns(UserWarning, match="hold made-up rows"):
        report = kw.save(module, tmp_path / "1", module.endpoints(), warmup=options)
    assert [record.signature_key for record in report.records] == ["classify+regress"]
    (log,) = kw.read_records(tmp_path / "1")
    examples = log.multi_inference_log.request.input.example_list.examples
    assert [set(float_features(example)) for example in examples] == [{"a", "b"}] * 2
