"""Moves an export callback behind callbacks that restore weights at the end of training."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_warmup.keras_api import installed_keras


def move_behind_restoring(callback: keras.callbacks.Callback) -> None:
    """Moves `callback` to the end of its `CallbackList` if a later callback restores weights.

    `EarlyStopping(restore_best_weights=True)` restores them in `on_train_end`, which must run
    before the export. Call this in `on_train_begin`; nothing happens without a `CallbackList`.
    """
    callback_list = _callback_list_of(callback)
    if callback_list is None:
        return
    callbacks = callback_list.callbacks
    place = next(index for index, other in enumerate(callbacks) if other is callback)
    if any(getattr(other, "restore_best_weights", False) for other in callbacks[place + 1 :]):
        # A new list: the old one is being iterated over.
        callback_list.callbacks = [*callbacks[:place], *callbacks[place + 1 :], callback]


def _callback_list_of(callback: keras.callbacks.Callback) -> Any:
    """Returns the `CallbackList` whose hook is running, or `None`.

    Keras gives a callback the model and the parameters of `fit`, but no reference to its list, so
    the list is looked up in the callers' frames. Exporting from the hook of the `History` callback
    that Keras appends would need no frames, but would export nothing where the list has none.
    """
    lists = tuple(one.callbacks.CallbackList for one in installed_keras())
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, lists) and any(other is callback for other in caller.callbacks):
            return caller
        frame = frame.f_back
    return None
