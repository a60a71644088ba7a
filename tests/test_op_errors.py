"""Errors name the shapes, names and node that failed, and no values of tensors."""

from __future__ import annotations

import base64
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import GraphDef
from keras_warmup.errors import ReplayError
from keras_warmup.op_errors import WITHHELD, cure_of, describe_op_error, message_of, status_of
from keras_warmup.serving.replay import ServingSession, open_session
from tests.builders import predict_log
from tests.trust.hostile_models import add_call, add_function, add_node, tiny

FLOATS = tf.TensorSpec([None], tf.float32)
SECRET = "SECRET4242"
NUMBER = 774242
STRINGS, INTS = tf.TensorSpec([None], tf.string, "x"), tf.TensorSpec([None], tf.int32, "x")
PAIRS = tf.TensorSpec([None, None], tf.int32, "x")
ANY, OTHER = tf.TensorSpec(None, tf.float32, "x"), tf.TensorSpec(None, tf.float32, "z")


def strings(*values: str | bytes) -> np.ndarray:
    return np.array(
        [value.encode() if isinstance(value, str) else value for value in values], object
    )


def each(function: Callable[[Any], Any], dtype: tf.DType) -> Callable[[Any], dict[str, Any]]:
    return lambda x: {"y": tf.map_fn(function, x, fn_output_signature=dtype)}


def checked(x: Any) -> dict[str, Any]:
    with tf.control_dependencies([tf.debugging.assert_equal(x, [[1.0]], message="x must be one")]):
        return {"y": x + 1}


def asserted(x: Any) -> dict[str, Any]:
    with tf.control_dependencies([tf.Assert(tf.size(x) > 3, [x])]):
        return {"y": tf.identity(x)}


