"""Writes a SavedModel into a staging directory, warms it there and publishes it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from keras_warmup.data.batch import Batch, FeaturePath, map_leaves, walk
from keras_warmup.data.per_signature import PerSignature
from keras_warmup.data.sampling import select_batches
from keras_warmup.data.sources import read_batches
from keras_warmup.errors import (
    ExportError,
    NoDataError,
    OptionsError,
    ProofError,
    PublishError,
    ReplayError,
    UnsafeOpsError,
    UnservableError,
    WarmupError,
    warn_caller,
)
from keras_warmup.keras_api import Model, backend_of, is_legacy, is_model, models_in, write_export
from keras_warmup.op_errors import describe_op_error, quote_tracing_error, runs_on_no_server
from keras_warmup.options import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_FREEZE_MAX_BYTES,
    Privacy,
    WarmupOptions,
)
from keras_warmup.patches import exporting
from keras_warmup.paths import as_path, explained, reason_of
from keras_warmup.pipeline.bind_signatures import ExportInputs
from keras_warmup.pipeline.freeze import LOST, freeze_saved_model
from keras_warmup.pipeline.keras_model import (
    captured_signature,
    export_signature,
    is_subclassed,
    require_built,
    require_exportable,
)
from keras_warmup.pipeline.warm import check_servable, warm_saved_model
from keras_warmup.publishing.filesystem import exists, remove_tree
from keras_warmup.publishing.publish import Published, Staging, staged
from keras_warmup.publishing.versions import model_name_of, version_hint
from keras_warmup.publishing.workspace import sweep
from keras_warmup.records.manifest import MANIFEST_PATH, read_manifest, write_manifest
from keras_warmup.records.warmup_file import warmup_path
from keras_warmup.report import WarmupReport, count_real_rows
from keras_warmup.savedmodel.rewriting import (
    complete_fingerprint,
    name_methods,
    recover,
    renew_fingerprint,
)
from keras_warmup.savedmodel.saving import (
    each_weight_once,
    keep_functions,
    quiet_save,
    save_saved_model,
)
from keras_warmup.savedmodel.unsafe_ops import check_saved_model
from keras_warmup.serving.tensorflow_log import no_status_log
from keras_warmup.training.capture import CAPTURED_ROWS, find_capture
from keras_warmup.training.strategy import describe_worker, has_several_workers, is_chief

ExportFn = Callable[[Any, str], Any]
WriteExport = Callable[[Model, str, Any], None]
SaveObject = Callable[[str], None]

# The signatures that are the model's own call: of `model.export`, and of a save.
OWN_ENDPOINTS = frozenset({"serve", "serving_default"})
OWN_SAVE = frozenset({"serving_default"})

# Batches kept of `data=`, and batches read to choose them: a request needs a few rows, not a pass
# over the dataset.
NUM_BATCHES = 8
MAX_READ_BATCHES = 64
_MAX_LISTED_FEATURES = 5
# Not a warning of Python: it is what the default does, and must not end a fit where those are
# errors. Without a configuration of `logging` it is printed to stderr.
_LOG = logging.getLogger("keras_warmup")
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


class WarmVersionKeptError(Exception):
    """Only the warmup failed, and a cold model may not replace a warm one.

    Attributes:
        failure: the error of the warmup.
    """

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """What to publish, and what may happen when it fails.

    Attributes:
        path: the version directory to publish; may hold `{version}`.
        data: rows to warm with; `None` for the batches captured in `fit`.
        options: what to warm.
        overwrite: replace the directory at `path`.
        replaces: the one version that `overwrite` may replace; `None` for any.
        allow_cold: publish the model without a warmup file where only the warmup fails.
        replaces_warm: whether `replaces` has a warmup file: a cold version never replaces it.
        example: a batch that the model was trained on, without its values; `None` where it is not
            known, or captured batches are used.
        warn: tells the caller what to know or change.
    """

    path: str | os.PathLike[str]
    data: Any
    options: WarmupOptions
    overwrite: bool = False
    replaces: Published | None = None
    allow_cold: bool = False
    replaces_warm: bool = False
    example: Batch | None = None
    warn: Callable[[str], None] = warn_caller


def publish_model(
    model: Model,
    request: ExportRequest,
    export_fn: ExportFn | None = None,
    *,
    write: WriteExport = write_export,
) -> tuple[WarmupReport, Published]:
    """Exports a Keras model with its warmup file.

    Args:
        model: a built Keras model.
        request: where and with what.
        export_fn: `export_fn(model, export_dir)` writes the SavedModel instead of `model.export`.
        write: `write(model, export_dir, input_signature)` calls `model.export`. Defaults to
            `keras_api.write_export`.

    Returns:
        The report, and the identity of the published directory.

    Raises:
        WarmupError: a subclass of it for each kind of failure. Nothing is published.
    """
    if not is_model(model):
        raise OptionsError(
            f"export_with_warmup takes a keras.Model, got {type(model).__name__}. For a tf.Module "
            "use keras_warmup.save."
        )
    if export_fn is not None and not callable(export_fn):
        raise OptionsError(f"export_fn must be callable, got {type(export_fn).__name__}.")
    own_calls = OWN_ENDPOINTS if export_fn is None else frozenset()

    def export(staging: Staging, inputs: ExportInputs) -> ExportInputs:
        directory = os.fspath(staging)
        if export_fn is not None:
            export_fn(model, directory)
            require_saved_model(directory)
            return inputs
        require_exportable(model)
        batches = () if inputs.is_borrowed else inputs.batches
        require_built(model, [*inputs.batches[:1], *_listed_example(inputs)])
        with _explain_export_errors(f"model {model.name!r}", "model.export", staging.target):
            write(model, directory, export_signature(model, batches, inputs.example))
        return inputs

    return _publish(model, own_calls, request, export)


def publish_object(
    obj: Any,
    request: ExportRequest,
    signatures: Any,
    save_options: Any,
    *,
    save: SaveObject | None = None,
) -> tuple[WarmupReport, Published]:
    """Saves an object as `tf.saved_model.save` does, with its warmup file.

    Args:
        obj: a Keras model, `tf.Module` or other trackable object.
        request: where and with what.
        signatures: as `tf.saved_model.save` takes them.
        save_options: `tf.saved_model.SaveOptions` or `None`.
        save: saves the object to a directory as its caller asked. Defaults to `None`:
            `tf.saved_model.save`, a subclassed model with the signature of its captured batches.

    Returns:
        The report, and the identity of the published directory.

    Raises:
        WarmupError: a subclass of it for each kind of failure. The directory at the path is
            unchanged.
    """
    model = obj if is_model(obj) else None
    if model is None and not hasattr(obj, "_trackable_children"):
        raise OptionsError(
            "save takes a Keras model, tf.Module or other trackable object, got "
            f"{type(obj).__name__}."
        )
    is_own_call = model is not None and signatures is None
    own_calls = OWN_SAVE if is_own_call else frozenset()

    def export(staging: Staging, inputs: ExportInputs) -> ExportInputs:
        directory = os.fspath(staging)
        served = signatures
        if model is not None:
            if backend_of(model) != "tensorflow":
                raise ExportError(
                    f"tf.saved_model.save cannot save model {model.name!r}, which has the "
                    f"{backend_of(model)} backend. Use keras_warmup.export_with_warmup, which "
                    "calls model.export."
                )
            require_built(model, [*inputs.batches[:1], *_listed_example(inputs)])
            batches = inputs.batches or _listed_example(inputs)
            if (
                is_own_call
                and save is None
                and is_subclassed(model)
                and not is_legacy(model)  # it saves the specs of its first call
                and batches
                and not inputs.is_borrowed
            ):
                served, structure = _default_signature(model, batches)
                inputs = dataclasses.replace(inputs, structures={"serving_default": structure})
        with _explain_export_errors(type(obj).__name__, "tf.saved_model.save", staging.target):
            if save is None:
                save_saved_model(obj, directory, served, save_options)
            else:
                save(directory)
        return inputs

    trained = model if model is not None else trained_of(models_in(obj))
    return _publish(model, own_calls, request, export, trained=trained)


def trained_of(models: Iterable[Model]) -> Model | None:
    """Returns the first of several models whose training was seen; `None` where none was."""
    return next((one for one in models if find_capture(one) is not None), None)


def publish_written(
    model: Model | None,
    request: ExportRequest,
    write: Callable[[str], None],
    own_calls: frozenset[str] = frozenset(),
) -> tuple[WarmupReport, Published]:
    """Publishes what a function writes, with its warmup file.

    Args:
        model: the Keras model in it, as far as is known.
        request: where and with what.
        write: writes a SavedModel to the directory it is given.
        own_calls: keys of the signatures that are the model's own call.

    Returns:
        The report, and the identity of the published directory.

    Raises:
        WarmupError: a subclass of it for each kind of failure. Nothing is published.
    """

    def export(staging: Staging, inputs: ExportInputs) -> ExportInputs:
        write(os.fspath(staging))
        require_saved_model(os.fspath(staging))
        return inputs

    return _publish(model, own_calls, request, export)


def _publish(
    model: Model | None,
    own_calls: frozenset[str],
    request: ExportRequest,
    export: Callable[[Staging, ExportInputs], ExportInputs],
    *,
    trained: Model | None = None,
) -> tuple[WarmupReport, Published]:
    """Exports into a staging directory, warms the SavedModel there and publishes it.

    `trained` is the model whose captured rows are sent where that is not `model`.
    """
    if not is_chief(model):
        return _take_part(model, own_calls, request, export)
    is_saved = False

    def save(staging: Staging, inputs: ExportInputs) -> ExportInputs:
        nonlocal is_saved
        is_saved = True
        return export(staging, inputs)

    try:
        return _publish_here(model, own_calls, request, save, trained)
    except Exception:
        if not is_saved and has_several_workers(model):
            _take_part(model, own_calls, request, export)  # the others wait for it
        raise


def _publish_here(
    model: Model | None,
    own_calls: frozenset[str],
    request: ExportRequest,
    export: Callable[[Staging, ExportInputs], ExportInputs],
    trained: Model | None,
) -> tuple[WarmupReport, Published]:
    options = request.options
    with staged(request.path, overwrite=request.overwrite, replaces=request.replaces) as staging:
        directory = os.fspath(staging)
        failure: Exception | None = None
        inputs = ExportInputs(
            model=model, own_calls=own_calls, example=request.example or _captured_example(model)
        )
        try:
            # Read after the path was checked: an iterator can be read only once.
            inputs = _read_inputs(inputs, request.data, options, trained=trained)
        except Exception as error:
            _require_cold_allowed(error, request)
            failure = error
        with exporting(), quiet_save(), keep_functions(model), each_weight_once():
            inputs = export(staging, inputs)
        if options.method_name:
            name_methods(directory, flush=False)
        frozen = None
        if options.freeze:
            limit = options.freeze_max_bytes or DEFAULT_FREEZE_MAX_BYTES
            frozen = freeze_saved_model(
                directory,
                directory,
                max_bytes=limit,
                share_twins=options.share_twin_signatures is not False,
            )
            inputs = dataclasses.replace(inputs, recorded_structures=frozen.structures)
        if failure is None:
            try:
                report = warm_saved_model(
                    directory,
                    inputs,
                    options,
                    model_name=model_name_of(request.path),
                    made_here=True,
                )
            except Exception as error:
                _require_cold_allowed(error, request)
                failure = error
        if failure is not None:
            report = _leave_cold(directory, failure, own_calls, options)
        elif report.cold and request.replaces_warm:
            why = WarmupError(report.cold)
            raise WarmVersionKeptError(why) if request.allow_cold else why
        elif (
            report.cold
            and not request.allow_cold
            and report.privacy == "synthetic"
            and (inputs.batches or inputs.per_signature)
        ):
            # As real rows that do not run.
            raise ReplayError(report.cold)
        if not report.records:
            with explained(directory, "remove a warmup file from"):
                _remove_foreign_file(directory)
        if frozen is not None:
            report = dataclasses.replace(
                report,
                frozen=frozen.frozen,
                shared_signatures=frozen.twins,
                notes=(*report.notes, LOST),
            )
        # Before the rename: where warnings are errors, nothing is published.
        _warn_of(report, staging.target, options, request.warn)
        with explained(directory, "remove temporary files from"):
            recover(directory)
            sweep(os.path.dirname(warmup_path(directory)))
            # tf.saved_model.save goes on where it cannot remove it.
            remove_tree(os.path.join(directory, "variables", "variables_temp"))
        if options.freeze:
            with no_status_log():  # TensorFlow warns of a model without variables
                renew_fingerprint(directory)
        else:
            complete_fingerprint(directory)
        if report.records:
            _write_manifest(directory, report, options, flush=False)
    _announce_real_rows(report, staging.published.path)
    return _relocate(report, staging.published.path), staging.published


def _take_part(
    model: Model | None,
    own_calls: frozenset[str],
    request: ExportRequest,
    export: Callable[[Staging, ExportInputs], ExportInputs],
) -> tuple[WarmupReport, Published]:
    """Exports what the chief publishes, and drops it: all workers read the variables together."""
    path = as_path(request.path)
    with tempfile.TemporaryDirectory(prefix="keras-warmup-worker-") as directory:
        staging = Staging(os.path.join(directory, "model"), path)
        inputs = ExportInputs(model=model, own_calls=own_calls, example=request.example)
        with exporting(), quiet_save(), keep_functions(model), each_weight_once():
            export(staging, inputs)
    why = f"{describe_worker(model)} took part in the save; the chief publishes the model."
    return WarmupReport(path, None, (), cold=why, published=False), Published(path, None)


def _require_cold_allowed(error: Exception, request: ExportRequest) -> None:
    """Raises the error again, unless it only costs the warmup and a cold model may be published.

    Any error of ours while rows are bound, planned or replayed is one of the warmup: a training is
    never lost to it. An output that differs from the model's own, a refusal that was asked for and
    an unwritable disk are not.

    Raises:
        WarmVersionKeptError: a cold model may be published, but not in place of a warm one.
    """
    fatal = (NoDataError, ProofError, PublishError, UnsafeOpsError, UnservableError)
    is_fatal = (
        isinstance(error, fatal)
        or (isinstance(error, OSError) and not isinstance(error, WarmupError))
        or runs_on_no_server(error)
    )
    if is_fatal or not request.allow_cold or not request.options.verify:
        raise error
    if request.replaces_warm:
        raise WarmVersionKeptError(error) from error


def _leave_cold(
    directory: str, error: Exception, own_calls: frozenset[str], options: WarmupOptions
) -> WarmupReport:
    """Returns the report of a model that is published without a warmup file.

    Raises:
        ReplayError: a server cannot load the model.
        UnservableError: a server cannot run the model's own call.
    """
    check_servable(directory, own_calls)
    return WarmupReport(directory, None, (), seed=options.seed, cold=describe_failure(error))


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
    if options.freeze:
        raise OptionsError(
            "freeze=True applies to exports made here. For a SavedModel that exists, run "
            "keras-warmup freeze first."
        )
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
    request = ExportRequest(directory, data, options)
    return _warm_in_place(directory, ExportInputs(), request, append=append)


def warm_written(
    request: ExportRequest, model: Model | None, own_calls: frozenset[str], trained: Model | None
) -> WarmupReport:
    """Writes the warmup file of a SavedModel that was just written, and other files stay.

    Args:
        request: what to warm with; the SavedModel is at its path.
        model: the Keras model in it, as far as is known.
        own_calls: keys of the signatures that are the model's own call.
        trained: the model whose captured rows are sent where that is not `model`.

    Raises:
        WarmupError: a subclass of it for each kind of failure. There is no new warmup file.
    """
    if request.options.freeze:
        raise OptionsError("freeze=True needs a path that does not exist yet.")
    inputs = ExportInputs(model=model, own_calls=own_calls, example=_captured_example(model))
    return _warm_in_place(os.fspath(request.path), inputs, request, trained=trained)


def _warm_in_place(
    directory: str,
    inputs: ExportInputs,
    request: ExportRequest,
    *,
    append: bool = False,
    trained: Model | None = None,
) -> WarmupReport:
    options = request.options
    inputs = _read_inputs(inputs, request.data, options, trained=trained)
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
    _write_manifest(directory, report, options)
    _announce_real_rows(report, directory)
    _warn_of(report, directory, options, request.warn)
    return _relocate(report, directory)


def keeps_other_warmup_file(directory: str) -> bool:
    """Removes a warmup file of ours, made for the model that was there before.

    Returns:
        Whether there is one that others wrote, which stays.
    """
    if read_manifest(directory) is not None:
        _remove_foreign_file(directory)
    return exists(warmup_path(directory))


def _remove_foreign_file(directory: str) -> None:
    """Removes a warmup file that an `export_fn` wrote or copied: nothing is known of it."""
    for path in (warmup_path(directory), os.path.join(directory, *MANIFEST_PATH.split("/"))):
        if exists(path):
            tf.io.gfile.remove(path)


def _announce_real_rows(report: WarmupReport, where: str) -> None:
    """Tells in one line which real rows ship."""
    if not report.real_features:
        return
    # Rows that several records hold count once; those of records that were kept are not known.
    kept = [record for record in report.records if record.source == "log"]
    shown = ", ".join(report.real_features[:_MAX_LISTED_FEATURES])
    more = len(report.real_features) - _MAX_LISTED_FEATURES
    _LOG.warning(
        "keras_warmup: up to %d REAL ROWS of your data ship inside %s (features: %s%s), readable "
        "by anyone who has its files. warmup={'privacy': 'synthetic'} replaces all values, "
        "'redacted' those of some features.",
        report.real_rows + count_real_rows(kept),
        where,
        shown,
        f" and {more} more" if more > 0 else "",
    )


def _write_manifest(
    directory: str, report: WarmupReport, options: WarmupOptions, *, flush: bool = True
) -> None:
    privacy = Privacy(report.privacy, frozenset(report.redacted))
    write_manifest(
        directory,
        report.records,
        privacy,
        not_found=report.not_found,
        seed=report.seed,
        flush=flush,
    )


def require_saved_model(directory: str) -> None:
    """Raises a `WarmupError` if there is no SavedModel in a directory."""
    names = ("saved_model.pb", "saved_model.pbtxt")
    if not any(tf.io.gfile.exists(f"{directory}/{name}") for name in names):
        raise WarmupError(
            f"No SavedModel in {directory!r}: it has no saved_model.pb. Give the version directory "
            "itself; an export_fn must write into the directory it is given."
        )


def _read_inputs(
    inputs: ExportInputs, data: Any, options: WarmupOptions, *, trained: Model | None = None
) -> ExportInputs:
    """Reads the rows of `data=`, else those captured in the `fit` of `trained` or of the model."""
    if isinstance(data, PerSignature):
        own = {key: _select(one, options) for key, one in data.data.items()}
        size = max((batch.full_size for batches in own.values() for batch in batches), default=0)
        return dataclasses.replace(inputs, per_signature=own, training_batch_size=size)
    if data is not None:
        batches = _select(data, options)
        size = max((batch.full_size for batch in batches), default=0)
        return dataclasses.replace(inputs, batches=batches, training_batch_size=size)
    source = inputs.model if trained is None else trained
    capture = None if source is None else find_capture(source)
    if capture is None:
        return inputs
    batches = capture.batches()
    return dataclasses.replace(
        inputs,
        batches=batches,
        is_borrowed=not capture.is_of(inputs.model),
        sampling_problem="" if batches else capture.problem or "",
        shapes_seen=capture.shapes_seen(),
        training_batch_size=capture.batch_size(),
    )


def _captured_example(model: Model | None) -> Batch | None:
    capture = None if model is None else find_capture(model)
    return capture.example if capture is not None and capture.is_of(model) else None


def _listed_example(inputs: ExportInputs) -> list[Batch]:
    return [] if inputs.example is None else [inputs.example]


def rows_to_keep(options: WarmupOptions) -> int:
    """Returns the number of rows to keep of each batch, for the batch sizes asked for."""
    if options.batch_sizes == "auto":
        return CAPTURED_ROWS
    return max(DEFAULT_BATCH_SIZE, *options.exact_batch_sizes, 0)


def _select(data: Any, options: WarmupOptions) -> list[Batch]:
    return select_batches(
        read_batches(data, whole=options.whole_batches),
        num_batches=NUM_BATCHES,
        rows=rows_to_keep(options),
        seed=options.seed,
        max_read=MAX_READ_BATCHES,
    )


def _default_signature(model: Model, batches: Sequence[Batch]) -> tuple[Any, Any]:
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
def _explain_export_errors(what: str, how: str, target: str) -> Iterator[None]:
    """Turns the many types of errors of TensorFlow and Keras into an `ExportError` with a cure."""
    try:
        yield
    except WarmupError:
        raise
    except _FILE_ERRORS as error:
        raise ExportError(
            f"Cannot export {what}: {how} could not write to {target!r}: {reason_of(error)}. "
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
        raise ExportError(
            f"Cannot export {what} to {target!r}: {how} raised {quote_tracing_error(error)}. "
            f"Nothing was published. {cure}"
        ) from error


def _warn_of(
    report: WarmupReport, where: str, options: WarmupOptions, warn: Callable[[str], None]
) -> None:
    """Warns of what the caller should know or change."""
    texts = []
    if report.cold:
        texts.append(
            f"{where!r} is published COLD, without a warmup file: its first requests will be slow. "
            f"The warmup failed: {report.cold}"
        )
    elif not report.records and not report.skipped:
        texts.append(f"{where!r} has no signature that a request can reach: it has no warmup file.")
    if report.synthetic and report.privacy != "synthetic":
        texts.append(
            f"The warmup records of {where!r} hold made-up rows"
            + (
                f": {' '.join(dict.fromkeys(report.synthetic_reasons.values()))}"
                if report.synthetic_reasons
                else ", since no data was given or captured. Pass data=, or train with "
                "keras_warmup.WarmupExport or BatchCapture in callbacks=."
            )
        )
    for names in dict.fromkeys(report.training_serving_skew.values()):
        keys = [key for key, other in report.training_serving_skew.items() if other == names]
        texts.append(
            f"Training and serving of {where!r} ({_listed(keys)}) disagree: fit filled the inputs "
            f"{_listed(names)} with other features than requests do, which go by name. (Keras "
            "takes the items of an OrderedDict, as make_csv_dataset yields them, by position.) "
            "Map the batches to a plain dict, dataset.map(lambda x, y: (dict(x), y)), and train "
            "again."
        )
    if report.random_signatures:
        texts.append(
            f"Outputs of {where!r} ({_listed(report.random_signatures)}) are random at inference: "
            "an equal request gives other outputs. Dropout or data augmentation may be left on: "
            "call such layers with training=False, or leave them out of the exported model. A "
            "model that samples by design, as the encoder of a VAE does, needs no change."
        )
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
    if not report.cold:
        texts += [
            f"Signature {key!r} of {where!r} stays cold: {why}"
            for key, why in report.skipped.items()
        ]
    for text in texts:
        warn(text)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def describe_failure(error: Exception) -> str:
    """Returns the error's text with that of its cause: a warning has no traceback.

    Only the type is given of errors and causes that may quote training data, such as those of a
    `transform`, or of the user's model called on rows.
    """
    if isinstance(error, tf.errors.OpError):
        return f"{type(error).__name__}: {describe_op_error(error)}"
    if not isinstance(error, (WarmupError, OSError)):
        return f"{type(error).__name__}; its text is not shown, as it may quote training data."
    text = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if cause is None or not isinstance(error, WarmupError):
        return text
    if isinstance(cause, tf.errors.OpError):
        said = f": {describe_op_error(cause)}"
    else:
        said = f": {reason_of(cause)}" if isinstance(cause, OSError) else ""
    return text if said and said[2:] in text else f"{text} Cause: {type(cause).__name__}{said}."


def _relocate(report: WarmupReport, where: str) -> WarmupReport:
    """Returns the report with the path that the SavedModel has now."""
    hint = version_hint(where)
    notes = (*report.notes, hint) if hint else report.notes
    path = warmup_path(where) if report.warmup_path else None
    return dataclasses.replace(report, export_dir=where, warmup_path=path, notes=notes)
