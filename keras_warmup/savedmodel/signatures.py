"""Reads the signatures of a SavedModel from `saved_model.pb` alone.

No graph is loaded and no op is run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError, EncodeError

from keras_warmup._protos import MetaGraphDef, SavedModel, TensorInfo, TensorShapeProto
from keras_warmup.errors import SignatureError
from keras_warmup.paths import as_path, reason_of
from keras_warmup.savedmodel.argument_structure import ArgumentStructures
from keras_warmup.savedmodel.files import require_file
from keras_warmup.savedmodel.graph_limits import check_graph

DEFAULT_SIGNATURE_KEY = "serving_default"
# Entries that TensorFlow writes for itself (init op, train op); clients cannot call them.
RESERVED_PREFIX = "__saved_model_"
# The init op, where TensorFlow 2 and where TensorFlow 1 names it.
INIT_OP_KEY = "__saved_model_init_op"
INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
# protobuf neither makes nor parses a message of 2 GiB or more.
MAX_PROTO_BYTES = 2**31 - 1
# The parser of the text form is written in Python and reads 3 MB/s.
MAX_TEXT_BYTES = 16 * 2**20
# Each is compared with each other one; models that serve many variants have dozens.
MAX_SIGNATURES = 1000


@dataclasses.dataclass(frozen=True)
class SignatureTensor:
    """One input or output of a signature.

    Attributes:
        name: its key in the SignatureDef, the alias that clients use.
        tensor: its tensor in the graph, such as `serving_default_x:0`; empty for a composite
            (sparse or ragged) one.
        dtype: name of its `tf.DType`, such as `float32` or `string`. For a composite one the dtype
            of its values, `variant` where the type does not hold it.
        shape: sizes, `None` for a free size; `None` in place of the tuple for an unknown rank and
            for a ragged one.
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
        method_name: such as `tensorflow/serving/predict`, which TensorFlow 2 exports always have.
        inputs: input name -> spec, sorted by name.
        outputs: output alias -> spec, sorted by alias.
        defaults: inputs that a request may leave out, because the SignatureDef holds a value for
            them.
        structure: the positional arguments of the exported function: a tuple of nested tuples,
            lists and dicts whose leaves are input names of this signature (`None` where an argument
            is not an input). `None` where the file does not hold it.
    """

    key: str
    method_name: str
    inputs: Mapping[str, SignatureTensor]
    outputs: Mapping[str, SignatureTensor]
    defaults: frozenset[str]
    structure: Any = None

    @property
    def fixed_batch_size(self) -> int | None:
        """Returns the batch size that the inputs fix: 1 for shape `[1]`; `None` for a free one."""
        sizes = {
            spec.shape[0]
            for spec in self.inputs.values()
            if spec.shape and spec.shape[0] is not None
        }
        return max(sizes) if sizes else None

    @property
    def tensors(self) -> tuple[frozenset[str], frozenset[str]]:
        """Returns the names of the tensors that it feeds, and of those that it fetches.

        Signatures with equal ones share one executor, so one warmup record. Feeds and fetches are
        kept apart: signatures that feed and fetch the same tensor run different parts of the graph.
        """
        return (
            frozenset(spec.tensor for spec in self.inputs.values()),
            frozenset(spec.tensor for spec in self.outputs.values()),
        )


def read_meta_graph(export_dir: str | os.PathLike[str]) -> MetaGraphDef:
    """Reads the meta graph that a server would load: the one with the tag `serve` alone.

    Args:
        export_dir: version directory of a SavedModel, on any file system of `tf.io.gfile`.

    Returns:
        A `MetaGraphDef`.

    Raises:
        SignatureError: there is no SavedModel, it cannot be parsed, no meta graph has this tag,
            or its graph cannot be walked (`graph_limits.check_graph`).
    """
    return serving_meta_graph(read_saved_model(export_dir), export_dir)


def serving_meta_graph(saved_model: SavedModel, export_dir: str | os.PathLike[str]) -> MetaGraphDef:
    """Returns the meta graph of a SavedModel that a server would load, for reading or editing.

    Args:
        saved_model: as `read_saved_model` returns it.
        export_dir: its directory, for messages.

    Raises:
        SignatureError: no meta graph has the tag `serve` alone, or its graph cannot be walked.
    """
    meta_graphs = saved_model.meta_graphs
    for meta_graph in meta_graphs:
        if set(meta_graph.meta_info_def.tags) == {"serve"}:
            check_graph(meta_graph.graph_def)
            return meta_graph
    found = (
        ", ".join(str(sorted(meta_graph.meta_info_def.tags)) for meta_graph in meta_graphs[:10])
        or "none"
    )
    found += ", ..." if len(meta_graphs) > 10 else ""
    raise SignatureError(
        f"SavedModel {as_path(export_dir)!r} has no meta graph with tags ['serve']. Tags found: "
        f"{found}. Export the model with the tag 'serve'."
    )


def read_signatures(meta_graph: MetaGraphDef) -> list[Signature]:
    """Returns the signatures that clients can call.

    Args:
        meta_graph: as `read_meta_graph` returns it.

    Returns:
        Signatures sorted by key, without the entries that TensorFlow writes for itself
        (`__saved_model_init_op`).

    Raises:
        SignatureError: an input or output has no dtype, or one that this TensorFlow does not know;
            or there are more than `MAX_SIGNATURES`.
    """
    if len(meta_graph.signature_def) > MAX_SIGNATURES:
        raise SignatureError(
            "Cannot read the signatures of the SavedModel: it has "
            f"{len(meta_graph.signature_def)}, more than the {MAX_SIGNATURES} that are read. "
            "Export fewer signatures."
        )
    structures = ArgumentStructures(meta_graph)
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
            )
        )
    return signatures


def read_saved_model(export_dir: str | os.PathLike[str]) -> SavedModel:
    """Reads the SavedModel proto of a directory: `saved_model.pb`, else `saved_model.pbtxt`.

    Args:
        export_dir: version directory of a SavedModel, on any file system of `tf.io.gfile`.

    Raises:
        SignatureError: there is none, it cannot be read or parsed, or it is too large.
    """
    path = _file_of(as_path(export_dir))
    content = _content_of(path)
    saved_model = SavedModel()
    try:
        if path.endswith(".pbtxt"):
            text_format.Parse(content.decode(), saved_model)
            # The binary form is parsed to a depth of 100 messages, the text form without a limit.
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


def _file_of(export_dir: str) -> str:
    """Returns the path of the SavedModel proto in a version directory."""
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        path = os.path.join(export_dir, name)
        if tf.io.gfile.exists(path):
            return path
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
    require_file(path)
    limit = MAX_TEXT_BYTES if path.endswith(".pbtxt") else MAX_PROTO_BYTES
    try:
        size = tf.io.gfile.stat(path).length
        if size > limit:
            raise SignatureError(
                f"Cannot read {path!r}: it has {size} bytes, more than the {limit} that are read. "
                "Export the model again, as saved_model.pb and with large constants as variables."
            )
        with tf.io.gfile.GFile(path, "rb") as file:
            return bytes(file.read())
    except tf.errors.OpError as error:
        raise SignatureError(
            f"Cannot read {path!r}: {reason_of(error)}. Make it readable for this user, or export "
            "the model again."
        ) from error


def _spec_of(key: str, role: str, name: str, info: TensorInfo) -> SignatureTensor:
    try:
        dtype = str(tf.dtypes.as_dtype(_dtype_number(info)).name)
    except TypeError as error:
        raise SignatureError(
            f"Cannot read signature {key!r}: {role} {name!r} is damaged: this TensorFlow does not "
            f"know its dtype (DataType {_dtype_number(info)} in saved_model.pb). Export the model "
            "again, or use the TensorFlow that wrote it."
        ) from error
    if info.WhichOneof("encoding") == "composite_tensor":
        return SignatureTensor(name, "", dtype, None)
    return SignatureTensor(name, info.name, dtype, _shape(info.tensor_shape))


def _dtype_number(info: TensorInfo) -> int:
    """Returns the number of a dtype in the proto, which may be any number.

    For a composite tensor it is the first dtype in the state of its type (shape, dtype, ragged
    rank, dtype of the row splits): that of its values.
    """
    if info.WhichOneof("encoding") != "composite_tensor":
        return int(info.dtype)
    state = info.composite_tensor.type_spec.type_state.tuple_value.values
    found = [
        part.tensor_dtype_value for part in state if part.WhichOneof("kind") == "tensor_dtype_value"
    ]
    return int(found[0] if found else tf.variant.as_datatype_enum)


def _shape(proto: TensorShapeProto) -> tuple[int | None, ...] | None:
    if proto.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in proto.dim)
