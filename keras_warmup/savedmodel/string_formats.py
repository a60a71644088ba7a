"""The byte formats of string inputs: what `string_inputs.py` finds and `binding` encodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

FeatureKind = Literal["dense", "sparse", "ragged"]


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """How a parser reads one feature.

    Attributes:
        kind: `dense`, `sparse` or `ragged`.
        dtype: `int64`, `float32` or `string`.
        shape: shape in one row, for dense features. A leading `None` is a sequence, which is padded
            to the longest row of the batch.
        default: flat values of the feature in a row without it. `None` where there is no default:
            then the feature is required, unless it is a sequence, which is padded with zeros or
            empty strings.
        row_splits: dtype of the row splits, `int32` or `int64`, for ragged features.
        image: decoder that reads a dense string feature; `None` for other features.
    """

    kind: FeatureKind
    dtype: str
    shape: tuple[int | None, ...] | None = None
    default: tuple[Any, ...] | None = dataclasses.field(default=None, repr=False)
    row_splits: str | None = None
    image: ImageDecoder | None = None

    @property
    def is_sequence(self) -> bool:
        """Returns whether a dense feature has a free number of values."""
        return bool(self.kind == "dense" and self.shape and self.shape[0] is None)

    @property
    def required(self) -> bool:
        """Returns whether the parser fails on a row without this feature."""
        return self.kind == "dense" and not self.is_sequence and self.default is None


@dataclasses.dataclass(frozen=True)
class ExampleParser:
    """Serialized `tf.Example`s.

    Attributes:
        spec: feature key -> how it is parsed.
    """

    spec: Mapping[str, FeatureSpec]


@dataclasses.dataclass(frozen=True)
class SequenceExampleParser:
    """Serialized `tf.SequenceExample`s, which are recognized but not encoded."""


@dataclasses.dataclass(frozen=True)
class ImageDecoder:
    """Encoded images.

    Attributes:
        formats: among `png`, `jpeg`, `gif`, `bmp`, `webp`; lossless ones first.
        channels: channels of the decoded image; 0 for those of the file.
        dtype: dtype of the decoded image, `uint8` or `uint16`.
    """

    formats: tuple[str, ...]
    channels: int = 0
    dtype: str = "uint8"


@dataclasses.dataclass(frozen=True)
class TensorParser:
    """Serialized `TensorProto`s of one dtype, read by `tf.io.parse_tensor`."""

    out_type: str


@dataclasses.dataclass(frozen=True)
class RawDecoder:
    """Raw bytes of numbers, read by `tf.io.decode_raw`."""

    out_type: str
    little_endian: bool = True


@dataclasses.dataclass(frozen=True)
class CsvDecoder:
    """Lines of CSV.

    Attributes:
        dtypes: dtype of each column.
        delimiter: between fields.
    """

    dtypes: tuple[str, ...]
    delimiter: str = ","


@dataclasses.dataclass(frozen=True)
class PlainText:
    """Text, read by string ops or a vocabulary."""


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Compressed bytes; the format of their content is not traced.

    Attributes:
        compression: `GZIP`, `ZLIB`, or empty for none.
    """

    compression: str


@dataclasses.dataclass(frozen=True)
class Base64:
    """Web-safe base64.

    Attributes:
        inner: format of the decoded bytes.
    """

    inner: StringFormat


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A format that the graph does not reveal.

    Attributes:
        reason: why, as a clause without a full stop.
    """

    reason: str


StringFormat: TypeAlias = (
    ExampleParser
    | SequenceExampleParser
    | ImageDecoder
    | TensorParser
    | RawDecoder
    | CsvDecoder
    | PlainText
    | Compressed
    | Base64
    | Unknown
)


def describe_string_format(string_format: StringFormat) -> str:
    """Returns a short description for people, such as `tf.Example with 5 features`."""
    match string_format:
        case ExampleParser(spec):
            return f"tf.Example with {len(spec)} {'feature' if len(spec) == 1 else 'features'}"
        case SequenceExampleParser():
            return "tf.SequenceExample"
        case ImageDecoder(formats):
            return f"encoded image ({', '.join(formats)})"
        case TensorParser(out_type):
            return f"serialized tensor of {out_type}"
        case RawDecoder(out_type):
            return f"raw bytes of {out_type}"
        case CsvDecoder(dtypes):
            return f"CSV with {len(dtypes)} {'column' if len(dtypes) == 1 else 'columns'}"
        case PlainText():
            return "plain text"
        case Compressed(compression):
            return f"compressed bytes ({compression or 'no compression'})"
        case Base64(inner):
            return f"base64 of {describe_string_format(inner)}"
        case Unknown(reason):
            return f"unknown: {reason}"
