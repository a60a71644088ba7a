"""Builders of models, SavedModels and rows that more than one test module uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, ModelSpec, PredictionLog, TensorProto
from keras_warmup.records.warmup_file import warmup_path, write_records
from keras_warmup.savedmodel.signatures import Signature, SignatureTensor, read_signatures


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
    """Saves a function as `serving_default`, beside objects it uses; returns the export directory."""
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    module.serve = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, os.fspath(export_dir), {"serving_default": module.serve})
    return os.fspath(export_dir)
