"""Writes a SavedModel into a staging directory, warms it there and publishes it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_warmup.data.batch import Batch, FeaturePath, is_string_vector, map_leaves, walk
from keras_warmup.data.sampling import select_batches
from keras_warmup.data.sources import read_batches
from keras_warmup.errors import ExportError, OptionsError, WarmupError, warn_caller
from keras_warmup.op_errors import text_of
from keras_warmup.options import DEFAULT_BATCH_SIZE, WarmupOptions
from keras_warmup.paths import as_path, explained, reason_of
from keras_warmup.pipeline.bind_signatures import ExportInputs
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

# Batches kept of `data=`, and batches read to choose them: a request needs a few rows, not a pass
# over the dataset.
NUM_BATCHES = 8
MAX_READ_BATCHES = 64
# Characters quoted of the error that an export failed with; the whole error is its cause.
_MAX_QUOTED = 1000
# The errors that tf.io.gfile makes of file system errors (core/platform/errors.cc). Tracing raises
# other ones.
_FILE_ERRORS = (
    OSError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
    tf.errors.DataLossError,
)


def publish_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    data: Any,
    options: WarmupOptions,
    export_fn: ExportFn | None,
    overwrite: bool,
    replaces: Published | None = None,
) -> tuple[WarmupReport, Published]:
    """Exports a Keras model with its warmup file.

    Args:
        model: a built Keras model.
        path: the version directory to publish; may hold `{version}`.
        data: rows to warm with; `None` for the batches captured in `fit`.
        options: what to warm.
        export_fn: `export_fn(model, export_dir)` writes the SavedModel instead of `model.export`.
        overwrite: replace the directory at `path`.
        replaces: the one version that `overwrite` may replace; `None` for any.

    Returns:
        The report, and the identity of the published directory.

    Raises:
        WarmupError: a subclass of it for each kind of failure. Nothing is published.
    """
    if not isinstance(model, keras.Model):
        raise OptionsError(
            f"export_with_warmup takes a keras.Model, got {type(model).__name__}. For a tf.Module "
            "use keras_warmup.save."
        )
    require_built(model)
    if export_fn is not None and not callable(export_fn):
        raise OptionsError(f"export_fn must be callable, got {type(export_fn).__name__}.")
    own_calls = frozenset({"serve", "serving_default"} if export_fn is None else ())
    with staged(path, overwrite=overwrite, replaces=replaces) as staging:
        directory = os.fspath(staging)
        # Read after the path was checked: an iterator can be read only once.
        inputs = _read_inputs(model, data, options, own_calls)
        if export_fn is None:
            _export(model, directory, inputs.batches)
        else:
            with one_copy_of_each_variable():
                export_fn(model, directory)
            require_saved_model(directory)
        report = _warm_staged(directory, path, inputs, options)
    return _relocate(report, staging.published.path), staging.published


def publish_object(
    obj: Any,
    path: str | os.PathLike[str],
    signatures: Any,
    save_options: Any,
    *,
    data: Any,
    options: WarmupOptions,
) -> WarmupReport:
    """Saves an object as `tf.saved_model.save` does, with its warmup file.

    Args:
        obj: a Keras model, `tf.Module` or other trackable object.
        path: where to save; may hold `{version}`. A directory at `path` is replaced.
        signatures: as `tf.saved_model.save` takes them.
        save_options: `tf.saved_model.SaveOptions` or `None`.
        data: rows to warm with; `None` for the batches captured in `fit`.
        options: what to warm.

    Returns:
        The report.

    Raises:
        WarmupError: a subclass of it for each kind of failure. The directory at `path` is
            unchanged.
    """
    model = obj if isinstance(obj, keras.Model) else None
    if model is not None:
        require_built(model)
    elif not hasattr(obj, "_trackable_children"):
        raise OptionsError(
            f"save takes a Keras model, tf.Module or other trackable object, got "
            f"{type(obj).__name__}."
        )
    is_own_call = model is not None and signatures is None
    own_calls = frozenset({"serving_default"} if is_own_call else ())
    with staged(path, overwrite=True) as staging:
        directory = os.fspath(staging)
        inputs = _read_inputs(model, data, options, own_calls)
        if model is not None and is_own_call and is_subclassed(model) and inputs.batches:
            signatures, structure = _default_signature(model, inputs.batches)
            inputs = dataclasses.replace(inputs, structures={"serving_default": structure})
        with _explain_export_errors(type(obj).__name__, "tf.saved_model.save", directory):
            save_saved_model(obj, directory, signatures, save_options)
        report = _warm_staged(directory, path, inputs, options)
    return _relocate(report, staging.published.path)


def warm_existing(
    path: str | os.PathLike[str],
    *,
    data: Any,
    options: WarmupOptions,
    append: bool,
    refuse_unsafe_ops: bool,
) -> WarmupReport:
    """Writes the warmup file of a SavedModel that exists.

    Args:
        path: version directory of the SavedModel.
        data: rows to warm with; `None` to make them up.
        options: what to warm.
        append: keep the records that the file holds.
        refuse_unsafe_ops: raise where the model has ops that touch files, network or processes.

    Returns:
        The report.

    Raises:
        WarmupError: a subclass of it for each kind of failure. The old warmup file is unchanged.
    """
    if options.method_name:
        raise OptionsError(
            "method_name=True applies to exports made here. For a SavedModel that exists, run "
            "keras-warmup method-names first."
        )
    directory = as_path(path)
    with explained(directory, "add a warmup file to"):
        require_saved_model(directory)
        recover(directory)
    check_saved_model(directory, refuse=refuse_unsafe_ops)
    inputs = _read_inputs(None, data, options, frozenset())
    report = warm_saved_model(
        directory,
        inputs,
        options,
        model_name=model_name_of(directory),
        append=append,
        in_place=True,
    )
    if not report.records:
        reasons = [f"{key!r}: {why}" for key, why in report.skipped.items()]
        raise WarmupError(
            f"No warmup record can be written for {directory!r}: "
            f"{'; '.join(reasons) or 'it has no signature'}"
        )
    _warn_of(report, directory, options)
    return _relocate(report, directory)


def require_saved_model(directory: str) -> None:
    """Raises a `WarmupError` if there is no SavedModel in a directory."""
    names = ("saved_model.pb", "saved_model.pbtxt")
    if not any(tf.io.gfile.exists(f"{directory}/{name}") for name in names):
        raise WarmupError(
            f"No SavedModel in {directory!r}: it has no saved_model.pb. Give the version directory "
            "itself; an export_fn must write into the directory it is given."
        )


def _read_inputs(
    model: keras.Model | None, data: Any, options: WarmupOptions, own_calls: frozenset[str]
) -> ExportInputs:
    """Reads the rows of `data=`, else those captured in `fit`, in the model's own structure."""
    batches: Sequence[Batch] = ()
    if data is not None:
        rows = max(DEFAULT_BATCH_SIZE, *(options.batch_sizes or (DEFAULT_BATCH_SIZE,)))
        batches = select_batches(
            read_batches(data),
            num_batches=NUM_BATCHES,
            rows=rows,
            seed=options.seed,
            max_read=MAX_READ_BATCHES,
        )
    elif model is not None:
        batches = captured_batches(model)
    if model is None or options.transform is not None:
        return ExportInputs(batches, model, own_calls)
    # Serialized Examples have no structure yet: a signature that parses them takes them as they
    # are.
    if batches and not takes_one_string(model) and all(map(is_string_vector, batches)):
        return ExportInputs(batches, None, own_calls)
    arranged = [arrange_batch(model, batch) for batch in batches]
    ignored = tuple(dict.fromkeys(path for _, paths in arranged for path in paths))
    # Shapes seen in `fit` do not count where data was given.
    seen = captured_shapes(model) if batches and batches[0].source == "captured" else 0
    return ExportInputs([batch for batch, _ in arranged], model, own_calls, ignored, seen)


