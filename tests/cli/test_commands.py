"""The commands: exit codes, JSON, what is printed and where."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup import verification
from keras_warmup.bench.processes import ProcessEngine
from keras_warmup.cli.commands import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, main
from tests.builders import save_function

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model() -> Any:
    x = keras.Input((4,), name="x")
    return keras.Model(x, keras.layers.Dense(2)(x))


@pytest.fixture
def export_dir(model: Any, tmp_path: pathlib.Path) -> str:
    path = tmp_path / "m" / "1"
    model.export(path, verbose=False)
    return str(path)


@pytest.fixture
def npz(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.random.default_rng(0).random((10, 4), "float32"))
    return str(path)


def run(capsys: Capture, *argv: str) -> tuple[int, str, str]:
    """Runs a command; returns its exit code, stdout and stderr."""
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def test_add_from_npz_then_verify_and_records(capsys: Capture, export_dir: str, npz: str) -> None:
    code, out, err = run(capsys, "add", export_dir, "--data", npz, "--json", "--batch-size", "3")
    report = json.loads(out)
    assert (code, err) == (EXIT_OK, "")
    assert [
        (record["signature_key"], record["shapes"], record["source"])
        for record in report["records"]
    ] == [
        ("serving_default", {"x": [3, 4]}, "data"),
        ("serve", {"x": [3, 4]}, "data"),
    ]
    code, out, _ = run(capsys, "verify", export_dir, "--json")
    assert code == EXIT_OK
    assert json.loads(out)["ok"] is True
    code, out, _ = run(capsys, "records", export_dir, "--json")
    assert code == EXIT_OK
    assert [record["batch_size"] for record in json.loads(out)["records"]] == [3, 3]


def test_add_without_data_makes_rows_up_with_a_warning(capsys: Capture, export_dir: str) -> None:
    code, out, err = run(capsys, "add", export_dir)
    assert code == EXIT_OK
    assert "synthetic" in out
    assert f"keras-warmup: warning: The warmup records of {export_dir!r} hold made-up rows" in err


def test_verify_without_a_warmup_file_fails(capsys: Capture, export_dir: str) -> None:
    code, out, err = run(capsys, "verify", export_dir)
    assert code == EXIT_FAILED
    assert "No warmup file at" in out
    assert err == "keras-warmup: starting TensorFlow and replaying the warmup file ...\n"


@pytest.mark.parametrize(("side", "sizes"), [(8, "batch sizes"), (None, "batch and image sizes")])
def test_inspect_shows_which_sizes_of_a_convolution_are_free(
    side: int | None, sizes: str, capsys: Capture, tmp_path: pathlib.Path
) -> None:
    x = keras.Input((side, side, 3), name="x")
    keras.Model(x, keras.layers.Conv2D(2, 3)(x)).export(tmp_path / "1", verbose=False)
    out = " ".join(run(capsys, "inspect", str(tmp_path / "1"))[1].split())
    assert (
        "convolves: the first request of a size is slower; records of the "
        f"{sizes} that clients send" in out
    )


def test_verify_names_a_directory_that_no_server_loads(
    capsys: Capture, export_dir: str, npz: str, tmp_path: pathlib.Path
) -> None:
    run(capsys, "add", export_dir, "--data", npz)
    _, _, err = run(capsys, "verify", export_dir)
    assert err == "keras-warmup: starting TensorFlow and replaying the warmup file ...\n"
    latest = tmp_path / "latest"
    latest.symlink_to(export_dir)
    code, _, err = run(capsys, "verify", str(latest))
    assert code == EXIT_OK
    assert (
        f"No TensorFlow Serving server loads {str(latest)!r}: its last component is not an "
        "integer." in err
    )


def test_inspect_prints_inputs_and_outputs(capsys: Capture, export_dir: str) -> None:
    code, out, err = run(capsys, "inspect", export_dir)
    assert (code, err) == (EXIT_OK, "")
    assert "x: float32 [None, 4]" in out
    assert "no warmup file: the first requests will be slow" in out
    code, out, _ = run(capsys, "inspect", export_dir, "--json")
    assert [signature["key"] for signature in json.loads(out)["signatures"]] == [
        "serve",
        "serving_default",
    ]


def test_add_plans_the_batch_sizes_itself(capsys: Capture, export_dir: str, npz: str) -> None:
    code, out, err = run(capsys, "add", export_dir, "--data", npz, "--json", "--batch-size", "auto")
    assert (code, err) == (EXIT_OK, "")
    # The model has neither convolutions nor attention: one size warms all.
    assert {tuple(record["shapes"]["x"]) for record in json.loads(out)["records"]} == {(2, 4)}
    code, out, err = run(
        capsys, "add", export_dir, "--data", npz, "--batch-size", "auto", "--batch-size", "3"
    )
    assert (code, err) == (
        EXIT_USAGE,
        "keras-warmup: error: --batch-size auto plans the sizes itself; give it alone\n",
    )


def test_add_sends_whole_batches(capsys: Capture, export_dir: str, npz: str) -> None:
    code, out, err = run(capsys, "add", export_dir, "--data", npz, "--json", "--whole-batches")
    assert (code, err) == (EXIT_OK, "")
    assert {tuple(record["shapes"]["x"]) for record in json.loads(out)["records"]} == {(10, 4)}


def test_errors_are_one_line_on_stderr(
    capsys: Capture, tmp_path: pathlib.Path, export_dir: str, npz: str
) -> None:
    code, out, err = run(capsys, "inspect", str(tmp_path / "none"))
    assert (code, out) == (EXIT_FAILED, "")
    assert err.startswith("keras-warmup: error: No SavedModel at ")
    assert err.count("\n") == 1
    missing = str(tmp_path / "none.npz")
    code, out, err = run(capsys, "add", export_dir, "--data", missing)
    assert (code, err) == (
        EXIT_USAGE,
        f"keras-warmup: error: Cannot read data from {missing!r}: there is no such file.\n",
    )
    code, out, err = run(capsys, "add", export_dir, "--data", npz, "--batch-size", "0")
    assert (code, err) == (
        EXIT_USAGE,
        "keras-warmup: error: Bad warmup options: batch_sizes must hold integers >= 1, got [0].\n",
    )
    code, out, err = run(capsys, "add", export_dir, "--data", npz, "--signature", "nope")
    assert err.endswith(
        "error: The SavedModel has no signatures ['nope']. It has ['serve', 'serving_default'].\n"
    )


def test_npz_must_hold_plain_arrays(
    capsys: Capture, tmp_path: pathlib.Path, export_dir: str
) -> None:
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x=np.array([{"a": 1}], dtype=object))
    text = tmp_path / "text.npz"
    text.write_text("hello")
    empty = tmp_path / "empty.npz"
    np.savez(empty)
    for path, expected in (
        (pickled, "It must be an .npz file of plain arrays"),
        (text, "It must be an .npz file of plain arrays"),
        (empty, "it has no named arrays"),
    ):
        code, _, err = run(capsys, "add", export_dir, "--data", str(path))
        assert code == EXIT_USAGE
        assert expected in err


def test_the_module_runs_and_prints_its_version() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "keras_warmup", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert ended.stdout == f"keras-warmup {kw.__version__}\n"


def test_importing_the_command_line_does_not_import_tensorflow() -> None:
    code = "import sys, keras_warmup.cli; print({'tensorflow', 'rich'} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert ended.stdout == "set()\n"


def test_bench_prints_entries(capsys: Capture, export_dir: str, npz: str) -> None:
    run(capsys, "add", export_dir, "--data", npz, "--share-twins", "--batch-size", "2")
    code, out, err = run(
        capsys, "bench", export_dir, "--processes", "1", "--requests", "2", "--json"
    )
    assert (code, err) == (EXIT_OK, "")
    assert ("serving_default", 2) in {
        (entry["signature_key"], entry["batch_size"]) for entry in json.loads(out)["entries"]
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--plot", "/nowhere/bench.png"),
            "A plot cannot be written to '/nowhere/bench.png': its directory does not exist.",
        ),
        (
            ("--server", "localhost"),
            "Bad model server: address must be 'HOST:PORT' (the gRPC port, usually 8500), got "
            "'localhost'.",
        ),
        (
            ("--model-name", "digits"),
            "--model-name and --server-arg need --server, --model-server or --docker.",
        ),
        (
            ("--server", "localhost:1", "--server-arg=--flag"),
            "Bad model server: args are flags for a server that is started, not for a running one.",
        ),
    ],
    ids=["plot", "address", "model-name", "server-arg"],
)
def test_bench_refuses_options_before_it_measures(
    capsys: Capture, tmp_path: pathlib.Path, options: tuple[str, ...], message: str
) -> None:
    code, _, err = run(capsys, "bench", str(tmp_path), *options)
    assert (code, err) == (EXIT_USAGE, f"keras-warmup: error: {message}\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), None),
        (("--server", "localhost:8500"), kw.ModelServer(address="localhost:8500")),
        (("--model-server",), kw.ModelServer()),
        (("--model-server", "/bin/server"), kw.ModelServer(command="/bin/server")),
        (("--docker",), kw.ModelServer(docker="tensorflow/serving")),
        (
            ("--docker", "an/image", "--model-name", "m", "--server-arg=--flag"),
            kw.ModelServer(docker="an/image", model_name="m", args=["--flag"]),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bench_asks_for_the_server_that_its_options_name(
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    expected: kw.ModelServer | None,
) -> None:
    servers = []

    def benchmark(export_dir: str, *, server: kw.ModelServer | None, **_: object) -> None:
        servers.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_warmup.bench.benchmark.benchmark", benchmark)
    code, _, _ = run(capsys, "bench", "m/1", *options)
    assert (code, servers) == (EXIT_INTERRUPTED, [expected])


def test_bench_measures_against_another_export(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = []

    def benchmark(export_dir: str, *, against: str | None, **_: object) -> None:
        others.append(against)
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_warmup.bench.benchmark.benchmark", benchmark)
    run(capsys, "bench", "m/1", "--against", "plain/1")
    run(capsys, "bench", "m/1")
    assert others == ["plain/1", None]


def test_minimize_reports_and_drops_redundant_records(
    capsys: Capture, export_dir: str, npz: str
) -> None:
    sizes = ("--batch-size", "1", "--batch-size", "2")
    run(capsys, "add", export_dir, "--data", npz, "--share-twins", *sizes)
    code, out, err = run(capsys, "minimize", export_dir, "--dry-run", "--json")
    assert (code, err) == (EXIT_OK, "")
    assert (json.loads(out)["records"], json.loads(out)["dropped"]) == (2, False)
    assert len(list(kw.read_records(export_dir))) == 2
    code, out, err = run(capsys, "minimize", export_dir)
    assert code == EXIT_OK
    assert err.startswith("keras-warmup: measuring 1/6\n")
    assert "Redundant records: " in out
    # On a busy machine, both may be kept.
    kept = 2 - int(out.partition("Redundant records: ")[2].split()[0])
    assert kept >= 1
    assert len(list(kw.read_records(export_dir))) == kept


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--processes", "1"), EXIT_USAGE, "processes must be an integer >= 3, got 1."),
        ((), EXIT_FAILED, "No warmup file at "),
    ],
    ids=["processes", "no-file"],
)
def test_minimize_tells_usage_from_failure(
    capsys: Capture, export_dir: str, options: tuple[str, ...], code: int, message: str
) -> None:
    ended, out, err = run(capsys, "minimize", export_dir, *options)
    assert (ended, out) == (code, "")
    assert err.startswith(f"keras-warmup: error: {message}")


def test_freeze_publishes_a_frozen_model_beside_the_other(
    capsys: Capture, export_dir: str, tmp_path: pathlib.Path
) -> None:
    output = str(tmp_path / "frozen" / "1")
    code, out, err = run(capsys, "freeze", export_dir, "--output", output, "--json")
    report = json.loads(out)
    assert (code, err) == (EXIT_OK, "")
    assert report["export_dir"] == output
    assert report["frozen"] == {
        "constants": 2,
        "constant_bytes": 40,
        "variables": {},
        "variable_bytes": 0,
    }
    code, out, _ = run(capsys, "freeze", export_dir, "--max-bytes", "8")
    assert code == EXIT_OK
    assert "1 variables are constants (8 bytes), 1 stayed variables (32 bytes)" in out
    assert "1 stayed because the constants would exceed 8 bytes: " in out


def test_freeze_tells_usage_from_failure(capsys: Capture, export_dir: str) -> None:
    code, out, err = run(capsys, "freeze", export_dir, "--max-bytes", "0")
    assert (code, out) == (EXIT_USAGE, "")
    assert err.endswith(
        "error: max_bytes must be 1 to 2147483647 (a SavedModel proto ends at 2 GiB), got 0.\n"
    )
    code, _, err = run(capsys, "freeze", export_dir, "--max-bytes", "1", "--json")
    assert code == EXIT_FAILED
    assert "none of its 2 variables can become a constant" in err


def test_method_names_are_written_in_place(
    capsys: Capture, saved_models: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    export_dir = shutil.copytree(
        saved_models / "chicago_taxi_estimator" / "1", tmp_path / "1", copy_function=shutil.copyfile
    )
    for path in [export_dir, *export_dir.rglob("*")]:
        path.chmod(0o755)
    code, out, _ = run(capsys, "method-names", str(export_dir), "--json")
    assert code == EXIT_OK
    method_names = {one["key"]: one["method_name"] for one in json.loads(out)["signatures"]}
    assert method_names["regression"] == "tensorflow/serving/regress"


def test_interrupted_work_ends_without_a_traceback(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, export_dir: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verification, "verify", interrupt)
    code, out, err = run(capsys, "verify", export_dir, "--json")
    assert (code, out, err) == (130, "", "keras-warmup: interrupted\n")


def test_a_closed_stdout_is_not_an_error(export_dir: str) -> None:
    command = f"{sys.executable} -m keras_warmup inspect {export_dir} --json | true"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


VECTOR = tf.TensorSpec([None], tf.float32)


@pytest.fixture
def writing_dir(tmp_path: pathlib.Path) -> str:
    """A model whose signature writes a file `marker` beside it."""

    def write(x: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(str(tmp_path / "marker"), "here")]):
            return {"y": tf.identity(x)}

    return save_function(write, tmp_path / "1", [VECTOR])


@pytest.mark.parametrize("command", ["verify", "add", "bench", "minimize"])
def test_unsafe_ops_are_refused_before_anything_runs(
    capsys: Capture, writing_dir: str, tmp_path: pathlib.Path, command: str
) -> None:
    code, out, err = run(capsys, command, writing_dir, "--json", "--refuse-unsafe-ops")
    assert (code, out) == (EXIT_FAILED, "")
    assert err.startswith(
        f"keras-warmup: error: Refused to run SavedModel {writing_dir!r}: nothing was run. The "
        "model runs ops that act outside of it: 'WriteFile' (writes files: signature "
        "'serving_default', "
    )
    assert not (tmp_path / "marker").exists()


def test_unsafe_ops_are_named_before_the_model_runs(
    capsys: Capture, writing_dir: str, tmp_path: pathlib.Path
) -> None:
    warning = f"keras-warmup: warning: SavedModel {writing_dir!r} will be run. "
    code, _, err = run(capsys, "add", writing_dir, "--json")
    assert code == EXIT_OK
    assert err.startswith(warning + "The model runs ops that act ")
    (tmp_path / "marker").unlink()
    code, out, err = run(capsys, "verify", writing_dir, "--json")
    assert (code, json.loads(out)["ok"]) == (EXIT_OK, True)
    assert err.startswith(warning)
    assert (tmp_path / "marker").exists()


def test_minimize_warns_of_unsafe_ops(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, writing_dir: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    run(capsys, "add", writing_dir, "--json")
    monkeypatch.setattr(ProcessEngine, "time_run", interrupt)
    code, _, err = run(capsys, "minimize", writing_dir, "--json")
    assert code == EXIT_INTERRUPTED
    assert err.startswith(f"keras-warmup: warning: SavedModel {writing_dir!r} will be run. ")


def test_verify_reports_a_model_that_ends_tensorflow(
    capsys: Capture, tmp_path: pathlib.Path
) -> None:
    def abort(x: Any) -> Any:
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="")]):
            return {"y": tf.identity(x)}

    path = save_function(abort, tmp_path / "1", [VECTOR])
    run(capsys, "add", path, "--no-verify", "--json")
    code, out, _ = run(capsys, "verify", path, "--json")
    assert code == EXIT_FAILED
    assert json.loads(out)["failures"] == [
        "The process that ran the model died (SIGABRT) while replaying record 0. A server would "
        "crash too."
    ]


def test_verify_takes_limits(capsys: Capture, export_dir: str, npz: str) -> None:
    run(capsys, "add", export_dir, "--data", npz)
    code, out, _ = run(
        capsys, "verify", export_dir, "--timeout", "60", "--memory-limit", "1024", "--json"
    )
    assert (code, json.loads(out)["ok"]) == (EXIT_OK, True)
    for options, message in (
        (("--timeout", "0"), "timeout_s must be a number > 0 and <= 604800, got 0.0."),
        (("--memory-limit", "0"), "memory_limit_bytes must be an integer >= 1 or None, got 0."),
    ):
        code, _, err = run(capsys, "verify", export_dir, *options, "--json")
        assert (code, err) == (EXIT_USAGE, f"keras-warmup: error: {message}\n")


def test_control_characters_in_names_are_escaped(capsys: Capture, tmp_path: pathlib.Path) -> None:
    evil = "\x1b]0;owned\x07\u202e[red]"
    path = str(tmp_path / f"model {evil}")
    module = tf.Module()
    module.call = tf.function(lambda x: {"y": x}, input_signature=[VECTOR])
    signatures = {"serving_default": module.call, f"key{evil}": module.call}
    tf.saved_model.save(module, path, signatures=signatures)
    for argv in (
        ("inspect", path),
        ("add", path),
        ("verify", path),
        ("records", path),
        ("verify", path + "/no"),
    ):
        _, out, err = run(capsys, *argv)
        printed = out + err
        assert all(char.isprintable() or char == "\n" for char in printed), (argv, printed)
        assert "owned" in printed
