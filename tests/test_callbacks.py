"""Tests of `keras_warmup.callbacks`, through `fit`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup import callbacks
from keras_warmup.errors import OptionsError, PublishError
from keras_warmup.pipeline.export_model import ExportFn, ExportRequest
from keras_warmup.publishing.publish import Published, staged
from keras_warmup.report import RecordReport, WarmupReport
from keras_warmup.training.capture import find_capture
from tests.builders import predict_inputs

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def make_model(seed: int = 1, metrics: Sequence[str] = ("mae",)) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((3,), name="features"), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=list(metrics))
    return model


def fit(
    model: keras.Model, *extra: keras.callbacks.Callback, epochs: int = 2, **options: Any
) -> keras.callbacks.History:
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(extra), **options)


def tree(root: pathlib.Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def kernel_of(export_dir: str | os.PathLike[str]) -> np.ndarray:
    """Returns the Dense kernel of an export: its outputs for unit vectors minus that for zeros."""
    serve = tf.saved_model.load(str(export_dir)).signatures["serve"]
    outputs = next(
        iter(serve(tf.constant(np.vstack([np.zeros((1, 3)), np.eye(3)]), tf.float32)).values())
    ).numpy()
    return outputs[1:] - outputs[:1]


class Exports(list[tuple[keras.Model, ExportRequest, ExportFn | None]]):
    """Replaces `publish_model`: publishes a small file, and keeps the arguments of each call.

    Attributes:
        fails_at: numbers of the calls that raise, from 1.
        error: what they raise.
    """

    fails_at: tuple[int, ...] = ()
    error = OSError("no space left on device")

    def __call__(
        self, model: keras.Model, request: ExportRequest, export_fn: ExportFn | None = None
    ) -> tuple[WarmupReport, Published]:
        self.append((model, request, export_fn))
        if len(self) in self.fails_at:
            raise self.error
        with staged(request.path, overwrite=request.overwrite) as staging:
            pathlib.Path(staging, "saved_model.pb").write_text(str(model.get_weights()[0].ravel()))
            # A new directory may get the inode of a removed one; `variables` tells them apart.
            pathlib.Path(staging, "variables").mkdir()
        record = RecordReport("serve", "predict", 2, {"features": (2, 3)}, (), "captured", 100)
        return WarmupReport(staging.published.path, None, (record,)), staging.published


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Exports:
    recorded = Exports()
    monkeypatch.setattr(callbacks, "publish_model", recorded)
    return recorded


# -- the real export -------------------------------------------------------------------------------


def test_fit_publishes_a_warm_model_at_train_end(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    export = kw.WarmupExport(tmp_path / "m" / "{version}")
    fit(model, export)
    (report,) = export.reports
    assert report.export_dir == str(tmp_path / "m" / "1")
    assert {record.source for record in report.records} == {"captured"}
    assert kw.verify(report.export_dir).ok
    np.testing.assert_allclose(kernel_of(report.export_dir), model.get_weights()[0], rtol=1e-6)
    assert tree(tmp_path / "m") == ["1"]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"WarmupExport: published {tmp_path}/m/1 with 1 warmup record (predict serving_default); "
        "up to 2 real rows ship inside it"
    )


@pytest.mark.parametrize("save_freq", ["train_end", "epoch"])
def test_training_is_bit_identical_with_and_without(tmp_path: pathlib.Path, save_freq: str) -> None:
    def run(*extra: keras.callbacks.Callback) -> tuple[dict[str, Any], list[np.ndarray]]:
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
        )
        model.compile("adam", "mse")
        history = fit(model, *extra, epochs=3, validation_data=(X, Y))
        return history.history, model.get_weights()

    history, weights = run()
    export = kw.WarmupExport(tmp_path / "{version}", save_freq=save_freq, verbose=0)
    history_with, weights_with = run(export)
    assert len(export.reports) == (3 if save_freq == "epoch" else 1)
    assert history_with == history
    for one, other in zip(weights, weights_with, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("order", ["stopping first", "export first"])
@pytest.mark.parametrize("ends", ["stopped early", "ran out of epochs"])
def test_restored_best_weights_are_exported_in_either_order(
    tmp_path: pathlib.Path, order: str, ends: str
) -> None:
    kernels: list[np.ndarray] = []

    class Diverge(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            if epoch >= 2:
                self.model.layers[-1].kernel.assign_add(np.full((3, 1), 5.0, "float32"))

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            kernels.append(self.model.get_weights()[0])

    model = make_model()
    stopping = keras.callbacks.EarlyStopping(
        "loss", patience=1 if ends == "stopped early" else 9, restore_best_weights=True
    )
    export = kw.WarmupExport(tmp_path / "{version}", verbose=0)
    ordered = [stopping, export] if order == "stopping first" else [export, stopping]
    fit(model, Diverge(), *ordered, epochs=4)
    assert stopping.best_epoch == 1
    assert not np.allclose(kernels[1], kernels[-1])
    np.testing.assert_array_equal(model.get_weights()[0], kernels[1])
    np.testing.assert_allclose(kernel_of(tmp_path / "1"), kernels[1], rtol=1e-5, atol=1e-6)


def test_data_given_is_used_and_nothing_is_captured(tmp_path: pathlib.Path) -> None:
    model = make_model()
    export = kw.WarmupExport(tmp_path / "1", data=X, verbose=0)
    fit(model, export)
    assert {record.source for record in export.reports[0].records} == {"data"}
    assert find_capture(model) is None


def test_batch_capture_feeds_a_later_export(tmp_path: pathlib.Path) -> None:
    model = make_model()
    fit(model, kw.BatchCapture(num_batches=2, seed=5))
    capture = find_capture(model)
    assert capture is not None and 1 <= len(capture.batches()) <= 2
    report = kw.export_with_warmup(model, tmp_path / "1")
    assert {record.source for record in report.records} == {"captured"}


def test_batch_capture_and_two_exports_share_a_fit(tmp_path: pathlib.Path) -> None:
    model = make_model()
    one, two = (
        kw.WarmupExport(tmp_path / "a" / "1", verbose=0),
        kw.WarmupExport(tmp_path / "b" / "1", verbose=0),
    )
    fit(model, one, kw.BatchCapture(), two)
    assert [record.source for export in (one, two) for record in export.reports[0].records].count(
        "captured"
    ) >= 2
    assert tree(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("order", ["export first", "export last"])
@pytest.mark.parametrize("whole", [False, True], ids=["rows", "whole batches"])
def test_an_export_uses_its_own_sample_beside_a_capture(
    order: str, whole: bool, tmp_path: pathlib.Path
) -> None:
    model = make_model()
    export = kw.WarmupExport(tmp_path / "1", warmup={"batch_sizes": [20]}, verbose=0)
    capture = kw.BatchCapture(num_batches=1, whole_batches=whole)
    ordered = [export, capture] if order == "export first" else [capture, export]
    model.fit(X, Y, batch_size=24, verbose=0, callbacks=ordered)
    (record,) = export.reports[0].records
    assert record.shapes == {"features": (20, 3)}
    (log,) = kw.read_records(tmp_path / "1")
    assert len(np.unique(predict_inputs(log)["features"], axis=0)) == 20


def test_interrupted_fit_publishes_nothing_but_leaves_its_finished_epochs(
    tmp_path: pathlib.Path,
) -> None:
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        fit(model, kw.WarmupExport(tmp_path / "m" / "1", verbose=0), Interrupt())
    assert tree(tmp_path) == []
    capture = find_capture(model)
    assert capture is not None and capture.batches()


def test_interrupt_in_an_export_passes_and_leaves_nothing_half_published(
    tmp_path: pathlib.Path,
) -> None:
    def export_fn(model: keras.Model, export_dir: str) -> None:
        model.export(export_dir, verbose=False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            make_model(),
            kw.WarmupExport(tmp_path / "m" / "1", save_freq="epoch", export_fn=export_fn),
        )
    assert tree(tmp_path) == []


def test_failing_export_fn_raises_at_train_end_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    class DiskError(Exception):
        pass

    def export_fn(model: keras.Model, export_dir: str) -> None:
        pathlib.Path(export_dir, "saved_model.pb").write_text("half")
        raise DiskError("disk")

    model = make_model()
    with pytest.raises(DiskError):
        fit(model, kw.WarmupExport(tmp_path / "m" / "1", export_fn=export_fn))
    assert tree(tmp_path) == []


# -- when and where --------------------------------------------------------------------------------


def test_every_epoch_takes_the_next_version(tmp_path: pathlib.Path, exports: Exports) -> None:
    fit(make_model(), kw.WarmupExport(tmp_path / "m" / "{version}", save_freq="epoch"), epochs=3)
    assert tree(tmp_path / "m") == ["1", "2", "3"]


def test_epoch_counts_from_one_and_on_from_initial_epoch(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    export = kw.WarmupExport(tmp_path / "{epoch:02d}", save_freq="epoch")
    fit(make_model(), export, epochs=4, initial_epoch=2)
    assert tree(tmp_path) == ["03", "04"]


def test_train_end_knows_the_last_epoch_and_its_metrics(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    export = kw.WarmupExport(tmp_path / "e{epoch}-{val_mae:.1f}" / "{version}")
    history = fit(make_model(), export, epochs=3, validation_data=(X, Y)).history
    assert tree(tmp_path) == [f"e3-{history['val_mae'][-1]:.1f}"]
    assert tree(tmp_path / tree(tmp_path)[0]) == ["1"]


def test_version_counts_on_within_an_epoch_directory(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    export = kw.WarmupExport(tmp_path / "{epoch}" / "{version}", save_freq="epoch")
    model = make_model()
    fit(model, export)
    fit(model, export)
    assert [tree(tmp_path / epoch) for epoch in "12"] == [["1", "2"], ["1", "2"]]


def test_fixed_path_is_overwritten_by_its_own_instance_only(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    export = kw.WarmupExport(tmp_path / "1", save_freq="epoch")
    model = make_model()
    fit(model, export)
    fit(model, export)
    assert [request.overwrite for _, request, _ in exports] == [False, True, True, True]
    assert tree(tmp_path) == ["1"]
    assert (tmp_path / "1" / "saved_model.pb").read_text() == str(model.get_weights()[0].ravel())
    with pytest.raises(PublishError, match=r"it exists \(a directory\)"):
        fit(model, kw.WarmupExport(tmp_path / "1", save_freq="epoch"))
    assert len(exports) == 4


def test_second_fit_exports_again(tmp_path: pathlib.Path, exports: Exports) -> None:
    export = kw.WarmupExport(tmp_path / "{version}")
    model = make_model()
    fit(model, export)
    fit(model, export)
    assert [report.export_dir for report in export.reports] == [
        str(tmp_path / "1"),
        str(tmp_path / "2"),
    ]


def test_max_to_keep_removes_only_what_this_instance_published(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    for name in ["1", "9"]:
        (tmp_path / name).mkdir()
    export = kw.WarmupExport(tmp_path / "{version}", save_freq="epoch", max_to_keep=2)
    model = make_model()
    fit(model, export, epochs=3)
    assert tree(tmp_path) == ["1", "11", "12", "9"]
    fit(model, export, epochs=1)
    assert tree(tmp_path) == ["1", "12", "13", "9"]
    assert len(export.reports) == 4


def test_max_to_keep_counts_a_path_once(tmp_path: pathlib.Path, exports: Exports) -> None:
    export = kw.WarmupExport(tmp_path / "{epoch}", save_freq="epoch", max_to_keep=2)
    model = make_model()
    fit(model, export, epochs=2)
    fit(model, export, epochs=1)
    assert tree(tmp_path) == ["1", "2"]
    fit(model, export, epochs=3, initial_epoch=2)
    assert tree(tmp_path) == ["1", "3"]


def test_fit_without_an_epoch_publishes_nothing_and_warns(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    with pytest.warns(UserWarning, match="WarmupExport published nothing: fit ran no epoch"):
        fit(make_model(), kw.WarmupExport(tmp_path / "1"), epochs=2, initial_epoch=2)
    assert exports == []


def test_export_asks_for_what_the_callback_was_given(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    model, export_fn = make_model(), lambda model, export_dir: None
    fit(model, kw.WarmupExport(tmp_path / "1", data=X, warmup={"seed": 7}, export_fn=export_fn))
    expected = ExportRequest(
        str(tmp_path / "1"), None, kw.WarmupOptions(seed=7), overwrite=False, allow_cold=True
    )
    ((exported, request, written_by),) = exports
    assert (exported, written_by) == (model, export_fn)
    assert request.data is X
    assert request.example is not None and request.example.x.shape[1:] == X.shape[1:]
    assert dataclasses.replace(request, data=None, example=None) == expected


# -- the best --------------------------------------------------------------------------------------


class Report(keras.callbacks.Callback):
    """Puts a metric into the logs, as callbacks may: a value for each epoch."""

    def __init__(self, name: str, values: Sequence[float]) -> None:
        super().__init__()
        self.name, self.values = name, values

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs[self.name] = self.values[epoch]


@pytest.mark.parametrize(
    ("name", "mode", "values", "best"),
    [
        ("val_loss", "auto", [3.0, 2.0, 2.5, 1.0], [1, 2, 4]),
        ("val_mae", "auto", [3.0, 2.0, 2.0, 9.0], [1, 2]),
        ("score", "max", [1.0, 3.0, 2.0, 4.0], [1, 2, 4]),
        ("score", "min", [4.0, 5.0, 3.0, 3.5], [1, 3]),
        ("val_loss", "auto", [float("nan"), 2.0, float("nan"), 1.0], [2, 4]),
        ("val_accuracy", "auto", [0.1, 0.3, 0.2, 0.4], [1, 2, 4]),
    ],
)
def test_save_best_only_exports_improvements(
    tmp_path: pathlib.Path,
    exports: Exports,
    name: str,
    mode: str,
    values: list[float],
    best: list[int],
) -> None:
    model = make_model(metrics=["mae", "accuracy"])
    export = kw.WarmupExport(
        tmp_path / "{epoch}",
        monitor=name,
        mode=mode,
        save_best_only=True,
        save_freq="epoch",
        verbose=0,
    )
    fit(model, Report(name, values), export, epochs=4, validation_data=(X, Y))
    assert tree(tmp_path) == [str(epoch) for epoch in best]
    assert not model.stop_training


def test_best_is_kept_over_fits(tmp_path: pathlib.Path, exports: Exports) -> None:
    export = kw.WarmupExport(
        tmp_path / "{version}", monitor="loss", save_best_only=True, save_freq="epoch"
    )
    model = make_model()
    fit(model, Report("loss", [2.0, 1.0]), export)
    fit(model, Report("loss", [1.5, 0.5]), export)
    assert len(export.reports) == 3


def test_best_that_was_not_published_does_not_count(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    exports.fails_at = (2,)
    export = kw.WarmupExport(
        tmp_path / "{epoch}", monitor="loss", save_best_only=True, save_freq="epoch"
    )
    with pytest.warns(UserWarning, match="published nothing at epoch 2"):
        fit(make_model(), Report("loss", [3.0, 1.0, 2.0, 2.5]), export, epochs=4)
    assert tree(tmp_path) == ["1", "3"]


def test_missing_monitor_warns_once_and_exports_nothing(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    export = kw.WarmupExport(tmp_path / "{version}", save_best_only=True, save_freq="epoch")
    with pytest.warns(UserWarning) as caught:
        fit(make_model(), export)
    assert [
        str(warning.message) for warning in caught if "WarmupExport" in str(warning.message)
    ] == [
        "WarmupExport exports only the best epochs by 'val_loss', which is not known at epoch 1: "
        "no export at such epochs. Known metrics: loss, mae."
    ]
    assert exports == []


def test_validation_freq_skips_epochs_without_the_monitor(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    export = kw.WarmupExport(
        tmp_path / "{epoch}-{val_loss:.9f}", save_best_only=True, save_freq="epoch"
    )
    with pytest.warns(UserWarning, match="not known at epoch 1"):
        fit(make_model(), export, epochs=4, validation_data=(X, Y), validation_freq=2)
    assert [name.partition("-")[0] for name in tree(tmp_path)] == ["2", "4"]


def test_monitor_without_a_known_direction_is_an_error(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    export = kw.WarmupExport(
        tmp_path / "{version}", monitor="score", save_best_only=True, save_freq="epoch"
    )
    with pytest.raises(OptionsError) as caught:
        fit(make_model(), Report("score", [1.0]), export, epochs=1)
    assert str(caught.value) == (
        "WarmupExport cannot tell whether 'score' is best at its lowest or highest. Pass "
        "mode='min' or mode='max'."
    )


# -- errors ----------------------------------------------------------------------------------------


def test_failed_export_warns_at_an_epoch_and_training_goes_on(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    exports.fails_at = (1, 3)
    export = kw.WarmupExport(tmp_path / "{epoch}", save_freq="epoch")
    with pytest.warns(UserWarning) as caught:
        history = fit(make_model(), export, epochs=3)
    assert len(history.epoch) == 3
    assert [
        str(warning.message) for warning in caught if "WarmupExport" in str(warning.message)
    ] == [
        "WarmupExport published nothing at epoch 1. OSError: no space left on device",
        "WarmupExport published nothing at epoch 3. OSError: no space left on device",
        "WarmupExport published nothing at 2 of 3 epochs: 1, 3. The warning at each of them gives "
        "the reason.",
    ]
    assert tree(tmp_path) == ["2"]
    assert len(export.reports) == 1


@pytest.mark.parametrize(
    ("save_freq", "on_error"), [("train_end", None), ("train_end", "raise"), ("epoch", "raise")]
)
def test_failed_export_raises_the_error_itself(
    tmp_path: pathlib.Path, exports: Exports, save_freq: str, on_error: str | None
) -> None:
    exports.fails_at = (1,)
    with pytest.raises(OSError) as caught:
        fit(make_model(), kw.WarmupExport(tmp_path / "1", save_freq=save_freq, on_error=on_error))
    assert caught.value is exports.error


def test_failed_export_warns_at_train_end_when_asked(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    exports.fails_at = (1,)
    with pytest.warns(UserWarning) as caught:
        fit(make_model(), kw.WarmupExport(tmp_path / "1", on_error="warn"))
    assert [
        str(warning.message) for warning in caught if "WarmupExport" in str(warning.message)
    ] == ["WarmupExport published nothing at the end of training. OSError: no space left on device"]


class Steps(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.count += 1


@pytest.mark.parametrize("on_error", [None, "warn"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.mkdir(), "an empty directory"),
        (lambda path: path.write_text("x"), "a file"),
        (lambda path: (path / "variables").mkdir(parents=True), "a directory"),
    ],
    ids=["empty directory", "file", "directory"],
)
@pytest.mark.parametrize("template", ["2", "{epoch}"])
def test_path_that_exists_is_refused_before_the_first_step(
    tmp_path: pathlib.Path,
    exports: Exports,
    make: Callable[[pathlib.Path], Any],
    kind: str,
    on_error: str | None,
    template: str,
) -> None:
    make(tmp_path / "2")
    steps = Steps()
    with pytest.raises(PublishError) as caught:
        fit(
            make_model(),
            steps,
            kw.WarmupExport(tmp_path / template, on_error=on_error, save_freq="epoch"),
        )
    assert str(caught.value) == (
        f"Cannot publish to '{tmp_path}/2': it exists ({kind}). Publish to "
        f"'{tmp_path}/{{version}}' for the next free version, remove it, or pass overwrite=True "
        "where the function takes it."
    )
    assert steps.count == 0
    assert tree(tmp_path) == ["2"]


def test_directories_of_epochs_already_run_are_no_obstacle(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    (tmp_path / "1").mkdir()
    fit(
        make_model(),
        kw.WarmupExport(tmp_path / "{epoch}", save_freq="epoch"),
        epochs=2,
        initial_epoch=1,
    )
    assert tree(tmp_path) == ["1", "2"]


@pytest.mark.parametrize("name", ["1", "{version}", "{epoch}", "{loss:.2f}/{version}"])
def test_unwritable_path_is_refused_before_the_first_step(
    tmp_path: pathlib.Path, exports: Exports, name: str
) -> None:
    (tmp_path / "file").write_text("x")
    steps = Steps()
    with pytest.raises(PublishError) as caught:
        fit(make_model(), steps, kw.WarmupExport(tmp_path / "file" / "m" / name, on_error="warn"))
    assert str(caught.value) == (
        f"Cannot publish to '{tmp_path}/file/m/{name}': '{tmp_path}/file' is a file, expected a "
        "directory. Publish to a path below a directory."
    )
    assert steps.count == 0


@pytest.mark.parametrize("save_freq", ["train_end", "epoch"])
def test_unknown_field_is_an_error_at_the_end_of_the_first_epoch(
    tmp_path: pathlib.Path, exports: Exports, save_freq: str
) -> None:
    steps = Steps()
    export = kw.WarmupExport(tmp_path / "{accuracy:.2f}" / "{version}", save_freq=save_freq)
    with pytest.raises(OptionsError) as caught:
        fit(make_model(), steps, export, epochs=5)
    assert str(caught.value) == (
        f"Cannot fill in filepath '{tmp_path}/{{accuracy:.2f}}/{{version}}': unknown fields "
        "{accuracy}. Known fields: {version}, {epoch}, {loss}, {mae}."
    )
    assert steps.count == 3
    assert exports == []


def test_unknown_field_warns_when_asked(tmp_path: pathlib.Path, exports: Exports) -> None:
    export = kw.WarmupExport(tmp_path / "{accuracy}", on_error="warn")
    with pytest.warns(UserWarning) as caught:
        fit(make_model(), export)
    text = (
        f"Cannot fill in filepath '{tmp_path}/{{accuracy}}': unknown fields {{accuracy}}. Known "
        "fields: {version}, {epoch}, {loss}, {mae}."
    )
    assert [
        str(warning.message) for warning in caught if "WarmupExport" in str(warning.message)
    ] == [
        f"WarmupExport will publish nothing: {text}",
        f"WarmupExport published nothing at the end of training. OptionsError: {text}",
    ]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"save_best_only": True},
            "save_best_only needs save_freq='epoch': at train end there is only one export",
        ),
        ({"save_freq": 100}, "save_freq must be 'train_end' or 'epoch', got 100"),
        ({"mode": "up"}, "mode must be 'auto', 'min' or 'max', got 'up'"),
        ({"monitor": None}, "monitor must be the name of a metric, got None"),
        ({"max_to_keep": 0}, "max_to_keep must be an integer >= 1 or None, got 0"),
        ({"export_fn": "export"}, "export_fn must be callable, got str"),
        ({"on_error": "ignore"}, "on_error must be 'raise', 'warn' or None, got 'ignore'"),
        (
            {"data": iter([X]), "save_freq": "epoch"},
            "data must be read again at each epoch, but a list_iterator can be read once; pass a "
            "function that returns a new one",
        ),
        (
            {"max_to_keep": True, "mode": 1},
            "mode must be 'auto', 'min' or 'max', got 1; max_to_keep must be an integer >= 1 or "
            "None, got True",
        ),
    ],
)
def test_bad_option_is_refused_at_construction(
    tmp_path: pathlib.Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(OptionsError) as caught:
        kw.WarmupExport(tmp_path / "1", **options)
    assert str(caught.value) == f"Bad WarmupExport options: {text}."


@pytest.mark.parametrize(
    ("filepath", "text"),
    [
        ("m/{", "Bad filepath 'm/{'"),
        ("m/{0}", "Bad filepath 'm/{0}': unknown fields {0}"),
        ("m/{epoch:s}", "Bad filepath 'm/{epoch:s}'"),
        (None, "A path must be a str or os.PathLike, got NoneType"),
    ],
)
def test_bad_filepath_is_refused_at_construction(filepath: str | None, text: str) -> None:
    with pytest.raises(OptionsError) as caught:
        kw.WarmupExport(filepath)
    assert str(caught.value).startswith(text)


def test_bad_warmup_option_is_refused_at_construction() -> None:
    with pytest.raises(
        OptionsError, match=r"Unknown warmup option 'batch_size'\. Did you mean 'batch_sizes'\?"
    ):
        kw.WarmupExport("m/1", warmup={"batch_size": [4]})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_batches": 0}, "num_batches must be an integer >= 1, got 0"),
        ({"seed": 1.5}, "seed must be an integer >= 0, got 1.5"),
    ],
)
def test_bad_capture_option_is_refused_at_construction(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionsError) as caught:
        kw.BatchCapture(**options)
    assert str(caught.value) == f"Bad BatchCapture options: {text}."


# -- as a guest in fit -----------------------------------------------------------------------------


def test_path_no_server_loads_gets_a_hint(
    tmp_path: pathlib.Path, exports: Exports, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(make_model(), kw.WarmupExport(tmp_path / "best"))
    assert capsys.readouterr().out.splitlines()[0] == (
        f"WarmupExport: No TensorFlow Serving server loads '{tmp_path}/best': its last component "
        f"is not an integer. Publish to '{tmp_path}/best/1' or '{tmp_path}/best/{{version}}'."
    )


def test_verbose_zero_is_silent(
    tmp_path: pathlib.Path, exports: Exports, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(make_model(), kw.WarmupExport(tmp_path / "best", save_freq="epoch", verbose=0))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [kw.WarmupExport, kw.BatchCapture])
def test_no_hook_makes_keras_compute_logs_at_every_batch(
    kind: type[keras.callbacks.Callback],
) -> None:
    assert keras.callbacks.Callback.on_train_batch_end is kind.on_train_batch_end
    assert keras.callbacks.Callback.on_batch_end is kind.on_batch_end


def test_moves_only_behind_callbacks_that_restore(tmp_path: pathlib.Path, exports: Exports) -> None:
    plain = keras.callbacks.EarlyStopping("loss", patience=9)
    restoring = keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)
    model = make_model()

    def order(*given: keras.callbacks.Callback) -> list[keras.callbacks.Callback]:
        run = keras.callbacks.CallbackList(list(given), model=model, epochs=1)
        run.on_train_begin()
        return run.callbacks

    export = kw.WarmupExport(tmp_path / "1", verbose=0)
    assert order(export, plain) == [export, plain]
    assert order(restoring, export, plain) == [restoring, export, plain]
    assert order(export, restoring, plain) == [restoring, plain, export]
    other = kw.WarmupExport(tmp_path / "2", verbose=0)
    assert order(export, other, restoring) == [restoring, export, other]


def test_works_without_a_callback_list(tmp_path: pathlib.Path, exports: Exports) -> None:
    model = make_model()
    model.build((None, 3))
    export = kw.WarmupExport(tmp_path / "1", verbose=0)
    export.set_model(model)
    export.on_train_begin()
    export.on_epoch_begin(0)
    export.on_epoch_end(0, {"loss": 1.0})
    export.on_train_end()
    assert tree(tmp_path) == ["1"]


def test_successful_fit_warns_of_nothing(tmp_path: pathlib.Path, exports: Exports) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(make_model(), kw.WarmupExport(tmp_path / "{version}", verbose=0, save_freq="epoch"))
    assert tree(tmp_path) == ["1", "2"]


def test_signatures_of_the_public_callbacks() -> None:
    names = (
        "filepath data warmup monitor mode save_best_only save_freq max_to_keep export_model "
        "export_fn on_error verbose"
    )
    assert list(inspect.signature(kw.WarmupExport).parameters) == names.split()
    assert os.fspath(kw.WarmupExport(pathlib.Path("m/1")).filepath) == "m/1"


class Counting(keras.layers.Layer):
    """Counts its calls in a raw variable and draws from the global generator.

    A stateless scope holds neither state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0.0, trainable=False)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        self.calls.assign_add(1.0)
        return x + self.calls / 100 + tf.random.normal(tf.shape(x)) / 100


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
def test_epoch_exports_change_no_state_that_training_reads(
    run_eagerly: bool, tmp_path: pathlib.Path
) -> None:
    def train(*extra: keras.callbacks.Callback) -> tuple[list[float], float, list[Any]]:
        keras.utils.set_random_seed(3)
        x = keras.Input((3,), name="features")
        counting = Counting()
        model = keras.Model(x, keras.layers.Dense(1)(counting(x)))
        model.compile("sgd", "mse", run_eagerly=run_eagerly)
        history = fit(model, *extra, epochs=3).history["loss"]
        return (
            history,
            float(counting.calls.numpy()),
            [variable.numpy().tolist() for variable in model.weights],
        )

    plain = train()
    warm = kw.WarmupExport(tmp_path / "{version}", save_freq="epoch", verbose=0)
    assert train(warm) == plain
    assert len(warm.reports) == 3
    assert {proof.partition(" ")[0] for proof in warm.reports[-1].proofs.values()} == {"unproved:"}


