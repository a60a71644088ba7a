"""String inputs, end to end: rows become the bytes the graph reads, in SavedModels this project did not make, too."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.binding.encode import bind_encoded, rows_for
from keras_warmup.data.batch import Batch, as_objects
from keras_warmup.errors import BindingError, DataError
from keras_warmup.savedmodel.signatures import Signature, SignatureTensor
from keras_warmup.savedmodel.string_formats import (
    Base64,
    ExampleParser,
    FeatureSpec,
    ImageDecoder,
    PlainText,
)
from keras_warmup.serving.replay import open_session

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
    return {
        key: (record.signature_key, record.kind)
        for record in report.records
        for key in record.warms
    }


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
    (multi,) = (
        log.multi_inference_log.request
        for log in kw.read_records(taxi)
        if log.HasField("multi_inference_log")
    )
    assert {(task.model_spec.name, task.model_spec.signature_name) for task in multi.tasks} == {
        ("taxi", "serving_default"),
        ("taxi", "regression"),
    }
    assert kw.verify(taxi).ok


def test_half_plus_two_is_warm_and_the_unreachable_signature_is_named(half_plus_two):
    examples = [example(x=float(number)) for number in range(4)]
    with pytest.warns(UserWarning, match="Signature 'regress_x2_to_y3' .* stays cold"):
        report = kw.add_warmup(half_plus_two, examples, warmup={"kinds": ALL_KINDS})
    assert set(warmed_by(report)) == {
        "serving_default",
        "classify_x_to_y",
        "regress_x_to_y",
        "regress_x_to_y2",
    }
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
            next(iter(session.replay(log).outputs.values())).ravel().tolist()
            for log in kw.read_records(half_plus_two)
        ]
    assert outputs[0] == [2.5, 4.0]
    assert set(warmed_by(report)) == {
        "serving_default",
        "classify_x_to_y",
        "regress_x_to_y",
        "regress_x_to_y2",
    }


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
    feature = {
        key: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        for key, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


class Strings(tf.Module):
    """Endpoints whose one input is a vector of strings of some format."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="images")])
    def image(self, images):
        def decode(one):
            return tf.image.resize(tf.io.decode_image(one, 3, expand_animations=False), [4, 4])

        return {"y": tf.map_fn(decode, images, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="encoded")])
    def base64_image(self, encoded):
        def decode(one):
            return tf.image.resize(tf.io.decode_png(tf.io.decode_base64(one), 3), [4, 4])

        return {"y": tf.map_fn(decode, encoded, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="tensors")])
    def tensor(self, tensors):
        return {
            "y": tf.map_fn(
                lambda one: tf.ensure_shape(tf.io.parse_tensor(one, tf.float32), [3]),
                tensors,
                tf.float32,
            )
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="sequences")])
    def sequence(self, sequences):
        _, parsed, _ = tf.io.parse_sequence_example(
            sequences, sequence_features={"x": tf.io.VarLenFeature(tf.float32)}
        )
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
    assert (
        plain["kinds"]["classify"]
        == "Classify feeds an input named 'inputs', and its input is named 'examples'"
    )
    assert by_key["regression"].kinds["regress"] is None


def signature(inputs, *, structure=None, defaults=(), key="s"):
    specs = {
        name: SignatureTensor(name, f"{name}:0", dtype, shape)
        for name, (dtype, shape) in inputs.items()
    }
    return Signature(key, "tensorflow/serving/predict", specs, {}, frozenset(defaults), structure)


STRINGS, VECTOR = ("string", (None,)), ("float32", (None,))
PNG = ImageDecoder(("png",), 3)


def decoded(rows):
    return np.stack([tf.io.decode_png(row).numpy() for row in rows])


