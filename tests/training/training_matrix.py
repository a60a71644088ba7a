"""Trains models with and without a tap in one process; prints what differs as JSON.

    python -m tests.training.training_matrix (keras|tf_keras|jax) STRATEGY

STRATEGY is `none`, `one_device`, `mirrored1`, `mirrored2` (on logical CPUs) or `data_parallel` (of
`keras.distribution`). test_strategies.py runs it: a process has one backend and one set of devices.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

FLAVOR, STRATEGY = sys.argv[1:]
os.environ["KERAS_BACKEND"] = "jax" if FLAVOR == "jax" else "tensorflow"
if STRATEGY == "data_parallel":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import numpy as np
import tensorflow as tf

if STRATEGY == "mirrored2":
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )

if FLAVOR == "tf_keras":
    import tf_keras as keras
else:
    import keras

from keras_warmup.callbacks import BatchCapture
from keras_warmup.training import capture as capture_module
from keras_warmup.training.capture import StandIn
from tests.training.traces import function_traces

if STRATEGY == "data_parallel":
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=keras.distribution.list_devices())
    )
ROWS = 56
Case = Callable[[], tuple[Any, dict[str, Any]]]


def make_strategy() -> Any:
    """Returns the strategy of the process; `None` without one."""
    if STRATEGY == "one_device":
        return tf.distribute.OneDeviceStrategy("CPU:0")
    if STRATEGY.startswith("mirrored"):
        devices = [f"CPU:{index}" for index in range(int(STRATEGY[-1]))]
        return tf.distribute.MirroredStrategy(devices)
    return None


class Counting:
    """Counts the traces of `train_step`."""

    traces = 0

    def train_step(self, *args: Any) -> Any:
        self.traces += 1
        return super().train_step(*args)  # type: ignore[misc]


class CountingModel(Counting, keras.Model):  # type: ignore[misc]
    pass


def rows() -> tuple[Any, Any]:
    """Returns x and y; the sum of a row of x is its label."""
    x = np.random.default_rng(7).random((ROWS, 4), dtype=np.float32)
    return x, x.sum(1, keepdims=True)


def dense_model(width: int | None = 4) -> Any:
    inputs = keras.layers.Input((width,))
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(hidden))
    return CountingModel(inputs, keras.layers.Dense(1)(hidden))


def arrays_case() -> tuple[Any, dict[str, Any]]:
    x, y = rows()
    return dense_model(), dict(x=x, y=y, batch_size=8)


def partial_batch_case() -> tuple[Any, dict[str, Any]]:
    # The last batch is of 2 rows. Keras 3 fails on a batch that replicas cannot share evenly.
    x, y = rows()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(ROWS, seed=1)
    return dense_model(), dict(x=dataset.batch(11 if FLAVOR == "tf_keras" else 18))


def dict_case() -> tuple[Any, dict[str, Any]]:
    x, y = rows()
    inputs = {"b": keras.layers.Input((2,), name="zz"), "a": keras.layers.Input((2,), name="aa")}
    joined = keras.layers.Concatenate()([inputs["b"], inputs["a"]])
    model = CountingModel(inputs, keras.layers.Dense(1)(joined))
    return model, dict(x={"b": x[:, :2], "a": x[:, 2:]}, y=y, batch_size=8)


def weights_case() -> tuple[Any, dict[str, Any]]:
    x, y = rows()
    weights = np.linspace(0.5, 2, ROWS, dtype=np.float32)
    return dense_model(), dict(x=x, y=y, batch_size=8, sample_weight=weights)


def endless_case() -> tuple[Any, dict[str, Any]]:
    dataset = tf.data.Dataset.from_tensor_slices(rows()).shuffle(ROWS, seed=1).batch(8).repeat()
    return dense_model(), dict(x=dataset, steps_per_epoch=6)


def generator_case() -> tuple[Any, dict[str, Any]]:
    def batches() -> Iterator[Any]:
        x, y = rows()
        for start in range(0, ROWS, 8):
            yield x[start : start + 8], y[start : start + 8]

    specs = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1)))
    return dense_model(), dict(x=tf.data.Dataset.from_generator(batches, output_signature=specs))


def lengths_case() -> tuple[Any, dict[str, Any]]:
    def batches() -> Iterator[Any]:
        x, y = rows()
        for index in range(7):
            piece = slice(index * 8, index * 8 + 8)
            yield np.repeat(x[piece, None], 1 + index % 3, axis=1), y[piece]

    inputs = keras.layers.Input((None, 4))
    hidden = keras.layers.GlobalAveragePooling1D()(inputs)
    specs = (tf.TensorSpec((None, None, 4)), tf.TensorSpec((None, 1)))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=specs)
    return CountingModel(inputs, keras.layers.Dense(1)(hidden)), dict(x=dataset)


CASES: list[tuple[Case, dict[str, Any]]] = [
    (arrays_case, {}),
    (partial_batch_case, {}),
    (dict_case, {}),
    (weights_case, {}),
    (endless_case, {}),
    (generator_case, {}),
    (lengths_case, {}),
]
# With several replicas Keras 3 fails on eager steps and on several steps per execution, with or
# without a tap.
if (FLAVOR, STRATEGY) != ("keras", "mirrored2"):
    CASES.append((endless_case, {"steps_per_execution": 3}))
    CASES.append((arrays_case, {"steps_per_execution": 7}))
    if FLAVOR != "jax":
        CASES.append((arrays_case, {"run_eagerly": True}))
# XLA's random numbers repeat with Keras 3 only.
if FLAVOR == "keras" and STRATEGY in ("none", "one_device"):
    CASES.append((arrays_case, {"jit_compile": True}))


class Compilations:
    """Counts what JAX compiles."""

    count = 0

    def __init__(self) -> None:
        if FLAVOR == "jax":
            import jax

            jax.monitoring.register_event_duration_secs_listener(self._see)

    def _see(self, event: str, *_: Any, **__: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


def train(case: Case, compile_options: dict[str, Any], callbacks: list[Any]) -> dict[str, Any]:
    """Trains a new model, and returns all of the training that can be seen."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    before = compilations.count
    with strategy.scope() if strategy else contextlib.nullcontext():
        model, arguments = case()
        options = {"jit_compile": FLAVOR == "jax", **compile_options}
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"], **options)
    history = model.fit(**arguments, epochs=2, verbose=0, callbacks=callbacks).history
    assert not isinstance(vars(model).get("train_function"), StandIn)
    is_eager = compile_options.get("run_eagerly") or FLAVOR == "jax"
    return {
        "weights": [array.tolist() for array in model.get_weights()],
        "history": history,
        "traces": model.traces,
        "function_traces": 0 if is_eager else function_traces(model),
        "compilations": compilations.count - before,
        "random": [np.random.random(), tf.random.uniform((2,)).numpy().tolist()],
    }


def is_of_training(batches: list[Any]) -> bool:
    """Returns whether each kept row is one of `rows`."""
    known = {row.tobytes() for row in rows()[0]}
    return all(
        row.tobytes() in known
        for batch in batches
        if not isinstance(batch.x, dict) and batch.x.ndim == 2
        for row in batch.x
    )


strategy = make_strategy()
compilations = Compilations()
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    capture_module.MAX_COST_SHARE = float("inf")  # so that short fits have several taps
    for case, options in CASES:
        if FLAVOR == "jax":
            train(case, options, [])  # compiles what a process compiles once
        without = train(case, options, [])
        capture = BatchCapture(num_batches=8)
        with_tap = train(case, options, [capture])
        batches = capture._tap.batches()
        print(
            json.dumps(
                {
                    "case": f"{case.__name__.removesuffix('_case')} {options or ''}".strip(),
                    "differs": [key for key in without if without[key] != with_tap[key]],
                    "traces": with_tap["function_traces"],
                    "compilations": with_tap["compilations"],
                    "problem": capture._tap.problem,
                    "taps": capture._tap.taps,
                    "batches": len(batches),
                    "of_training": is_of_training(batches),
                }
            )
        )
