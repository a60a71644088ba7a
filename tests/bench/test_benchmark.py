from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.benchmark import benchmark, measure_probes
from keras_warmup.bench.probes import Probe, plan_probes
from keras_warmup.bench.processes import ProcessEngine, RunTiming, Timings
from keras_warmup.bench.report import (
    BenchmarkEntry,
    BenchmarkReport,
    describe_noise,
    notes_of,
    render_gain,
    render_ms,
)
from keras_warmup.data.batch import Batch
from keras_warmup.errors import BindingError, OptionsError, ReplayError, SignatureError
from keras_warmup.records.warmup_file import read_records, warmup_path, write_records
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.serving.child_process import child_environment


class Two(tf.Module):
    """Two signatures over tensors of their own, one with two outputs."""

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def call(self, x):
        return {"a": tf.matmul(x, tf.ones([3, 4])), "b": tf.reduce_sum(x, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def other(self, x):
        return {"c": tf.nn.relu(x)}


def predict_log(x, signature_key="serving_default", output_filter=()):
    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature_key
    log.predict_log.request.output_filter.extend(output_filter)
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.asarray(x, np.float32)))
    return log


def rows_of(log):
    return tf.make_ndarray(log.predict_log.request.inputs["x"]).tolist()


@pytest.fixture(scope="session")
def cold_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("bench") / "cold" / "1")
    module = Two()
    tf.saved_model.save(
        module, path, signatures={"serving_default": module.call, "other": module.other}
    )
    return path


@pytest.fixture(scope="session")
def warm_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("bench") / "warm" / "1")
    module = Two()
    tf.saved_model.save(
        module, path, signatures={"serving_default": module.call, "other": module.other}
    )
    write_records(warmup_path(path), [predict_log(WARMED)], max_records=10, max_bytes=2**20)
    return path


WARMED = [[1, 2, 3], [4, 5, 6]]


# What may be said of a handful of timings.


@pytest.mark.parametrize(
    ("cold", "warm", "exceeds"),
    [
        ((100, 110, 120), (1, 2, 3), True),
        ((100, 110), (1, 2), False),
        ((10, 11, 12), (12, 13, 14), False),
        ((10, 20, 30), (9, 11, 12), False),
        ((10.1, 18, 26), (9, 9.5, 10), False),
        ((100, 100, 100, 100, 900), (1, 1, 1, 1, 2), True),
    ],
    ids=["clear", "too-few", "slower", "overlap", "gain-within-the-spread", "one-straggler"],
)
def test_a_gain_is_claimed_only_beyond_the_spread(cold, warm, exceeds):
    assert Timings(cold).exceeds(Timings(warm)) is exceeds


# What is sent.


def test_rows_of_the_data_other_than_the_warmed_ones_are_sent(warm_dir):
    records = list(read_records(warm_dir))
    data = Batch(np.array([[1, 2, 3], [7, 7, 7], [8, 8, 8], [4, 5, 6]], np.float32), 4)
    probes, notes = plan_probes(read_meta_graph(warm_dir), records, batches=[data])
    assert notes == []
    by_key = {probe.signature_key: probe for probe in probes}
    assert {
        key: (probe.in_file, probe.rows, probe.batch_size) for key, probe in by_key.items()
    } == {
        "serving_default": (True, "data", 2),
        "other": (False, "data", 2),
    }
    assert rows_of(by_key["serving_default"].logs[0]) == [[7, 7, 7], [8, 8, 8]]


def test_without_data_the_rows_of_the_file_are_sent_in_another_order(warm_dir):
    probes, _ = plan_probes(read_meta_graph(warm_dir), list(read_records(warm_dir)))
    assert [(probe.signature_key, probe.rows, probe.batch_size) for probe in probes] == [
        ("serving_default", "reordered", 2),
        ("other", "reordered", 2),
    ]
    assert rows_of(probes[0].logs[0]) == [[4, 5, 6], [1, 2, 3]]


