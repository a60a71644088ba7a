"""Grappler is left out of loading only, and only where the signatures are optimized as before."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.serving.grappler import optimizing_only_signatures
from keras_warmup.serving.replay import ServingSession
from tests.builders import predict_log

X = np.random.default_rng(0).random((6, 5, 3), "float32")


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    x = keras.Input((5, 3), name="x")
    model = keras.Model(x, {"y": keras.layers.Dense(2)(keras.layers.LSTM(4)(x))})
    path = tmp_path_factory.mktemp("grappler") / "1"
    model.export(path, verbose=False)
    return path


def call_nodes(meta_graph: MetaGraphDef) -> dict[str, Any]:
    """Returns the calls in the main graph by name."""
    nodes = meta_graph.graph_def.node
    return {node.name: node for node in nodes if node.op.endswith("PartitionedCall")}


def is_unoptimized(node: Any) -> bool:
    config = tf.compat.v1.ConfigProto.FromString(node.attr["config_proto"].s)
    return bool(config.graph_options.rewrite_options.disable_meta_optimizer)


def served_calls(meta_graph: MetaGraphDef) -> set[str]:
    return {
        info.name.split(":")[0]
        for key in ("serve", "serving_default")
        for info in meta_graph.signature_def[key].outputs.values()
    }


def test_all_but_the_signatures_is_left_unoptimized_for_a_while(export_dir: pathlib.Path) -> None:
    meta_graph = read_meta_graph(export_dir)
    before = meta_graph.SerializeToString(deterministic=True)
    served = served_calls(meta_graph)
    for name in served:
        # Whatever the exporter configured, a server has its own default.
        configured = tf.compat.v1.ConfigProto()
        configured.graph_options.rewrite_options.disable_meta_optimizer = True
        call_nodes(meta_graph)[name].attr["config_proto"].s = configured.SerializeToString()
    before = meta_graph.SerializeToString(deterministic=True)
    config = tf.compat.v1.ConfigProto()
    with optimizing_only_signatures(meta_graph, config):
        assert config.graph_options.rewrite_options.disable_meta_optimizer
        found = {name: is_unoptimized(node) for name, node in call_nodes(meta_graph).items()}
        assert {name for name, without in found.items() if not without} == served
        assert found[meta_graph.saver_def.restore_op_name]
    assert meta_graph.SerializeToString(deterministic=True) == before


def test_a_call_whose_configuration_cannot_be_read_is_left_as_it_was(
    export_dir: pathlib.Path,
) -> None:
    meta_graph = read_meta_graph(export_dir)
    restore = call_nodes(meta_graph)[meta_graph.saver_def.restore_op_name]
    restore.attr["config_proto"].s = b"\xff\xff"
    with optimizing_only_signatures(meta_graph, tf.compat.v1.ConfigProto()):
        assert restore.attr["config_proto"].s == b"\xff\xff"


def test_a_call_with_the_configuration_of_old_is_not_given_another(
    export_dir: pathlib.Path,
) -> None:
    meta_graph = read_meta_graph(export_dir)
    restore = call_nodes(meta_graph)[meta_graph.saver_def.restore_op_name]
    restore.attr["config"].s = b"\x08\x01"
    before = restore.attr["config_proto"].s
    with optimizing_only_signatures(meta_graph, tf.compat.v1.ConfigProto()):
        assert restore.attr["config_proto"].s == before


def is_left_alone(meta_graph: MetaGraphDef) -> bool:
    before, config = meta_graph.SerializeToString(deterministic=True), tf.compat.v1.ConfigProto()
    with optimizing_only_signatures(meta_graph, config):
        unchanged = meta_graph.SerializeToString(deterministic=True) == before
    return unchanged and config == tf.compat.v1.ConfigProto()


def test_a_signature_with_nodes_of_its_own_would_lose_its_optimizer(
    export_dir: pathlib.Path,
) -> None:
    meta_graph = read_meta_graph(export_dir)
    assert not is_left_alone(meta_graph)
    (output,) = meta_graph.signature_def["serving_default"].outputs.values()
    graph = meta_graph.graph_def
    graph.node.add(name="outside", op="Identity", input=[output.name])
    graph.node[-1].attr["T"].type = output.dtype
    output.name = "outside:0"
    assert is_left_alone(meta_graph)


def exported(function: Callable[[Any], Any], path: pathlib.Path) -> MetaGraphDef:
    """Exports a function, and a variable to restore."""
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    spec = [tf.TensorSpec([None, 8], tf.float32, name="x")]
    served = tf.function(lambda x: {"y": function(x) * module.variable}, spec, autograph=False)
    tf.saved_model.save(module, path, {"serving_default": served})
    return read_meta_graph(path)


def test_a_function_that_its_kernel_would_not_optimize_would_lose_its_optimizer(
    tmp_path: pathlib.Path,
) -> None:
    batched = tf.nondifferentiable_batch_function(1, 4, 1000, autograph=False)(lambda x: x * 2.0)
    assert is_left_alone(exported(batched, tmp_path / "1"))
    assert not is_left_alone(exported(lambda x: x * 2.0, tmp_path / "2"))


def test_a_constant_that_only_a_session_would_fold_into_the_function_would_be_missed(
    tmp_path: pathlib.Path,
) -> None:
    captured = tf.ones([8, 64])
    assert is_left_alone(exported(lambda x: x @ captured, tmp_path / "captured"))
    assert not is_left_alone(exported(lambda x: x @ tf.ones([8, 64]), tmp_path / "inside"))
    index = tf.constant([0, 1], tf.int64)
    assert not is_left_alone(exported(lambda x: tf.gather(x, index), tmp_path / "integers"))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_rounding_to_half_precision_would_differ(dtype: tf.DType, tmp_path: pathlib.Path) -> None:
    halved = exported(lambda x: tf.cast(tf.cast(x, dtype) * 2, tf.float32), tmp_path / "1")
    assert is_left_alone(halved)
    doubled = exported(lambda x: tf.cast(tf.cast(x, tf.float64) * 2, tf.float32), tmp_path / "2")
    assert not is_left_alone(doubled)


def test_a_session_that_loads_unoptimized_returns_the_same(export_dir: pathlib.Path) -> None:
    meta_graph = read_meta_graph(export_dir)
    log = predict_log(x=X)
    with (
        ServingSession(str(export_dir), meta_graph) as one,
        ServingSession(str(export_dir), meta_graph, optimize_load=False) as other,
    ):
        np.testing.assert_allclose(
            one.replay(log).outputs["y"], other.replay(log).outputs["y"], rtol=1e-5
        )
