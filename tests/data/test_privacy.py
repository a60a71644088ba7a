"""Tests of `keras_warmup.data.privacy`: other values of the same structure."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.data.batch import Batch
from keras_warmup.data.privacy import Hider, known_features, read_example, vocabularies_of
from keras_warmup.options import Privacy

SYNTHETIC = Privacy("synthetic")


def hide(array: Any, **options: Any) -> Any:
    return Hider(SYNTHETIC, **options).hide_leaf(array)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_integers_are_others_inside_the_range(dtype: str) -> None:
    real = np.array([[3, 100], [7, 90]], dtype)
    hidden = hide(real)
    assert hidden.dtype == real.dtype and hidden.shape == real.shape
    assert hidden[:, 0].min() >= 3 and hidden[:, 0].max() <= 7 and hidden.max() <= 100
    assert not any(np.isin(a, b).any() for a, b in zip(hidden.T, real.T, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_others_inside_the_range(dtype: str) -> None:
    real = np.random.default_rng(0).normal(5, 2, (8, 3)).astype(dtype)
    hidden = hide(real)
    assert hidden.dtype == real.dtype and hidden.shape == real.shape
    assert hidden.min() >= min(real.min(), 0) and hidden.max() <= real.max()
    assert not any(np.isin(a, b).any() for a, b in zip(hidden.T, real.T, strict=True))


@pytest.mark.parametrize("value", [987654321, -987654321, 123456.789, np.float32(0.1)])
def test_the_only_value_of_a_feature_is_not_kept(value: Any) -> None:
    hidden = hide(np.array([value, value, value]))
    assert not (hidden == value).any()
    assert np.abs(hidden).max() <= abs(value)


@pytest.mark.parametrize(
    "real",
    [np.zeros((0, 3)), np.array([np.nan, np.inf]), np.array([True, False]), np.array(4.5)],
    ids=["no rows", "not finite", "bool", "scalar"],
)
def test_shapes_and_dtypes_stay(real: np.ndarray) -> None:
    hidden = hide(real)
    assert hidden.shape == real.shape and hidden.dtype == real.dtype
    assert np.isfinite(hidden.astype(float)).all()


def test_a_full_range_is_drawn_from_as_it_is() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(4)
    hidden = hide(pixels)
    assert len(np.unique(hidden)) > 200
    assert not np.array_equal(hidden, pixels)


def test_strings_keep_their_length_and_kinds_of_characters() -> None:
    real = [b"Ada-42 Lovelace", "Zoë".encode(), b"", b"  --", b"2024-05-17"]
    hidden = hide(np.array(real, object))
    assert [len(one) for one in hidden] == [len(one) for one in real]
    first = hidden[0].decode()
    assert first[0].isupper() and first[1:3].islower() and first[3] == "-"
    assert first[4:6].isdigit() and first[6] == " "
    assert all(one != other for one, other in zip(real, hidden, strict=True) if one)


@pytest.mark.parametrize("real", [bytes(range(200, 256)), bytes([32] * 20 + [255]), b"\x00 ," * 9])
def test_other_bytes_are_all_replaced(real: bytes) -> None:
    assert sum(a == b for a, b in zip(real, hide(np.array([real], object))[0], strict=True)) < 9


def test_words_come_from_the_vocabulary_that_has_one_of_them() -> None:
    x = keras.Input((1,), dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=["red", "green", "blue"], num_oov_indices=0)
    model = keras.Model(x, lookup(x))
    vocabularies = vocabularies_of(model)
    assert vocabularies == [[b"red", b"green", b"blue"]]
    hidden = hide(np.array([[b"red"], [b"red"]], object), vocabularies=vocabularies)
    assert set(hidden.ravel()) <= {b"green", b"blue"}


def test_the_features_of_examples_are_replaced_by_name() -> None:
    def example(name: bytes, age: int) -> bytes:
        feature = {
            "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name])),
            "age": tf.train.Feature(int64_list=tf.train.Int64List(value=[age, age + 1])),
        }
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    real = np.array([example(b"Ada", 36), example(b"Grace", 85)], object)
    hider = Hider(Privacy("redacted", frozenset({"name"})))
    batch = hider.hide_batch(Batch(real, 2))
    read = [tf.train.Example.FromString(one).features.feature for one in batch.x]
    assert batch.hidden == {"name"}
    assert [one["age"].int64_list.value[0] for one in read] == [36, 85]
    names = [one["name"].bytes_list.value[0] for one in read]
    assert [len(one) for one in names] == [3, 5] and not {b"Ada", b"Grace"} & set(names)
    assert known_features({"examples": batch.x}) == ["age", "name"]
    assert read_example(b"no example") is None and read_example(b"") is None
    # Among Examples, nothing that is none is left as it is.
    mixed = hider.hide_batch(Batch(np.array([*real, b"", b"Ada Lovelace"], object), 4))
    assert not any(b"Ada" in one for one in mixed.x) and mixed.x[2] == b""


def test_sequence_examples_keep_their_lengths() -> None:
    example = tf.train.SequenceExample()
    steps = example.feature_lists.feature_list["steps"].feature
    for value in (1.5, 2.5, 3.5):
        steps.add().float_list.value.append(value)
    hidden = tf.train.SequenceExample.FromString(
        hide(np.array([example.SerializeToString()], object))[0]
    )
    values = [one.float_list.value[0] for one in hidden.feature_lists.feature_list["steps"].feature]
    assert len(values) == 3 and not {1.5, 2.5, 3.5} & set(values)


@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg])
def test_images_are_noise_of_the_same_size_and_format(encode: Any) -> None:
    image = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    real = encode(image).numpy()
    hidden = hide(np.array([real], object))[0]
    assert hidden[:3] == real[:3] and hidden != real
    assert tf.io.decode_image(hidden).shape == (7, 5, 3)


def test_ragged_and_sparse_rows_keep_their_structure() -> None:
    ragged = tf.ragged.constant([[1, 900], [], [5]], dtype=tf.int64)
    hidden = hide(ragged)
    assert hidden.row_lengths().numpy().tolist() == [2, 0, 1]
    assert not np.isin(hidden.flat_values.numpy(), ragged.flat_values.numpy()).any()
    sparse = tf.sparse.from_dense([[0.0, 7.5, 0.0, 0.0], [2.5, 0.0, 0.0, 4.5]])
    other = hide(sparse)
    assert other.dense_shape.numpy().tolist() == [2, 4]
    assert np.bincount(other.indices.numpy()[:, 0]).tolist() == [1, 2]
    tf.sparse.to_dense(other)  # the indices are sorted and not repeated
    assert not np.isin(other.values.numpy(), sparse.values.numpy()).any()


def test_only_what_is_not_hidden_yet_is_replaced() -> None:
    batch = Batch({"a": np.array([1.5, 2.5]), "b": [np.array([3.5, 4.5])]}, 2)
    redacted = Hider(Privacy("redacted", frozenset({"a"}))).hide_batch(batch)
    assert redacted.hidden == {"a"} and redacted.x["b"][0] is batch.x["b"][0]
    assert not np.isin(redacted.x["a"], batch.x["a"]).any()
    again = Hider(Privacy("redacted", frozenset({"a"}))).hide_batch(redacted)
    assert again is redacted
    by_path = Hider(Privacy("redacted", frozenset({"x['b'][0]"}))).hide_batch(batch)
    assert by_path.hidden == {"x['b'][0]"}
    assert Hider(Privacy()).hide_batch(batch) is batch
    by_input = Hider(Privacy("redacted", frozenset({"b_in", "a"})))
    both = by_input.hide_batch(redacted, {("b", 0): "b_in"})
    assert both.x["a"] is redacted.x["a"] and both.hidden == {"a", "b_in"}


def test_nothing_tells_what_was_drawn() -> None:
    real = np.random.default_rng(0).normal(size=(4, 4))
    np.random.seed(0)
    first = hide(real)
    np.random.seed(0)
    assert not np.array_equal(hide(real), first)


def test_columns_have_ranges_of_their_own() -> None:
    ids = np.array([[3, 70_000], [9, 20_000], [5, 50_000]])
    hidden = hide(ids)
    assert hidden[:, 0].max() <= 9 and hidden[:, 1].min() >= 20_000


def test_large_and_close_values_are_drawn_in_time() -> None:
    stamps = np.arange(1000) * 100 + 1_700_000_000_000_000_000
    assert not np.isin(hide(stamps), stamps).any()
    large = hide(np.array([-1.7e308, 1.7e308]))
    assert np.isfinite(large).all()
    close = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], "float32")
    assert hide(close).shape == (2,)  # there is nothing between them


def test_sparse_vectors_and_bitmaps_keep_their_form() -> None:
    vector = tf.sparse.from_dense([0.0, 7.5, 0.0])
    assert hide(vector).indices.numpy().tolist() == [[1]]
    header = b"BM" + bytes(8) + (54).to_bytes(4, "little") + bytes(40)
    bitmap = header + bytes(range(200))
    hidden = hide(np.array([bitmap], object))[0]
    assert hidden[:54] == header and hidden[54:] != bitmap[54:] and len(hidden) == len(bitmap)


@pytest.mark.parametrize(
    "real",
    [
        np.arange(1_000_001, 1_000_065),
        np.array([20240101, 20240102]),
        np.array([1.7e9, 1.7e9 + 128], "float32"),
        np.array([52.520008, 52.520040]),
        np.array([[1], [5_000]], ">i8"),
    ],
)
def test_values_close_together_are_not_told_by_their_range(real: np.ndarray) -> None:
    hidden = hide(real)
    assert not np.isin(hidden, real).any() and hidden.dtype == real.dtype
    assert hidden.max() <= real.max()


def test_examples_in_other_forms_are_recognized() -> None:
    feature = {"name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"Anna Secret"]))}
    example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    forms = [
        example + b"\x9a\x06\x02hi",
        example + example,
        tf.io.encode_base64(example).numpy(),
        tf.io.encode_base64(example, pad=True).numpy(),
    ]
    for form in forms:
        hider = Hider(Privacy("redacted", frozenset({"name"})))
        hidden = hider.hide_batch(Batch(np.array([form] * 2, object), 2))
        text = b"".join(hidden.x) + b"".join(
            tf.io.decode_base64(hidden.x).numpy().tolist() if b"=" in form or form.isalnum() else []
        )
        assert b"Secret" not in text and hidden.hidden == {"name"}
        assert hidden.x[0] != form
    # A whole column of Examples is redacted by its own name.
    column = Hider(Privacy("redacted", frozenset({"blob"})))
    hidden = column.hide_batch(Batch({"blob": np.array([example] * 2, object)}, 2))
    assert b"Secret" not in hidden.x["blob"][0]
