from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.binding.encoders import decode_base64, encode_base64, encode_rows
from keras_warmup.errors import BindingError
from keras_warmup.savedmodel.string_formats import (
    Base64,
    CsvDecoder,
    ImageDecoder,
    PlainText,
    RawDecoder,
    TensorParser,
    Unknown,
)

NUMBERS = np.array([[1, -2, 3], [4, 5, 6]], np.int16)


def test_strings_pass_through_as_bytes():
    rows = np.array(["ß", b"\x00\xff\x00"], dtype=object)
    for consumer in (
        PlainText(),
        Base64(ImageDecoder(("png",))),
        TensorParser("int16"),
        Unknown(""),
    ):
        assert encode_rows(rows, consumer).tolist() == ["ß".encode(), b"\x00\xff\x00"]
    assert encode_rows(np.array([["a"], ["b"]]), PlainText()).tolist() == [[b"a"], [b"b"]]


def test_tensors_are_serialized_row_by_row():
    rows = encode_rows(NUMBERS, TensorParser("int16"))
    assert [tf.io.parse_tensor(row, tf.int16).numpy().tolist() for row in rows] == NUMBERS.tolist()


@pytest.mark.parametrize("little_endian", [True, False])
@pytest.mark.parametrize("stored", ["<i2", ">i2"])
def test_raw_bytes_decode_to_the_numbers(little_endian, stored):
    rows = encode_rows(NUMBERS.astype(stored), RawDecoder("int16", little_endian))
    decoded = tf.io.decode_raw(tf.constant(rows.tolist()), tf.int16, little_endian)
    np.testing.assert_array_equal(decoded, NUMBERS)


def test_bfloat16_rows_are_serialized():
    values = tf.constant([[1.5], [2.5]], tf.bfloat16).numpy()
    rows = encode_rows(values, TensorParser("bfloat16"))
    assert [float(tf.io.parse_tensor(row, tf.bfloat16)[0]) for row in rows] == [1.5, 2.5]


def test_base64_wraps_what_the_inner_decoder_reads():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    rows = tf.io.decode_base64(
        tf.constant(encode_rows(pixels, Base64(ImageDecoder(("png",), 3))).tolist())
    )
    np.testing.assert_array_equal(np.stack([tf.io.decode_png(row).numpy() for row in rows]), pixels)


@pytest.mark.parametrize(
    ("rows", "consumer", "text"),
    [
        (
            NUMBERS,
            TensorParser("int32"),
            "Cannot encode int16 [2, 3] for a string input that takes serialized tensor of int32: expected int32 [n, ...]. "
            "Cast the data, or pass transform=.",
        ),
        (
            NUMBERS,
            PlainText(),
            "Cannot encode int16 [2, 3] for a string input that takes plain text. Give the bytes a client would send, or "
            "pass transform=.",
        ),
        (
            NUMBERS,
            Base64(CsvDecoder(("int32",))),
            "Cannot encode int16 [2, 3] for a string input that takes CSV with 1 column. Give the bytes a client would "
            "send, or pass transform=.",
        ),
        (
            np.array([b"a", 1.5], dtype=object),
            PlainText(),
            "Cannot feed float among strings (string [2]). Give the bytes a client would send, or pass transform=.",
        ),
    ],
    ids=["dtype", "text", "csv", "mixed"],
)
def test_numbers_that_the_input_does_not_take_are_refused(rows, consumer, text):
    with pytest.raises(BindingError) as error:
        encode_rows(rows, consumer)
    assert str(error.value) == text


def test_base64_is_that_of_tensorflow_both_ways():
    rows = np.array([b"", b"\x00", b"\xff\xfe", b"abc", bytes(range(256))], dtype=object)
    encoded = encode_base64(rows)
    assert encoded.tolist() == tf.io.encode_base64(rows.tolist()).numpy().tolist()
    assert decode_base64(encoded).tolist() == rows.tolist()
    padded = tf.io.encode_base64(rows.tolist(), pad=True).numpy()
    assert decode_base64(padded).tolist() == rows.tolist()


@pytest.mark.parametrize("row", [b"a", b"ab+/", b"\n\x05hello", b"a b c"])
def test_what_is_no_web_safe_base64_decodes_to_nothing(row):
    assert decode_base64(np.array([b"YWJj", row], dtype=object)) is None
