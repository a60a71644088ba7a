"""The requests that a measurement sends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.probes import plan_probes
from keras_warmup.data.batch import Batch
from keras_warmup.errors import BindingError
from keras_warmup.records.warmup_file import read_records
from keras_warmup.savedmodel.signatures import read_meta_graph
from tests.bench.models import WARMED_ROWS
from tests.builders import predict_log


def log_of(rows: Any, *output_filter: str) -> PredictionLog:
    return predict_log(
        "serving_default", x=np.asarray(rows, np.float32), output_filter=output_filter
    )


def rows_of(log: PredictionLog) -> Any:
    return tf.make_ndarray(log.predict_log.request.inputs["x"]).tolist()


def test_rows_of_the_data_other_than_the_warmed_ones_are_sent(warm_dir: str) -> None:
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


def test_without_data_the_rows_of_the_file_are_sent_in_another_order(warm_dir: str) -> None:
    probes, _ = plan_probes(read_meta_graph(warm_dir), list(read_records(warm_dir)))
    assert [(probe.signature_key, probe.rows, probe.batch_size) for probe in probes] == [
        ("serving_default", "reordered", 2),
        ("other", "reordered", 2),
    ]
    assert rows_of(probes[0].logs[0]) == [[4, 5, 6], [1, 2, 3]]


def test_where_the_rows_have_no_other_order_another_batch_size_is_sent_too(warm_dir: str) -> None:
    probes, _ = plan_probes(read_meta_graph(warm_dir), [log_of([[1, 2, 3]])])
    assert [
        (probe.signature_key, probe.rows, probe.batch_size, probe.in_file) for probe in probes
    ] == [
        ("serving_default", "warmed", 1, True),
        ("other", "warmed", 1, False),
        ("serving_default", "reordered", 2, False),
        ("other", "reordered", 2, False),
    ]


def test_each_output_set_and_batch_size_is_sent_once(warm_dir: str) -> None:
    records = [
        log_of(WARMED_ROWS),
        log_of(WARMED_ROWS),
        log_of(WARMED_ROWS, "a"),
        log_of(WARMED_ROWS, "b", "a"),
        log_of(WARMED_ROWS * 2),
    ]
    probes, _ = plan_probes(read_meta_graph(warm_dir), records, batch_sizes=[4, 5])
    assert [
        (probe.signature_key, probe.output_filter, probe.batch_size, probe.in_file)
        for probe in probes
    ] == [
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


def test_data_that_does_not_fit_is_refused_before_anything_is_measured(warm_dir: str) -> None:
    data = Batch(np.zeros((4, 9), np.float32), 4)
    with pytest.raises(BindingError) as caught:
        plan_probes(read_meta_graph(warm_dir), [log_of(WARMED_ROWS)], batches=[data])
    assert str(caught.value) == (
        "Cannot bind batch to signature 'other': input 'x' expects float32 [None, 3], got float32 "
        "[4, 9] from x (shape differs in dimensions [1]). Cast or reshape it in the dataset, or "
        "pass warmup={'transform': ...}."
    )


def test_without_records_and_data_rows_are_made_up(cold_dir: str) -> None:
    probes, _ = plan_probes(read_meta_graph(cold_dir), [])
    assert [(probe.signature_key, probe.rows, probe.in_file) for probe in probes] == [
        ("other", "synthetic", False),
        ("serving_default", "synthetic", False),
    ]


def test_examples_are_sent_in_another_order(cold_dir: str) -> None:
    log = PredictionLog()
    log.classify_log.request.model_spec.signature_name = "serving_default"
    for value in (1, 2):
        example = log.classify_log.request.input.example_list.examples.add()
        example.features.feature["x"].int64_list.value.append(value)
    probes, _ = plan_probes(read_meta_graph(cold_dir), [log])
    (probe,) = (one for one in probes if one.kind == "classify")
    sent = probe.logs[0].classify_log.request.input.example_list.examples
    assert [one.features.feature["x"].int64_list.value[0] for one in sent] == [2, 1]
    assert (probe.batch_size, probe.in_file, probe.rows) == (2, True, "reordered")
