"""Tests of `keras_warmup.savedmodel.graph`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import pytest
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef
from keras_warmup.savedmodel.graph import GraphFacts, ModelGraph, graph_facts
from keras_warmup.savedmodel.graph_bodies import CallFrame
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from tests.builders import save_function, signature_of, signature_over

CLEAN = GraphFacts(False, False, (), (), False, False)
X3 = tf.TensorSpec([None, 3], tf.float32, "x")


def facts_of(export_dir: str | os.PathLike[str], key: str = "serving_default") -> GraphFacts:
    meta_graph = read_meta_graph(export_dir)
    return graph_facts(meta_graph, signature_of(meta_graph, key))


def mlp() -> Any:
    return keras.Sequential(
        [keras.Input((3,), name="x"), keras.layers.Dense(4), keras.layers.Dense(2)]
    )


class Holder(tf.Module):
    """A tf.Module that holds a Keras model, and perhaps the values of its variables."""

    def __init__(self, model: Any, variables: Sequence[Any] = ()) -> None:
        super().__init__()
        self.model = model
        self.values = list(variables)

    @tf.function(input_signature=[X3])
    def serve(self, x: Any) -> Any:
        return {"y": self.model(x)}


def runs_in_session(export_dir: str | os.PathLike[str]) -> bool:
    """Returns whether a Session, as TensorFlow Serving has, can run the signature on ones."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(export_dir))
        definition = meta_graph.signature_def["serving_default"]
        feeds = {info.name: [[1.0, 1.0, 1.0]] for info in definition.inputs.values()}
        try:
            session.run([info.name for info in definition.outputs.values()], feeds)
        except tf.errors.FailedPreconditionError:
            return False
    return True


def export_model(model: Any, path: str) -> None:
    model.export(path, verbose=False)


def export_archive(model: Any, path: str) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("predict", lambda x: model(x), input_signature=[X3])
    archive.write_out(path, verbose=False)


def save_module_tracking_values(model: Any, path: str) -> None:
    save_module(Holder(model, [variable.value for variable in model.variables]), path)


def save_plain_module(model: Any, path: str) -> None:
    weight = tf.Variable(tf.ones([3, 2]))
    save_function(lambda x: {"y": tf.matmul(x, weight)}, path, [X3], weight=weight)


def save_module_holding_keras_model(model: Any, path: str) -> None:
    save_module(Holder(model), path)


def save_module(module: Any, path: str) -> None:
    tf.saved_model.save(module, path, signatures={"serving_default": module.serve})


@pytest.mark.parametrize(
    "export", [export_model, export_archive, save_module_tracking_values, save_plain_module]
)
def test_exports_that_a_session_can_run_have_no_unrestored_variables(
    export: Callable[[Any, str], None], tmp_path: pathlib.Path
) -> None:
    export(mlp(), str(tmp_path / "m"))
    assert facts_of(tmp_path / "m") == CLEAN
    assert runs_in_session(tmp_path / "m")


@pytest.mark.parametrize("export", [tf.saved_model.save, save_module_holding_keras_model])
def test_variables_that_a_session_cannot_find_are_named(
    export: Callable[[Any, str], None], tmp_path: pathlib.Path
) -> None:
    model = mlp()
    export(model, str(tmp_path / "m"))
    assert facts_of(tmp_path / "m").unrestored_variables == tuple(
        sorted(v.path for v in model.variables)
    )
    assert not runs_in_session(tmp_path / "m")


