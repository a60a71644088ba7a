"""Verifies a warmup file by replaying its records as a server does when it loads the model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.errors import RecordsError, ReplayError
from keras_warmup.options import MAX_RECORDS
from keras_warmup.records.prediction_logs import log_kind, log_signature_key, log_signature_keys
from keras_warmup.records.warmup_file import RecordProblem, parse_log, scan_records, warmup_path
from keras_warmup.report import Report, printable
from keras_warmup.savedmodel.graph import GraphFacts, ModelGraph, graph_facts
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.savedmodel.unsafe_ops import describe_unsafe_ops
from keras_warmup.serving.replay import ServingSession
from keras_warmup.serving.server_notes import ServerNotes, describe_python_ops

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFUSES = "; TensorFlow Serving refuses to load the model"


@dataclasses.dataclass(frozen=True)
class RecordVerdict(Report):
    """What a server does with one record when it loads the model.

    Attributes:
        index: position in the file, from 0.
        kind: `predict`, `classify`, `regress` or `multi_inference`; for records that a server does
            not run `session_run`, `predict_streamed`, `none` (no log type), `unparsable`, or the
            kind of a `RecordProblem`.
        signature_key: the signature it runs; empty where there is none.
        ok: whether it runs and warms the model.
        message: what happens instead; empty where `ok`.
        replay_ms: wall time of its replay, milliseconds; `None` where it did not run.
        bytes: serialized size; 0 where it cannot be read.
    """

    index: int
    kind: str
    signature_key: str
    ok: bool
    message: str
    replay_ms: float | None
    bytes: int


@dataclasses.dataclass(frozen=True)
class VerifyReport(Report):
    """What `verify` found.

    Attributes:
        export_dir: the SavedModel.
        ok: whether it has a warmup file, and a server replays every record of it with an effect.
        records: a verdict for each record, in file order.
        failures: why it is not ok, one sentence each.
        server_notes: what depends on how the server is built and started, one sentence each.
        real_features: names of the features of the records that hold real values, as the manifest
            tells; `None` where no manifest describes the file.
    """

    export_dir: str
    ok: bool
    records: tuple[RecordVerdict, ...]
    failures: tuple[str, ...]
    server_notes: tuple[str, ...]
    real_features: tuple[str, ...] | None = None

    def __rich__(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = []
        if self.records:
            table = Table(
                title=Text(f"warmup records of {printable(self.export_dir)}"),
                title_justify="left",
                box=box.SIMPLE_HEAD,
                pad_edge=False,
            )
            for name in ("#", "signature", "kind", "bytes", "replay ms", "at load"):
                is_number = name in ("#", "bytes", "replay ms")
                table.add_column(name, justify="right" if is_number else "left")
            for record in self.records:
                ms = "-" if record.replay_ms is None else f"{record.replay_ms:.1f}"
                effect = "runs" if record.ok else "see below"
                # As Text: rich would read the brackets of a shape or a name as markup.
                key = printable(record.signature_key or "-")
                cells = (str(record.index), key, record.kind, str(record.bytes), ms, effect)
                table.add_row(*map(Text, cells))
            parts.append(table)
        parts += [Text(f"failure: {printable(failure)}", style="red") for failure in self.failures]
        parts += [Text(f"note: {printable(note)}") for note in self.server_notes]
        parts.append(Text(f"{printable(self.export_dir)}: {'ok' if self.ok else 'not ok'}"))
        return Group(*parts)


def failures_of(records: list[RecordVerdict]) -> list[str]:
    """Returns the messages of the records that are not ok."""
    return [f"record {record.index}: {record.message}" for record in records if not record.ok]


def verify_here(
    export_dir: str,
    *,
    refuse_unsafe_ops: bool,
    warn: Callable[[str], None],
    on_step: Callable[[str], None] = lambda step: None,
    on_record: Callable[[RecordVerdict], None] = lambda record: None,
) -> VerifyReport:
    """Verifies a warmup file in this process.

    Args:
        export_dir: version directory of a SavedModel.
        refuse_unsafe_ops: whether to raise where the model has unsafe ops, instead of a warning.
        warn: called with a warning before the model runs.
        on_step: called with a description of each step before it begins, such as `loading the
            model`.
        on_record: called with each verdict.

    Returns:
        The report.

    Raises:
        SignatureError: there is no SavedModel, or it is damaged.
        UnsafeOpsError: it has unsafe ops, and `refuse_unsafe_ops` is set.
    """
    on_step("reading the SavedModel")
    meta_graph = read_meta_graph(export_dir)
    signatures = {signature.key: signature for signature in read_signatures(meta_graph)}
    graph = ModelGraph(meta_graph)
    facts = {key: graph_facts(graph, signature) for key, signature in signatures.items()}
    warning = describe_unsafe_ops(
        export_dir, graph, list(signatures.values()), refuse=refuse_unsafe_ops
    )
    if warning:
        warn(warning)
    notes = ServerNotes(signatures, facts)
    failures: list[str] = []
    records: list[RecordVerdict] = []
    with contextlib.ExitStack() as stack:
        session: ServingSession | None = None
        on_step("loading the model")
        try:
            session = stack.enter_context(ServingSession(export_dir, meta_graph))
        except ReplayError as error:
            failures.append(str(error))
        path = warmup_path(export_dir)
        if tf.io.gfile.exists(path):
            try:
                for record in _judge_records(path, session, notes, facts, on_step):
                    records.append(record)
                    on_record(record)
            except RecordsError as error:
                failures.append(str(error))
        else:
            failures.append(
                f"No warmup file at {path!r}: the first requests will be cold. Write one with "
                "keras_warmup.add_warmup."
            )
    failures += failures_of(records)
    for key, fact in facts.items():
        # A record of the signature fails for the same reason.
        if fact.unrestored_variables and key not in notes.requested:
            failures.append(
                f"Signature {key!r} reads variables that the SavedModel's restore op does not "
                "fill, so no Session (and no server) can run it: "
                f"{', '.join(fact.unrestored_variables)}. Repair it with keras-warmup repair, or "
                "write the model with keras_warmup.save, model.export or "
                "keras.export.ExportArchive."
            )
    return VerifyReport(
        export_dir=export_dir,
        ok=not failures,
        records=tuple(records),
        failures=tuple(failures),
        server_notes=tuple(notes.lines()),
    )


def _judge_records(
    path: str,
    session: ServingSession | None,
    notes: ServerNotes,
    facts: Mapping[str, GraphFacts],
    on_step: Callable[[str], None],
) -> Iterator[RecordVerdict]:
    """Yields a verdict for each record, up to damage of the file or the record too many."""
    on_step("reading the warmup file")
    for index, item in scan_records(path):
        if isinstance(item, RecordProblem):
            message = item.detail if item.loads else item.detail + _REFUSES
            yield RecordVerdict(index, item.kind, "", False, message, None, 0)
            return
        log = parse_log(item)
        kind, key = ("unparsable", "") if log is None else (log_kind(log), log_signature_key(log))
        replay_ms = None
        if index >= MAX_RECORDS:
            message = (
                f"TensorFlow Serving accepts {MAX_RECORDS} records: it runs them all, then refuses "
                "to load the model"
            )
        elif log is None:
            message = f"it is not a PredictionLog{_REFUSES}"
        elif kind == "none":
            message = (
                "it has no log type (a serialized tf.Example is read as such a record): the server "
                "silently runs nothing"
            )
        else:
            on_step(f"replaying record {index}")
            replay_ms, message = _replay(session, log, notes, facts)
        yield RecordVerdict(index, kind, key, not message, message, replay_ms, len(item))
        if index >= MAX_RECORDS:
            return


def _replay(
    session: ServingSession | None,
    log: PredictionLog,
    notes: ServerNotes,
    facts: Mapping[str, GraphFacts],
) -> tuple[float | None, str]:
    """Replays a record; returns its time in milliseconds, or `None` and why it does not run."""
    keys = log_signature_keys(log)
    notes.requested.update(keys)
    for key in keys:
        if key in facts and facts[key].python_ops:
            # It may run here: the Python functions exist in the process that built the model.
            return None, describe_python_ops(key, facts[key], _REFUSES)
    if session is None:
        return None, "it was not replayed: the model does not load"
    try:
        replayed = session.replay(log)
    except ReplayError as error:
        return None, str(error)
    notes.add(log, replayed)
    return replayed.ms, ""
