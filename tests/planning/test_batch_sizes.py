"""Tests of `keras_warmup.planning.batch_sizes`: the sizes planned, and sizes that do not fit."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.errors import OptionsError
from keras_warmup.planning.batching_parameters import BatchingParameters
from tests.builders import bound_scalar, bound_signature, plan_with, planned_sizes

UP_TO_32 = BatchingParameters(max_batch_size=32, allowed_batch_sizes=(8, 32))


def test_a_batch_of_one_is_written_only_when_asked_for() -> None:
    assert planned_sizes(plan_with(bound_signature())) == [("serving_default", 2)]
    assert planned_sizes(plan_with(bound_signature(), batch_sizes=[1])) == [("serving_default", 1)]


def test_batch_sizes_asked_for_are_exact_and_written_once() -> None:
    assert planned_sizes(plan_with(bound_signature(), batch_sizes=[5, 3, 5])) == [
        ("serving_default", 5),
        ("serving_default", 3),
    ]


@pytest.mark.parametrize(("fixed", "rows"), [(1, 8), (5, 3)])
def test_a_batch_size_that_the_signature_fixes_replaces_the_default(fixed: int, rows: int) -> None:
    signature = bound_signature(fixed_batch_size=fixed, rows=rows)
    assert planned_sizes(plan_with(signature)) == [("serving_default", fixed)]


def test_batch_sizes_that_a_signature_cannot_take_are_reported() -> None:
    plan = plan_with(
        bound_signature("fixed", feed="f:0", fixed_batch_size=1),
        bound_signature("free", feed="r:0"),
        batch_sizes=[8],
    )
    assert planned_sizes(plan) == [("fixed", 1), ("free", 8)]
    assert plan.notes == (
        "Signature 'fixed' cannot take batch_sizes [8], which stay cold: it fixes its batch at 1.",
    )
    plan = plan_with(bound_scalar(), batch_sizes=[8])
    assert planned_sizes(plan) == [("serving_default", None)]
    assert plan.notes == (
        "Signature 'serving_default' cannot take batch_sizes [8], which stay cold: its inputs have "
        "no batch dimension, or whole batches are sent (parts of a ragged or sparse tensor, "
        "whole_batches=True).",
    )


def test_allowed_batch_sizes_that_a_signature_cannot_take_are_reported() -> None:
    plan = plan_with(bound_signature(fixed_batch_size=4), batching=BatchingParameters(8, (4, 8)))
    assert planned_sizes(plan) == [("serving_default", 4)]
    assert plan.notes == (
        "Signature 'serving_default' cannot take allowed_batch_sizes [8], which stay cold: it "
        "fixes its batch at 4.",
    )


@pytest.mark.parametrize(
    ("batching", "sizes"),
    [
        pytest.param(UP_TO_32, [8, 32], id="each allowed size"),
        pytest.param(BatchingParameters(4, ()), [2], id="default below the maximum"),
        pytest.param(BatchingParameters(1, ()), [1], id="never over the maximum"),
    ],
)
def test_the_batching_parameters_of_the_server_decide_the_sizes(
    batching: BatchingParameters, sizes: list[int]
) -> None:
    plan = plan_with(bound_signature(), batching=batching)
    assert [request.batch_size for request in plan.requests] == sizes


def test_sizes_over_the_maximum_of_the_server_are_refused() -> None:
    plan = plan_with(bound_signature(), batching=UP_TO_32, batch_sizes=[32])
    assert planned_sizes(plan) == [("serving_default", 32)]
    with pytest.raises(OptionsError) as error:
        plan_with(bound_signature(), batching=UP_TO_32, batch_sizes=[64])
    assert str(error.value) == (
        "Signature 'serving_default': batch sizes [64] are over the server's max_batch_size=32; "
        "such a record keeps the model from loading. Ask for smaller batch_sizes."
    )


@pytest.mark.parametrize(
    ("trained_on", "expected"),
    [
        (0, [1, 2]),
        (1, [1, 2]),
        (2, [1, 2]),
        (4, [1, 4]),
        (5, [1, 4, 5]),
        (16, [1, 4, 16]),
        (17, [1, 4, 16, 17]),
        (256, [1, 4, 16, 64, 256]),
    ],
)
@pytest.mark.parametrize("fact", ["convolves", "multiplies_batches"])
def test_auto_takes_sizes_up_to_the_training_batch(
    fact: str, trained_on: int, expected: list[int]
) -> None:
    one = bound_signature(rows=300, **{fact: True})
    plan = plan_with(one, batch_sizes="auto", training_batch_size=trained_on)
    assert planned_sizes(plan) == [("serving_default", size) for size in expected]
    assert plan.notes == ()


def test_auto_takes_one_size_where_it_does_not_matter_or_is_fixed() -> None:
    plan = plan_with(bound_signature(), batch_sizes="auto", training_batch_size=64)
    assert planned_sizes(plan) == [("serving_default", 2)]
    fixed = bound_signature(fixed_batch_size=3, convolves=True)
    plan = plan_with(fixed, batch_sizes="auto", training_batch_size=64)
    assert planned_sizes(plan) == [("serving_default", 3)]


def test_auto_notes_rows_that_are_repeated() -> None:
    one = bound_signature(rows=8, convolves=True)
    plan = plan_with(one, batch_sizes="auto", training_batch_size=64)
    assert plan.notes == (
        "Signature 'serving_default': the 8 rows at hand are repeated in the requests of batch "
        "sizes [16, 64].",
    )
    assert [len(request.picks or ()) for request in plan.requests] == [1, 4, 16, 64]


def test_auto_takes_the_sizes_of_the_server() -> None:
    one = bound_signature(rows=64, convolves=True)
    plan = plan_with(one, batching=UP_TO_32, batch_sizes="auto", training_batch_size=64)
    assert [size for _, size in planned_sizes(plan)] == [8, 32]


def batching_file(directory: pathlib.Path, text: str) -> pathlib.Path:
    path = directory / "batching.txt"
    path.write_text(text)
    return path


def test_an_export_reads_the_sizes_from_the_file_of_the_server(tmp_path: pathlib.Path) -> None:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(1)(x))
    text = "max_batch_size { value: 32 } allowed_batch_sizes: 8 allowed_batch_sizes: 32"
    options: dict[str, Any] = {"batching_parameters": batching_file(tmp_path, text)}
    data = np.ones((3, 4), "float32")
    report = kw.export_with_warmup(model, tmp_path / "1", data=data, warmup=options)
    assert [record.batch_size for record in report.records] == [8, 32]
    with pytest.raises(OptionsError, match=r"\[64\] are over the server's max_batch_size=32"):
        kw.export_with_warmup(
            model, tmp_path / "2", data=data, warmup={**options, "batch_sizes": [64]}
        )


class Scaled(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="x"),
            tf.TensorSpec([], tf.float32, name="t"),
        ]
    )
    def scale(self, x: tf.Tensor, t: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * t}


def test_inputs_without_a_batch_dimension_are_refused_with_batching(
    tmp_path: pathlib.Path,
) -> None:
    module = Scaled()
    options = {
        "batching_parameters": batching_file(tmp_path, "max_batch_size { value: 32 }"),
        "transform": lambda x: {"x": x, "t": np.float32(2)},
    }
    with pytest.raises(OptionsError) as error:
        kw.save(module, tmp_path / "1", module.scale, data=np.ones(3, "float32"), warmup=options)
    assert str(error.value) == (
        "Signature 'serving_default' cannot be served with --enable_batching: these inputs have no "
        "batch dimension in common with the others (rank 0, or another size of dimension 0): 't'. "
        "Leave batching_parameters out, or leave this signature out with signatures=."
    )
