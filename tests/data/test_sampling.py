"""Samples are even, seeded and bounded, and cover rare shapes."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_warmup.data.batch import Batch
from keras_warmup.data.sampling import BatchSample, Reservoir, nbytes, select_batches, shape_of


def sample_range(
    count: int, capacity: int, seed: int, shrink_at: int | None = None
) -> tuple[list[int], int]:
    reservoir: Reservoir[int] = Reservoir(capacity, seed)
    due = offers = 0
    for index in range(count):
        if index == shrink_at:
            before, at = reservoir.items, index
            reservoir.shrink(2)
            assert set(reservoir.items) < set(before)
            due = at + reservoir.gap
        if index == due:
            reservoir.offer(index)
            offers += 1
            due = index + 1 + reservoir.gap
    return reservoir.items, offers


def batches(
    count: int, size: int = 5, length: Callable[[int], int] = lambda index: 1
) -> Iterator[Batch]:
    """Batch i has `length(i)` columns; row r of it holds 10 i + r."""
    for index in range(count):
        yield Batch(np.repeat(10.0 * index + np.arange(size)[:, None], length(index), axis=1), size)


@pytest.mark.parametrize("shrink_at", [None, 12], ids=["fixed", "shrunk"])
def test_reservoir_keeps_every_item_equally_often(shrink_at: int | None) -> None:
    rounds, count, capacity = 3000, 30, 4
    kept = collections.Counter(
        item for seed in range(rounds) for item in sample_range(count, capacity, seed, shrink_at)[0]
    )
    expected = rounds * (capacity if shrink_at is None else 2) / count
    # 5 standard deviations of a binomial count.
    assert all(abs(kept[item] - expected) < 5 * expected**0.5 for item in range(count))


@settings(deadline=None)
@given(count=st.integers(0, 300), capacity=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_reservoir_is_full_ordered_and_repeatable(count: int, capacity: int, seed: int) -> None:
    kept, _ = sample_range(count, capacity, seed)
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, capacity)
    assert kept == sample_range(count, capacity, seed)[0]


def test_reservoir_asks_for_few_items() -> None:
    offers = [sample_range(6000, 32, seed)[1] for seed in range(20)]
    # 32 * (1 + ln(6000 / 32)) is 199.
    assert 180 < np.mean(offers) < 220


def test_reservoir_returns_items_that_leave_it() -> None:
    reservoir: Reservoir[str] = Reservoir(2, 0)
    left = [reservoir.offer(item) for item in "abc"]
    assert left[:2] == [[], []]
    assert sorted(left[2] + reservoir.items) == ["a", "b", "c"]
    assert len(reservoir.shrink(0)) == 1
    assert (reservoir.capacity, len(reservoir.items)) == (1, 1)


def test_sampling_leaves_the_global_generator_alone() -> None:
    np.random.seed(4)
    list(select_batches(batches(50), num_batches=4, rows=2, seed=0))
    drawn = np.random.random()
    np.random.seed(4)
    assert drawn == np.random.random()


def test_select_batches_keeps_contiguous_rows_and_copies_them() -> None:
    kept = select_batches(batches(50), num_batches=4, rows=3, seed=0)
    assert len(kept) == 4
    for batch in kept:
        assert batch.size == len(batch.x) == 3
        assert np.diff(batch.x[:, 0]).tolist() == [1, 1]
        assert batch.x.base is None
    steps = [batch.x[0, 0] // 10 for batch in kept]
    assert steps == sorted(steps)


def test_select_batches_starts_at_any_row() -> None:
    starts = {
        batch.x[0, 0] % 10
        for seed in range(20)
        for batch in select_batches(batches(9), num_batches=4, rows=3, seed=seed)
    }
    assert starts == {0, 1, 2}


def test_select_batches_takes_all_of_smaller_batches() -> None:
    (batch,) = select_batches(batches(1, size=2), num_batches=4, rows=3, seed=0)
    assert batch.x.tolist() == [[0], [1]]


def test_select_batches_reads_no_further_than_asked() -> None:
    stream = (Batch(np.zeros((1, 1)), 1) for _ in itertools.count())
    assert len(select_batches(stream, num_batches=2, rows=1, seed=0, max_read=7)) == 2
    nine = batches(9)
    select_batches(nine, num_batches=2, rows=1, seed=0, max_read=3)
    assert next(nine).x[0, 0] == 30


def test_select_batches_of_nothing_is_empty() -> None:
    assert select_batches(iter(()), num_batches=2, rows=1, seed=0) == []


def test_select_batches_covers_shapes_the_sample_lacks() -> None:
    def rare(index: int) -> int:
        return {17: 5, 31: 7}.get(index, 1)

    for seed in range(10):
        kept = select_batches(batches(200, length=rare), num_batches=2, rows=2, seed=seed)
        assert {batch.x.shape[1] for batch in kept} == {1, 5, 7}
        assert len(kept) <= 4


def test_shapes_kept_besides_the_sample_are_bounded() -> None:
    kept = select_batches(
        batches(200, length=lambda index: index + 1), num_batches=3, rows=2, seed=0
    )
    assert len(kept) == 6
    assert len({batch.x.shape for batch in kept}) == 6


def test_a_shape_that_leaves_the_sample_stays_kept() -> None:
    sample = BatchSample(1, 0)
    for index, batch in enumerate(batches(2, length=lambda index: index + 1)):
        sample.add(batch, shape_of(batch.x))
        assert {kept.x.shape[1] for kept in sample.batches()} == set(range(1, index + 2))


@settings(deadline=None, max_examples=40)
@given(
    max_bytes=st.integers(1, 2000),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    seed=st.integers(0, 99),
)
def test_bytes_stay_bounded_but_one_batch_stays(
    max_bytes: int, lengths: list[int], seed: int
) -> None:
    sample = BatchSample(4, seed, max_bytes=max_bytes)
    for batch in batches(len(lengths), size=1, length=lengths.__getitem__):
        sample.add(batch, shape_of(batch.x))
        kept = sample.batches()
        assert kept
        assert len(kept) == 1 or sum(nbytes(batch) for batch in kept) <= max_bytes


def test_seen_shapes_are_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_warmup.data.sampling.MAX_SEEN_SHAPES", 2)
    sample = BatchSample(1, 0)
    for shape in [((1,),), ((2,),), ((1,),), ((3,),)]:
        sample.count_shape(shape)
    assert sample.seen_shapes == {((1,),): 2, ((2,),): 1}


def test_shape_of_names_every_leaf_without_rows() -> None:
    x = {
        "b": np.zeros((2, 3)),
        "a": [None, tf.ragged.constant([[1], [2, 3]])],
        "c": tf.sparse.from_dense(np.eye(2)),
        "d": np.array([b"x", b"y"], object),
    }
    assert shape_of(x) == (None, (None,), (3,), (2,), ())


@pytest.mark.parametrize("seed", [0, 1])
def test_composite_rows_are_kept(seed: int) -> None:
    x = {
        "r": tf.ragged.constant([[1], [2, 3], [4]]),
        "s": tf.sparse.from_dense(np.eye(3)),
        "n": None,
    }
    (batch,) = select_batches(iter([Batch(x, 3)]), num_batches=1, rows=2, seed=seed)
    assert (batch.x["r"].nrows(), tuple(batch.x["s"].shape), batch.x["n"]) == (2, (2, 3), None)
