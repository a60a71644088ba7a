"""A `BatchTap` does not change training and keeps rows that the model was trained on."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.data.batch import Batch
from keras_warmup.data.sampling import nbytes
from keras_warmup.training import capture
from keras_warmup.training.capture import BatchTap, StandIn, find_capture, remember, restore
from tests.builders import tap_with
from tests.training.traces import function_traces

# What a case gives: a model, and the arguments of its `fit`.
FitArguments = tuple[Any, dict[str, Any]]
Case = Callable[[], FitArguments]

SIZES: dict[str, Any] = dict(num_batches=8, rows=3, seed=0, max_bytes=10**6)


class TapCallback(keras.callbacks.Callback):
    """A callback with a tap, as those of the package."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.tap = BatchTap(**{**SIZES, **sizes})

    def on_train_begin(self, logs: Any = None) -> None:
        self.tap.begin(self._model)

    def on_train_batch_begin(self, batch: Any, logs: Any = None) -> None:
        self.tap.before_step(self._model)

    def on_train_end(self, logs: Any = None) -> None:
        self.tap.end(self._model)


class Counting:
    """Counts the calls of `train_step`: its traces, unless it runs eagerly.

    A mixin, since Keras changes the bases of a model class of which a functional model is made.
    """

    traces = 0

    def train_step(self, data: Any) -> Any:
        self.traces += 1
        return super().train_step(data)  # type: ignore[misc]


class CountingModel(Counting, keras.Model):
    pass


class OneHead(Counting, keras.Model):
    """A dense layer on the numbers to which a function reduces the input."""

    def __init__(self, numbers: Any) -> None:
        super().__init__()
        self.numbers = numbers
        self.head = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.head(self.numbers(x))


def make_dense(features: int = 4) -> CountingModel:
    inputs = keras.Input((features,))
    hidden = keras.layers.Dropout(0.5)(keras.layers.Dense(8, activation="relu")(inputs))
    return CountingModel(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))


def make_two_inputs() -> CountingModel:
    inputs = {"b": keras.Input((2,), name="zz"), "a": keras.Input((3,), name="aa")}
    return CountingModel(
        inputs, keras.layers.Dense(1)(keras.layers.Concatenate()([inputs["b"], inputs["a"]]))
    )


def rows_of(
    count: int = 60, features: int = 4
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x = np.random.default_rng(7).random((count, features), dtype=np.float32)
    return x, (x.sum(1, keepdims=True) > features / 2).astype(np.float32)


def pairs_of(count: int = 10) -> list[tuple[Any, Any]]:
    x, y = rows_of(count * 6)
    return [(x[i * 6 : i * 6 + 6], y[i * 6 : i * 6 + 6]) for i in range(count)]


class Pairs(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: Any) -> Any:
        return pairs_of()[index]


def dataset_of(x: Any, y: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(60).batch(7)


def numpy_case() -> FitArguments:
    x, y = rows_of()
    return make_dense(), dict(x=x, y=y, batch_size=7)


def dict_case() -> FitArguments:
    x, y = rows_of()
    return make_two_inputs(), dict(x={"b": x[:, :2], "a": x[:, 1:]}, y=y, batch_size=7)


def list_case() -> FitArguments:
    x, y = rows_of()
    inputs = [keras.Input((2,)), keras.Input((3,))]
    model = CountingModel(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(inputs)))
    return model, dict(x=[x[:, :2], x[:, 1:]], y=y, batch_size=7)


def sample_weight_case() -> FitArguments:
    model, kwargs = numpy_case()
    return model, dict(**kwargs, sample_weight=np.linspace(0.5, 2, 60, dtype=np.float32))


def class_weight_case() -> FitArguments:
    model, kwargs = numpy_case()
    return model, dict(**kwargs, class_weight={0: 0.3, 1: 2.0})


def unknown_cardinality_case() -> FitArguments:
    return make_dense(), dict(x=dataset_of(*rows_of()).filter(lambda x, y: True))


def infinite_case() -> FitArguments:
    return make_dense(), dict(x=dataset_of(*rows_of()).repeat(), steps_per_epoch=5)


def generator_case() -> FitArguments:
    return make_dense(), dict(x=(pair for _ in range(9) for pair in pairs_of()), steps_per_epoch=10)


def py_dataset_case() -> FitArguments:
    return make_dense(), dict(x=Pairs())


def pandas_case() -> FitArguments:
    x, y = rows_of()
    return make_dense(), dict(
        x=pd.DataFrame(x, columns=list("abcd")), y=pd.Series(y[:, 0]), batch_size=7
    )


def ragged_case() -> FitArguments:
    _, y = rows_of()
    x = tf.ragged.constant([[i / 60] * (1 + i % 3) for i in range(60)], dtype=tf.float32)
    model = OneHead(
        lambda x: (
            tf.reduce_sum(x, axis=1, keepdims=True) if isinstance(x, tf.RaggedTensor) else x[:, :1]
        )
    )
    return model, dict(x=tf.data.Dataset.from_tensor_slices((x, y)).batch(7))


def sparse_case() -> FitArguments:
    x, y = rows_of()
    inputs = keras.Input((4,), sparse=True)
    model = CountingModel(inputs, keras.layers.Dense(1)(inputs))
    return model, dict(x=tf.sparse.from_dense(np.where(x > 0.5, x, 0)), y=y, batch_size=7)


def string_case() -> FitArguments:
    _, y = rows_of()
    x = np.array([[b"w" * (i % 5)] for i in range(60)], object)
    model = OneHead(lambda x: tf.cast(tf.strings.length(x), tf.float32))
    return model, dict(x=tf.data.Dataset.from_tensor_slices((x.astype("S5"), y)).batch(7))


def variable_length_case() -> FitArguments:
    def batches() -> Iterator[Any]:
        for index, (x, y) in enumerate(pairs_of()):
            yield np.repeat(x[:, None], 1 + index % 3, axis=1), y

    signature = (tf.TensorSpec((None, None, 4)), tf.TensorSpec((None, 1)))
    inputs = keras.Input((None, 4))
    model = CountingModel(
        inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(inputs))
    )
    return model, dict(x=tf.data.Dataset.from_generator(batches, output_signature=signature))