def test_an_encoded_input_and_another_are_told_apart_by_the_structure():
    wanted = signature(
        {"image_bytes": STRINGS, "numbers": VECTOR}, structure=("image_bytes", "numbers")
    )
    numbers = np.array([1, 2], "float32")
    (bound,) = bind_encoded(Batch([IMAGES, numbers], 2), wanted, {"image_bytes": PNG})
    np.testing.assert_array_equal(decoded(bound.arrays["image_bytes"]), IMAGES)
    assert bound.arrays["numbers"].tolist() == [1, 2]
    assert (bound.ignored, bound.row_inputs) == ((), {"image_bytes", "numbers"})
    with pytest.raises(BindingError, match="does not tell their order"):
        bind_encoded(
            Batch([IMAGES, numbers], 2),
            signature({"image_bytes": STRINGS, "numbers": VECTOR}),
            {"image_bytes": PNG},
        )


def test_ragged_rows_beside_an_encoded_input_are_split_and_stay_with_their_rows():
    images = np.arange(3, dtype="uint8")[:, None, None, None] * np.ones((3, 2, 2, 3), "uint8")
    ragged = tf.ragged.constant([[1.0], [2.0, 3.0], [4.0]])
    wanted = signature({"image": STRINGS, "r": ("float32", (None, None))})
    first, second = bind_encoded(Batch({"image": images, "r": ragged}, 3), wanted, {"image": PNG})
    assert [decoded(one.arrays["image"])[:, 0, 0, 0].tolist() for one in (first, second)] == [
        [0, 2],
        [1],
    ]
    assert [one.arrays["r"].tolist() for one in (first, second)] == [[[1.0], [4.0]], [[2.0, 3.0]]]
    assert first.x["image"].shape == (2, 2, 2, 3)


def test_ragged_features_of_an_example_are_not_split():
    spec = {"tags": FeatureSpec("sparse", "int64"), "age": FeatureSpec("dense", "float32", ())}
    wanted = signature({"examples": STRINGS, "weight": VECTOR}, structure=("examples", "weight"))
    x = {
        "tags": tf.ragged.constant([[1], [2, 3], []], dtype=tf.int64),
        "age": np.arange(3.0),
        "weight": np.ones(3, "float32"),
        "note": np.zeros(3),
    }
    (bound,) = bind_encoded(Batch(x, 3), wanted, {"examples": ExampleParser(spec)})
    parsed = tf.io.parse_example(bound.arrays["examples"], {"tags": tf.io.RaggedFeature(tf.int64)})
    assert parsed["tags"].to_list() == [[1], [2, 3], []]
    assert bound.arrays["weight"].tolist() == [1, 1, 1]
    assert bound.ignored == ("x['note']",)
    assert bound.casts == {"age": "float64 -> float32"}


def test_a_leaf_that_became_examples_is_not_sent_a_second_time():
    wanted = signature({"examples": STRINGS, "weight": VECTOR})
    with pytest.raises(BindingError, match="missing inputs 'examples', 'weight'"):
        bind_encoded(
            Batch(np.ones(3, "float32"), 3), wanted, {"examples": ExampleParser({"age": AGE})}
        )


AGE, TEXT = FeatureSpec("dense", "float32", ()), FeatureSpec("dense", "string", ())
WORDS = as_objects([b"good", b"", b"\xc3\xa9t\xc3\xa9"])


def examples_of(rows, spec):
    return {key: value.numpy().tolist() for key, value in tf.io.parse_example(rows, spec).items()}


@pytest.mark.parametrize(
    "x",
    [WORDS, {"inputs": WORDS}, {"text": WORDS}, [WORDS]],
    ids=["bare", "input", "feature", "list"],
)
def test_text_is_the_one_feature_of_a_parser(x):
    (bound,) = bind_encoded(
        Batch(x, 3), signature({"inputs": STRINGS}), {"inputs": ExampleParser({"text": TEXT})}
    )
    parsed = examples_of(bound.arrays["inputs"], {"text": tf.io.FixedLenFeature([], tf.string)})
    assert parsed["text"] == WORDS.tolist()


def test_examples_of_one_feature_stay_as_they_are():
    rows = as_objects([example(age=1.0), example(age=2.0)])
    (bound,) = bind_encoded(
        Batch(rows, 2), signature({"inputs": STRINGS}), {"inputs": ExampleParser({"age": AGE})}
    )
    assert bound.arrays["inputs"].tolist() == rows.tolist()
    with pytest.raises(BindingError, match=r"feature 'text' .* is required, but missing"):
        bind_encoded(
            Batch(rows, 2),
            signature({"inputs": STRINGS}),
            {"inputs": ExampleParser({"text": TEXT})},
        )


