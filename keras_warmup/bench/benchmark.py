"""What a warmup file is worth: the first request cold and warm, in fresh processes or on a real server."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_warmup.bench.probes import Probe, plan_probes
from keras_warmup.bench.processes import Engine, ProcessEngine, RunTiming, Timings
from keras_warmup.bench.report import (
    BenchmarkEntry,
    BenchmarkReport,
    EngineKind,
    describe_noise,
    notes_of,
)
from keras_warmup.data.sampling import select_batches
from keras_warmup.data.sources import read_batches
from keras_warmup.errors import OptionsError, ReplayError
from keras_warmup.options import Transform
from keras_warmup.paths import as_path
from keras_warmup.records.warmup_file import read_all_records, warmup_path
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.savedmodel.unsafe_ops import check_saved_model

Progress = Callable[[int, int, str], None]

# Read from `data=`: enough rows that some are not those of the records.
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
    server: str | None = None,
    model_server: str | os.PathLike[str] | Sequence[str] | bool | None = None,
    docker: str | bool | None = None,
    model_name: str | None = None,
    server_args: Sequence[str] = (),
    load_timeout_s: float = 300.0,
    seed: int = 0,
    progress: Progress | None = None,
    refuse_unsafe_ops: bool = False,
) -> BenchmarkReport:
    """Measures the first request after a load without and with the warmup file.

    Each figure is from a process of its own that loads the model into a Session, as TensorFlow Serving does, replays
    the warmup file or not, and then gets one kind of request: nothing that another request warmed counts. Cold and warm
    processes take turns, one at a time, so that a busy machine slows both. `model_server` and `docker` start a real
    server in place of each process; `server` asks one that runs, which has no cold start to show.

    Args:
        export_dir: a SavedModel (version directory), with or without a warmup file.
        data: rows to send, as `add_warmup` takes them; those in the warmup file are left out. Defaults to the file's
            own rows in another order.
        processes: fresh processes (or servers) for each figure. Three or more are needed to claim anything.
        requests: requests sent after the first one, for the steady figures.
        batch_sizes: batch sizes to measure beside those in the file.
        transform: `transform(x) -> {input name: array}`, as in `WarmupOptions`.
        server: `HOST:PORT`, the gRPC port of a running server that serves this model.
        model_server: path of a `tensorflow_model_server` to start; `True` takes the one that the environment variable
            `KERAS_WARMUP_MODEL_SERVER` or `PATH` names; a sequence is a whole argv before the server's flags.
        docker: image to start, such as `"tensorflow/serving:2.19.1"`; `True` takes `tensorflow/serving`.
        model_name: name the server serves the model by. Defaults to the name of the directory above `export_dir`.
        server_args: more flags for the server that is started, such as `--xla_cpu_compilation_enabled`.
        load_timeout_s: seconds to wait until a server has loaded the model.
        seed: seed of the choice of rows.
        progress: called with `(done, total, what)` after each process.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything is run where the model has ops that touch files,
            network or processes. Defaults to `False`: warn.

    Returns:
        A `BenchmarkReport`; print it with `rich`, or take its `to_dict()`.

    Raises:
        OptionsError: an option is out of range, or two servers are asked for.
        SignatureError: there is no SavedModel, or it is damaged.
        UnsafeOpsError: it has unsafe ops, and `refuse_unsafe_ops` is set.
        RecordsError: the warmup file cannot be read.
        DataError: the data cannot be read.
        BindingError: they do not fit the signatures.
        ReplayError: the model does not load, or a record of the file fails.
        ServerError: the server cannot be found, started or reached.
    """
    _check_count("processes", processes)
    _check_count("requests", requests)
    directory = as_path(export_dir)
    meta_graph = read_meta_graph(directory)
    check_saved_model(directory, refuse=refuse_unsafe_ops)
    kind, engine = _engine(
        directory, server, model_server, docker, model_name, server_args, load_timeout_s
    )
    path = warmup_path(directory)
    records = read_all_records(path) if tf.io.gfile.exists(path) else []
    sizes = tuple(batch_sizes or ())
    for size in sizes:
        _check_count("each of batch_sizes", size)
    probes, notes = plan_probes(
        meta_graph,
        records,
        batches=_read_data(data, sizes, seed),
        batch_sizes=sizes,
        transform=transform,
        seed=seed,
    )
    if not probes:
        why = (
            " ".join(notes)
            or "It has no signature that a request can reach; keras-warmup inspect says more."
        )
        raise OptionsError(f"There is nothing to measure in {directory!r}. {why}")
    files: dict[str, str | None] = {"cold": None, "warm": path} if records else {"cold": None}
    if kind == "server":
        # It loaded the model before: its first request is all there is, once.
        processes, files = 1, {"running": None}
    runs = measure_probes(
        engine, probes, files, processes=processes, requests=requests, progress=progress
    )
    report = BenchmarkReport(
        export_dir=directory,
        entries=_entries(directory, probes, runs, notes),
        **_load_figures(kind, runs),
        records=len(records),
        bytes=tf.io.gfile.stat(path).length if records else 0,
        processes=processes,
        requests=requests,
        seed=seed,
        engine=kind,
        noise="",
        notes=(),
    )
    return dataclasses.replace(
        report, noise=describe_noise(report), notes=(*notes, *notes_of(report))
    )


@dataclasses.dataclass(frozen=True)
class ProbeRuns:
    """Samples of one probe.

    Attributes:
        samples: name of a warmup file -> its samples.
        problem: why it could not be measured; empty where it could.
    """

    samples: dict[str, list[RunTiming]]
    problem: str = ""

    def first_ms(self, name: str) -> Timings | None:
        """The first request after each start; `None` where there is no such file."""
        samples = self.samples.get(name)
        return Timings(tuple(sample.request_ms[0] for sample in samples)) if samples else None

    def steady_ms(self, name: str) -> Timings | None:
        """All later requests; `None` where there is no such file."""
        samples = self.samples.get(name)
        return (
            Timings(tuple(ms for sample in samples for ms in sample.request_ms[1:]))
            if samples
            else None
        )


def measure_probes(
    engine: Engine,
    probes: Sequence[Probe],
    files: dict[str, str | None],
    *,
    processes: int,
    requests: int,
    progress: Progress | None = None,
) -> list[ProbeRuns]:
    """Samples each probe with each warmup file, in turn.

    Args:
        engine: what to start.
        probes: what to send; each start gets one of them.
        files: name -> warmup file to replay first; `None` replays none.
        processes: starts for each probe and file.
        requests: requests after the first one.
        progress: called with `(done, total, what)`.

    Returns:
        One `ProbeRuns` for each probe. A probe without a record may fail, and says why; one with a record may not.

    Raises:
        ReplayError: a request that the file has a record for fails.
    """
    runs = [ProbeRuns({name: [] for name in files}) for _ in probes]
    done, total = 0, processes * len(probes) * len(files)
    for turn in range(processes):
        # Each turn begins with another probe and another file: drift of the machine falls on all alike.
        for index in [*range(turn % len(probes), len(probes)), *range(turn % len(probes))]:
            probe = probes[index]
            names = list(files) if (turn + index) % 2 == 0 else list(reversed(files))
            for name in names:
                if not runs[index].problem:
                    try:
                        sample = engine.sample(probe.logs, requests + 1, files[name])
                        runs[index].samples[name].append(sample)
                    except ReplayError as error:
                        if probe.in_file:
                            raise
                        runs[index] = dataclasses.replace(runs[index], problem=str(error))
                done += 1
                if progress is not None:
                    progress(
                        done,
                        total,
                        f"{name}: {probe.signature_key}, batch {probe.batch_size or '-'}",
                    )
    return runs


def _read_data(data: Any, batch_sizes: Sequence[int], seed: int) -> list[Any]:
    if data is None:
        return []
    rows = max(_ROWS, *batch_sizes, 0)
    # Another choice than the one the warmup file was made with.
    return select_batches(
        read_batches(data, batch_size=rows),
        num_batches=_NUM_BATCHES,
        rows=rows,
        seed=seed + 1,
        max_read=_MAX_READ_BATCHES,
    )


def _entries(
    directory: str, probes: Sequence[Probe], runs: Sequence[ProbeRuns], notes: list[str]
) -> tuple[BenchmarkEntry, ...]:
    entries = []
    for probe, run in zip(probes, runs, strict=True):
        if run.problem:
            notes.append(f"Signature {probe.signature_key!r} was not measured: {run.problem}")
            continue
        cold, warm = run.first_ms("cold"), run.first_ms("warm") or run.first_ms("running")
        steady = run.steady_ms("warm") or run.steady_ms("running") or run.steady_ms("cold")
        entries.append(BenchmarkEntry.of(probe, cold, warm, steady))
    if not entries:
        raise ReplayError(f"Nothing in {directory!r} could be measured. {' '.join(notes)}")
    return tuple(entries)


def _load_figures(kind: EngineKind, runs: Sequence[ProbeRuns]) -> dict[str, Any]:
    """Load times over all samples: a process tells the replay apart, a server only takes longer with it."""
    samples = {name: [one for run in runs for one in run.samples[name]] for name in runs[0].samples}
    cold, warm = samples.get("cold", []), samples.get("warm", [])
    if kind == "server":
        return {
            "load_ms": None,
            "load_range_ms": None,
            "load_added_ms": None,
            "load_added_range_ms": None,
        }
    if kind == "process":
        load = Timings(tuple(sample.load_ms for sample in [*cold, *warm]))
        added = Timings(tuple(sum(sample.replay_ms) for sample in warm)) if warm else None
        between = added and added.range
    else:
        load = Timings(tuple(sample.load_ms for sample in cold))
        longer = Timings(tuple(sample.load_ms for sample in warm)) if warm else None
        added = longer and Timings((longer.median - load.median,))
        between = longer and (longer.low - load.high, longer.high - load.low)
    return {
        "load_ms": load.median,
        "load_range_ms": load.range,
        "load_added_ms": added and added.median,
        "load_added_range_ms": between,
    }


def _engine(
    directory: str,
    server: str | None,
    model_server: str | os.PathLike[str] | Sequence[str] | bool | None,
    docker: str | bool | None,
    model_name: str | None,
    server_args: Sequence[str],
    load_timeout_s: float,
) -> tuple[EngineKind, Engine]:
    asked = [
        name
        for name, value in (("server", server), ("model_server", model_server), ("docker", docker))
        if value
    ]
    if len(asked) > 1:
        raise OptionsError(f"{' and '.join(asked)} were given: ask for one of them.")
    if not asked:
        return "process", ProcessEngine(directory)
    # gRPC is imported only where a server is asked for.
    from keras_warmup.bench.client import RunningServer
    from keras_warmup.bench.servers import (
        DEFAULT_IMAGE,
        LaunchedServer,
        ServerCommand,
        docker_command,
        find_model_server,
    )

    name = model_name or os.path.basename(os.path.dirname(os.path.abspath(directory))) or "model"
    if server:
        return "server", RunningServer(server, name)
    if docker:
        kind: EngineKind = "docker"
        command = docker_command(DEFAULT_IMAGE if docker is True else docker)
    elif isinstance(model_server, Sequence) and not isinstance(model_server, str):
        kind, command = (
            "model_server",
            ServerCommand(tuple(model_server), os.path.basename(model_server[-1])),
        )
    else:
        path = None if isinstance(model_server, bool) else model_server
        kind, command = "model_server", find_model_server(path)
    launched = LaunchedServer(
        directory, command, model_name=name, server_args=server_args, timeout_s=load_timeout_s
    )
    return kind, launched


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionsError(f"{name} must be an integer >= 1, got {value!r}.")
