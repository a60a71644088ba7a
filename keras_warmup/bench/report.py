"""Reports cold and warm first requests, and claims a gain only beyond the noise of the run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from keras_warmup.bench.probes import Probe, ProbedRequest
from keras_warmup.bench.processes import MIN_VALUES, Loader, Timings
from keras_warmup.report import Report, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Range = tuple[float, float]
EngineKind = Literal["process", "model_server", "docker", "server"]
# Cells of a table that say nothing if the whole column holds them.
_DEFAULT_CELLS = ("-", "all", "predict")
# Columns of a table that hold text; the others hold numbers.
_TEXT_COLUMNS = ("record", "signature", "kind", "outputs", "why", "export", "file")
# Columns that may fold, so that a table stays readable in 80 columns.
_FOLDED_COLUMNS = ("outputs", "why")


@dataclasses.dataclass(frozen=True)
class BenchmarkEntry(ProbedRequest):
    """Figures of one signature, kind, output set, batch size and row shape (`ProbedRequest`).

    Attributes:
        cold_ms: median of the first request without the warmup file, milliseconds; `None` for a
            running server.
        cold_range_ms: least and greatest of them.
        warm_ms: median of the first request with the warmup file, or to a running server; `None`
            where there is neither.
        warm_range_ms: least and greatest of them.
        steady_p50_ms: median of all later requests.
        steady_p99_ms: 99th percentile of them.
        ratio: `cold_ms / warm_ms`.
        faster: whether the warm first request is faster by more than the spread of the figures;
            `None` where this cannot be decided: no warmup file, or fewer than three processes.
    """

    cold_ms: float | None
    cold_range_ms: Range | None
    warm_ms: float | None
    warm_range_ms: Range | None
    steady_p50_ms: float
    steady_p99_ms: float
    ratio: float | None
    faster: bool | None

    @classmethod
    def of(
        cls, probe: Probe, cold: Timings | None, warm: Timings | None, steady: Timings
    ) -> BenchmarkEntry:
        """Summarizes the timings of one probe."""
        ratio, faster = None, None
        if cold is not None and warm is not None:
            ratio = cold.median / warm.median
            if min(len(cold.values), len(warm.values)) >= MIN_VALUES:
                faster = cold.exceeds(warm)
        return cls(
            signature_key=probe.signature_key,
            kind=probe.kind,
            output_filter=probe.output_filter,
            batch_size=probe.batch_size,
            shapes=probe.shapes,
            in_file=probe.in_file,
            rows=probe.rows,
            cold_ms=cold.median if cold else None,
            cold_range_ms=cold.range if cold else None,
            warm_ms=warm.median if warm else None,
            warm_range_ms=warm.range if warm else None,
            steady_p50_ms=steady.median,
            steady_p99_ms=float(np.percentile(steady.values, 99)),
            ratio=ratio,
            faster=faster,
        )


@dataclasses.dataclass(frozen=True)
class ReadyEntry:
    """The time until an export is ready to serve, and what it takes up.

    Attributes:
        export_dir: the SavedModel.
        warmed: whether a warmup file was replayed.
        disk_bytes: size of the files of the export.
        load_ms: median time to load the model without the replay, milliseconds; `None` for a server
            that replays a file, which does not report it.
        warmup_ms: median time of the replay; `None` without one, and for a server.
        ready_ms: median time until the model is ready: load and replay; for a server from its start
            until the model is available.
        ready_range_ms: least and greatest of them.
        memory_bytes: median growth of the process, at its peak, until the model is ready; `None`
            for a server, and where it is not known.
        peak_bytes: median of all memory of the process at that peak; Python and TensorFlow take a
            few hundred MiB of it.
        steady_p50_ms: median of the requests after the first one, of the first kind of request that
            was measured.
    """

    export_dir: str
    warmed: bool
    disk_bytes: int
    load_ms: float | None
    warmup_ms: float | None
    ready_ms: float
    ready_range_ms: Range
    memory_bytes: float | None
    peak_bytes: float | None
    steady_p50_ms: float


@dataclasses.dataclass(frozen=True)
class BenchmarkReport(Report):
    """First requests to a SavedModel, and the time until it is ready, without and with its file.

    Attributes:
        export_dir: the SavedModel.
        entries: figures of each kind of request.
        load_ms: median time to load the model, without replaying the warmup file, milliseconds; for
            a server from its start until the model is available; `None` for a running server.
        load_range_ms: least and greatest of them.
        load_added_ms: median time that replaying the warmup file adds to the load; `None` where
            there is no file, and for a running server.
        load_added_range_ms: least and greatest of them.
        records: number of records in the warmup file.
        bytes: size of the warmup file.
        processes: fresh processes for each figure.
        requests: requests sent to each process after the first one.
        seed: seed of the choice of rows.
        engine: what answered the requests: a Session in a Python `process`, a `model_server` or
            `docker` image that was started, or a `server` that was running.
        noise: how much equal figures differed, a sentence.
        notes: limits of the measurement, one sentence each.
        ready: the time to ready without and with the warmup file, then that of the export of
            `against=`; empty for a running server.
        loader: what loaded the model in a process: a Session of `c++`, as in a server, or one of
            `python`; `None` for a server.
    """

    export_dir: str
    entries: tuple[BenchmarkEntry, ...]
    load_ms: float | None
    load_range_ms: Range | None
    load_added_ms: float | None
    load_added_range_ms: Range | None
    records: int
    bytes: int
    processes: int
    requests: int
    seed: int
    engine: EngineKind
    noise: str
    notes: tuple[str, ...]
    ready: tuple[ReadyEntry, ...] = ()
    loader: Loader | None = None

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        rows = [
            {
                "signature": entry.signature_key,
                "kind": entry.kind,
                "outputs": ", ".join(entry.output_filter) or "all",
                "batch": str(entry.batch_size or "-"),
                "cold, ms": render_ms(entry.cold_ms),
                "first, ms" if self.engine == "server" else "warm, ms": render_ms(entry.warm_ms),
                "faster": render_gain(entry),
                "steady, ms": render_ms(entry.steady_p50_ms),
            }
            for entry in self.entries
        ]
        tables = [render_table(self.title, rows)]
        if self.ready:
            tables.append(
                render_table("Time to ready", [self._ready_row(one) for one in self.ready])
            )
        lines = [Text(printable(line)) for line in self.sentences()]
        return Group(*tables, *lines)

    def _ready_row(self, entry: ReadyEntry) -> dict[str, str]:
        other = self._other_dir()
        return {
            "export": "-" if not other else "other" if entry.export_dir == other else "this",
            "file": "yes" if entry.warmed else "none",
            "disk, MiB": render_mib(entry.disk_bytes),
            "load, ms": render_ms(entry.load_ms),
            "warmup, ms": render_ms(entry.warmup_ms),
            "ready, ms": render_ms(entry.ready_ms),
            "memory, MiB": render_mib(entry.memory_bytes),
            "steady, ms": render_ms(entry.steady_p50_ms),
        }

    @property
    def title(self) -> str:
        """Title of the table and of the plot."""
        if self.engine == "server":
            return f"First request to the running server, {self.export_dir}"
        return f"First request after loading {self.export_dir}"

    def sentences(self) -> list[str]:
        """Explains the table: the medians, the cost of loading the file, the noise, the notes."""
        each = (
            render_count(self.processes, "fresh process", "fresh processes")
            if self.engine == "process"
            else render_count(self.processes, "newly started server", "newly started servers")
        )
        if self.engine == "server":
            lines = [f"steady: the median of the {self.requests} requests after the first one."]
        elif self.records:
            records = render_count(self.records, "record", "records")
            lines = [
                "cold: without the warmup file. warm: after the file was replayed. Medians of "
                f"{each} each, taking turns. steady: the median of the {self.requests} requests "
                "that follow in each.",
                f"The file ({records}, {self.bytes} bytes) adds {render_ms(self.load_added_ms)} ms "
                f"to a load of {render_ms(self.load_ms)} ms.",
            ]
        else:
            lines = [f"cold: medians of {each}. A load takes {render_ms(self.load_ms)} ms."]
        return [line for line in [*lines, *self._loading(), self.noise, *self.notes] if line]

    def _other_dir(self) -> str:
        """Returns the export of `against=`; empty where there is none."""
        return next((one.export_dir for one in self.ready if one.export_dir != self.export_dir), "")

    def _loading(self) -> list[str]:
        """Explains the time to ready, and says what loaded the model."""
        if not self.ready:
            return []
        other = [f"other: {self._other_dir()}"] if self._other_dir() else []
        if self.loader is None:
            return ["ready: from the start of the server until the model is available.", *other]
        loader = (
            "The model is loaded in C++, as in a server."
            if self.loader == "c++"
            else "The model is loaded by Python, which takes another time than a server: the "
            "installed TensorFlow does not export its C API."
        )
        return [
            "ready: load and warmup. memory: growth of the process until then, at its peak. "
            f"{loader}",
            *other,
        ]


def render_table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """Renders a table without the columns that say nothing: where every cell has its default.

    Args:
        title: line above the table; may be empty.
        rows: header -> cell; every row has the same headers.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, not str: rich reads the brackets of a name in a str as markup.
    heading = Text(printable(title)) if title else None
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD)
    headers = [name for name in rows[0] if any(row[name] not in _DEFAULT_CELLS for row in rows)]
    for header in headers:
        justify: Literal["left", "right"] = "left" if header in _TEXT_COLUMNS else "right"
        table.add_column(header, justify=justify, no_wrap=header not in _FOLDED_COLUMNS)
    for row in rows:
        table.add_row(*(Text(printable(row[header])) for header in headers))
    return table