class Lookup(keras.Model):
    """Cannot be traced with float32 ids, as Keras tries to at each export."""

    def __init__(self) -> None:
        super().__init__()
        self.table = self.add_weight(shape=(5, 2), name="table")

    def call(self, x: Any) -> Any:
        return tf.gather(self.table, x["ids"][:, 0])


@pytest.mark.parametrize("jit_compile", [False, "auto"])
def test_training_goes_on_after_an_export_that_keras_cannot_trace_with_floats(
    jit_compile: Any, tmp_path: pathlib.Path
) -> None:
    def train(*callbacks: keras.callbacks.Callback) -> tuple[Any, np.ndarray]:
        keras.utils.set_random_seed(1)
        model = Lookup()
        model.compile("sgd", "mse", jit_compile=jit_compile)
        ids = {"ids": (np.arange(24) % 5).reshape(24, 1).astype("int32")}
        fitted = model.fit(
            ids, np.zeros((24, 2)), batch_size=8, epochs=3, verbose=0, callbacks=list(callbacks)
        )
        return fitted.history, model.get_weights()[0]

    history, table = train()
    export = kw.WarmupExport(tmp_path / "{version}", save_freq="epoch", on_error="raise", verbose=0)
    history_with, table_with = train(export)
    assert len(export.reports) == 3
    assert history_with == history
    np.testing.assert_array_equal(table_with, table)