def test_a_variable_passed_to_a_function_that_never_reads_it_is_not_needed() -> None:
    @tf.function(input_signature=[X3])
    def reads_nothing(x: Any) -> Any:
        return x + 1.0

    graph_def = tf.compat.v1.GraphDef()
    concrete = reads_nothing.get_concrete_function()
    function = concrete.function_def
    argument = function.signature.input_arg.add(name="unused", type=tf.resource.as_datatype_enum)
    assert argument.name
    graph_def.library.function.append(function)
    graph_def.node.add(name="x", op="Placeholder")
    graph_def.node.add(name="v", op="VarHandleOp")
    call = graph_def.node.add(name="call", op="PartitionedCall", input=["x", "v"])
    call.attr["f"].func.name = function.signature.name
    meta_graph = tf.compat.v1.MetaGraphDef(graph_def=graph_def)
    signature = signature_over({"y": "call:0"})
    assert graph_facts(meta_graph, signature).unrestored_variables == ()
    graph_def.node[-1].input.append("^v")
    meta_graph = tf.compat.v1.MetaGraphDef(graph_def=graph_def)
    assert graph_facts(meta_graph, signature).unrestored_variables == ("v",)


def branch_on(x: Any, weight: Any) -> Any:
    return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: tf.matmul(x, weight), lambda: x[:, :2])}


def loop_over(x: Any, weight: Any) -> Any:
    return {
        "y": tf.while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, y + tf.matmul(x, weight)), (0, x[:, :2])
        )[1]
    }


def case_over(x: Any, weight: Any) -> Any:
    branches = [lambda: tf.matmul(x, weight), lambda: x[:, :2]]
    return {"y": tf.switch_case(tf.cast(x[0, 0], tf.int32), branches)}


@pytest.mark.parametrize("body", [branch_on, loop_over, case_over])
def test_variables_are_found_inside_control_flow(
    body: Callable[[Any, Any], Any], tmp_path: pathlib.Path
) -> None:
    weight = tf.Variable(tf.ones([3, 2]), name="weight")
    path = save_function(lambda x: body(x, weight), tmp_path / "m", [X3], weight=weight)
    meta_graph = read_meta_graph(path)
    reached = ModelGraph(meta_graph).reachable(signature_of(meta_graph))
    assert len(reached.variables) == 1
    assert graph_facts(meta_graph, signature_of(meta_graph)) == CLEAN
    meta_graph.saver_def.restore_op_name = ""
    assert graph_facts(meta_graph, signature_of(meta_graph)).unrestored_variables == tuple(
        name for _, name in reached.variables
    )


@pytest.mark.parametrize("resource", [False, True], ids=["ref", "resource"])
@pytest.mark.parametrize("restored", [False, True], ids=["initialised_by_main_op", "restored"])
def test_v1_variables_count_as_assigned_by_restore_and_by_main_op(
    resource: bool, restored: bool, tmp_path: pathlib.Path
) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        weight = v1.get_variable("weight", [3, 2], use_resource=resource)
        other = v1.get_variable("other", [2], use_resource=resource)
        y = tf.matmul(x, weight) + other
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver([other, weight] if restored else [other])
        builder = v1.saved_model.builder.SavedModelBuilder(str(tmp_path / "m"))
        definition = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        main_op = None if restored else weight.initializer
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": definition}, saver=saver, main_op=main_op
        )
        builder.save()
    assert facts_of(tmp_path / "m") == CLEAN
    assert runs_in_session(tmp_path / "m")
    meta_graph = read_meta_graph(tmp_path / "m")
    meta_graph.collection_def.clear()
    meta_graph.saver_def.restore_op_name = ""
    assert graph_facts(meta_graph, signature_of(meta_graph)).unrestored_variables == (
        "other",
        "weight",
    )


def test_jit_compile_is_found_on_the_function_and_not_without_it(tmp_path: pathlib.Path) -> None:
    plain = save_function(lambda x: {"y": tf.nn.relu(x)}, tmp_path / "plain", [X3])
    compiled = tf.function(lambda x: tf.nn.relu(x), jit_compile=True)
    inner = save_function(lambda x: {"y": compiled(x)}, tmp_path / "inner", [X3])
    assert not facts_of(plain).compiles
    assert facts_of(inner).compiles


