"""Builders of models, SavedModels and rows that more than one test module uses."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, ModelSpec, PredictionLog, TensorProto
from keras_warmup.bench.report import BenchmarkEntry, BenchmarkReport, ReadyEntry
from keras_warmup.binding.bind import BoundBatch
from keras_warmup.data.batch import Batch
from keras_warmup.data.sampling import BatchSample, shape_of
from keras_warmup.options import WarmupOptions
from keras_warmup.planning.batching_parameters import BatchingParameters
from keras_warmup.planning.bound_signature import BoundSignature
from keras_warmup.planning.plan import Plan, plan_requests
from keras_warmup.records.warmup_file import warmup_path, write_records
from keras_warmup.savedmodel.graph import GraphFacts
from keras_warmup.savedmodel.signatures import Signature, SignatureTensor, read_signatures
from keras_warmup.training.capture import BatchTap


def predict_log(
    signature_key: str = "", /, *, output_filter: Iterable[str] = (), **inputs: Any
) -> PredictionLog:
    """Builds the log of a Predict request; inputs are arrays or `TensorProto`s."""
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = signature_key
    request.output_filter.extend(output_filter)
    for name, value in inputs.items():
        proto = value if isinstance(value, TensorProto) else tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(proto)
    return log


def task_log(kind: str, signature_key: str, *examples: tf.train.Example) -> PredictionLog:
    """Builds the log of a `classify` or a `regress` request."""
    log = PredictionLog()
    request = log.classify_log.request if kind == "classify" else log.regress_log.request
    request.model_spec.signature_name = signature_key
    request.input.example_list.examples.extend(examples)
    return log


def multi_inference_log(
    *tasks: tuple[str, str], examples: Iterable[tf.train.Example] = (), model_name: str = "m"
) -> PredictionLog:
    """Builds the log of a MultiInference request; a task is a signature key and a method name."""
    log = PredictionLog()
    request = log.multi_inference_log.request
    for key, method_name in tasks:
        spec = ModelSpec(name=model_name, signature_name=key)
        request.tasks.add(model_spec=spec, method_name=method_name)
    request.input.example_list.examples.extend(examples)
    return log


def write_warmup_file(export_dir: str | os.PathLike[str], *logs: PredictionLog) -> str:
    """Writes a warmup file without regard to a server's limits; returns the export directory."""
    write_records(warmup_path(export_dir), logs, max_records=10_000, max_bytes=2**20)
    return os.fspath(export_dir)


def bound_signature(
    key: str = "serving_default",
    *,
    rows: int = 8,
    shapes: tuple[tuple[int, ...], ...] = ((4,),),
    feed: str = "x:0",
    fetches: tuple[str, ...] = ("y",),
    fixed_batch_size: int | None = None,
    **facts: bool,
) -> BoundSignature:
    """Builds a signature with one batch of `rows` rows for each shape, without any graph.

    Args:
        key: its key.
        rows: number of rows of each batch; every row has values of its own.
        shapes: shape of the rows of each batch.
        feed: name of its input tensor. Signatures of one `feed`, except the default, have the same
            output tensors too.
        fetches: its output aliases.
        fixed_batch_size: the size of dimension 0 that it fixes.
        **facts: the `GraphFacts` that hold for it.
    """
    dims = (fixed_batch_size, *(None for _ in shapes[0]))
    inputs = {"x": SignatureTensor("x", feed, "float32", dims)}
    outputs = {
        alias: SignatureTensor(alias, f"{key if feed == 'x:0' else feed}/{alias}", "float32", None)
        for alias in fetches
    }
    signature = Signature(key, "tensorflow/serving/predict", inputs, outputs, frozenset())
    batches = []
    for index, shape in enumerate(shapes):
        values = np.arange(rows * int(np.prod(shape)), dtype="float32") + 1000 * index
        array = values.reshape(rows, *shape)
        batches.append(BoundBatch({"x": array}, array, rows, frozenset({"x"}), "data"))
    return BoundSignature(signature, graph_facts_with(**facts), batches)


def bound_scalar() -> BoundSignature:
    """Builds a signature whose input has no batch dimension."""
    batch = BoundBatch({"x": np.float32(3)[...]}, None, 1, frozenset(), "data")
    signature = bound_signature()
    return BoundSignature(signature.signature, signature.facts, [batch])


def graph_facts_with(**facts: bool) -> GraphFacts:
    """Builds the facts about a plain graph, changed by `facts`."""
    plain: dict[str, Any] = {
        "compiles": False,
        "convolves": False,
        "unrestored_variables": (),
        "foreign_ops": (),
        "writes_state": False,
        "random": False,
    }
    return GraphFacts(**{**plain, **facts})


def plan_with(
    *signatures: BoundSignature,
    taken: int = 0,
    batching: BatchingParameters | None = None,
    shapes_seen: int = 0,
    training_batch_size: int = 0,
    **options: Any,
) -> Plan:
    """Plans the requests of signatures with `WarmupOptions(**options)`."""
    return plan_requests(
        signatures,
        WarmupOptions(**options),
        taken=taken,
        batching=batching,
        shapes_seen=shapes_seen,
        training_batch_size=training_batch_size,
    )


def planned_sizes(plan: Plan) -> list[tuple[str, int | None]]:
    """Returns signature_key and batch size of each request of a plan."""
    return [(request.signature_key, request.batch_size) for request in plan.requests]


_GENERATOR = np.random.default_rng(7)


def random_rows(*shape: int, rows: int = 12, dtype: str = "float32") -> np.ndarray:
    """Builds `rows` rows of a shape; each call gives other values from 0 to 1."""
    return _GENERATOR.random((rows, *shape)).astype(dtype)


