"""Changes to the SignatureDefs of an exported SavedModel, in place, that some requests need.

- Method names: TensorFlow 2 writes `tensorflow/serving/predict` for every signature. TensorFlow Serving ignores that, except
  with `--enable_signature_method_name_check`: Classify and Regress then want their own.
- Shared tensors for twin signatures: the server pays the cold cost once for both (`twins.py`).

`saved_model.pb` is written beside it and then replaces it, `fingerprint.pb` is made anew where there is one, and nothing else is
touched. Do it before a server watches the directory: it would not load the model again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup._protos import FingerprintDef, SavedModel, serialized_fingerprint
from keras_warmup.errors import BindingError, OptionsError, SignatureError
from keras_warmup.paths import (
    as_path,
    explained,
    join,
    name_of,
    parent_of,
    reason_of,
    scheme_of,
    why_not_a_file,
)
from keras_warmup.publishing.filesystem import exists, replace_file, sync
from keras_warmup.publishing.workspace import Workspace, sweep
from keras_warmup.report import RequestKind
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES, default_kind, servable_kinds
from keras_warmup.savedmodel.signatures import Signature, read_meta_graph, read_signatures

_MODEL = "saved_model.pb"
_FINGERPRINT = "fingerprint.pb"
_OLD_FINGERPRINT = "fingerprint.old"


def rewrite_method_names(
    export_dir: str | os.PathLike[str], kinds: Mapping[str, RequestKind], *, flush: bool = True
) -> None:
    """Sets the method names of signatures.

    Args:
        export_dir: version directory of a SavedModel.
        kinds: signature_key -> `predict`, `classify` or `regress`.
        flush: whether the change is on the disk when this returns; not needed before the directory is published.

    Raises:
        OptionsError: a kind has no method name.
        SignatureError: the SavedModel cannot be read, or has no such signature.
        BindingError: a signature cannot serve the kind.
    """
    for key, kind in kinds.items():
        if kind not in METHOD_NAMES:
            raise OptionsError(
                f"Signature {key!r}: kind must be one of {sorted(METHOD_NAMES)}, got {kind!r}."
            )
    saved_model = _read(export_dir)
    for meta_graph, signatures in _meta_graphs_with(saved_model, export_dir, list(kinds)):
        for key, signature in signatures.items():
            _refuse_impossible(signature, kinds[key])
            meta_graph.signature_def[key].method_name = METHOD_NAMES[kinds[key]]
    _write(export_dir, saved_model, flush)


def name_methods(export_dir: str | os.PathLike[str], *, flush: bool = True) -> None:
    """Gives each signature with the shape of Classify or Regress that method name; the others keep theirs.

    Args:
        export_dir: version directory of a SavedModel.
        flush: whether the change is on the disk when this returns; not needed before the directory is published.

    Raises:
        SignatureError: the SavedModel cannot be read.
    """
    kinds = {
        signature.key: default_kind(signature)
        for signature in read_signatures(read_meta_graph(export_dir))
    }
    named = {key: kind for key, kind in kinds.items() if kind != "predict"}
    if named:
        rewrite_method_names(export_dir, named, flush=flush)


def share_tensors(
    export_dir: str | os.PathLike[str], twins: Mapping[str, str], *, flush: bool = True
) -> None:
    """Lets signatures name the tensors of their twins, so that one executor, and one warmup record, serves both.

    Only `saved_model.pb`'s SignatureDefs change: `tf.saved_model.load` and `keras.layers.TFSMLayer` call functions and do not
    look at them; a Session, and so a server, gets the same outputs under the same aliases.

    Args:
        export_dir: version directory of a SavedModel.
        twins: signature_key -> key of the signature whose tensors it shall name, as `twins.find_twins` found them.
        flush: whether the change is on the disk when this returns; not needed before the directory is published.

    Raises:
        SignatureError: the SavedModel cannot be read, or has no such signature.
    """
    saved_model = _read(export_dir)
    for meta_graph, _ in _meta_graphs_with(
        saved_model, export_dir, sorted({*twins, *twins.values()})
    ):
        for key, kept in twins.items():
            definition, source = meta_graph.signature_def[key], meta_graph.signature_def[kept]
            for mine, theirs in (
                (definition.inputs, source.inputs),
                (definition.outputs, source.outputs),
            ):
                for alias in mine:
                    mine[alias].CopyFrom(theirs[alias])
    _write(export_dir, saved_model, flush)


def recover(export_dir: str) -> None:
    """Removes what killed rewrites left in a SavedModel, and gives it back the fingerprint of its graph.

    Args:
        export_dir: version directory of a SavedModel.
    """
    sweep(export_dir, tidy=_tidy)


def complete_fingerprint(export_dir: str) -> None:
    """Makes a fingerprint anew that lacks the hash of the variables, before the SavedModel is published.

    TensorFlow leaves it out, silently, where it cannot read them at that moment.

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
        whole = _make_fingerprint(export_dir, path)
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(whole)


