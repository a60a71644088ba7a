"""JAX models are captured, exported and proved; torch ones are captured, and not exported.

The libraries are not in the `test` extra, so this runs where they are installed (a job of ci.yml
does so). A process has one backend.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

import keras_warmup as kw

ROOT = pathlib.Path(__file__).resolve().parents[1]
PREAMBLE = """
    import os, sys, warnings
    import keras, numpy as np
    import keras_warmup as kw
    warnings.simplefilter("ignore")
    path = sys.argv[1] + "/1"
    inputs = {"b": keras.Input((4,), name="zz"), "a": keras.Input((4,), name="aa")}
    hidden = keras.layers.Concatenate()([inputs["b"], inputs["a"] * 3.0])
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(hidden))
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).random((32, 4), dtype="float32")
    x = {"a": x, "b": x[::-1].copy()}

    def fit(*callbacks):
        model.fit(x, x["a"][:, :2], batch_size=8, verbose=0, callbacks=list(callbacks))

    def print_error(function, *arguments):
        try:
            function(*arguments)
        except kw.WarmupError as error:
            print(type(error).__name__, error)
"""
SCRIPTS = {
    "jax-callback": """
        export = kw.WarmupExport(path, warmup={"xla": True})
        fit(export)
        print(export.reports[-1].proofs["serving_default"])
    """,
    "jax-cold": """
        export = kw.WarmupExport(path)
        fit(export)
        (report,) = export.reports
        print(report.proofs["serving_default"], len(report.records))
        print(report.skipped["serving_default"])
    """,
    "jax-functions": """
        fit(kw.BatchCapture())
        print_error(kw.save, model, path)
        print(kw.export_with_warmup(model, path, warmup={"xla": True}).proofs["serving_default"])
    """,
    "jax-enable": """
        kw.enable({"xla": True})
        fit()
        model.export(path, verbose=False)
    """,
}


def run(backend: str, script: str, directory: pathlib.Path) -> list[str]:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    code = textwrap.dedent(PREAMBLE) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if not line.startswith("WarmupExport: ")]


def assert_warm(directory: pathlib.Path) -> None:
    report = kw.verify(str(directory / "1"))
    assert report.ok, report.failures
    assert "made-up" not in str(report.to_dict())


def test_a_jax_model_is_exported_warm_and_proved(tmp_path: pathlib.Path) -> None:
    assert run("jax", SCRIPTS["jax-callback"], tmp_path) == ["proved"]
    assert_warm(tmp_path)


def test_a_jax_model_stays_cold_unless_the_server_compiles(tmp_path: pathlib.Path) -> None:
    """A stock server has XLA switched off, and a record would keep it from loading the model."""
    lines = run("jax", SCRIPTS["jax-cold"], tmp_path)
    assert lines[0] == "proved 0"
    assert "--xla_cpu_compilation_enabled" in lines[1]
    assert "pass xla=True" in lines[1]
    assert (tmp_path / "1" / "saved_model.pb").exists()
    assert not (tmp_path / "1" / "assets.extra").exists()


def test_a_jax_model_is_captured_and_exported_and_save_says_how(tmp_path: pathlib.Path) -> None:
    assert run("jax", SCRIPTS["jax-functions"], tmp_path) == [
        "ExportError tf.saved_model.save cannot save model 'functional', which has the jax "
        "backend. Use keras_warmup.export_with_warmup, which calls model.export.",
        "proved",
    ]
    assert_warm(tmp_path)


def test_a_jax_model_is_exported_warm_by_unchanged_code(tmp_path: pathlib.Path) -> None:
    assert run("jax", SCRIPTS["jax-enable"], tmp_path) == []
    assert_warm(tmp_path)


def test_a_torch_model_is_captured_and_not_exported(tmp_path: pathlib.Path) -> None:
    script = """
        capture = kw.BatchCapture()
        fit(capture)
        print(len(capture._tap.batches()))
        export = kw.WarmupExport(path)
        print_error(fit, export)
        print(int(model.optimizer.iterations), len(export._tap.batches()), os.path.exists(path))
    """
    lines = run("torch", script, tmp_path)
    assert int(lines[0]) >= 2
    assert lines[1] == (
        "ExportError Cannot export model 'functional': the torch backend writes no SavedModel that "
        "TensorFlow Serving runs. Save the model with model.save('model.keras'), load it in a "
        "process with KERAS_BACKEND=tensorflow (or jax), and export it there, or pass export_fn= "
        "that writes the SavedModel."
    )
    # Both trainings went on to their ends: 4 steps each.
    assert lines[2].split()[0] == "8"
    assert int(lines[2].split()[1]) >= 2
    assert lines[2].split()[2] == "False"
