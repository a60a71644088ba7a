"""The command line: exit codes, JSON, what it prints and where."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_warmup as kw
from keras_warmup.cli.commands import EXIT_FAILED, EXIT_OK, EXIT_USAGE, main


@pytest.fixture(scope="module")
def model():
    x = keras.Input((4,), name="x")
    return keras.Model(x, keras.layers.Dense(2)(x))


@pytest.fixture
def export_dir(model, tmp_path):
    path = tmp_path / "m" / "1"
    model.export(path, verbose=False)
    return str(path)


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.random.default_rng(0).random((10, 4), "float32"))
    return str(path)


def run(capsys, *argv):
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def test_add_from_npz_then_verify_and_records(capsys, export_dir, npz):
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


def test_add_without_data_makes_rows_up_with_a_warning(capsys, export_dir):
    code, out, err = run(capsys, "add", export_dir)
    assert code == EXIT_OK
    assert "synthetic" in out
    assert f"keras-warmup: warning: The warmup records of {export_dir!r} hold made-up rows" in err


def test_verify_without_a_warmup_file_fails(capsys, export_dir):
    code, out, err = run(capsys, "verify", export_dir)
    assert code == EXIT_FAILED
    assert "No warmup file at" in out
    assert err == "keras-warmup: starting TensorFlow and replaying the warmup file ...\n"


@pytest.mark.parametrize(("side", "sizes"), [(8, "batch sizes"), (None, "batch and image sizes")])
def test_inspect_tells_which_sizes_of_a_convolution_are_free(side, sizes, capsys, tmp_path):
    x = keras.Input((side, side, 3), name="x")
    keras.Model(x, keras.layers.Conv2D(2, 3)(x)).export(tmp_path / "1", verbose=False)
    out = " ".join(run(capsys, "inspect", str(tmp_path / "1"))[1].split())
    assert (
        f"convolves: the first request of a size is slower; records of the {sizes} that clients send"
        in out
    )


def test_verify_tells_of_a_directory_that_no_server_takes_for_a_version(
    capsys, export_dir, npz, tmp_path
):
    run(capsys, "add", export_dir, "--data", npz)
    assert (
        run(capsys, "verify", export_dir)[2]
        == "keras-warmup: starting TensorFlow and replaying the warmup file ...\n"
    )
    latest = tmp_path / "latest"
    latest.symlink_to(export_dir)
    code, _, err = run(capsys, "verify", str(latest))
    assert code == EXIT_OK
    assert (
        f"No TensorFlow Serving server loads {str(latest)!r}: its last component is not an integer."
        in err
    )


def test_inspect_prints_inputs_and_outputs(capsys, export_dir):
    code, out, err = run(capsys, "inspect", export_dir)
    assert (code, err) == (EXIT_OK, "")
    assert "x: float32 [None, 4]" in out
    assert "no warmup file: the first requests will be slow" in out
    code, out, _ = run(capsys, "inspect", export_dir, "--json")
    assert [one["key"] for one in json.loads(out)["signatures"]] == ["serve", "serving_default"]


def test_errors_are_one_line_on_stderr(capsys, tmp_path, export_dir, npz):
    code, out, err = run(capsys, "inspect", str(tmp_path / "none"))
    assert (code, out) == (EXIT_FAILED, "")
    assert err.startswith("keras-warmup: error: No SavedModel at ")
    assert err.count("\n") == 1
    code, out, err = run(capsys, "add", export_dir, "--data", str(tmp_path / "none.npz"))
    assert (
        err
        == f"keras-warmup: error: Cannot read data from {str(tmp_path / 'none.npz')!r}: there is no such file.\n"
    )
    assert code == EXIT_USAGE
    code, out, err = run(capsys, "add", export_dir, "--data", npz, "--batch-size", "0")
    assert err == (
        "keras-warmup: error: Bad warmup options: batch_sizes must hold integers >= 1, got [0].\n"
    )
    assert code == EXIT_USAGE
    code, out, err = run(capsys, "add", export_dir, "--data", npz, "--signature", "nope")
    assert err.endswith(
        "error: Unknown signature ['nope']. The SavedModel has ['serve', 'serving_default'].\n"
    )


def test_npz_must_hold_plain_arrays(capsys, tmp_path, export_dir):
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


def test_usage_exits_with_2_and_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == EXIT_USAGE
    for verb in ("inspect", "add", "verify", "bench", "records", "method-names"):
        with pytest.raises(SystemExit) as exit_:
            main([verb, "--help"])
        assert exit_.value.code == EXIT_OK
        out = capsys.readouterr().out
        assert f"keras-warmup {verb} ./" in out
        assert "example" in out


def test_the_module_runs_and_prints_its_version():
    done = subprocess.run(
        [sys.executable, "-m", "keras_warmup", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == f"keras-warmup {kw.__version__}\n"


def test_bench_measures_and_minimize_keeps_what_warms(capsys, export_dir, npz):
    run(
        capsys,
        "add",
        export_dir,
        "--data",
        npz,
        "--share-twins",
        "--batch-size",
        "2",
        "--batch-size",
        "3",
    )
    code, out, err = run(
        capsys, "bench", export_dir, "--processes", "1", "--requests", "2", "--json"
    )
    assert (code, err) == (EXIT_OK, "")
    assert {
        (entry["signature_key"], entry["batch_size"]) for entry in json.loads(out)["entries"]
    } >= {("serving_default", 2)}
    code, out, err = run(capsys, "bench", export_dir, "--plot", "/nowhere/bench.png")
    assert (code, err) == (
        EXIT_USAGE,
        "keras-warmup: error: A plot cannot be written to '/nowhere/bench.png': its directory does not exist.\n",
    )
    code, out, err = run(
        capsys, "bench", export_dir, "--minimize", "--plot", "bench.png", "--requests", "4"
    )
    assert (code, err) == (
        EXIT_USAGE,
        "keras-warmup: error: --minimize takes only --processes and --json, got --requests, --plot: it replays the file's own "
        "records in fresh processes. Leave the others out.\n",
    )
    code, out, err = run(capsys, "bench", export_dir, "--processes", "1", "--minimize")
    assert (code, err) == (
        EXIT_USAGE,
        "keras-warmup: error: processes must be an integer >= 3, got 1.\n",
    )


def test_method_names_are_written_in_place(capsys, saved_models, tmp_path):
    import shutil

    export_dir = shutil.copytree(
        saved_models / "chicago_taxi_estimator" / "1", tmp_path / "1", copy_function=shutil.copyfile
    )
    for path in [export_dir, *export_dir.rglob("*")]:
        path.chmod(0o755)
    code, out, _ = run(capsys, "method-names", str(export_dir), "--json")
    assert code == EXIT_OK
    assert {one["key"]: one["method_name"] for one in json.loads(out)["signatures"]}[
        "regression"
    ] == "tensorflow/serving/regress"


def test_interrupted_work_ends_without_a_traceback(capsys, monkeypatch, export_dir):
    from keras_warmup import verification

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(verification, "verify", interrupt)
    code, out, err = run(capsys, "verify", export_dir, "--json")
    assert (code, out, err) == (130, "", "keras-warmup: interrupted\n")


def test_add_minimize_tells_what_was_written_and_what_was_dropped(
    capsys, monkeypatch, export_dir, npz
):
    from keras_warmup.bench import minimize as minimizing

    def minimize(path, **_):
        return minimizing.MinimizeReport(path, 1, (0,), (), 1.0, 0.0, 3)

    monkeypatch.setattr(minimizing, "minimize", minimize)
    code, out, _ = run(
        capsys, "add", export_dir, "--data", npz, "--share-twins", "--minimize", "--json"
    )
    assert code == EXIT_OK
    told = json.loads(out)
    assert [record["batch_size"] for record in told["records"]] == [2]
    assert told["minimized"]["kept"] == [0]
    _, out, _ = run(capsys, "add", export_dir, "--data", npz, "--share-twins", "--minimize")
    assert "real rows of your data" in out and "warm" in out.splitlines()[-1]


def _module_that(act):
    import tensorflow as tf

    def call(x):
        return {"y": act(x)}

    m = tf.Module()
    m.call = tf.function(call, input_signature=[tf.TensorSpec([None], tf.float32)])
    return m


@pytest.fixture
def writing_dir(tmp_path):
    """A model whose signature writes a file `marker` beside it."""
    import tensorflow as tf

    def act(x):
        with tf.control_dependencies([tf.io.write_file(str(tmp_path / "marker"), "here")]):
            return tf.identity(x)

    m = _module_that(act)
    tf.saved_model.save(m, str(tmp_path / "1"), signatures={"serving_default": m.call})
    return str(tmp_path / "1")


@pytest.mark.parametrize(
    "arguments", [("verify",), ("add",), ("bench",), ("bench", "--minimize")], ids=" ".join
)
def test_unsafe_ops_are_refused_before_anything_runs(capsys, writing_dir, tmp_path, arguments):
    verb, *options = arguments
    code, out, err = run(capsys, verb, writing_dir, *options, "--json", "--refuse-unsafe-ops")
    assert (code, out) == (EXIT_FAILED, "")
    assert err.startswith(
        f"keras-warmup: error: Refused to run SavedModel {writing_dir!r}: nothing was run. The model runs ops that act "
        "outside of it: 'WriteFile' (writes files: signature 'serving_default', "
    )
    assert not (tmp_path / "marker").exists()


def test_unsafe_ops_are_told_before_the_model_runs(capsys, writing_dir, tmp_path):
    code, _, err = run(capsys, "add", writing_dir, "--json")
    assert code == EXIT_OK
    assert err.startswith(
        f"keras-warmup: warning: SavedModel {writing_dir!r} will be run. The model runs ops that act "
    )
    (tmp_path / "marker").unlink()
    code, out, err = run(capsys, "verify", writing_dir, "--json")
    assert (code, json.loads(out)["ok"]) == (EXIT_OK, True)
    assert err.startswith(f"keras-warmup: warning: SavedModel {writing_dir!r} will be run. ")
    assert (tmp_path / "marker").exists()


def test_verify_tells_of_a_model_that_ends_tensorflow(capsys, tmp_path):
    import tensorflow as tf

    def act(x):
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="")]):
            return tf.identity(x)

    m = _module_that(act)
    path = str(tmp_path / "1")
    tf.saved_model.save(m, path, signatures={"serving_default": m.call})
    run(capsys, "add", path, "--no-verify", "--json")
    code, out, _ = run(capsys, "verify", path, "--json")
    assert code == EXIT_FAILED
    assert json.loads(out)["failures"] == [
        "The process that ran the model died (SIGABRT) while replaying record 0. A server would crash too."
    ]


def test_verify_takes_limits(capsys, export_dir, npz):
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


def test_control_characters_in_names_are_escaped(capsys, tmp_path):
    import tensorflow as tf

    evil = "\x1b]0;owned\x07\u202e[red]"
    m = _module_that(lambda x: x)
    path = str(tmp_path / f"model {evil}")
    tf.saved_model.save(m, path, signatures={"serving_default": m.call, f"key{evil}": m.call})
    for arguments in (
        ("inspect", path),
        ("add", path),
        ("verify", path),
        ("records", path),
        ("verify", path + "/no"),
    ):
        _, out, err = run(capsys, *arguments)
        assert all(one.isprintable() or one == "\n" for one in out + err), (arguments, out, err)
        assert "owned" in out + err
