"""Training is bit-identical with sampling under each strategy, with tf_keras and with JAX."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.callbacks import BatchCapture
from keras_warmup.training import strategy
from keras_warmup.training.strategy import describe_unsupported, is_chief, needs_all_workers

ROOT = pathlib.Path(__file__).resolve().parents[2]
MATRIX = [
    ("keras", "one_device"),
    ("keras", "mirrored1"),
    ("keras", "mirrored2"),
    ("tf_keras", "none"),
    ("tf_keras", "mirrored1"),
    ("tf_keras", "mirrored2"),
    ("jax", "none"),
    ("jax", "data_parallel"),
]


@pytest.mark.parametrize(("flavor", "place"), MATRIX)
def test_training_is_bit_identical(flavor: str, place: str) -> None:
    if importlib.util.find_spec(flavor) is None:
        pytest.skip(f"{flavor} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.training_matrix", flavor, place],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(cases) >= 7
    for case in cases:
        assert case["differs"] == [], case
        assert case["problem"] is None, case
        assert case["taps"] >= 2, case
        assert case["batches"] >= 2, case
        assert case["of_training"], case
        # The step was traced; XLA or JAX compiled it, if it did.
        assert case["traces"] + case["compilations"] > 0 or "run_eagerly" in case["case"], case


class FakeModel:
    """A model under a strategy, which Keras cannot make on this machine."""

    variables: tuple[Any, ...] = ()
    layers: tuple[Any, ...] = ()

    def __init__(self, distribute_strategy: Any) -> None:
        self.distribute_strategy = distribute_strategy


def cluster(*jobs: str, task_type: str, task_id: int = 0) -> FakeModel:
    """Returns a model in a cluster, seen by one of its tasks."""
    strategy = object.__new__(tf.distribute.MultiWorkerMirroredStrategy)
    spec = tf.train.ClusterSpec({job: ["localhost:1", "localhost:2"] for job in jobs})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type=task_type, task_id=task_id
    )
    strategy._extended = type("Extended", (), {"_cluster_resolver": resolver})()
    return FakeModel(strategy)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, True),
        (FakeModel(None), True),
        (FakeModel(tf.distribute.get_strategy()), True),
        (cluster("worker", task_type="worker", task_id=0), True),
        (cluster("worker", task_type="worker", task_id=1), False),
        (cluster("chief", "worker", task_type="chief"), True),
        (cluster("chief", "worker", task_type="worker", task_id=0), False),
    ],
    ids=["no_model", "jax", "default", "worker_0", "worker_1", "chief", "worker_beside_chief"],
)
def test_the_chief_publishes(model: Any, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tf.distribute.MultiWorkerMirroredStrategy,
        "cluster_resolver",
        property(lambda self: self._extended._cluster_resolver),
    )
    assert is_chief(model) is expected


def test_a_model_on_one_machine_needs_no_other_worker() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    assert not needs_all_workers(model)


def test_unsupported_strategies_are_named() -> None:
    multi = FakeModel(object.__new__(tf.distribute.MultiWorkerMirroredStrategy))
    assert describe_unsupported(multi) == (
        "Keras 3 does not support MultiWorkerMirroredStrategy "
        "(https://github.com/keras-team/keras/issues/20585); tf_keras does"
    )
    server = FakeModel(object.__new__(tf.distribute.experimental.ParameterServerStrategy))
    assert describe_unsupported(server) == (
        "fit runs under ParameterServerStrategyV2, whose batches are not in this process"
    )
    assert describe_unsupported(FakeModel(tf.distribute.get_strategy())) is None


def test_an_unsupported_strategy_warns_once_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(strategy, "_LOCAL", ())
    capture = BatchCapture()
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        model.fit(
            np.ones((8, 2)), np.ones((8, 1)), epochs=3, batch_size=2, verbose=0, callbacks=[capture]
        )
    texts = [str(one.message) for one in recorded if "ampling" in str(one.message)]
    assert texts == [
        "Sampling of training batches stopped: fit runs under OneDeviceStrategy, whose batches are "
        "not in this process. Training continues unchanged. Pass data= for warmup records of real "
        "rows."
    ]
    assert capture._tap.batches() == []
    assert int(model.optimizer.iterations) == 12
