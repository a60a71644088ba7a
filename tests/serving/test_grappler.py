"""Grappler is left out only where asked, and never of what another signature runs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.serving.grappler import leave_unoptimized
from keras_warmup.serving.replay import ServingSession, open_session
from tests.builders import predict_log

X = np.random.default_rng(0).random((6, 5, 3), "float32")


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    x = keras.Input((5, 3), name="x")
    model = keras.Model(x, {"y": keras.layers.Dense(2)(keras.layers.LSTM(4)(x))})
    path = tmp_path_factory.mktemp("grappler") / "1"
    model.export(path, verbose=False)
    return path


def unoptimized_calls(meta_graph: MetaGraphDef) -> dict[tuple[str, str], bool]:
    graph = meta_graph.graph_def
    bodies = {
        "": graph.node,
        **{one.signature.name: one.node_def for one in graph.library.function},
    }
    found = {}
    for body, nodes in bodies.items():
        for node in nodes:
            if node.op.endswith("PartitionedCall"):
                config = tf.compat.v1.ConfigProto.FromString(node.attr["config_proto"].s)
                found[body, node.name] = config.graph_options.rewrite_options.disable_meta_optimizer
    return found


def call_node(meta_graph: MetaGraphDef, key: str) -> Any:
    (output,) = meta_graph.signature_def[key].outputs.values()
    return next(
        node for node in meta_graph.graph_def.node if node.name == output.name.split(":")[0]
    )


def calls_of(meta_graph: MetaGraphDef, key: str) -> set[tuple[str, str]]:
    """Returns the call of a signature in the main graph, and those in the function it calls."""
    node = call_node(meta_graph, key)
    return {("", node.name)} | {
        one for one in unoptimized_calls(meta_graph) if one[0] == node.attr["f"].func.name
    }


def test_all_but_what_the_other_signatures_run_is_left_unoptimized(
    export_dir: pathlib.Path,
) -> None:
    meta_graph = read_meta_graph(export_dir)
    assert not any(unoptimized_calls(meta_graph).values())
    config = tf.compat.v1.ConfigProto()
    leave_unoptimized(meta_graph, {"serve"}, config)
    assert config.graph_options.rewrite_options.disable_meta_optimizer
    found = unoptimized_calls(meta_graph)
    kept = calls_of(meta_graph, "serving_default")
    assert len(kept) == 2
    assert {one for one, without in found.items() if not without} == kept
    assert calls_of(meta_graph, "serve") < set(found) - kept
    assert ("", meta_graph.saver_def.restore_op_name) in set(found) - kept


def test_what_a_function_runs_that_both_call_is_optimized(tmp_path: pathlib.Path) -> None:
    spec = [tf.TensorSpec([None], tf.float32, name="x")]

    @tf.function(input_signature=spec, autograph=False)
    def innermost(x: Any) -> Any:
        return x * 2.0

    @tf.function(input_signature=spec, autograph=False)
    def between(x: Any) -> Any:
        return innermost(x) + 1.0

    one, other = (tf.function(lambda x: {"y": between(x)}, spec, autograph=False) for _ in range(2))
    tf.saved_model.save(tf.Module(), tmp_path / "1", {"a": one, "b": other})
    meta_graph = read_meta_graph(tmp_path / "1")
    leave_unoptimized(meta_graph, {"a"}, tf.compat.v1.ConfigProto())
    found = unoptimized_calls(meta_graph)
    assert all(found[one] for one in calls_of(meta_graph, "a"))
    assert not any(found[one] for one in calls_of(meta_graph, "b"))
    assert [without for (body, _), without in found.items() if "between" in body] == [False]


def test_a_call_whose_configuration_cannot_be_read_is_left_as_it_was(
    export_dir: pathlib.Path,
) -> None:
    meta_graph = read_meta_graph(export_dir)
    node = call_node(meta_graph, "serve")
    node.attr["config_proto"].s = b"\xff\xff"
    leave_unoptimized(meta_graph, {"serve"}, tf.compat.v1.ConfigProto())
    assert node.attr["config_proto"].s == b"\xff\xff"


def test_what_is_kept_is_optimized_as_in_a_server_whatever_the_exporter_configured(
    export_dir: pathlib.Path,
) -> None:
    meta_graph = read_meta_graph(export_dir)
    calls = {key: call_node(meta_graph, key) for key in ("serve", "serving_default")}
    configured = tf.compat.v1.ConfigProto()
    configured.graph_options.rewrite_options.disable_meta_optimizer = True
    for node in calls.values():
        node.attr["config_proto"].s = configured.SerializeToString()
    leave_unoptimized(meta_graph, {"serve"}, tf.compat.v1.ConfigProto())
    assert calls["serving_default"].attr["config_proto"].s == b""
    assert unoptimized_calls(meta_graph)["", calls["serve"].name]


def test_a_call_with_the_configuration_of_old_is_not_given_another(
    export_dir: pathlib.Path,
) -> None:
    meta_graph = read_meta_graph(export_dir)
    restore = next(
        one for one in meta_graph.graph_def.node if one.name == meta_graph.saver_def.restore_op_name
    )
    restore.attr["config"].s = b"\x08\x01"
    before = restore.attr["config_proto"].s
    leave_unoptimized(meta_graph, {"serve"}, tf.compat.v1.ConfigProto())
    assert restore.attr["config_proto"].s == before
    assert unoptimized_calls(meta_graph)["", call_node(meta_graph, "serve").name]


def left_alone(meta_graph: MetaGraphDef, keys: Collection[str]) -> bool:
    before, config = meta_graph.SerializeToString(deterministic=True), tf.compat.v1.ConfigProto()
    leave_unoptimized(meta_graph, keys, config)
    unchanged = meta_graph.SerializeToString(deterministic=True) == before
    assert unchanged is (config == tf.compat.v1.ConfigProto())
    return unchanged


def test_a_signature_with_nodes_of_its_own_would_lose_its_optimizer(
    export_dir: pathlib.Path,
) -> None:
    meta_graph = read_meta_graph(export_dir)
    graph = meta_graph.graph_def
    (output,) = meta_graph.signature_def["serving_default"].outputs.values()
    graph.node.add(name="outside", op="Identity", input=[output.name])
    graph.node[-1].attr["T"].type = output.dtype
    meta_graph.signature_def["third"].CopyFrom(meta_graph.signature_def["serving_default"])
    (output,) = meta_graph.signature_def["third"].outputs.values()
    output.name = "outside:0"
    assert left_alone(meta_graph, {"serve"})
    del meta_graph.signature_def["third"]
    assert not left_alone(meta_graph, {"serve"})


@pytest.mark.parametrize("other", ["a", "b"])
def test_a_function_that_its_kernel_would_not_optimize_would_lose_its_optimizer(
    other: str, tmp_path: pathlib.Path
) -> None:
    spec = [tf.TensorSpec([None], tf.float32, name="x")]
    batched = tf.nondifferentiable_batch_function(1, 4, 1000, autograph=False)(lambda x: x * 2.0)
    with_batching = tf.function(lambda x: {"y": batched(x)}, spec, autograph=False)
    plain = tf.function(lambda x: {"y": x * 2.0}, spec, autograph=False)
    tf.saved_model.save(tf.Module(), tmp_path / "1", {"a": with_batching, "b": plain})
    assert left_alone(read_meta_graph(tmp_path / "1"), {other}) is (other == "b")


def exported(function: Callable[[Any], Any], path: pathlib.Path) -> MetaGraphDef:
    """Exports two signatures over tensors of their own."""
    spec = [tf.TensorSpec([None, 8], tf.float32, name="x")]
    a, b = (tf.function(lambda x: {"y": function(x)}, spec, autograph=False) for _ in range(2))
    tf.saved_model.save(tf.Module(), path, {"a": a, "b": b})
    return read_meta_graph(path)


def test_a_constant_that_only_a_session_would_fold_into_the_function_would_be_missed(
    tmp_path: pathlib.Path,
) -> None:
    captured = tf.ones([8, 64])
    assert left_alone(exported(lambda x: x @ captured, tmp_path / "captured"), {"a"})
    assert not left_alone(exported(lambda x: x @ tf.ones([8, 64]), tmp_path / "inside"), {"a"})


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_rounding_to_half_precision_would_differ(dtype: tf.DType, tmp_path: pathlib.Path) -> None:
    assert left_alone(
        exported(lambda x: tf.cast(tf.cast(x, dtype) * 2, tf.float32), tmp_path / "1"), {"a"}
    )
    assert not left_alone(
        exported(lambda x: tf.cast(tf.cast(x, tf.float64) * 2, tf.float32), tmp_path / "2"), {"a"}
    )


def test_a_session_leaves_unoptimized_what_it_is_given(export_dir: pathlib.Path) -> None:
    def nodes_run(session: ServingSession, key: str) -> list[int]:
        outputs = session.meta_graph.signature_def[key].outputs
        (feed,) = session.meta_graph.signature_def[key].inputs.values()
        traced = tf.compat.v1.RunMetadata()
        options = tf.compat.v1.RunOptions(output_partition_graphs=True)
        session._session.run(outputs["y"].name, {feed.name: X}, options, traced)
        # Where it optimizes, a Session inlines what it calls.
        return [len(one.node) for one in traced.partition_graphs]

    with open_session(export_dir) as session:
        both = [nodes_run(session, key) for key in ("serve", "serving_default")]
    with open_session(export_dir, unoptimized={"serve"}) as session:
        assert any(unoptimized_calls(session.meta_graph).values())
        assert [nodes_run(session, key) for key in ("serve", "serving_default")] != both


@pytest.mark.parametrize(
    "unoptimized", [{"serve"}, {"serving_default"}, {"serve", "serving_default"}]
)
def test_results_are_the_same(export_dir: pathlib.Path, unoptimized: set[str]) -> None:
    for key in ("serve", "serving_default"):
        log = predict_log(key, x=X)
        with (
            open_session(export_dir) as one,
            open_session(export_dir, unoptimized=unoptimized) as other,
        ):
            np.testing.assert_allclose(
                one.replay(log).outputs["y"], other.replay(log).outputs["y"], rtol=1e-5
            )
