"""Loads a SavedModel with the C++ loader that TensorFlow Serving has, and runs records in it.

The wheels of TensorFlow export the C API (`tensorflow/c/c_api.h`), but have no Python name for its
`TF_LoadSessionFromSavedModel`, so `ctypes` calls it. Loading is then `cc/saved_model/loader.cc`,
and a request is one `Session::Run`, with no Python in either. What a server does not do: the C API
also imports the graph into a `TF_Graph`, where it looks up tensors by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import time
from collections.abc import Iterable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, PredictionLog, TensorProto
from keras_warmup.op_errors import cure_of, describe_op_error, status_of
from keras_warmup.serving.replay import Replayed
from keras_warmup.serving.requests import TensorRun, read_run, refused_load
from keras_warmup.serving.rules import Outputs, ServerStatusError
from keras_warmup.serving.session import load_error
from keras_warmup.serving.tensorflow_log import no_status_log

# On Linux and on macOS.
_LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_cc.2.dylib")
_STRING_BYTES = 24  # sizeof(TF_TString)


class _Buffer(ctypes.Structure):
    """A `TF_Buffer`: bytes that Python owns."""

    _fields_ = (("data", c_char_p), ("length", c_size_t), ("deallocator", c_void_p))


class _Output(ctypes.Structure):
    """A `TF_Output`: a tensor of the graph."""

    _fields_ = (("operation", c_void_p), ("index", c_int))


# Function -> type of its result, then those of its arguments.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "TF_NewStatus": (c_void_p,),
    "TF_GetCode": (c_int, c_void_p),
    "TF_Message": (c_char_p, c_void_p),
    "TF_DeleteStatus": (None, c_void_p),
    "TF_NewGraph": (c_void_p,),
    "TF_DeleteGraph": (None, c_void_p),
    "TF_GraphOperationByName": (c_void_p, c_void_p, c_char_p),
    "TF_OperationNumOutputs": (c_int, c_void_p),
    "TF_NewSessionOptions": (c_void_p,),
    "TF_SetConfig": (None, c_void_p, c_char_p, c_size_t, c_void_p),
    "TF_DeleteSessionOptions": (None, c_void_p),
    "TF_LoadSessionFromSavedModel": (
        *(c_void_p, c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int),
        *(c_void_p, c_void_p, c_void_p),
    ),
    "TF_SessionRun": (
        *(None, c_void_p, c_void_p, POINTER(_Output), POINTER(c_void_p), c_int),
        *(POINTER(_Output), POINTER(c_void_p), c_int, c_void_p, c_int, c_void_p, c_void_p),
    ),
    "TF_DeleteSession": (None, c_void_p, c_void_p),
    "TF_AllocateTensor": (c_void_p, c_int, POINTER(c_int64), c_int, c_size_t),
    "TF_TensorFromProto": (None, POINTER(_Buffer), c_void_p, c_void_p),
    "TF_TensorType": (c_int, c_void_p),
    "TF_NumDims": (c_int, c_void_p),
    "TF_Dim": (c_int64, c_void_p, c_int),
    "TF_TensorByteSize": (c_size_t, c_void_p),
    "TF_TensorElementCount": (c_int64, c_void_p),
    "TF_TensorData": (c_void_p, c_void_p),
    "TF_StringGetDataPointer": (c_void_p, c_void_p),
    "TF_StringGetSize": (c_size_t, c_void_p),
    "TF_DeleteTensor": (None, c_void_p),
}


@functools.cache
def c_api() -> Any:
    """Returns the C API of the imported TensorFlow; `None` where its wheel does not export it."""
    for name in _LIBRARIES:
        try:
            # The library that `import tensorflow` has loaded, not another copy.
            library = ctypes.CDLL(os.path.join(tf.sysconfig.get_lib(), name))
            for function_name, (result, *arguments) in _FUNCTIONS.items():
                function = getattr(library, function_name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError):
            continue
        return library
    return None


class NativeSession(contextlib.AbstractContextManager["NativeSession"]):
    """A SavedModel that TensorFlow's C++ loader has loaded, on the CPU: a context manager.

    Args:
        export_dir: the SavedModel.
        meta_graph: its `MetaGraphDef`; only the signatures are read.

    Attributes:
        load_ms: time to load the model, milliseconds.

    Raises:
        ReplayError: the model does not load.
    """

    def __init__(self, export_dir: str, meta_graph: MetaGraphDef) -> None:
        self._api = api = c_api()
        self._signatures = meta_graph.signature_def
        self._status = api.TF_NewStatus()
        self._graph = api.TF_NewGraph()
        config = tf.compat.v1.ConfigProto(device_count={"GPU": 0}, allow_soft_placement=True)
        packed = config.SerializeToString()
        options = api.TF_NewSessionOptions()
        api.TF_SetConfig(options, packed, len(packed), self._status)
        tags = (c_char_p * 1)(b"serve")
        path = os.fsencode(export_dir)
        with no_status_log():
            started = time.perf_counter()
            self._session = api.TF_LoadSessionFromSavedModel(
                options, None, path, tags, len(tags), self._graph, None, self._status
            )
            self.load_ms = (time.perf_counter() - started) * 1000
        api.TF_DeleteSessionOptions(options)
        error = self._error()
        if error is not None:
            # The message may be that of the init op, which quotes vocabularies.
            text = describe_op_error(error).removesuffix(" ...")
            raise load_error(f"Cannot load SavedModel {export_dir!r}", error, text)

    def __exit__(self, *_: object) -> None:
        """Frees the model; nothing can be replayed afterwards."""
        self._api.TF_DeleteSession(self._session, self._status)
        self._api.TF_DeleteGraph(self._graph)
        self._api.TF_DeleteStatus(self._status)

    def replay(self, log: PredictionLog) -> Replayed:
        """Runs one record, as `ServingSession.replay` does.

        Raises:
            ReplayError: the server would refuse to load the model with this record.
        """
        started = time.perf_counter()
        try:
            with no_status_log():
                run = read_run(self._signatures, log, lambda name, proto: (name, proto))
                outputs = self._run(run) if run is not None else {}
        except ServerStatusError as error:
            refusal = error
        else:
            ms = (time.perf_counter() - started) * 1000 if run is not None else 0.0
            return Replayed(ms, outputs)
        raise refused_load(log, refusal)

    def _run(self, run: TensorRun) -> Outputs:
        names = sorted(set(run.fetches.values()))
        feeds, fetches = self._outputs(name for name, _ in run.feeds), self._outputs(names)
        fed, fetched = (c_void_p * len(feeds))(), (c_void_p * len(fetches))()
        try:
            for index, (_, value) in enumerate(run.feeds):
                fed[index] = self._tensor(value)
            self._api.TF_SessionRun(
                *(self._session, None, feeds, fed, len(feeds), fetches, fetched, len(fetches)),
                *(None, 0, None, self._status),
            )
            error = self._error()
            if error is not None:
                text = describe_op_error(error) + cure_of(error)
                raise ServerStatusError(status_of(error), text)
            arrays = dict(zip(names, map(self._array, fetched), strict=True))
        finally:
            for tensor in (*fed, *fetched):
                if tensor:
                    self._api.TF_DeleteTensor(tensor)
        outputs = {alias: arrays[name] for alias, name in run.fetches.items()}
        run.check(outputs)
        return outputs

    def _outputs(self, names: Iterable[str]) -> Any:
        """Returns tensors of the graph, by names such as `call:0`, as an array of `TF_Output`."""
        outputs = []
        for name in names:
            operation_name, _, index = name.partition(":")
            operation = self._api.TF_GraphOperationByName(self._graph, operation_name.encode())
            if not operation or int(index) >= self._api.TF_OperationNumOutputs(operation):
                raise ServerStatusError("NOT_FOUND", f"Tensor {name} is not in the graph")
            outputs.append(_Output(operation, int(index)))
        return (_Output * len(outputs))(*outputs)

    def _tensor(self, value: tuple[str, TensorProto] | np.ndarray) -> int:
        """Returns a new `TF_Tensor` of an input's name and its proto, or of serialized Examples."""
        if isinstance(value, np.ndarray):
            proto = TensorProto(dtype=tf.string.as_datatype_enum, string_val=list(value))
            proto.tensor_shape.dim.add(size=len(value))
            name = "inputs"
        else:
            name, proto = value
        data = proto.SerializeToString()
        tensor: int = self._api.TF_AllocateTensor(tf.uint8.as_datatype_enum, None, 0, 1)
        buffer = _Buffer(data, len(data), None)
        self._api.TF_TensorFromProto(ctypes.byref(buffer), tensor, self._status)
        if self._error() is not None:
            self._api.TF_DeleteTensor(tensor)
            raise ServerStatusError("INVALID_ARGUMENT", f"tensor parsing error: {name}")
        return tensor

    def _array(self, tensor: int) -> np.ndarray:
        """Copies a `TF_Tensor`; strings as an object array of `bytes`."""
        api = self._api
        shape = [api.TF_Dim(tensor, axis) for axis in range(api.TF_NumDims(tensor))]
        dtype = tf.dtypes.as_dtype(api.TF_TensorType(tensor))
        data = api.TF_TensorData(tensor)
        if dtype != tf.string:
            content = ctypes.string_at(data, api.TF_TensorByteSize(tensor))
            return np.frombuffer(content, dtype.as_numpy_dtype).reshape(shape)
        strings = np.empty(api.TF_TensorElementCount(tensor), object)
        for index in range(len(strings)):
            string = data + index * _STRING_BYTES
            strings[index] = ctypes.string_at(
                api.TF_StringGetDataPointer(string), api.TF_StringGetSize(string)
            )
        return strings.reshape(shape)

    def _error(self) -> tf.errors.OpError | None:
        """Returns the error that the last call reported; `None` where it succeeded."""
        code = self._api.TF_GetCode(self._status)
        if code == 0:
            return None
        message = self._api.TF_Message(self._status).decode(errors="replace")
        error_type = tf.compat.v1.errors.exception_type_from_error_code(code)
        error: tf.errors.OpError = error_type(None, None, message)
        return error
