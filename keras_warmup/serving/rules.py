"""Checks requests before the graph runs, and its outputs afterwards, as TensorFlow Serving does.

The rules and error messages follow TensorFlow Serving 2.20 (`predict_util.cc`, `classifier.cc`,
`regressor.cc`, `util.cc`) and TensorFlow's `cc/saved_model/util.cc`, with
`--enable_signature_method_name_check` off, which is its default. Nothing here runs a graph.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from keras_warmup._protos import Input, PredictRequest, SignatureDef, TensorInfo, TensorProto
from keras_warmup.options import DEFAULT_MAX_BYTES
from keras_warmup.savedmodel.graph_limits import MAX_DIMENSIONS
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES

PREDICT_METHOD = METHOD_NAMES["predict"]
CLASSIFY_METHOD = METHOD_NAMES["classify"]
REGRESS_METHOD = METHOD_NAMES["regress"]

# Limits a tensor whose few values are repeated to fill its shape: the record does not hold its
# bytes. A tensor that the record holds in full may have any size.
MAX_EXPANDED_BYTES = DEFAULT_MAX_BYTES
# Of a string without its characters: 24 bytes in TensorFlow, a pointer and a `bytes` in NumPy.
_STRING_BYTES = 72

# Kinds of NumPy's own numbers, and of bool.
_NUMERIC_KINDS = "biufc"

# The outputs that Classify reads, in the order of the server's checks.
_CLASSIFY_DATA_TYPES = {"classes": "DT_STRING", "scores": "DT_FLOAT"}

Outputs = dict[str, np.ndarray]


class ServerStatusError(Exception):
    """A status that the server would return for a request."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


def refuse(status: str, text: str) -> NoReturn:
    """Raises `ServerStatusError`."""
    raise ServerStatusError(status, text)


def render_set(names: Iterable[str]) -> str:
    """Renders names as the server prints a set: `{a,b}`, sorted."""
    return "{" + ",".join(sorted(names)) + "}"


def check_input_names(definition: SignatureDef, request: PredictRequest) -> None:
    """Refuses inputs that the signature does not have, and missing ones that have no default.

    The checks are in the order of the server's.
    """
    sent, known = set(request.inputs), set(definition.inputs)
    if len(sent) > len(known) or (len(sent) < len(known) and not definition.defaults):
        refuse(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({render_set(sent)}) != len({render_set(known)}). "
            f"Sent extra: {render_set(sent - known)}. "
            f"Missing but required: {render_set(known - sent)}.",
        )
    for name in sorted(known - sent - set(definition.defaults)):
        refuse(
            "INVALID_ARGUMENT",
            f"Signature input alias: {name}(feed name: {definition.inputs[name].name}) not found "
            "in request and no default value provided. Inputs expected to be in the request "
            f"{render_set(sent)}, or default input alias set: {render_set(definition.defaults)}",
        )
    if sent - known:
        refuse(
            "INVALID_ARGUMENT",
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(sent & known))}, "
            f"request input: {','.join(sorted(sent))}",
        )


def output_aliases(definition: SignatureDef, request: PredictRequest) -> list[str]:
    """Returns the outputs that a Predict request fetches: those of its output_filter, or all."""
    asked = list(request.output_filter)
    for index, alias in enumerate(asked):
        if alias not in definition.outputs:
            refuse(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {render_set(definition.outputs)}.",
            )
        if alias in asked[:index]:
            refuse("INVALID_ARGUMENT", f"duplicate output tensor alias: {alias}")
    return asked or sorted(definition.outputs)


def check_feed_dtypes(graph: tf.Graph, feeds: Sequence[tuple[str, np.ndarray]]) -> None:
    """Refuses feeds of a wrong dtype, as `Session::Run` does before it runs anything.

    It checks all feeds, also those that the fetched outputs do not need.
    """
    for index, (name, array) in enumerate(feeds):
        try:
            expected = graph.get_tensor_by_name(name).dtype
        except (KeyError, ValueError):  # not in the graph: running it raises an error
            continue
        got = _dtype(array)
        if got != expected:
            refuse(
                "INVALID_ARGUMENT",
                f"Expects arg[{index}] to be {_dtype_string(expected)} but {_dtype_string(got)} is "
                f"provided (feed {name})",
            )


