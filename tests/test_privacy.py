"""Tests of the privacy modes: no planted value leaves the process in any way."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.bench.minimize import minimize
from keras_warmup.cli.commands import main
from keras_warmup.errors import OptionsError
from keras_warmup.options import Privacy
from keras_warmup.records.manifest import MANIFEST_PATH, read_manifest
from keras_warmup.records.warmup_file import warmup_path
from keras_warmup.training.capture import BatchTap
from tests.builders import float_parser, predict_log, write_warmup_file

SECRET_FLOAT, SECRET_ID, SECRET_TEXT = 12345.678, 99991, b"Secret-Person-77"
OPEN_TEXT = b"OpenText-42"
SECRETS = {
    "age": [np.float32(SECRET_FLOAT).tobytes(), str(SECRET_FLOAT).encode()],
    "user": [np.int64(SECRET_ID).tobytes(), b"\x97\x8d\x06", str(SECRET_ID).encode()],
    "name": [SECRET_TEXT],
}
MODES: dict[str, dict[str, Any]] = {
    "redacted": {"privacy": "redacted", "redact": ["age", "user", "name"]},
    "synthetic": {"privacy": "synthetic"},
}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Collects what is logged, printed and warned of; the value is a function that returns it."""
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")

        def text() -> str:
            printed = capfd.readouterr()
            return "\n".join(
                [printed.out, printed.err, caplog.text, *(str(one.message) for one in caught)]
            )

        yield text


def files_of(directory: pathlib.Path) -> dict[str, bytes]:
    """Returns the content of all files below a directory, hidden ones included."""
    return {
        os.path.join(where, name): pathlib.Path(where, name).read_bytes()
        for where, _, names in os.walk(directory)
        for name in names
    }


def require_clean(directory: pathlib.Path, text: str, *features: str) -> None:
    """Checks that no secret of the features is in a file below a directory, or in a text."""
    for feature in features:
        for secret in SECRETS[feature]:
            # Weights of the model may hold any three bytes, also in a staging directory; what we
            # write may not.
            for path, content in files_of(directory).items():
                is_weights = os.path.basename(path).startswith("variables.data-")
                ours = ("assets.extra" in path or ".kw-" in path) and not is_weights
                assert not ((ours or len(secret) > 4) and secret in content), (feature, path)
            assert secret.decode("latin-1") not in text, feature


def table() -> keras.Model:
    """Builds a model of numbers, ids and strings."""
    age = keras.Input((1,), name="age")
    user = keras.Input((1,), name="user", dtype="int64")
    name = keras.Input((1,), name="name", dtype="string")
    parts = [
        age,
        keras.layers.Flatten()(keras.layers.Embedding(100_003, 2)(user)),
        keras.layers.Flatten()(keras.layers.Embedding(16, 2)(keras.layers.Hashing(16)(name))),
    ]
    outputs = keras.layers.Dense(2)(keras.layers.Concatenate()(parts))
    return keras.Model({"age": age, "user": user, "name": name}, outputs)


def table_rows(size: int = 8) -> dict[str, np.ndarray]:
    return {
        "age": np.full((size, 1), SECRET_FLOAT, "float32"),
        "user": np.full((size, 1), SECRET_ID, "int64"),
        "name": np.full((size, 1), SECRET_TEXT, object),
    }


def table_data() -> tf.data.Dataset:
    x = {name: tf.constant(one) for name, one in table_rows().items()}
    return tf.data.Dataset.from_tensor_slices((x, np.zeros((8, 2), "float32"))).batch(4)


@pytest.mark.parametrize("mode", MODES)
def test_captured_rows_are_replaced(mode: str, tmp_path: pathlib.Path, said: Any) -> None:
    model = table()
    model.compile("sgd", "mse")
    export = kw.WarmupExport(tmp_path / "1", warmup=MODES[mode])
    model.fit(table_data(), verbose=0, callbacks=[export])
    require_clean(tmp_path, said(), "age", "user", "name")
    report = export.reports[0]
    assert report.proofs["serving_default"] == "proved" and not report.cold
    assert report.privacy == mode and report.real_features == ()
    assert kw.verify(tmp_path / "1", no_real_rows=True).ok
    # Nor does the memory hold them: the sample is what an export would read.
    for batch in export._tap.batches():
        for leaf in batch.x.values():
            assert not {SECRET_ID, SECRET_TEXT, np.float32(SECRET_FLOAT)} & set(leaf.ravel())


@pytest.mark.parametrize("mode", MODES)
def test_training_is_bit_identical_in_each_mode(mode: str, tmp_path: pathlib.Path) -> None:
    weights = []
    for options in (None, MODES[mode]):
        keras.utils.set_random_seed(1)
        model = table()
        model.compile("sgd", "mse")
        callbacks = [] if options is None else [kw.WarmupExport(tmp_path / "1", warmup=options)]
        model.fit(table_data(), verbose=0, callbacks=callbacks)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", MODES)
def test_given_and_kept_rows_are_replaced(mode: str, tmp_path: pathlib.Path, said: Any) -> None:
    model = table()
    kw.export_with_warmup(model, tmp_path / "1", data=table_rows(), warmup=MODES[mode])
    require_clean(tmp_path, said(), "age", "user", "name")
    model.export(tmp_path / "2", verbose=False)
    kw.add_warmup(tmp_path / "2", table_rows())
    with pytest.raises(AssertionError):
        require_clean(tmp_path, "", "name")
    kw.add_warmup(tmp_path / "2", table_rows(), warmup=MODES[mode], append=True)
    require_clean(tmp_path, "", "age", "user", "name")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["predict", "classify", "regress", "multi_inference"])
