"""Replaces the values of rows by made-up ones of the same structure, dtype and shape.

What is drawn does not depend on the value in its place, besides the length and the kinds of
characters of a text, and on the others only by their range. The draws come from the operating
system's entropy, which is not kept. So there is no way back.
"""

from __future__ import annotations

import base64
import dataclasses
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup.data.batch import (
    Batch,
    FeaturePath,
    as_objects,
    map_leaves,
    render_path,
    walk,
)
from keras_warmup.keras_api import is_model, keras_of
from keras_warmup.options import Privacy

_LOOKUPS = ("StringLookup", "TextVectorization")
_JPEG, _BMP = b"\xff\xd8\xff", b"BM"
_IMAGES = (_JPEG, b"\x89PNG", b"GIF8")
_WAVE = (b"RIFF", b"WAVE")
_BMP_HEADER_BYTES = 54
_KINDS_OF_CHARACTERS = tuple(
    np.frombuffer(kind.encode(), np.uint8)
    for kind in (string.digits, string.ascii_lowercase, string.ascii_uppercase)
)
_KEPT_CHARACTERS = np.frombuffer((string.punctuation + string.whitespace).encode(), np.uint8)
# Matrices of up to so many columns are tables, whose columns have ranges of their own.
_MAX_COLUMNS = 256
# Draws that equal a real value are drawn again, so often.
_ATTEMPTS = 8


