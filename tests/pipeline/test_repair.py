"""`repair`: weights that are stored twice, and variables that no server restores."""

from __future__ import annotations

import json
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup._protos import SavedModel
from keras_warmup.cli.commands import EXIT_OK, main
from keras_warmup.errors import (
    ProofError,
    PublishError,
    ReplayError,
    SignatureError,
    UnsafeOpsError,
)
from keras_warmup.pipeline import repair as repair_module
from keras_warmup.records.warmup_file import warmup_path
from keras_warmup.savedmodel.rewriting import name_methods
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.serving.replay import open_session
from tests.builders import predict_log, random_rows, save_function

Feed = dict[str, np.ndarray]


def module_that_holds_a_model(path: str) -> Feed:
    """tensorflow#72963, keras#20095: a `tf.Module` with a Keras model as an attribute."""

    class Runner(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable(3.0)
            self.model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def run(self, x: Any) -> dict[str, Any]:
            return {"y": self.scale * self.model(x)}

    runner = Runner()
    tf.saved_model.save(runner, path, signatures=runner.run)
    return {"x": random_rows(4, rows=3)}


def image_classifier(path: str) -> Feed:
    """keras#19274: an image model, saved without signatures."""
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, use_bias=False)(image))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    model = keras.Model(image, keras.layers.Dense(5, activation="softmax")(x))
    tf.saved_model.save(model, path)
    return {"inputs": random_rows(8, 8, 3, rows=2)}


def trained_digits(path: str) -> Feed:
    """keras#20096: a compiled and trained Sequential, whose optimizer is saved with it."""
    model = keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(10)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(random_rows(16, rows=8), np.arange(8), epochs=2, verbose=0)
    tf.saved_model.save(model, path)
    return {"inputs": random_rows(16, rows=3)}


def embedding_and_lstm(path: str) -> Feed:
    """serving#2250: a subclassed model with a `tf.function` of its own as the signature."""

    class Translator(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = keras.layers.Embedding(10, 2)
            self.lstm = keras.layers.LSTM(6, return_sequences=True, return_state=True)

        def call(self, x: Any) -> Any:
            return self.lstm(self.embedding(x))

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name="ids")])
        def serving(self, ids: Any) -> dict[str, Any]:
            whole, state, carry = self.lstm(self.embedding(ids))
            return {"whole": whole, "state": state, "carry": carry}

    model = Translator()
    model(np.array([[1, 2], [3, 4]], "int32"))
    tf.saved_model.save(model, path, signatures={"serving_default": model.serving})
    return {"ids": np.array([[2, 3, 6], [1, 4, 2]], "int32")}


def wrapped_prediction(path: str) -> Feed:
    """triton#7456: a function around a functional model with batch normalization."""
    image = keras.Input((6, 6, 3))
    x = keras.layers.BatchNormalization(name="block_bn")(keras.layers.Conv2D(3, 3)(image))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))

    @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 3], tf.uint8, name="pixels")])
    def predict(pixels: Any) -> dict[str, Any]:
        return {"scores": model(tf.cast(pixels, tf.float32) / 255.0, training=False)}

    tf.saved_model.save(model, path, signatures=predict)
    return {"pixels": np.arange(216, dtype="uint8").reshape(2, 6, 6, 3)}


def penguin(path: str) -> Feed:
    """tfx#7782: `run_fn` of the penguin example, with a feature layer beside the model."""
    names = ("bill", "depth", "flipper", "mass")
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        inputs = [keras.Input((1,), name=f"{name}_xf") for name in names]
        x = keras.layers.Dense(8, activation="relu")(keras.layers.concatenate(inputs))
        model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
        model.compile("adam", "sparse_categorical_crossentropy")
    model.fit([random_rows(1, rows=6) for _ in names], np.arange(6) % 3, verbose=0)
    model.features = keras.layers.StringLookup(vocabulary=["m", "f"], output_mode="one_hot")

    @tf.function
    def serve(serialized: Any) -> dict[str, Any]:
        spec = {name: tf.io.FixedLenFeature([1], tf.float32) for name in names}
        parsed = tf.io.parse_example(
            serialized, {**spec, "sex": tf.io.FixedLenFeature([1], tf.string)}
        )
        scores = model([parsed[name] for name in names])
        return {"scores": scores, "sex": model.features(parsed["sex"])}

    signature = serve.get_concrete_function(tf.TensorSpec([None], tf.string, name="examples"))
    tf.saved_model.save(model, path, signatures={"serving_default": signature})
    example = tf.train.Example()
    for index, name in enumerate(names):
        example.features.feature[name].float_list.value.append(index / 4)
    example.features.feature["sex"].bytes_list.value.append(b"f")
    return {"examples": np.array([example.SerializeToString()] * 2, object)}


