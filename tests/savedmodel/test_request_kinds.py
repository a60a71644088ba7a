"""Tests of `keras_warmup.savedmodel.request_kinds`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TypeAlias

import pytest

from keras_warmup.report import RequestKind
from keras_warmup.savedmodel.request_kinds import default_kind, servable_kinds
from keras_warmup.savedmodel.signatures import (
    Signature,
    SignatureTensor,
    read_meta_graph,
    read_signatures,
)

# Name -> dtype ("composite" for a ragged or sparse tensor) and shape.
Specs: TypeAlias = Mapping[str, tuple[str, tuple[int | None, ...] | None]]
NO_TASK = "its tasks are Classify and Regress, and neither is possible"


def specs(given: Specs) -> dict[str, SignatureTensor]:
    return {
        name: SignatureTensor(name, "" if dtype == "composite" else f"{name}:0", dtype, shape)
        for name, (dtype, shape) in given.items()
    }


def signature(inputs: Specs, outputs: Specs) -> Signature:
    return Signature("s", "tensorflow/serving/predict", specs(inputs), specs(outputs), frozenset())


EXAMPLES: Specs = {"inputs": ("string", (None,))}
SCORES: Specs = {"classes": ("string", (None, 3)), "scores": ("float32", (None, 3))}
POSSIBLE = {
    "classes_and_scores": (EXAMPLES, SCORES, "classify"),
    "classes": (EXAMPLES, {"classes": ("string", (None, None))}, "classify"),
    "scores": (EXAMPLES, {"scores": ("float32", None)}, "classify"),
    "scores_and_another": (
        EXAMPLES,
        {"scores": ("float32", (None, 3)), "logits": ("float32", (None, 3))},
        "classify",
    ),
    "input_of_unknown_rank": ({"inputs": ("string", None)}, SCORES, "classify"),
    "fixed_batch": ({"inputs": ("string", (1,))}, {"outputs": ("float32", (1, 1))}, "regress"),
    "regress_vector": (EXAMPLES, {"outputs": ("float32", (None,))}, "regress"),
    "regress_column": (EXAMPLES, {"outputs": ("float32", (None, 1))}, "regress"),
    "regress_unknown": (EXAMPLES, {"outputs": ("float32", None)}, "regress"),
}


@pytest.mark.parametrize(("inputs", "outputs", "kind"), POSSIBLE.values(), ids=POSSIBLE)
def test_inputs_and_outputs_decide_between_classify_and_regress(
    inputs: Specs, outputs: Specs, kind: RequestKind
) -> None:
    kinds = servable_kinds(signature(inputs, outputs))
    assert kinds[kind] is None and kinds["predict"] is None and kinds["multi_inference"] is None
    assert kinds["regress" if kind == "classify" else "classify"] is not None
    assert default_kind(signature(inputs, outputs)) == kind


IMPOSSIBLE = {
    "two_inputs": (
        {**EXAMPLES, "x": ("string", (None,))},
        SCORES,
        "Classify feeds exactly one input, 'inputs', and it has 2: ['inputs', 'x']",
        "Regress feeds exactly one input, 'inputs', and it has 2: ['inputs', 'x']",
    ),
    "no_input": (
        {},
        SCORES,
        "Classify feeds exactly one input, 'inputs', and it has 0: []",
        "Regress feeds exactly one input, 'inputs', and it has 0: []",
    ),
    "other_name": (
        {"examples": ("string", (None,))},
        SCORES,
        "Classify feeds an input named 'inputs', and its input is named 'examples'",
        "Regress feeds an input named 'inputs', and its input is named 'examples'",
    ),
    "float_input": (
        {"inputs": ("float32", (None, 1))},
        {"outputs": ("float32", (None, 1))},
        "Classify feeds serialized tf.Examples (string), and its input 'inputs' is float32",
        "Regress feeds serialized tf.Examples (string), and its input 'inputs' is float32",
    ),
    "scalar_input": (
        {"inputs": ("string", ())},
        SCORES,
        "Classify feeds serialized tf.Examples of shape [n], and its input 'inputs' is []",
        "Regress feeds serialized tf.Examples of shape [n], and its input 'inputs' is []",
    ),
    "three_outputs": (
        EXAMPLES,
        {**SCORES, "outputs": ("float32", (None, 1))},
        "Classify takes one or two outputs, and it has 3: ['classes', 'outputs', 'scores']",
        "Regress reads exactly one output, 'outputs', and it has ['classes', 'outputs', 'scores']",
    ),
    "other_outputs": (
        EXAMPLES,
        {"y": ("float32", (None, 1))},
        "Classify reads the outputs 'classes' and 'scores', and it has ['y']",
        "Regress reads exactly one output, 'outputs', and it has ['y']",
    ),
    "int_classes": (
        EXAMPLES,
        {"classes": ("int64", (None, 3))},
        "Classify reads 'classes' as string, and it is int64",
        "Regress reads exactly one output, 'outputs', and it has ['classes']",
    ),
    "double_scores": (
        EXAMPLES,
        {"scores": ("float64", (None, 3))},
        "Classify reads 'scores' as float32, and it is float64",
        "Regress reads exactly one output, 'outputs', and it has ['scores']",
    ),
    "flat_scores": (
        EXAMPLES,
        {"scores": ("float32", (None,))},
        "Classify reads 'scores' as [batch_size, num_classes], and it is [None]",
        "Regress reads exactly one output, 'outputs', and it has ['scores']",
    ),
    "other_widths": (
        EXAMPLES,
        {"classes": ("string", (None, 2)), "scores": ("float32", (None, 3))},
        "Classify reads 'classes' and 'scores' of equal width, and they are [None, 2] and "
        "[None, 3]",
        "Regress reads exactly one output, 'outputs', and it has ['classes', 'scores']",
    ),
    "double_outputs": (
        EXAMPLES,
        {"outputs": ("float64", (None,))},
        "Classify reads the outputs 'classes' and 'scores', and it has ['outputs']",
        "Regress reads 'outputs' as float32, and it is float64",
    ),
    "wide_outputs": (
        EXAMPLES,
        {"outputs": ("float32", (None, 2))},
        "Classify reads the outputs 'classes' and 'scores', and it has ['outputs']",
        "Regress reads 'outputs' as [batch_size] or [batch_size, 1], and it is [None, 2]",
    ),
}


@pytest.mark.parametrize(
    ("inputs", "outputs", "classify", "regress"), IMPOSSIBLE.values(), ids=IMPOSSIBLE
)
def test_the_reason_is_given_for_each_kind_that_is_not_possible(
    inputs: Specs, outputs: Specs, classify: str, regress: str
) -> None:
    assert servable_kinds(signature(inputs, outputs)) == {
        "predict": None,
        "classify": classify,
        "regress": regress,
        "multi_inference": NO_TASK,
    }
    assert default_kind(signature(inputs, outputs)) == "predict"


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        (
            {"x": ("composite", (None, 3))},
            {"y": ("float32", (None,))},
            "its input 'x' is a composite (sparse or ragged) tensor, which a TensorProto cannot "
            "hold",
        ),
        (
            {"x": ("float32", (None,))},
            {"y": ("variant", ())},
            "its output 'y' is a variant, which a TensorProto cannot hold",
        ),
        ({"x": ("float32", (None,))}, {}, "it has no outputs"),
    ],
)
def test_predict_needs_tensors_that_a_request_can_hold(
    inputs: Specs, outputs: Specs, reason: str
) -> None:
    assert servable_kinds(signature(inputs, outputs))["predict"] == reason


def test_real_models_are_read_as_their_makers_meant(saved_models: pathlib.Path) -> None:
    defaults = {}
    for name in ("half_plus_two_tf1", "chicago_taxi_estimator"):
        for found in read_signatures(read_meta_graph(saved_models / name / "1")):
            defaults[name, found.key] = default_kind(found)
    assert defaults == {
        ("half_plus_two_tf1", "classify_x_to_y"): "classify",
        ("half_plus_two_tf1", "regress_x_to_y"): "regress",
        ("half_plus_two_tf1", "regress_x_to_y2"): "regress",
        ("half_plus_two_tf1", "regress_x2_to_y3"): "predict",
        ("half_plus_two_tf1", "serving_default"): "predict",
        ("chicago_taxi_estimator", "classification"): "classify",
        ("chicago_taxi_estimator", "predict"): "predict",
        ("chicago_taxi_estimator", "regression"): "regress",
        ("chicago_taxi_estimator", "serving_default"): "classify",
    }
    signatures = read_signatures(read_meta_graph(saved_models / "half_plus_two_tf1" / "1"))
    unreachable = next(found for found in signatures if found.key == "regress_x2_to_y3")
    assert servable_kinds(unreachable)["regress"] == (
        "Regress feeds serialized tf.Examples (string), and its input 'inputs' is float32"
    )
