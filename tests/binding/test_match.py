"""Each input gets its own leaf from structure or names; ambiguous batches are refused."""

from __future__ import annotations

from typing import Any

import pytest

from keras_warmup.binding.match import match_inputs
from keras_warmup.errors import BindingError
from tests.builders import filled_rows, make_signature

FLOATS_4 = ("float32", (None, 4))


@pytest.mark.parametrize(
    ("x", "structure", "expected"),
    [
        pytest.param(filled_rows(1, 4), ("a",), {"a": ()}, id="tensor"),
        pytest.param(
            {"q": filled_rows(1, 4), "p": filled_rows(2, 4)},
            ({"q": "aa", "p": "zz"},),
            {"aa": ("q",), "zz": ("p",)},
            id="dict",
        ),
        pytest.param(
            [filled_rows(1, 4), filled_rows(2, 4)],
            (["zz", "aa"],),
            {"zz": (0,), "aa": (1,)},
            id="list",
        ),
        pytest.param(
            (filled_rows(1, 4), filled_rows(2, 4)),
            ("zz", "aa"),
            {"zz": (0,), "aa": (1,)},
            id="two arguments",
        ),
        pytest.param(
            {"p": [filled_rows(1, 4), filled_rows(2, 4)], "q": {"r": filled_rows(3, 4)}},
            ({"p": ["args_0", "args_0_1"], "q": {"r": "args_0_2"}},),
            {"args_0": ("p", 0), "args_0_1": ("p", 1), "args_0_2": ("q", "r")},
            id="nested",
        ),
        pytest.param(
            {"aa": filled_rows(1, 4), "zz": filled_rows(2, 4)},
            (["zz", "aa"],),
            {"zz": ("zz",), "aa": ("aa",)},
            id="dict for list",
        ),
        pytest.param(
            {"user-id": filled_rows(1, 4)},
            ("user_id",),
            {"user_id": ("user-id",)},
            id="sanitized name",
        ),
        pytest.param(
            {"1a": filled_rows(1, 4), "b": filled_rows(1, 4)},
            (["arg_1a", "b"],),
            {"arg_1a": ("1a",), "b": ("b",)},
            id="digit",
        ),
        pytest.param(
            {"a": filled_rows(1, 4), "b": filled_rows(1, 4)},
            None,
            {"a": ("a",), "b": ("b",)},
            id="names without structure",
        ),
        pytest.param(filled_rows(1, 4), None, {"a": ()}, id="one leaf, one input"),
    ],
)
def test_leaves_are_matched_by_structure_then_by_name(
    x: Any, structure: Any, expected: Any
) -> None:
    found, ignored = match_inputs(
        x, make_signature(dict.fromkeys(expected, FLOATS_4), structure=structure)
    )
    assert (found, ignored) == (expected, ())


def test_the_order_of_unnamed_leaves_is_not_guessed() -> None:
    with pytest.raises(BindingError) as error:
        match_inputs(
            [filled_rows(1, 4), filled_rows(2, 4)], make_signature({"a": FLOATS_4, "b": FLOATS_4})
        )
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': x has 2 unnamed leaves and the "
        "SavedModel does not store their order among the inputs ['a', 'b']. Pass x as a dict keyed "
        "by input name, or pass warmup={'transform': ...}."
    )


def test_a_list_is_not_paired_with_a_dict_by_position() -> None:
    with pytest.raises(BindingError, match="does not store their order"):
        match_inputs(
            [filled_rows(1, 4), filled_rows(2, 4)],
            make_signature({"a": FLOATS_4, "b": FLOATS_4}, structure=({"p": "b", "q": "a"},)),
        )


CURE_BY_NAME = "Pass warmup={'transform': ...} to name the inputs."


def test_a_name_that_two_leaves_have_is_refused() -> None:
    x = {
        "user": {"id": filled_rows(1, dtype="int64")},
        "item": {"id": filled_rows(2, dtype="int64")},
    }
    with pytest.raises(BindingError) as error:
        match_inputs(x, make_signature({"id": ("int64", (None,))}))
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': input 'id' may be x['item']['id'] "
        "(int64 [3]) or x['user']['id'] (int64 [3]), and the SavedModel does not say which. "
        f"{CURE_BY_NAME}"
    )
    found, _ = match_inputs(
        x, make_signature({"id": ("int64", (None,))}, structure=({"user": {"id": "id"}},))
    )
    assert found == {"id": ("user", "id")}


def test_names_that_differ_only_in_sanitized_characters_are_refused() -> None:
    with pytest.raises(BindingError, match=r"input 'a_b' may be x\['a-b'\] .* or x\['a_b'\]"):
        match_inputs(
            {"a-b": filled_rows(1, 4), "a_b": filled_rows(2, 4)},
            make_signature({"a_b": FLOATS_4, "a_b_1": FLOATS_4}),
        )
    found, _ = match_inputs(
        {"a-b": filled_rows(1, 4), "a_b": filled_rows(2, 4)}, make_signature({"a-b": FLOATS_4})
    )
    assert found == {"a-b": ("a-b",)}


def test_keys_that_may_be_numbers_in_another_order_are_refused() -> None:
    names = ["x", *(f"x_{number}" for number in range(1, 11))]
    with pytest.raises(BindingError) as error:
        match_inputs(
            {name: filled_rows(1, 4) for name in names},
            make_signature(dict.fromkeys(names, FLOATS_4)),
        )
    assert str(error.value) == (
        f"Cannot bind batch to signature 'serving_default': the names of the inputs {names} may be "
        "keys of the batch, or numbers that TensorFlow assigned in another order, and the "
        f"SavedModel does not say which. {CURE_BY_NAME}"
    )
    assert (
        len(
            match_inputs(
                {name: filled_rows(1, 4) for name in names[:10]},
                make_signature(dict.fromkeys(names[:10], FLOATS_4)),
            )[0]
        )
        == 10
    )


def test_keys_of_features_are_not_taken_for_names_of_inputs() -> None:
    wanted = make_signature(
        {"x": FLOATS_4, "x_1": FLOATS_4}, structure=({"x_1": "x", "x_2": "x_1"},)
    )
    with pytest.raises(BindingError, match="missing inputs \\['x', 'x_1'\\]"):
        match_inputs({"x": filled_rows(1, 4), "x_1": filled_rows(2, 4)}, wanted)


def test_every_missing_input_is_named() -> None:
    with pytest.raises(BindingError) as error:
        match_inputs(
            {"a": filled_rows(1, 4)},
            make_signature({"a": FLOATS_4, "b": FLOATS_4, "c": ("int64", (None,))}),
        )
    assert str(error.value) == (
        "Cannot bind batch to signature 'serving_default': missing inputs ['b', 'c']. The "
        "signature takes 'a' float32 [None, 4], 'b' float32 [None, 4], 'c' int64 [None]; the batch "
        "has x['a'] (float32 [3, 4]). Add the features to the dataset, or pass "
        "warmup={'transform': ...}."
    )


def test_inputs_with_a_default_may_be_absent_and_extra_features_are_reported() -> None:
    found, ignored = match_inputs(
        {"a": filled_rows(1, 4), "note": filled_rows(1)},
        make_signature({"a": FLOATS_4, "t": ("float32", ())}, defaults=["t"]),
    )
    assert found == {"a": ("a",)}
    assert ignored == ("x['note']",)
