"""Pulls the elements of the next steps out of the iterator of `fit`, and hands them on.

The iterator over the same elements that the training gets in its place has the same type and spec,
so that nothing is traced again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Pulled:
    """The elements of one call of `train_function`.

    Attributes:
        elements: the elements; under a strategy those of each local replica, one step after the
            other.
        element_spec: their spec; `None` where the iterator has none.
        error: what the iterator raised after them, other than its end.
    """

    elements: list[Any]
    element_spec: Any = None
    error: Exception | None = None


def pull(source: Iterator[Any], steps: int) -> Pulled:
    """Pulls the elements of up to `steps` steps out of a `tf.data.Iterator` or a Python one."""
    elements: list[Any] = []
    error = None
    try:
        for _ in range(steps):
            elements.append(next(source))
    except StopIteration:
        pass
    except Exception as raised:
        error = raised
    return Pulled(elements, getattr(source, "element_spec", None), error)


def pull_distributed(source: Any, steps: int) -> Pulled:
    """Pulls the elements of up to `steps` steps out of a `tf.distribute.DistributedIterator`.

    Only those of the replicas of this process are pulled, by the iterators below: `next` would ask
    all workers whether they have an element left, and wait for those that are not asked.

    Args:
        source: the iterator.
        steps: number of steps.

    Raises:
        AttributeError: this version of TensorFlow has no such iterators; nothing was pulled.
    """
    spec = _spec_of_replica(source.element_spec)
    take = [worker.get_next_as_optional_list for worker in source._iterators]
    elements: list[Any] = []
    error = None
    try:
        for _ in range(steps):
            optionals = [one for take_next in take for one in take_next()]
            found = [one.get_value() for one in optionals if bool(one.has_value())]
            elements += found
            if not found:
                break
    except Exception as raised:
        error = raised
    return Pulled(elements, spec, error)


def _spec_of_replica(element_spec: Any) -> Any:
    """Returns the spec of an element of one replica; with one replica it is no `PerReplicaSpec`."""
    return tf.nest.map_structure(lambda one: getattr(one, "_value_specs", (one,))[0], element_spec)


def dataset_of(pulled: Pulled) -> tf.data.Dataset:
    """Returns a dataset of the elements with their own spec."""
    dataset: Any = None
    for element in pulled.elements:
        variant = tf.data.experimental.to_variant(tf.data.Dataset.from_tensors(element))
        one = tf.data.experimental.from_variant(variant, pulled.element_spec)
        dataset = one if dataset is None else dataset.concatenate(one)
    # Optimizing a pipeline of one element takes longer than running it.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options)


def generated_dataset_of(pulled: Pulled) -> tf.data.Dataset:
    """Returns a dataset of the elements, whatever pipeline they are from; it is slow to make."""
    return tf.data.Dataset.from_generator(
        lambda: iter(pulled.elements), output_signature=pulled.element_spec
    )


def distribute(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy, like: Any) -> Any:
    """Returns a `DistributedIterator` that deals the elements of a dataset to the replicas.

    Args:
        dataset: a dataset of elements for one replica each.
        strategy: the strategy of the replicas.
        like: the `DistributedIterator` in whose place it is.
    """
    options = getattr(like, "_options", None)
    iterator = iter(strategy.distribute_datasets_from_function(lambda _: dataset, options))
    # What a trace of the step does at the end of the data depends on these: with several workers it
    # asks them whether they have an element left.
    for name in ("_cardinality", "_enable_get_next_as_optional"):
        if hasattr(like, name):
            setattr(iterator, name, getattr(like, name))
    return iterator


def python_iterator(pulled: Pulled) -> Iterator[Any]:
    """Yields the elements, and raises the error after them."""
    yield from pulled.elements
    if pulled.error is not None:
        raise pulled.error
