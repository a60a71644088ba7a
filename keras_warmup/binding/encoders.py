"""Arrays -> the bytes that a string input wants, where its consumer says how (tf.Examples have `examples.py`)."""

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

_CURE = "Give the bytes a client would send, or pass transform=."


def encode_rows(rows: Array, consumer: StringFormat) -> Array:
    """Encodes rows of numbers for a string input; rows of strings are what clients send already.

    Args:
        rows: `[n, ...]`. Strings pass through. Numbers are encoded one row at a time: images as files, tensors as
            serialized `TensorProto`s, raw bytes as such, each in base64 where the graph decodes that first.
        consumer: what reads the input.

    Returns:
        Object array `[n]` of `bytes` (of the shape of `rows` for strings).

    Raises:
        BindingError: the consumer takes no numbers of this dtype.
    """
    if rows.dtype.kind in "SUTO":
        try:
            return encode_strings(rows)
        except TypeError as error:
            raise BindingError(
                f"Cannot feed {error} among strings ({describe(rows)}). {_CURE}"
            ) from error
    if isinstance(consumer, Base64):
        return encode_base64(encode_rows(rows, consumer.inner))
    if isinstance(consumer, ImageDecoder):
        return encode_images(rows, consumer)
    if not isinstance(consumer, (TensorParser, RawDecoder)):
        raise BindingError(
            f"Cannot encode {describe(rows)} for a string input that takes {describe_string_format(consumer)}. {_CURE}"
        )
    if rows.dtype.name != consumer.out_type or rows.ndim == 0:
        raise BindingError(
            f"Cannot encode {describe(rows)} for a string input that takes {describe_string_format(consumer)}: expected "
            f"{consumer.out_type} [n, ...]. Cast the data, or pass transform=."
        )
    if isinstance(consumer, TensorParser):
        with tf.device("CPU"):
            return as_objects([tf.io.serialize_tensor(row).numpy() for row in split_rows(rows)])
    order = "<" if consumer.little_endian else ">"
    return as_objects(
        [
            np.ascontiguousarray(row, row.dtype.newbyteorder(order)).tobytes()
            for row in split_rows(rows)
        ]
    )


def encode_base64(rows: Array) -> Array:
    """Rows `[n]` of `bytes` in base64: web-safe and without padding, as `tf.io.encode_base64`; the graph takes both."""
    return as_objects([base64.urlsafe_b64encode(row).rstrip(b"=") for row in rows])


def decode_base64(rows: Array) -> Array | None:
    """What rows `[n]` of `bytes` hold in web-safe base64, padded or not; `None` where a row is no base64."""
    decoded = []
    for row in rows:
        bare = row.rstrip(b"=")
        if (
            b"+" in bare or b"/" in bare
        ):  # the other alphabet, which Python takes and TensorFlow does not
            return None
        try:
            decoded.append(base64.b64decode(bare + b"=" * (-len(bare) % 4), b"-_", validate=True))
        except binascii.Error:
            return None
    return as_objects(decoded)


def encode_images(images: Array, consumer: ImageDecoder) -> Array:
    """Encodes images for an input that decodes them: as PNG (lossless) where it reads that, else as JPEG.

    Args:
        images: uint8 `[n, height, width, channels]` (uint16 too for a decoder that gives uint16).
        consumer: what decodes them.

    Returns:
        Object array `[n]` of `bytes`.

    Raises:
        BindingError: floats or other dtypes, a wrong rank or number of channels, or a format that cannot be written.
    """
    where = f"Cannot encode images for {describe_string_format(consumer)}"
    cure = "Pass transform= to give the encoded files yourself"
    allowed = (
        ("uint8", "uint16")
        if consumer.dtype == "uint16" and "png" in consumer.formats
        else ("uint8",)
    )
    if images.dtype.name not in allowed:
        why = (
            "preprocessed pixels cannot be turned back into files"
            if images.dtype.kind == "f"
            else "dtype differs"
        )
        raise BindingError(
            f"{where}: expected {' or '.join(allowed)} [n, height, width, channels], got {describe(images)} ({why}). "
            f"Give the {allowed[0]} images, before preprocessing. {cure}."
        )
    if images.ndim != 4:
        raise BindingError(
            f"{where}: expected [n, height, width, channels], got {describe(images)}. {cure}."
        )
    if "png" in consumer.formats:
        encode, channels = tf.io.encode_png, [1, 2, 3, 4]
    elif "jpeg" in consumer.formats:
        encode, channels = tf.io.encode_jpeg, [1, 3]
    else:
        raise BindingError(f"{where}: only PNG and JPEG can be written. {cure}.")
    if images.shape[-1] not in channels:
        raise BindingError(
            f"{where}: expected {channels} channels, got {describe(images)}. {cure}."
        )
    with tf.device("CPU"):
        return as_objects([encode(image).numpy() for image in images])