UNSERVABLE = {
    "tf72963_keras20095": module_that_holds_a_model,
    "keras19274": image_classifier,
    "keras20096": trained_digits,
    "serving2250": embedding_and_lstm,
    "triton7456": wrapped_prediction,
    "tfx7782": penguin,
}


def loaded_outputs(path: str, feed: Feed, key: str = "serving_default") -> Feed:
    """Runs a signature with `tf.saved_model.load`."""
    loaded = tf.saved_model.load(path)
    outputs = loaded.signatures[key](**{name: tf.constant(one) for name, one in feed.items()})
    return {name: value.numpy() for name, value in outputs.items()}


def session_outputs(path: str, feed: Feed, key: str = "serving_default") -> Feed:
    """Runs a signature in a Session."""
    with open_session(path) as session:
        return session.replay(predict_log(key, **feed)).outputs


@pytest.mark.parametrize("build", UNSERVABLE.values(), ids=list(UNSERVABLE))
def test_a_model_that_no_server_can_run_gives_what_load_gives(
    build: Callable[[str], Feed], tmp_path: pathlib.Path
) -> None:
    path = str(tmp_path / "1")
    feed = build(path)
    with pytest.raises(ReplayError, match="Could not find variable"):
        session_outputs(path, feed)
    expected = loaded_outputs(path, feed)
    report = kw.repair(path)
    (change,) = report.changes
    assert change.startswith("variables that signatures read and no server restored, now restored:")
    assert report.comparisons["serving_default"].endswith(
        "to what tf.saved_model.load gives for the source (no Session can run it), on made-up rows"
    )
    assert "not compared" not in report.comparisons["serving_default"]
    for name, value in session_outputs(path, feed).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-7)
    for name, value in loaded_outputs(path, feed).items():
        np.testing.assert_array_equal(value, expected[name])
    assert kw.repair(path).changes == ()
    kw.add_warmup(path, feed)
    assert kw.verify(path).ok


def dense(units: int, **options: Any) -> keras.layers.Layer:
    return keras.layers.Dense(units, **options)


def functional(path: str) -> None:
    x = keras.Input((64,), name="x")
    keras.Model(x, dense(64)(dense(64)(x))).export(path, verbose=False)


def equal_values(path: str) -> None:
    """All weights of a shape are equal, and some names too: values pair nothing."""

    class Twice(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.add_weight(shape=(64, 64), initializer="ones", name="w")
            self.two = self.add_weight(shape=(64, 64), initializer="ones", name="w")

        def call(self, x: Any) -> Any:
            return tf.matmul(tf.matmul(x, self.one) + 1.0, self.two)

    x = keras.Input((64,), name="x")
    keras.Model(x, Twice()(x)).export(path, verbose=False)


def subclassed(path: str) -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = dense(8), dense(64)
            self.unused = dense(4)
            self.unused.build((None, 4))

        def call(self, x: Any) -> Any:
            return self.second(self.first(x))

    model = Own()
    model(np.ones((2, 64), "float32"))
    model.export(path, verbose=False)


def shared_layers(path: str) -> None:
    x, y = keras.Input((64,), name="x"), keras.Input((64,), name="y")
    inner = keras.Sequential([keras.Input((64,)), dense(64), keras.layers.BatchNormalization()])
    keras.Model({"x": x, "y": y}, inner(x) + inner(y)).export(path, verbose=False)


def mixed_precision(path: str) -> None:
    x = keras.Input((64,), name="x")
    keras.Model(x, dense(64, dtype="mixed_float16")(x)).export(path, verbose=False)


def recurrent(path: str) -> None:
    x = keras.Input((None, 32), name="x")
    lstm = keras.layers.LSTM(32, dropout=0.5)
    keras.Model(x, keras.layers.Dropout(0.5)(lstm(x))).export(path, verbose=False)


def lookup(path: str) -> None:
    vocabulary = pathlib.Path(path).parent / "words.txt"
    vocabulary.write_text("cat\ndog\n")
    word = keras.Input((1,), dtype="string", name="word")
    ids = keras.layers.StringLookup(vocabulary=str(vocabulary))(word)
    x = keras.layers.Flatten()(keras.layers.Embedding(64, 64)(ids))
    keras.Model(word, dense(64)(x)).export(path, verbose=False)


def by_hand(path: str) -> None:
    """An ExportArchive with two endpoints, a table, and the variables of the optimizer."""
    x = keras.Input((64,), name="x")
    model = keras.Model(x, dense(64)(x))
    model.compile("adam", "mse")
    model.fit(random_rows(64), random_rows(64), verbose=0)
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(["a", "b"], [1.0, 2.0]), 0.0
    )
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(table)
    archive.add_endpoint("call", model.call, [keras.InputSpec(shape=(None, 64), dtype="float32")])
    archive.add_endpoint(
        "score",
        lambda key: {"value": table.lookup(key) + tf.reduce_sum(model.weights[1].value)},
        [tf.TensorSpec([None], tf.string, name="key")],
    )
    archive.add_variable_collection("optimizer_variables", model.optimizer.variables)
    archive.add_variable_collection("kernels", [model.weights[0]])
    archive.write_out(path, verbose=False)


