"""`BenchmarkReport`: cold beside warm, with what the noise of the run allows to say."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from keras_warmup.bench.probes import Probe, RowsFrom
from keras_warmup.bench.processes import MIN_FIGURES, Timings
from keras_warmup.report import RequestKind, printable, to_plain

if TYPE_CHECKING:
    from rich.console import RenderableType

Range = tuple[float, float]
EngineKind = Literal["process", "model_server", "docker", "server"]


@dataclasses.dataclass(frozen=True)
class BenchmarkEntry:
    """One signature, kind, output set, batch size and row shape.

    Attributes:
        signature_key: the signature; for MultiInference the tasks' keys joined by `+`.
        kind: the request kind.
        output_filter: aliases asked for; empty means all outputs.
        batch_size: rows of each request; `None` where the inputs have no batch dimension.
        shapes: input name -> shape.
        in_file: whether the warmup file has a record over the same tensors, of this batch size and these shapes.
        rows: what was sent: `data`, `reordered` or `warmed` rows of the file, or `synthetic` ones.
        cold_ms: median of the first request without the warmup file, milliseconds; `None` for a server that was
            running.
        cold_range_ms: least and greatest of them.
        warm_ms: median of the first request with the warmup file, or to a server that was running; `None` where there
            is neither.
        warm_range_ms: least and greatest of them.
        steady_p50_ms: median of all later requests.
        steady_p99_ms: 99th percentile of them.
        ratio: `cold_ms / warm_ms`.
        faster: whether the warm first request is faster by more than the spread of the figures; `None` where nothing
            can be said: no warmup file, or fewer than three processes.
    """

    signature_key: str
    kind: RequestKind
    output_filter: tuple[str, ...]
    batch_size: int | None
    shapes: Mapping[str, tuple[int, ...]]
    in_file: bool
    rows: RowsFrom
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
        cls, probe: Probe, cold: Timings | None, warm: Timings | None, steady: Timings | None
    ) -> BenchmarkEntry:
        """Sums up the figures of one probe; `steady` is there where one of the others is."""
        later = steady or Timings((float("nan"),))
        ratio, faster = None, None
        if cold is not None and warm is not None:
            ratio = cold.median / warm.median
            if min(len(cold.values), len(warm.values)) >= MIN_FIGURES:
                faster = cold.exceeds(warm)
        return cls(
            probe.signature_key,
            probe.kind,
            probe.output_filter,
            probe.batch_size,
            probe.shapes,
            probe.in_file,
            probe.rows,
            cold_ms=cold.median if cold else None,
            cold_range_ms=cold.range if cold else None,
            warm_ms=warm.median if warm else None,
            warm_range_ms=warm.range if warm else None,
            steady_p50_ms=later.median,
            steady_p99_ms=float(np.percentile(later.values, 99)),
            ratio=ratio,
            faster=faster,
        )


@dataclasses.dataclass(frozen=True)
class BenchmarkReport:
    """What was measured.

    Attributes:
        export_dir: the SavedModel.
        entries: what was asked, cold and warm.
        load_ms: median time to load the model, without replaying the warmup file, milliseconds; for a server from its
            start until it is available; `None` for one that was running.
        load_range_ms: least and greatest of them.
        load_added_ms: median time that replaying the warmup file adds to the load; `None` where there is none.
        load_added_range_ms: least and greatest of them.
        records: records in the warmup file.
        bytes: size of the warmup file.
        processes: fresh processes for each figure.
        requests: requests sent to each after the first one.
        seed: seed of the choice of rows.
        engine: what answered: a Session in a Python `process`, a `model_server` or `docker` image that was started, or
            a `server` that was running.
        noise: how far the figures can be trusted.
        notes: what else the reader should know, one sentence each.
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

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def __rich__(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(printable(self.title)), title_justify="left", box=box.SIMPLE_HEAD)
        several_kinds = {entry.kind for entry in self.entries} != {"predict"}
        several_sets = any(entry.output_filter for entry in self.entries)
        compared = self.records > 0 and self.engine != "server"
        for header in ["signature", *["kind"] * several_kinds, *["outputs"] * several_sets]:
            table.add_column(header, no_wrap=header != "outputs")
        firsts = (
            ["first, ms"]
            if self.engine == "server"
            else ["cold, ms", *["warm, ms", "faster"] * compared]
        )
        for header in ["batch", *firsts, "steady, ms"]:
            table.add_column(header, justify="right")
        for entry in self.entries:
            row = [entry.signature_key, *[entry.kind] * several_kinds]
            row += [", ".join(entry.output_filter) or "all"] * several_sets
            row.append(str(entry.batch_size or "-"))
            row += [render_ms(entry.warm_ms if self.engine == "server" else entry.cold_ms)]
            row += [render_ms(entry.warm_ms), render_gain(entry)] * compared
            row.append(render_ms(entry.steady_p50_ms))
            # As Text: rich would read the brackets of a name as markup.
            table.add_row(*(Text(printable(cell)) for cell in row))
        return Group(table, *(Text(printable(line)) for line in self.sentences()))

    @property
    def title(self) -> str:
        """What the table shows."""
        if self.engine == "server":
            return f"First request to the running server, {self.export_dir}"
        return f"First request after loading {self.export_dir}"

    def sentences(self) -> list[str]:
        """What the table means, what the load costs, and how noisy the run was."""
        each = "fresh process" if self.engine == "process" else "newly started server"
        each += "es" * (self.processes > 1 and self.engine == "process") + "s" * (
            self.processes > 1 and self.engine != "process"
        )
        lines = []
        if self.engine == "server":
            lines.append(f"steady: the median of the {self.requests} requests after the first one.")
        elif self.records:
            lines.append(
                f"cold: without the warmup file. warm: after the file was replayed. Medians of {self.processes} {each} "
                f"each, taking turns. steady: the median of the {self.requests} requests that follow in each."
            )
            lines.append(
                f"The file ({self.records} record{'s' * (self.records > 1)}, {self.bytes} bytes) adds "
                f"{render_ms(self.load_added_ms)} ms to a load of {render_ms(self.load_ms)} ms."
            )
        else:
            lines.append(
                f"cold: medians of {self.processes} {each}. A load takes {render_ms(self.load_ms)} ms."
            )
        return [line for line in [*lines, self.noise, *self.notes] if line]


