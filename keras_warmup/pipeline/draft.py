"""The draft of a warmup file: its records are written, read back, replayed and proved."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from keras_warmup._protos import MetaGraphDef
from keras_warmup.data.privacy import Hider, known_features
from keras_warmup.errors import ReplayError
from keras_warmup.options import WarmupOptions
from keras_warmup.pipeline.bind_signatures import ExportInputs
from keras_warmup.pipeline.keras_model import OwnOutputs
from keras_warmup.pipeline.proof import RANDOM, prove_request, same_outputs
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import encode_log
from keras_warmup.records.hidden_logs import hide_log, log_features
from keras_warmup.records.manifest import Manifest
from keras_warmup.records.prediction_logs import describe_log
from keras_warmup.records.warmup_file import RecordsDraft, read_records
from keras_warmup.report import RecordReport
from keras_warmup.savedmodel.graph import GraphFacts
from keras_warmup.serving.replay import ServingSession

# Errors that made-up values can cause. A missing file or kernel fails whatever the values are.
ERRORS_OF_VALUES = ("INVALID_ARGUMENT", "OUT_OF_RANGE")
# A signature with random ops may give equal outputs by chance, as a flip of few images does.
REPLAYS_OF_RANDOM = 8


@dataclasses.dataclass(frozen=True)
class KeptRequest:
    """A request that the warmup file already holds; it is written again as it was.

    Attributes:
        log: its `PredictionLog`.
        source: where its rows come from.
        real_features: names of its features that hold real values.
        warms: keys of the signatures it warms; not known.
    """

    log: Any
    source: str = "log"
    real_features: tuple[str, ...] = ()
    warms: tuple[str, ...] = ()


@dataclasses.dataclass
class DraftRecord:
    """A record on its way into the warmup file.

    Attributes:
        request: the request to write.
        description: its signature, kind and shapes as `describe_log` returns them, read back from
            the draft.
        bytes: serialized size.
        replay_ms: wall time of its replay, milliseconds; `None` where it was not replayed.
        error: why its made-up rows do not run; empty otherwise. Such a record is left out.
    """

    request: PlannedRequest | KeptRequest
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    replay_ms: float | None = None
    error: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the warmup file held the record before."""
        return isinstance(self.request, KeptRequest)

    def real_features(self) -> tuple[str, ...]:
        """Returns the names of its features that hold real values."""
        if isinstance(self.request, KeptRequest):
            return self.request.real_features
        if self.is_synthetic:
            return ()
        names = {
            feature
            for bound in self.request.pool
            for feature in known_features(
                {
                    name: array
                    for name, array in bound.arrays.items()
                    if name not in bound.hidden_inputs
                },
                bound.hidden_features,
            )
        }
        return tuple(sorted(names))

    @property
    def is_synthetic(self) -> bool:
        """Whether its rows are made up."""
        return self.request.source == "synthetic"

    def encode(self, model_name: str) -> Any:
        """Returns the record as `RecordsDraft.write` takes it."""
        if isinstance(self.request, KeptRequest):
            return self.request.log
        return encode_log(self.request, model_name)

    def report(self) -> RecordReport:
        """Returns the record's entry in the report."""
        return RecordReport(
            **self.description,
            source=self.request.source,
            bytes=self.bytes,
            replay_ms=self.replay_ms,
            warms=self.request.warms,
            real_features=self.real_features(),
        )


@dataclasses.dataclass
class ReplayResult:
    """What the replay of a draft showed.

    Attributes:
        load_ms: time to load the SavedModel, milliseconds; `None` where nothing was loaded.
        proofs: signature_key -> `proved`, or why the binding was not proved.
        random: keys of signatures that gave other outputs when the same record was replayed again.
    """

    load_ms: float | None = None
    proofs: dict[str, str] = dataclasses.field(default_factory=dict)
    random: set[str] = dataclasses.field(default_factory=set)


def hide_kept(
    logs: Sequence[Any], hider: Hider, manifest: Manifest | None
) -> tuple[list[KeptRequest], set[str]]:
    """Replaces what is hidden in the requests that a warmup file holds.

    Args:
        logs: their `PredictionLog`s.
        hider: what to hide.
        manifest: the manifest of the file; `None` where it has none that describes it.

    Returns:
        The requests, and the names of all their features.

    Raises:
        RecordsError: a record is of a kind that a server does not replay.
    """
    requests, names = [], set()
    for index, log in enumerate(logs):
        features = log_features(log)
        names.update(features)
        told = None if manifest is None else manifest.records[index]
        real = set(features if told is None else told["real_features"])
        source = "synthetic" if told is not None and told["source"] == "synthetic" else "log"
        if hider.privacy.mode == "synthetic":
            real, source = set(), "synthetic"
        kept = log if hider.privacy.mode == "none" else hide_log(log, hider)
        real -= hider.hidden
        requests.append(KeptRequest(kept, source, tuple(sorted(real))))
    return requests, names


