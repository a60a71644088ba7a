"""In the tools people use: notebooks, loggers, KerasTuner's copied callbacks, Ctrl-C in `fit`."""

from __future__ import annotations

import copy
import inspect
import logging
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
import keras_warmup.bench.minimize
import keras_warmup.bench.report
import keras_warmup.inspection
import keras_warmup.report
import keras_warmup.serving.verify
from keras_warmup.bench.minimize import MinimizeReport
from keras_warmup.errors import PublishError
from keras_warmup.report import FrozenVariables, RecordList, Report
from keras_warmup.training.capture import find_capture
from tests.builders import benchmark_entry, benchmark_report

X = np.random.default_rng(0).random((24, 3), "float32")
Y = X.sum(axis=1, keepdims=True)


def make_model() -> keras.Model:
    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback, **options: Any) -> Any:
    return model.fit(X, Y, batch_size=8, verbose=0, callbacks=list(callbacks), **options)


# -- notebooks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """Returns class name -> a report of that class, of a model that is named as markup."""
    path = tmp_path_factory.mktemp("reports") / "a<b>&c" / "1"
    written = kw.export_with_warmup(make_model(), path, data=X)
    verified, inspected = kw.verify(path), kw.inspect(path)
    found: list[Any] = [
        written,
        written.records[0],
        verified,
        verified.records[0],
        inspected,
        inspected.signatures[0],
        RecordList(str(path), written.records),
        MinimizeReport(str(path), 1, (), (), False, 1.0, 0.0, 3),
        benchmark_report(benchmark_entry(), export_dir=str(path)),
        kw.repair(path),
        FrozenVariables(1, 4, {"a<b>&c": "an op writes it"}, 4),
    ]
    return {type(one).__name__: one for one in found}


