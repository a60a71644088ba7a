"""What a measurement sends: for each thing a client may ask of the model, requests that are not the warmup records.

A replay of the very bytes of a record could look warm where a client's request is not (a branch on values, say), so
rows come from other data, else from the records in another order.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from keras_warmup._protos import MetaGraphDef, PredictionLog
from keras_warmup.binding.bind import BoundBatch
from keras_warmup.data.batch import Batch
from keras_warmup.errors import BindingError, SignatureError
from keras_warmup.options import DEFAULT_BATCH_SIZE, Transform, WarmupOptions
from keras_warmup.pipeline.bind_signatures import ExportInputs, bind_signatures
from keras_warmup.planning.plan import fetched_aliases
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import build_log
from keras_warmup.records.prediction_logs import describe_log
from keras_warmup.report import RequestKind
from keras_warmup.savedmodel.graph import graph_facts
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES, default_kind
from keras_warmup.savedmodel.signatures import Signature, read_signatures
from keras_warmup.serving.rules import to_array, to_examples

RowsFrom = Literal["data", "reordered", "warmed", "synthetic"]
# Different requests for one probe; they are sent in turn.
_VARIANTS = 4
# MultiInference alone demands a name; a server is sent its own.
_MODEL_NAME = "model"


@dataclasses.dataclass(frozen=True)
class Probe:
    """One thing that clients may ask, and the requests that ask it.

    Attributes:
        signature_key: the signature; for MultiInference the tasks' keys joined by `+`.
        kind: the request kind.
        output_filter: aliases asked for; empty means all outputs.
        batch_size: rows of each request; `None` where the inputs have no batch dimension.
        shapes: input name -> shape.
        in_file: whether the warmup file has a record over the same tensors, with this batch size and these shapes.
        rows: where the rows come from: `data`, `reordered` (rows of the records, in another order or company), `warmed`
            (the very rows of the record, where there are no others) or `synthetic`.
        logs: the requests, the first one to be sent first.
    """

    signature_key: str
    kind: RequestKind
    output_filter: tuple[str, ...]
    batch_size: int | None
    shapes: Mapping[str, tuple[int, ...]]
    in_file: bool
    rows: RowsFrom
    logs: tuple[PredictionLog, ...]


@dataclasses.dataclass(frozen=True)
class _ProbeSpec:
    """A request without its rows; for MultiInference `signature` is that of the first task."""

    signature: Signature
    kind: RequestKind
    output_filter: tuple[str, ...]
    tasks: tuple[tuple[str, RequestKind], ...]
    size: int | None
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    in_file: bool

    @property
    def signature_key(self) -> str:
        return "+".join(key for key, _ in self.tasks) or self.signature.key

    @property
    def identity(self) -> Hashable:
        """Equal for requests over one executor, with rows of equal shapes."""
        aliases = frozenset(self.output_filter) or fetched_aliases(self.signature, self.kind)
        fetched = self.tasks or (self.kind, aliases)
        return self.signature_key, fetched, self.size, self.shapes


def plan_probes(
    meta_graph: MetaGraphDef,
    records: Sequence[PredictionLog],
    *,
    batches: Sequence[Batch] = (),
    batch_sizes: Sequence[int] = (),
    transform: Transform | None = None,
    seed: int = 0,
) -> tuple[list[Probe], list[str]]:
    """Plans what to send to see whether a model is warm.

    Args:
        meta_graph: the model.
        records: its warmup records; may be none.
        batches: rows to send; those of the records are left out.
        batch_sizes: batch sizes to measure beside those of the records.
        transform: `transform(x) -> {input name: array}`, as in `WarmupOptions`.
        seed: seed of made-up rows.

    Returns:
        One probe for each signature, kind, output set, batch size and row shape in the file, and one for each signature
        without a record; and sentences about what could not be had.

    Raises:
        BindingError: the batches do not fit the signatures.
    """
    signatures = {signature.key: signature for signature in read_signatures(meta_graph)}
    read = [found for log in records if (found := _read_record(log, signatures)) is not None]
    pool = _Pool(
        meta_graph,
        list(signatures.values()),
        read,
        batches,
        WarmupOptions(transform=transform, seed=seed),
    )
    notes: list[str] = []
    asks: dict[Hashable, _ProbeSpec] = {}
    for ask, _ in read:
        asks.setdefault(ask.identity, ask)
    for ask in [*_twins(asks.values(), signatures), *_other_sizes(asks.values(), batch_sizes)]:
        asks.setdefault(ask.identity, ask)
    covered = {ask.signature.key for ask in asks.values() if not ask.tasks}
    for signature in signatures.values():
        if signature.key not in covered:
            try:
                added = [_uncovered(signature, pool, size) for size in batch_sizes or (None,)]
            except (BindingError, SignatureError) as error:
                notes.append(f"Signature {signature.key!r} was not measured: {error}")
                continue
            asks.update({ask.identity: ask for ask in added})
    planned = {identity: _probe(ask, pool) for identity, ask in asks.items()}
    for identity, ask in asks.items():
        # The very rows of the record in another number are at least another request.
        if (
            planned[identity].rows == "warmed"
            and ask.size is not None
            and _any_size(ask.signature, meta_graph)
        ):
            larger = dataclasses.replace(ask, size=ask.size + 1, in_file=False)
            planned.setdefault(larger.identity, _probe(larger, pool))
    return list(planned.values()), [*notes, *pool.notes]


class _Pool:
    """Rows for each signature: other than the warmed ones where data gives them."""

    def __init__(
        self,
        meta_graph: MetaGraphDef,
        signatures: Sequence[Signature],
        read: Sequence[tuple[_ProbeSpec, BoundBatch]],
        batches: Sequence[Batch],
        options: WarmupOptions,
    ) -> None:
        self.notes: list[str] = []
        self._meta_graph = meta_graph
        self._read = read
        self._options = options
        self._other: dict[str, Sequence[BoundBatch]] = {}
        if batches:
            # What reads a string input of one signature tells how rows for another are serialized: bind them together.
            candidates, cold = bind_signatures(
                meta_graph, signatures, ExportInputs(batches), options
            )
            self._other = {one.signature.key: one.batches for one in candidates}
            self.notes = [
                f"data= was not sent to signature {key!r}: {why}"
                for key, why in sorted(cold.items())
            ]

    def warmed(self, signature: Signature) -> list[BoundBatch]:
        """Rows of the records, of this signature's or else of others with the same inputs."""
        own = [bound for ask, bound in self._read if ask.signature.key == signature.key]
        return own or [bound for _, bound in self._read if _takes(signature, bound)]

    def other(self, signature: Signature) -> Sequence[BoundBatch]:
        """Rows of the data given; empty where there are none or they do not fit."""
        return self._other.get(signature.key, ())

    def synthetic(self, signature: Signature) -> Sequence[BoundBatch]:
        """Made-up rows; the same ones each time."""
        options = dataclasses.replace(self._options, signatures=(signature.key,), transform=None)
        return bind_signatures(self._meta_graph, [signature], ExportInputs(()), options)[0][0].batches

    def any_of(self, signature: Signature) -> BoundBatch:
        """Whatever there is for it, the best first."""
        return (self.other(signature) or self.warmed(signature) or self.synthetic(signature))[0]


