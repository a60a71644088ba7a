"""The signatures of a SavedModel, read from `saved_model.pb` alone: no graph is loaded, no op is run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from keras_warmup._protos import (
    FunctionDef,
    MetaGraphDef,
    NodeDef,
    SavedModel,
    SignatureDef,
    StructuredValue,
    TensorInfo,
    TensorShapeProto,
)
from keras_warmup.errors import SignatureError
from keras_warmup.versions import reason_of

DEFAULT_SIGNATURE_KEY = "serving_default"
SERVE_TAGS = ("serve",)
# Entries that TensorFlow writes for itself (init op, train op): no client can call them.
_RESERVED_PREFIX = "__saved_model_"
# Attributes of a node that number the trace, or say where the graph was made.
_TRACE_ATTRIBUTES = frozenset({"_gradient_op_type", "_construction_context", "config_proto"})
_CALL_OPS = ("PartitionedCall", "StatefulPartitionedCall")


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature.

    Attributes:
        name: its key in the SignatureDef, the alias that clients use.
        tensor: its tensor in the graph, such as `serving_default_x:0`; empty for a composite (sparse, ragged) one.
        dtype: name of its `tf.DType`, such as `float32` or `string`; of a composite one that of its values, `variant`
            where its type does not tell.
        shape: sizes, `None` for a free one; `None` in place of the tuple for an unknown rank, and for a ragged one.
    """

    name: str
    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """A servable endpoint of a SavedModel.

    Attributes:
        key: its signature key.
        method_name: such as `tensorflow/serving/predict`; TensorFlow 2 exports always say predict.
        inputs: input name -> spec, sorted by name.
        outputs: output alias -> spec, sorted by alias.
        defaults: inputs that a request may leave out, because the SignatureDef holds a value for them.
        structure: the positional arguments of the exported function, a tuple of nested tuples, lists and dicts whose
            leaves are input names of this signature (`None` where an argument is none); `None` where the file does not
            tell.
        tags: tags of the meta graph it was read from.
    """

    key: str
    method_name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    defaults: frozenset[str]
    structure: Any = None
    tags: tuple[str, ...] = SERVE_TAGS

    @property
    def tensors(self) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the tensors it feeds, and of those it fetches.

        Signatures with equal ones share one executor, so one warmup. A tensor that one feeds and another fetches is told
        apart: these two run different parts of the graph.
        """
        return (
            frozenset(spec.tensor for spec in self.inputs.values()),
            frozenset(spec.tensor for spec in self.outputs.values()),
        )


def read_meta_graph(export_dir: str | os.PathLike[str], tags: Sequence[str] | None = None) -> MetaGraphDef:
    """Reads the meta graph that a server would load.

    Args:
        export_dir: version directory of a SavedModel, on any file system `tf.io.gfile` knows.
        tags: exact tags of the meta graph. Defaults to `None`: `("serve",)`, as TensorFlow Serving.

    Returns:
        A `MetaGraphDef`.

    Raises:
        SignatureError: there is no SavedModel, it cannot be parsed, or no meta graph has these tags.
    """
    wanted = set(SERVE_TAGS if tags is None else tags)
    meta_graphs = _read_saved_model(os.fspath(export_dir)).meta_graphs
    for meta_graph in meta_graphs:
        if set(meta_graph.meta_info_def.tags) == wanted:
            return meta_graph
    found = ", ".join(str(sorted(meta_graph.meta_info_def.tags)) for meta_graph in meta_graphs) or "none"
    raise SignatureError(
        f"SavedModel {os.fspath(export_dir)!r} has no meta graph with tags {sorted(wanted)}. Tags found: {found}. "
        "Export the model with the tag 'serve'."
    )


def read_signatures(meta_graph: MetaGraphDef) -> list[Signature]:
    """Lists the endpoints that clients can call.

    Args:
        meta_graph: as `read_meta_graph` returns it.

    Returns:
        Signatures sorted by key, without the entries TensorFlow writes for itself (`__saved_model_init_op`).

    Raises:
        SignatureError: an input or output has no dtype, or one this TensorFlow does not know.
    """
    structures = _Structures(meta_graph)
    tags = tuple(sorted(meta_graph.meta_info_def.tags))
    signatures = []
    for key in sorted(meta_graph.signature_def):
        if key.startswith(_RESERVED_PREFIX):
            continue
        definition = meta_graph.signature_def[key]
        inputs = {name: _spec_of(key, "input", name, definition.inputs[name]) for name in sorted(definition.inputs)}
        outputs = {name: _spec_of(key, "output", name, definition.outputs[name]) for name in sorted(definition.outputs)}
        signatures.append(
            Signature(
                key=key,
                method_name=definition.method_name,
                inputs=inputs,
                outputs=outputs,
                defaults=frozenset(definition.defaults),
                structure=structures.of(definition),
                tags=tags,
            )
        )
    return signatures


def _read_saved_model(export_dir: str) -> SavedModel:
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        path = os.path.join(export_dir, name)
        if tf.io.gfile.exists(path):
            return _parse(path, _content_of(path))
    if not tf.io.gfile.isdir(export_dir):
        raise SignatureError(f"No SavedModel at {export_dir!r}: the directory does not exist.")
    found = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(export_dir))
    versions = [name for name in found if name.isdecimal()]
    hint = f" Give a version directory, such as {os.path.join(export_dir, versions[-1])!r}." if versions else ""
    raise SignatureError(f"No SavedModel at {export_dir!r}: it holds {found}, but no saved_model.pb.{hint}")


def _content_of(path: str) -> bytes:
    if tf.io.gfile.isdir(path):
        raise SignatureError(f"Cannot read {path!r}: it is a directory, expected a file. Export the model again.")
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return bytes(file.read())
    except tf.errors.OpError as error:
        raise SignatureError(f"Cannot read {path!r}: {reason_of(error)}. Make it readable for this user.") from error


def _parse(path: str, content: bytes) -> SavedModel:
    saved_model = SavedModel()
    try:
        if path.endswith(".pbtxt"):
            text_format.Parse(content.decode(), saved_model)
        else:
            saved_model.ParseFromString(content)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise SignatureError(f"Cannot parse {path!r}: it is not a SavedModel proto. Export the model again.") from error
    return saved_model


def _spec_of(key: str, kind: str, name: str, info: TensorInfo) -> TensorSpec:
    try:
        return _tensor_spec(name, info)
    except TypeError:
        problem = "its dtype is none that this TensorFlow knows"
    raise SignatureError(
        f"Cannot read signature {key!r}: {kind} {name!r} is damaged: {problem} (DataType {_dtype_number(info)} in "
        "saved_model.pb). Export the model again, or use the TensorFlow that wrote it."
    )


def _tensor_spec(name: str, info: TensorInfo) -> TensorSpec:
    if info.WhichOneof("encoding") == "composite_tensor":
        return TensorSpec(name, "", _composite_dtype(info), None)
    return TensorSpec(name, info.name, tf.dtypes.as_dtype(info.dtype).name, _shape(info.tensor_shape))


def _composite_dtype(info: TensorInfo) -> str:
    """Dtype of the values: the first one in the state of the type (shape, dtype, ragged rank, dtype of the splits)."""
    return str(tf.dtypes.as_dtype(_dtype_number(info)).name)


def _dtype_number(info: TensorInfo) -> int:
    """Number of its dtype in the proto, where it may be any."""
    if info.WhichOneof("encoding") != "composite_tensor":
        return int(info.dtype)
    state = info.composite_tensor.type_spec.type_state.tuple_value.values
    found = [part.tensor_dtype_value for part in state if part.WhichOneof("kind") == "tensor_dtype_value"]
    return int(found[0] if found else tf.variant.as_datatype_enum)


def _tensors_of(info: TensorInfo) -> list[str]:
    """Names of the graph tensors behind an input or output: several for a composite one."""
    encoding = info.WhichOneof("encoding")
    if encoding == "composite_tensor":
        return [name for component in info.composite_tensor.components for name in _tensors_of(component)]
    if encoding == "coo_sparse":
        sparse = info.coo_sparse
        return [sparse.indices_tensor_name, sparse.values_tensor_name, sparse.dense_shape_tensor_name]
    return [info.name]


def _shape(proto: TensorShapeProto) -> tuple[int | None, ...] | None:
    return None if proto.unknown_rank else tuple(None if dim.size < 0 else int(dim.size) for dim in proto.dim)


class _Structures:
    """What the file tells of the arguments of the function behind each signature.

    In the main graph a signature calls a wrapper, which calls the exported function with the same tensors, in the order
    in which that function's own arguments flatten. So the pairing of input names with arguments is read along the
    tensors, never guessed from names.
    """

    def __init__(self, meta_graph: MetaGraphDef) -> None:
        self._nodes = {node.name: node for node in meta_graph.graph_def.node}
        self._functions: dict[str, FunctionDef] = {
            function.signature.name: function for function in meta_graph.graph_def.library.function
        }
        self._concrete_functions = meta_graph.object_graph_def.concrete_functions
        self._alike: dict[tuple[str, str], bool] = {}

    def of(self, definition: SignatureDef) -> Any:
        """`Signature.structure` of a signature, or `None`."""
        callers = {name.split(":")[0] for info in definition.outputs.values() for name in _tensors_of(info)}
        caller = self._nodes.get(callers.pop()) if len(callers) == 1 else None
        wrapper = self._called_by(caller)
        if caller is None or wrapper is None:
            return None
        calls = [node for node in wrapper.node_def if node.op in _CALL_OPS]
        exported = self._called_by(calls[0]) if len(calls) == 1 else None
        if exported is None:
            return None
        name_of_tensor = {info.name.split(":")[0]: name for name, info in definition.inputs.items()}
        name_of_argument = {
            argument.name: name_of_tensor.get(tensor.split(":")[0])
            for argument, tensor in zip(wrapper.signature.input_arg, caller.input, strict=False)
        }
        passed = [name_of_argument.get(tensor.split(":")[0]) for tensor in calls[0].input]

        positional, keywords = self._arguments_of(exported)
        count = sum(map(_count_tensors, positional))
        if count != len(definition.inputs) or set(passed[:count]) != set(definition.inputs):
            return None
        if any(map(_count_tensors, keywords)):
            return None
        feed = iter(passed)
        try:
            arguments = [_fill(argument, feed) for argument in positional]
        except _Untold:
            return None
        while arguments and arguments[-1] is None:  # `mask=None` and the like: the function's own defaults
            arguments.pop()
        return tuple(arguments)

    def _called_by(self, node: NodeDef | None) -> FunctionDef | None:
        return None if node is None or node.op not in _CALL_OPS else self._functions.get(node.attr["f"].func.name)

    def _arguments_of(self, function: FunctionDef) -> tuple[list[StructuredValue], list[StructuredValue]]:
        """Positional and keyword arguments of an exported function.

        A concrete function given as `signatures=` is not itself in the object graph; a second trace of the same Python
        function usually is: same name but for the number, same names of arguments, same body to the last node. A mere
        namesake may take the same tensors in another order, which would swap them.
        """
        name = function.signature.name
        traces = [name] if name in self._concrete_functions else []
        if not traces:
            stem = name.rpartition("_")[0]
            same = [other for other in self._concrete_functions if other.rpartition("_")[0] == stem]
            traces = [other for other in same if self._are_alike(name, other)]
        found = [self._concrete_functions[trace].canonicalized_input_signature.tuple_value.values for trace in traces]
        if not found or any(parts != found[0] for parts in found) or len(found[0]) != 2:
            return [], []
        positional, keywords = found[0]
        return list(positional.tuple_value.values), list(keywords.dict_value.fields.values())

    def _are_alike(self, name: str, other: str) -> bool:
        """Whether two functions are traces of the same code, those that they call included."""
        pair = (name, other)
        if name != other and pair not in self._alike:
            self._alike[pair] = True  # of a function that calls itself
            self._alike[pair] = self._bodies_alike(name, other)
        return name == other or self._alike[pair]

    def _bodies_alike(self, name: str, other: str) -> bool:
        one, two = self._functions.get(name), self._functions.get(other)
        if one is None or two is None or _interface_of(one) != _interface_of(two):
            return False
        if dict(one.ret) != dict(two.ret) or dict(one.control_ret) != dict(two.control_ret):
            return False
        nodes = {node.name: node for node in two.node_def}
        return len(one.node_def) == len(two.node_def) and all(
            node.name in nodes and self._nodes_alike(node, nodes[node.name]) for node in one.node_def
        )

    def _nodes_alike(self, node: NodeDef, other: NodeDef) -> bool:
        if (node.op, node.device, list(node.input)) != (other.op, other.device, list(other.input)):
            return False
        names = set(node.attr) - _TRACE_ATTRIBUTES
        return names == set(other.attr) - _TRACE_ATTRIBUTES and all(
            self._attributes_alike(node.attr[name], other.attr[name]) for name in names
        )

    def _attributes_alike(self, value: Any, other: Any) -> bool:
        called, also_called = _functions_in(value), _functions_in(other)
        if called and len(called) == len(also_called):
            return all(map(self._are_alike, called, also_called))
        # As bytes: NaN, which a proto may hold, differs from itself.
        return bool(value.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True))


def _interface_of(function: FunctionDef) -> tuple[list[tuple[str, int, bytes]], list[tuple[str, int]]]:
    """Name, dtype and given name of each argument, name and dtype of each result."""
    arguments = [
        (argument.name, argument.type, function.arg_attr[index].attr["_user_specified_name"].s)
        if index in function.arg_attr and "_user_specified_name" in function.arg_attr[index].attr
        else (argument.name, argument.type, b"")
        for index, argument in enumerate(function.signature.input_arg)
    ]
    return arguments, [(result.name, result.type) for result in function.signature.output_arg]


def _functions_in(value: Any) -> list[str]:
    kind = value.WhichOneof("value")
    if kind == "func":
        return [value.func.name]
    return [function.name for function in value.list.func] if kind == "list" else []


class _Untold(Exception):
    """An argument that input names alone cannot describe."""


def _children(value: StructuredValue) -> list[StructuredValue]:
    """Children of a structure node in flatten order: dict keys sorted, sequences in place."""
    kind = value.WhichOneof("kind")
    if kind in ("tuple_value", "list_value"):
        return list(getattr(value, kind).values)
    if kind == "dict_value":
        return [value.dict_value.fields[key] for key in sorted(value.dict_value.fields)]
    if kind == "named_tuple_value":
        return [pair.value for pair in value.named_tuple_value.values]
    return []


def _count_tensors(value: StructuredValue) -> int:
    if value.WhichOneof("kind") in ("tensor_spec_value", "bounded_tensor_spec_value"):
        return 1
    return sum(_count_tensors(child) for child in _children(value))


def _fill(value: StructuredValue, feed: Iterator[str | None]) -> Any:
    """The structure with the next input name of `feed` at each tensor."""
    kind = value.WhichOneof("kind")
    if kind in ("tensor_spec_value", "bounded_tensor_spec_value"):
        return next(feed)
    if kind == "list_value":
        return [_fill(child, feed) for child in _children(value)]
    if kind in ("tuple_value", "named_tuple_value"):
        return tuple(_fill(child, feed) for child in _children(value))
    if kind == "dict_value":
        return {key: _fill(value.dict_value.fields[key], feed) for key in sorted(value.dict_value.fields)}
    if kind == "type_spec_value":  # ragged, sparse: more than one tensor behind one argument
        raise _Untold
    # A Python value (`training=False`) or None: the function fixed it when it was traced.
    return None