@pytest.mark.parametrize(
    "spec", [{"text": TEXT, "age": AGE}, {"age": AGE}], ids=["several features", "a number"]
)
def test_text_for_another_parser_fails_as_a_row_that_is_no_example(spec):
    with pytest.raises(DataError) as error:
        bind_encoded(
            Batch(WORDS, 3), signature({"inputs": STRINGS}), {"inputs": ExampleParser(spec)}
        )
    assert str(error.value) == "Row 0 (4 bytes) is not a serialized tf.Example."


def test_examples_in_base64_are_encoded_once():
    rows = as_objects([example(age=1.0), example(age=2.0)])
    sent = tf.io.encode_base64(rows.tolist()).numpy().tolist()
    wanted, consumers = (
        signature({"inputs": STRINGS}),
        {"inputs": Base64(ExampleParser({"age": AGE}))},
    )
    for x in (rows, as_objects(sent), {"age": np.array([1.0, 2.0], "float32")}):
        (bound,) = bind_encoded(Batch(x, 2), wanted, consumers)
        assert bound.arrays["inputs"].tolist() == sent


PARSER = ExampleParser({"age": AGE, "user-id": FeatureSpec("dense", "int64", (), (7,))})
AGES = as_objects([example(age=1.0), example(age=2.0)])


def test_rows_are_parsed_for_a_signature_that_takes_the_features_by_name():
    parsers = [ExampleParser({"other": AGE}), PARSER]
    raw = rows_for(
        Batch(AGES, 2), signature({"age": VECTOR, "user_id": ("int64", (None,))}), {}, parsers
    )
    assert {key: value.tolist() for key, value in raw.x.items()} == {
        "age": [1, 2],
        "user-id": [7, 7],
    }
    text = signature({"text": STRINGS})
    rows = as_objects([text_example(b"a"), text_example(b"b")])
    parsed = rows_for(Batch(rows, 2), text, {"text": PlainText()}, [ExampleParser({"text": TEXT})])
    (bound,) = bind_encoded(parsed, text, {"text": PlainText()})
    assert bound.arrays["text"].tolist() == [b"a", b"b"]


def text_example(value):
    feature = {"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


@pytest.mark.parametrize(
    ("x", "wanted", "consumers", "parsers"),
    [
        pytest.param(
            AGES, {"inputs": STRINGS}, {"inputs": PARSER}, [PARSER], id="it reads Examples"
        ),
        pytest.param(
            AGES,
            {"inputs": STRINGS},
            {"inputs": Base64(PARSER)},
            [PARSER],
            id="it reads Examples in base64",
        ),
        pytest.param(AGES, {"inputs": VECTOR}, {}, [PARSER], id="no feature of that name"),
        pytest.param(
            AGES, {"age": VECTOR, "more": VECTOR}, {}, [PARSER], id="one feature is missing"
        ),
        pytest.param(AGES, {"age": VECTOR}, {}, [], id="no parser"),
        pytest.param({"age": np.ones(2)}, {"age": VECTOR}, {}, [PARSER], id="features already"),
        pytest.param(
            WORDS,
            {"text": STRINGS},
            {"text": PlainText()},
            [ExampleParser({"text": TEXT})],
            id="plain text",
        ),
    ],
)
def test_rows_stay_as_they_are_where_they_are_what_the_signature_takes(
    x, wanted, consumers, parsers
):
    batch = Batch(x, 2)
    assert rows_for(batch, signature(wanted), consumers, parsers) is batch


def test_rows_that_should_be_examples_for_numbers_and_are_not_are_refused():
    with pytest.raises(DataError, match=r"Row 0 \(4 bytes\) is not a serialized tf.Example"):
        rows_for(Batch(WORDS, 3), signature({"age": VECTOR}), {}, [PARSER])
