"""The process that takes one measurement."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from keras_warmup.bench import measure_process
from keras_warmup.bench.measure_process import main, measure
from keras_warmup.records.warmup_file import warmup_path, write_records
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.serving.child_process import child_environment
from tests.bench.models import WARMED_ROWS
from tests.builders import predict_log


def test_the_measuring_process_does_not_import_keras() -> None:
    """Importing Keras takes as long as all the rest."""
    code = "import sys, keras_warmup.bench.measure_process; print('keras' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "False\n"


def test_requests_are_sent_in_turn_until_there_are_enough(
    warm_dir: str, tmp_path: pathlib.Path
) -> None:
    rows = np.array(WARMED_ROWS, np.float32)
    logs = [predict_log("serving_default", x=rows), predict_log("other", x=rows)]
    requests_file = str(tmp_path / "requests")
    write_records(requests_file, logs, max_records=10, max_bytes=2**20)
    job = {
        "export_dir": warm_dir,
        "meta_graph": read_meta_graph(warm_dir).SerializeToString().hex(),
        "warmup_file": warmup_path(warm_dir),
        "requests_file": requests_file,
        "requests": 5,
    }
    result = measure(job)
    assert result["load_ms"] > 0
    assert (len(result["replay_ms"]), len(result["request_ms"])) == (1, 5)
    cold = measure({**job, "warmup_file": None})
    assert cold["replay_ms"] == [] and cold["loader"] in ("c++", "python")


def test_without_the_c_api_a_session_in_python_is_measured(
    warm_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_process, "c_api", lambda: None)
    requests_file = str(tmp_path / "requests")
    log = predict_log("serving_default", x=np.array(WARMED_ROWS, np.float32))
    write_records(requests_file, [log], max_records=10, max_bytes=2**20)
    job = {
        "export_dir": warm_dir,
        "warmup_file": warmup_path(warm_dir),
        "requests_file": requests_file,
        "requests": 2,
    }
    result = measure(job)
    assert result["loader"] == "python"
    assert result["load_ms"] > 0
    assert (len(result["replay_ms"]), len(result["request_ms"])) == (1, 2)


def test_an_error_is_written_to_the_result_file(cold_dir: str, tmp_path: pathlib.Path) -> None:
    requests_file = str(tmp_path / "requests")
    write_records(requests_file, [predict_log("nope")], max_records=10, max_bytes=2**20)
    job = {
        "export_dir": cold_dir,
        "meta_graph": read_meta_graph(cold_dir).SerializeToString().hex(),
        "warmup_file": None,
        "requests_file": requests_file,
        "requests": 1,
        "result_file": str(tmp_path / "result.json"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    main([str(tmp_path / "job.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["error"].endswith('Serving signature key "nope" not found.')
