"""Measures the value of a warmup file: the first request without and with it."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_warmup.bench.model_server import ModelServer, read_server
from keras_warmup.bench.probes import Probe, plan_probes
from keras_warmup.bench.processes import (
    Engine,
    ProcessEngine,
    Progress,
    RunTiming,
    Timings,
    check_count,
)
from keras_warmup.bench.report import (
    BenchmarkEntry,
    BenchmarkReport,
    EngineKind,
    ReadyEntry,
    describe_noise,
    measurement_notes,
)
from keras_warmup.data.sampling import select_batches
from keras_warmup.data.sources import read_batches
from keras_warmup.errors import OptionsError, ReplayError
from keras_warmup.options import Transform
from keras_warmup.paths import as_path
from keras_warmup.records.warmup_file import read_all_records, warmup_path
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.savedmodel.unsafe_ops import check_saved_model

# Read from `data=`: enough rows that some are not in the records.
_NUM_BATCHES = 8
_MAX_READ_BATCHES = 64
_ROWS = 64


def benchmark(
    export_dir: str | os.PathLike[str],
    *,
    data: Any = None,
    processes: int = 5,
    requests: int = 20,
    batch_sizes: Sequence[int] | None = None,
    transform: Transform | None = None,
    server: ModelServer | str | None = None,
    against: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    refuse_unsafe_ops: bool = False,
) -> BenchmarkReport:
    """Measures the time to ready and the first request, without and with the warmup file.

    Each figure is taken in a process of its own, which loads the model as TensorFlow Serving does,
    replays the warmup file or not, and then gets one kind of request, so that no other request
    warms it. Cold and warm processes take turns, one at a time, so that a busy machine slows both.
    With `server=`, a model server is used in place of each process.

    Args:
        export_dir: a SavedModel (version directory), with or without a warmup file.
        data: rows to send, as `add_warmup` takes them; rows of the warmup file are left out.
            Defaults to the file's own rows in another order.
        processes: fresh processes (or servers) for each figure. A gain is claimed with three or
            more only.
        requests: requests sent after the first one, for the steady figures.
        batch_sizes: batch sizes to measure beside those in the file.
        transform: `transform(x) -> {input name: array}`, as in `WarmupOptions`.
        server: a `ModelServer` to start or to connect to; `"HOST:PORT"` is short for
            `ModelServer(address="HOST:PORT")`. Defaults to `None`: Python processes.
        against: another export of the model, such as `model.export` writes it, whose time to ready
            is measured beside; with this warmup file where it has none.
        seed: seed of the choice of rows.
        progress: called with `(done, total, step)` after each process.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything runs if the model has ops that
            touch files, network or processes. Defaults to `False`: warn.

    Returns:
        A `BenchmarkReport`; print it with `rich`, or use its `to_dict()`.

    Raises:
        OptionsError: an option is out of range.
        SignatureError: there is no SavedModel, or it is damaged.
        UnsafeOpsError: the model has unsafe ops, and `refuse_unsafe_ops` is set.
        RecordsError: the warmup file cannot be read.
        DataError: the data cannot be read.
        BindingError: the data does not fit the signatures.
        ReplayError: the model does not load, or a record of the file fails.
        ServerError: the server cannot be found, started or reached.
    """
    check_count("processes", processes)
    check_count("requests", requests)
    sizes = tuple(batch_sizes or ())
    for size in sizes:
        check_count("each of batch_sizes", size)
    model_server = None if server is None else read_server(server)
    directory = as_path(export_dir)
    meta_graph = read_meta_graph(directory)
    check_saved_model(directory, refuse=refuse_unsafe_ops)
    kind, engine = _engine(directory, model_server)
    path = warmup_path(directory)
    records = read_all_records(path) if tf.io.gfile.exists(path) else []
    variants = {"cold": Variant(directory, engine, None)}
    if records:
        variants["warm"] = Variant(directory, engine, path)
    if against is not None:
        if kind == "server":
            raise OptionsError(
                "against= and a running server exclude each other: the other export cannot be "
                "loaded there. Start a server, or measure in processes."
            )
        other = as_path(against)
        check_saved_model(other, refuse=refuse_unsafe_ops)
        _, other_engine = _engine(other, model_server)
        variants["against, cold"] = Variant(other, other_engine, None)
        own_file = warmup_path(other)
        file = own_file if tf.io.gfile.exists(own_file) else path if records else None
        if file is not None:
            variants["against, warm"] = Variant(other, other_engine, file)
    probes, notes = plan_probes(
        meta_graph,
        records,
        batches=_read_data(data, sizes, seed),
        batch_sizes=sizes,
        transform=transform,
        seed=seed,
    )
    if not probes:
        reason = " ".join(notes) or (
            "It has no signature that a request can reach; see keras-warmup inspect."
        )
        raise OptionsError(f"There is nothing to measure in {directory!r}. {reason}")
    if kind == "server":
        # It has loaded the model already, so there is only one first request.
        processes, variants = 1, {"running": variants["cold"]}
    runs = measure_probes(
        probes, variants, processes=processes, requests=requests, progress=progress
    )
    entries = _entries(directory, probes, runs, notes)
    load, added = _load_times(kind, runs)
    return BenchmarkReport(
        export_dir=directory,
        entries=entries,
        load_ms=load.median if load else None,
        load_range_ms=load.range if load else None,
        load_added_ms=added.median if added else None,
        load_added_range_ms=added.range if added else None,
        records=len(records),
        bytes=tf.io.gfile.stat(path).length if records else 0,
        processes=processes,
        requests=requests,
        seed=seed,
        engine=kind,
        noise=describe_noise(entries, kind, processes),
        notes=(*notes, *measurement_notes(entries, kind, len(records))),
        ready=() if kind == "server" else _ready_entries(kind, variants, runs),
        loader=next(timing.loader for run in runs for timing in run.all_timings()),
    )


class Variant(NamedTuple):
    """An export to measure.

    Attributes:
        export_dir: the SavedModel.
        engine: runs it.
        warmup_file: warmup file to replay first; `None` replays none.
    """

    export_dir: str
    engine: Engine
    warmup_file: str | None


@dataclasses.dataclass(frozen=True)
class ProbeRuns:
    """The runs of one probe.

    Attributes:
        timings: name of the variant, such as `cold`, `warm` or `running` -> its runs.
        problem: why the probe could not be measured; empty where it was.
    """

    timings: Mapping[str, list[RunTiming]]
    problem: str = ""

    def all_timings(self) -> list[RunTiming]:
        """Returns the runs of all variants."""
        return [timing for timings in self.timings.values() for timing in timings]

    def first_ms(self, name: str) -> Timings | None:
        """Returns the first request of each run; `None` where there is no such run."""
        runs = self.timings.get(name)
        return Timings(tuple(run.request_ms[0] for run in runs)) if runs else None

    def steady_ms(self, name: str) -> Timings:
        """Returns all later requests of the runs."""
        return Timings(tuple(ms for run in self.timings[name] for ms in run.request_ms[1:]))


def measure_probes(
    probes: Sequence[Probe],
    variants: Mapping[str, Variant],
    *,
    processes: int,
    requests: int,
    progress: Progress | None = None,
) -> list[ProbeRuns]:
    """Measures each probe with each variant, in turn.

    Args:
        probes: requests to send; each run gets one of them.
        variants: name -> what to start.
        processes: runs for each probe and variant.
        requests: requests after the first one.
        progress: called with `(done, total, step)`.

    Returns:
        The runs of each probe, in order. A probe that the warmup file has no record for may fail;
        its `problem` says why.

    Raises:
        ReplayError: a request that the file has a record for fails.
    """
    runs = [ProbeRuns({name: [] for name in variants}) for _ in probes]
    done, total = 0, processes * len(probes) * len(variants)
    for turn in range(processes):
        # Each turn starts with another probe and variant: a drift of the machine affects all.
        for index in [*range(turn % len(probes), len(probes)), *range(turn % len(probes))]:
            probe = probes[index]
            names = list(variants) if (turn + index) % 2 == 0 else list(variants)[::-1]
            for name in names:
                if not runs[index].problem:
                    _, engine, warmup_file = variants[name]
                    try:
                        timing = engine.time_run(probe.logs, requests + 1, warmup_file)
                        runs[index].timings[name].append(timing)
                    except ReplayError as error:
                        if probe.in_file:
                            raise
                        runs[index] = dataclasses.replace(runs[index], problem=str(error))
                done += 1
                if progress is not None:
                    batch = probe.batch_size or "-"
                    progress(done, total, f"{name}: {probe.signature_key}, batch {batch}")
    return runs


def _load_times(
    kind: EngineKind, runs: Sequence[ProbeRuns]
) -> tuple[Timings | None, Timings | None]:
    """Returns the time to load the model, and what the warmup file adds to it; `None` if unknown.

    A process reports each replay. A server reports only when it is available, so what the file adds
    is the least, median and greatest difference between warm and cold loads.
    """
    cold = [timing for one in runs for timing in one.timings.get("cold", ())]
    warm = [timing for one in runs for timing in one.timings.get("warm", ())]
    if kind == "server":
        return None, None
    loads = cold + warm if kind == "process" else cold
    load = Timings(tuple(timing.load_ms for timing in loads))
    if not warm:
        return load, None
    if kind == "process":
        return load, Timings(tuple(sum(timing.replay_ms) for timing in warm))
    longer = Timings(tuple(timing.load_ms for timing in warm))
    least, greatest = longer.range[0] - load.range[1], longer.range[1] - load.range[0]
    return load, Timings((least, longer.median - load.median, greatest))


def _ready_entries(
    kind: EngineKind, variants: Mapping[str, Variant], runs: Sequence[ProbeRuns]
) -> tuple[ReadyEntry, ...]:
    """Summarizes the loads of each variant."""
    entries = []
    for name, variant in variants.items():
        timings = [timing for run in runs for timing in run.timings[name]]
        load = Timings(tuple(timing.load_ms for timing in timings))
        warmup = Timings(tuple(sum(timing.replay_ms) for timing in timings))
        ready = Timings(tuple(timing.load_ms + sum(timing.replay_ms) for timing in timings))
        grown = [timing.memory_bytes for timing in timings if timing.memory_bytes is not None]
        peaks = [timing.peak_bytes for timing in timings if timing.peak_bytes is not None]
        is_warmed = variant.warmup_file is not None
        is_process = kind == "process"
        entries.append(
            ReadyEntry(
                export_dir=variant.export_dir,
                warmed=is_warmed,
                disk_bytes=disk_bytes(variant.export_dir),
                load_ms=load.median if is_process or not is_warmed else None,
                warmup_ms=warmup.median if is_process and is_warmed else None,
                ready_ms=ready.median,
                ready_range_ms=ready.range,
                memory_bytes=statistics.median(grown) if grown else None,
                peak_bytes=statistics.median(peaks) if peaks else None,
                steady_p50_ms=next(run for run in runs if not run.problem).steady_ms(name).median,
            )
        )
    return tuple(entries)


def disk_bytes(export_dir: str) -> int:
    """Returns the size of all files of an export."""
    return sum(
        tf.io.gfile.stat(os.path.join(directory, name)).length
        for directory, _, names in tf.io.gfile.walk(export_dir)
        for name in names
    )


def _entries(
    directory: str, probes: Sequence[Probe], runs: Sequence[ProbeRuns], notes: list[str]
) -> tuple[BenchmarkEntry, ...]:
    """Summarizes the runs; adds a note for each probe that could not be measured."""
    entries = []
    for probe, run in zip(probes, runs, strict=True):
        if run.problem:
            notes.append(f"Signature {probe.signature_key!r} was not measured: {run.problem}")
            continue
        warmest = next(name for name in ("warm", "running", "cold") if name in run.timings)
        warm = None if warmest == "cold" else run.first_ms(warmest)
        entries.append(BenchmarkEntry.of(probe, run.first_ms("cold"), warm, run.steady_ms(warmest)))
    if not entries:
        raise ReplayError(f"Nothing in {directory!r} could be measured. {' '.join(notes)}")
    return tuple(entries)


def _read_data(data: Any, batch_sizes: Sequence[int], seed: int) -> list[Any]:
    if data is None:
        return []
    rows = max(_ROWS, *batch_sizes, 0)
    return select_batches(
        read_batches(data, batch_size=rows),
        num_batches=_NUM_BATCHES,
        rows=rows,
        # Another seed than that of the warmup file, so that the choice of rows differs.
        seed=seed + 1,
        max_read=_MAX_READ_BATCHES,
    )


def _engine(directory: str, server: ModelServer | None) -> tuple[EngineKind, Engine]:
    if server is None:
        return "process", ProcessEngine(directory)
    # gRPC is imported only where a server is asked for.
    from keras_warmup.bench.servers import open_engine

    return open_engine(directory, server)
