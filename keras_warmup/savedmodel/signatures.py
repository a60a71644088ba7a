"""The signatures of a SavedModel, read from `saved_model.pb` alone: no graph is loaded, no op is run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError, EncodeError

from keras_warmup._protos import (
    MetaGraphDef,
    SavedModel,
    TensorInfo,
    TensorShapeProto,
)
from keras_warmup.errors import SignatureError
from keras_warmup.paths import as_path, reason_of, why_not_a_file
from keras_warmup.savedmodel.argument_structure import ArgumentStructures
from keras_warmup.savedmodel.graph_limits import check_graph

DEFAULT_SIGNATURE_KEY = "serving_default"
SERVE_TAGS = ("serve",)
# Entries that TensorFlow writes for itself (init op, train op): no client can call them.
RESERVED_PREFIX = "__saved_model_"
# protobuf makes and parses no message of 2 GiB or more.
MAX_PROTO_BYTES = 2**31 - 1
# The parser of the text form is Python and reads 3 MB/s.
MAX_TEXT_BYTES = 16 * 2**20
# Each is compared with each other one; models that serve many variants have dozens.
MAX_SIGNATURES = 1000


@dataclasses.dataclass(frozen=True)
class SignatureTensor:
    """One input or output of a signature.

    Attributes:
        name: its key in the SignatureDef, the alias that clients use.
        tensor: its tensor in the graph, such as `serving_default_x:0`; empty for a composite (sparse, ragged) one.
        dtype: name of its `tf.DType`, such as `float32` or `string`; of a composite one that of its values, `variant`
            where its type does not tell.
        shape: sizes, `None` for a free one; `None` in place of the tuple for an unknown rank, and for a ragged one.
    """

    name: str
    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """A servable endpoint of a SavedModel.

    Attributes:
        key: its signature key.
        method_name: such as `tensorflow/serving/predict`; TensorFlow 2 exports always say predict.
        inputs: input name -> spec, sorted by name.
        outputs: output alias -> spec, sorted by alias.
        defaults: inputs that a request may leave out, because the SignatureDef holds a value for them.
        structure: the positional arguments of the exported function, a tuple of nested tuples, lists and dicts whose
            leaves are input names of this signature (`None` where an argument is none); `None` where the file does not
            tell.
        tags: tags of the meta graph it was read from.
    """

    key: str
    method_name: str
    inputs: Mapping[str, SignatureTensor]
    outputs: Mapping[str, SignatureTensor]
    defaults: frozenset[str]
    structure: Any = None
    tags: tuple[str, ...] = SERVE_TAGS

    @property
    def fixed_batch_size(self) -> int | None:
        """The batch size that the inputs fix, such as 1 for inputs of shape `[1]`; `None` where it is free."""
        sizes = {
            spec.shape[0]
            for spec in self.inputs.values()
            if spec.shape and spec.shape[0] is not None
        }
        return max(sizes) if sizes else None

    @property
    def tensors(self) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the tensors it feeds, and of those it fetches.

        Signatures with equal ones share one executor, so one warmup. A tensor that one feeds and another fetches is told
        apart: these two run different parts of the graph.
        """
        return (
            frozenset(spec.tensor for spec in self.inputs.values()),
            frozenset(spec.tensor for spec in self.outputs.values()),
        )


def read_meta_graph(
    export_dir: str | os.PathLike[str], tags: Sequence[str] | None = None
) -> MetaGraphDef:
    """Reads the meta graph that a server would load.

    Args:
        export_dir: version directory of a SavedModel, on any file system `tf.io.gfile` knows.
        tags: exact tags of the meta graph. Defaults to `None`: `("serve",)`, as TensorFlow Serving.

    Returns:
        A `MetaGraphDef`.

    Raises:
        SignatureError: there is no SavedModel, it cannot be parsed, no meta graph has these tags, or its graph cannot be
            walked (`graph_limits.check_graph`).
    """
    wanted = set(SERVE_TAGS if tags is None else tags)
    where = as_path(export_dir)
    meta_graphs = _read_saved_model(where).meta_graphs
    for meta_graph in meta_graphs:
        if set(meta_graph.meta_info_def.tags) == wanted:
            check_graph(meta_graph.graph_def)
            return meta_graph
    found = (
        ", ".join(str(sorted(meta_graph.meta_info_def.tags)) for meta_graph in meta_graphs[:10])
        or "none"
    )
    found += ", ..." if len(meta_graphs) > 10 else ""
    raise SignatureError(
        f"SavedModel {where!r} has no meta graph with tags {sorted(wanted)}. Tags found: {found}. "
        "Export the model with the tag 'serve'."
    )


