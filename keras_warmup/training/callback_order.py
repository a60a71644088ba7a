"""Where a callback stands among the others: `EarlyStopping` behind an export would restore weights after it."""

from __future__ import annotations

import inspect
from typing import Any

import keras

# CallbackList calls on_train_begin directly; a subclass or a wrapper of it adds a frame or two.
_FRAMES_TO_CALLBACK_LIST = 6


def move_behind_restoring(callback: keras.callbacks.Callback) -> None:
    """Puts `callback` at the end of its `CallbackList` if one behind it would restore weights after its export."""
    callback_list = _callback_list_of(callback)
    if callback_list is None:
        return
    callbacks = callback_list.callbacks
    place = next(index for index, other in enumerate(callbacks) if other is callback)
    if any(getattr(other, "restore_best_weights", False) for other in callbacks[place + 1 :]):
        # A new list: the old one is being iterated over.
        callback_list.callbacks = [*callbacks[:place], *callbacks[place + 1 :], callback]


def _callback_list_of(callback: keras.callbacks.Callback) -> Any:
    """The `CallbackList` whose hook is running; Keras hands callbacks the model, not the list they are in."""
    frame = inspect.currentframe()
    for _ in range(_FRAMES_TO_CALLBACK_LIST):
        frame = frame.f_back if frame is not None else None
        if frame is None:
            return None
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and any(
            other is callback for other in caller.callbacks
        ):
            return caller
    return None
