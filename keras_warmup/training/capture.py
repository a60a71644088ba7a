"""Keeps a few of the batches a model is really trained on, without changing what `fit` does.

A callback is not shown the data, and `fit` holds its iterator in a local variable. But it hands that iterator to
`model.train_function`. At the few steps the sample needs, `before_step` puts a stand-in there for one call: it puts the
original back, pulls the elements that step is about to use, copies a few rows, and calls the original with an
iterator over those same elements. At all other steps, and after any exception, nothing of ours is in the way.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.data.batch import Batch, map_leaves, render_path, walk
from keras_warmup.data.leaves import count_rows, read_leaf
from keras_warmup.data.sampling import BatchSample, ShapeKey, nbytes, own, shape_of
from keras_warmup.data.sources import x_of
from keras_warmup.errors import DataError

# With no free dimension every batch warms the same kernels, and a request takes 2 rows: each batch more costs taps.
FIXED_SHAPE_BATCHES = 2
_NEVER = sys.maxsize

_captured: weakref.WeakKeyDictionary[Any, tuple[tuple[Batch, ...], int]] = (
    weakref.WeakKeyDictionary()
)


def remember(model: Any, batches: list[Batch], shapes_seen: int = 0) -> None:
    """Keeps batches for a model as long as the model lives; replaces those of an earlier `fit`.

    Args:
        model: the model they were fed to.
        batches: rows it was trained on.
        shapes_seen: how many shapes of x were met while sampling, those of `batches` included.
    """
    _captured[model] = (tuple(batches), shapes_seen)


def captured_batches(model: Any) -> list[Batch]:
    """The batches last remembered for this very model; empty if there are none."""
    return list(_captured.get(model, ((), 0))[0])


def captured_shapes(model: Any) -> int:
    """How many shapes of x were met while the batches of this model were sampled; 0 if there are none."""
    return _captured.get(model, ((), 0))[1]


class BatchTap:
    """Samples the batches of one `fit` evenly, from the first step to the last, whatever its length.

    Call `begin` in `on_train_begin`, `before_step` in `on_train_batch_begin` and `end` in `on_train_end`. Of the batch
    hooks, `on_train_batch_begin` alone costs nothing: Keras computes no logs for it, and goes on dispatching the others
    asynchronously.

    Weights, history, traces and compilations are those of a `fit` without it. Its own errors never reach `fit`: the
    first one warns, and the tap stops.

    Args:
        num_batches: batches to keep, at least 1. Where x has no free dimension besides its rows, at most 2 are kept;
            where it has, up to as many again for shapes that the sample lacks.
        rows: most rows to keep of a batch, at least 1: a contiguous range at a seeded start.
        seed: seed of every choice.
        max_bytes: most bytes to keep in all; one batch of one row is kept even if it is larger.

    Attributes:
        problem: why sampling stopped; `None` while all is well.
        taps: steps at which elements were looked at.
    """

    def __init__(self, num_batches: int, rows: int, seed: int, max_bytes: int) -> None:
        self._num_batches = num_batches
        self._rows = rows
        self._seed = seed
        self._max_bytes = max_bytes
        self._due = _NEVER
        self._step = 0
        self._sample: BatchSample | None = None
        self._announced = False
        self.problem: str | None = None
        self.taps = 0

    def begin(self, model: Any) -> None:
        """Forgets what an earlier `fit` gave and starts sampling at the next step."""
        restore(model)
        self._due = 0
        self._step = 0
        self._sample = None
        self._announced = False
        self.problem = None
        self.taps = 0

    def before_step(self, model: Any) -> None:
        """Readies the next call of `model.train_function` for sampling if the sample needs it; else only counts."""
        step = self._step
        self._step = step + 1
        if step < self._due:
            return
        original = vars(model).get("train_function")
        if not callable(original):
            self._stop(f"{type(model).__name__} has no train_function of its own")
            self._announce()
            return
        vars(model)["train_function"] = _StandIn(self, model, original)

    def end(self, model: Any) -> None:
        """Stops sampling. What was kept stays."""
        restore(model)
        self._due = _NEVER

    def batches(self) -> list[Batch]:
        """The batches kept: the even sample in the order of training, then those kept for their shapes."""
        return [] if self._sample is None else self._sample.batches()

    def seen_shapes(self) -> dict[ShapeKey, int]:
        """Shapes of x, without rows, at the steps looked at, with how often; early steps are looked at more often."""
        return {} if self._sample is None else dict(self._sample.seen_shapes)

    def _stop(self, problem: str) -> None:
        self.problem = self.problem or problem
        self._due = _NEVER

    def _announce(self) -> None:
        """Warns of the problem, once. Called after the step is trained: a user may have made warnings errors."""
        if self.problem is None or self._announced:
            return
        self._announced = True
        warnings.warn(
            f"Sampling of training batches stopped: {self.problem}. Training goes on unchanged. "
            "Pass data= for warmup records of real rows.",
            UserWarning,
            stacklevel=2,
        )

    def _missed(self) -> None:
        """Makes the next execution due in place of this one, which had no rows or found its iterator exhausted."""
        if self.problem is None:
            self._due = self._step

    def _look(self, elements: list[Any], element_spec: Any) -> None:
        """Copies what the sample needs of the elements of one execution. Never raises an `Exception`."""
        try:
            self._keep(elements, element_spec)
        except DataError as error:
            self._stop(str(error).rstrip("."))
        # Training must survive whatever a user's types do when sliced. The text of a foreign error may hold values.
        except Exception as error:
            self._stop(f"{type(error).__name__} while copying rows of an element")

    def _keep(self, elements: list[Any], element_spec: Any) -> None:
        where = "a training element"
        if self._sample is None:
            free = element_spec is None or _has_free_dimension(x_of(element_spec, where))
            self._sample = BatchSample(
                self._num_batches if free else min(self._num_batches, FIXED_SHAPE_BATCHES),
                self._seed,
                max_bytes=self._max_bytes,
                cover_shapes=free,
            )
        sample = self._sample
        xs = [
            map_leaves(lambda _, leaf: _unwrap(leaf), x_of(element, where)) for element in elements
        ]
        sizes = [count_rows(x, where) for x in xs]
        shapes = [shape_of(x) for x in xs]
        for shape in shapes:
            sample.see(shape)
        self.taps += 1
        filled = [index for index, size in enumerate(sizes) if size]
        if not filled:
            self._missed()
            return
        chosen = filled[sample.choose_index(len(filled))]
        sample.add(self._copy(sample, xs[chosen], sizes[chosen]), shapes[chosen])
        for index in filled:
            if sample.lacks(shapes[index]):
                sample.add_shape(self._copy(sample, xs[index], sizes[index]), shapes[index])
        self._due = self._step + sample.gap

    def _copy(self, sample: BatchSample, x: Any, size: int) -> Batch:
        """Rows of x on the host: at most `rows` of them, fewer where they take more bytes than one batch may."""
        bound = sample.max_batch_bytes
        rows = self._rows
        if bound is not None:
            rows = max(1, min(rows, bound // max(1, _dense_row_bytes(x))))
        start, stop = sample.choose_rows(size, rows)
        batch = _rows_on_host(x, start, stop)
        # What strings and ragged rows take is only known once they are here.
        if bound is not None and stop - start > 1 and nbytes(batch) > bound:
            rows = max(1, bound * (stop - start) // nbytes(batch))
            batch = _rows_on_host(x, start, start + rows)
        return batch


class _StandIn:
    """Takes the place of `model.train_function` for one call."""

    def __init__(self, tap: BatchTap, model: Any, original: Callable[..., Any]) -> None:
        self.original = original
        self._tap = tap
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # First of all, so that no exception from here on can leave us behind.
        if vars(self._model).get("train_function") is self:
            vars(self._model)["train_function"] = self.original
        result = self._run(args, kwargs)
        self._tap._announce()
        return result

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source = args[-1] if args else None
        if isinstance(source, tf.data.Iterator):
            return self._run_dataset(source, args, kwargs)
        if isinstance(source, list):
            # torch: the elements themselves.
            self._tap._look(source, None)
            return self.original(*args, **kwargs)
        if (
            len(args) == 2
            and isinstance(source, Iterator)
            and not isinstance(source, tf.distribute.DistributedIterator)
        ):
            # JAX: (state, iterator).
            return self._run_python(source, args, kwargs)
        # train_on_batch passes a generator; it can come here only after an interrupted fit, and is no part of one.
        if isinstance(source, tf.distribute.DistributedIterator) or not isinstance(
            source, Iterator
        ):
            self._tap._stop(f"fit reads from {type(source).__name__}, which cannot be looked into")
        return self.original(*args, **kwargs)

    def _run_dataset(
        self, source: tf.data.Iterator, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        elements, error = _pull(source, _steps_per_execution(self._model))
        if not elements:
            if error is not None:
                raise error
            self._tap._missed()
            return self.original(*args, **kwargs)
        self._tap._look(elements, source.element_spec)
        try:
            substitute = _dataset_iterator(elements, source.element_spec)
        # These elements are pulled and must be trained on. A generator takes what any pipeline may yield, but is slow.
        except Exception as error_of_ours:
            self._tap._stop(f"{type(error_of_ours).__name__} while handing an element back")
            substitute = iter(
                tf.data.Dataset.from_generator(
                    lambda: iter(elements), output_signature=source.element_spec
                )
            )
        result = self.original(*args[:-1], substitute, **kwargs)
        if error is not None:
            # The user's own pipeline failed within this execution, after the steps just trained.
            raise error
        return result

    def _run_python(
        self, source: Iterator[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        elements, error = _pull(source, _steps_per_execution(self._model))
        if elements:
            self._tap._look(elements, None)
        else:
            self._tap._missed()
        return self.original(*args[:-1], _python_iterator(elements, error), **kwargs)


def restore(model: Any) -> None:
    """Puts the model's own `train_function` back if an interrupted `fit` left a stand-in there."""
    while isinstance(left := vars(model).get("train_function"), _StandIn):
        vars(model)["train_function"] = left.original


