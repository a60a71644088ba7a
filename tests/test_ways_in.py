"""The four ways in bind the same data to the same signature in the same way; none swaps inputs."""

from __future__ import annotations

import collections
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from tests.builders import functional_model, input_of_four, predict_inputs, random_rows

WAYS = ["callback", "export_with_warmup", "save", "add_warmup"]
# Unsorted: Keras flattens a dict by its sorted keys, a list by position.
NAMES = [("zz", "aa"), ("item", "user", "context")]


class Weighted(keras.layers.Layer):
    """Adds up inputs with weights, so that a swap of two inputs changes the outputs."""

    def call(self, inputs: Any) -> Any:
        return sum(one * (index + 1.0) for index, one in enumerate(inputs))


class OfNames(keras.Model):
    """A subclassed model that takes a dict."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.add, self.head = Weighted(), keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.head(self.add([x[name] for name in self.names]))


class OfTuple(keras.Model):
    """A subclassed model that takes a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.add, self.head = Weighted(), keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.head(self.add(x))


def make_sequential(names: tuple[str, ...]) -> keras.Model:
    return keras.Sequential([keras.Input((4,), name=names[0]), keras.layers.Dense(3)])


def make_of_list(names: tuple[str, ...]) -> keras.Model:
    return functional_model([input_of_four(name) for name in names])


def make_of_dict(names: tuple[str, ...]) -> keras.Model:
    return functional_model({name: input_of_four(name) for name in names})


def make_of_names(names: tuple[str, ...]) -> keras.Model:
    return OfNames(names)


def make_of_tuple(names: tuple[str, ...]) -> keras.Model:
    return OfTuple()


class Served(tf.Module):
    """A module with one endpoint that takes the features by name, in another order."""

    def __init__(self, model: keras.Model, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        specs = {name: tf.TensorSpec([None, 4], name=name) for name in reversed(names)}

        @tf.function(input_signature=[specs])
        def serve(x: Any) -> Any:
            return {"y": model({name: x[name] for name in names})}

        self.serve = serve


Arrange = Callable[[Mapping[str, np.ndarray]], Any]


def as_list(x: Mapping[str, np.ndarray]) -> Any:
    return list(x.values())


def as_tuple(x: Mapping[str, np.ndarray]) -> Any:
    return tuple(x.values())


def as_dict(x: Mapping[str, np.ndarray]) -> Any:
    return dict(x)


def as_reversed_dict(x: Mapping[str, np.ndarray]) -> Any:
    return dict(reversed(list(x.items())))


def as_ordered(x: Mapping[str, np.ndarray]) -> Any:
    return collections.OrderedDict(reversed(list(x.items())))


def with_extra(x: Mapping[str, np.ndarray]) -> Any:
    return {**x, "customer": random_rows(4)}


def alone(x: Mapping[str, np.ndarray]) -> Any:
    return next(iter(x.values()))


def as_dataset(x: Mapping[str, np.ndarray]) -> Any:
    return tf.data.Dataset.from_tensor_slices((dict(x), np.zeros(12))).batch(6)


KINDS: dict[str, tuple[Callable[[tuple[str, ...]], keras.Model], list[Arrange]]] = {
    "sequential": (make_sequential, [alone, as_dict]),
    "functional list": (make_of_list, [as_list, as_tuple, as_dict, as_reversed_dict, as_dataset]),
    "functional dict": (
        make_of_dict,
        [as_dict, as_reversed_dict, as_ordered, with_extra, as_dataset],
    ),
    "subclassed dict": (make_of_names, [as_dict, as_reversed_dict, as_dataset]),
    "subclassed tuple": (make_of_tuple, [as_tuple]),
    "module": (make_of_dict, [as_dict, as_reversed_dict, as_ordered, with_extra, as_dataset]),
}
CASES = [
    pytest.param(kind, arrange, names, id=f"{kind}, {arrange.__name__}, {' '.join(names)}")
    for kind, (_, arrangements) in KINDS.items()
    for arrange in arrangements
    for names in (NAMES[:1] if kind == "sequential" else NAMES)
]


def publish(way: str, kind: str, names: tuple[str, ...], data: Any, path: pathlib.Path) -> None:
    """Publishes a new model in one of the ways, without its report."""
    keras.utils.set_random_seed(0)
    model = KINDS[kind][0](names)
    module = Served(model, names) if kind == "module" else None
    x = {name: random_rows(4, rows=4) for name in names}
    fed: Any = list(x.values()) if "list" in kind else tuple(x.values()) if "tuple" in kind else x
    if kind == "sequential":
        fed = x[names[0]]
    model.compile("sgd", "mse")

    def save_module(_: keras.Model, directory: str) -> None:
        assert module is not None
        tf.saved_model.save(module, directory, {"serving_default": module.serve})

    export_fn = None if module is None else save_module
    if way == "callback":
        export = kw.WarmupExport(path, data=data, export_fn=export_fn, on_error="raise", verbose=0)
        model.fit(fed, np.zeros((4, 3)), verbose=0, callbacks=[export])
        return
    model.fit(fed, np.zeros((4, 3)), verbose=0)
    if way == "export_with_warmup":
        kw.export_with_warmup(model, path, data=data, export_fn=export_fn)
    elif way == "save" and module is not None:
        kw.save(module, path, {"serving_default": module.serve}, data=data)
    elif way == "save":
        kw.save(model, path, data=data)
    else:
        kw.export_with_warmup(model, path, data=data, export_fn=export_fn)
        kw.add_warmup(path, data)


def rows_sent(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns input name -> rows of the record that warms `serving_default`."""
    logs = list(kw.read_records(path))
    keys = [log.predict_log.request.model_spec.signature_name for log in logs]
    return predict_inputs(logs[keys.index("serving_default")])


@pytest.mark.parametrize(("kind", "arrange", "names"), CASES)
def test_every_way_in_sends_the_same_rows(
    kind: str, arrange: Arrange, names: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    names = names[:1] if kind == "sequential" else names
    rows = {name: random_rows(4) for name in names}
    data = arrange(rows)
    sent: dict[str, list[np.ndarray]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for way in WAYS:
            path = tmp_path / way / "1"
            publish(way, kind, names, data, path)
            by_name = rows_sent(path)
            if set(by_name) != set(names):
                # tf.saved_model.save numbers the inputs in the order in which x is flattened.
                order = sorted(names) if kind == "functional dict" else names
                numbered = [by_name[name] for name in sorted(by_name)]
                by_name = dict(zip(order, numbered, strict=True))
            sent[way] = [by_name[name] for name in names]
            assert kw.verify(path).ok
    for way, arrays in sent.items():
        for name, array, other in zip(names, arrays, sent["callback"], strict=True):
            assert all(row in rows[name].tolist() for row in array.tolist()), (way, name)
            np.testing.assert_array_equal(array, other)