class Hider:
    """Replaces what a privacy mode hides.

    Args:
        privacy: the mode, and the features of `"redacted"`.
        vocabularies: strings that replace those of a feature which holds one of them. Defaults to
            none: made-up tokens.

    Attributes:
        privacy: as given.
        hidden: names in `privacy.features` that were found, and replaced.
    """

    def __init__(self, privacy: Privacy, vocabularies: Iterable[Sequence[bytes]] = ()) -> None:
        self.privacy = privacy
        self.hidden: set[str] = set()
        self._vocabularies = [(frozenset(words), list(words)) for words in vocabularies]
        self._random = np.random.default_rng()

    def hide_batch(self, batch: Batch, names: Mapping[FeaturePath, str] | None = None) -> Batch:
        """Returns a batch whose hidden leaves, or features of serialized Examples, are replaced.

        A leaf has the names in its path, such as `"age"`, and the whole path, such as `"x[0]"`.

        Args:
            batch: the batch.
            names: path of a leaf -> further name of it. Defaults to none.
        """
        privacy = self.privacy
        if batch.privacy.covers(privacy) and (privacy.mode != "redacted" or not names):
            return batch
        self.hidden = set()
        paths: set[str] = set()

        def replace(path: FeaturePath, leaf: Any) -> Any:
            if leaf is None:
                return None
            rendered = render_path(path)
            known = [part for part in path if isinstance(part, str)]
            own = [part for part in path[-1:] if isinstance(part, str)]
            own += [names[path]] if names and path in names else []
            if rendered in batch.hidden_paths or self._hides([rendered, *known, *own]):
                paths.add(rendered)
                self.hidden.update(own)
            # Hidden at the capture already.
            if rendered in batch.hidden_paths:
                return leaf
            return self.hide_leaf(leaf, rendered, *known, *own)

        return dataclasses.replace(
            batch,
            x=map_leaves(replace, batch.x),
            privacy=privacy,
            hidden=batch.hidden.union(self.hidden),
            hidden_paths=batch.hidden_paths.union(paths),
        )

    def hide_arrays(
        self, arrays: Mapping[str, np.ndarray], batch: Batch | None = None
    ) -> dict[str, np.ndarray]:
        """Returns a request's arrays with what is hidden replaced.

        Args:
            arrays: input name -> array, numbers or object arrays of `bytes`.
            batch: the batch that they were made of: what it hid is left. Defaults to none.
        """
        known = frozenset() if batch is None else batch.hidden
        leaves = [] if batch is None else _hidden_leaves(batch)
        return {
            name: array
            if any(_is_made_of(array, leaf) for leaf in leaves)
            else self.hide_leaf(array, name, known=known)
            for name, array in arrays.items()
        }

    def hide_leaf(self, leaf: Any, *names: str, known: frozenset[str] = frozenset()) -> Any:
        """Returns a leaf of a batch, replaced where one of its names is hidden.

        Of serialized Examples the hidden features are replaced in any case.

        Args:
            leaf: an array on the host, a `tf.RaggedTensor` or a `tf.SparseTensor`.
            *names: names of the leaf.
            known: names of features of Examples that are left.
        """
        is_hidden = self._hides(names)
        if isinstance(leaf, tf.RaggedTensor):
            values = self._hide_values(leaf.flat_values.numpy(), is_hidden, known)
            return leaf.with_flat_values(tf.constant(values, leaf.dtype))
        if isinstance(leaf, tf.SparseTensor):
            return self._hide_sparse(leaf) if is_hidden else leaf
        return self._hide_values(leaf, is_hidden, known)

    def hide_examples(
        self,
        examples: Sequence[Any],
        known: frozenset[str] = frozenset(),
        *,
        is_hidden: bool = False,
    ) -> Sequence[Any]:
        """Replaces the hidden features of `tf.train.SequenceExample`s, in place.

        An Example is a SequenceExample without feature lists.

        Args:
            examples: the Examples.
            known: names of features that are left.
            is_hidden: whether all features are hidden. Defaults to `False`.
        """
        by_name: dict[str, list[Any]] = {}
        for example in examples:
            for name, feature in example.context.feature.items():
                by_name.setdefault(name, []).append(feature)
            for name, features in example.feature_lists.feature_list.items():
                by_name.setdefault(name, []).extend(features.feature)
        for name in sorted(by_name.keys() - known):
            if self._hides([name]) or is_hidden:
                for kind in ("bytes_list", "float_list", "int64_list"):
                    lists = [getattr(one, kind) for one in by_name[name] if one.HasField(kind)]
                    self._hide_lists(lists)
        return examples

    def hide_numbers(self, array: np.ndarray) -> np.ndarray:
        """Returns an array of other numbers inside its range, dtype and shape kept.

        Each column of a table has a range of its own.
        """
        if array.ndim == 2 and 1 < array.shape[1] <= _MAX_COLUMNS and array.shape[0] > 1:
            columns = [self.hide_numbers(column) for column in array.T]
            return np.stack(columns, axis=1)
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
        """Returns other images, sounds, words of a vocabulary, or tokens, in place of strings."""
        real = set(values)
        for words, listed in self._vocabularies:
            if not real.isdisjoint(words):
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

        Among Examples, what cannot be read as one may hold a hidden feature, and is replaced.
        """
        values = [one.encode() if isinstance(one, str) else bytes(one) for one in array.ravel()]
        examples = [read_example(value) for value in values]
        is_wrapped = not any(examples)
        if is_wrapped:
            examples = [read_example(_unwrap(value)) for value in values]
        if any(examples):
            found = [one for one in examples if one is not None]
            self.hide_examples(found, known, is_hidden=is_hidden)
            written = [
                None if one is None else one.SerializeToString(deterministic=True)
                for one in examples
            ]
            values = [
                (self._hide_one(value) if value else value)
                if one is None
                else base64.urlsafe_b64encode(one)
                if is_wrapped
                else one
                for value, one in zip(values, written, strict=True)
            ]
        elif is_hidden:
            values = self.hide_bytes(values)
        else:
            return array
        return as_objects(values).reshape(array.shape)

    def _hide_sparse(self, leaf: tf.SparseTensor) -> tf.SparseTensor:
        """Replaces values and columns: the columns of a bag of words are its words."""
        shape, indices = leaf.dense_shape.numpy(), leaf.indices.numpy()
        if len(shape) > 1:
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
        values = self._hide_values(leaf.values.numpy(), True, frozenset())
        return tf.SparseTensor(indices, tf.constant(values, leaf.dtype), shape)

    def _draw_integers(
        self, values: np.ndarray, dtype: np.dtype[Any], count: int | None = None
    ) -> np.ndarray:
        """Draws as many integers as there are values, or `count`, as an array of the dtype."""
        if not values.size:
            return np.zeros(count or 0, dtype)
        low, high = _widened(int(values.min()), int(values.max()))
        if (low, high) in ((0, 0), (-1, 0)):
            low, high = 0, 1  # a flag may be either

        def draw(size: int) -> np.ndarray:
            drawn = self._random.integers(low, high, size, dtype=values.dtype, endpoint=True)
            return drawn.astype(dtype)

        # Where most of a range is taken, no draw could avoid it.
        is_dense = 2 * np.unique(values).size > high - low
        size = values.size if count is None else count
        return draw(size) if is_dense else _redrawn(draw, size, values.astype(dtype))

    def _hide_lists(self, lists: Sequence[Any]) -> None:
        """Replaces the values of the lists of one feature, which share a range."""
        values = [value for one in lists for value in one.value]
        if not values:
            return
        if isinstance(values[0], bytes):
            drawn: Sequence[Any] = self.hide_bytes(values)
        else:
            dtype = np.int64 if isinstance(values[0], int) else np.float32
            drawn = self.hide_numbers(np.array(values, dtype)).tolist()
        start = 0
        for one in lists:
            count = len(one.value)
            one.value[:] = drawn[start : start + count]
            start += count

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
        except (tf.errors.OpError, ValueError):
            return self._random.bytes(len(value))
        if value.startswith(_BMP) and len(value) > _BMP_HEADER_BYTES:
            header = value[:_BMP_HEADER_BYTES]
            return header + self._random.bytes(len(value) - _BMP_HEADER_BYTES)
        return self._text_like(value)

    def _text_like(self, value: bytes) -> bytes:
        """Returns other characters of the same kinds; punctuation and spaces stay.

        Other bytes are replaced by any bytes.
        """
        try:
            is_text = value.decode().replace("\n", "").replace("\t", "").isprintable()
        except UnicodeDecodeError:
            is_text = False
        if not is_text:
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
    """Draws values, again where they equal a real one, but not for ever."""
    drawn = draw(count)
    for _ in range(_ATTEMPTS):
        clash = np.isin(drawn, real)
        if not clash.any():
            break
        drawn[clash] = draw(int(clash.sum()))
    return drawn


def _widened(low: Any, high: Any) -> tuple[Any, Any]:
    """Returns a range with zero in it, where its ends would tell the values.

    Few rows, as a record holds them, may lie close together: so do ids that were given in order.
    Ids stay below the largest one.
    """
    if high - low < max(abs(low), abs(high)) / 2:
        return min(low, 0), max(high, 0)
    return low, high


def _hidden_leaves(batch: Batch) -> list[np.ndarray]:
    return [
        leaf
        for path, leaf in walk(batch.x)
        if render_path(path) in batch.hidden_paths and isinstance(leaf, np.ndarray)
    ]


def _is_made_of(array: np.ndarray, leaf: np.ndarray) -> bool:
    """Returns whether an input holds the values of a leaf, which may have been cast."""
    if array.size != leaf.size or (array.dtype.kind == "O") != (leaf.dtype.kind == "O"):
        return False
    return bool(np.array_equal(array.ravel(), leaf.ravel().astype(array.dtype)))


def _unwrap(value: bytes) -> bytes:
    """Decodes base64 as `tf.io.decode_base64` does; returns nothing where it is none."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), b"-_", validate=True)
    except ValueError:
        return b""


