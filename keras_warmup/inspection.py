"""`inspect`: what an export holds, read from its files; no graph is run."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_warmup.batch import render_shape
from keras_warmup.graph import GraphFacts, graph_facts
from keras_warmup.records import read_records, warmup_path
from keras_warmup.report import RecordList, RecordReport, to_plain
from keras_warmup.requests import describe_log
from keras_warmup.signatures import Signature, read_meta_graph, read_signatures

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclasses.dataclass(frozen=True)
class InspectedSignature:
    """One signature and what its graph does.

    Attributes:
        signature: names, dtypes and shapes.
        facts: what the graph does that matters for warmup.
        same_tensors_as: keys of the signatures over the same tensors; one record warms them all.
    """

    signature: Signature
    facts: GraphFacts
    same_tensors_as: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; the traced structure and tensor names included."""
        return {
            **to_plain(self.signature),
            "facts": to_plain(self.facts),
            "same_tensors_as": list(self.same_tensors_as),
        }


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        export_dir: the SavedModel looked at.
        signatures: the endpoints a server would serve, by key.
        warmup_path: its warmup file; `None` where it has none.
        warmup_bytes: size of that file in bytes, 0 where it has none.
    """

    export_dir: str
    signatures: tuple[InspectedSignature, ...]
    warmup_path: str | None
    warmup_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON-ready values."""
        return {
            "export_dir": self.export_dir,
            "signatures": [one.to_dict() for one in self.signatures],
            "warmup_path": self.warmup_path,
            "warmup_bytes": self.warmup_bytes,
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(
            "signature", "inputs", "outputs", "method name", "notes", title=self.export_dir, title_justify="left"
        )
        for one in self.signatures:
            signature = one.signature
            table.add_row(
                signature.key,
                "\n".join(
                    f"{name}: {spec.dtype} {render_shape(spec.shape)}"
                    for name, spec in sorted(signature.inputs.items())
                ),
                "\n".join(
                    f"{name}: {spec.dtype} {render_shape(spec.shape)}"
                    for name, spec in sorted(signature.outputs.items())
                ),
                signature.method_name.removeprefix("tensorflow/serving/"),
                "\n".join(_notes(one)),
            )
        warm = (
            f"warmup file: {self.warmup_bytes} bytes"
            if self.warmup_path
            else "no warmup file: the first requests will be slow"
        )
        return Group(table, Text(warm))


def _notes(one: InspectedSignature) -> list[str]:
    facts = one.facts
    notes = []
    if one.same_tensors_as:
        notes.append(f"same tensors as {', '.join(one.same_tensors_as)}")
    if facts.compiles:
        notes.append("compiles with XLA")
    if facts.convolves:
        notes.append("convolves")
    if facts.writes_state:
        notes.append("writes state: warmup requests change it")
    if facts.foreign_ops:
        notes.append(f"ops outside core TensorFlow: {', '.join(facts.foreign_ops)}")
    if facts.unrestored_variables:
        notes.append(f"cannot run in a Session: {len(facts.unrestored_variables)} variables are never restored")
    return notes


def inspect(export_dir: str | os.PathLike[str]) -> Inspection:
    """Reads the signatures of a SavedModel and what their graphs do, without running or loading a graph.

    Args:
        export_dir: a SavedModel directory (a version directory), local or remote.

    Returns:
        An `Inspection`.

    Raises:
        SignatureError: there is no SavedModel, it cannot be read, or it holds no `serve` graph.
    """
    where = os.fspath(export_dir)
    meta_graph = read_meta_graph(where)
    signatures = read_signatures(meta_graph)
    found = tuple(
        InspectedSignature(
            signature,
            graph_facts(meta_graph, signature),
            tuple(
                other.key for other in signatures if other.key != signature.key and other.tensors == signature.tensors
            ),
        )
        for signature in signatures
    )
    path = warmup_path(where)
    has_file = tf.io.gfile.exists(path)
    return Inspection(where, found, path if has_file else None, tf.io.gfile.stat(path).length if has_file else 0)


def list_records(path: str | os.PathLike[str]) -> RecordList:
    """Lists the records of a warmup file, without their values.

    Args:
        path: a SavedModel directory, or a warmup file.

    Returns:
        A `RecordList`.

    Raises:
        RecordsError: there is no warmup file, or it is malformed.
    """
    where = os.fspath(path)
    records = tuple(RecordReport(**describe_log(log), source="", bytes=log.ByteSize()) for log in read_records(where))
    return RecordList(warmup_path(where) if tf.io.gfile.isdir(where) else where, records)