DOUBLED = {
    "functional": functional,
    "equal_values": equal_values,
    "subclassed": subclassed,
    "shared_layers": shared_layers,
    "mixed_precision": mixed_precision,
    "recurrent": recurrent,
    "lookup": lookup,
    "by_hand": by_hand,
}
LISTS = ("variables", "trainable_variables", "non_trainable_variables", "_all_variables")


def data_bytes(path: str) -> int:
    return sum(one.stat().st_size for one in pathlib.Path(path, "variables").glob("*.data*"))


def made_up_inputs(path: str) -> dict[str, Feed]:
    """Returns signature_key -> input name -> rows that fit."""
    made: dict[str, Feed] = {}
    for signature in read_signatures(read_meta_graph(path)):
        made[signature.key] = {
            name: np.full((2, *(one or 5 for one in (spec.shape or ())[1:])), b"a", object)
            if spec.dtype == "string"
            else random_rows(*(one or 5 for one in (spec.shape or ())[1:]), rows=2)
            for name, spec in signature.inputs.items()
        }
    return made


@pytest.mark.parametrize("build", DOUBLED.values(), ids=list(DOUBLED))
def test_a_doubled_export_becomes_half_as_large_and_stays_the_same_to_loaders(
    build: Callable[[str], None], tmp_path: pathlib.Path
) -> None:
    path, repaired = str(tmp_path / "1"), str(tmp_path / "2")
    build(path)
    report = kw.repair(path, output=repaired)
    assert report.changes[0].startswith("variables stored twice, now once: ")
    assert (report.source, report.export_dir) == (path, repaired)
    assert report.bytes_after < report.bytes_before
    ratio = data_bytes(repaired) / data_bytes(path)
    assert ratio < (0.6 if build is not by_hand else 0.8)
    before, after = tf.saved_model.load(path), tf.saved_model.load(repaired)
    assert dir(before) == dir(after)
    lists = [*LISTS, "optimizer_variables", "kernels"]
    for name in [name for name in lists if hasattr(before, name)]:
        theirs, ours = getattr(before, name), getattr(after, name)
        assert [one.name for one in theirs] == [one.name for one in ours]
        assert [one.trainable for one in theirs] == [one.trainable for one in ours]
        for one, other in zip(theirs, ours, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert set(before.signatures) == set(after.signatures)
    for key, feed in made_up_inputs(path).items():
        expected = session_outputs(path, feed, key)
        assert session_outputs(repaired, feed, key).keys() == expected.keys()
        for name, value in session_outputs(repaired, feed, key).items():
            np.testing.assert_array_equal(value, expected[name])
        for name, value in loaded_outputs(repaired, feed, key).items():
            np.testing.assert_array_equal(value, loaded_outputs(path, feed, key)[name])
        assert before.signatures[key].structured_outputs == after.signatures[key].structured_outputs
    assert kw.repair(repaired).changes == ()


def test_the_lists_of_a_repaired_export_are_the_variables_that_its_functions_read(
    tmp_path: pathlib.Path,
) -> None:
    path = str(tmp_path / "1")
    functional(path)
    kw.repair(path)
    loaded = tf.saved_model.load(path)
    rows = tf.constant(random_rows(64, rows=2))
    before = loaded.serve(rows).numpy()
    for one in loaded.variables:
        one.assign(one * 2.0)
    assert not np.array_equal(loaded.serve(rows).numpy(), before)


def trained(path: str) -> list[np.ndarray]:
    """Trains a TFSMLayer for three steps; returns its weights, then its outputs."""
    layer = keras.layers.TFSMLayer(path, call_endpoint="serve")
    rows = tf.constant(np.linspace(0, 1, 128, dtype="float32").reshape(2, 64))
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(layer(rows)))
        weights = [one.value for one in layer.trainable_weights]
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.1 * gradient)
    return [*(one.numpy() for one in layer.weights), layer(rows).numpy()]


