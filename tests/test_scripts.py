"""Every script in examples/ does what its first lines say."""

from __future__ import annotations

import pathlib
import re
import runpy
import sys
from typing import Any

import pytest

import keras_warmup as kw

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
# Scripts in cells take no arguments, so that they can be pasted.
NOTEBOOKS = [name for name in SCRIPTS if (EXAMPLES / name).read_text().startswith("# %%")]


def run(monkeypatch: pytest.MonkeyPatch, name: str, *argv: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    # A script that sets it must not set it for the processes of later tests.
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def run_cells(
    name: str, directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, **constants: int
) -> dict[str, Any]:
    """Runs a notebook in a directory, with other values of its constants; returns its names."""
    code = (EXAMPLES / name).read_text()
    for constant, value in constants.items():
        code, found = re.subn(rf"^{constant} = .*$", f"{constant} = {value}", code, flags=re.M)
        assert found == 1
    monkeypatch.chdir(directory)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, name, "exec"), names)
    return names


def kinds_in(export_dir: str | pathlib.Path) -> list[str | None]:
    return [log.WhichOneof("log_type") for log in kw.read_records(export_dir)]


def test_first_export_publishes_verifies_and_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    names = run_cells("first_export.py", tmp_path, monkeypatch, PROCESSES=1)
    assert kinds_in(tmp_path / "first_export" / "1") == ["predict_log"]
    assert names["verified"].ok
    out = capsys.readouterr().out
    assert "proof serving_default: proved" in out
    assert "convolves" in out
    assert "First request after loading" in out


def test_quickstart_publishes_a_warm_model_and_measures_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    run(monkeypatch, "quickstart.py", tmp_path / "digits", "--processes", 1)
    assert kinds_in(tmp_path / "digits" / "1") == ["predict_log"]
    out = capfd.readouterr().out
    assert "First request after loading" in out
    assert "proof serving_default: proved" in out


def test_request_kinds_serves_all_four(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    run_cells("request_kinds.py", tmp_path, monkeypatch)
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


def test_encoded_images_hold_image_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    run(monkeypatch, "encoded_images.py", tmp_path / "files")
    (log,) = kw.read_records(tmp_path / "files" / "1")
    assert all(
        value.startswith(b"\x89PNG")
        for value in log.predict_log.request.inputs["image_bytes"].string_val
    )
    assert kw.verify(tmp_path / "files" / "1").ok


def test_text_is_sent_as_it_was_trained_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    run(monkeypatch, "text.py", tmp_path / "sentences")
    logs = list(kw.read_records(tmp_path / "sentences" / "1"))
    assert all(
        len(value.split()) >= 4
        for log in logs
        for value in log.predict_log.request.inputs["text"].string_val
    )
    assert kw.verify(tmp_path / "sentences" / "1").ok


def test_vae_serves_its_encoder_and_its_decoder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    run(monkeypatch, "vae.py", tmp_path)
    for part, name in (("encoder", "image"), ("decoder", "code")):
        (log,) = kw.read_records(tmp_path / part / "1")
        assert list(log.predict_log.request.inputs) == [name]
        assert kw.verify(tmp_path / part / "1").ok
    assert capsys.readouterr().out.count("proof serving_default: proved") == 2


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in NOTEBOOKS])
def test_help_says_how_to_run_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, name, "--help")
    assert exit_.value.code == 0
    assert f"python examples/{name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_first_cell_says_how_to_run_it(name: str) -> None:
    first = (EXAMPLES / name).read_text().partition("\n# %%\n")[0]
    assert f"#     python examples/{name}\n" in first


def test_there_are_three_notebooks() -> None:
    assert NOTEBOOKS == ["fine_tuning.py", "first_export.py", "request_kinds.py"]


def test_fine_tuning_publishes_the_best_epochs_of_both_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    names = run_cells("fine_tuning.py", tmp_path, monkeypatch, EPOCHS=2)
    reports = names["warm"].reports
    assert len(reports) > 2
    assert all(report.proofs["serving_default"] == "proved" for report in reports)
    kept = sorted(int(path.name) for path in (tmp_path / "fine_tuning").iterdir())
    assert kept == [len(reports) - 1, len(reports)]


def test_run_fn_saves_with_rows_of_training_as_examples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    run(monkeypatch, "tfx_run_fn.py", tmp_path / "penguins" / "1")
    report = kw.verify(tmp_path / "penguins" / "1")
    assert report.ok, report.failures
    assert report.real_features == (
        "body_mass",
        "culmen_depth",
        "culmen_length",
        "flipper_length",
    )


def test_the_unchanged_script_is_warm_under_enable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with kw.enable():
        run(monkeypatch, "unchanged.py", tmp_path / "warm" / "1")
    run(monkeypatch, "unchanged.py", tmp_path / "cold" / "1")
    assert kinds_in(tmp_path / "warm" / "1") == ["predict_log"]
    assert not (tmp_path / "cold" / "1" / "assets.extra").exists()


def test_keras_tuner_search_publishes_the_best_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("keras_tuner")
    pytest.importorskip("tensorboard")
    run(monkeypatch, "keras_tuner_search.py", tmp_path / "tuned")
    assert kinds_in(tmp_path / "tuned" / "1") == ["predict_log"]
