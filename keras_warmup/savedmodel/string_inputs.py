"""What reads a string input: a tf.Example parser (with its feature spec), an image decoder, text ops, ...

A string placeholder says nothing of the bytes it wants. Tracing it forwards through the graph and its function library
does: the first op that looks into the bytes names their format. Nothing is run, and nothing is guessed: what cannot be
read becomes `Unknown` with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.savedmodel.graph import LOOPS, SAME_VALUE, ModelGraph, SignatureLike
from keras_warmup.savedmodel.graph_bodies import (
    CallFrame,
    GraphBody,
    attribute,
    input_of,
    output_index,
    source_of,
)
from keras_warmup.savedmodel.graph_limits import constant_value, text_of_bytes
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

# Ops whose output holds the same strings, perhaps fewer or shaped otherwise -> which inputs hold them; None for all.
_PASSES: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(SAME_VALUE, (0,)),
    **dict.fromkeys(
        (
            "Reshape",
            "ExpandDims",
            "Squeeze",
            "StridedSlice",
            "Slice",
            "Gather",
            "GatherV2",
            "GatherNd",
        ),
        (0,),
    ),
    **dict.fromkeys(
        ("Unpack", "SplitV", "Tile", "Transpose", "BroadcastTo", "ReverseV2", "RandomShuffle"), (0,)
    ),
    **dict.fromkeys(
        ("TensorListFromTensor", "TensorListGetItem", "TensorListStack", "TensorListGather"), (0,)
    ),
    **dict.fromkeys(
        ("TensorListConcatV2", "TensorListPopBack", "BooleanMask", "DynamicPartition"), (0,)
    ),
    **dict.fromkeys(
        (
            "RaggedTensorToVariant",
            "RaggedTensorFromVariant",
            "RaggedTensorToTensor",
            "RaggedGather",
        ),
        None,
    ),
    **dict.fromkeys(
        ("IdentityN", "Pack", "ConcatV2", "Merge", "RefMerge", "Select", "SelectV2"), None
    ),
    **dict.fromkeys(("TensorListSetItem", "SparseToDense"), (2,)),
    **dict.fromkeys(
        ("TensorArrayReadV3", "TensorArrayGatherV3", "TensorArrayScatterV3", "TensorArrayWriteV3"),
        None,
    ),
    **dict.fromkeys(("TensorListPushBack", "Split", "Concat", "PadV2"), None),
}
# Ops that return the splits of a ragged tensor before its values -> the attribute that counts the splits.
_RAGGED_RANKS: Mapping[str, str] = {
    "RaggedGather": "OUTPUT_RAGGED_RANK",
    "RaggedTensorFromVariant": "output_ragged_rank",
}
# Output arguments that come second, behind one of a single tensor.
_SECOND_OUTPUTS = frozenset({("TensorListPopBack", "tensor"), ("TensorListConcatV2", "lengths")})
# Ops that look at shapes, print, or check: they tell nothing of the format.
_BLIND = frozenset(
    {
        "Shape",
        "ShapeN",
        "Size",
        "Rank",
        "ZerosLike",
        "OnesLike",
        "Print",
        "PrintV2",
        "Assert",
        "NoOp",
    }
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
_CHANNELS = (0, 1, 3, 4)
# Of a default value; more are odd, and may be a circle.
_MAX_RESHAPES = 100
# Base64 of base64: one level is common, two are odd.
_MAX_BASE64 = 10
_TEXT_PREFIXES = ("String", "Unicode", "Regex", "StaticRegex", "LookupTable", "HashTable", "Substr")
_TEXT_OPS = frozenset(
    {"Equal", "NotEqual", "AsString", "Unique", "UniqueV2", "UniqueWithCounts", "Fingerprint"}
)


def find_string_formats(meta_graph: Any, signature: SignatureLike) -> dict[str, StringFormat]:
    """Finds what reads each string input of a signature.

    Only nodes that the signature runs count: other readers of the same placeholder belong to other signatures.

    Args:
        meta_graph: the MetaGraphDef, or a `ModelGraph` of it (build that once for several signatures).
        signature: the signature, or anything with its `inputs` and `outputs`; a spec without `dtype` counts as string.

    Returns:
        Input name -> consumer, for the string inputs that have a tensor.
    """
    graph = meta_graph if isinstance(meta_graph, ModelGraph) else ModelGraph(meta_graph)
    found: dict[str, StringFormat] = {}
    for name, spec in signature.inputs.items():
        if spec.tensor and getattr(spec, "dtype", "string") == "string":
            found[name] = _Trace(graph, signature).consumer(CallFrame(graph.main), spec.tensor)
    return found


class _Damaged(Exception):
    """A node whose attributes or inputs do not fit its op; the message follows `<op> reads it, `."""


class _Trace:
    """Follows one string tensor to every op that looks into it; `base64` counts the levels decoded before it."""

    def __init__(self, graph: ModelGraph, signature: SignatureLike, base64: int = 0) -> None:
        self._graph = graph
        self._signature = signature
        self._base64 = base64
        self._seen: set[tuple[tuple[str, ...], str, int]] = set()

    def consumer(self, frame: CallFrame, tensor: str) -> StringFormat:
        """What all readers of a tensor of `frame`, together, want its strings to be."""
        return _agree(list(self._follow(frame, source_of(tensor), output_index(tensor))))

    def _follow(
        self, frame: CallFrame, name: str, index: int
    ) -> Iterator[tuple[str, StringFormat]]:
        stack = [(frame, name, index)]
        while stack:
            frame, name, index = stack.pop()
            if (frame.path, name, index) in self._seen:
                continue
            self._seen.add((frame.path, name, index))
            body = frame.body
            # The path, which is hashed, is most of the cost where calls are nested.
            self._graph.budget.spend(1 + len(frame.path), body.name)
            needed = self._graph.needed(body, self._signature)
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
                            yield (
                                node.op,
                                Unknown(f"{node.op} reads it, whose function cannot be followed"),
                            )
                        elif 0 <= position - call.offset < len(inner.body.args):
                            stack.append((inner, inner.body.args[position - call.offset], 0))
                elif node.op in _PASSES:
                    values = _PASSES[node.op]
                    if values is None or position in values:
                        outputs = _outputs_for(node, position)
                        self._graph.budget.spend(
                            len(outputs), body.name
                        )  # an attribute may claim 10^9
                        stack += [(frame, node.name, output) for output in outputs]
                elif node.op not in _BLIND:
                    self._graph.budget.spend(
                        node.ByteSize() // 10, body.name
                    )  # its attributes are read
                    try:
                        found = self._read_by(frame, node, position)
                    except _Damaged as error:
                        found = Unknown(f"{node.op} reads it, {error}")
                    yield node.op, found
            for position in body.returned.get(name, ()):
                if frame.caller is None or _output_of(body, body.returns[position]) != index:
                    continue
                stack.append((frame.caller, frame.node.name, position))
                if frame.node.op in LOOPS:  # what a loop's body returns is what its next turn reads
                    loops = (
                        self._graph.enter(frame.caller, frame.node, call)
                        for call in self._graph.calls(frame.node)
                    )
                    stack += [
                        (loop, loop.body.args[position], 0)
                        for loop in loops
                        if loop is not None and position < len(loop.body.args)
                    ]

    def _read_by(self, frame: CallFrame, node: Any, position: int) -> StringFormat:
        op = node.op
        if op in _EXAMPLE_OPS:
            return (
                _example_parser(self._graph, frame, node)
                if position == 0
                else Unknown(f"it is no data of {op}")
            )
        if op in _SEQUENCE_EXAMPLE_OPS:
            return SequenceExampleParser()
        if op in _IMAGE_FORMATS:
            dtype = _dtypes([attribute(node, "dtype").type or tf.uint8.as_datatype_enum])[0]
            channels = int(attribute(node, "channels").i)
            if channels not in _CHANNELS:
                raise _Damaged(f"with {channels} channels, expected one of {_CHANNELS}")
            return ImageDecoder(_IMAGE_FORMATS[op], channels, dtype)
        if op == "DecodeBase64":
            if self._base64 == _MAX_BASE64:
                raise _Damaged(f"behind {_MAX_BASE64} others of its kind")
            inner = _Trace(self._graph, self._signature, self._base64 + 1)
            return Base64(inner.consumer(frame, f"{node.name}:output:0"))
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
        return Unknown(f"{op} reads it, whose input format is not known")


def _outputs_for(node: Any, position: int) -> range:
    """Which outputs of a pass-through node hold the strings that its input `position` holds."""
    if node.op == "IdentityN":
        return range(position, position + 1)
    if node.op in ("Switch", "RefSwitch", "TensorListPopBack"):
        return range(2)
    if node.op in _RAGGED_RANKS:  # the splits first
        rank = int(attribute(node, _RAGGED_RANKS[node.op]).i)
        return range(rank, rank + 1)
    count = next(
        (name for name in ("num", "num_split", "num_partitions") if name in node.attr), None
    )
    return range(int(node.attr[count].i)) if count else range(1)


def _output_of(body: GraphBody, tensor: str) -> int:
    """Position of a tensor among all outputs of its node; a function's body counts within each output argument."""
    index = output_index(tensor)
    node = body.nodes.get(source_of(tensor))
    if node is None or tensor.count(":") < 2:
        return index
    argument = tensor.split(":")[1]
    if node.op in _RAGGED_RANKS and argument == "output_dense_values":
        return int(attribute(node, _RAGGED_RANKS[node.op]).i)
    return 1 if (node.op, argument) in _SECOND_OUTPUTS else index


