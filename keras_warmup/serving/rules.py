"""What TensorFlow Serving asks of a request before and after the graph runs; loads and runs nothing.

Rules and error texts follow TensorFlow Serving 2.20 (`predict_util.cc`, `classifier.cc`, `regressor.cc`, `util.cc`) and
TensorFlow's `cc/saved_model/util.cc`, with `--enable_signature_method_name_check` off, its default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from keras_warmup._protos import Input, PredictRequest, SignatureDef, TensorProto
from keras_warmup.options import DEFAULT_MAX_BYTES
from keras_warmup.savedmodel.graph_limits import MAX_DIMENSIONS
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES

PREDICT_METHOD = METHOD_NAMES["predict"]
CLASSIFY_METHOD = METHOD_NAMES["classify"]
REGRESS_METHOD = METHOD_NAMES["regress"]

# A tensor that a record spells out may have any size: the record holds its bytes. One whose values are repeated to fill its
# shape may take what a whole warmup file may have by default.
MAX_EXPANDED_BYTES = DEFAULT_MAX_BYTES
# Of a string beside its characters: 24 bytes in TensorFlow, a pointer and a `bytes` object in numpy.
_STRING_BYTES = 72

Outputs = dict[str, np.ndarray]


class ServerStatusError(Exception):
    """A status as the server would return it."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


def refuse(status: str, text: str) -> NoReturn:
    """Ends the request as the server would."""
    raise ServerStatusError(status, text)


def render_set(names: Iterable[str]) -> str:
    """`{a,b}`, names sorted, as the server prints them."""
    return "{" + ",".join(sorted(names)) + "}"


def check_input_names(definition: SignatureDef, request: PredictRequest) -> None:
    """Sent inputs are those of the signature; absent ones have a default. The order of checks is the server's."""
    sent, known = set(request.inputs), set(definition.inputs)
    if len(sent) > len(known) or (len(sent) < len(known) and not definition.defaults):
        refuse(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(sent)}!={len(known)} len({render_set(sent)}) != "
            f"len({render_set(known)}). Sent extra: {render_set(sent - known)}. Missing but required: "
            f"{render_set(known - sent)}.",
        )
    for name in sorted(known - sent - set(definition.defaults)):
        refuse(
            "INVALID_ARGUMENT",
            f"Signature input alias: {name}(feed name: {definition.inputs[name].name}) not found in request and no "
            f"default value provided. Inputs expected to be in the request {render_set(sent)}, or default input alias "
            f"set: {render_set(definition.defaults)}",
        )
    if sent - known:
        refuse(
            "INVALID_ARGUMENT",
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(sent & known))}, request input: "
            f"{','.join(sorted(sent))}",
        )


def output_aliases(definition: SignatureDef, request: PredictRequest) -> list[str]:
    """The outputs a Predict request fetches: those of its output_filter, or all."""
    asked = list(request.output_filter)
    for index, alias in enumerate(asked):
        if alias not in definition.outputs:
            refuse(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{render_set(definition.outputs)}.",
            )
        if alias in asked[:index]:
            refuse("INVALID_ARGUMENT", f"duplicate output tensor alias: {alias}")
    return asked or sorted(definition.outputs)


def check_feed_dtypes(graph: tf.Graph, feeds: Sequence[tuple[str, np.ndarray]]) -> None:
    """What `Session::Run` checks before it runs anything, also for inputs the fetched outputs do not need."""
    for index, (name, array) in enumerate(feeds):
        try:
            expected = graph.get_tensor_by_name(name).dtype
        except (KeyError, ValueError):  # not in the graph: TensorFlow says so when it looks for it
            continue
        got = _dtype(array)
        if got != expected:
            wanted, given = _dtype_string(expected), _dtype_string(got)
            refuse(
                "INVALID_ARGUMENT",
                f"Expects arg[{index}] to be {wanted} but {given} is provided (feed {name})",
            )


def to_array(name: str, proto: TensorProto) -> np.ndarray:
    """The tensor as the server parses it (`Tensor::FromProto`, which also fills and broadcasts short value lists)."""
    _check_expansion(name, proto)
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        with tf.init_scope(), tf.device("/CPU:0"):
            value = tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
    except (tf.errors.OpError, TypeError, ValueError):
        # TensorFlow's own text quotes the bytes.
        raise ServerStatusError("INVALID_ARGUMENT", f"tensor parsing error: {name}") from None
    array = host_array(value)
    return (
        array.view(dtype.as_numpy_dtype) if dtype.is_quantized else array
    )  # numpy would take qint8 for int8


