"""Replaces the values of rows by made-up ones of the same structure, dtype and shape.

What is drawn does not depend on the value in its place, besides the length and the kinds of
characters of a text, and on the others only by their range. The draws come from the operating
system's entropy, which is not kept. So there is no way back.

What cannot be read with certainty is replaced as a whole: bytes that merely resemble a serialized
Example or a bitmap would keep the values that lie where such a format has names or a header.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import string
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup._protos import ExampleListWithContext
from keras_warmup.data.batch import Batch, FeaturePath, as_objects, map_leaves, render_path
from keras_warmup.errors import OptionsError
from keras_warmup.keras_api import is_model, keras_of
from keras_warmup.options import Privacy

_LOOKUPS = ("StringLookup", "TextVectorization")
_JPEG, _BMP = b"\xff\xd8\xff", b"BM"
_IMAGES = (_JPEG, b"\x89PNG", b"GIF8")
_WAVE = (b"RIFF", b"WAVE")
_BMP_HEADER_BYTES = 54
# Sizes of the second header of a bitmap that TensorFlow decodes: BITMAPINFOHEADER and later ones.
_BMP_INFO_BYTES = (40, 52, 56, 108, 124)
_KINDS_OF_CHARACTERS = tuple(
    np.frombuffer(kind.encode(), np.uint8)
    for kind in (string.digits, string.ascii_lowercase, string.ascii_uppercase)
)
_KEPT_CHARACTERS = np.frombuffer((string.punctuation + string.whitespace).encode(), np.uint8)
# No text has these; line ends, tabs and form feeds are whitespace.
_CONTROL_CHARACTERS = bytes({*range(32), 127} - set(string.whitespace.encode()))
# Matrices of up to so many columns are tables, whose columns have ranges of their own.
_MAX_COLUMNS = 256
# Draws that equal a real value are drawn again, so often, where there are at most so many.
_ATTEMPTS = 8
_MAX_COMPARED = 2**16
_LIST_KINDS = ("bytes_list", "float_list", "int64_list")


class Hider:
    """Replaces what a privacy mode hides.

    Args:
        privacy: the mode, and the features of `"redacted"`.
        vocabularies: returns strings that replace those of a feature which holds some of them. It
            is called once, when the first strings are replaced. Defaults to none: made-up tokens.
        keeps_words: whether the values are made up already: only strings that are not all in one
            of the vocabularies are replaced, by made-up tokens. Defaults to `False`.

    Attributes:
        privacy: as given.
        hidden: names in `privacy.features` that were found, and replaced.
    """

    def __init__(
        self,
        privacy: Privacy,
        vocabularies: Callable[[], Iterable[Sequence[bytes]]] = tuple,
        *,
        keeps_words: bool = False,
    ) -> None:
        self.privacy = privacy
        self.hidden: set[str] = set()
        self._read_vocabularies = vocabularies
        self._keeps_words = keeps_words
        self._random = np.random.default_rng()

    @functools.cached_property
    def _vocabularies(self) -> list[tuple[frozenset[bytes], list[bytes]]]:
        return [(frozenset(words), list(words)) for words in self._read_vocabularies()]

    def hide_batch(
        self, batch: Batch, names: Mapping[FeaturePath, Sequence[str]] | None = None
    ) -> Batch:
        """Returns a batch whose hidden leaves, or features of serialized Examples, are replaced.

        A leaf has the names in its path, such as `"age"`, and the whole path, such as `"x[0]"`.

        Args:
            batch: the batch.
            names: path of a leaf -> further names of it. Defaults to none.

        Raises:
            OptionsError: a feature to hide is a column of an array that was a DataFrame.
        """
        privacy = self.privacy
        columns = sorted(privacy.features & batch.columns)
        if columns:
            raise OptionsError(
                f"Cannot redact {columns}: these are columns of a DataFrame of numbers, which is "
                "one input without names of columns. Pass dict(frame), with an input for each "
                "column, or privacy='synthetic'."
            )
        if batch.privacy.covers(privacy) and (privacy.mode != "redacted" or not names):
            return batch
        self.hidden = set()
        paths: set[str] = set()
        # The last key of a path names its leaf where no other leaf of that key is left real.
        replaced: set[str] = set()
        left: set[str] = set()

        def replace(path: FeaturePath, leaf: Any) -> Any:
            if leaf is None:
                return None
            rendered = render_path(path)
            known = [part for part in path if isinstance(part, str)]
            own = [part for part in path[-1:] if isinstance(part, str)]
            own += (names or {}).get(path, ())
            if rendered in batch.hidden_paths or self._hides([rendered, *known, *own]):
                paths.add(rendered)
                replaced.update(own)
            else:
                left.update(own)
                if isinstance(leaf, np.ndarray):
                    left.update(known_features({rendered: leaf}))
            # Hidden at the capture already.
            if rendered in batch.hidden_paths:
                return leaf
            return self.hide_leaf(leaf, rendered, *known, *own)

        x = map_leaves(replace, batch.x)
        return dataclasses.replace(
            batch,
            x=x,
            privacy=privacy,
            hidden=frozenset((batch.hidden | replaced) - left | self.hidden),
            hidden_paths=batch.hidden_paths.union(paths),
        )

    def renew_words(self, batch: Batch) -> Batch:
        """Returns a batch without words of vocabularies other than those given here.

        What was replaced in `fit` may be words of the trained model, which the exported model need
        not hold.

        Args:
            batch: a batch of which some values were replaced already.
        """
        if batch.privacy.mode == "none":
            return batch
        again = Hider(
            Privacy("redacted", batch.hidden | batch.hidden_paths),
            lambda: [listed for _, listed in self._vocabularies],
            keeps_words=True,
        )
        x = map_leaves(
            lambda path, leaf: None if leaf is None else again.hide_leaf(leaf, render_path(path)),
            batch.x,
        )
        return dataclasses.replace(batch, x=x)

    def hide_arrays(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        left: frozenset[str] = frozenset(),
        known: frozenset[str] = frozenset(),
    ) -> dict[str, np.ndarray]:
        """Returns a request's arrays with what is hidden replaced.

        Args:
            arrays: input name -> array, numbers or object arrays of `bytes`.
            left: inputs that were replaced already. Defaults to none.
            known: features of Examples that were replaced already. Defaults to none.
        """
        return {
            name: array if name in left else self.hide_leaf(array, name, known=known)
            for name, array in arrays.items()
        }

    def hide_leaf(self, leaf: Any, *names: str, known: frozenset[str] = frozenset()) -> Any:
        """Returns a leaf of a batch, replaced where one of its names is hidden.

        Of serialized Examples the hidden features are replaced in any case.

        Args:
            leaf: an array on the host, a `tf.RaggedTensor` or a `tf.SparseTensor`.
            *names: names of the leaf.
            known: names of features of Examples that are left.

        Returns:
            The same object where nothing in it is hidden.
        """
        is_hidden = self._hides(names)
        if isinstance(leaf, tf.RaggedTensor):
            real = leaf.flat_values.numpy()
            values = self._hide_values(real, is_hidden, known)
            return (
                leaf if values is real else leaf.with_flat_values(tf.constant(values, leaf.dtype))
            )
        if isinstance(leaf, tf.SparseTensor):
            return self._hide_sparse(leaf, is_hidden, known)
        return self._hide_values(leaf, is_hidden, known)

    def hide_examples(
        self,
        examples: Sequence[Any],
        known: frozenset[str] = frozenset(),
        *,
        is_hidden: bool = False,
    ) -> set[int]:
        """Replaces the hidden features of Examples, in place.

        Args:
            examples: `tf.train.Example`s, `tf.train.SequenceExample`s or
                `ExampleListWithContext`s.
            known: names of features that are left.
            is_hidden: whether all features are hidden. Defaults to `False`.

        Returns:
            Indices of the Examples in which something was replaced.
        """
        by_name: dict[str, list[tuple[int, Any]]] = {}
        for index, example in enumerate(examples):
            for name, feature in _named_features(example):
                by_name.setdefault(name, []).append((index, feature))
        changed: set[int] = set()
        for name in sorted(by_name.keys() - known):
            hides = self._hides([name]) or is_hidden
            for kind in _LIST_KINDS:
                lists = [
                    (index, getattr(feature, kind))
                    for index, feature in by_name[name]
                    if feature.HasField(kind)
                ]
                # The strings may be Examples, with hidden features of their own.
                if (hides or kind == "bytes_list") and self._hide_lists(
                    [values for _, values in lists], hides, known
                ):
                    changed.update(index for index, _ in lists)
        return changed

    def hide_numbers(self, array: np.ndarray) -> np.ndarray:
        """Returns an array of other numbers inside its range, dtype and shape kept.

        Each column of a table, or of a sequence of rows, has a range of its own.
        """
        if self._keeps_words:
            return array
        if _has_columns(array):
            table = array.reshape(-1, array.shape[-1])
            columns = [self.hide_numbers(column) for column in table.T]
            return np.stack(columns, axis=1).reshape(array.shape)
        if array.dtype.kind == "b":
            return self._random.integers(0, 2, array.shape).astype(bool)
        if array.dtype.kind == "c":
            parts = [self.hide_numbers(part) for part in (array.real, array.imag)]
            return np.asarray(parts[0] + 1j * parts[1], array.dtype)
        values = array.ravel().astype(array.dtype.newbyteorder("="))
        if array.dtype.kind in "iu":
            drawn = self._draw_integers(values, values.dtype)
            return drawn.astype(array.dtype).reshape(array.shape)
        finite = values[np.isfinite(values)].astype(np.float64)
        if not finite.size:
            return np.zeros_like(array)
        if np.abs(finite).max() < 2**53 and bool(np.all(finite == np.rint(finite))):
            drawn = self._draw_integers(finite.astype(np.int64), values.dtype, values.size)
            return drawn.astype(array.dtype).reshape(array.shape)
        low, high = _widened(float(finite.min()), float(finite.max()))

        def draw(count: int) -> np.ndarray:
            shares = self._random.uniform(size=count)
            return np.asarray(low * (1 - shares) + high * shares, values.dtype)

        return _redrawn(draw, values.size, values).astype(array.dtype).reshape(array.shape)

    def hide_bytes(self, values: Sequence[bytes]) -> list[bytes]:
        """Returns other images, sounds, words of a vocabulary, or tokens, in place of strings.

        The vocabulary is the one that holds most of the strings; of two, the smaller one.
        """
        real = set(values)
        if self._keeps_words:
            is_known = any(words.issuperset(real) for words, _ in self._vocabularies)
            return list(values) if is_known else [self._hide_one(value) for value in values]
        found = [
            (len(real & words), -len(words), listed)
            for words, listed in self._vocabularies
            if not words.isdisjoint(real)
        ]
        if found:
            _, _, listed = max(found, key=lambda one: one[:2])
            others = [word for word in listed if word not in real] or listed
            return [others[at] for at in self._random.integers(len(others), size=len(values))]
        return [self._hide_one(value) for value in values]

    def _hides(self, names: Iterable[str]) -> bool:
        """Returns whether a feature of any of the names is hidden; notes the names found."""
        found = self.privacy.features.intersection(names)
        self.hidden.update(found)
        return self.privacy.mode == "synthetic" or bool(found)

    def _hide_values(self, array: Any, is_hidden: bool, known: frozenset[str]) -> np.ndarray:
        if array.dtype.kind in "OSU":
            return self._hide_strings(np.asarray(array, object), is_hidden, known)
        return self.hide_numbers(np.asarray(array)) if is_hidden else array

    def _hide_strings(
        self, array: np.ndarray, is_hidden: bool, known: frozenset[str]
    ) -> np.ndarray:
        """Replaces strings; of serialized Examples, the hidden features.

        Where features of Examples are replaced, what cannot be read as one may hold them too, and
        becomes an empty one.
        """
        values = [one.encode() if isinstance(one, str) else bytes(one) for one in array.ravel()]
        read = [(at, *_read_wrapped(value)) for at, value in enumerate(values)]
        found = [one for one in read if one[1] is not None]
        if not found:
            return as_objects(self.hide_bytes(values)).reshape(array.shape) if is_hidden else array
        changed = self.hide_examples([one for _, one, _ in found], known, is_hidden=is_hidden)
        if not changed and not is_hidden:
            return array
        made = [b""] * len(values)
        for index, (at, example, is_wrapped) in enumerate(found):
            made[at] = values[at]
            if index in changed or is_hidden:
                # Unknown fields may hold anything.
                example.DiscardUnknownFields()
                written = example.SerializeToString(deterministic=True)
                made[at] = base64.urlsafe_b64encode(written) if is_wrapped else written
        return as_objects(made).reshape(array.shape)

    def _hide_sparse(
        self, leaf: tf.SparseTensor, is_hidden: bool, known: frozenset[str]
    ) -> tf.SparseTensor:
        """Replaces values and columns: the columns of a bag of words are its words."""
        shape, indices, real = leaf.dense_shape.numpy(), leaf.indices.numpy(), leaf.values.numpy()
        values = self._hide_values(real, is_hidden, known)
        if values is real:
            return leaf
        if len(shape) > 1 and is_hidden:
            rows = indices[:, 0]
            width = int(np.prod(shape[1:], dtype=np.int64))
            columns = np.empty(len(rows), np.int64)
            for row in np.unique(rows):
                where = rows == row
                count = int(where.sum())
                # Entries may be repeated, in a tensor that no op has checked.
                drawn = self._random.choice(width, count, replace=count > width)
                columns[where] = np.sort(drawn)
            indices = np.column_stack([rows, *np.unravel_index(columns, shape[1:])])
        return tf.SparseTensor(indices, tf.constant(values, leaf.dtype), shape)

    def _draw_integers(
        self, values: np.ndarray, dtype: np.dtype[Any], count: int | None = None
    ) -> np.ndarray:
        """Draws as many integers as there are values, or `count`, as an array of the dtype."""
        if not values.size:
            return np.zeros(count or 0, dtype)
        low, high = _widened(int(values.min()), int(values.max()))

        def draw(size: int) -> np.ndarray:
            drawn = self._random.integers(low, high, size, dtype=values.dtype, endpoint=True)
            return drawn.astype(dtype)

        # Where most of a range is taken, no draw could avoid it.
        is_dense = 2 * np.unique(values).size > high - low
        size = values.size if count is None else count
        return draw(size) if is_dense else _redrawn(draw, size, values.astype(dtype))

    def _hide_lists(self, lists: Sequence[Any], is_hidden: bool, known: frozenset[str]) -> bool:
        """Replaces the values of the lists of one feature, which share a range.

        Returns:
            Whether any was replaced.
        """
        values = [value for one in lists for value in one.value]
        if not values:
            return False
        if isinstance(values[0], bytes):
            real = as_objects(values)
        else:
            real = np.array(values, np.int64 if isinstance(values[0], int) else np.float32)
        hidden = self._hide_values(real, is_hidden, known)
        if hidden is real:
            return False
        drawn, start = hidden.tolist(), 0
        for one in lists:
            count = len(one.value)
            one.value[:] = drawn[start : start + count]
            start += count
        return True

    def _hide_one(self, value: bytes) -> bytes:
        try:
            if value.startswith(_IMAGES):
                image = tf.io.decode_image(value, expand_animations=False)
                noise = self._random.integers(0, 256, image.shape, np.uint8)
                encode = tf.io.encode_jpeg if value.startswith(_JPEG) else tf.io.encode_png
                return bytes(encode(noise).numpy())
            if (value[:4], value[8:12]) == _WAVE:
                sound, rate = tf.audio.decode_wav(value)
                noise = self._random.uniform(-1, 1, sound.shape).astype(np.float32)
                return bytes(tf.audio.encode_wav(noise, rate).numpy())
            if _is_bitmap(value):
                return self._bitmap_like(tf.io.decode_bmp(value).shape)
        except (tf.errors.OpError, ValueError):
            return self._random.bytes(len(value))
        return self._text_like(value)

    def _bitmap_like(self, shape: Sequence[int]) -> bytes:
        """Returns a bitmap of noise `[height, width, channels]`, with a header of its own."""
        height, width, channels = shape
        row_bytes = -(-width * channels // 4) * 4
        size = _BMP_HEADER_BYTES + height * row_bytes
        first = struct.pack("<2sIHHI", _BMP, size, 0, 0, _BMP_HEADER_BYTES)
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8 * channels, *[0] * 6)
        return first + info + self._random.bytes(height * row_bytes)

    def _text_like(self, value: bytes) -> bytes:
        """Returns other characters of the same kinds; punctuation and spaces stay.

        Other bytes are replaced by any bytes.
        """
        try:
            value.decode()
        except UnicodeDecodeError:
            return self._random.bytes(len(value))
        if len(value.translate(None, _CONTROL_CHARACTERS)) < len(value):
            return self._random.bytes(len(value))
        real = np.frombuffer(value, np.uint8)
        for _ in range(_ATTEMPTS):
            token = self._random.choice(_KINDS_OF_CHARACTERS[1], real.size)
            for kind in _KINDS_OF_CHARACTERS:
                where = np.flatnonzero(np.isin(real, kind))
                token[where] = self._random.choice(kind, where.size)
            kept = np.isin(real, _KEPT_CHARACTERS)
            if not kept.all():
                token[kept] = real[kept]
            if token.tobytes() != value:
                break
        return token.tobytes() if real.size else value


def _redrawn(draw: Callable[[int], np.ndarray], count: int, real: np.ndarray) -> np.ndarray:
    """Draws values, again where they equal a real one, but not for ever.

    Among many values, one that equals another one tells nothing, and the comparison takes seconds.
    """
    drawn = draw(count)
    if max(count, real.size) > _MAX_COMPARED:
        return drawn
    for _ in range(_ATTEMPTS):
        clash = np.isin(drawn, real)
        if not clash.any():
            break
        drawn[clash] = draw(int(clash.sum()))
    return drawn


def _has_columns(array: np.ndarray) -> bool:
    """Returns whether the last dimension of an array are columns with ranges of their own.

    The range of one row is that of its values: ids stay valid with it, but flags and measurements
    would tell which of them are zero.
    """
    if array.ndim < 2 or not array.size or not 1 < array.shape[-1] <= _MAX_COLUMNS:
        return False
    is_one_row = array.size == array.shape[-1]
    return not is_one_row or (array.dtype.kind in "iu" and int(array.max()) > 1)


def _widened(low: Any, high: Any) -> tuple[Any, Any]:
    """Returns a range with zero in it, where its ends would tell the values.

    Few rows, as a record holds them, may lie close together: so do ids that were given in order.
    Ids stay below the largest one.
    """
    if high - low < max(abs(low), abs(high)) / 2:
        return min(low, 0), max(high, 0)
    return low, high


def _is_bitmap(value: bytes) -> bool:
    """Returns whether the header of a bitmap agrees with its bytes: a text may begin with "BM"."""
    if not value.startswith(_BMP) or len(value) <= _BMP_HEADER_BYTES:
        return False
    size, _, offset, info_bytes = struct.unpack("<IIII", value[2:18])
    return size == len(value) and info_bytes in _BMP_INFO_BYTES and 14 + info_bytes <= offset < size


def _unwrap(value: bytes) -> bytes:
    """Decodes base64 as `tf.io.decode_base64` does; returns nothing where it is none."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), b"-_", validate=True)
    except ValueError:
        return b""


