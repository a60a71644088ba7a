"""Reads the object graph of a checkpoint, and writes a checkpoint without some of its tensors."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup._protos import TrackableObjectGraph
from keras_warmup.errors import SignatureError
from keras_warmup.paths import reason_of

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Tensors that are in memory at a time; a larger tensor is alone.
_SHARD_BYTES = 256 * 2**20


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
        target: prefix of the checkpoint to write.
        merged: key of a tensor to leave out -> key of the tensor that takes its place.
        object_graph: the object graph to write.

    Raises:
        SignatureError: the checkpoint cannot be read, or two tensors that were to be one differ.
        tf.errors.OpError: it cannot be written.
    """
    with _explained(source):
        reader = tf.train.load_checkpoint(source)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    # One tensor is in memory at a time: a copy may be as large as all other weights.
    digests: dict[str, list[tuple[str, bytes]]] = {}
    for dropped, kept in merged.items():
        with _explained(source):
            (tensor,) = _restore(source, [dropped], [dtypes[dropped]])
        digests.setdefault(kept, []).append((dropped, _digest(tensor)))
        del tensor
    sizes = {
        key: math.prod(shapes[key]) * (dtypes[key].size or 1)
        for key in sorted(shapes)
        if key not in merged and key != OBJECT_GRAPH_KEY
    }
    graph = tf.constant(object_graph.SerializeToString(deterministic=True))
    parts = list(_shards(sizes))
    prefixes = [f"{target}_temp/part-{index:05d}" for index in range(len(parts))]
    tf.io.gfile.makedirs(f"{target}_temp")
    for prefix, keys in zip(prefixes, parts, strict=True):
        with _explained(source):
            tensors = _restore(source, keys, [dtypes[key] for key in keys])
        for key, tensor in zip(keys, tensors, strict=True):
            _require_equal(key, tensor, digests.get(key, ()))
            del tensor
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


def _restore(prefix: str, keys: list[str], dtypes: list[Any]) -> list[Any]:
    if not keys:
        return []
    with tf.device("/CPU:0"):
        tensors = tf.raw_ops.RestoreV2(
            prefix=prefix, tensor_names=keys, shape_and_slices=[""] * len(keys), dtypes=dtypes
        )
    return list(tensors)


def _require_equal(key: str, tensor: Any, copies: Sequence[tuple[str, bytes]]) -> None:
    """Raises a `SignatureError` where the digest of a copy is not that of the tensor."""
    if not copies:
        return
    digest = _digest(tensor)
    for copy, other in copies:
        if other != digest:
            raise SignatureError(
                f"Cannot repair the SavedModel: the tensors {key!r} and {copy!r} of its checkpoint "
                "are copies of one variable, but their values differ. The checkpoint was changed "
                "after the export; export the model again."
            )


def _digest(tensor: Any) -> bytes:
    """Returns a digest of a tensor's dtype, shape and values."""
    digest = hashlib.blake2b(f"{tensor.dtype.name} {tensor.shape}".encode())
    if tensor.dtype == tf.string:
        for value in np.ravel(tensor.numpy()):
            digest.update(len(value).to_bytes(8, "little") + value)
        return digest.digest()
    try:
        # Both share the memory of the tensor; `numpy()` copies it.
        view = memoryview(tf.bitcast(tensor, tf.uint8))
    except (TypeError, ValueError, tf.errors.OpError):  # such as bool
        digest.update(tensor.numpy().tobytes())
    else:
        digest.update(view)
    return digest.digest()


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