def missing_input_case() -> FitArguments:
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 12):
        pytest.skip("Keras before 3.12 cannot train on elements with a missing input")
    x, y = rows_of()
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b", optional=True)}

    class Maybe(keras.layers.Layer):
        def call(self, a: Any, b: Any = None) -> Any:
            return a if b is None else a + b

        def compute_output_shape(self, a_shape: Any, b_shape: Any = None) -> Any:
            return a_shape

    model = CountingModel(inputs, keras.layers.Dense(1)(Maybe()(inputs["a"], inputs["b"])))
    return model, dict(x=(({"a": x[:6], "b": None}, y[:6]) for _ in range(40)), steps_per_epoch=10)


def bfloat16_case() -> FitArguments:
    x, y = rows_of()
    model = OneHead(lambda x: tf.cast(x, tf.float32))
    return model, dict(x=tf.data.Dataset.from_tensor_slices((tf.cast(x, tf.bfloat16), y)).batch(7))


CASES = [
    numpy_case,
    dict_case,
    list_case,
    sample_weight_case,
    class_weight_case,
    unknown_cardinality_case,
    infinite_case,
    generator_case,
    py_dataset_case,
    pandas_case,
    ragged_case,
    sparse_case,
    string_case,
    variable_length_case,
    missing_input_case,
    bfloat16_case,
]


def fit(
    case: Any,
    callbacks: Any,
    *,
    compile_options: Any = None,
    epochs: int = 2,
    fits: int = 1,
    **more: Any,
) -> tuple[Any, dict[str, Any]]:
    """Trains a new model and returns all of training that can be seen."""
    # In older releases of Keras, set_random_seed does not reset the global seed generator.
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    model, kwargs = case()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(
        optimizer, "mse", **{"metrics": ["mae"], "jit_compile": False, **(compile_options or {})}
    )
    histories = [
        model.fit(**kwargs, epochs=epochs, verbose=0, callbacks=callbacks, **more).history
        for _ in range(fits)
    ]
    eager = tf.config.functions_run_eagerly() or (compile_options or {}).get("run_eagerly", False)
    traces = 0 if eager else function_traces(model)
    assert eager or traces >= 2
    after = (
        np.random.random(),
        keras.random.uniform((2,)).numpy().tolist(),
        tf.random.uniform((2,)).numpy().tolist(),
    )
    return model, dict(
        weights=[
            array.tobytes()
            for array in (*model.get_weights(), *(v.numpy() for v in model.optimizer.variables))
        ],
        history=histories,
        train_step_calls=model.traces,
        function_traces=traces,
        random_state=after,
    )


