from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.binding.encoders import encode_images
from keras_warmup.errors import BindingError
from keras_warmup.savedmodel.string_formats import ImageDecoder

CURE = "Pass transform= to give the encoded files yourself."


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)


@pytest.mark.parametrize("formats", [("png",), ("png", "jpeg", "gif", "bmp")])
def test_png_is_lossless(formats, pixels):
    files = encode_images(pixels, ImageDecoder(formats, 3))
    assert files.shape == (2,) and files.dtype == object
    np.testing.assert_array_equal(
        np.stack([tf.io.decode_png(file).numpy() for file in files]), pixels
    )


def test_sixteen_bits_stay_sixteen_bits():
    pixels = np.array([[[[1], [65535]]]], np.uint16)
    (file,) = encode_images(pixels, ImageDecoder(("png",), 1, "uint16"))
    np.testing.assert_array_equal(tf.io.decode_png(file, dtype=tf.uint16).numpy(), pixels[0])


def test_a_jpeg_decoder_gets_jpeg_files_of_the_same_size(pixels):
    files = encode_images(pixels, ImageDecoder(("jpeg",), 3))
    assert all(file.startswith(b"\xff\xd8\xff") for file in files)
    assert [tf.io.decode_jpeg(file).shape.as_list() for file in files] == [[5, 7, 3], [5, 7, 3]]


@pytest.mark.parametrize(
    ("images", "consumer", "text"),
    [
        (
            np.zeros((2, 4, 4, 3), np.float32),
            ImageDecoder(("jpeg",)),
            "Cannot encode images for encoded image (jpeg): expected uint8 [n, height, width, channels], got float32 "
            "[2, 4, 4, 3] (preprocessed pixels cannot be turned back into files). Give the uint8 images, before "
            f"preprocessing. {CURE}",
        ),
        (
            np.zeros((2, 4, 4, 3), np.int64),
            ImageDecoder(("png",), 3, "uint16"),
            "Cannot encode images for encoded image (png): expected uint8 or uint16 [n, height, width, channels], got "
            f"int64 [2, 4, 4, 3] (dtype differs). Give the uint8 images, before preprocessing. {CURE}",
        ),
        (
            np.zeros((4, 4, 3), np.uint8),
            ImageDecoder(("png",)),
            f"Cannot encode images for encoded image (png): expected [n, height, width, channels], got uint8 [4, 4, 3]. {CURE}",
        ),
        (
            np.zeros((1, 4, 4, 2), np.uint8),
            ImageDecoder(("jpeg",)),
            f"Cannot encode images for encoded image (jpeg): expected [1, 3] channels, got uint8 [1, 4, 4, 2]. {CURE}",
        ),
        (
            np.zeros((1, 4, 4, 3), np.uint8),
            ImageDecoder(("gif",)),
            f"Cannot encode images for encoded image (gif): only PNG and JPEG can be written. {CURE}",
        ),
    ],
    ids=["float", "int64", "rank", "channels", "gif"],
)  # fmt: skip
def test_refuses_what_cannot_become_a_file(images, consumer, text):
    with pytest.raises(BindingError) as error:
        encode_images(images, consumer)
    assert str(error.value) == text