def input_of_four(name: str) -> Any:
    """Builds an Input of shape `[None, 4]`, float32."""
    return keras.Input((4,), name=name)


def functional_model(structure: Any) -> Any:
    """Builds a model of any structure of such Inputs; a swap of two Inputs changes its output."""
    inputs = keras.tree.flatten(structure)
    weighted = [tensor * (index + 1) for index, tensor in enumerate(inputs)]
    x = keras.layers.Concatenate()(weighted) if len(inputs) > 1 else inputs[0]
    return keras.Model(structure, keras.layers.Dense(3)(x))


def image_model() -> Any:
    """Builds a model of Input `image` `[None, 8, 8, 1]` with the outputs `a` and `b`."""
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Flatten()(keras.layers.Conv2D(3, 3)(image))
    return keras.Model(image, {"a": keras.layers.Dense(2)(x), "b": keras.layers.Dense(1)(x)})


def predict_inputs(log: PredictionLog) -> dict[str, np.ndarray]:
    """Returns input name -> array of a Predict request."""
    return {key: tf.make_ndarray(proto) for key, proto in log.predict_log.request.inputs.items()}


def float_parser(*features: str) -> dict[str, Any]:
    """Builds a feature spec of tf.Examples that hold one float for each feature."""
    return {key: tf.io.FixedLenFeature([1], tf.float32) for key in features}


def signature_of(meta_graph: MetaGraphDef, key: str = "serving_default") -> Signature:
    """Reads one signature of a meta graph."""
    return {signature.key: signature for signature in read_signatures(meta_graph)}[key]


def signature_over(
    outputs: Mapping[str, str], inputs: Mapping[str, str] | None = None, *, dtype: str = "float32"
) -> Signature:
    """Builds a signature from input names and output aliases with their tensors, of one dtype."""
    input_specs, output_specs = (
        {name: SignatureTensor(name, tensor, dtype, None) for name, tensor in tensors.items()}
        for tensors in (inputs or {}, outputs)
    )
    return Signature("s", "tensorflow/serving/predict", input_specs, output_specs, frozenset())


def save_function(
    function: Callable[..., Any],
    export_dir: str | os.PathLike[str],
    specs: Iterable[Any],
    **tracked: Any,
) -> str:
    """Saves a function as `serving_default`; returns the export directory.

    Args:
        function: the function.
        export_dir: where to save.
        specs: its input signature.
        **tracked: objects that it uses.
    """
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    module.serve = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, os.fspath(export_dir), {"serving_default": module.serve})
    return os.fspath(export_dir)


def make_signature(
    inputs: Mapping[str, tuple[str, tuple[int | None, ...] | None]],
    *,
    structure: Any = None,
    defaults: Iterable[str] = (),
    key: str = "serving_default",
) -> Signature:
    """Builds a Predict signature from input name -> (dtype, shape), with one float output."""
    tensors = {
        name: SignatureTensor(name, f"{name}:0", dtype, shape)
        for name, (dtype, shape) in inputs.items()
    }
    outputs = {"output_0": SignatureTensor("output_0", "out:0", "float32", (None, 1))}
    return Signature(
        key, "tensorflow/serving/predict", tensors, outputs, frozenset(defaults), structure
    )


def filled_rows(
    value: float, *shape: int, dtype: str = "float32", size: int = 3
) -> np.ndarray[Any, Any]:
    """Builds `size` rows of this shape that hold one value."""
    return np.full((size, *shape), value, dtype)


def tap_with(*batches: Batch) -> BatchTap:
    """Builds a tap whose sample holds these batches, as after a `fit`."""
    tap = BatchTap(len(batches), max(batch.size for batch in batches), 0, 2**20)
    tap.sample = BatchSample(len(batches), 0)
    for batch in batches:
        tap.sample.add(batch, shape_of(batch.x))
    return tap


def benchmark_entry(**changes: Any) -> BenchmarkEntry:
    """Builds the figures of one request, changed by `changes`."""
    base = BenchmarkEntry(
        signature_key="serving_default",
        kind="predict",
        output_filter=(),
        batch_size=2,
        shapes={"x": (2, 3)},
        in_file=True,
        rows="data",
        cold_ms=120.0,
        cold_range_ms=(100.0, 140.0),
        warm_ms=1.5,
        warm_range_ms=(1.2, 2.0),
        steady_p50_ms=0.8,
        steady_p99_ms=1.4,
        ratio=80.0,
        faster=True,
    )
    return dataclasses.replace(base, **changes)


def ready_entry(**changes: Any) -> ReadyEntry:
    """Builds the time to ready of an export with a warmup file, changed by `changes`."""
    base = ReadyEntry(
        export_dir="./digits/1",
        warmed=True,
        disk_bytes=4 * 2**20,
        load_ms=300.0,
        warmup_ms=150.0,
        ready_ms=450.0,
        ready_range_ms=(430.0, 480.0),
        memory_bytes=80 * 2**20,
        peak_bytes=600 * 2**20,
        steady_p50_ms=0.8,
    )
    return dataclasses.replace(base, **changes)


def benchmark_report(*entries: BenchmarkEntry, **changes: Any) -> BenchmarkReport:
    """Builds a report of these requests, changed by `changes`."""
    base = BenchmarkReport(
        export_dir="./digits/1",
        entries=entries,
        load_ms=300.0,
        load_range_ms=(290.0, 320.0),
        load_added_ms=150.0,
        load_added_range_ms=(140.0, 170.0),
        records=1,
        bytes=400,
        processes=5,
        requests=20,
        seed=0,
        engine="process",
        noise="Noise: little.",
        notes=(),
    )
    return dataclasses.replace(base, **changes)