def write_draft(
    draft: RecordsDraft, records: Sequence[DraftRecord], options: WarmupOptions, model_name: str
) -> None:
    """Writes the records, one at a time: the planned rows are never in memory all at once.

    Args:
        draft: where to write.
        records: the records; their sizes are filled in.
        options: `max_records` and `max_bytes`.
        model_name: `model_spec.name` of the requests.

    Raises:
        RecordsError: a limit is exceeded, or the file cannot be written.
    """
    sizes = draft.write(
        (record.encode(model_name) for record in records),
        max_records=options.max_records,
        max_bytes=options.max_bytes,
    )
    for record, size in zip(records, sizes, strict=True):
        record.bytes = size


def replay_draft(
    export_dir: str,
    meta_graph: MetaGraphDef,
    path: str,
    records: Sequence[DraftRecord],
    inputs: ExportInputs,
    options: WarmupOptions,
    facts: Mapping[str, GraphFacts],
) -> ReplayResult:
    """Reads the draft back and replays it, as the server will.

    Args:
        export_dir: the SavedModel.
        meta_graph: its meta graph as it will be published.
        path: the file of the draft.
        records: its records; description, replay time and error are filled in.
        inputs: the rows of the records; with a model, the records are proved against it.
        options: whether to replay at all.
        facts: signature_key -> facts about its graph.

    Returns:
        The proofs, and which signatures are random.

    Raises:
        ReplayError: the model cannot be loaded, or a record of real rows fails.
        ProofError: a signature gives other outputs than the model.
    """
    if not options.verify:
        keys = [key for record in records for key in record.request.warms]
        unproved = dict.fromkeys(keys, "unproved: verify=False")
        for record, log in _read_back(path, records):
            record.description = describe_log(log)
        return ReplayResult(proofs=unproved if inputs.model is not None else {})
    # Without a record the model is loaded all the same: one that cannot be loaded is not published.
    with ServingSession(export_dir, meta_graph, optimize_load=False) as session:
        return _replay(session, path, records, inputs, facts)


def _replay(
    session: ServingSession,
    path: str,
    records: Sequence[DraftRecord],
    inputs: ExportInputs,
    facts: Mapping[str, GraphFacts],
) -> ReplayResult:
    result = ReplayResult(session.load_ms)
    mine = None if inputs.model is None else OwnOutputs(inputs.model)
    for record, log in _read_back(path, records):
        record.description, record.replay_ms, record.error = describe_log(log), None, ""
        try:
            replayed = session.replay(log)
        except ReplayError as error:
            # Made-up rows may be nonsense to the model, which is no fault of the export.
            if not record.is_synthetic or error.status not in ERRORS_OF_VALUES:
                raise
            record.error = (
                "the values that privacy='synthetic' made up do not run: redact= the features that "
                f"must not ship, or pass data= that may ship with privacy='none'. {error}"
                if record.is_kept or inputs.batches or inputs.per_signature
                else f"made-up rows do not run, pass data=. {error}"
            )
            continue
        record.replay_ms = replayed.ms
        request = record.request
        if not isinstance(request, PlannedRequest) or not _fetches_all_outputs(record):
            continue
        graph = facts[request.signature_key]
        changes = graph.random or graph.writes_state
        # Dropout in an LSTM only advances a seed; augmentation that is left on changes the outputs.
        if not result.random.issuperset(request.warms) and any(
            not same_outputs(replayed.outputs, session.replay(log).outputs)
            for _ in range(REPLAYS_OF_RANDOM if graph.random else int(changes))
        ):
            result.random.update(request.warms)
            if not inputs.own_calls.isdisjoint(request.warms):
                result.random.update(inputs.own_calls & facts.keys())
        unproved = [key for key in request.warms if key not in result.proofs]
        if inputs.model is None or not unproved:
            continue
        if result.random & set(unproved):
            proof = RANDOM
        else:
            proof = prove_request(
                inputs.model,
                request,
                replayed.outputs,
                replay_again=lambda log=log: session.replay(log).outputs,  # type: ignore[misc]
                own_call=not inputs.own_calls.isdisjoint(request.warms),
                is_plain=not changes,
                mine=mine,
            )
        # The keys of one request share its tensors.
        result.proofs.update(dict.fromkeys(unproved, proof))
    result.proofs.update(dict.fromkeys(result.random & result.proofs.keys(), RANDOM))
    return result


def _read_back(path: str, records: Sequence[DraftRecord]) -> Iterator[tuple[DraftRecord, Any]]:
    """Yields each record with its `PredictionLog` as the draft holds it."""
    if records:
        yield from zip(records, read_records(path), strict=True)


def _fetches_all_outputs(record: DraftRecord) -> bool:
    """Returns whether a record can prove its signatures: it fetches all outputs of one task."""
    request = record.request
    return isinstance(request, PlannedRequest) and not (request.output_filter or request.tasks)


def signatures_left_cold(records: Collection[DraftRecord]) -> dict[str, str]:
    """Returns signature_key -> error, for signatures that only failed records would have warmed."""
    warm = {key for record in records if not record.error for key in record.request.warms}
    return {
        key: record.error
        for record in records
        if record.error
        for key in record.request.warms
        if key not in warm
    }
