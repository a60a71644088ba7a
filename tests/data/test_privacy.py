"""Tests of `keras_warmup.data.privacy`: other values of the same structure."""

from __future__ import annotations

import base64
import struct
import time
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import ExampleListWithContext
from keras_warmup.data.batch import Batch
from keras_warmup.data.privacy import Hider, known_features, read_example, vocabularies_of
from keras_warmup.errors import OptionsError
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
    hidden = hide(np.array([[b"red"], [b"red"]], object), vocabularies=lambda: vocabularies)
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
    both = by_input.hide_batch(redacted, {("b", 0): ["b_in"]})
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


def test_a_sparse_vector_keeps_its_form() -> None:
    vector = tf.sparse.from_dense([0.0, 7.5, 0.0])
    assert hide(vector).indices.numpy().tolist() == [[1]]


def bitmap(width: int, height: int, channels: int, info: bytes | None = None) -> bytes:
    """Returns a bitmap without repeated pixels, with a second header of 40 bytes or as given."""
    if info is None:
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8 * channels, *[0] * 6)
    row_bytes = -(-width * channels // 4) * 4
    pixels = bytes(range(10, 10 + height * row_bytes))
    offset = 14 + len(info)
    return struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset) + info + pixels


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_bitmap_is_noise_of_the_same_size(channels: int) -> None:
    real = bitmap(5, 3, channels)
    hidden = hide(np.array([real + b"Anna Secret", real], object))
    # What is appended makes the header wrong: then nothing of it is trusted.
    assert b"Secret" not in hidden[0] and hidden[0][14:] != real[14:]
    assert tf.io.decode_bmp(hidden[1]).shape == (3, 5, channels)
    assert sum(a == b for a, b in zip(hidden[1][54:], real[54:], strict=True)) < 9


def test_what_only_resembles_a_bitmap_is_replaced_as_a_whole() -> None:
    text = b"BMW 320d, owner Anna Secret, plate B-XY 1234, phone 5551234, and more"
    old = bitmap(4, 4, 3, struct.pack("<IHHHH", 12, 4, 4, 1, 24))
    hidden = hide(np.array([text, old], object))
    assert b"Anna Secret" not in hidden[0] and hidden[0].split(b", ")[0] != b"BMW 320d"
    assert sum(a == b for a, b in zip(hidden[1], old, strict=True)) < 9


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


def example_of(**values: Any) -> bytes:
    """Returns a serialized Example of features that hold bytes, floats or integers."""
    example = tf.train.Example()
    for name, value in values.items():
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(value[0])]
        getattr(example.features.feature[name], kind).value.extend(value)
    return example.SerializeToString()


def listed(*names: bytes) -> bytes:
    """Returns a serialized ExampleListWithContext, whose context has the first of the names."""
    made = ExampleListWithContext()
    made.context.ParseFromString(example_of(name=[names[0]]))
    for name in names:
        made.examples.add().ParseFromString(example_of(name=[name], age=[36]))
    return made.SerializeToString()


def redact(x: Any, *names: str) -> Batch:
    return Hider(Privacy("redacted", frozenset(names))).hide_batch(Batch(x, 2))


LISTS = np.array([listed(b"Anna Secret", b"Bob Secret"), listed(b"Carl Secret")], object)


@pytest.mark.parametrize("names", [["name"], ["column"], None])
def test_lists_of_examples_with_context_are_read(names: list[str] | None) -> None:
    x = {"column": LISTS}
    batch = Hider(SYNTHETIC).hide_batch(Batch(x, 2)) if names is None else redact(x, *names)
    assert not any(b"Secret" in value for value in batch.x["column"])
    made = ExampleListWithContext.FromString(batch.x["column"][0])
    assert len(made.examples) == 2 and len(made.context.features.feature) == 1
    assert known_features({"column": LISTS}) == ["age", "name"]


# {1: {1: {1: "Anna Secret"}}} has the form of a SequenceExample with a feature "Anna Secret".
NESTED = b"\n\x0f\n\r\n\x0bAnna Secret"


