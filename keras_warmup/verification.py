"""`verify`: what a server would do with an export's warmup file, record by record, and what depends on the server."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.data.batch import render_shape
from keras_warmup.errors import OptionsError, RecordsError, ReplayError
from keras_warmup.options import MAX_RECORDS, XLA_FLAGS
from keras_warmup.paths import as_path
from keras_warmup.records.prediction_logs import log_kind, log_signature_key, log_signature_keys
from keras_warmup.records.warmup_file import RecordProblem, parse_log, scan_records, warmup_path
from keras_warmup.report import printable, to_plain
from keras_warmup.savedmodel.graph import GraphFacts, ModelGraph, graph_facts
from keras_warmup.savedmodel.signatures import Signature, read_meta_graph, read_signatures
from keras_warmup.savedmodel.unsafe_ops import describe_unsafe_ops
from keras_warmup.serving.replay import Replayed, ServingSession
from keras_warmup.serving.rules import CLASSIFY_METHOD, PREDICT_METHOD, REGRESS_METHOD
from keras_warmup.serving.worker import (
    DEFAULT_TIMEOUT_S,
    Message,
    WorkerEndedError,
    loaded_op_libraries,
    run_in_worker,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

_PYTHON_CURE = "Replace tf.py_function/tf.numpy_function by TensorFlow ops: a server has no Python."
# A week; `queue.get` takes no more than a few centuries.
_MAX_TIMEOUT_S = 7 * 24 * 3600


@dataclasses.dataclass(frozen=True)
class RecordVerdict:
    """What happens with one record when a server loads the model.

    Attributes:
        index: its place in the file, from 0.
        kind: `predict`, `classify`, `regress`, `multi_inference`; else what it is instead: `session_run`,
            `predict_streamed`, `none` (no log type), `unparsable`, or a `RecordProblem`'s kind.
        signature_key: the signature it runs; empty where there is none.
        ok: whether it runs and warms the model.
        message: what happens; empty where it just runs.
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

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON-ready values."""
        plain: dict[str, Any] = to_plain(self)
        return plain


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        export_dir: the SavedModel.
        ok: whether it has a warmup file that a server replays to its end, each record with an effect.
        records: a verdict for each record, in file order.
        failures: why it is not ok, one sentence each.
        server_notes: what depends on how the server is built and started, one sentence each.
    """

    export_dir: str
    ok: bool
    records: tuple[RecordVerdict, ...]
    failures: tuple[str, ...]
    server_notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        plain: dict[str, Any] = to_plain(self)
        return plain

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
                table.add_column(
                    name, justify="right" if name in ("#", "bytes", "replay ms") else "left"
                )
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


def verify(
    export_dir: str | os.PathLike[str],
    *,
    isolated: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    memory_limit_bytes: int | None = None,
    refuse_unsafe_ops: bool = False,
) -> VerifyReport:
    """Says what TensorFlow Serving would do with the warmup file of a SavedModel, without a server.

    Every record is replayed in a Session as the server does (see `replay.py`), also those behind one that fails. A
    model without a warmup file is not ok.

    Loading a SavedModel and replaying records runs the model's ops with your rights. A malformed model may also crash
    TensorFlow, and with it the process: with `isolated=True` it is run in a worker process, and a crash, a hang or a
    lack of memory is a failure in the report. The worker is no sandbox.

    Args:
        export_dir: version directory of a SavedModel.
        isolated: run the model in a worker process. It is kept for the next call, since it takes seconds to start.
        timeout_s: with `isolated`, longest time for loading the model and for each record, seconds. Defaults to 300.
        memory_limit_bytes: with `isolated`, what the model may allocate beside what TensorFlow's import took, bytes
            (Linux only). Defaults to `None`: no limit.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything is run where the model has ops that touch files,
            network or processes. Defaults to `False`: warn.

    Returns:
        A verdict for each record, the failures, and what depends on the server.

    Raises:
        OptionsError: an option is out of range.
        SignatureError: there is no SavedModel to verify, or it is damaged.
        UnsafeOpsError: it has unsafe ops, and `refuse_unsafe_ops` is set.
    """
    _check_limits(isolated, timeout_s, memory_limit_bytes)
    path = as_path(export_dir)
    if isolated:
        return _verify_in_worker(path, timeout_s, memory_limit_bytes, refuse_unsafe_ops)
    return verify_here(path, refuse_unsafe_ops=refuse_unsafe_ops, progress=_Here())