# The function that runs, its inputs by their specs, and what is shown of its error.
Case = tuple[Callable[..., Any], dict[tf.TensorSpec, Any], str]
LEAKS: dict[str, Case] = {
    "to_number": (
        lambda x: {"y": tf.strings.to_number(x)},
        {STRINGS: strings(SECRET)},
        "StringToNumberOp could not correctly convert string ... (node StringToNumber, op "
        "StringToNumber)",
    ),
    "csv": (
        lambda x: {"y": tf.io.decode_csv(x, [[0.0]])[0]},
        {STRINGS: strings(SECRET)},
        "Field 0 in record 0 is not a valid float ... (node DecodeCSV, op DecodeCSV)",
    ),
    "gather": (
        lambda x: {"y": tf.gather([1.0, 2.0], x)},
        {INTS: np.int32([NUMBER])},
        "indices[0] = ... is not in [0, 2) (node GatherV2, op GatherV2)",
    ),
    "gather_nd": (
        lambda x: {"y": tf.gather_nd([1.0, 2.0], x)},
        {PAIRS: np.int32([[0], [NUMBER]])},
        "indices[1] = ... does not index into param shape ... (node GatherNd, op GatherNd)",
    ),
    "scatter_nd": (
        lambda x: {"y": tf.scatter_nd(x, tf.ones_like(x[:, 0]), [4])},
        {PAIRS: np.int32([[0], [NUMBER]])},
        "indices[1] = ... does not index into shape ... (node ScatterNd, op ScatterNd)",
    ),
    "segment_sum": (
        lambda x: {"y": tf.math.unsorted_segment_sum(tf.ones_like(x), x, 4)},
        {INTS: np.int32([NUMBER])},
        f"{WITHHELD} (node UnsortedSegmentSum, op UnsortedSegmentSum)",
    ),
    "sparse": (
        lambda x: {
            "y": tf.sparse.to_dense(
                tf.SparseTensor(tf.cast(x, tf.int64), tf.ones_like(x[:, 0]), [4])
            )
        },
        {PAIRS: np.int32([[NUMBER]])},
        "indices[0] = ... is out of bounds ... (node SparseToDense, op SparseToDense)",
    ),
    "parse_tensor": (
        each(lambda row: tf.io.parse_tensor(row, tf.float32), tf.float32),
        {STRINGS: strings(SECRET)},
        "Could not parse `serialized` as TensorProto ... (node map/while/ParseTensor, op "
        "ParseTensor)",
    ),
    "read_file": (
        each(tf.io.read_file, tf.string),
        {STRINGS: strings(f"/{SECRET}/file")},
        f"{WITHHELD} (node map/while/ReadFile, op ReadFile)",
    ),
    "fill": (
        lambda x: {"y": tf.fill(x, 1.0)},
        {INTS: np.int32([-NUMBER])},
        f"{WITHHELD} (node Fill, op Fill)",
    ),
    "json": (
        lambda x: {"y": tf.io.decode_json_example(x)},
        {STRINGS: strings("{" + SECRET)},
        "Error while parsing JSON ... (node DecodeJSONExample, op DecodeJSONExample)",
    ),
    "regex": (
        lambda x: {"y": tf.strings.regex_replace("a", x[0], "b")},
        {STRINGS: strings("(" + SECRET)},
        f"{WITHHELD} (node RegexReplace, op RegexReplace)",
    ),
    "parse_example": (
        lambda x: tf.io.parse_example(x, {"a": tf.io.FixedLenFeature([], tf.float32)}),
        {STRINGS: strings(b"\x0a\xff" + SECRET.encode())},
        "Could not parse example input ... (node ParseExample/ParseExampleV2, op ParseExampleV2)",
    ),
    "assertion": (
        checked,
        {FLOATS: np.float32([NUMBER])},
        "assertion failed: [x must be one] ... (node assert_equal_1/Assert/AssertGuard/Assert, op "
        "Assert)",
    ),
    "assertion_of_values": (
        asserted,
        {STRINGS: strings(SECRET)},
        f"assertion failed {WITHHELD} (node Assert/Assert, op Assert)",
    ),
    "reshape": (
        lambda x, z: {"y": tf.reshape(z, x)},
        {INTS: np.int32([NUMBER]), OTHER: np.ones(2, "f")},
        "Input to reshape is a tensor with 2 values, but the requested shape ... (node Reshape, "
        "op Reshape)",
    ),
    "broadcast": (
        lambda x, z: {"y": tf.broadcast_to(z, x)},
        {INTS: np.int32([NUMBER]), OTHER: np.ones(2, "f")},
        f"{WITHHELD} (node BroadcastTo, op BroadcastTo)",
    ),
    "tile": (
        lambda x, z: {"y": tf.tile(z, x)},
        {INTS: np.int32([-NUMBER]), OTHER: np.ones(2, "f")},
        f"{WITHHELD} (node Tile, op Tile)",
    ),
    "parse_single_example": (
        each(
            lambda row: tf.io.parse_single_example(
                row, {"a": tf.io.FixedLenFeature([], tf.float32)}
            )["a"],
            tf.float32,
        ),
        {STRINGS: strings(b"")},
        "Feature: a (data type: float) is required but could not be found. "
        "(node map/while/ParseSingleExample/ParseExample/ParseExampleV2, op ParseExampleV2)",
    ),
    "slice": (
        lambda x, z: {"y": tf.slice(z, x, [3])},
        {INTS: np.int32([NUMBER]), OTHER: np.ones(2, "f")},
        "Expected begin[0] in [0, 2], but got ... (node Slice, op Slice)",
    ),
}
SHAPES: dict[str, Case] = {
    "concat": (
        lambda x, z: {"y": tf.concat([x, z], 0)},
        {ANY: np.ones((2, 3), "f"), OTHER: np.ones((2, 4), "f")},
        "ConcatOp : Dimension 1 in both shapes must be equal: shape[0] = [2,3] vs. shape[1] = "
        "[2,4] (node concat, op ConcatV2)",
    ),
    "matmul": (
        lambda x, z: {"y": tf.matmul(x, z)},
        {ANY: np.ones((2, 3), "f"), OTHER: np.ones((2, 4), "f")},
        "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,4] ... (node MatMul, op BatchMatMulV2)",
    ),
    "einsum": (
        lambda x, z: {"y": tf.einsum("ab,bc->ac", x, z)},
        {ANY: np.ones((2, 3), "f"), OTHER: np.ones((2, 4), "f")},
        "Expected dimension 3 at axis 0 of the input shaped [2,4] but got dimension 2 "
        "(node einsum/Einsum, op Einsum)",
    ),
    "bias": (
        lambda x: {"y": tf.nn.bias_add(x, tf.ones([3]))},
        {ANY: np.ones((2, 4), "f")},
        "Must provide as many biases as the last dimension of the input tensor: [3] vs. [2,4] "
        "(node BiasAdd, op BiasAdd)",
    ),
    "feature": (
        lambda x: tf.io.parse_example(x, {"a": tf.io.FixedLenFeature([], tf.float32)}),
        {STRINGS: strings(b"")},
        "Name: <unknown>, Feature: a (data type: float) is required but could not be found. "
        "(node ParseExample/ParseExampleV2, op ParseExampleV2)",
    ),
}


