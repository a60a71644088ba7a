"""Reads the server's `--batching_parameters_file`: the batch sizes of its batching session."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

# Registers google.protobuf.Int64Value, which the declaration below refers to.
from google.protobuf import wrappers_pb2 as _wrappers_pb2

from keras_warmup.errors import OptionsError
from keras_warmup.paths import as_path, reason_of, why_not_a_file

# A real one has a few hundred; the parser of text protos reads 3 MB/s.
_MAX_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """The batch sizes of a server with `--enable_batching`.

    Attributes:
        max_batch_size: no request may be larger: a warmup record over it fails the load.
        allowed_batch_sizes: sizes that batches are padded to, ascending; empty where any size up to
            the maximum is run.
    """

    max_batch_size: int
    allowed_batch_sizes: tuple[int, ...]


def read_batching_parameters(path: str | os.PathLike[str]) -> BatchingParameters:
    """Reads a batching parameters file.

    Args:
        path: a text proto `tensorflow.serving.BatchingParameters`, as the server's
            `--batching_parameters_file` takes it (session_bundle_config.proto).

    Raises:
        OptionsError: the file does not exist, cannot be parsed, or has sizes that the server
            refuses (batching_session.cc: ascending, the last one equal to `max_batch_size`).
    """
    where = as_path(path)
    problem = why_not_a_file(where)
    if problem is not None:
        raise OptionsError(
            f"batching_parameters: cannot read {where!r}: {problem}, expected a file."
        )
    try:
        if not tf.io.gfile.exists(where):
            raise OptionsError(f"batching_parameters: {where!r} does not exist.")
        with tf.io.gfile.GFile(where, "rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except tf.errors.OpError as error:
        raise OptionsError(
            f"batching_parameters: cannot read {where!r}: {reason_of(error)}."
        ) from error
    if len(raw) > _MAX_BYTES:
        raise OptionsError(
            f"batching_parameters: {where!r} has more than {_MAX_BYTES} bytes, so it "
            "is not a batching parameters file."
        )
    message = _message_class()()
    try:
        # Later servers know more fields; none of them changes the sizes.
        text_format.Parse(raw.decode(), message, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise OptionsError(
            f"batching_parameters: {where!r} is not a text proto of BatchingParameters ({error}). "
            "Expected, for example: "
            "max_batch_size { value: 32 } allowed_batch_sizes: 8 allowed_batch_sizes: 32"
        ) from error
    # The server's default (basic_batch_scheduler.h, Options::max_batch_size).
    largest = message.max_batch_size.value if message.HasField("max_batch_size") else 1000
    sizes = tuple(message.allowed_batch_sizes)
    if largest < 1 or any(size < 1 for size in sizes):
        raise OptionsError(f"batching_parameters: sizes in {where!r} must be >= 1.")
    if list(sizes) != sorted(set(sizes)):
        raise OptionsError(
            f"batching_parameters: allowed_batch_sizes in {where!r} must be ascending, "
            f"got {list(sizes)}."
        )
    if sizes and sizes[-1] != largest:
        raise OptionsError(
            f"batching_parameters: the last of allowed_batch_sizes in {where!r} must equal "
            f"max_batch_size, else the server refuses them: got {sizes[-1]} and {largest}."
        )
    return BatchingParameters(largest, sizes)


@functools.cache
def _message_class() -> Any:
    """Returns the message class, declared with the fields needed.

    The proto is not part of tensorflow-serving-api.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="keras_warmup/batching.proto", package="keras_warmup", syntax="proto3"
    )
    file.dependency.append(_wrappers_pb2.DESCRIPTOR.name)
    message = file.message_type.add(name="BatchingParameters")
    field = descriptor_pb2.FieldDescriptorProto
    message.field.add(
        name="max_batch_size",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".google.protobuf.Int64Value",
        label=field.LABEL_OPTIONAL,
    )
    message.field.add(
        name="allowed_batch_sizes", number=6, type=field.TYPE_INT64, label=field.LABEL_REPEATED
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("keras_warmup.BatchingParameters")
    )