def test_a_tfsm_layer_of_a_repaired_export_trains_as_before(tmp_path: pathlib.Path) -> None:
    path, repaired = str(tmp_path / "1"), str(tmp_path / "2")
    functional(path)
    kw.repair(path, repaired)
    theirs, ours = trained(path), trained(repaired)
    assert len(theirs) == 5
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_warmup_file_method_names_and_shared_tensors_are_kept(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "1")
    functional(path)
    rows = random_rows(64)
    report = kw.add_warmup(path, rows, warmup={"share_twin_signatures": True})
    assert report.shared_signatures
    name_methods(path)
    (tmp_path / "1" / "assets.extra" / "notes.txt").write_text("kept")
    before = {one.key: one for one in read_signatures(read_meta_graph(path))}
    file = pathlib.Path(warmup_path(path)).read_bytes()
    fingerprint = pathlib.Path(path, "fingerprint.pb").read_bytes()
    repaired = kw.repair(path)
    assert {one.key: one for one in read_signatures(read_meta_graph(path))} == before
    assert pathlib.Path(warmup_path(path)).read_bytes() == file
    assert (tmp_path / "1" / "assets.extra" / "notes.txt").read_text() == "kept"
    assert pathlib.Path(path, "fingerprint.pb").read_bytes() != fingerprint
    assert repaired.num_records == len(report.records)
    assert repaired.comparisons["serving_default"] == (
        "bit-identical to what a Session gives for the source, on 1 records of the warmup file"
    )
    assert kw.verify(path).ok
    tf.saved_model.experimental.read_fingerprint(path)


def test_an_export_without_copies_is_left_alone(tmp_path: pathlib.Path) -> None:
    path = save_function(
        lambda x: {"y": x * scale},
        tmp_path / "1",
        [tf.TensorSpec([None], tf.float32, name="x")],
        scale=(scale := tf.Variable(2.0)),
    )
    before = content_of(path)
    report = kw.repair(path, output=tmp_path / "2")
    assert (report.changes, report.export_dir) == ((), path)
    assert content_of(path) == before
    assert not (tmp_path / "2").exists()


def content_of(path: str) -> dict[str, bytes]:
    """Returns the content of each file below a directory."""
    root = pathlib.Path(path)
    return {
        str(one.relative_to(root)): one.read_bytes() for one in root.rglob("*") if one.is_file()
    }


def value_in(prefix: str, key: str) -> np.ndarray:
    """Returns a tensor of a checkpoint."""
    value: np.ndarray = tf.train.load_checkpoint(prefix).get_tensor(key)
    return value


def save_checkpoint(prefix: str, changed: Feed) -> None:
    """Writes a checkpoint again with other values."""
    reader = tf.train.load_checkpoint(prefix)
    tensors = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    tensors.update(changed)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )


def test_a_checkpoint_whose_copies_differ_is_refused(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "1")
    functional(path)
    prefix = f"{path}/variables/variables"
    key = "variables/0/.ATTRIBUTES/VARIABLE_VALUE"
    save_checkpoint(prefix, {key: value_in(prefix, key) + 1.0})
    before = content_of(path)
    with pytest.raises(SignatureError, match="copies of one variable, but their values differ"):
        kw.repair(path)
    assert content_of(path) == before


def test_a_variable_without_a_copy_cannot_be_repaired(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "1")
    module_that_holds_a_model(path)
    file = pathlib.Path(path, "saved_model.pb")
    saved_model = SavedModel.FromString(file.read_bytes())
    graph_def = saved_model.meta_graphs[0].graph_def
    for index in range(len(graph_def.node) - 1, -1, -1):
        if graph_def.node[index].op == "AssignVariableOp":
            del graph_def.node[index]
    file.write_bytes(saved_model.SerializeToString())
    before = content_of(path)
    with pytest.raises(SignatureError, match=r"^Cannot repair .* does not say which restored"):
        kw.repair(path)
    assert content_of(path) == before