@pytest.mark.parametrize(
    "value",
    [NESTED, NESTED[:1] + b"\x11\n\x0f" + NESTED[4:] + b"\x12\x00"],
)
def test_nested_strings_are_no_example(value: bytes) -> None:
    tf.train.SequenceExample.FromString(value)
    assert read_example(value) is None
    assert known_features({"column": np.array([value], object)}) == ["column"]
    x = {"column": np.array([value] * 2, object)}
    hidden = redact(x, "column").x["column"]
    assert all(b"Secret" not in one and one != value for one in hidden)
    # Another column is left byte by byte.
    assert redact(x, "name").x["column"] is x["column"]


def test_only_columns_with_a_hidden_feature_are_rewritten() -> None:
    value = example_of(age=[36]) + example_of(city=[b"Bonn"]) + b"\x9a\x06\x7f" + b"z" * 127
    column = np.array([value, b"Ada Lovelace"], object)
    assert redact(column, "name").x is column
    changed = redact(column, "age").x
    assert b"z" * 127 not in changed[0] and b"Bonn" in changed[0] and changed[1] == b""
    mixed = redact(np.array([example_of(age=[36]), example_of(city=[b"Bonn"])], object), "age").x
    assert mixed[1] == example_of(city=[b"Bonn"])
    wrapped = base64.urlsafe_b64encode(example_of(age=[36]))
    both = redact(np.array([example_of(city=[b"Bonn"]), wrapped], object), "age").x
    assert both[0] == example_of(city=[b"Bonn"]) and both[1] != wrapped


def test_a_feature_is_found_below_many_unknown_fields_and_inside_of_other_examples() -> None:
    unknown = example_of(name=[b"Anna Secret"]) + b"\x9a\x06\x7f" + b"z" * 127
    inner = example_of(payload=[example_of(name=[b"Anna Secret"], city=[b"Bonn"])], age=[36])
    sparse = tf.SparseTensor([[0, 0], [1, 0]], [example_of(name=[b"Anna Secret"])] * 2, [2, 1])
    x = {"a": np.array([unknown] * 2, object), "b": np.array([inner] * 2, object), "c": sparse}
    batch = redact(x, "name")
    found = [*batch.x["a"], *batch.x["b"], *batch.x["c"].values.numpy()]
    assert not any(b"Secret" in value for value in found) and batch.hidden == {"name"}
    assert b"Bonn" in batch.x["b"][0]
    assert np.array_equal(batch.x["c"].indices, sparse.indices)
    assert redact(x, "other").x["c"] is sparse
    # The nested Example stays one.
    hidden = tf.train.Example.FromString(hide(np.array([inner], object))[0])
    assert read_example(hidden.features.feature["payload"].bytes_list.value[0]) is not None


def test_equal_last_keys_are_told_apart() -> None:
    x = {"u": {"id": np.array([7.5, 8.5])}, "v": {"id": np.array([3.5, 4.5])}}
    for names in (["x['u']['id']"], ["u"]):
        batch = redact(x, *names)
        assert batch.hidden == set(names) and batch.hidden_paths == {"x['u']['id']"}
        assert batch.x["v"]["id"] is x["v"]["id"]
    assert redact(x, "id").hidden == {"id"}
    del x["v"]
    assert redact(x, "u").hidden == {"id", "u"}
    # The feature of the Examples is another one.
    examples = redact({**x, "blob": np.array([example_of(id=[36])] * 2, object)}, "u")
    assert examples.hidden == {"u"}


def test_a_column_of_an_array_cannot_be_redacted() -> None:
    batch = Batch(np.ones((2, 2)), 2, columns=frozenset({"age", "height"}))
    with pytest.raises(OptionsError, match=r"Cannot redact \['age'\].*dict\(frame\)"):
        Hider(Privacy("redacted", frozenset({"age", "name"}))).hide_batch(batch)
    assert Hider(Privacy("redacted", frozenset({"name"}))).hide_batch(batch).x is batch.x
    assert Hider(SYNTHETIC).hide_batch(batch).privacy == SYNTHETIC


def test_zeros_stay_zeros() -> None:
    assert not hide(np.zeros((16, 8), "int32")).any()
    assert not hide(np.zeros((2, 3, 4), "float32")).any()
    ids = np.stack([np.zeros(8, int), np.arange(8)], axis=1)
    assert not hide(ids)[:, 0].any()


