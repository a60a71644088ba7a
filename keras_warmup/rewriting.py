"""Changes to the SignatureDefs of an exported SavedModel, in place, that some requests need.

- Method names: TensorFlow 2 writes `tensorflow/serving/predict` for every signature. TensorFlow Serving ignores that, except
  with `--enable_signature_method_name_check`: Classify and Regress then want their own.
- Shared tensors for twin signatures: the server pays the cold cost once for both (`twins.py`).
- One input for several signatures: TensorFlow 2 gives each signature a placeholder of its own, and MultiInference refuses
  tasks that do not feed the same tensor (`multi_inference.cc`: "Input tensor must be the same for all Signatures.").

`saved_model.pb` is written to a temporary file that then replaces it, `fingerprint.pb` is made anew where there is one, and
nothing else is touched. Do it before a server watches the directory: it would not load the model again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup._protos import SavedModel, write_fingerprint
from keras_warmup.bodies import canonical, source_of
from keras_warmup.errors import BindingError, OptionsError, SignatureError
from keras_warmup.kinds import METHOD_NAMES, default_kind, servable_kinds
from keras_warmup.report import Kind
from keras_warmup.signatures import Signature, read_meta_graph, read_signatures


def rewrite_method_names(export_dir: str | os.PathLike[str], kinds: Mapping[str, Kind]) -> None:
    """Sets the method names of signatures.

    Args:
        export_dir: version directory of a SavedModel.
        kinds: signature_key -> `predict`, `classify` or `regress`.

    Raises:
        OptionsError: a kind has no method name.
        SignatureError: the SavedModel cannot be read, or has no such signature.
        BindingError: a signature cannot serve the kind.
    """
    for key, kind in kinds.items():
        if kind not in METHOD_NAMES:
            raise OptionsError(f"Signature {key!r}: kind must be one of {sorted(METHOD_NAMES)}, got {kind!r}.")
    saved_model = _read(export_dir)
    for meta_graph, signatures in _meta_graphs_with(saved_model, export_dir, list(kinds)):
        for key, signature in signatures.items():
            _refuse_impossible(signature, kinds[key])
            meta_graph.signature_def[key].method_name = METHOD_NAMES[kinds[key]]
    _write(export_dir, saved_model)


def name_methods(export_dir: str | os.PathLike[str]) -> None:
    """Gives each signature with the shape of Classify or Regress that method name; the others keep theirs.

    Args:
        export_dir: version directory of a SavedModel.

    Raises:
        SignatureError: the SavedModel cannot be read.
    """
    kinds = {signature.key: default_kind(signature) for signature in read_signatures(read_meta_graph(export_dir))}
    named = {key: kind for key, kind in kinds.items() if kind != "predict"}
    if named:
        rewrite_method_names(export_dir, named)


def share_input(export_dir: str | os.PathLike[str], signature_keys: Sequence[str]) -> None:
    """Makes Classify and Regress signatures feed one tensor, so that one MultiInference request can ask for all of them.

    The signatures keep their names, outputs and results; `tf.saved_model.load` does not look at the placeholders changed.

    Args:
        export_dir: version directory of a SavedModel.
        signature_keys: the signatures; the input of the first one is kept.

    Raises:
        SignatureError: the SavedModel cannot be read, or has no such signature.
        BindingError: a signature serves neither Classify nor Regress, or its input is no placeholder like the first's.
    """
    saved_model = _read(export_dir)
    for meta_graph, signatures in _meta_graphs_with(saved_model, export_dir, signature_keys):
        for signature in signatures.values():
            _refuse_impossible(signature, "multi_inference")
        tensors = [canonical(signatures[key].inputs["inputs"].tensor) for key in signature_keys]
        _check_alike(meta_graph, dict(zip(signature_keys, tensors, strict=True)))
        _redirect(meta_graph, {tensor: tensors[0] for tensor in tensors[1:]})
    _write(export_dir, saved_model)


def share_tensors(export_dir: str | os.PathLike[str], twins: Mapping[str, str]) -> None:
    """Lets signatures name the tensors of their twins, so that one executor, and one warmup record, serves both.

    Only `saved_model.pb`'s SignatureDefs change: `tf.saved_model.load` and `keras.layers.TFSMLayer` call functions and do not
    look at them; a Session, and so a server, gets the same outputs under the same aliases.

    Args:
        export_dir: version directory of a SavedModel.
        twins: signature_key -> key of the signature whose tensors it shall name, as `twins.find_twins` found them.

    Raises:
        SignatureError: the SavedModel cannot be read, or has no such signature.
    """
    saved_model = _read(export_dir)
    for meta_graph, _ in _meta_graphs_with(saved_model, export_dir, sorted({*twins, *twins.values()})):
        for key, kept in twins.items():
            definition, source = meta_graph.signature_def[key], meta_graph.signature_def[kept]
            for mine, theirs in ((definition.inputs, source.inputs), (definition.outputs, source.outputs)):
                for alias in mine:
                    mine[alias].CopyFrom(theirs[alias])
    _write(export_dir, saved_model)


def _refuse_impossible(signature: Signature, kind: Kind) -> None:
    reason = servable_kinds(signature)[kind]
    if reason is not None:
        raise BindingError(f"Signature {signature.key!r} cannot serve {kind} requests: {reason}.")


def _check_alike(meta_graph: Any, tensors: Mapping[str, str]) -> None:
    """Refuses inputs that are no placeholders with the attributes of the first."""
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    first = next(iter(tensors))
    for key, tensor in tensors.items():
        node, kept = nodes.get(source_of(tensor)), nodes.get(source_of(tensors[first]))
        if node is None or kept is None or node.op != "Placeholder" or kept.op != "Placeholder":
            if tensor != tensors[first]:
                raise BindingError(
                    f"Signatures {first!r} and {key!r} cannot share an input: {tensor!r} is no placeholder."
                )
        elif any(node.attr.get(name) != kept.attr.get(name) for name in ("dtype", "shape")):
            raise BindingError(
                f"Signatures {first!r} and {key!r} cannot share an input: their placeholders differ in dtype or shape."
            )


def _redirect(meta_graph: Any, kept: Mapping[str, str]) -> None:
    """Lets the readers of some tensors, nodes and signatures, read others."""
    for node in meta_graph.graph_def.node:
        for index, tensor in enumerate(node.input):
            if not tensor.startswith("^") and canonical(tensor) in kept:
                node.input[index] = kept[canonical(tensor)]
    for definition in meta_graph.signature_def.values():
        for info in definition.inputs.values():
            if info.name and canonical(info.name) in kept:
                info.name = kept[canonical(info.name)]


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
    path = os.path.join(os.fspath(export_dir), "saved_model.pb")
    saved_model = SavedModel()
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            saved_model.ParseFromString(file.read())
    except (tf.errors.NotFoundError, DecodeError) as error:
        raise SignatureError(f"Cannot read a SavedModel from {path!r}.") from error
    return saved_model


def _write(export_dir: str | os.PathLike[str], saved_model: Any) -> None:
    directory = os.fspath(export_dir)
    path = os.path.join(directory, "saved_model.pb")
    temporary = f"{path}.kw-{uuid.uuid4().hex}"
    try:
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(saved_model.SerializeToString(deterministic=True))
        tf.io.gfile.rename(temporary, path, overwrite=True)
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)
    if tf.io.gfile.exists(os.path.join(directory, "fingerprint.pb")):
        write_fingerprint(directory)