def read_signatures(meta_graph: MetaGraphDef) -> list[Signature]:
    """Lists the endpoints that clients can call.

    Args:
        meta_graph: as `read_meta_graph` returns it.

    Returns:
        Signatures sorted by key, without the entries TensorFlow writes for itself (`__saved_model_init_op`).

    Raises:
        SignatureError: an input or output has no dtype, or one this TensorFlow does not know; or there are more than
            `MAX_SIGNATURES`.
    """
    if len(meta_graph.signature_def) > MAX_SIGNATURES:
        raise SignatureError(
            f"Cannot read the signatures of the SavedModel: it has {len(meta_graph.signature_def)}, more than the "
            f"{MAX_SIGNATURES} that are read. Export fewer signatures."
        )
    structures = ArgumentStructures(meta_graph)
    tags = tuple(sorted(meta_graph.meta_info_def.tags))
    signatures = []
    for key in sorted(meta_graph.signature_def):
        if key.startswith(RESERVED_PREFIX):
            continue
        definition = meta_graph.signature_def[key]
        inputs = {
            name: _spec_of(key, "input", name, definition.inputs[name])
            for name in sorted(definition.inputs)
        }
        outputs = {
            name: _spec_of(key, "output", name, definition.outputs[name])
            for name in sorted(definition.outputs)
        }
        signatures.append(
            Signature(
                key=key,
                method_name=definition.method_name,
                inputs=inputs,
                outputs=outputs,
                defaults=frozenset(definition.defaults),
                structure=structures.of(definition),
                tags=tags,
            )
        )
    return signatures


def _read_saved_model(export_dir: str) -> SavedModel:
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        path = os.path.join(export_dir, name)
        if tf.io.gfile.exists(path):
            return _parse(path, _content_of(path))
    if not tf.io.gfile.isdir(export_dir):
        raise SignatureError(f"No SavedModel at {export_dir!r}: the directory does not exist.")
    found = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(export_dir))
    versions = [name for name in found if name.isdecimal()]
    hint = (
        f" Give a version directory, such as {os.path.join(export_dir, versions[-1])!r}."
        if versions
        else ""
    )
    raise SignatureError(
        f"No SavedModel at {export_dir!r}: it holds {found}, but no saved_model.pb.{hint}"
    )


def _content_of(path: str) -> bytes:
    problem = why_not_a_file(path)
    if problem is not None:
        raise SignatureError(
            f"Cannot read {path!r}: {problem}, expected a file. Export the model again."
        )
    most = MAX_TEXT_BYTES if path.endswith(".pbtxt") else MAX_PROTO_BYTES
    try:
        size = tf.io.gfile.stat(path).length
        if size > most:
            raise SignatureError(
                f"Cannot read {path!r}: it has {size} bytes, more than the {most} that are read of "
                "one. Export the model again, as saved_model.pb and with large constants as variables."
            )
        with tf.io.gfile.GFile(path, "rb") as file:
            return bytes(file.read())
    except tf.errors.OpError as error:
        raise SignatureError(
            f"Cannot read {path!r}: {reason_of(error)}. Make it readable for this user."
        ) from error


def _parse(path: str, content: bytes) -> SavedModel:
    saved_model = SavedModel()
    try:
        if path.endswith(".pbtxt"):
            text_format.Parse(content.decode(), saved_model)
            # The binary form is parsed to a depth of 100 messages, the text form to any.
            content = saved_model.SerializeToString()
        saved_model.ParseFromString(content)
    except (
        DecodeError,
        EncodeError,
        text_format.ParseError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        raise SignatureError(
            f"Cannot parse {path!r}: it is not a SavedModel proto. Export the model again."
        ) from error
    return saved_model


def _spec_of(key: str, kind: str, name: str, info: TensorInfo) -> SignatureTensor:
    try:
        return _tensor_spec(name, info)
    except TypeError:
        problem = "its dtype is none that this TensorFlow knows"
    raise SignatureError(
        f"Cannot read signature {key!r}: {kind} {name!r} is damaged: {problem} (DataType {_dtype_number(info)} in "
        "saved_model.pb). Export the model again, or use the TensorFlow that wrote it."
    )


def _tensor_spec(name: str, info: TensorInfo) -> SignatureTensor:
    if info.WhichOneof("encoding") == "composite_tensor":
        return SignatureTensor(name, "", _composite_dtype(info), None)
    return SignatureTensor(
        name, info.name, tf.dtypes.as_dtype(info.dtype).name, _shape(info.tensor_shape)
    )


def _composite_dtype(info: TensorInfo) -> str:
    """Dtype of the values: the first one in the state of the type (shape, dtype, ragged rank, dtype of the splits)."""
    return str(tf.dtypes.as_dtype(_dtype_number(info)).name)


def _dtype_number(info: TensorInfo) -> int:
    """Number of its dtype in the proto, where it may be any."""
    if info.WhichOneof("encoding") != "composite_tensor":
        return int(info.dtype)
    state = info.composite_tensor.type_spec.type_state.tuple_value.values
    found = [
        part.tensor_dtype_value for part in state if part.WhichOneof("kind") == "tensor_dtype_value"
    ]
    return int(found[0] if found else tf.variant.as_datatype_enum)


def _shape(proto: TensorShapeProto) -> tuple[int | None, ...] | None:
    return (
        None
        if proto.unknown_rank
        else tuple(None if dim.size < 0 else int(dim.size) for dim in proto.dim)
    )
