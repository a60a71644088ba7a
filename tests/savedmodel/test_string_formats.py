"""Tests of `keras_warmup.savedmodel.string_formats`."""

from __future__ import annotations

import pytest

from keras_warmup.savedmodel.string_formats import (
    Base64,
    Compressed,
    CsvDecoder,
    ExampleParser,
    FeatureSpec,
    ImageDecoder,
    PlainText,
    RawDecoder,
    SequenceExampleParser,
    StringFormat,
    TensorParser,
    Unknown,
    describe_string_format,
)

SPARSE = FeatureSpec("sparse", "string")


@pytest.mark.parametrize(
    ("string_format", "text"),
    [
        (ExampleParser({"a": SPARSE, "b": SPARSE}), "tf.Example with 2 features"),
        (ExampleParser({"a": SPARSE}), "tf.Example with 1 feature"),
        (SequenceExampleParser(), "tf.SequenceExample"),
        (Base64(ImageDecoder(("png", "jpeg"))), "base64 of encoded image (png, jpeg)"),
        (TensorParser("int64"), "serialized tensor of int64"),
        (RawDecoder("uint8"), "raw bytes of uint8"),
        (CsvDecoder(("int32", "string")), "CSV with 2 columns"),
        (CsvDecoder(("int32",)), "CSV with 1 column"),
        (PlainText(), "plain text"),
        (Compressed("ZLIB"), "compressed bytes (ZLIB)"),
        (Compressed(""), "compressed bytes (no compression)"),
        (Unknown("no op reads it"), "unknown: no op reads it"),
    ],
)
def test_formats_are_described_in_a_few_words(string_format: StringFormat, text: str) -> None:
    assert describe_string_format(string_format) == text


@pytest.mark.parametrize(
    ("spec", "is_sequence", "required"),
    [
        (FeatureSpec("dense", "float32", (2,)), False, True),
        (FeatureSpec("dense", "float32", ()), False, True),
        (FeatureSpec("dense", "float32", (2,), (1.0, 2.0)), False, False),
        (FeatureSpec("dense", "float32", (None, 2)), True, False),
        (FeatureSpec("sparse", "float32"), False, False),
        (FeatureSpec("ragged", "int64", row_splits="int32"), False, False),
    ],
)
def test_features_that_a_parser_requires(
    spec: FeatureSpec, is_sequence: bool, required: bool
) -> None:
    assert (spec.is_sequence, spec.required) == (is_sequence, required)
