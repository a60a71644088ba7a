"""A training is never lost to a warmup file: a failed warmup publishes the model cold."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw

X = np.random.default_rng(0).random((8, 3), "float32")
Y = np.zeros((8, 1), "float32")
BAD = {"data": np.ones((4, 7), "float32")}


def make_model() -> keras.Model:
    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def fit(export: kw.WarmupExport, epochs: int = 1, model: keras.Model | None = None) -> Any:
    return (model or make_model()).fit(X, Y, epochs=epochs, verbose=0, callbacks=[export])


def raise_error(x: Any) -> Any:
    raise ValueError("the user's own transform")


FAILURES: dict[str, dict[str, Any]] = {
    "binding": BAD,
    "reading": {"data": lambda: iter([object()])},
    "transform": {"warmup": {"transform": raise_error}},
    "planning": {"warmup": {"output_filters": [["nope"]]}},
    "limit": {"warmup": {"max_bytes": 10}},
}


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize("on_error", [None, "warn"])
def test_a_failed_warmup_publishes_the_model_cold(
    case: str, on_error: Any, tmp_path: pathlib.Path
) -> None:
    export = kw.WarmupExport(
        tmp_path / "m" / "{version}", on_error=on_error, verbose=0, **FAILURES[case]
    )
    with pytest.warns(UserWarning, match="is published COLD, without a warmup file") as caught:
        history = fit(export)
    assert history.history["loss"]
    (report,) = export.reports
    assert report.cold and not report.records and report.warmup_path is None
    assert not (tmp_path / "m" / "1" / "assets.extra").exists()
    tf.saved_model.load(str(tmp_path / "m" / "1")).signatures["serving_default"]
    texts = [str(one.message) for one in caught if "COLD" in str(one.message)]
    assert len(texts) == 1 and "{version}" not in texts[0]
    assert str(tmp_path / "m" / "1") in texts[0]


@pytest.mark.parametrize("case", FAILURES)
def test_raise_publishes_nothing(case: str, tmp_path: pathlib.Path) -> None:
    export = kw.WarmupExport(tmp_path / "m" / "1", on_error="raise", verbose=0, **FAILURES[case])
    with pytest.raises(kw.WarmupError):
        fit(export)
    assert not (tmp_path / "m" / "1").exists()


@pytest.mark.parametrize(
    "options",
    [{"on_no_data": "error", "transform": None}, {"verify": False, "max_bytes": 10}],
    ids=["refused by on_no_data", "not verified"],
)
def test_what_was_asked_to_be_refused_is_not_published(
    options: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(kw.WarmupError):
        kw.export_with_warmup(
            make_model(), tmp_path / "1", warmup={"on_no_data": "error", **options}
        )
    report = kw.export_with_warmup(
        make_model(), tmp_path / "1", warmup={"on_no_data": "error", **options}, on_error="warn"
    )
    assert not report.published and report.cold
    assert not (tmp_path / "1").exists()


def test_a_model_that_no_server_can_run_is_a_failed_export(tmp_path: pathlib.Path) -> None:
    class Python(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.ensure_shape(tf.py_function(lambda one: one, [x], tf.float32), [None, 3])

    model = keras.Sequential([keras.Input((3,)), Python(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(kw.WarmupError, match="calls Python"):
        fit(kw.WarmupExport(tmp_path / "1", verbose=0), model=model)
    assert not (tmp_path / "1").exists()


def test_the_functions_publish_cold_with_warn_and_raise_by_default(tmp_path: pathlib.Path) -> None:
    model = make_model()
    functions: tuple[Any, ...] = (kw.export_with_warmup, kw.save)
    for index, publish in enumerate(functions):
        path = tmp_path / str(index + 1)
        with pytest.raises(kw.WarmupError):
            publish(model, path, **BAD)
        with pytest.warns(UserWarning, match="COLD"):
            report = publish(model, path, on_error="warn", **BAD)
        assert report.cold and report.published and path.exists()
    with pytest.raises(kw.WarmupError, match="on_error must be"):
        kw.save(model, tmp_path / "3", on_error="ignore", **BAD)  # type: ignore[arg-type]


class Epoch(keras.callbacks.Callback):  # type: ignore[misc]
    """Remembers the epoch, counted from 1, for a transform that fails at some of them."""

    now = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.now = epoch + 1

    def transform_failing_at(self, *epochs: int) -> Any:
        def transform(x: Any) -> Any:
            if self.now in epochs:
                raise ValueError
            return {"x": x}

        return transform


def versions(base: pathlib.Path) -> list[str]:
    return sorted(path.name for path in base.iterdir() if path.name.isdecimal())


@pytest.mark.parametrize(
    ("fails_at", "kept"),
    [((), ["4"]), ((4,), ["3", "4"]), ((3, 4), ["2", "4"]), ((2,), ["4"])],
)
def test_a_cold_version_never_evicts_a_warm_one(
    fails_at: tuple[int, ...], kept: list[str], tmp_path: pathlib.Path
) -> None:
    epoch = Epoch()
    export = kw.WarmupExport(
        tmp_path / "m" / "{version}",
        data=X,
        warmup={"transform": epoch.transform_failing_at(*fails_at)},
        save_freq="epoch",
        max_to_keep=1,
        verbose=0,
    )
    make_model().fit(X, Y, epochs=4, verbose=0, callbacks=[epoch, export])
    assert versions(tmp_path / "m") == kept


def test_a_cold_version_does_not_replace_a_warm_one(tmp_path: pathlib.Path) -> None:
    epoch = Epoch()
    export = kw.WarmupExport(
        tmp_path / "1",
        data=X,
        warmup={"transform": epoch.transform_failing_at(2)},
        save_freq="epoch",
        verbose=0,
    )
    with pytest.warns(UserWarning, match="published nothing at epoch 2: the warm version at"):
        make_model().fit(X, Y, epochs=2, verbose=0, callbacks=[epoch, export])
    assert kw.verify(tmp_path / "1").ok


@pytest.mark.parametrize("on_error", [None, "warn"])
def test_a_training_is_not_lost_where_a_cold_version_would_replace_a_warm_one(
    on_error: Any, tmp_path: pathlib.Path
) -> None:
    epoch = Epoch()
    warmup = {"transform": epoch.transform_failing_at(2)}
    export = kw.WarmupExport(tmp_path / "1", warmup=warmup, on_error=on_error, verbose=0)
    model = make_model()
    model.fit(X, Y, epochs=1, verbose=0, callbacks=[epoch, export])
    with pytest.warns(UserWarning, match="published nothing at the end of training") as caught:
        history = model.fit(X, Y, epochs=2, verbose=0, callbacks=[epoch, export])
    text = next(str(one.message) for one in caught if "published nothing" in str(one.message))
    assert f"the warm version at '{tmp_path}/1' stays. BindingError: transform raised" in text
    assert len(history.history["loss"]) == 2
    assert kw.verify(tmp_path / "1").ok and len(export.reports) == 1


def test_with_raise_a_failed_warmup_raises_beside_a_warm_version(tmp_path: pathlib.Path) -> None:
    epoch = Epoch()
    warmup = {"transform": epoch.transform_failing_at(2)}
    export = kw.WarmupExport(tmp_path / "1", warmup=warmup, on_error="raise", verbose=0)
    model = make_model()
    model.fit(X, Y, epochs=1, verbose=0, callbacks=[epoch, export])
    with pytest.raises(kw.WarmupError, match="transform raised ValueError"):
        model.fit(X, Y, epochs=2, verbose=0, callbacks=[epoch, export])
    assert kw.verify(tmp_path / "1").ok


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        (np.ones((8, 3, 2), "float32"), "rank differs"),
        (np.ones((8, 3, 1, 1), "float32"), "rank differs"),
    ],
)
def test_a_mismatch_is_told_after_the_first_step(
    x: Any, problem: str, tmp_path: pathlib.Path
) -> None:
    class Reshaping(keras.Model):
        """Trains on batches of another rank than its inputs have."""

        def train_step(self, data: Any) -> Any:
            features, target = data
            return super().train_step(
                (tf.reshape(features, [-1, 3])[: tf.shape(target)[0]], target)
            )

    inputs = keras.Input((3,), name="x")
    model = Reshaping(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    export = kw.WarmupExport(tmp_path / "1", verbose=0)
    with pytest.warns(UserWarning) as caught:
        history = model.fit(x, Y, batch_size=2, verbose=0, callbacks=[export])
    early = [str(one.message) for one in caught if "cannot make warmup records" in str(one.message)]
    assert len(early) == 1 and problem in early[0]
    assert "data=" in early[0] and "warmup={'transform': ...}" in early[0]
    assert export.reports[-1].cold and history.history["loss"]


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize("save_freq", ["train_end", "epoch"])
@pytest.mark.parametrize("on_error", [None, "raise", "warn"])
def test_messages_name_the_version_that_is_published(
    case: str, save_freq: Any, on_error: Any, tmp_path: pathlib.Path
) -> None:
    export = kw.WarmupExport(
        tmp_path / "m" / "{version}",
        save_freq=save_freq,
        on_error=on_error,
        verbose=0,
        **FAILURES[case],
    )
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit(export)
        except kw.WarmupError as error:
            texts.append(str(error))
    texts += [str(one.message) for one in caught]
    assert any("COLD" in text for text in texts) == (on_error != "raise")
    assert texts and not any("{version}" in text for text in texts)


@pytest.mark.parametrize("publish", [kw.export_with_warmup, kw.save])
def test_the_functions_name_the_version_that_was_not_published(
    publish: Any, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "m" / "{version}"
    with pytest.warns(UserWarning, match="Nothing was published to") as caught:
        report = publish(make_model(), path, warmup={"on_no_data": "error"}, on_error="warn")
    (text,) = (str(one.message) for one in caught if one.category is UserWarning)
    assert text.startswith(f"Nothing was published to '{tmp_path}/m/1'. NoDataError: ")
    assert report.export_dir == f"{tmp_path}/m/1"


# -- early words -----------------------------------------------------------------------------------


class TakesOther(keras.Model):
    """Trains on other batches than its inputs take: `adapt` makes the one of the other."""

    adapt: Callable[[Any], Any]

    def train_step(self, data: Any) -> Any:
        features, target = data
        return super().train_step((self.adapt(features), target))


def dict_model(adapt: Callable[[Any], Any]) -> keras.Model:
    """A model of the Inputs `a` `[None, 3]` and `b` `[None, 1]`, float32."""
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((1,), name="b")}
    joined = keras.layers.Concatenate()(list(inputs.values()))
    model = TakesOther(inputs, keras.layers.Dense(1)(joined))
    model.adapt = adapt
    model.compile("sgd", "mse")
    return model


B = np.linspace(0, 1, 8, dtype="float32").reshape(8, 1)
MISFITS: dict[str, tuple[Callable[[Any], Any], Any, str]] = {
    "missing key": (
        lambda x: {"a": x["a"], "b": x["a"][:, :1]},
        {"a": X},
        "missing features x['b'] ('b' float32 [None, 1])",
    ),
    "strings": (
        lambda x: {"a": x["a"], "b": tf.strings.to_number(x["b"])},
        {"a": tf.constant(X), "b": tf.constant(B.astype(str).tolist())},
        "input 'b' expects float32 [None, 1], got string [2, 1] from x['b'] (strings for a numeric "
        "input)",
    ),
    "rank": (
        lambda x: {"a": x["a"][:, :, 0], "b": x["b"]},
        {"a": X[:, :, np.newaxis] * np.ones((1, 1, 2), "float32"), "b": B},
        "input 'a' expects float32 [None, 3], got float32 [2, 3, 2] from x['a'] (rank differs)",
    ),
    "dtype": (
        lambda x: {"a": tf.cast(x["a"], tf.float32), "b": x["b"]},
        {"a": X.astype("complex64"), "b": B},
        "input 'a' expects float32 [None, 3], got complex64 [2, 3] from x['a']",
    ),
}


def early_words(caught: Any) -> list[str]:
    texts = [str(one.message) for one in caught]
    return [text for text in texts if "cannot make warmup records of these" in text]


@pytest.mark.parametrize("case", MISFITS)
def test_each_mismatch_is_told_early_and_once(case: str, tmp_path: pathlib.Path) -> None:
    adapt, x, problem = MISFITS[case]
    model = dict_model(adapt)
    export = kw.WarmupExport(tmp_path / "m" / "{version}", verbose=0)
    with pytest.warns(UserWarning) as caught:
        history = model.fit(x, Y, batch_size=2, epochs=2, verbose=0, callbacks=[export])
    (text,) = early_words(caught)
    assert problem in text and "data=" in text
    assert len(history.history["loss"]) == 2
    assert export.reports[-1].cold


@pytest.mark.parametrize("case", ["fits", "transform", "export_fn", "data"])
def test_what_may_fit_is_not_told(case: str, tmp_path: pathlib.Path) -> None:
    adapt, x, _ = MISFITS["missing key"]
    given: dict[str, dict[str, Any]] = {
        "fits": {},
        "transform": {"warmup": {"transform": lambda x: {"a": x["a"], "b": x["a"][:, :1]}}},
        "export_fn": {"export_fn": lambda model, path: model.export(path, verbose=False)},
        "data": {"data": {"a": X, "b": B}},
    }
    if case == "fits":
        adapt, x = (lambda x: x), {"a": X, "b": B}
    export = kw.WarmupExport(tmp_path / "1", verbose=0, **given[case])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dict_model(adapt).fit(x, Y, batch_size=2, verbose=0, callbacks=[export])
    assert not early_words(caught)
    assert len(export.reports) == 1


def test_the_early_words_come_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    adapt, x, _ = MISFITS["missing key"]
    model = dict_model(adapt)
    steps: list[int] = []

    def show(message: Any, *_: Any, **__: Any) -> None:
        if early_words([warnings.WarningMessage(message, UserWarning, "", 0)]):
            steps.append(int(model.optimizer.iterations))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        export = kw.WarmupExport(tmp_path / "1", verbose=0)
        model.fit(x, Y, batch_size=2, epochs=2, verbose=0, callbacks=[export])
    assert steps == [0]


@pytest.mark.parametrize("case", MISFITS)
def test_training_is_bit_identical_where_batches_do_not_fit(
    case: str, tmp_path: pathlib.Path
) -> None:
    adapt, x, _ = MISFITS[case]

    def train(*callbacks: keras.callbacks.Callback) -> tuple[Any, list[np.ndarray]]:
        keras.utils.set_random_seed(3)
        model = dict_model(adapt)
        history = model.fit(x, Y, batch_size=2, epochs=2, verbose=0, callbacks=list(callbacks))
        return history.history, model.get_weights()

    history, weights = train()
    with pytest.warns(UserWarning, match="cannot make warmup records"):
        history_with, weights_with = train(kw.WarmupExport(tmp_path / "1", verbose=0))
    assert history_with == history
    for one, other in zip(weights, weights_with, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_cure_would_break_the_training(tmp_path: pathlib.Path) -> None:
    adapt, x, _ = MISFITS["rank"]
    model = dict_model(adapt)
    export = kw.WarmupExport(tmp_path / "1", verbose=0)
    with pytest.warns(UserWarning) as caught:
        model.fit(x, Y, batch_size=2, verbose=0, callbacks=[export])
    texts = [str(one.message) for one in caught if "rank differs" in str(one.message)]
    assert len(texts) == 2 and "COLD" in texts[1]
    for text in texts:
        assert "Pass data= with rows that fit, or warmup={'transform': ...}." in text
        assert "in the dataset" not in text


# -- `data=` that does not fit ---------------------------------------------------------------------


WIDE = np.ones((8, 7), "float32")
WRONG: dict[str, tuple[Any, str]] = {
    "array": (WIDE, "input 'x' expects float32 [None, 3], got float32 [8, 7] from x (shape"),
    "rank": (X[:, :, np.newaxis] * np.ones(2), "(rank differs)"),
    "strings": (np.array([["a"] * 3] * 8), "(strings for a numeric input)"),
    "structure": ([X, X], "it takes 1 inputs ('x'), the batch has 2 leaves"),
    "dataset": (tf.data.Dataset.from_tensor_slices((WIDE, Y)).batch(2), "shape differs"),
    "dataset of unknown sizes": (
        tf.data.Dataset.from_generator(
            lambda: iter([]), output_signature=tf.TensorSpec((None, None, 7))
        ),
        "rank differs",
    ),
    "unreadable": ({"x": object()}, "Cannot read x['x'] of data: expected an array, got object"),
    "one of several": (
        kw.PerSignature({"serving_default": X, "serve": WIDE}),
        "shape differs in dimensions [1]",
    ),
}


def words_of_data(caught: Any) -> list[str]:
    texts = [str(one.message) for one in caught]
    return [text for text in texts if "cannot make warmup records of data=" in text]


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_told_after_the_first_step(case: str, tmp_path: pathlib.Path) -> None:
    data, problem = WRONG[case]
    export = kw.WarmupExport(tmp_path / "1", data=data, verbose=0)
    with pytest.warns(UserWarning) as caught:
        history = fit(export, epochs=2)
    (text,) = words_of_data(caught)
    assert problem in text and "at its end the model is published without a warmup file" in text
    assert "Pass data=" in text
    assert len(history.history["loss"]) == 2
    (report,) = export.reports
    assert report.cold and report.cold in str(caught[-1].message)


FITTING: dict[str, Any] = {
    "array": X,
    "one column more": {"x": X, "unused": Y},
    "dataset": tf.data.Dataset.from_tensor_slices((X, Y)).batch(2),
    "dataset of unknown sizes": tf.data.Dataset.from_generator(
        lambda: iter([X]), output_signature=tf.TensorSpec((None, None))
    ),
    "dataset of unknown rank": tf.data.Dataset.from_generator(
        lambda: iter([X]), output_signature=tf.TensorSpec(None)
    ),
    "function": lambda: X,
}


@pytest.mark.parametrize("case", FITTING)
def test_data_that_may_fit_is_not_told(case: str, tmp_path: pathlib.Path) -> None:
    export = kw.WarmupExport(tmp_path / "1", data=FITTING[case], on_error="raise", verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(export)
    assert not words_of_data(caught)
    assert {record.source for record in export.reports[0].records} == {"data"}


def test_an_error_that_was_asked_for_is_told_as_such(tmp_path: pathlib.Path) -> None:
    export = kw.WarmupExport(tmp_path / "1", on_error="raise", verbose=0, **BAD)
    with (
        pytest.raises(kw.WarmupError),
        pytest.warns(UserWarning, match="at its end the export raises, as on_error='raise' asks"),
    ):
        fit(export)


def test_data_is_not_read_before_the_end(tmp_path: pathlib.Path) -> None:
    read_at: list[int] = []

    def elements() -> Any:
        for _ in range(4):
            read_at.append(int(model.optimizer.iterations))
            yield X[:2], Y[:2]

    model = make_model()
    spec = (tf.TensorSpec((None, 3)), tf.TensorSpec((None, 1)))
    for index, data in enumerate(
        [elements(), elements, tf.data.Dataset.from_generator(elements, output_signature=spec)]
    ):
        export = kw.WarmupExport(tmp_path / str(index + 1), data=data, verbose=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(X, Y, batch_size=2, verbose=0, callbacks=[export])
        steps = int(model.optimizer.iterations)
        assert steps == 4 * (index + 1) and read_at and set(read_at) == {steps}
        read_at.clear()
        assert not export.reports[-1].cold


def test_training_is_bit_identical_where_data_is_the_dataset_of_fit(tmp_path: pathlib.Path) -> None:
    def train(with_export: bool) -> tuple[Any, list[np.ndarray]]:
        keras.utils.set_random_seed(3)
        model = make_model()
        # Each pass over a dataset that shuffles has another order.
        dataset = tf.data.Dataset.from_tensor_slices((X, X.sum(1))).shuffle(8).batch(2)
        export = kw.WarmupExport(tmp_path / "1", data=dataset, verbose=0)
        callbacks = [export] if with_export else []
        history = model.fit(dataset, epochs=3, verbose=0, callbacks=callbacks)
        return history.history, model.get_weights()

    (history, weights), (history_with, weights_with) = train(False), train(True)
    assert history_with == history
    for one, other in zip(weights, weights_with, strict=True):
        np.testing.assert_array_equal(one, other)


# -- no record runs --------------------------------------------------------------------------------


def lookup_model() -> keras.Model:
    """A model that fails on strings that it does not know, as made-up ones."""
    x = keras.Input((1,), dtype="string", name="x")
    one_hot = keras.layers.StringLookup(
        vocabulary=["a", "b"], num_oov_indices=0, output_mode="one_hot"
    )
    return keras.Model(x, keras.layers.Dense(1)(one_hot(x)))


def test_a_version_of_which_no_record_runs_is_cold(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = kw.WarmupExport(tmp_path / "1", export_model=lookup_model())
    with pytest.warns(UserWarning, match="is published COLD") as caught:
        fit(export)
    (report,) = export.reports
    assert "pass data=" in report.cold and report.warmup_path is None
    assert set(report.skipped) == {"serving_default", "serve"}
    assert f"published {tmp_path}/1 COLD, without a warmup file" in capsys.readouterr().out
    # One warning at the end, in which the reason is given once for both twins.
    (text,) = (str(one.message) for one in caught if "do not run" in str(one.message))
    assert text.count("do not run") == 1 and report.cold in text


@pytest.mark.parametrize("path", ["{version}", "1"])
def test_a_version_of_which_no_record_runs_evicts_no_warm_one(
    path: str, tmp_path: pathlib.Path
) -> None:
    trained = make_model()
    served = iter([trained, lookup_model()])
    export = kw.WarmupExport(
        tmp_path / path,
        save_freq="epoch",
        max_to_keep=1,
        export_model=lambda _: next(served),
        verbose=0,
    )
    with pytest.warns(UserWarning, match="do not run"):
        fit(export, epochs=2, model=trained)
    assert kw.verify(tmp_path / "1").ok
    assert versions(tmp_path) == (["1", "2"] if path == "{version}" else ["1"])


@pytest.mark.parametrize("publish", [kw.export_with_warmup, kw.save])
def test_an_unknown_option_raises_also_with_warn(publish: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(kw.WarmupError, match="Did you mean 'batch_sizes'"):
        publish(make_model(), tmp_path / "1", warmup={"batch_size": [1]}, on_error="warn")
