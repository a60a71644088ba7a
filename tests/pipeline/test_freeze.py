"""Tests of `keras_warmup.pipeline.freeze`: constants in place of variables, equal outputs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup._protos import MetaGraphDef, PredictionLog
from keras_warmup.errors import ExportError, OptionsError, ReplayError
from keras_warmup.pipeline.freeze import LOST, FreezeResult, freeze_saved_model
from keras_warmup.pipeline.proof import same_outputs
from keras_warmup.records.warmup_file import read_all_records, warmup_path
from keras_warmup.savedmodel.graph import VARIABLES
from keras_warmup.savedmodel.rewriting import share_tensors
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.serving.replay import open_session
from tests.builders import float_parser, multi_inference_log, predict_log, save_function, task_log

ROWS = np.random.default_rng(0).random((3, 4), "float32")
X = tf.TensorSpec([None, 4], tf.float32, "x")
MIB = 2**20

Outputs = Mapping[str, np.ndarray]


def replay(export_dir: Any, *logs: PredictionLog) -> list[Outputs]:
    """Returns what a Session gives for the requests, one after the other."""
    with open_session(export_dir) as session:
        return [session.replay(log).outputs for log in logs]


def variables_of(export_dir: Any) -> set[str]:
    """Returns the names of the variables in a graph, those of functions included."""
    graph_def = read_meta_graph(export_dir).graph_def
    bodies = [graph_def.node, *(one.node_def for one in graph_def.library.function)]
    return {node.name for nodes in bodies for node in nodes if node.op in VARIABLES}


def freeze(source: Any, tmp_path: pathlib.Path, **options: Any) -> tuple[FreezeResult, str]:
    directory = tmp_path / "frozen"
    directory.mkdir()
    return freeze_saved_model(str(source), str(directory), **options), str(directory)


def export(model: Any, tmp_path: pathlib.Path) -> str:
    path = str(tmp_path / "1")
    model.export(path, verbose=False)
    return path


def require_frozen(
    source: Any, frozen: str, *logs: PredictionLog, exact: bool = False, filled: str = ""
) -> None:
    """Checks that nothing is left of the variables, and that both give the same outputs.

    Args:
        source: the SavedModel.
        frozen: the frozen one.
        *logs: requests.
        exact: whether the outputs must be bit-identical.
        filled: name of the variable that the init op fills.
    """
    assert variables_of(frozen) == ({filled} if filled else set())
    assert not read_meta_graph(frozen).HasField("saver_def")
    assert not pathlib.Path(frozen, "variables").exists()
    for before, after in zip(replay(source, *logs), replay(frozen, *logs), strict=True):
        assert same_outputs(before, after)
        if exact:
            assert all(np.array_equal(before[name], after[name]) for name in before)


def functional() -> tuple[Any, dict[str, Any]]:
    x = keras.Input((4,), name="x")
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, activation="gelu")(x))
    return keras.Model(x, {"a": keras.layers.Dense(2)(hidden), "b": hidden}), {"x": ROWS}


class Shared(keras.Model):
    """A subclassed model that calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = keras.layers.Dense(4, activation="tanh")

    def call(self, x: Any) -> Any:
        return self.layer(self.layer(x))


def subclassed() -> tuple[Any, dict[str, Any]]:
    model = Shared()
    model(ROWS)
    return model, {"inputs": ROWS}


def nested() -> tuple[Any, dict[str, Any]]:
    inner = functional()[0]
    x = keras.Input((4,), name="x")
    return keras.Model(x, inner(inner(x)["b"][:, :4])["a"]), {"x": ROWS}


def recurrent(layer: Callable[..., Any], **options: Any) -> tuple[Any, dict[str, Any]]:
    x = keras.Input((None, 4), name="x")
    model = keras.Model(x, keras.layers.Dense(2)(layer(5, **options)(x)))
    return model, {"x": np.random.default_rng(1).random((3, 7, 4), "float32")}


