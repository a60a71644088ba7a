"""Repairs SavedModels of Keras 3 models: doubled weights, and variables that no server restores."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, SavedModel, TrackableObjectGraph
from keras_warmup.errors import SignatureError
from keras_warmup.paths import explained, join
from keras_warmup.pipeline.convert import convert_existing, find_source, unchanged
from keras_warmup.publishing.filesystem import copy_tree, exists, remove_tree
from keras_warmup.report import ConversionReport
from keras_warmup.savedmodel.checkpoint import (
    OBJECT_GRAPH_KEY,
    read_object_graph,
    rewrite_checkpoint,
)
from keras_warmup.savedmodel.files import check_load_files, require_file
from keras_warmup.savedmodel.graph import ModelGraph, graph_facts
from keras_warmup.savedmodel.graph_bodies import identity_of
from keras_warmup.savedmodel.signatures import (
    read_meta_graph,
    read_saved_model,
    read_signatures,
)
from keras_warmup.savedmodel.variable_copies import (
    RestoredVariable,
    VariableCopies,
    are_equal_variables,
    find_copies,
    merge_copies,
    merge_objects,
    saved_nodes_of,
)

_MODEL = "saved_model.pb"
_FINGERPRINT = "fingerprint.pb"
_EXTRA = "assets.extra"
_VARIABLES = "variables"
_PREFIX = "variables/variables"


@dataclasses.dataclass(frozen=True)
class _Faults:
    """What to repair in a SavedModel.

    Attributes:
        saved_model: its proto, not changed yet.
        meta_graph: the meta graph of it that servers load.
        copies: the variables that are to be one.
        merged_saved: node of the object graph -> node that takes its place.
        merged_tracked: node of the object graph of the checkpoint -> node that takes its place.
        object_graph: the object graph of the checkpoint; `None` where nothing is doubled.
        notes: what is left as it is.
    """

    saved_model: SavedModel
    meta_graph: MetaGraphDef
    copies: VariableCopies
    merged_saved: Mapping[int, int]
    merged_tracked: Mapping[int, int]
    object_graph: TrackableObjectGraph | None
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.copies.unfilled or self.copies.doubled)


def repair_saved_model(
    export_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    refuse_unsafe_ops: bool = False,
) -> ConversionReport:
    """Repairs what Keras 3 and `tf.saved_model.save` do wrong, without running the model's code.

    Args:
        export_dir: version directory of a SavedModel.
        output: version directory to publish to; may hold `{version}`. `None` replaces
            `export_dir`.
        refuse_unsafe_ops: raise before anything is run where the model has ops that touch files,
            network or processes.

    Returns:
        The report; where there is nothing to repair, nothing was written.

    Raises:
        WarmupError: a subclass of it for each kind of failure. `export_dir` is unchanged.
    """
    found = find_source(export_dir)
    faults = _find_faults(found.path)
    if not faults:
        return unchanged(found.path, faults.notes)

    def change(source: str, directory: str) -> list[str]:
        return _write_repaired(source, directory, faults)

    report = convert_existing(
        found.path, output, change, refuse_unsafe_ops=refuse_unsafe_ops, found=found
    )
    return dataclasses.replace(report, notes=(*faults.notes, *report.notes))


def _find_faults(source: str) -> _Faults:
    """Reads what is to be repaired.

    Raises:
        SignatureError: the SavedModel cannot be read, or a signature reads a variable for which no
            restored copy is found.
    """
    saved_model = _read(source)
    meta_graph = next(
        (one for one in saved_model.meta_graphs if set(one.meta_info_def.tags) == {"serve"}), None
    )
    if meta_graph is None:
        read_meta_graph(source)  # raises the error that lists the tags
    graph = ModelGraph(meta_graph)
    check_load_files(source, meta_graph)
    copies = find_copies(graph)
    lost = {
        identity
        for signature in read_signatures(meta_graph)
        if graph_facts(graph, signature).unrestored_variables
        for identity in graph.reachable(signature).variables - graph.assignments.keys()
    }
    filled = {identity_of(graph.main.nodes[name]) for name in copies.unfilled}
    missing = sorted(name for _, name in lost - filled)
    if missing:
        raise SignatureError(
            f"Cannot repair {source!r}: signatures read {len(missing)} variables that the restore "
            f"op does not fill (the first is {missing[0]!r}), and the graph does not say which "
            "restored variable has their value. Export the model again with keras_warmup.save or "
            "export_with_warmup."
        )
    return _choose_mergeable(source, saved_model, meta_graph, copies)


def _read(source: str) -> SavedModel:
    path = join(source, _MODEL)
    with explained(path, "read"):
        if not exists(path):
            path += "txt"
        if not exists(path):
            read_meta_graph(source)  # raises the error that lists what is there
    return read_saved_model(path)


def _choose_mergeable(
    source: str, saved_model: SavedModel, meta_graph: MetaGraphDef, copies: VariableCopies
) -> _Faults:
    """Leaves out copies whose objects are not equal variables: they may be two on purpose."""
    object_graph = read_object_graph(join(source, _PREFIX)) if copies.doubled else None
    tracked = [] if object_graph is None else object_graph.nodes
    places: Mapping[str, tuple[int, int]] = {}
    keys = {one.checkpoint_key for node in tracked for one in node.attributes}
    # What the restore op does not read as a whole tensor would be lost.
    is_complete = keys == set(copies.dtypes) - {OBJECT_GRAPH_KEY}
    has_savers = any(node.HasField("registered_saver") for node in tracked)
    if object_graph is not None and is_complete and not has_savers:
        places = saved_nodes_of(meta_graph, object_graph)
    doubled: dict[RestoredVariable, str] = {}
    merged_saved: dict[int, int] = {}
    merged_tracked: dict[int, int] = {}
    dropped = {variable.key for variable in copies.doubled}
    for variable, kept in copies.doubled.items():
        if kept in dropped or kept not in places or variable.key not in places:
            continue
        (saved, number), (kept_saved, kept_number) = places[variable.key], places[kept]
        if not are_equal_variables(meta_graph, saved, kept_saved):
            continue
        if len(tracked[number].attributes) != 1 or tracked[number].children:
            continue
        doubled[variable] = kept
        merged_saved[saved] = kept_saved
        merged_tracked[number] = kept_number
    left = {variable.handle for variable in copies.doubled if variable not in doubled}
    originals = {copy: original for copy, original in copies.originals.items() if copy not in left}
    skipped = len(copies.doubled) - len(doubled)
    note = f"Variables restored twice that are not plainly copies of one were left: {skipped}."
    return _Faults(
        saved_model,
        meta_graph,
        VariableCopies(originals, copies.unfilled, doubled, copies.dtypes),
        merged_saved,
        merged_tracked,
        object_graph,
        (note,) if skipped else (),
    )


def _write_repaired(source: str, directory: str, faults: _Faults) -> list[str]:
    """Writes the repaired SavedModel without `assets.extra`; returns what was changed."""
    meta_graph, copies = faults.meta_graph, faults.copies
    merge_copies(meta_graph, copies)
    changes = []
    written = {_MODEL, _MODEL + "txt", _FINGERPRINT, _EXTRA}
    with explained(directory, "write to"):
        if copies.unfilled:
            changes.append(
                f"variables that signatures read and no server restored, now restored: "
                f"{len(copies.unfilled)}"
            )
        if copies.doubled:
            changes.append(f"variables stored twice, now once: {len(copies.doubled)}")
            merge_objects(meta_graph.object_graph_def, faults.merged_saved)
            merge_objects(faults.object_graph, faults.merged_tracked)
            rewrite_checkpoint(
                join(source, _PREFIX),
                join(directory, _PREFIX),
                {key: tf.dtypes.as_dtype(number) for key, number in copies.dtypes.items()},
                {variable.key: kept for variable, kept in copies.doubled.items()},
                faults.object_graph,
            )
            # TensorFlow goes on where it cannot remove it.
            remove_tree(join(directory, f"{_PREFIX}_temp"))
            written.add(_VARIABLES)
        with tf.io.gfile.GFile(join(directory, _MODEL), "wb") as file:
            file.write(faults.saved_model.SerializeToString(deterministic=True))
        faults.saved_model.Clear()  # it may be large, and is read again to be compared
        for entry in tf.io.gfile.listdir(source):
            name = entry.rstrip("/")
            if name in written or name.startswith("."):
                continue
            if tf.io.gfile.isdir(join(source, name)):
                copy_tree(join(source, name), join(directory, name))
            else:
                require_file(join(source, name))
                tf.io.gfile.copy(join(source, name), join(directory, name))
    return changes
