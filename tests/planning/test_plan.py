"""The planner: the fewest requests, from facts about a signature alone; pure, no SavedModel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from keras_warmup.binding.bind import BoundBatch
from keras_warmup.errors import OptionsError
from keras_warmup.options import WarmupOptions
from keras_warmup.planning.batching_parameters import BatchingParameters
from keras_warmup.planning.plan import MAX_SHAPES, BoundSignature, plan_requests
from keras_warmup.savedmodel.graph import GraphFacts
from keras_warmup.savedmodel.signatures import Signature, SignatureTensor


def facts(**changes):
    plain = {
        "compiles": False,
        "convolves": False,
        "unrestored_variables": (),
        "foreign_ops": (),
        "writes_state": False,
        "random": False,
    }
    return GraphFacts(**{**plain, **changes})


def candidate(
    key="serving_default",
    *,
    size=8,
    shapes=((4,),),
    feed="x:0",
    fetches=("y",),
    dim0=None,
    **changes,
):
    inputs = {"x": SignatureTensor("x", feed, "float32", (dim0, *(None for _ in shapes[0])))}
    outputs = {
        name: SignatureTensor(name, f"{key if feed == 'x:0' else feed}/{name}", "float32", None)
        for name in fetches
    }
    signature = Signature(key, "tensorflow/serving/predict", inputs, outputs, frozenset())
    bound = []
    for index, shape in enumerate(shapes):
        array = (
            np.arange(size * int(np.prod(shape))).reshape(size, *shape).astype("float32")
            + 1000 * index
        )
        bound.append(BoundBatch({"x": array}, array, size, frozenset({"x"}), "data"))
    return BoundSignature(signature, facts(**changes), bound)


def plan(*candidates, taken=0, **options):
    return plan_requests(candidates, WarmupOptions(**options), taken=taken)


def sizes(made):
    return [(request.signature_key, request.batch_size) for request in made.requests]


def test_one_request_of_two_rows_for_each_set_of_tensors():
    made = plan(candidate("serve", feed="a:0"), candidate("serving_default", feed="b:0"))
    assert sizes(made) == [("serving_default", 2), ("serve", 2)]


def test_signatures_over_the_same_tensors_share_a_request_of_serving_default():
    first, second = candidate("a", feed="z:0"), candidate("serving_default", feed="z:0")
    (request,) = plan(first, second).requests
    assert (request.signature_key, request.warms) == ("serving_default", ("serving_default", "a"))


def test_batch_of_one_is_written_only_when_asked_for():
    assert sizes(plan(candidate(), batch_sizes=[1])) == [("serving_default", 1)]


def test_asked_batch_sizes_are_exact_and_written_once():
    assert sizes(plan(candidate(), batch_sizes=[5, 3, 5])) == [
        ("serving_default", 5),
        ("serving_default", 3),
    ]


def test_too_few_rows_are_repeated():
    (request,) = plan(candidate(size=3), batch_sizes=[7]).requests
    array = request.arrays()["x"]
    assert array.shape == (7, 4)
    assert {tuple(row) for row in array} == {tuple(row) for row in np.arange(12.0).reshape(3, 4)}


def test_consecutive_rows_of_one_batch_are_a_view_and_not_a_copy():
    one = candidate()
    (request,) = plan(one).requests
    assert np.shares_memory(request.arrays()["x"], one.bound[0].arrays["x"])


def test_rows_given_to_the_model_are_those_of_the_request():
    (request,) = plan(candidate(shapes=((4,), (4,), (4,))), batch_sizes=[20]).requests
    np.testing.assert_array_equal(request.x(), request.arrays()["x"])


def test_a_fixed_batch_wins_over_the_default():
    assert sizes(plan(candidate(dim0=1))) == [("serving_default", 1)]
    assert sizes(plan(candidate(dim0=5, size=3))) == [("serving_default", 5)]


def test_batch_sizes_that_a_signature_cannot_take_are_told():
    made = plan(
        candidate("fixed", feed="f:0", dim0=1), candidate("free", feed="r:0"), batch_sizes=[8]
    )
    assert sizes(made) == [("fixed", 1), ("free", 8)]
    assert made.notes == (
        "Signature 'fixed' cannot take batch_sizes [8], which stay cold: it fixes its batch at 1.",
    )
    scalar = candidate()
    bound = BoundBatch({"x": np.float32(3)[...]}, None, 1, frozenset(), "data")
    made = plan(BoundSignature(scalar.signature, scalar.facts, [bound]), batch_sizes=[8])
    assert sizes(made) == [("serving_default", None)]
    assert made.notes == (
        "Signature 'serving_default' cannot take batch_sizes [8], which stay cold: its inputs have no batch dimension, or are "
        "the parts of a ragged or sparse tensor, which are sent whole.",
    )


def test_allowed_batch_sizes_that_a_signature_cannot_take_are_told():
    parameters = BatchingParameters(8, (4, 8))
    made = plan_requests([candidate(dim0=4)], WarmupOptions(), batching=parameters)
    assert sizes(made) == [("serving_default", 4)]
    assert made.notes == (
        "Signature 'serving_default' cannot take allowed_batch_sizes [8], which stay cold: it fixes its batch at 4.",
    )


def test_output_sets_are_asked_besides_all_outputs_and_a_full_set_is_no_new_one():
    made = plan(candidate(fetches=("a", "b")), output_filters=[["a"], ["b", "a"], ["a"]])
    assert [request.output_filter for request in made.requests] == [(), ("a",)]


def test_output_sets_by_signature_restrict_to_it():
    made = plan(
        candidate("one", feed="o:0", fetches=("a", "b")),
        candidate("two", feed="t:0", fetches=("a", "b")),
        output_filters={"two": [["b"]]},
    )
    assert [(request.signature_key, request.output_filter) for request in made.requests] == [
        ("one", ()),
        ("two", ()),
        ("two", ("b",)),
    ]


@pytest.mark.parametrize(
    ("change", "count"), [({"convolves": True}, 3), ({"compiles": True}, 3), ({}, 1)]
)
def test_free_shapes_need_requests_only_where_the_graph_keeps_something_for_a_shape(change, count):
    made = plan(candidate(shapes=((4,), (6,), (8,)), **change), xla=True, batch_sizes=[2])
    assert len(made.requests) == count
    assert made.shape_coverage == ({"serving_default": 1.0} if change else {})


def test_coverage_counts_shapes_that_were_seen_and_not_kept():
    made = plan_requests(
        [candidate(shapes=((4,), (6,)), convolves=True)], WarmupOptions(), shapes_seen=8
    )
    assert made.shape_coverage == {"serving_default": 0.25}


def test_shapes_beyond_the_cap_stay_cold_and_are_told():
    made = plan(
        candidate(shapes=tuple((size,) for size in range(1, 2 * MAX_SHAPES + 1)), convolves=True)
    )
    assert len(made.requests) == MAX_SHAPES
    assert made.shape_coverage == {"serving_default": 0.5}


def test_the_most_frequent_shape_is_the_one_that_is_warmed():
    one = candidate(shapes=((4,), (6,), (6,)))
    (request,) = plan(one).requests
    assert request.arrays()["x"].shape == (2, 6)


def test_xla_signatures_are_left_out_unless_asked_for_and_single_rows_come_with_them():
    made = plan(candidate(compiles=True))
    assert made.requests == ()
    assert made.skipped["serving_default"].startswith(
        "it compiles with XLA, which a stock server has switched off"
    )
    made = plan(candidate(compiles=True), xla=True)
    assert sizes(made) == [("serving_default", 1), ("serving_default", 2)]
    assert "--xla_cpu_compilation_enabled" in made.notes[0]


def test_inputs_without_a_batch_are_sent_as_they_are():
    scalar = candidate()
    bound = BoundBatch({"x": np.float32(3)[...]}, None, 1, frozenset(), "data")
    (request,) = plan(BoundSignature(scalar.signature, scalar.facts, [bound])).requests
    assert (request.batch_size, request.arrays()["x"].shape) == (None, ())


def test_limits_name_what_to_ask_less_of():
    with pytest.raises(OptionsError) as error:
        plan(candidate(), batch_sizes=[1, 2, 3], max_records=4, taken=2)
    assert str(error.value) == (
        "What is asked for needs 3 warmup records beside the 2 already in the file, over max_records=4. Ask for fewer "
        "batch_sizes, output_filters or signatures."
    )
    with pytest.raises(OptionsError) as error:
        plan(candidate(), batch_sizes=[8], max_bytes=100)
    assert str(error.value) == (
        "What is asked for needs at least 128 bytes of warmup records, over max_bytes=100. Ask for smaller or fewer "
        "batch_sizes, or raise max_bytes."
    )


def test_the_same_seed_gives_the_same_plan():
    many = candidate(shapes=((4,),) * 6)
    first, second = (plan(many, seed=3).requests[0].arrays()["x"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    others = {plan(many, seed=seed).requests[0].arrays()["x"][0, 0] for seed in range(8)}
    assert len(others) > 1


def test_what_no_signature_can_give_is_refused_and_not_ignored():
    with pytest.raises(OptionsError) as error:
        plan(candidate(fetches=("a", "b")), output_filters=[["a"], ["nope"]])
    assert str(error.value) == (
        "output_filters [['nope']] fit no signature. Outputs by signature: {'serving_default': ['a', 'b']}."
    )
    with pytest.raises(
        OptionsError, match=r"output_filters name signatures \['other'\], which are not warmed"
    ):
        plan(candidate(), output_filters={"other": [["y"]]})
    with pytest.raises(OptionsError, match=r"No signature can serve the kinds \['regress'\]"):
        plan(candidate(), kinds=["predict", "regress"])


def test_one_multi_inference_takes_the_tasks_that_feed_the_same_tensor():
    def task(key, kind, **changes):
        return dataclasses.replace(candidate(key, **changes), kinds=(), task=kind)

    made = plan(
        task("a", "classify", feed="shared:0"),
        task("b", "regress", feed="other:0"),
        task("c", "regress", feed="shared:0", fetches=("outputs",)),
        task("twin_of_a", "classify", feed="shared:0"),
    )
    assert [(request.kind, request.tasks) for request in made.requests] == [
        ("multi_inference", (("a", "classify"), ("c", "regress"))),
        ("multi_inference", (("b", "regress"),)),
    ]