def _agree(found: list[tuple[str, StringFormat]]) -> StringFormat:
    """One consumer for all readers. A parser decides against text ops, which only peek at the bytes (magic numbers)."""
    if not found:
        return Unknown("no op reads it on the way to the outputs")
    consumers = [consumer for _, consumer in found]
    formats = [consumer for consumer in consumers if not isinstance(consumer, (PlainText, Unknown))]
    if not formats:
        unknown = [consumer for consumer in consumers if isinstance(consumer, Unknown)]
        return unknown[0] if unknown else PlainText()
    if len({type(consumer) for consumer in formats}) > 1:
        ops = sorted(
            {op for op, consumer in found if not isinstance(consumer, (PlainText, Unknown))}
        )
        return Unknown(f"{' and '.join(ops)} read it, which want different formats")
    examples = [consumer for consumer in formats if isinstance(consumer, ExampleParser)]
    if examples:
        return merge_example_parsers(examples)
    images = [consumer for consumer in formats if isinstance(consumer, ImageDecoder)]
    if images:
        every = {format_ for image in images for format_ in image.formats}
        return dataclasses.replace(images[0], formats=tuple(sorted(every, key=_FORMAT_ORDER.index)))
    if any(consumer != formats[0] for consumer in formats):
        return Unknown(f"{found[0][0]} reads it twice, with different attributes")
    return formats[0]


