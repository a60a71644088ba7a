"""Images -> the encoded files that an image decoder in the graph reads."""

from __future__ import annotations

import tensorflow as tf

from keras_warmup.binding.example_rows import Array
from keras_warmup.data.batch import as_objects, describe
from keras_warmup.errors import BindingError
from keras_warmup.savedmodel.string_formats import ImageDecoder, describe_consumer


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
    where = f"Cannot encode images for {describe_consumer(consumer)}"
    cure = "Pass transform= to give the encoded files yourself"
    allowed = ("uint8", "uint16") if consumer.dtype == "uint16" and "png" in consumer.formats else ("uint8",)
    if images.dtype.name not in allowed:
        why = "preprocessed pixels cannot be turned back into files" if images.dtype.kind == "f" else "dtype differs"
        raise BindingError(
            f"{where}: expected {' or '.join(allowed)} [n, height, width, channels], got {describe(images)} ({why}). "
            f"Give the {allowed[0]} images, before preprocessing. {cure}."
        )
    if images.ndim != 4:
        raise BindingError(f"{where}: expected [n, height, width, channels], got {describe(images)}. {cure}.")
    if "png" in consumer.formats:
        encode, channels = tf.io.encode_png, [1, 2, 3, 4]
    elif "jpeg" in consumer.formats:
        encode, channels = tf.io.encode_jpeg, [1, 3]
    else:
        raise BindingError(f"{where}: only PNG and JPEG can be written. {cure}.")
    if images.shape[-1] not in channels:
        raise BindingError(f"{where}: expected {channels} channels, got {describe(images)}. {cure}.")
    with tf.device("CPU"):
        return as_objects([encode(image).numpy() for image in images])
