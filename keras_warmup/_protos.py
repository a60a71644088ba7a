"""Protos, and a few internals of TensorFlow, that have no public name.

Only this module imports `tensorflow_serving`, `tensorflow.core` and `tensorflow.python`, so that a
name that moves in TensorFlow is corrected in one place; `bench/client.py` alone imports the gRPC
stubs, which nothing else needs. mypy sees every proto as `Any`; at run time they are classes.
"""

# `import X as X` re-exports a name (PEP 484); a second list in `__all__` is not needed.
# ruff: noqa: PLC0414

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError, EncodeError
from tensorflow.core.framework.function_pb2 import FunctionDef as FunctionDef
from tensorflow.core.framework.graph_pb2 import GraphDef as GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef as NodeDef
from tensorflow.core.framework.tensor_pb2 import TensorProto as TensorProto
from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto as TensorShapeProto
from tensorflow.core.framework.variable_pb2 import VariableDef as VariableDef
from tensorflow.core.protobuf.config_pb2 import CallableOptions as CallableOptions
from tensorflow.core.protobuf.config_pb2 import ConfigProto as ConfigProto
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef as FingerprintDef
from tensorflow.core.protobuf.meta_graph_pb2 import AssetFileDef as AssetFileDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef as MetaGraphDef
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef as SignatureDef
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo as TensorInfo
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel as SavedModel
from tensorflow.core.protobuf.struct_pb2 import StructuredValue as StructuredValue
from tensorflow.core.protobuf.trackable_object_graph_pb2 import (
    TrackableObjectGraph as TrackableObjectGraph,
)

# The op registry of the running TensorFlow: `tf.raw_ops` lacks ops that Python cannot call.
from tensorflow.python.framework import op_def_registry as _op_def_registry

# A Session optimizes graphs with this, but does not return them.
from tensorflow.python.grappler import tf_optimizer as _tf_optimizer

# `tf.compat.v1.io.tf_record_iterator` is the same reader behind a deprecation warning. A tf.data
# iterator takes 0.1 s to shut down.
from tensorflow.python.lib.io._pywrap_record_io import RecordIterator as _RecordIterator

# A function that is traced in the context of a save is not traced again by the save.
from tensorflow.python.saved_model import save_context as _save_context

# `tf.saved_model.experimental` only reads fingerprints; `tf.saved_model.save` makes them with this.
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting as _fingerprinting
from tensorflow_serving.apis.classification_pb2 import (
    ClassificationRequest as ClassificationRequest,
)
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest as MultiInferenceRequest
from tensorflow_serving.apis.input_pb2 import (
    ExampleListWithContext as ExampleListWithContext,
)
from tensorflow_serving.apis.input_pb2 import Input as Input
from tensorflow_serving.apis.model_pb2 import ModelSpec as ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest as PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog as PredictionLog
from tensorflow_serving.apis.prediction_log_pb2 import PredictLog as PredictLog
from tensorflow_serving.apis.regression_pb2 import RegressionRequest as RegressionRequest


def registered_op(name: str) -> Any | None:
    """Returns the `OpDef` of an op of the running TensorFlow; `None` for one of another library."""
    return _op_def_registry.get(name)


def checked_records(path: str) -> Iterator[bytes]:
    """Reads the records of an uncompressed TFRecord file with the reader that servers use.

    Raises:
        tf.errors.OpError: the file does not exist, or a checksum is wrong.
    """
    records: Iterator[bytes] = _RecordIterator(path, "")  # "": no compression
    return records


def save_context(options: Any) -> AbstractContextManager[None]:
    """Returns the context in which `tf.saved_model.save` traces functions.

    Args:
        options: the `tf.saved_model.SaveOptions` of the save.
    """
    context: AbstractContextManager[None] = _save_context.save_context(options)
    return context


def optimized_graph_def(meta_graph: MetaGraphDef, passes: Sequence[str]) -> GraphDef | None:
    """Runs passes of Grappler once each, as a Session does before it runs a graph.

    Args:
        meta_graph: a graph; the collection `train_op` names the nodes that stay. `Placeholder`s are
            what is fed.
        passes: names of `RewriterConfig.optimizers`.

    Returns:
        The optimized graph; `None` where TensorFlow cannot optimize it.
    """
    config = ConfigProto()
    rewriting = config.graph_options.rewrite_options
    rewriting.optimizers.extend(passes)
    rewriting.meta_optimizer_iterations = rewriting.ONE
    rewriting.min_graph_nodes = -1  # however small it is
    try:
        with tf.Graph().as_default():
            # Grappler ends the process where an input of a node does not exist.
            tf.graph_util.import_graph_def(meta_graph.graph_def, name="")
        return _tf_optimizer.OptimizeGraph(config, meta_graph, verbose=False)
    except (tf.errors.OpError, DecodeError, EncodeError, RuntimeError, ValueError):
        return None


def serialized_fingerprint(export_dir: str) -> bytes:
    """Computes the content of `fingerprint.pb` for a SavedModel directory.

    Raises:
        ValueError: there is no SavedModel, or it cannot be parsed.
    """
    try:
        return bytes(_fingerprinting.CreateFingerprintDef(export_dir))
    except _fingerprinting.FingerprintException as error:
        raise ValueError(str(error)) from None
