"""Decides, by the `tf.distribute.Strategy`, what is sampled, proved and published."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_warmup.keras_api import Model, is_legacy

_LOCAL = (tf.distribute.OneDeviceStrategy, tf.distribute.MirroredStrategy)


def describe_unsupported(model: Model) -> str | None:
    """Returns why the batches of a `fit` cannot be sampled; `None` where they can."""
    if not _is_own(type(model), "make_train_function"):
        return (
            f"{type(model).__name__} has a make_train_function of its own, which may take any "
            "number of elements at a time"
        )
    strategy = _strategy_of(model)
    name = type(strategy).__name__
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        if is_legacy(model):
            return None
        return (
            "Keras 3 does not support MultiWorkerMirroredStrategy "
            "(https://github.com/keras-team/keras/issues/20585); tf_keras does"
        )
    # The strategy of a fit without one has no public class.
    if strategy is None or isinstance(strategy, _LOCAL) or name == "_DefaultDistributionStrategy":
        return None
    return f"fit runs under {name}, whose batches are not in this process"


def is_chief(model: Model | None) -> bool:
    """Returns whether this process publishes the model: one of several workers does.

    Source: the guide of TensorFlow, "Multi-worker training with Keras": each worker must take part
    in a save, and the chief is the worker of index 0 where no task of the cluster is named so.
    """
    resolver = _resolver_of(model)
    if resolver is None or resolver.task_type is None:
        return True
    if resolver.task_type == "chief":
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return not has_chief and resolver.task_type == "worker" and resolver.task_id == 0


def describe_worker(model: Model) -> str:
    """Returns the name of this process in its cluster, such as `worker 1`."""
    resolver = _resolver_of(model)
    return "the only worker" if resolver is None else f"{resolver.task_type} {resolver.task_id}"


def needs_all_workers(model: Model) -> bool:
    """Returns whether a call of the model would wait for other workers.

    They read a variable together that each keeps a part of, such as the moving statistics of a
    BatchNormalization layer.
    """
    if _resolver_of(model) is None:
        return False
    together = tf.VariableSynchronization.ON_READ
    return any(getattr(one, "synchronization", None) == together for one in model.variables)


def has_several_workers(model: Model | None) -> bool:
    """Returns whether this process is one of several that train and save a model together."""
    return _resolver_of(model) is not None


def _is_own(model_class: type, name: str) -> bool:
    """Returns whether a method of a model class is the one of Keras."""
    owner = next((one for one in model_class.__mro__ if name in vars(one)), None)
    return owner is None or owner.__module__.partition(".")[0] in ("keras", "tf_keras")


def _strategy_of(model: Model | None) -> tf.distribute.Strategy | None:
    return getattr(model, "distribute_strategy", None)  # no other backend than TensorFlow has it


def _resolver_of(model: Model | None) -> Any:
    """Returns the cluster resolver where several workers train the model, else `None`."""
    strategy: Any = _strategy_of(model)
    is_multi = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return strategy.cluster_resolver if is_multi else None
