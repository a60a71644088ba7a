"""Tests of `keras_warmup.endpoints`: what they compute, and the requests that reach them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup import endpoints
from keras_warmup._protos import PredictionLog
from keras_warmup.binding.examples import build_examples
from keras_warmup.errors import BindingError, OptionsError
from keras_warmup.savedmodel.graph import graph_facts
from keras_warmup.savedmodel.request_kinds import servable_kinds
from keras_warmup.savedmodel.saving import save_saved_model
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.savedmodel.string_formats import FeatureSpec
from keras_warmup.savedmodel.string_inputs import find_string_formats
from keras_warmup.serving.replay import open_session
from tests.builders import float_parser, multi_inference_log, predict_log, task_log

SPEC = {
    "age": tf.io.FixedLenFeature([], tf.int64),
    "word": tf.io.FixedLenFeature([1], tf.string, default_value=["a"]),
    "history": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
}
ROWS = {
    "age": np.array([3, 4, 5]),
    "word": np.array([["a"], ["b"], ["?"]]),
    "history": tf.ragged.constant([[1.0], [], [2.0, 3.0]]),
}


def tabular(last: Callable[[Any], Any]) -> keras.Model:
    keras.utils.set_random_seed(0)
    age = keras.Input((1,), name="age")
    word = keras.Input((1,), dtype="string", name="word")
    history = keras.Input((None,), name="history")
    code = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(word)
    total = keras.ops.sum(history, axis=1, keepdims=True)
    hidden = keras.layers.Dense(4, activation="relu")(
        keras.layers.Concatenate()([age, code, total])
    )
    return keras.Model({"age": age, "word": word, "history": history}, last(hidden))


def two_heads(hidden: Any) -> dict[str, Any]:
    return {
        "species": keras.layers.Dense(3, activation="softmax", name="species")(hidden),
        "weight": keras.layers.Dense(1, name="weight")(hidden),
    }


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return tabular(two_heads)


@pytest.fixture(scope="module")
def functions(model: keras.Model) -> dict[str, Any]:
    return {
        "classify": endpoints.classify(model, SPEC, ["x", "y", "z"], output="species"),
        "regress": endpoints.regress(model, SPEC, output="weight"),
        "predict": endpoints.predict_examples(model, SPEC),
    }


def save(model: keras.Model, path: str, functions: dict[str, Any]) -> None:
    save_saved_model(model, path, functions)


def archive(model: keras.Model, path: str, functions: dict[str, Any]) -> None:
    export = keras.export.ExportArchive()
    export.track(model)
    for name, function in functions.items():
        export.add_endpoint(name, function)
    export.write_out(path, verbose=False)


@pytest.fixture(scope="module", params=[save, archive], ids=["save", "export_archive"])
def export_dir(
    request: pytest.FixtureRequest,
    model: keras.Model,
    functions: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    path = str(tmp_path_factory.mktemp("export") / "1")
    request.param(model, path, functions)
    return path


@pytest.fixture(scope="module")
def rows(export_dir: str) -> np.ndarray:
    meta_graph = read_meta_graph(export_dir)
    signature = next(found for found in read_signatures(meta_graph) if found.key == "predict")
    return build_examples(ROWS, find_string_formats(meta_graph, signature)["examples"].spec)


@pytest.fixture(scope="module")
def expected(model: keras.Model) -> dict[str, np.ndarray]:
    dense = {
        "age": ROWS["age"][:, None],
        "word": tf.constant(ROWS["word"]),
        "history": ROWS["history"].to_tensor(),
    }
    return {
        key: value.numpy()
        for key, value in model({**dense, "age": tf.cast(dense["age"], tf.float32)}).items()
    }


def log_of(kind: str, rows: np.ndarray) -> PredictionLog:
    """Builds the log of a request of a kind; each signature is named after its kind."""
    if kind == "predict":
        return predict_log(kind, examples=rows)
    examples = [tf.train.Example.FromString(row) for row in rows]
    if kind == "multi_inference":
        tasks = [(key, f"tensorflow/serving/{key}") for key in ("classify", "regress")]
        return multi_inference_log(*tasks, examples=examples)
    return task_log(kind, kind, *examples)


def test_the_endpoints_have_the_inputs_and_outputs_that_the_server_requires(
    export_dir: str,
) -> None:
    meta_graph = read_meta_graph(export_dir)
    signatures = {found.key: found for found in read_signatures(meta_graph)}
    kinds = {key: servable_kinds(signatures[key]) for key in ("classify", "regress", "predict")}
    assert kinds["classify"]["classify"] is None and kinds["classify"]["multi_inference"] is None
    assert kinds["regress"]["regress"] is None and kinds["regress"]["multi_inference"] is None
    assert kinds["predict"]["predict"] is None and kinds["predict"]["classify"] is not None
    assert {
        key: graph_facts(meta_graph, signatures[key]).unrestored_variables for key in kinds
    } == dict.fromkeys(kinds, ())


@pytest.mark.parametrize("kind", ["classify", "regress", "predict", "multi_inference"])
def test_each_request_kind_runs_as_the_server_runs_it(
    kind: str, export_dir: str, rows: np.ndarray, expected: Mapping[str, np.ndarray]
) -> None:
    with open_session(export_dir) as session:
        outputs = session.replay(log_of(kind, rows)).outputs
    assert outputs
    found = {name.rpartition("/")[2].rpartition(":")[2]: value for name, value in outputs.items()}
    if kind in ("classify", "multi_inference"):
        np.testing.assert_allclose(found["scores"], expected["species"], rtol=1e-5)
        assert found["classes"].tolist() == [[b"x", b"y", b"z"]] * 3
    if kind in ("regress", "multi_inference"):
        np.testing.assert_allclose(found["outputs"], expected["weight"], rtol=1e-5)
    if kind == "predict":
        np.testing.assert_allclose(found["species"], expected["species"], rtol=1e-5)
        np.testing.assert_allclose(found["weight"], expected["weight"], rtol=1e-5)


def examples_of(**columns: np.ndarray) -> tuple[dict[str, Any], tf.Tensor]:
    """Returns the feature spec of columns of floats, and their rows as serialized Examples."""
    spec = {
        key: tf.io.FixedLenFeature(column.shape[1:], tf.as_dtype(column.dtype))
        for key, column in columns.items()
    }
    built = []
    for row in range(len(next(iter(columns.values())))):
        example = tf.train.Example()
        for key, column in columns.items():
            example.features.feature[key].float_list.value.extend(np.ravel(column[row]))
        built.append(example.SerializeToString())
    return spec, tf.constant(built)


def test_a_single_input_takes_the_only_feature_whatever_its_name() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    spec, rows = examples_of(pixels=x)
    np.testing.assert_allclose(
        endpoints.predict_examples(model, spec)(rows)["outputs"], model(x), rtol=1e-6
    )


def test_a_list_of_inputs_takes_features_by_input_name_in_its_own_order() -> None:
    inputs = [keras.Input((1,), name=name) for name in ("zz", "aa")]
    model = keras.Model(inputs, [inputs[0] - inputs[1], inputs[0] * 0.0])
    spec, rows = examples_of(aa=np.array([[1.0]], np.float32), zz=np.array([[5.0]], np.float32))
    found = endpoints.predict_examples(model, spec)(rows)
    assert {key: value.numpy().tolist() for key, value in found.items()} == {
        "output_0": [[4.0]],
        "output_1": [[0.0]],
    }


def test_a_dict_of_inputs_with_other_names_takes_features_by_key() -> None:
    inputs = {"zz": keras.Input((1,), name="first"), "aa": keras.Input((1,), name="second")}
    model = keras.Model(inputs, inputs["zz"] - inputs["aa"])
    spec, rows = examples_of(aa=np.array([[1.0]], np.float32), zz=np.array([[5.0]], np.float32))
    assert endpoints.predict_examples(model, spec)(rows)["outputs"].numpy().tolist() == [[4.0]]


def test_a_subclassed_model_gets_the_features_as_a_dict() -> None:
    class Model(keras.Model):
        def call(self, x: Mapping[str, Any]) -> Any:
            return x["a"] - x["b"]

    spec, rows = examples_of(a=np.array([[5.0]], np.float32), b=np.array([[2.0]], np.float32))
    assert endpoints.regress(Model(), spec)(rows)["outputs"].numpy().tolist() == [[3.0]]


def test_variable_length_features_are_padded_for_a_dense_input() -> None:
    inputs = keras.Input((None,), name="x")
    model = keras.Model(inputs, keras.ops.sum(inputs, axis=1, keepdims=True))
    rows = build_examples(
        {"x": tf.ragged.constant([[1.0, 2.0], [3.0]])},
        {"x": FeatureSpec("sparse", "float32")},
    )
    for feature in (tf.io.VarLenFeature(tf.float32), tf.io.RaggedFeature(tf.float32)):
        found = endpoints.regress(model, {"x": feature})(tf.constant(rows.tolist()))
        assert found["outputs"].numpy().tolist() == [[3.0], [3.0]]


def scorer(units: int) -> keras.Model:
    return keras.Sequential(
        [keras.Input((1,), name="x"), keras.layers.Dense(units, activation="sigmoid")],
        name="scorer",
    )


X = float_parser("x")


def test_one_probability_and_two_classes_give_two_scores() -> None:
    model = scorer(1)
    _, rows = examples_of(x=np.array([[1.0]], np.float32))
    found = endpoints.classify(model, X, ["no", "yes"])(rows)
    p = float(model(np.ones((1, 1))).numpy()[0, 0])
    assert found["classes"].numpy().tolist() == [[b"no", b"yes"]]
    np.testing.assert_allclose(found["scores"], [[1 - p, p]], rtol=1e-6)


def test_without_labels_the_classes_are_numbers() -> None:
    _, rows = examples_of(x=np.array([[1.0], [2.0]], np.float32))
    assert (
        endpoints.classify(scorer(3), X)(rows)["classes"].numpy().tolist()
        == [[b"0", b"1", b"2"]] * 2
    )


def test_scores_of_mixed_precision_models_are_float32() -> None:
    policy = keras.mixed_precision.DTypePolicy("mixed_bfloat16")
    model = keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(2, dtype=policy)])
    function = endpoints.classify(model, X)
    assert function.get_concrete_function().structured_outputs["scores"].dtype == tf.float32


def cube() -> keras.Model:
    return keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(3), keras.layers.Reshape((3, 1))], name="m"
    )


NO_FIT: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "not_built": (
        lambda: endpoints.regress(keras.Sequential([keras.layers.Dense(1)], name="m"), X),
        BindingError,
        "Cannot make an endpoint of model 'm': it is not built. Give it an Input layer.",
    ),
    "labels": (
        lambda: endpoints.classify(scorer(3), X, ["a", "b"]),
        OptionsError,
        "classes holds 2 labels, but model 'scorer' gives 3 scores a row.",
    ),
    "wide_regression": (
        lambda: endpoints.regress(scorer(3), X),
        BindingError,
        "Cannot regress with model 'scorer': its output must be [batch_size] or [batch_size, 1] of "
        "numbers, got float32 [None, 3]. Choose another with output=.",
    ),
    "flat_classes": (
        lambda: endpoints.classify(cube(), X),
        BindingError,
        "Cannot classify with model 'm': its output must be [batch_size, num_classes] of numbers, "
        "got float32 [None, 3, 1]. Choose another with output=.",
    ),
    "unneeded_output": (
        lambda: endpoints.regress(scorer(1), X, output="y"),
        OptionsError,
        "output='y' chooses among several outputs, but model 'scorer' has one.",
    ),
    "empty_spec": (
        lambda: endpoints.regress(scorer(1), {}),
        BindingError,
        "Cannot make an endpoint of model 'scorer': feature_spec is empty.",
    ),
    "dtype": (
        lambda: endpoints.regress(scorer(1), {"x": tf.io.FixedLenFeature([1], tf.string)}),
        BindingError,
        "Cannot make an endpoint: feature 'x' parses to string [None, 1], and input 'x' takes "
        "float32 [None, 1]. Give the feature the dtype of the input.",
    ),
    "shape": (
        lambda: endpoints.regress(scorer(1), {"x": tf.io.FixedLenFeature([2], tf.float32)}),
        BindingError,
        "Cannot make an endpoint: feature 'x' parses to float32 [None, 2], and input 'x' takes "
        "float32 [None, 1]. Give the feature the shape of the input.",
    ),
}


@pytest.mark.parametrize(("make", "error", "text"), NO_FIT.values(), ids=NO_FIT)
def test_mismatches_are_refused_when_the_endpoint_is_made(
    make: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value) == text


def test_one_of_several_outputs_must_be_chosen(model: keras.Model) -> None:
    with pytest.raises(OptionsError) as error:
        endpoints.classify(model, SPEC)
    assert str(error.value) == (
        f"Cannot classify with model {model.name!r}, which has the outputs ['species', 'weight']: "
        "got output=None. Choose one with output=."
    )


def test_features_must_be_named_after_the_inputs(model: keras.Model) -> None:
    with pytest.raises(BindingError) as error:
        endpoints.regress(model, {**X, "age": SPEC["age"]}, output="weight")
    assert str(error.value) == (
        f"Cannot make an endpoint of model {model.name!r}: feature_spec has ['age', 'x'], but the "
        "model's inputs are ['age', 'history', 'word']. Name the features after the inputs."
    )
