"""Keeps a few of the batches that a model is trained on, without changing the training.

Keras does not pass the data to callbacks, and `fit` keeps its iterator in a local variable. But
`fit` passes that iterator to `model.train_function`. For each of the few steps that the sample
needs, `BatchTap.before_step` replaces that function with a `StandIn` for one call. The stand-in
restores the original, pulls the elements of this step, copies a few rows of them, and calls the
original with an iterator over the same elements. At all other steps, and after any exception, the
model has its own function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_warmup.data.batch import Batch, FeaturePath, map_leaves, render_path, slice_leaf, walk
from keras_warmup.data.leaves import count_rows, read_leaf
from keras_warmup.data.privacy import Hider, vocabularies_of
from keras_warmup.data.sampling import BatchSample, ShapeKey, copy_arrays, nbytes, shape_of
from keras_warmup.data.sources import unpack_x
from keras_warmup.errors import DataError, ExportError, warn_or_print
from keras_warmup.options import REAL, Privacy, least_privacy
from keras_warmup.training.elements import (
    Pulled,
    dataset_of,
    distribute,
    generated_dataset_of,
    pull,
    pull_distributed,
    python_iterator,
)
from keras_warmup.training.strategy import describe_unsupported

# Rows kept of a batch where the batch sizes of the export are not known yet: those of `fit`'s
# default batch.
CAPTURED_ROWS = 32
# Without a free dimension all batches warm the same kernels, and more batches cost more taps.
FIXED_SHAPE_BATCHES = 2
# A tap under a strategy takes 40 to 80 ms, most of it to make TensorFlow's iterator over devices.
# Taps wait while they have taken more than this share of the time of the fit; the first one, which
# also loads what the process needs for it, is not counted.
MAX_COST_SHARE = 0.002
_NEVER = sys.maxsize


@dataclasses.dataclass(frozen=True)
class Capture:
    """The batches sampled in one `fit`; they are read when they are needed.

    Attributes:
        trained_model: weak reference to the model that was trained.
        sample: the batches; `None` where sampling stopped before the first one.
        example: as `BatchTap.example`.
        problem: as `BatchTap.problem`.
    """

    trained_model: weakref.ref[Any]
    sample: BatchSample | None
    example: Batch | None = None
    problem: str | None = None

    def is_of(self, model: Any) -> bool:
        """Returns whether a model is the one that was trained."""
        return self.trained_model() is model

    def batches(self) -> list[Batch]:
        """Returns the even sample in the order of training, then the batches for other shapes."""
        return [] if self.sample is None else self.sample.batches()

    def shapes_seen(self) -> int:
        """Returns how many shapes of x were seen while sampling."""
        return 0 if self.sample is None else len(self.sample.seen_shapes)

    def batch_size(self) -> int:
        """Returns the number of rows of the largest batch in the sample."""
        return max((batch.full_size or batch.size for batch in self.batches()), default=0)


# A capture belongs to the training, not to one model: a model made of the same layers finds it.
_by_model: weakref.WeakKeyDictionary[Any, Capture] = weakref.WeakKeyDictionary()
_by_layer: weakref.WeakKeyDictionary[Any, Capture] = weakref.WeakKeyDictionary()


def remember(model: Any, tap: BatchTap) -> None:
    """Remembers the sample of a tap as long as the model or one of its layers exists.

    It replaces the one remembered before. Without a batch it only replaces one without a batch: why
    sampling stopped, and what the model was trained on, is then all that is remembered.

    Args:
        model: the model that is trained.
        tap: the tap that samples its batches.
    """
    has_batches = bool(tap.batches())
    if not has_batches and (tap.problem is None or tap.example_only):
        return
    capture = Capture(weakref.ref(model), tap.sample, tap.example, tap.problem)
    if has_batches or not _has_batches(_by_model.get(model)):
        _by_model[model] = capture
    for layer in model._flatten_layers():
        if has_batches or not _has_batches(_by_layer.get(layer)):
            _by_layer.pop(layer, None)  # so that the newest capture is the last one
            _by_layer[layer] = capture


def _has_batches(capture: Capture | None) -> bool:
    return capture is not None and bool(capture.batches())


def find_capture(model: Any) -> Capture | None:
    """Returns the batches a model was trained on, else those of one that shares its layers.

    Args:
        model: the model to export.

    Returns:
        The newest capture, one with batches if possible; `None` if nothing was captured.
    """
    own: Capture | None = _by_model.get(model)
    if own is not None:
        return own
    layers = {id(layer) for layer in model._flatten_layers()}
    shared: list[Capture] = [one for layer, one in _by_layer.items() if id(layer) in layers]
    return next(filter(_has_batches, reversed(shared)), shared[-1] if shared else None)


class BatchTap:
    """Samples the batches of one `fit` evenly, from the first step to the last.

    Call `begin` in `on_train_begin`, `before_step` in `on_train_batch_begin` and `end` in
    `on_train_end`. Of the batch hooks only `on_train_batch_begin` costs nothing: Keras computes no
    logs for it and continues to dispatch the other hooks asynchronously.

    Weights, history, traces and compilations are those of a `fit` without a tap. Errors of the tap
    never reach `fit`: the first one warns and stops the sampling.

    Args:
        num_batches: batches to keep, at least 1. If x has no free dimension besides its rows, at
            most 2 are kept; else up to as many again for shapes that the sample lacks.
        rows: most rows to keep of a batch, at least 1: a contiguous range at a random start.
        seed: seed of every choice.
        max_bytes: most bytes to keep in all; one batch of one row is kept even if it is larger.
        whole: keep whole batches, each of which is one request. Defaults to `False`.
        example_only: keep no rows and issue no warning, only read the `example`. Defaults to
            `False`.
        privacy: returns what may not be kept of the rows, at the start of each `fit`. Defaults to
            what the environment asks for.

    Attributes:
        sample: the batches sampled in this `fit`; `None` before the first one.
        example: the first batch, kept or refused, with zeros or empty strings for its values: an
            export needs its structure, shapes and dtypes. `None` where it was not seen.
        example_only: as given.
        problem: why sampling stopped; `None` if it did not.
        taps: steps whose elements were copied or counted.
    """

    def __init__(
        self,
        num_batches: int,
        rows: int,
        seed: int,
        max_bytes: int,
        *,
        whole: bool = False,
        example_only: bool = False,
        privacy: Callable[[], Privacy] = least_privacy,
    ) -> None:
        self._privacy = privacy
        self._hider = Hider(privacy())
        self._num_batches = num_batches
        self._whole = whole
        self.example_only = example_only
        self.example: Batch | None = None
        self._on_first_step: Callable[[Batch | None], None] | None = None
        self._first_batch: Batch | None = None
        self._rows = rows
        self._seed = seed
        self._max_bytes = max_bytes
        self._due = _NEVER
        self._step = 0
        self.sample: BatchSample | None = None
        self._warned = False
        self.problem: str | None = None
        self.taps = 0
        self._began = 0.0
        self._cost_s = 0.0

    def begin(
        self, model: Any, *, on_first_step: Callable[[Batch | None], None] | None = None
    ) -> None:
        """Drops the batches of an earlier `fit` and starts sampling at the next step.

        Args:
            model: the model that is trained.
            on_first_step: is called once, with the first batch kept; with `None` where none is
                kept. All layers are built then. It is called before the first step where that is
                possible, else after it: where `fit` runs eagerly, or no batch is kept. Its errors
                stop the sampling; a `UserWarning` that is an error and an `ExportError` end the
                fit.

        Raises:
            OptionsError: less privacy was asked for than the environment allows by now.
        """
        restore(model)
        privacy = self._privacy()
        self._hider = Hider(privacy, lambda: vocabularies_of(model))
        self._on_first_step = on_first_step
        self._first_batch = None
        self.example = None
        self._due = 0
        self._step = 0
        self.sample = None
        self._warned = False
        self.problem = None
        self.taps = 0
        self._began = time.perf_counter()
        self._cost_s = 0.0

    def before_step(self, model: Any) -> None:
        """Prepares the next call of `model.train_function` for sampling, if the sample needs it."""
        step = self._step
        self._step = step + 1
        if step < self._due:
            return
        if self._cost_s > MAX_COST_SHARE * (time.perf_counter() - self._began):
            return
        unsupported = describe_unsupported(model)
        if unsupported is not None:
            self.stop(unsupported)
            self.after_step()
            return
        original = vars(model).get("train_function")
        if not callable(original):
            self.stop(f"{type(model).__name__} has no train_function of its own")
            self.after_step()
            return
        vars(model)["train_function"] = StandIn(self, model, original)

    def end(self, model: Any) -> None:
        """Ends sampling; keeps the batches."""
        restore(model)
        self._due = _NEVER

    def batches(self) -> list[Batch]:
        """Returns the even sample in the order of training, then the batches for other shapes."""
        return [] if self.sample is None else self.sample.batches()

    def seen_shapes(self) -> dict[ShapeKey, int]:
        """Returns how many elements were seen with each shape of x, without its rows.

        Early steps are looked at more often.
        """
        return {} if self.sample is None else dict(self.sample.seen_shapes)

    def stop(self, problem: str) -> None:
        """Stops sampling until the next `begin`; `problem` says why."""
        self.problem = self.problem or problem
        self._due = _NEVER

    @property
    def is_check_due(self) -> bool:
        """Returns whether `check_first_batch` would call `on_first_step` with a batch."""
        return self._on_first_step is not None and self._first_batch is not None

    def check_first_batch(self) -> None:
        """Calls `on_first_step`, once per `fit`."""
        batch, self._first_batch = self._first_batch, None
        call, self._on_first_step = self._on_first_step, None
        if call is None:
            return
        try:
            call(batch)
        # A warning that the user made an error, or a model that cannot be exported.
        except (UserWarning, ExportError):
            raise
        except Exception as error:
            self.stop(f"{type(error).__name__} while checking the first batch")

    def after_step(self) -> None:
        """Calls `on_first_step` if that is still due, and warns of a problem once per `fit`.

        Call this after the step is trained: `on_first_step` may raise an error.
        """
        if self._first_batch is not None or self._due == _NEVER:
            self.check_first_batch()
        if self.problem is None or self._warned or self.example_only:
            return
        self._warned = True
        warn_or_print(
            f"Sampling of training batches stopped: {self.problem}. Training continues unchanged. "
            "Pass data= for warmup records of real rows.",
            stacklevel=2,
        )

    def sample_next_step(self) -> None:
        """Makes the next step due, such as in place of a step without rows."""
        if self.problem is None:
            self._due = self._step

    def add_cost(self, seconds: float) -> None:
        """Counts what a tap took; those of a `tf.data.Iterator` are too cheap to count."""
        if self.taps > 1:
            self._cost_s += seconds

    def sample_elements(self, elements: list[Any], element_spec: Any) -> None:
        """Copies the rows that the sample needs of the elements of one call of `train_function`.

        Never raises an `Exception`.

        Args:
            elements: as `fit` trains on them.
            element_spec: their spec; `None` if it is not known.
        """
        try:
            self._keep(elements, element_spec)
        except DataError as error:
            self.stop(str(error).rstrip("."))
        # Slicing a user's types may raise anything. The text of a foreign error may hold values.
        except Exception as error:
            self.stop(f"{type(error).__name__} while copying rows of an element")

    def _keep(self, elements: list[Any], element_spec: Any) -> None:
        where = "a training element"
        xs = [
            map_leaves(lambda _, leaf: _unwrap(leaf), unpack_x(element, where))
            for element in elements
        ]
        if self.example is None and xs:
            with contextlib.suppress(Exception):  # of the user's types
                self.example = _without_values(xs[0], is_hidden=self._hider.privacy != REAL)
        if self.example_only:
            self._due = _NEVER
            return
        if self.sample is None:
            free = (
                self._whole
                or element_spec is None
                or _has_free_dimension(unpack_x(element_spec, where))
            )
            self.sample = BatchSample(
                self._num_batches if free else min(self._num_batches, FIXED_SHAPE_BATCHES),
                self._seed,
                max_bytes=self._max_bytes,
                cover_shapes=free,
            )
        sample = self.sample
        sizes = [count_rows(x, where, is_whole=self._whole) for x in xs]
        shapes = [shape_of(x) for x in xs]
        for shape in shapes:
            sample.count_shape(shape)
        self.taps += 1
        filled = [index for index, size in enumerate(sizes) if size]
        if not filled:
            self.sample_next_step()
            return
        chosen = filled[sample.choose_index(len(filled))]
        batch, is_first = self._copy(sample, xs[chosen], sizes[chosen]), not sample.batches()
        sample.add(batch, shapes[chosen])
        if is_first:
            self._first_batch = batch
        for index in filled:
            if sample.lacks(shapes[index]):
                sample.add_shape(self._copy(sample, xs[index], sizes[index]), shapes[index])
        self._due = self._step + sample.gap

    def _copy(self, sample: BatchSample, x: Any, size: int) -> Batch:
        """Copies at most `rows` rows of x; fewer if they would exceed the bytes of one batch.

        What a privacy mode hides is replaced at once.
        """
        return self._hider.hide_batch(self._copy_real(sample, x, size))

    def _copy_real(self, sample: BatchSample, x: Any, size: int) -> Batch:
        if self._whole:
            return _whole_on_host(x)
        bound = sample.max_batch_bytes
        rows = self._rows
        if bound is not None:
            rows = max(1, min(rows, bound // max(1, _dense_row_bytes(x))))
        start, stop = sample.choose_rows(size, rows)
        batch = _rows_on_host(x, start, stop, size)
        # The size of strings and ragged rows is only known on the host.
        if bound is not None and stop - start > 1 and nbytes(batch) > bound:
            rows = max(1, bound * (stop - start) // nbytes(batch))
            batch = _rows_on_host(x, start, start + rows, size)
        return batch


class StandIn:
    """Replaces `model.train_function` for one call.

    Args:
        tap: samples the elements of the call.
        model: the model in training.
        original: the model's own `train_function`.
    """

    def __init__(self, tap: BatchTap, model: Any, original: Callable[..., Any]) -> None:
        self.original = original
        self._tap = tap
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Restores the original and calls it with the same elements."""
        # First, so that no exception leaves the stand-in behind.
        if vars(self._model).get("train_function") is self:
            vars(self._model)["train_function"] = self.original
        result = self._run(args, kwargs)
        self._tap.after_step()
        return result

    def _train(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the original; before the first step, has the first batch checked."""
        if self._tap.is_check_due and (
            all(layer.built for layer in self._model._flatten_layers())
            or _trace_step(self.original, args[-1])
        ):
            self._tap.check_first_batch()
        return self.original(*args, **kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source: Any = args[-1] if args else None
        if isinstance(source, list):
            # torch: the elements themselves.
            self._tap.sample_elements(source, None)
            return self._train(*args, **kwargs)
        try:
            steps = _steps_per_execution(self._model)
        except Exception as error:  # nothing was pulled yet
            self._tap.stop(f"{type(error).__name__} while reading steps_per_execution")
            return self._train(*args, **kwargs)
        if isinstance(source, tf.data.Iterator):
            pulled = pull(source, steps)
            return self._train_on(pulled, lambda: iter(self._dataset_of(pulled)), args, kwargs)
        if isinstance(source, tf.distribute.DistributedIterator):
            strategy = self._model.distribute_strategy
            started = time.perf_counter()
            try:
                pulled = pull_distributed(source, steps)
            except AttributeError as error:
                self._tap.stop(f"{error} (with {type(strategy).__name__})")
                return self._train(*args, **kwargs)

            def substitute() -> Any:
                iterator = distribute(self._dataset_of(pulled), strategy, source)
                self._tap.add_cost(time.perf_counter() - started)
                return iterator

            return self._train_on(pulled, substitute, args, kwargs)
        if not isinstance(source, Iterator):
            self._tap.stop(f"fit reads from {type(source).__name__}, which cannot be sampled")
        elif len(args) == 2:
            # JAX: (state, iterator).
            pulled = pull(source, steps)
            return self._train_on(pulled, lambda: python_iterator(pulled), args, kwargs)
        # A generator alone is from train_on_batch, after an interrupted fit: not part of a fit.
        return self._train(*args, **kwargs)

    def _train_on(
        self,
        pulled: Pulled,
        substitute: Callable[[], Iterator[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trains on the elements that were pulled, after the sample has looked at them."""
        if not pulled.elements:
            if pulled.error is not None:
                raise pulled.error
            self._tap.sample_next_step()
            return self._train(*args, **kwargs)  # the iterator is at its end
        self._tap.sample_elements(pulled.elements, pulled.element_spec)
        result = self._train(*args[:-1], substitute(), **kwargs)
        if pulled.error is not None:
            # The user's pipeline failed within this call, after the steps just trained.
            raise pulled.error
        return result

    def _dataset_of(self, pulled: Pulled) -> tf.data.Dataset:
        try:
            return dataset_of(pulled)
        # The model must be trained on the pulled elements. A generator takes the elements of any
        # pipeline, but is slow.
        except Exception as failure:
            self._tap.stop(f"{type(failure).__name__} while passing an element on")
            return generated_dataset_of(pulled)


def restore(model: Any) -> None:
    """Restores the model's own `train_function` if an interrupted `fit` left a stand-in there."""
    while isinstance(left := vars(model).get("train_function"), StandIn):
        vars(model)["train_function"] = left.original


def _trace_step(train_function: Callable[..., Any], iterator: Any) -> bool:
    """Traces the step that `train_function(iterator)` will run, which builds the layers it calls.

    The call then finds this trace. Keras 3 keeps the `tf.function` in the closure of a function
    (`make_train_function` in keras/src/backend/tensorflow/trainer.py).

    Returns:
        Whether it was traced: a function that runs eagerly is not.
    """
    if tf.config.functions_run_eagerly():
        return False
    closure = getattr(train_function, "__closure__", None) and inspect.getclosurevars(
        train_function
    )
    step = closure.nonlocals.get("multi_step_on_iterator") if closure else train_function
    if not isinstance(step, tf.types.experimental.PolymorphicFunction):
        return False
    step.get_concrete_function(iterator)
    return True


def _steps_per_execution(model: Any) -> int:
    # tf_keras has a variable, which changes for the last, shorter execution of an epoch.
    steps = getattr(model, "steps_per_execution", None)
    if steps is None:
        steps = getattr(model, "_steps_per_execution", None)
    if steps is None:
        return 1
    return max(1, int(steps.numpy() if hasattr(steps, "numpy") else steps))


def _has_free_dimension(spec: Any) -> bool:
    """Returns whether a leaf of x has a free dimension besides its rows."""
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
    """Returns the bytes of one row of the dense numeric leaves, which may be on a device."""
    total = 0
    for _, leaf in walk(x):
        dtype = getattr(leaf, "dtype", None)
        size = getattr(dtype, "size", None) or getattr(dtype, "itemsize", None)
        if size and not isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
            total += int(size) * int(np.prod(tuple(leaf.shape)[1:], dtype=np.int64))
    return total


def _without_values(x: Any, *, is_hidden: bool) -> Batch:
    """Returns a whole batch of the same structure, shapes and dtypes, which takes no memory.

    Ragged and sparse leaves keep their values, or get made-up ones if those must be hidden.
    """
    hider = Hider(Privacy("synthetic"))

    def read(_: FeaturePath, leaf: Any) -> Any:
        if leaf is None:
            return None
        if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
            return hider.hide_leaf(leaf) if is_hidden else leaf
        is_known = isinstance(leaf.dtype, (tf.DType, np.dtype))
        dtype = tf.as_dtype(
            leaf.dtype if is_known else keras.backend.standardize_dtype(leaf.dtype)  # torch
        )
        zero = np.array(b"", object) if dtype == tf.string else np.zeros((), dtype.as_numpy_dtype)
        return np.broadcast_to(zero, tuple(leaf.shape))

    return Batch(map_leaves(read, x), 1, "captured", is_whole=True)


def _rows_on_host(x: Any, start: int, stop: int, size: int) -> Batch:
    def read(path: FeaturePath, leaf: Any) -> Any:
        return read_leaf(
            slice_leaf(leaf, start, stop), f"{render_path(path)} of a training element"
        )

    # A copy, since an element may share the memory of the user's arrays.
    return copy_arrays(Batch(map_leaves(read, x), stop - start, "captured", full_size=size))


def _whole_on_host(x: Any) -> Batch:
    def read(path: FeaturePath, leaf: Any) -> Any:
        return read_leaf(leaf, f"{render_path(path)} of a training element")

    return copy_arrays(Batch(map_leaves(read, x), 1, "captured", is_whole=True))
