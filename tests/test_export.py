"""`export_with_warmup`, `save` and `add_warmup` end to end: what is written is read back, replayed and compared."""

from __future__ import annotations

import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.data.sources import read_batches
from keras_warmup.errors import (
    BindingError,
    DataError,
    ExportError,
    OptionsError,
    ProofError,
    PublishError,
    ReplayError,
    SignatureError,
    WarmupError,
)
from keras_warmup.serving.replay import open_session
from keras_warmup.training.capture import remember

ROWS = 12
RNG = np.random.default_rng(7)


def rows(*shape, dtype="float32"):
    return RNG.random((ROWS, *shape)).astype(dtype)


def input_4(name):
    return keras.Input((4,), name=name)


def weigh(tensors):
    """Every input counts differently, so that a swap shows."""
    return keras.layers.Dense(3)(
        keras.layers.Concatenate()([tensor * (index + 1) for index, tensor in enumerate(tensors)])
    )


class Weigh(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(
            sum(tensor * (index + 1.0) for index, tensor in enumerate(keras.tree.flatten(x)))
        )


def functional(structure):
    flat = keras.tree.flatten(structure)
    return keras.Model(structure, weigh(flat) if len(flat) > 1 else keras.layers.Dense(3)(flat[0]))


def subclassed(x):
    model = Weigh()
    model(keras.tree.map_structure(lambda leaf: leaf[:1], x))
    return model


def sequential():
    model = keras.Sequential([keras.layers.Dense(3)])
    model.build((None, 4))
    return model


TWELVE = [f"n{index}" for index in range(12)]
MODELS = {
    "functional-tensor": (lambda: functional(input_4("user-id")), lambda: rows(4)),
    "functional-list": (
        lambda: functional([input_4("zz"), input_4("aa")]),
        lambda: [rows(4), rows(4)],
    ),
    "functional-dict-other-keys": (
        lambda: functional({"p": input_4("zz"), "q": input_4("aa")}),
        lambda: {"q": rows(4), "p": rows(4)},
    ),
    "functional-nested": (
        lambda: functional({"p": [input_4("zz"), input_4("aa")], "q": {"r": input_4("mm")}}),
        lambda: {"q": {"r": rows(4)}, "p": [rows(4), rows(4)]},
    ),
    "functional-twelve": (
        lambda: functional([input_4(name) for name in reversed(TWELVE)]),
        lambda: [rows(4) for _ in TWELVE],
    ),
    "functional-list-fed-a-dict": (
        lambda: functional([input_4("zz"), input_4("aa")]),
        lambda: {"aa": rows(4), "zz": rows(4)},
    ),
    "sequential-tensor": (sequential, lambda: rows(4)),
    "subclassed-tensor": (None, lambda: rows(4)),
    "subclassed-list": (None, lambda: [rows(4), rows(4)]),
    "subclassed-dict": (None, lambda: {"k2": rows(4), "k1": rows(4)}),
    "subclassed-nested": (None, lambda: {"q": {"r": rows(4)}, "p": [rows(4), rows(4)]}),
    "subclassed-twelve": (None, lambda: [rows(4) for _ in TWELVE]),
    "subclassed-twelve-dict": (None, lambda: {f"x_{index}": rows(4) for index in range(12)}),
}


def write_archive(model, export_dir, x):
    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = keras.tree.map_structure(
        lambda leaf: keras.InputSpec(shape=(None, *leaf.shape[1:]), dtype=leaf.dtype.name), x
    )
    archive.add_endpoint("serve", model.__call__, input_signature=[spec])
    archive.write_out(export_dir, verbose=False)


def in_model_structure(model, x):
    """`x` as the archive's endpoint must take it: a list where the model was made of a list."""
    if isinstance(x, dict) and isinstance(getattr(model, "input", None), list):
        return [x[tensor.name] for tensor in model.input]
    return x


@pytest.mark.parametrize("how", ["model.export", "save", "ExportArchive"])
@pytest.mark.parametrize("name", MODELS)
def test_every_input_structure_is_bound_right_and_proved(name, how, tmp_path):
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
    # Independent of the proof inside: the file's own rows through a Session against the model on the same rows.
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
            expected = model(rows_of(x, arrays, predict_inputs(log)))
            np.testing.assert_allclose(next(iter(outputs.values())), expected, rtol=1e-4, atol=1e-5)


def predict_inputs(log):
    return {key: tf.make_ndarray(proto) for key, proto in log.predict_log.request.inputs.items()}


def rows_of(x, arrays, by_name):
    """The rows of `x` that went into a record, found by value: every leaf holds random numbers of its own."""

    def find(leaf):
        for array in by_name.values():
            hits = [np.flatnonzero((leaf == row).all(axis=1)) for row in array]
            if all(hit.size for hit in hits):
                return array
        raise AssertionError("a record holds rows that are not in the data")

    return keras.tree.map_structure(find, x)


@pytest.fixture(scope="module")
def model():
    return functional({"a": input_4("a"), "b": input_4("b")})


@pytest.fixture
def data():
    return {"a": rows(4), "b": rows(4)}


def test_same_seed_same_file_and_another_seed_other_rows(model, tmp_path):
    data = {"a": RNG.random((400, 4), "float32"), "b": RNG.random((400, 4), "float32")}

    def written(name, seed):
        kw.export_with_warmup(model, tmp_path / name, data=data, warmup={"seed": seed})
        return (tmp_path / name / "assets.extra" / "tf_serving_warmup_requests").read_bytes()

    first = written("1", 0)
    assert written("2", 0) == first
    assert written("3", 1) != first


def test_one_record_of_two_real_rows_warms_both_twins_by_default(model, data, tmp_path):
    report = kw.export_with_warmup(model, tmp_path / "1", data=data)
    assert [
        (record.signature_key, record.batch_size, record.warms) for record in report.records
    ] == [("serving_default", 2, ("serving_default", "serve"))]
    assert report.shared_signatures == {"serve": "serving_default"}
    assert report.load_added_ms == report.records[0].replay_ms


def test_one_record_a_signature_where_twins_stay_apart(model, data, tmp_path):
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
        "Up to 4 real rows of your data ship inside the model, readable by whoever has its files."
        in report.notes
    )


