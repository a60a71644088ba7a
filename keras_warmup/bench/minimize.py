"""Finds the records of a warmup file that warm nothing new by measuring, and drops them.

A record warms something exactly if its replay costs more than the same request costs later. So the
file is replayed in fresh processes, larger batches first (a batch of 1 never warms the first matrix
product, a larger one warms both), and a record that costs no more than it does later is a
candidate. Then the candidates are left out together, and their requests must be as fast as with the
whole file. Where the noise does not allow a decision, the record is kept.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import tempfile
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.processes import (
    MIN_VALUES,
    UNLIMITED,
    Engine,
    ProcessEngine,
    Progress,
    RunTiming,
    Timings,
    check_count,
)
from keras_warmup.bench.report import render_ms, render_table
from keras_warmup.errors import RecordsError
from keras_warmup.options import MAX_RECORDS
from keras_warmup.paths import as_path
from keras_warmup.records.manifest import read_manifest, renew_manifest, require_allowed
from keras_warmup.records.prediction_logs import describe_log
from keras_warmup.records.warmup_file import read_all_records, warmup_path, write_records
from keras_warmup.report import Report
from keras_warmup.savedmodel.unsafe_ops import check_saved_model

if TYPE_CHECKING:
    from rich.console import RenderableType

# A difference of less than either is noise. (oneDNN's primitives for a new shape cost a quarter of
# a steady request.)
_TOLERANCE = 0.1
_TOLERANCE_MS = 0.5
# Requests for each record after the replay of the whole file, for its later cost.
_REPEATS = 2


@dataclasses.dataclass(frozen=True)
class RedundantRecord:
    """A record that warms nothing that other records do not warm.

    Attributes:
        index: its position in the file, from 0.
        signature_key: the signature it runs.
        kind: the request kind.
        batch_size: rows, or `None` where the inputs have no batch dimension.
        output_filter: requested output aliases; empty means all outputs.
        replay_ms: median time of its replay after the records before it, milliseconds.
        steady_ms: median time of the same request later.
        why: both figures in words.
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
class MinimizeReport(Report):
    """The records of a warmup file that are needed, and those that are not.

    Attributes:
        export_dir: the SavedModel.
        records: number of records that were measured.
        kept: positions of the records that are needed, or may be.
        redundant: the other records.
        dropped: whether the redundant records were removed from the file.
        load_added_ms: median time to replay all records, milliseconds.
        load_saved_ms: part of it that the redundant records take, as the difference of medians; may
            be noise.
        processes: fresh processes for each figure.
    """

    export_dir: str
    records: int
    kept: tuple[int, ...]
    redundant: tuple[RedundantRecord, ...]
    dropped: bool
    load_added_ms: float
    load_saved_ms: float
    processes: int

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        found = f"Redundant records: {len(self.redundant)} of {self.records}"
        dropped = ", dropped from the file" if self.dropped else ""
        cost = f"Replaying all records takes {render_ms(self.load_added_ms)} ms"
        saved_ms = render_ms(max(0.0, self.load_saved_ms))
        saved = f", without these about {saved_ms} ms less" if self.redundant else ""
        processes = f"medians of {self.processes} fresh processes"
        summary = Text(f"{found}{dropped}. {cost}{saved} ({processes}).")
        if not self.redundant:
            return summary
        rows = [
            {
                "record": str(record.index),
                "signature": record.signature_key,
                "kind": record.kind,
                "batch": str(record.batch_size or "-"),
                "why": record.why,
            }
            for record in self.redundant
        ]
        return Group(render_table("", rows), summary)


