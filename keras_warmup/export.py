"""The public functions that write a warm SavedModel: `export_with_warmup`, `save`, `add_warmup`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras

from keras_warmup.options import WarmupOptions, as_options
from keras_warmup.pipeline.export_model import (
    ExportFn,
    publish_model,
    publish_object,
    warm_existing,
)
from keras_warmup.report import WarmupReport


def export_with_warmup(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    warmup: WarmupOptions | Mapping[str, Any] | None = None,
    export_fn: ExportFn | None = None,
    overwrite: bool = False,
) -> WarmupReport:
    """Exports a Keras model with the warmup file that TensorFlow Serving replays when it loads it.

    The SavedModel is built in a hidden directory beside `path`. Its records are replayed in a
    Session, as the server does, and their outputs are compared with the model's own. Only then does
    it get its name.

    Args:
        model: a built Keras model.
        path: the version directory to publish, such as `"./digits/1"`. `{version}` takes the next
            free version.
        data: rows to warm with. Arrays, dicts, lists or tuples of arrays and DataFrames are x.
            Elements of a `tf.data.Dataset`, a `PyDataset` or a generator (or a function that
            returns one) are `(x[, y[, sample_weight]])`, as in `fit`. Defaults to the batches
            captured while the model was trained.
        warmup: `WarmupOptions`, or a mapping of its fields.
        export_fn: `export_fn(model, export_dir)` writes the SavedModel instead of `model.export`.
        overwrite: replace the directory at `path`. Defaults to `False`.

    Returns:
        A `WarmupReport`: the records, what was proved, what stays cold and why.

    Raises:
        WarmupError: a subclass of it for each kind of failure. Nothing is published.

    Example:
    ```python
    model.fit(x, y, callbacks=[keras_warmup.BatchCapture()])
    report = keras_warmup.export_with_warmup(model, "./digits/{version}")
    ```
    """
    report, _ = publish_model(
        model,
        path,
        data=data,
        options=as_options(warmup),
        export_fn=export_fn,
        overwrite=overwrite,
    )
    return report


def save(
    obj: Any,
    export_dir: str | os.PathLike[str],
    signatures: Any = None,
    options: Any = None,
    *,
    data: Any = None,
    warmup: WarmupOptions | Mapping[str, Any] | None = None,
) -> WarmupReport:
    """Saves as `tf.saved_model.save` does, with a warmup file, a SavedModel that a server can run.

    `tf.saved_model.save` of a Keras 3 model, or of a module that holds one, writes a SavedModel
    that `tf.saved_model.load` can run and TensorFlow Serving cannot. Both can run this one.

    Args:
        obj: a Keras model, `tf.Module` or other trackable object.
        export_dir: where to save. A directory there is replaced, as by `tf.saved_model.save`.
            `{version}` takes the next free version.
        signatures: as `tf.saved_model.save` takes them. Defaults to those of `obj`.
        options: `tf.saved_model.SaveOptions`.
        data: rows to warm with, as `export_with_warmup` takes them.
        warmup: `WarmupOptions`, or a mapping of its fields.

    Returns:
        A `WarmupReport`.

    Raises:
        WarmupError: a subclass of it for each kind of failure. The directory at `export_dir` is
            unchanged.
    """
    return publish_object(
        obj, export_dir, signatures, save_options=options, data=data, options=as_options(warmup)
    )


def add_warmup(
    export_dir: str | os.PathLike[str],
    data: Any = None,
    *,
    warmup: WarmupOptions | Mapping[str, Any] | None = None,
    append: bool = False,
    refuse_unsafe_ops: bool = False,
) -> WarmupReport:
    """Writes the warmup file of a SavedModel that exists; its other files are not changed.

    A server that has already loaded the model does not read it again: add the file before the
    directory gets its numeric name.

    Args:
        export_dir: a SavedModel (version directory), made by any tool.
        data: rows to warm with, as `export_with_warmup` takes them. Defaults to rows made up from
            the signatures, with a warning.
        warmup: `WarmupOptions`, or a mapping of its fields.
        append: keep the records of the file, before the new ones; they are replayed too. Defaults
            to `False`.
        refuse_unsafe_ops: raise `UnsafeOpsError` before anything is run where the model has ops
            that touch files, network or processes. Defaults to `False`: warn.

    Returns:
        A `WarmupReport`.

    Raises:
        WarmupError: a subclass of it for each kind of failure. The old warmup file is unchanged.
    """
    return warm_existing(
        export_dir,
        data=data,
        options=as_options(warmup),
        append=append,
        refuse_unsafe_ops=refuse_unsafe_ops,
    )
