"""Encodes rows as the bytes that string inputs read: `tf.Example`s, images, tensors, base64.

The format that an input reads was found in the graph (`savedmodel/string_inputs.py`). Rows that
cannot be encoded in it are refused with the reason.
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
    look_like_examples,
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
    """Values `[rows]` of a string input, and the leaves they were made from."""

    values: np.ndarray
    used: frozenset[FeaturePath]
    casts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def bind_encoded(
    batch: Batch, signature: Signature, string_formats: Mapping[str, StringFormat]
) -> list[BoundBatch]:
    """Binds a batch to a signature and encodes the rows for its string inputs.

    Args:
        batch: rows of model input, or rows that are already serialized.
        signature: the signature to serve.
        string_formats: string input name -> format that the graph reads; may be empty.

    Returns:
        As `bind.bind_batch`.

    Raises:
        BindingError: the rows cannot be encoded, or do not fit; see `examples.build_examples` and
            `encoders.encode_rows`.
        DataError: rows that should be serialized `tf.Example`s are not.
    """
    matched = _try_match(batch.x, signature)
    encoded = {
        name: made
        for name, string_format in string_formats.items()
        if (made := _encode(batch, signature, name, string_format, matched)) is not None
    }
    if not encoded:
        return bind_batch(batch, signature)
    paths = _match_others(batch.x, signature, set(encoded), matched)
    used = set(paths.values()).union(*(one.used for one in encoded.values()))
    ignored = tuple(render_path(path) for path in _leaves(batch.x) if path not in used)
    casts = {key: cast for one in encoded.values() for key, cast in one.casts.items()}
    values = {name: one.values for name, one in encoded.items()}
    hidden = {
        name
        for name, one in encoded.items()
        if all(render_path(path) in batch.hidden_paths for path in one.used)
    }
    return [
        dataclasses.replace(
            bound,
            casts={**casts, **bound.casts},
            hidden_inputs=bound.hidden_inputs.union(hidden),
        )
        for bound in bind_leaves(batch, signature, paths, ignored, values)
    ]


def parse_if_needed(
    batch: Batch,
    signature: Signature,
    string_formats: Mapping[str, StringFormat],
    parsers: Sequence[ExampleParser],
) -> Batch:
    """Parses serialized `tf.Example`s for a signature that takes their features instead.

    Args:
        batch: rows of any kind.
        signature: the signature to serve.
        string_formats: string input name -> format that the graph reads.
        parsers: the Example parsers of all signatures of the model.

    Returns:
        The features by key, if the rows are serialized Examples, the signature reads none, and the
        features of a parser include its inputs; else `batch`.

    Raises:
        BindingError: a row does not fit the parser.
        DataError: a row is not a serialized Example, and the signature has no string input that
            could take it.
    """
    if not is_string_vector(batch) or any(map(_reads_examples, string_formats.values())):
        return batch
    ((path, rows),) = _leaves(batch.x).items()
    required = set(signature.inputs) - signature.defaults
    spec = next(
        (
            parser.spec
            for parser in parsers
            if required <= set(parser.spec) | set(map(sanitize, parser.spec))
        ),
        None,
    )
    takes_strings = any(tensor.dtype == "string" for tensor in signature.inputs.values())
    if not required or spec is None or (takes_strings and not look_like_examples(rows)):
        return batch
    check_examples(rows, spec)
    parsed = tf.io.parse_example(rows, parsing_spec(spec))
    x = {
        key: value.numpy() if isinstance(value, tf.Tensor) else value
        for key, value in parsed.items()
    }
    is_hidden = render_path(path) in batch.hidden_paths
    hidden = {render_path((key,)) for key in x if is_hidden or key in batch.hidden}
    return Batch(x, batch.size, batch.source, hidden_paths=frozenset(hidden))


def _leaves(x: Any) -> dict[FeaturePath, Any]:
    return {path: leaf for path, leaf in walk(x) if leaf is not None}


def _reads_examples(string_format: StringFormat) -> bool:
    inner = string_format.inner if isinstance(string_format, Base64) else string_format
    return isinstance(inner, ExampleParser)


def _try_match(x: Any, signature: Signature) -> dict[str, FeaturePath] | None:
    """Matches all inputs; `None` if that fails, as for features that become one input."""
    try:
        return match_inputs(x, signature)[0]
    except BindingError:
        return None


def _match_others(
    x: Any, signature: Signature, encoded: set[str], matched: Mapping[str, FeaturePath] | None
) -> dict[str, FeaturePath]:
    """Returns the leaves of the inputs that are not encoded: as matched before, else by name."""
    if matched is not None:
        return {name: path for name, path in matched.items() if name not in encoded}
    others = {name: tensor for name, tensor in signature.inputs.items() if name not in encoded}
    if not isinstance(x, Mapping):
        if set(others) - signature.defaults:
            match_inputs(x, signature)  # raises BindingError again
        return {}
    return match_inputs(x, dataclasses.replace(signature, inputs=others, structure=None))[0]


def _encode(
    batch: Batch,
    signature: Signature,
    name: str,
    string_format: StringFormat,
    matched: Mapping[str, FeaturePath] | None,
) -> _Encoded | None:
    """Encodes the rows for a string input; `None` if they are sent unchanged."""
    path = (matched or {}).get(name)
    inner = string_format.inner if isinstance(string_format, Base64) else string_format
    if isinstance(inner, ExampleParser):
        in_base64 = isinstance(string_format, Base64)
        return _encode_examples(batch, signature, name, inner, path, in_base64)
    if path is None:
        return None
    leaf = dict(walk(batch.x))[path]
    if _is_text(leaf):
        return None
    refuse_unbuildable(name, string_format)
    if not isinstance(leaf, np.ndarray):
        raise BindingError(
            f"Cannot bind batch to signature {signature.key!r}: input {name!r} reads "
            f"{describe_string_format(string_format)}, and {render_path(path)} is "
            f"{describe(leaf)}. Give the bytes as clients send them, or pass "
            f"warmup={{'transform': ...}}."
        )
    return _Encoded(encode_rows(leaf, string_format), frozenset({path}))


def _encode_examples(
    batch: Batch,
    signature: Signature,
    name: str,
    parser: ExampleParser,
    path: FeaturePath | None,
    in_base64: bool,
) -> _Encoded:
    """Builds Examples from the features, or returns rows that are already serialized."""
    leaves = _leaves(batch.x)
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
            f"Cannot bind batch to signature {signature.key!r}: input {name!r} reads serialized "
            f"tf.Examples with the features {sorted(parser.spec)}; the batch has {got}. Pass data= "
            "as a dict of features, or as a list of bytes."
        )
    rows = leaves[text]
    decoded = decode_base64(rows) if in_base64 else None
    if decoded is not None and look_like_examples(decoded):
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
    """Returns feature key -> path if x is a flat dict of features, or the one feature of a parser.

    Args:
        x: the structure of the batch.
        leaves: its leaves.
        spec: the features that the parser reads.
        name: name of the input.
        text: path of strings that may be serialized Examples.
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
    # Bytes that are not an Example of any kind can only be the feature itself; Examples of another
    # model and compressed ones are refused by `check_examples`.
    if feature.dtype != "string" or (leaf.ndim == 1 and _look_like_examples(leaf)):
        return None
    return {key: path}


def _look_like_examples(rows: np.ndarray) -> bool:
    decoded = decode_base64(rows)
    return look_like_examples(rows) or (decoded is not None and look_like_examples(decoded))


def _is_text(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind == "O"
