"""Writes the warmup file of a SavedModel: the stages from rows to a published, replayed file.

The stages in order: read the signatures, bind the rows, plan, build, write, read back, replay,
prove. Whatever can refuse the file does so before the file gets its name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence

from keras_warmup._protos import MetaGraphDef
from keras_warmup.data.batch import Batch, slice_rows
from keras_warmup.data.privacy import Hider, known_features, vocabularies_of
from keras_warmup.errors import OptionsError, ReplayError
from keras_warmup.keras_api import backend_of, is_legacy
from keras_warmup.options import Privacy, WarmupOptions
from keras_warmup.paths import explained
from keras_warmup.pipeline.bind_signatures import (
    BindResult,
    ExportInputs,
    bind_signatures,
    choose_signatures,
    refuse_python_ops,
)
from keras_warmup.pipeline.draft import (
    DraftRecord,
    hide_kept,
    replay_draft,
    signatures_left_cold,
    write_draft,
)
from keras_warmup.pipeline.keras_model import input_names
from keras_warmup.pipeline.proof import PROVED, find_skewed_inputs
from keras_warmup.planning.batching_parameters import read_batching_parameters
from keras_warmup.planning.bound_signature import BoundSignature
from keras_warmup.planning.plan import Plan, plan_requests
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.publishing.filesystem import exists
from keras_warmup.records.manifest import current_manifest
from keras_warmup.records.warmup_file import draft_of, read_all_records, warmup_path
from keras_warmup.report import WarmupReport
from keras_warmup.savedmodel.graph import ModelGraph, graph_facts
from keras_warmup.savedmodel.ops import describe_foreign_ops
from keras_warmup.savedmodel.rewriting import share_tensors, write_saved_model
from keras_warmup.savedmodel.served_graph import drop_empty_init_op, drop_saving_part
from keras_warmup.savedmodel.signatures import (
    Signature,
    read_meta_graph,
    read_saved_model,
    read_signatures,
    serving_meta_graph,
)
from keras_warmup.savedmodel.twins import find_twins
from keras_warmup.savedmodel.variable_copies import find_copies
from keras_warmup.savedmodel.vocabularies import vocabularies_in
from keras_warmup.serving.replay import ServingSession

# Rows on which the calls of a model are compared with each other.
_SKEW_ROWS = 4


def warm_saved_model(
    export_dir: str,
    inputs: ExportInputs,
    options: WarmupOptions,
    *,
    model_name: str,
    append: bool = False,
    made_here: bool = False,
    in_place: bool = False,
) -> WarmupReport:
    """Writes the warmup file of a SavedModel directory.

    Args:
        export_dir: a SavedModel that no server watches yet, or one whose file is replaced at once.
        inputs: the rows to send.
        options: what to warm, within which limits.
        model_name: the name the model will be served under; `options.model_name` takes precedence.
        append: keep the records that the file already holds, before the new ones.
        made_here: whether this package has just exported the model: then twin signatures use the
            same tensors, unless `options` decide it, and nodes that only save are left out.
        in_place: whether the directory already has its public name; each change is then flushed to
            the disk.

    Returns:
        The report; its `export_dir` is the directory given. Where no record could be written there
        is no new file.

    Raises:
        WarmupError: a subclass of it for each kind of failure; the old file is unchanged.
    """
    saved_model = read_saved_model(export_dir)
    meta_graph = serving_meta_graph(saved_model, export_dir)
    signatures = [
        dataclasses.replace(one, structure=inputs.recorded_structures.get(one.key, one.structure))
        for one in read_signatures(meta_graph)
    ]
    graph = ModelGraph(meta_graph)
    # A model that a server cannot run is not published, warm or cold.
    require_restorable(graph, signatures, export_dir)
    chosen = choose_signatures(signatures, options)
    same_function = find_twins(meta_graph, chosen)
    privacy = options.effective_privacy()
    vocabularies = functools.cache(lambda: _vocabularies(meta_graph, export_dir, inputs))
    hider = Hider(privacy, vocabularies)
    inputs = _hide_rows(inputs, hider)
    binding = bind_signatures(graph, chosen, inputs, options, twins=same_function, hider=hider)
    bound = binding.bound
    share_twins = options.share_twin_signatures
    if share_twins is None:
        share_twins = made_here
    warmed = {one.key for one in bound}
    twins = {
        key: lead for key, lead in same_function.items() if share_twins and {key, lead} <= warmed
    }
    # Before the replay, which then loads and runs what the server will.
    share_tensors(meta_graph, twins)
    is_changed = False
    if made_here:
        is_changed = drop_saving_part(meta_graph) | drop_empty_init_op(meta_graph)
    batching = (
        None
        if options.batching_parameters is None
        else read_batching_parameters(options.batching_parameters)
    )
    path = warmup_path(export_dir)
    kept = read_all_records(path) if append and _has_file(path) else []
    kept_hider = Hider(privacy, vocabularies)
    old = current_manifest(export_dir) if kept else None
    kept_records, kept_names = hide_kept(kept, kept_hider, old)
    # What was asked for may be a name that only x has: of kept records it tells nothing.
    told = {
        name
        for name in privacy.features
        if not kept or name in kept_hider.hidden or (old is not None and old.vouches_for(name))
    }
    hidden = binding.hidden | kept_hider.hidden
    _require_redacted(options, hidden, kept_names, bound)
    facts = {one.key: one.facts for one in bound}
    plan = plan_requests(
        bound,
        options,
        taken=len(kept),
        batching=batching,
        twins=twins,
        shapes_seen=inputs.shapes_seen,
        training_batch_size=inputs.training_batch_size,
    )
    records = [DraftRecord(request) for request in kept_records]
    records += [DraftRecord(request) for request in plan.requests]
    with draft_of(path) as draft:
        write_draft(draft, records, options, options.model_name or model_name)
        result = replay_draft(export_dir, meta_graph, draft.path, records, inputs, options, facts)
        result.proofs.update(_prove_cold(export_dir, meta_graph, bound, plan, inputs, options))
        cold = {**plan.skipped, **binding.cold, **signatures_left_cold(records)}
        if any(record.error for record in records):
            records = [record for record in records if not record.error]
            write_draft(draft, records, options, options.model_name or model_name)
        if twins or is_changed:
            write_saved_model(export_dir, saved_model, flush=in_place)
        if records:
            draft.publish(flush=in_place)
    ignored = _ignored_features(bound)
    real_rows = _count_real_rows(records)
    # Of twins with one reason, it is given once.
    reasons = [
        f"Signature {key!r} stays cold: {why}"
        for key, why in cold.items()
        if same_function.get(key) not in cold
    ]
    reports = tuple(record.report() for record in records)
    real_features = tuple(sorted({name for one in reports for name in one.real_features}))
    real_rows = real_rows if real_features else 0
    replays_ms = [record.replay_ms for record in records if record.replay_ms is not None]
    return WarmupReport(
        export_dir=export_dir,
        warmup_path=path if records else None,
        records=reports,
        proofs=result.proofs,
        skipped=cold,
        casts={
            name: cast
            for one in bound
            for batch in one.batches
            for name, cast in batch.casts.items()
        },
        ignored_features=ignored,
        shape_coverage=plan.shape_coverage,
        notes=(
            *plan.notes,
            *_notes(binding, records, real_rows, ignored, privacy),
            *_note_of_doubled_weights(graph),
        ),
        synthetic=any(record.is_synthetic for record in records),
        synthetic_reasons=binding.unfit,
        seed=options.seed,
        verified=options.verify,
        shared_signatures=twins,
        real_rows=real_rows,
        real_features=real_features,
        privacy=privacy.mode,
        redacted=tuple(sorted((told & hidden).difference(real_features))),
        not_found=tuple(sorted(told - hidden)),
        random_signatures=tuple(sorted(result.random)),
        training_serving_skew=_find_skew(inputs, result.proofs),
        load_added_ms=sum(replays_ms) if replays_ms else None,
        load_ms=result.load_ms,
        cold="" if records else " ".join(reasons),
    )


def check_servable(export_dir: str, own_calls: Collection[str]) -> None:
    """Checks that a server can load a SavedModel and run its own calls, without any request.

    Args:
        export_dir: the SavedModel.
        own_calls: keys of the signatures that must be servable.

    Raises:
        ReplayError: the model cannot be loaded, its variables not restored, or its init op fails.
        UnservableError: a signature calls Python functions.
    """
    meta_graph = read_meta_graph(export_dir)
    signatures = read_signatures(meta_graph)
    graph = ModelGraph(meta_graph)
    require_restorable(graph, signatures, export_dir)
    for signature in signatures:
        if signature.key in own_calls:
            refuse_python_ops(signature, graph_facts(graph, signature))
    with ServingSession(export_dir, meta_graph):
        pass


def _prove_cold(
    export_dir: str,
    meta_graph: MetaGraphDef,
    bound: Sequence[BoundSignature],
    plan: Plan,
    inputs: ExportInputs,
    options: WarmupOptions,
) -> dict[str, str]:
    """Runs and proves signatures of JAX, which stay cold without `xla=True`; writes no record.

    Raises:
        ReplayError: this TensorFlow cannot run what this JAX exports.
    """
    if inputs.model is None or backend_of(inputs.model) == "tensorflow":
        return {}
    cold = [one for one in bound if one.key in plan.skipped and one.facts.compiles]
    options = dataclasses.replace(options, xla=True)
    requests = plan_requests(cold, options).requests if cold else ()
    records = [DraftRecord(request) for request in requests]
    if not records:
        return {}
    facts = {one.key: one.facts for one in cold}
    with draft_of(warmup_path(export_dir)) as draft:
        write_draft(draft, records, options, "")
        result = replay_draft(export_dir, meta_graph, draft.path, records, inputs, options, facts)
    return result.proofs


def _hide_rows(inputs: ExportInputs, hider: Hider) -> ExportInputs:
    """Returns the rows with what is hidden replaced, as the exported model can take it."""

    def hide(batches: Sequence[Batch]) -> list[Batch]:
        model = inputs.model
        names = {} if model is None or not batches else input_names(model, batches[0].x)
        return [hider.hide_batch(hider.renew_words(batch), names) for batch in batches]

    if hider.privacy.mode == "none":
        return inputs
    return dataclasses.replace(
        inputs,
        batches=hide(inputs.batches),
        per_signature={key: hide(batches) for key, batches in inputs.per_signature.items()},
    )


def _vocabularies(
    meta_graph: MetaGraphDef, export_dir: str, inputs: ExportInputs
) -> list[list[bytes]]:
    """Returns the vocabularies that the exported model holds."""
    found = vocabularies_in(meta_graph, export_dir)
    # tf_keras keeps an adapted vocabulary in the checkpoint.
    if inputs.model is not None and inputs.own_calls and is_legacy(inputs.model):
        found += vocabularies_of(inputs.model)
    return found


def _has_file(path: str) -> bool:
    with explained(path, "look for warmup file"):
        return exists(path)


def _find_skew(inputs: ExportInputs, proofs: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Returns signature_key -> inputs that `fit` filled with other features, for own calls."""
    keys = [key for key, proof in proofs.items() if proof == PROVED and key in inputs.own_calls]
    if not keys or inputs.model is None or not inputs.batches:
        return {}
    first = inputs.batches[0]
    rows = slice_rows(first, 0, min(first.size, _SKEW_ROWS))
    names = find_skewed_inputs(inputs.model, rows.x)
    return dict.fromkeys(keys, names) if names else {}


