"""SavedModels and warmup files made by hand to hang, crash or exhaust their readers.

`HOSTILE` maps a name to a builder, which makes a directory and writes the SavedModel into it. Each
is a small change of a tiny good model, so that loading and replaying reach the change. Nothing here
acts on anything outside of the directory; a file elsewhere that a case reads is absent or harmless.
"""

from __future__ import annotations

import os
import pathlib
import random
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
from google.protobuf import text_format

from keras_warmup._protos import MetaGraphDef, PredictionLog, SavedModel, TensorProto
from keras_warmup.records.warmup_file import WARMUP_PATH, masked_crc32c

Builder = Callable[[pathlib.Path], None]
HOSTILE: dict[str, Builder] = {}

AttrValue = tf.compat.v1.AttrValue
HUGE = 2**40
STRING, FLOAT, INT64, INT32 = (
    dtype.as_datatype_enum for dtype in (tf.string, tf.float32, tf.int64, tf.int32)
)


def hostile(builder: Builder) -> Builder:
    """Registers a builder under its function's name, with spaces for underscores."""
    HOSTILE[builder.__name__.replace("_", " ")] = builder
    return builder


def hostile_graph(
    name: str,
) -> Callable[[Callable[[MetaGraphDef], None]], Callable[[MetaGraphDef], None]]:
    """Registers a change of the tiny model's meta graph."""

    def register(change: Callable[[MetaGraphDef], None]) -> Callable[[MetaGraphDef], None]:
        def build(directory: pathlib.Path) -> None:
            saved_model = tiny()
            change(saved_model.meta_graphs[0])
            write(directory, saved_model)

        HOSTILE[name] = build
        return change

    return register


# Parts of the cases.


def attr(value: Any) -> Any:
    """Makes an AttrValue; a `str` is the name of a function, a tuple a shape."""
    made = AttrValue()
    match value:
        case AttrValue():
            return value
        case bool():
            made.b = value
        case bytes():
            made.s = value
        case int():
            made.i = value
        case str():
            made.func.name = value
        case tuple():
            for size in value:
                made.shape.dim.add(size=size)
        case tf.DType():
            made.type = value.as_datatype_enum
        case TensorProto():
            made.tensor.CopyFrom(value)
        case list():
            for one in value:
                made.list.MergeFrom(_in_list(attr(one)))
    return made


def _in_list(value: Any) -> Any:
    kind = value.WhichOneof("value")
    made = AttrValue.ListValue()
    field = getattr(made, kind)
    if kind in ("func", "shape", "tensor"):
        field.add().CopyFrom(getattr(value, kind))
    else:
        field.append(getattr(value, kind))
    return made


def add_node(nodes: Any, name: str, op: str, inputs: Iterable[str] = (), **attrs: Any) -> Any:
    """Adds a NodeDef to a main graph or a function."""
    node = nodes.add(name=name, op=op, input=list(inputs))
    for key, value in attrs.items():
        node.attr[key].CopyFrom(attr(value))
    return node


def add_function(
    meta_graph: MetaGraphDef,
    name: str,
    returns: str = "x",
    dtype: tf.DType = tf.float32,
    arg: str = "x",
) -> Any:
    """Adds a function of one argument and one result; returns its nodes."""
    function = meta_graph.graph_def.library.function.add()
    function.signature.name = name
    function.signature.input_arg.add(name=arg, type=dtype.as_datatype_enum)
    function.signature.output_arg.add(name="out", type=dtype.as_datatype_enum)
    function.ret["out"] = returns
    return function.node_def


def add_call(
    nodes: Any, name: str, tensor: str, function: str, dtype: tf.DType = tf.float32
) -> Any:
    """Adds a call of a function of one argument."""
    return add_node(
        nodes, name, "StatefulPartitionedCall", [tensor], Tin=[dtype], Tout=[dtype], f=function
    )


def constant(shape: Iterable[int], dtype: int = FLOAT, **values: Any) -> TensorProto:
    """Makes a TensorProto whose shape may have more elements than it has values."""
    made = TensorProto(dtype=dtype, **values)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def tiny(dtype: tf.DType = tf.float32) -> SavedModel:
    """Makes a good model: `serving_default` with one input `x`, read by a node `y`."""
    saved_model = SavedModel(saved_model_schema_version=1)
    meta_graph = saved_model.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    meta_graph.graph_def.versions.producer = tf.version.GRAPH_DEF_VERSION
    nodes = meta_graph.graph_def.node
    add_node(nodes, "x", "Placeholder", dtype=dtype, shape=(-1,))
    add_node(nodes, "y", "Identity", ["x"], T=dtype)
    definition = meta_graph.signature_def["serving_default"]
    definition.method_name = "tensorflow/serving/predict"
    for info, tensor in ((definition.inputs["x"], "x:0"), (definition.outputs["y"], "y:0")):
        info.name = tensor
        info.dtype = dtype.as_datatype_enum
        info.tensor_shape.dim.add(size=-1)
    return saved_model


def node_named(nodes: Any, name: str) -> Any:
    """Returns the node of a name."""
    return next(node for node in nodes if node.name == name)


def replace_output(meta_graph: MetaGraphDef, op: str, inputs: Iterable[str], **attrs: Any) -> Any:
    """Replaces the node `y` by another op; returns the node."""
    node = node_named(meta_graph.graph_def.node, "y")
    node.Clear()
    node.name, node.op = "y", op
    node.input.extend(inputs)
    for key, value in attrs.items():
        node.attr[key].CopyFrom(attr(value))
    return node