def test_signatures_over_the_same_tensors_share_a_record(tmp_path):
    class Doubler(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def double(self, x):
            return {"y": x * 2}

    module = Doubler()
    kw.save(
        module,
        tmp_path / "1",
        signatures={"b": module.double, "serving_default": module.double},
        data=rows(4),
    )
    path = tmp_path / "1" / "saved_model.pb"
    from keras_warmup._protos import SavedModel

    saved = SavedModel.FromString(path.read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    definitions["b"].CopyFrom(definitions["serving_default"])
    path.write_bytes(saved.SerializeToString())
    report = kw.add_warmup(tmp_path / "1", rows(4))
    assert [record.warms for record in report.records] == [("serving_default", "b")]


def test_batch_sizes_and_output_filters_are_written_exactly(tmp_path):
    x = input_4("x")
    two = keras.Model(x, {"a": keras.layers.Dense(1)(x), "b": keras.layers.Dense(2)(x)})
    report = kw.export_with_warmup(
        two,
        tmp_path / "1",
        data=rows(4),
        warmup=kw.WarmupOptions(batch_sizes=[5, 30], output_filters=[["a"], ["a", "b"]]),
    )
    asked = {
        (record.signature_key, record.batch_size, record.output_filter) for record in report.records
    }
    assert asked == {("serving_default", size, asked) for size in (5, 30) for asked in ((), ("a",))}
    assert kw.verify(tmp_path / "1").ok


def test_output_filter_of_one_signature_must_exist_there(model, data, tmp_path):
    with pytest.raises(OptionsError) as error:
        kw.export_with_warmup(
            model, tmp_path / "1", data=data, warmup={"output_filters": {"serve": [["nope"]]}}
        )
    assert str(error.value) == (
        "output_filters for signature 'serve' name ['nope'], which it does not have. Its outputs: ['output_0']."
    )
    assert os.listdir(tmp_path) == []


def test_free_image_sizes_get_a_record_each_and_free_lengths_do_not(tmp_path):
    image = keras.Input((None, None, 1), name="image")
    conv = keras.Model(
        image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(image))
    )
    sizes = [8, 8, 12]
    report = kw.export_with_warmup(
        conv, tmp_path / "1", data=lambda: iter([(rows(size, size, 1),) for size in sizes])
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


def test_xla_signatures_are_written_only_when_asked_for(tmp_path):
    class Compiled(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)], jit_compile=True)
        def fast(self, x):
            return {"y": tf.matmul(x, x, transpose_b=True)}

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
        def plain(self, x):
            return {"y": x + 1}

    module = Compiled()
    signatures = {"fast": module.fast, "serving_default": module.plain}
    with pytest.warns(UserWarning, match="Signature 'fast' .* stays cold: it compiles with XLA"):
        report = kw.save(module, tmp_path / "1", signatures, data=rows(4))
    assert [record.signature_key for record in report.records] == ["serving_default"]
    assert "--xla_cpu_compilation_enabled" in report.skipped["fast"]
    report = kw.save(
        module,
        tmp_path / "2",
        signatures,
        data=rows(4),
        warmup={"xla": True, "batch_sizes": [1, 3, 8]},
    )
    assert [record.batch_size for record in report.records if record.signature_key == "fast"] == [
        1,
        3,
        8,
    ]
    assert any("--xla_cpu_compilation_enabled" in note for note in report.notes)


