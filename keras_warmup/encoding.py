"""Rows -> the bytes that the string inputs of a signature read: `tf.Example`s, encoded images, base64.

What an input reads was found in its graph (`consumers.py`); what cannot be made from rows is refused with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.batch import Batch, describe, map_leaves, render_path, walk
from keras_warmup.binding import BoundBatch, bind_batch, match_inputs
from keras_warmup.encoders import encode_rows
from keras_warmup.errors import BindingError
from keras_warmup.example_rows import as_objects
from keras_warmup.examples import (
    build_examples,
    check_examples,
    feature_casts,
    parsing_spec,
    refuse_unbuildable,
    unused_features,
)
from keras_warmup.formats import Base64, Consumer, ExampleParser, FeatureSpec, describe_consumer
from keras_warmup.signatures import Signature


@dataclasses.dataclass(frozen=True)
class _Encoded:
    values: np.ndarray
    casts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def bind_encoded(batch: Batch, signature: Signature, consumers: Mapping[str, Consumer]) -> list[BoundBatch]:
    """Binds a batch to a signature with string inputs, encoding the rows as each input reads them.

    Args:
        batch: rows as the model was fed them, or rows that are serialized already.
        signature: the signature to serve.
        consumers: string input name -> what reads it; empty where the signature has no string input.

    Returns:
        As `binding.bind_batch`.

    Raises:
        BindingError: the rows cannot be encoded, or do not fit; see `examples.build_examples` and `images.encode_images`.
        DataError: rows that should be serialized `tf.Example`s are not.
    """
    made = {}
    for name, consumer in consumers.items():
        encoded = _encode(batch, signature, name, consumer)
        if encoded is not None:
            made[name] = encoded
    if not made:
        return bind_batch(batch, signature)
    others = {name: spec for name, spec in signature.inputs.items() if name not in made}
    arrays = {name: encoded.values for name, encoded in made.items()}
    casts = {key: cast for encoded in made.values() for key, cast in encoded.casts.items()}
    ignored = tuple(sorted({path for encoded in made.values() for path in encoded.ignored}))
    if others:
        (rest,) = bind_batch(batch, dataclasses.replace(signature, inputs=others, structure=None))
        arrays, casts = {**arrays, **rest.arrays}, {**casts, **rest.casts}
        ignored = tuple(path for path in rest.ignored if path in ignored)
    return [BoundBatch(arrays, _dense(batch.x), batch.size, frozenset(arrays), batch.source, casts, ignored)]


def parse_features(batch: Batch, spec: Mapping[str, FeatureSpec]) -> Batch | None:
    """The features of rows that are serialized `tf.Example`s: some signatures take them unserialized.

    Args:
        batch: rows of any kind.
        spec: feature key -> `FeatureSpec`, as another signature of the model parses them.

    Returns:
        A batch whose x is a dict by feature key; `None` where the rows are no serialized Examples.
    """
    rows = _serialized_rows(batch)
    if rows is None:
        return None
    check_examples(rows, spec)
    parsed = tf.io.parse_example(rows, parsing_spec(spec))
    x = {key: value.numpy() if isinstance(value, tf.Tensor) else value for key, value in parsed.items()}
    return Batch(x, batch.size, batch.source)


def _serialized_rows(batch: Batch) -> np.ndarray | None:
    leaves = [leaf for _, leaf in walk(batch.x) if leaf is not None]
    if len(leaves) != 1 or not isinstance(leaves[0], np.ndarray) or leaves[0].dtype.kind != "O" or leaves[0].ndim != 1:
        return None
    return leaves[0]


def _encode(batch: Batch, signature: Signature, name: str, consumer: Consumer) -> _Encoded | None:
    """What a string input should be sent; `None` where the rows go as they are."""
    inner = consumer.inner if isinstance(consumer, Base64) else consumer
    if isinstance(inner, ExampleParser):
        encoded = _encode_examples(batch, signature, name, inner)
    else:
        found = _find_leaf(batch.x, signature, name)
        if found is None:
            return None
        where, leaf = found
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU":
            return None
        refuse_unbuildable(name, consumer)
        if not isinstance(leaf, np.ndarray):
            raise BindingError(
                f"Cannot bind batch to signature {signature.key!r}: input {name!r} reads {describe_consumer(consumer)}, and "
                f"{where} is {describe(leaf)}. Give the bytes as clients send them, or pass transform=."
            )
        return _Encoded(encode_rows(leaf, consumer))
    if isinstance(consumer, Base64):
        encoded = dataclasses.replace(encoded, values=as_objects(list(tf.io.encode_base64(encoded.values).numpy())))
    return encoded


def _encode_examples(batch: Batch, signature: Signature, name: str, parser: ExampleParser) -> _Encoded:
    spec = parser.spec
    serialized = _serialized_rows(batch)
    features = _features(batch.x, spec)
    if features is None or (serialized is not None and not set(features) & set(spec)):
        found = _find_leaf(batch.x, signature, name)
        leaf = serialized if found is None else found[1]
        if not isinstance(leaf, np.ndarray) or leaf.dtype.kind != "O" or leaf.ndim != 1:
            got = ", ".join(f"{render_path(path)} ({describe(leaf)})" for path, leaf in walk(batch.x))
            raise BindingError(
                f"Cannot bind batch to signature {signature.key!r}: input {name!r} reads serialized tf.Examples with the "
                f"features {sorted(spec)}; the batch has {got}. Pass data= as a dict of features, or as a list of bytes."
            )
        check_examples(leaf, spec)
        return _Encoded(leaf)
    unused = tuple(f"x[{key!r}]" for key in unused_features(features, spec))
    return _Encoded(build_examples(features, spec), feature_casts(features, spec), unused)


def _features(x: Any, spec: Mapping[str, FeatureSpec]) -> dict[str, Any] | None:
    """Feature key -> leaf, where x is a flat dict, or one leaf for a parser of one feature."""
    leaves = list(walk(x))
    if isinstance(x, Mapping):
        return {str(path[0]): leaf for path, leaf in leaves} if all(len(path) == 1 for path, _ in leaves) else None
    if len(leaves) == len(spec) == 1 and not _is_text(leaves[0][1]):
        return {next(iter(spec)): leaves[0][1]}
    return None


def _is_text(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU"


def _find_leaf(x: Any, signature: Signature, name: str) -> tuple[str, Any] | None:
    try:
        paths, _ = match_inputs(x, signature)
    except BindingError:
        return None
    path = paths.get(name)
    return None if path is None else (render_path(path), dict(walk(x))[path])


def _dense(x: Any) -> Any:
    """The rows for the proof; `None` where a leaf is ragged or sparse."""
    if all(leaf is None or isinstance(leaf, np.ndarray) for _, leaf in walk(x)):
        return map_leaves(lambda _, leaf: leaf, x)
    return None