def to_array(name: str, proto: TensorProto) -> np.ndarray:
    """Parses a tensor as the server does.

    `Tensor::FromProto` also repeats the last of a short list of values to fill the shape.
    """
    _check_expansion(name, proto)
    content = _content_array(proto)
    if content is not None:
        return content
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        with tf.init_scope(), tf.device("/CPU:0"):
            value = tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
    except (tf.errors.OpError, TypeError, ValueError):
        # TensorFlow's message quotes the bytes.
        raise ServerStatusError("INVALID_ARGUMENT", f"tensor parsing error: {name}") from None
    array = host_array(value)
    # The array of a qint8 tensor has the dtype int8.
    return array.view(dtype.as_numpy_dtype) if dtype.is_quantized else array


def _content_array(proto: TensorProto) -> np.ndarray | None:
    """Returns the tensor whose values are its `tensor_content`; `None` if they are elsewhere.

    `Tensor::FromProto` takes these bytes as they are. To parse the tensor with TensorFlow would
    hold four more copies of it at once.
    """
    content, shape = proto.tensor_content, proto.tensor_shape
    if not content or shape.unknown_rank:
        return None
    try:
        dtype = np.dtype(tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype)
    except (KeyError, TypeError):  # a resource, or no dtype at all
        return None
    sizes = [dim.size for dim in shape.dim]
    if dtype.kind not in _NUMERIC_KINDS or len(content) != math.prod(sizes) * dtype.itemsize:
        return None
    return np.frombuffer(content, dtype).reshape(sizes)


def _check_expansion(name: str, proto: TensorProto) -> None:
    """Refuses a shape that is much larger than the values in the record."""
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if len(sizes) > MAX_DIMENSIONS or any(size < 0 for size in sizes):
        refuse("INVALID_ARGUMENT", f"tensor parsing error: {name}")
    longest = max(map(len, proto.string_val), default=0)
    try:
        item_bytes = tf.dtypes.as_dtype(proto.dtype).size or _STRING_BYTES + longest
    except TypeError:
        refuse("INVALID_ARGUMENT", f"tensor parsing error: {name}")
    expanded = math.prod(sizes) * item_bytes
    # An int64 takes one byte of the record or more; a string lacks _STRING_BYTES there.
    own = 8 * proto.ByteSize() + _STRING_BYTES * len(proto.string_val)
    if expanded > max(MAX_EXPANDED_BYTES, own):
        refuse(
            "RESOURCE_EXHAUSTED",
            f"the tensor of input {name} expands to {expanded} bytes, more than the "
            f"{MAX_EXPANDED_BYTES} allowed for a tensor whose values the record does not hold in "
            "full",
        )


def host_array(value: Any) -> np.ndarray:
    """Converts a fetched value; strings to an object array of `bytes`, to keep trailing NULs."""
    return np.asarray(value, dtype=object if isinstance(value, bytes) else None)


def to_examples(request_input: Input) -> np.ndarray:
    """Serializes the Examples of a request as the server does.

    A shared context is prepended to each Example: protobuf merges concatenated messages.

    Returns:
        An object array of `bytes`, shape `[examples]`.
    """
    kind = request_input.WhichOneof("kind")
    context = b""
    if kind == "example_list_with_context":
        context = request_input.example_list_with_context.context.SerializeToString()
    examples = getattr(request_input, kind).examples if kind else ()
    if not examples:
        refuse("INVALID_ARGUMENT", "Input is empty.")
    array = np.empty(len(examples), dtype=object)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


@dataclasses.dataclass(frozen=True)
class ExamplesTask:
    """What a Classify or a Regress request runs.

    Attributes:
        feed: name of the tensor that takes the serialized Examples.
        fetches: output alias -> name of its tensor.
        check: raises `ServerStatusError` where outputs do not fit a number of Examples.
    """

    feed: str
    fetches: dict[str, str]
    check: Callable[[Outputs, int], None]


