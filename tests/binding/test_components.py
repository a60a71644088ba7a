"""Functions of ragged and sparse tensors are served by the components of these."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.binding.bind import BoundBatch, bind_batch
from keras_warmup.data.batch import Batch
from keras_warmup.errors import BindingError
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import build_log
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.serving.replay import open_session
from tests.builders import filled_rows


class Composites(tf.Module):
    """Functions of ragged and sparse tensors, served by their components."""

    @tf.function(input_signature=[tf.RaggedTensorSpec([None, None], tf.float32)])
    def ragged(self, x: Any) -> Any:
        return {"y": tf.reduce_sum(x, axis=1), "z": x.to_tensor()}

    @tf.function(input_signature=[tf.RaggedTensorSpec([None, None, None], tf.int64)])
    def twice_ragged(self, x: Any) -> Any:
        return {"y": x.to_tensor()}

    @tf.function(
        input_signature=[tf.RaggedTensorSpec([None, None], tf.string, row_splits_dtype=tf.int32)]
    )
    def words(self, x: Any) -> Any:
        return {"y": x.to_tensor()}

    @tf.function(input_signature=[tf.SparseTensorSpec([None, 4], tf.float32)])
    def sparse(self, x: Any) -> Any:
        return {"y": tf.sparse.to_dense(x)}

    @tf.function(
        input_signature=[
            tf.RaggedTensorSpec([None, None], tf.float32),
            tf.TensorSpec([None, 4], tf.float32, name="b"),
        ]
    )
    def both(self, a: Any, b: Any) -> Any:
        return {"y": a.to_tensor(), "z": b}


HINT = (
    "If a ragged or sparse argument of the function is served as several inputs, such as x and "
    "x_1, a transform must return the tensor under the name of the first one."
)
RAGGED = tf.ragged.constant([[1.0, 2.0], [], [3.0], [4.0, 5.0, 6.0]])
COMPOSITES = {
    "ragged": RAGGED,
    "twice_ragged": tf.ragged.constant([[[1, 2], []], [], [[3]]], dtype=tf.int64),
    "words": tf.ragged.constant([["a"], ["b", "c"]]),
    "sparse": tf.sparse.from_dense(
        [[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]
    ),
}


@pytest.fixture(scope="module")
def composites(tmp_path_factory: pytest.TempPathFactory) -> Any:
    module, path = Composites(), str(tmp_path_factory.mktemp("composites"))
    names = [*COMPOSITES, "both"]
    tf.saved_model.save(module, path, signatures={name: getattr(module, name) for name in names})
    with open_session(path) as session:
        yield module, {one.key: one for one in read_signatures(read_meta_graph(path))}, session


def replay(session: Any, key: str, bound: BoundBatch) -> Any:
    assert bound.row_inputs == frozenset() and bound.x is None and bound.size == 1
    return session.replay(
        build_log(PlannedRequest(key, "predict", (bound,), None, (), (key,)))
    ).outputs


@pytest.mark.parametrize("key", COMPOSITES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda leaf: leaf,
        lambda leaf: {"any": leaf},
        lambda leaf: {"x": leaf, "note": filled_rows(1)},
    ],
)
def test_a_ragged_or_sparse_leaf_is_served_by_its_components(
    composites: Any, key: str, wrap: Any
) -> None:
    module, signatures, session = composites
    leaf = COMPOSITES[key]
    (bound,) = bind_batch(Batch(wrap(leaf), 4), signatures[key])
    outputs = replay(session, key, bound)
    argument = leaf.with_row_splits_dtype(tf.int32) if key == "words" else leaf
    for name, wanted in getattr(module, key)(argument).items():
        np.testing.assert_array_equal(outputs[name], wanted.numpy())


@pytest.mark.parametrize("key", COMPOSITES)
def test_transform_returns_a_tensor_under_the_name_of_its_first_component(
    composites: Any, key: str
) -> None:
    _, signatures, session = composites
    leaf = COMPOSITES[key]
    (bound,) = bind_batch(Batch([leaf, leaf], 4), signatures[key], lambda x: {"x": x[1]})
    dense = tf.sparse.to_dense(leaf) if key == "sparse" else leaf.to_tensor()
    output = replay(session, key, bound)["z" if key == "ragged" else "y"]
    np.testing.assert_array_equal(output, dense.numpy())


BOTH = {"r": RAGGED, "d": filled_rows(1, 4, size=4)}


def test_transform_binds_a_ragged_tensor_beside_other_inputs(composites: Any) -> None:
    _, signatures, session = composites
    (bound,) = bind_batch(Batch(BOTH, 4), signatures["both"], lambda x: {"a": x["r"], "b": x["d"]})
    outputs = replay(session, "both", bound)
    np.testing.assert_array_equal(outputs["y"], RAGGED.to_tensor().numpy())
    np.testing.assert_array_equal(outputs["z"], BOTH["d"])


@pytest.mark.parametrize(
    ("transform", "rows"),
    [
        (lambda x: {"a": x["r"], "b": x["d"][:2]}, "'a' has 4, 'a_1' has 4, 'b' has 2"),
        (
            lambda x: {"a": x["r"].flat_values, "a_1": x["r"].row_splits, "b": x["d"]},
            "'a' has 6, 'a_1' has 5, 'b' has 4",
        ),
    ],
    ids=["fewer rows", "components"],
)
def test_inputs_of_different_rows_are_refused_with_a_hint(
    composites: Any, transform: Any, rows: str
) -> None:
    _, signatures, _ = composites
    with pytest.raises(BindingError) as error:
        bind_batch(Batch(BOTH, 4), signatures["both"], transform)
    assert str(error.value) == (
        "Cannot bind batch to signature 'both': the inputs have different numbers of rows "
        f"({rows}). {HINT} Cast or reshape it in the dataset, or pass warmup={{'transform': ...}}."
    )


def test_a_ragged_tensor_stays_whole_where_the_signature_does_not_take_its_components(
    composites: Any,
) -> None:
    _, signatures, _ = composites
    with pytest.raises(BindingError, match=r"'a' .* \(a ragged tensor for a dense input\)"):
        bind_batch(
            Batch(BOTH, 4),
            signatures["both"],
            lambda x: {"a": x["r"], "a_1": [0, 1, 2, 3, 4], "b": x["d"]},
        )
    with pytest.raises(BindingError, match=r"\['x_1'\] missing"):
        bind_batch(Batch(COMPOSITES["twice_ragged"], 3), signatures["ragged"], lambda x: {"x": x})


def test_a_composite_beside_other_inputs_needs_a_transform(composites: Any) -> None:
    _, signatures, _ = composites
    with pytest.raises(BindingError) as error:
        bind_batch(Batch({"a": RAGGED, "b": filled_rows(1, 4, size=4)}, 4), signatures["both"])
    assert str(error.value) == (
        "Cannot bind batch to signature 'both': missing inputs ['a_1']. The signature takes 'a' "
        "float32 [None], 'a_1' int64 [None], 'b' float32 [None, 4]; the batch has x['a'] (ragged "
        f"float32 [4, None]), x['b'] (float32 [4, 4]). {HINT} Add the features to the dataset, or "
        "pass warmup={'transform': ...}."
    )
    with pytest.raises(BindingError, match="missing inputs"):
        bind_batch(Batch(COMPOSITES["sparse"], 3), signatures["ragged"])
    with pytest.raises(BindingError, match="missing inputs"):
        bind_batch(
            Batch({"other": RAGGED, "note": filled_rows(1, size=4)}, 4), signatures["ragged"]
        )


def test_dense_data_gets_no_hint_about_components(composites: Any) -> None:
    _, signatures, _ = composites
    with pytest.raises(BindingError) as error:
        bind_batch(Batch({"x": filled_rows(1)}, 3), signatures["ragged"])
    assert HINT not in str(error.value)


def test_a_function_of_ragged_rows_is_warm_end_to_end(tmp_path: pathlib.Path) -> None:
    module = Composites()
    report = kw.save(module, tmp_path / "1", signatures=module.ragged, data=RAGGED)
    assert [(record.signature_key, record.source) for record in report.records] == [
        ("serving_default", "data")
    ]
    # Row splits of the two rows that warm a matrix product.
    assert report.records[0].shapes["x_1"] == (3,)
    assert not report.skipped
    assert kw.verify(tmp_path / "1").ok
