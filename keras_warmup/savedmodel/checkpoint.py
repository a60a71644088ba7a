"""Reads the object graph of a checkpoint, and writes a checkpoint without some of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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


def read_object_graph(prefix: str) -> TrackableObjectGraph:
    """Reads the object graph of a checkpoint.

    Args:
        prefix: path of the checkpoint without `.index`.

    Raises:
        SignatureError: the checkpoint cannot be read, or has no object graph.
    """
    serialized = _restore(prefix, OBJECT_GRAPH_KEY, tf.string)
    try:
        return TrackableObjectGraph.FromString(serialized.numpy())
    except DecodeError as error:
        raise _unreadable(prefix, "its object graph is damaged") from error


def rewrite_checkpoint(
    source: str,
    target: str,
    dtypes: Mapping[str, Any],
    merged: Mapping[str, str],
    object_graph: TrackableObjectGraph,
) -> None:
    """Writes a checkpoint without the tensors that are equal to others.

    Args:
        source: prefix of the checkpoint to read.
        target: prefix of the checkpoint to write.
        dtypes: key of each tensor -> its dtype.
        merged: key of a tensor to leave out -> key of the tensor that takes its place.
        object_graph: the object graph to write.

    Raises:
        SignatureError: the checkpoint cannot be read, or two tensors that were to be one differ.
        tf.errors.OpError: it cannot be written.
    """
    # One tensor is in memory at a time: a copy may be as large as all other weights.
    digests: dict[str, list[tuple[str, bytes]]] = {}
    for dropped, kept in merged.items():
        digest = _digest(_restore(source, dropped, dtypes[dropped]))
        digests.setdefault(kept, []).append((dropped, digest))
    directory = f"{target}_temp"
    tf.io.gfile.makedirs(directory)
    prefixes: list[str] = []
    shard: dict[str, Any] = {}
    shard_bytes = 0
    for key in sorted(set(dtypes) - set(merged) - {OBJECT_GRAPH_KEY}):
        tensor = _restore(source, key, dtypes[key])
        _require_equal(key, tensor, digests.get(key, ()))
        size = int(tf.size(tensor)) * (tensor.dtype.size or 1)
        if shard and shard_bytes + size > _SHARD_BYTES:
            _write_shard(directory, shard, prefixes)
            shard_bytes = 0
        shard[key] = tensor
        shard_bytes += size
        del tensor
    shard[OBJECT_GRAPH_KEY] = tf.constant(object_graph.SerializeToString(deterministic=True))
    _write_shard(directory, shard, prefixes)
    # Renames the files of the shards, and writes one index.
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=target, delete_old_dirs=True
    )


def _write_shard(directory: str, shard: dict[str, Any], prefixes: list[str]) -> None:
    """Writes tensors, frees them, and adds the prefix of their files to the list."""
    prefix = f"{directory}/part-{len(prefixes):05d}"
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(shard),
        shape_and_slices=[""] * len(shard),
        tensors=list(shard.values()),
    )
    shard.clear()
    prefixes.append(prefix)


def _restore(prefix: str, key: str, dtype: Any) -> Any:
    """Reads one tensor."""
    # Not with tf.train.load_checkpoint: it crashes the process where a file cannot be read.
    try:
        with tf.device("/CPU:0"):
            (tensor,) = tf.raw_ops.RestoreV2(
                prefix=prefix, tensor_names=[key], shape_and_slices=[""], dtypes=[dtype]
            )
    except tf.errors.OpError as error:
        raise _unreadable(prefix, reason_of(error)) from error
    return tensor


def _unreadable(prefix: str, reason: str) -> SignatureError:
    return SignatureError(
        f"Cannot read the checkpoint {prefix!r}: {reason}. Export the model again, with all its "
        "files."
    )


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