def minimize(
    export_dir: str | os.PathLike[str],
    *,
    processes: int = MIN_VALUES,
    dry_run: bool = False,
    refuse_unsafe_ops: bool = False,
    progress: Progress | None = None,
) -> MinimizeReport:
    """Drops the records of a warmup file that warm nothing new.

    The file is replaced atomically, and only if there are such records.

    Args:
        export_dir: a SavedModel with a warmup file.
        processes: fresh processes for each figure, three or more.
        dry_run: leave the file as it is.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything runs if the model has ops that
            touch files, network or processes. Defaults to `False`: warn.
        progress: called with `(done, total, step)` after each process.

    Raises:
        OptionsError: fewer than three processes.
        SignatureError: there is no SavedModel, or it is damaged.
        UnsafeOpsError: the model has unsafe ops, and `refuse_unsafe_ops` is set.
        RecordsError: there is no warmup file, it cannot be read, or it changed meanwhile.
        ReplayError: the model does not load, or a record fails.
    """
    check_count("processes", processes, at_least=MIN_VALUES)
    directory = as_path(export_dir)
    check_saved_model(directory, refuse=refuse_unsafe_ops)
    require_allowed(directory)
    logs = read_all_records(directory)
    found = find_redundant(ProcessEngine(directory), logs, processes=processes, progress=progress)
    redundant = {record.index for record in found.records}
    kept = tuple(index for index in range(len(logs)) if index not in redundant)
    dropped = bool(redundant) and not dry_run
    if dropped:
        _drop_records(directory, logs, kept)
    return MinimizeReport(
        export_dir=directory,
        records=len(logs),
        kept=kept,
        redundant=found.records,
        dropped=dropped,
        load_added_ms=found.whole_ms,
        load_saved_ms=found.whole_ms - found.rest_ms,
        processes=processes,
    )


def _drop_records(export_dir: str, logs: Sequence[PredictionLog], kept: Sequence[int]) -> None:
    """Rewrites the warmup file with some of its records, unless it changed since it was read."""
    path = warmup_path(export_dir)
    if _serialize(read_all_records(path)) != _serialize(logs):
        raise RecordsError(
            f"Warmup file {path!r} changed while its {len(logs)} records were measured. It was "
            "left as it is; minimize it again."
        )
    size = tf.io.gfile.stat(path).length
    records = [logs[index] for index in kept]
    before = read_manifest(export_dir)
    write_records(path, records, max_records=MAX_RECORDS, max_bytes=size)
    renew_manifest(export_dir, before, kept=kept)


def _serialize(logs: Sequence[PredictionLog]) -> list[bytes]:
    return [log.SerializeToString(deterministic=True) for log in logs]


@dataclasses.dataclass(frozen=True)
class RedundantRecords:
    """The redundant records of a file, and what they cost.

    Attributes:
        records: the redundant records, in the order of the file.
        whole_ms: median time to replay all records.
        rest_ms: median time to replay the others.
    """

    records: tuple[RedundantRecord, ...]
    whole_ms: float
    rest_ms: float


def find_redundant(
    engine: Engine,
    logs: Sequence[PredictionLog],
    *,
    processes: int,
    progress: Progress | None = None,
) -> RedundantRecords:
    """Finds the records that warm nothing new.

    Args:
        engine: runs the model.
        logs: the records.
        processes: runs for each figure.
        progress: called with `(done, total, step)` after each run.
    """
    report = progress or (lambda done, total, step: None)
    order = sorted(
        range(len(logs)), key=lambda index: -(describe_log(logs[index])["batch_size"] or 0)
    )
    requests = [logs[index] for index in order]
    with tempfile.TemporaryDirectory(prefix="keras-warmup-") as directory:
        whole = _write(directory, "whole", requests)
        runs = []
        for turn in range(processes):
            runs.append(engine.time_run(requests, _REPEATS * len(logs), whole))
            report(turn + 1, 2 * processes, "all records")
        found = _candidates(logs, order, runs)
        if not found:
            report(processes, processes, "all records")
            return RedundantRecords((), _replay_ms(runs), _replay_ms(runs))
        first_of_shape: dict[Hashable, int] = {}
        for index in sorted(found):
            first_of_shape.setdefault(_shape_of(logs[index]), index)
        checked = list(first_of_shape.values())
        rest = _write(directory, "rest", [logs[index] for index in order if index not in found])
        timings: dict[tuple[int, str], list[RunTiming]] = collections.defaultdict(list)
        done, total = processes, processes * (1 + 2 * len(checked))
        for turn in range(processes):
            for index in checked:
                for file in (whole, rest) if turn % 2 == 0 else (rest, whole):
                    timings[index, file].append(engine.time_run([logs[index]], _REPEATS, file))
                    done += 1
                    report(done, total, f"record {index}")
    for index in checked:
        if not _as_fast(_first_ms(timings[index, rest]), _first_ms(timings[index, whole])):
            slow = _shape_of(logs[index])
            found = {at: record for at, record in found.items() if _shape_of(logs[at]) != slow}
    whole_ms, rest_ms = (
        _replay_ms([timing for index in checked for timing in timings[index, file]])
        for file in (whole, rest)
    )
    records = tuple(found[index] for index in sorted(found))
    return RedundantRecords(records, whole_ms, rest_ms if found else whole_ms)


