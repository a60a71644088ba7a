"""The callbacks `WarmupExport`, which exports a warm model, and `BatchCapture`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_warmup.errors import OptionsError, PublishError, WarmupError, warn_or_print
from keras_warmup.op_errors import describe_op_error
from keras_warmup.options import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_MAX_BYTES,
    WarmupOptions,
    as_options,
    is_integer,
)
from keras_warmup.paths import absolute, as_path, explained, reason_of
from keras_warmup.pipeline.export_model import publish_model
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
from keras_warmup.training.capture import BatchTap, remember

OnError = Literal["raise", "warn"]

_NUM_BATCHES = 8
# The batch sizes of a later export are not known yet: `fit`'s default batch size bounds the rows.
_CAPTURE_ROWS = 32


class _Tapped(keras.callbacks.Callback):  # type: ignore[misc]
    """Base of the callbacks that sample training batches with a `BatchTap`.

    Neither it nor a subclass may define `on_train_batch_end`: Keras would no longer compute logs
    asynchronously. During batches the model is `self._model`: the property `self.model` forces a
    state sync on JAX.
    """

    def __init__(self, tap: BatchTap | None) -> None:
        super().__init__()
        self._tap = tap

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._tap is not None:
            self._tap.begin(self._model)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._tap is not None:
            self._tap.before_step(self._model)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        # At each epoch, so that an interrupted fit still leaves what it saw.
        self._remember()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._tap is not None:
            self._tap.end(self._model)
            self._remember()

    def _remember(self) -> None:
        if self._tap is not None and (batches := self._tap.batches()):
            remember(self._model, batches, len(self._tap.seen_shapes()))


class BatchCapture(_Tapped):
    """Remembers some training batches for a later `export_with_warmup(model, path)`.

    Training is bit-identical with and without it. The batches are kept as long as the model exists;
    they take at most 256 MiB.

    Args:
        num_batches: number of batches to keep, sampled evenly over the whole `fit`. Defaults to
            `8`.
        seed: seed of the sample. Defaults to `0`.

    Raises:
        OptionsError: an argument is out of range.

    Example:
    ```python
    model.fit(x, y, callbacks=[keras_warmup.BatchCapture()])
    keras_warmup.export_with_warmup(model, "./digits/{version}")
    ```
    """

    def __init__(self, num_batches: int = _NUM_BATCHES, seed: int = 0) -> None:
        problems = []
        if not is_integer(num_batches, at_least=1):
            problems.append(f"num_batches must be an integer >= 1, got {num_batches!r}")
        if not is_integer(seed, at_least=0):
            problems.append(f"seed must be an integer >= 0, got {seed!r}")
        if problems:
            raise OptionsError("Bad BatchCapture options: " + "; ".join(problems) + ".")
        super().__init__(BatchTap(num_batches, _CAPTURE_ROWS, seed, DEFAULT_MAX_BYTES))


class WarmupExport(_Tapped):
    """Exports the model with its warmup file, at the end of training or at (best) epochs.

    The records hold rows of the batches that the model was trained on. Training is bit-identical
    with and without it. Path, options and write permissions are checked before the first step.

    With `EarlyStopping(restore_best_weights=True)` the restored weights are exported, in whichever
    order the two are in `callbacks=`: this callback moves behind one that restores weights. (It
    finds the list through the `keras.callbacks.CallbackList` that calls it. A custom training loop
    that calls the hooks without one must call those of this callback last.) For epoch exports with
    `SwapEMAWeights(swap_on_epoch=True)`, place this callback after it, as for `ModelCheckpoint`.

    Under a multi-worker strategy the callback of each worker exports: pass it on the chief only.

    Args:
        filepath: where to publish, such as `"./digits/{version}"`. `{version}` takes the next free
            version; `{epoch}` and metric names are filled in as `keras.callbacks.ModelCheckpoint`
            does. A version that this instance published under the same path is replaced; other
            directories are not.
        data: rows to warm with, as `export_with_warmup` takes them. Defaults to `None`: the batches
            trained on.
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
        export_fn: `export_fn(model, export_dir)` writes the SavedModel instead of `model.export`.
        on_error: `"raise"` or `"warn"` when an export fails. Defaults to `None`: raise at the end
            of training, warn at an epoch.
        verbose: 1 prints a line for each export, 0 nothing. Defaults to `1`.

    Attributes:
        reports: a `WarmupReport` for each export, newest last.

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
        if export_fn is not None and not callable(export_fn):
            problems.append(f"export_fn must be callable, got {type(export_fn).__name__}")
        if on_error not in (None, "raise", "warn"):
            problems.append(f"on_error must be 'raise', 'warn' or None, got {on_error!r}")
        if save_freq == "epoch" and hasattr(data, "__next__"):
            problems.append(
                f"data must be read again at each epoch, but a {type(data).__name__} can be read "
                "once; pass a function that returns a new one"
            )
        if problems:
            raise OptionsError("Bad WarmupExport options: " + "; ".join(problems) + ".")
        self.filepath = as_path(filepath)
        self._fields = frozenset(fields_of(self.filepath)) - {"version"}
        # Read at construction: a chdir during fit must not lead to another directory.
        with explained(self.filepath):
            self._directory = os.getcwd()
        self._options = as_options(warmup)
        rows = max(DEFAULT_BATCH_SIZE, *(self._options.batch_sizes or (DEFAULT_BATCH_SIZE,)))
        super().__init__(
            BatchTap(_NUM_BATCHES, rows, self._options.seed, self._options.max_bytes)
            if data is None
            else None
        )
        self.data = data
        self.monitor = monitor
        self.mode = mode
        self.save_best_only = save_best_only
        self.save_freq = save_freq
        self.max_to_keep = max_to_keep
        self.export_fn = export_fn
        self.on_error = on_error
        self.verbose = verbose
        self.reports: list[WarmupReport] = []
        self._published: list[Published] = []
        self._failed_epochs: list[int] = []
        self._best = BestEpoch(monitor, mode)
        self._epochs_run = 0
        self._epoch = 0
        self._logs: Mapping[str, Any] = {}

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Checks the path, moves behind callbacks that restore weights and starts sampling."""
        self._epochs_run = 0
        self._failed_epochs = []
        if self._fields:
            known = self.filepath[: min(self.filepath.index("{" + field) for field in self._fields)]
            directory = known.rpartition("/")[0] or ("/" if known.startswith("/") else ".")
            check_writable(absolute(directory, self._directory), self.filepath)
        else:
            template = self._path()
            check_publishable(template, overwrite=self._ours_at(template) is not None)
        hint = version_hint(self.filepath)
        if hint and self.verbose:
            print(f"WarmupExport: {hint}")
        move_behind_restoring(self)
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Refuses, before the first step, epoch directories that others published."""
        if self._epochs_run or self._fields != {"epoch"} or has_version(self.filepath):
            return
        last = max((self.params or {}).get("epochs") or 0, epoch + 1)
        for number in range(epoch + 1, last + 1) if self.save_freq == "epoch" else [last]:
            path = self._path(number)
            if self._ours_at(path) is None:
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
        try:
            template = self._path(self._epoch, self._logs)
            ours = self._ours_at(template)
            report, published = publish_model(
                self.model,
                template,
                data=self.data,
                options=self._options,
                export_fn=self.export_fn,
                overwrite=ours is not None,
                replaces=ours,
            )
        # No failure - a full disk, a user's export_fn, TensorFlow - may end a training of days.
        except Exception as error:
            if (self.on_error or default) == "raise":
                raise
            _warn(f"WarmupExport published nothing {when}. {_with_cause(error)}")
            return False
        self.reports.append(report)
        self._published = [one for one in self._published if one.path != published.path] + [
            published
        ]
        self._remove_oldest()
        if self.verbose:
            # The progress bar of an epoch ends without a newline.
            start = "\n" if default == "warn" and (self.params or {}).get("verbose") else ""
            print(f"{start}WarmupExport: {_summary(report)}")
        return True

    def _path(self, epoch: int | None = None, logs: Mapping[str, Any] | None = None) -> str:
        """Returns the absolute path to publish to; `{version}` is left in it."""
        return absolute(format_filepath(self.filepath, epoch, logs), self._directory)

    def _ours_at(self, path: str) -> Published | None:
        """Returns the version that this instance published at a path, unless it was replaced."""
        target = target_of(path)
        return next(
            (one for one in self._published if one.path == target and is_still_there(one)), None
        )

    def _remove_oldest(self) -> None:
        while self.max_to_keep is not None and len(self._published) > self.max_to_keep:
            try:
                remove_published(self._published.pop(0))
            except PublishError as error:
                _warn(
                    f"WarmupExport keeps a version more than max_to_keep={self.max_to_keep}. "
                    f"{error}"
                )


def _warn(text: str) -> None:
    warn_or_print(text, stacklevel=4)


def _with_cause(error: Exception) -> str:
    """Returns the error's text with that of its cause: a warning has no traceback.

    Only the type is given of causes that may quote training data, such as those of a `transform`.
    """
    text = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if cause is None or not isinstance(error, WarmupError):
        return text
    if isinstance(cause, tf.errors.OpError):
        said = f": {describe_op_error(cause)}"
    else:
        said = f": {reason_of(cause)}" if isinstance(cause, OSError) else ""
    return text if said and said[2:] in text else f"{text} Cause: {type(cause).__name__}{said}."


def _summary(report: WarmupReport) -> str:
    count = len(report.records)
    records = "1 warmup record" if count == 1 else f"{count or 'no'} warmup records"
    rows = " of made-up rows" if report.synthetic else ""
    kinds = ", ".join(f"{record.kind} {record.signature_key}" for record in report.records)
    listed = f" ({kinds})" if kinds else ""
    return f"published {report.export_dir} with {records}{rows}{listed}"