class Progress(Protocol):
    """Is told how far `verify_here` is."""

    def step(self, doing: str) -> None:
        """Is told what is done next, such as `loading the model`."""

    def judged(self, record: RecordVerdict) -> None:
        """Is given each verdict."""

    def warn(self, text: str) -> None:
        """Warns, before the model is run."""


class _Here:
    """Progress of a verification in this process."""

    def step(self, doing: str) -> None:
        pass

    def judged(self, record: RecordVerdict) -> None:
        pass

    def warn(self, text: str) -> None:
        warnings.warn(text, stacklevel=4)  # the line that calls `verify`


def verify_here(export_dir: str, *, refuse_unsafe_ops: bool, progress: Progress) -> VerifyReport:
    """Verifies in this process, as `verify` says.

    Args:
        export_dir: version directory of a SavedModel.
        refuse_unsafe_ops: as `verify` takes it.
        progress: is told of each step before it is done.
    """
    progress.step("reading the SavedModel")
    meta_graph = read_meta_graph(export_dir)
    signatures = {signature.key: signature for signature in read_signatures(meta_graph)}
    graph = ModelGraph(meta_graph)
    facts = {key: graph_facts(graph, signature) for key, signature in signatures.items()}
    warning = describe_unsafe_ops(
        export_dir, graph, list(signatures.values()), refuse=refuse_unsafe_ops
    )
    if warning:
        progress.warn(warning)
    notes = _ServerNotes(signatures)
    failures: list[str] = []
    records: list[RecordVerdict] = []
    with contextlib.ExitStack() as stack:
        session: ServingSession | None = None
        progress.step("loading the model")
        try:
            session = stack.enter_context(ServingSession(export_dir, meta_graph))
        except ReplayError as error:
            failures.append(str(error))
        path = warmup_path(export_dir)
        if tf.io.gfile.exists(path):
            try:
                for record in _judge(path, session, notes, facts, progress):
                    records.append(record)
                    progress.judged(record)
            except RecordsError as error:
                failures.append(str(error))
        else:
            failures.append(
                f"No warmup file at {path!r}: the first requests will be cold. Write one with keras_warmup.add_warmup."
            )
    failures += _failures_of(records)
    for key, fact in facts.items():
        if fact.unrestored_variables and key not in notes.asked:
            failures.append(
                f"Signature {key!r} reads variables that the SavedModel's restore op does not fill, so no Session (and "
                f"no server) can run it: {', '.join(fact.unrestored_variables)}. Write the model with "
                "keras_warmup.save, model.export or keras.export.ExportArchive."
            )
    return VerifyReport(
        export_dir=export_dir,
        ok=not failures,
        records=tuple(records),
        failures=tuple(failures),
        server_notes=tuple(notes.lines(facts)),
    )


def _verify_in_worker(
    export_dir: str, timeout_s: float, memory_limit_bytes: int | None, refuse_unsafe_ops: bool
) -> VerifyReport:
    doing = "loading op libraries"
    records: list[RecordVerdict] = []

    def take(message: Message) -> None:
        nonlocal doing
        if "step" in message:
            doing = message["step"]
        elif "record" in message:
            records.append(RecordVerdict(**message["record"]))
        else:
            warnings.warn(message["warning"], stacklevel=6)  # the line that calls `verify`

    job = {
        "export_dir": export_dir,
        "directory": _working_directory(),
        "refuse_unsafe_ops": refuse_unsafe_ops,
        "op_libraries": loaded_op_libraries(),
        "memory_limit_bytes": memory_limit_bytes,
    }
    try:
        report = run_in_worker(job, timeout_s=timeout_s, on_message=take)["report"]
    except WorkerEndedError as ended:
        failures = (
            *_failures_of(records),
            f"The process that ran the model {ended.how} while {doing}. {ended.so}",
        )
        return VerifyReport(
            export_dir, ok=False, records=tuple(records), failures=failures, server_notes=()
        )
    return VerifyReport(
        export_dir=report["export_dir"],
        ok=report["ok"],
        records=tuple(RecordVerdict(**record) for record in report["records"]),
        failures=tuple(report["failures"]),
        server_notes=tuple(report["server_notes"]),
    )


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # removed since
        return None


