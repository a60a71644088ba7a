"""`verify`: reports what TensorFlow Serving would do with the warmup file of a SavedModel."""

from __future__ import annotations

import dataclasses
import os

from keras_warmup.errors import OptionsError, WarmupError, warn_caller
from keras_warmup.paths import as_path
from keras_warmup.records.manifest import read_manifest
from keras_warmup.serving.verify import RecordVerdict, VerifyReport, verify_here
from keras_warmup.serving.worker import DEFAULT_TIMEOUT_S, check_limits, verify_in_worker

__all__ = ["RecordVerdict", "VerifyReport", "verify"]


def verify(
    export_dir: str | os.PathLike[str],
    *,
    isolated: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    memory_limit_bytes: int | None = None,
    refuse_unsafe_ops: bool = False,
    no_real_rows: bool = False,
) -> VerifyReport:
    """Reports what TensorFlow Serving would do with the warmup file of a SavedModel.

    No server is needed: every record is replayed in a Session as the server does it, also records
    that follow one that fails. A model without a warmup file is not ok, nor is one whose manifest
    describes another file or another model: a file that an earlier export left in the path.

    This loads the SavedModel and runs its ops with your rights. A malformed model may also crash
    TensorFlow and the process. With `isolated=True` the model runs in a worker process, and a
    crash, a hang or a lack of memory is a failure in the report. The worker is not a sandbox.

    Args:
        export_dir: version directory of a SavedModel.
        isolated: run the model in a worker process. It takes seconds to start, and is kept for the
            next call.
        timeout_s: with `isolated`, maximum time to load the model, and for each record, seconds.
            Defaults to 300.
        memory_limit_bytes: with `isolated`, the memory that the model may allocate, without what
            importing TensorFlow took, bytes (Linux only). Defaults to `None`: no limit.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything runs where the model has ops that
            access files, the network or processes. Defaults to `False`: warn.
        no_real_rows: also fail where the records hold real values, or may hold some since there is
            no manifest. Defaults to `False`.

    Returns:
        A verdict for each record, the failures, and what depends on the server.

    Raises:
        OptionsError: an option is out of range.
        SignatureError: there is no SavedModel, or it is damaged.
        UnsafeOpsError: it has unsafe ops, and `refuse_unsafe_ops` is set.
    """
    check_limits(timeout_s, memory_limit_bytes)
    path = as_path(export_dir)
    if isolated:
        report = verify_in_worker(
            path,
            timeout_s=timeout_s,
            memory_limit_bytes=memory_limit_bytes,
            refuse_unsafe_ops=refuse_unsafe_ops,
        )
        return _check_manifest(report, no_real_rows=no_real_rows)
    if memory_limit_bytes is not None:
        raise OptionsError(
            "memory_limit_bytes limits the worker process: pass isolated=True with it."
        )
    report = verify_here(path, refuse_unsafe_ops=refuse_unsafe_ops, warn=warn_caller)
    return _check_manifest(report, no_real_rows=no_real_rows)


def _check_manifest(report: VerifyReport, *, no_real_rows: bool) -> VerifyReport:
    """Adds what the manifest tells to a report."""
    try:
        manifest = read_manifest(report.export_dir)
    except WarmupError as error:
        return dataclasses.replace(report, ok=False, failures=(*report.failures, str(error)))
    failures = list(manifest.problems) if manifest is not None else []
    is_current = manifest is not None and not failures
    if no_real_rows and manifest is None and report.records:
        failures.append(
            "Real values cannot be excluded: there is no manifest that describes the warmup file. "
            "Run keras-warmup redact."
        )
    elif no_real_rows and is_current and manifest is not None and manifest.real_features:
        failures.append(
            f"The warmup file holds real values of {', '.join(manifest.real_features)}. Export "
            "with privacy='synthetic', or run keras-warmup redact."
        )
    return dataclasses.replace(
        report,
        ok=report.ok and not failures,
        failures=(*report.failures, *failures),
        real_features=manifest.real_features if manifest is not None and is_current else None,
    )
