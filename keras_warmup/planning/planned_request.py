"""`PlannedRequest`: one request to write. Its rows are gathered only when they are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import numpy as np

from keras_warmup.binding.bind import BoundBatch
from keras_warmup.data.batch import FeaturePath, leaf_nbytes, map_leaves, stack_rows, walk
from keras_warmup.report import RequestKind


@dataclasses.dataclass(frozen=True)
class PlannedRequest:
    """One request to write; it refers to rows of bound batches and holds no copy of them.

    Attributes:
        signature_key: the signature it runs.
        kind: the request kind.
        pool: bound batches with rows of one shape.
        picks: `(batch in pool, row)` of each row; `None` where the inputs have no batch dimension.
        output_filter: output aliases asked for; empty means all.
        warms: keys of the signatures over the same tensors.
        tasks: signature_key and kind of each task of a MultiInference; else empty.
    """

    signature_key: str
    kind: RequestKind
    pool: tuple[BoundBatch, ...]
    picks: tuple[tuple[int, int], ...] | None
    output_filter: tuple[str, ...]
    warms: tuple[str, ...]
    tasks: tuple[tuple[str, RequestKind], ...] = ()

    @property
    def batch_size(self) -> int | None:
        """Number of rows; `None` where no input has a batch dimension."""
        return None if self.picks is None else len(self.picks)

    @property
    def rows_id(self) -> Hashable:
        """Equal for requests whose `x()` are equal, while their batches are in memory."""
        leaves = tuple((path, id(leaf)) for one in self.pool for path, leaf in walk(one.x))
        return leaves, self.picks

    @property
    def source(self) -> str:
        """Source of the rows."""
        return self.pool[0].source

    @property
    def wire_bytes(self) -> int:
        """Bytes of the tensors' values; a string counts its length."""
        return sum(self._bytes_of(name) for name in self.pool[0].arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns input name -> array of the request; a view where its rows are adjacent."""
        # np.stack of `bytes` would give fixed-width strings, which lose trailing NULs.
        return {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts)
            for name, parts in self.pieces().items()
        }

    def pieces(self) -> dict[str, list[np.ndarray]]:
        """Returns input name -> views of the batches that, concatenated, are the request's rows."""
        first = self.pool[0]
        runs = self._runs()
        return {
            name: [array]
            if name not in first.row_inputs or not runs
            else [self.pool[index].arrays[name][start:stop] for index, start, stop in runs]
            for name, array in first.arrays.items()
        }

    def x(self) -> Any:
        """Returns the rows in the model's structure; `None` where the model cannot take them."""
        if self.pool[0].x is None or self.picks is None:
            return self.pool[0].x
        leaves = [dict(walk(bound.x)) for bound in self.pool]

        def take(path: FeaturePath, leaf: Any) -> Any:
            if leaf is None or leaf.ndim == 0:
                return leaf
            return stack_rows([leaves[index][path][row] for index, row in self.picks or ()])

        return map_leaves(take, self.pool[0].x)

    def _runs(self) -> list[tuple[int, int, int]]:
        """Returns `(batch in pool, start, stop)` of each run of adjacent rows."""
        runs: list[tuple[int, int, int]] = []
        for index, row in self.picks or ():
            if runs and runs[-1][0] == index and runs[-1][2] == row:
                runs[-1] = (index, runs[-1][1], row + 1)
            else:
                runs.append((index, row, row + 1))
        return runs

    def _bytes_of(self, name: str) -> int:
        array = self.pool[0].arrays[name]
        if self.picks is None or name not in self.pool[0].row_inputs:
            return leaf_nbytes(array)
        return sum(
            leaf_nbytes(self.pool[index].arrays[name][row : row + 1]) for index, row in self.picks
        )