def lookup() -> tuple[Any, dict[str, Any]]:
    x = keras.Input((1,), name="x", dtype="string")
    ids = keras.layers.StringLookup(vocabulary=["red", "green", "blue"])(x)
    embedded = keras.layers.Flatten()(keras.layers.Embedding(4, 3)(ids))
    rows = np.array([["red"], ["blue"], ["other"]], dtype=object)
    return keras.Model(x, keras.layers.Dense(2)(embedded)), {"x": rows}


def text() -> tuple[Any, dict[str, Any]]:
    vectorize = keras.layers.TextVectorization(output_sequence_length=6)
    vectorize.adapt(["the cat sat on the mat", "a dog"])
    x = keras.Input((), name="x", dtype="string")
    embedded = keras.layers.Embedding(vectorize.vocabulary_size(), 3)(vectorize(x))
    model = keras.Model(x, keras.layers.GlobalAveragePooling1D()(embedded))
    return model, {"x": np.array(["the dog sat", "mat"], dtype=object)}


def half() -> tuple[Any, dict[str, Any]]:
    x = keras.Input((4,), name="x")
    layer = keras.layers.Dense(8, activation="relu", dtype="mixed_bfloat16")
    return keras.Model(x, keras.layers.Dense(2, dtype="mixed_bfloat16")(layer(x))), {"x": ROWS}


def quantized() -> tuple[Any, dict[str, Any]]:
    model = functional()[0]
    model.quantize("int8")
    return model, {"x": ROWS}


def images() -> tuple[Any, dict[str, Any]]:
    x = keras.Input((8, 8, 3), name="x")
    hidden = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))
    hidden = keras.layers.DepthwiseConv2D(3)(keras.layers.ReLU(6.0)(hidden))
    model = keras.Model(x, keras.layers.GlobalAveragePooling2D()(hidden))
    return model, {"x": np.random.default_rng(1).random((3, 8, 8, 3), "float32")}


def attention() -> tuple[Any, dict[str, Any]]:
    x = keras.Input((5,), name="x", dtype="int64")
    embedded = keras.layers.Embedding(20, 8)(x)
    attended = keras.layers.MultiHeadAttention(2, 4)(embedded, embedded)
    hidden = keras.layers.LayerNormalization()(embedded + attended)
    model = keras.Model(x, keras.layers.GlobalAveragePooling1D()(hidden))
    return model, {"x": np.arange(10, dtype=np.int64).reshape(2, 5)}


MODELS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "functional": functional,
    "subclassed, shared layers": subclassed,
    "nested": nested,
    "LSTM": lambda: recurrent(keras.layers.LSTM),
    "LSTM that returns sequences": lambda: recurrent(keras.layers.LSTM, return_sequences=True),
    "LSTM, unfused": lambda: recurrent(keras.layers.LSTM, use_cudnn=False),
    "GRU": lambda: recurrent(keras.layers.GRU),
    "SimpleRNN": lambda: recurrent(keras.layers.SimpleRNN),
    "bidirectional": lambda: recurrent(
        lambda units: keras.layers.Bidirectional(keras.layers.LSTM(units))
    ),
    "StringLookup": lookup,
    "TextVectorization": text,
    "mixed precision": half,
    "int8": quantized,
    "convolutions": images,
    "attention": attention,
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_frozen_keras_model_gives_the_outputs_of_the_unfrozen_one(
    kind: str, tmp_path: pathlib.Path
) -> None:
    model, inputs = MODELS[kind]()
    source = export(model, tmp_path)
    name = next(iter(read_signatures(read_meta_graph(source))[0].inputs))
    logs = [predict_log(key, **{name: next(iter(inputs.values()))}) for key in ("", "serve")]
    result, frozen = freeze(source, tmp_path)
    exact = kind in ("StringLookup", "TextVectorization")
    require_frozen(source, frozen, *logs, exact=exact)
    assert result.frozen.variables == {}
    assert result.frozen.constants == len(model.weights)  # seeds of dropout are not read
    sizes = [int(np.prod(one.shape)) * tf.as_dtype(one.dtype).size for one in model.weights]
    assert result.frozen.constant_bytes == sum(sizes)


