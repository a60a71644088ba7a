"""The list of a callback is found behind wrappers; tests/test_callbacks.py tests the export."""

from __future__ import annotations

from typing import Any

import keras

from keras_warmup.training.callback_order import move_behind_restoring


class Moving(keras.callbacks.Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        move_behind_restoring(self)


class Wrapping(keras.callbacks.CallbackList):
    """Calls the hooks through several functions."""

    def on_train_begin(self, logs: Any = None) -> None:
        def call(depth: int) -> None:
            if depth:
                call(depth - 1)
            else:
                super(Wrapping, self).on_train_begin(logs)

        call(10)


def test_the_list_is_found_behind_wrappers() -> None:
    moving = Moving()
    restoring = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    callbacks = Wrapping([moving, restoring])
    callbacks.on_train_begin()
    assert callbacks.callbacks == [restoring, moving]


def test_nothing_happens_without_a_list_that_has_the_callback() -> None:
    Moving().on_train_begin()
    callbacks = keras.callbacks.CallbackList(
        [keras.callbacks.LambdaCallback(on_train_begin=lambda logs: Moving().on_train_begin())]
    )
    before = list(callbacks.callbacks)
    callbacks.on_train_begin()
    assert callbacks.callbacks == before