def _steps_per_execution(model: Any) -> int:
    # tf_keras keeps a tf.Variable, which changes for the last, shorter execution of an epoch.
    steps = getattr(model, "steps_per_execution", None)
    if steps is None:
        steps = getattr(model, "_steps_per_execution", None)
    return 1 if steps is None else max(1, int(steps))


def _pull(source: Iterator[Any], count: int) -> tuple[list[Any], Exception | None]:
    """Up to `count` elements, and the error with which the iterator failed after them, if it did."""
    elements: list[Any] = []
    try:
        for _ in range(count):
            elements.append(next(source))
    except StopIteration:
        pass
    except Exception as error:
        return elements, error
    return elements, None


def _python_iterator(elements: list[Any], error: Exception | None) -> Iterator[Any]:
    yield from elements
    if error is not None:
        raise error


def _dataset_iterator(elements: list[Any], element_spec: Any) -> tf.data.Iterator:
    """An iterator over these elements with the very spec of the one they came from, so that nothing is traced again."""
    dataset = None
    for element in elements:
        variant = tf.data.experimental.to_variant(tf.data.Dataset.from_tensors(element))
        one = tf.data.experimental.from_variant(variant, element_spec)
        dataset = one if dataset is None else dataset.concatenate(one)
    # Rewriting and tuning a pipeline of one element takes longer than running it.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return iter(dataset.with_options(options))  # type: ignore[union-attr]