def definitions_of(meta_graph: MetaGraphDef) -> dict[str, bytes]:
    """Returns the SignatureDefs; `serve` has the tensors of its twin, which a freeze gives it."""
    share_tensors(meta_graph, {"serve": "serving_default"})
    return {
        key: definition.SerializeToString(deterministic=True)
        for key, definition in meta_graph.signature_def.items()
    }


def test_signatures_and_assets_are_as_before_and_what_no_server_runs_is_gone(
    tmp_path: pathlib.Path,
) -> None:
    source = export(text()[0], tmp_path)
    result, frozen = freeze(source, tmp_path)
    before, after = read_meta_graph(source), read_meta_graph(frozen)
    assert result.twins == {"serve": "serving_default"}
    assert after.signature_def["serve"] == after.signature_def["serving_default"]
    assert definitions_of(before) == definitions_of(after)
    assert list(before.asset_file_def) == list(after.asset_file_def)
    assert before.meta_info_def.tags == after.meta_info_def.tags
    assert not after.HasField("object_graph_def")
    ops = {node.op for node in after.graph_def.node}
    assert ops.isdisjoint({"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"})
    called = str(after.graph_def)
    for function in after.graph_def.library.function:
        assert called.count(f'"{function.signature.name}"') > 1, "no node calls it"
    assert not any(node.HasField("experimental_debug_info") for node in after.graph_def.node)


def test_files_of_a_vocabulary_are_copied(tmp_path: pathlib.Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("red\ngreen\n")
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        num_oov_buckets=1,
    )
    weights = tf.Variable(np.arange(6, dtype="float32").reshape(3, 2))
    source = save_function(
        lambda x: {"y": tf.gather(weights, table.lookup(x))},
        tmp_path / "1",
        [tf.TensorSpec([None], tf.string, "x")],
        table=table,
        weights=weights,
    )
    vocabulary.unlink()
    log = predict_log(x=np.array(["green", "other"], dtype=object))
    result, frozen = freeze(source, tmp_path)
    (path_variable,) = result.frozen.variables
    assert result.frozen.variables == {path_variable: "the init op fills it"}
    require_frozen(source, frozen, log, exact=True, filled=path_variable)
    assert (pathlib.Path(frozen) / "assets" / "words.txt").read_text() == "red\ngreen\n"


def test_a_loader_gets_the_signatures(tmp_path: pathlib.Path) -> None:
    model, inputs = functional()
    source = export(model, tmp_path)
    _, frozen = freeze(source, tmp_path)
    loaded = tf.saved_model.load(frozen)
    assert {"serve", "serving_default"} <= set(loaded.signatures)
    outputs = loaded.signatures["serving_default"](x=tf.constant(inputs["x"]))
    expected = model(inputs["x"])
    for name in expected:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-4, atol=1e-6)
    assert not hasattr(loaded, "serve")
    assert list(loaded.variables) == []


def test_the_source_may_be_the_directory(tmp_path: pathlib.Path) -> None:
    model, inputs = functional()
    source = export(model, tmp_path)
    (before,) = replay(source, predict_log(**inputs))
    freeze_saved_model(source, source)
    (after,) = replay(source, predict_log(**inputs))
    assert same_outputs(before, after)
    assert sorted(path.name for path in pathlib.Path(source).iterdir()) == [
        "assets",
        "saved_model.pb",
    ]


def test_all_request_kinds_give_the_outputs_of_the_unfrozen_model(tmp_path: pathlib.Path) -> None:
    x = keras.Input((1,), name="x")
    hidden = keras.layers.Dense(8, activation="tanh")(x)
    score = keras.layers.Dense(2, activation="softmax", name="score")(hidden)
    model = keras.Model(x, {"score": score, "value": keras.layers.Dense(1)(hidden)})
    parser = float_parser("x")
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("predict", kw.endpoints.predict_examples(model, parser))
    archive.add_endpoint(
        "classify", kw.endpoints.classify(model, parser, ["no", "yes"], output="score")
    )
    archive.add_endpoint("regress", kw.endpoints.regress(model, parser, output="value"))
    source = str(tmp_path / "1")
    archive.write_out(source, verbose=False)
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[value]))}
            )
        )
        for value in (0.5, -1.0)
    ]
    serialized = np.array([one.SerializeToString() for one in examples], dtype=object)
    logs = [
        predict_log("predict", examples=serialized),
        task_log("classify", "classify", *examples),
        task_log("regress", "regress", *examples),
        multi_inference_log(
            ("classify", "tensorflow/serving/classify"),
            ("regress", "tensorflow/serving/regress"),
            examples=examples,
        ),
    ]
    result, frozen = freeze(source, tmp_path)
    require_frozen(source, frozen, *logs)
    # One set of constants, whatever the number of signatures.
    assert result.frozen.constants == len(model.variables)


