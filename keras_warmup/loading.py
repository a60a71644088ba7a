"""A SavedModel in a Session, as TensorFlow Serving loads it, and what TensorFlow's errors say without their values.

Follows TensorFlow's `cc/saved_model/loader.cc`: import the graph, run the restore op, run the init op. A Session and
not `tf.saved_model.load`: it is what the server has, and the only place where some exports fail.
"""

from __future__ import annotations

import os
import re
from typing import Any

import tensorflow as tf

from keras_warmup._protos import AssetFileDef, MetaGraphDef
from keras_warmup.errors import ReplayError

_INIT_OP_KEY = "__saved_model_init_op"
# tf.errors.INVALID_ARGUMENT = 3 and so on: the names the server prints.
_STATUS = {code: name for name, code in vars(tf.errors).items() if isinstance(code, int) and name.isupper()}
# Where a TensorFlow message quotes what was fed: parsing, lookups, conversions, assertions.
_VALUES = (
    (re.compile(r"(?<=assertion failed: )(\[[^\]]*\]).*", re.DOTALL), r"\1 ..."),
    (re.compile(r"(?<=value: ).*", re.DOTALL), "..."),
    (re.compile(r"(?<=convert string: ).*", re.DOTALL), "..."),
    (re.compile(r"(?<== )\S+(?= is not in)"), "..."),
    (re.compile(r"'[^'\n]*[^\x20-\x7e\n][^'\n]*'"), "'...'"),
)


def describe_op_error(error: tf.errors.OpError | UnicodeDecodeError) -> str:
    """A TensorFlow error's message without graph traces and without values of tensors, which are training data."""
    message = message_of(error)
    node = re.search(r"\{\{node ([^}]+)\}\}", message)
    text = re.split(r"\n\s*\[\[|\n\nDetected at|\n\nOriginal stack|\n\t", message)[0].strip()
    for pattern, replacement in _VALUES:
        text = pattern.sub(replacement, text)
    return text[:600] + (f" (node {node.group(1)})" if node else "")


def message_of(error: tf.errors.OpError | UnicodeDecodeError) -> str:
    """The whole message; TensorFlow's Python cannot decode one that quotes bytes it was fed."""
    if isinstance(error, UnicodeDecodeError):
        return bytes(error.object).decode(errors="replace")
    return str(error.message)


def status_of(error: tf.errors.OpError | UnicodeDecodeError) -> str:
    """Canonical name of its status, as the server prints it: `INVALID_ARGUMENT`."""
    return "UNKNOWN" if isinstance(error, UnicodeDecodeError) else str(_STATUS.get(error.error_code, "UNKNOWN"))


def cure_of(error: tf.errors.OpError | UnicodeDecodeError) -> str:
    """What to do about an error whose text alone does not tell, starting with a full stop; else empty."""
    text = message_of(error)
    if isinstance(error, tf.errors.FailedPreconditionError) and "variable" in text.lower():
        return (
            ". The SavedModel's restore op does not fill this variable: tf.saved_model.load works, a Session does not. "
            "tf.saved_model.save of a Keras 3 model gives such files; write it with keras_warmup.save, model.export or "
            "keras.export.ExportArchive."
        )
    if "StableHLO" in text or "Cannot deserialize computation" in text:
        return (
            ". The model holds a StableHLO module that this TensorFlow cannot run: use a TensorFlow (and a model "
            "server) newer than the JAX that exported it, or export with an older JAX."
        )
    return ""


def load_session(export_dir: str, meta_graph: MetaGraphDef) -> Any:
    """A Session over the imported graph, its variables restored and its init op run.

    Args:
        export_dir: version directory of the SavedModel.
        meta_graph: the one to load.

    Returns:
        A `tf.compat.v1.Session` on the CPU, with a graph of its own.

    Raises:
        ReplayError: one of the three steps fails; the message says which, and what to do.
    """
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(meta_graph.graph_def, name="")
    except (tf.errors.OpError, ValueError, TypeError, RuntimeError) as error:
        text = describe_op_error(error) if isinstance(error, tf.errors.OpError) else str(error).split("\n", 1)[0]
        missing = "Op type not registered" in text
        cure = " Import the library that registers the op; the model server must be built with it." if missing else ""
        raise ReplayError(f"Cannot import the graph of SavedModel {export_dir!r}: {text}.{cure}") from error
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0}, allow_soft_placement=True)
    session = tf.compat.v1.Session(graph=graph, config=config)
    stage = "restore the variables"
    try:
        assets = {
            asset.tensor_info.name: os.path.join(export_dir, "assets", asset.filename) for asset in _assets(meta_graph)
        }
        prefix = os.path.join(export_dir, "variables", "variables")
        if meta_graph.HasField("saver_def") and tf.io.gfile.exists(prefix + ".index"):
            saver = meta_graph.saver_def
            session.run(
                graph.get_operation_by_name(saver.restore_op_name),
                {saver.filename_tensor_name: prefix, **assets},
            )
        stage = "run the init op"
        init_op = _init_op(meta_graph)
        if init_op:
            session.run(graph.get_operation_by_name(init_op), assets)
    except (tf.errors.OpError, ValueError, KeyError, TypeError) as error:
        session.close()
        text = describe_op_error(error) if isinstance(error, tf.errors.OpError) else str(error).split("\n", 1)[0]
        raise ReplayError(
            f"Cannot {stage} of SavedModel {export_dir!r}: {text}. Export the model again, with all its files."
        ) from error
    return session


def _assets(meta_graph: MetaGraphDef) -> list[AssetFileDef]:
    if meta_graph.asset_file_def:
        return list(meta_graph.asset_file_def)
    if "saved_model_assets" not in meta_graph.collection_def:  # indexing would add the key
        return []
    assets = []
    for packed in meta_graph.collection_def["saved_model_assets"].any_list.value:
        asset = AssetFileDef()
        packed.Unpack(asset)
        assets.append(asset)
    return assets


def _init_op(meta_graph: MetaGraphDef) -> str:
    """Name of the op that fills tables after the restore: TensorFlow 2's, else the two places of TensorFlow 1."""
    if _INIT_OP_KEY in meta_graph.signature_def:
        name = str(meta_graph.signature_def[_INIT_OP_KEY].outputs[_INIT_OP_KEY].name)
        return name.split(":", maxsplit=1)[0]
    for collection in ("saved_model_main_op", "legacy_init_op"):
        if collection in meta_graph.collection_def:
            nodes = meta_graph.collection_def[collection].node_list.value
            if nodes:
                return str(nodes[0])
    return ""
