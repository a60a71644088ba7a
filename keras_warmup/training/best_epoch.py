"""Which epochs are the best so far, by a monitored metric, as `keras.callbacks.ModelCheckpoint` judges them."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_warmup.errors import OptionsError


class BestEpoch:
    """Judges epochs one after another.

    Which way a metric improves is no public API of Keras; `EarlyStopping` applies it, and says so with its public `wait`.

    Args:
        monitor: the metric.
        mode: `"min"`, `"max"` or `"auto"`, as `EarlyStopping` takes it.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        self._monitor = monitor
        self._judge: Any = keras.callbacks.EarlyStopping(monitor, mode=mode, patience=sys.maxsize)
        self._judge.on_train_begin()
        self._before: Any = None
        self._warned = False

    def is_best(self, model: keras.Model, epoch: int, logs: Mapping[str, Any]) -> bool:
        """Whether this epoch is better than all before it; one where the metric is missing or NaN never is.

        Args:
            model: the model in training; its metrics tell which way they improve.
            epoch: the epoch as users count, from 1.
            logs: metric name -> value at its end.

        Raises:
            OptionsError: neither `mode` nor the metric tells whether lower or higher is better.
        """
        value = logs.get(self._monitor)
        if value is None or np.ndim(value) != 0:
            self._warn(epoch, logs, "is not known" if value is None else "is not a scalar")
            return False
        # The first NaN would otherwise stay the best for ever: nothing is less or greater.
        if math.isnan(float(value)):
            return False
        self._before = self._judge.best
        self._judge.set_model(model)
        try:
            self._judge.on_epoch_end(epoch - 1, {self._monitor: value})
        except ValueError as error:
            raise OptionsError(
                f"WarmupExport cannot tell whether {self._monitor!r} is best at its lowest or highest. Pass mode='min' or "
                "mode='max'."
            ) from error
        return bool(self._judge.wait == 0)

    def forget_last(self) -> None:
        """Takes the last best epoch back: it was not published, so the next one that beats the published one counts."""
        self._judge.best = self._before

    def _warn(self, epoch: int, logs: Mapping[str, Any], why: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"WarmupExport exports only the best epochs by {self._monitor!r}, which {why} at epoch {epoch}: no export at "
                f"such epochs. Known metrics: {', '.join(sorted(logs)) or 'none'}.",
                stacklevel=4,
            )