def test_columns_of_sequences_and_of_one_row_have_ranges_of_their_own() -> None:
    random = np.random.default_rng(0)
    events = np.stack([random.integers(0, 10, (16, 5)), random.integers(0, 70_000, (16, 5))], 2)
    hidden = hide(events)
    assert hidden.shape == events.shape and hidden[:, :, 0].max() < 10
    assert hidden[:, :, 1].max() > 1000
    row = hide(np.array([[3, 70_000]]))
    assert row[0, 0] <= 3 and row[0, 1] <= 70_000
    # One row of flags would be told by ranges of one value.
    flags = np.array([[0, 1] * 32])
    assert any(hide(flags)[0, ::2].any() for _ in range(9))
    assert hide(np.array([[0.0, 7.5] * 32]))[0, ::2].all()


@pytest.mark.parametrize(
    "real",
    [
        "line one\r\nline two",
        "a\u00a0b",
        "soft\u00adhyphen",
        "\U0001f469\u200d\U0001f469",
        "a\x0bb",
    ],
)
def test_all_text_is_replaced_by_text(real: str) -> None:
    hidden = hide(np.array([real.encode()], object))[0]
    assert hidden.decode() != real and len(hidden) == len(real.encode())
    assert [hidden.count(end) for end in (b"\r", b"\n")] == [real.count("\r"), real.count("\n")]


def test_words_come_from_the_vocabulary_that_has_most_of_them() -> None:
    vocabularies = [
        [b"a", b"male", b"friend", b"movie"],
        [b"male", b"female", b"other", b"no", b"yes"],
        [b"male", b"female", b"other"],
    ]
    real = np.array([b"male", b"female"] * 8, object)
    assert set(hide(real, vocabularies=lambda: vocabularies)) == {b"other"}


def test_words_of_another_vocabulary_are_replaced_again() -> None:
    trained = [b"Anna Secret", b"Bob Secret", b"Carl Secret"]
    real = {"user": np.array([b"Anna Secret"] * 4, object), "age": np.array([1.5, 2.5, 3.5, 4.5])}
    hider = Hider(SYNTHETIC, lambda: [trained])
    captured = hider.hide_batch(Batch(real, 4, "captured"))
    assert set(captured.x["user"]) <= set(trained[1:])
    # The exported model has the words, too.
    same = hider.renew_words(captured)
    assert set(same.x["user"]) <= set(trained[1:]) and same.x["age"] is captured.x["age"]
    other = Hider(SYNTHETIC, lambda: [[b"red", b"green"]]).renew_words(captured)
    assert not any(b"Secret" in one for one in other.x["user"])
    part = Hider(Privacy("redacted", frozenset({"user"})), lambda: [trained])
    renewed = Hider(SYNTHETIC).renew_words(part.hide_batch(Batch(real, 4, "captured")))
    assert not set(renewed.x["user"]) & set(trained) and renewed.x["age"] is real["age"]
    examples = np.array([example_of(user=[b"Anna Secret"], age=[36])] * 2, object)
    renewed = Hider(SYNTHETIC).renew_words(hider.hide_batch(Batch(examples, 2, "captured")))
    assert not any(b"Secret" in one for one in renewed.x)


def test_a_vocabulary_that_cannot_be_read_is_left_out() -> None:
    class Failing(keras.layers.StringLookup):  # type: ignore[misc]
        def get_vocabulary(self) -> list[str]:
            return ["a"]

    x = keras.Input((1,), dtype="string")
    known = keras.layers.StringLookup(vocabulary=["red", "green"])
    model = keras.Model(x, [Failing(vocabulary=["a", "b"])(x), known(x)])
    assert vocabularies_of(model) == [[b"red", b"green"]]


def test_vocabularies_are_read_once_and_only_for_strings() -> None:
    calls = []

    def read() -> list[list[bytes]]:
        calls.append(1)
        return [[b"red", b"green"]]

    hider = Hider(SYNTHETIC, read)
    hider.hide_leaf(np.ones(3))
    assert not calls
    for _ in range(3):
        hider.hide_leaf(np.array([b"red"], object))
    assert len(calls) == 1


def test_many_values_are_replaced_in_time() -> None:
    images = np.random.default_rng(0).random((16, 224, 224, 3), dtype="float32")
    started = time.perf_counter()
    hidden = hide(images)
    assert time.perf_counter() - started < 2
    assert hidden.shape == images.shape and (hidden == images).mean() < 0.01
