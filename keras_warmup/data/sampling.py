"""Selects batches and rows to keep: an even, seeded sample, plus batches of shapes it lacks.

Random numbers come from generators of this module, never from the global ones of NumPy, Keras or
TensorFlow. The same seed gives the same choice.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from keras_warmup.data.batch import Batch, leaf_nbytes, map_leaves, slice_rows, walk

ShapeKey = tuple[tuple[int | None, ...] | None, ...]

# Bounds the memory that counting shapes takes.
MAX_SEEN_SHAPES = 10_000

_T = TypeVar("_T")


class Reservoir(Generic[_T]):
    """An even sample of a stream of unknown length that looks at few items of the stream.

    Each item of the stream has a random key; the items with the `capacity` smallest keys are kept.
    Skips are drawn as in Algorithm L (Li, 1994, https://dl.acm.org/doi/10.1145/198429.198435), so
    that `capacity * (1 + ln(n / capacity))` of `n` items are offered. Keys are kept with their
    items, so that the sample stays even when the capacity shrinks.

    Args:
        capacity: items to keep, at least 1.
        seed: seed of the choice.

    Attributes:
        gap: items of the stream to skip before the next `offer`.
        capacity: items to keep; it never grows.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = max(1, capacity)
        self.gap = 0
        self._random = np.random.default_rng(seed)
        self._offered = 0
        # A heap of (-key, arrival number, item), largest key first. Arrival numbers are unique, so
        # that items are never compared.
        self._kept: list[tuple[float, int, _T]] = []

    def offer(self, item: _T) -> list[_T]:
        """Adds the item that follows the `gap` and draws the next gap.

        Returns:
            Items that left the sample.
        """
        full = len(self._kept) == self.capacity
        bound = -self._kept[0][0] if full else 1.0
        entry = (-self._uniform() * bound, self._offered, item)
        self._offered += 1
        left = []
        if full:
            left.append(heapq.heapreplace(self._kept, entry)[2])
        else:
            heapq.heappush(self._kept, entry)
        self._draw_gap()
        return left

    def shrink(self, capacity: int) -> list[_T]:
        """Lowers the capacity, but not below 1; the sample stays even.

        Returns:
            Items that left the sample.
        """
        self.capacity = min(self.capacity, max(1, capacity))
        left = []
        while len(self._kept) > self.capacity:
            left.append(heapq.heappop(self._kept)[2])
        self._draw_gap()
        return left

    @property
    def items(self) -> list[_T]:
        """Items of the sample in the order of the stream."""
        return [item for _, _, item in sorted(self._kept, key=lambda entry: entry[1])]

    def _draw_gap(self) -> None:
        if len(self._kept) < self.capacity:
            self.gap = 0
            return
        largest = -self._kept[0][0]
        self.gap = math.floor(math.log(self._uniform()) / math.log1p(-largest))

    def _uniform(self) -> float:
        """Draws from (0, 1): `Generator.random` can return 0, whose logarithm is not finite."""
        return float(1.0 - self._random.random()) * (1.0 - 2**-53)


class _KeptBatch(NamedTuple):
    batch: Batch
    shape: ShapeKey
    nbytes: int


class BatchSample:
    """Batches kept from a stream: an even sample, and some of shapes that the sample lacks.

    Args:
        num_batches: batches of the even sample, at least 1.
        seed: seed of the choice.
        max_bytes: most bytes of all batches together; one batch is kept even if it is larger.
            Defaults to no bound.
        cover_shapes: also keep up to `num_batches` batches of shapes that the sample lacks.

    Attributes:
        seen_shapes: shape -> number of batches counted with it.
    """

    def __init__(
        self,
        num_batches: int,
        seed: int,
        *,
        max_bytes: int | None = None,
        cover_shapes: bool = True,
    ) -> None:
        self.seen_shapes: dict[ShapeKey, int] = {}
        self._max_bytes = max_bytes
        self._reservoir: Reservoir[_KeptBatch] = Reservoir(num_batches, seed)
        self._others: dict[ShapeKey, _KeptBatch] = {}
        self._max_others = self._reservoir.capacity if cover_shapes else 0
        self._row_random = np.random.default_rng([seed, 1])

    @property
    def gap(self) -> int:
        """Batches to skip before the next `add`."""
        return self._reservoir.gap

    @property
    def max_batch_bytes(self) -> int | None:
        """Bytes per batch with which a full sample stays within `max_bytes`; `None`: no bound."""
        if self._max_bytes is None:
            return None
        return self._max_bytes // (self._reservoir.capacity + self._max_others)

    def choose_rows(self, size: int, rows: int) -> tuple[int, int]:
        """Chooses a contiguous range of at most `rows` of `size` rows, as `(start, stop)`."""
        rows = min(rows, size)
        start = int(self._row_random.integers(size - rows + 1))
        return start, start + rows

    def choose_index(self, count: int) -> int:
        """Chooses from `range(count)`."""
        return int(self._row_random.integers(count)) if count > 1 else 0

    def lacks(self, shape: ShapeKey) -> bool:
        """Returns whether `add_shape` would keep a batch of this shape."""
        return (
            len(self._others) < self._max_others
            and shape not in self._others
            and not any(kept.shape == shape for kept in self._reservoir.items)
        )

    def count_shape(self, shape: ShapeKey) -> None:
        """Counts a shape of the stream in `seen_shapes`."""
        if shape in self.seen_shapes or len(self.seen_shapes) < MAX_SEEN_SHAPES:
            self.seen_shapes[shape] = self.seen_shapes.get(shape, 0) + 1

    def add(self, batch: Batch, shape: ShapeKey) -> None:
        """Adds the batch that follows the `gap` to the even sample.

        Args:
            batch: the rows to keep of it.
            shape: its shape, as `shape_of` returns it.
        """
        self._others.pop(shape, None)
        for left in self._reservoir.offer(_KeptBatch(batch, shape, nbytes(batch))):
            if self.lacks(left.shape):
                self._others[left.shape] = left
        self._shrink()

    def add_shape(self, batch: Batch, shape: ShapeKey) -> None:
        """Keeps a batch for its shape, if the sample lacks that."""
        if self.lacks(shape):
            self._others[shape] = _KeptBatch(batch, shape, nbytes(batch))
            self._shrink()

    def batches(self) -> list[Batch]:
        """Returns the even sample in the order of the stream, then the batches for other shapes."""
        return [kept.batch for kept in self._kept()]

    def _kept(self) -> list[_KeptBatch]:
        return [*self._reservoir.items, *self._others.values()]

    def _shrink(self) -> None:
        if self._max_bytes is None:
            return
        while len(kept := self._kept()) > 1 and sum(one.nbytes for one in kept) > self._max_bytes:
            if self._others:
                self._others.popitem()
                self._max_others = len(self._others)
            else:
                self._max_others = 0
                self._reservoir.shrink(len(kept) - 1)


def select_batches(
    batches: Iterator[Batch], *, num_batches: int, rows: int, seed: int, max_read: int | None = None
) -> list[Batch]:
    """Reads a stream of batches and keeps some rows of some of them.

    Args:
        batches: the stream; it may be infinite if `max_read` is given.
        num_batches: batches of the even sample; up to as many again are kept for other shapes.
        rows: most rows to keep of a batch: a contiguous range that starts at a random row.
        seed: seed of every choice; the same stream and seed give the same batches.
        max_read: most batches to read. Defaults to all.

    Returns:
        The even sample in the order of the stream, then the batches for other shapes. Empty if the
        stream is.
    """
    sample = BatchSample(num_batches, seed)
    due = 0
    for index, batch in enumerate(batches):
        shape = shape_of(batch.x)
        sample.count_shape(shape)
        if index == due:
            sample.add(_choose_rows(sample, batch, rows), shape)
            due = index + 1 + sample.gap
        elif sample.lacks(shape):
            sample.add_shape(_choose_rows(sample, batch, rows), shape)
        # Stop before the next read, not after it: a generator may block or be one-shot.
        if max_read is not None and index + 1 >= max_read:
            break
    return sample.batches()


def shape_of(x: Any) -> ShapeKey:
    """Returns the shape of each leaf without its first dimension, in the order of `walk`.

    The entry of a leaf that is `None` is `None`.
    """
    return tuple(None if leaf is None else tuple(leaf.shape)[1:] for _, leaf in walk(x))


def nbytes(batch: Batch) -> int:
    """Returns the bytes that the leaves of a batch take on the host."""
    return sum(leaf_nbytes(leaf) for _, leaf in walk(batch.x))


def copy_arrays(batch: Batch) -> Batch:
    """Copies the arrays of a batch: a view keeps its base alive, and changes with it."""

    def copy(_: object, leaf: Any) -> Any:
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    return dataclasses.replace(batch, x=map_leaves(copy, batch.x))


def _choose_rows(sample: BatchSample, batch: Batch, rows: int) -> Batch:
    return copy_arrays(slice_rows(batch, *sample.choose_rows(batch.size, rows)))
