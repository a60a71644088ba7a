"""Rows -> the bytes that the string inputs of a signature read: `tf.Example`s, encoded images, base64.

What an input reads was found in its graph (`consumers.py`); what cannot be made from rows is refused with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.binding.bind import BoundBatch, bind_batch, bind_leaves
from keras_warmup.binding.encoders import decode_base64, encode_base64, encode_rows
from keras_warmup.binding.examples import (
    build_examples,
    check_examples,
    feature_casts,
    hold_examples,
    parsing_spec,
    refuse_unbuildable,
)
from keras_warmup.binding.match import match_inputs, sanitize
from keras_warmup.data.batch import (
    Batch,
    FeaturePath,
    describe,
    is_string_vector,
    render_path,
    walk,
)
from keras_warmup.errors import BindingError
from keras_warmup.savedmodel.signatures import Signature
from keras_warmup.savedmodel.string_formats import (
    Base64,
    ExampleParser,
    FeatureSpec,
    StringFormat,
    describe_string_format,
)


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """Values `[rows]` of a string input, and the leaves they were made of."""

    values: np.ndarray
    used: frozenset[FeaturePath]
    casts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def bind_encoded(
    batch: Batch, signature: Signature, consumers: Mapping[str, StringFormat]
) -> list[BoundBatch]:
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
    whole = _match_whole(batch.x, signature)
    made = {}
    for name, consumer in consumers.items():
        encoded = _encode(batch, signature, name, consumer, whole)
        if encoded is not None:
            made[name] = encoded
    if not made:
        return bind_batch(batch, signature)
    paths = _match_others(batch.x, signature, set(made), whole)
    used = set(paths.values()).union(*(encoded.used for encoded in made.values()))
    ignored = tuple(
        render_path(path) for path, leaf in walk(batch.x) if leaf is not None and path not in used
    )
    casts = {key: cast for encoded in made.values() for key, cast in encoded.casts.items()}
    values = {name: encoded.values for name, encoded in made.items()}
    return [
        dataclasses.replace(bound, casts={**casts, **bound.casts})
        for bound in bind_leaves(batch, signature, paths, ignored, values)
    ]


def rows_for(
    batch: Batch,
    signature: Signature,
    consumers: Mapping[str, StringFormat],
    parsers: Sequence[ExampleParser],
) -> Batch:
    """The rows in the form that a signature takes: one may read serialized `tf.Example`s, while another takes their features.

    Args:
        batch: rows of any kind.
        signature: the signature to serve.
        consumers: its string input name -> what reads it.
        parsers: the Example parsers of all signatures of the model.

    Returns:
        The features by name, where the rows are serialized Examples, the signature reads none, and a parser knows each of its
        inputs by name; else the batch as it is.

    Raises:
        BindingError: a row does not fit the parser.
        DataError: a row is no serialized Example, and the signature has no string input that could take it otherwise.
    """
    if not is_string_vector(batch) or any(
        _reads_examples(consumer) for consumer in consumers.values()
    ):
        return batch
    ((_, rows),) = ((path, leaf) for path, leaf in walk(batch.x) if leaf is not None)
    required = set(signature.inputs) - signature.defaults
    covering = [
        parser
        for parser in parsers
        if required <= set(parser.spec) | set(map(sanitize, parser.spec))
    ]
    takes_strings = any(spec.dtype == "string" for spec in signature.inputs.values())
    if not required or not covering or (takes_strings and not hold_examples(rows)):
        return batch
    return parse_features(batch, covering[0].spec) or batch


def parse_features(batch: Batch, spec: Mapping[str, FeatureSpec]) -> Batch | None:
    """The features of rows that are serialized `tf.Example`s: some signatures take them unserialized.

    Args:
        batch: rows of any kind.
        spec: feature key -> `FeatureSpec`, as another signature of the model parses them.

    Returns:
        A batch whose x is a dict by feature key; `None` where x is not one vector of bytes.

    Raises:
        BindingError: a row does not fit the spec.
        DataError: a row is no serialized Example.
    """
    if not is_string_vector(batch):
        return None
    ((_, rows),) = ((path, leaf) for path, leaf in walk(batch.x) if leaf is not None)
    check_examples(rows, spec)
    parsed = tf.io.parse_example(rows, parsing_spec(spec))
    x = {
        key: value.numpy() if isinstance(value, tf.Tensor) else value
        for key, value in parsed.items()
    }
    return Batch(x, batch.size, batch.source)


def _reads_examples(consumer: StringFormat) -> bool:
    return isinstance(consumer.inner if isinstance(consumer, Base64) else consumer, ExampleParser)


def _match_whole(x: Any, signature: Signature) -> dict[str, FeaturePath] | None:
    """The leaf of each input; `None` where that is not told, as for features that become one input."""
    try:
        return match_inputs(x, signature)[0]
    except BindingError:
        return None


def _match_others(
    x: Any, signature: Signature, made: set[str], whole: Mapping[str, FeaturePath] | None
) -> dict[str, FeaturePath]:
    """The leaves of the inputs that are not encoded: as the whole signature was matched, else by name alone."""
    if whole is not None:
        return {name: path for name, path in whole.items() if name not in made}
    others = {name: spec for name, spec in signature.inputs.items() if name not in made}
    if not isinstance(x, Mapping):
        if set(others) - signature.defaults:
            match_inputs(x, signature)  # raises, and says why
        return {}
    return match_inputs(x, dataclasses.replace(signature, inputs=others, structure=None))[0]


def _encode(
    batch: Batch,
    signature: Signature,
    name: str,
    consumer: StringFormat,
    whole: Mapping[str, FeaturePath] | None,
) -> _Encoded | None:
    """What a string input should be sent; `None` where the rows go as they are."""
    path = (whole or {}).get(name)
    inner = consumer.inner if isinstance(consumer, Base64) else consumer
    if isinstance(inner, ExampleParser):
        return _encode_examples(batch, signature, name, inner, path, isinstance(consumer, Base64))
    if path is None:
        return None
    leaf = dict(walk(batch.x))[path]
    if _is_text(leaf):
        return None
    refuse_unbuildable(name, consumer)
    if not isinstance(leaf, np.ndarray):
        raise BindingError(
            f"Cannot bind batch to signature {signature.key!r}: input {name!r} reads {describe_string_format(consumer)}, and "
            f"{render_path(path)} is {describe(leaf)}. Give the bytes as clients send them, or pass transform=."
        )
    return _Encoded(encode_rows(leaf, consumer), frozenset({path}))


def _encode_examples(
    batch: Batch,
    signature: Signature,
    name: str,
    parser: ExampleParser,
    path: FeaturePath | None,
    in_base64: bool,
) -> _Encoded:
    """Examples built of the features, or the rows themselves where they are serialized already."""
    leaves = {where: leaf for where, leaf in walk(batch.x) if leaf is not None}
    text = path if path is not None and _is_text(leaves[path]) else None
    if text is None and is_string_vector(batch):
        (text,) = leaves
    features = _features(batch.x, leaves, parser.spec, name, text)
    if features is not None:
        found = {key: leaves[where] for key, where in features.items()}
        values = build_examples(found, parser.spec)
        used = frozenset(where for key, where in features.items() if key in parser.spec)
        return _Encoded(
            encode_base64(values) if in_base64 else values, used, feature_casts(found, parser.spec)
        )
    if text is None or leaves[text].ndim != 1:
        got = ", ".join(
            f"{render_path(where)} ({describe(leaf)})" for where, leaf in leaves.items()
        )
        raise BindingError(
            f"Cannot bind batch to signature {signature.key!r}: input {name!r} reads serialized tf.Examples with the "
            f"features {sorted(parser.spec)}; the batch has {got}. Pass data= as a dict of features, or as a list of bytes."
        )
    rows = leaves[text]
    decoded = decode_base64(rows) if in_base64 else None
    if decoded is not None and hold_examples(decoded):
        check_examples(decoded, parser.spec)
        return _Encoded(rows, frozenset({text}))
    check_examples(rows, parser.spec)
    return _Encoded(encode_base64(rows) if in_base64 else rows, frozenset({text}))


def _features(
    x: Any,
    leaves: Mapping[FeaturePath, Any],
    spec: Mapping[str, FeatureSpec],
    name: str,
    text: FeaturePath | None,
) -> dict[str, FeaturePath] | None:
    """Feature key -> path, where x is a flat dict of features, or one leaf for a parser of one feature.

    Args:
        x: the batch's structure.
        leaves: its leaves.
        spec: what the parser reads.
        name: the input's name.
        text: path of the strings that may be serialized Examples.
    """
    if isinstance(x, Mapping) and all(len(path) == 1 for path in leaves):
        keys = {str(path[0]): path for path in leaves}
        if text is None or set(keys) & set(spec):
            return keys
    if len(leaves) != 1 or len(spec) != 1:
        return None
    ((path, leaf),), ((key, feature),) = leaves.items(), spec.items()
    if isinstance(x, Mapping) and path != (name,):
        return None
    if not _is_text(leaf):
        return {key: path}
    # Bytes that are no Example at all can only be the feature; wrong or compressed Examples are refused by their own check.
    if feature.dtype != "string" or (leaf.ndim == 1 and _hold_examples(leaf)):
        return None
    return {key: path}


def _hold_examples(rows: np.ndarray) -> bool:
    decoded = decode_base64(rows)
    return hold_examples(rows) or (decoded is not None and hold_examples(decoded))


def _is_text(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind == "O"