@functools.cache
def fit_without_tap(case: Any, steps_per_execution: int = 1) -> dict[str, Any]:
    return fit(case, [], compile_options=dict(steps_per_execution=steps_per_execution))[1]


def assert_same_training(case: Any, callback: Any, **options: Any) -> Any:
    model, with_tap = fit(case, [callback], **options)
    _, without = fit(case, [], **options)
    assert with_tap == without
    assert callback.tap.problem is None
    assert type(vars(model)["train_function"]) is not StandIn
    return model


@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.__name__.removesuffix("_case"))
def test_training_is_bit_identical_with_a_tap_that_reads_an_example(case: Any) -> None:
    callback = TapCallback(example_only=True)
    _, with_tap = fit(case, [callback])
    assert with_tap == fit_without_tap(case)
    assert callback.tap.example is not None
    assert callback.tap.taps == 0 and not callback.tap.batches()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.removesuffix("_case"))
def test_training_is_bit_identical_with_a_tap(case: Any) -> None:
    callback = TapCallback()
    _, with_tap = fit(case, [callback])
    assert with_tap == fit_without_tap(case)
    assert callback.tap.problem is None
    assert callback.tap.taps >= 2
    assert callback.tap.batches()


@pytest.mark.parametrize(
    "case",
    [
        numpy_case,
        unknown_cardinality_case,
        infinite_case,
        ragged_case,
        sparse_case,
        string_case,
        variable_length_case,
    ],
    ids=lambda case: case.__name__.removesuffix("_case"),
)
def test_training_is_bit_identical_with_several_steps_per_execution(case: Any) -> None:
    callback = TapCallback()
    # No case has a multiple of 4 batches: the last execution of an epoch is partial.
    assert_same_training(case, callback, compile_options=dict(steps_per_execution=4))
    assert callback.tap.taps >= 2
    assert callback.tap.batches()


@pytest.mark.parametrize(
    "options",
    [
        dict(compile_options=dict(run_eagerly=True)),
        dict(compile_options=dict(run_eagerly=True, steps_per_execution=3)),
        dict(fits=2),
        dict(initial_epoch=1, epochs=3),
        dict(validation_split=0.3),
        dict(steps_per_epoch=4, epochs=3),
    ],
    ids=[
        "run_eagerly",
        "run_eagerly_three_steps",
        "second_fit",
        "initial_epoch",
        "validation",
        "steps_per_epoch",
    ],
)
def test_training_is_bit_identical_in_other_ways_to_fit(options: Any) -> None:
    assert_same_training(numpy_case, TapCallback(), **options)


def test_training_is_bit_identical_where_all_functions_run_eagerly() -> None:
    class Reading(OneHead):
        def call(self, x: Any) -> Any:
            assert x.numpy().shape[1] == 4  # fails where the step is traced
            return super().call(x)

    def unbuilt_case() -> FitArguments:
        return Reading(tf.identity), dict(x=dataset_of(*rows_of()))

    tf.config.run_functions_eagerly(True)
    try:
        # Unlike the callback of these tests, it has the first batch checked.
        assert fit(unbuilt_case, [kw.BatchCapture()])[1] == fit(unbuilt_case, [])[1]
    finally:
        tf.config.run_functions_eagerly(False)


def test_training_is_bit_identical_with_a_custom_train_step() -> None:
    class Custom(CountingModel):
        def train_step(self, data: Any) -> Any:
            self.traces += 1
            x, y = data
            with tf.GradientTape() as tape:
                loss = (
                    tf.reduce_mean((self(x, training=True) - y) ** 2) + tf.random.uniform(()) * 0.1
                )
            self.optimizer.apply(
                tape.gradient(loss, self.trainable_variables), self.trainable_variables
            )
            return {"loss": loss}

    def custom_case() -> FitArguments:
        inputs = keras.Input((4,))
        model = Custom(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.5)(inputs)))
        return model, dict(x=dataset_of(*rows_of()))

    assert_same_training(custom_case, TapCallback(), compile_options=dict(metrics=None))