def _read_record(
    log: PredictionLog, signatures: Mapping[str, Signature]
) -> tuple[_ProbeSpec, BoundBatch] | None:
    """What a record asks and its rows; `None` for what no client can ask."""
    about = describe_log(log)
    kind, key = about["kind"], about["signature_key"]
    if kind not in ("predict", "classify", "regress", "multi_inference"):
        return None
    request = getattr(log, f"{kind}_log").request
    tasks: tuple[tuple[str, RequestKind], ...] = ()
    if kind == "multi_inference":
        kinds = {name: own for own, name in METHOD_NAMES.items()}
        tasks = tuple(
            (task.model_spec.signature_name, kinds.get(task.method_name, "predict"))
            for task in request.tasks
        )
        key = tasks[0][0] if tasks else ""
    signature = signatures.get(key)
    if signature is None:
        return None
    if kind == "predict":
        arrays = {
            name: to_array(name, proto)
            for name, proto in request.inputs.items()
            if name in signature.inputs
        }
    else:
        arrays = {name: to_examples(request.input) for name in signature.inputs}
    batched = [
        name for name, array in arrays.items() if array.ndim and signature.inputs[name].shape != ()
    ]
    sizes = {arrays[name].shape[0] for name in batched}
    if len(sizes) == 1:
        bound = BoundBatch(arrays, None, sizes.pop(), frozenset(batched), "log")
    else:
        bound = BoundBatch(arrays, None, 1, frozenset(), "log")
    size = bound.size if bound.row_inputs else None
    return _ProbeSpec(
        signature, kind, about["output_filter"], tasks, size, bound.shapes, True
    ), bound


