"""Seeded mutations of good SavedModels and warmup files: of their bytes, and of their content."""

from __future__ import annotations

import itertools
import pathlib
import random
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from keras_warmup._protos import PredictionLog, SavedModel
from keras_warmup.errors import WarmupError
from keras_warmup.inspection import list_records
from keras_warmup.records.warmup_file import RecordProblem, read_records, scan_records
from tests.trust.hostile_models import frame
from tests.trust.measured import Case, look_at

_NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    99,
    127,
    255,
    10**9,
    2**31 - 1,
    2**31,
    2**40,
    2**62,
    2**63 - 1,
    -(2**31),
    -(2**63),
)
_TEXTS = (
    "",
    "x",
    "^",
    ":",
    "^x",
    "x:0",
    "x:999999999",
    "x:²",
    "nothing",
    "\x1b[2J",
    "[/b]",
    "\ue000",
    "n" * 10_000,
)
# Ops with a case in some walk; a node that becomes one lacks the attributes and inputs for it.
_OPS = (
    *(
        "Identity",
        "IdentityN",
        "Placeholder",
        "Const",
        "While",
        "StatelessWhile",
        "If",
        "Case",
        "PartitionedCall",
    ),
    *(
        "StatefulPartitionedCall",
        "BatchFunction",
        "RemoteCall",
        "SymbolicGradient",
        "ParseExample",
        "ParseExampleV2",
    ),
    *(
        "ParseSingleExample",
        "ParseSequenceExample",
        "DecodeCSV",
        "DecodeRaw",
        "DecodePng",
        "DecodeBase64",
        "ParseTensor",
    ),
    *(
        "DecodeCompressed",
        "Unpack",
        "Split",
        "SplitV",
        "Switch",
        "Merge",
        "NextIteration",
        "RaggedTensorFromVariant",
    ),
    *(
        "TensorListPopBack",
        "VarHandleOp",
        "ReadVariableOp",
        "AssignVariableOp",
        "RestoreV2",
        "SaveV2",
        "ReadFile",
    ),
    *(
        "PrintV2",
        "PyFunc",
        "CacheDataset",
        "InitializeTableFromTextFileV2",
        "LookupTableFindV2",
        "NoSuchOp",
        "Reshape",
    ),
)


def _is_repeated(field: FieldDescriptor) -> bool:
    """Returns whether a field is repeated; protobuf before 6 has no `is_repeated`."""
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == field.LABEL_REPEATED)


def mutate_model(content: bytes, seed: int) -> bytes:
    """Makes a `saved_model.pb` that differs from a good one in 1 to 8 places."""
    chance = random.Random(seed)
    if chance.random() < 0.3:
        return _mutate_bytes(content, chance)
    saved_model = SavedModel.FromString(content)
    for _ in range(chance.randint(1, 8)):
        chance.choice((_mutate_message, _mutate_message, _mutate_graph))(saved_model, chance)
    content = saved_model.SerializeToString()
    return _mutate_bytes(content, chance) if chance.random() < 0.1 else content


def mutate_records(logs: Sequence[bytes], seed: int) -> bytes:
    """Makes a warmup file that differs from a good one in its frames or in its records."""
    chance = random.Random(seed)
    records = list(logs)
    if chance.random() < 0.6:
        index = chance.randrange(len(records))
        log = PredictionLog.FromString(records[index])
        for _ in range(chance.randint(1, 5)):
            _mutate_message(log, chance)
        records[index] = log.SerializeToString()
    elif chance.random() < 0.5:
        index = chance.randrange(len(records))
        records[index] = _mutate_bytes(records[index], chance)
    content = b"".join(map(frame, records))
    return _mutate_bytes(content, chance) if chance.random() < 0.5 else content


def _mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    mutant = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(mutant) + 1)
        length = chance.choice((1, 1, 2, 8, 64, 4096))
        match chance.choice(("flip", "set", "insert", "remove", "repeat", "cut")):
            case "flip" if at < len(mutant):
                mutant[at] ^= 1 << chance.randrange(8)
            case "set" if at < len(mutant):  # often a length, which precedes all data
                mutant[at] = chance.choice((0x00, 0x01, 0x7F, 0x80, 0xFF))
            case "insert":
                mutant[at:at] = chance.randbytes(length)
            case "remove":
                del mutant[at : at + length]
            case "repeat":
                mutant[at:at] = mutant[at : at + length] * chance.randint(1, 5)
            case "cut" if chance.random() < 0.2:
                del mutant[at:]
    return bytes(mutant)


def _mutate_message(message: Any, chance: random.Random) -> None:
    """Changes one field of a message or of a message inside it."""
    while True:
        fields = message.ListFields()
        if not fields:
            return
        field, value = chance.choice(fields)
        inside = _messages_in(field, value)
        if not inside or chance.random() < 0.08:
            break
        message = chance.choice(inside)
    if inside and chance.random() < 0.6:
        _mutate_entries(message, field, value, chance)
    elif inside or chance.random() < 0.15:
        message.ClearField(field.name)
    elif _is_map(field):
        key = chance.choice(sorted(value))
        value[key] = _scalar(field.message_type.fields_by_name["value"], value[key], chance)
    elif _is_repeated(field):
        index = chance.randrange(len(value))
        value[index] = _scalar(field, value[index], chance)
        if chance.random() < 0.3:
            value.extend(list(value)[: chance.randint(0, 20)])
    else:
        setattr(message, field.name, _scalar(field, value, chance))


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _messages_in(field: FieldDescriptor, value: Any) -> list[Any]:
    if field.message_type is None:
        return []
    if _is_map(field):
        of_values = field.message_type.fields_by_name["value"].message_type
        return [value[key] for key in sorted(value)] if of_values is not None else []
    return list(value) if _is_repeated(field) else [value]


