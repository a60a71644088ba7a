"""The public functions that write a SavedModel.

`export_with_warmup`, `save` and `add_warmup` write a warm one; `repair`, `freeze` and `redact`
change one that exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from keras_warmup.errors import OptionsError, warn_or_print
from keras_warmup.keras_api import Model
from keras_warmup.options import (
    DEFAULT_FREEZE_MAX_BYTES,
    WarmupOptions,
    as_options,
)
from keras_warmup.pipeline.export_model import (
    ExportFn,
    ExportRequest,
    describe_failure,
    publish_model,
    publish_object,
    warm_existing,
)
from keras_warmup.pipeline.freeze import freeze_existing
from keras_warmup.pipeline.redact import redact_warmup_file
from keras_warmup.pipeline.repair import repair_saved_model
from keras_warmup.publishing.publish import Published, target_of
from keras_warmup.report import ConversionReport, PrivacyMode, WarmupReport

OnError = Literal["raise", "warn"]


def export_with_warmup(
    model: Model,
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    warmup: WarmupOptions | Mapping[str, Any] | None = None,
    export_fn: ExportFn | None = None,
    overwrite: bool = False,
    on_error: OnError = "raise",
) -> WarmupReport:
    """Exports a Keras model with the warmup file that TensorFlow Serving replays when it loads it.

    The SavedModel is built in a hidden directory beside `path`. Its records are replayed in a
    Session, as the server does, and their outputs are compared with the model's own. Only then does
    it get its name.

    Args:
        model: a built Keras model, of Keras 3 or of tf_keras.
        path: the version directory to publish, such as `"./digits/1"`. `{version}` takes the next
            free version.
        data: rows to warm with. Arrays, dicts, lists or tuples of arrays and DataFrames are x.
            Elements of a `tf.data.Dataset`, a `PyDataset` or a generator (or a function that
            returns one) are `(x[, y[, sample_weight]])`, as in `fit`. Defaults to the batches
            captured while the model, or one that shares its layers, was trained. `PerSignature`
            gives each signature rows of its own.
        warmup: `WarmupOptions`, or a mapping of its fields.
        export_fn: `export_fn(model, export_dir)` writes the SavedModel instead of `model.export`.
        overwrite: replace the directory at `path`. Defaults to `False`.
        on_error: `"warn"`: raises only an `OptionsError` for an option that is unknown or wrong.
            Where only the warmup fails, the model is published without a warmup file (`report.cold`
            gives the reason), with a warning; where the export fails, nothing is published
            (`report.published` is false). Defaults to `"raise"`.

    Returns:
        A `WarmupReport`: the records, what was proved, what stays cold and why.

    Raises:
        WarmupError: a subclass of it for each kind of failure. Nothing is published.

    Example:
    ```python
    model.fit(x, y, callbacks=[keras_warmup.BatchCapture()])
    report = keras_warmup.export_with_warmup(model, "./digits/{version}")
    ```
    """
    request = ExportRequest(
        path, data, as_options(warmup), overwrite=overwrite, allow_cold=on_error == "warn"
    )
    return _report_of(request, on_error, partial(publish_model, model, request, export_fn))


def save(
    obj: Any,
    export_dir: str | os.PathLike[str],
    signatures: Any = None,
    options: Any = None,
    *,
    data: Any = None,
    warmup: WarmupOptions | Mapping[str, Any] | None = None,
    on_error: OnError = "raise",
) -> WarmupReport:
    """Saves as `tf.saved_model.save` does, with a warmup file, a SavedModel that a server can run.

    `tf.saved_model.save` of a Keras 3 model, or of a module that holds one, writes a SavedModel
    that `tf.saved_model.load` can run and TensorFlow Serving cannot. Both can run this one.

    Args:
        obj: a Keras model, `tf.Module` or other trackable object.
        export_dir: where to save. A directory there is replaced, as by `tf.saved_model.save`.
            `{version}` takes the next free version.
        signatures: as `tf.saved_model.save` takes them. Defaults to those of `obj`.
        options: `tf.saved_model.SaveOptions`.
        data: rows to warm with, as `export_with_warmup` takes them.
        warmup: `WarmupOptions`, or a mapping of its fields.
        on_error: as `export_with_warmup` takes it. Defaults to `"raise"`.

    Returns:
        A `WarmupReport`.

    Raises:
        WarmupError: a subclass of it for each kind of failure. The directory at `export_dir` is
            unchanged.
    """
    request = ExportRequest(
        export_dir, data, as_options(warmup), overwrite=True, allow_cold=on_error == "warn"
    )
    publish = partial(publish_object, obj, request, signatures, options)
    return _report_of(request, on_error, publish)


def add_warmup(
    export_dir: str | os.PathLike[str],
    data: Any = None,
    *,
    warmup: WarmupOptions | Mapping[str, Any] | None = None,
    append: bool = False,
    refuse_unsafe_ops: bool = False,
) -> WarmupReport:
    """Writes the warmup file of a SavedModel that exists; its other files are not changed.

    A server that has already loaded the model does not read it again: add the file before the
    directory gets its numeric name.

    Args:
        export_dir: a SavedModel (version directory), made by any tool.
        data: rows to warm with, as `export_with_warmup` takes them. Defaults to rows made up from
            the signatures, with a warning.
        warmup: `WarmupOptions`, or a mapping of its fields.
        append: keep the records of the file, before the new ones; they are replayed too. Defaults
            to `False`.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything is run where the model has ops
            that touch files, network or processes. Defaults to `False`: warn.

    Returns:
        A `WarmupReport`.

    Raises:
        WarmupError: a subclass of it for each kind of failure. The old warmup file is unchanged.
    """
    return warm_existing(
        export_dir,
        data=data,
        options=as_options(warmup),
        append=append,
        refuse_unsafe_ops=refuse_unsafe_ops,
    )


def freeze(
    export_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    max_bytes: int = DEFAULT_FREEZE_MAX_BYTES,
    refuse_unsafe_ops: bool = False,
) -> ConversionReport:
    """Makes a SavedModel that exists serving-only: its variables become constants.

    A server loads it faster. Signatures, the names of inputs and outputs, tables, assets and the
    warmup file stay, and the records of the warmup file are run before and after. What
    `tf.saved_model.load` returns has `.signatures`, but nothing to train. Keep the unfrozen model
    where you will need it.

    Args:
        export_dir: a SavedModel (version directory), made by any tool.
        output: where to publish the frozen model; may hold `{version}`. Defaults to `None`: it
            replaces `export_dir` in one step.
        max_bytes: largest size of the constants, bytes: the largest variables stay variables until
            the others fit. Variables that a signature writes stay variables too. Defaults to 16
            MiB.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything is run where the model has ops
            that touch files, network or processes. Defaults to `False`: warn.

    Returns:
        A `ConversionReport`: the variables that stayed and why, how the outputs were compared.

    Raises:
        WarmupError: a subclass of it for each kind of failure. Nothing is published, and
            `export_dir` is unchanged.
    """
    return freeze_existing(
        export_dir, output, max_bytes=max_bytes, refuse_unsafe_ops=refuse_unsafe_ops
    )


def redact(
    export_dir: str | os.PathLike[str],
    privacy: PrivacyMode = "synthetic",
    *,
    redact: Sequence[str] | None = None,
    refuse_unsafe_ops: bool = False,
) -> WarmupReport:
    """Replaces the real values in the warmup file of a SavedModel that exists.

    The new records are replayed as a server does before the file is replaced in one step, and the
    manifest beside it is written again.

    Args:
        export_dir: a SavedModel (version directory) with a warmup file, made by any tool.
        privacy: `"synthetic"` replaces all values; `"redacted"` those of some features. Defaults to
            `"synthetic"`.
        redact: with `"redacted"`, names of inputs of Predict requests, or of features of
            `tf.train.Example`s.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything is run where the model has ops
            that touch files, network or processes. Defaults to `False`: warn.

    Returns:
        A `WarmupReport` of the new file.

    Raises:
        OptionsError: a feature is in no record, or less privacy is asked for than the environment
            allows.
        WarmupError: another subclass of it for each kind of failure. The file is unchanged.
    """
    options = WarmupOptions(privacy=privacy, redact=redact)
    return redact_warmup_file(export_dir, options, refuse_unsafe_ops=refuse_unsafe_ops)


def repair(
    export_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    refuse_unsafe_ops: bool = False,
) -> ConversionReport:
    """Repairs a SavedModel of a Keras 3 model: doubled weights, and variables no server restores.

    - `model.export` and `keras.export.ExportArchive` write each weight twice. The repaired model
      holds it once: about half the size on the disk, in the server and while it loads.
    - `tf.saved_model.save` of a Keras 3 model, or of a module that holds one, writes a SavedModel
      on which each request to a server fails with `Could not find variable`. The repaired one runs,
      with the outputs of `tf.saved_model.load`.

    What `tf.saved_model.load`, `keras.layers.TFSMLayer` and clients see stays the same, and the
    warmup file is kept. The repaired model is run beside the source before it takes its place. A
    server that has loaded the model already does not load it again.

    Args:
        export_dir: a SavedModel (version directory), made by any tool.
        output: the version directory to publish to; `{version}` takes the next free version.
            Defaults to `None`: `export_dir` is replaced in one step.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything is run where the model has ops
            that touch files, network or processes. Defaults to `False`: warn.

    Returns:
        A `ConversionReport`. Where there is nothing to repair, its `changes` are empty, and nothing
        was written.

    Raises:
        WarmupError: a subclass of it for each kind of failure. `export_dir` is unchanged.
    """
    return repair_saved_model(export_dir, output, refuse_unsafe_ops=refuse_unsafe_ops)


def _report_of(
    request: ExportRequest,
    on_error: OnError,
    publish: Callable[[], tuple[WarmupReport, Published]],
) -> WarmupReport:
    if on_error not in ("raise", "warn"):
        raise OptionsError(f"on_error must be 'raise' or 'warn', got {on_error!r}.")
    try:
        report, _ = publish()
    except Exception as error:  # a full disk, a user's export_fn, TensorFlow
        if on_error == "raise":
            raise
        path, why = _described_path(request.path), describe_failure(error)
        warn_or_print(f"Nothing was published to {path!r}. {why}", stacklevel=3)
        return WarmupReport(path, None, (), cold=why, published=False)
    return report


def _described_path(path: object) -> str:
    """Returns a path for a message, `{version}` filled in where that is possible."""
    try:
        return target_of(path)  # type: ignore[arg-type]
    except Exception:  # it may be what failed
        return str(path)