def test_chdir_during_fit_leads_max_to_keep_to_no_other_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, exports: Exports
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there / "1"):
        directory.mkdir(parents=True)
    (there / "1" / "saved_model.pb").write_text("somebody else's")
    monkeypatch.chdir(here)

    class ChangeDirectory(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            os.chdir(there)

    export = kw.WarmupExport("{version}", save_freq="epoch", max_to_keep=1)
    fit(make_model(), ChangeDirectory(), export, epochs=3)
    assert tree(here) == ["3"]
    assert (there / "1" / "saved_model.pb").read_text() == "somebody else's"
    assert export.filepath == "{version}"


def test_version_that_somebody_replaced_is_kept_with_a_warning(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    class Replace(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            if epoch == 1:
                shutil.rmtree(tmp_path / "1")
                (tmp_path / "1").mkdir()
                (tmp_path / "1" / "saved_model.pb").write_text("somebody else's")

    export = kw.WarmupExport(tmp_path / "{version}", save_freq="epoch", max_to_keep=1)
    with pytest.warns(UserWarning) as caught:
        fit(make_model(), Replace(), export, epochs=3)
    assert tree(tmp_path) == ["1", "3"]
    # Keras itself may cause DeprecationWarnings of NumPy.
    assert [str(one.message) for one in caught if one.category is UserWarning] == [
        f"WarmupExport keeps a version more than max_to_keep=1. Cannot remove '{tmp_path}/1': it "
        "is not the directory that was published there; somebody has replaced it since."
    ]


def test_path_that_somebody_replaced_is_not_overwritten(
    tmp_path: pathlib.Path, exports: Exports
) -> None:
    class Replace(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            if epoch == 1:
                shutil.rmtree(tmp_path / "1")
                (tmp_path / "1").mkdir()
                (tmp_path / "1" / "saved_model.pb").write_text("somebody else's")

    export = kw.WarmupExport(tmp_path / "1", save_freq="epoch")
    with pytest.warns(
        UserWarning, match=r"published nothing at epoch 2. PublishError: .* it exists"
    ):
        fit(make_model(), Replace(), export, epochs=2)
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "somebody else's"


def test_braces_in_the_working_directory_are_taken_literally(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, exports: Exports
) -> None:
    (tmp_path / "{exp}").mkdir()
    monkeypatch.chdir(tmp_path / "{exp}")
    export = kw.WarmupExport("m/{epoch}/{version}", save_freq="epoch")
    fit(make_model(), export, epochs=1)
    assert tree(tmp_path / "{exp}" / "m" / "1") == ["1"]


def test_warning_of_a_failed_transform_quotes_no_value(tmp_path: pathlib.Path) -> None:
    def transform(x: np.ndarray) -> float:
        return float("Alice 4711")

    export = kw.WarmupExport(tmp_path / "1", warmup={"transform": transform}, on_error="warn")
    with pytest.warns(UserWarning) as caught:
        fit(make_model(), export)
    said = " ".join(str(warning.message) for warning in caught)
    assert "is published COLD" in said and "ValueError" in said and "Alice" not in said
    assert "Alice" not in export.reports[-1].cold