def merge_example_parsers(parsers: list[ExampleParser]) -> StringFormat:
    """Returns one parser of the features of several; `Unknown` where they read one differently."""
    merged: dict[str, FeatureSpec] = {}
    for parser in parsers:
        for key, spec in parser.spec.items():
            known = merged.setdefault(key, spec)
            if dataclasses.replace(known, default=None) != dataclasses.replace(spec, default=None):
                return Unknown(f"two parsers read feature {key!r} of it in different ways")
            if spec.required:  # one of them fails without it
                merged[key] = spec
    return ExampleParser(merged)


def _example_parser(graph: ModelGraph, frame: CallFrame, node: Any) -> StringFormat:
    """Reads the feature spec off a parser node; argument layouts as in TensorFlow's core/ops/parsing_ops.cc."""
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
            raise _Damaged("with fewer inputs than it has")
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
        return Unknown(f"{node.op} reads it with feature keys that are no constants")
    shapes = attribute(node, "dense_shapes").list.shape
    dense_counts = {len(dense_keys), len(dense_types), len(shapes), len(defaults)}
    ragged_counts = {len(ragged_keys), len(ragged_types), len(split_types)}
    if len(dense_counts) > 1 or len(ragged_counts) > 1 or len(sparse_keys) != len(sparse_types):
        raise _Damaged("with other numbers of keys than of types, shapes or defaults")
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
            raise _Damaged(f"with DataType {enum}, which this TensorFlow does not know") from error
    return names


def _texts(values: Iterable[bytes]) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise _Damaged("with attributes that are not UTF-8") from error


def _joined(parts: Iterator[list[str] | None]) -> list[str] | None:
    keys = list(parts)
    return (
        None if any(part is None for part in keys) else [key for part in keys for key in part or ()]
    )


def _strings(graph: ModelGraph, frame: CallFrame, tensor: str) -> list[str] | None:
    value = _constant(graph, frame, tensor)
    if value is None:
        return None
    if value.dtype != object:
        raise _Damaged("with feature keys that are no strings")
    return _texts(value.reshape(-1))


def _default(graph: ModelGraph, frame: CallFrame, tensor: str) -> tuple[Any, ...] | None:
    """Flat default values; `None` for an empty default (the feature is required) and for one that is no constant."""
    value = _constant(graph, frame, tensor)
    return None if value is None or value.size == 0 else tuple(value.reshape(-1).tolist())


def _constant(graph: ModelGraph, frame: CallFrame, tensor: str) -> np.ndarray[Any, Any] | None:
    at = graph.origin(frame, tensor)
    # tf.io.parse_example reshapes its defaults; only the values matter here, the parser's attributes hold the shape.
    for _ in range(_MAX_RESHAPES):
        if at is None or at[1].op not in ("Reshape", "ExpandDims", "Squeeze"):
            break
        at = graph.origin(at[0], input_of(at[1], 0))
    if at is None or at[1].op != "Const":
        return None
    return constant_value(at[1], graph.budget, at[0].body.name)
