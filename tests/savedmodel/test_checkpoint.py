"""Checkpoints that are written again without the tensors that are equal to others."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import TrackableObjectGraph
from keras_warmup.errors import SignatureError
from keras_warmup.savedmodel import checkpoint
from keras_warmup.savedmodel.checkpoint import read_object_graph, rewrite_checkpoint

VALUES: dict[str, Any] = {
    "float": np.arange(12, dtype="float32").reshape(3, 4),
    "nan": np.array([np.nan, -0.0, np.inf], "float64"),
    "half": tf.constant([1.5, 2.5], tf.bfloat16),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j], "complex64"),
    "scalar": np.int64(7),
    "empty": np.zeros((0, 3), "float32"),
    "text": np.array([b"a", b"bc\0"], object),
    "word": np.array(b"w", object),
}


def write(prefix: str, tensors: dict[str, Any]) -> None:
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )


def graph_of(*names: str) -> TrackableObjectGraph:
    graph = TrackableObjectGraph()
    for name in names:
        graph.nodes.add().attributes.add(name="VARIABLE_VALUE", checkpoint_key=name)
    return graph


@pytest.mark.parametrize("shard_bytes", [1, 2**20], ids=["a_shard_each", "one_shard"])
def test_the_kept_tensors_and_the_graph_are_written(
    shard_bytes: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SHARD_BYTES", shard_bytes)
    source, target = str(tmp_path / "a" / "variables"), str(tmp_path / "b" / "variables")
    write(source, {**VALUES, **{f"copy_of_{key}": value for key, value in VALUES.items()}})
    merged = {f"copy_of_{key}": key for key in VALUES}
    dtypes = {key: tf.constant(value).dtype for key, value in VALUES.items()}
    dtypes.update({f"copy_of_{key}": dtype for key, dtype in dtypes.items()})
    rewrite_checkpoint(source, target, dtypes, merged, graph_of(*VALUES))
    reader = tf.train.load_checkpoint(target)
    names = set(reader.get_variable_to_shape_map())
    assert names == {*VALUES, "_CHECKPOINTABLE_OBJECT_GRAPH"}
    for key, value in VALUES.items():
        np.testing.assert_array_equal(reader.get_tensor(key), np.asarray(value))
    assert read_object_graph(target) == graph_of(*VALUES)
    assert not list(tmp_path.glob("b/*_temp*"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.float32([1, 2]), np.float32([1, 3])),
        (np.float32([0.0]), np.float32([-0.0])),
        (np.float32([1, 2]), np.float32([[1, 2]])),
        (np.float32([1]), np.int32([1])),
        (np.array([b"ab", b"c"], object), np.array([b"a", b"bc"], object)),
        (np.array([True]), np.array([False])),
    ],
    ids=["value", "sign_of_zero", "shape", "dtype", "strings", "bools"],
)
def test_tensors_that_differ_in_a_bit_are_not_one(
    one: np.ndarray, other: np.ndarray, tmp_path: pathlib.Path
) -> None:
    source = str(tmp_path / "a" / "variables")
    write(source, {"one": one, "other": other})
    with pytest.raises(SignatureError, match="'one' and 'other' of its checkpoint are copies"):
        rewrite_checkpoint(
            source,
            str(tmp_path / "b"),
            {"one": tf.constant(one).dtype, "other": tf.constant(other).dtype},
            {"other": "one"},
            graph_of("one"),
        )


def test_a_damaged_checkpoint_is_an_error_with_its_path(tmp_path: pathlib.Path) -> None:
    prefix = str(tmp_path / "v")
    with pytest.raises(SignatureError, match=f"^Cannot read the checkpoint '{prefix}': "):
        read_object_graph(prefix)
    write(prefix, {"x": np.float32(1)})
    with pytest.raises(SignatureError, match=f"^Cannot read the checkpoint '{prefix}': "):
        read_object_graph(prefix)
    write(prefix, {"_CHECKPOINTABLE_OBJECT_GRAPH": np.array(b"\xff\xff", object)})
    with pytest.raises(SignatureError, match=f"^Cannot read the checkpoint '{prefix}': "):
        read_object_graph(prefix)
