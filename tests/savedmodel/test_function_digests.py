"""Tests of `keras_warmup.savedmodel.function_digests`."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from keras_warmup._protos import FunctionDef
from keras_warmup.errors import SignatureError
from keras_warmup.savedmodel.function_digests import FunctionDigests
from keras_warmup.savedmodel.graph_limits import VisitBudget


def function(name: str, op: str = "Neg", calls: str = "", constant: float = 0.0) -> Any:
    """A function of one argument, with one op and perhaps a call."""
    made = FunctionDef()
    made.signature.name = name
    made.signature.input_arg.add(name="x", type=tf.float32.as_datatype_enum)
    made.signature.output_arg.add(name="y", type=tf.float32.as_datatype_enum)
    made.ret["y"] = "op:y:0"
    made.node_def.add(name="op", op=op, input=["x"])
    value = made.node_def.add(name="constant", op="Const").attr["value"]
    value.tensor.CopyFrom(tf.make_tensor_proto(constant))
    if calls:
        call = made.node_def.add(name="call", op="PartitionedCall", input=["x"])
        call.attr["f"].func.name = calls
    return made


def digests_of(*functions: Any, visits: int = 1000) -> FunctionDigests:
    return FunctionDigests({one.signature.name: one for one in functions}, VisitBudget(visits))


def are_equal(one: Any, other: Any, *library: Any) -> bool:
    digests = digests_of(one, other, *library)
    assert digests.of(one.signature.name) is not None
    return digests.of(one.signature.name) == digests.of(other.signature.name)


def test_a_function_that_is_not_in_the_library_has_no_digest() -> None:
    assert digests_of(function("f")).of("g") is None


def test_names_do_not_count() -> None:
    assert are_equal(function("f_1"), function("f_2"))


def test_nodes_count() -> None:
    assert not are_equal(function("f"), function("g", op="Abs"))
    assert not are_equal(function("f"), function("g", constant=1.0))


def test_a_constant_that_is_nan_equals_itself() -> None:
    nan = float("nan")
    assert are_equal(function("f", constant=nan), function("g", constant=nan))


def test_the_order_of_nodes_does_not_count() -> None:
    other = function("g")
    other.node_def.reverse()
    assert are_equal(function("f"), other)


@pytest.mark.parametrize(
    "attribute", ["_construction_context", "config_proto", "forward_function_name"]
)
def test_attributes_of_the_trace_do_not_count(attribute: str) -> None:
    other = function("g")
    other.attr[attribute].s = b"other"
    other.node_def[0].attr[attribute].s = b"other"
    assert are_equal(function("f"), other)


def test_other_attributes_count() -> None:
    compiled = function("g")
    compiled.attr["_XlaMustCompile"].b = True
    assert not are_equal(function("f"), compiled)


def test_argument_names_of_the_user_do_not_count() -> None:
    one, other = function("f"), function("g")
    one.arg_attr[0].attr["_user_specified_name"].s = b"x"
    other.arg_attr[0].attr["_user_specified_name"].s = b"image"
    assert are_equal(one, other)


def test_called_functions_count_by_their_content() -> None:
    one, other = function("f", calls="a"), function("g", calls="b")
    assert are_equal(one, other, function("a"), function("b"))
    assert not are_equal(one, other, function("a"), function("b", op="Abs"))
    assert not are_equal(one, other, function("a"), function("b", calls="a"))


def test_branches_and_functions_that_are_ops_count_by_their_content() -> None:
    one, other = function("f"), function("g")
    for made, branches in ((one, "ab"), (other, "cd")):
        case = made.node_def.add(name="case", op="Case")
        for branch in branches:
            case.attr["branches"].list.func.add(name=branch)
        made.node_def.add(name="defun", op=branches[0])
    library = [function(name, op=op) for name, op in zip("abcd", ["Neg", "Abs"] * 2, strict=True)]
    assert are_equal(one, other, *library)
    library[3].node_def[0].op = "Exp"
    assert not are_equal(one, other, *library)


def test_functions_that_call_themselves_have_digests() -> None:
    digests = digests_of(function("f", calls="g"), function("g", calls="f"))
    assert digests.of("f") is not None and digests.of("g") is not None


def test_functions_are_read_once_and_one_of_a_unique_size_not_at_all() -> None:
    functions = [function("f", calls="h"), function("g", calls="h"), function("h")]
    digests = digests_of(*functions, visits=6)
    for _ in range(2):
        assert digests.of("f") == digests.of("g") != digests.of("h")
    digests = digests_of(*functions, visits=5)
    digests.of("f")
    with pytest.raises(SignatureError, match="stopped in function 'g' after 5 visits"):
        digests.of("g")
