"""Finds ops that act outside of a model: on files, the network, the console or the process.

A SavedModel is a program. Loading it in a Session runs its restore op and its init op, replaying a
warmup record runs a signature, and TensorFlow restricts none of them
(https://github.com/tensorflow/tensorflow/security/policy). This module reads the graph for such
ops and runs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Iterable, Sequence

from keras_warmup._protos import NodeDef
from keras_warmup.errors import UnsafeOpsError
from keras_warmup.savedmodel.files import is_inside_assets, read_assets
from keras_warmup.savedmodel.graph import ModelGraph, NodeInFrame, fetches_and_feeds
from keras_warmup.savedmodel.graph_bodies import (
    CallFrame,
    attribute,
    canonical,
    identity_of,
    input_of,
    source_of,
)
from keras_warmup.savedmodel.graph_limits import constant_value, place_of, shown
from keras_warmup.savedmodel.ops import PYTHON, is_core, library_of
from keras_warmup.savedmodel.signatures import Signature, read_meta_graph, read_signatures

# Found in the op registry: all ops with an input or attribute whose name suggests a file, path,
# address, host, url, token, stream, reader or writer, and all stateful ops. A test repeats the
# first search, so it fails for an op that a later TensorFlow adds. Left out: ops that only pass on
# what another op opened (ReaderRead, IdentityReader), and those that need a TPU or the collectives
# of GPUs.
EFFECTS: Sequence[tuple[str, re.Pattern[str]]] = (
    ("runs Python", re.compile("|".join(PYTHON))),
    ("ends the process", re.compile("Abort")),
    ("prints", re.compile("Print(V2)?")),
    ("runs native code by its name", re.compile("XlaCustomCall(V2)?")),
    (
        "network",
        re.compile(
            "DataServiceDataset(V[2-4])?|RegisterDataset(V2)?|RemoteCall|_?Send|_?Recv|_HostSend"
            "|_HostRecv|Rpc[A-Z].*|DeleteRpcFutureResource|WorkerHeartbeat"
            "|FileSystemSetConfiguration|Collective[A-Z].*"
        ),
    ),
    (
        "writes files or network",
        re.compile("Debug(Identity(V[23])?|NanCount|NumericSummary)|DistributedSave"),
    ),
    (
        "writes files",
        re.compile(
            "WriteFile|Save|SaveSlices|SaveV2|MergeV2Checkpoints|SaveDataset(V2)?"
            "|(Experimental)?DatasetToTFRecord|CacheDataset(V2)?|SnapshotDataset(V2)?"
            "|CreateSummary(File|Db)Writer"
            "|Write(Audio|Graph|Histogram|Image|RawProto|Scalar)?Summary|ImportEvent"
            "|(Flush|Close)SummaryWriter|StatsAggregatorSetSummaryWriter"
            "|CalibrationStatisticsSaver|DumpTensor"
        ),
    ),
    (
        "reads files",
        re.compile(
            "ReadFile|MatchingFiles|(Experimental)?MatchingFilesDataset|RecordInput"
            "|(WholeFile|TextLine|FixedLengthRecord|TFRecord|LMDB)Reader(V2)?"
            "|(TextLine|TFRecord|FixedLengthRecord)Dataset(V2)?|CSVDatasetV2"
            "|(Experimental)?(CSV|LMDB|Sql)Dataset|LoadDataset|ListSnapshotChunksDataset"
            "|SnapshotChunkDataset|Snapshot(Nested)?DatasetReader|LoadAndRemapMatrix"
            "|GenerateVocabRemapping|FixedUnigramCandidateSampler"
            "|InitializeTableFromTextFile(V2)?|Restore|RestoreSlice|(DTensor)?RestoreV2"
            "|DecodeProtoV2|EncodeProto"
        ),
    ),
)
# Whether these are unsafe depends on a tensor, which the caller of their function may pass.
_RESTORES = frozenset({"Restore", "RestoreSlice", "RestoreV2", "DTensorRestoreV2"})
_CACHES = frozenset({"CacheDataset", "CacheDatasetV2"})
_VOCABULARIES = frozenset({"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"})
_BY_INPUT = _RESTORES | _CACHES | _VOCABULARIES
_PATCHES = re.compile("(Resource)?(Scatter|StridedSliceAssign)")
# Ops that are reported for one run; a hostile graph may hold any number.
_MAX_FOUND = 100


@dataclasses.dataclass(frozen=True)
class UnsafeOp:
    """An op that a load or a replay runs, and that acts outside of the model.

    Attributes:
        op: its name in TensorFlow.
        effect: what it does: `reads files`, `writes files`, `network`, `runs Python`, `prints`,
            `ends the process`, `unknown op` for an op of another library, ...
        where: what runs it and where it is, such as `signature 'serving_default', function 'f',
            node 'n'`.
    """

    op: str
    effect: str
    where: str


def find_unsafe_ops(graph: ModelGraph, signatures: Sequence[Signature]) -> tuple[UnsafeOp, ...]:
    """Finds the ops that act outside of the model in a load and in requests.

    The model's own files do not count: variables that the restore op reads under the prefix that it
    is given, and vocabularies that the init op reads from `assets/`.

    Args:
        graph: the graph of the model.
        signatures: signatures of it that may be run.

    Returns:
        The ops of each signature, then of the init op, then of the restore op.

    Raises:
        SignatureError: the graph holds more calls than can be followed.
    """
    assets = frozenset(
        canonical(asset.tensor_info.name)
        for asset in read_assets(graph.meta_graph)
        if is_inside_assets(asset.filename) and asset.tensor_info.name
    )
    saver = graph.meta_graph.saver_def
    prefix = frozenset(
        {canonical(saver.filename_tensor_name)} if saver.filename_tensor_name else ()
    )
    search = _Search(graph)
    found: list[UnsafeOp] = []
    for signature in signatures:
        fetched, fed = fetches_and_feeds(signature)
        found += search.run(f"signature {shown(signature.key)}", fetched, fed, own=frozenset())
    found += search.run("init op", graph.init_nodes, assets, own=assets)
    if saver.restore_op_name:
        found += search.run(
            "restore op", [source_of(saver.restore_op_name)], assets | prefix, own=assets | prefix
        )
    return tuple(found)


def render_unsafe_ops(ops: Sequence[UnsafeOp]) -> str:
    """Returns a warning about one op or more."""
    named = [f"{shown(one.op)} ({one.effect}: {one.where})" for one in ops[:5]]
    more = f" and {len(ops) - 5} more" if len(ops) > 5 else ""
    return (
        f"The model runs ops that act outside of it: {', '.join(named)}{more}. Run it only if you "
        "trust it."
    )


def describe_unsafe_ops(
    export_dir: str, graph: ModelGraph, signatures: Sequence[Signature], *, refuse: bool = False
) -> str:
    """Returns a warning about the unsafe ops of a SavedModel; empty where it has none.

    Args:
        export_dir: path of the SavedModel, for the text.
        graph: its graph.
        signatures: those that may be run.
        refuse: raise instead. Defaults to `False`.

    Raises:
        UnsafeOpsError: it has unsafe ops, and `refuse` is set.
        SignatureError: the graph holds more calls than can be followed.
    """
    ops = find_unsafe_ops(graph, signatures)
    if not ops:
        return ""
    if refuse:
        raise UnsafeOpsError(
            f"Refused to run SavedModel {export_dir!r}: nothing was run. {render_unsafe_ops(ops)} "
            "To run it all the same, leave out refuse_unsafe_ops (--refuse-unsafe-ops)."
        )
    return f"SavedModel {export_dir!r} will be run. {render_unsafe_ops(ops)}"


def check_saved_model(export_dir: str, *, refuse: bool) -> None:
    """Warns about the unsafe ops of a SavedModel that is about to be run.

    Args:
        export_dir: version directory of a SavedModel.
        refuse: raise instead.

    Raises:
        UnsafeOpsError: it has unsafe ops, and `refuse` is set.
        SignatureError: there is no SavedModel, or it is damaged.
    """
    meta_graph = read_meta_graph(export_dir)
    warning = describe_unsafe_ops(
        export_dir, ModelGraph(meta_graph), read_signatures(meta_graph), refuse=refuse
    )
    if warning:
        warnings.warn(warning, stacklevel=3)


@functools.lru_cache(maxsize=1024)
def _effect_of(op: str) -> str:
    effect = next((effect for effect, pattern in EFFECTS if pattern.fullmatch(op)), "")
    # TensorFlow Text computes on strings only.
    return effect or ("" if is_core(op) or library_of(op) == "tensorflow_text" else "unknown op")


class _Search:
    """A search for the unsafe ops that runs of the main graph reach.

    What a function holds is remembered.
    """

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._held: dict[str, frozenset[str]] = {}
        self._places: dict[str, tuple[tuple[str, str, str], ...]] = {}

    def run(
        self, what: str, fetched: Iterable[str], fed: frozenset[str], own: frozenset[str]
    ) -> list[UnsafeOp]:
        """Returns the unsafe ops of one run.

        Args:
            what: what is run, for `UnsafeOp.where`.
            fetched: names of the nodes of the main graph that it fetches.
            fed: tensors that it feeds; nodes that only compute them are not run.
            own: those of them that hold paths of the model's own files.
        """
        graph = self._graph
        found: dict[UnsafeOp, None] = {}
        stack = [(CallFrame(graph.main), graph.main.ancestors(fetched, fed))]
        while stack and len(found) < _MAX_FOUND:
            frame, names = stack.pop()
            for name in names:
                node = frame.body.nodes.get(name)
                if node is None:
                    continue
                graph.budget.spend(1 + len(node.input), frame.body.name)
                effect = self._effect(frame, node, own)
                if effect:
                    place = f", {place_of(frame.body.name)}" if frame.body.name else ""
                    found[UnsafeOp(node.op, effect, f"{what}{place}, node {shown(name)}")] = None
                for call in graph.calls(node):
                    graph.budget.spend(1, frame.body.name)
                    held = self._held_by(call.function)
                    inner = graph.enter(frame, node, call)
                    if inner is None or not held:
                        continue
                    if held.isdisjoint(_BY_INPUT):
                        for op, effect, place in self._places_in(call.function):
                            found[UnsafeOp(op, effect, f"{what}, {place}")] = None
                        continue
                    # All its nodes: a function keeps stateful nodes that no output depends on.
                    stack.append((inner, iter(list(inner.body.nodes))))
        return list(found)[:_MAX_FOUND]

    def _places_in(self, function: str) -> tuple[tuple[str, str, str], ...]:
        """Returns op, effect and place of the first unsafe ops of a function and those it calls."""
        if function not in self._places:
            body = self._graph.function(function)
            places: dict[tuple[str, str, str], None] = {}
            if body is None:
                return ()
            self._graph.budget.spend(len(body.nodes), function)
            for node in body.nodes.values():
                effect = self._effect(CallFrame(body), node, frozenset())
                if effect:
                    places[node.op, effect, f"{place_of(function)}, node {shown(node.name)}"] = None
                for call in self._graph.calls(node):
                    if self._held_by(call.function):
                        places.update(dict.fromkeys(self._places_in(call.function)))
                if len(places) >= _MAX_FOUND:
                    break
            self._places[function] = tuple(places)[:_MAX_FOUND]
        return self._places[function]

    def _held_by(self, function: str) -> frozenset[str]:
        """Returns the ops of a function, and of those it calls, that may be unsafe.

        The recursion is short: `check_graph` limits chains of calls.
        """
        if function not in self._held:
            body = self._graph.function(function)
            held: set[str] = set()
            for node in body.nodes.values() if body is not None else ():
                self._graph.budget.spend(1, function)
                if self._effect_of(node.op):
                    held.add(node.op)
                for call in self._graph.calls(node):
                    inner = self._held_by(call.function)
                    self._graph.budget.spend(1 + len(inner), function)
                    held |= inner
            self._held[function] = frozenset(held)
        return self._held[function]

    def _effect_of(self, op: str) -> str:
        """Returns what an op may do, by its name; empty for a safe op and for a function."""
        return "" if self._graph.has_function(op) else _effect_of(op)

    def _effect(self, frame: CallFrame, node: NodeDef, own: frozenset[str]) -> str:
        """Returns what a node does, by its op, attributes and inputs; empty for a safe node."""
        effect, op = self._effect_of(node.op), node.op
        if not effect:
            return ""
        if op == "PrintV2":
            to_file = attribute(node, "output_stream").s.startswith(b"file://")
            return "writes files" if to_file else effect
        if op in ("DecodeProtoV2", "EncodeProto"):
            source = attribute(node, "descriptor_source").s
            return "" if source in (b"", b"local://") or source.startswith(b"bytes://") else effect
        if op == "FixedUnigramCandidateSampler":
            return effect if attribute(node, "vocab_file").s else ""
        if op in _BY_INPUT:
            position = 0 if op in _RESTORES else 1
            path = self._graph.origin(frame, input_of(node, position), own)
            if op in _CACHES:  # in memory where the path is empty
                return "" if path is not None and self._is_empty(*path) else effect
            return "" if self._is_own(path, own) else effect
        return effect

    def _is_own(self, path: NodeInFrame | None, own: frozenset[str]) -> bool:
        """Returns whether a path is the value of one of the tensors `own`.

        TensorFlow 2 keeps the paths of assets in variables.
        """
        if path is not None and path[1].op == "VarHandleOp" and not self._patches_variables:
            origins = self._graph.assignments.get(identity_of(path[1]), [])
            return bool(origins) and all(self._is_fed(origin, own) for origin in origins)
        return self._is_fed(path, own)

    @staticmethod
    def _is_fed(path: NodeInFrame | None, own: frozenset[str]) -> bool:
        return (
            path is not None
            and path[0].caller is None
            and any(source_of(name) == path[1].name for name in own)
        )

    @functools.cached_property
    def _patches_variables(self) -> bool:
        """Returns whether a load changes parts of variables, besides assigning whole values."""
        ops = self._graph.ops_run_by([*self._graph.restore_nodes, *self._graph.init_nodes])
        return any(_PATCHES.match(op) for op in ops)

    def _is_empty(self, frame: CallFrame, node: NodeDef) -> bool:
        if node.op != "Const":
            return False
        value = constant_value(node, self._graph.budget, frame.body.name)
        return value is not None and value.tolist() == b""