CONVOLUTIONS = {
    "conv1d": lambda x: keras.layers.Conv1D(2, 3)(x),
    "conv2d": lambda x: keras.layers.Conv2D(2, 3)(x[..., None]),
    "depthwise": lambda x: keras.layers.DepthwiseConv2D(3)(x[..., None]),
    "separable": lambda x: keras.layers.SeparableConv2D(2, 3)(x[..., None]),
    "conv2d_transpose": lambda x: keras.layers.Conv2DTranspose(2, 3)(x[..., None]),
    "conv3d": lambda x: tf.nn.conv3d(
        x[..., None, None], tf.ones([2, 2, 1, 1, 1]), [1] * 5, "VALID"
    ),
}


@pytest.mark.parametrize("layer", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_and_their_transposes_are_seen(layer: Callable[[Any], Any]) -> None:
    meta_graph = MetaGraphDef()
    with tf.Graph().as_default() as traced:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8], "x")
        y = layer(x)
    meta_graph.graph_def.CopyFrom(traced.as_graph_def())
    assert graph_facts(meta_graph, signature_over({"y": y.name})).convolves


def test_a_dense_model_with_pooling_does_not_convolve(tmp_path: pathlib.Path) -> None:
    path = save_function(
        lambda x: {"y": tf.nn.max_pool1d(x[..., None], 2, 1, "VALID")}, tmp_path / "m", [X3]
    )
    assert not facts_of(path).convolves


def test_state_writes_and_randomness_are_found(tmp_path: pathlib.Path) -> None:
    counter = tf.Variable(0)
    generator = tf.random.Generator.from_seed(1)

    def count(x: Any) -> Any:
        counter.assign_add(1)
        return {"y": x}

    def add_noise(x: Any) -> Any:
        return {"y": x + tf.random.normal([3])}

    def add_generated(x: Any) -> Any:
        return {"y": x + generator.normal([3])}

    counts = facts_of(save_function(count, tmp_path / "counts", [X3], counter=counter))
    assert (counts.writes_state, counts.random) == (True, False)
    noise = facts_of(save_function(add_noise, tmp_path / "noise", [X3]))
    assert (noise.writes_state, noise.random) == (False, True)
    path = save_function(add_generated, tmp_path / "generated", [X3], generator=generator)
    assert (facts_of(path).writes_state, facts_of(path).random) == (True, True)


def test_ops_outside_core_are_named_even_where_no_signature_runs_them() -> None:
    meta_graph = MetaGraphDef()
    nodes = meta_graph.graph_def.node
    nodes.add(name="x", op="Placeholder")
    nodes.add(name="y", op="SentencepieceOp", input=["x"])
    nodes.add(name="z", op="TFText>RougeL")
    nodes.add(name="a", op="XlaCallModule")
    facts = graph_facts(meta_graph, signature_over({"y": "x:0"}))
    assert facts.foreign_ops == ("SentencepieceOp", "TFText>RougeL")


@pytest.mark.parametrize(
    ("call", "op"),
    [
        (lambda x: tf.numpy_function(lambda rows: rows, [x], tf.float32), "PyFunc"),
        (
            lambda x: tf.numpy_function(lambda rows: rows, [x], tf.float32, stateful=False),
            "PyFuncStateless",
        ),
        (lambda x: tf.py_function(lambda rows: rows, [x], tf.float32), "EagerPyFunc"),
    ],
    ids=["numpy_function", "stateless_numpy_function", "py_function"],
)
def test_calls_of_python_are_named_apart_from_foreign_ops(
    call: Callable[[Any], Any], op: str, tmp_path: pathlib.Path
) -> None:
    def in_a_branch(x: Any) -> Any:
        return {"y": tf.cond(tf.size(x) > 3, lambda: call(x), lambda: x)}

    facts = facts_of(save_function(in_a_branch, tmp_path / "m", [X3]))
    assert (facts.python_ops, facts.foreign_ops) == ((op,), ())


