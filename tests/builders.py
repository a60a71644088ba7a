"""Builders of models, SavedModels and rows that more than one test module uses."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from keras_warmup._protos import ModelSpec, PredictionLog, TensorProto
from keras_warmup.records.warmup_file import warmup_path, write_records


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