def test_save_gives_back_through_load_what_tensorflow_gave_and_runs_in_a_session(
    model, data, tmp_path
):
    tf.saved_model.save(model, tmp_path / "plain")
    with pytest.raises(ReplayError, match="Could not find variable"):
        kw.add_warmup(tmp_path / "plain", {"inputs": rows(4), "inputs_1": rows(4)})
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


def test_save_serves_a_module_that_holds_a_keras_model(tmp_path):
    class Scaled(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(2.0)
            self.inner = functional(input_4("x"))

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
        def scaled(self, x):
            return {"y": self.inner(x) * self.scale}

    module = Scaled()
    x = rows(4)
    report = kw.save(module, tmp_path / "1", signatures=module.scaled, data=x)
    assert len(report.records) == 1
    loaded = tf.saved_model.load(tmp_path / "1")
    np.testing.assert_allclose(loaded.scaled(x)["y"], module.scaled(x)["y"], rtol=1e-6)
    assert loaded.scale.numpy() == 2.0
    assert kw.verify(tmp_path / "1").ok


def test_save_replaces_what_is_there_and_keeps_it_when_it_fails(model, data, tmp_path):
    kw.save(model, tmp_path / "1", data=data)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(BindingError):
        kw.save(model, tmp_path / "1", data={"a": rows(4)})
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    kw.save(model, tmp_path / "1", data=data)
    assert kw.verify(tmp_path / "1").ok


def test_subclassed_int_ids_and_strings_stay_what_they_are(tmp_path):
    class Ids(keras.Model):
        def __init__(self):
            super().__init__()
            self.look_up = keras.layers.StringLookup(vocabulary=["a", "b"])
            self.embed = keras.layers.Embedding(10, 3)

        def call(self, x):
            return keras.ops.mean(self.embed(x["ids"]), 1) + self.embed(self.look_up(x["word"]))

    x = {"ids": np.arange(ROWS * 2).reshape(ROWS, 2) % 10, "word": np.array(["a", "b", "c"] * 4)}
    model = Ids()
    model({"ids": x["ids"][:1], "word": tf.constant(["a"])})
    for report in (
        kw.export_with_warmup(model, tmp_path / "1", data=x),
        kw.save(model, tmp_path / "2", data=x),
    ):
        assert set(report.proofs.values()) == {"proved"}
        specs = kw.inspect(report.export_dir).signatures[-1].signature.inputs
        assert {spec.dtype for spec in specs.values()} == {"int64", "string"}
        assert all(spec.shape[0] is None for spec in specs.values())


def test_extra_features_are_ignored_and_told(model, data, tmp_path):
    report = kw.export_with_warmup(model, tmp_path / "1", data={**data, "customer": rows(1)})
    assert report.ignored_features == ("x['customer']",)
    assert "Features that no signature takes were left out: x['customer']." in report.notes
    assert set(report.proofs.values()) == {"proved"}


def test_float64_is_cast_as_fit_casts_and_told(model, tmp_path):
    report = kw.export_with_warmup(
        model, tmp_path / "1", data={"a": rows(4, dtype="float64"), "b": rows(4)}
    )
    assert report.casts == {"a": "float64 -> float32"}
    assert set(report.proofs.values()) == {"proved"}


def test_a_custom_endpoint_that_differs_from_the_call_is_published_unproved(tmp_path):
    model = functional(input_4("x"))

    def write(model, export_dir):
        archive = keras.export.ExportArchive()
        archive.track(model)
        spec = [keras.InputSpec(shape=(None, 4), dtype="float32")]
        archive.add_endpoint("serve", lambda x: model(x) * 2 + 1, input_signature=spec)
        archive.write_out(export_dir, verbose=False)

    report = kw.export_with_warmup(model, tmp_path / "1", data=rows(4), export_fn=write)
    assert set(report.proofs.values()) == {
        "unproved: bound by name (a custom endpoint, whose outputs differ from the model's own call)"
    }
    assert kw.verify(tmp_path / "1").ok


def test_a_model_with_dropout_left_on_is_published_unproved(tmp_path):
    x = input_4("x")
    model = keras.Model(x, keras.layers.Dropout(0.5)(keras.layers.Dense(64)(x), training=True))
    report = kw.export_with_warmup(model, tmp_path / "1", data=rows(4))
    assert set(report.proofs.values()) == {
        "unproved: the model's call draws random numbers or writes state, and is not made for a comparison"
    }
    assert kw.verify(tmp_path / "1").ok


def test_a_deterministic_mismatch_refuses_to_publish(monkeypatch, tmp_path):
    model = functional([input_4("a"), input_4("b")])
    from keras_warmup.binding import bind

    real = bind.match_inputs

    def swapped(x, signature):
        found, ignored = real(x, signature)
        return dict(zip(found, reversed(found.values()), strict=True)), ignored

    monkeypatch.setattr(bind, "match_inputs", swapped)
    with pytest.raises(ProofError) as error:
        kw.export_with_warmup(model, tmp_path / "1", data=[rows(4), rows(4)])
    assert str(error.value) == (
        f"Signature 'serving_default' does not give what model {model.name!r} gives on the same rows: output 'output_0' differs "
        "(shapes [2, 3]). Inputs may be swapped, or the export does not hold the model's weights; nothing was published. Pass "
        "transform= to name the inputs, or export with export_fn=."
    )
    assert os.listdir(tmp_path) == []


def test_captured_batches_come_before_made_up_rows_and_data_before_both(model, data, tmp_path):
    with pytest.warns(UserWarning, match="hold made-up rows, since no data was given or captured"):
        report = kw.export_with_warmup(model, tmp_path / "1")
    assert report.synthetic
    assert {record.source for record in report.records} == {"synthetic"}
    assert set(report.proofs.values()) == {"unproved: made-up rows"}
    batches = [batch.__class__(batch.x, batch.size, "captured") for batch in read_batches(data)]
    remember(model, batches)
    report = kw.export_with_warmup(model, tmp_path / "2")
    assert {record.source for record in report.records} == {"captured"}
    report = kw.export_with_warmup(model, tmp_path / "3", data=data)
    assert {record.source for record in report.records} == {"data"}


def test_no_data_and_on_no_data_error_refuses(tmp_path):
    model = functional(input_4("x"))
    with pytest.raises(DataError) as error:
        kw.export_with_warmup(model, tmp_path / "1", warmup={"on_no_data": "error"})
    assert str(error.value) == (
        "No data to warm signature 'serve' with, and on_no_data='error'. Pass data=, or train with WarmupExport or BatchCapture "
        "in callbacks=."
    )
    assert os.listdir(tmp_path) == []


def test_missing_features_name_the_model_and_what_the_batch_has(model, tmp_path):
    with pytest.raises(BindingError) as error:
        kw.export_with_warmup(model, tmp_path / "1", data={"a": rows(4)})
    assert str(error.value) == (
        f"Cannot bind batch to model {model.name!r}: missing feature x['b'] ('b' float32 [None, 4]). The batch has x['a'] "
        "(float32 [2, 4]). Add the features to the dataset."
    )


@pytest.mark.parametrize(
    ("array", "why"),
    [
        pytest.param(
            np.array([["a"] * 4] * ROWS),
            "got string [2, 4] from x (strings for a numeric input)",
            id="dtype",
        ),
        pytest.param(
            np.zeros((ROWS, 5), "float32"),
            "got float32 [2, 5] from x (shape differs in dimension 1)",
            id="shape",
        ),
        pytest.param(
            np.zeros((ROWS, 4, 2), "float32"),
            "got float32 [2, 4, 2] from x (rank differs)",
            id="rank",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(array, why, tmp_path):
    model = functional(input_4("x"))
    with pytest.raises(BindingError) as error:
        kw.export_with_warmup(model, tmp_path / "1", data=array)
    assert str(error.value) == (
        f"Cannot bind batch to signature 'serve': input 'x' expects float32 [None, 4], {why}. Cast or reshape it in the "
        "dataset, or pass transform=."
    )
    assert os.listdir(tmp_path) == []


def test_nan_is_a_value_like_any_other(model, tmp_path):
    report = kw.export_with_warmup(
        model, tmp_path / "1", data={"a": np.full((4, 4), np.nan, "float32"), "b": rows(4)[:4]}
    )
    assert set(report.proofs.values()) == {"proved"}


def test_an_existing_path_is_refused_unless_overwrite(model, data, tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(PublishError, match="overwrite=True"):
        kw.export_with_warmup(model, tmp_path / "1", data=data)
    assert list((tmp_path / "1").iterdir()) == []
    kw.export_with_warmup(model, tmp_path / "1", data=data, overwrite=True)
    assert kw.verify(tmp_path / "1").ok


def test_unknown_signature_is_refused_with_those_there_are(model, data, tmp_path):
    with pytest.raises(SignatureError) as error:
        kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"signatures": ["nope"]})
    assert (
        str(error.value)
        == "Unknown signature ['nope']. The SavedModel has ['serve', 'serving_default']."
    )


def test_unknown_option_names_its_neighbour():
    with pytest.raises(OptionsError) as error:
        kw.WarmupOptions(batch_size=[1])
    assert str(error.value) == (
        "Unknown warmup option 'batch_size'. Did you mean 'batch_sizes'? Known options: signatures, batch_sizes, "
        "output_filters, kinds, transform, xla, batching_parameters, share_twin_signatures, max_load_seconds, max_records, "
        "max_bytes, method_name, model_name, seed, verify, on_no_data."
    )


def test_a_model_never_built_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Dense(3)], name="unbuilt")
    for export in (kw.export_with_warmup, kw.save):
        with pytest.raises(WarmupError) as error:
            export(model, tmp_path / "1")
        assert str(error.value) == (
            "Cannot export model 'unbuilt': it was never built, so it has no weights and no signature. Call it on a batch, "
            "train it, or call model.build(input_shape) first."
        )
    assert os.listdir(tmp_path) == []


def test_limits_are_refused_before_anything_is_published(model, data, tmp_path):
    with pytest.raises(OptionsError) as error:
        kw.export_with_warmup(
            model, tmp_path / "1", data=data, warmup={"max_records": 1, "batch_sizes": [1, 2]}
        )
    assert str(error.value) == (
        "What is asked for needs 2 warmup records, over max_records=1. Ask for fewer batch_sizes, output_filters or signatures."
    )
    with pytest.raises(OptionsError, match="over max_bytes=10"):
        kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"max_bytes": 10})
    assert os.listdir(tmp_path) == []