def require_restorable(graph: ModelGraph, signatures: Sequence[Signature], export_dir: str) -> None:
    """Raises a `ReplayError` for a signature that reads variables that no server restores."""
    for signature in signatures:
        lost = graph_facts(graph, signature).unrestored_variables
        if lost:
            raise ReplayError(
                f"Signature {signature.key!r} in {export_dir!r} reads {len(lost)} variables that "
                f"the SavedModel never restores (the first is {lost[0]!r}), so every request to a "
                "server fails with 'Could not find variable'. tf.saved_model.save does this to "
                "Keras 3 models. Repair the SavedModel with keras-warmup repair "
                "(keras_warmup.repair), or export with keras_warmup.save, export_with_warmup or "
                "model.export."
            )


def _require_redacted(
    options: WarmupOptions,
    hidden: Collection[str],
    kept: Collection[str],
    bound: Sequence[BoundSignature],
) -> None:
    """Raises an `OptionsError` for a feature of `redact=` that no record has."""
    unknown = sorted(set(options.redact or ()).difference(hidden))
    rows = [batch.arrays for one in bound for batch in one.batches if batch.source != "synthetic"]
    if unknown and (rows or kept):
        known = sorted({*kept, *(name for arrays in rows for name in known_features(arrays))})
        raise OptionsError(
            f"redact names {unknown}, but the rows have no such feature, so nothing was replaced "
            f"for it. The requests hold {known}."
        )


