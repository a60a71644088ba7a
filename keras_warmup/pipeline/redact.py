"""Replaces the real values in the warmup file of a SavedModel that exists."""

from __future__ import annotations

import dataclasses
import os

from keras_warmup.data.privacy import Hider
from keras_warmup.errors import OptionsError, ReplayError
from keras_warmup.options import MAX_RECORDS, PRIVACY_MODES, REAL, Privacy, WarmupOptions
from keras_warmup.paths import as_path
from keras_warmup.pipeline.bind_signatures import ExportInputs
from keras_warmup.pipeline.draft import DraftRecord, hide_kept, replay_draft, write_draft
from keras_warmup.publishing.versions import model_name_of
from keras_warmup.records.manifest import current_manifest, write_manifest
from keras_warmup.records.warmup_file import (
    MAX_RECORD_BYTES,
    draft_of,
    read_all_records,
    warmup_path,
)
from keras_warmup.report import WarmupReport, count_real_rows
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.savedmodel.unsafe_ops import check_saved_model
from keras_warmup.savedmodel.vocabularies import vocabularies_in


def redact_warmup_file(
    export_dir: str | os.PathLike[str], options: WarmupOptions, *, refuse_unsafe_ops: bool
) -> WarmupReport:
    """Replaces values in a warmup file, replays the new records and publishes the file in one step.

    Args:
        export_dir: version directory of a SavedModel with a warmup file.
        options: the privacy mode, the features and the seed.
        refuse_unsafe_ops: raise where the model has ops that touch files, network or processes.

    Returns:
        The report.

    Raises:
        WarmupError: a subclass of it for each kind of failure; the old file is unchanged.
    """
    directory = as_path(export_dir)
    asked = options.effective_privacy()
    if asked.mode == "none":
        raise OptionsError(
            "There is nothing to redact with privacy='none': pass 'synthetic', or 'redacted' with "
            "redact=."
        )
    check_saved_model(directory, refuse=refuse_unsafe_ops)
    path = warmup_path(directory)
    logs = read_all_records(path)
    old = current_manifest(directory)
    meta_graph = read_meta_graph(directory)
    hider = Hider(asked, lambda: vocabularies_in(meta_graph, directory))
    requests, known = hide_kept(logs, hider, old)
    unknown = sorted(set(options.redact or ()) - known)
    if unknown:
        raise OptionsError(
            f"redact names {unknown}, but the records hold no such feature. They hold "
            f"{sorted(known)}."
        )
    found = dataclasses.replace(asked, features=frozenset(hider.hidden))
    not_found = [
        name for name in sorted(asked.features - known) if old is not None and old.vouches_for(name)
    ]
    privacy = _combine(old.privacy if old is not None else REAL, found)
    records = [DraftRecord(request) for request in requests]
    limits = WarmupOptions(seed=options.seed, max_bytes=MAX_RECORDS * MAX_RECORD_BYTES)
    with draft_of(path) as draft:
        write_draft(draft, records, limits, model_name_of(directory))
        result = replay_draft(
            directory, meta_graph, draft.path, records, ExportInputs(), options, {}
        )
        failed = [record.error for record in records if record.error]
        if failed:
            raise ReplayError(
                f"The warmup file of {directory!r} was left as it is, with its real values: in "
                f"{len(failed)} of {len(records)} records, {failed[0]}"
            )
        draft.publish()
    reports = tuple(record.report() for record in records)
    write_manifest(directory, reports, privacy, not_found=not_found, seed=options.seed)
    return WarmupReport(
        export_dir=directory,
        warmup_path=path,
        records=reports,
        seed=options.seed,
        real_rows=count_real_rows(reports),
        real_features=tuple(sorted({name for one in reports for name in one.real_features})),
        privacy=privacy.mode,
        redacted=tuple(sorted(privacy.features)),
        not_found=tuple(not_found),
        load_ms=result.load_ms,
        synthetic=privacy.mode == "synthetic",
    )


def _combine(old: Privacy, new: Privacy) -> Privacy:
    """Returns what is hidden after both."""
    mode = max(old.mode, new.mode, key=PRIVACY_MODES.index)
    return Privacy(mode, old.features | new.features if mode == "redacted" else frozenset())