def test_where_the_rows_have_no_other_order_another_batch_size_is_sent_too(warm_dir):
    probes, _ = plan_probes(read_meta_graph(warm_dir), [predict_log([[1, 2, 3]])])
    assert [
        (probe.signature_key, probe.rows, probe.batch_size, probe.in_file) for probe in probes
    ] == [
        ("serving_default", "warmed", 1, True),
        ("other", "warmed", 1, False),
        ("serving_default", "reordered", 2, False),
        ("other", "reordered", 2, False),
    ]


def test_each_output_set_and_batch_size_is_sent_once(warm_dir):
    records = [
        predict_log(WARMED),
        predict_log(WARMED),
        predict_log(WARMED, output_filter=["a"]),
        predict_log(WARMED, output_filter=["b", "a"]),
        predict_log(WARMED * 2),
    ]
    probes, _ = plan_probes(read_meta_graph(warm_dir), records, batch_sizes=[4, 5])
    asked = [
        (probe.signature_key, probe.output_filter, probe.batch_size, probe.in_file)
        for probe in probes
    ]
    assert asked == [
        ("serving_default", (), 2, True),
        ("serving_default", ("a",), 2, True),
        ("serving_default", (), 4, True),
        ("serving_default", (), 5, False),
        ("serving_default", ("a",), 4, False),
        ("serving_default", ("a",), 5, False),
        ("other", (), 4, False),
        ("other", (), 5, False),
    ]
    assert all(len(rows_of(log)) == probe.batch_size for probe in probes for log in probe.logs)


def test_data_that_does_not_fit_is_refused_before_anything_is_measured(warm_dir):
    data = Batch(np.zeros((4, 9), np.float32), 4)
    with pytest.raises(BindingError) as caught:
        plan_probes(read_meta_graph(warm_dir), [predict_log(WARMED)], batches=[data])
    assert str(caught.value) == (
        "Cannot bind batch to signature 'other': input 'x' expects "
        "float32 [None, 3], got float32 [4, 9] from x (shape differs in dimension 1). Cast or reshape it in the dataset, or pass "
        "transform=."
    )


def test_without_records_and_data_rows_are_made_up(cold_dir):
    probes, _ = plan_probes(read_meta_graph(cold_dir), [])
    assert [(probe.signature_key, probe.rows, probe.in_file) for probe in probes] == [
        ("other", "synthetic", False),
        ("serving_default", "synthetic", False),
    ]


def test_examples_are_sent_in_another_order(cold_dir):
    log = PredictionLog()
    log.classify_log.request.model_spec.signature_name = "serving_default"
    for value in (1, 2):
        example = log.classify_log.request.input.example_list.examples.add()
        example.features.feature["x"].int64_list.value.append(value)
    probe = next(
        one for one in plan_probes(read_meta_graph(cold_dir), [log])[0] if one.kind == "classify"
    )
    sent = probe.logs[0].classify_log.request.input.example_list.examples
    assert [one.features.feature["x"].int64_list.value[0] for one in sent] == [2, 1]
    assert (probe.batch_size, probe.in_file, probe.rows) == (2, True, "reordered")


# In which order.


class FakeEngine:
    def __init__(self, fails=()):
        self.asked = []
        self._fails = fails

    def sample(self, requests, count, warmup_file):
        self.asked.append((requests, count, warmup_file))
        if requests in self._fails:
            raise ReplayError("no")
        return RunTiming(1.0, (), tuple(range(count)))


def probe_named(name, in_file=True):
    return Probe(name, "predict", (), 2, {}, in_file, "data", logs=name)


def test_cold_and_warm_and_the_probes_take_turns():
    engine, seen = FakeEngine(), []
    runs = measure_probes(
        engine,
        [probe_named("a"), probe_named("b")],
        {"cold": None, "warm": "file"},
        processes=2,
        requests=3,
        progress=lambda *told: seen.append(told),
    )
    order = [(requests, "warm" if file else "cold") for requests, _, file in engine.asked]
    assert order == [
        *[("a", "cold"), ("a", "warm"), ("b", "warm"), ("b", "cold")],
        *[("b", "cold"), ("b", "warm"), ("a", "warm"), ("a", "cold")],
    ]
    assert {count for _, count, _ in engine.asked} == {4}
    assert [told[:2] for told in seen] == [(done, 8) for done in range(1, 9)]
    assert runs[0].first_ms("cold").values == (0, 0)
    assert runs[0].steady_ms("warm").values == (1, 2, 3) * 2
    assert runs[0].first_ms("running") is None


