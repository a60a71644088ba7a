"""Saves Keras 3 objects as SavedModels that a server can run.

`tf.saved_model.save` of a Keras 3 model, or of a `tf.Module` that holds one, writes a restore op
that fills other variables than the signatures read. `tf.saved_model.load` works; a Session, and so
TensorFlow Serving, fails with `Could not find variable`. The cause is one line:
`keras.Variable._export_to_saved_model_graph` (keras/src/backend/tensorflow/core.py) maps itself to
a *new* variable instead of the exported copy of its value.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

_FUNCTIONS = ("train_function", "test_function", "predict_function")
# Reentrant, because an export_fn may call keras_warmup.save.
_lock = threading.RLock()


def _export_to_saved_model_graph(
    variable: Any, object_map: Any, tensor_map: Any, options: Any, **kwargs: Any
) -> Any:
    resources = variable.value._export_to_saved_model_graph(
        object_map, tensor_map, options, **kwargs
    )
    object_map[variable] = object_map[variable.value]
    return resources


@contextlib.contextmanager
def one_copy_of_each_variable() -> Iterator[None]:
    """Makes `tf.saved_model.save` export each Keras variable once, while the context is open.

    Then the restored variables are those that the signatures read. The objects and the structure of
    the file stay the same, so `tf.saved_model.load` returns the same. Where this Keras lacks the
    method (another backend), nothing is changed; the replay in a Session still decides what may be
    published.
    """
    cls: Any = keras.Variable
    with _lock:
        if not hasattr(cls, "_export_to_saved_model_graph"):
            yield
            return
        # The method is inherited, so it is shadowed on the public class only.
        shadowed = vars(cls).get("_export_to_saved_model_graph")
        cls._export_to_saved_model_graph = _export_to_saved_model_graph
        try:
            yield
        finally:
            if shadowed is None:
                del cls._export_to_saved_model_graph
            else:
                cls._export_to_saved_model_graph = shadowed


@contextlib.contextmanager
def quiet_save() -> Iterator[None]:
    """Drops TensorFlow's line "Assets written to: ...", which names a hidden staging directory."""
    logger = tf.get_logger()

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Assets written to: ")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextlib.contextmanager
def keep_functions(model: keras.Model | None) -> Iterator[None]:
    """Keeps the `train_function` of a model, and its other functions, over an export.

    Keras removes them while it collects what to save, and does not put them back where the call
    cannot be traced with float32 inputs (`_trackable_children` in
    keras/src/backend/tensorflow/layer.py). The next step of `fit` would then fail.

    Args:
        model: the model that is exported; `None` where there is none.
    """
    layers = [] if model is None else model._flatten_layers()
    models = [one for one in layers if isinstance(one, keras.Model)]
    kept = [(one, name, vars(one).get(name)) for one in models for name in _FUNCTIONS]
    try:
        yield
    finally:
        for one, name, function in kept:
            if function is not None and vars(one).get(name) is None:
                vars(one)[name] = function


def save_saved_model(
    obj: Any, export_dir: str, signatures: Any = None, options: Any = None
) -> None:
    """Calls `tf.saved_model.save` so that a Session can run the result.

    Args:
        obj: a Keras model, `tf.Module` or other trackable.
        export_dir: where to write.
        signatures: as `tf.saved_model.save` takes them.
        options: `tf.saved_model.SaveOptions` or `None`.
    """
    with one_copy_of_each_variable():
        tf.saved_model.save(obj, export_dir, signatures=signatures, options=options)
