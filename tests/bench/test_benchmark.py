"""`benchmark`: turns of cold and warm runs, and the report that they are summarized in."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import keras_warmup as kw
from keras_warmup._protos import PredictionLog
from keras_warmup.bench.benchmark import Variant, benchmark, disk_bytes, measure_probes
from keras_warmup.bench.probes import Probe
from keras_warmup.bench.processes import RunTiming
from keras_warmup.bench.servers import LaunchedServer, ServerCommand
from keras_warmup.errors import OptionsError, ReplayError, SignatureError
from tests.bench.models import RequestCounter, examples_of
from tests.builders import predict_log, task_log, write_warmup_file


class FakeEngine:
    """Remembers what it was asked to run; fails for some signatures."""

    def __init__(self, *fails: str) -> None:
        self.runs: list[tuple[str, int, str | None]] = []
        self._fails = fails

    def variants(self, **warmup_files: str | None) -> dict[str, Variant]:
        """Returns variants of one export that this engine runs."""
        return {name: Variant("m/1", self, file) for name, file in warmup_files.items()}

    def time_run(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        signature_key = requests[0].predict_log.request.model_spec.signature_name
        self.runs.append((signature_key, count, warmup_file))
        if signature_key in self._fails:
            raise ReplayError("no")
        return RunTiming(1.0, (), tuple(range(count)))


def probe_of(signature_key: str, *, in_file: bool = True) -> Probe:
    logs = (predict_log(signature_key),)
    return Probe(signature_key, "predict", (), 2, {}, in_file, "data", logs)


def test_cold_and_warm_and_the_probes_take_turns() -> None:
    engine = FakeEngine()
    progress: list[tuple[int, int, str]] = []
    runs = measure_probes(
        [probe_of("a"), probe_of("b")],
        engine.variants(cold=None, warm="file"),
        processes=2,
        requests=3,
        progress=lambda *step: progress.append(step),
    )
    order = [(signature_key, "warm" if file else "cold") for signature_key, _, file in engine.runs]
    assert order == [
        *[("a", "cold"), ("a", "warm"), ("b", "warm"), ("b", "cold")],
        *[("b", "cold"), ("b", "warm"), ("a", "warm"), ("a", "cold")],
    ]
    assert {count for _, count, _ in engine.runs} == {4}
    assert [(done, total) for done, total, _ in progress] == [(done, 8) for done in range(1, 9)]
    assert progress[0][2] == "cold: a, batch 2"
    first = runs[0].first_ms("cold")
    assert first is not None and first.values == (0, 0)
    assert runs[0].steady_ms("warm").values == (1, 2, 3) * 2
    assert runs[0].first_ms("running") is None


def test_only_a_request_without_a_record_may_fail() -> None:
    runs = measure_probes(
        [probe_of("a"), probe_of("b", in_file=False)],
        FakeEngine("b").variants(cold=None),
        processes=2,
        requests=1,
    )
    assert [run.problem for run in runs] == ["", "no"]
    with pytest.raises(ReplayError, match="no"):
        variants = FakeEngine("a").variants(cold=None)
        measure_probes([probe_of("a")], variants, processes=1, requests=1)


def test_benchmark_reports_each_signature_cold_and_warm(warm_dir: str) -> None:
    data = np.arange(60, dtype=np.float32).reshape(20, 3)
    report = benchmark(warm_dir, data=data, processes=1, requests=2)
    assert [(entry.signature_key, entry.in_file, entry.rows) for entry in report.entries] == [
        ("serving_default", True, "data"),
        ("other", False, "data"),
    ]
    for entry in report.entries:
        assert entry.cold_ms and entry.warm_ms and entry.steady_p50_ms > 0
        assert entry.ratio == entry.cold_ms / entry.warm_ms
        assert entry.faster is None
    assert (report.records, report.processes, report.requests) == (1, 1, 2)
    assert report.engine == "process"
    assert report.bytes > 0 and report.load_ms and report.load_added_ms
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["entries"][0]["signature_key"] == "serving_default"
    assert plain["entries"][0]["shapes"] == {"x": [2, 3]}


def test_the_time_to_ready_is_that_of_the_load_and_of_the_replay(warm_dir: str) -> None:
    report = benchmark(warm_dir, processes=1, requests=1)
    assert [(one.export_dir, one.warmed) for one in report.ready] == [
        (warm_dir, False),
        (warm_dir, True),
    ]
    cold, warm = report.ready
    assert cold.warmup_ms is None and cold.ready_ms == cold.load_ms
    assert warm.load_ms is not None and warm.warmup_ms is not None
    # With a few runs of each, the median of the sums is not the sum of the medians.
    assert warm.load_ms < warm.ready_ms
    for one in report.ready:
        assert one.disk_bytes == disk_bytes(warm_dir) > report.bytes
        assert one.ready_range_ms[0] <= one.ready_ms <= one.ready_range_ms[1]
        assert one.steady_p50_ms > 0
    assert report.loader in ("c++", "python")


def test_another_export_is_measured_with_this_file_where_it_has_none(
    warm_dir: str, cold_dir: str
) -> None:
    report = benchmark(warm_dir, against=cold_dir, processes=1, requests=1)
    assert [(one.export_dir, one.warmed) for one in report.ready] == [
        (warm_dir, False),
        (warm_dir, True),
        (cold_dir, False),
        (cold_dir, True),
    ]
    alone = benchmark(cold_dir, against=cold_dir, processes=1, requests=1)
    assert [one.warmed for one in alone.ready] == [False, False]


def test_a_model_without_a_warmup_file_is_measured_cold(cold_dir: str) -> None:
    report = benchmark(cold_dir, processes=1, requests=1)
    assert all(
        entry.warm_ms is None and entry.ratio is None and entry.cold_ms for entry in report.entries
    )
    assert report.load_added_ms is None and report.records == 0 and report.bytes == 0
    assert report.notes == (
        "There is no warmup file: only the cold start was measured. Write one with "
        "keras_warmup.add_warmup.",
        "Some requests were made up from the signatures: pass data= for real ones.",
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"processes": 0}, "processes must be an integer >= 1, got 0."),
        ({"requests": 1.5}, "requests must be an integer >= 1, got 1.5."),
        ({"processes": True}, "processes must be an integer >= 1, got True."),
        ({"batch_sizes": [2, 0]}, "each of batch_sizes must be an integer >= 1, got 0."),
        (
            {"server": "localhost:8500", "against": "."},
            "against= and a running server exclude each other: the other export cannot be loaded "
            "there. Start a server, or measure in processes.",
        ),
        ({"server": True}, "server must be a ModelServer, 'HOST:PORT' or None, got bool."),
        (
            {"server": "localhost"},
            "Bad model server: address must be 'HOST:PORT' (the gRPC port, usually 8500), got "
            "'localhost'.",
        ),
    ],
)
def test_options_out_of_range_are_refused(
    warm_dir: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(OptionsError) as caught:
        benchmark(warm_dir, **options)
    assert str(caught.value) == text


def test_a_directory_without_a_model_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SignatureError):
        benchmark(tmp_path)


def test_a_running_server_is_measured_once(double: ServerCommand, counter_dir: str) -> None:
    with LaunchedServer(counter_dir, double, model_name="counter").started(None) as (client, _):
        report = benchmark(counter_dir, server=client.address, requests=2)
    assert report.engine == "server"
    assert {(entry.signature_key, entry.kind) for entry in report.entries} == {
        ("serving_default", "predict"),
        ("classify", "classify"),
        ("regress", "regress"),
    }
    assert all(
        entry.cold_ms is None and entry.warm_ms and entry.faster is None for entry in report.entries
    )
    assert report.load_ms is None and report.load_added_ms is None and report.processes == 1
    assert report.ready == () and report.loader is None
    assert report.noise == "Noise: one figure each, so no spread is known and no gain is claimed."


def test_servers_are_started_cold_and_warm(
    server_command: ServerCommand, tmp_path: pathlib.Path
) -> None:
    export_dir = tmp_path / "counter" / "1"
    RequestCounter().save(export_dir, "serving_default", "classify")
    write_warmup_file(
        export_dir,
        predict_log("serving_default", x=np.array([[1, 2], [3, 4]], np.float32)),
        task_log("classify", "classify", *examples_of([[1, 2], [3, 4]])),
    )
    server = kw.ModelServer(command=server_command.argv)
    report = benchmark(export_dir, server=server, processes=1, requests=2)
    assert report.engine == "model_server"
    assert [
        (entry.signature_key, entry.kind, entry.batch_size, entry.rows) for entry in report.entries
    ] == [
        ("serving_default", "predict", 2, "reordered"),
        ("classify", "classify", 2, "reordered"),
    ]
    assert all(entry.cold_ms and entry.warm_ms for entry in report.entries)
    assert report.load_ms
    cold, warm = report.ready
    assert cold.ready_ms == cold.load_ms == report.load_ms
    assert warm.ready_ms > 0 and warm.load_ms is None and warm.warmup_ms is None
    assert warm.memory_bytes is None and report.loader is None
