from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.minimize import drop_records, find_redundant, minimize
from keras_warmup.bench.processes import RunTiming
from keras_warmup.errors import OptionsError, RecordsError
from keras_warmup.records.prediction_logs import describe_log
from keras_warmup.records.warmup_file import read_records, warmup_path, write_records

STEADY_MS = 1.0


def predict_log(rows, signature_key="serving_default", value=1.0, output_filter=()):
    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature_key
    log.predict_log.request.output_filter.extend(output_filter)
    log.predict_log.request.inputs["x"].CopyFrom(
        tf.make_tensor_proto(np.full((rows, 3), value, np.float32))
    )
    return log


class LazyModel:
    """Costs as TensorFlow Serving has them: an executor for each set of outputs, the first product of several rows, and
    a branch that only some values take.
    """

    def __init__(self, noise=lambda start: 0.0):
        self.starts = 0
        self._noise = noise

    def sample(self, requests, count, warmup_file):
        self.starts += 1
        warm = set()
        replay = tuple(
            self._cost(log, warm) for log in (read_records(warmup_file) if warmup_file else ())
        )
        return RunTiming(
            10.0,
            replay,
            tuple(self._cost(requests[index % len(requests)], warm) for index in range(count)),
        )

    def _cost(self, log, warm):
        about = describe_log(log)
        cost = STEADY_MS + self._noise(self.starts)
        needs = {("executor", about["signature_key"], about["output_filter"]): 50}
        if about["batch_size"] > 1:
            needs["product"] = 40
        if tf.make_ndarray(log.predict_log.request.inputs["x"]).max() < 0:
            needs["branch"] = 30
        cost += sum(ms for need, ms in needs.items() if need not in warm)
        warm.update(needs)
        return cost


def redundant(logs, **options):
    return sorted(find_redundant(LazyModel(**options), logs, processes=3)[0])


def test_copies_of_a_record_are_redundant():
    assert redundant([predict_log(2)] * 5) == [1, 2, 3, 4]


def test_a_batch_of_one_is_redundant_beside_a_larger_one_in_either_order():
    assert redundant([predict_log(1), predict_log(2)]) == [0]
    assert redundant([predict_log(2), predict_log(1)]) == [1]


def test_other_signatures_output_sets_and_branches_are_needed():
    logs = [
        predict_log(2),
        predict_log(2, "serve"),
        predict_log(2, output_filter=["a"]),
        predict_log(2, value=-1.0),
    ]
    assert redundant(logs) == []


def test_one_record_is_never_redundant():
    assert redundant([predict_log(2)]) == []


def test_in_doubt_a_record_is_kept():
    # A slow turn falls on the replay as on what follows: half a millisecond is the most that noise may hide.
    assert redundant([predict_log(2), predict_log(2)], noise=lambda start: 0.3 * start) == [1]
    jumps = iter(range(10_000))
    assert (
        redundant(
            [predict_log(2), predict_log(2)], noise=lambda _: 40.0 if next(jumps) % 4 == 1 else 0.0
        )
        == []
    )


def test_a_candidate_that_proves_to_be_needed_comes_back():
    class Lucky(LazyModel):
        """In the first processes nothing seems to cost anything."""

        def _cost(self, log, warm):
            cost = super()._cost(log, warm)
            return STEADY_MS if self.starts <= 3 else cost

    found, _ = find_redundant(
        Lucky(), [predict_log(2), predict_log(2), predict_log(2, "serve")], processes=3
    )
    assert sorted(found) == [1]
    # Of two that are equal in shape either may be the one needed.
    found, _ = find_redundant(
        Lucky(), [predict_log(2, "serve"), predict_log(2), predict_log(2)], processes=3
    )
    assert sorted(found) == []


def test_progress_ends_at_its_total():
    seen = []
    find_redundant(
        LazyModel(), [predict_log(2)] * 2, processes=3, progress=lambda *told: seen.append(told[:2])
    )
    assert seen[-1] == (9, 9)


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("minimize") / "1")

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
        def call(self, x):
            return {"y": tf.matmul(x, tf.ones([3, 4]))}

    tf.saved_model.save(Model(), path, signatures={"serving_default": Model().call})
    write_records(warmup_path(path), [predict_log(2)] * 4, max_records=10, max_bytes=2**20)
    return path


def test_a_file_is_measured_and_rewritten_without_its_copies(export_dir):
    report = minimize(export_dir)
    # A busy machine may keep one too many, never drop the one that is needed.
    assert 0 in report.kept and report.records == 4
    assert len(report.kept) + len(report.redundant) == 4
    assert report.to_dict()["kept"] == list(report.kept)
    console = Console(width=120, record=True, quiet=True)
    console.print(report)
    drop_records(report)
    assert len(list(read_records(export_dir))) == len(report.kept)
    if report.redundant:
        with pytest.raises(RecordsError) as caught:
            drop_records(report)
        assert str(caught.value) == (
            f"Warmup file {warmup_path(export_dir)!r} holds {len(report.kept)} records, 4 when it was measured. Measure it again."
        )


def test_fewer_than_three_processes_are_refused(export_dir):
    with pytest.raises(OptionsError) as caught:
        minimize(export_dir, processes=2)
    assert str(caught.value) == "processes must be an integer >= 3, got 2."