def _export(model: keras.Model, directory: str, batches: Sequence[Batch]) -> None:
    with _explain_export_errors(f"model {model.name!r}", "model.export", directory):
        if is_subclassed(model) and batches:
            signature = captured_signature(model, batches)
            model.export(directory, verbose=False, input_signature=signature)
        else:
            model.export(directory, verbose=False)


def _warm_staged(
    directory: str, path: str | os.PathLike[str], inputs: ExportInputs, options: WarmupOptions
) -> WarmupReport:
    """Warms a SavedModel in its staging directory, and readies it for publishing at `path`."""
    if options.method_name:
        name_methods(directory, flush=False)
    report = warm_saved_model(
        directory, inputs, options, model_name=model_name_of(path), share_twins=True
    )
    # Before the rename: where warnings are errors, nothing is published.
    _warn_of(report, as_path(path), options)
    with explained(directory, "remove temporary files from"):
        recover(directory)
        sweep(os.path.dirname(warmup_path(directory)))
        # tf.saved_model.save goes on where it cannot remove it.
        remove_tree(os.path.join(directory, "variables", "variables_temp"))
        complete_fingerprint(directory)
    return report


def _default_signature(model: keras.Model, batches: Sequence[Batch]) -> tuple[Any, Any]:
    """Returns the default signature with the captured specs, and the structure of its arguments.

    The model does not track the function, so the SavedModel does not record its structure. So each
    input gets a name here: in flatten order, the names that TensorFlow would give.
    """
    specs = captured_signature(model, batches)
    names: dict[FeaturePath, str] = {}
    for index, (path, spec) in enumerate(walk(specs)):
        if spec is not None:
            names[path] = spec.name or ("inputs" if index == 0 else f"inputs_{index}")

    def name_spec(path: FeaturePath, spec: Any) -> Any:
        return None if spec is None else tf.TensorSpec(spec.shape, spec.dtype, names[path])

    def serving_default(inputs: Any) -> Any:
        return model(inputs)

    signature = map_leaves(name_spec, specs)
    function = tf.function(serving_default, input_signature=signature, autograph=False)
    return function, tuple(map_leaves(lambda path, _: names.get(path), specs))


