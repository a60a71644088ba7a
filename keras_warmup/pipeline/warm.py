"""A SavedModel and rows -> a warmup file that was read back and replayed, and its report.

The stages in their order: read the signatures, bind the rows, plan, build, write, read back, replay, prove. Everything that can
refuse does so before the file gets its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_warmup.errors import ReplayError
from keras_warmup.options import WarmupOptions
from keras_warmup.paths import explained
from keras_warmup.pipeline.candidates import ExportInputs, bind_signatures, choose_signatures
from keras_warmup.pipeline.replay_draft import replay_draft, warms_of
from keras_warmup.planning.batching_parameters import read_batching_parameters
from keras_warmup.planning.plan import BoundSignature, plan_requests
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.publishing.filesystem import exists
from keras_warmup.records.build import encode_log
from keras_warmup.records.warmup_file import draft_of, read_all_records, read_records, warmup_path
from keras_warmup.report import RecordReport, WarmupReport
from keras_warmup.savedmodel.graph import ModelGraph, graph_facts
from keras_warmup.savedmodel.rewriting import share_tensors
from keras_warmup.savedmodel.signatures import Signature, read_meta_graph, read_signatures
from keras_warmup.savedmodel.twins import find_twins


def warm_saved_model(
    export_dir: str,
    rows: ExportInputs,
    options: WarmupOptions,
    *,
    model_name: str,
    append: bool = False,
    share_twins: bool = False,
    in_place: bool = False,
) -> WarmupReport:
    """Writes the warmup file of a SavedModel directory.

    Args:
        export_dir: a SavedModel that no server watches yet, or one whose file is replaced at once.
        rows: what to send.
        options: what to warm, within which limits.
        model_name: the name the model will be served under; `options.model_name` wins.
        append: keep the records the file already holds, in front of the new ones.
        share_twins: let twin signatures name the same tensors, where `options` do not say otherwise.
        in_place: whether the directory has its public name already: each change is flushed to the disk then.

    Returns:
        The report; its `export_dir` is the directory given. Where no record could be written there is no new file.

    Raises:
        WarmupError: a child of it, by what failed; the old file is as it was.
    """
    meta_graph = read_meta_graph(export_dir)
    everything = read_signatures(meta_graph)
    graph = ModelGraph(meta_graph)
    # Never publish a model that a server cannot run, warm or not.
    _require_restorable(graph, everything, export_dir)
    candidates, cold = bind_signatures(graph, choose_signatures(everything, options), rows, options)
    if options.share_twin_signatures is not None:
        share_twins = options.share_twin_signatures
    # The equality of twins is shown by replaying both.
    twins = _shareable(meta_graph, candidates) if share_twins and options.verify else {}
    batching = (
        None
        if options.batching_parameters is None
        else read_batching_parameters(options.batching_parameters)
    )
    path = warmup_path(export_dir)
    old = read_all_records(path) if append and _has_file(path) else []
    plan = plan_requests(
        candidates,
        options,
        taken=len(old),
        batching=batching,
        twins=twins,
        shapes_seen=rows.shapes_seen,
    )
    requests: list[PlannedRequest | None] = [*[None] * len(old), *plan.requests]
    name = options.model_name or model_name
    with draft_of(path) as draft:
        logs = _logs(old, requests, name)
        sizes = draft.write(logs, max_records=options.max_records, max_bytes=options.max_bytes)
        facts = {one.signature.key: one.facts for one in candidates}
        done = replay_draft(export_dir, draft.path, requests, rows, options, twins, facts)
        if done.apart:
            # They are no twins after all: once more, each warmed for itself.
            asked = dataclasses.replace(options, share_twin_signatures=False)
            return warm_saved_model(
                export_dir, rows, asked, model_name=name, append=append, in_place=in_place
            )
        if done.failed:
            kept = [index for index in range(len(requests)) if index not in done.failed]
            warm = {key for index in kept for key in warms_of(requests[index])}
            for index, why in done.failed.items():
                cold.update({key: why for key in warms_of(requests[index]) if key not in warm})
            good = [log for index, log in enumerate(read_records(draft.path)) if index in kept]
            sizes = draft.write(good, max_records=options.max_records, max_bytes=options.max_bytes)
            requests, done.ms = (
                [requests[index] for index in kept],
                [done.ms[index] for index in kept],
            )
            done.described = [done.described[index] for index in kept]
        reports = [
            _record_report(*one)
            for one in zip(done.described, requests, sizes, done.ms, strict=True)
        ]
        # Nothing shares tensors unseen: a twin whose lead has no record of its own, but a MultiInference's task, stays cold.
        alone = {key: twin for key, twin in twins.items() if key not in done.alike}
        cold.update(
            {
                key: f"no record was replayed on both it and {twin!r}, whose record it was to share"
                for key, twin in alone.items()
                if key not in cold and key not in plan.skipped
            }
        )
        twins = {key: twin for key, twin in twins.items() if key in done.alike}
        if twins:
            share_tensors(export_dir, twins, flush=in_place)
        if requests:
            draft.publish(flush=in_place)
    replays_ms = [ms for ms in done.ms if ms is not None]
    return WarmupReport(
        export_dir=export_dir,
        warmup_path=path if requests else None,
        records=tuple(reports),
        proofs=done.proofs,
        skipped={**plan.skipped, **cold},
        casts={
            name: cast
            for one in candidates
            for bound in one.bound
            for name, cast in bound.casts.items()
        },
        ignored_features=_ignored(rows, candidates),
        shape_coverage=plan.shape_coverage,
        notes=(*plan.notes, *_notes(candidates, rows, requests)),
        synthetic=any(report.source == "synthetic" for report in reports),
        seed=options.seed,
        verified=options.verify,
        shared_signatures=twins,
        load_added_ms=sum(replays_ms) if replays_ms else None,
        load_ms=done.load_ms,
    )


def _has_file(path: str) -> bool:
    with explained(path, "look for warmup file"):
        return exists(path)


def _shareable(meta_graph: Any, candidates: Sequence[BoundSignature]) -> dict[str, str]:
    """Twins among the candidates; what draws random numbers or writes state cannot be shown to be equal."""
    plain = [
        one.signature for one in candidates if not one.facts.random and not one.facts.writes_state
    ]
    return find_twins(meta_graph, plain)


def _require_restorable(
    graph: ModelGraph, signatures: Sequence[Signature], export_dir: str
) -> None:
    for signature in signatures:
        lost = graph_facts(graph, signature).unrestored_variables
        if lost:
            raise ReplayError(
                f"Signature {signature.key!r} in {export_dir!r} reads {len(lost)} variables that the SavedModel never restores "
                f"(the first is {lost[0]!r}), so every request to a server fails with 'Could not find variable'. "
                "tf.saved_model.save does this to Keras 3 models; export with model.export, keras_warmup.save or "
                "export_with_warmup instead."
            )


def _logs(
    old: Sequence[Any], requests: Iterable[PlannedRequest | None], model_name: str
) -> Iterator[Any]:
    """One record at a time, so that what is planned never stands in memory whole."""
    yield from old
    for request in requests:
        if request is not None:
            yield encode_log(request, model_name)


def _record_report(
    described: Mapping[str, Any], request: PlannedRequest | None, size: int, ms: float | None
) -> RecordReport:
    source = "file" if request is None else request.source
    return RecordReport(
        **described, source=source, bytes=size, replay_ms=ms, warms=warms_of(request)
    )


def _ignored(rows: ExportInputs, candidates: Sequence[BoundSignature]) -> tuple[str, ...]:
    """Features that no signature takes."""
    sets = [set(bound.ignored) for one in candidates for bound in one.bound]
    unused = set.intersection(*sets) if sets else set()
    return tuple(sorted({*rows.ignored, *unused}))


def _rows_shipped(request: PlannedRequest) -> set[tuple[int, int]]:
    if request.picks is not None:
        return {(id(request.pool[index]), row) for index, row in request.picks}
    whole = request.pool[0]
    return {
        (id(whole), row)
        for row in range(max((len(one) for one in whole.arrays.values() if one.ndim), default=1))
    }


def _notes(
    candidates: Sequence[BoundSignature],
    rows: ExportInputs,
    requests: Sequence[PlannedRequest | None],
) -> list[str]:
    notes = []
    # An upper bound: two signatures may hold the same row, and of a ragged batch sent whole the components are counted.
    real = {
        pick
        for request in requests
        if request is not None and request.source != "synthetic"
        for pick in _rows_shipped(request)
    }
    old = sum(request is None for request in requests)
    if real:
        beside = f", beside those of {old} records that were in the file" if old else ""
        notes.append(
            f"Up to {len(real)} real rows of your data ship inside the model{beside}, readable by whoever has its files."
        )
    if any(request is not None and request.source == "synthetic" for request in requests):
        notes.append(
            "Rows were made up from the signatures: branches that depend on values may stay cold. Pass data=."
        )
    for candidate in candidates:
        if candidate.facts.writes_state:
            notes.append(
                f"Signature {candidate.signature.key!r} writes variables or tables: the warmup requests change its state before "
                "the first client comes."
            )
        if candidate.facts.foreign_ops:
            notes.append(
                f"Signature {candidate.signature.key!r} needs ops outside core TensorFlow "
                f"({', '.join(candidate.facts.foreign_ops)}): a stock server does not have them."
            )
    ignored = _ignored(rows, candidates)
    if ignored:
        notes.append(f"Features that no signature takes were left out: {', '.join(ignored)}.")
    return notes
