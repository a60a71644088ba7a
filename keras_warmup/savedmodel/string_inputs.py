"""Finds the byte format of string inputs: a tf.Example (with its feature spec), an image, text, ...

A string dtype does not reveal the expected byte format, so the graph is traced: from the input
forwards, through calls of functions, to the first op that reads the bytes. Nothing is run and
nothing is guessed: a format that the graph does not reveal becomes `Unknown` with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, NodeDef
from keras_warmup.savedmodel.graph import LOOPS, SAME_VALUE, ModelGraph
from keras_warmup.savedmodel.graph_bodies import (
    CallFrame,
    GraphBody,
    attribute,
    input_of,
    output_index,
    source_of,
)
from keras_warmup.savedmodel.graph_limits import constant_value, text_of_bytes
from keras_warmup.savedmodel.signatures import Signature
from keras_warmup.savedmodel.string_formats import (
    Base64,
    Compressed,
    CsvDecoder,
    ExampleParser,
    FeatureSpec,
    ImageDecoder,
    PlainText,
    RawDecoder,
    SequenceExampleParser,
    StringFormat,
    TensorParser,
    Unknown,
)

# Ops whose output holds the same strings, perhaps fewer or in another shape -> positions of the
# inputs that hold them; `None` for all inputs.
_PASSES: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(SAME_VALUE, (0,)),
    **dict.fromkeys(("Reshape", "ExpandDims", "Squeeze", "StridedSlice", "Slice"), (0,)),
    **dict.fromkeys(("Gather", "GatherV2", "GatherNd", "BooleanMask", "DynamicPartition"), (0,)),
    **dict.fromkeys(("Unpack", "SplitV", "Tile", "Transpose", "BroadcastTo", "ReverseV2"), (0,)),
    **dict.fromkeys(("RandomShuffle", "TensorListFromTensor", "TensorListGetItem"), (0,)),
    **dict.fromkeys(("TensorListStack", "TensorListGather", "TensorListConcatV2"), (0,)),
    **dict.fromkeys(("TensorListPopBack",), (0,)),
    **dict.fromkeys(("TensorListSetItem", "SparseToDense"), (2,)),
    **dict.fromkeys(("IdentityN", "Pack", "ConcatV2", "Merge", "RefMerge", "Select"), None),
    **dict.fromkeys(("SelectV2", "TensorListPushBack", "Split", "Concat", "PadV2"), None),
    **dict.fromkeys(("RaggedTensorToVariant", "RaggedTensorFromVariant"), None),
    **dict.fromkeys(("RaggedTensorToTensor", "RaggedGather"), None),
    **dict.fromkeys(("TensorArrayReadV3", "TensorArrayGatherV3"), None),
    **dict.fromkeys(("TensorArrayScatterV3", "TensorArrayWriteV3"), None),
}
# Ops that return the row splits of a ragged tensor before its values -> attribute that counts them.
_RAGGED_RANKS: Mapping[str, str] = {
    "RaggedGather": "OUTPUT_RAGGED_RANK",
    "RaggedTensorFromVariant": "output_ragged_rank",
}
# Output arguments that come second, after an argument of one tensor.
_SECOND_OUTPUTS = frozenset({("TensorListPopBack", "tensor"), ("TensorListConcatV2", "lengths")})
# Ops that read shapes, print or check: they do not reveal the format.
_BLIND = frozenset(
    {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "Print", "PrintV2", "Assert"}
    | {"NoOp"}
)
_IMAGE_FORMATS: Mapping[str, tuple[str, ...]] = {
    "DecodeJpeg": ("jpeg",),
    "DecodeAndCropJpeg": ("jpeg",),
    "ExtractJpegShape": ("jpeg",),
    "DecodePng": ("png",),
    "DecodeGif": ("gif",),
    "DecodeBmp": ("bmp",),
    "DecodeWebP": ("webp",),
    "DecodeImage": ("png", "jpeg", "gif", "bmp"),
}
_FORMAT_ORDER = ("png", "jpeg", "gif", "bmp", "webp")
_EXAMPLE_OPS = frozenset({"ParseExample", "ParseExampleV2", "ParseSingleExample"})
_SEQUENCE_EXAMPLE_OPS = frozenset(
    {"ParseSequenceExample", "ParseSequenceExampleV2", "ParseSingleSequenceExample"}
)
# Output arguments of the Example ops -> numbers of sparse features that come before their outputs
# (core/ops/parsing_ops.cc). Those of ragged features are not followed.
_EXAMPLE_OUTPUTS = {"sparse_indices": 0, "sparse_values": 1, "sparse_shapes": 2, "dense_values": 3}
_CHANNELS = (0, 1, 3, 4)
# Of one default value. More are unusual, and may be a circle.
_MAX_RESHAPES = 100
# Base64 of base64. One level is common, two are unusual.
_MAX_BASE64 = 10
_TEXT_PREFIXES = ("String", "Unicode", "Regex", "StaticRegex", "LookupTable", "HashTable", "Substr")
_TEXT_OPS = frozenset(
    {"Equal", "NotEqual", "AsString", "Unique", "UniqueV2", "UniqueWithCounts", "Fingerprint"}
)


def find_string_formats(
    meta_graph: MetaGraphDef | ModelGraph, signature: Signature
) -> dict[str, StringFormat]:
    """Finds the byte format of each string input of a signature.

    Only nodes that the signature runs count: a placeholder may also be read for other signatures.

    Args:
        meta_graph: the MetaGraphDef, or a `ModelGraph` of it (build that once for several
            signatures).
        signature: a signature of it.

    Returns:
        Input name -> format, for the string inputs that have a tensor.

    Raises:
        SignatureError: the graph cannot be walked.
    """
    graph = meta_graph if isinstance(meta_graph, ModelGraph) else ModelGraph(meta_graph)
    found: dict[str, StringFormat] = {}
    for name, spec in signature.inputs.items():
        if spec.tensor and spec.dtype == "string":
            found[name] = _Trace(graph, signature).format_of(CallFrame(graph.main), spec.tensor)
    return found


class _DamagedNode(Exception):
    """Attributes or inputs that do not fit an op; the message follows `<op> reads it, but `."""


class _Trace:
    """A search from one string tensor forwards to every op that reads its bytes.

    Args:
        graph: the graph.
        signature: the signature that is run.
        base64_levels: levels of base64 that were decoded before.
    """

    def __init__(self, graph: ModelGraph, signature: Signature, base64_levels: int = 0) -> None:
        self._graph = graph
        self._signature = signature
        self._base64_levels = base64_levels
        self._seen: set[tuple[tuple[str, ...], str, int]] = set()

    def format_of(self, frame: CallFrame, tensor: str) -> StringFormat:
        """Returns the format that all readers of a tensor of `frame` together expect."""
        return _agreed_format(list(self._read_by(frame, source_of(tensor), output_index(tensor))))

    def _read_by(
        self, frame: CallFrame, name: str, index: int
    ) -> Iterator[tuple[str, StringFormat]]:
        """Yields the ops that read output `index` of a node or argument, and their formats."""
        stack = [(frame, name, index)]
        while stack:
            frame, name, index = stack.pop()
            if (frame.path, name, index) in self._seen:
                continue
            self._seen.add((frame.path, name, index))
            body = frame.body
            # Hashing the path is most of the cost where calls are nested.
            self._graph.budget.spend(1 + len(frame.path), body.name)
            needed = self._graph.names_run_in(body, self._signature)
            readers = body.readers.get(name, ())
            self._graph.budget.spend(len(readers), body.name)
            for node, position in readers:
                if node.name not in needed or _output_of(body, node.input[position]) != index:
                    continue
                calls = list(self._graph.calls(node))
                if calls:
                    self._graph.budget.spend(len(calls), body.name)
                    for call in calls:
                        inner = self._graph.enter(frame, node, call)
                        if inner is None or call.offset is None:
                            reason = f"{node.op} reads it, and its function cannot be followed"
                            yield node.op, Unknown(reason)
                        elif 0 <= position - call.offset < len(inner.body.args):
                            stack.append((inner, inner.body.args[position - call.offset], 0))
                elif node.op in _PASSES:
                    values = _PASSES[node.op]
                    if values is None or position in values:
                        outputs = _outputs_for(node, position)
                        # An attribute may claim 10^9 outputs.
                        self._graph.budget.spend(len(outputs), body.name)
                        stack += [(frame, node.name, output) for output in outputs]
                elif node.op not in _BLIND:
                    # Its attributes are read, and may be long.
                    self._graph.budget.spend(node.ByteSize() // 10, body.name)
                    try:
                        found = self._format_read_by(frame, node, position)
                    except _DamagedNode as error:
                        found = Unknown(f"{node.op} reads it, but {error}")
                    yield node.op, found
            for position in body.returned.get(name, ()):
                if frame.caller is None or _output_of(body, body.returns[position]) != index:
                    continue
                stack.append((frame.caller, frame.node.name, position))
                if frame.node.op in LOOPS:  # the next iteration reads what the body returns
                    loops = (
                        self._graph.enter(frame.caller, frame.node, call)
                        for call in self._graph.calls(frame.node)
                    )
                    stack += [
                        (loop, loop.body.args[position], 0)
                        for loop in loops
                        if loop is not None and position < len(loop.body.args)
                    ]

    def _example_parser(self, frame: CallFrame, node: NodeDef) -> StringFormat:
        """Returns the parser at a node, with the image decoders that read its string features."""
        parser = _example_parser(self._graph, frame, node)
        if not isinstance(parser, ExampleParser):
            return parser
        spec = dict(parser.spec)
        dense = [key for key, feature in spec.items() if feature.kind == "dense"]
        for index, key in enumerate(dense):
            if spec[key].dtype != "string":
                continue
            trace = _Trace(self._graph, self._signature)
            output = _EXAMPLE_OUTPUTS["dense_values"] * _count_sparse(node) + index
            found = _agreed_format(list(trace._read_by(frame, node.name, output)))
            if isinstance(found, ImageDecoder):
                spec[key] = dataclasses.replace(spec[key], image=found)
        return ExampleParser(spec)

    def _format_read_by(self, frame: CallFrame, node: NodeDef, position: int) -> StringFormat:
        op = node.op
        if op in _EXAMPLE_OPS:
            if position != 0:
                return Unknown(f"{op} reads it, but not as serialized Examples")
            return self._example_parser(frame, node)
        if op in _SEQUENCE_EXAMPLE_OPS:
            return SequenceExampleParser()
        if op in _IMAGE_FORMATS:
            dtype = _dtypes([attribute(node, "dtype").type or tf.uint8.as_datatype_enum])[0]
            channels = int(attribute(node, "channels").i)
            if channels not in _CHANNELS:
                raise _DamagedNode(f"it has {channels} channels, expected one of {_CHANNELS}")
            return ImageDecoder(_IMAGE_FORMATS[op], channels, dtype)
        if op == "DecodeBase64":
            if self._base64_levels == _MAX_BASE64:
                raise _DamagedNode(f"more than {_MAX_BASE64} of them follow each other")
            inner = _Trace(self._graph, self._signature, self._base64_levels + 1)
            return Base64(inner.format_of(frame, f"{node.name}:output:0"))
        if op == "ParseTensor":
            return TensorParser(_dtypes([attribute(node, "out_type").type])[0])
        if op in ("DecodeRaw", "DecodePaddedRaw"):
            little_endian = "little_endian" not in node.attr or node.attr["little_endian"].b
            return RawDecoder(_dtypes([attribute(node, "out_type").type])[0], little_endian)
        if op == "DecodeCSV":
            delimiter = _texts([attribute(node, "field_delim").s])[0] or ","
            columns = attribute(node, "OUT_TYPE").list.type
            self._graph.budget.spend(len(columns), frame.body.name)
            return CsvDecoder(tuple(_dtypes(columns)), delimiter)
        if op == "DecodeCompressed":
            return Compressed(text_of_bytes(attribute(node, "compression_type").s))
        if op in _TEXT_OPS or op.startswith(_TEXT_PREFIXES):
            return PlainText()
        return Unknown(f"{op} reads it, and the input format of that op is not known")


def _outputs_for(node: NodeDef, position: int) -> range:
    """Returns the outputs of a pass-through node that hold the strings of its input `position`."""
    if node.op == "IdentityN":
        return range(position, position + 1)
    if node.op in ("Switch", "RefSwitch", "TensorListPopBack"):
        return range(2)
    if node.op in _RAGGED_RANKS:  # the values follow the row splits
        rank = int(attribute(node, _RAGGED_RANKS[node.op]).i)
        return range(rank, rank + 1)
    count = next(
        (name for name in ("num", "num_split", "num_partitions") if name in node.attr), None
    )
    return range(int(node.attr[count].i)) if count else range(1)


def _count_sparse(node: NodeDef) -> int:
    return len(attribute(node, "sparse_types").list.type)


def _output_of(body: GraphBody, tensor: str) -> int:
    """Returns the position of a tensor among all outputs of its node.

    In the body of a function the name of a tensor has its position in one output argument only.
    """
    index = output_index(tensor)
    node = body.nodes.get(source_of(tensor))
    if node is None or tensor.count(":") < 2:
        return index
    argument = tensor.split(":")[1]
    if node.op in _EXAMPLE_OPS:
        return _EXAMPLE_OUTPUTS.get(argument, 0) * _count_sparse(node) + index
    if node.op in _RAGGED_RANKS and argument == "output_dense_values":
        return int(attribute(node, _RAGGED_RANKS[node.op]).i)
    return 1 if (node.op, argument) in _SECOND_OUTPUTS else index


def _agreed_format(found: list[tuple[str, StringFormat]]) -> StringFormat:
    """Returns one format for all readers.

    A parser or decoder has precedence over text ops, which may only look at a magic number.
    """
    if not found:
        return Unknown("no op reads it on the way to the outputs")
    formats = [one for _, one in found if not isinstance(one, (PlainText, Unknown))]
    if not formats:
        unknown = [one for _, one in found if isinstance(one, Unknown)]
        return unknown[0] if unknown else PlainText()
    if len({type(one) for one in formats}) > 1:
        ops = sorted({op for op, one in found if not isinstance(one, (PlainText, Unknown))})
        return Unknown(f"{' and '.join(ops)} read it, and expect different formats")
    examples = [one for one in formats if isinstance(one, ExampleParser)]
    if examples:
        return merge_example_parsers(examples)
    images = [one for one in formats if isinstance(one, ImageDecoder)]
    if images:
        every = {name for image in images for name in image.formats}
        return dataclasses.replace(images[0], formats=tuple(sorted(every, key=_FORMAT_ORDER.index)))
    if any(one != formats[0] for one in formats):
        return Unknown(f"{found[0][0]} reads it twice, with different attributes")
    return formats[0]


def merge_example_parsers(parsers: list[ExampleParser]) -> StringFormat:
    """Returns one parser of the features of several; `Unknown` where they read one differently."""
    merged: dict[str, FeatureSpec] = {}
    for parser in parsers:
        for key, spec in parser.spec.items():
            known = merged.setdefault(key, spec)
            plain = [dataclasses.replace(one, default=None, image=None) for one in (known, spec)]
            if plain[0] != plain[1]:
                return Unknown(f"two parsers read feature {key!r} of it in different ways")
            # One of them fails without a required feature.
            strict = spec if spec.required else known
            merged[key] = dataclasses.replace(strict, image=known.image or spec.image)
    return ExampleParser(merged)


def _example_parser(graph: ModelGraph, frame: CallFrame, node: NodeDef) -> StringFormat:
    """Reads the feature spec of a parser node.

    The order of its inputs is that of TensorFlow's core/ops/parsing_ops.cc.
    """
    inputs = [tensor for tensor in node.input if not tensor.startswith("^")]
    enums = [
        attribute(node, name).list.type
        for name in ("sparse_types", "Tdense", "ragged_value_types", "ragged_split_types")
    ]
    graph.budget.spend(sum(map(len, enums)), frame.body.name)
    sparse_types, dense_types, ragged_types, split_types = map(_dtypes, enums)
    ragged_keys: list[str] | None = []
    if node.op == "ParseExampleV2":
        if len(inputs) < 5:
            raise _DamagedNode("it lacks inputs")
        sparse_keys, dense_keys, ragged_keys = (
            _strings(graph, frame, tensor) for tensor in inputs[2:5]
        )
        defaults = inputs[5:]
    elif node.op == "ParseExample":
        # serialized, names, Nsparse scalar keys, Ndense scalar keys, defaults
        count = len(sparse_types)
        sparse_keys = _joined(_strings(graph, frame, tensor) for tensor in inputs[2 : 2 + count])
        dense_keys = _joined(
            _strings(graph, frame, tensor)
            for tensor in inputs[2 + count : 2 + count + len(dense_types)]
        )
        defaults = inputs[2 + count + len(dense_types) :]
    else:
        sparse_keys = _texts(attribute(node, "sparse_keys").list.s)
        dense_keys = _texts(attribute(node, "dense_keys").list.s)
        defaults = inputs[1:]
    if sparse_keys is None or dense_keys is None or ragged_keys is None:
        return Unknown(f"{node.op} reads it, but its feature keys are not constants")
    shapes = attribute(node, "dense_shapes").list.shape
    dense_counts = {len(dense_keys), len(dense_types), len(shapes), len(defaults)}
    ragged_counts = {len(ragged_keys), len(ragged_types), len(split_types)}
    if len(dense_counts) > 1 or len(ragged_counts) > 1 or len(sparse_keys) != len(sparse_types):
        raise _DamagedNode("its numbers of keys, types, shapes and defaults differ")
    spec: dict[str, FeatureSpec] = {}
    for key, dtype in zip(sparse_keys, sparse_types, strict=True):
        spec[key] = FeatureSpec("sparse", dtype)
    for key, dtype, shape, default in zip(dense_keys, dense_types, shapes, defaults, strict=True):
        sizes = tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)
        spec[key] = FeatureSpec("dense", dtype, sizes, _default(graph, frame, default))
    for key, dtype, split in zip(ragged_keys, ragged_types, split_types, strict=True):
        spec[key] = FeatureSpec("ragged", dtype, row_splits=split)
    graph.budget.spend(len(spec), frame.body.name)
    return ExampleParser(spec)


def _dtypes(enums: Iterable[int]) -> list[str]:
    names = []
    for enum in enums:
        try:
            names.append(str(tf.as_dtype(enum).name))
        except TypeError as error:
            raise _DamagedNode(f"this TensorFlow does not know its DataType {enum}") from error
    return names


def _texts(values: Iterable[bytes]) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise _DamagedNode("its keys or attributes are not UTF-8") from error


def _joined(parts: Iterator[list[str] | None]) -> list[str] | None:
    keys: list[str] = []
    for part in parts:
        if part is None:
            return None
        keys += part
    return keys


def _strings(graph: ModelGraph, frame: CallFrame, tensor: str) -> list[str] | None:
    value = _constant(graph, frame, tensor)
    if value is None:
        return None
    if value.dtype != object:
        raise _DamagedNode("its feature keys are not strings")
    return _texts(value.reshape(-1))


def _default(graph: ModelGraph, frame: CallFrame, tensor: str) -> tuple[Any, ...] | None:
    """Returns the flat default values of a feature.

    Returns:
        `None` for an empty default (the feature is required) and for one that is not a constant.
    """
    value = _constant(graph, frame, tensor)
    return None if value is None or value.size == 0 else tuple(value.reshape(-1).tolist())


def _constant(graph: ModelGraph, frame: CallFrame, tensor: str) -> np.ndarray[Any, Any] | None:
    origin = graph.origin(frame, tensor)
    # tf.io.parse_example reshapes its defaults. The attributes of the parser hold the shape.
    for _ in range(_MAX_RESHAPES):
        if origin is None or origin[1].op not in ("Reshape", "ExpandDims", "Squeeze"):
            break
        origin = graph.origin(origin[0], input_of(origin[1], 0))
    if origin is None or origin[1].op != "Const":
        return None
    return constant_value(origin[1], graph.budget, origin[0].body.name)
