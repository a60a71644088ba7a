"""Which records are found redundant, and what is written without them."""

from __future__ import annotations

import io
import itertools
import pathlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.minimize import MinimizeReport, RedundantRecord, find_redundant, minimize
from keras_warmup.bench.processes import ProcessEngine, RunTiming
from keras_warmup.errors import OptionsError, RecordsError, SignatureError
from keras_warmup.records.prediction_logs import describe_log
from keras_warmup.records.warmup_file import read_records, warmup_path
from tests.builders import predict_log, save_function, write_warmup_file

STEADY_MS = 1.0


def log_of(
    size: int,
    signature_key: str = "serving_default",
    *,
    value: float = 1.0,
    output_filter: Iterable[str] = (),
) -> PredictionLog:
    return predict_log(
        signature_key, x=np.full((size, 3), value, np.float32), output_filter=output_filter
    )


class LazyModel:
    """Has the first-time costs of TensorFlow Serving.

    They are an executor for each set of outputs, the first matrix product of several rows, and a
    branch that only some values take.
    """

    def __init__(self, noise_ms: Callable[[int], float] = lambda start: 0.0) -> None:
        self.starts = 0
        self._noise_ms = noise_ms

    def time_run(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        self.starts += 1
        warm: set[Hashable] = set()
        records = read_records(warmup_file) if warmup_file else ()
        replay_ms = tuple(self.cost_ms(log, warm) for log in records)
        request_ms = tuple(
            self.cost_ms(requests[index % len(requests)], warm) for index in range(count)
        )
        return RunTiming(10.0, replay_ms, request_ms)

    def cost_ms(self, log: PredictionLog, warm: set[Hashable]) -> float:
        about = describe_log(log)
        needs: dict[Hashable, float] = {
            ("executor", about["signature_key"], about["output_filter"]): 50
        }
        if about["batch_size"] > 1:
            needs["product"] = 40
        if tf.make_ndarray(log.predict_log.request.inputs["x"]).max() < 0:
            needs["branch"] = 30
        first_ms = sum(ms for need, ms in needs.items() if need not in warm)
        warm.update(needs)
        return STEADY_MS + self._noise_ms(self.starts) + first_ms


def redundant_in(*logs: PredictionLog, noise_ms: Callable[[int], float] | None = None) -> list[int]:
    model = LazyModel() if noise_ms is None else LazyModel(noise_ms)
    found = find_redundant(model, logs, processes=3)
    return [record.index for record in found.records]


def test_copies_of_a_record_are_redundant() -> None:
    assert redundant_in(*[log_of(2)] * 5) == [1, 2, 3, 4]


def test_a_batch_of_one_is_redundant_beside_a_larger_one_in_either_order() -> None:
    assert redundant_in(log_of(1), log_of(2)) == [0]
    assert redundant_in(log_of(2), log_of(1)) == [1]


def test_other_signatures_output_sets_and_branches_are_needed() -> None:
    logs = [
        log_of(2),
        log_of(2, "serve"),
        log_of(2, output_filter=["a"]),
        log_of(2, value=-1.0),
    ]
    assert redundant_in(*logs) == []


def test_one_record_is_never_redundant() -> None:
    assert redundant_in(log_of(2)) == []


def test_in_doubt_a_record_is_kept() -> None:
    # A slow turn affects the replay and the later requests, by half a millisecond at most.
    assert redundant_in(log_of(2), log_of(2), noise_ms=lambda start: 0.3 * start) == [1]
    calls = itertools.count()
    assert (
        redundant_in(log_of(2), log_of(2), noise_ms=lambda _: 40.0 if next(calls) % 4 == 1 else 0.0)
        == []
    )


def test_a_candidate_that_turns_out_to_be_needed_is_kept() -> None:
    class Lucky(LazyModel):
        """In the first processes, nothing costs anything."""

        def cost_ms(self, log: PredictionLog, warm: set[Hashable]) -> float:
            cost_ms = super().cost_ms(log, warm)
            return STEADY_MS if self.starts <= 3 else cost_ms

    found = find_redundant(Lucky(), [log_of(2), log_of(2), log_of(2, "serve")], processes=3)
    assert [record.index for record in found.records] == [1]
    # Of two records of the same shape, either may be the one that is needed.
    found = find_redundant(Lucky(), [log_of(2, "serve"), log_of(2), log_of(2)], processes=3)
    assert found.records == ()


def test_progress_ends_at_its_total() -> None:
    steps: list[tuple[int, int, str]] = []
    find_redundant(
        LazyModel(), [log_of(2)] * 2, processes=3, progress=lambda *step: steps.append(step)
    )
    assert steps[-1] == (9, 9, "record 1")


@pytest.fixture
def export_dir(tmp_path: pathlib.Path) -> str:
    """A model with four copies of a record."""
    path = save_function(
        lambda x: {"y": tf.matmul(x, tf.ones([3, 4]))},
        tmp_path / "1",
        [tf.TensorSpec([None, 3], tf.float32, name="x")],
    )
    return write_warmup_file(path, *[log_of(2)] * 4)


def test_copies_are_dropped_from_the_file_unless_it_is_a_dry_run(export_dir: str) -> None:
    report = minimize(export_dir, dry_run=True)
    assert not report.dropped
    assert list(read_records(export_dir)) == [log_of(2)] * 4
    report = minimize(export_dir)
    # On a busy machine one record too many may be kept, but the one that is needed never drops.
    assert 0 in report.kept and report.records == 4
    assert len(report.kept) + len(report.redundant) == 4
    assert report.dropped == bool(report.redundant)
    assert report.to_dict()["kept"] == list(report.kept)
    assert list(read_records(export_dir)) == [log_of(2)] * len(report.kept)


def test_a_file_that_changes_meanwhile_is_left_as_it_is(
    export_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LazyModel()

    def time_run(engine: ProcessEngine, *arguments: Any) -> RunTiming:
        write_warmup_file(export_dir, *[log_of(3)] * 4)
        return model.time_run(*arguments)

    monkeypatch.setattr(ProcessEngine, "time_run", time_run)
    with pytest.raises(RecordsError) as caught:
        minimize(export_dir)
    assert str(caught.value) == (
        f"Warmup file {warmup_path(export_dir)!r} changed while its 4 records were measured. It "
        "was left as it is; minimize it again."
    )
    assert list(read_records(export_dir)) == [log_of(3)] * 4


def test_the_report_reads() -> None:
    redundant = RedundantRecord(
        index=1,
        signature_key="serving_default",
        kind="predict",
        batch_size=2,
        output_filter=(),
        replay_ms=1.0,
        steady_ms=0.9,
        why="its replay takes 1.00 ms after the others, the same request 0.90 ms later",
    )
    report = MinimizeReport("./digits/1", 2, (0,), (redundant,), True, 50.0, 1.5, 3)
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(report)
    lines = [line.strip() for line in console.export_text().splitlines() if line.strip()]
    assert lines[0].split() == ["record", "signature", "batch", "why"]
    assert lines[2] == f"1        serving_default       2   {redundant.why}"
    assert lines[3:] == [
        "Redundant records: 1 of 2, dropped from the file. Replaying all records takes 50.0 ms, "
        "without these about 1.50 ms less (medians of 3 fresh processes).",
    ]


def test_fewer_than_three_processes_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionsError) as caught:
        minimize(tmp_path, processes=2)
    assert str(caught.value) == "processes must be an integer >= 3, got 2."


def test_a_model_and_a_warmup_file_are_required(cold_dir: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(SignatureError, match="No SavedModel at"):
        minimize(tmp_path)
    with pytest.raises(RecordsError, match="No warmup file at"):
        minimize(cold_dir)
