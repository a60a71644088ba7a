"""Plans the requests that a measurement sends: for each thing clients may ask, a probe.

The bytes of a record are not sent themselves: they could be fast where a client's request is not,
such as with a branch that depends on values. So the rows come from other data, or else from the
records in another order.
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
from keras_warmup.report import REQUEST_KINDS, RequestKind
from keras_warmup.savedmodel.graph import graph_facts
from keras_warmup.savedmodel.request_kinds import METHOD_NAMES, default_kind
from keras_warmup.savedmodel.signatures import Signature, read_signatures
from keras_warmup.serving.rules import to_array, to_examples

RowSource = Literal["data", "reordered", "warmed", "synthetic"]
# Different requests of one probe, which are sent in turn.
_VARIANTS = 4
# Only MultiInference requires a model name; a server gets the name it serves the model by.
_MODEL_NAME = "model"


@dataclasses.dataclass(frozen=True)
class ProbedRequest:
    """One thing that clients may ask.

    Attributes:
        signature_key: the signature; for MultiInference the tasks' keys joined by `+`.
        kind: the request kind.
        output_filter: requested output aliases; empty means all outputs.
        batch_size: rows of each request; `None` where the inputs have no batch dimension.
        shapes: input name -> shape.
        in_file: whether the warmup file has a record over the same tensors, with this batch size
            and these shapes.
        rows: source of the rows: `data`; `reordered`, the rows of the records in another order or
            combination; `warmed`, the rows of the record itself, where there are no others; or
            `synthetic`.
    """

    signature_key: str
    kind: RequestKind
    output_filter: tuple[str, ...]
    batch_size: int | None
    shapes: Mapping[str, tuple[int, ...]]
    in_file: bool
    rows: RowSource


@dataclasses.dataclass(frozen=True)
class Probe(ProbedRequest):
    """One thing that clients may ask, and requests that ask it.

    Attributes:
        logs: the requests, in the order to send them.
    """

    logs: tuple[PredictionLog, ...]


@dataclasses.dataclass(frozen=True)
class _ProbeSpec:
    """A probe without its rows; for MultiInference `signature` is that of the first task."""

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
        """Equal for requests that run the same executor with rows of the same shapes."""
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
    """Plans the requests that show whether a model is warm.

    Args:
        meta_graph: the model.
        records: its warmup records; may be empty.
        batches: rows to send; rows of the records are left out.
        batch_sizes: batch sizes to measure beside those of the records.
        transform: `transform(x) -> {input name: array}`, as in `WarmupOptions`.
        seed: seed of made-up rows.

    Returns:
        A probe for each signature, kind, output set, batch size and row shape in the file, and for
        each signature without a record. And sentences about signatures that are left out.

    Raises:
        BindingError: the batches do not fit the signatures.
    """
    signatures = {signature.key: signature for signature in read_signatures(meta_graph)}
    recorded = [found for log in records if (found := _read_record(log, signatures)) is not None]
    rows = _AvailableRows(
        meta_graph,
        list(signatures.values()),
        recorded,
        batches,
        WarmupOptions(transform=transform, seed=seed),
    )
    notes: list[str] = []
    specs: dict[Hashable, _ProbeSpec] = {}
    for spec, _ in recorded:
        specs.setdefault(spec.identity, spec)
    for spec in [*_twins(specs.values(), signatures), *_other_sizes(specs.values(), batch_sizes)]:
        specs.setdefault(spec.identity, spec)
    covered = {spec.signature.key for spec in specs.values() if not spec.tasks}
    for signature in signatures.values():
        if signature.key not in covered:
            try:
                added = [_uncovered(signature, rows, size) for size in batch_sizes or (None,)]
            except (BindingError, SignatureError) as error:
                notes.append(f"Signature {signature.key!r} was not measured: {error}")
                continue
            specs.update({spec.identity: spec for spec in added})
    probes = {identity: _probe(spec, rows) for identity, spec in specs.items()}
    for identity, spec in specs.items():
        # With one row more, the request at least differs from the record.
        if (
            probes[identity].rows == "warmed"
            and spec.size is not None
            and _takes_any_size(spec.signature, meta_graph)
        ):
            larger = dataclasses.replace(spec, size=spec.size + 1, in_file=False)
            probes.setdefault(larger.identity, _probe(larger, rows))
    return list(probes.values()), [*notes, *rows.notes]


class _AvailableRows:
    """The rows that can be sent to each signature, by their source."""

    def __init__(
        self,
        meta_graph: MetaGraphDef,
        signatures: Sequence[Signature],
        recorded: Sequence[tuple[_ProbeSpec, BoundBatch]],
        batches: Sequence[Batch],
        options: WarmupOptions,
    ) -> None:
        self.notes: list[str] = []
        self._meta_graph = meta_graph
        self._recorded = recorded
        self._options = options
        self._given: dict[str, Sequence[BoundBatch]] = {}
        if batches:
            # Bound together: what reads a string input of one signature shows how rows for another
            # are serialized.
            result = bind_signatures(meta_graph, signatures, ExportInputs(batches), options)
            self._given = {one.key: one.batches for one in result.bound}
            self.notes = [
                f"data= was not sent to signature {key!r}: {reason}"
                for key, reason in sorted(result.cold.items())
            ]

    def recorded(self, signature: Signature) -> list[BoundBatch]:
        """Returns rows of the signature's records, or else of others with the same inputs."""
        own = [bound for spec, bound in self._recorded if spec.signature.key == signature.key]
        return own or [bound for _, bound in self._recorded if _takes(signature, bound)]

    def given(self, signature: Signature) -> Sequence[BoundBatch]:
        """Returns rows of the given data; empty where there are none or they do not fit."""
        return self._given.get(signature.key, ())

    def synthetic(self, signature: Signature) -> Sequence[BoundBatch]:
        """Returns made-up rows, the same in each call."""
        options = dataclasses.replace(self._options, signatures=(signature.key,), transform=None)
        inputs = ExportInputs()
        result = bind_signatures(self._meta_graph, [signature], inputs, options)
        return result.bound[0].batches