def _mutate_entries(
    message: Any, field: FieldDescriptor, value: Any, chance: random.Random
) -> None:
    """Repeats, removes or swaps the messages of a field."""
    if _is_map(field):
        keys = sorted(value)
        one, other = chance.choice(keys), chance.choice(keys)
        if chance.random() < 0.5:
            del value[one]
        else:
            value[one].CopyFrom(value[other])
    elif _is_repeated(field):
        one, other = chance.choice(value), chance.choice(value)
        if chance.random() < 0.5:
            value.add().CopyFrom(one)
        else:
            one.CopyFrom(other)
    else:
        message.ClearField(field.name)


def _scalar(field: FieldDescriptor, value: Any, chance: random.Random) -> Any:
    """Chooses another value of the type of a field, often one that no tool writes."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.choice((b"", b"\xff\xfe", value * 2, chance.randbytes(20), b"\x00"))
        case FieldDescriptor.CPPTYPE_STRING:
            return chance.choice((*_TEXTS, value + "x", value[:-1]))
        case FieldDescriptor.CPPTYPE_BOOL:
            return not value
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return chance.choice((0.0, float("nan"), float("inf"), -1e30))
    low, high = {
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    }.get(field.cpp_type, (-(2**31), 2**31 - 1))
    return chance.choice([number for number in _NUMBERS if low <= number <= high])


def _mutate_graph(saved_model: SavedModel, chance: random.Random) -> None:
    """Rewires nodes and calls; random changes of fields rarely do so in a valid way."""
    if not saved_model.meta_graphs:
        return
    graph_def = saved_model.meta_graphs[0].graph_def
    library = list(graph_def.library.function)
    bodies = [
        nodes for nodes in (graph_def.node, *(function.node_def for function in library)) if nodes
    ]
    if not bodies:
        return
    nodes = chance.choice(bodies)
    node, other = chance.choice(nodes), chance.choice(nodes)
    match chance.choice(("op", "input", "input", "call", "defun", "result")):
        case "op":
            node.op = chance.choice(_OPS)
        case "input":
            suffix = chance.choice(("", ":0", ":1", ":output:0", ":999999999"))
            if node.input and chance.random() < 0.7:
                node.input[chance.randrange(len(node.input))] = other.name + suffix
            else:
                node.input.append(other.name + suffix)
        case "call" if library:
            node.op = chance.choice(
                ("PartitionedCall", "StatefulPartitionedCall", "While", "If", "Case")
            )
            for role in ("f", "body", "cond", "then_branch", "else_branch"):
                node.attr[role].func.name = chance.choice(library).signature.name
        case "defun" if library:
            node.op = chance.choice(library).signature.name
        case "result" if library:
            function = chance.choice(library)
            for name in sorted(function.ret):
                function.ret[name] = chance.choice(
                    (other.name, other.name + ":output:7", "", "nothing")
                )


# The functions that children of `measured.run_measured` call.


def look_at_mutants(base: str, seeds: Sequence[int]) -> int:
    """Reads mutants of a SavedModel as `inspect` does; returns how many were refused."""
    content = pathlib.Path(base).read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch, "saved_model.pb")

        def look(seed: int) -> None:
            path.write_bytes(mutate_model(content, seed))
            look_at(scratch)

        return sum(_is_refused(look, seed) for seed in seeds)


def look_at_mutants_of_records(base: str, seeds: Sequence[int]) -> int:
    """Reads mutants of a warmup file with every reader; returns how many were refused."""
    logs = [item for _, item in scan_records(base) if not isinstance(item, RecordProblem)]
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch, "records")

        def look(seed: int) -> None:
            path.write_bytes(mutate_records(logs, seed))
            sum(1 for _ in scan_records(path))
            list_records(path).to_dict()
            sum(1 for _ in read_records(path))

        return sum(_is_refused(look, seed) for seed in seeds)


def _is_refused(look: Callable[[int], None], seed: int) -> bool:
    try:
        look(seed)
    except WarmupError:
        return True
    except BaseException as error:
        raise AssertionError(f"the mutant of seed {seed}") from error
    return False


def cases_of(function: str, bases: Sequence[pathlib.Path], count: int) -> list[Case]:
    """Makes cases for `count` mutants of the bases in turn, ten in each child process."""
    return [
        Case(
            f"{base.parent.parent.name}, seeds {start} to {start + 9}",
            (str(base), list(range(start, min(start + 10, count)))),
            f"tests.trust.fuzz:{function}",
        )
        for start, base in zip(range(0, count, 10), itertools.cycle(bases), strict=False)
    ]