def render_count(count: int, one: str, many: str) -> str:
    """Renders a count with its noun in the right number, such as `1 record` or `2 records`."""
    return f"{count} {one if count == 1 else many}"


def render_ms(value: float | None) -> str:
    """Renders milliseconds with three significant digits; `-` for `None`."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def render_mib(value: float | None) -> str:
    """Renders bytes as MiB with three significant digits; `-` for `None`."""
    return render_ms(None if value is None else value / 2**20)


def render_gain(entry: BenchmarkEntry) -> str:
    """Renders the gain: `42x`, `not shown` where the noise is larger, `?` where it is unknown."""
    if entry.ratio is None:
        return "-"
    if entry.faster is None:
        return "?"
    if not entry.faster:
        return "not shown"
    return f"{entry.ratio:.1f}x" if entry.ratio < 10 else f"{entry.ratio:.0f}x"


def describe_noise(entries: Sequence[BenchmarkEntry], engine: EngineKind, processes: int) -> str:
    """Describes in a sentence how much equal figures differed.

    Args:
        entries: the figures.
        engine: what answered the requests.
        processes: fresh processes for each figure.
    """
    if engine == "server":
        return "Noise: one figure each, so no spread is known and no gain is claimed."
    if processes < MIN_VALUES:
        return f"Noise: fewer than {MIN_VALUES} processes show no spread, so no gain is claimed."
    parts = []
    for name, figures in (
        ("cold", [(entry.cold_range_ms, entry.cold_ms) for entry in entries]),
        ("warm", [(entry.warm_range_ms, entry.warm_ms) for entry in entries]),
    ):
        shares = [(span[1] - span[0]) / median for span, median in figures if span and median]
        if shares:
            parts.append(f"{name} ones by up to {100 * max(shares):.0f} %")
    load = ""
    if hasattr(os, "getloadavg"):
        load = f"; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    sentence = f"Noise: equal first requests differed, {' and '.join(parts)} of their median{load}."
    return f"{sentence} No gain smaller than that is claimed." if len(parts) > 1 else sentence


def measurement_notes(
    entries: Sequence[BenchmarkEntry], engine: EngineKind, records: int
) -> list[str]:
    """Returns sentences about the limits of a measurement.

    Args:
        entries: the figures.
        engine: what answered the requests.
        records: number of records in the warmup file.
    """
    notes = []
    if engine == "server":
        notes.append(
            "The server was running: it is not known whether it had already received such requests."
        )
    elif not records:
        notes.append(
            "There is no warmup file: only the cold start was measured. Write one with "
            "keras_warmup.add_warmup."
        )
    if any(entry.rows == "warmed" for entry in entries):
        notes.append(
            "Some requests were the rows of the warmup file themselves, which has no others: pass "
            "data= for a fair measurement."
        )
    if any(entry.rows == "synthetic" for entry in entries):
        notes.append("Some requests were made up from the signatures: pass data= for real ones.")
    return notes