def test_examples_of_each_kind_are_replaced(
    kind: Any, mode: str, tmp_path: pathlib.Path, said: Any
) -> None:
    x = keras.Input((1,), name="age")
    hidden = keras.layers.Dense(4, activation="tanh")(x)
    score = keras.layers.Dense(2, activation="softmax", name="score")(hidden)
    model = keras.Model(x, {"score": score, "value": keras.layers.Dense(1)(hidden)})
    parser = float_parser("age")
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("predict", kw.endpoints.predict_examples(model, parser))
    archive.add_endpoint(
        "classify", kw.endpoints.classify(model, parser, ["no", "yes"], output="score")
    )
    archive.add_endpoint("regress", kw.endpoints.regress(model, parser, output="value"))
    archive.write_out(tmp_path / "1", verbose=False)
    feature = {
        "age": tf.train.Feature(float_list=tf.train.FloatList(value=[SECRET_FLOAT])),
        "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[SECRET_TEXT])),
        "user": tf.train.Feature(int64_list=tf.train.Int64List(value=[SECRET_ID])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    options = {**MODES[mode], "kinds": [kind]}
    report = kw.add_warmup(tmp_path / "1", [example] * 4, warmup=options)
    require_clean(tmp_path, said(), "age", "user", "name")
    assert {record.kind for record in report.records} == {kind}
    assert kw.verify(tmp_path / "1", no_real_rows=True).ok
    # The file of real rows becomes the same by the command.
    kw.add_warmup(tmp_path / "1", [example] * 4, warmup={"kinds": [kind]})
    assert not kw.verify(tmp_path / "1", no_real_rows=True).ok
    flags = ["--privacy", mode]
    if mode == "redacted":
        flags += [flag for name in ("age", "user", "name") for flag in ("--redact", name)]
    assert main(["redact", str(tmp_path / "1"), *flags]) == 0
    require_clean(tmp_path, "", "age", "user", "name")
    assert kw.verify(tmp_path / "1", no_real_rows=True).ok


def test_only_the_named_features_are_redacted(tmp_path: pathlib.Path) -> None:
    model = table()
    rows = {**table_rows(), "name": np.full((8, 1), OPEN_TEXT, object)}
    report = kw.export_with_warmup(
        model, tmp_path / "1", data=rows, warmup={"privacy": "redacted", "redact": ["user"]}
    )
    require_clean(tmp_path, "", "user")
    content = pathlib.Path(warmup_path(tmp_path / "1")).read_bytes()
    assert OPEN_TEXT in content and SECRETS["age"][0] in content
    assert report.real_features == ("age", "name")
    assert report.proofs["serving_default"] == "proved"
    found = kw.verify(tmp_path / "1", no_real_rows=True)
    assert not found.ok and "real values of age, name" in found.failures[0]


@pytest.mark.parametrize(
    "options", [{"privacy": "synthetic"}, {"privacy": "redacted", "redact": ["image"]}]
)
@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg])
def test_images_are_replaced(encode: Any, options: Any, tmp_path: pathlib.Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    image = encode(pixels).numpy()

    class Decode(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image")])
        def serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
            decoded = tf.map_fn(
                lambda one: tf.ensure_shape(tf.io.decode_image(one), [6, 6, 3]),
                image,
                fn_output_signature=tf.uint8,
            )
            return {"mean": tf.reduce_mean(tf.cast(decoded, tf.float32), [1, 2, 3])}

    module = Decode()
    kw.save(
        module,
        tmp_path / "1",
        {"serving_default": module.serve},
        data={"image": np.array([image] * 4, object)},
        warmup=options,
    )
    content = pathlib.Path(warmup_path(tmp_path / "1")).read_bytes()
    assert image[-64:] not in content and image[:3] in content
    assert kw.verify(tmp_path / "1", no_real_rows=True).ok


def test_ragged_rows_are_replaced(tmp_path: pathlib.Path, said: Any) -> None:
    class Sum(tf.Module):
        @tf.function(input_signature=[tf.RaggedTensorSpec([None, None], tf.int64)])
        def serve(self, user: Any) -> dict[str, tf.Tensor]:
            return {"sum": tf.reduce_sum(user, axis=1)}

    module = Sum()
    data = {"user": tf.ragged.constant([[SECRET_ID], [SECRET_ID, SECRET_ID]], dtype=tf.int64)}
    for number, mode in enumerate(MODES):
        options = {**MODES[mode], **({"redact": ["user"]} if mode == "redacted" else {})}
        kw.save(
            module,
            tmp_path / str(number),
            {"serving_default": module.serve},
            data=data,
            warmup=options,
        )
    require_clean(tmp_path, said(), "user")


def test_words_of_a_closed_vocabulary_stay_words(tmp_path: pathlib.Path) -> None:
    x = keras.Input((1,), dtype="string", name="word")
    lookup = keras.layers.StringLookup(vocabulary=["red", "green", "blue"], num_oov_indices=0)
    model = keras.Model(x, keras.layers.Embedding(3, 2)(lookup(x)))
    rows = np.full((4, 1), b"red", object)
    report = kw.export_with_warmup(
        model, tmp_path / "1", data=rows, warmup={"privacy": "synthetic"}
    )
    assert len(report.records) == 1 and not report.cold
    assert b"red" not in pathlib.Path(warmup_path(tmp_path / "1")).read_bytes()


def test_a_feature_that_is_not_there_is_refused(tmp_path: pathlib.Path) -> None:
    model = table()
    with pytest.raises(
        OptionsError, match=r"redact names \['nmae'\].*hold \['age', 'name', 'user'"
    ):
        kw.export_with_warmup(
            model,
            tmp_path / "1",
            data=table_rows(),
            warmup={"privacy": "redacted", "redact": ["nmae"]},
        )
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"privacy": "private"}, "privacy must be one of none, redacted, synthetic"),
        ({"privacy": "redacted"}, "needs redact="),
        ({"redact": ["a"]}, "redact needs privacy='redacted'"),
        ({"privacy": "redacted", "redact": "a"}, "redact must be a sequence"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        kw.WarmupOptions(**options)


def write_around(way: str, path: pathlib.Path, options: dict[str, Any]) -> None:
    """Writes a model with a warmup file in one of the ways there are."""
    model = table()
    model.compile("sgd", "mse")
    rows = table_rows()
    if way == "callback":
        model.fit(
            table_data(), verbose=0, callbacks=[kw.WarmupExport(path, warmup=options, verbose=0)]
        )
    elif way == "capture":
        model.fit(table_data(), verbose=0, callbacks=[kw.BatchCapture()])
        kw.export_with_warmup(model, path, warmup=options)
    elif way == "export":
        kw.export_with_warmup(model, path, data=rows, warmup=options)
    elif way == "save":
        kw.save(model, path, data=rows, warmup=options)
    else:
        model.export(path, verbose=False)
        if way == "add":
            kw.add_warmup(path, rows, warmup=options)
        else:
            np.savez(path.parent / "rows.npz", **{**rows, "name": rows["name"].astype("S")})
            flags = [f"--privacy={options['privacy']}"] if options else []
            data = str(path.parent / "rows.npz")
            if main(["add", str(path), "--data", data, *flags]) != 0:
                raise OptionsError("KERAS_WARMUP_PRIVACY")


@pytest.mark.parametrize("way", ["callback", "capture", "export", "save", "add", "command"])
def test_the_environment_cannot_be_got_round(
    way: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_WARMUP_PRIVACY", "synthetic")
    with pytest.raises(OptionsError, match="KERAS_WARMUP_PRIVACY"):
        write_around(way, tmp_path / "1", {"privacy": "none"})
    assert not os.path.exists(warmup_path(tmp_path / "1"))
    write_around(way, tmp_path / "2", {})
    (tmp_path / "rows.npz").unlink(missing_ok=True)
    require_clean(tmp_path, "", "age", "user", "name")
    assert kw.verify(tmp_path / "2", no_real_rows=True).ok


def test_an_object_from_before_the_switch_obeys_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kw.WarmupExport(tmp_path / "1", warmup={"privacy": "none"}, verbose=0)
    silent = kw.WarmupExport(tmp_path / "2", verbose=0)
    monkeypatch.setenv("KERAS_WARMUP_PRIVACY", "synthetic")
    model = table()
    model.compile("sgd", "mse")
    with pytest.raises(OptionsError, match="allows no less than 'synthetic'"):
        model.fit(table_data(), verbose=0, callbacks=[before])
    model.fit(table_data(), verbose=0, callbacks=[silent])
    require_clean(tmp_path, "", "age", "user", "name")


def test_files_with_real_rows_are_not_published_again_under_the_switch(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = table()
    kw.export_with_warmup(model, tmp_path / "1", data=table_rows())
    model.export(tmp_path / "3", verbose=False)
    kw.add_warmup(tmp_path / "3", table_rows())
    monkeypatch.setenv("KERAS_WARMUP_PRIVACY", "synthetic")
    for publish in (
        lambda: kw.freeze(tmp_path / "1", tmp_path / "2"),
        lambda: kw.repair(tmp_path / "3", tmp_path / "2"),
        lambda: minimize(tmp_path / "1"),
    ):
        with pytest.raises(OptionsError, match="keras-warmup redact"):
            publish()
    assert not (tmp_path / "2").exists()
    kw.redact(tmp_path / "1")
    kw.redact(tmp_path / "3")
    kw.freeze(tmp_path / "1", tmp_path / "2")
    require_clean(tmp_path, "", "age", "user", "name")
    assert kw.verify(tmp_path / "2", no_real_rows=True).ok


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"KERAS_WARMUP_PRIVACY": "secret"}, "must be one of none, redacted, synthetic"),
        ({"KERAS_WARMUP_PRIVACY": "redacted"}, "set KERAS_WARMUP_REDACT"),
    ],
)
def test_a_wrong_switch_is_refused(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionsError, match=problem):
        kw.WarmupOptions()


