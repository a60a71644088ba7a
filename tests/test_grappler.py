"""Leaving Grappler out: only where asked, and never of what another signature runs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.grappler import leave_unoptimized
from keras_warmup.replay import open_session
from keras_warmup.requests import fill_tensor
from keras_warmup.signatures import read_meta_graph

X = np.random.default_rng(0).random((6, 5, 3), "float32")


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    x = keras.Input((5, 3), name="x")
    model = keras.Model(x, {"y": keras.layers.Dense(2)(keras.layers.LSTM(4)(x))})
    path = tmp_path_factory.mktemp("grappler") / "1"
    model.export(path, verbose=False)
    return path


def unoptimized_calls(meta_graph):
    graph = meta_graph.graph_def
    bodies = {"": graph.node, **{one.signature.name: one.node_def for one in graph.library.function}}
    found = {}
    for body, nodes in bodies.items():
        for node in nodes:
            if node.op.endswith("PartitionedCall"):
                config = tf.compat.v1.ConfigProto.FromString(node.attr["config_proto"].s)
                found[body, node.name] = config.graph_options.rewrite_options.disable_meta_optimizer
    return found


def call_of(meta_graph, key):
    """The call of a signature in the main graph, and those in the function it calls."""
    (output,) = meta_graph.signature_def[key].outputs.values()
    name = output.name.split(":")[0]
    node = next(node for node in meta_graph.graph_def.node if node.name == name)
    return {("", name)} | {one for one in unoptimized_calls(meta_graph) if one[0] == node.attr["f"].func.name}


def test_all_but_what_the_other_signatures_run_is_left_unoptimized(export_dir):
    meta_graph = read_meta_graph(export_dir)
    assert not any(unoptimized_calls(meta_graph).values())
    config = tf.compat.v1.ConfigProto()
    leave_unoptimized(meta_graph, {"serve"}, config)
    assert config.graph_options.rewrite_options.disable_meta_optimizer
    found = unoptimized_calls(meta_graph)
    kept = call_of(meta_graph, "serving_default")
    assert len(kept) == 2
    assert {one for one, without in found.items() if not without} == kept
    assert call_of(meta_graph, "serve") < set(found) - kept
    assert ("", meta_graph.saver_def.restore_op_name) in set(found) - kept


def test_what_a_function_runs_that_both_call_is_optimized(tmp_path):
    spec = [tf.TensorSpec([None], tf.float32, name="x")]

    @tf.function(input_signature=spec, autograph=False)
    def innermost(x):
        return x * 2.0

    @tf.function(input_signature=spec, autograph=False)
    def between(x):
        return innermost(x) + 1.0

    one, other = (tf.function(lambda x: {"y": between(x)}, spec, autograph=False) for _ in range(2))
    tf.saved_model.save(tf.Module(), tmp_path / "1", {"a": one, "b": other})
    meta_graph = read_meta_graph(tmp_path / "1")
    leave_unoptimized(meta_graph, {"a"}, tf.compat.v1.ConfigProto())
    found = unoptimized_calls(meta_graph)
    assert all(found[one] for one in call_of(meta_graph, "a"))
    assert not any(found[one] for one in call_of(meta_graph, "b"))
    assert [without for (body, _), without in found.items() if "between" in body] == [False]


def test_a_call_whose_configuration_cannot_be_read_is_left_as_it_was(export_dir):
    meta_graph = read_meta_graph(export_dir)
    (output,) = meta_graph.signature_def["serve"].outputs.values()
    node = next(node for node in meta_graph.graph_def.node if node.name == output.name.split(":")[0])
    node.attr["config_proto"].s = b"\xff\xff"
    leave_unoptimized(meta_graph, {"serve"}, tf.compat.v1.ConfigProto())
    assert node.attr["config_proto"].s == b"\xff\xff"


@pytest.mark.parametrize("unoptimized", [{"serve"}, {"serving_default"}, {"serve", "serving_default"}])
def test_results_are_the_same(export_dir, unoptimized):
    log = PredictionLog()
    fill_tensor(log.predict_log.request.inputs["x"], X)
    for key in ("serve", "serving_default"):
        log.predict_log.request.model_spec.signature_name = key
        with open_session(export_dir) as one, open_session(export_dir, unoptimized=unoptimized) as other:
            np.testing.assert_allclose(one.replay(log).outputs["y"], other.replay(log).outputs["y"], rtol=1e-5)
