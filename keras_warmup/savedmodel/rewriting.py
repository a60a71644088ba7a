"""Changes the SignatureDefs of an exported SavedModel, in place.

- Method names: TensorFlow 2 writes `tensorflow/serving/predict` for every signature. With
  `--enable_signature_method_name_check` TensorFlow Serving requires Classify and Regress signatures
  to have their own method names; without the flag it ignores them.
- Shared tensors for twin signatures: the server pays the cold cost once for both (`twins.py`).

The new `saved_model.pb` is written beside the old one and then replaces it, and `fingerprint.pb` is
computed again where there is one. Nothing else changes. Rewrite a model before a server watches its
directory: the server does not load it again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup._protos import (
    FingerprintDef,
    MetaGraphDef,
    SavedModel,
    serialized_fingerprint,
)
from keras_warmup.errors import SignatureError
from keras_warmup.paths import as_path, explained, join, name_of, parent_of, scheme_of
from keras_warmup.publishing.filesystem import exists, replace_file, sync
from keras_warmup.publishing.workspace import Workspace, sweep
from keras_warmup.savedmodel.files import require_file
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES, default_kind
from keras_warmup.savedmodel.signatures import (
    read_saved_model,
    read_signatures,
    serving_meta_graph,
)

_MODEL = "saved_model.pb"
_FINGERPRINT = "fingerprint.pb"
_OLD_FINGERPRINT = "fingerprint.old"


def name_methods(export_dir: str | os.PathLike[str], *, flush: bool = True) -> None:
    """Sets the method names of signatures with the inputs and outputs of Classify or Regress.

    Args:
        export_dir: version directory of a SavedModel.
        flush: write the change to the disk before this returns. A directory that is still going to
            be published does not need it. Defaults to `True`.

    Raises:
        SignatureError: the SavedModel cannot be read.
        PublishError: there is no `saved_model.pb`, or it cannot be replaced.
    """
    saved_model = read_saved_model(export_dir)
    kinds = {
        signature.key: default_kind(signature)
        for signature in read_signatures(serving_meta_graph(saved_model, export_dir))
    }
    named = {key: METHOD_NAMES[kind] for key, kind in kinds.items() if kind != "predict"}
    if not named:
        return
    for meta_graph in saved_model.meta_graphs:
        definitions = meta_graph.signature_def
        if set(named) <= set(definitions):
            for key, method_name in named.items():
                definitions[key].method_name = method_name
    write_saved_model(export_dir, saved_model, flush=flush)


def share_tensors(meta_graph: MetaGraphDef, twins: Mapping[str, str]) -> None:
    """Makes signatures use the tensors of their twins, so that one executor serves both.

    Then one warmup record warms both. Only SignatureDefs change: `tf.saved_model.load` and
    `keras.layers.TFSMLayer` call functions and do not read them. A Session, and so a server, gets
    the same outputs under the same aliases.

    Args:
        meta_graph: the meta graph to change.
        twins: signature_key -> key of the signature whose tensors it will use, as
            `twins.find_twins` returns them.
    """
    definitions = meta_graph.signature_def
    for key, twin in twins.items():
        definition, source = definitions[key], definitions[twin]
        for changed, kept in (
            (definition.inputs, source.inputs),
            (definition.outputs, source.outputs),
        ):
            for alias in changed:
                changed[alias].CopyFrom(kept[alias])


def recover(export_dir: str) -> None:
    """Removes what killed rewrites left in a SavedModel, and restores its fingerprint.

    Args:
        export_dir: version directory of a SavedModel.
    """
    sweep(export_dir, tidy=_restore_fingerprint)


def write_saved_model(
    export_dir: str | os.PathLike[str], saved_model: SavedModel, *, flush: bool = True
) -> None:
    """Replaces `saved_model.pb`, and `fingerprint.pb` where there is one.

    Two files cannot be replaced in one step. So the old fingerprint is moved away before the old
    graph is replaced, and the new one is moved in after the new graph. Whenever the process is
    killed, the fingerprint matches the graph or is absent; if it is absent, the next rewrite
    restores the one that matches (`_restore_fingerprint`).

    Args:
        export_dir: version directory of a SavedModel.
        saved_model: the new content of its `saved_model.pb`.
        flush: write the change to the disk before this returns. A directory that is still going to
            be published does not need it. Defaults to `True`.

    Raises:
        PublishError: there is no `saved_model.pb`, or it cannot be replaced.
    """
    directory = as_path(export_dir)
    path, fingerprint = join(directory, _MODEL), join(directory, _FINGERPRINT)
    with explained(path, "rewrite"):
        tf.io.gfile.stat(path)  # raises where only saved_model.pbtxt exists
        recover(directory)
        workspace = Workspace(path)
        try:
            with tf.io.gfile.GFile(workspace.build, "wb") as file:
                file.write(saved_model.SerializeToString(deterministic=True))
            has_fingerprint = exists(fingerprint)
            if has_fingerprint:
                with tf.io.gfile.GFile(join(workspace.content, _FINGERPRINT), "wb") as file:
                    file.write(_fingerprint_of(workspace, directory))
                if flush:
                    # A power cut may come before it is moved in; it is restored from here then.
                    sync(join(workspace.content, _FINGERPRINT))
                    sync(workspace.content)
                    sync(workspace.path)
                    sync(directory)
                replace_file(fingerprint, join(workspace.content, _OLD_FINGERPRINT), flush=flush)
            replace_file(workspace.build, path, flush=flush)
            if has_fingerprint:
                replace_file(join(workspace.content, _FINGERPRINT), fingerprint, flush=flush)
        finally:
            workspace.close(tidy=_restore_fingerprint)


def complete_fingerprint(export_dir: str) -> None:
    """Computes a fingerprint again where it lacks the hash of the variables.

    TensorFlow silently leaves the hash out where it cannot read the variables at that moment.

    Args:
        export_dir: a SavedModel that is still going to be published.

    Raises:
        PublishError: a file cannot be read or written.
        SignatureError: the fingerprint is damaged.
    """
    path, index = join(export_dir, _FINGERPRINT), join(export_dir, "variables/variables.index")
    with explained(path, "read"):
        if not exists(path) or not exists(index) or _read_fingerprint(path).checkpoint_hash:
            return
        complete = _compute_fingerprint(export_dir, path)
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(complete)


def renew_fingerprint(export_dir: str) -> None:
    """Writes the fingerprint of a SavedModel that is still going to be published.

    Args:
        export_dir: the SavedModel, with `saved_model.pb` in its binary form.

    Raises:
        PublishError: a file cannot be read or written.
        SignatureError: the fingerprint cannot be computed.
    """
    path = join(export_dir, _FINGERPRINT)
    with explained(path, "write"):
        content = _compute_fingerprint(export_dir, path)
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(content)
    complete_fingerprint(export_dir)


def _fingerprint_of(workspace: Workspace, directory: str) -> bytes:
    """Returns the fingerprint of the graph in a workspace with the variables of the SavedModel."""
    path = join(directory, _FINGERPRINT)
    old = _read_fingerprint(path)
    if not scheme_of(directory):
        # Without it TensorFlow warns that it cannot read them, and names a hidden directory.
        with contextlib.suppress(OSError):  # some file systems have no links
            os.symlink(
                os.path.abspath(join(directory, "variables")), join(workspace.content, "variables")
            )
    new = FingerprintDef.FromString(_compute_fingerprint(workspace.content, path))
    new.checkpoint_hash = new.checkpoint_hash or old.checkpoint_hash
    return bytes(new.SerializeToString(deterministic=True))


def _compute_fingerprint(directory: str, path: str) -> bytes:
    try:
        content = serialized_fingerprint(directory)
    except ValueError as error:
        raise SignatureError(
            f"Cannot compute {path!r}: {str(error).rpartition('; ')[2]}."
        ) from error
    # TensorFlow silently leaves the graph out where it cannot look for it at that moment.
    if not FingerprintDef.FromString(content).saved_model_checksum:
        raise SignatureError(f"Cannot compute {path!r}: saved_model.pb cannot be read. Try again.")
    return content


def _read_fingerprint(path: str) -> FingerprintDef:
    require_file(path)
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return FingerprintDef.FromString(file.read())
    except DecodeError as error:
        raise SignatureError(
            f"Cannot read {path!r}: it is damaged. Remove it, or export the model again."
        ) from error


def _restore_fingerprint(workspace: Workspace) -> None:
    """Restores the fingerprint of the graph after a rewrite that was interrupted."""
    if name_of(workspace.target) != _MODEL:
        return
    fingerprint = join(parent_of(workspace.target), _FINGERPRINT)
    matching = join(
        workspace.content, _OLD_FINGERPRINT if exists(workspace.build) else _FINGERPRINT
    )
    if exists(matching) and not exists(fingerprint):
        replace_file(matching, fingerprint)
