"""Encodes arrays as the bytes that a string input reads; `examples.py` builds tf.Examples."""

from __future__ import annotations

import base64
import binascii

import numpy as np
import tensorflow as tf

from keras_warmup.binding.example_rows import Array, split_rows
from keras_warmup.data.batch import as_objects, describe, encode_strings
from keras_warmup.errors import BindingError
from keras_warmup.savedmodel.string_formats import (
    Base64,
    ImageDecoder,
    RawDecoder,
    StringFormat,
    TensorParser,
    describe_string_format,
)

_CURE = "Give the bytes a client would send, or pass warmup={'transform': ...}."


def encode_rows(rows: Array, string_format: StringFormat) -> Array:
    """Encodes rows of numbers for a string input.

    Args:
        rows: `[n, ...]`. Strings are taken as clients send them and only converted to `bytes`.
            Numbers are encoded row by row: images as files, tensors as serialized `TensorProto`s,
            raw bytes as such, each in base64 if the graph decodes that first.
        string_format: the format that the graph reads.

    Returns:
        Object array `[n]` of `bytes`; for strings, of the shape of `rows`.

    Raises:
        BindingError: numbers of this dtype cannot be encoded in the format.
    """
    if rows.dtype.kind in "SUTO":
        try:
            return encode_strings(rows)
        except TypeError as error:
            raise BindingError(
                f"Cannot encode strings mixed with {error} ({describe(rows)}). {_CURE}"
            ) from error
    if isinstance(string_format, Base64):
        return encode_base64(encode_rows(rows, string_format.inner))
    if isinstance(string_format, ImageDecoder):
        return encode_images(rows, string_format)
    where = (
        f"Cannot encode {describe(rows)} for a string input that takes "
        f"{describe_string_format(string_format)}"
    )
    if not isinstance(string_format, (TensorParser, RawDecoder)):
        raise BindingError(f"{where}. {_CURE}")
    if rows.dtype.name != string_format.out_type or rows.ndim == 0:
        raise BindingError(
            f"{where}: expected {string_format.out_type} [n, ...]. Cast the data, or pass "
            "warmup={'transform': ...}."
        )
    if isinstance(string_format, TensorParser):
        with tf.device("CPU"):
            return as_objects([tf.io.serialize_tensor(row).numpy() for row in split_rows(rows)])
    order = "<" if string_format.little_endian else ">"
    return as_objects(
        [
            np.ascontiguousarray(row, row.dtype.newbyteorder(order)).tobytes()
            for row in split_rows(rows)
        ]
    )


def encode_base64(rows: Array) -> Array:
    """Encodes rows `[n]` of `bytes` as `tf.io.encode_base64` does: web-safe, without padding."""
    return as_objects([base64.urlsafe_b64encode(row).rstrip(b"=") for row in rows])


def decode_base64(rows: Array) -> Array | None:
    """Decodes rows `[n]` of web-safe base64, padded or not; `None` if a row is not base64."""
    decoded = []
    for row in rows:
        bare = row.rstrip(b"=")
        # The standard alphabet, which Python decodes and TensorFlow refuses.
        if b"+" in bare or b"/" in bare:
            return None
        try:
            decoded.append(base64.b64decode(bare + b"=" * (-len(bare) % 4), b"-_", validate=True))
        except binascii.Error:
            return None
    return as_objects(decoded)


def encode_images(images: Array, decoder: ImageDecoder) -> Array:
    """Encodes images as PNG, which is lossless, or as JPEG if the decoder does not read PNG.

    Args:
        images: uint8 `[n, height, width, channels]`; also uint16 for a decoder to uint16.
        decoder: decodes them in the graph.

    Returns:
        Object array `[n]` of `bytes`.

    Raises:
        BindingError: floats or other dtypes, a wrong rank or number of channels, or a format that
            cannot be written.
    """
    where = f"Cannot encode images for {describe_string_format(decoder)}"
    cure = "Pass warmup={'transform': ...} to give the encoded files yourself"
    takes_16_bits = decoder.dtype == "uint16" and "png" in decoder.formats
    allowed = ("uint8", "uint16") if takes_16_bits else ("uint8",)
    if images.dtype.name not in allowed:
        is_float = images.dtype.kind == "f"
        why = (
            "preprocessed pixels cannot be turned back into files" if is_float else "dtype differs"
        )
        raise BindingError(
            f"{where}: expected {' or '.join(allowed)} [n, height, width, channels], got "
            f"{describe(images)} ({why}). Give the {allowed[0]} images, before preprocessing. "
            f"{cure}."
        )
    if images.ndim != 4:
        raise BindingError(
            f"{where}: expected [n, height, width, channels], got {describe(images)}. {cure}."
        )
    if "png" in decoder.formats:
        encode, channels = tf.io.encode_png, [1, 2, 3, 4]
    elif "jpeg" in decoder.formats:
        encode, channels = tf.io.encode_jpeg, [1, 3]
    else:
        raise BindingError(f"{where}: only PNG and JPEG can be written. {cure}.")
    if images.shape[-1] not in channels:
        raise BindingError(
            f"{where}: expected {channels} channels, got {describe(images)}. {cure}."
        )
    with tf.device("CPU"):
        return as_objects([encode(image).numpy() for image in images])
