"""Turns a SavedModel that exists into a changed one that gives the same outputs.

The changed one is written into a staging directory, compared there with its source, and published
with its warmup file in one step. Until then the source is only read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_warmup.errors import OptionsError, PublishError, SignatureError
from keras_warmup.paths import as_path, explained, join, parent_of, scheme_of
from keras_warmup.pipeline.compare import compare_models
from keras_warmup.publishing.filesystem import copy_tree, exists, tree_bytes
from keras_warmup.publishing.publish import Published, is_still_there, published_at, staged
from keras_warmup.publishing.versions import has_version, version_hint
from keras_warmup.publishing.workspace import sweep
from keras_warmup.records.manifest import read_manifest, renew_manifest, require_allowed
from keras_warmup.records.warmup_file import WARMUP_PATH, read_all_records, warmup_path
from keras_warmup.report import ConversionReport
from keras_warmup.savedmodel.rewriting import renew_fingerprint
from keras_warmup.savedmodel.unsafe_ops import check_saved_model
from keras_warmup.serving.tensorflow_log import no_status_log

# Writes a changed SavedModel: `change(source, directory)` returns what it changed.
Change = Callable[[str, str], Sequence[str]]
_EXTRA = WARMUP_PATH.partition("/")[0]


def find_source(export_dir: str | os.PathLike[str]) -> Published:
    """Returns the path of the SavedModel to change, a final link followed, with its identity.

    Args:
        export_dir: version directory of a SavedModel.

    Raises:
        OptionsError: it is not a path, or holds `{version}`.
        SignatureError: there is no directory.
    """
    source = as_path(export_dir)
    if has_version(source):
        raise OptionsError(f"{source!r} holds '{{version}}': name the version to change.")
    if not scheme_of(source) and os.path.islink(source):
        source = os.path.realpath(source)
    with explained(source, "read"):
        # A writer that was killed may have left the version beside its path.
        sweep(parent_of(source))
        if not tf.io.gfile.isdir(source):
            raise SignatureError(f"No SavedModel at {source!r}: the directory does not exist.")
    return published_at(source)


def convert_existing(
    export_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    change: Change,
    *,
    rounding: float | None = None,
    refuse_unsafe_ops: bool = False,
    found: Published | None = None,
) -> ConversionReport:
    """Writes a changed SavedModel beside or in place of one that exists.

    The steps: `change` writes the new SavedModel into a staging directory; `assets.extra`, which
    holds the warmup file, is copied; `fingerprint.pb` is computed; the records of the warmup file,
    and made-up rows for signatures without a record, are run on the source and on the result, and
    the outputs compared (`compare.compare_models`); the result is published in one step. When
    anything fails, or the process is killed, the source is as it was.

    Args:
        export_dir: version directory of the SavedModel to change.
        output: version directory to publish to; may hold `{version}`. `None` replaces exactly the
            SavedModel that was read.
        change: `change(source, directory)` writes `saved_model.pb` and what belongs to it into
            `directory`, which exists and is empty, without `assets.extra`. It returns what it
            changed, one sentence each. It must not write to `source`.
        rounding: `None` (default) requires outputs that are equal bit by bit where the source runs
            in a Session. A number allows the rounding of other kernels: differences as
            `proof.same_values` takes them, where `rounding` is the share of an output's largest
            value that is allowed beside what its dtype implies.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything is run where the model has ops
            that touch files, network or processes. Defaults to `False`: warn.
        found: what `find_source` returned, where the caller has read the SavedModel before: no
            other one that took its place since is changed. Defaults to `None`: found now.

    Returns:
        The report.

    Raises:
        ProofError: the result has other signatures or gives other outputs.
        ReplayError: a server cannot run the result, or a record of the warmup file.
        WarmupError: another subclass of it for each kind of failure.
    """
    # Before anything is read: a directory that takes its place meanwhile is not replaced.
    found = found or find_source(export_dir)
    source = found.path
    check_saved_model(source, refuse=refuse_unsafe_ops)
    require_allowed(source)
    target = source if output is None else as_path(output)
    with staged(
        target, overwrite=output is None, replaces=None if output is not None else found
    ) as staging:
        directory = os.fspath(staging)
        changes = tuple(change(source, directory))
        with explained(directory, "copy files to"):
            if exists(join(source, _EXTRA)):
                copy_tree(join(source, _EXTRA), join(directory, _EXTRA))
            has_file = exists(warmup_path(directory))
        with no_status_log():  # TensorFlow warns of a model without variables
            renew_fingerprint(directory)
        logs = read_all_records(directory) if has_file else []
        comparisons = compare_models(source, directory, logs, rounding=rounding)
        with explained(source, "read"):
            before, after = tree_bytes(source), tree_bytes(directory)
        renew_manifest(directory, read_manifest(source))
        if not is_still_there(found):
            raise PublishError(
                f"Cannot change {source!r}: another directory took its place meanwhile. Nothing "
                "was published; try again."
            )
    notes = [] if has_file else ["There is no warmup file: the first requests will be slow."]
    hint = version_hint(staging.published.path)
    return ConversionReport(
        export_dir=staging.published.path,
        source=source,
        changes=changes,
        bytes_before=before,
        bytes_after=after,
        num_records=len(logs),
        comparisons=comparisons,
        notes=(*notes, hint) if hint else tuple(notes),
    )


def unchanged(source: str, notes: Sequence[str] = ()) -> ConversionReport:
    """Returns the report of a conversion that found nothing to change and wrote nothing."""
    with explained(source, "read"):
        size = tree_bytes(source)
    return ConversionReport(source, source, (), size, size, notes=tuple(notes))