def test_an_interrupt_leaves_nothing_behind(model, data, tmp_path):
    def interrupted(model, export_dir):
        model.export(export_dir, verbose=False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kw.export_with_warmup(model, tmp_path / "1", data=data, export_fn=interrupted)
    assert os.listdir(tmp_path) == []


def test_export_fn_that_writes_nothing_is_told(model, data, tmp_path):
    with pytest.raises(WarmupError, match="it has no saved_model"):
        kw.export_with_warmup(model, tmp_path / "1", data=data, export_fn=lambda model, path: None)


def test_add_warmup_appends_replaces_and_leaves_other_extra_assets(model, data, tmp_path):
    kw.export_with_warmup(model, tmp_path / "1", data=data)
    extra = tmp_path / "1" / "assets.extra" / "note.txt"
    extra.write_text("mine")
    report = kw.add_warmup(
        tmp_path / "1", data, warmup={"batch_sizes": [3], "signatures": ["serve"]}, append=True
    )
    assert [
        (record.signature_key, record.batch_size, record.source) for record in report.records
    ] == [
        ("serving_default", 2, "file"),
        ("serve", 3, "data"),
    ]
    report = kw.add_warmup(tmp_path / "1", data, warmup={"batch_sizes": [4]})
    assert [record.batch_size for record in report.records] == [4]
    assert extra.read_text() == "mine"
    assert sorted(os.listdir(extra.parent)) == ["note.txt", "tf_serving_warmup_requests"]
    assert kw.verify(tmp_path / "1").ok


def test_add_warmup_that_fails_keeps_the_old_file(model, data, tmp_path):
    kw.export_with_warmup(model, tmp_path / "1", data=data)
    path = tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests"
    before = path.read_bytes()
    with pytest.raises(BindingError):
        kw.add_warmup(tmp_path / "1", {"a": rows(5), "b": rows(4)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["tf_serving_warmup_requests"]


def test_made_up_rows_that_do_not_run_leave_the_signature_cold(tmp_path):
    class Number(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def read(self, text):
            return {"y": tf.strings.to_number(text)}

    module = Number()
    with pytest.warns(UserWarning, match="stays cold: made-up rows do not run"):
        report = kw.save(module, tmp_path / "1", signatures=module.read)
    assert report.records == ()
    assert report.warmup_path is None
    assert not (tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests").exists()


def test_half_plus_two_of_tensorflow_serving_gets_a_predict_record(saved_models, tmp_path):
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


def test_a_signature_that_fixes_its_batch_gets_that_batch(tmp_path):
    class Fixed(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1], tf.float32, name="x")])
        def half_plus_two(self, x):
            return {"y": x * 0.5 + 2}

    module = Fixed()
    report = kw.save(module, tmp_path / "1", signatures=module.half_plus_two, data=rows())
    assert [record.shapes for record in report.records] == [{"x": (1,)}]


def test_transform_names_the_inputs(tmp_path):
    class Shout(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def shout(self, text):
            return {"y": tf.strings.upper(text)}

    module = Shout()
    report = kw.save(
        module,
        tmp_path / "1",
        signatures=module.shout,
        data=rows(4),
        warmup={"transform": lambda x: {"text": ["é"] * len(x)}},
    )
    (log,) = kw.read_records(report.export_dir)
    assert predict_inputs(log)["text"].tolist() == ["é".encode()] * 2


def test_verify_false_skips_the_replay_and_says_so(model, data, tmp_path):
    report = kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"verify": False})
    assert not report.verified
    assert set(report.proofs.values()) == {"unproved: verify=False"}
    assert all(record.replay_ms is None for record in report.records)
    assert kw.verify(tmp_path / "1").ok


def test_the_report_is_json_and_holds_no_tensor(model, data, tmp_path):
    import json

    report = kw.export_with_warmup(model, tmp_path / "1", data=data)
    plain = json.loads(json.dumps(report.to_dict()))
    assert set(plain["records"][0]) >= {
        "signature_key", "kind", "batch_size", "shapes", "output_filter", "source", "bytes", "replay_ms",
    }  # fmt: skip
    assert str(float(data["a"][0, 0]))[:8] not in json.dumps(plain)


def test_a_version_hint_for_names_no_server_loads(model, data, tmp_path):
    report = kw.export_with_warmup(model, tmp_path / "digits", data=data)
    assert any("No TensorFlow Serving server loads" in note for note in report.notes)


def test_a_load_budget_is_warned_of(model, data, tmp_path):
    with pytest.warns(
        UserWarning,
        match=r"over max_load_seconds=1e-06: a server loads it at least that much later",
    ):
        kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"max_load_seconds": 1e-6})