@pytest.fixture(scope="session")
def failing_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSession]:
    path, m = tmp_path_factory.mktemp("failing"), tf.Module()
    for key, (function, feeds, _) in {**LEAKS, **SHAPES}.items():
        setattr(m, key, tf.function(function, input_signature=list(feeds), autograph=False))
    tf.saved_model.save(m, path, signatures={key: getattr(m, key) for key in {**LEAKS, **SHAPES}})
    with open_session(path) as session:
        yield session


def failure(session: ServingSession, key: str) -> ReplayError:
    arrays = {**LEAKS, **SHAPES}[key][1].values()
    names = sorted(session.meta_graph.signature_def[key].inputs)
    with pytest.raises(ReplayError) as caught:
        session.replay(predict_log(key, **dict(zip(names, arrays, strict=True))))
    return caught.value


@pytest.mark.parametrize("key", LEAKS)
def test_errors_do_not_quote_training_data(failing_session: ServingSession, key: str) -> None:
    error = failure(failing_session, key)
    printed = "".join(traceback.format_exception(error)) + repr(
        (error.args, error.__cause__, error.__context__)
    )
    for secret in (SECRET, str(NUMBER), base64.b64encode(SECRET.encode()).decode()[:-4]):
        assert secret not in printed
    assert str(error).endswith(f"{error.status}: {LEAKS[key][2]}")


@pytest.mark.parametrize("key", SHAPES)
def test_errors_say_which_shapes_and_names_do_not_fit(
    failing_session: ServingSession, key: str
) -> None:
    assert str(failure(failing_session, key)).endswith(f"INVALID_ARGUMENT: {SHAPES[key][2]}")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ('Serving signature key "nope" not found.', 'Serving signature key "nope" not found.'),
        (
            "2 root error(s) found.\n  (0) INVALID_ARGUMENT: indices[3] = 7 is not in [0, 2)\n\t "
            "[[{{node a/b}}]]\n\t [[c]]",
            "indices[3] = ... is not in [0, 2) (node a/b)",
        ),
        # Of which op is not known, and of some these shapes are values.
        ("Incompatible shapes: [2] vs. [3]\n\t [[{{node a}}]]", f"{WITHHELD} (node a)"),
        (
            "{{node fed}} is no path\n\t [[{{function_node f}}{{node real}}]]",
            f"{WITHHELD} (node real)",
        ),
        (
            "{{function_node __wrapped__IteratorGetNext}} corrupted record at 12",
            "corrupted record at 12",
        ),
        ("KeyError: 'Jane'\nTraceback (most recent call last)", "KeyError ..."),
        ("KeyErrors: 'Jane'", WITHHELD),
        ("Input is empty.\n\t [[x]]", "Input is empty."),
    ],
    ids=["rule", "several", "shape", "node", "record", "python", "other", "server"],
)
def test_a_servers_message_is_read_without_its_graph(message: str, text: str) -> None:
    assert describe_op_error(tf.errors.UnknownError(None, None, message)) == text


@pytest.fixture(scope="module")
def nested() -> GraphDef:
    """`outer` of the main graph calls a function that calls `inner`, whose function multiplies."""
    graph = GraphDef()
    graph.node.add(name="outer", op="StatefulPartitionedCall").attr["f"].func.name = "between"
    for name, node, op, called in (
        ("between", "inner", "PartitionedCall", "innermost"),
        ("innermost", "dense/MatMul", "MatMul", ""),
    ):
        function = graph.library.function.add()
        function.signature.name = name
        function.node_def.add(name=node, op=op)
        if called:
            function.node_def[0].attr["f"].func.name = called
    return graph