def read_example(value: bytes) -> Any | None:
    """Reads a serialized Example or SequenceExample; `None` where the bytes are none."""
    example = tf.train.SequenceExample()
    try:
        example.ParseFromString(value)
    except DecodeError:
        return None
    example.DiscardUnknownFields()
    has_features = example.context.feature or example.feature_lists.feature_list
    # Other writers may add fields, or write the same ones in another form.
    return example if has_features and 2 * example.ByteSize() >= len(value) else None


def vocabularies_of(model: Any) -> list[list[bytes]]:
    """Returns the vocabularies of the lookup layers of a Keras model; none of another object."""
    if not is_model(model):
        return []
    layers = keras_of(model).layers
    lookups = tuple(getattr(layers, name) for name in _LOOKUPS)
    found = []
    for layer in model._flatten_layers():
        if isinstance(layer, lookups):
            words = layer.get_vocabulary(include_special_tokens=False)
            found.append([str(word).encode() for word in words])
    return [words for words in found if words]


def known_features(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names of a request's inputs; of serialized Examples, those of their features."""
    names: set[str] = set()
    for name, array in arrays.items():
        if array.dtype.kind != "O":
            names.add(name)
            continue
        for value in array.ravel():
            example = read_example(value) or read_example(_unwrap(value))
            if example is None:
                names.update([name] if value else [])
            else:
                names.update(example.context.feature, example.feature_lists.feature_list)
    return sorted(names)
