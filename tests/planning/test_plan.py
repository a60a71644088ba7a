"""Tests of `keras_warmup.planning.plan`: pure functions of facts about signatures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from keras_warmup.errors import OptionsError
from keras_warmup.planning.bound_signature import BoundSignature
from keras_warmup.planning.plan import MAX_SHAPES
from keras_warmup.report import RequestKind
from tests.builders import bound_signature, plan_with, planned_sizes


def test_each_set_of_tensors_gets_one_request_of_two_rows() -> None:
    plan = plan_with(
        bound_signature("serve", feed="a:0"), bound_signature("serving_default", feed="b:0")
    )
    assert planned_sizes(plan) == [("serving_default", 2), ("serve", 2)]


def test_signatures_over_the_same_tensors_share_a_request_of_serving_default() -> None:
    first = bound_signature("a", feed="z:0")
    second = bound_signature("serving_default", feed="z:0")
    (request,) = plan_with(first, second).requests
    assert (request.signature_key, request.warms) == ("serving_default", ("serving_default", "a"))


def test_output_filters_are_added_to_all_outputs_and_a_filter_of_all_outputs_adds_nothing() -> None:
    plan = plan_with(bound_signature(fetches=("a", "b")), output_filters=[["a"], ["b", "a"], ["a"]])
    assert [request.output_filter for request in plan.requests] == [(), ("a",)]


def test_output_filters_keyed_by_signature_apply_to_that_signature_only() -> None:
    plan = plan_with(
        bound_signature("one", feed="o:0", fetches=("a", "b")),
        bound_signature("two", feed="t:0", fetches=("a", "b")),
        output_filters={"two": [["b"]]},
    )
    assert [(request.signature_key, request.output_filter) for request in plan.requests] == [
        ("one", ()),
        ("two", ()),
        ("two", ("b",)),
    ]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [2, 2]),
        ({"batch_sizes": [4, 16, 1]}, [1, 4, 16, 16]),
        # The largest batch runs for each set of outputs, and so twice.
        ({"output_filters": [["a"]]}, [2, 2]),
        ({"max_records": 1}, [2]),
        ({"max_bytes": 2 * 16}, [2]),
        ({"freeze": False}, [2]),
    ],
)
def test_the_largest_batch_of_a_frozen_model_with_convolutions_runs_twice(
    options: dict[str, Any], sizes: list[int]
) -> None:
    signature = bound_signature(fetches=("a", "b"), convolves=True)
    plan = plan_with(signature, **{"freeze": True, **options})
    assert sorted(size or 0 for _, size in planned_sizes(plan)) == sizes
    is_repeated = plan.requests[-1] in plan.requests[:-1]
    assert is_repeated == any("is in the file twice" in note for note in plan.notes)
    assert is_repeated == (len(sizes) > 1 and "output_filters" not in options)


def test_other_frozen_models_have_each_record_once() -> None:
    assert planned_sizes(plan_with(bound_signature(), freeze=True)) == [("serving_default", 2)]
    two = [bound_signature(key, feed=f"{key}:0", convolves=True) for key in ("a", "b")]
    assert planned_sizes(plan_with(*two, freeze=True)) == [("a", 2), ("b", 2)]


@pytest.mark.parametrize(
    ("facts", "count"), [({"convolves": True}, 3), ({"compiles": True}, 3), ({}, 1)]
)
def test_free_shapes_get_requests_only_where_the_graph_keeps_something_for_each_shape(
    facts: dict[str, bool], count: int
) -> None:
    signature = bound_signature(shapes=((4,), (6,), (8,)), **facts)
    plan = plan_with(signature, xla=True, batch_sizes=[2])
    assert len(plan.requests) == count
    assert plan.shape_coverage == ({"serving_default": 1.0} if facts else {})


def test_coverage_counts_shapes_that_were_seen_and_not_kept() -> None:
    plan = plan_with(bound_signature(shapes=((4,), (6,)), convolves=True), shapes_seen=8)
    assert plan.shape_coverage == {"serving_default": 0.25}


def test_shapes_beyond_the_limit_stay_cold_and_lower_the_coverage() -> None:
    shapes = tuple((size,) for size in range(1, 2 * MAX_SHAPES + 1))
    plan = plan_with(bound_signature(shapes=shapes, convolves=True))
    assert len(plan.requests) == MAX_SHAPES
    assert plan.shape_coverage == {"serving_default": 0.5}


def test_the_most_frequent_shape_is_warmed() -> None:
    (request,) = plan_with(bound_signature(shapes=((4,), (6,), (6,)))).requests
    assert request.arrays()["x"].shape == (2, 6)


def test_xla_signatures_are_left_out_unless_asked_for_and_then_get_single_rows_too() -> None:
    plan = plan_with(bound_signature(compiles=True))
    assert plan.requests == ()
    assert plan.skipped["serving_default"].startswith(
        "it compiles with XLA, which a stock server has switched off"
    )
    plan = plan_with(bound_signature(compiles=True), xla=True)
    assert planned_sizes(plan) == [("serving_default", 1), ("serving_default", 2)]
    assert "--xla_cpu_compilation_enabled" in plan.notes[0]


def test_limits_name_the_options_to_lower() -> None:
    with pytest.raises(OptionsError) as error:
        plan_with(bound_signature(), batch_sizes=[1, 2, 3], max_records=4, taken=2)
    assert str(error.value) == (
        "The options ask for 3 warmup records beside the 2 already in the file, over "
        "max_records=4. Ask for fewer batch_sizes, output_filters or signatures."
    )
    with pytest.raises(OptionsError) as error:
        plan_with(bound_signature(), batch_sizes=[8], max_bytes=100)
    assert str(error.value) == (
        "The options ask for at least 128 bytes of warmup records, over max_bytes=100. Ask for "
        "smaller or fewer batch_sizes, or raise max_bytes."
    )


def test_the_same_seed_gives_the_same_plan_and_other_seeds_other_rows() -> None:
    signature = bound_signature(shapes=((4,),) * 6)

    def rows_for(seed: int) -> np.ndarray:
        return plan_with(signature, seed=seed).requests[0].arrays()["x"]

    np.testing.assert_array_equal(rows_for(3), rows_for(3))
    assert len({rows_for(seed)[0, 0] for seed in range(8)}) > 1


def test_filters_and_kinds_that_no_signature_serves_are_refused() -> None:
    with pytest.raises(OptionsError) as error:
        plan_with(bound_signature(fetches=("a", "b")), output_filters=[["a"], ["nope"]])
    assert str(error.value) == (
        "output_filters [['nope']] fit no signature. Outputs by signature: "
        "{'serving_default': ['a', 'b']}."
    )
    with pytest.raises(
        OptionsError, match=r"output_filters name signatures \['other'\], which are not warmed"
    ):
        plan_with(bound_signature(), output_filters={"other": [["y"]]})
    with pytest.raises(OptionsError, match=r"No signature can serve the kinds \['regress'\]"):
        plan_with(bound_signature(), kinds=["predict", "regress"])


def test_a_kind_asked_for_is_written_even_where_another_kind_warms_the_same_tensors() -> None:
    signature = bound_signature(fetches=("classes", "scores"))
    signature = dataclasses.replace(signature, kinds=("classify", "predict"))
    assert [request.kind for request in plan_with(signature).requests] == ["classify"]
    plan = plan_with(signature, kinds=["classify", "predict"])
    assert [request.kind for request in plan.requests] == ["classify", "predict"]


def task(key: str, kind: RequestKind, **changes: Any) -> BoundSignature:
    """Builds a signature that is only a task of a MultiInference."""
    return dataclasses.replace(bound_signature(key, **changes), kinds=(), task=kind)


def test_one_multi_inference_holds_all_tasks_and_each_set_of_tensors_once() -> None:
    plan = plan_with(
        task("a", "classify", feed="shared:0"),
        task("b", "regress", feed="other:0"),
        task("c", "regress", feed="shared:0", fetches=("outputs",)),
        task("same_as_a", "classify", feed="shared:0"),
    )
    (request,) = plan.requests
    assert (request.kind, request.signature_key) == ("multi_inference", "a+b+c")
    assert request.tasks == (("a", "classify"), ("b", "regress"), ("c", "regress"))
    assert request.warms == ()


def test_a_task_that_compiles_with_xla_is_left_out_of_the_multi_inference() -> None:
    plan = plan_with(
        task("a", "classify", feed="a:0"), task("b", "regress", feed="b:0", compiles=True)
    )
    assert [request.tasks for request in plan.requests] == [(("a", "classify"),)]
    assert set(plan.skipped) == {"b"}
