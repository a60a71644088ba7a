"""Tests of `keras_warmup.export`, end to end.

Each file that `export_with_warmup`, `save` and `add_warmup` write is read back, replayed and
compared. What one stage of the pipeline does is tested in tests/pipeline.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup._protos import SavedModel
from keras_warmup.data.sources import read_batches
from keras_warmup.errors import (
    BindingError,
    ExportError,
    OptionsError,
    PublishError,
    ReplayError,
    WarmupError,
)
from keras_warmup.serving.replay import open_session
from keras_warmup.serving.tensorflow_log import log_level_functions
from keras_warmup.training.capture import remember
from tests.builders import (
    functional_model,
    input_of_four,
    predict_inputs,
    random_rows,
    tap_with,
)


class Weigh(keras.Model):
    """A model of any structure of inputs; a swap of two inputs changes its output."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(
            sum(tensor * (index + 1.0) for index, tensor in enumerate(keras.tree.flatten(x)))
        )


def subclassed(x: Any) -> keras.Model:
    model = Weigh()
    model(keras.tree.map_structure(lambda leaf: leaf[:1], x))
    return model


def sequential() -> keras.Model:
    model = keras.Sequential([keras.layers.Dense(3)])
    model.build((None, 4))
    return model


TWELVE = [f"n{index}" for index in range(12)]
MODELS: dict[str, tuple[Callable[[], keras.Model] | None, Callable[[], Any]]] = {
    "functional-tensor": (
        lambda: functional_model(input_of_four("user-id")),
        lambda: random_rows(4),
    ),
    "functional-list": (
        lambda: functional_model([input_of_four("zz"), input_of_four("aa")]),
        lambda: [random_rows(4), random_rows(4)],
    ),
    "functional-dict-other-keys": (
        lambda: functional_model({"p": input_of_four("zz"), "q": input_of_four("aa")}),
        lambda: {"q": random_rows(4), "p": random_rows(4)},
    ),
    "functional-nested": (
        lambda: functional_model(
            {"p": [input_of_four("zz"), input_of_four("aa")], "q": {"r": input_of_four("mm")}}
        ),
        lambda: {"q": {"r": random_rows(4)}, "p": [random_rows(4), random_rows(4)]},
    ),
    "functional-twelve": (
        lambda: functional_model([input_of_four(name) for name in reversed(TWELVE)]),
        lambda: [random_rows(4) for _ in TWELVE],
    ),
    "functional-list-fed-a-dict": (
        lambda: functional_model([input_of_four("zz"), input_of_four("aa")]),
        lambda: {"aa": random_rows(4), "zz": random_rows(4)},
    ),
    "sequential-tensor": (sequential, lambda: random_rows(4)),
    "subclassed-tensor": (None, lambda: random_rows(4)),
    "subclassed-list": (None, lambda: [random_rows(4), random_rows(4)]),
    "subclassed-dict": (None, lambda: {"k2": random_rows(4), "k1": random_rows(4)}),
    "subclassed-nested": (
        None,
        lambda: {"q": {"r": random_rows(4)}, "p": [random_rows(4), random_rows(4)]},
    ),
    "subclassed-twelve": (None, lambda: [random_rows(4) for _ in TWELVE]),
    "subclassed-twelve-dict": (None, lambda: {f"x_{index}": random_rows(4) for index in range(12)}),
}


def write_archive(model: keras.Model, export_dir: str, x: Any) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = keras.tree.map_structure(
        lambda leaf: keras.InputSpec(shape=(None, *leaf.shape[1:]), dtype=leaf.dtype.name), x
    )
    archive.add_endpoint("serve", model.__call__, input_signature=[spec])
    archive.write_out(export_dir, verbose=False)


def in_model_structure(model: keras.Model, x: Any) -> Any:
    """Returns `x` as an endpoint of an archive takes it: a list where the model takes a list."""
    if isinstance(x, dict) and isinstance(getattr(model, "input", None), list):
        return [x[tensor.name] for tensor in model.input]
    return x


