"""The tf.Example codec: rows of features -> serialized `tf.Example`s that the model's parser reads back as those rows.

The spec comes from the graph (`consumers.ExampleParser`). Every batch built is parsed back with `tf.io.parse_example`
under that spec and compared, so what is returned is what the model will see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup.binding.cast import MismatchError
from keras_warmup.binding.example_rows import Array, ragged_rows, rows_of, sparse_rows, split_rows
from keras_warmup.data.batch import as_objects, describe, render_shape
from keras_warmup.errors import BindingError, DataError
from keras_warmup.savedmodel.string_formats import (
    Base64,
    Compressed,
    FeatureSpec,
    SequenceExampleParser,
    StringFormat,
)

Spec = Mapping[str, FeatureSpec]

_LISTS = {"int64": "int64_list", "float32": "float_list", "string": "bytes_list"}
_GZIP_MAGIC = b"\x1f\x8b"
_MOST_PROBLEMS = 5


def build_examples(features: Mapping[str, Any], spec: Spec) -> Array:
    """Builds one serialized `tf.Example` a row.

    Args:
        features: feature key -> leaf of `n` rows: `np.ndarray` `[n, ...]`, `tf.RaggedTensor` or `tf.SparseTensor`. In
            object arrays of shape `[n]`, `None` is a missing value. Keys that the spec lacks are ignored, see
            `unused_features`. A column `[n]` also fits features of shape `[1]`, and `[n, 1]` those of shape `[]`.
        spec: feature key -> `FeatureSpec`.

    Returns:
        Object array `[n]` of `bytes`; serialized deterministically.

    Raises:
        BindingError: the features do not fit the spec; all mismatches in one message, without values.
    """
    problems = _composite_problems(features, spec)
    columns: dict[str, list[Array | None]] = {}
    for key, feature in spec.items():
        if features.get(key) is None:
            if feature.required:
                problems.append(
                    f"feature {key!r} ({_render(feature)}) is required, but the data does not have it"
                )
            continue
        try:
            columns[key] = rows_of(features[key], feature)
        except MismatchError as misfit:
            problems.append(
                f"feature {key!r} expects {_render(feature)}, got {describe(features[key])}: {misfit.args[0]}"
            )
    sizes = {key: len(rows) for key, rows in columns.items()}
    if len(set(sizes.values())) > 1:
        problems.append(f"features have different numbers of rows: {sizes}")
    if not columns and not problems:
        problems.append(
            f"none of the features {sorted(spec)} is in the data, which has {sorted(features)}"
        )
    if problems:
        raise BindingError(
            f"Cannot build tf.Examples: {'; '.join(problems)}. Change the data, or pass transform= to give the "
            "serialized Examples yourself."
        )
    rows = [
        _serialize({key: column[row] for key, column in columns.items()}, spec)
        for row in range(max(sizes.values()))
    ]
    serialized = as_objects(rows)
    _prove(serialized, columns, spec)
    return serialized


def unused_features(features: Mapping[str, Any], spec: Spec) -> tuple[str, ...]:
    """Features of the data that the parser does not read, sorted."""
    return tuple(sorted(key for key in features if key not in spec))


def feature_casts(features: Mapping[str, Any], spec: Spec) -> dict[str, str]:
    """Casts that building does, for the report: feature key -> `float64 -> float32`."""
    casts = {}
    for key, feature in spec.items():
        dtype = _dtype_name(features[key]) if features.get(key) is not None else feature.dtype
        if dtype != feature.dtype:
            casts[key] = f"{dtype} -> {feature.dtype}"
    return casts


def check_examples(serialized: Array | Sequence[bytes], spec: Spec) -> None:
    """Checks rows that are serialized `tf.Example`s already against a spec.

    Args:
        serialized: array or sequence of `bytes`, one Example each.
        spec: feature key -> `FeatureSpec`.

    Raises:
        DataError: a row is no serialized Example (compressed, a SequenceExample, other bytes).
        BindingError: a row lacks a required feature, or has it in another type or number.
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
            f"The serialized tf.Examples do not fit the model's parser: {'; '.join(list(problems)[:_MOST_PROBLEMS])}. "
            "Give Examples written for this model."
        )
    try:
        tf.io.parse_example(as_objects(rows), parsing_spec(spec))
    except tf.errors.InvalidArgumentError as error:
        raise BindingError(
            f"The {len(rows)} serialized tf.Examples cannot be parsed with the model's feature spec ({sorted(spec)}), "
            "though each seems to fit it. Give Examples written for this model."
        ) from error


def hold_examples(rows: Array | Sequence[bytes]) -> bool:
    """Whether rows are meant as serialized `tf.Example`s, were they the wrong ones: one holds a feature, or is compressed."""
    for row in rows:
        if not isinstance(row, bytes):
            return False
        if row.startswith(_GZIP_MAGIC):
            return True
        try:
            # Short texts often parse as a message of unknown fields; one with a named feature is no accident.
            if tf.train.SequenceExample.FromString(row).feature_lists.feature_list:
                return True
            if tf.train.Example.FromString(row).features.feature:
                return True
        except DecodeError:
            continue
    return False