def _check_expansion(name: str, proto: TensorProto) -> None:
    """Refuses a tensor that a short list of values would blow up: its shape is a claim that nothing has paid for."""
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if len(sizes) > MAX_DIMENSIONS or any(size < 0 for size in sizes):
        refuse("INVALID_ARGUMENT", f"tensor parsing error: {name}")
    longest = max(map(len, proto.string_val), default=0)
    try:
        item_bytes = tf.dtypes.as_dtype(proto.dtype).size or _STRING_BYTES + longest
    except TypeError:
        refuse("INVALID_ARGUMENT", f"tensor parsing error: {name}")
    expanded = math.prod(sizes) * item_bytes
    # An int64 takes one byte of the record at least; a string has _STRING_BYTES more than there.
    own = 8 * proto.ByteSize() + _STRING_BYTES * len(proto.string_val)
    if expanded > max(MAX_EXPANDED_BYTES, own):
        refuse(
            "RESOURCE_EXHAUSTED",
            f"the tensor of input {name} expands to {expanded} bytes, more than the {MAX_EXPANDED_BYTES} that a tensor may "
            "take which the record does not spell out",
        )


def host_array(value: Any) -> np.ndarray:
    """A fetched value as an array; strings as an object array of `bytes`, which keeps trailing NULs."""
    return np.asarray(value, dtype=object if isinstance(value, bytes) else None)


def to_examples(request_input: Input) -> np.ndarray:
    """Serialized Examples, shape `[b]`; a shared context is put before each of them, which merges the two protos."""
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


def classify_tensors(definition: SignatureDef) -> tuple[str, dict[str, str]]:
    """The input tensor of a Classify task and its fetches, alias -> tensor."""
    if len(definition.inputs) != 1:
        refuse("INVALID_ARGUMENT", "Expected one input Tensor.")
    if len(definition.outputs) not in (1, 2):
        refuse(
            "INVALID_ARGUMENT",
            f"Expected one or two output Tensors, found {len(definition.outputs)}",
        )
    if "inputs" not in definition.inputs:
        found = render_set(definition.inputs)
        refuse(
            "INVALID_ARGUMENT",
            f"No classification inputs found in SignatureDef: expected 'inputs', got {found}",
        )
    fetches = {
        alias: definition.outputs[alias].name
        for alias in ("classes", "scores")
        if alias in definition.outputs
    }
    if not fetches:
        refuse(
            "INVALID_ARGUMENT",
            'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature has '
            f"outputs: {render_set(definition.outputs)}",
        )
    return definition.inputs["inputs"].name, fetches


def regress_tensors(definition: SignatureDef) -> tuple[str, dict[str, str]]:
    """The input tensor of a Regress task and its fetch, alias -> tensor."""
    if len(definition.inputs) != 1:
        refuse("INVALID_ARGUMENT", "Expected one input Tensor.")
    if len(definition.outputs) != 1:
        refuse("INVALID_ARGUMENT", "Expected one output Tensor.")
    if "inputs" not in definition.inputs:
        found = render_set(definition.inputs)
        refuse(
            "INVALID_ARGUMENT",
            f"No regression inputs found in SignatureDef: expected 'inputs', got {found}",
        )
    if "outputs" not in definition.outputs:
        found = render_set(definition.outputs)
        refuse(
            "INVALID_ARGUMENT",
            f"No regression outputs found in SignatureDef: expected 'outputs', got {found}",
        )
    return definition.inputs["inputs"].name, {"outputs": definition.outputs["outputs"].name}


def check_classification(outputs: Outputs, examples: int) -> None:
    """`classes` and `scores` are [examples, n] of string and float32, of one width."""
    for alias, dtype in (("classes", "O"), ("scores", np.float32)):
        array = outputs.get(alias)
        if array is None:
            continue
        if array.ndim != 2:
            got = _shape(array)
            refuse(
                "INVALID_ARGUMENT", f"Expected Tensor shape: [batch_size num_classes] but got {got}"
            )
        if array.dtype != dtype:
            expected = "DT_STRING" if dtype == "O" else "DT_FLOAT"
            refuse(
                "INVALID_ARGUMENT",
                f"Expected {alias} Tensor of {expected}. Got: {_data_type(array)}",
            )
        if len(array) != examples:
            refuse(
                "INVALID_ARGUMENT",
                f"Expected {alias} output batch size of {examples}. Got: {len(array)}",
            )
    widths = [array.shape[1] for array in outputs.values()]
    if len(set(widths)) > 1:
        classes, scores = outputs["classes"].shape[1], outputs["scores"].shape[1]
        refuse(
            "INVALID_ARGUMENT",
            f"Tensors class and score should match in dim_size(1). Got {classes} vs. {scores}",
        )


def check_regression(outputs: Outputs, examples: int) -> None:
    """`outputs` is float32, [examples] or [examples, 1]."""
    array = outputs["outputs"]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        refuse(
            "INVALID_ARGUMENT",
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array)}",
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
    """The dtype's name in TensorFlow's C++ messages."""
    name = str(dtype.name)
    return {"float16": "half", "float32": "float", "float64": "double"}.get(name, name)


def _data_type(array: np.ndarray) -> str:
    return f"DT_{_dtype_string(_dtype(array)).upper()}"