def test_features_of_the_switch_are_added_to_those_asked_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_WARMUP_REDACT", "name, of_another_model")
    model = table()
    report = kw.export_with_warmup(
        model,
        tmp_path / "1",
        data=table_rows(),
        warmup={"privacy": "redacted", "redact": ["user"]},
    )
    require_clean(tmp_path, "", "user", "name")
    assert report.real_features == ("age",)


def test_real_rows_are_announced_in_one_line(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = table()
    kw.export_with_warmup(model, tmp_path / "1", data=table_rows())
    (line,) = caplog.messages
    assert "up to 2 REAL ROWS" in line and "features: age, name, user" in line
    caplog.clear()
    for number, mode in enumerate(MODES):
        kw.export_with_warmup(model, tmp_path / f"2{number}", data=table_rows(), warmup=MODES[mode])
    assert caplog.messages == []


def test_the_manifest_describes_the_file(tmp_path: pathlib.Path, capsys: Any) -> None:
    model = table()
    kw.export_with_warmup(model, tmp_path / "1", data=table_rows())
    content = json.loads((tmp_path / "1" / MANIFEST_PATH).read_text())
    assert content["schema_version"] == 1 and content["seed"] == 0
    assert content["privacy"] == {"mode": "none", "redacted": [], "not_found": []}
    assert content["real_features"] == ["age", "name", "user"] and content["real_rows"] == 2
    assert content["records"] == [
        {
            "signature_key": "serving_default",
            "kind": "predict",
            "batch_size": 2,
            "output_filter": [],
            "source": "data",
            "real_features": ["age", "name", "user"],
        }
    ]
    assert set(content["model"]) == {
        "saved_model.pb",
        "fingerprint.pb",
        "variables/variables.index",
    }
    assert main(["records", str(tmp_path / "1"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["privacy"] == "none"
    assert listed["records"][0]["real_features"] == ["age", "name", "user"]
    assert listed["records"][0]["source"] == "data"


def test_a_cold_model_has_no_manifest(tmp_path: pathlib.Path) -> None:
    model = table()
    model.compile("sgd", "mse")
    export = kw.WarmupExport(tmp_path / "1", data=np.ones((4, 3)), verbose=0)
    with pytest.warns(UserWarning, match="COLD"):
        model.fit(table_data(), verbose=0, callbacks=[export])
    assert export.reports[0].cold
    assert read_manifest(tmp_path / "1") is None


def make_stale(way: str, path: pathlib.Path, other: pathlib.Path) -> None:
    """Makes the warmup file of a model one that does not belong to it."""
    model = table()
    if way == "saved over":
        module = tf.Module()
        module.serve = tf.function(
            lambda x: {"y": x}, input_signature=[tf.TensorSpec([None], tf.float32, "x")]
        )
        tf.saved_model.save(module, str(path), {"serving_default": module.serve})
    elif way == "exported over":
        model.export(path, verbose=False)
    elif way == "other weights":
        source = other / "variables"
        for name in os.listdir(source):
            (path / "variables" / name).write_bytes((source / name).read_bytes())
    elif way == "other file":
        target = pathlib.Path(warmup_path(path))
        target.write_bytes(pathlib.Path(warmup_path(other)).read_bytes())
    elif way == "other manifest":
        (path / MANIFEST_PATH).write_bytes((other / MANIFEST_PATH).read_bytes())
    elif way == "copied assets.extra":
        for name in os.listdir(other / "assets.extra"):
            content = (other / "assets.extra" / name).read_bytes()
            (path / "assets.extra" / name).write_bytes(content)
    elif way == "file removed":
        os.remove(warmup_path(path))
    else:
        (path / MANIFEST_PATH).write_text("{")


@pytest.mark.parametrize(
    "way",
    [
        "saved over",
        "exported over",
        "other weights",
        "other file",
        "other manifest",
        "copied assets.extra",
        "file removed",
        "damaged",
    ],
)
def test_a_stale_file_is_found(way: str, tmp_path: pathlib.Path) -> None:
    for seed, name in enumerate(("1", "2")):
        keras.utils.set_random_seed(seed)
        model = table()
        rows = {**table_rows(), "age": np.full((8, 1), float(seed), "float32")}
        kw.export_with_warmup(model, tmp_path / name, data=rows)
    assert kw.verify(tmp_path / "1").ok
    make_stale(way, tmp_path / "1", tmp_path / "2")
    report = kw.verify(tmp_path / "1")
    assert not report.ok and report.real_features is None
    assert any(
        "made for another model" in one or "manifest" in one or "describes" in one
        for one in report.failures
    ), report.failures


def test_changes_made_here_keep_the_manifest_current(tmp_path: pathlib.Path) -> None:
    model = table()
    kw.export_with_warmup(model, tmp_path / "1", data=table_rows())
    assert main(["method-names", str(tmp_path / "1")]) == 0
    kw.freeze(tmp_path / "1", tmp_path / "2")
    kw.add_warmup(tmp_path / "2", table_rows(), append=True)
    for name in ("1", "2"):
        assert kw.verify(tmp_path / name).ok
        assert kw.verify(tmp_path / name).real_features == ("age", "name", "user")


def test_a_file_without_a_manifest_may_hold_real_rows(tmp_path: pathlib.Path) -> None:
    model = table()
    kw.export_with_warmup(model, tmp_path / "1", data=table_rows())
    (tmp_path / "1" / MANIFEST_PATH).unlink()
    assert kw.verify(tmp_path / "1").ok
    report = kw.verify(tmp_path / "1", no_real_rows=True)
    assert not report.ok and "cannot be excluded" in report.failures[0]
    assert main(["verify", str(tmp_path / "1"), "--no-real-rows"]) == 1
    kw.redact(tmp_path / "1")
    assert main(["verify", str(tmp_path / "1"), "--no-real-rows"]) == 0


def test_a_redaction_that_does_not_run_leaves_the_file(tmp_path: pathlib.Path) -> None:
    class Numbers(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def serve(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
            known = tf.reduce_all(tf.equal(text, "seven"))
            checked = tf.debugging.Assert(known, ["unknown"])
            with tf.control_dependencies([checked]):
                return {"y": tf.strings.length(text)}

    module = Numbers()
    data = {"text": np.array([b"seven"] * 2, object)}
    kw.save(module, tmp_path / "1", {"serving_default": module.serve}, data=data)
    before = files_of(tmp_path)
    with pytest.raises(kw.WarmupError, match="was left as it is"):
        kw.redact(tmp_path / "1")
    assert files_of(tmp_path) == before


def test_what_a_transform_returns_is_replaced(tmp_path: pathlib.Path) -> None:
    for number, mode in enumerate(MODES):
        kw.export_with_warmup(
            table(),
            tmp_path / str(number),
            data=table_rows(),
            warmup={**MODES[mode], "transform": lambda _: table_rows(4)},
        )
    require_clean(tmp_path, "", "age", "user", "name")


def test_a_file_that_the_export_did_not_write_is_not_vouched_for(tmp_path: pathlib.Path) -> None:
    model = table()
    kw.export_with_warmup(model, tmp_path / "old", data=table_rows())

    def export(model: Any, export_dir: str) -> None:
        model.export(export_dir, verbose=False)
        extra = pathlib.Path(export_dir, "assets.extra")
        extra.mkdir()
        (extra / "tf_serving_warmup_requests").write_bytes(
            pathlib.Path(warmup_path(tmp_path / "old")).read_bytes()
        )

    options = {"privacy": "synthetic"}
    with pytest.warns(UserWarning, match="COLD"):
        report = kw.export_with_warmup(
            model, tmp_path / "1", data=np.ones((4, 3)), warmup=options, export_fn=export,
            on_error="warn",
        )  # fmt: skip
    assert report.cold
    require_clean(tmp_path / "1", "", "age", "user", "name")
    assert not os.path.exists(warmup_path(tmp_path / "1"))


def test_responses_in_a_log_of_a_server_are_left_out(tmp_path: pathlib.Path) -> None:
    model = table()
    model.export(tmp_path / "1", verbose=False)
    log = predict_log(**{name: rows[:2] for name, rows in table_rows().items()})
    response = log.predict_log.response.outputs["y"]
    response.CopyFrom(tf.make_tensor_proto([SECRET_TEXT]))
    log.log_metadata.model_spec.name = SECRET_TEXT.decode()
    log.predict_log.request.client_id = SECRET_TEXT
    write_warmup_file(tmp_path / "1", log)
    report = kw.redact(tmp_path / "1")
    require_clean(tmp_path, "", "age", "user", "name")
    assert [one.source for one in report.records] == ["synthetic"]


def test_a_closed_vocabulary_is_read_from_the_saved_model(tmp_path: pathlib.Path) -> None:
    x = keras.Input((1,), dtype="string", name="word")
    lookup = keras.layers.StringLookup(vocabulary=["red", "green", "blue"], num_oov_indices=0)
    model = keras.Model(x, keras.layers.Embedding(3, 2)(lookup(x)))
    kw.export_with_warmup(model, tmp_path / "1", data=np.full((4, 1), b"red", object))
    kw.redact(tmp_path / "1")
    assert b"red" not in pathlib.Path(warmup_path(tmp_path / "1")).read_bytes()


def test_appending_remembers_what_was_redacted(tmp_path: pathlib.Path) -> None:
    kw.export_with_warmup(table(), tmp_path / "1", data=table_rows())
    kw.redact(tmp_path / "1")
    report = kw.add_warmup(tmp_path / "1", table_rows(), append=True)
    sources = [(record.source, record.real_features) for record in report.records]
    assert sources == [("synthetic", ()), ("data", ("age", "name", "user"))]
    kw.redact(tmp_path / "1", "redacted", redact=["user"])
    assert kw.verify(tmp_path / "1").real_features == ("age", "name")


def test_a_wrong_name_is_told_before_the_first_step(tmp_path: pathlib.Path) -> None:
    model = table()
    model.compile("sgd", "mse")
    options = {"privacy": "redacted", "redact": ["user", "nmae"]}
    export = kw.WarmupExport(tmp_path / "1", warmup=options, verbose=0)
    with pytest.warns(UserWarning) as caught:
        model.fit(table_data(), verbose=0, callbacks=[export])
    texts = [str(one.message) for one in caught]
    assert any("redact names ['nmae'], but the training batches" in text for text in texts)
    assert "redact names ['nmae']" in export.reports[0].cold


@pytest.mark.parametrize("content", ["{", "[" * 200_000, '{"schema_version": 1, "records": [3]}'])
def test_a_damaged_manifest_is_a_failure(content: str, tmp_path: pathlib.Path) -> None:
    kw.export_with_warmup(table(), tmp_path / "1", data=table_rows())
    (tmp_path / "1" / MANIFEST_PATH).write_text(content)
    report = kw.verify(tmp_path / "1", no_real_rows=True)
    assert not report.ok and any("is damaged" in one for one in report.failures)
    assert main(["records", str(tmp_path / "1")]) == 0


def test_a_manifest_that_is_a_fifo_is_not_opened(tmp_path: pathlib.Path) -> None:
    kw.export_with_warmup(table(), tmp_path / "1", data=table_rows())
    (tmp_path / "1" / MANIFEST_PATH).unlink()
    os.mkfifo(tmp_path / "1" / MANIFEST_PATH)
    assert not kw.verify(tmp_path / "1").ok


def test_keys_of_x_that_are_names_of_other_inputs(tmp_path: pathlib.Path) -> None:
    first, second = keras.Input((1,), name="zz"), keras.Input((1,), name="aa")
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()([first, second]))
    model = keras.Model({"aa": first, "zz": second}, outputs)
    model.compile("sgd", "mse")
    rows = {"aa": np.full((8, 1), 3.25, "float32"), "zz": np.full((8, 1), SECRET_FLOAT, "float32")}
    options = {"privacy": "redacted", "redact": ["aa"]}
    export = kw.WarmupExport(tmp_path / "1", warmup=options, verbose=0)
    model.fit(rows, np.zeros((8, 1)), verbose=0, callbacks=[export])
    # The Input 'aa' takes x['zz'], so the name is that of both.
    require_clean(tmp_path, "", "age")
    assert np.float32(3.25).tobytes() not in pathlib.Path(warmup_path(tmp_path / "1")).read_bytes()


def test_the_example_of_a_capture_holds_no_ragged_values(tmp_path: pathlib.Path) -> None:
    tap = BatchTap(2, 8, 0, 2**20, privacy=lambda: Privacy("synthetic"))
    ragged = tf.ragged.constant([[SECRET_ID], [SECRET_ID]], dtype=tf.int64)
    tap.begin(keras.Sequential([keras.layers.Dense(1)]))
    tap.sample_elements([(ragged,)], None)
    assert tap.example is not None
    assert SECRET_ID not in tap.example.x.flat_values.numpy()


def test_a_kept_record_is_not_vouched_for_by_a_name_of_x(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keras.Input((1,), name="aa")
    model = keras.Model({"k1": first}, keras.layers.Dense(1)(first))
    rows = {"k1": np.full((4, 1), SECRET_FLOAT, "float32")}
    kw.export_with_warmup(model, tmp_path / "1", data=rows)
    monkeypatch.setenv("KERAS_WARMUP_REDACT", "k1")
    kw.add_warmup(tmp_path / "1", {"aa": rows["k1"]}, append=True)
    with pytest.raises(OptionsError, match="keras-warmup redact"):
        kw.freeze(tmp_path / "1", tmp_path / "2")


def test_a_switch_that_breaks_during_fit_costs_the_warmup_only(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            monkeypatch.setenv("KERAS_WARMUP_PRIVACY", "bogus")

    model = table()
    model.compile("sgd", "mse")
    export = kw.WarmupExport(tmp_path / "1", verbose=0)
    with pytest.warns(UserWarning, match="COLD"):
        model.fit(table_data(), verbose=0, callbacks=[Break(), export])
    assert "KERAS_WARMUP_PRIVACY must be one of" in export.reports[0].cold


def ratio_model() -> keras.Model:
    """Builds a model whose first input must be a number in text."""
    text = keras.Input((1,), name="text", dtype="string")
    number = keras.layers.Lambda(lambda one: tf.strings.to_number(one), output_shape=(1,))(text)
    return keras.Model({"text": text}, keras.layers.Dense(1)(number))


def test_values_that_do_not_run_are_an_error_or_a_warning(tmp_path: pathlib.Path) -> None:
    # The kinds of characters are kept, so digits alone would be numbers again.
    rows = {"text": np.full((4, 1), b"inf", object)}
    options = {"privacy": "synthetic"}
    for export in (kw.export_with_warmup, kw.save):
        with pytest.raises(kw.WarmupError, match="the values that privacy='synthetic' made up"):
            export(ratio_model(), tmp_path / "1", data=rows, warmup=options)
        assert not (tmp_path / "1").exists()
    with pytest.warns(UserWarning, match="COLD"):
        report = kw.export_with_warmup(
            ratio_model(), tmp_path / "1", data=rows, warmup=options, on_error="warn"
        )
    assert report.cold and read_manifest(tmp_path / "1") is None


def test_words_of_a_vocabulary_that_is_not_exported_do_not_ship(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"Secret-Person-{number}" for number in range(70, 80)]
    user, price = keras.Input((), name="user", dtype="string"), keras.Input((1,), name="price")
    dense = keras.layers.Dense(4)
    lookup = keras.layers.StringLookup(vocabulary=words)
    users = keras.layers.Embedding(20, 4)(lookup(user))
    trained = keras.Model(
        {"user": user, "price": price}, keras.layers.Dot(axes=-1)([users, dense(price)])
    )
    same = keras.layers.Lambda(tf.identity, output_shape=())(user)
    served = keras.Model({"user": user, "price": price}, {"user": same, "score": dense(price)})
    trained.compile("sgd", "mse")
    x = {"user": tf.constant(words), "price": np.ones((10, 1), "float32")}
    for number, served_model in enumerate((served, None)):
        export = kw.WarmupExport(
            tmp_path / str(number),
            warmup={"privacy": "synthetic"},
            verbose=0,
            export_model=served_model,
        )
        trained.fit(x, np.zeros((10, 1)), verbose=0, callbacks=[export])
        assert export.reports[0].records
    monkeypatch.setenv("KERAS_WARMUP_PRIVACY", "synthetic")
    trained.fit(x, np.zeros((10, 1)), verbose=0, callbacks=[kw.BatchCapture()])
    kw.export_with_warmup(served, tmp_path / "2")
    for name in ("0", "2"):
        assert not any(b"Secret" in content for content in files_of(tmp_path / name).values())
    # The trained model itself has the words: its records hold others of them.
    assert b"Secret" in pathlib.Path(warmup_path(tmp_path / "1")).read_bytes()


def test_a_table_of_a_module_is_a_vocabulary(tmp_path: pathlib.Path) -> None:
    class Closed(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = tf.Variable(np.eye(4, dtype="float32"))
            words = tf.constant(["red", "green", "blue", "pink"])
            pairs = tf.lookup.KeyValueTensorInitializer(words, tf.range(4))
            self.table = tf.lookup.StaticHashTable(pairs, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "color")])
        def serve(self, color: tf.Tensor) -> dict[str, tf.Tensor]:
            # Fails outside of the vocabulary.
            return {"y": tf.gather(self.rows, self.table.lookup(color))}

    module, data = Closed(), {"color": np.array([b"red", b"green"], object)}
    for number, mode in enumerate(MODES):
        options = {**MODES[mode], **({"redact": ["color"]} if mode == "redacted" else {})}
        path = tmp_path / str(number)
        kw.save(module, path, {"serving_default": module.serve}, data=data, warmup=options)
        kw.add_warmup(path, data, warmup=options)
        content = pathlib.Path(warmup_path(path)).read_bytes()
        assert b"red" not in content and b"green" not in content
        assert b"blue" in content or b"pink" in content


def test_a_vocabulary_that_raises_does_not_end_a_fit(tmp_path: pathlib.Path) -> None:
    class Failing(keras.layers.StringLookup):  # type: ignore[misc]
        def get_vocabulary(self) -> list[str]:
            return ["a"]

    word = keras.Input((1,), name="word", dtype="string")
    ids = Failing(vocabulary=["a", "b"])(word)
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(keras.layers.Embedding(9, 2)(ids)))
    model = keras.Model({"word": word}, outputs)
    model.compile("sgd", "mse")
    export = kw.WarmupExport(tmp_path / "1", warmup={"privacy": "synthetic"}, verbose=0)
    x = {"word": tf.constant([["a"], ["b"]] * 8)}
    model.fit(x, np.zeros((16, 1)), verbose=0, callbacks=[export])
    assert export.reports[0].records and not export.reports[0].cold


def test_columns_of_a_frame_are_not_redacted_silently(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"age": np.float32([SECRET_FLOAT] * 4), "height": np.float32([1.5] * 4)}
    )
    inputs = keras.Input((2,), name="person")
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    monkeypatch.setenv("KERAS_WARMUP_REDACT", "age,elsewhere")
    for data in (frame, {"person": frame}, lambda: iter([(frame, np.zeros(4))])):
        with pytest.raises(OptionsError, match=r"Cannot redact \['age'\].*dict\(frame\)"):
            kw.export_with_warmup(model, tmp_path / "1", data=data)
    assert not (tmp_path / "1").exists()
    report = kw.export_with_warmup(
        model, tmp_path / "1", data=frame, warmup={"privacy": "synthetic"}
    )
    assert report.real_features == ()
    require_clean(tmp_path, "", "age")


def test_the_manifest_tells_redacted_features_from_those_that_no_row_has(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_WARMUP_REDACT", "name,elsewhere")
    report = kw.export_with_warmup(table(), tmp_path / "1", data=table_rows())
    assert (report.redacted, report.not_found) == (("name",), ("elsewhere",))
    content = json.loads((tmp_path / "1" / MANIFEST_PATH).read_text())
    assert content["privacy"] == {
        "mode": "redacted",
        "redacted": ["name"],
        "not_found": ["elsewhere"],
    }
    kw.freeze(tmp_path / "1", tmp_path / "2")
    kw.add_warmup(tmp_path / "1", table_rows(), append=True)
    assert kw.redact(tmp_path / "1", "redacted", redact=["user"]).not_found == ("elsewhere",)
    kw.freeze(tmp_path / "1", tmp_path / "3")
    monkeypatch.setenv("KERAS_WARMUP_REDACT", "name,age")
    with pytest.raises(OptionsError, match="keras-warmup redact"):
        kw.freeze(tmp_path / "1", tmp_path / "4")


@pytest.mark.parametrize("names", [["x['u']['id']"], ["u"]])
def test_features_of_equal_names_are_reported_apart(
    names: list[str], tmp_path: pathlib.Path
) -> None:
    first, second = keras.Input((1,), name="u_id"), keras.Input((1,), name="id")
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()([first, second]))
    model = keras.Model({"u": {"id": first}, "v": {"id": second}}, outputs)
    model.compile("sgd", "mse")
    x = {
        "u": {"id": np.full((8, 1), SECRET_FLOAT, "float32")},
        "v": {"id": np.full((8, 1), 3.25, "float32")},
    }
    options = {"privacy": "redacted", "redact": names}
    export = kw.WarmupExport(tmp_path / "1", warmup=options, verbose=0)
    model.fit(x, np.zeros((8, 1)), verbose=0, callbacks=[export])
    given = kw.export_with_warmup(model, tmp_path / "2", data=x, warmup=options)
    require_clean(tmp_path, "", "age")
    assert export.reports[0].real_features == given.real_features == ("id",)
    assert given.redacted == tuple(names)


def test_real_features_are_those_of_each_signature(tmp_path: pathlib.Path) -> None:
    income, other = keras.Input((1,), name="inc"), keras.Input((1,), name="oth")
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()([income, other]))
    model = keras.Model({"income": income, "other": other}, outputs)
    rows = np.full((4, 1), SECRET_FLOAT, "float32"), np.full((4, 1), 3.25, "float32")
    specs = [tf.TensorSpec((None, 1), name=name) for name in ("left", "right")]

    def export(model: Any, path: str) -> None:
        archive = keras.export.ExportArchive()
        archive.track(model)
        named = {"income": specs[0], "other": specs[1]}
        archive.add_endpoint("serve", lambda x: model(x), input_signature=[named])
        archive.add_endpoint(
            "pair",
            lambda left, right: model({"income": 2.0 * left, "other": right}),
            input_signature=specs,
        )
        archive.write_out(path, verbose=False)

    data = kw.PerSignature(
        {
            "serve": {"income": rows[0], "other": rows[1]},
            "pair": {"left": rows[0], "right": rows[1]},
        }
    )
    report = kw.export_with_warmup(
        model,
        tmp_path / "1",
        data=data,
        export_fn=export,
        warmup={"privacy": "redacted", "redact": ["income"]},
    )
    found = {record.signature_key: record.real_features for record in report.records}
    assert found.pop("pair") == ("left", "right")
    assert found == {"serving_default": ("right",)}


def test_the_key_of_an_input_is_a_name_of_rows_in_another_structure(
    tmp_path: pathlib.Path,
) -> None:
    income, other = keras.Input((1,), name="inc"), keras.Input((1,), name="oth")
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()([income, other]))
    model = keras.Model({"income": income, "other": other}, outputs)
    rows = np.full((4, 1), SECRET_FLOAT, "float32"), np.full((4, 1), 3.25, "float32")
    options = {"privacy": "redacted", "redact": ["income"]}
    report = kw.export_with_warmup(model, tmp_path / "1", data=list(rows), warmup=options)
    require_clean(tmp_path, "", "age")
    assert report.real_features == ("oth",)


def test_redacted_ragged_rows_are_reported_so(tmp_path: pathlib.Path) -> None:
    class Sum(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.dense(tf.reduce_sum(tf.cast(x, tf.float32), axis=1)[:, None])

    ragged = tf.RaggedTensor.from_row_lengths(np.full(20, SECRET_ID), [3] * 6 + [2])
    dataset = tf.data.Dataset.from_tensors((ragged, np.zeros((7, 1), "float32")))
    model = Sum()
    model.compile("sgd", "mse")
    options = {"privacy": "redacted", "redact": ["x"]}
    export = kw.WarmupExport(tmp_path / "1", warmup=options, verbose=0)
    model.fit(dataset, verbose=0, callbacks=[export])
    require_clean(tmp_path, "", "user")
    assert export.reports[0].real_features == ()


def test_redacted_features_of_built_examples_are_reported_so(tmp_path: pathlib.Path) -> None:
    x = keras.Input((1,), name="age")
    model = keras.Model(x, keras.layers.Dense(1)(x))
    serve = kw.endpoints.predict_examples(model, float_parser("age"))
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve)
    archive.write_out(tmp_path / "1", verbose=False)
    rows = {"age": np.full((4, 1), SECRET_FLOAT, "float32")}
    for name in ("age", "x['age']"):
        options = {"privacy": "redacted", "redact": [name]}
        report = kw.add_warmup(tmp_path / "1", rows, warmup=options)
        require_clean(tmp_path, "", "age")
        assert report.real_features == () and report.redacted == (name,)


def test_names_that_are_values_are_not_told(tmp_path: pathlib.Path, said: Any) -> None:
    class Length(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "blob")])
        def serve(self, blob: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.strings.length(blob)}

    # A message of nested strings, which parses as a SequenceExample with a feature of this name.
    value = SECRET_TEXT
    for _ in range(3):
        value = b"\n" + bytes([len(value)]) + value
    module, data = Length(), {"blob": np.array([value] * 4, object)}
    for number, options in enumerate(
        [{}, MODES["synthetic"], {"privacy": "redacted", "redact": ["blob"]}]
    ):
        path = tmp_path / str(number)
        report = kw.save(module, path, {"serving_default": module.serve}, data=data, warmup=options)
        assert report.real_features == (() if options else ("blob",))
        assert SECRET_TEXT not in (path / MANIFEST_PATH).read_bytes()
        assert (SECRET_TEXT in pathlib.Path(warmup_path(path)).read_bytes()) == (not options)
    assert SECRET_TEXT.decode() not in said()


