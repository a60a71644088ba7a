"""Saves Keras 3 objects as SavedModels that a server can run, with each weight once.

Two habits of Keras 3 are corrected while such an object is saved:

- `tf.saved_model.save` of a Keras 3 model, or of a `tf.Module` that holds one, writes a restore op
  that fills other variables than the signatures read. `tf.saved_model.load` works; a Session, and
  so TensorFlow Serving, fails with `Could not find variable`. The cause is one line:
  `keras.Variable._export_to_saved_model_graph` (keras/src/backend/tensorflow/core.py) maps itself
  to a *new* variable instead of the exported copy of its value.
- `model.export` and `keras.export.ExportArchive` write each weight twice: the object they save
  tracks the `keras.Variable`s (`variables` and its like) and their values (`_all_variables`), which
  are different objects to TensorFlow (keras/src/export/saved_model_export_archive.py). A server
  restores both, and keeps both in memory.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_warmup._protos import save_context
from keras_warmup.keras_api import Model, is_model
from keras_warmup.patches import layered, replaced_value

_ARCHIVE_ATTRIBUTES = ("_tf_trackable", "_endpoint_names", "_get_concrete_fn")
_FUNCTIONS = ("train_function", "test_function", "predict_function")
# Reentrant, because an export_fn may call keras_warmup.save.
_lock = threading.RLock()


def _export_to_saved_model_graph(
    call_next: Any, variable: Any, object_map: Any, tensor_map: Any, options: Any, **kwargs: Any
) -> Any:
    resources = variable.value._export_to_saved_model_graph(
        object_map, tensor_map, options, **kwargs
    )
    object_map[variable] = object_map[variable.value]
    return resources


@contextlib.contextmanager
def each_weight_once() -> Iterator[None]:
    """Makes Keras objects that are saved while the context is open store each weight once.

    What `tf.saved_model.load` returns stays the same: functions, and lists of variables by name.
    Where this Keras lacks what is replaced here (another backend), nothing is changed; the replay
    in a Session still decides what may be published.
    """
    with (
        _lock,
        _variables_exported_once(),
        _archives_written_once(),
        _legacy_archives_written_once(),
    ):
        yield


@contextlib.contextmanager
def _variables_exported_once() -> Iterator[None]:
    """Maps each `keras.Variable` to the exported copy of its value, as signatures read it."""
    name = "_export_to_saved_model_graph"
    if not hasattr(keras.Variable, name):
        yield
        return
    with layered(keras.Variable, name, _export_to_saved_model_graph):
        yield


@contextlib.contextmanager
def _archives_written_once() -> Iterator[None]:
    """Makes `ExportArchive`s track the values of variables in place of the `keras.Variable`s."""
    if keras.backend.backend() != "tensorflow":  # others track their own copies, once
        yield
        return
    # ExportArchive() returns an object of the backend's class.
    cls: Any = type(keras.export.ExportArchive())

    with layered(cls, "write_out", write_archive_once):
        yield


def write_archive_once(
    write_out: Any, archive: Any, filepath: Any, options: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Calls `ExportArchive.write_out` so that it stores each weight once, and traces once."""
    if not all(hasattr(archive, name) for name in _ARCHIVE_ATTRIBUTES):
        return write_out(archive, filepath, options, *args, **kwargs)
    with _tracking_values(archive._tf_trackable), _traced_once(archive, options):
        return write_out(archive, filepath, options, *args, **kwargs)


@contextlib.contextmanager
def _legacy_archives_written_once() -> Iterator[None]:
    """Makes the `ExportArchive`s of tf_keras leave out the replicas of distributed variables.

    Under a strategy of several replicas they hold each variable, and one replica of it again. It is
    that replica that a Session restores, and its moving statistics are of its own batches alone.
    """
    name = "_filter_and_track_resources"
    legacy = sys.modules.get("tf_keras")
    cls = getattr(getattr(legacy, "export", None), "ExportArchive", None)
    if not hasattr(cls, name):
        yield
        return

    def track_once(call_next: Any, archive: Any) -> None:
        call_next(archive)
        replicas = {
            id(replica)
            for variable in archive.variables
            if isinstance(variable, tf.distribute.DistributedValues)
            for replica in variable.distribute_strategy.experimental_local_results(variable)
        }
        archive._all_variables = [one for one in archive._all_variables if id(one) not in replicas]

    with layered(cls, name, track_once):
        yield


@contextlib.contextmanager
def _tracking_values(tracked: Any) -> Iterator[None]:
    """Replaces lists of `keras.Variable`s on a trackable by lists of their values, for a while."""
    lists = {name: one for name, one in vars(tracked).items() if _holds_variables(one)}
    try:
        for name, variables in lists.items():
            setattr(tracked, name, [_value_of(one) for one in variables])
        yield
    finally:
        for name, variables in lists.items():
            setattr(tracked, name, variables)


@contextlib.contextmanager
def _traced_once(archive: Any, options: Any) -> Iterator[None]:
    """Makes `write_out` trace each endpoint once; it takes most of the time of an export.

    Keras traces an endpoint to list its variables, and `tf.saved_model.save` traces it again, since
    it is in another context then. The trace of the save lists the same variables. While Keras looks
    for lookup tables in the models that are tracked, it also traces the default signature of each,
    although the archive is not saved with it.
    """
    with save_context(options or tf.saved_model.SaveOptions()):
        traces = {
            name: next(
                iter(
                    getattr(archive._tf_trackable, name)._trackable_children("saved_model").values()
                )
            )
            for name in archive._endpoint_names
        }
    archive._get_concrete_fn = traces.__getitem__
    try:
        with replaced_value(keras.Model, "_default_save_signature", None):
            yield
    finally:
        del archive._get_concrete_fn


def _holds_variables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, keras.Variable) for one in value)


def _value_of(variable: Any) -> Any:
    """Returns the `tf.Variable` in a `keras.Variable`; anything else as it is."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return value if isinstance(value, tf.Variable) else variable


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
def keep_functions(model: Model | None) -> Iterator[None]:
    """Keeps the `train_function` of a model, and its other functions, over an export.

    Keras removes them while it collects what to save, and does not put them back where the call
    cannot be traced with float32 inputs (`_trackable_children` in
    keras/src/backend/tensorflow/layer.py). The next step of `fit` would then fail.

    Args:
        model: the model that is exported; `None` where there is none.
    """
    layers = [] if model is None else model._flatten_layers()
    models = [one for one in layers if is_model(one)]
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
    with each_weight_once():
        tf.saved_model.save(obj, export_dir, signatures=signatures, options=options)
