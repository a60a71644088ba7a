"""Reads the object graph of a checkpoint, and writes a checkpoint without some of its tensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup._protos import TrackableObjectGraph
from keras_warmup.errors import SignatureError
from keras_warmup.paths import reason_of

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Tensors that are in memory at a time; a larger tensor is alone.
_SHARD_BYTES = 256 * 2**20
# Of two tensors, the parts that are compared at a time.
_PART_BYTES = 32 * 2**20


def read_object_graph(prefix: str) -> TrackableObjectGraph | None:
    """Reads the object graph of a checkpoint.

    Args:
        prefix: path of the checkpoint without `.index`.

    Returns:
        The graph; `None` where the checkpoint has none.

    Raises:
        SignatureError: the checkpoint cannot be read.
    """
    with _explained(prefix):
        reader = tf.train.load_checkpoint(prefix)
        if not reader.has_tensor(OBJECT_GRAPH_KEY):
            return None
        return TrackableObjectGraph.FromString(reader.get_tensor(OBJECT_GRAPH_KEY))


def rewrite_checkpoint(
    source: str,
    target: str,
    merged: Mapping[str, str],
    object_graph: TrackableObjectGraph,
) -> None:
    """Writes a checkpoint without the tensors that are equal to others.

    Args:
        source: prefix of the checkpoint to read.
        target: prefix of the checkpoint to write; its directory exists.
        merged: key of a tensor to leave out -> key of the tensor that takes its place.
        object_graph: the object graph to write.

    Raises:
        SignatureError: the checkpoint cannot be read, or two tensors that were to be one differ.
        tf.errors.OpError: it cannot be written.
    """
    with _explained(source):
        reader = tf.train.load_checkpoint(source)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    for dropped, kept in merged.items():
        if not _is_equal(source, shapes, dtypes, kept, dropped):
            raise SignatureError(
                f"Cannot repair the SavedModel: the tensors {kept!r} and {dropped!r} of its "
                "checkpoint are copies of one variable, but their values differ. The checkpoint "
                "was changed after the export; export the model again."
            )
    sizes = {
        key: math.prod(shapes[key]) * (dtypes[key].size or 1)
        for key in sorted(shapes)
        if key not in merged and key != OBJECT_GRAPH_KEY
    }
    graph = tf.constant(object_graph.SerializeToString(deterministic=True))
    parts = list(_shards(sizes))
    prefixes = [f"{target}_temp/part-{index:05d}" for index in range(len(parts))]
    for prefix, keys in zip(prefixes, parts, strict=True):
        with _explained(source):
            tensors = _restore(source, keys, [dtypes[key] for key in keys])
        names = list(keys)
        if prefix == prefixes[-1]:
            names.append(OBJECT_GRAPH_KEY)
            tensors.append(graph)
        tf.raw_ops.SaveV2(
            prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
        )
        del tensors  # before the next ones are read
    # Renames the files of the parts, and writes one index.
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=target, delete_old_dirs=True
    )


def _shards(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yields the keys in groups of at most `_SHARD_BYTES` or of one tensor; at least one group."""
    keys: list[str] = []
    total = 0
    for key, size in sizes.items():
        if keys and total + size > _SHARD_BYTES:
            yield keys
            keys, total = [], 0
        keys.append(key)
        total += size
    yield keys


def _restore(
    prefix: str, keys: list[str], dtypes: list[Any], slices: list[str] | None = None
) -> list[Any]:
    if not keys:
        return []
    with tf.device("/CPU:0"):
        tensors = tf.raw_ops.RestoreV2(
            prefix=prefix,
            tensor_names=keys,
            shape_and_slices=slices or [""] * len(keys),
            dtypes=dtypes,
        )
    return list(tensors)


def _is_equal(
    prefix: str, shapes: Mapping[str, Any], dtypes: Mapping[str, Any], one: str, other: str
) -> bool:
    """Returns whether two tensors of a checkpoint are equal bit by bit.

    Large ones are read in parts: copies of a table of embeddings need not fit into memory together.
    """
    if {one, other} - set(shapes) or shapes[one] != shapes[other] or dtypes[one] != dtypes[other]:
        return False
    shape, dtype = shapes[one], dtypes[one]
    rows = shape[0] if shape else 1
    row_bytes = math.prod(shape[1:]) * (dtype.size or 1)
    step = max(1, _PART_BYTES // max(1, row_bytes))
    for start in range(0, max(rows, 1), step):
        size = min(step, rows - start)
        spec = ""
        if shape and size < rows:
            rest = "".join(f":0,{length}" for length in shape[1:])
            spec = f"{' '.join(map(str, shape))} {start},{size}{rest}"
        with _explained(prefix):
            parts = _restore(prefix, [one, other], [dtype, dtype], [spec, spec])
        left, right = (part.numpy() for part in parts)
        if dtype == tf.string:
            equal = bool((left == right).all()) if shape else left == right
        else:
            equal = left.tobytes() == right.tobytes()
        if not equal:
            return False
    return True


@contextlib.contextmanager
def _explained(prefix: str) -> Iterator[None]:
    """Turns errors of reading a checkpoint into a `SignatureError`."""
    try:
        yield
    except (tf.errors.OpError, DecodeError, RuntimeError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, tf.errors.OpError) else str(error)
        raise SignatureError(
            f"Cannot read the checkpoint {prefix!r}: {reason}. Export the model again, with all "
            "its files."
        ) from error