def _takes(signature: Signature, bound: BoundBatch) -> bool:
    """Whether rows of another signature's record could as well be this one's."""
    if not set(signature.inputs) - signature.defaults <= set(bound.arrays) <= set(signature.inputs):
        return False
    dtypes = {
        name: "string" if array.dtype == object else tf.as_dtype(array.dtype).name
        for name, array in bound.arrays.items()
    }
    return all(signature.inputs[name].dtype == dtype for name, dtype in dtypes.items())


def _twins(asks: Iterable[_ProbeSpec], signatures: Mapping[str, Signature]) -> Iterator[_ProbeSpec]:
    """The same asked of each other signature over the same tensors: its record is theirs too."""
    for ask in list(asks):
        for other in signatures.values():
            same = other.tensors == ask.signature.tensors and set(other.inputs) == set(
                ask.signature.inputs
            )
            aliases = set(ask.output_filter) <= set(other.outputs)
            if other.key != ask.signature.key and same and aliases and not ask.tasks:
                yield dataclasses.replace(ask, signature=other)


def _other_sizes(asks: Iterable[_ProbeSpec], batch_sizes: Sequence[int]) -> Iterator[_ProbeSpec]:
    for ask in list(asks):
        if ask.size is not None and ask.signature.fixed_batch_size is None:
            for size in batch_sizes:
                yield dataclasses.replace(ask, size=size, in_file=False)


def _uncovered(signature: Signature, pool: _Pool, size: int | None) -> _ProbeSpec:
    bound, kind = pool.any_of(signature), default_kind(signature)
    if not bound.row_inputs:
        return _ProbeSpec(signature, kind, (), (), None, bound.shapes, False)
    # As large as what the file warms elsewhere: the same request to another signature.
    warmed = pool.warmed(signature)
    usual = warmed[0].size if warmed else DEFAULT_BATCH_SIZE
    return _ProbeSpec(
        signature, kind, (), (), signature.fixed_batch_size or size or usual, bound.shapes, False
    )


def _probe(ask: _ProbeSpec, rows: _Pool) -> Probe:
    pool, picks, source = _choose_rows(ask, rows)
    logs = []
    for variant in range(1 if ask.size is None else _VARIANTS):
        chosen = None
        if ask.size is not None:
            chosen = tuple(
                picks[(variant * ask.size + row) % len(picks)] for row in range(ask.size)
            )
        request = PlannedRequest(
            ask.signature.key, ask.kind, tuple(pool), chosen, ask.output_filter, (), ask.tasks
        )
        logs.append(build_log(request, _MODEL_NAME))
    shapes = describe_log(logs[0])["shapes"]
    return Probe(
        ask.signature_key,
        ask.kind,
        ask.output_filter,
        ask.size,
        shapes,
        ask.in_file,
        source,
        tuple(logs),
    )


def _choose_rows(
    ask: _ProbeSpec, rows: _Pool
) -> tuple[Sequence[BoundBatch], list[tuple[int, int]], RowsFrom]:
    """Bound batches, `(batch, row)` in the order to send them, and what they are."""
    warmed = [bound for bound in rows.warmed(ask.signature) if bound.shapes == ask.shapes]
    other = [bound for bound in rows.other(ask.signature) if bound.shapes == ask.shapes]
    known = {_digest(bound, row) for bound in warmed for row in range(bound.size)}
    fresh = [
        (index, row)
        for index, bound in enumerate(other)
        for row in range(bound.size)
        if _digest(bound, row) not in known
    ]
    if fresh:
        return other, fresh, "data"
    if not warmed:
        made = rows.synthetic(ask.signature)
        return made, [(0, row) for row in range(made[0].size)], "synthetic"
    mine = [index for index, bound in enumerate(warmed) if bound.size == ask.size][:1]
    order = [index for index in range(len(warmed)) if index not in mine]
    picks = [
        (index, row) for index in [*order, *mine] for row in reversed(range(warmed[index].size))
    ]
    sent = [_digest(warmed[index], row) for index, row in picks[: ask.size or 1]]
    own = [_digest(warmed[index], row) for index in mine for row in range(warmed[index].size)]
    return warmed, picks, "warmed" if sent == own or ask.size is None else "reordered"


def _digest(bound: BoundBatch, row: int) -> bytes:
    parts = hashlib.blake2b(digest_size=16)
    for name in sorted(bound.arrays):
        array = np.asarray(
            bound.arrays[name][row] if name in bound.row_inputs else bound.arrays[name]
        )
        parts.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return parts.digest()


def _any_size(signature: Signature, meta_graph: MetaGraphDef) -> bool:
    """Whether another batch size needs nothing more than the warmed one."""
    facts = graph_facts(meta_graph, signature)
    return signature.fixed_batch_size is None and not facts.compiles and not facts.convolves