@contextlib.contextmanager
def _explain_export_errors(what: str, how: str, directory: str) -> Iterator[None]:
    """Turns the many types of errors of TensorFlow and Keras into an `ExportError` with a cure."""
    try:
        yield
    except WarmupError:
        raise
    except _FILE_ERRORS as error:
        raise ExportError(
            f"Cannot export {what}: {how} could not write to {directory!r}: {reason_of(error)}. "
            "Nothing was published."
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
        # tf.saved_model.save says so of a resource that a signature captures and the object does
        # not hold.
        if "untracked" in str(error):
            cure = (
                "A signature reads variables that the saved object does not hold: save a tf.Module "
                "that has every model its signatures call among its attributes."
            )
        else:
            cure = (
                "If the batches that fit trains on are not what the model's call takes, pass data= "
                "with what it takes, or export_fn= that writes the SavedModel."
            )
        # Tracing sees no data, so the error quotes none.
        quoted = (text_of(error) if isinstance(error, tf.errors.OpError) else str(error)).strip()
        if len(quoted) > _MAX_QUOTED:
            quoted = f"{quoted[:_MAX_QUOTED]} ..."
        raise ExportError(
            f"Cannot export {what} to {directory!r}: {how} raised {type(error).__name__}: "
            f"{quoted.rstrip('.')}. Nothing was published. {cure}"
        ) from error


def _warn_of(report: WarmupReport, where: str, options: WarmupOptions) -> None:
    """Warns of what the caller should change."""
    texts = []
    if report.synthetic:
        texts.append(
            f"The warmup records of {where!r} hold made-up rows, since no data was given or "
            "captured. Pass data=, or train with keras_warmup.WarmupExport or BatchCapture in "
            "callbacks=."
        )
    if not report.records and not report.skipped:
        texts.append(f"{where!r} has no signature that a request can reach: it has no warmup file.")
    budget = options.max_load_seconds
    if budget is not None and report.load_added_ms is not None:
        seconds = report.load_added_ms / 1000
        if seconds > budget:
            texts.append(
                f"Replaying the warmup records of {where!r} took {seconds:.3g} s, over "
                f"max_load_seconds={budget}: a server loads the model at least that much later. "
                "Ask for fewer batch_sizes, output_filters or signatures, or drop records with "
                "keras-warmup minimize."
            )
    texts += [
        (f"Signature {key!r} of {where!r} stays cold: {why}") for key, why in report.skipped.items()
    ]
    for text in texts:
        warn_caller(text)


def _relocate(report: WarmupReport, where: str) -> WarmupReport:
    """Returns the report with the path that the SavedModel has now."""
    hint = version_hint(where)
    notes = (*report.notes, hint) if hint else report.notes
    path = warmup_path(where) if report.warmup_path else None
    return dataclasses.replace(report, export_dir=where, warmup_path=path, notes=notes)