def _ignored_features(bound: Sequence[BoundSignature]) -> tuple[str, ...]:
    """Returns the features that no signature takes."""
    ignored = [set(batch.ignored) for one in bound for batch in one.batches]
    return tuple(sorted(set.intersection(*ignored))) if ignored else ()


def _real_rows(request: PlannedRequest) -> set[tuple[int, int]]:
    """Returns `(batch, row)` of each row that a request ships, the batch as its identity."""
    if request.picks is not None:
        return {(id(request.pool[index]), row) for index, row in request.picks}
    whole = request.pool[0]
    rows = max((len(one) for one in whole.arrays.values() if one.ndim), default=1)
    return {(id(whole), row) for row in range(rows)}


def _count_real_rows(records: Sequence[DraftRecord]) -> int:
    """Counts the real rows that ship in the file; an upper bound.

    Two signatures may use the same row, and of a ragged batch that is sent whole the components are
    counted.
    """
    return len(
        {
            row
            for record in records
            if isinstance(record.request, PlannedRequest) and not record.is_synthetic
            for row in _real_rows(record.request)
        }
    )


def _note_of_doubled_weights(graph: ModelGraph) -> list[str]:
    """Returns a note where the model stores weights twice, as Keras does by itself."""
    doubled = len(find_copies(graph).doubled)
    if not doubled:
        return []
    return [
        f"{doubled} variables are stored twice, and a server restores both: keras-warmup repair "
        "makes them one."
    ]