def test_a_stateful_signature_is_told_that_warmup_changes_it(tmp_path):
    class Counter(tf.Module):
        def __init__(self):
            super().__init__()
            self.seen = tf.Variable(0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def count(self, x):
            return {"y": x + tf.cast(self.seen.assign_add(1), tf.float32)}

    module = Counter()
    report = kw.save(module, tmp_path / "1", signatures=module.count, data=rows())
    told = "Signature 'serving_default' writes variables or tables: the warmup requests change its state before the first"
    assert any(note.startswith(told) for note in report.notes)


def test_export_fn_may_itself_save(tmp_path):
    """The lock around saving is reentrant."""
    model = functional(input_4("x"))
    report = kw.export_with_warmup(
        model,
        tmp_path / "1",
        data=rows(4),
        export_fn=lambda model, path: (
            kw.save(model, f"{path}/../inner", data=rows(4)) and tf.saved_model.save(model, path)
        ),
    )
    assert set(report.proofs.values()) == {"proved"}


def test_a_model_that_calls_python_is_never_published(tmp_path):
    class Calls(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def double(self, x):
            return {
                "y": tf.ensure_shape(tf.numpy_function(lambda x: x * 2, [x], tf.float32), [None])
            }

    module = Calls()
    with pytest.raises(SignatureError, match="which a server does not have"):
        kw.save(module, tmp_path / "1", signatures=module.double, data=rows())
    assert os.listdir(tmp_path) == []


def test_one_signature_no_request_can_reach_leaves_the_others_warm(tmp_path):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.SparseTensorSpec([None, 4], tf.float32)])
        def sparse(self, x):
            return {"y": x}

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def dense(self, x):
            return {"y": x + 1}

    module = Two()
    with pytest.warns(UserWarning, match="Signature 'sparse' .* stays cold"):
        report = kw.save(
            module,
            tmp_path / "1",
            {"serving_default": module.dense, "sparse": module.sparse},
            data=rows(4),
        )
    assert [record.signature_key for record in report.records] == ["serving_default"]


