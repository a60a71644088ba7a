"""Which batches and rows to keep: an even, seeded sample, plus batches whose shapes the sample lacks.

Pure: works on `Batch`es on the host, draws from generators of its own (never from the global ones of numpy, Keras or
TensorFlow) and gives the same choice for the same seed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from keras_warmup.data.batch import Batch, leaf_nbytes, map_leaves, slice_rows, walk

ShapeKey = tuple[tuple[int | None, ...] | None, ...]

# Different shapes that are counted, and so the memory counting them takes, end here.
MAX_SEEN_SHAPES = 10_000

_T = TypeVar("_T")


class Reservoir(Generic[_T]):
    """An even sample of a stream of unknown length, which is asked for few of its items.

    Each item of the stream has a random key; the `capacity` smallest keys are kept. Skips are drawn as in Algorithm L
    (Li, 1994, https://dl.acm.org/doi/10.1145/198429.198435), so that `capacity * (1 + ln(n / capacity))` of `n` items
    are offered. Keys are kept with their items, so that the sample stays even when the capacity shrinks.

    Args:
        capacity: items to keep, at least 1.
        seed: seed of the choice.

    Attributes:
        gap: items of the stream to pass over before the next `offer`.
        capacity: items to keep; only ever shrinks.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = max(1, capacity)
        self.gap = 0
        self._random = np.random.default_rng(seed)
        self._offered = 0
        # A heap of (-key, order of arrival, item), largest key first. Orders differ, so that items are never compared.
        self._kept: list[tuple[float, int, _T]] = []

    def offer(self, item: _T) -> list[_T]:
        """Takes the item that follows the `gap` and draws the next gap.

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
        """Lowers the capacity, at least to 1; the sample stays even.

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
        """The sample, in the order of the stream."""
        return [item for _, _, item in sorted(self._kept, key=lambda entry: entry[1])]

    def _draw_gap(self) -> None:
        if len(self._kept) < self.capacity:
            self.gap = 0
            return
        largest = -self._kept[0][0]
        self.gap = math.floor(math.log(self._uniform()) / math.log1p(-largest))

    def _uniform(self) -> float:
        """A draw in (0, 1): `Generator.random` can give 0, whose logarithm is not finite."""
        return float(1.0 - self._random.random()) * (1.0 - 2**-53)


class BatchSample:
    """Batches kept from a stream: an even sample, and some whose shapes it lacks, within a bound of bytes.

    Args:
        num_batches: batches of the even sample, at least 1.
        seed: seed of the choice.
        max_bytes: most bytes of all batches together; one batch is kept even if it is larger. Defaults to no bound.
        cover_shapes: also keep up to `num_batches` batches whose shapes no batch of the sample has.

    Attributes:
        seen_shapes: shapes of all batches added or looked at, with how often.
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
        self._reservoir: Reservoir[tuple[Batch, ShapeKey, int]] = Reservoir(num_batches, seed)
        self._others: dict[ShapeKey, tuple[Batch, ShapeKey, int]] = {}
        self._max_others = self._reservoir.capacity if cover_shapes else 0
        self._row_random = np.random.default_rng([seed, 1])

    @property
    def gap(self) -> int:
        """Batches to pass over before the next `add`."""
        return self._reservoir.gap

    @property
    def max_batch_bytes(self) -> int | None:
        """Bytes one batch may take so that a full sample stays within `max_bytes`; `None` is no bound."""
        return (
            None
            if self._max_bytes is None
            else self._max_bytes // (self._reservoir.capacity + self._max_others)
        )

    def choose_rows(self, size: int, rows: int) -> tuple[int, int]:
        """A contiguous range of at most `rows` of `size` rows at a seeded start, as `(start, stop)`."""
        rows = min(rows, size)
        start = int(self._row_random.integers(size - rows + 1))
        return start, start + rows

    def choose_index(self, count: int) -> int:
        """A seeded choice in `range(count)`."""
        return int(self._row_random.integers(count)) if count > 1 else 0

    def lacks(self, shape: ShapeKey) -> bool:
        """Whether a batch of this shape would be kept for its shape alone."""
        return (
            len(self._others) < self._max_others
            and shape not in self._others
            and not self._samples(shape)
        )

    def see(self, shape: ShapeKey) -> None:
        """Counts a shape of the stream."""
        if shape in self.seen_shapes or len(self.seen_shapes) < MAX_SEEN_SHAPES:
            self.seen_shapes[shape] = self.seen_shapes.get(shape, 0) + 1

    def add(self, batch: Batch, shape: ShapeKey) -> None:
        """Adds the batch that follows the `gap` to the even sample; `batch` holds no more rows than are to be kept."""
        self._others.pop(shape, None)
        self._keep_shapes(self._reservoir.offer((batch, shape, nbytes(batch))))
        self._shrink()

    def add_shape(self, batch: Batch, shape: ShapeKey) -> None:
        """Keeps a batch for its shape, where the sample lacks it."""
        if self.lacks(shape):
            self._others[shape] = (batch, shape, nbytes(batch))
            self._shrink()

    def batches(self) -> list[Batch]:
        """The even sample in the order of the stream, then the batches kept for their shapes."""
        return [batch for batch, _, _ in (*self._reservoir.items, *self._others.values())]

    def _samples(self, shape: ShapeKey) -> bool:
        return any(sampled == shape for _, sampled, _ in self._reservoir.items)

    def _keep_shapes(self, left: list[tuple[Batch, ShapeKey, int]]) -> None:
        for entry in left:
            if self.lacks(entry[1]):
                self._others[entry[1]] = entry

    def _shrink(self) -> None:
        if self._max_bytes is None:
            return
        while self._count() > 1 and self._total() > self._max_bytes:
            if self._others:
                self._others.popitem()
                self._max_others = len(self._others)
            else:
                self._max_others = 0
                self._reservoir.shrink(len(self._reservoir.items) - 1)

    def _count(self) -> int:
        return len(self._reservoir.items) + len(self._others)

    def _total(self) -> int:
        return sum(size for _, _, size in (*self._reservoir.items, *self._others.values()))


def select_batches(
    batches: Iterator[Batch], *, num_batches: int, rows: int, seed: int, max_read: int | None = None
) -> list[Batch]:
    """Reads a stream of batches and keeps some rows of some of them.

    Args:
        batches: the stream; it may be infinite when `max_read` is given.
        num_batches: batches of the even sample; as many again may be kept for shapes the sample lacks.
        rows: most rows to keep of a batch: a contiguous range at a seeded start.
        seed: seed of every choice; the same stream and seed give the same batches.
        max_read: batches to read at most. Defaults to all.

    Returns:
        The even sample in the order of the stream, then the batches kept for their shapes. Empty if the stream is.
    """
    sample = BatchSample(num_batches, seed)
    due = 0
    for index, batch in enumerate(batches):
        shape = shape_of(batch.x)
        sample.see(shape)
        if index == due:
            sample.add(_take_rows(sample, batch, rows), shape)
            due = index + 1 + sample.gap
        elif sample.lacks(shape):
            sample.add_shape(_take_rows(sample, batch, rows), shape)
        # Stop before the next read, not after it: a generator may block or be one-shot.
        if max_read is not None and index + 1 >= max_read:
            break
    return sample.batches()


def shape_of(x: Any) -> ShapeKey:
    """The shape of each leaf without its first dimension, in the order of `walk`; `None` for a missing leaf."""
    return tuple(None if leaf is None else tuple(leaf.shape)[1:] for _, leaf in walk(x))


def nbytes(batch: Batch) -> int:
    """Bytes the leaves of a batch take on the host."""
    return sum(leaf_nbytes(leaf) for _, leaf in walk(batch.x))


def own(batch: Batch) -> Batch:
    """The batch with arrays of its own: a view would keep the array it was taken from alive, and change with it."""

    def copy(_: object, leaf: Any) -> Any:
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    return Batch(map_leaves(copy, batch.x), batch.size, batch.source)


def _take_rows(sample: BatchSample, batch: Batch, rows: int) -> Batch:
    return own(slice_rows(batch, *sample.choose_rows(batch.size, rows)))
