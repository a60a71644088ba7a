"""Every script in examples/ does what its first lines promise."""

from __future__ import annotations

import pathlib
import runpy
import sys

import pytest

import keras_warmup as kw

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"


def run(monkeypatch, name, *argv):
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def kinds_in(export_dir):
    return [log.WhichOneof("log_type") for log in kw.read_records(export_dir)]


def test_quickstart_publishes_a_warm_model_and_measures_it(monkeypatch, capfd, tmp_path):
    run(monkeypatch, "quickstart.py", tmp_path / "digits", "--processes", 1)
    assert kinds_in(tmp_path / "digits" / "1") == ["predict_log"]
    out = capfd.readouterr().out
    assert "First request after loading" in out
    assert "proof serving_default: proved" in out


def test_tabular_examples_serve_all_four_kinds(monkeypatch, tmp_path):
    run(monkeypatch, "tabular_examples.py", tmp_path / "iris")
    export_dir = tmp_path / "iris" / "1"
    assert kinds_in(export_dir) == [
        "predict_log",
        "classify_log",
        "regress_log",
        "multi_inference_log",
    ]
    report = kw.verify(export_dir)
    assert report.ok
    assert {one.signature.method_name for one in kw.inspect(export_dir).signatures} == {
        "tensorflow/serving/predict",
        "tensorflow/serving/classify",
        "tensorflow/serving/regress",
    }


def test_encoded_images_hold_image_files(monkeypatch, tmp_path):
    run(monkeypatch, "encoded_images.py", tmp_path / "files")
    (log,) = kw.read_records(tmp_path / "files" / "1")
    assert all(
        value.startswith(b"\x89PNG")
        for value in log.predict_log.request.inputs["image_bytes"].string_val
    )
    assert kw.verify(tmp_path / "files" / "1").ok


def test_text_is_sent_as_it_was_trained_on(monkeypatch, tmp_path):
    run(monkeypatch, "text.py", tmp_path / "sentences")
    logs = list(kw.read_records(tmp_path / "sentences" / "1"))
    assert all(
        len(value.split()) >= 4
        for log in logs
        for value in log.predict_log.request.inputs["text"].string_val
    )
    assert kw.verify(tmp_path / "sentences" / "1").ok


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help_says_how_to_run_it(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, name, "--help")
    assert exit_.value.code == 0
    assert f"python examples/{name}" in capsys.readouterr().out
