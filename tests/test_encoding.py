"""String inputs, end to end: rows become the bytes the graph reads, in SavedModels this project did not make, too."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.errors import BindingError, DataError
from keras_warmup.replay import open_session

ALL_KINDS = ["predict", "classify", "regress", "multi_inference"]


def copy_of(source, target):
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for root, _, _ in os.walk(target):
        os.chmod(root, 0o755)
    return target


@pytest.fixture
def taxi(saved_models, tmp_path):
    return copy_of(saved_models / "chicago_taxi_estimator" / "1", tmp_path / "taxi" / "1")


@pytest.fixture
def half_plus_two(saved_models, tmp_path):
    return copy_of(saved_models / "half_plus_two_tf1" / "1", tmp_path / "half_plus_two" / "1")


@pytest.fixture
def taxi_examples(saved_models):
    return tf.data.TFRecordDataset(str(saved_models / "chicago_taxi_examples.tfrecord.gz"), "GZIP")


def warmed_by(report):
    return {key: (record.signature_key, record.kind) for record in report.records for key in record.warms}


def test_taxi_is_warm_from_its_examples_with_one_record_for_shared_tensors(taxi, taxi_examples):
    report = kw.add_warmup(taxi, taxi_examples)
    assert warmed_by(report) == {
        "serving_default": ("serving_default", "classify"),
        "classification": ("serving_default", "classify"),
        "regression": ("regression", "regress"),
        "predict": ("predict", "predict"),
    }
    assert not report.skipped
    assert {record.source for record in report.records} == {"data"}
    assert kw.verify(taxi).ok


def test_taxi_gets_each_kind_asked_for(taxi, taxi_examples):
    report = kw.add_warmup(taxi, taxi_examples, warmup={"kinds": ALL_KINDS})
    assert sorted(record.kind for record in report.records) == sorted(ALL_KINDS)
    (multi,) = (log.multi_inference_log.request for log in kw.read_records(taxi) if log.HasField("multi_inference_log"))
    assert {(task.model_spec.name, task.model_spec.signature_name) for task in multi.tasks} == {
        ("taxi", "serving_default"),
        ("taxi", "regression"),
    }
    assert kw.verify(taxi).ok


def test_half_plus_two_is_warm_and_the_unreachable_signature_is_named(half_plus_two):
    examples = [example(x=float(number)) for number in range(4)]
    with pytest.warns(UserWarning, match="Signature 'regress_x2_to_y3' .* stays cold"):
        report = kw.add_warmup(half_plus_two, examples, warmup={"kinds": ALL_KINDS})
    assert set(warmed_by(report)) == {"serving_default", "classify_x_to_y", "regress_x_to_y", "regress_x_to_y2"}
    assert set(ALL_KINDS) == {record.kind for record in report.records}
    assert report.skipped["regress_x2_to_y3"].startswith(
        "no regress request can reach it: Regress feeds serialized tf.Examples (string), and its input 'inputs' is float32. "
    )
    assert kw.verify(half_plus_two).ok


def test_half_plus_two_is_warm_from_features_too(half_plus_two):
    with pytest.warns(UserWarning, match="stays cold"):
        report = kw.add_warmup(half_plus_two, {"x": np.array([[1.0], [4.0]], "float32")})
    with open_session(half_plus_two) as session:
        outputs = [
            next(iter(session.replay(log).outputs.values())).ravel().tolist() for log in kw.read_records(half_plus_two)
        ]
    assert outputs[0] == [2.5, 4.0]
    assert set(warmed_by(report)) == {"serving_default", "classify_x_to_y", "regress_x_to_y", "regress_x_to_y2"}


def test_made_up_examples_run(taxi):
    with pytest.warns(UserWarning, match="hold made-up rows"):
        report = kw.add_warmup(taxi)
    assert {record.source for record in report.records} == {"synthetic"}
    assert kw.verify(taxi).ok


def test_examples_of_another_model_are_refused_without_their_values(taxi):
    with pytest.raises(DataError, match="Row 0 is GZIP-compressed"):
        kw.add_warmup(taxi, [b"\x1f\x8bsecret"])
    assert not (taxi / "assets.extra").exists()


def example(**features):
    feature = {key: tf.train.Feature(float_list=tf.train.FloatList(value=[value])) for key, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


class Strings(tf.Module):
    """Endpoints whose one input is a vector of strings of some format."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="images")])
    def image(self, images):
        decode = lambda one: tf.image.resize(tf.io.decode_image(one, 3, expand_animations=False), [4, 4])  # noqa: E731
        return {"y": tf.map_fn(decode, images, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="encoded")])
    def base64_image(self, encoded):
        decode = lambda one: tf.image.resize(tf.io.decode_png(tf.io.decode_base64(one), 3), [4, 4])  # noqa: E731
        return {"y": tf.map_fn(decode, encoded, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="tensors")])
    def tensor(self, tensors):
        return {
            "y": tf.map_fn(lambda one: tf.ensure_shape(tf.io.parse_tensor(one, tf.float32), [3]), tensors, tf.float32)
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="sequences")])
    def sequence(self, sequences):
        _, parsed, _ = tf.io.parse_sequence_example(sequences, sequence_features={"x": tf.io.VarLenFeature(tf.float32)})
        return {"y": tf.sparse.to_dense(parsed["x"])}


IMAGES = np.arange(2 * 6 * 6 * 3, dtype="uint8").reshape(2, 6, 6, 3)


@pytest.mark.parametrize(
    ("endpoint", "data"),
    [("image", IMAGES), ("base64_image", IMAGES), ("tensor", np.ones((2, 3), "float32"))],
)
def test_numbers_become_the_bytes_the_graph_decodes(endpoint, data, tmp_path):
    module = Strings()
    report = kw.save(module, tmp_path / "1", signatures=getattr(module, endpoint), data=data)
    assert [record.source for record in report.records] == ["data"]
    with open_session(tmp_path / "1") as session:
        (log,) = kw.read_records(tmp_path / "1")
        got = session.replay(log).outputs["y"]
    wanted = tf.image.resize(data, [4, 4]).numpy() if endpoint != "tensor" else data
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_float_images_are_refused_with_the_cure(tmp_path):
    module = Strings()
    with pytest.raises(BindingError, match="Pass transform= to give the encoded files yourself"):
        kw.save(module, tmp_path / "1", signatures=module.image, data=IMAGES / np.float32(255))


def test_sequence_examples_are_refused_and_never_guessed(tmp_path):
    module = Strings()
    with pytest.raises(BindingError) as error:
        kw.save(module, tmp_path / "1", signatures=module.sequence, data=np.ones((2, 3), "float32"))
    assert str(error.value) == (
        "Cannot bind features to input 'sequences': it takes serialized tf.SequenceExamples, which cannot be built from a batch "
        "of features. Give the serialized bytes as data, or pass transform=."
    )


def test_inspect_shows_what_a_string_input_reads_and_which_kinds_are_possible(taxi):
    by_key = {one.signature.key: one for one in kw.inspect(taxi).signatures}
    plain = by_key["predict"].to_dict()
    assert plain["consumers"]["examples"]["reads"].startswith("tf.Example with ")
    assert plain["kinds"]["predict"] is None
    assert plain["kinds"]["classify"] == "Classify feeds an input named 'inputs', and its input is named 'examples'"
    assert by_key["regression"].kinds["regress"] is None