def report_classes() -> list[type[Report]]:
    """Returns every class of reports in the package."""
    return sorted(Report.__subclasses__(), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", report_classes(), ids=lambda cls: cls.__name__)
def test_every_report_shows_itself_in_a_notebook(
    cls: type[Report], reports: dict[str, Report]
) -> None:
    html = reports[cls.__name__]._repr_html_()
    assert html.startswith("<pre style=") and html.endswith("</pre>")
    assert "\x1b" not in html
    assert "a<b>" not in html
    if hasattr(cls, "__rich__") and cls.__name__ != "MinimizeReport":
        assert "a&lt;b&gt;&amp;c" in html


def test_every_class_with_a_table_is_a_report() -> None:
    modules: list[Any] = [
        keras_warmup.report,
        keras_warmup.inspection,
        keras_warmup.serving.verify,
        keras_warmup.bench.report,
        keras_warmup.bench.minimize,
    ]
    printed = {
        one
        for module in modules
        for one in vars(module).values()
        if inspect.isclass(one) and hasattr(one, "__rich__")
    }
    assert printed and all(issubclass(one, Report) for one in printed)


# -- what is printed -------------------------------------------------------------------------------


def printed_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_the_printed_line_names_the_rows_that_ship(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(make_model(), kw.WarmupExport(tmp_path / "1"))
    assert printed_line(capsys) == (
        f"WarmupExport: published {tmp_path}/1 with 1 warmup record (predict serving_default); up "
        "to 2 real rows ship inside it"
    )


def test_the_printed_line_names_what_is_unproved(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def export_fn(model: keras.Model, export_dir: str) -> None:
        spec = tf.TensorSpec([None, 3], name="x")
        served = tf.function(lambda x: {"y": model(x) * 2.0}, input_signature=[spec])
        tf.saved_model.save(model, export_dir, {"doubled": served})

    fit(make_model(), kw.WarmupExport(tmp_path / "1", export_fn=export_fn))
    assert printed_line(capsys) == (
        f"WarmupExport: published {tmp_path}/1 with 1 warmup record (predict doubled); up to 2 "
        "real rows ship inside it; not proved: doubled"
    )


def test_the_printed_line_of_a_cold_version(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="COLD"):
        fit(make_model(), kw.WarmupExport(tmp_path / "{version}", warmup={"max_bytes": 10}))
    assert printed_line(capsys) == (
        f"WarmupExport: published {tmp_path}/1 COLD, without a warmup file (see the warning)"
    )


def test_rows_made_up_are_not_called_real(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = keras.Sequential([keras.Input((5,), name="x"), keras.layers.Dense(1)])
    with pytest.warns(UserWarning, match="hold made-up rows"):
        fit(make_model(), kw.WarmupExport(tmp_path / "1", export_model=served))
    line = printed_line(capsys)
    assert "1 warmup record of made-up rows" in line and "real" not in line


@pytest.fixture
def tensorflow_lines() -> Any:
    """The lines that TensorFlow logs at INFO."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = tf.get_logger(), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_no_line_names_a_hidden_directory(
    tensorflow_lines: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    fit(model, kw.WarmupExport(tmp_path / "m" / "{version}"))
    kw.export_with_warmup(model, tmp_path / "m" / "{version}")
    kw.save(model, tmp_path / "m" / "3")
    captured = capsys.readouterr()
    for text in (captured.out, captured.err, *tensorflow_lines):
        assert "Assets written to" not in text
        assert ".kw-" not in text


def test_the_line_of_the_user_s_own_save_stays(
    tensorflow_lines: list[str], tmp_path: pathlib.Path
) -> None:
    model = make_model()
    kw.save(model, tmp_path / "1", data=X)
    tf.saved_model.save(model, str(tmp_path / "2"))
    assert [line for line in tensorflow_lines if "Assets written to" in line] == [
        f"Assets written to: {tmp_path}/2/assets"
    ]


# -- copies of the callback, as KerasTuner makes one for each trial --------------------------------


def test_a_copy_for_each_trial_exports_the_model_of_its_trial(tmp_path: pathlib.Path) -> None:
    original = kw.WarmupExport(tmp_path / "{version}", verbose=0)
    for trial in range(2):
        (callback,) = copy.deepcopy([original])
        model = make_model()
        fit(model, callback)
        (report,) = callback.reports
        assert report.export_dir == f"{tmp_path}/{trial + 1}"
        assert {record.source for record in report.records} == {"captured"}
        assert kw.verify(report.export_dir).ok
        served = tf.saved_model.load(report.export_dir).signatures["serving_default"]
        np.testing.assert_allclose(served(x=X)["output_0"], model(X), rtol=1e-5)
    assert original.reports == []


def test_a_copy_of_a_callback_that_has_exported_replaces_no_version_of_it(
    tmp_path: pathlib.Path,
) -> None:
    original = kw.WarmupExport(tmp_path / "{version}", max_to_keep=5, verbose=0)
    fit(make_model(), original)
    copied = copy.deepcopy(original)
    fit(make_model(), copied)
    fit(make_model(), original)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3"]
    assert [len(original.reports), len(copied.reports)] == [2, 2]


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy])
def test_a_copy_removes_and_replaces_no_version_of_the_original(
    copy_of: Any, tmp_path: pathlib.Path
) -> None:
    original = kw.WarmupExport(tmp_path / "{version}", max_to_keep=1, verbose=0)
    fit(make_model(), original)
    fit(make_model(), copy_of(original))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    fixed = kw.WarmupExport(tmp_path / "m" / "1", verbose=0)
    fit(make_model(), fixed)
    with pytest.raises(PublishError):
        fit(make_model(), copy_of(fixed))
    fit(make_model(), fixed)
    assert len(fixed.reports) == 2


def test_a_copied_capture_remembers_the_model_of_its_trial(tmp_path: pathlib.Path) -> None:
    callback = copy.deepcopy(kw.BatchCapture())
    model = make_model()
    fit(model, callback)
    report = kw.export_with_warmup(model, tmp_path / "1")
    assert {record.source for record in report.records} == {"captured"}


# -- Ctrl-C ----------------------------------------------------------------------------------------


class Interrupt(keras.callbacks.Callback):
    """Presses Ctrl-C at a hook of the first epoch."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        setattr(self, hook, self.press)

    def press(self, index: int, logs: Any = None) -> None:
        if index == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
@pytest.mark.parametrize("kind", ["WarmupExport", "BatchCapture"])
def test_ctrl_c_in_the_first_epoch_keeps_what_was_sampled(
    kind: str, hook: str, tmp_path: pathlib.Path
) -> None:
    model = make_model()
    callback = (
        kw.BatchCapture() if kind == "BatchCapture" else kw.WarmupExport(tmp_path / "1", verbose=0)
    )
    with pytest.raises(KeyboardInterrupt):
        fit(model, callback, Interrupt(hook))
    assert not (tmp_path / "1").exists()
    capture = find_capture(model)
    assert capture is not None and capture.is_of(model)
    for batch in capture.batches():
        assert all(row in X.tolist() for row in batch.x.tolist())
    report = kw.export_with_warmup(model, tmp_path / "1")
    assert {record.source for record in report.records} == {"captured"}
    assert report.proofs["serving_default"] == "proved"


def test_ctrl_c_before_the_first_step_leaves_no_rows(tmp_path: pathlib.Path) -> None:
    class AtOnce(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        fit(model, kw.BatchCapture(), AtOnce())
    assert find_capture(model) is None