def test_python_that_another_signature_calls_does_not_count(tmp_path: pathlib.Path) -> None:
    module = tf.Module()
    module.plain = tf.function(lambda x: {"y": x + 1}, input_signature=[X3])
    module.python = tf.function(
        lambda x: {"y": tf.py_function(lambda rows: rows, [x], tf.float32)}, input_signature=[X3]
    )
    tf.saved_model.save(
        module, str(tmp_path), signatures={"plain": module.plain, "python": module.python}
    )
    assert [facts_of(tmp_path, key).python_ops for key in ("plain", "python")] == [
        (),
        ("EagerPyFunc",),
    ]


def test_a_signature_with_unknown_tensors_has_empty_facts() -> None:
    assert graph_facts(MetaGraphDef(), signature_over({"y": "nope:0", "z": ""})) == CLEAN


def test_nothing_above_a_fed_tensor_counts() -> None:
    meta_graph = MetaGraphDef()
    nodes = meta_graph.graph_def.node
    nodes.add(name="v", op="VarHandleOp")
    nodes.add(name="read", op="ReadVariableOp", input=["v"])
    nodes.add(name="noise", op="RandomUniform", input=["read"])
    nodes.add(name="y", op="Identity", input=["noise"])
    unfed = graph_facts(meta_graph, signature_over({"y": "y:0"}))
    assert (unfed.unrestored_variables, unfed.random) == (("v",), True)
    for tensor in ("read:0", "noise:0", "y:0"):
        fed = graph_facts(meta_graph, signature_over({"y": "y:0"}, {"x": tensor}))
        assert (fed.unrestored_variables, fed.random) == ((), tensor == "read:0")


def test_origin_resolves_constants_up_the_frames_and_through_loops(tmp_path: pathlib.Path) -> None:
    keys = tf.constant(["a", "b"])

    @tf.function
    def inner(x: Any, names: Any) -> Any:
        return tf.concat([x, tf.gather(tf.identity(names), [0])], 0)

    def serve(x: Any) -> Any:
        out = tf.while_loop(
            lambda i, y, names: i < 1,
            lambda i, y, names: (i + 1, inner(y, names), names),
            (0, x, tf.identity(keys)),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None]), tf.TensorShape([2])),
        )
        return {"y": out[1]}

    path = save_function(serve, tmp_path / "m", [tf.TensorSpec([None], tf.string, "x")])
    model_graph = ModelGraph(read_meta_graph(path))
    frame, gather = find_op(model_graph, CallFrame(model_graph.main), "GatherV2")
    assert frame.caller is not None
    origin = model_graph.origin(frame, gather.input[0])
    assert origin is not None and origin[1].op == "Const"
    assert tf.make_ndarray(origin[1].attr["value"].tensor).tolist() == [b"a", b"b"]
    changing = next(
        node for node in frame.caller.body.nodes.values() if node.op == "PartitionedCall"
    ).input[0]
    assert model_graph.origin(frame.caller, changing) is None


def find_op(model_graph: ModelGraph, frame: CallFrame, op: str) -> Any:
    """Returns the first node of an op in a frame or the functions it calls, with its frame."""
    for node in frame.body.nodes.values():
        if node.op == op:
            return frame, node
        for call in model_graph.calls(node):
            found = call.role != "cond" and find_op(
                model_graph, model_graph.enter(frame, node, call), op
            )
            if found:
                return found
    return None


@pytest.mark.parametrize("name", ["chicago_taxi_estimator", "half_plus_two_tf1"])
def test_real_v1_exports_have_nothing_to_report(name: str, saved_models: pathlib.Path) -> None:
    meta_graph = read_meta_graph(saved_models / name / "1")
    graph = ModelGraph(meta_graph)
    signatures = read_signatures(meta_graph)
    assert [graph_facts(graph, one) for one in signatures] == [CLEAN] * len(
        meta_graph.signature_def
    )