@pytest.mark.parametrize("kept", [0, 1])
def test_a_manifest_of_fewer_records_is_a_failure(kept: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1"
    kw.export_with_warmup(table(), path, data=table_rows(), warmup={"batch_sizes": [1, 2]})
    content = json.loads((path / MANIFEST_PATH).read_text())
    content["records"] = content["records"][:kept]
    content["real_features"] = content["real_features"] if kept else []
    (path / MANIFEST_PATH).write_text(json.dumps(content))
    report = kw.verify(path, no_real_rows=True)
    assert not report.ok and report.real_features is None
    assert any("as many records" in one for one in report.failures)
    appended = kw.add_warmup(path, table_rows(), append=True)
    assert appended.real_features == ("age", "name", "user")
    assert kw.redact(path).real_features == ()


# Killed at a rename: the file under its hidden name is complete then.
KILLED = """
import os, signal, sys
import keras, numpy as np
import keras_warmup as kw
from tests.test_privacy import MODES, table, table_data, table_rows

path, mode, name = sys.argv[1:]

def kill(event, args):
    if event == "os.rename" and os.path.basename(str(args[0])) == name:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
model = table()
model.compile("sgd", "mse")
if mode == "synthetic":
    export = kw.WarmupExport(path, warmup=MODES[mode])
    model.fit(table_data(), verbose=0, callbacks=[export])
else:
    kw.export_with_warmup(model, path, data=table_rows(), warmup=MODES[mode])
"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["tf_serving_warmup_requests", "keras_warmup.json"])
def test_what_a_killed_export_leaves_holds_no_real_value(
    name: str, mode: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "temporary").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "1"), mode, name],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "1").exists()
    assert any(path.endswith(name) for path in files_of(tmp_path))
    require_clean(tmp_path, done.stdout + done.stderr, "age", "user", "name")