def test_only_a_request_without_a_record_may_fail():
    runs = measure_probes(
        FakeEngine(fails=("b",)),
        [probe_named("a"), probe_named("b", in_file=False)],
        {"cold": None},
        processes=2,
        requests=1,
    )
    assert [run.problem for run in runs] == ["", "no"]
    with pytest.raises(ReplayError, match="no"):
        measure_probes(
            FakeEngine(fails=("a",)), [probe_named("a")], {"cold": None}, processes=1, requests=1
        )


# Fresh processes.


def test_a_process_replays_the_file_and_then_times_the_requests(warm_dir):
    sample = ProcessEngine(warm_dir).sample([predict_log(WARMED)], 3, warmup_path(warm_dir))
    assert len(sample.replay_ms) == 1 and len(sample.request_ms) == 3
    assert min(sample.load_ms, *sample.replay_ms, *sample.request_ms) > 0


def test_what_fails_in_the_process_is_raised_here(warm_dir, tmp_path):
    with pytest.raises(ReplayError) as caught:
        ProcessEngine(warm_dir).sample([predict_log(WARMED, "nope")], 1, None)
    assert str(caught.value).endswith(
        'FAILED_PRECONDITION: Serving signature key "nope" not found.'
    )


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("exit 3", "ended with exit code 3 before it had measured anything."),
        (
            "kill -9 $$",
            "died (SIGKILL; the machine may be short of memory) before it had measured anything.",
        ),
        (
            "echo 'F0000 00:00:17.1 479 tensor.cc:904] Check failed: 1 == 7 (1 vs. 7)' >&2; kill -6 $$",
            "died (SIGABRT, a CHECK of TensorFlow failed at tensor.cc:904) before it had measured anything.",
        ),
        (
            "echo '[[1.5 2.5]]' >&2; echo 'ImportError: no' >&2; exit 1",
            "ended with exit code 1 (ImportError) before it had measured anything.",
        ),
    ],
    ids=["exit", "killed", "check", "error"],
)
def test_a_process_that_dies_is_described_without_what_the_model_printed(
    script, how, warm_dir, tmp_path, monkeypatch
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ReplayError) as caught:
        ProcessEngine(warm_dir).sample([predict_log(WARMED)], 1, None)
    assert str(caught.value) == f"The process that measured {warm_dir!r} {how}"


def test_the_measuring_process_leaves_keras_alone():
    """Importing Keras takes as long as all the rest."""
    code = "import sys, keras_warmup._measure; print('keras' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "False\n"


# Composed.


def test_benchmark_reports_each_signature_cold_and_warm(warm_dir):
    data = np.arange(60, dtype=np.float32).reshape(20, 3)
    report = benchmark(warm_dir, data=data, processes=1, requests=2)
    assert [(entry.signature_key, entry.in_file, entry.rows) for entry in report.entries] == [
        ("serving_default", True, "data"),
        ("other", False, "data"),
    ]
    for entry in report.entries:
        assert entry.cold_ms > 0 and entry.warm_ms > 0 and entry.steady_p50_ms > 0
        assert entry.ratio == entry.cold_ms / entry.warm_ms
        assert entry.faster is None
    assert (report.records, report.processes, report.requests, report.engine) == (
        1,
        1,
        2,
        "process",
    )
    assert report.bytes > 0 and report.load_ms > 0 and report.load_added_ms > 0
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["entries"][0]["signature_key"] == "serving_default"
    assert plain["entries"][0]["shapes"] == {"x": [2, 3]}