def render_ms(value: float | None) -> str:
    """Milliseconds with three digits that matter."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def render_gain(entry: BenchmarkEntry) -> str:
    """`42x`; `not shown` where the spread is larger, `?` where it is not known."""
    if entry.ratio is None:
        return "-"
    if entry.faster is None:
        return "?"
    return (
        f"{entry.ratio:.1f}x"
        if entry.faster and entry.ratio < 10
        else f"{entry.ratio:.0f}x"
        if entry.faster
        else "not shown"
    )


def describe_noise(report: BenchmarkReport) -> str:
    """How far the figures lie apart, in a sentence."""
    if report.engine == "server":
        return "Noise: one figure each, so no spread is known and no gain is claimed."
    if report.processes < MIN_FIGURES:
        return f"Noise: fewer than {MIN_FIGURES} processes show no spread, so no gain is claimed."
    parts = []
    for name, ranges in (
        ("cold", [(entry.cold_range_ms, entry.cold_ms) for entry in report.entries]),
        ("warm", [(entry.warm_range_ms, entry.warm_ms) for entry in report.entries]),
    ):
        shares = [(span[1] - span[0]) / median for span, median in ranges if span and median]
        if shares:
            parts.append(f"{name} ones by up to {100 * max(shares):.0f} %")
    load = (
        f"; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        if hasattr(os, "getloadavg")
        else ""
    )
    claimed = " No gain smaller than that is claimed." if len(parts) > 1 else ""
    return f"Noise: equal first requests differed, {' and '.join(parts)} of their median{load}.{claimed}"


def notes_of(report: BenchmarkReport) -> list[str]:
    """What the reader should know of how it was measured."""
    notes = []
    if report.engine == "server":
        notes.append(
            "The server was running: whether others had already sent it such requests is not known."
        )
    elif not report.records:
        notes.append(
            "There is no warmup file: only the cold start was measured. Write one with keras_warmup.add_warmup."
        )
    if any(entry.rows == "warmed" for entry in report.entries):
        notes.append(
            "Some requests were the very rows of the warmup file, which has no others: pass data= for a fair one."
        )
    if any(entry.rows == "synthetic" for entry in report.entries):
        notes.append("Some requests were made up from the signatures: pass data= for real ones.")
    return notes
