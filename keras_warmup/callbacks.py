"""The callbacks `WarmupExport`, which exports a warm model, and `BatchCapture`."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras

from keras_warmup.data.batch import Batch
from keras_warmup.data.per_signature import PerSignature
from keras_warmup.data.sources import first_batch
from keras_warmup.errors import (
    DataError,
    ExportError,
    OptionsError,
    PublishError,
    warn_or_print,
)
from keras_warmup.keras_api import Model, is_model
from keras_warmup.op_errors import quote_tracing_error
from keras_warmup.options import (
    DEFAULT_MAX_BYTES,
    WarmupOptions,
    as_options,
    is_integer,
)
from keras_warmup.paths import absolute, as_path, explained
from keras_warmup.pipeline.export_model import (
    ExportRequest,
    WarmVersionKeptError,
    describe_failure,
    publish_model,
    rows_to_keep,
)
from keras_warmup.pipeline.keras_model import (
    describe_backend,
    describe_misfit,
    has_call,
    input_names,
    no_call_cure,
    try_export,
)
from keras_warmup.publishing.publish import (
    Published,
    check_free,
    check_publishable,
    check_writable,
    is_still_there,
    remove_published,
    target_of,
)
from keras_warmup.publishing.versions import fields_of, format_filepath, has_version, version_hint
from keras_warmup.report import WarmupReport
from keras_warmup.training.best_epoch import BestEpoch
from keras_warmup.training.callback_order import move_behind_restoring
from keras_warmup.training.capture import CAPTURED_ROWS, BatchTap, remember
from keras_warmup.training.strategy import is_chief

OnError = Literal["raise", "warn"]

_NUM_BATCHES = 8


class _Tapped(keras.callbacks.Callback):  # type: ignore[misc]
    """Base of the callbacks that sample training batches with a `BatchTap`.

    A `fit` of tf_keras takes it as well; it asks three questions more. Neither it nor a subclass
    may define `on_train_batch_end`: Keras would no longer compute logs asynchronously. During
    batches the model is `self._model`: the property `self.model` forces a state sync on JAX.
    """

    # For tf_keras, which then passes the logs of a batch without waiting for them.
    _supports_tf_logs = True

    def __init__(self, tap: BatchTap) -> None:
        super().__init__()
        self._tap = tap

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._tap.begin(self._model, on_first_step=self._on_first_step)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._tap.before_step(self._model)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._tap.end(self._model)
        self._remember()

    def _on_first_step(self, batch: Batch | None) -> None:
        # From the first batch on, so that an interrupted fit leaves what was sampled.
        self._remember()

    def _remember(self) -> None:
        """Makes the sample of this callback the one that exports of the model use."""
        remember(self._model, self._tap)


class _Unasked(_Tapped):
    """Samples in a `fit` that did not ask for it."""

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        try:
            super().on_train_begin(logs)
        except OptionsError as error:
            warn_or_print(f"This fit is not sampled for warmup records. {error}", stacklevel=2)


def sampling_callback(options: WarmupOptions) -> keras.callbacks.Callback:
    """Returns a callback that remembers the batches that an export with `options` needs.

    None of its errors ends the `fit`.
    """
    return _Unasked(_tap_for(options))


def samples_batches(callback: object) -> bool:
    """Returns whether a callback is one of this package, which samples batches itself."""
    return isinstance(callback, _Tapped)


def _tap_for(options: WarmupOptions, *, example_only: bool = False) -> BatchTap:
    return BatchTap(
        _NUM_BATCHES,
        rows_to_keep(options),
        options.seed,
        options.max_bytes,
        whole=options.whole_batches,
        example_only=example_only,
        privacy=options.effective_privacy,
    )


class BatchCapture(_Tapped):
    """Remembers some training batches for a later `export_with_warmup(model, path)`.

    Training is bit-identical with and without it. The batches are kept as long as the model, or a
    model that shares its layers, exists; they take at most 256 MiB.

    Args:
        num_batches: number of batches to keep, sampled evenly over the whole `fit`. Defaults to
            `8`.
        seed: seed of the sample. Defaults to `0`.
        whole_batches: keep whole batches, as `WarmupOptions.whole_batches` needs them. Defaults to
            `False`: at most 32 rows of each.

    Raises:
        OptionsError: an argument is out of range.

    Example:
    ```python
    model.fit(x, y, callbacks=[keras_warmup.BatchCapture()])
    keras_warmup.export_with_warmup(model, "./digits/{version}")
    ```
    """

    def __init__(
        self, num_batches: int = _NUM_BATCHES, seed: int = 0, *, whole_batches: bool = False
    ) -> None:
        problems = []
        if not is_integer(num_batches, at_least=1):
            problems.append(f"num_batches must be an integer >= 1, got {num_batches!r}")
        if not is_integer(seed, at_least=0):
            problems.append(f"seed must be an integer >= 0, got {seed!r}")
        if problems:
            raise OptionsError("Bad BatchCapture options: " + "; ".join(problems) + ".")
        super().__init__(
            BatchTap(num_batches, CAPTURED_ROWS, seed, DEFAULT_MAX_BYTES, whole=whole_batches)
        )


@dataclasses.dataclass(frozen=True)
class _Version:
    """A version that a callback published, and whether it has a warmup file."""

    published: Published
    is_warm: bool


class WarmupExport(_Tapped):
    """Exports the model with its warmup file, at the end of training or at (best) epochs.

    The records hold rows of the batches that the model was trained on. Training is bit-identical
    with and without it. Path, options and write permissions are checked before the first step.

    With `EarlyStopping(restore_best_weights=True)` the restored weights are exported, in whichever
    order the two are in `callbacks=`: this callback moves behind one that restores weights. (It
    finds the list through the `keras.callbacks.CallbackList` that calls it. A custom training loop
    that calls the hooks without one must call those of this callback last.) For epoch exports with
    `SwapEMAWeights(swap_on_epoch=True)`, place this callback after it, as for `ModelCheckpoint`.

    Under `tf.distribute.MultiWorkerMirroredStrategy` (with tf_keras) pass it on all workers: each
    takes part in the save, as TensorFlow demands, and the chief publishes.

    Args:
        filepath: where to publish, such as `"./digits/{version}"`. `{version}` takes the next free
            version; `{epoch}` and metric names are filled in as `keras.callbacks.ModelCheckpoint`
            does. A version that this instance (not one it was copied from) published under the same
            path is replaced; other directories are not.
        data: rows to warm with, as `export_with_warmup` takes them. Defaults to `None`: the batches
            trained on. It is read at each export: at an epoch, reading a dataset that shuffles and
            that `fit` reads too gives the next epochs another order.
        warmup: `WarmupOptions`, or a mapping of its fields.
        monitor: the metric that decides which epoch is best. Defaults to `"val_loss"`.
        mode: whether the best value is the lowest (`"min"`) or the highest (`"max"`). Defaults to
            `"auto"`: inferred from the metric.
        save_best_only: export only at epochs whose `monitor` is better than ever before in the fits
            of this instance. Epochs where it is missing or NaN are never best. Needs
            `save_freq="epoch"`. Defaults to `False`.
        save_freq: `"train_end"` or `"epoch"`. Defaults to `"train_end"`.
        max_to_keep: number of versions to keep, at least 1; older ones that this instance published
            are removed. Defaults to `None`: all.
        export_model: the model to export in place of the trained one, such as `vae.encoder`, or a
            function that returns it for the trained model, called at each export. Defaults to
            `None`: the trained model.
        export_fn: `export_fn(model, export_dir)` writes the SavedModel instead of `model.export`;
            it is given the `export_model` where there is one.
        on_error: what happens when an export fails. Defaults to `None`: where only the warmup
            fails, the model is published without a warmup file (`report.cold`), with a warning; any
            other failure raises at the end of training and warns at an epoch. `"raise"`: any
            failure raises, and nothing is published. `"warn"`: as `None`, but no export raises.
        verbose: 1 prints a line for each export, 0 nothing. Defaults to `1`.

    Attributes:
        reports: a `WarmupReport` for each version published by this process, newest last.

    Raises:
        OptionsError: an argument is wrong, at construction; or `filepath` or `monitor` needs a
            metric that does not exist, at the end of the first epoch, when metrics are first known
            (`on_error="warn"` warns).
        PublishError: `filepath` exists or cannot be written, before the first step.

    Example:
    ```python
    model.fit(x, y, callbacks=[keras_warmup.WarmupExport("./digits/{version}")])
    ```
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        *,
        data: Any = None,
        warmup: WarmupOptions | Mapping[str, Any] | None = None,
        monitor: str = "val_loss",
        mode: Literal["auto", "min", "max"] = "auto",
        save_best_only: bool = False,
        save_freq: Literal["train_end", "epoch"] = "train_end",
        max_to_keep: int | None = None,
        export_model: Model | Callable[[Any], Model] | None = None,
        export_fn: Callable[[Any, str], Any] | None = None,
        on_error: OnError | None = None,
        verbose: int = 1,
    ) -> None:
        problems = []
        if not isinstance(monitor, str) or not monitor:
            problems.append(f"monitor must be the name of a metric, got {monitor!r}")
        if mode not in ("auto", "min", "max"):
            problems.append(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
        if save_freq not in ("train_end", "epoch"):
            problems.append(f"save_freq must be 'train_end' or 'epoch', got {save_freq!r}")
        elif save_best_only and save_freq == "train_end":
            problems.append(
                "save_best_only needs save_freq='epoch': at train end there is only one export"
            )
        if max_to_keep is not None and (not is_integer(max_to_keep, at_least=1)):
            problems.append(f"max_to_keep must be an integer >= 1 or None, got {max_to_keep!r}")
        if export_model is not None and not callable(export_model):  # a keras.Model is callable
            problems.append(
                "export_model must be a keras.Model, or a function that returns one for the "
                f"trained model, got {type(export_model).__name__}"
            )
        if export_fn is not None and not callable(export_fn):
            problems.append(f"export_fn must be callable, got {type(export_fn).__name__}")
        if on_error not in (None, "raise", "warn"):
            problems.append(f"on_error must be 'raise', 'warn' or None, got {on_error!r}")
        for one in data.data.values() if isinstance(data, PerSignature) else [data]:
            if save_freq == "epoch" and hasattr(one, "__next__"):
                problems.append(
                    f"data must be read again at each epoch, but a {type(one).__name__} can be "
                    "read once; pass a function that returns a new one"
                )
        if problems:
            raise OptionsError("Bad WarmupExport options: " + "; ".join(problems) + ".")
        self.filepath = as_path(filepath)
        self._fields = frozenset(fields_of(self.filepath)) - {"version"}
        # Read at construction: a chdir during fit must not lead to another directory.
        with explained(self.filepath):
            self._directory = os.getcwd()
        self._options = as_options(warmup)
        # Where `data=` does not fit, the export needs to know what the model was trained on.
        super().__init__(_tap_for(self._options, example_only=data is not None))
        self.data = data
        self.monitor = monitor
        self.mode = mode
        self.save_best_only = save_best_only
        self.save_freq = save_freq
        self.max_to_keep = max_to_keep
        self.export_model = export_model
        self.export_fn = export_fn
        self.on_error = on_error
        self.verbose = verbose
        self.reports: list[WarmupReport] = []
        self._published: list[_Version] = []
        self._failed_epochs: list[int] = []
        self._best = BestEpoch(monitor, mode)
        self._epochs_run = 0
        self._epoch = 0
        self._logs: Mapping[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state of a copy, which has published nothing: it may replace no version."""
        return {**vars(self), "_published": []}

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Checks the path, moves behind callbacks that restore weights and starts sampling."""
        self._epochs_run = 0
        self._failed_epochs = []
        if is_chief(self._model):  # other workers publish nothing
            self._check_path()
        self._require_exportable()
        move_behind_restoring(self)
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Refuses, before the first step, epoch directories that others published."""
        if (
            not is_chief(self._model)
            or self._epochs_run
            or self._fields != {"epoch"}
            or has_version(self.filepath)
        ):
            return
        last = max((self.params or {}).get("epochs") or 0, epoch + 1)
        for number in range(epoch + 1, last + 1) if self.save_freq == "epoch" else [last]:
            path = self._path(number)
            if self._version_at(path) is None:
                check_free(path)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Exports, with `save_freq="epoch"`."""
        super().on_epoch_end(epoch, logs)
        self._epoch, self._logs = epoch + 1, dict(logs or {})
        self._epochs_run += 1
        if self._epochs_run == 1:
            self._check_fields()
        if self.save_freq != "epoch":
            return
        if self.save_best_only and not self._is_best():
            return
        if self._export(f"at epoch {self._epoch}", "warn"):
            return
        self._failed_epochs.append(self._epoch)
        if self.save_best_only:
            self._best.forget_last()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Ends sampling; exports, with `save_freq="train_end"`."""
        super().on_train_end(logs)
        if self._failed_epochs:
            epochs = ", ".join(map(str, self._failed_epochs))
            _warn(
                f"WarmupExport published nothing at {len(self._failed_epochs)} of "
                f"{self._epochs_run} epochs: {epochs}. The warning at each of them gives the "
                "reason."
            )
        if self.save_freq != "train_end":
            return
        if not self._epochs_run:
            warnings.warn("WarmupExport published nothing: fit ran no epoch.", stacklevel=2)
            return
        self._export("at the end of training", "raise")

    def _check_path(self) -> None:
        """Checks, before the first step, that the path can be published to."""
        if self._fields:
            known = self.filepath[: min(self.filepath.index("{" + field) for field in self._fields)]
            directory = known.rpartition("/")[0] or ("/" if known.startswith("/") else ".")
            check_writable(absolute(directory, self._directory), self.filepath)
        else:
            template = self._path()
            check_publishable(template, overwrite=self._version_at(template) is not None)
        hint = version_hint(self.filepath)
        if hint and self.verbose:
            print(f"WarmupExport: {hint}")

    def _require_exportable(self) -> None:
        """Refuses, before the first step, a model that has nothing to serve.

        Raises:
            ExportError: the model defines no call, and neither `export_model` nor `export_fn` is
                given (`on_error="warn"` warns).
        """
        model: Any = self._model if self.export_model is None else self.export_model
        if self.export_fn is not None or not is_model(model):
            return
        problem = describe_backend(model)
        if problem is not None:  # the training is worth its while without the export
            _warn(f"WarmupExport will fail to export model {model.name!r} at the end: {problem}")
        if has_call(model):
            return
        text = f"WarmupExport cannot export model {model.name!r}: {no_call_cure(model)}"
        if self.on_error != "warn":
            raise ExportError(text)
        _warn(text)

    def _on_first_step(self, batch: Batch | None) -> None:
        """Refuses a model that cannot be exported; warns where the rows to send do not fit it.

        It is called when the first step was traced, which shows how the model is called.

        Raises:
            ExportError: `model.export` would fail (`on_error="warn"` warns).
        """
        super()._on_first_step(batch)
        if batch is not None:
            self._check_redact(batch)
        if self.data is not None:
            problem = self._describe_data()
        else:
            problem = None if batch is None else self._describe_misfit(batch)
        # The rows of `data=` are exported with, unless they do not fit.
        if self.export_fn is None and self.export_model is None and (self.data is None or problem):
            error = try_export(self._model, self._tap.example or batch)
            if error is not None:
                text = (
                    f"WarmupExport cannot export model {self._model.name!r}: its call, as "
                    f"model.export would trace it, raises {quote_tracing_error(error)}. "
                    f"{'' if self.data is None else 'data= does not help. '}"
                    f"{f'{problem} ' if problem else ''}Pass data= with what the call takes, or "
                    "export another model with export_model= or export_fn=."
                )
                if self.on_error != "warn":
                    raise ExportError(text) from error
                _warn(text)
                return
        if problem:
            rows = "these training batches" if self.data is None else "data="
            _warn(
                f"WarmupExport cannot make warmup records of {rows}. {problem} Training goes on; "
                f"at its end {self._outcome_of_misfit()}. Pass data= with rows that the model "
                "takes, or export another model with export_model= or export_fn=."
            )

    def _check_redact(self, batch: Batch) -> None:
        """Warns of names in `redact=` that neither the batch nor the model's Inputs have."""
        options = self._options
        if options.transform is not None or self.export_fn is not None:
            return
        names = batch.hidden.union(*input_names(self._model, batch.x).values())
        unknown = sorted(set(options.redact or ()) - names)
        if unknown:
            _warn(
                f"WarmupExport: redact names {unknown}, but the training batches hold no such "
                "feature: the model will be published without a warmup file. Give the keys of x, "
                "or the names of the model's Inputs."
            )

    def _describe_data(self) -> str | None:
        """Returns why `data=` cannot be read or does not fit; `None` where that is not known."""
        parts = self.data.data.values() if isinstance(self.data, PerSignature) else [self.data]
        for part in parts:
            try:
                batch = first_batch(part, whole=self._options.whole_batches)
            except DataError as error:
                return str(error)
            problem = None if batch is None else self._describe_misfit(batch)
            if problem:
                return problem
        return None

    def _describe_misfit(self, batch: Batch) -> str | None:
        """Returns why a batch does not fit the exported model; `None` where that is not known."""
        model = self._model if self.export_model is None else self.export_model
        # The signatures that `export_fn` writes are not known yet, nor what a transform makes.
        if self.export_fn is not None or self._options.transform is not None:
            return None
        if not is_model(model):
            return None
        return describe_misfit(model, batch, self._tap.example if model is self._model else None)

    def _outcome_of_misfit(self) -> str:
        if self.data is None and self.export_model is not None:
            return "the rows are made up from the signatures"
        if self.on_error == "raise":
            return "the export raises, as on_error='raise' asks"
        return "the model is published without a warmup file"

    def _check_fields(self) -> None:
        """Checks `filepath` at the end of the first epoch, when metric names are first known."""
        known = {"epoch", *self._logs}
        # With validation_freq > 1 the first epoch has no val_ metrics.
        validated = any(name.startswith("val_") for name in known)
        if any(
            field not in known and (validated or not field.startswith("val_"))
            for field in self._fields
        ):
            try:
                format_filepath(self.filepath, self._epoch, self._logs)
            except OptionsError as error:
                if self.on_error != "warn":
                    raise
                warnings.warn(f"WarmupExport will publish nothing: {error}", stacklevel=2)

    def _is_best(self) -> bool:
        try:
            return self._best.is_best(self.model, self._epoch, self._logs)
        except OptionsError as error:
            if self.on_error != "warn":
                raise
            warnings.warn(str(error), stacklevel=3)
            return False

    def _export(self, when: str, default: OnError) -> bool:
        self._remember()  # another callback may sample for other options
        try:
            template = self._path(self._epoch, self._logs)
            replaced = self._version_at(template)
            model = self._model_to_export()
            request = ExportRequest(
                template,
                self.data,
                self._options,
                overwrite=replaced is not None,
                replaces=None if replaced is None else replaced.published,
                allow_cold=self.on_error != "raise",
                replaces_warm=replaced is not None and replaced.is_warm,
                example=self._tap.example if model is self.model else None,
            )
            report, published = publish_model(model, request, self.export_fn)
        except WarmVersionKeptError as kept:
            _warn(
                f"WarmupExport published nothing {when}: the warm version at {template!r} stays. "
                f"{describe_failure(kept.failure)}"
            )
            return False
        # No failure - a full disk, a user's export_fn, TensorFlow - may end a training of days.
        except Exception as error:
            if (self.on_error or default) == "raise":
                raise
            _warn(f"WarmupExport published nothing {when}. {describe_failure(error)}")
            return False
        if not report.published:
            return True  # another worker publishes it
        self.reports.append(report)
        version = _Version(published, is_warm=bool(report.records))
        others = [one for one in self._published if one.published.path != published.path]
        self._published = [*others, version]
        self._remove_oldest(version)
        if self.verbose:
            # The progress bar of an epoch ends without a newline.
            start = "\n" if default == "warn" and (self.params or {}).get("verbose") else ""
            print(f"{start}WarmupExport: {_summary(report)}")
        return True

    def _model_to_export(self) -> Model:
        model = self.export_model
        if model is None:
            return self.model
        if not is_model(model):
            model = model(self.model)
        if not is_model(model):
            raise OptionsError(
                f"export_model must return a keras.Model, got {type(model).__name__}."
            )
        return model

    def _path(self, epoch: int | None = None, logs: Mapping[str, Any] | None = None) -> str:
        """Returns the absolute path to publish to; `{version}` is left in it."""
        return absolute(format_filepath(self.filepath, epoch, logs), self._directory)

    def _version_at(self, path: str) -> _Version | None:
        """Returns the version that this instance published at a path, unless it was replaced."""
        target = target_of(path)
        for version in self._published:
            if version.published.path == target and is_still_there(version.published):
                return version
        return None

    def _remove_oldest(self, newest: _Version) -> None:
        """Removes versions over `max_to_keep`; a cold version never evicts a warm one."""
        if self.max_to_keep is None:
            return
        removable = [one for one in self._published[:-1] if newest.is_warm or not one.is_warm]
        for version in removable[: max(0, len(self._published) - self.max_to_keep)]:
            self._published.remove(version)
            try:
                remove_published(version.published)
            except PublishError as error:
                _warn(
                    "WarmupExport keeps a version more than "
                    f"max_to_keep={self.max_to_keep}. {error}"
                )


def _warn(text: str) -> None:
    warn_or_print(text, stacklevel=4)


def _summary(report: WarmupReport) -> str:
    if report.cold:
        return f"published {report.export_dir} COLD, without a warmup file (see the warning)"
    count = len(report.records)
    records = "1 warmup record" if count == 1 else f"{count or 'no'} warmup records"
    if report.synthetic:
        records += " of made-up rows"
    kinds = ", ".join(
        dict.fromkeys(f"{record.kind} {record.signature_key}" for record in report.records)
    )
    parts = [f"published {report.export_dir} with {records}{f' ({kinds})' if kinds else ''}"]
    if report.real_rows:
        parts.append(f"up to {report.real_rows} real rows ship inside it")
    unproved = [key for key, proof in report.proofs.items() if proof != "proved"]
    if unproved:
        parts.append(f"not proved: {', '.join(unproved)}")
    return "; ".join(parts)