def test_a_result_with_other_outputs_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "1")
    functional(path)
    before = content_of(path)
    rewrite = repair_module.rewrite_checkpoint

    def swap_the_kernels(source: str, target: str, *rest: Any) -> None:
        rewrite(source, target, *rest)
        kept = sorted(tf.train.load_checkpoint(target).get_variable_to_shape_map().items())
        first, second = (key for key, shape in kept if shape == [64, 64])
        save_checkpoint(target, {first: value_in(target, second)})

    monkeypatch.setattr(repair_module, "rewrite_checkpoint", swap_the_kernels)
    with pytest.raises(
        ProofError,
        match=r"does not give what its source gives for a predict request of signature 'serve'.*"
        r"'output_0' \[2, 64\] by up to .*Nothing was published",
    ):
        kw.repair(path)
    assert content_of(path) == before
    assert [one.name for one in tmp_path.iterdir()] == ["1"]


KILLS = {
    "before_the_checkpoint": "keras_warmup.pipeline.repair.rewrite_checkpoint",
    "before_the_comparison": "keras_warmup.pipeline.convert.compare_models",
    "before_the_exchange": "keras_warmup.publishing.publish.exchange",
    "after_the_exchange": "keras_warmup.publishing.publish.sync",
}


@pytest.mark.parametrize("function", KILLS.values(), ids=list(KILLS))
def test_a_killed_repair_leaves_the_original_or_the_result(
    function: str, tmp_path: pathlib.Path
) -> None:
    path = str(tmp_path / "1")
    functional(path)
    kw.add_warmup(path, random_rows(64))
    before = content_of(path)
    module, _, name = function.rpartition(".")
    code = (
        f"import os, signal, {module}, keras_warmup as kw\n"
        "def kill(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{module}.{name} = kill\n"
        f"kw.repair({path!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    is_done = function.endswith("publish.sync")
    assert (content_of(path) == before) is not is_done
    assert bool(kw.repair(path).changes) is not is_done
    assert kw.verify(path).ok
    assert [one.name for one in tmp_path.iterdir()] == ["1"]


def test_weights_that_an_older_keras_warmup_restored_twice_are_stored_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It exported each Keras variable as its value; an ExportArchive tracks both."""

    def export_value(variable: Any, object_map: Any, tensor_map: Any, options: Any) -> Any:
        exported = variable.value._export_to_saved_model_graph(object_map, tensor_map, options)
        object_map[variable] = object_map[variable.value]
        return exported

    monkeypatch.setattr(keras.Variable, "_export_to_saved_model_graph", export_value)
    path = str(tmp_path / "1")
    functional(path)
    size = data_bytes(path)
    report = kw.repair(path)
    assert report.changes == ("variables stored twice, now once: 4",)
    assert data_bytes(path) < 0.6 * size
    assert kw.repair(path).changes == ()


def test_output_may_not_exist_and_takes_the_next_version(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "1")
    functional(path)
    with pytest.raises(PublishError, match="it exists"):
        kw.repair(path, output=path)
    report = kw.repair(path, output=tmp_path / "{version}")
    assert report.export_dir == str(tmp_path / "2")


def test_a_link_is_followed_and_stays(tmp_path: pathlib.Path) -> None:
    functional(str(tmp_path / "1"))
    (tmp_path / "latest").symlink_to("1")
    report = kw.repair(tmp_path / "latest")
    assert report.export_dir == str(tmp_path / "1")
    assert (tmp_path / "latest").is_symlink()
    assert kw.repair(tmp_path / "1").changes == ()


def test_unsafe_ops_are_refused_before_anything_runs(tmp_path: pathlib.Path) -> None:
    class Reads(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def run(self, x: Any) -> dict[str, Any]:
            return {"y": self.model(x), "file": tf.io.read_file("/nowhere")}

    module = Reads()
    path = str(tmp_path / "1")
    tf.saved_model.save(module, path, signatures=module.run)
    with pytest.raises(UnsafeOpsError):
        kw.repair(path, refuse_unsafe_ops=True)


def test_the_command_prints_the_report_and_exits_with_0(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "1")
    functional(path)
    assert main(["repair", path, "--output", str(tmp_path / "2"), "--json"]) == EXIT_OK
    report = json.loads(capsys.readouterr().out)
    assert report["export_dir"] == str(tmp_path / "2")
    assert report["bytes_after"] < report["bytes_before"]
    assert main(["repair", report["export_dir"]]) == EXIT_OK
    assert "nothing to change" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "2")
