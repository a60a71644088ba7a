"""`inspect`: reads the contents of a SavedModel from its files, without running a graph."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_warmup.data.batch import render_shape
from keras_warmup.options import XLA_FLAGS
from keras_warmup.paths import as_path
from keras_warmup.records.manifest import read_manifest
from keras_warmup.records.prediction_logs import describe_log
from keras_warmup.records.warmup_file import read_records, warmup_path
from keras_warmup.report import (
    RecordList,
    RecordReport,
    Report,
    RequestKind,
    printable,
    to_plain,
)
from keras_warmup.savedmodel.graph import GraphFacts, ModelGraph, graph_facts
from keras_warmup.savedmodel.ops import describe_foreign_ops
from keras_warmup.savedmodel.request_kinds import TFRT_NOTE, servable_kinds
from keras_warmup.savedmodel.signatures import Signature, read_meta_graph, read_signatures
from keras_warmup.savedmodel.string_formats import (
    ExampleParser,
    StringFormat,
    describe_string_format,
)
from keras_warmup.savedmodel.string_inputs import find_string_formats
from keras_warmup.savedmodel.unsafe_ops import UnsafeOp, find_unsafe_ops, render_unsafe_ops

if TYPE_CHECKING:
    from rich.console import RenderableType

# Twice what a server loads; listing a million would take a minute and gigabytes.
MAX_LISTED_RECORDS = 2000


@dataclasses.dataclass(frozen=True)
class InspectedSignature(Report):
    """A signature and facts about its graph.

    Attributes:
        signature: names, dtypes and shapes.
        facts: what the graph does that matters for warmup.
        same_tensors_as: keys of the signatures over the same tensors; one record warms them all.
        kinds: request kind -> `None` where a request of that kind can reach it, else the reason why
            not.
        string_formats: string input -> the format of its bytes that the graph reads.
    """

    signature: Signature
    facts: GraphFacts
    same_tensors_as: tuple[str, ...]
    kinds: Mapping[RequestKind, str | None]
    string_formats: Mapping[str, StringFormat]

    def to_dict(self) -> dict[str, Any]:
        """Returns values that `json.dumps` takes, with the traced structure and tensor names."""
        return {
            **to_plain(self.signature),
            "facts": to_plain(self.facts),
            "same_tensors_as": list(self.same_tensors_as),
            "kinds": dict(self.kinds),
            "string_formats": {
                name: _format_to_dict(one) for name, one in self.string_formats.items()
            },
        }


@dataclasses.dataclass(frozen=True)
class Inspection(Report):
    """The contents of a SavedModel that matter for warmup.

    Attributes:
        export_dir: the SavedModel looked at.
        signatures: the endpoints a server would serve, by key.
        warmup_path: its warmup file; `None` where it has none.
        warmup_bytes: size of that file in bytes, 0 where it has none.
        unsafe_ops: ops that act outside of the model, which a load or a request would run.
    """

    export_dir: str
    signatures: tuple[InspectedSignature, ...]
    warmup_path: str | None
    warmup_bytes: int
    unsafe_ops: tuple[UnsafeOp, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the inspection as values that `json.dumps` takes."""
        return {
            "export_dir": self.export_dir,
            "signatures": [one.to_dict() for one in self.signatures],
            "warmup_path": self.warmup_path,
            "warmup_bytes": self.warmup_bytes,
            "unsafe_ops": to_plain(self.unsafe_ops),
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text
        from rich.tree import Tree

        # Text, not str: rich takes a str for markup, and names may hold brackets.
        tree = Tree(Text(printable(self.export_dir)))
        for one in self.signatures:
            branch = tree.add(Text(printable(one.signature.key), style="bold"))
            for line in _lines_of(one):
                branch.add(Text(printable(line)))
        warm = (
            f"warmup file: {self.warmup_bytes} bytes"
            if self.warmup_path
            else "no warmup file: the first requests will be slow"
        )
        able = any(
            one.kinds["classify"] is None or one.kinds["regress"] is None for one in self.signatures
        )
        lines = [warm, *([f"note: {TFRT_NOTE}"] if able else [])]
        if self.unsafe_ops:
            lines.append(f"unsafe: {render_unsafe_ops(self.unsafe_ops)}")
        return Group(tree, *(Text(printable(line)) for line in lines))


def _lines_of(one: InspectedSignature) -> list[str]:
    signature = one.signature
    lines = []
    for name, spec in sorted(signature.inputs.items()):
        reads = (
            f", reads {describe_string_format(one.string_formats[name])}"
            if name in one.string_formats
            else ""
        )
        default = ", has a default" if name in signature.defaults else ""
        lines.append(f"input {name}: {spec.dtype} {render_shape(spec.shape)}{reads}{default}")
    lines += [
        f"output {name}: {spec.dtype} {render_shape(spec.shape)}"
        for name, spec in sorted(signature.outputs.items())
    ]
    lines.append(
        "serves "
        f"{', '.join(kind for kind, why_not in one.kinds.items() if why_not is None) or 'nothing'}"
    )
    lines += [f"no {kind}: {why_not}" for kind, why_not in one.kinds.items() if why_not]
    return lines + [f"note: {note}" for note in _notes(one)]


def _notes(one: InspectedSignature) -> list[str]:
    facts = one.facts
    notes = []
    if one.same_tensors_as:
        notes.append(f"same tensors as {', '.join(one.same_tensors_as)}: one record warms them all")
    if facts.compiles:
        notes.append(f"compiles with XLA: the server needs {XLA_FLAGS}")
    if facts.convolves:
        free = any(
            spec.shape is None or None in spec.shape[1:] for spec in one.signature.inputs.values()
        )
        sizes = "batch and image sizes" if free else "batch sizes"
        notes.append(
            f"convolves: the first request of a size is slower; records of the {sizes} that "
            "clients send warm those"
        )
    if facts.writes_state:
        notes.append("writes state: warmup requests change it")
    notes += [f"needs {clause}" for clause in describe_foreign_ops(facts.foreign_ops)]
    if facts.unrestored_variables:
        notes.append(
            f"cannot run in a Session: {len(facts.unrestored_variables)} variables are never "
            "restored; repair it with keras-warmup repair"
        )
    return notes


def _format_to_dict(string_format: StringFormat) -> dict[str, Any]:
    plain: dict[str, Any] = {"reads": describe_string_format(string_format)}
    if isinstance(string_format, ExampleParser):
        # A default is a value of the model, not of a row, but it is bytes as often as not.
        plain["features"] = {
            key: {
                "kind": one.kind,
                "dtype": one.dtype,
                "shape": to_plain(one.shape),
                "required": one.required,
            }
            for key, one in sorted(string_format.spec.items())
        }
    return plain


def inspect(export_dir: str | os.PathLike[str]) -> Inspection:
    """Reads the signatures of a SavedModel and facts about their graphs, without running them.

    Args:
        export_dir: a SavedModel directory (a version directory), local or remote.

    Returns:
        An `Inspection`.

    Raises:
        SignatureError: there is no SavedModel, it cannot be read, or it holds no `serve` graph.
    """
    where = as_path(export_dir)
    meta_graph = read_meta_graph(where)
    signatures = read_signatures(meta_graph)
    graph = ModelGraph(meta_graph)
    keys_by_tensors: dict[Hashable, list[str]] = {}
    for signature in signatures:
        keys_by_tensors.setdefault(signature.tensors, []).append(signature.key)
    found = tuple(
        InspectedSignature(
            signature,
            graph_facts(graph, signature),
            tuple(key for key in keys_by_tensors[signature.tensors] if key != signature.key),
            servable_kinds(signature),
            find_string_formats(graph, signature),
        )
        for signature in signatures
    )
    path = warmup_path(where)
    has_file = tf.io.gfile.exists(path)
    size = tf.io.gfile.stat(path).length if has_file else 0
    return Inspection(
        where, found, path if has_file else None, size, find_unsafe_ops(graph, signatures)
    )


def list_records(path: str | os.PathLike[str]) -> RecordList:
    """Lists the records of a warmup file, without their values.

    Args:
        path: a SavedModel directory, or a warmup file.

    Returns:
        A `RecordList` of the first `MAX_LISTED_RECORDS` at most.

    Raises:
        RecordsError: there is no warmup file, or it is malformed.
    """
    where = as_path(path)
    logs = read_records(where)
    is_model = tf.io.gfile.isdir(where)
    manifest = read_manifest(where) if is_model else None
    # Of a file that the manifest does not describe, nothing is known.
    entries = manifest.records if manifest is not None and not manifest.problems else ()
    told = itertools.chain(entries, itertools.repeat({}))
    records = tuple(
        RecordReport(
            **describe_log(log),
            source=entry.get("source", ""),
            bytes=log.ByteSize(),
            real_features=tuple(entry.get("real_features", ())),
        )
        for log, entry in zip(itertools.islice(logs, MAX_LISTED_RECORDS), told, strict=False)
    )
    truncated = next(logs, None) is not None
    return RecordList(
        warmup_path(where) if is_model else where,
        records,
        truncated,
        privacy=manifest.privacy.mode if entries and manifest is not None else "",
    )