def _has_free_dimension(spec: Any) -> bool:
    for _, leaf in walk(spec):
        shape = getattr(leaf, "shape", None)
        if isinstance(leaf, tf.OptionalSpec) or shape is None:
            continue
        if shape.rank is None or None in shape.as_list()[1:]:
            return True
    return False


def _unwrap(leaf: Any) -> Any:
    if isinstance(leaf, tf.experimental.Optional):
        return leaf.get_value() if leaf.has_value() else None
    return leaf


def _dense_row_bytes(x: Any) -> int:
    total = 0
    for _, leaf in walk(x):
        size = getattr(getattr(leaf, "dtype", None), "size", None) or getattr(
            getattr(leaf, "dtype", None), "itemsize", None
        )
        if size and not isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
            total += int(size) * int(np.prod(tuple(leaf.shape)[1:], dtype=np.int64))
    return total


def _rows_on_host(x: Any, start: int, stop: int) -> Batch:
    def take(path: tuple[str | int, ...], leaf: Any) -> Any:
        if leaf is None:
            return None
        if isinstance(leaf, tf.SparseTensor):
            shape = [stop - start, *leaf.dense_shape.numpy()[1:]]
            return tf.sparse.slice(leaf, [start] + [0] * (len(shape) - 1), shape)
        return read_leaf(leaf[start:stop], f"{render_path(path)} of a training element")

    # A copy, since an element may share the memory of the user's arrays.
    return own(Batch(map_leaves(take, x), stop - start, "captured"))