def _check_limits(isolated: bool, timeout_s: float, memory_limit_bytes: int | None) -> None:
    if (
        isinstance(timeout_s, bool)
        or not isinstance(timeout_s, (int, float))
        or not 0 < timeout_s <= _MAX_TIMEOUT_S
    ):
        raise OptionsError(
            f"timeout_s must be a number > 0 and <= {_MAX_TIMEOUT_S}, got {timeout_s!r}."
        )
    if memory_limit_bytes is None:
        return
    if (
        isinstance(memory_limit_bytes, bool)
        or not isinstance(memory_limit_bytes, int)
        or memory_limit_bytes < 1
    ):
        raise OptionsError(
            f"memory_limit_bytes must be an integer >= 1 or None, got {memory_limit_bytes!r}."
        )
    if not isolated:
        raise OptionsError(
            "memory_limit_bytes limits the worker process: pass isolated=True with it."
        )
    if not os.path.exists("/proc/self/status"):
        raise OptionsError("memory_limit_bytes needs Linux: leave it out on this system.")


def _failures_of(records: list[RecordVerdict]) -> list[str]:
    return [f"record {record.index}: {record.message}" for record in records if not record.ok]


def _judge(
    path: str,
    session: ServingSession | None,
    notes: _ServerNotes,
    facts: Mapping[str, GraphFacts],
    progress: Progress,
) -> Iterator[RecordVerdict]:
    progress.step("reading the warmup file")
    for index, item in scan_records(path):
        if isinstance(item, RecordProblem):
            effect = "" if item.loads else "; TensorFlow Serving refuses to load the model"
            yield RecordVerdict(index, item.kind, "", False, item.detail + effect, None, 0)
            return
        log = parse_log(item)
        kind, key = ("unparsable", "") if log is None else (log_kind(log), log_signature_key(log))
        replay_ms = None
        if index >= MAX_RECORDS:
            message = f"TensorFlow Serving takes {MAX_RECORDS} records: it runs them all, then refuses to load the model"
        elif log is None:
            message = "it is not a PredictionLog; TensorFlow Serving refuses to load the model"
        elif kind == "none":
            message = "it has no log type (a tf.Example looks like that): the server runs nothing, without a word"
        else:
            progress.step(f"replaying record {index}")
            replay_ms, message = _replay(session, log, notes, facts)
        yield RecordVerdict(index, kind, key, not message, message, replay_ms, len(item))
        if index >= MAX_RECORDS:
            return


def _replay(
    session: ServingSession | None,
    log: PredictionLog,
    notes: _ServerNotes,
    facts: Mapping[str, GraphFacts],
) -> tuple[float | None, str]:
    keys = log_signature_keys(log)
    notes.asked.update(keys)
    for key in keys:
        if key in facts and facts[key].python_ops:
            # It might well run here: in the process that made the model its Python functions exist.
            return (
                None,
                f"{_python_of(key, facts[key])}; TensorFlow Serving refuses to load the model. {_PYTHON_CURE}",
            )
    if session is None:
        return None, "it was not replayed: the model does not load"
    try:
        replayed = session.replay(log)
    except ReplayError as error:
        return None, str(error)
    notes.see(log, replayed)
    return replayed.ms, ""


def _python_of(key: str, facts: GraphFacts) -> str:
    return f"Signature {key!r} calls Python functions ({', '.join(facts.python_ops)})"