def _read_record(
    log: PredictionLog, signatures: Mapping[str, Signature]
) -> tuple[_ProbeSpec, BoundBatch] | None:
    """Returns the request of a record and its rows; `None` where no client can send it."""
    about = describe_log(log)
    kind, key = about["kind"], about["signature_key"]
    if kind not in REQUEST_KINDS:
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
    size, row_inputs = (sizes.pop(), frozenset(batched)) if len(sizes) == 1 else (1, frozenset())
    bound = BoundBatch(arrays, None, size, row_inputs, "log")
    spec = _ProbeSpec(
        signature=signature,
        kind=kind,
        output_filter=about["output_filter"],
        tasks=tasks,
        size=bound.size if bound.row_inputs else None,
        shapes=bound.shapes,
        in_file=True,
    )
    return spec, bound


def _takes(signature: Signature, bound: BoundBatch) -> bool:
    """Returns whether a signature takes rows of another signature's record."""
    if not set(signature.inputs) - signature.defaults <= set(bound.arrays) <= set(signature.inputs):
        return False
    dtypes = {
        name: "string" if array.dtype == object else tf.as_dtype(array.dtype).name
        for name, array in bound.arrays.items()
    }
    return all(signature.inputs[name].dtype == dtype for name, dtype in dtypes.items())


def _twins(
    specs: Iterable[_ProbeSpec], signatures: Mapping[str, Signature]
) -> Iterator[_ProbeSpec]:
    """Yields the same request for the other signatures over the same tensors.

    The record of one warms the others too.
    """
    for spec in list(specs):
        for other in signatures.values():
            inputs = set(spec.signature.inputs)
            same = other.tensors == spec.signature.tensors and set(other.inputs) == inputs
            aliases = set(spec.output_filter) <= set(other.outputs)
            if other.key != spec.signature.key and same and aliases and not spec.tasks:
                yield dataclasses.replace(spec, signature=other)


