"""Made-up rows have the dtypes, shapes and formats that the signature and its graph need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.binding.bind import BoundBatch
from keras_warmup.binding.synthesize import FREE_DIM, synthesize_rows
from keras_warmup.errors import SignatureError
from keras_warmup.options import DEFAULT_BATCH_SIZE
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import build_log
from keras_warmup.savedmodel.string_formats import (
    Base64,
    ExampleParser,
    FeatureSpec,
    ImageDecoder,
    PlainText,
)
from tests.builders import make_signature

DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool", "string"]
DTYPES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def make(inputs: Any, string_formats: Any = None, seed: int = 0, defaults: Any = ()) -> BoundBatch:
    return synthesize_rows(make_signature(inputs, defaults=defaults), string_formats or {}, seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_requests_is_made_and_survives_the_wire(dtype: str) -> None:
    bound = make({"a": (dtype, (None, 3))})
    array = bound.arrays["a"]
    assert array.shape == (DEFAULT_BATCH_SIZE, 3)
    assert array.dtype == (object if dtype == "string" else tf.as_dtype(dtype).as_numpy_dtype)
    request = PlannedRequest("s", "predict", (bound,), None, (), ("s",))
    proto = build_log(request).predict_log.request.inputs["a"]
    assert tf.as_dtype(proto.dtype).name == dtype
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)


def test_floats_are_in_the_unit_interval_and_integers_are_zero() -> None:
    bound = make(
        {
            "f": ("float32", (None, 50)),
            "i": ("int64", (None, 5)),
            "b": ("bool", (None,)),
            "s": ("string", (None,)),
        }
    )
    assert 0 <= bound.arrays["f"].min() < bound.arrays["f"].max() < 1
    assert not bound.arrays["i"].any() and not bound.arrays["b"].any()
    assert bound.arrays["s"].tolist() == [b""] * DEFAULT_BATCH_SIZE
    assert (bound.source, bound.x, bound.size) == ("synthetic", None, DEFAULT_BATCH_SIZE)


def test_the_seed_decides_the_floats() -> None:
    inputs = {"f": ("float32", (None, 4))}
    np.testing.assert_array_equal(
        make(inputs, seed=3).arrays["f"], make(inputs, seed=3).arrays["f"]
    )
    assert not np.array_equal(make(inputs, seed=3).arrays["f"], make(inputs, seed=4).arrays["f"])


def test_free_dimensions_besides_the_batch_are_large_enough_for_convolutions() -> None:
    assert make({"image": ("float32", (None, None, None, 3))}).arrays["image"].shape == (
        DEFAULT_BATCH_SIZE,
        FREE_DIM,
        FREE_DIM,
        3,
    )


@pytest.mark.parametrize("rows", [1, 5])
def test_a_batch_that_one_input_fixes_holds_for_all(rows: Any) -> None:
    bound = make({"a": ("float32", (rows, 4)), "b": ("int64", (None,)), "t": ("float32", ())})
    assert {name: array.shape for name, array in bound.arrays.items()} == {
        "a": (rows, 4),
        "b": (rows,),
        "t": (),
    }
    assert (bound.size, bound.row_inputs) == (rows, frozenset({"a", "b"}))


def test_scalars_have_no_batch_and_defaults_are_left_to_the_server() -> None:
    bound = make({"t": ("float32", ()), "d": ("float32", (None,))}, defaults=["d"])
    assert (set(bound.arrays), bound.size, bound.row_inputs) == ({"t"}, 1, frozenset())


SPEC = {
    "age": FeatureSpec("dense", "float32", (1,)),
    "tags": FeatureSpec("sparse", "string"),
    "ids": FeatureSpec("ragged", "int64", row_splits="int32"),
    "city": FeatureSpec("dense", "string", (), (b"?",)),
}


@pytest.mark.parametrize("shape", [(None,), (3,), None], ids=["vector", "fixed", "unknown rank"])
def test_examples_hold_every_feature_of_the_parser(shape: Any) -> None:
    bound = make({"examples": ("string", shape)}, {"examples": ExampleParser(SPEC)})
    rows = bound.arrays["examples"]
    assert len(rows) == bound.size == (3 if shape == (3,) else DEFAULT_BATCH_SIZE)
    assert set(tf.train.Example.FromString(rows[0]).features.feature) == set(SPEC)


def test_images_are_files_that_decode() -> None:
    bound = make({"image": ("string", (None,))}, {"image": ImageDecoder(("png", "jpeg"), 3)})
    assert [tf.io.decode_image(row).shape for row in bound.arrays["image"]] == [
        (FREE_DIM, FREE_DIM, 3)
    ] * 2


def test_images_are_in_base64_if_the_graph_decodes_that_first() -> None:
    bound = make({"image": ("string", (None,))}, {"image": Base64(ImageDecoder(("jpeg",), 1))})
    decoded = tf.io.decode_base64(bound.arrays["image"].tolist())
    assert [tf.io.decode_jpeg(row).shape for row in decoded] == [(FREE_DIM, FREE_DIM, 1)] * 2


def test_a_scalar_string_is_one_image() -> None:
    for string_format in (ImageDecoder(("jpeg",), 3), Base64(ImageDecoder(("jpeg",), 3))):
        bound = make({"image": ("string", ())}, {"image": string_format})
        row = bound.arrays["image"].item()
        if isinstance(string_format, Base64):
            row = tf.io.decode_base64(row)
        assert tf.io.decode_jpeg(row).shape == (FREE_DIM, FREE_DIM, 3)
        assert (bound.size, bound.row_inputs) == (1, frozenset())


def test_examples_hold_images_where_the_graph_decodes_a_feature() -> None:
    image = ImageDecoder(("png",), 1, "uint16")
    spec = {
        "photo": FeatureSpec("dense", "string", (), image=image),
        "caption": FeatureSpec("dense", "string", ()),
    }
    bound = make({"examples": ("string", (None,))}, {"examples": ExampleParser(spec)})
    for row in bound.arrays["examples"]:
        features = tf.train.Example.FromString(row).features.feature
        decoded = tf.io.decode_png(features["photo"].bytes_list.value[0], dtype=tf.uint16)
        assert decoded.shape == (FREE_DIM, FREE_DIM, 1)
        assert list(features["caption"].bytes_list.value) == [b""]


def test_other_strings_are_empty() -> None:
    assert make({"text": ("string", (None,))}, {"text": PlainText()}).arrays["text"].tolist() == [
        b"",
        b"",
    ]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            ("float32", None),
            "Cannot make up rows for signature 'serving_default': input 'a' (float32) has an "
            "unknown rank. Pass data=.",
        ),
        (
            ("resource", (None,)),
            "Signature 'serving_default' takes a resource as 'a', which requests cannot have.",
        ),
        (
            ("variant", ()),
            "Signature 'serving_default' takes a variant as 'a', which requests cannot have.",
        ),
    ],
)
def test_inputs_of_unknown_rank_or_without_values_are_refused(spec: Any, text: str) -> None:
    with pytest.raises(SignatureError) as error:
        make({"a": spec})
    assert str(error.value) == text
