"""Loads a SavedModel into a C++ Session of TensorFlow, as a server does, and runs records in it.

The wheels of TensorFlow export its C API (`tensorflow/c/c_api.h`), which `ctypes` calls: the graph,
the restore op and the init op go through it in the order of `cc/saved_model/loader.cc`, and a
request is one `Session::Run`. No Python runs in between, and the graph stays out of Python.

`TF_LoadSessionFromSavedModel` would do the load in one call, but then imports the graph a second
time, into a `TF_Graph`, and infers its shapes. Servers do neither, and it distorts what is measured
here: the 48-layer transformer of `benchmarks/zoo.py`, frozen, takes 1 s to load and 14 s with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import time
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_warmup._protos import MetaGraphDef, PredictionLog, TensorProto
from keras_warmup.errors import SignatureError
from keras_warmup.op_errors import cure_of, describe_op_error, status_of, text_of
from keras_warmup.serving.replay import Replayed
from keras_warmup.serving.requests import TensorRun, read_run, refused_load
from keras_warmup.serving.rules import Outputs, ServerStatusError
from keras_warmup.serving.session import INIT, load_error, load_steps
from keras_warmup.serving.tensorflow_log import no_status_log

# On Linux and on macOS.
_LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_cc.2.dylib")
_STRING, _STRING_BYTES = tf.string.as_datatype_enum, 24  # sizeof(TF_TString)
# Of the wire format of protobuf, and of saved_model.proto and meta_graph.proto.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_META_GRAPHS, _META_INFO, _GRAPH_DEF = 2, 1, 2


class _Buffer(ctypes.Structure):
    """A `TF_Buffer`: bytes that Python owns."""

    _fields_ = (("data", c_char_p), ("length", c_size_t), ("deallocator", c_void_p))


# Function -> type of its result, then those of its arguments.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "TF_NewStatus": (c_void_p,),
    "TF_GetCode": (c_int, c_void_p),
    "TF_Message": (c_char_p, c_void_p),
    "TF_DeleteStatus": (None, c_void_p),
    "TF_NewSessionOptions": (c_void_p,),
    "TF_SetConfig": (None, c_void_p, c_char_p, c_size_t, c_void_p),
    "TF_DeleteSessionOptions": (None, c_void_p),
    # Deprecated: these take names of tensors, those in use tensors of a `TF_Graph`.
    "TF_NewDeprecatedSession": (c_void_p, c_void_p, c_void_p),
    "TF_ExtendGraph": (None, c_void_p, c_void_p, c_size_t, c_void_p),
    "TF_Run": (
        *(None, c_void_p, c_void_p, POINTER(c_char_p), POINTER(c_void_p), c_int),
        *(POINTER(c_char_p), POINTER(c_void_p), c_int, POINTER(c_char_p), c_int),
        *(c_void_p, c_void_p),
    ),
    "TF_DeleteDeprecatedSession": (None, c_void_p, c_void_p),
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
    """A SavedModel in a C++ Session on the CPU: a context manager.

    Args:
        export_dir: the SavedModel, with a `saved_model.pb`.
        meta_graph: its `MetaGraphDef`, for the signatures and what the load runs; its graph is not
            read.

    Attributes:
        load_ms: time to read the graph, restore the variables and run the init op, milliseconds.

    Raises:
        SignatureError: there is no `saved_model.pb`, or it is damaged.
        ReplayError: the model does not load.
    """

    def __init__(self, export_dir: str, meta_graph: MetaGraphDef) -> None:
        self._api = api = c_api()
        self._signatures = meta_graph.signature_def
        self._status = api.TF_NewStatus()
        config = tf.compat.v1.ConfigProto(device_count={"GPU": 0}, allow_soft_placement=True)
        packed = config.SerializeToString()
        options = api.TF_NewSessionOptions()
        api.TF_SetConfig(options, packed, len(packed), self._status)
        self._session = api.TF_NewDeprecatedSession(options, self._status)
        api.TF_DeleteSessionOptions(options)
        running = "import the graph"
        started = time.perf_counter()
        with no_status_log():
            self._import(export_dir)
            error = self._error()
            for step in load_steps(export_dir, meta_graph) if error is None else ():
                running = step.name
                feeds = [(name, self._path(path)) for name, path in step.feeds.items()]
                error, _ = self._run(feeds, (), (step.operation,))
                if error is not None:
                    break
        self.load_ms = (time.perf_counter() - started) * 1000
        if error is not None:
            # The message of the init op quotes vocabularies.
            text = describe_op_error(error).removesuffix(" ...") if running == INIT else ""
            what = f"Cannot {running} of SavedModel {export_dir!r}"
            raise load_error(what, error, text or text_of(error))

    def __exit__(self, *_: object) -> None:
        """Frees the model; nothing can be replayed afterwards."""
        self._api.TF_DeleteDeprecatedSession(self._session, self._status)
        self._api.TF_DeleteStatus(self._status)

    def replay(self, log: PredictionLog) -> Replayed:
        """Runs one record, as `ServingSession.replay` does.

        Raises:
            ReplayError: the server would refuse to load the model with this record.
        """
        started = time.perf_counter()
        try:
            with no_status_log():
                run = read_run(self._signatures, log, self._tensor)
                outputs = self._outputs(run) if run is not None else {}
        except ServerStatusError as error:
            refusal = error
        else:
            ms = (time.perf_counter() - started) * 1000 if run is not None else 0.0
            return Replayed(ms, outputs)
        raise refused_load(log, refusal)

    def _import(self, export_dir: str) -> None:
        try:
            with tf.io.gfile.GFile(os.path.join(export_dir, "saved_model.pb"), "rb") as file:
                content = file.read()
            start, end = find_graph(content)
        except (tf.errors.OpError, IndexError, DecodeError):
            raise SignatureError(
                f"Cannot read the graph of SavedModel {export_dir!r}: saved_model.pb is not there, "
                "is damaged, or has no meta graph with tags ['serve']. Export the model again."
            ) from None
        address = ctypes.cast(content, c_void_p).value or 0
        self._api.TF_ExtendGraph(self._session, address + start, end - start, self._status)

    def _outputs(self, run: TensorRun) -> Outputs:
        """Runs a request; returns its outputs by alias."""
        fetches = sorted(set(run.fetches.values()))
        error, arrays = self._run(run.feeds, fetches)
        if error is not None:
            raise ServerStatusError(status_of(error), describe_op_error(error) + cure_of(error))
        by_name = dict(zip(fetches, arrays, strict=True))
        outputs = {alias: by_name[name] for alias, name in run.fetches.items()}
        run.check(outputs)
        return outputs

    def _run(
        self,
        feeds: Sequence[tuple[str, int | np.ndarray]],
        fetches: Sequence[str],
        targets: Sequence[str] = (),
    ) -> tuple[tf.errors.OpError | None, list[np.ndarray]]:
        """Runs ops.

        Args:
            feeds: name of a tensor, and a `TF_Tensor` or an array of serialized Examples. A
                `TF_Tensor` is deleted.
            fetches: names of the tensors to return.
            targets: names of more ops to run.

        Returns:
            The error or `None`, and the fetched arrays.
        """
        fed, fetched = (c_void_p * len(feeds))(), (c_void_p * len(fetches))()
        try:
            for index, (_, value) in enumerate(feeds):
                fed[index] = value if isinstance(value, int) else self._examples(value)
            self._api.TF_Run(
                *(self._session, None, _names([name for name, _ in feeds]), fed, len(feeds)),
                *(_names(fetches), fetched, len(fetches), _names(targets), len(targets)),
                *(None, self._status),
            )
            error = self._error()
            return error, [self._array(tensor) for tensor in fetched if tensor]
        finally:
            for tensor in (*fed, *fetched):
                if tensor:
                    self._api.TF_DeleteTensor(tensor)

    def _path(self, path: str) -> int:
        """Returns a new `TF_Tensor` of a path, a string without dimensions."""
        return self._tensor("path", TensorProto(dtype=_STRING, string_val=[path.encode()]))

    def _examples(self, examples: np.ndarray) -> int:
        """Returns a new `TF_Tensor` of serialized Examples."""
        proto = TensorProto(dtype=_STRING, string_val=list(examples))
        proto.tensor_shape.dim.add(size=len(examples))
        return self._tensor("inputs", proto)

    def _tensor(self, name: str, proto: TensorProto) -> int:
        """Returns a new `TF_Tensor` of the proto of a named input."""
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


def _names(names: Sequence[str]) -> Any:
    """Returns names as an array of C strings."""
    return (c_char_p * len(names))(*(name.encode() for name in names))


def find_graph(content: bytes) -> tuple[int, int]:
    """Finds the graph of the meta graph with the tag `serve`, without parsing it.

    Args:
        content: a serialized `SavedModel`.

    Returns:
        Where its serialized `GraphDef` starts and ends.

    Raises:
        IndexError: there is no such meta graph, or the proto is damaged.
    """
    for number, start, end in _submessages(content, 0, len(content)):
        if number == _META_GRAPHS:
            parts = {
                number: (first, last) for number, first, last in _submessages(content, start, end)
            }
            first, last = parts.get(_META_INFO, (0, 0))
            meta_info = MetaGraphDef.MetaInfoDef.FromString(content[first:last])
            if set(meta_info.tags) == {"serve"} and _GRAPH_DEF in parts:
                return parts[_GRAPH_DEF]
    raise IndexError("no meta graph with the tag serve")


def _submessages(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the number, the start and the end of each field with a length."""
    while at < end:
        key, at = _varint(content, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _LENGTH:
            size, at = _varint(content, at)
            if at + size > end:
                raise IndexError("a field ends behind its message")
            yield number, at, at + size
            at += size
        elif wire_type == _VARINT:
            _, at = _varint(content, at)
        else:
            at += {_FIXED64: 8, _FIXED32: 4}.get(wire_type, len(content))


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Reads a varint; returns it and where the next field starts."""
    value, shift = 0, 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
