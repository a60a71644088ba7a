"""String inputs get the bytes that their graph reads, also in SavedModels of other projects."""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.binding.encode import bind_encoded, parse_if_needed
from keras_warmup.data.batch import Batch, as_objects
from keras_warmup.errors import BindingError, DataError
from keras_warmup.savedmodel.string_formats import (
    Base64,
    ExampleParser,
    FeatureSpec,
    ImageDecoder,
    PlainText,
    StringFormat,
)
from keras_warmup.serving.replay import open_session
from tests.builders import make_signature

ALL_KINDS = ["predict", "classify", "regress", "multi_inference"]


def copy_of(source: Any, target: Any) -> pathlib.Path:
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for root, _, _ in os.walk(target):
        os.chmod(root, 0o755)
    return target


@pytest.fixture
def taxi(saved_models: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return copy_of(saved_models / "chicago_taxi_estimator" / "1", tmp_path / "taxi" / "1")


@pytest.fixture
def half_plus_two(saved_models: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return copy_of(saved_models / "half_plus_two_tf1" / "1", tmp_path / "half_plus_two" / "1")


@pytest.fixture
def taxi_examples(saved_models: pathlib.Path) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(str(saved_models / "chicago_taxi_examples.tfrecord.gz"), "GZIP")


def warmed_by(report: Any) -> dict[str, tuple[str, str]]:
    return {
        key: (record.signature_key, record.kind)
        for record in report.records
        for key in record.warms
    }


def test_taxi_is_warm_from_its_examples_with_one_record_for_shared_tensors(
    taxi: pathlib.Path, taxi_examples: tf.data.Dataset
) -> None:
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


def test_taxi_gets_each_kind_asked_for(taxi: pathlib.Path, taxi_examples: tf.data.Dataset) -> None:
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


def test_half_plus_two_is_warm_and_the_unreachable_signature_is_named(
    half_plus_two: pathlib.Path,
) -> None:
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
        "no regress request can reach it: Regress feeds serialized tf.Examples (string), and its "
        "input 'inputs' is float32. "
    )
    assert kw.verify(half_plus_two).ok


def test_half_plus_two_is_warm_from_features_too(half_plus_two: pathlib.Path) -> None:
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


def test_made_up_examples_run(taxi: pathlib.Path) -> None:
    with pytest.warns(UserWarning, match="hold made-up rows"):
        report = kw.add_warmup(taxi)
    assert {record.source for record in report.records} == {"synthetic"}
    assert kw.verify(taxi).ok


def test_examples_of_another_model_are_refused_without_their_values(taxi: pathlib.Path) -> None:
    with pytest.raises(DataError, match="Row 0 is GZIP-compressed"):
        kw.add_warmup(taxi, [b"\x1f\x8bsecret"])
    assert not (taxi / "assets.extra").exists()


def example(**features: Any) -> bytes:
    feature = {
        key: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        for key, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


class Strings(tf.Module):
    """Endpoints whose one input is a vector of strings of some format."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="images")])
    def image(self, images: np.ndarray[Any, Any]) -> Any:
        def decode(one: Any) -> Any:
            return tf.image.resize(tf.io.decode_image(one, 3, expand_animations=False), [4, 4])

        return {"y": tf.map_fn(decode, images, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="encoded")])
    def base64_image(self, encoded: Any) -> Any:
        def decode(one: Any) -> Any:
            return tf.image.resize(tf.io.decode_png(tf.io.decode_base64(one), 3), [4, 4])

        return {"y": tf.map_fn(decode, encoded, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="tensors")])
    def tensor(self, tensors: Any) -> Any:
        return {
            "y": tf.map_fn(
                lambda one: tf.ensure_shape(tf.io.parse_tensor(one, tf.float32), [3]),
                tensors,
                tf.float32,
            )
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="sequences")])
    def sequence(self, sequences: Any) -> Any:
        _, parsed, _ = tf.io.parse_sequence_example(
            sequences, sequence_features={"x": tf.io.VarLenFeature(tf.float32)}
        )
        return {"y": tf.sparse.to_dense(parsed["x"])}


IMAGES = np.arange(2 * 6 * 6 * 3, dtype="uint8").reshape(2, 6, 6, 3)


@pytest.mark.parametrize(
    ("endpoint", "data"),
    [("image", IMAGES), ("base64_image", IMAGES), ("tensor", np.ones((2, 3), "float32"))],
)
def test_numbers_become_the_bytes_the_graph_decodes(
    endpoint: str, data: Any, tmp_path: pathlib.Path
) -> None:
    module = Strings()
    report = kw.save(module, tmp_path / "1", signatures=getattr(module, endpoint), data=data)
    assert [record.source for record in report.records] == ["data"]
    with open_session(tmp_path / "1") as session:
        (log,) = kw.read_records(tmp_path / "1")
        got = session.replay(log).outputs["y"]
    wanted = tf.image.resize(data, [4, 4]).numpy() if endpoint != "tensor" else data
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_float_images_are_refused_with_the_cure(tmp_path: pathlib.Path) -> None:
    module = Strings()
    cure = r"Pass warmup=\{'transform': \.\.\.\} to give the encoded files yourself"
    with pytest.raises(BindingError, match=cure):
        kw.save(module, tmp_path / "1", signatures=module.image, data=IMAGES / np.float32(255))


def test_sequence_examples_are_refused(tmp_path: pathlib.Path) -> None:
    module = Strings()
    with pytest.raises(BindingError) as error:
        kw.save(module, tmp_path / "1", signatures=module.sequence, data=np.ones((2, 3), "float32"))
    assert str(error.value) == (
        "Cannot bind features to input 'sequences': it takes serialized tf.SequenceExamples, which "
        "cannot be built from a batch of features. Give the serialized bytes as data, or pass "
        "warmup={'transform': ...}."
    )


def test_inspect_shows_string_formats_and_possible_kinds(
    taxi: pathlib.Path,
) -> None:
    by_key = {one.signature.key: one for one in kw.inspect(taxi).signatures}
    plain = by_key["predict"].to_dict()
    assert plain["string_formats"]["examples"]["reads"].startswith("tf.Example with ")
    assert plain["kinds"]["predict"] is None
    assert (
        plain["kinds"]["classify"]
        == "Classify feeds an input named 'inputs', and its input is named 'examples'"
    )
    assert by_key["regression"].kinds["regress"] is None


STRINGS, VECTOR = ("string", (None,)), ("float32", (None,))
PNG = ImageDecoder(("png",), 3)


def decoded(rows: Any) -> np.ndarray[Any, Any]:
    return np.stack([tf.io.decode_png(row).numpy() for row in rows])


def test_the_structure_distinguishes_an_encoded_input_from_another() -> None:
    wanted = make_signature(
        {"image_bytes": STRINGS, "numbers": VECTOR}, structure=("image_bytes", "numbers")
    )
    numbers = np.array([1, 2], "float32")
    (bound,) = bind_encoded(Batch([IMAGES, numbers], 2), wanted, {"image_bytes": PNG})
    np.testing.assert_array_equal(decoded(bound.arrays["image_bytes"]), IMAGES)
    assert bound.arrays["numbers"].tolist() == [1, 2]
    assert (bound.ignored, bound.row_inputs) == ((), frozenset({"image_bytes", "numbers"}))
    with pytest.raises(BindingError, match="does not store their order"):
        bind_encoded(
            Batch([IMAGES, numbers], 2),
            make_signature({"image_bytes": STRINGS, "numbers": VECTOR}),
            {"image_bytes": PNG},
        )


def test_ragged_rows_beside_an_encoded_input_are_split_and_stay_with_their_rows() -> None:
    images = np.arange(3, dtype="uint8")[:, None, None, None] * np.ones((3, 2, 2, 3), "uint8")
    ragged = tf.ragged.constant([[1.0], [2.0, 3.0], [4.0]])
    wanted = make_signature({"image": STRINGS, "r": ("float32", (None, None))})
    first, second = bind_encoded(Batch({"image": images, "r": ragged}, 3), wanted, {"image": PNG})
    assert [decoded(one.arrays["image"])[:, 0, 0, 0].tolist() for one in (first, second)] == [
        [0, 2],
        [1],
    ]
    assert [one.arrays["r"].tolist() for one in (first, second)] == [[[1.0], [4.0]], [[2.0, 3.0]]]
    assert first.x["image"].shape == (2, 2, 2, 3)


def test_ragged_features_of_an_example_are_not_split() -> None:
    spec = {"tags": FeatureSpec("sparse", "int64"), "age": FeatureSpec("dense", "float32", ())}
    wanted = make_signature(
        {"examples": STRINGS, "weight": VECTOR}, structure=("examples", "weight")
    )
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


def test_a_leaf_that_became_examples_is_not_sent_a_second_time() -> None:
    wanted = make_signature({"examples": STRINGS, "weight": VECTOR})
    with pytest.raises(BindingError, match="missing inputs \\['examples', 'weight'\\]"):
        bind_encoded(
            Batch(np.ones(3, "float32"), 3), wanted, {"examples": ExampleParser({"age": AGE})}
        )


AGE, TEXT = FeatureSpec("dense", "float32", ()), FeatureSpec("dense", "string", ())
WORDS = as_objects([b"good", b"", b"\xc3\xa9t\xc3\xa9"])


def examples_of(rows: Any, spec: Any) -> dict[str, Any]:
    return {key: value.numpy().tolist() for key, value in tf.io.parse_example(rows, spec).items()}


@pytest.mark.parametrize(
    "x",
    [WORDS, {"inputs": WORDS}, {"text": WORDS}, [WORDS]],
    ids=["bare", "input", "feature", "list"],
)
def test_text_is_the_one_feature_of_a_parser(x: Any) -> None:
    (bound,) = bind_encoded(
        Batch(x, 3), make_signature({"inputs": STRINGS}), {"inputs": ExampleParser({"text": TEXT})}
    )
    parsed = examples_of(bound.arrays["inputs"], {"text": tf.io.FixedLenFeature([], tf.string)})
    assert parsed["text"] == WORDS.tolist()


def test_examples_of_one_feature_stay_as_they_are() -> None:
    rows = as_objects([example(age=1.0), example(age=2.0)])
    (bound,) = bind_encoded(
        Batch(rows, 2), make_signature({"inputs": STRINGS}), {"inputs": ExampleParser({"age": AGE})}
    )
    assert bound.arrays["inputs"].tolist() == rows.tolist()
    with pytest.raises(BindingError, match=r"feature 'text' .* is required, but missing"):
        bind_encoded(
            Batch(rows, 2),
            make_signature({"inputs": STRINGS}),
            {"inputs": ExampleParser({"text": TEXT})},
        )


@pytest.mark.parametrize(
    "spec", [{"text": TEXT, "age": AGE}, {"age": AGE}], ids=["several features", "a number"]
)
def test_text_for_another_parser_fails_as_a_row_that_is_not_an_example(spec: Any) -> None:
    with pytest.raises(DataError) as error:
        bind_encoded(
            Batch(WORDS, 3), make_signature({"inputs": STRINGS}), {"inputs": ExampleParser(spec)}
        )
    assert str(error.value) == "Row 0 (4 bytes) is not a serialized tf.Example."


def test_examples_in_base64_are_encoded_once() -> None:
    rows = as_objects([example(age=1.0), example(age=2.0)])
    sent = tf.io.encode_base64(rows.tolist()).numpy().tolist()
    wanted, string_formats = (
        make_signature({"inputs": STRINGS}),
        {"inputs": Base64(ExampleParser({"age": AGE}))},
    )
    for x in (rows, as_objects(sent), {"age": np.array([1.0, 2.0], "float32")}):
        (bound,) = bind_encoded(Batch(x, 2), wanted, string_formats)
        assert bound.arrays["inputs"].tolist() == sent


PARSER = ExampleParser({"age": AGE, "user-id": FeatureSpec("dense", "int64", (), (7,))})
AGES = as_objects([example(age=1.0), example(age=2.0)])


def test_rows_are_parsed_for_a_signature_that_takes_the_features_by_name() -> None:
    parsers = [ExampleParser({"other": AGE}), PARSER]
    raw = parse_if_needed(
        Batch(AGES, 2), make_signature({"age": VECTOR, "user_id": ("int64", (None,))}), {}, parsers
    )
    assert {key: value.tolist() for key, value in raw.x.items()} == {
        "age": [1, 2],
        "user-id": [7, 7],
    }
    text = make_signature({"text": STRINGS})
    rows = as_objects([text_example(b"a"), text_example(b"b")])
    parsed = parse_if_needed(
        Batch(rows, 2), text, {"text": PlainText()}, [ExampleParser({"text": TEXT})]
    )
    (bound,) = bind_encoded(parsed, text, {"text": PlainText()})
    assert bound.arrays["text"].tolist() == [b"a", b"b"]


def text_example(value: Any) -> bytes:
    feature = {"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


@pytest.mark.parametrize(
    ("x", "wanted", "string_formats", "parsers"),
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
def test_rows_that_the_signature_takes_are_not_parsed(
    x: Any,
    wanted: Any,
    string_formats: dict[str, StringFormat],
    parsers: list[ExampleParser],
) -> None:
    batch = Batch(x, 2)
    assert parse_if_needed(batch, make_signature(wanted), string_formats, parsers) is batch


def test_strings_that_are_not_examples_are_refused_for_numeric_inputs() -> None:
    with pytest.raises(DataError, match=r"Row 0 \(4 bytes\) is not a serialized tf.Example"):
        parse_if_needed(Batch(WORDS, 3), make_signature({"age": VECTOR}), {}, [PARSER])
