"""Tests of `keras_warmup.savedmodel.argument_structure`."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.savedmodel.signatures import read_meta_graph
from tests.builders import signature_of

FLOATS = tf.TensorSpec([None], tf.float32)
Pair = collections.namedtuple("Pair", "late early")


def structure_of(export_dir: str | os.PathLike[str], key: str = "serving_default") -> Any:
    return signature_of(read_meta_graph(export_dir), key).structure


class Sum(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(
            tf.add_n([leaf * (rank + 1) for rank, leaf in enumerate(keras.tree.flatten(x))])
        )


def functional(structure: Callable[[Any, Any], Any]) -> Any:
    inputs = [keras.Input((3,), name=name) for name in ("zz", "aa")]
    outputs = keras.layers.Dense(2)(keras.layers.Concatenate()(inputs))
    return keras.Model(structure(*inputs), outputs)


def subclassed(x: Any) -> Any:
    model = Sum()
    model(x)
    return model


ROWS = np.ones((2, 3), "float32")


def export(model: Any, path: pathlib.Path) -> None:
    model.export(path, verbose=False)


@pytest.mark.parametrize("save", [export, tf.saved_model.save], ids=["export", "saved_model"])
@pytest.mark.parametrize(
    ("make", "structure"),
    [
        (lambda: functional(lambda z, a: {"p": z, "q": a}), {"p": 0, "q": 1}),
        (lambda: functional(lambda z, a: {"q": z, "p": a}), {"p": 0, "q": 1}),
        (lambda: functional(lambda z, a: [z, a]), [0, 1]),
        (lambda: subclassed(ROWS), 0),
        (lambda: subclassed({"k2": ROWS, "k1": [ROWS, ROWS]}), {"k1": [0, 1], "k2": 2}),
        (lambda: subclassed([ROWS] * 12), list(range(12))),
    ],
    ids=["dict", "dict-swapped", "list", "tensor", "nested", "twelve"],
)
def test_structure_pairs_input_names_with_the_models_arguments(
    tmp_path: pathlib.Path, make: Callable[[], Any], structure: Any, save: Callable[..., None]
) -> None:
    model = make()
    save(model, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    (names,) = structure_of(tmp_path)
    tf.nest.assert_same_structure(names, structure)

    # Input k gets k + 1 in every entry: a swap of any two inputs changes the sum.
    x = tf.nest.map_structure(lambda rank: np.full((2, 3), rank + 1, "float32"), structure)
    feeds = dict(zip(tf.nest.flatten(names), tf.nest.flatten(x), strict=True))
    outputs = loaded.signatures["serving_default"](
        **{name: tf.constant(value) for name, value in feeds.items()}
    )
    (output,) = outputs.values()
    np.testing.assert_allclose(output, model(x), rtol=1e-5)


class Functions(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(2.0)

    @tf.function
    def nested(self, a: Any, b: Any, training: bool = False) -> Any:
        return {"y": a["x"] * self.scale + b[0]}

    @tf.function
    def two(self, first: Any, second: Any) -> Any:
        return first - second * self.scale

    @tf.function
    def keywords(self, *, first: Any, second: Any) -> Any:
        return first - second

    @tf.function
    def ragged(self, rows: Any) -> Any:
        return rows.to_tensor()

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, name="text")])
    def any_rank(self, text: Any) -> Any:
        return tf.strings.length(text)


def named(name: str) -> Any:
    return tf.TensorSpec([None], tf.float32, name=name)


@pytest.mark.parametrize(
    ("make", "structure"),
    [
        (
            lambda m: m.nested.get_concrete_function({"x": named("q")}, [named("r")]),
            ({"x": "q"}, ["r"]),
        ),
        (
            lambda m: m.nested.get_concrete_function({"x": named("q")}, [named("r")], True),
            ({"x": "q"}, ["r"]),
        ),
        (
            lambda m: m.nested.get_concrete_function(
                {"x": named("q")}, Pair(named("r"), named("s"))
            ),
            ({"x": "q"}, ("r", "s")),
        ),
        # The trace in the object graph has other argument names (a_x, b_late): no evidence.
        (lambda m: m.nested.get_concrete_function({"x": FLOATS}, Pair(FLOATS, FLOATS)), None),
        (lambda m: m.two.get_concrete_function(named("z.b"), named("A")), ("z.b", "A")),
        (lambda m: m.any_rank, ("text",)),
        (lambda m: m.keywords.get_concrete_function(first=FLOATS, second=FLOATS), None),
        (lambda m: m.ragged.get_concrete_function(tf.RaggedTensorSpec([None, None])), None),
    ],
    ids=[
        "nested",
        "python-value",
        "namedtuple",
        "unnamed",
        "sanitized-names",
        "unknown-rank",
        "keywords",
        "ragged",
    ],
)
def test_structure_of_a_function_holds_its_tensor_arguments(
    tmp_path: pathlib.Path, make: Callable[[Functions], Any], structure: Any
) -> None:
    module = Functions()
    tf.saved_model.save(module, tmp_path, {"f": make(module)})
    assert structure_of(tmp_path, "f") == structure


def namesake(order: Collection[str], body: Callable[[Any, Any], Any]) -> Any:
    """Builds a function named `call` over the tensors named in `order`.

    It takes a dict of them where `order` is a set, otherwise two arguments.
    """
    specs = {name: named(name) for name in (sorted(order) if isinstance(order, set) else order)}
    if isinstance(order, set):

        def call_dict(d: Any) -> Any:
            return {"o": body(d["a"], d["b"])}

        call_dict.__name__ = "call"
        return tf.function(call_dict, input_signature=[specs])

    def call(one: Any, two: Any) -> Any:
        return {"o": body(one, two)}

    return tf.function(call, input_signature=list(specs.values()))


@pytest.mark.parametrize(
    ("tracked", "exported"),
    [
        # The same nodes over the same types, but the first tensor has another name.
        (namesake({"a", "b"}, lambda a, b: 2.0 * a - b), namesake("ba", lambda b, a: 2.0 * b - a)),
        # The same names, but the nodes read other tensors.
        (namesake("ab", lambda a, b: 2.0 * a - b), namesake("ab", lambda a, b: 2.0 * b - a)),
        # The same nodes but for a constant.
        (namesake("ab", lambda a, b: 2.0 * a - b), namesake("ab", lambda a, b: 3.0 * a - b)),
        # The same nodes but for those of a called function.
        (
            namesake("ab", lambda a, b: tf.function(lambda x, y: x - y)(a, b)),
            namesake("ab", lambda a, b: tf.function(lambda x, y: y - x)(a, b)),
        ),
    ],
    ids=["names", "inputs", "attributes", "called"],
)
def test_a_namesake_in_the_object_graph_gives_no_structure(
    tmp_path: pathlib.Path, tracked: Any, exported: Any
) -> None:
    module = tf.Module()
    module.tracked = tracked
    tf.saved_model.save(module, tmp_path, signatures=exported.get_concrete_function())
    found = read_meta_graph(tmp_path).object_graph_def.concrete_functions
    assert [name.rpartition("_")[0] for name in sorted(found)] == [
        "__inference_call",
        "__inference_signature_wrapper",
    ]
    assert structure_of(tmp_path) is None


@pytest.mark.parametrize(
    "body",
    [
        lambda a, b: tf.function(lambda x, y: x - y)(a, b),
        lambda a, b: a - b * float("nan"),
        lambda a, b: tf.cond(tf.size(a) > 1, lambda: a - b, lambda: b),
    ],
    ids=["calls", "nan", "branches"],
)
def test_a_second_trace_gives_the_structure(
    body: Callable[[Any, Any], Any], tmp_path: pathlib.Path
) -> None:
    module = tf.Module()
    module.tracked = namesake({"a", "b"}, body)
    specs = {"a": named("a"), "b": named("b")}
    module.again = tf.function(module.tracked.python_function)
    tf.saved_model.save(module, tmp_path, signatures=module.again.get_concrete_function(specs))
    assert structure_of(tmp_path) == ({"a": "a", "b": "b"},)


def test_arguments_that_are_composite_tensors_have_no_structure(tmp_path: pathlib.Path) -> None:
    module = tf.Module()
    specs = {
        "ragged": tf.RaggedTensorSpec([None, None], tf.float32),
        "sparse": tf.SparseTensorSpec([None, 4], tf.float32),
    }
    signatures = {
        key: tf.function(lambda x: {"y": x * 2.0}, input_signature=[spec])
        for key, spec in specs.items()
    }
    module.functions = signatures
    tf.saved_model.save(module, tmp_path, signatures=signatures)
    assert [structure_of(tmp_path, key) for key in specs] == [None, None]


def test_composite_outputs_do_not_hide_the_structure(tmp_path: pathlib.Path) -> None:
    module = tf.Module()
    module.serve = tf.function(
        lambda text: {"words": tf.strings.split(text)},
        input_signature=[tf.TensorSpec([None], tf.string, name="text")],
    )
    tf.saved_model.save(module, tmp_path, signatures=module.serve)
    assert structure_of(tmp_path) == ("text",)


def test_a_tf1_export_has_no_structure(saved_models: pathlib.Path) -> None:
    export_dir = saved_models / "half_plus_two_tf1" / "1"
    keys = list(read_meta_graph(export_dir).signature_def)
    assert len(keys) == 5
    assert [structure_of(export_dir, key) for key in keys] == [None] * 5
