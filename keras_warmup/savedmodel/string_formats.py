"""What a string input wants its bytes to be: the words between `consumers.py`, which finds it out, and the codecs."""

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
        shape: of one row, dense only; a leading `None` is a sequence, padded to the longest row of the batch.
        default: flat values a row without the feature gets; `None` where there is none, so the feature is required
            (unless it is a sequence: that is padded with zeros or empty strings).
        row_splits: dtype of the row splits, ragged only: `int32` or `int64`.
    """

    kind: FeatureKind
    dtype: str
    shape: tuple[int | None, ...] | None = None
    default: tuple[Any, ...] | None = dataclasses.field(default=None, repr=False)
    row_splits: str | None = None

    @property
    def is_sequence(self) -> bool:
        """Whether the number of values is free, though the parser gives a dense tensor."""
        return bool(self.kind == "dense" and self.shape and self.shape[0] is None)

    @property
    def required(self) -> bool:
        """Whether the parser fails on a row without this feature."""
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
    """Serialized `tf.SequenceExample`s: detected only."""


@dataclasses.dataclass(frozen=True)
class ImageDecoder:
    """Encoded images.

    Attributes:
        formats: among `png`, `jpeg`, `gif`, `bmp`, `webp`; lossless ones first.
        channels: channels the decoder gives; 0 for those of the file.
        dtype: dtype the decoder gives, `uint8` or `uint16`.
    """

    formats: tuple[str, ...]
    channels: int = 0
    dtype: str = "uint8"


@dataclasses.dataclass(frozen=True)
class TensorParser:
    """Serialized `TensorProto`s of one dtype, `tf.io.parse_tensor`."""

    out_type: str


@dataclasses.dataclass(frozen=True)
class RawDecoder:
    """Raw bytes of numbers, `tf.io.decode_raw`."""

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
    """Text as it is: string ops or a vocabulary read it."""


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Compressed bytes, of which the content is not looked into. `compression` is `GZIP`, `ZLIB` or empty (none)."""

    compression: str


@dataclasses.dataclass(frozen=True)
class Base64:
    """Web-safe base64 of what `inner` reads."""

    inner: StringFormat


@dataclasses.dataclass(frozen=True)
class Unknown:
    """The graph does not tell; `reason` says why."""

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


def describe_string_format(consumer: StringFormat) -> str:
    """A consumer in a few words, for people: `tf.Example with 5 features`."""
    match consumer:
        case ExampleParser(spec):
            return f"tf.Example with {len(spec)} feature{'' if len(spec) == 1 else 's'}"
        case SequenceExampleParser():
            return "tf.SequenceExample"
        case ImageDecoder(formats):
            return f"encoded image ({', '.join(formats)})"
        case TensorParser(out_type):
            return f"serialized tensor of {out_type}"
        case RawDecoder(out_type):
            return f"raw bytes of {out_type}"
        case CsvDecoder(dtypes):
            return f"CSV with {len(dtypes)} column{'' if len(dtypes) == 1 else 's'}"
        case PlainText():
            return "plain text"
        case Compressed(compression):
            return f"compressed bytes ({compression or 'no compression'})"
        case Base64(inner):
            return f"base64 of {describe_string_format(inner)}"
        case Unknown(reason):
            return f"unknown: {reason}"
