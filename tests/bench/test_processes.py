"""Timing in fresh processes, and what may be claimed from a few timings."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

from keras_warmup.bench.processes import ProcessEngine, Timings, check_count
from keras_warmup.errors import OptionsError, ReplayError, SignatureError
from keras_warmup.records.warmup_file import warmup_path
from tests.bench.models import WARMED_ROWS
from tests.builders import predict_log

ROWS = np.array(WARMED_ROWS, np.float32)


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
def test_a_gain_is_claimed_only_beyond_the_spread(
    cold: tuple[float, ...], warm: tuple[float, ...], exceeds: bool
) -> None:
    assert Timings(cold).exceeds(Timings(warm)) is exceeds


def test_the_range_holds_the_least_and_the_greatest_value() -> None:
    assert Timings((3.0, 1.0, 2.0)).range == (1.0, 3.0)


def test_a_process_replays_the_file_and_then_times_the_requests(warm_dir: str) -> None:
    timing = ProcessEngine(warm_dir).time_run(
        [predict_log("serving_default", x=ROWS)], 3, warmup_path(warm_dir)
    )
    assert len(timing.replay_ms) == 1 and len(timing.request_ms) == 3
    assert min(timing.load_ms, *timing.replay_ms, *timing.request_ms) > 0
    assert timing.loader in ("c++", "python")
    assert timing.memory_bytes is None or timing.memory_bytes > 0


def test_a_directory_without_a_model_is_refused_before_a_process_starts(
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(SignatureError):
        ProcessEngine(str(tmp_path)).time_run([predict_log(x=ROWS)], 1, None)


def test_a_failure_in_the_process_is_raised_here(warm_dir: str) -> None:
    with pytest.raises(ReplayError) as caught:
        ProcessEngine(warm_dir).time_run([predict_log("nope", x=ROWS)], 1, None)
    assert str(caught.value).endswith(
        'FAILED_PRECONDITION: Serving signature key "nope" not found.'
    )


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("exit 3", "ended with exit code 3"),
        ("kill -9 $$", "died (SIGKILL; the machine may be short of memory)"),
        (
            "echo 'F0000 00:00:17.1 479 tensor.cc:904] Check failed: 1 == 7 (1 vs. 7)' >&2; "
            "kill -6 $$",
            "died (SIGABRT, a CHECK of TensorFlow failed at tensor.cc:904)",
        ),
        (
            "echo '[[1.5 2.5]]' >&2; echo 'ImportError: no' >&2; exit 1",
            "ended with exit code 1 (ImportError)",
        ),
    ],
    ids=["exit", "killed", "check", "error"],
)
def test_a_process_that_ends_is_described_without_what_the_model_printed(
    script: str,
    how: str,
    warm_dir: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ReplayError) as caught:
        ProcessEngine(warm_dir).time_run([predict_log(x=ROWS)], 1, None)
    assert str(caught.value) == (
        f"The process that measured {warm_dir!r} {how} before it returned a result."
    )


@pytest.mark.parametrize("value", [0, 1.0, True, "1", None])
def test_a_count_is_a_positive_integer(value: object) -> None:
    with pytest.raises(OptionsError) as caught:
        check_count("processes", value)
    assert str(caught.value) == f"processes must be an integer >= 1, got {value!r}."


def test_a_count_may_be_an_integer_of_numpy() -> None:
    check_count("processes", np.int64(1))
