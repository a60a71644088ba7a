"""Protos, and the few TensorFlow internals, that have no public name.

The only room that imports `tensorflow_serving`, `tensorflow.core` or `tensorflow.python`: when one of them moves, this
is where it is mended. mypy sees every name here as `Any`; they are classes at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto
from tensorflow.core.protobuf.config_pb2 import CallableOptions
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef
from tensorflow.core.protobuf.meta_graph_pb2 import (
    AssetFileDef,
    MetaGraphDef,
    SignatureDef,
    TensorInfo,
)
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.core.protobuf.saved_object_graph_pb2 import SavedObjectGraph
from tensorflow.core.protobuf.struct_pb2 import StructuredValue

# The op registry of the running TensorFlow: `tf.raw_ops` leaves out what cannot be called from Python.
from tensorflow.python.framework import op_def_registry as _op_def_registry

# tf.compat.v1.io.tf_record_iterator is the same behind a deprecation warning; a tf.data iterator takes 0.1 s to end.
from tensorflow.python.lib.io._pywrap_record_io import RecordIterator as _RecordIterator

# tf.saved_model.experimental only reads fingerprints; this is what tf.saved_model.save itself makes them with.
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting as _fingerprinting
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.inference_pb2 import InferenceTask, MultiInferenceRequest
from tensorflow_serving.apis.input_pb2 import ExampleList, ExampleListWithContext, Input
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import (
    ClassifyLog,
    MultiInferenceLog,
    PredictionLog,
    PredictLog,
    RegressLog,
)
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

__all__ = [
    "AssetFileDef",
    "CallableOptions",
    "ClassificationRequest",
    "ClassifyLog",
    "ExampleList",
    "ExampleListWithContext",
    "FingerprintDef",
    "FunctionDef",
    "GraphDef",
    "InferenceTask",
    "Input",
    "MetaGraphDef",
    "ModelSpec",
    "MultiInferenceLog",
    "MultiInferenceRequest",
    "NodeDef",
    "PredictLog",
    "PredictRequest",
    "PredictionLog",
    "RegressLog",
    "RegressionRequest",
    "SavedModel",
    "SavedObjectGraph",
    "SignatureDef",
    "StructuredValue",
    "TensorInfo",
    "TensorProto",
    "TensorShapeProto",
    "checked_records",
    "registered_op",
    "serialized_fingerprint",
]


def registered_op(name: str) -> Any | None:
    """The `OpDef` that the running TensorFlow has for an op, or `None` for an op of another library."""
    return _op_def_registry.get(name)


def checked_records(path: str) -> Iterator[bytes]:
    """Data of the records of a plain TFRecord file, by the reader a server has.

    Raises:
        tf.errors.OpError: there is no such file, or a checksum does not fit.
    """
    records: Iterator[bytes] = _RecordIterator(path, "")  # "": no compression
    return records


def serialized_fingerprint(export_dir: str) -> bytes:
    """Returns what `fingerprint.pb` holds for the `saved_model.pb` and the variables of a SavedModel directory.

    Raises:
        ValueError: there is no SavedModel, or it cannot be parsed.
    """
    try:
        return bytes(_fingerprinting.CreateFingerprintDef(export_dir))
    except _fingerprinting.FingerprintException as error:
        raise ValueError(str(error)) from None