@pytest.mark.parametrize(
    "node",
    [
        "{{node outer/inner/dense/MatMul}}",
        "{{function_node between}}{{node inner/dense/MatMul}}",
        "{{node dense/MatMul}}",
    ],
)
def test_a_node_that_inlining_renamed_is_found(nested: GraphDef, node: str) -> None:
    message = f"Matrix size-incompatible: In[0]: [2,3], In[1]: [2,4]\n\t [[{node}]]"
    text = "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,4] (node dense/MatMul, op MatMul)"
    assert describe_op_error(error_of(message), nested) == text
    stacked = error_of("{{function_node a}} {{function_node b}} " + message)
    assert describe_op_error(stacked, nested) == text


def test_a_node_whose_op_the_graph_does_not_tell_is_named_as_tensorflow_names_it(
    nested: GraphDef,
) -> None:
    unknown = error_of("Table not initialized\n\t [[{{node elsewhere/Lookup}}]]")
    text = "Table not initialized (node elsewhere/Lookup)"
    assert describe_op_error(unknown, nested) == describe_op_error(unknown) == text
    ambiguous = GraphDef()
    ambiguous.CopyFrom(nested)
    ambiguous.node.add(name="dense/MatMul", op="Identity")
    error = error_of("Table not initialized\n\t [[{{node dense/MatMul}}]]")
    assert describe_op_error(error, ambiguous) == "Table not initialized (node dense/MatMul)"


def test_the_status_has_the_name_that_the_server_prints() -> None:
    assert status_of(error_of("no")) == "INVALID_ARGUMENT"
    assert status_of(ValueError("no")) == "UNKNOWN"


@pytest.mark.parametrize(
    ("error", "no_variables", "cure"),
    [
        (
            tf.errors.FailedPreconditionError(None, None, "Could not find variable x"),
            False,
            ". The SavedModel's restore op does not fill this variable",
        ),
        (
            tf.errors.FailedPreconditionError(None, None, "Could not find variable x"),
            True,
            ". The variables are missing",
        ),
        (
            tf.errors.InvalidArgumentError(None, None, "Cannot deserialize computation"),
            False,
            ". The model holds a StableHLO module that this TensorFlow cannot run",
        ),
        (tf.errors.InvalidArgumentError(None, None, "another error"), False, ""),
    ],
    ids=["trap", "missing", "stablehlo", "other"],
)
def test_errors_that_do_not_tell_what_to_do_have_a_cure(
    error: tf.errors.OpError, no_variables: bool, cure: str
) -> None:
    found = cure_of(error, no_variables=no_variables)
    assert found.startswith(cure)
    assert bool(found) == bool(cure)


def error_of(text: str) -> tf.errors.OpError:
    return tf.errors.InvalidArgumentError(None, None, text)


@pytest.mark.parametrize(
    "text", ["\n" * 10**6, "x" * 10**7, "{{node x}} " * 10**5, "[[" * 10**6, " : /" * 10**6]
)
def test_long_messages_take_no_time(text: str) -> None:
    started = time.perf_counter()
    describe_op_error(error_of(text), tiny().meta_graphs[0].graph_def)
    assert time.perf_counter() - started < 5


def test_the_ends_of_a_long_message_stay() -> None:
    message = message_of(error_of("Table not initialized " + "x" * 10**6 + " {{node end}}"))
    assert message.startswith("Table not initialized xxx") and message.endswith("xxx {{node end}}")
    assert len(message) < 20_000


def test_names_that_can_be_taken_apart_in_many_ways_take_no_time() -> None:
    meta_graph = tiny().meta_graphs[0]
    levels, names = 25, ["a", "a/a", "a/a/a"]
    for level in range(levels):
        nodes = add_function(meta_graph, f"f{level}")
        for name in names:
            add_call(nodes, name, "x", f"f{level + 1}")
    add_node(add_function(meta_graph, f"f{levels}"), "b", "NoOp")
    path = "/".join(["a"] * 2 * levels + ["b"])
    started = time.perf_counter()
    shown = describe_op_error(
        error_of(f"Table not initialized\n\t [[{{{{node {path}}}}}]]"), meta_graph.graph_def
    )
    assert time.perf_counter() - started < 5
    assert shown == "Table not initialized (node b, op NoOp)"