def test_jit_compiled_training_is_bit_identical_with_no_extra_xla_compilation(
    tmp_path: pathlib.Path,
) -> None:
    # XLA writes one dump for each module it compiles, counted in a process that compiles nothing
    # else.
    script = """
        import glob, json, sys
        import keras, numpy as np
        from tests.training.test_capture import TapCallback, make_dense, rows_of

        def modules():
            return len(glob.glob(sys.argv[1] + "/*before_optimizations*"))

        def train(callbacks, steps_per_execution):
            keras.utils.set_random_seed(3)
            model = make_dense()
            model.compile("sgd", "mse", jit_compile=True, steps_per_execution=steps_per_execution)
            before = modules()
            history = model.fit(*rows_of(), batch_size=7, verbose=0, callbacks=callbacks).history
            return [modules() - before, history, [w.tolist() for w in model.get_weights()]]

        for steps in (1, 3):
            print(json.dumps(train([], steps)))
            print(json.dumps(train([TapCallback()], steps)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": f"--xla_dump_to={tmp_path}", "PYTHONPATH": "."},
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        capture_output=True,
        text=True,
        check=True,
    )
    runs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(runs) == 4
    for without, with_tap in zip(runs[::2], runs[1::2], strict=True):
        assert without[0] >= 1
        assert with_tap == without


# What is kept.


def counted_case(count: int = 40) -> Case:
    """Batches of 5 rows; row r of batch i holds i + r / 10."""

    def case() -> FitArguments:
        x = (
            np.arange(count, dtype=np.float32)[:, None, None]
            + np.arange(5, dtype=np.float32)[:, None] / 10
        )
        dataset = tf.data.Dataset.from_tensor_slices((x, np.zeros((count, 5, 1), np.float32)))
        return make_dense(1), dict(x=dataset)

    return case


def steps_kept(callback: Any) -> list[int]:
    return [int(batch.x[0, 0]) for batch in callback.tap.batches()]


def test_kept_rows_are_contiguous_rows_that_were_trained_on() -> None:
    callback = TapCallback()
    fit(counted_case(), [callback], epochs=1)
    for batch in callback.tap.batches():
        assert (batch.size, batch.source, batch.x.shape, batch.x.dtype) == (
            3,
            "captured",
            (3, 1),
            np.float32,
        )
        np.testing.assert_allclose(np.diff(batch.x[:, 0]), 0.1, rtol=1e-4)
        assert batch.x.base is None or batch.x.base.nbytes == batch.x.nbytes


def test_the_sample_is_sorted_by_step_and_repeats_with_the_seed() -> None:
    callbacks = [TapCallback(seed=5), TapCallback(seed=5), TapCallback(seed=6)]
    for callback in callbacks:
        fit(counted_case(), [callback], epochs=2)
    assert steps_kept(callbacks[0]) == steps_kept(callbacks[1]) != steps_kept(callbacks[2])
    assert len(callbacks[0].tap.batches()) == capture.FIXED_SHAPE_BATCHES
    assert callbacks[0].tap.taps < 30


def test_rare_shapes_are_kept_besides_the_even_sample() -> None:
    def case() -> FitArguments:
        model, kwargs = variable_length_case()
        return model, dict(x=kwargs["x"].repeat(3))

    callback = TapCallback(num_batches=2)
    fit(case, [callback], epochs=1)
    shapes = [batch.x.shape for batch in callback.tap.batches()]
    assert 2 <= len(shapes) <= 4
    assert set(shapes[2:]).isdisjoint(shapes[:2])
    assert {((length, 4),) for _, length, _ in shapes} <= set(callback.tap.seen_shapes())
    assert sum(callback.tap.seen_shapes().values()) == callback.tap.taps


@pytest.mark.parametrize(
    ("case", "check"),
    [
        (
            dict_case,
            lambda x: sorted(x) == ["a", "b"] and x["a"].shape == (3, 3) and x["b"].shape == (3, 2),
        ),
        (list_case, lambda x: isinstance(x, tuple) and [a.shape for a in x] == [(3, 2), (3, 3)]),
        (sample_weight_case, lambda x: x.shape == (3, 4)),
        (ragged_case, lambda x: isinstance(x, tf.RaggedTensor) and x.nrows() == 3),
        (sparse_case, lambda x: isinstance(x, tf.SparseTensor) and tuple(x.shape) == (3, 4)),
        (string_case, lambda x: x.dtype == object and isinstance(x[0, 0], bytes)),
        (missing_input_case, lambda x: x["b"] is None and x["a"].shape == (3, 4)),
        (bfloat16_case, lambda x: x.dtype.name == "bfloat16"),
    ],
    ids=["dict", "list", "sample_weight", "ragged", "sparse", "string", "missing", "bfloat16"],
)
def test_only_x_is_kept_in_its_structure(case: Any, check: Any) -> None:
    callback = TapCallback()
    fit(case, [callback], epochs=1)
    assert callback.tap.batches()
    assert all(check(batch.x) for batch in callback.tap.batches())


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [(4 * 4 * 2 * 2, [(2, 4)] * 2), (40, [(1, 4)] * 2), (3, [(1, 4)])],
    ids=["fewer_rows", "fewer_batches", "one_row"],
)
def test_max_bytes_bounds_all_that_is_kept(max_bytes: int, expected: Any) -> None:
    callback = TapCallback(max_bytes=max_bytes)
    fit(numpy_case, [callback])
    assert [batch.x.shape for batch in callback.tap.batches()] == expected


def test_max_bytes_counts_strings() -> None:
    callback = TapCallback(max_bytes=30)
    _, with_tap = fit(string_case, [callback])
    assert with_tap == fit_without_tap(string_case)
    assert sum(nbytes(batch) for batch in callback.tap.batches()) <= 30


def test_a_new_fit_replaces_the_batches_of_an_earlier_one() -> None:
    callback = TapCallback()
    fit(counted_case(30), [callback], epochs=1)
    first = steps_kept(callback)
    fit(counted_case(2), [callback], epochs=1)
    assert max(first) > 1
    assert steps_kept(callback) == [0, 1]


def test_batches_are_remembered_as_long_as_the_model_lives() -> None:
    model, other = make_dense(), make_dense()
    rows = np.ones((3, 4))
    kept = weakref.ref(rows)
    remember(model, tap_with(Batch(np.zeros((2, 4)), 2, "captured")))
    remember(model, tap_with(Batch(rows, 3, "captured")))
    del rows
    found = find_capture(model)
    assert found is not None and [batch.size for batch in found.batches()] == [3]
    assert find_capture(other) is None
    del model, found
    keras.backend.clear_session()
    gc.collect()
    assert kept() is None


# What training is protected from.


class Raising(keras.callbacks.Callback):
    def __init__(self, hook: str, error: Any, step: int = 2) -> None:
        super().__init__()
        self.error, self.step = error, step
        setattr(self, hook, self.strike)

    def strike(self, step: Any, logs: Any = None) -> None:
        if step == self.step:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
def test_train_function_is_the_original_after_an_exception_in_an_earlier_callback(
    hook: str, error: Any
) -> None:
    model, kwargs = numpy_case()
    model.compile("sgd", "mse", jit_compile=False)
    model.make_train_function()
    original = vars(model)["train_function"]
    with pytest.raises(error):
        model.fit(**kwargs, verbose=0, callbacks=[Raising(hook, error), TapCallback()])
    assert vars(model)["train_function"] is original


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_train_function_is_the_original_after_an_exception_in_a_later_on_train_batch_end(
    error: Any,
) -> None:
    model, kwargs = numpy_case()
    model.compile("sgd", "mse", jit_compile=False)
    model.make_train_function()
    original = vars(model)["train_function"]
    with pytest.raises(error):
        model.fit(
            **kwargs, verbose=0, callbacks=[TapCallback(), Raising("on_train_batch_end", error)]
        )
    assert vars(model)["train_function"] is original


@pytest.mark.parametrize("use", ["fit_with_it", "fit_without_it", "train_on_batch", "end"])
def test_a_stand_in_left_by_a_later_callback_is_removed_at_the_next_use(use: str) -> None:
    model, kwargs = numpy_case()
    model.compile("sgd", "mse", jit_compile=False)
    model.make_train_function()
    original = vars(model)["train_function"]
    callback = TapCallback()
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            **kwargs,
            verbose=0,
            callbacks=[callback, Raising("on_train_batch_begin", KeyboardInterrupt)],
        )
    assert vars(model)["train_function"] is not original
    if use == "train_on_batch":
        model.train_on_batch(kwargs["x"][:7], kwargs["y"][:7])
    elif use == "end":
        callback.tap.end(model)
    else:
        model.fit(**kwargs, verbose=0, callbacks=[callback] if use == "fit_with_it" else [])
    assert vars(model)["train_function"] is original
    assert callback.tap.problem is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_train_function_is_the_original_after_an_exception_in_train_step(error: Any) -> None:
    class Broken(keras.Model):
        def train_step(self, data: Any) -> Any:
            raise error

    inputs = keras.Input((4,))
    model = Broken(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", run_eagerly=True)
    model.make_train_function()
    original = vars(model)["train_function"]
    with pytest.raises(error):
        model.fit(*rows_of(), verbose=0, callbacks=[TapCallback()])
    assert vars(model)["train_function"] is original


def failing_case(good: int) -> Case:
    """A pipeline of batches of 5 rows whose element `good` (counted from 0) cannot be computed."""

    def case() -> FitArguments:
        model, kwargs = counted_case(12)()
        checked = kwargs["x"].map(
            lambda x, y: (tf.debugging.check_numerics(x / (x[0, 0] - good), "bad"), y)
        )
        return model, dict(x=checked)

    return case


@pytest.mark.parametrize(("steps_per_execution", "good"), [(1, 0), (1, 2), (3, 3), (3, 4), (3, 5)])
def test_errors_of_the_users_pipeline_reach_the_user_after_the_same_steps(
    steps_per_execution: int, good: int
) -> None:
    def train(callbacks: Any) -> Any:
        keras.utils.set_random_seed(3)
        model, kwargs = failing_case(good)()
        model.compile("sgd", "mse", jit_compile=False, steps_per_execution=steps_per_execution)
        model.make_train_function()
        original = vars(model)["train_function"]
        with pytest.raises(tf.errors.InvalidArgumentError, match="bad"):
            model.fit(**kwargs, epochs=1, verbose=0, callbacks=callbacks)
        assert vars(model)["train_function"] is original
        return int(model.optimizer.iterations), [weight.tobytes() for weight in model.get_weights()]

    steps, weights = train([TapCallback()])
    assert steps == good
    if steps_per_execution == 1:
        # TensorFlow runs a read in parallel with ops that do not depend on it: without a tap the
        # failing step may count, and earlier steps of one execution may be lost.
        assert weights == train([])[1]


def warnings_of(recorded: Any) -> list[str]:
    return [
        str(warning.message)
        for warning in recorded
        if "Sampling of training batches" in str(warning.message)
    ]


@pytest.mark.parametrize("steps_per_execution", [1, 3])
@pytest.mark.parametrize(
    ("target", "broken", "problem"),
    [
        (capture, "read_leaf", "RuntimeError while copying rows of an element"),
        (capture, "count_rows", "RuntimeError while copying rows of an element"),
        (tf.data.experimental, "to_variant", "RuntimeError while passing an element on"),
    ],
)
def test_errors_of_the_tap_warn_once_and_leave_training_unchanged(
    monkeypatch: pytest.MonkeyPatch,
    target: Any,
    broken: str,
    problem: str,
    steps_per_execution: int,
) -> None:
    without = fit_without_tap(numpy_case, steps_per_execution)
    calls = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        raise RuntimeError("holds 0.123, which is training data")

    monkeypatch.setattr(target, broken, fail)
    callback = TapCallback()
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        _, with_tap = fit(
            numpy_case, [callback], compile_options=dict(steps_per_execution=steps_per_execution)
        )
    assert with_tap == without
    assert len(calls) == 1
    assert callback.tap.problem == problem
    assert warnings_of(recorded) == [
        f"Sampling of training batches stopped: {problem}. Training continues unchanged. "
        "Pass data= for warmup records of real rows."
    ]


def test_an_interrupt_while_copying_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(capture, "read_leaf", interrupt)
    model, kwargs = numpy_case()
    model.compile("sgd", "mse", jit_compile=False)
    model.make_train_function()
    original = vars(model)["train_function"]
    with pytest.raises(KeyboardInterrupt):
        model.fit(**kwargs, verbose=0, callbacks=[TapCallback()])
    assert vars(model)["train_function"] is original


def test_warnings_made_errors_are_printed_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capture, "read_leaf", lambda *args: 1 / 0)
    model, kwargs = numpy_case()
    model.compile("sgd", "mse", jit_compile=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(**kwargs, verbose=0, callbacks=[TapCallback()])
    assert int(model.optimizer.iterations) == 9
    assert capsys.readouterr().err.count("Sampling of training batches stopped") == 1


def test_elements_of_four_parts_are_left_alone() -> None:
    class Four(CountingModel):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data[:2])

    def case() -> FitArguments:
        x, y = rows_of()
        inputs = keras.Input((4,))
        model = Four(inputs, keras.layers.Dense(1)(inputs))
        return model, dict(x=tf.data.Dataset.from_tensor_slices((x, y, y, y)).batch(7))

    callback = TapCallback()
    with pytest.warns(UserWarning, match="Sampling of training batches stopped"):
        _, with_tap = fit(case, [callback])
    assert with_tap == fit(case, [])[1]
    assert callback.tap.problem == (
        "Cannot read a training element: expected x, (x,), (x, y) or (x, y, sample_weight), got a "
        "tuple of 4 parts"
    )
    assert callback.tap.batches() == []


def test_two_taps_see_the_same_batches() -> None:
    callbacks = [TapCallback(), TapCallback()]
    _, with_taps = fit(counted_case(), callbacks)
    assert with_taps == fit(counted_case(), [])[1]
    assert steps_kept(callbacks[0]) == steps_kept(callbacks[1]) != []


def test_the_model_has_its_own_function_at_steps_that_are_not_sampled() -> None:
    class Watch(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.stood_in: list[bool] = []

        def on_train_batch_begin(self, batch: Any, logs: Any = None) -> None:
            self.stood_in.append(isinstance(vars(self._model)["train_function"], StandIn))

    callback, watch = TapCallback(), Watch()
    fit(counted_case(120), [callback, watch], epochs=1)
    assert sum(watch.stood_in) == callback.tap.taps < len(watch.stood_in) == 120


# Other backends call train_function with other arguments.


class Backend:
    """A model of another backend, whose trainer calls `train_function` in its own way."""

    def __init__(self, train_function: Any, steps_per_execution: int = 1) -> None:
        self.train_function = train_function
        self.steps_per_execution = steps_per_execution


def run_steps(model: Any, tap: Any, calls: Any) -> list[Any]:
    tap.begin(model)
    original = vars(model)["train_function"]
    results = []
    for arguments in calls:
        tap.before_step(model)
        results.append(model.train_function(*arguments))
        assert vars(model)["train_function"] is original
    tap.end(model)
    return results


def test_jax_gets_the_same_elements_from_a_python_iterator() -> None:
    def train(state: Any, iterator: Any) -> Any:
        return [float(next(iterator)[0][0, 0]) for _ in range(2)], state

    source = iter([(np.full((4, 3), i), np.zeros(4)) for i in range(10)])
    tap = BatchTap(**SIZES)
    results = run_steps(Backend(train, steps_per_execution=2), tap, [("state", source)] * 5)
    assert results == [([2.0 * i, 2.0 * i + 1], "state") for i in range(5)]
    assert [batch.x.shape for batch in tap.batches()] == [(3, 3)] * 5


def test_any_step_of_the_fit_and_any_element_of_an_execution_may_be_kept() -> None:
    kept = set()
    for seed in range(40):
        tap = BatchTap(num_batches=4, rows=1, seed=seed, max_bytes=10**6)
        source = iter([(np.full((2, 1), i), None) for i in range(120)])
        arguments = ("", source)
        run_steps(
            Backend(
                lambda state, iterator: list(itertools.islice(iterator, 3)), steps_per_execution=3
            ),
            tap,
            [arguments] * 40,
        )
        steps = [int(batch.x[0, 0]) for batch in tap.batches()]
        assert steps == sorted(steps)
        assert tap.taps < 35
        kept.update(steps)
    # 160 draws of 120 steps miss a step with probability 0.26.
    assert len(kept) > 75
    assert {step % 3 for step in kept} == {0, 1, 2}
    assert all(
        30 > len([step for step in kept if low <= step < low + 30]) > 14 for low in (0, 30, 60, 90)
    )


def test_jax_sees_the_error_of_its_iterator_where_it_was() -> None:
    def elements() -> Iterator[Any]:
        yield np.zeros((4, 3)), np.zeros(4)
        raise OSError("disk")

    trained = []

    def train(state: Any, iterator: Any) -> Any:
        for element in iterator:
            trained.append(element)

    source = elements()
    with pytest.raises(OSError, match="disk"):
        run_steps(Backend(train, steps_per_execution=3), BatchTap(**SIZES), [("state", source)])
    assert len(trained) == 1


def test_jax_ends_where_its_iterator_ends() -> None:
    model = Backend(lambda state, iterator: next(iterator))
    with pytest.raises(StopIteration):
        run_steps(model, BatchTap(**SIZES), [("state", iter(()))])
    assert not isinstance(vars(model)["train_function"], StandIn)


def test_torch_batches_are_only_looked_at() -> None:
    element = (np.arange(12.0).reshape(4, 3), np.zeros(4))
    seen = []
    tap = BatchTap(**SIZES)
    run_steps(Backend(lambda data: seen.append(data[0])), tap, [([element],)] * 3)
    assert all(given is element for given in seen)
    element[0][:] = -1
    assert all((batch.x >= 0).all() for batch in tap.batches())
    assert len(tap.batches()) == 3


@pytest.mark.parametrize("source", ["an object", 3, None], ids=["str", "int", "none"])
def test_an_unknown_source_is_left_alone(source: Any) -> None:
    tap = BatchTap(**SIZES)
    model = Backend(lambda given: given)
    with pytest.warns(UserWarning, match="Sampling of training batches stopped"):
        assert run_steps(model, tap, [(source,)] * 2) == [source, source]
    assert tap.problem == f"fit reads from {type(source).__name__}, which cannot be sampled"


def test_a_model_without_a_train_function_of_its_own_is_left_alone() -> None:
    class Bare:
        pass

    tap = BatchTap(**SIZES)
    model = Bare()
    tap.begin(model)
    with pytest.warns(UserWarning, match="Bare has no train_function of its own"):
        tap.before_step(model)
    tap.before_step(model)
    tap.end(model)
    assert vars(model) == {}


def test_a_new_train_function_is_not_overwritten() -> None:
    model = Backend(lambda data: "old")
    tap = BatchTap(**SIZES)
    tap.begin(model)
    tap.before_step(model)
    stand_in, model.train_function = model.train_function, lambda data: "new"
    made = model.train_function
    assert stand_in([(np.zeros((2, 3)), None)]) == "old"
    restore(model)
    assert model.train_function is made


def test_an_example_has_structure_shapes_and_dtypes_but_no_values() -> None:
    x = {
        "ids": np.arange(6, dtype="int32").reshape(3, 2),
        "words": np.array([b"a", b"b", b"c"], object),
        "edges": np.ones((5, 2), "float16"),
    }
    inputs = tf.data.Dataset.from_tensors(x)
    tap = BatchTap(**SIZES)
    tap.sample_elements(list(inputs), inputs.element_spec)
    assert tap.problem is not None and not tap.batches()
    assert tap.example is not None
    for name, leaf in tap.example.x.items():
        assert (leaf.shape, leaf.dtype) == (x[name].shape, x[name].dtype)
        assert not any(leaf.ravel()) and set(leaf.strides) == {0}


def test_a_train_function_that_takes_several_elements_is_left_alone() -> None:
    """Gradient accumulation: a step that hands over one element would end the epoch."""

    class Accumulating(keras.Model):
        def make_train_function(self, force: bool = False) -> Any:
            super().make_train_function(force)
            step: Any = vars(self)["train_function"]

            def two_steps(iterator: Any) -> Any:
                step(iterator)
                return step(iterator)

            self.train_function = two_steps
            return two_steps

    def train(callbacks: list[Any]) -> tuple[int, list[bytes]]:
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,))
        model = Accumulating(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse")
        x, y = rows_of()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, y, batch_size=5, epochs=2, verbose=0, callbacks=callbacks)
        weights = [array.tobytes() for array in model.get_weights()]
        return int(model.optimizer.iterations), weights

    callback = TapCallback()
    assert train([callback]) == train([])
    assert callback.tap.problem == (
        "Accumulating has a make_train_function of its own, which may take any number of elements "
        "at a time"
    )
