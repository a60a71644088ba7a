"""Builds and checks serialized `tf.Example`s for the parser of a model.

The feature spec comes from the graph (`string_formats.ExampleParser`). Every batch that is built is
parsed with `tf.io.parse_example` and this spec, and compared with the rows it was built from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup.binding.cast import MismatchError
from keras_warmup.binding.example_rows import (
    Array,
    feature_rows,
    ragged_rows,
    sparse_rows,
    split_rows,
)
from keras_warmup.data.batch import as_objects, describe, render_shape
from keras_warmup.errors import BindingError, DataError
from keras_warmup.savedmodel.string_formats import (
    Base64,
    Compressed,
    FeatureSpec,
    SequenceExampleParser,
    StringFormat,
)

FeatureSpecs = Mapping[str, FeatureSpec]

_LISTS = {"int64": "int64_list", "float32": "float_list", "string": "bytes_list"}
_GZIP_MAGIC = b"\x1f\x8b"
_MOST_PROBLEMS = 5


def build_examples(features: Mapping[str, Any], spec: FeatureSpecs) -> Array:
    """Builds one serialized `tf.Example` for each row.

    Args:
        features: feature key -> leaf of `n` rows: `np.ndarray` `[n, ...]`, `tf.RaggedTensor` or
            `tf.SparseTensor`. In object arrays of shape `[n]`, `None` is a missing value. Keys that
            are not in the spec are ignored. A column `[n]` also fits features of shape `[1]`, and
            `[n, 1]` those of shape `[]`.
        spec: feature key -> how the model's parser reads it.

    Returns:
        Object array `[n]` of `bytes`; serialized deterministically.

    Raises:
        BindingError: the features do not fit the spec; all mismatches in one message, without
            values.
    """
    problems = _composite_problems(features, spec)
    columns: dict[str, list[Array | None]] = {}
    for key, feature in spec.items():
        if features.get(key) is None:
            if feature.required:
                problems.append(
                    f"feature {key!r} ({_render(feature)}) is required, but the data does not have "
                    "it"
                )
            continue
        try:
            columns[key] = feature_rows(features[key], feature)
        except MismatchError as mismatch:
            problems.append(
                f"feature {key!r} expects {_render(feature)}, got {describe(features[key])}: "
                f"{mismatch}"
            )
    sizes = {key: len(rows) for key, rows in columns.items()}
    if len(set(sizes.values())) > 1:
        problems.append(f"features have different numbers of rows: {sizes}")
    if not columns and not problems:
        problems.append(
            f"the data has none of the features {sorted(spec)}, only {sorted(features)}"
        )
    if problems:
        raise BindingError(
            f"Cannot build tf.Examples: {'; '.join(problems)}. Change the data, or pass "
            f"warmup={{'transform': ...}} to give the serialized Examples yourself."
        )
    rows = [
        _serialize({key: column[row] for key, column in columns.items()}, spec)
        for row in range(max(sizes.values()))
    ]
    serialized = as_objects(rows)
    _check_round_trip(serialized, columns, spec)
    return serialized


def feature_casts(features: Mapping[str, Any], spec: FeatureSpecs) -> dict[str, str]:
    """Returns feature key -> cast that `build_examples` makes, such as `float64 -> float32`."""
    dtypes = {key: _dtype_name(features[key]) for key in spec if features.get(key) is not None}
    return {
        key: f"{dtype} -> {spec[key].dtype}"
        for key, dtype in dtypes.items()
        if dtype != spec[key].dtype
    }


def check_examples(serialized: Array | Sequence[bytes], spec: FeatureSpecs) -> None:
    """Checks rows that are already serialized `tf.Example`s.

    Args:
        serialized: `n` rows of `bytes`.
        spec: feature key -> how the model's parser reads it.

    Raises:
        DataError: a row is not a serialized Example, but compressed, a SequenceExample or other
            bytes.
        BindingError: a row lacks a required feature, or has it with another type or number of
            values.
    """
    rows = list(np.asarray(serialized, dtype=object).reshape(-1))
    problems: dict[str, None] = {}
    for index, row in enumerate(rows):
        example = _parse_row(index, row)
        for key, feature in spec.items():
            problem = _problem_of(example.features.feature, key, feature)
            if problem:
                problems.setdefault(f"row {index}: feature {key!r} ({_render(feature)}) {problem}")
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        raise BindingError(
            "The serialized tf.Examples do not fit the model's parser: "
            f"{'; '.join(list(problems)[:_MOST_PROBLEMS])}. Give Examples written for this model."
        )
    try:
        tf.io.parse_example(as_objects(rows), parsing_spec(spec))
    except tf.errors.InvalidArgumentError as error:
        raise BindingError(
            f"The {len(rows)} serialized tf.Examples cannot be parsed with the model's feature "
            f"spec ({sorted(spec)}), although each seems to fit it. Give Examples written for this "
            "model."
        ) from error


def look_like_examples(rows: Array | Sequence[bytes]) -> bool:
    """Returns whether a row is a `tf.Example` or `tf.SequenceExample` of any features, or GZIP."""
    for row in rows:
        if not isinstance(row, bytes):
            return False
        if row.startswith(_GZIP_MAGIC):
            return True
        try:
            # Short texts often parse as a message of unknown fields, but not with a named feature.
            if tf.train.SequenceExample.FromString(row).feature_lists.feature_list:
                return True
            if tf.train.Example.FromString(row).features.feature:
                return True
        except DecodeError:
            continue
    return False


def parsing_spec(spec: FeatureSpecs) -> dict[str, Any]:
    """Converts the spec to the form that `tf.io.parse_example` takes."""
    return {key: _parsing_feature(feature) for key, feature in spec.items()}


def refuse_unbuildable(input_name: str, string_format: StringFormat) -> None:
    """Raises BindingError where the input reads SequenceExamples or compressed bytes."""
    inner = string_format.inner if isinstance(string_format, Base64) else string_format
    if isinstance(inner, SequenceExampleParser):
        reason = (
            "it takes serialized tf.SequenceExamples, which cannot be built from a batch of "
            "features"
        )
    elif isinstance(inner, Compressed):
        reason = "it takes compressed bytes, and the graph does not show their content"
    else:
        return
    raise BindingError(
        f"Cannot bind features to input {input_name!r}: {reason}. Give the serialized bytes as "
        "data, or pass warmup={'transform': ...}."
    )


def _serialize(row: Mapping[str, Array | None], spec: FeatureSpecs) -> bytes:
    example = tf.train.Example()
    for key, values in row.items():
        if values is not None:
            values_list = getattr(example.features.feature[key], _LISTS[spec[key].dtype])
            values_list.SetInParent()  # an empty list still has a type
            values_list.value.extend(values.reshape(-1).tolist())
    return cast(bytes, example.SerializeToString(deterministic=True))


def _check_round_trip(
    serialized: Array, columns: Mapping[str, list[Array | None]], spec: FeatureSpecs
) -> None:
    """Parses the built rows as the model does and compares them with the data.

    Raises:
        BindingError: they differ. No such case is known; the check keeps a mistake of this module
            out of a published file.
    """
    try:
        parsed = tf.io.parse_example(serialized, parsing_spec(spec))
    except tf.errors.InvalidArgumentError as error:
        raise BindingError(
            "The built tf.Examples cannot be parsed with the model's feature spec "
            f"({sorted(spec)}). Pass warmup={{'transform': ...}} to give the serialized Examples "
            "yourself."
        ) from error
    for key, column in columns.items():
        if not all(
            _equal_rows(want, got)
            for want, got in zip(column, _parsed_rows(parsed[key], column, spec[key]), strict=True)
        ):
            raise BindingError(
                f"The built tf.Examples have other values of feature {key!r} "
                f"({_render(spec[key])}) than the data when parsed. Pass warmup={{'transform': "
                f"...}} to give the serialized Examples yourself."
            )


def _parsed_rows(
    parsed: Any, column: list[Array | None], feature: FeatureSpec
) -> list[Array | None]:
    """Splits a parsed feature into rows; `None` for a row whose value is the parser's default."""
    if isinstance(parsed, tf.SparseTensor):
        return list(sparse_rows(parsed))
    if isinstance(parsed, tf.RaggedTensor):
        return list(ragged_rows(parsed))
    rows: list[Array | None] = []
    for row, want in zip(split_rows(parsed.numpy()), column, strict=True):
        rows.append(row[: len(want)] if feature.is_sequence and want is not None else row)
        if want is None and feature.kind == "dense":
            rows[-1] = None
    return rows