@pytest.mark.parametrize("how", ["model.export", "save", "ExportArchive"])
@pytest.mark.parametrize("name", MODELS)
def test_every_input_structure_is_bound_correctly_and_proved(
    name: str, how: str, tmp_path: pathlib.Path
) -> None:
    make, make_x = MODELS[name]
    x = make_x()
    model = make() if make else subclassed(x)
    export_dir = tmp_path / "1"
    if how == "save":
        report = kw.save(model, export_dir, data=x)
    elif how == "model.export":
        report = kw.export_with_warmup(model, export_dir, data=x)
    else:
        report = kw.export_with_warmup(
            model,
            export_dir,
            data=x,
            export_fn=lambda model, path: write_archive(model, path, in_model_structure(model, x)),
        )
    assert set(report.proofs.values()) == {"proved"}
    assert not report.skipped
    # Independently of the proof: a Session and the model give the same for the rows of the file.
    fed = {
        key: array
        for log in kw.read_records(export_dir)
        for key, array in predict_inputs(log).items()
    }
    assert len(fed) == len(keras.tree.flatten(x))
    with open_session(export_dir) as session:
        for log in kw.read_records(export_dir):
            arrays = list(predict_inputs(log).values())
            assert all(array.shape == (2, 4) for array in arrays)
            outputs = session.replay(log).outputs
            expected = model(rows_of(x, arrays))
            np.testing.assert_allclose(next(iter(outputs.values())), expected, rtol=1e-4, atol=1e-5)


def rows_of(x: Any, arrays: Iterable[np.ndarray]) -> Any:
    """Returns the arrays of a record in the structure of `x`.

    They are found by value: the random numbers of each leaf differ.
    """

    def find(leaf: np.ndarray) -> np.ndarray:
        for array in arrays:
            hits = [np.flatnonzero((leaf == row).all(axis=1)) for row in array]
            if all(hit.size for hit in hits):
                return array
        raise AssertionError("a record holds rows that are not in the data")

    return keras.tree.map_structure(find, x)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return functional_model({"a": input_of_four("a"), "b": input_of_four("b")})


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    return {"a": random_rows(4), "b": random_rows(4)}