def classify_task(definition: SignatureDef) -> ExamplesTask:
    """Returns the task of a Classify request; refuses a signature that cannot classify."""
    if len(definition.inputs) != 1:
        refuse("INVALID_ARGUMENT", "Expected one input Tensor.")
    if len(definition.outputs) not in (1, 2):
        refuse(
            "INVALID_ARGUMENT",
            f"Expected one or two output Tensors, found {len(definition.outputs)}",
        )
    feed = _single_tensor("classification", "inputs", definition.inputs)
    fetches = {
        alias: definition.outputs[alias].name
        for alias in _CLASSIFY_DATA_TYPES
        if alias in definition.outputs
    }
    if not fetches:
        refuse(
            "INVALID_ARGUMENT",
            'Expected classification signature outputs to contain at least one of "classes" or '
            f'"scores". Signature has outputs: {render_set(definition.outputs)}',
        )
    return ExamplesTask(feed, fetches, _check_classification)


def regress_task(definition: SignatureDef) -> ExamplesTask:
    """Returns the task of a Regress request; refuses a signature that cannot regress."""
    if len(definition.inputs) != 1:
        refuse("INVALID_ARGUMENT", "Expected one input Tensor.")
    if len(definition.outputs) != 1:
        refuse("INVALID_ARGUMENT", "Expected one output Tensor.")
    feed = _single_tensor("regression", "inputs", definition.inputs)
    fetches = {"outputs": _single_tensor("regression", "outputs", definition.outputs)}
    return ExamplesTask(feed, fetches, _check_regression)


def _single_tensor(task: str, key: str, infos: Mapping[str, TensorInfo]) -> str:
    if key not in infos:
        refuse(
            "INVALID_ARGUMENT",
            f"No {task} {key} found in SignatureDef: expected {key!r}, got {render_set(infos)}",
        )
    return str(infos[key].name)


def _check_classification(outputs: Outputs, examples: int) -> None:
    """Requires `classes` and `scores` to be string and float32 of one shape [examples, n]."""
    for alias, array in outputs.items():
        if array.ndim != 2:
            refuse(
                "INVALID_ARGUMENT",
                f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}",
            )
        expected, got = _CLASSIFY_DATA_TYPES[alias], _data_type(array)
        if got != expected:
            refuse("INVALID_ARGUMENT", f"Expected {alias} Tensor of {expected}. Got: {got}")
        if len(array) != examples:
            refuse(
                "INVALID_ARGUMENT",
                f"Expected {alias} output batch size of {examples}. Got: {len(array)}",
            )
    widths = [array.shape[1] for array in outputs.values()]
    if len(set(widths)) > 1:
        refuse(
            "INVALID_ARGUMENT",
            f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}",
        )


def _check_regression(outputs: Outputs, examples: int) -> None:
    """Requires `outputs` to be float32 of shape [examples] or [examples, 1]."""
    array = outputs["outputs"]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        refuse(
            "INVALID_ARGUMENT",
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(array)}",
        )
    if len(array) != examples:
        refuse(
            "INVALID_ARGUMENT",
            f"Input batch size did not match output batch size: {examples} vs. {len(array)}",
        )
    if array.dtype != np.float32:
        refuse("INVALID_ARGUMENT", f"Expected output Tensor of DT_FLOAT.  Got: {_data_type(array)}")


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _dtype(array: np.ndarray) -> tf.DType:
    return tf.string if array.dtype == object else tf.dtypes.as_dtype(array.dtype)


def _dtype_string(dtype: tf.DType) -> str:
    """Returns the dtype's name in TensorFlow's C++ messages."""
    name = str(dtype.name)
    return {"float16": "half", "float32": "float", "float64": "double"}.get(name, name)


def _data_type(array: np.ndarray) -> str:
    return f"DT_{_dtype_string(_dtype(array)).upper()}"
