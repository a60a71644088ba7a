"""Which variables of a graph are copies of others, and what merging them leaves."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import pytest
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, TrackableObjectGraph
from keras_warmup.savedmodel.checkpoint import read_object_graph
from keras_warmup.savedmodel.graph import ModelGraph, graph_facts
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.savedmodel.variable_copies import (
    are_equal_variables,
    find_copies,
    merge_copies,
    merge_objects,
    saved_nodes_of,
)
from tests.builders import save_function, signature_of


@pytest.fixture(scope="module")
def doubled_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("doubled") / "1")
    x = keras.Input((4,), name="x")
    keras.Model(x, keras.layers.Dense(4)(keras.layers.Dense(4)(x))).export(path, verbose=False)
    return path


@pytest.fixture(scope="module")
def unfilled_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("unfilled") / "1")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    tf.saved_model.save(model, path)
    return path


def nodes_of(meta_graph: MetaGraphDef) -> dict[str, Any]:
    return {node.name: node for node in meta_graph.graph_def.node}


def test_the_copies_of_an_export_are_found_by_their_initial_values(doubled_dir: str) -> None:
    meta_graph = read_meta_graph(doubled_dir)
    copies = find_copies(ModelGraph(meta_graph))
    assert len(copies.originals) == len(copies.doubled) == 4
    assert copies.unfilled == frozenset()
    nodes = nodes_of(meta_graph)
    for copy, original in copies.originals.items():
        assert nodes[copy].op == nodes[original].op == "VarHandleOp"
        assert nodes[f"{copy}/Initializer/ReadVariableOp"].input == [original]
    object_graph = read_object_graph(f"{doubled_dir}/variables/variables")
    places = saved_nodes_of(meta_graph, object_graph)
    for variable, kept in copies.doubled.items():
        assert variable.key.startswith("variables/")
        assert kept.startswith("_all_variables/")
        one, other = places[variable.key][0], places[kept][0]
        saved = meta_graph.object_graph_def.nodes
        assert saved[one].variable.name == saved[other].variable.name
        assert are_equal_variables(meta_graph, one, other)
    first, second = (places[kept][0] for kept in list(copies.doubled.values())[:2])
    assert not are_equal_variables(meta_graph, first, first)
    assert not are_equal_variables(meta_graph, first, second)


def test_only_variables_that_signatures_read_count_as_unfilled(unfilled_dir: str) -> None:
    copies = find_copies(ModelGraph(read_meta_graph(unfilled_dir)))
    # The optimizer has more variables than the two of the layer.
    assert len(copies.originals) == len(copies.unfilled) == 2
    assert copies.doubled == {}


def test_merging_leaves_signatures_and_functions_and_removes_the_copies(doubled_dir: str) -> None:
    before, meta_graph = read_meta_graph(doubled_dir), read_meta_graph(doubled_dir)
    copies = find_copies(ModelGraph(read_meta_graph(doubled_dir)))
    merge_copies(meta_graph, copies)
    assert meta_graph.signature_def == before.signature_def
    changed = [
        one.signature.name
        for one, other in zip(
            meta_graph.graph_def.library.function, before.graph_def.library.function, strict=True
        )
        if one != other
    ]
    assert len(changed) == 1
    assert "restore" in changed[0]
    nodes = nodes_of(meta_graph)
    assert set(copies.originals).isdisjoint(nodes)
    assert not [name for name in nodes if name.startswith("Variable")]
    assert set(nodes) | {name for name in nodes_of(before) if name.startswith("Variable")} == set(
        nodes_of(before)
    )
    again = find_copies(ModelGraph(meta_graph))
    assert (again.originals, again.doubled) == ({}, {})
    (restore,) = (
        node
        for function in meta_graph.graph_def.library.function
        for node in function.node_def
        if node.op == "RestoreV2"
    )
    assert len(restore.attr["dtypes"].list.type) == 4 + 1  # the variables and the object graph


def test_merging_fills_what_a_signature_reads(unfilled_dir: str) -> None:
    meta_graph = read_meta_graph(unfilled_dir)
    signature = signature_of(meta_graph)
    assert len(graph_facts(meta_graph, signature).unrestored_variables) == 2
    merge_copies(meta_graph, find_copies(ModelGraph(read_meta_graph(unfilled_dir))))
    assert graph_facts(meta_graph, signature).unrestored_variables == ()


def test_variables_without_copies_are_left(tmp_path: pathlib.Path) -> None:
    scale = tf.Variable(2.0)
    path = save_function(
        lambda x: {"y": x * scale}, tmp_path / "1", [tf.TensorSpec([None])], scale=scale
    )
    copies = find_copies(ModelGraph(read_meta_graph(path)))
    assert (copies.originals, copies.unfilled, copies.doubled) == ({}, frozenset(), {})


def test_a_tensorflow_1_variable_initialized_from_another_is_no_copy(
    tmp_path: pathlib.Path,
) -> None:
    path = str(tmp_path / "1")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        one = tf.compat.v1.get_variable("one", [3], use_resource=True)
        other = tf.compat.v1.Variable(one, use_resource=True, name="other")
        x = tf.compat.v1.placeholder(tf.float32, [None, 3])
        session.run(one.initializer)
        session.run(other.initializer)
        tf.compat.v1.saved_model.simple_save(session, path, {"x": x}, {"y": x * one + other})
    copies = find_copies(ModelGraph(read_meta_graph(path)))
    assert (copies.originals, copies.unfilled, copies.doubled) == ({}, frozenset(), {})


def test_references_to_a_merged_object_name_the_kept_one() -> None:
    graph = TrackableObjectGraph()
    for children in ([("a", 1), ("b", 2), ("c", 3)], [], [], [("d", 2)]):
        node = graph.nodes.add()
        for name, number in children:
            node.children.add(node_id=number, local_name=name)
    graph.nodes[3].slot_variables.add(original_variable_node_id=2, slot_variable_node_id=1)
    merge_objects(graph, {2: 1})
    assert [
        [(child.local_name, child.node_id) for child in node.children] for node in graph.nodes
    ] == [[("a", 1), ("b", 1), ("c", 2)], [], [("d", 1)]]
    (slot,) = graph.nodes[2].slot_variables
    assert (slot.original_variable_node_id, slot.slot_variable_node_id) == (1, 1)
