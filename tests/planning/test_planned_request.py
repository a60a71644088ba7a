"""Tests of `keras_warmup.planning.planned_request`."""

from __future__ import annotations

import numpy as np

from tests.builders import bound_scalar, bound_signature, plan_with


def test_rows_are_repeated_where_there_are_too_few() -> None:
    (request,) = plan_with(bound_signature(rows=3), batch_sizes=[7]).requests
    array = request.arrays()["x"]
    assert array.shape == (7, 4)
    assert {tuple(row) for row in array} == {tuple(row) for row in np.arange(12.0).reshape(3, 4)}


def test_adjacent_rows_of_one_batch_are_a_view_and_not_a_copy() -> None:
    signature = bound_signature()
    (request,) = plan_with(signature).requests
    assert np.shares_memory(request.arrays()["x"], signature.batches[0].arrays["x"])


def test_rows_for_the_model_are_those_of_the_request() -> None:
    signature = bound_signature(shapes=((4,), (4,), (4,)))
    (request,) = plan_with(signature, batch_sizes=[20]).requests
    np.testing.assert_array_equal(request.x(), request.arrays()["x"])


def test_inputs_without_a_batch_dimension_are_sent_as_they_are() -> None:
    (request,) = plan_with(bound_scalar()).requests
    assert (request.batch_size, request.arrays()["x"].shape) == (None, ())