class Counter(tf.Module):
    """Two signatures over the same weights; one of them counts its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = tf.Variable(41.0)
        self.weights = tf.Variable(np.ones((4, 2), "float32"))

    @tf.function(input_signature=[X])
    def count(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.matmul(x, self.weights) + self.seen.assign_add(1.0)}

    @tf.function(input_signature=[X])
    def apply(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.matmul(x, self.weights)}


def test_a_variable_that_a_signature_writes_stays_one_with_its_value(
    tmp_path: pathlib.Path,
) -> None:
    module = Counter()
    source = str(tmp_path / "1")
    signatures = {"count": module.count, "serving_default": module.apply}
    tf.saved_model.save(module, source, signatures)
    logs = [predict_log(key, x=ROWS) for key in ("count", "count", "")]
    result, frozen = freeze(source, tmp_path)
    ((name, why),) = result.frozen.variables.items()
    assert why == "the op AssignAddVariableOp writes it"
    assert variables_of(frozen) == {name}
    assert (result.frozen.constants, result.frozen.variable_bytes) == (1, 4)
    for before, after in zip(replay(source, *logs), replay(frozen, *logs), strict=True):
        assert same_outputs(before, after)
    loaded = tf.saved_model.load(frozen)
    assert [float(one) for one in loaded.variables] == [41.0]
    outputs = loaded.signatures["count"](x=tf.constant(ROWS))["y"]
    np.testing.assert_allclose(outputs, replay(source, logs[0])[0]["y"], rtol=1e-6)
    index = tf.train.load_checkpoint(f"{frozen}/variables/variables")
    assert set(index.get_variable_to_shape_map()) == {name}


def test_the_largest_variables_stay_variables_until_the_constants_fit(
    tmp_path: pathlib.Path,
) -> None:
    x = keras.Input((2,), name="x", dtype="int64")
    embedded = keras.layers.Embedding(5000, 64)(x)
    model = keras.Model(x, keras.layers.Dense(4)(keras.layers.Flatten()(embedded)))
    source = export(model, tmp_path)
    log = predict_log(x=np.array([[1, 4999], [7, 0]]))
    result, frozen = freeze(source, tmp_path, max_bytes=MIB)
    ((name, why),) = result.frozen.variables.items()
    assert "embedding" in name
    assert why == f"the constants would exceed {MIB} bytes"
    assert result.frozen.variable_bytes == 5000 * 64 * 4
    assert result.frozen.constant_bytes == (128 * 4 + 4) * 4
    assert variables_of(frozen) == {name}
    (before,), (after,) = replay(source, log), replay(frozen, log)
    assert same_outputs(before, after)
    files = list(pathlib.Path(frozen, "variables").iterdir())
    assert sum(path.stat().st_size for path in files) < 1.1 * result.frozen.variable_bytes


def test_where_no_variable_can_become_a_constant_nothing_is_frozen(tmp_path: pathlib.Path) -> None:
    source = export(functional()[0], tmp_path)
    with pytest.raises(ExportError, match="none of its 8 variables can become") as caught:
        freeze(source, tmp_path, max_bytes=1)
    assert "the constants would exceed 1 bytes" in str(caught.value)
    assert "raise freeze_max_bytes" in str(caught.value)


def test_a_model_without_variables_only_loses_what_no_server_runs(tmp_path: pathlib.Path) -> None:
    source = save_function(lambda x: {"y": x * 2.0}, tmp_path / "1", [X])
    result, frozen = freeze(source, tmp_path)
    require_frozen(source, frozen, predict_log(x=ROWS), exact=True)
    assert result.frozen.constants == 0


def test_a_mutable_table_keeps_its_entries(tmp_path: pathlib.Path) -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(["red", "green"], [5, 6])
    weights = tf.Variable(2.0)
    source = save_function(
        lambda x: {"y": tf.cast(table.lookup(x), tf.float32) * weights},
        tmp_path / "1",
        [tf.TensorSpec([None], tf.string, "x")],
        table=table,
        weights=weights,
    )
    log = predict_log(x=np.array(["green", "red", "other"], dtype=object))
    result, frozen = freeze(source, tmp_path)
    assert result.frozen.constants == 1
    (before,), (after,) = replay(source, log), replay(frozen, log)
    np.testing.assert_array_equal(after["y"], [12.0, 10.0, -2.0])
    assert same_outputs(before, after)


def test_a_mutable_table_without_variables_keeps_its_entries(tmp_path: pathlib.Path) -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(["red"], [5])
    spec = tf.TensorSpec([None], tf.string, "x")
    source = save_function(lambda x: {"y": table.lookup(x)}, tmp_path / "1", [spec], table=table)
    _, frozen = freeze(source, tmp_path)
    (outputs,) = replay(frozen, predict_log(x=np.array(["red", "other"], dtype=object)))
    np.testing.assert_array_equal(outputs["y"], [5, -1])


def nested_functions(x: tf.Tensor, one: tf.Variable, two: tf.Variable) -> dict[str, tf.Tensor]:
    @tf.function
    def inner(value: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
        return value * factor + tf.reduce_sum(two)

    # A call that takes the value of a variable, and the handle of another one.
    return {"y": inner(x, one.read_value()), "z": inner(x, one) + one}


def conditional(x: tf.Tensor, one: tf.Variable, two: tf.Variable) -> dict[str, tf.Tensor]:
    positive = tf.reduce_sum(x) > 0.0
    y = tf.cond(positive, lambda: x * one, lambda: tf.cond(positive, lambda: x, lambda: x + two))
    return {"y": y, "z": tf.cond(positive, lambda: two.read_value(), lambda: one.read_value())}


def case(x: tf.Tensor, one: tf.Variable, two: tf.Variable) -> dict[str, tf.Tensor]:
    index = tf.cast(tf.reduce_sum(x), tf.int32) % 3
    return {"y": tf.switch_case(index, [lambda: x * one, lambda: x + two, lambda: x])}


def loop(x: tf.Tensor, one: tf.Variable, two: tf.Variable) -> dict[str, tf.Tensor]:
    def step(i: tf.Tensor, y: tf.Tensor) -> Any:
        inner = tf.while_loop(lambda j, _: j < 2, lambda j, z: (j + 1, z * one), (0, y))[1]
        return i + 1, inner + two

    return {"y": tf.while_loop(lambda i, _: tf.cast(i, tf.float32) < 3.0, step, (0, x))[1]}


def mapped(x: tf.Tensor, one: tf.Variable, two: tf.Variable) -> dict[str, tf.Tensor]:
    return {"y": tf.map_fn(lambda row: row * one + two, x)}


def vectorized(x: tf.Tensor, one: tf.Variable, two: tf.Variable) -> dict[str, tf.Tensor]:
    return {"y": tf.vectorized_map(lambda row: row * one + two, x)}


def gathered(x: tf.Tensor, one: tf.Variable, two: tf.Variable) -> dict[str, tf.Tensor]:
    ids = tf.cast(x, tf.int32)
    return {"y": tf.nn.embedding_lookup(one, ids), "z": tf.gather(two, ids), "n": two[1:]}


def gathered_nd(x: tf.Tensor, one: tf.Variable, two: tf.Variable) -> dict[str, tf.Tensor]:
    ids = tf.cast(x, tf.int32)[..., tf.newaxis]
    return {"y": tf.gather_nd(one, ids), "z": two}


def compiled(x: tf.Tensor, one: tf.Variable, two: tf.Variable) -> dict[str, tf.Tensor]:
    @tf.function(jit_compile=True)
    def inner(value: tf.Tensor) -> tf.Tensor:
        return value * one + two

    return {"y": inner(x)}


@pytest.mark.parametrize(
    "function",
    [
        nested_functions,
        conditional,
        case,
        loop,
        mapped,
        vectorized,
        gathered,
        gathered_nd,
        compiled,
    ],
)
def test_functions_and_control_flow_are_frozen(function: Any, tmp_path: pathlib.Path) -> None:
    one, two = tf.Variable([0.5, 2.0, 3.0, -1.0]), tf.Variable([1.0, 2.0, 3.0, 4.0])
    source = save_function(lambda x: function(x, one, two), tmp_path / "1", [X], one=one, two=two)
    result, frozen = freeze(source, tmp_path)
    assert result.frozen.variables == {}
    logs = [predict_log(x=ROWS), predict_log(x=-ROWS), predict_log(x=ROWS * 0.9)]
    if "gathered" in function.__name__:
        logs = logs[:1]
    require_frozen(source, frozen, *logs)


def test_a_compiled_model_is_frozen(tmp_path: pathlib.Path) -> None:
    weights = tf.Variable(np.ones((4, 2), "float32"))
    module = tf.Module()
    module.weights = weights
    function = tf.function(
        lambda x: {"y": tf.matmul(x, weights)}, input_signature=[X], jit_compile=True
    )
    source = str(tmp_path / "1")
    tf.saved_model.save(module, source, {"serving_default": function})
    _, frozen = freeze(source, tmp_path)
    require_frozen(source, frozen, predict_log(x=ROWS))


def test_variables_of_ops_that_tensorflow_does_not_convert_stay(tmp_path: pathlib.Path) -> None:
    weights, bias = tf.Variable(np.ones((4, 2), "float32")), tf.Variable([1.0, 2.0])

    @tf.nondifferentiable_batch_function(2, 4, 10)
    def batched(x: tf.Tensor) -> tf.Tensor:
        return tf.matmul(x, weights)

    source = save_function(
        lambda x: {"y": batched(x) + bias}, tmp_path / "1", [X], weights=weights, bias=bias
    )
    result, frozen = freeze(source, tmp_path)
    ((name, why),) = result.frozen.variables.items()
    assert why == "TensorFlow does not convert the op BatchFunction, which uses it"
    assert variables_of(frozen) == {name}
    log = predict_log(x=ROWS[:2])
    (before,), (after,) = replay(source, log), replay(frozen, log)
    assert same_outputs(before, after)


def test_variables_that_meet_in_one_function_stay_together(tmp_path: pathlib.Path) -> None:
    small, large = tf.Variable(np.ones((4, 4), "float32")), tf.Variable(np.ones((4, 4), "float32"))
    bias = tf.Variable(np.full(4, 2.0, "float32"))

    @tf.function(input_signature=[X, tf.TensorSpec([4, 4], tf.float32)])
    def multiply(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        return tf.matmul(x, matrix)

    @tf.function
    def apply(x: tf.Tensor, matrix: tf.Variable) -> tf.Tensor:
        return multiply(x, matrix.read_value())

    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = apply(apply(x, small), large) + bias
        large.scatter_update(tf.IndexedSlices(tf.ones([1, 4]), tf.constant([0])))
        return {"y": y}

    source = save_function(serve, tmp_path / "1", [X], small=small, large=large, bias=bias)
    result, frozen = freeze(source, tmp_path)
    assert result.frozen.constants in (1, 2)
    log = predict_log(x=ROWS)
    (before,), (after,) = replay(source, log), replay(frozen, log)
    assert same_outputs(before, after)


def test_a_table_that_the_init_op_fills_stays(tmp_path: pathlib.Path) -> None:
    class Initialized(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(3.0)
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer([1, 2], [10.0, 20.0]), -1.0
            )

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": self.table.lookup(x) * self.weights}

    module = Initialized()
    source = str(tmp_path / "1")
    tf.saved_model.save(module, source, {"serving_default": module.serve})
    _, frozen = freeze(source, tmp_path)
    require_frozen(source, frozen, predict_log(x=np.array([1, 2, 3], "int32")), exact=True)


def test_a_saved_model_that_no_session_can_run_is_refused(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    tf.saved_model.save(model, str(tmp_path / "1"))
    with pytest.raises(ReplayError, match="that the SavedModel never restores"):
        freeze(tmp_path / "1", tmp_path)


def test_tensorflow_1_models_are_frozen(saved_models: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source = saved_models / "half_plus_two_tf1" / "1"
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(3.0)
    logs = [
        predict_log(x=np.array([[1.0], [2.0]], "float32")),
        task_log("classify", "classify_x_to_y", example),
        task_log("regress", "regress_x_to_y", example),
        task_log("regress", "regress_x_to_y2", example),
    ]
    result, frozen = freeze(source, tmp_path)
    assert result.frozen.constants > 0
    assert result.frozen.variables == {"filename_tensor": "the init op fills it"}
    require_frozen(source, frozen, *logs, filled="filename_tensor")


def test_an_estimator_is_frozen(saved_models: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source = saved_models / "chicago_taxi_estimator" / "1"
    records = tf.data.TFRecordDataset(
        str(saved_models / "chicago_taxi_examples.tfrecord.gz"), compression_type="GZIP"
    )
    examples = [tf.train.Example.FromString(one.numpy()) for one in records.take(4)]
    serialized = np.array([one.SerializeToString() for one in examples], dtype=object)
    logs = [
        task_log("classify", "classification", *examples),
        task_log("regress", "regression", *examples),
        predict_log("predict", examples=serialized),
    ]
    result, frozen = freeze(source, tmp_path)
    assert result.frozen.variables == {}
    require_frozen(source, frozen, *logs)


def test_a_frozen_export_is_warm_and_its_twins_share_tensors(tmp_path: pathlib.Path) -> None:
    model, inputs = functional()
    report = kw.export_with_warmup(model, tmp_path / "1", data=inputs["x"], warmup={"freeze": True})
    assert report.frozen is not None
    assert (report.frozen.constants, report.frozen.variables) == (len(model.variables), {})
    assert report.proofs == {"serving_default": "proved", "serve": "proved"}
    assert report.shared_signatures == {"serve": "serving_default"}
    assert LOST in report.notes
    assert variables_of(tmp_path / "1") == set()
    assert kw.verify(tmp_path / "1").ok
    assert (tmp_path / "1" / "fingerprint.pb").exists()
    tf.saved_model.experimental.read_fingerprint(str(tmp_path / "1"))


def test_nested_arguments_are_bound_as_before_the_freeze(tmp_path: pathlib.Path) -> None:
    a, b = keras.Input((2,), name="zz"), keras.Input((3,), name="aa")
    structure = {"aa": a, "zz": [b]}
    model = keras.Model(structure, keras.layers.Concatenate()([a, b]))
    data = {"aa": np.ones((4, 2), "float32"), "zz": [np.zeros((4, 3), "float32")]}
    for name, freeze_ in (("1", False), ("2", True)):
        report = kw.export_with_warmup(
            model, tmp_path / name, data=data, warmup={"freeze": freeze_}
        )
        assert report.proofs["serving_default"] == "proved"
    first, second = (read_all_records(str(tmp_path / name)) for name in ("1", "2"))
    assert first == second


def test_save_freezes_a_module(tmp_path: pathlib.Path) -> None:
    module = Counter()
    report = kw.save(
        module,
        tmp_path / "1",
        {"serving_default": module.apply, "count": module.count},
        data={"x": ROWS},
        warmup={"freeze": True, "signatures": ["serving_default"]},
    )
    assert report.frozen is not None
    assert list(report.frozen.variables.values()) == ["the op AssignAddVariableOp writes it"]
    assert kw.verify(tmp_path / "1").ok


def test_the_limit_is_an_option_of_the_export(tmp_path: pathlib.Path) -> None:
    model, inputs = functional()
    options = {"freeze": True, "freeze_max_bytes": 100}
    report = kw.export_with_warmup(model, tmp_path / "1", data=inputs["x"], warmup=options)
    assert report.frozen is not None
    assert report.frozen.constant_bytes <= 100
    assert set(report.frozen.variables.values()) == {"the constants would exceed 100 bytes"}


def test_an_export_that_cannot_be_frozen_publishes_nothing(tmp_path: pathlib.Path) -> None:
    model, inputs = functional()
    options = {"freeze": True, "freeze_max_bytes": 1}
    with pytest.raises(ExportError, match="Cannot freeze SavedModel"):
        kw.export_with_warmup(model, tmp_path / "1", data=inputs["x"], warmup=options)
    assert list(tmp_path.iterdir()) == []


def test_a_callback_freezes_its_export(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    callback = kw.WarmupExport(tmp_path / "{version}", warmup={"freeze": True}, verbose=0)
    model.fit(ROWS, np.ones((3, 2), "float32"), verbose=0, callbacks=[callback])
    assert variables_of(tmp_path / "1") == set()
    assert callback.reports[-1].proofs["serving_default"] == "proved"


def test_add_warmup_refuses_to_freeze(tmp_path: pathlib.Path) -> None:
    source = export(functional()[0], tmp_path)
    with pytest.raises(OptionsError, match="run keras-warmup freeze first"):
        kw.add_warmup(source, ROWS, warmup={"freeze": True})


def test_freeze_keeps_the_warmup_file_and_replaces_the_model(tmp_path: pathlib.Path) -> None:
    model, inputs = functional()
    path = tmp_path / "1"
    kw.export_with_warmup(model, path, data=inputs["x"])
    records = pathlib.Path(warmup_path(str(path))).read_bytes()
    (before,) = replay(path, predict_log(**inputs))
    report = kw.freeze(path)
    assert report.export_dir == str(path)
    assert report.frozen is not None and report.frozen.constants == len(model.variables)
    assert report.num_records == 1
    assert set(report.comparisons) == {"serving_default", "serve"}
    assert not any("not compared" in how for how in report.comparisons.values())
    assert report.bytes_after < report.bytes_before
    assert LOST in report.notes
    assert pathlib.Path(warmup_path(str(path))).read_bytes() == records
    assert same_outputs(before, replay(path, predict_log(**inputs))[0])
    assert kw.verify(path).ok


def test_freeze_publishes_beside_the_model(tmp_path: pathlib.Path) -> None:
    model, inputs = half()
    source = export(model, tmp_path)
    before = pathlib.Path(source, "saved_model.pb").read_bytes()
    report = kw.freeze(source, tmp_path / "frozen" / "{version}")
    assert report.export_dir == str(tmp_path / "frozen" / "1")
    assert pathlib.Path(source, "saved_model.pb").read_bytes() == before
    require_frozen_pair = (
        replay(source, predict_log(**inputs)),
        replay(report.export_dir, predict_log(**inputs)),
    )
    assert all(
        np.allclose(one[name], other[name], rtol=5e-2, atol=5e-2)
        for one, other in zip(*require_frozen_pair, strict=True)
        for name in one
    )


def test_freeze_that_fails_leaves_the_model(tmp_path: pathlib.Path) -> None:
    source = export(functional()[0], tmp_path)
    before = pathlib.Path(source, "saved_model.pb").read_bytes()
    with pytest.raises(ExportError, match="can become a constant"):
        kw.freeze(source, max_bytes=1)
    assert pathlib.Path(source, "saved_model.pb").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]


def test_freeze_checks_its_limit(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionsError, match="max_bytes must be 1 to 2147483647"):
        kw.freeze(tmp_path, max_bytes=2**31)


def test_a_frozen_model_is_frozen_again_without_a_change_of_outputs(
    tmp_path: pathlib.Path,
) -> None:
    module = Counter()
    source = str(tmp_path / "1")
    tf.saved_model.save(module, source, {"count": module.count, "serving_default": module.apply})
    kw.freeze(source)
    with pytest.raises(ExportError, match="none of its 1 variables"):
        kw.freeze(source)
    log = predict_log("count", x=ROWS)
    np.testing.assert_allclose(
        replay(source, log)[0]["y"], ROWS @ np.ones((4, 2)) + 42.0, rtol=1e-6
    )