def _equal_rows(want: Array | None, got: Array | None) -> bool:
    if want is None or got is None:
        return got is None or got.size == 0
    return np.array_equal(want, got, equal_nan=want.dtype.kind == "f")


def _parsing_feature(feature: FeatureSpec) -> Any:
    dtype = tf.as_dtype(feature.dtype)
    if feature.kind == "sparse":
        return tf.io.VarLenFeature(dtype)
    if feature.kind == "ragged":
        return tf.io.RaggedFeature(
            dtype, row_splits_dtype=tf.as_dtype(feature.row_splits or "int32")
        )
    shape = list(feature.shape or ())
    if feature.is_sequence:
        default = feature.default[0] if feature.default else None
        return tf.io.FixedLenSequenceFeature(
            shape[1:], dtype, allow_missing=True, default_value=default
        )
    if feature.default is None:
        return tf.io.FixedLenFeature(shape, dtype)
    size = int(np.prod(cast(list[int], shape), dtype=np.int64))
    values = feature.default * size if len(feature.default) == 1 else feature.default
    default = as_objects(values) if dtype == tf.string else np.array(values, feature.dtype)
    return tf.io.FixedLenFeature(shape, dtype, default.reshape(cast(list[int], shape)))


def _composite_problems(features: Mapping[str, Any], spec: FeatureSpecs) -> list[str]:
    """Finds features that may be a `tf.io.SparseFeature` or a partitioned `tf.io.RaggedFeature`.

    The graph shows only the raw keys of those, and all of them are optional: without this check the
    rows would be built empty.
    """
    raw = sorted(
        key
        for key, feature in spec.items()
        if feature.kind != "dense" and features.get(key) is None
    )
    composite = sorted(
        key
        for key, leaf in features.items()
        if key not in spec and isinstance(leaf, (tf.SparseTensor, tf.RaggedTensor))
    )
    if not raw or not composite:
        return []
    return [
        f"features {composite} are sparse or ragged and the parser does not read them, while it "
        f"reads {raw}, which the data does not have: these may be the raw keys of a SparseFeature "
        "or of a RaggedFeature with partitions, and the graph does not show how they combine"
    ]


