"""Which records of a warmup file warm nothing new, found by measuring.

A record warms something exactly if its replay costs more than the same request costs later. So the file is replayed in
fresh processes, larger batches first (a batch of one never warms the first matrix product, a larger one warms both), and
a record that costs no more than it does afterwards is a candidate. The candidates are then left out together, and their
requests must be as fast as with the whole file. Whatever the noise leaves open is kept.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.processes import MIN_FIGURES, Engine, ProcessEngine, RunTiming, Timings
from keras_warmup.bench.report import render_ms
from keras_warmup.errors import OptionsError, RecordsError
from keras_warmup.options import MAX_RECORDS
from keras_warmup.paths import as_path
from keras_warmup.records.prediction_logs import describe_log
from keras_warmup.records.warmup_file import read_all_records, warmup_path, write_records
from keras_warmup.report import printable, to_plain

if TYPE_CHECKING:
    from rich.console import RenderableType

Progress = Callable[[int, int, str], None]

# Costs up to these above the steady ones are noise: oneDNN's primitives for a new shape are a quarter of a steady request.
_TOLERANCE = 0.1
_TOLERANCE_MS = 0.5
# Each record once more for its steady cost, after the whole file.
_REPEATS = 2
_UNLIMITED = 2**62


@dataclasses.dataclass(frozen=True)
class RedundantRecord:
    """A record that warms nothing the others do not warm.

    Attributes:
        index: its place in the file, from 0.
        signature_key: the signature it runs.
        kind: the request kind.
        batch_size: rows, or `None` where the inputs have no batch dimension.
        output_filter: aliases asked for; empty means all outputs.
        replay_ms: median of what its replay cost after the records before it, milliseconds.
        steady_ms: median of what the same request cost later.
        why: the same in words.
    """

    index: int
    signature_key: str
    kind: str
    batch_size: int | None
    output_filter: tuple[str, ...]
    replay_ms: float
    steady_ms: float
    why: str


@dataclasses.dataclass(frozen=True)
class MinimizeReport:
    """What `minimize` found.

    Attributes:
        export_dir: the SavedModel.
        records: records in its warmup file.
        kept: places of the records that are needed, or may be.
        redundant: the others.
        load_added_ms: median time that replaying the whole file takes, milliseconds.
        load_saved_ms: how much of it the redundant records take, as the difference of medians; may be noise.
        processes: fresh processes for each figure.
    """

    export_dir: str
    records: int
    kept: tuple[int, ...]
    redundant: tuple[RedundantRecord, ...]
    load_added_ms: float
    load_saved_ms: float
    processes: int

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def __rich__(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        summary = Text(
            f"{len(self.redundant)} of {self.records} records warm nothing new. Replaying all takes "
            f"{render_ms(self.load_added_ms)} ms, without them about {render_ms(max(0.0, self.load_saved_ms))} ms less "
            f"(medians of {self.processes} fresh processes)."
        )
        if not self.redundant:
            return summary
        table = Table("record", "signature", "kind", "batch", "why", box=box.SIMPLE_HEAD)
        for one in self.redundant:
            # As Text: rich would read the brackets of a name as markup.
            cells = (
                str(one.index),
                one.signature_key,
                one.kind,
                str(one.batch_size or "-"),
                one.why,
            )
            table.add_row(*(Text(printable(cell)) for cell in cells))
        return Group(table, summary)


def minimize(
    export_dir: str | os.PathLike[str], *, processes: int = 3, progress: Progress | None = None
) -> MinimizeReport:
    """Finds the records of a warmup file that warm nothing new.

    Args:
        export_dir: a SavedModel with a warmup file.
        processes: fresh processes for each figure, three or more.
        progress: called with `(done, total, what)` after each process.

    Returns:
        What is redundant; the file is as it was. `drop_records` rewrites it.

    Raises:
        OptionsError: fewer than three processes.
        RecordsError: there is no warmup file, or it cannot be read.
        ReplayError: the model does not load, or a record fails.
    """
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < MIN_FIGURES:
        raise OptionsError(f"processes must be an integer >= {MIN_FIGURES}, got {processes!r}.")
    directory = as_path(export_dir)
    logs = read_all_records(directory)
    found, costs = find_redundant(
        ProcessEngine(directory), logs, processes=processes, progress=progress
    )
    redundant = tuple(
        _redundant_record(index, logs[index], *found[index]) for index in sorted(found)
    )
    kept = tuple(index for index in range(len(logs)) if index not in found)
    return MinimizeReport(
        directory, len(logs), kept, redundant, costs[0], costs[0] - costs[1], processes
    )


def drop_records(report: MinimizeReport) -> None:
    """Rewrites the warmup file without its redundant records.

    Args:
        report: what `minimize` found.

    Raises:
        RecordsError: the file has changed since.
    """
    path = warmup_path(report.export_dir)
    logs = read_all_records(path)
    if len(logs) != report.records:
        raise RecordsError(
            f"Warmup file {path!r} holds {len(logs)} records, {report.records} when it was measured. Measure it again."
        )
    if report.redundant:
        size = tf.io.gfile.stat(path).length
        write_records(
            path, [logs[index] for index in report.kept], max_records=MAX_RECORDS, max_bytes=size
        )


def find_redundant(
    engine: Engine,
    logs: Sequence[PredictionLog],
    *,
    processes: int,
    progress: Progress | None = None,
) -> tuple[dict[int, tuple[Timings, Timings]], tuple[float, float]]:
    """Finds redundant records.

    Args:
        engine: what to start.
        logs: the records.
        processes: starts for each figure.
        progress: called with `(done, total, what)`.

    Returns:
        Place -> its costs when replayed and afterwards; and the median cost of replaying all, and the others.
    """
    report = progress or (lambda done, total, what: None)
    order = sorted(
        range(len(logs)), key=lambda index: -(describe_log(logs[index])["batch_size"] or 0)
    )
    with tempfile.TemporaryDirectory(prefix="keras-warmup-") as directory:
        whole = _write(directory, "whole", [logs[index] for index in order])
        samples = []
        for turn in range(processes):
            samples.append(
                engine.sample([logs[index] for index in order], _REPEATS * len(logs), whole)
            )
            report(turn + 1, 2 * processes, "all records")
        found = _candidates(logs, order, samples)
        cost = _replay_cost(samples)
        if not found:
            report(processes, processes, "all records")
            return {}, (cost, cost)
        checked = _one_of_each(logs, found)
        total = processes * (1 + 2 * len(checked))
        rest = _write(directory, "rest", [logs[index] for index in order if index not in found])
        with_all: Mapping[int, list[RunTiming]] = {index: [] for index in checked}
        without: Mapping[int, list[RunTiming]] = {index: [] for index in checked}
        done = processes
        for turn in range(processes):
            for index in checked:
                pair = [(with_all, whole), (without, rest)]
                for samples_of, file in pair if turn % 2 == 0 else reversed(pair):
                    samples_of[index].append(engine.sample([logs[index]], _REPEATS, file))
                    done += 1
                    report(done, total, f"record {index}")
        for index in checked:
            if not _as_fast(_firsts(without[index]), _firsts(with_all[index])):
                same = _identity(logs[index])
                found = {
                    other: figures
                    for other, figures in found.items()
                    if _identity(logs[other]) != same
                }
        spared = _replay_cost([one for samples_of in without.values() for one in samples_of])
        whole_cost = _replay_cost([one for samples_of in with_all.values() for one in samples_of])
    return found, (whole_cost, spared if found else whole_cost)


def _candidates(
    logs: Sequence[PredictionLog], order: Sequence[int], samples: Sequence[RunTiming]
) -> dict[int, tuple[Timings, Timings]]:
    found: dict[int, tuple[Timings, Timings]] = {}
    groups: dict[bytes, list[int]] = {}
    for place, index in enumerate(order):
        groups.setdefault(logs[index].SerializeToString(deterministic=True), []).append(place)
    for places in groups.values():
        later = tuple(
            sample.request_ms[place + turn * len(order)]
            for sample in samples
            for place in places
            for turn in range(_REPEATS)
        )
        # The first of equal records is judged alone; the others can only repeat it, so they are judged together.
        for judged in (places[:1], places[1:]):
            costs = tuple(sample.replay_ms[place] for sample in samples for place in judged)
            if judged and _as_fast(Timings(costs), Timings(later)):
                found.update({order[place]: (Timings(costs), Timings(later)) for place in judged})
    # One record must stay, or nothing would be warm.
    if len(found) == len(order):
        del found[order[0]]
    return found


def _as_fast(figures: Timings, others: Timings) -> bool:
    """Whether these are no slower than the others; in doubt not."""
    if figures.median - others.median > max(_TOLERANCE * others.median, _TOLERANCE_MS):
        return False
    return not figures.exceeds(others)


def _one_of_each(logs: Sequence[PredictionLog], found: Mapping[int, Any]) -> list[int]:
    chosen: dict[Hashable, int] = {}
    for index in sorted(found):
        chosen.setdefault(_identity(logs[index]), index)
    return list(chosen.values())


def _identity(log: PredictionLog) -> Hashable:
    about = describe_log(log)
    return (
        about["signature_key"],
        about["kind"],
        about["output_filter"],
        tuple(sorted(about["shapes"].items())),
    )


def _firsts(samples: Sequence[RunTiming]) -> Timings:
    return Timings(tuple(sample.request_ms[0] for sample in samples))


def _replay_cost(samples: Sequence[RunTiming]) -> float:
    return Timings(tuple(sum(sample.replay_ms) for sample in samples)).median


def _write(directory: str, name: str, logs: Sequence[PredictionLog]) -> str:
    path = os.path.join(directory, name)
    write_records(path, logs, max_records=_UNLIMITED, max_bytes=_UNLIMITED)
    return path


def _redundant_record(
    index: int, log: PredictionLog, replay: Timings, later: Timings
) -> RedundantRecord:
    about = describe_log(log)
    return RedundantRecord(
        index,
        about["signature_key"],
        about["kind"] or "none",
        about["batch_size"],
        about["output_filter"],
        replay.median,
        later.median,
        f"its replay costs {render_ms(replay.median)} ms after the others, {render_ms(later.median)} ms when all is warm",
    )