def test_a_model_without_a_warmup_file_is_measured_cold(cold_dir):
    report = benchmark(cold_dir, processes=1, requests=1)
    assert all(
        entry.warm_ms is None and entry.ratio is None and entry.cold_ms > 0
        for entry in report.entries
    )
    assert report.load_added_ms is None and report.records == 0 and report.bytes == 0
    assert report.notes == (
        "There is no warmup file: only the cold start was measured. Write one with keras_warmup.add_warmup.",
        "Some requests were made up from the signatures: pass data= for real ones.",
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"processes": 0}, "processes must be an integer >= 1, got 0."),
        ({"requests": 1.5}, "requests must be an integer >= 1, got 1.5."),
        ({"processes": True}, "processes must be an integer >= 1, got True."),
        ({"batch_sizes": [2, 0]}, "each of batch_sizes must be an integer >= 1, got 0."),
    ],
)
def test_options_out_of_range_are_refused(warm_dir, options, text):
    with pytest.raises(OptionsError) as caught:
        benchmark(warm_dir, **options)
    assert str(caught.value) == text


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(SignatureError):
        benchmark(tmp_path)


# How it reads.


def entry(**changes):
    base = BenchmarkEntry(
        signature_key="serving_default",
        kind="predict",
        output_filter=(),
        batch_size=2,
        shapes={"x": (2, 3)},
        in_file=True,
        rows="data",
        cold_ms=120.0,
        cold_range_ms=(100.0, 140.0),
        warm_ms=1.5,
        warm_range_ms=(1.2, 2.0),
        steady_p50_ms=0.8,
        steady_p99_ms=1.4,
        ratio=80.0,
        faster=True,
    )
    return dataclasses.replace(base, **changes)


def report_of(*entries, **changes):
    base = BenchmarkReport(
        "./digits/1",
        entries,
        300.0,
        (290.0, 320.0),
        150.0,
        (140.0, 170.0),
        1,
        400,
        5,
        20,
        0,
        "process",
        "Noise: little.",
        (),
    )
    return dataclasses.replace(base, **changes)


def text_of(report):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report)
    return [line.rstrip() for line in console.export_text().splitlines() if line.strip()]


def test_the_table_can_be_read_by_a_newcomer():
    assert text_of(report_of(entry(), entry(signature_key="serve", faster=False))) == [
        "First request after loading ./digits/1",
        "  signature         batch   cold, ms   warm, ms      faster   steady, ms",
        " ────────────────────────────────────────────────────────────────────────",
        "  serving_default       2        120       1.50         80x         0.80",
        "  serve                 2        120       1.50   not shown         0.80",
        "cold: without the warmup file. warm: after the file was replayed. Medians of 5 fresh processes each,",
        "taking turns. steady: the median of the 20 requests that follow in each.",
        "The file (1 record, 400 bytes) adds 150 ms to a load of 300 ms.",
        "Noise: little.",
    ]


def test_kinds_and_output_sets_have_columns_where_they_differ():
    lines = text_of(report_of(entry(), entry(kind="classify", output_filter=("scores", "classes"))))
    assert (
        lines[1]
        == "  signature         kind       outputs           batch   cold, ms   warm, ms   faster   steady, ms"
    )
    assert lines[4].split() == [
        "serving_default",
        "classify",
        "scores,",
        "classes",
        "2",
        "120",
        "1.50",
        "80x",
        "0.80",
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "80x"),
        ({"ratio": 3.21}, "3.2x"),
        ({"faster": False}, "not shown"),
        ({"faster": None}, "?"),
        ({"ratio": None, "faster": None}, "-"),
    ],
)
def test_a_gain_reads(changes, text):
    assert render_gain(entry(**changes)) == text


def test_milliseconds_keep_three_digits():
    assert [render_ms(value) for value in (None, 1234.5, 99.94, 12.34, 0.567)] == [
        "-",
        "1234",
        "99.9",
        "12.3",
        "0.57",
    ]


def test_noise_is_said():
    said = describe_noise(report_of(entry()))
    assert said.startswith(
        "Noise: equal first requests differed, cold ones by up to 33 % and warm ones by up to 53 % of their median"
    )
    assert said.endswith(" No gain smaller than that is claimed.")
    assert describe_noise(report_of(entry(), processes=2)) == (
        "Noise: fewer than 3 processes show no spread, so no gain is claimed."
    )


def test_what_was_sent_is_said_where_it_matters():
    assert notes_of(report_of(entry(rows="warmed"))) == [
        "Some requests were the very rows of the warmup file, which has no others: pass data= for a fair one."
    ]