def test_where_warnings_are_errors_nothing_is_published(tmp_path):
    import warnings

    # A model of its own: nothing was captured for it.
    model = functional(input_4("x"))
    with warnings.catch_warnings():
        # Only ours: TensorFlow and Keras have deprecations of their own.
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="hold made-up rows"):
            kw.export_with_warmup(model, tmp_path / "1")
    assert os.listdir(tmp_path) == []


def test_an_iterator_is_not_read_where_the_path_is_taken(model, tmp_path):
    (tmp_path / "1").mkdir()
    read = []
    with pytest.raises(PublishError):
        kw.export_with_warmup(model, tmp_path / "1", data=(read.append(1) for _ in range(5)))
    assert read == []


def test_method_name_of_a_model_that_exists_is_refused_with_the_cure(model, tmp_path):
    model.export(tmp_path / "1", verbose=False)
    with pytest.raises(OptionsError, match="run keras-warmup method-names"):
        kw.add_warmup(tmp_path / "1", warmup={"method_name": True})


def test_save_takes_only_what_tensorflow_can_track(tmp_path):
    with pytest.raises(OptionsError, match="save takes a Keras model"):
        kw.save(object(), tmp_path / "1")


def test_serialized_examples_pass_to_the_endpoints_of_a_keras_model(tmp_path):
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


