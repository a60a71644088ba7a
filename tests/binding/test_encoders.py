"""Encoded rows decode to what they were made from; rows that cannot be encoded are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.binding.encoders import (
    decode_base64,
    encode_base64,
    encode_images,
    encode_rows,
)
from keras_warmup.errors import BindingError
from keras_warmup.savedmodel.string_formats import (
    Base64,
    CsvDecoder,
    ImageDecoder,
    PlainText,
    RawDecoder,
    StringFormat,
    TensorParser,
    Unknown,
)

NUMBERS = np.array([[1, -2, 3], [4, 5, 6]], np.int16)


def test_strings_pass_through_as_bytes() -> None:
    rows = np.array(["ß", b"\x00\xff\x00"], dtype=object)
    for string_format in (
        PlainText(),
        Base64(ImageDecoder(("png",))),
        TensorParser("int16"),
        Unknown(""),
    ):
        assert encode_rows(rows, string_format).tolist() == ["ß".encode(), b"\x00\xff\x00"]
    assert encode_rows(np.array([["a"], ["b"]]), PlainText()).tolist() == [[b"a"], [b"b"]]


def test_tensors_are_serialized_row_by_row() -> None:
    rows = encode_rows(NUMBERS, TensorParser("int16"))
    assert [tf.io.parse_tensor(row, tf.int16).numpy().tolist() for row in rows] == NUMBERS.tolist()


@pytest.mark.parametrize("little_endian", [True, False])
@pytest.mark.parametrize("stored", ["<i2", ">i2"])
def test_raw_bytes_decode_to_the_numbers(little_endian: bool, stored: str) -> None:
    rows = encode_rows(NUMBERS.astype(stored), RawDecoder("int16", little_endian))
    decoded = tf.io.decode_raw(tf.constant(rows.tolist()), tf.int16, little_endian)
    np.testing.assert_array_equal(decoded, NUMBERS)


def test_bfloat16_rows_are_serialized() -> None:
    values = tf.constant([[1.5], [2.5]], tf.bfloat16).numpy()
    rows = encode_rows(values, TensorParser("bfloat16"))
    assert [float(tf.io.parse_tensor(row, tf.bfloat16)[0]) for row in rows] == [1.5, 2.5]


def test_base64_holds_rows_encoded_for_the_inner_decoder() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    rows = tf.io.decode_base64(
        tf.constant(encode_rows(pixels, Base64(ImageDecoder(("png",), 3))).tolist())
    )
    np.testing.assert_array_equal(np.stack([tf.io.decode_png(row).numpy() for row in rows]), pixels)


@pytest.mark.parametrize(
    ("rows", "string_format", "text"),
    [
        (
            NUMBERS,
            TensorParser("int32"),
            "Cannot encode int16 [2, 3] for a string input that takes serialized tensor of int32: "
            "expected int32 [n, ...]. Cast the data, or pass warmup={'transform': ...}.",
        ),
        (
            NUMBERS,
            PlainText(),
            "Cannot encode int16 [2, 3] for a string input that takes plain text. Give the bytes a "
            "client would send, or pass warmup={'transform': ...}.",
        ),
        (
            NUMBERS,
            Base64(CsvDecoder(("int32",))),
            "Cannot encode int16 [2, 3] for a string input that takes CSV with 1 column. Give the "
            "bytes a client would send, or pass warmup={'transform': ...}.",
        ),
        (
            np.array([b"a", 1.5], dtype=object),
            PlainText(),
            "Cannot encode strings mixed with float (string [2]). Give the bytes a client would "
            "send, or pass warmup={'transform': ...}.",
        ),
    ],
    ids=["dtype", "text", "csv", "mixed"],
)
def test_numbers_that_the_input_does_not_take_are_refused(
    rows: Any, string_format: StringFormat, text: str
) -> None:
    with pytest.raises(BindingError) as error:
        encode_rows(rows, string_format)
    assert str(error.value) == text


def test_base64_equals_that_of_tensorflow() -> None:
    rows = np.array([b"", b"\x00", b"\xff\xfe", b"abc", bytes(range(256))], dtype=object)
    encoded = encode_base64(rows)
    assert encoded.tolist() == tf.io.encode_base64(rows.tolist()).numpy().tolist()
    padded = tf.io.encode_base64(rows.tolist(), pad=True).numpy()
    for sent in (encoded, padded):
        decoded = decode_base64(sent)
        assert decoded is not None and decoded.tolist() == rows.tolist()


@pytest.mark.parametrize("row", [b"a", b"ab+/", b"\n\x05hello", b"a b c"])
def test_other_bytes_than_web_safe_base64_are_not_decoded(row: Any) -> None:
    assert decode_base64(np.array([b"YWJj", row], dtype=object)) is None


IMAGE_CURE = "Pass warmup={'transform': ...} to give the encoded files yourself."


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)


@pytest.mark.parametrize("formats", [("png",), ("png", "jpeg", "gif", "bmp")])
def test_png_is_lossless(formats: Any, pixels: np.ndarray[Any, Any]) -> None:
    files = encode_images(pixels, ImageDecoder(formats, 3))
    assert files.shape == (2,) and files.dtype == object
    np.testing.assert_array_equal(
        np.stack([tf.io.decode_png(file).numpy() for file in files]), pixels
    )


def test_sixteen_bits_stay_sixteen_bits() -> None:
    pixels = np.array([[[[1], [65535]]]], np.uint16)
    (file,) = encode_images(pixels, ImageDecoder(("png",), 1, "uint16"))
    np.testing.assert_array_equal(tf.io.decode_png(file, dtype=tf.uint16).numpy(), pixels[0])


def test_a_jpeg_decoder_gets_jpeg_files_of_the_same_size(pixels: np.ndarray[Any, Any]) -> None:
    files = encode_images(pixels, ImageDecoder(("jpeg",), 3))
    assert all(file.startswith(b"\xff\xd8\xff") for file in files)
    assert [tf.io.decode_jpeg(file).shape.as_list() for file in files] == [[5, 7, 3], [5, 7, 3]]


@pytest.mark.parametrize(
    ("images", "decoder", "text"),
    [
        (
            np.zeros((2, 4, 4, 3), np.float32),
            ImageDecoder(("jpeg",)),
            "Cannot encode images for encoded image (jpeg): expected uint8 [n, height, width, "
            "channels], got float32 [2, 4, 4, 3] (preprocessed pixels cannot be turned back into "
            f"files). Give the uint8 images, before preprocessing. {IMAGE_CURE}",
        ),
        (
            np.zeros((2, 4, 4, 3), np.int64),
            ImageDecoder(("png",), 3, "uint16"),
            "Cannot encode images for encoded image (png): expected uint8 or uint16 [n, height, "
            "width, channels], got int64 [2, 4, 4, 3] (dtype differs). Give the uint8 images, "
            f"before preprocessing. {IMAGE_CURE}",
        ),
        (
            np.zeros((4, 4, 3), np.uint8),
            ImageDecoder(("png",)),
            "Cannot encode images for encoded image (png): expected [n, height, width, channels], "
            f"got uint8 [4, 4, 3]. {IMAGE_CURE}",
        ),
        (
            np.zeros((1, 4, 4, 2), np.uint8),
            ImageDecoder(("jpeg",)),
            "Cannot encode images for encoded image (jpeg): expected [1, 3] channels, got uint8 "
            f"[1, 4, 4, 2]. {IMAGE_CURE}",
        ),
        (
            np.zeros((1, 4, 4, 3), np.uint8),
            ImageDecoder(("gif",)),
            "Cannot encode images for encoded image (gif): only PNG and JPEG can be written. "
            f"{IMAGE_CURE}",
        ),
    ],
    ids=["float", "int64", "rank", "channels", "gif"],
)  # fmt: skip
def test_images_that_cannot_be_encoded_are_refused(
    images: np.ndarray[Any, Any], decoder: ImageDecoder, text: str
) -> None:
    with pytest.raises(BindingError) as error:
        encode_images(images, decoder)
    assert str(error.value) == text
