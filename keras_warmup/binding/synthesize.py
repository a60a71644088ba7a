"""Makes up rows for signatures without data; their shapes, dtypes and formats fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from keras_warmup.binding.bind import BoundBatch
from keras_warmup.binding.encoders import encode_base64, encode_images
from keras_warmup.binding.examples import build_examples
from keras_warmup.data.batch import as_objects
from keras_warmup.errors import SignatureError
from keras_warmup.options import DEFAULT_BATCH_SIZE
from keras_warmup.savedmodel.signatures import Signature, SignatureTensor
from keras_warmup.savedmodel.string_formats import (
    Base64,
    ExampleParser,
    FeatureSpec,
    ImageDecoder,
    StringFormat,
)

# Size of free dimensions besides the batch: large enough for the convolutions of an image model.
FREE_DIM = 32
_RGB = 3


def synthesize_rows(
    signature: Signature, string_formats: Mapping[str, StringFormat], seed: int
) -> BoundBatch:
    """Makes up rows from a signature alone.

    Floats are uniform in [0, 1). Integers are 0, the only index that every table has. Strings are
    empty, or a `tf.Example` or an image if the graph reads one, also inside an Example. Booleans
    are false.

    Args:
        signature: the signature to make rows for.
        string_formats: string input name -> format that the graph reads.
        seed: seed of the floats.

    Returns:
        Rows of source `synthetic`; `x` is `None`, since the structure of the model is unknown.

    Raises:
        SignatureError: an input has an unknown rank, or a dtype that requests cannot have.
    """
    rng = np.random.default_rng(seed)
    size = signature.fixed_batch_size or DEFAULT_BATCH_SIZE
    arrays = {
        name: _strings(spec, string_formats[name], size)
        if name in string_formats and _takes_strings(spec)
        else _array(signature, spec, rng, size)
        for name, spec in sorted(signature.inputs.items())
        if name not in signature.defaults
    }
    row_inputs = frozenset(
        name for name, array in arrays.items() if array.ndim and array.shape[0] == size
    )
    return BoundBatch(arrays, None, size if row_inputs else 1, row_inputs, "synthetic")


def _takes_strings(spec: SignatureTensor) -> bool:
    # Estimators leave the rank of their Examples unknown.
    return spec.shape is None or len(spec.shape) <= 1


def _array(
    signature: Signature, spec: SignatureTensor, rng: np.random.Generator, rows: int
) -> np.ndarray:
    if spec.shape is None:
        raise SignatureError(
            f"Cannot make up rows for signature {signature.key!r}: input {spec.name!r} "
            f"({spec.dtype}) has an unknown rank. Pass data=."
        )
    shape = tuple(
        (rows if axis == 0 else FREE_DIM) if size is None else size
        for axis, size in enumerate(spec.shape)
    )
    if spec.dtype == "string":
        return np.full(shape, b"", dtype=object)
    dtype = tf.as_dtype(spec.dtype)
    if dtype in (tf.resource, tf.variant):
        raise SignatureError(
            f"Signature {signature.key!r} takes a {spec.dtype} as {spec.name!r}, which requests "
            "cannot have."
        )
    if dtype.is_floating or dtype.is_complex:
        return np.asarray(rng.random(shape)).astype(dtype.as_numpy_dtype)
    return np.zeros(shape, dtype.as_numpy_dtype)


def _strings(spec: SignatureTensor, string_format: StringFormat, size: int) -> np.ndarray:
    rows = (spec.shape[0] if spec.shape else None) or size
    inner = string_format.inner if isinstance(string_format, Base64) else string_format
    if isinstance(inner, ExampleParser):
        made = build_examples(
            {key: _feature(feature, rows) for key, feature in inner.spec.items()}, inner.spec
        )
    elif isinstance(inner, ImageDecoder):
        made = _images(inner, rows)
    else:
        made = as_objects([b""] * rows)
    if isinstance(string_format, Base64):
        made = encode_base64(made)
    return made[:1].reshape(()) if spec.shape == () else made


def _images(decoder: ImageDecoder, rows: int) -> np.ndarray:
    size = (rows, FREE_DIM, FREE_DIM, decoder.channels or _RGB)
    return encode_images(np.zeros(size, decoder.dtype), decoder)


def _feature(feature: FeatureSpec, rows: int) -> np.ndarray | tf.RaggedTensor | tf.SparseTensor:
    dtype = object if feature.dtype == "string" else np.dtype(feature.dtype)
    shape = tuple(1 if size is None else size for size in feature.shape or ())
    value: bytes | int = b"" if dtype is object else 0
    if feature.image is not None:
        value = bytes(_images(feature.image, 1)[0])
    values = np.full((rows, *shape), value, dtype=dtype)
    if feature.kind == "dense":
        return values
    column = tf.constant(values.reshape(rows, 1))
    if feature.kind == "ragged":
        return tf.RaggedTensor.from_tensor(column)
    indices = [[row, 0] for row in range(rows)]
    return tf.SparseTensor(indices, tf.reshape(column, [-1]), [rows, 1])