def test_strings_keep_trailing_nuls_when_rows_are_repeated(tmp_path):
    text = keras.Input((), dtype="string", name="text")
    length = keras.layers.Lambda(
        lambda x: tf.cast(tf.strings.length(x), tf.float32)[:, None], output_shape=(1,)
    )
    model = keras.Model(text, length(text))
    report = kw.export_with_warmup(model, tmp_path / "1", data=[b"ab\0\0"])
    (log,) = kw.read_records(report.export_dir)
    assert predict_inputs(log)["text"].tolist() == [b"ab\0\0"] * 2
    assert set(report.proofs.values()) == {"proved"}


class ByKey(keras.Model):
    def __init__(self, key):
        super().__init__()
        self.key = key
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x[self.key])


@pytest.mark.parametrize("key", ["größe", "a b", "_x", "1a", "self", "a.b"])
@pytest.mark.parametrize("how", ["model.export", "save"])
def test_odd_feature_names_of_subclassed_models_are_exported(key, how, tmp_path):
    x = {key: rows(3), "a_b": rows(3)}
    model = ByKey(key)
    model(x)
    export = kw.export_with_warmup if how == "model.export" else kw.save
    assert set(export(model, tmp_path / "1", data=x).proofs.values()) == {"proved"}


def test_what_keras_cannot_trace_is_one_clear_error_with_its_cause(tmp_path):
    class Strict(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x["a"])

    model = Strict()
    model({"a": rows(3)})
    with pytest.raises(ExportError, match="or export_fn= that writes the SavedModel") as error:
        kw.export_with_warmup(model, tmp_path / "1", data=rows(3))
    assert error.value.__cause__ is not None
    assert os.listdir(tmp_path) == []


def test_a_model_without_signatures_is_saved_with_a_warning(tmp_path):
    with pytest.warns(
        UserWarning, match="has no signature that a request can reach: it has no warmup file"
    ):
        report = kw.save(tf.Module(), tmp_path / "1", data=rows(3))
    assert report.records == ()


def test_data_keyed_by_crossed_input_names_is_never_swapped(tmp_path):
    first, second = input_4("zz"), input_4("aa")
    model = keras.Model(
        {"aa": first, "zz": second},
        keras.layers.Dense(2)(keras.layers.Concatenate()([first * 2.0, second])),
    )
    model.export(tmp_path / "1", verbose=False)
    with pytest.raises(BindingError):
        kw.add_warmup(tmp_path / "1", {"aa": rows(4), "zz": rows(4)})


def test_absurd_batch_sizes_are_refused_before_memory_is_filled(model, data, tmp_path):
    with pytest.raises(OptionsError, match="over max_bytes="):
        kw.export_with_warmup(model, tmp_path / "1", data=data, warmup={"batch_sizes": [10**12]})