def _parse_row(index: int, row: Any) -> Any:
    if not isinstance(row, bytes):
        raise DataError(
            f"Row {index} is {type(row).__name__}, not bytes: expected serialized tf.Examples."
        )
    if row.startswith(_GZIP_MAGIC):
        raise DataError(
            f"Row {index} is GZIP-compressed, not a serialized tf.Example. Read the file with "
            "compression_type='GZIP'."
        )
    try:
        example = tf.train.Example.FromString(row)
    except DecodeError as error:
        raise DataError(
            f"Row {index} ({len(row)} bytes) is not a serialized tf.Example."
        ) from error
    # A SequenceExample also parses as an Example: its feature lists are an unknown field there.
    if tf.train.SequenceExample.FromString(row).feature_lists.feature_list:
        raise DataError(f"Row {index} is a serialized tf.SequenceExample, not a tf.Example.")
    return example


def _problem_of(found: Mapping[str, Any], key: str, feature: FeatureSpec) -> str | None:
    kind = found[key].WhichOneof("kind") if key in found else None
    if kind is None:
        return "is required, but missing" if feature.required else None
    if kind != _LISTS[feature.dtype]:
        return f"expects {_LISTS[feature.dtype]}, got {kind}"
    count = len(getattr(found[key], kind).value)
    if feature.kind == "dense" and feature.shape is not None:
        sizes = [size for size in feature.shape if size is not None]
        size = int(np.prod(sizes, dtype=np.int64))
        if feature.is_sequence and (count % size if size else count):
            return f"number of values is {count}, expected a multiple of {size}"
        if not feature.is_sequence and count != size:
            return f"number of values is {count}, expected {size}"
    return None


def _render(feature: FeatureSpec) -> str:
    shape = "" if feature.shape is None else f" {render_shape(feature.shape)}"
    return f"{feature.kind} {feature.dtype}{shape}"


def _dtype_name(leaf: Any) -> str:
    name = str(leaf.dtype.name)
    return "string" if name == "object" or name.startswith(("str", "bytes")) else name