def _candidates(
    logs: Sequence[PredictionLog], order: Sequence[int], runs: Sequence[RunTiming]
) -> dict[int, RedundantRecord]:
    """Returns the records whose replay costs no more than the same request later.

    Args:
        logs: the records.
        order: their indices in the order of the replay.
        runs: replays of all records in this order, each followed by all requests `_REPEATS` times.
    """
    found: dict[int, RedundantRecord] = {}
    equal_places: dict[bytes, list[int]] = {}
    for place, data in enumerate(_serialize([logs[index] for index in order])):
        equal_places.setdefault(data, []).append(place)
    for places in equal_places.values():
        later = Timings(
            tuple(
                run.request_ms[place + repeat * len(order)]
                for run in runs
                for place in places
                for repeat in range(_REPEATS)
            )
        )
        # The first of equal records is judged alone. The others only repeat it: judged together.
        for judged in (places[:1], places[1:]):
            replay = Timings(tuple(run.replay_ms[place] for run in runs for place in judged))
            if judged and _as_fast(replay, later):
                for index in (order[place] for place in judged):
                    found[index] = _redundant_record(index, logs[index], replay, later)
    # One record must stay, or nothing would be warm.
    if len(found) == len(order):
        del found[order[0]]
    return found


def _as_fast(timings: Timings, others: Timings) -> bool:
    """Returns whether the timings are no slower than the others; `False` in doubt."""
    if timings.median - others.median > max(_TOLERANCE * others.median, _TOLERANCE_MS):
        return False
    return not timings.exceeds(others)


def _shape_of(log: PredictionLog) -> Hashable:
    """Returns what requests that run the same tensors with rows of the same shapes share."""
    about = describe_log(log)
    shapes = tuple(sorted(about["shapes"].items()))
    return about["signature_key"], about["kind"], about["output_filter"], shapes


def _first_ms(runs: Sequence[RunTiming]) -> Timings:
    return Timings(tuple(run.request_ms[0] for run in runs))


def _replay_ms(runs: Sequence[RunTiming]) -> float:
    return Timings(tuple(sum(run.replay_ms) for run in runs)).median


def _write(directory: str, name: str, logs: Sequence[PredictionLog]) -> str:
    path = os.path.join(directory, name)
    write_records(path, logs, max_records=UNLIMITED, max_bytes=UNLIMITED)
    return path


def _redundant_record(
    index: int, log: PredictionLog, replay: Timings, later: Timings
) -> RedundantRecord:
    about = describe_log(log)
    return RedundantRecord(
        index=index,
        signature_key=about["signature_key"],
        kind=about["kind"] or "none",
        batch_size=about["batch_size"],
        output_filter=about["output_filter"],
        replay_ms=replay.median,
        steady_ms=later.median,
        why=f"its replay takes {render_ms(replay.median)} ms after the others, the same request "
        f"{render_ms(later.median)} ms later",
    )