def read_example(value: bytes) -> Any | None:
    """Reads a serialized Example; `None` where the bytes are none.

    Any message of nested strings parses as an Example whose names are these strings. So are the
    names required to be printable, and the features to have values.

    Returns:
        A `tf.train.SequenceExample`, which an Example is too, or an `ExampleListWithContext`.
    """
    for kind in (tf.train.SequenceExample, ExampleListWithContext):
        message = kind()
        try:
            message.ParseFromString(value)
        except DecodeError:
            continue
        features = list(_named_features(message))
        has_values = any(
            getattr(feature, kind_of_list).value
            for _, feature in features
            if (kind_of_list := feature.WhichOneof("kind"))
        )
        # A feature without values is written in full by the Example protos.
        is_complete = message.ByteSize() == len(value) or all(
            feature.WhichOneof("kind") for _, feature in features
        )
        if has_values and is_complete and all(name.isprintable() and name for name, _ in features):
            return message
    return None


def _read_wrapped(value: bytes) -> tuple[Any, bool]:
    """Reads a serialized Example, else one in base64; returns also whether it was in base64."""
    example = read_example(value)
    if example is not None:
        return example, False
    return read_example(_unwrap(value)), True


def _named_features(example: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name and each feature of an Example of any of the three kinds."""
    if isinstance(example, ExampleListWithContext):
        for one in (*example.examples, example.context):
            yield from one.features.feature.items()
    elif isinstance(example, tf.train.Example):
        yield from example.features.feature.items()
    else:
        yield from example.context.feature.items()
        for name, features in example.feature_lists.feature_list.items():
            for feature in features.feature:
                yield name, feature


def vocabularies_of(model: Any) -> list[list[bytes]]:
    """Returns the vocabularies of the lookup layers of a Keras model; none of another object."""
    if not is_model(model):
        return []
    layers = keras_of(model).layers
    lookups = tuple(getattr(layers, name) for name in _LOOKUPS)
    found = []
    for layer in model._flatten_layers():
        # A layer of the user's may raise anything; the words of this one are then made up.
        with contextlib.suppress(Exception):
            if isinstance(layer, lookups):
                words = layer.get_vocabulary(include_special_tokens=False)
                encoding = getattr(layer, "encoding", None) or "utf-8"
                found.append([str(word).encode(encoding) for word in words])
    return [words for words in found if words]


def known_features(
    arrays: Mapping[str, np.ndarray], hidden: frozenset[str] = frozenset()
) -> list[str]:
    """Returns the names of a request's inputs; of serialized Examples, those of their features.

    Args:
        arrays: input name -> array.
        hidden: names of features of Examples that are left out. Defaults to none.
    """
    names: set[str] = set()
    for name, array in arrays.items():
        if array.dtype.kind != "O":
            names.add(name)
            continue
        for value in array.ravel():
            example, _ = _read_wrapped(value)
            if example is None:
                names.update([name] if value else [])
            else:
                names.update({feature for feature, _ in _named_features(example)} - hidden)
    return sorted(names)