def _other_sizes(specs: Iterable[_ProbeSpec], batch_sizes: Sequence[int]) -> list[_ProbeSpec]:
    return [
        dataclasses.replace(spec, size=size, in_file=False)
        for spec in specs
        if spec.size is not None and spec.signature.fixed_batch_size is None
        for size in batch_sizes
    ]


def _uncovered(signature: Signature, rows: _AvailableRows, size: int | None) -> _ProbeSpec:
    """Returns a request for a signature that the file has no record for."""
    recorded = rows.recorded(signature)
    bound = (rows.given(signature) or recorded or rows.synthetic(signature))[0]
    batch_size = None
    if bound.row_inputs:
        # Defaults to the size that the file warms elsewhere.
        usual = recorded[0].size if recorded else DEFAULT_BATCH_SIZE
        batch_size = signature.fixed_batch_size or size or usual
    return _ProbeSpec(
        signature=signature,
        kind=default_kind(signature),
        output_filter=(),
        tasks=(),
        size=batch_size,
        shapes=bound.shapes,
        in_file=False,
    )


def _probe(spec: _ProbeSpec, rows: _AvailableRows) -> Probe:
    batches, picks, source = _choose_rows(spec, rows)
    logs = []
    for variant in range(1 if spec.size is None else _VARIANTS):
        chosen = None
        if spec.size is not None:
            chosen = tuple(
                picks[(variant * spec.size + row) % len(picks)] for row in range(spec.size)
            )
        request = PlannedRequest(
            spec.signature.key,
            spec.kind,
            tuple(batches),
            chosen,
            spec.output_filter,
            (),
            spec.tasks,
        )
        logs.append(build_log(request, _MODEL_NAME))
    return Probe(
        signature_key=spec.signature_key,
        kind=spec.kind,
        output_filter=spec.output_filter,
        batch_size=spec.size,
        shapes=describe_log(logs[0])["shapes"],
        in_file=spec.in_file,
        rows=source,
        logs=tuple(logs),
    )


def _choose_rows(
    spec: _ProbeSpec, rows: _AvailableRows
) -> tuple[Sequence[BoundBatch], list[tuple[int, int]], RowSource]:
    """Returns batches, `(batch, row)` of the rows in the order to send them, and their source."""
    recorded = [bound for bound in rows.recorded(spec.signature) if bound.shapes == spec.shapes]
    given = [bound for bound in rows.given(spec.signature) if bound.shapes == spec.shapes]
    known = {_digest(bound, row) for bound in recorded for row in range(bound.size)}
    new = [
        (index, row)
        for index, bound in enumerate(given)
        for row in range(bound.size)
        if _digest(bound, row) not in known
    ]
    if new:
        return given, new, "data"
    if not recorded:
        synthetic = rows.synthetic(spec.signature)
        return synthetic, [(0, row) for row in range(synthetic[0].size)], "synthetic"
    # Rows of the record that the request would repeat come last, and each record's rows reversed.
    same = [index for index, bound in enumerate(recorded) if bound.size == spec.size][:1]
    order = [index for index in range(len(recorded)) if index not in same]
    picks = [
        (index, row) for index in [*order, *same] for row in reversed(range(recorded[index].size))
    ]
    sent = [_digest(recorded[index], row) for index, row in picks[: spec.size or 1]]
    own = [_digest(recorded[index], row) for index in same for row in range(recorded[index].size)]
    return recorded, picks, "warmed" if sent == own or spec.size is None else "reordered"


def _digest(bound: BoundBatch, row: int) -> bytes:
    parts = hashlib.blake2b(digest_size=16)
    for name in sorted(bound.arrays):
        array = np.asarray(
            bound.arrays[name][row] if name in bound.row_inputs else bound.arrays[name]
        )
        parts.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return parts.digest()


def _takes_any_size(signature: Signature, meta_graph: MetaGraphDef) -> bool:
    """Returns whether requests of another batch size need nothing beyond the warmed one."""
    facts = graph_facts(meta_graph, signature)
    return signature.fixed_batch_size is None and not facts.compiles and not facts.convolves