def write(directory: pathlib.Path, saved_model: SavedModel) -> None:
    """Writes `saved_model.pb` into a directory, which is made if it does not exist."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "saved_model.pb").write_bytes(saved_model.SerializeToString())


def write_warmup(directory: pathlib.Path, content: bytes) -> pathlib.Path:
    """Writes the tiny model and a warmup file; returns the path of the file."""
    write(directory, tiny())
    path = directory / WARMUP_PATH
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def frame(data: bytes) -> bytes:
    """Makes a TFRecord frame with correct checksums."""
    header = struct.pack("<Q", len(data))
    return b"".join(
        [
            header,
            struct.pack("<I", masked_crc32c(header)),
            data,
            struct.pack("<I", masked_crc32c(data)),
        ]
    )


def predict_log(**tensors: TensorProto) -> PredictionLog:
    """Makes a Predict record of `serving_default`."""
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "m"
    request.model_spec.signature_name = "serving_default"
    for name, tensor in tensors.items():
        request.inputs[name].CopyFrom(tensor)
    return log


def parsing_model(**changes: Any) -> SavedModel:
    """Makes a model that parses its input with a dense feature `a` and a sparse feature `b`.

    Args:
        **changes: constants of the graph (`TensorProto`), attributes of the ParseExampleV2 node, or
            its `op` and `inputs`, in place of the good ones.
    """
    saved_model = tiny(tf.string)
    meta_graph = saved_model.meta_graphs[0]
    nodes = meta_graph.graph_def.node
    for name, value in {
        "names": constant([0], STRING),
        "sparse": constant([1], STRING, string_val=[b"b"]),
        "dense": constant([1], STRING, string_val=[b"a"]),
        "ragged": constant([0], STRING),
        "default": constant([1], FLOAT, float_val=[0.0]),
        **{key: value for key, value in changes.items() if isinstance(value, TensorProto)},
    }.items():
        add_node(nodes, name, "Const", value=value, dtype=tf.as_dtype(value.dtype))
    attrs = {
        **{
            "Tdense": [tf.float32],
            "dense_shapes": [(1,)],
            "sparse_types": [tf.int64],
            "num_sparse": 1,
        },
        **{"ragged_value_types": [], "ragged_split_types": []},
        **{key: value for key, value in changes.items() if not isinstance(value, TensorProto)},
    }
    inputs = attrs.pop("inputs", ["x", "names", "sparse", "dense", "ragged", "default"])
    add_node(nodes, "parse", attrs.pop("op", "ParseExampleV2"), inputs, **attrs)
    replace_output(meta_graph, "Identity", ["parse:3"], T=tf.float32)
    meta_graph.signature_def["serving_default"].outputs["y"].dtype = FLOAT
    return saved_model


def hostile_parser(name: str, **changes: Any) -> None:
    """Registers a change of the parsing model."""
    HOSTILE[name] = lambda directory: write(directory, parsing_model(**changes))


# Functions that call functions.


@hostile_graph("a function that calls itself")
def _(meta_graph: MetaGraphDef) -> None:
    add_call(add_function(meta_graph, "f", "call:output:0"), "call", "x", "f")
    replace_output(
        meta_graph, "StatefulPartitionedCall", ["x"], Tin=[tf.float32], Tout=[tf.float32], f="f"
    )


@hostile_graph("two functions that call each other")
def _(meta_graph: MetaGraphDef) -> None:
    add_call(add_function(meta_graph, "f", "call:output:0"), "call", "x", "g")
    add_call(add_function(meta_graph, "g", "call:output:0"), "call", "x", "f")
    replace_output(
        meta_graph, "StatefulPartitionedCall", ["x"], Tin=[tf.float32], Tout=[tf.float32], f="f"
    )


@hostile_graph("a function that calls itself as an op of its name")
def _(meta_graph: MetaGraphDef) -> None:
    add_node(add_function(meta_graph, "Recurse", "call:out:0"), "call", "Recurse", ["x"])
    replace_output(meta_graph, "Recurse", ["x"])


@hostile_graph("a while loop whose condition calls the function that holds the loop")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = add_function(meta_graph, "f", "loop:output:0")
    add_node(nodes, "loop", "While", ["x"], T=[tf.float32], cond="f", body="f")
    replace_output(
        meta_graph, "StatefulPartitionedCall", ["x"], Tin=[tf.float32], Tout=[tf.float32], f="f"
    )


def _chain(
    meta_graph: MetaGraphDef, depth: int, calls: int, dtype: tf.DType, last: str = ""
) -> None:
    """Adds functions of which each calls the next one `calls` times."""
    for level in range(depth):
        nodes = add_function(meta_graph, f"f{level}", f"c{calls - 1}:output:0", dtype)
        tensor = "x"
        for call in range(calls):
            add_call(nodes, f"c{call}", tensor, f"f{level + 1}", dtype)
            tensor = f"c{call}:output:0"
    nodes = add_function(meta_graph, f"f{depth}", "y:output:0", dtype)
    add_node(nodes, "y", "Identity", ["x"], T=dtype)
    if last:
        add_node(nodes, "last", last, ["x"])
    replace_output(meta_graph, "StatefulPartitionedCall", ["x"], Tin=[dtype], Tout=[dtype], f="f0")


def _register_chain(name: str, depth: int, calls: int, dtype: tf.DType, last: str = "") -> None:
    def build(directory: pathlib.Path) -> None:
        saved_model = tiny(dtype)
        _chain(saved_model.meta_graphs[0], depth, calls, dtype, last)
        write(directory, saved_model)

    HOSTILE[name] = build


_register_chain("60 levels of functions that call the next one twice", 60, 2, tf.float32)
_register_chain("60 levels of functions of strings that call the next one twice", 60, 2, tf.string)
_register_chain(
    "60 levels of functions that call the next one twice above a file", 60, 2, tf.string, "ReadFile"
)
_register_chain(
    "20 levels of functions of strings that call the next one 40 times", 20, 40, tf.string
)
_register_chain("1000 functions that call the next one", 1000, 1, tf.float32)
_register_chain("5000 functions of strings that call the next one", 5000, 1, tf.string)


@hostile_graph("60 levels of functions twice in the init op")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = meta_graph.graph_def.node
    _chain(meta_graph, 60, 2, tf.float32)
    add_node(nodes, "zero", "Const", value=constant([], FLOAT, float_val=[0.0]), dtype=tf.float32)
    node_named(nodes, "y").input[0] = "x"
    add_call(nodes, "init", "zero", "f0")
    meta_graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "init"


@hostile_graph("60 levels of functions twice above an assignment in the restore op")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = meta_graph.graph_def.node
    _chain(meta_graph, 60, 2, tf.resource)
    last = meta_graph.graph_def.library.function[-1].node_def
    add_node(last, "one", "Const", value=constant([], FLOAT, float_val=[1.0]), dtype=tf.float32)
    add_node(last, "assign", "AssignVariableOp", ["x", "one:output:0"], dtype=tf.float32)
    node_named(nodes, "y").Clear()
    replace = nodes.add(name="v", op="VarHandleOp")
    replace.attr["dtype"].type = FLOAT
    replace.attr["shape"].shape.SetInParent()
    add_call(nodes, "restore", "v", "f0", tf.resource)
    add_node(nodes, "read", "ReadVariableOp", ["v"], dtype=tf.float32)
    for index, node in enumerate(nodes):
        if not node.name:
            del nodes[index]
            break
    add_node(nodes, "y", "AddV2", ["x", "read"], T=tf.float32)
    add_node(nodes, "prefix", "Placeholder", dtype=tf.string, shape=())
    meta_graph.saver_def.restore_op_name = "restore"
    meta_graph.saver_def.filename_tensor_name = "prefix:0"


@hostile_graph("5000 functions that call one which reads 2000 variables")
def _(meta_graph: MetaGraphDef) -> None:
    last = add_function(meta_graph, "last", "x")
    for index in range(2000):
        variable = last.add(name=f"v{index}", op="VarHandleOp")
        variable.attr["dtype"].type = FLOAT
        variable.attr["shape"].shape.SetInParent()
    meta_graph.graph_def.library.function[-1].control_ret.update(
        {f"v{index}": f"v{index}" for index in range(2000)}
    )
    for index in range(5000):
        add_call(add_function(meta_graph, f"f{index}", "call:output:0"), "call", "x", "last")
        add_call(meta_graph.graph_def.node, f"call{index}", "x", f"f{index}")
    names = [f"call{index}" for index in range(5000)]
    replace_output(meta_graph, "AddN", names, T=tf.float32, N=5000)


@hostile_graph("a call of a function that is missing")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(
        meta_graph,
        "StatefulPartitionedCall",
        ["x"],
        Tin=[tf.float32],
        Tout=[tf.float32],
        f="missing",
    )


@hostile_graph("a call without a function")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(
        meta_graph, "StatefulPartitionedCall", ["x"], Tin=[tf.float32], Tout=[tf.float32]
    )


@hostile_graph("a call with more inputs than the function has arguments")
def _(meta_graph: MetaGraphDef) -> None:
    add_function(meta_graph, "f")
    replace_output(
        meta_graph,
        "StatefulPartitionedCall",
        ["x"] * 3,
        Tin=[tf.float32] * 3,
        Tout=[tf.float32],
        f="f",
    )


@hostile_graph("a call with fewer inputs than the function has arguments")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = add_function(meta_graph, "f", "parse:dense_values:0", tf.string)
    function = meta_graph.graph_def.library.function[0]
    function.signature.input_arg.add(name="keys", type=STRING)
    add_node(
        nodes,
        "parse",
        "ParseExampleV2",
        ["x", "keys", "keys", "keys", "keys"],
        Tdense=[],
        dense_shapes=[],
        sparse_types=[],
    )
    node_named(meta_graph.graph_def.node, "x").attr["dtype"].type = STRING
    meta_graph.signature_def["serving_default"].inputs["x"].dtype = STRING
    replace_output(
        meta_graph, "StatefulPartitionedCall", ["x"], Tin=[tf.string], Tout=[tf.string], f="f"
    )


@hostile_graph("a loop that returns fewer values than it takes")
def _(meta_graph: MetaGraphDef) -> None:
    body = add_function(meta_graph, "body", "x", tf.string)
    add_node(body, "id", "Identity", ["x"], T=tf.string)
    function = meta_graph.graph_def.library.function[0]
    function.signature.ClearField("output_arg")
    function.ret.clear()
    node_named(meta_graph.graph_def.node, "x").attr["dtype"].type = STRING
    meta_graph.signature_def["serving_default"].inputs["x"].dtype = STRING
    replace_output(meta_graph, "While", ["x", "x"], T=[tf.string] * 2, cond="body", body="body")


@hostile_graph("a function whose results name nothing")
def _(meta_graph: MetaGraphDef) -> None:
    add_function(meta_graph, "f", "nothing:output:0")
    meta_graph.graph_def.library.function[0].ret.clear()
    replace_output(
        meta_graph, "StatefulPartitionedCall", ["x"], Tin=[tf.float32], Tout=[tf.float32], f="f"
    )


@hostile_graph("two functions of one name")
def _(meta_graph: MetaGraphDef) -> None:
    add_function(meta_graph, "f")
    add_node(add_function(meta_graph, "f", "y:output:0"), "y", "Neg", ["x"], T=tf.float32)
    replace_output(
        meta_graph, "StatefulPartitionedCall", ["x"], Tin=[tf.float32], Tout=[tf.float32], f="f"
    )


@hostile_graph("a function without a name")
def _(meta_graph: MetaGraphDef) -> None:
    add_function(meta_graph, "")
    replace_output(
        meta_graph, "StatefulPartitionedCall", ["x"], Tin=[tf.float32], Tout=[tf.float32], f=""
    )


# Nodes of the main graph.


@hostile_graph("nodes in a circle")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = meta_graph.graph_def.node
    add_node(nodes, "a", "Identity", ["b"], T=tf.float32)
    add_node(nodes, "b", "Identity", ["a"], T=tf.float32)
    replace_output(meta_graph, "AddV2", ["x", "a"], T=tf.float32)


@hostile_graph("a loop body whose identities read each other in a circle")
def _(meta_graph: MetaGraphDef) -> None:
    body = add_function(meta_graph, "body", "a:output:0", tf.string)
    add_node(body, "a", "Identity", ["b:output:0"], T=tf.string)
    add_node(body, "b", "Identity", ["a:output:0"], T=tf.string)
    add_node(
        body, "parse", "ParseExampleV2", ["x"] * 5, Tdense=[], dense_shapes=[], sparse_types=[]
    )
    meta_graph.graph_def.library.function[0].control_ret["parse"] = "parse"
    node_named(meta_graph.graph_def.node, "x").attr["dtype"].type = STRING
    meta_graph.signature_def["serving_default"].inputs["x"].dtype = STRING
    replace_output(meta_graph, "While", ["x"], T=[tf.string], cond="body", body="body")


@hostile_graph("two nodes of one name")
def _(meta_graph: MetaGraphDef) -> None:
    add_node(meta_graph.graph_def.node, "y", "Neg", ["x"], T=tf.float32)


@hostile_graph("a node without a name")
def _(meta_graph: MetaGraphDef) -> None:
    add_node(meta_graph.graph_def.node, "", "Neg", ["x"], T=tf.float32)


@hostile_graph("a node without inputs that must have one")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(meta_graph, "Identity", [], T=tf.float32)


@hostile_graph("an input that is output 10^9 of a node")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(meta_graph, "Identity", ["x:1000000000"], T=tf.float32)


@hostile_graph("an input whose output number has 10 000 digits")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(meta_graph, "Identity", ["x:" + "9" * 10_000], T=tf.float32)


@hostile_graph("an input whose output number is a superscript")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(meta_graph, "Identity", ["x:²"], T=tf.float32)
    meta_graph.signature_def["serving_default"].outputs["y"].name = "y:²"


@hostile_graph("only control inputs")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(meta_graph, "IdentityN", ["^x", "^y"], T=[tf.float32])


@hostile_graph("inputs that name nothing")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(
        meta_graph, "AddN", ["", "^", ":", ":0", "^:0", "nothing", "x:-1"], T=tf.float32, N=7
    )


@hostile_graph("an op that no TensorFlow has")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(meta_graph, "NoSuchOp", ["x"])


@hostile_graph("100 000 identities in a row")
def _(meta_graph: MetaGraphDef) -> None:
    last = "x"
    for index in range(100_000):
        add_node(meta_graph.graph_def.node, f"i{index}", "Identity", [last], T=tf.float32)
        last = f"i{index}"
    replace_output(meta_graph, "Identity", [last], T=tf.float32)


def many_nodes(count: int) -> bytes:
    """Makes a serialized GraphDef of NoOps, from bytes, since adding nodes one by one is slow."""
    return b"".join(
        _field(1, _field(1, b"n%d" % index) + _field(2, b"NoOp")) for index in range(count)
    )


def _many_nodes(count: int) -> Builder:
    def build(directory: pathlib.Path) -> None:
        saved_model = tiny()
        saved_model.meta_graphs[0].graph_def.MergeFromString(many_nodes(count))
        write(directory, saved_model)

    return build


HOSTILE["490 000 nodes"] = _many_nodes(490_000)
HOSTILE["290 000 nodes"] = _many_nodes(290_000)
HOSTILE["2 000 000 nodes"] = _many_nodes(2_000_000)


def _burning(count: int) -> Builder:
    """Returns a builder with many nodes, hence a large budget, and a chain that exhausts it."""

    def build(directory: pathlib.Path) -> None:
        saved_model = tiny(tf.string)
        _chain(saved_model.meta_graphs[0], 60, 2, tf.string)
        saved_model.meta_graphs[0].graph_def.MergeFromString(many_nodes(count))
        write(directory, saved_model)

    return build


HOSTILE["490 000 nodes beside 60 levels of functions twice"] = _burning(490_000)


def _read_by_many(count: int) -> Builder:
    """Returns a builder with many signatures that end at different nodes of one long chain."""

    def build(directory: pathlib.Path) -> None:
        saved_model = tiny()
        meta_graph = saved_model.meta_graphs[0]
        meta_graph.graph_def.MergeFromString(
            b"".join(
                _field(
                    1,
                    _field(1, b"i%d" % index)
                    + _field(2, b"Neg")
                    + _field(3, b"i%d" % (index - 1) if index else b"x"),
                )
                for index in range(count)
            )
        )
        for index in range(300):
            definition = meta_graph.signature_def[f"s{index}"]
            definition.CopyFrom(meta_graph.signature_def["serving_default"])
            definition.outputs["y"].name = f"i{count - 1 - index}:0"
        write(directory, saved_model)

    return build


HOSTILE["490 000 nodes in a row in 300 signatures"] = _read_by_many(490_000)


@hostile_graph("a node of 200 000 inputs in 200 signatures")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(meta_graph, "AddN", ["x"] * 200_000, T=tf.float32, N=200_000)
    for index in range(200):
        definition = meta_graph.signature_def[f"s{index}"]
        definition.CopyFrom(meta_graph.signature_def["serving_default"])
        definition.inputs[f"more{index}"].CopyFrom(definition.inputs["x"])
        definition.inputs[f"more{index}"].name = f"y:{index + 1}"


@hostile_graph("20 000 signatures")
def _(meta_graph: MetaGraphDef) -> None:
    for index in range(20_000):
        meta_graph.signature_def[f"s{index}"].CopyFrom(meta_graph.signature_def["serving_default"])


# Attributes.


def _string_reader(name: str, op: str, inputs: Iterable[str] = ("x",), **attrs: Any) -> None:
    def build(directory: pathlib.Path) -> None:
        saved_model = tiny(tf.string)
        replace_output(saved_model.meta_graphs[0], op, inputs, **attrs)
        write(directory, saved_model)

    HOSTILE[name] = build


_string_reader("Unpack with 10^9 outputs", "Unpack", num=10**9, axis=0, T=tf.string)
_string_reader("Unpack with 2^62 outputs", "Unpack", num=2**62, axis=0, T=tf.string)
_string_reader("Unpack with a negative number of outputs", "Unpack", num=-5, axis=0, T=tf.string)
_string_reader("Split with 10^9 outputs", "Split", ("x", "x"), num_split=10**9, T=tf.string)
_string_reader(
    "DynamicPartition with 10^9 outputs",
    "DynamicPartition",
    ("x", "x"),
    num_partitions=10**9,
    T=tf.string,
)
_string_reader(
    "a ragged rank of 2^62",
    "RaggedTensorFromVariant",
    output_ragged_rank=2**62,
    input_ragged_rank=1,
    Tvalues=tf.string,
)
_string_reader(
    "a ragged rank of -1", "RaggedTensorFromVariant", output_ragged_rank=-1, Tvalues=tf.string
)
_string_reader("IdentityN without types", "IdentityN")
_string_reader(
    "DecodeCSV with a delimiter that is not UTF-8",
    "DecodeCSV",
    field_delim=b"\xff\xfe",
    OUT_TYPE=[tf.float32],
)
_string_reader(
    "DecodeCSV with unknown dtypes",
    "DecodeCSV",
    OUT_TYPE=AttrValue(list=AttrValue.ListValue(type=[77, 78])),
)
_string_reader(
    "DecodeCompressed with a name that is not UTF-8",
    "DecodeCompressed",
    compression_type=b"\xff\xfe",
)
_string_reader("DecodeRaw of an unknown dtype", "DecodeRaw", out_type=AttrValue(type=77))
_string_reader("DecodeRaw without a dtype", "DecodeRaw")
_string_reader("DecodePng of a negative number of channels", "DecodePng", channels=-(2**40))
_string_reader("ParseTensor of a reference dtype", "ParseTensor", out_type=AttrValue(type=101))
_string_reader(
    "a string op with an attribute of each kind wrong", "StringToNumber", out_type=b"\xff"
)


@hostile
def DecodeBase64_of_itself_5000_times(directory: pathlib.Path) -> None:
    saved_model = tiny(tf.string)
    last = "x"
    for index in range(5000):
        add_node(saved_model.meta_graphs[0].graph_def.node, f"d{index}", "DecodeBase64", [last])
        last = f"d{index}"
    replace_output(saved_model.meta_graphs[0], "DecodeRaw", [last], out_type=tf.float32)
    write(directory, saved_model)


@hostile
def DecodeBase64_that_doubles_at_each_level(directory: pathlib.Path) -> None:
    saved_model = tiny(tf.string)
    nodes = saved_model.meta_graphs[0].graph_def.node
    last = "x"
    for index in range(40):
        for half in range(2):
            add_node(nodes, f"d{index}_{half}", "DecodeBase64", [last])
        add_node(
            nodes, f"p{index}", "Pack", [f"d{index}_0", f"d{index}_1"], N=2, axis=0, T=tf.string
        )
        last = f"p{index}"
    replace_output(saved_model.meta_graphs[0], "DecodeRaw", [last], out_type=tf.float32)
    write(directory, saved_model)


@hostile_graph("variables whose names are not UTF-8")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = meta_graph.graph_def.node
    add_node(
        *(nodes, "v", "VarHandleOp"),
        dtype=tf.float32,
        shape=(),
        shared_name=b"\xff\xfe",
        container=b"\xc3\x28",
    )
    add_node(nodes, "read", "ReadVariableOp", ["v"], dtype=tf.float32)
    replace_output(meta_graph, "AddV2", ["x", "read"], T=tf.float32)


@hostile_graph("a variable of shape [2^40, 2^40]")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = meta_graph.graph_def.node
    add_node(nodes, "v", "VarHandleOp", dtype=tf.float32, shape=(HUGE, HUGE), shared_name=b"v")
    add_node(nodes, "read", "ReadVariableOp", ["v"], dtype=tf.float32)
    replace_output(meta_graph, "AddV2", ["x", "read"], T=tf.float32)


@hostile_graph("a shape with more dimensions than TensorFlow has")
def _(meta_graph: MetaGraphDef) -> None:
    node_named(meta_graph.graph_def.node, "x").attr["shape"].CopyFrom(attr((1,) * 10_000))


@hostile_graph("sizes of dimensions below -1")
def _(meta_graph: MetaGraphDef) -> None:
    node_named(meta_graph.graph_def.node, "x").attr["shape"].CopyFrom(attr((-7, -(2**62))))
    meta_graph.signature_def["serving_default"].inputs["x"].tensor_shape.dim[0].size = -(2**62)


def _in_500_signatures(name: str, op: str, attrs: bytes) -> None:
    """Registers a node of a million entries that each of many signatures reaches separately."""

    def build(directory: pathlib.Path) -> None:
        saved_model = tiny(tf.string)
        meta_graph = saved_model.meta_graphs[0]
        replace_output(meta_graph, op, ["x"]).MergeFromString(attrs)
        for index in range(500):
            definition = meta_graph.signature_def[f"s{index}"]
            definition.CopyFrom(meta_graph.signature_def["serving_default"])
            definition.inputs[f"more{index}"].CopyFrom(definition.inputs["x"])
            definition.inputs[f"more{index}"].name = f"other{index}:0"
        write(directory, saved_model)

    HOSTILE[name] = build


def _attr_bytes(name: bytes, value: bytes) -> bytes:
    return _field(5, _field(1, name) + _field(2, value))


_in_500_signatures(
    "Case of a million branches in 500 signatures",
    "Case",
    _attr_bytes(b"branches", _field(1, _field(9, _field(1, b"f")) * 10**6)),
)
_in_500_signatures(
    "an unknown op of 300 000 attributes in 500 signatures",
    "NoSuchOp",
    b"".join(_attr_bytes(b"a%d" % index, b"") for index in range(300_000)),
)
_in_500_signatures(
    "DecodeCSV of a million columns in 500 signatures",
    "DecodeCSV",
    _attr_bytes(b"OUT_TYPE", _field(1, _field(6, b"\x01" * 10**6))),
)


# Constants and parsers.


hostile_parser("feature keys of shape [2^40]", dense=constant([HUGE], STRING, string_val=[b"a"]))
hostile_parser(
    "feature keys whose sizes overflow", dense=constant([2**62] * 4, STRING, string_val=[b"a"])
)
hostile_parser("feature keys of a negative size", sparse=constant([-5], STRING, string_val=[b"a"]))
hostile_parser(
    "feature keys of 100 000 dimensions of 2^62", sparse=constant([2**62] * 100_000, STRING)
)
hostile_parser("a default of shape [2^40]", default=constant([HUGE], FLOAT, float_val=[0.0]))
hostile_parser("a default of 4 GiB", default=constant([2**30], FLOAT, float_val=[0.0]))
hostile_parser(
    "a default whose content has another size",
    default=constant([3], FLOAT, tensor_content=b"\0" * 7),
)
hostile_parser(
    "a default of more values than elements", default=constant([1], FLOAT, float_val=[0.0] * 9)
)
hostile_parser(
    "a default of an unknown dtype", default=TensorProto(dtype=FLOAT, half_val=[2**31 - 1])
)
hostile_parser(
    "feature keys that are not UTF-8", dense=constant([1], STRING, string_val=[b"\xff\xfe"])
)
hostile_parser("feature keys that are numbers", dense=constant([1], INT64, int64_val=[7]))
hostile_parser("more types than feature keys", Tdense=[tf.float32] * 5)
hostile_parser("fewer shapes than feature keys", dense_shapes=[])
hostile_parser(
    "unknown types of features", sparse_types=AttrValue(list=AttrValue.ListValue(type=[99]))
)
hostile_parser("a parser of two inputs", inputs=["x", "names"])
hostile_parser("a parser without a default", inputs=["x", "names", "sparse", "dense", "ragged"])
hostile_parser("features of shape [2^40]", dense_shapes=[(HUGE,)])
hostile_parser(
    "ParseSingleExample with keys that are not UTF-8",
    **{
        "op": "ParseSingleExample",
        "inputs": ["x", "default"],
        "dense_keys": [b"\xff"],
        "sparse_keys": [b"\xfe"],
    },
)
hostile_parser(
    "ParseExample with fewer keys than types",
    op="ParseExample",
    inputs=["x", "names"],
    Nsparse=9,
    Ndense=9,
)


@hostile
def a_thousand_defaults_of_a_million_elements(directory: pathlib.Path) -> None:
    count = 1000
    default = constant([10**6], FLOAT, float_val=[0.0])
    saved_model = parsing_model(
        dense=constant(
            [count], STRING, string_val=[f"k{index}".encode() for index in range(count)]
        ),
        default=default,
        Tdense=[tf.float32] * count,
        dense_shapes=[(10**6,)] * count,
        inputs=["x", "names", "sparse", "dense", "ragged", *(["default"] * count)],
    )
    write(directory, saved_model)


@hostile
def reshapes_of_a_default_in_a_circle(directory: pathlib.Path) -> None:
    saved_model = parsing_model(inputs=["x", "names", "sparse", "dense", "ragged", "r0"])
    nodes = saved_model.meta_graphs[0].graph_def.node
    for index in range(2):
        add_node(
            nodes, f"r{index}", "Reshape", [f"r{1 - index}", "x"], T=tf.float32, Tshape=tf.int32
        )
    write(directory, saved_model)


@hostile
def a_default_behind_5000_reshapes(directory: pathlib.Path) -> None:
    saved_model = parsing_model(inputs=["x", "names", "sparse", "dense", "ragged", "r4999"])
    nodes = saved_model.meta_graphs[0].graph_def.node
    last = "default"
    for index in range(5000):
        add_node(nodes, f"r{index}", "Reshape", [last, "x"], T=tf.float32, Tshape=tf.int32)
        last = f"r{index}"
    write(directory, saved_model)


# Graphs that crash, or fill the memory of, the process that imports or runs them.


def _filled(name: str, *sizes: int) -> None:
    @hostile_graph(name)
    def _(meta_graph: MetaGraphDef) -> None:
        nodes = meta_graph.graph_def.node
        dims = constant([len(sizes)], INT64, int64_val=sizes)
        add_node(nodes, "dims", "Const", value=dims, dtype=tf.int64)
        add_node(
            nodes, "zero", "Const", value=constant([], FLOAT, float_val=[0.0]), dtype=tf.float32
        )
        add_node(nodes, "fill", "Fill", ["dims", "zero"], T=tf.float32, index_type=tf.int64)
        add_node(nodes, "axis", "Const", value=constant([1], INT32, int_val=[0]), dtype=tf.int32)
        add_node(
            nodes, "sum", "Sum", ["fill", "axis"], T=tf.float32, Tidx=tf.int32, keep_dims=False
        )
        replace_output(meta_graph, "AddV2", ["x", "sum"], T=tf.float32)


_filled("a fill of 2^40 elements", HUGE)
_filled("a fill of 4 GiB", 2**30)
_filled("a fill of a negative size", -5)


@hostile_graph("a constant of shape [2^40] in the graph")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = meta_graph.graph_def.node
    add_node(nodes, "c", "Const", value=constant([HUGE], FLOAT, float_val=[0.0]), dtype=tf.float32)
    replace_output(meta_graph, "AddV2", ["x", "c"], T=tf.float32)


def _endless(meta_graph: MetaGraphDef, name: str, tensor: str) -> None:
    cond = add_function(meta_graph, "cond", "true:output:0")
    meta_graph.graph_def.library.function[-1].signature.output_arg[
        0
    ].type = tf.bool.as_datatype_enum
    add_node(
        cond,
        "true",
        "Const",
        value=constant([], tf.bool.as_datatype_enum, bool_val=[True]),
        dtype=tf.bool,
    )
    add_node(add_function(meta_graph, "body", "id:output:0"), "id", "Identity", ["x"], T=tf.float32)
    add_node(
        *(meta_graph.graph_def.node, name, "StatelessWhile", [tensor]),
        T=[tf.float32],
        cond="cond",
        body="body",
    )


@hostile_graph("an endless loop in a signature")
def _(meta_graph: MetaGraphDef) -> None:
    _endless(meta_graph, "loop", "x")
    replace_output(meta_graph, "Identity", ["loop"], T=tf.float32)


@hostile_graph("an endless loop in the init op")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = meta_graph.graph_def.node
    add_node(nodes, "zero", "Const", value=constant([], FLOAT, float_val=[0.0]), dtype=tf.float32)
    _endless(meta_graph, "init", "zero")
    meta_graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "init"


@hostile_graph("shape inference of a reshape to a constant of 10^6 dimensions")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = meta_graph.graph_def.node
    add_node(nodes, "to", "Const", value=constant([10**6], INT64, int64_val=[1]), dtype=tf.int64)
    replace_output(meta_graph, "Reshape", ["x", "to"], T=tf.float32, Tshape=tf.int64)


@hostile_graph("shape inference of ops with sizes of -2^62")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = meta_graph.graph_def.node
    add_node(nodes, "image", "Placeholder", dtype=tf.float32, shape=(1, 2**31, 2**31, 2**31))
    add_node(nodes, "filter", "Placeholder", dtype=tf.float32, shape=(2**62, 2**62, 1, 1))
    add_node(
        *(nodes, "conv", "Conv2D", ["image", "filter"]),
        **{
            "T": tf.float32,
            "strides": [1, -(2**62), 2**62, 0],
            "padding": b"VALID",
            "dilations": [-1, 0, 2**62, 1],
        },
    )


@hostile_graph("shape handles with negative ranks")
def _(meta_graph: MetaGraphDef) -> None:
    node = node_named(meta_graph.graph_def.node, "y")
    shape = AttrValue(list=AttrValue.ListValue())
    shape.list.shape.add().dim.add(size=-(2**63))
    node.attr["_output_shapes"].CopyFrom(shape)


@hostile_graph("Einsum with an equation of 10^5 labels")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(meta_graph, "Einsum", ["x"], T=tf.float32, N=1, equation=b"a" * 10**5 + b"->a")


@hostile_graph("attributes N of 2^31")
def _(meta_graph: MetaGraphDef) -> None:
    replace_output(meta_graph, "Pack", ["x"], T=tf.float32, N=2**31, axis=-(2**62))


@hostile_graph("Abort in the init op")
def _(meta_graph: MetaGraphDef) -> None:
    add_node(
        meta_graph.graph_def.node, "abort", "Abort", error_msg=b"abort", exit_without_error=False
    )
    meta_graph.signature_def["__saved_model_init_op"].outputs[
        "__saved_model_init_op"
    ].name = "abort"


# Ops that act outside of the model.


def _unsafe(name: str, op: str, **attrs: Any) -> None:
    """Registers an op of one or more strings in the signature."""

    @hostile_graph(name)
    def _(meta_graph: MetaGraphDef) -> None:
        nodes = meta_graph.graph_def.node
        inputs = attrs.get("inputs", 1)
        for index in range(inputs):
            absent = constant([], STRING, string_val=[b"/nonexistent/keras_warmup"])
            add_node(nodes, f"name{index}", "Const", value=absent, dtype=tf.string)
        plain = {key: value for key, value in attrs.items() if key != "inputs"}
        add_node(nodes, "unsafe", op, [f"name{index}" for index in range(inputs)], **plain)
        replace_output(meta_graph, "Identity", ["x", "^unsafe"], T=tf.float32)


_unsafe("ReadFile in a signature", "ReadFile")
_unsafe("WriteFile in a signature", "WriteFile", inputs=2)
_unsafe("MatchingFiles in a signature", "MatchingFiles")
_unsafe("PrintV2 to standard error", "PrintV2")
_unsafe("PrintV2 to a file", "PrintV2", output_stream=b"file:///nonexistent/keras_warmup")
_unsafe("SaveV2 in a signature", "SaveV2", inputs=4, dtypes=[tf.string])
_unsafe("RestoreV2 in a signature", "RestoreV2", inputs=3, dtypes=[tf.string])
_unsafe("PyFunc in a signature", "PyFunc", token=b"pyfunc_0", Tin=[tf.string], Tout=[tf.string])
_unsafe("a TFRecord dataset in a signature", "TFRecordDataset", inputs=3)


@hostile_graph("ReadFile in a function of the init op")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = add_function(meta_graph, "f", "x", tf.string)
    add_node(nodes, "read", "ReadFile", ["x"])
    meta_graph.graph_def.library.function[0].control_ret["read"] = "read"
    absent = constant([], STRING, string_val=[b"/nonexistent/keras_warmup"])
    add_node(meta_graph.graph_def.node, "name", "Const", value=absent, dtype=tf.string)
    add_call(meta_graph.graph_def.node, "init", "name", "f", tf.string)
    meta_graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "init"


# Signatures, object graph, collections.


@hostile_graph("unknown dtypes of inputs")
def _(meta_graph: MetaGraphDef) -> None:
    meta_graph.signature_def["serving_default"].inputs["x"].dtype = 99


@hostile_graph("inputs without a tensor")
def _(meta_graph: MetaGraphDef) -> None:
    meta_graph.signature_def["serving_default"].inputs["x"].name = ""
    meta_graph.signature_def["serving_default"].outputs["y"].name = ""


@hostile_graph("outputs that are inputs that name nothing")
def _(meta_graph: MetaGraphDef) -> None:
    for info in (
        meta_graph.signature_def["serving_default"].inputs["x"],
        meta_graph.signature_def["serving_default"].outputs["y"],
    ):
        info.name = "nothing:7"


@hostile_graph("control characters and markup in names")
def _(meta_graph: MetaGraphDef) -> None:
    definition = meta_graph.signature_def["\x1b[2J\x1b]0;title\x07\r\n[/bold] key"]
    definition.CopyFrom(meta_graph.signature_def["serving_default"])
    definition.inputs["\x1b[31m[/x]\u202e"].CopyFrom(definition.inputs["x"])
    del definition.inputs["x"]
    definition.outputs["\x00\x9b"].CopyFrom(definition.outputs["y"])


@hostile_graph("a name of 10 MB")
def _(meta_graph: MetaGraphDef) -> None:
    name = "n" * 10**7
    add_node(meta_graph.graph_def.node, name, "Identity", ["x"], T=tf.float32)
    meta_graph.signature_def["serving_default"].outputs["y"].name = f"{name}:0"


@hostile_graph("a default input of shape [2^40]")
def _(meta_graph: MetaGraphDef) -> None:
    meta_graph.signature_def["serving_default"].defaults["x"].CopyFrom(
        constant([HUGE], FLOAT, float_val=[0.0])
    )


def _composite(depth: int) -> Builder:
    def build(directory: pathlib.Path) -> None:
        saved_model = tiny()
        info = saved_model.meta_graphs[0].signature_def["serving_default"].outputs["y"]
        for _ in range(depth):
            info = info.composite_tensor.components.add()
        info.name = "y:0"
        write(directory, saved_model)

    return build


HOSTILE["composite outputs nested 40 deep"] = _composite(40)
HOSTILE["composite outputs nested 5000 deep"] = lambda directory: _raw(directory, _nested(5000))


def _nested(depth: int) -> bytes:
    """Makes a proto of nested lengths that a recursive parser must not follow."""
    content = b""
    for _ in range(depth):
        content = _field(2, content)
    return content


def _raw(directory: pathlib.Path, content: bytes, name: str = "saved_model.pb") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(content)


@hostile_graph("argument structures of 10 000 concrete functions of one stem")
def _(meta_graph: MetaGraphDef) -> None:
    nodes = add_function(meta_graph, "wrapper", "call:output:0")
    add_call(nodes, "call", "x", "inner_0")
    for index in range(3000):
        inner = add_function(meta_graph, f"inner_{index}", "n19:y:0")
        for number in range(20):
            add_node(
                inner, f"n{number}", "Neg", [f"n{number - 1}:y:0" if number else "x"], T=tf.float32
            )
    for index in range(1, 10_000):
        pair = meta_graph.object_graph_def.concrete_functions[
            f"inner_{index}"
        ].canonicalized_input_signature.tuple_value
        pair.values.add().tuple_value.values.add().tensor_spec_value.name = "x"
        pair.values.add().dict_value.SetInParent()
    replace_output(
        meta_graph,
        "StatefulPartitionedCall",
        ["x"],
        Tin=[tf.float32],
        Tout=[tf.float32],
        f="wrapper",
    )
    for index in range(50):
        meta_graph.signature_def[f"s{index}"].CopyFrom(meta_graph.signature_def["serving_default"])


@hostile_graph("an asset collection of bytes that are no proto")
def _(meta_graph: MetaGraphDef) -> None:
    packed = meta_graph.collection_def["saved_model_assets"].any_list.value.add()
    packed.type_url, packed.value = "type.googleapis.com/tensorflow.AssetFileDef", b"\xff" * 9


@hostile_graph("an asset named ../../etc/passwd")
def _(meta_graph: MetaGraphDef) -> None:
    empty = constant([], STRING, string_val=[b""])
    add_node(meta_graph.graph_def.node, "asset", "Const", value=empty, dtype=tf.string)
    asset = meta_graph.asset_file_def.add(filename="../../etc/passwd")
    asset.tensor_info.name = "asset:0"
    add_node(meta_graph.graph_def.node, "init", "ReadFile", ["asset"])
    meta_graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "init"


@hostile_graph("init and restore ops that name nothing")
def _(meta_graph: MetaGraphDef) -> None:
    meta_graph.signature_def["__saved_model_init_op"].outputs[
        "__saved_model_init_op"
    ].name = "nothing:²"
    meta_graph.collection_def["legacy_init_op"].node_list.value.append("^")
    meta_graph.saver_def.restore_op_name = ":0"
    meta_graph.saver_def.filename_tensor_name = "^:9"


@hostile_graph("no signatures")
def _(meta_graph: MetaGraphDef) -> None:
    meta_graph.signature_def.clear()


# Files.


@hostile
def saved_model_is_empty(directory: pathlib.Path) -> None:
    _raw(directory, b"")


@hostile
def saved_model_is_cut(directory: pathlib.Path) -> None:
    content = parsing_model().SerializeToString()
    _raw(directory, content[: len(content) // 2])


@hostile
def saved_model_is_noise(directory: pathlib.Path) -> None:
    _raw(directory, random.Random(0).randbytes(100_000))


@hostile
def saved_model_has_names_that_are_not_UTF_8(directory: pathlib.Path) -> None:
    content = tiny().SerializeToString()
    _raw(directory, content.replace(b"serving_default", b"serving\xff\xfeefault"))


@hostile
def saved_model_is_a_fifo(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    os.mkfifo(directory / "saved_model.pb")


@hostile
def saved_model_pbtxt_is_a_fifo(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    os.mkfifo(directory / "saved_model.pbtxt")


@hostile
def saved_model_is_a_socket(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    here = os.getcwd()
    try:
        os.chdir(directory)  # the address of a socket has a short maximum length
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("saved_model.pb")
    finally:
        os.chdir(here)


@hostile
def saved_model_is_a_device(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    (directory / "saved_model.pb").symlink_to("/dev/zero")


@hostile
def saved_model_is_a_directory(directory: pathlib.Path) -> None:
    (directory / "saved_model.pb").mkdir(parents=True)


@hostile
def saved_model_is_a_link_to_itself(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    (directory / "saved_model.pb").symlink_to("saved_model.pb")


@hostile
def saved_model_has_3_GiB(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    with (directory / "saved_model.pb").open("wb") as file:
        file.truncate(3 * 2**30)  # sparse


@hostile
def saved_model_pbtxt_nests_5000_deep(directory: pathlib.Path) -> None:
    opened = "tuple_value { values { " * 5000
    function = f"concrete_functions {{ value {{ canonicalized_input_signature {{ {opened}"
    text = f"meta_graphs {{ object_graph_def {{ {function}"
    _raw(directory, text.encode(), "saved_model.pbtxt")


@hostile
def saved_model_pbtxt_nests_120_deep(directory: pathlib.Path) -> None:
    text = text_format.MessageToString(tiny()).removesuffix("}\n")
    structure = "tuple_value { values { " * 60 + "} } " * 60
    function = f"key: 'f' value {{ canonicalized_input_signature {{ {structure} }} }}"
    text += f"object_graph_def {{ concrete_functions {{ {function} }} }} }}"
    _raw(directory, text.encode(), "saved_model.pbtxt")


@hostile
def saved_model_pbtxt_has_100_MB(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    with (directory / "saved_model.pbtxt").open("wb") as file:
        file.write(b"meta_graphs { }\n" * 100)
        file.truncate(100 * 2**20)


@hostile
def a_million_meta_graphs(directory: pathlib.Path) -> None:
    _raw(directory, b"\x12\x00" * 10**6)


@hostile
def the_directory_is_a_fifo(directory: pathlib.Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(directory)


def _restoring(directory: pathlib.Path) -> pathlib.Path:
    """Writes a model that restores a variable; the caller fills the directory returned."""
    saved_model = tiny()
    meta_graph = saved_model.meta_graphs[0]
    nodes = meta_graph.graph_def.node
    add_node(nodes, "v", "VarHandleOp", dtype=tf.float32, shape=(), shared_name=b"v")
    add_node(nodes, "read", "ReadVariableOp", ["v"], dtype=tf.float32)
    add_node(nodes, "prefix", "Placeholder", dtype=tf.string, shape=())
    for name, value in (("names", b"v"), ("slices", b"")):
        add_node(
            nodes, name, "Const", value=constant([1], STRING, string_val=[value]), dtype=tf.string
        )
    add_node(nodes, "values", "RestoreV2", ["prefix", "names", "slices"], dtypes=[tf.float32])
    add_node(nodes, "assign", "AssignVariableOp", ["v", "values"], dtype=tf.float32)
    add_node(nodes, "restore", "NoOp", ["^assign"])
    meta_graph.saver_def.restore_op_name = "restore"
    meta_graph.saver_def.filename_tensor_name = "prefix:0"
    replace_output(meta_graph, "AddV2", ["x", "read"], T=tf.float32)
    write(directory, saved_model)
    (directory / "variables").mkdir()
    return directory / "variables"


@hostile
def variables_are_fifos(directory: pathlib.Path) -> None:
    variables = _restoring(directory)
    os.mkfifo(variables / "variables.index")
    os.mkfifo(variables / "variables.data-00000-of-00001")


@hostile
def variables_are_noise(directory: pathlib.Path) -> None:
    variables = _restoring(directory)
    noise = random.Random(1)
    (variables / "variables.index").write_bytes(noise.randbytes(3000))
    (variables / "variables.data-00000-of-00001").write_bytes(noise.randbytes(3000))


@hostile
def variables_are_directories(directory: pathlib.Path) -> None:
    variables = _restoring(directory)
    (variables / "variables.index").mkdir()
    (variables / "variables.data-00000-of-00001").mkdir()


@hostile
def an_asset_is_a_fifo(directory: pathlib.Path) -> None:
    saved_model = tiny()
    meta_graph = saved_model.meta_graphs[0]
    empty = constant([], STRING, string_val=[b""])
    add_node(meta_graph.graph_def.node, "asset", "Const", value=empty, dtype=tf.string)
    asset = meta_graph.asset_file_def.add(filename="vocabulary")
    asset.tensor_info.name = "asset:0"
    add_node(meta_graph.graph_def.node, "init", "ReadFile", ["asset"])
    meta_graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "init"
    write(directory, saved_model)
    (directory / "assets").mkdir()
    os.mkfifo(directory / "assets" / "vocabulary")


# Warmup files.


def _warmup_builder(content: Callable[[], bytes]) -> Builder:
    def build(directory: pathlib.Path) -> None:
        write_warmup(directory, content())

    return build


def _warmup(name: str, content: Callable[[], bytes]) -> None:
    HOSTILE[f"warmup: {name}"] = _warmup_builder(content)


def _tensor_record(**tensors: TensorProto) -> bytes:
    return frame(predict_log(**tensors).SerializeToString())


_warmup("nothing", lambda: b"")
_warmup("noise", lambda: random.Random(2).randbytes(10_000))
_warmup("a record that is no PredictionLog", lambda: frame(b"\xff" * 100))
_warmup("a record that nests 5000 deep", lambda: frame(_nested(5000)))
_warmup(
    "a tensor of 2^40 floats", lambda: _tensor_record(x=constant([HUGE], FLOAT, float_val=[0.0]))
)
_warmup(
    "a tensor of 2^40 strings",
    lambda: _tensor_record(x=constant([HUGE], STRING, string_val=[b"a"])),
)
_warmup("a tensor of 4 GiB", lambda: _tensor_record(x=constant([2**30], FLOAT, float_val=[0.0])))
_warmup(
    "a tensor whose sizes overflow",
    lambda: _tensor_record(x=constant([2**62] * 4, FLOAT, float_val=[0.0])),
)
_warmup(
    "a tensor of a negative size", lambda: _tensor_record(x=constant([-5], FLOAT, float_val=[0.0]))
)
_warmup(
    "a tensor of no element and size 2^62", lambda: _tensor_record(x=constant([0, 2**62], FLOAT))
)
_warmup("a tensor of an unknown dtype", lambda: _tensor_record(x=constant([1], 99)))
_warmup("a resource", lambda: _tensor_record(x=constant([1], tf.resource.as_datatype_enum)))
_warmup("a variant", lambda: _tensor_record(x=constant([1], tf.variant.as_datatype_enum)))
_warmup(
    "control characters and markup",
    lambda: _tensor_record(**{"\x1b[2J[/bold]\r\n": constant([1], FLOAT)}),
)
_warmup(
    "a kind that no server runs",
    lambda: frame(PredictionLog(session_run_log={}).SerializeToString()),
)
_warmup("no kind", lambda: frame(b""))
_warmup("a million empty records", lambda: frame(b"") * 10**6)
_warmup("20 000 records", lambda: _tensor_record(x=constant([1], FLOAT, float_val=[0.0])) * 20_000)


def _header(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc32c(packed))


_warmup("a header that claims 3 GiB", lambda: _header(3 * 2**30))
_warmup("a header that claims 2^63 bytes", lambda: _header(2**63) + b"\0" * 100)
_warmup("a header cut short", lambda: _header(10)[:7])


@hostile
def warmup_file_of_one_record_of_3_GiB(directory: pathlib.Path) -> None:
    path = write_warmup(directory, _header(3 * 2**30))
    with path.open("r+b") as file:
        file.truncate(3 * 2**30 + 16)  # sparse


@hostile
def warmup_file_is_a_fifo(directory: pathlib.Path) -> None:
    path = write_warmup(directory, b"")
    path.unlink()
    os.mkfifo(path)


@hostile
def warmup_file_is_a_device(directory: pathlib.Path) -> None:
    path = write_warmup(directory, b"")
    path.unlink()
    path.symlink_to("/dev/zero")


@hostile
def warmup_file_is_a_directory(directory: pathlib.Path) -> None:
    path = write_warmup(directory, b"")
    path.unlink()
    path.mkdir()


@hostile
def warmup_file_is_a_link_to_itself(directory: pathlib.Path) -> None:
    path = write_warmup(directory, b"")
    path.unlink()
    path.symlink_to(path.name)