class _ServerNotes:
    """Gathers, over the records that run, what a server started otherwise would refuse.

    Attributes:
        asked: keys of the signatures that records name.
    """

    def __init__(self, signatures: Mapping[str, Signature]) -> None:
        self.asked: set[str] = set()
        self._signatures = signatures
        self._unbatchable: dict[str, dict[str, None]] = {}
        self._method_names: dict[str, dict[str, None]] = {}
        for key, signature in signatures.items():
            for name, spec in signature.inputs.items():
                if spec.shape == ():
                    self._unbatch(key, f"input {name!r} is a scalar")

    def _unbatch(self, key: str, reason: str) -> None:
        self._unbatchable.setdefault(key, {})[reason] = None

    def see(self, log: PredictionLog, replayed: Replayed) -> None:
        """Takes in one record that ran."""
        kind, key = log_kind(log), log_signature_key(log)
        if kind == "predict":
            self._see_predict(key, log, replayed)
        elif kind == "classify":
            self._expect(key, "Classify", (CLASSIFY_METHOD,))
        elif kind == "regress":
            self._expect(key, "Regress", (REGRESS_METHOD,))
        elif kind == "multi_inference":
            tasks = log.multi_inference_log.request.tasks
            for task_key, task in zip(log_signature_keys(log), tasks, strict=True):
                self._expect(task_key, "MultiInference", (task.method_name,))

    def _see_predict(self, key: str, log: PredictionLog, replayed: Replayed) -> None:
        self._expect(key, "Predict", (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD))
        inputs = log.predict_log.request.inputs
        shapes = {
            name: [dim.size for dim in inputs[name].tensor_shape.dim] for name in sorted(inputs)
        }
        for name, shape in shapes.items():
            if not shape:
                self._unbatch(key, f"input {name!r} is a scalar")
        sizes = {shape[0] for shape in shapes.values() if shape}
        if len(sizes) > 1:
            listed = ", ".join(f"{name} {render_shape(shape)}" for name, shape in shapes.items())
            self._unbatch(key, f"its inputs differ in dimension 0 ({listed})")
        elif sizes:
            (size,) = sizes
            for alias, array in replayed.outputs.items():
                if array.ndim == 0 or len(array) != size:
                    got = render_shape(array.shape)
                    self._unbatch(
                        key,
                        f"output {alias!r} is {got} for a batch of {size}, so it is not batch-major",
                    )

    def _expect(self, key: str, request: str, expected: tuple[str, ...]) -> None:
        method_name = self._signatures[key].method_name
        if method_name not in expected:
            wanted = " or ".join(map(repr, expected))
            text = f"its method_name is {method_name!r}, {request} wants {wanted}"
            self._method_names.setdefault(key, {})[text] = None

    def lines(self, facts: Mapping[str, GraphFacts]) -> Iterator[str]:
        """The notes, grouped by what they depend on; `facts` holds the graph's facts of each signature."""
        for key, fact in facts.items():
            if fact.compiles:
                yield (
                    f"Signature {key!r} must be compiled by XLA: a server needs {XLA_FLAGS} to run it"
                    + (
                        "; without the flag its records keep the model from loading."
                        if key in self.asked
                        else "."
                    )
                )
        foreign = sorted({op for fact in facts.values() for op in fact.foreign_ops})
        if foreign:
            yield f"Ops outside core TensorFlow, which the server must be built with: {', '.join(foreign)}."
        for key, fact in facts.items():
            if fact.python_ops and key not in self.asked:
                yield f"{_python_of(key, fact)}: requests for it fail. {_PYTHON_CURE}"
        for key, reasons in self._unbatchable.items():
            yield f"Signature {key!r} does not work with --enable_batching: {'; '.join(reasons)}."
        for key, fact in facts.items():
            if fact.writes_state and key in self.asked:
                yield f"Signature {key!r} writes state: it has counted the warmup requests when the first client comes."
        for key, reasons in self._method_names.items():
            yield (
                f"With --enable_signature_method_name_check the records of signature {key!r} keep the model from "
                f"loading: {'; '.join(reasons)}. "
                "tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater changes it."
            )