def _notes(
    binding: BindResult,
    records: Sequence[DraftRecord],
    real_rows: int,
    ignored: Sequence[str],
    privacy: Privacy,
) -> list[str]:
    notes = []
    if privacy.mode == "redacted" and binding.hidden:
        notes.append(f"Values were replaced in the features {', '.join(sorted(binding.hidden))}.")
    if real_rows:
        kept = sum(record.is_kept for record in records)
        beside = f", beside those of {kept} records that were in the file" if kept else ""
        notes.append(
            f"Up to {real_rows} real rows of your data ship inside the model{beside}, readable by "
            "anyone who has its files."
        )
    if privacy.mode == "synthetic":
        notes.append(
            "All values are made up, as privacy='synthetic' asks: branches that depend on values "
            "may stay cold."
        )
    elif any(record.is_synthetic for record in records):
        notes.append(
            "Rows were made up from the signatures: branches that depend on values may stay cold. "
            "Pass data=."
        )
    for key, why in binding.unfit.items():
        notes.append(f"The rows of signature {key!r} are made up: {why}")
    for one in binding.bound:
        if one.facts.writes_state:
            notes.append(
                f"Signature {one.key!r} writes variables or tables: the warmup requests change its "
                "state before the first client's request."
            )
        notes += [
            f"Signature {one.key!r} needs {clause}."
            for clause in describe_foreign_ops(one.facts.foreign_ops)
        ]
    if ignored:
        notes.append(f"Features that no signature takes were left out: {', '.join(ignored)}.")
    return notes
