"""The public ways to a warm SavedModel: `export_with_warmup`, `save`, `add_warmup`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_warmup.data.batch import Batch, FeaturePath, is_string_vector, map_leaves, walk
from keras_warmup.data.sampling import select_batches
from keras_warmup.data.sources import read_batches
from keras_warmup.errors import ExportError, OptionsError, WarmupError
from keras_warmup.op_errors import text_of
from keras_warmup.options import WarmupOptions, as_options
from keras_warmup.paths import as_path, explained, reason_of
from keras_warmup.pipeline.candidates import ExportInputs
from keras_warmup.pipeline.keras_model import (
    arrange_batch,
    captured_signature,
    is_subclassed,
    require_built,
    takes_one_string,
)
from keras_warmup.pipeline.warm import warm_saved_model
from keras_warmup.publishing.filesystem import remove_tree
from keras_warmup.publishing.publish import Published, staged
from keras_warmup.publishing.versions import model_name_of, version_hint
from keras_warmup.publishing.workspace import sweep
from keras_warmup.records.warmup_file import warmup_path
from keras_warmup.report import WarmupReport
from keras_warmup.savedmodel.rewriting import complete_fingerprint, name_methods, recover
from keras_warmup.savedmodel.saving import one_copy_of_each_variable, save_saved_model
from keras_warmup.savedmodel.unsafe_ops import check_saved_model
from keras_warmup.training.capture import captured_batches, captured_shapes

ExportFn = Callable[[Any, str], Any]

# Batches kept of `data=`, and read of it to choose them: a request needs a handful of rows, not a pass over the dataset.
NUM_BATCHES = 8
MAX_READ_BATCHES = 64
_MIN_ROWS = 2
# Of the error of TensorFlow or Keras that an export failed with; the whole is its cause.
_MOST_SAID = 1000
# What tf.io.gfile makes of the errors of a file system (core/platform/errors.cc); tracing raises others.
_FILE_ERRORS = (
    OSError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
    tf.errors.DataLossError,
)


def export_with_warmup(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    warmup: WarmupOptions | Mapping[str, Any] | None = None,
    export_fn: ExportFn | None = None,
    overwrite: bool = False,
) -> WarmupReport:
    """Exports a Keras model with the warmup file TensorFlow Serving replays when it loads it.

    The SavedModel is built in a hidden directory beside `path`, its records are replayed through a Session as the server does,
    their outputs are compared with the model's own, and only then it appears under its name.

    Args:
        model: a built Keras model.
        path: the version directory to publish, such as `"./digits/1"`; `{version}` takes the next free version.
        data: rows to warm with: arrays, dicts, lists or tuples of arrays and DataFrames are x; elements of a `tf.data.Dataset`, a
            `PyDataset`, a generator (or a function that returns one) are `(x[, y[, sample_weight]])`, as in `fit`. Defaults to
            the batches captured while the model was trained.
        warmup: `WarmupOptions`, or a mapping of them.
        export_fn: `export_fn(model, export_dir)` writes the SavedModel instead of `model.export`.
        overwrite: replace what is at `path`.

    Returns:
        A `WarmupReport`: the records, what was proved, what stays cold and why.

    Raises:
        WarmupError: a child of it, by what failed. Nothing is published then.

    Example:
    ```python
    model.fit(x, y, callbacks=[keras_warmup.BatchCapture()])
    report = keras_warmup.export_with_warmup(model, "./digits/{version}")
    ```
    """
    report, _ = publish_model(
        model, path, data=data, warmup=warmup, export_fn=export_fn, overwrite=overwrite
    )
    return report


def publish_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    data: Any,
    warmup: WarmupOptions | Mapping[str, Any] | None,
    export_fn: ExportFn | None,
    overwrite: bool,
    replaces: Published | None = None,
) -> tuple[WarmupReport, Published]:
    """Exports as `export_with_warmup` does, and also returns what tells the published directory from a later one.

    With `replaces`, `overwrite` replaces that version only.
    """
    options = as_options(warmup)
    if not isinstance(model, keras.Model):
        raise OptionsError(
            f"export_with_warmup takes a keras.Model, got {type(model).__name__}. For a tf.Module use keras_warmup.save."
        )
    require_built(model)
    if export_fn is not None and not callable(export_fn):
        raise OptionsError(f"export_fn must be callable, got {type(export_fn).__name__}.")
    own_calls = frozenset({"serve", "serving_default"}) if export_fn is None else frozenset()
    with staged(path, overwrite=overwrite, replaces=replaces) as staging:
        directory = os.fspath(staging)
        # Read behind the check of the path: an iterator can be read once only.
        rows = _rows(model, _batches_for(model, data, options), options, own_calls)
        if export_fn is None:
            _export_model(model, directory, rows.batches)
        else:
            with one_copy_of_each_variable():
                export_fn(model, directory)
            _require_saved_model(directory)
        _rewrite_signatures(directory, options)
        report = warm_saved_model(
            directory, rows, options, model_name=model_name_of(path), share_twins=True
        )
        # Before the rename: where warnings are errors, nothing is published.
        _warn_of(report, as_path(path), options, stacklevel=5)
        _mend_remains(directory)
    return _relocated(report, staging.published.path), staging.published


def save(
    obj: Any,
    export_dir: str | os.PathLike[str],
    signatures: Any = None,
    options: Any = None,
    *,
    data: Any = None,
    warmup: WarmupOptions | Mapping[str, Any] | None = None,
) -> WarmupReport:
    """Drop-in for `tf.saved_model.save` that leaves a warm SavedModel a server can run.

    `tf.saved_model.save` of a Keras 3 model, or of a module that holds one, gives a SavedModel that `tf.saved_model.load` can
    run and TensorFlow Serving cannot; this one both can.

    Args:
        obj: a Keras model, `tf.Module` or other trackable.
        export_dir: where to save; what is there is replaced, as `tf.saved_model.save` does. `{version}` takes the next
            free version.
        signatures: as `tf.saved_model.save` takes them. Defaults to those of `obj`.
        options: `tf.saved_model.SaveOptions`.
        data: rows to warm with, as `export_with_warmup` takes them.
        warmup: `WarmupOptions`, or a mapping of them.

    Returns:
        A `WarmupReport`.

    Raises:
        WarmupError: a child of it, by what failed. What was at `export_dir` is as it was then.
    """
    asked = as_options(warmup)
    is_model = isinstance(obj, keras.Model)
    if is_model:
        require_built(obj)
    elif not hasattr(obj, "_trackable_children"):
        raise OptionsError(
            f"save takes a Keras model, tf.Module or other trackable object, got {type(obj).__name__}."
        )
    own_calls = frozenset({"serving_default"}) if is_model and signatures is None else frozenset()
    with staged(export_dir, overwrite=True) as staging:
        directory = os.fspath(staging)
        batches = _batches_for(obj if is_model else None, data, asked)
        rows = _rows(obj if is_model else None, batches, asked, own_calls)
        if is_model and signatures is None and is_subclassed(obj) and rows.batches:
            signatures, structure = _default_signature(obj, rows.batches)
            rows = dataclasses.replace(rows, structures={"serving_default": structure})
        with _explained(f"{type(obj).__name__}", "tf.saved_model.save", directory):
            save_saved_model(obj, directory, signatures, options)
        _rewrite_signatures(directory, asked)
        report = warm_saved_model(
            directory, rows, asked, model_name=model_name_of(export_dir), share_twins=True
        )
        _warn_of(report, as_path(export_dir), asked)
        _mend_remains(directory)
    return _relocated(report, staging.published.path)


def add_warmup(
    export_dir: str | os.PathLike[str],
    data: Any = None,
    *,
    warmup: WarmupOptions | Mapping[str, Any] | None = None,
    append: bool = False,
    refuse_unsafe_ops: bool = False,
) -> WarmupReport:
    """Writes the warmup file of a SavedModel that exists; other files in `assets.extra` stay as they are.

    A server that has already loaded the model does not read it again: add the file before the directory gets its numeric name.

    Args:
        export_dir: a SavedModel (version directory), made by anything.
        data: rows to warm with, as `export_with_warmup` takes them. Defaults to rows made up from the signatures, with a warning.
        warmup: `WarmupOptions`, or a mapping of them.
        append: keep the records that are there, in front of the new ones; they are replayed too.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything is run where the model has ops that touch files, network or
            processes. Defaults to `False`: warn.

    Returns:
        A `WarmupReport`.

    Raises:
        WarmupError: a child of it, by what failed. The old warmup file is as it was then.
    """
    options = as_options(warmup)
    if options.method_name:
        raise OptionsError(
            "method_name=True applies to exports made here; for a SavedModel that exists run keras-warmup method-names, or "
            "keras_warmup.savedmodel.rewriting.name_methods, first."
        )
    directory = as_path(export_dir)
    with explained(directory, "add a warmup file to"):
        _require_saved_model(directory)
        recover(directory)
    check_saved_model(directory, refuse=refuse_unsafe_ops)
    rows = _rows(None, _batches_for(None, data, options), options, frozenset())
    report = warm_saved_model(
        directory, rows, options, model_name=model_name_of(directory), append=append, in_place=True
    )
    if not report.records:
        cold = (
            "; ".join(f"{key!r}: {why}" for key, why in report.skipped.items())
            or "it has no signature"
        )
        raise WarmupError(f"No warmup record can be written for {directory!r}: {cold}")
    _warn_of(report, directory, options)
    return _relocated(report, directory)


def _batches_for(model: Any, data: Any, options: WarmupOptions) -> list[Batch]:
    """`data=` given, else captured in `fit`, else none: rows are made up then."""
    if data is None:
        return captured_batches(model) if model is not None else []
    rows = max(_MIN_ROWS, *(options.batch_sizes or (_MIN_ROWS,)))
    return select_batches(
        read_batches(data),
        num_batches=NUM_BATCHES,
        rows=rows,
        seed=options.seed,
        max_read=MAX_READ_BATCHES,
    )


def _rows(
    model: keras.Model | None,
    batches: Sequence[Batch],
    options: WarmupOptions,
    own_calls: frozenset[str],
) -> ExportInputs:
    if model is None or options.transform is not None:
        return ExportInputs(batches, model, own_calls)
    # Serialized Examples have no structure yet: a signature that parses them takes them as they are.
    if (
        batches
        and not takes_one_string(model)
        and all(is_string_vector(batch) for batch in batches)
    ):
        return ExportInputs(batches, None, own_calls)
    arranged = [arrange_batch(model, batch) for batch in batches]
    ignored = tuple(dict.fromkeys(path for _, paths in arranged for path in paths))
    # What was captured is of no account where data was given.
    seen = captured_shapes(model) if batches and batches[0].source == "captured" else 0
    return ExportInputs([batch for batch, _ in arranged], model, own_calls, ignored, seen)


def _export_model(model: keras.Model, directory: str, batches: Sequence[Batch]) -> None:
    with _explained(f"model {model.name!r}", "model.export", directory):
        if is_subclassed(model) and batches:
            model.export(
                directory, verbose=False, input_signature=captured_signature(model, batches)
            )
        else:
            model.export(directory, verbose=False)


@contextlib.contextmanager
def _explained(what: str, how: str, directory: str) -> Iterator[None]:
    """TensorFlow and Keras refuse what they cannot trace with errors of many types: one type, and a way on."""
    try:
        yield
    except WarmupError:
        raise
    except _FILE_ERRORS as error:
        raise ExportError(
            f"Cannot export {what}: {how} could not write to {directory!r}: {reason_of(error)}. Nothing was published."
        ) from error
    except (
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        NotImplementedError,
        AssertionError,
        RuntimeError,
        tf.errors.OpError,
    ) as error:
        # tf.saved_model.save says so of a resource that a signature captures and the object does not hold.
        cure = (
            "A signature reads variables that the saved object does not hold: save a tf.Module that has every model its "
            "signatures call among its attributes."
            if "untracked" in str(error)
            else "If the batches that fit trains on are not what the model's call takes, pass data= with what it takes, or "
            "export_fn= that writes the SavedModel."
        )
        # Tracing sees no data, so that this quotes none.
        said = (text_of(error) if isinstance(error, tf.errors.OpError) else str(error)).strip()
        if len(said) > _MOST_SAID:
            said = f"{said[:_MOST_SAID]} ..."
        raise ExportError(
            f"Cannot export {what} to {directory!r}: {how} raised {type(error).__name__}: {said.rstrip('.')}. Nothing was "
            f"published. {cure}"
        ) from error


def _default_signature(model: keras.Model, batches: Sequence[Batch]) -> tuple[Any, Any]:
    """The default signature with the dtypes and shapes that were captured, and the structure of its arguments.

    The function is not tracked by the model, so the SavedModel does not tell its structure: every input gets a name here.
    """
    specs = captured_signature(model, batches)
    # In flatten order and with the names TensorFlow would give.
    numbered = (
        (path, spec, "inputs" if index == 0 else f"inputs_{index}")
        for index, (path, spec) in enumerate(walk(specs))
    )
    names = {path: spec.name or name for path, spec, name in numbered if spec is not None}

    def name_spec(path: FeaturePath, spec: Any) -> Any:
        return None if spec is None else tf.TensorSpec(spec.shape, spec.dtype, names[path])

    def serving_default(inputs: Any) -> Any:
        return model(inputs)

    function = tf.function(
        serving_default, input_signature=map_leaves(name_spec, specs), autograph=False
    )
    return function, tuple(map_leaves(lambda path, _: names.get(path), specs))


def _rewrite_signatures(directory: str, options: WarmupOptions) -> None:
    """What requests need of the SignatureDefs and TensorFlow 2 does not write; only where it was asked for."""
    if options.method_name:
        name_methods(directory, flush=False)


def _require_saved_model(directory: str) -> None:
    names = ("saved_model.pb", "saved_model.pbtxt")
    if not any(tf.io.gfile.exists(f"{directory}/{name}") for name in names):
        raise WarmupError(
            f"No SavedModel in {directory!r}: it has no saved_model.pb. Give the version directory itself; an export_fn must write "
            "into the directory it is given."
        )


def _mend_remains(directory: str) -> None:
    """Removes, or completes, what a file operation that failed left in a SavedModel that is otherwise whole."""
    with explained(directory, "remove temporary files from"):
        recover(directory)
        sweep(os.path.dirname(warmup_path(directory)))
        # tf.saved_model.save goes on where it cannot remove it.
        remove_tree(os.path.join(directory, "variables", "variables_temp"))
        complete_fingerprint(directory)


def _warn_of(
    report: WarmupReport, where: str, options: WarmupOptions, *, stacklevel: int = 3
) -> None:
    if report.synthetic:
        warnings.warn(
            f"The warmup records of {where!r} hold made-up rows, since no data was given or captured. Pass data=, or train with "
            "keras_warmup.WarmupExport or BatchCapture in callbacks=.",
            stacklevel=stacklevel,
        )
    if not report.records and not report.skipped:
        warnings.warn(
            f"{where!r} has no signature that a request can reach: it has no warmup file.",
            stacklevel=stacklevel,
        )
    budget = options.max_load_seconds
    if (
        budget is not None
        and report.load_added_ms is not None
        and report.load_added_ms > budget * 1000
    ):
        warnings.warn(
            f"Replaying the warmup records of {where!r} took {report.load_added_ms / 1000:.3g} s, over "
            f"max_load_seconds={budget}: a server loads it at least that much later. Ask for fewer batch_sizes, output_filters "
            "or signatures, or drop records with keras-warmup add --minimize.",
            stacklevel=stacklevel,
        )
    for key, why in report.skipped.items():
        warnings.warn(f"Signature {key!r} of {where!r} stays cold: {why}", stacklevel=stacklevel)


def _relocated(report: WarmupReport, where: str) -> WarmupReport:
    """Returns the report with the path that the SavedModel has now."""
    hint = version_hint(where)
    notes = (*report.notes, hint) if hint else report.notes
    path = warmup_path(where) if report.warmup_path else None
    return dataclasses.replace(report, export_dir=where, warmup_path=path, notes=notes)
