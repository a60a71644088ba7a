"""Decides which epochs are the best so far, as `keras.callbacks.ModelCheckpoint` does."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_warmup.errors import OptionsError
from keras_warmup.keras_api import Model, keras_of


class BestEpoch:
    """Compares the monitored metric of each epoch with the best one before.

    Keras has no public function that returns in which direction a metric improves. `EarlyStopping`
    applies it, and its public attribute `wait` shows the result.

    Args:
        monitor: name of the metric.
        mode: `"min"`, `"max"` or `"auto"`, as `EarlyStopping` takes it.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        self._monitor = monitor
        self._mode = mode
        self._stopping: Any = None
        self._previous_best: Any = None
        self._warned = False

    def is_best(self, model: Model, epoch: int, logs: Mapping[str, Any]) -> bool:
        """Returns whether this epoch is better than all before it.

        An epoch whose metric is missing or NaN is not.

        Args:
            model: the model in training; its metrics define in which direction they improve.
            epoch: number of the epoch, from 1.
            logs: metric name -> value at the end of the epoch.

        Raises:
            OptionsError: neither `mode` nor the metric defines whether lower or higher is better.
        """
        value = logs.get(self._monitor)
        if value is None or np.ndim(value) != 0:
            self._warn(epoch, logs, "is not known" if value is None else "is not a scalar")
            return False
        # EarlyStopping would keep a first NaN as the best: no value is less or greater.
        if math.isnan(float(value)):
            return False
        if self._stopping is None:
            self._stopping = keras_of(model).callbacks.EarlyStopping(
                self._monitor, mode=self._mode, patience=sys.maxsize
            )
            self._stopping.on_train_begin()
        self._previous_best = self._stopping.best
        self._stopping.set_model(model)
        try:
            self._stopping.on_epoch_end(epoch - 1, {self._monitor: value})
        except ValueError as error:
            raise OptionsError(
                f"WarmupExport cannot tell whether {self._monitor!r} is best at its lowest or "
                "highest. Pass mode='min' or mode='max'."
            ) from error
        return bool(self._stopping.wait == 0)

    def forget_last(self) -> None:
        """Restores the best value before the last best epoch, which was not published."""
        self._stopping.best = self._previous_best

    def _warn(self, epoch: int, logs: Mapping[str, Any], why: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"WarmupExport exports only the best epochs by {self._monitor!r}, which {why} at "
                f"epoch {epoch}: no export at such epochs. Known metrics: "
                f"{', '.join(sorted(logs)) or 'none'}.",
                stacklevel=4,
            )
