"""Ragged rows are grouped by shape and not padded; sparse rows become dense."""

from __future__ import annotations

import tensorflow as tf

from keras_warmup.binding.bind import bind_batch
from keras_warmup.data.batch import Batch
from tests.builders import filled_rows, make_signature

FLOATS_4 = ("float32", (None, 4))


def test_ragged_rows_are_grouped_by_shape_and_not_padded() -> None:
    ragged = tf.ragged.constant([[1.0, 2.0], [3.0], [4.0, 5.0]])
    bound = bind_batch(
        Batch({"r": ragged, "d": filled_rows(1, 4)}, 3),
        make_signature({"r": ("float32", (None, None)), "d": FLOATS_4}),
    )
    assert [one.arrays["r"].tolist() for one in bound] == [[[1.0, 2.0], [4.0, 5.0]], [[3.0]]]
    assert [one.arrays["d"].shape for one in bound] == [(2, 4), (1, 4)]
    assert [one.size for one in bound] == [2, 1]


def test_ragged_leaves_that_no_input_takes_neither_split_a_batch_nor_fail() -> None:
    ragged_inside = tf.ragged.constant([[[1.0], [2.0, 3.0]], [[1.0], []], [[1.0, 2.0], [3.0]]])
    lengths = tf.ragged.constant([[1], [2, 3], [4]])
    sparse = tf.sparse.from_dense([[0, 1], [2, 0], [0, 3]])
    x = {
        "a": filled_rows(1, 4),
        "r": tf.ragged.constant([[1.0], [2.0, 3.0], [4.0]]),
        "no": ragged_inside,
        "l": lengths,
        "s": sparse,
    }
    (whole,) = bind_batch(Batch(x, 3), make_signature({"a": FLOATS_4}))
    assert (whole.size, whole.x, whole.ignored) == (
        3,
        None,
        ("x['l']", "x['no']", "x['r']", "x['s']"),
    )
    del x["no"]
    first, second = bind_batch(
        Batch(x, 3), make_signature({"a": FLOATS_4, "r": ("float32", (None, None))})
    )
    assert first.x["r"].tolist() == [[1.0], [4.0]]
    assert first.x["l"].tolist() == [[1], [4]]
    assert first.x["s"].tolist() == [[0, 1], [0, 3]]
    assert second.x["l"].tolist() == [[2, 3]]


def test_sparse_becomes_dense() -> None:
    sparse = tf.sparse.from_dense([[0.0, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 3.0]])
    (bound,) = bind_batch(Batch(sparse, 3), make_signature({"a": FLOATS_4}))
    assert bound.arrays["a"].tolist() == tf.sparse.to_dense(sparse).numpy().tolist()