def test_same_seed_same_file_and_another_seed_other_rows(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    data = {"a": random_rows(4, rows=400), "b": random_rows(4, rows=400)}

    def written(name: str, seed: int) -> bytes:
        kw.export_with_warmup(model, tmp_path / name, data=data, warmup={"seed": seed})
        return (tmp_path / name / "assets.extra" / "tf_serving_warmup_requests").read_bytes()

    first = written("1", 0)
    assert written("2", 0) == first
    assert written("3", 1) != first


def test_one_record_of_two_real_rows_warms_both_twins_by_default(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    report = kw.export_with_warmup(model, tmp_path / "1", data=data)
    assert [
        (record.signature_key, record.batch_size, record.warms) for record in report.records
    ] == [("serving_default", 2, ("serving_default", "serve"))]
    assert report.shared_signatures == {"serve": "serving_default"}
    assert report.load_added_ms == report.records[0].replay_ms


def test_each_signature_gets_a_record_where_twins_stay_apart(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    report = kw.export_with_warmup(
        model, tmp_path / "1", data=data, warmup={"share_twin_signatures": False}
    )
    assert report.shared_signatures == {}
    assert [
        (record.signature_key, record.kind, record.batch_size, record.source)
        for record in report.records
    ] == [
        ("serving_default", "predict", 2, "data"),
        ("serve", "predict", 2, "data"),
    ]
    assert report.verified
    assert not report.synthetic
    assert report.load_ms > 0
    assert all(record.replay_ms > 0 for record in report.records)
    assert (
        "Up to 4 real rows of your data ship inside the model, readable by anyone who has its "
        "files."
    ) in report.notes


def test_signatures_over_the_same_tensors_share_a_record(tmp_path: pathlib.Path) -> None:
    class Doubler(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x * 2}

    module = Doubler()
    kw.save(
        module,
        tmp_path / "1",
        signatures={"b": module.double, "serving_default": module.double},
        data=random_rows(4),
    )
    path = tmp_path / "1" / "saved_model.pb"
    saved = SavedModel.FromString(path.read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    definitions["b"].CopyFrom(definitions["serving_default"])
    path.write_bytes(saved.SerializeToString())
    report = kw.add_warmup(tmp_path / "1", random_rows(4))
    assert [record.warms for record in report.records] == [("serving_default", "b")]


def test_batch_sizes_and_output_filters_are_written_exactly(tmp_path: pathlib.Path) -> None:
    x = input_of_four("x")
    two = keras.Model(x, {"a": keras.layers.Dense(1)(x), "b": keras.layers.Dense(2)(x)})
    report = kw.export_with_warmup(
        two,
        tmp_path / "1",
        data=random_rows(4),
        warmup=kw.WarmupOptions(batch_sizes=[5, 30], output_filters=[["a"], ["a", "b"]]),
    )
    asked = {
        (record.signature_key, record.batch_size, record.output_filter) for record in report.records
    }
    assert asked == {("serving_default", size, asked) for size in (5, 30) for asked in ((), ("a",))}
    assert kw.verify(tmp_path / "1").ok


def test_output_filter_of_one_signature_must_exist_there(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(OptionsError) as error:
        kw.export_with_warmup(
            model, tmp_path / "1", data=data, warmup={"output_filters": {"serve": [["nope"]]}}
        )
    assert str(error.value) == (
        "output_filters for signature 'serve' name ['nope'], which it does not have. Its outputs: "
        "['output_0']."
    )
    assert os.listdir(tmp_path) == []


def test_free_image_sizes_get_a_record_each_and_free_lengths_do_not(tmp_path: pathlib.Path) -> None:
    image = keras.Input((None, None, 1), name="image")
    conv = keras.Model(
        image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(image))
    )
    sizes = [8, 8, 12]
    report = kw.export_with_warmup(
        conv, tmp_path / "1", data=lambda: iter([(random_rows(size, size, 1),) for size in sizes])
    )
    assert sorted({record.shapes["image"] for record in report.records}) == [
        (2, 8, 8, 1),
        (2, 12, 12, 1),
    ]
    assert report.shape_coverage == {"serving_default": 1.0}
    ids = keras.Input((None,), dtype="int64", name="ids")
    recurrent = keras.Model(ids, keras.layers.LSTM(3)(keras.layers.Embedding(10, 4)(ids)))
    lengths = [np.zeros((4, length), "int64") for length in (3, 5, 9)]
    report = kw.export_with_warmup(
        recurrent, tmp_path / "2", data=lambda: iter([(one,) for one in lengths])
    )
    assert len(report.records) == 1


def test_xla_signatures_are_written_only_when_asked_for(tmp_path: pathlib.Path) -> None:
    class Compiled(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)], jit_compile=True)
        def fast(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.matmul(x, x, transpose_b=True)}

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
        def plain(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x + 1}

    module = Compiled()
    signatures = {"fast": module.fast, "serving_default": module.plain}
    with pytest.warns(UserWarning, match="Signature 'fast' .* stays cold: it compiles with XLA"):
        report = kw.save(module, tmp_path / "1", signatures, data=random_rows(4))
    assert [record.signature_key for record in report.records] == ["serving_default"]
    assert "--xla_cpu_compilation_enabled" in report.skipped["fast"]
    report = kw.save(
        module,
        tmp_path / "2",
        signatures,
        data=random_rows(4),
        warmup={"xla": True, "batch_sizes": [1, 3, 8]},
    )
    assert [record.batch_size for record in report.records if record.signature_key == "fast"] == [
        1,
        3,
        8,
    ]
    assert any("--xla_cpu_compilation_enabled" in note for note in report.notes)


def test_save_gives_back_through_load_what_tensorflow_gave_and_runs_in_a_session(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    tf.saved_model.save(model, tmp_path / "plain")
    with pytest.raises(ReplayError, match="Could not find variable"):
        kw.add_warmup(tmp_path / "plain", {"inputs": random_rows(4), "inputs_1": random_rows(4)})
    report = kw.save(model, tmp_path / "1", data=data)
    assert report.proofs == {"serving_default": "proved"}
    theirs, ours = tf.saved_model.load(tmp_path / "plain"), tf.saved_model.load(tmp_path / "1")
    assert dir(theirs) == dir(ours)
    feed = {"inputs": tf.constant(data["a"]), "inputs_1": tf.constant(data["b"])}
    np.testing.assert_array_equal(
        ours.signatures["serving_default"](**feed)["output_0"],
        theirs.signatures["serving_default"](**feed)["output_0"],
    )
    sizes = [
        (tmp_path / name / "variables" / "variables.data-00000-of-00001").stat().st_size
        for name in ("plain", "1")
    ]
    assert sizes[0] == sizes[1]


def test_save_serves_a_module_that_holds_a_keras_model(tmp_path: pathlib.Path) -> None:
    class Scaled(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable(2.0)
            self.inner = functional_model(input_of_four("x"))

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
        def scaled(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": self.inner(x) * self.scale}

    module = Scaled()
    x = random_rows(4)
    report = kw.save(module, tmp_path / "1", signatures=module.scaled, data=x)
    assert len(report.records) == 1
    loaded = tf.saved_model.load(tmp_path / "1")
    np.testing.assert_allclose(loaded.scaled(x)["y"], module.scaled(x)["y"], rtol=1e-6)
    assert loaded.scale.numpy() == 2.0
    assert kw.verify(tmp_path / "1").ok


def test_save_replaces_what_is_there_and_keeps_it_when_it_fails(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    kw.save(model, tmp_path / "1", data=data)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(BindingError):
        kw.save(model, tmp_path / "1", data={"a": random_rows(4)})
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    kw.save(model, tmp_path / "1", data=data)
    assert kw.verify(tmp_path / "1").ok


def test_float64_is_cast_as_fit_casts_and_reported(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    report = kw.export_with_warmup(
        model, tmp_path / "1", data={"a": random_rows(4, dtype="float64"), "b": random_rows(4)}
    )
    assert report.casts == {"a": "float64 -> float32"}
    assert set(report.proofs.values()) == {"proved"}


def test_captured_batches_come_before_made_up_rows_and_data_before_both(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    with pytest.warns(UserWarning, match="hold made-up rows, since no data was given or captured"):
        report = kw.export_with_warmup(model, tmp_path / "1")
    assert report.synthetic
    assert {record.source for record in report.records} == {"synthetic"}
    assert set(report.proofs.values()) == {"unproved: made-up rows"}
    batches = [dataclasses.replace(batch, source="captured") for batch in read_batches(data)]
    remember(model, tap_with(*batches))
    report = kw.export_with_warmup(model, tmp_path / "2")
    assert {record.source for record in report.records} == {"captured"}
    report = kw.export_with_warmup(model, tmp_path / "3", data=data)
    assert {record.source for record in report.records} == {"data"}


@pytest.mark.parametrize(
    ("array", "why"),
    [
        pytest.param(
            np.array([["a"] * 4] * 12),
            "got string [2, 4] from x (strings for a numeric input)",
            id="dtype",
        ),
        pytest.param(
            np.zeros((12, 5), "float32"),
            "got float32 [2, 5] from x (shape differs in dimensions [1])",
            id="shape",
        ),
        pytest.param(
            np.zeros((12, 4, 2), "float32"),
            "got float32 [2, 4, 2] from x (rank differs)",
            id="rank",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    array: np.ndarray, why: str, tmp_path: pathlib.Path
) -> None:
    model = functional_model(input_of_four("x"))
    with pytest.raises(BindingError) as error:
        kw.export_with_warmup(model, tmp_path / "1", data=array)
    assert str(error.value) == (
        f"Cannot bind batch to signature 'serve': input 'x' expects float32 [None, 4], {why}. Cast "
        "or reshape it in the dataset, or pass warmup={'transform': ...}."
    )
    assert os.listdir(tmp_path) == []


def test_nan_is_a_value_like_any_other(model: keras.Model, tmp_path: pathlib.Path) -> None:
    report = kw.export_with_warmup(
        model,
        tmp_path / "1",
        data={"a": np.full((4, 4), np.nan, "float32"), "b": random_rows(4)[:4]},
    )
    assert set(report.proofs.values()) == {"proved"}


def test_an_existing_path_is_refused_unless_overwrite(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(PublishError, match="overwrite=True"):
        kw.export_with_warmup(model, tmp_path / "1", data=data)
    assert list((tmp_path / "1").iterdir()) == []
    kw.export_with_warmup(model, tmp_path / "1", data=data, overwrite=True)
    assert kw.verify(tmp_path / "1").ok


def test_limits_are_refused_before_anything_is_published(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(OptionsError) as error:
        kw.export_with_warmup(
            model, tmp_path / "1", data=data, warmup={"max_records": 1, "batch_sizes": [1, 2]}
        )
    assert str(error.value) == (
        "The options ask for 2 warmup records, over max_records=1. Ask for fewer batch_sizes, "
        "output_filters or signatures."
    )
    with pytest.raises(OptionsError, match="over max_bytes=10"):
        kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"max_bytes": 10})
    assert os.listdir(tmp_path) == []


def test_an_interrupt_leaves_nothing_behind(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    def interrupted(model: keras.Model, export_dir: str) -> None:
        model.export(export_dir, verbose=False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kw.export_with_warmup(model, tmp_path / "1", data=data, export_fn=interrupted)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("freeze", [False, True])
def test_tensorflow_logs_no_hidden_directory(
    model: keras.Model,
    data: dict[str, np.ndarray],
    freeze: bool,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    functions = log_level_functions()
    if functions is None:
        pytest.skip("this TensorFlow's log level is fixed when it is imported")
    level, set_level = functions
    before = level()
    set_level(0)
    try:
        kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"freeze": freeze})
    finally:
        set_level(before)
    assert ".kw-" not in capfd.readouterr().err


def test_export_fn_that_writes_nothing_is_an_error(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(WarmupError, match="it has no saved_model"):
        kw.export_with_warmup(model, tmp_path / "1", data=data, export_fn=lambda model, path: None)


def test_add_warmup_appends_replaces_and_leaves_other_extra_assets(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    kw.export_with_warmup(model, tmp_path / "1", data=data)
    extra = tmp_path / "1" / "assets.extra" / "note.txt"
    extra.write_text("mine")
    report = kw.add_warmup(
        tmp_path / "1", data, warmup={"batch_sizes": [3], "signatures": ["serve"]}, append=True
    )
    assert [
        (record.signature_key, record.batch_size, record.source) for record in report.records
    ] == [
        ("serving_default", 2, "log"),
        ("serve", 3, "data"),
    ]
    report = kw.add_warmup(tmp_path / "1", data, warmup={"batch_sizes": [4]})
    assert [record.batch_size for record in report.records] == [4]
    assert extra.read_text() == "mine"
    assert sorted(os.listdir(extra.parent)) == [
        "keras_warmup.json",
        "note.txt",
        "tf_serving_warmup_requests",
    ]
    assert kw.verify(tmp_path / "1").ok


def test_add_warmup_that_fails_keeps_the_old_file(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    kw.export_with_warmup(model, tmp_path / "1", data=data)
    path = tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests"
    before = path.read_bytes()
    with pytest.raises(BindingError):
        kw.add_warmup(tmp_path / "1", {"a": random_rows(5), "b": random_rows(4)})
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["keras_warmup.json", "tf_serving_warmup_requests"]


def test_half_plus_two_of_tensorflow_serving_gets_a_predict_record(
    saved_models: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    export_dir = shutil.copytree(
        saved_models / "half_plus_two_tf1" / "1", tmp_path / "1", copy_function=shutil.copyfile
    )
    os.chmod(export_dir, 0o755)
    report = kw.add_warmup(
        export_dir,
        {"x": np.array([[2.0], [5.0]], "float32")},
        warmup={"signatures": ["serving_default"]},
    )
    (record,) = report.records
    assert (record.signature_key, record.kind, record.shapes) == (
        "serving_default",
        "predict",
        {"x": (2, 1)},
    )
    with open_session(export_dir) as session:
        (log,) = kw.read_records(export_dir)
        assert session.replay(log).outputs["y"].tolist() == [[3.0], [4.5]]
    assert kw.verify(export_dir).ok


def test_a_signature_that_fixes_its_batch_gets_that_batch(tmp_path: pathlib.Path) -> None:
    class Fixed(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1], tf.float32, name="x")])
        def half_plus_two(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x * 0.5 + 2}

    module = Fixed()
    report = kw.save(module, tmp_path / "1", signatures=module.half_plus_two, data=random_rows())
    assert [record.shapes for record in report.records] == [{"x": (1,)}]


def test_transform_names_the_inputs(tmp_path: pathlib.Path) -> None:
    class Shout(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def shout(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.strings.upper(text)}

    module = Shout()
    report = kw.save(
        module,
        tmp_path / "1",
        signatures=module.shout,
        data=random_rows(4),
        warmup={"transform": lambda x: {"text": ["é"] * len(x)}},
    )
    (log,) = kw.read_records(report.export_dir)
    assert predict_inputs(log)["text"].tolist() == ["é".encode()] * 2


def test_verify_false_skips_the_replay_and_is_reported(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    report = kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"verify": False})
    assert not report.verified
    assert set(report.proofs.values()) == {"unproved: verify=False"}
    assert all(record.replay_ms is None for record in report.records)
    assert kw.verify(tmp_path / "1").ok


def test_the_report_is_json_and_holds_no_tensor(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    report = kw.export_with_warmup(model, tmp_path / "1", data=data)
    plain = json.loads(json.dumps(report.to_dict()))
    documented = "signature_key kind batch_size shapes output_filter source bytes replay_ms"
    assert set(plain["records"][0]) >= set(documented.split())
    assert str(float(data["a"][0, 0]))[:8] not in json.dumps(plain)


def test_a_note_names_versions_that_no_server_loads(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    report = kw.export_with_warmup(model, tmp_path / "digits", data=data)
    assert any("No TensorFlow Serving server loads" in note for note in report.notes)


def test_a_load_time_over_the_budget_is_warned_of(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    with pytest.warns(
        UserWarning,
        match=r"over max_load_seconds=1e-06: a server loads the model at least that much later",
    ):
        kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"max_load_seconds": 1e-6})


def test_export_fn_may_call_save(tmp_path: pathlib.Path) -> None:
    """The lock around saving is reentrant."""
    model = functional_model(input_of_four("x"))
    report = kw.export_with_warmup(
        model,
        tmp_path / "1",
        data=random_rows(4),
        export_fn=lambda model, path: (
            kw.save(model, f"{path}/../inner", data=random_rows(4))
            and tf.saved_model.save(model, path)
        ),
    )
    assert set(report.proofs.values()) == {"proved"}


def test_where_warnings_are_errors_nothing_is_published(tmp_path: pathlib.Path) -> None:
    # A model of its own: nothing was captured for it.
    model = functional_model(input_of_four("x"))
    with warnings.catch_warnings():
        # Only ours: TensorFlow and Keras have deprecations of their own.
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="hold made-up rows"):
            kw.export_with_warmup(model, tmp_path / "1")
    assert os.listdir(tmp_path) == []


def test_an_iterator_is_not_read_where_the_path_is_taken(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "1").mkdir()
    read: list[int] = []
    with pytest.raises(PublishError):
        kw.export_with_warmup(model, tmp_path / "1", data=(read.append(1) for _ in range(5)))
    assert read == []


def test_method_name_of_a_model_that_exists_is_refused_with_the_cure(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    model.export(tmp_path / "1", verbose=False)
    with pytest.raises(OptionsError, match="run keras-warmup method-names"):
        kw.add_warmup(tmp_path / "1", warmup={"method_name": True})


def test_save_takes_only_what_tensorflow_can_track(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionsError, match="save takes a Keras model"):
        kw.save(object(), tmp_path / "1")


def test_serialized_examples_pass_to_the_endpoints_of_a_keras_model(tmp_path: pathlib.Path) -> None:
    model = keras.Model(x := keras.Input((1,), name="x"), keras.layers.Dense(1)(x))
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[value]))}
            )
        ).SerializeToString()
        for value in (1.0, 2.0)
    ]
    endpoint = kw.endpoints.predict_examples(model, {"x": tf.io.FixedLenFeature([1], tf.float32)})
    report = kw.save(model, tmp_path / "1", signatures={"serving_default": endpoint}, data=examples)
    (log,) = kw.read_records(report.export_dir)
    assert predict_inputs(log)["examples"].tolist() == examples


def test_strings_keep_trailing_nuls_when_rows_are_repeated(tmp_path: pathlib.Path) -> None:
    text = keras.Input((), dtype="string", name="text")
    length = keras.layers.Lambda(
        lambda x: tf.cast(tf.strings.length(x), tf.float32)[:, None], output_shape=(1,)
    )
    model = keras.Model(text, length(text))
    report = kw.export_with_warmup(model, tmp_path / "1", data=[b"ab\0\0"])
    (log,) = kw.read_records(report.export_dir)
    assert predict_inputs(log)["text"].tolist() == [b"ab\0\0"] * 2
    assert set(report.proofs.values()) == {"proved"}


def test_a_call_that_keras_cannot_trace_is_one_export_error_with_its_cause(
    tmp_path: pathlib.Path,
) -> None:
    class Strict(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x: dict[str, Any]) -> Any:
            return self.dense(x["a"])

    model = Strict()
    model({"a": random_rows(3)})
    with pytest.raises(ExportError, match="or export_fn= that writes the SavedModel") as error:
        kw.export_with_warmup(model, tmp_path / "1", data=random_rows(3))
    assert error.value.__cause__ is not None
    assert os.listdir(tmp_path) == []


def test_a_model_without_signatures_is_saved_with_a_warning(tmp_path: pathlib.Path) -> None:
    with pytest.warns(
        UserWarning, match="has no signature that a request can reach: it has no warmup file"
    ):
        report = kw.save(tf.Module(), tmp_path / "1", data=random_rows(3))
    assert report.records == ()


def test_absurd_batch_sizes_are_refused_before_memory_is_filled(
    model: keras.Model, data: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(OptionsError, match="over max_bytes="):
        kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"batch_sizes": [10**12]})