def parsing_spec(spec: Spec) -> dict[str, Any]:
    """The spec as `tf.io.parse_example` takes it."""
    return {key: _parsing_feature(feature) for key, feature in spec.items()}


def refuse_unbuildable(input_name: str, consumer: StringFormat) -> None:
    """Refuses inputs whose bytes cannot be made from features.

    Raises:
        BindingError: the input takes SequenceExamples, compressed or unknown bytes.
    """
    inner = consumer.inner if isinstance(consumer, Base64) else consumer
    if isinstance(inner, SequenceExampleParser):
        reason = "it takes serialized tf.SequenceExamples, which cannot be built from a batch of features"
    elif isinstance(inner, Compressed):
        reason = "it takes compressed bytes, and what they hold cannot be seen in the graph"
    else:
        return
    raise BindingError(
        f"Cannot bind features to input {input_name!r}: {reason}. Give the serialized bytes as data, or pass "
        "transform=."
    )


def _serialize(row: Mapping[str, Array | None], spec: Spec) -> bytes:
    example = tf.train.Example()
    for key, values in row.items():
        if values is not None:
            values_list = getattr(example.features.feature[key], _LISTS[spec[key].dtype])
            values_list.SetInParent()  # an empty list still says its type
            values_list.value.extend(values.reshape(-1).tolist())
    return cast(bytes, example.SerializeToString(deterministic=True))


def _prove(serialized: Array, columns: Mapping[str, list[Array | None]], spec: Spec) -> None:
    """Parses the built rows as the model will and compares them with the data.

    Raises:
        BindingError: they differ. No case is known: the proof stands between a mistake here and a published file.
    """
    try:
        parsed = tf.io.parse_example(serialized, parsing_spec(spec))
    except tf.errors.InvalidArgumentError as error:
        raise BindingError(
            f"The built tf.Examples cannot be parsed with the model's feature spec ({sorted(spec)}). Pass transform= "
            "to give the serialized Examples yourself."
        ) from error
    for key, column in columns.items():
        if not all(
            _same(want, got)
            for want, got in zip(column, _parsed_rows(parsed[key], column, spec[key]), strict=True)
        ):
            raise BindingError(
                f"The built tf.Examples give other values of feature {key!r} ({_render(spec[key])}) than the data when "
                "parsed. Pass transform= to give the serialized Examples yourself."
            )


def _parsed_rows(
    parsed: Any, column: list[Array | None], feature: FeatureSpec
) -> list[Array | None]:
    """What the parser gave, row by row; `None` where the data has no value, whatever default stands there."""
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


def _same(want: Array | None, got: Array | None) -> bool:
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
    return tf.io.FixedLenFeature(shape, dtype, _as_shape(values, feature.dtype, shape))


def _as_shape(values: tuple[Any, ...], dtype: str, shape: list[int | None]) -> Array:
    array = as_objects(list(values)) if dtype == "string" else np.array(values, dtype=dtype)
    return array.reshape(cast(list[int], shape))


def _composite_problems(features: Mapping[str, Any], spec: Spec) -> list[str]:
    """Features that a `tf.io.SparseFeature` or a partitioned `tf.io.RaggedFeature` seems to stand for.

    The parser shows only the raw keys of those, all optional: without this check the rows would be built empty.
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
        f"features {composite} are sparse or ragged and the parser does not know them, while it reads {raw}, which the "
        "data does not have: these are perhaps the raw keys of a SparseFeature or of a RaggedFeature with partitions, "
        "and how they combine cannot be seen in the graph"
    ]


def _parse_row(index: int, row: Any) -> Any:
    if not isinstance(row, bytes):
        raise DataError(
            f"Row {index} is {type(row).__name__}, not bytes: expected serialized tf.Examples."
        )
    if row.startswith(_GZIP_MAGIC):
        raise DataError(
            f"Row {index} is GZIP-compressed, not a serialized tf.Example. Read the file with compression_type='GZIP'."
        )
    try:
        example = tf.train.Example.FromString(row)
    except DecodeError as error:
        raise DataError(
            f"Row {index} ({len(row)} bytes) is not a serialized tf.Example."
        ) from error
    # A SequenceExample parses as an Example too: its feature lists are an unknown field to it.
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
            return f"expects a multiple of {size} values, got {count}"
        if not feature.is_sequence and count != size:
            return f"expects {size} value{'' if size == 1 else 's'}, got {count}"
    return None


def _render(feature: FeatureSpec) -> str:
    shape = "" if feature.shape is None else f" {render_shape(feature.shape)}"
    return f"{feature.kind} {feature.dtype}{shape}"


def _dtype_name(leaf: Any) -> str:
    name = (
        getattr(leaf.dtype, "name", str(leaf.dtype))
        if hasattr(leaf, "dtype")
        else np.asarray(leaf).dtype.name
    )
    return "string" if name == "object" or name.startswith(("str", "bytes")) else str(name)
