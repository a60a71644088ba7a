"""`enable()` makes unchanged code publish with warmup; `disable()` leaves nothing behind."""

from __future__ import annotations

import functools
import importlib
import pathlib
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.records.warmup_file import warmup_path
from keras_warmup.training.capture import find_capture

tf_keras: Any = pytest.importorskip("tf_keras")
legacy_saving: Any = importlib.import_module("tf_keras.src.saving.legacy.save")
ROOT = pathlib.Path(__file__).resolve().parents[1]


def functions() -> dict[str, Any]:
    """Returns what `enable` replaces, as it is now."""
    archive = type(keras.export.ExportArchive())
    owners = [
        (keras.Model, "fit"),
        (keras.Model, "export"),
        (archive, "write_out"),
        (tf.saved_model, "save"),
        (tf_keras.Model, "fit"),
        (tf_keras.Model, "export"),
        (legacy_saving, "save_model"),
        (tf_keras.export.ExportArchive, "write_out"),
    ]
    return {
        f"{owner.__module__ if hasattr(owner, '__module__') else owner.__name__}.{name}": vars(
            owner
        ).get(name)
        for owner, name in owners
    }


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fails where a test leaves a function replaced."""
    import tensorflow.saved_model  # noqa: F401 - puts a new module in the place of tf.saved_model

    before = functions()
    yield
    kw.disable()
    assert functions() == before


def trained(library: Any = keras) -> tuple[Any, np.ndarray[Any, Any]]:
    """Returns a model and the rows it was trained on in a plain `fit`."""
    x = np.random.default_rng(5).random((48, 3), dtype=np.float32)
    model = library.Sequential([library.Input((3,), name="x"), library.layers.Dense(2)])
    model.compile("sgd", "mse")
    model.fit(x, x[:, :2], verbose=0)
    return model, x


def records_of(path: pathlib.Path) -> list[Any]:
    return list(kw.read_records(str(path)))


def assert_warm(path: pathlib.Path, x: np.ndarray[Any, Any]) -> None:
    """Asserts that a model was published with rows of x."""
    report = kw.verify(str(path))
    assert report.ok, report.failures
    known = {row.tobytes() for row in x}
    for log in records_of(path):
        (tensor,) = log.predict_log.request.inputs.values()
        assert all(row.tobytes() in known for row in tf.make_ndarray(tensor))


def write_export(model: Any, path: str) -> Any:
    return model.export(path, verbose=False)


def write_archive(model: Any, path: str) -> Any:
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, [tf.TensorSpec((None, 3))])
    return archive.write_out(path, verbose=False)


def write_module(model: Any, path: str) -> Any:
    return tf.saved_model.save(model, path)


def write_legacy_export(model: Any, path: str) -> Any:
    return model.export(path)


def write_legacy_save(model: Any, path: str) -> Any:
    return model.save(path)


def write_legacy_model(model: Any, path: str) -> Any:
    return tf_keras.models.save_model(model, path)


def write_legacy_archive(model: Any, path: str) -> Any:
    archive = tf_keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, [tf.TensorSpec((None, 3))])
    return archive.write_out(path)


WAYS = [
    (keras, write_export),
    (keras, write_archive),
    (keras, write_module),
    (tf_keras, write_legacy_export),
    (tf_keras, write_legacy_save),
    (tf_keras, write_legacy_model),
    (tf_keras, write_legacy_archive),
    (tf_keras, write_module),
]
IDS = [f"{library.__name__}-{write.__name__}" for library, write in WAYS]


@pytest.mark.parametrize(("library", "write"), WAYS, ids=IDS)
def test_each_way_to_write_a_model_publishes_it_warm(
    library: Any, write: Any, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "m" / "1"
    with kw.enable():
        model, x = trained(library)
        assert write(model, str(path)) is None
    assert_warm(path, x)
    assert sorted(entry.name for entry in (tmp_path / "m").iterdir()) == ["1"]
    loaded = tf.saved_model.load(str(path))
    (output,) = loaded.signatures["serving_default"](tf.constant(x[:4])).values()
    np.testing.assert_allclose(output, model(x[:4]), rtol=1e-5)


@pytest.mark.parametrize(("library", "write"), WAYS, ids=IDS)
def test_nothing_is_changed_after_disable(library: Any, write: Any, tmp_path: pathlib.Path) -> None:
    kw.enable()
    kw.disable()
    model, _ = trained(library)
    write(model, str(tmp_path / "1"))
    assert find_capture(model) is None
    assert (tmp_path / "1" / "saved_model.pb").exists()
    assert not pathlib.Path(warmup_path(str(tmp_path / "1"))).exists()


def test_fit_is_bit_identical() -> None:
    def weights() -> list[bytes]:
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        return [array.tobytes() for array in trained()[0].get_weights()]

    plain = weights()
    with kw.enable():
        assert weights() == plain


def test_each_weight_is_stored_once(tmp_path: pathlib.Path) -> None:
    with kw.enable():
        model, _ = trained()
        model.export(str(tmp_path / "1"), verbose=False)
    names = [
        name for name, _ in tf.train.list_variables(str(tmp_path / "1" / "variables" / "variables"))
    ]
    assert len([name for name in names if name.endswith("VARIABLE_VALUE")]) == 2


def test_a_message_names_the_path_asked_for(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "1"
    with kw.enable():
        trained()[0].export(path)
    printed = capsys.readouterr().out
    assert f"Saved artifact at '{path}'." in printed
    assert "kw-" not in printed


def test_options_apply_and_the_newest_ones_win(tmp_path: pathlib.Path) -> None:
    kw.enable({"batch_sizes": [5]})
    with kw.enable({"batch_sizes": [3, 7]}):
        trained()[0].export(str(tmp_path / "1"), verbose=False)
    trained()[0].export(str(tmp_path / "2"), verbose=False)
    sizes = [
        sorted(
            log.predict_log.request.inputs["x"].tensor_shape.dim[0].size
            for log in records_of(tmp_path / name)
        )
        for name in ("1", "2")
    ]
    assert sizes == [[3, 7], [5]]


def test_wrong_options_are_refused_and_nothing_is_enabled() -> None:
    with pytest.raises(kw.WarmupError, match="batch_size"):
        kw.enable({"batch_size": 3})


def test_other_formats_and_errors_pass_through(tmp_path: pathlib.Path) -> None:
    with kw.enable():
        model, _ = trained()
        legacy, _ = trained(tf_keras)
        with pytest.raises(ValueError, match="Unrecognized format"):
            model.export(str(tmp_path / "1"), format="nonsense")
        with pytest.raises(TypeError, match="filepath"):
            model.export()
        with pytest.raises(ValueError, match="Trackable"):
            tf.saved_model.save(object(), str(tmp_path / "2"))
        model.save(tmp_path / "model.keras")
        legacy.save(str(tmp_path / "model.h5"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.h5", "model.keras"]


def test_a_failed_warmup_leaves_the_model_of_the_script(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1"

    def broken(x: Any) -> Any:
        raise ZeroDivisionError("secret")

    with (
        kw.enable({"transform": broken}),
        pytest.warns(UserWarning, match="published COLD.*ZeroDivisionError"),
    ):
        trained()[0].export(str(path), verbose=False)
    assert (path / "saved_model.pb").exists()
    assert not (path / "assets.extra").exists()


def test_any_other_failure_calls_the_function_as_it_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no publishing today")

    path = tmp_path / "1"
    monkeypatch.setattr("keras_warmup.pipeline.export_model.staged", fail)
    # The text of an error that is not ours may quote training data.
    with kw.enable(), pytest.warns(UserWarning, match="written COLD.*RuntimeError; its text"):
        trained()[0].export(str(path), verbose=False)
    assert tf.saved_model.load(str(path)).signatures["serving_default"]
    assert not (path / "assets.extra").exists()


def test_a_directory_with_other_files_keeps_them(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1"
    path.mkdir()
    (path / "labels.txt").write_text("cat\ndog\n")
    with kw.enable():
        model, x = trained()
        model.export(str(path), verbose=False)
        assert_warm(path, x)
        model.export(str(path), verbose=False)
    assert (path / "labels.txt").read_text() == "cat\ndog\n"
    assert_warm(path, x)


@pytest.mark.parametrize("place", ["assets", "variables", "assets.extra", ""])
def test_files_that_the_script_added_to_a_model_stay(place: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1"
    with kw.enable():
        model, x = trained()
        model.export(str(path), verbose=False)
        (path / place / "labels.txt").write_text("cat")
        model.export(str(path), verbose=False)
    assert (path / place / "labels.txt").read_text() == "cat"
    assert_warm(path, x)


def test_a_directory_with_assets_and_no_model_is_written_in_place(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1"
    (path / "assets").mkdir(parents=True)
    (path / "assets" / "plot.png").write_bytes(b"plot")
    with kw.enable():
        model, x = trained()
        model.export(str(path), verbose=False)
    assert (path / "assets" / "plot.png").exists()
    assert_warm(path, x)


def test_a_warmup_file_of_the_script_stays(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1"
    (path / "assets.extra").mkdir(parents=True)
    pathlib.Path(warmup_path(str(path))).write_bytes(b"its own")
    with kw.enable():
        trained()[0].export(str(path), verbose=False)
    assert pathlib.Path(warmup_path(str(path))).read_bytes() == b"its own"
    assert (path / "saved_model.pb").exists()


def test_what_the_function_prints_appears_once(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_python(x: Any) -> Any:
        return tf.numpy_function(lambda value: value, [x], tf.float32)

    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Lambda(in_python, output_shape=(3,))(x))
    with kw.enable(), pytest.warns(UserWarning, match="written COLD.*UnservableError"):
        model.export(str(tmp_path / "1"))
    assert capsys.readouterr().out.count("Saved artifact at") == 1
    assert (tmp_path / "1" / "saved_model.pb").exists()


def test_no_message_quotes_what_a_model_says_of_rows(tmp_path: pathlib.Path) -> None:
    class Loud(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x: Any, training: bool = False) -> Any:
            if tf.executing_eagerly() and not training:
                raise ValueError(f"cannot take {x}")
            return self.dense(x)

    model = Loud()
    model.compile("sgd", "mse")
    x = np.full((8, 3), 0.625, np.float32)
    with kw.enable(), pytest.warns(UserWarning, match="ValueError") as caught:
        model.fit(x, x[:, :2], verbose=0)
        model.export(str(tmp_path / "1"), verbose=False)
    assert not any("0.625" in str(one.message) for one in caught)


def test_a_name_that_begins_with_a_tilde_is_a_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with kw.enable():
        model, x = trained()
        model.export("~/1", verbose=False)
    assert_warm(tmp_path / "~" / "1", x)


@pytest.mark.parametrize("path", ["{version}", "with {braces}"])
def test_a_path_is_taken_as_it_is(path: str, tmp_path: pathlib.Path) -> None:
    with kw.enable():
        model, x = trained()
        model.export(str(tmp_path / path), verbose=False)
    assert_warm(tmp_path / path, x)


def test_a_path_of_bytes_is_taken(tmp_path: pathlib.Path) -> None:
    with kw.enable():
        model, x = trained()
        tf.saved_model.save(model, str(tmp_path / "1").encode())
    assert_warm(tmp_path / "1", x)


def test_a_directory_keeps_its_identity_and_mode(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1"
    path.mkdir(mode=0o700)
    before = path.stat()
    with kw.enable():
        model, x = trained()
        model.export(str(path), verbose=False)
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)
    assert_warm(path, x)


class Mixed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(x["a"]) + tf.cast(x["i"], tf.float32)


def input_specs(path: pathlib.Path) -> Any:
    return tf.saved_model.load(str(path)).signatures["serving_default"].structured_input_signature


@pytest.mark.parametrize("write", [write_export, write_module], ids=["export", "save"])
def test_clients_of_a_subclassed_model_find_the_signature_they_know(
    write: Any, tmp_path: pathlib.Path
) -> None:
    def make() -> Any:
        model = Mixed()
        model.compile("sgd", "mse")
        x = {"a": np.ones((8, 2), np.float32), "i": np.ones((8, 1), np.int64)}
        model.fit(x, np.ones((8, 1)), verbose=0)
        return model

    write(make(), str(tmp_path / "plain"))
    with kw.enable():
        write(make(), str(tmp_path / "warm"))
    assert input_specs(tmp_path / "warm") == input_specs(tmp_path / "plain")
    assert kw.verify(str(tmp_path / "warm")).ok


def test_warnings_that_are_errors_do_not_reach_the_script(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    listed = keras.callbacks.CallbackList(add_history=True, model=model)
    x = np.ones((8, 3), np.float32)
    with kw.enable(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(x, x[:, :1], verbose=0, callbacks=listed)
        model.export(str(tmp_path / "1"), verbose=False)
    assert int(model.optimizer.iterations) == 1
    assert records_of(tmp_path / "1")
    printed = capsys.readouterr().err
    assert "This fit is not sampled" in printed
    assert "hold made-up rows" in printed


def test_an_archive_with_a_write_out_of_its_own_runs_once(tmp_path: pathlib.Path) -> None:
    class Archive(type(keras.export.ExportArchive())):  # type: ignore[misc]
        calls = 0

        def write_out(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
            self.calls += 1
            super().write_out(filepath, *args, **kwargs)
            pathlib.Path(f"{filepath}", "labels.txt").write_text("cat")

    with kw.enable():
        model, x = trained()
        archive = Archive()
        archive.track(model)
        archive.add_endpoint("serve", model.call, [tf.TensorSpec((None, 3))])
        archive.write_out(str(tmp_path / "1"), verbose=False)
    assert archive.calls == 1
    assert (tmp_path / "1" / "labels.txt").exists()
    assert_warm(tmp_path / "1", x)


def test_a_fit_inside_a_fit_is_sampled() -> None:
    inner: list[Any] = []

    class Distill(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            inner.append(trained()[0])

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((8, 3), np.float32)
    with kw.enable():
        model.fit(x, x[:, :1], verbose=0, callbacks=[Distill()])
    assert find_capture(inner[0]) is not None
    assert find_capture(model) is not None


def test_a_module_takes_the_rows_of_its_trained_model(tmp_path: pathlib.Path) -> None:
    class Serving(tf.Module):  # type: ignore[misc]
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        @tf.function(input_signature=[tf.TensorSpec((None, 3), name="x")])
        def serve(self, x: Any) -> Any:
            return {"doubled": self.model(x) * 2}

    with kw.enable():
        model, x = trained()
        module = Serving(model)
        tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": module.serve})
    assert_warm(tmp_path / "1", x)


def test_pythons_random_numbers_are_those_without_it(tmp_path: pathlib.Path) -> None:
    script = """
        import sys, random
        import keras_warmup as kw
        if sys.argv[1] == "on":
            kw.enable()
        import tf_keras, numpy as np
        random.seed(1)
        model = tf_keras.Sequential([tf_keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
        print(random.random(), "keras_warmup.callbacks" in sys.modules)
        model.export(sys.argv[2])
        print(random.random())
    """
    printed = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), switch, str(tmp_path / switch)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for switch in ("on", "off")
    ]
    assert printed[0][1] == "True" and printed[1][1] == "False"
    assert (printed[0][0], printed[0][-1]) == (printed[1][0], printed[1][-1])


def test_a_stale_file_of_ours_is_removed_where_the_warmup_fails(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1"
    with kw.enable():
        trained()[0].export(str(path), verbose=False)
        (path / "labels.txt").write_text("kept")
        monkeypatch.setattr(
            "keras_warmup.pipeline.export_model.warm_saved_model", lambda *_, **__: 1 / 0
        )
        with pytest.warns(UserWarning, match="COLD.*ZeroDivisionError"):
            trained()[0].export(str(path), verbose=False)
    assert (path / "labels.txt").exists()
    assert not pathlib.Path(warmup_path(str(path))).exists()


def test_a_callback_that_samples_is_enough(tmp_path: pathlib.Path) -> None:
    seen: list[Any] = []

    class Watch(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            seen.append(find_capture(self.model))

    export = kw.WarmupExport(str(tmp_path / "{version}"))
    x = np.ones((8, 3), np.float32)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callbacks = [export, Watch()]
    with kw.enable():
        model.fit(x, x[:, :1], verbose=0, callbacks=callbacks)
    assert len(callbacks) == 2
    assert [report.cold for report in export.reports] == [""]


def test_the_callers_list_of_callbacks_is_not_changed() -> None:
    x = np.ones((8, 3), np.float32)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callbacks: list[Any] = []
    history = keras.callbacks.History()
    with kw.enable():
        model.fit(x, x[:, :1], 4, 1, 0, callbacks)
        model.fit(x, x[:, :1], verbose=0, callbacks=history)
    assert callbacks == []
    assert find_capture(model) is not None


def test_privacy_that_the_environment_forbids_meanwhile_ends_no_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Forbidding(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            monkeypatch.setenv("KERAS_WARMUP_PRIVACY", "nonsense")

    model, x = trained()
    with kw.enable(), pytest.warns(UserWarning, match="not sampled.*KERAS_WARMUP_PRIVACY"):
        model.fit(x, x[:, :2], verbose=0, callbacks=[Forbidding()])
    assert int(model.optimizer.iterations) == 4


def test_a_script_without_keras_saves_as_it_does(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'jax'")

    monkeypatch.setattr("keras_warmup.automatic.import_quietly", fail)
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    with kw.enable(), pytest.warns(UserWarning, match="without a warmup file.*'jax'"):
        tf.saved_model.save(module, str(tmp_path / "1"))
    assert tf.saved_model.load(str(tmp_path / "1")).variable.numpy() == 1.0


def test_the_model_that_a_module_holds_tells_which_worker_publishes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def is_chief(model: Any) -> bool:
        asked.append(model)
        return False

    monkeypatch.setattr("keras_warmup.training.strategy.is_chief", is_chief)
    module = tf.Module()
    module.model, _ = trained()
    with kw.enable():
        tf.saved_model.save(module, str(tmp_path / "1"))
    assert asked == [module.model]
    assert not (tmp_path / "1" / "assets.extra").exists()


def test_an_error_of_sampling_warns_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keras_warmup.callbacks.sampling_callback", lambda _: 1 / 0)
    with kw.enable(), pytest.warns(UserWarning, match="not sampled.*ZeroDivisionError"):
        model, _ = trained()
    assert int(model.optimizer.iterations) == 2


def test_a_checkpoint_of_tf_keras_in_fit_is_not_published(tmp_path: pathlib.Path) -> None:
    x = np.ones((8, 3), np.float32)
    model = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    checkpoint = tf_keras.callbacks.ModelCheckpoint(str(tmp_path / "c"))
    with kw.enable():
        model.fit(x, x[:, :1], verbose=0, callbacks=[checkpoint])
    assert (tmp_path / "c" / "saved_model.pb").exists()
    assert not (tmp_path / "c" / "assets.extra").exists()


def test_nested_use_restores_what_was_there() -> None:
    before = functions()
    with kw.enable():
        inside = functions()
        assert all(inside[name] is not before[name] for name in before)
        with kw.enable():
            assert functions() == inside
        assert functions() == inside
    assert functions() == before
    kw.enable()
    kw.enable()
    with kw.enable():
        pass
    assert functions().keys() == before.keys() and functions() != before
    kw.disable()
    kw.disable()
    assert functions() == before


def test_concurrent_use_restores_what_was_there(tmp_path: pathlib.Path) -> None:
    before = functions()
    start, failures = threading.Barrier(4), []

    def work(index: int) -> None:
        try:
            start.wait()
            for turn in range(3):
                with kw.enable():
                    model, _ = trained()
                    path = tmp_path / f"{index}-{turn}" / "1"
                    model.export(str(path), verbose=False)
                    if not pathlib.Path(warmup_path(str(path))).exists():
                        failures.append(path)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert functions() == before


def test_a_patch_that_another_library_puts_over_stays(tmp_path: pathlib.Path) -> None:
    original = vars(keras.Model).get("fit")
    kw.enable()
    below = keras.Model.fit
    calls = []

    @functools.wraps(below)
    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return below(self, *args, **kwargs)

    keras.Model.fit = theirs
    try:
        kw.disable()
        assert keras.Model.fit is theirs
        model, _ = trained()
        assert calls == [model]
        assert find_capture(model) is None
        with kw.enable():
            sampled, _ = trained()
        assert find_capture(sampled) is not None
        assert keras.Model.fit is theirs
    finally:
        if original is None:
            del keras.Model.fit
        else:
            keras.Model.fit = original


def test_a_function_of_another_library_over_ours_is_called_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    with kw.enable():
        below = keras.Model.export

        def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(self)
            return below(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(keras.Model, "export", theirs)
            model, x = trained()
            model.export(str(tmp_path / "1"), verbose=False)
    assert calls == [model]
    assert_warm(tmp_path / "1", x)


@pytest.mark.parametrize("order", ["keras, tensorflow", "tensorflow, keras", "tf_keras"])
def test_modules_may_be_imported_later(order: str, tmp_path: pathlib.Path) -> None:
    script = f"""
        import sys
        import keras_warmup as kw
        kw.enable()
        assert not {{"keras", "tensorflow", "tf_keras"}} & sys.modules.keys()
        import {order}
        import {order.rpartition(" ")[2]} as last, tensorflow as tf, numpy as np
        library = sys.modules.get("tf_keras") or sys.modules["keras"]
        model = library.Sequential([library.layers.Input((3,)), library.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0)
        model.export(sys.argv[1] + "/1")
        tf.saved_model.save(model, sys.argv[1] + "/2")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("1", "2"):
        assert records_of(tmp_path / name)
        assert "made-up" not in done.stderr