def _refuse_impossible(signature: Signature, kind: RequestKind) -> None:
    reason = servable_kinds(signature)[kind]
    if reason is not None:
        raise BindingError(f"Signature {signature.key!r} cannot serve {kind} requests: {reason}.")


def _meta_graphs_with(
    saved_model: Any, export_dir: str | os.PathLike[str], keys: Sequence[str]
) -> list[tuple[Any, dict[str, Signature]]]:
    """The meta graphs that have all of some signatures, with those."""
    found = []
    known: set[str] = set()
    for meta_graph in saved_model.meta_graphs:
        signatures = {signature.key: signature for signature in read_signatures(meta_graph)}
        known |= set(signatures)
        if set(keys) <= set(signatures):
            found.append((meta_graph, {key: signatures[key] for key in keys}))
    if not found:
        raise SignatureError(
            f"SavedModel {os.fspath(export_dir)!r} has no signatures {sorted(set(keys) - known)}. It has {sorted(known)}."
        )
    return found


def _read(export_dir: str | os.PathLike[str]) -> Any:
    path = join(as_path(export_dir), _MODEL)
    _require_file(path)
    saved_model = SavedModel()
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            saved_model.ParseFromString(file.read())
    except DecodeError as error:
        raise SignatureError(
            f"Cannot read a SavedModel from {path!r}: it is not a SavedModel proto."
        ) from error
    except tf.errors.OpError as error:
        raise SignatureError(
            f"Cannot read a SavedModel from {path!r}: {reason_of(error)}."
        ) from error
    return saved_model


def _write(export_dir: str | os.PathLike[str], saved_model: Any, flush: bool) -> None:
    """Replaces `saved_model.pb`, and `fingerprint.pb` where there is one.

    Two files cannot be replaced in one step. So the old fingerprint leaves before the old graph does, and the new one
    arrives after the new graph: whenever the process is killed, there is a fingerprint that matches or none, and the
    next rewrite puts back the one that matches (`_tidy`).
    """
    directory = as_path(export_dir)
    path, fingerprint = join(directory, _MODEL), join(directory, _FINGERPRINT)
    with explained(path, "rewrite"):
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
                    # It may have to be completed after a power cut that comes before it has its place.
                    sync(join(workspace.content, _FINGERPRINT))
                    sync(workspace.content)
                    sync(workspace.path)
                    sync(directory)
                replace_file(fingerprint, join(workspace.content, _OLD_FINGERPRINT), flush=flush)
            replace_file(workspace.build, path, flush=flush)
            if has_fingerprint:
                replace_file(join(workspace.content, _FINGERPRINT), fingerprint, flush=flush)
        finally:
            workspace.close(tidy=_tidy)


def _fingerprint_of(workspace: Workspace, directory: str) -> bytes:
    """Returns the fingerprint of the graph in the workspace with the variables of the SavedModel."""
    path = join(directory, _FINGERPRINT)
    old = _read_fingerprint(path)
    if not old.checkpoint_hash and not scheme_of(directory):
        # TensorFlow left it out, because it could not read the variables at that moment, or there are none.
        os.symlink(
            os.path.abspath(join(directory, "variables")), join(workspace.content, "variables")
        )
    new = FingerprintDef.FromString(_make_fingerprint(workspace.content, path))
    new.checkpoint_hash = new.checkpoint_hash or old.checkpoint_hash
    return bytes(new.SerializeToString(deterministic=True))


def _require_file(path: str) -> None:
    problem = why_not_a_file(path)
    if problem is not None:
        raise SignatureError(
            f"Cannot read {path!r}: {problem}, expected a file. Export the model again."
        )


def _make_fingerprint(directory: str, path: str) -> bytes:
    try:
        return serialized_fingerprint(directory)
    except ValueError as error:
        raise SignatureError(
            f"Cannot make {path!r} anew: {str(error).rpartition('; ')[2]}."
        ) from error


def _read_fingerprint(path: str) -> Any:
    _require_file(path)
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return FingerprintDef.FromString(file.read())
    except DecodeError as error:
        raise SignatureError(
            f"Cannot read {path!r}: it is damaged. Remove it, or export the model again."
        ) from error


def _tidy(workspace: Workspace) -> None:
    """Gives the SavedModel the fingerprint of its graph, after a rewrite was interrupted between the two."""
    if name_of(workspace.target) != _MODEL:
        return
    fingerprint = join(parent_of(workspace.target), _FINGERPRINT)
    matching = join(
        workspace.content, _OLD_FINGERPRINT if exists(workspace.build) else _FINGERPRINT
    )
    if exists(matching) and not exists(fingerprint):
        replace_file(matching, fingerprint)
