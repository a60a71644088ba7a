"""Hides the differences between Keras 3 and tf_keras (Keras 2), in one place.

A model of either is trained, captured and exported by the same code. tf_keras is not imported here:
where there is a model of it, its user has imported it. With it, `tf.keras` may be either
(`TF_USE_LEGACY_KERAS`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

# A `keras.Model` or a `tf_keras.Model`.
Model = Any


def is_model(value: object) -> bool:
    """Returns whether a value is a model of Keras 3 or of tf_keras."""
    return isinstance(value, keras.Model) or is_legacy(value)


def is_legacy(value: object) -> bool:
    """Returns whether a value is a model of tf_keras."""
    model_class = getattr(sys.modules.get("tf_keras"), "Model", None)
    return model_class is not None and isinstance(value, model_class)


def models_in(obj: object) -> list[Model]:
    """Returns the models among the attributes of an object, and in its lists and dicts of them."""
    found: list[Model] = []
    for value in vars(obj).values() if hasattr(obj, "__dict__") else ():
        parts = value.values() if isinstance(value, Mapping) else value
        several = isinstance(value, (Mapping, list, tuple))
        found += [one for one in (parts if several else [value]) if is_model(one)]
    return found


def keras_of(model: Model) -> Any:
    """Returns the module whose classes a model is made of: `keras` or `tf_keras`."""
    return sys.modules["tf_keras"] if is_legacy(model) else keras


def installed_keras() -> list[Any]:
    """Returns `keras`, and `tf_keras` where it is imported."""
    legacy = sys.modules.get("tf_keras")
    return [keras] if getattr(legacy, "Model", None) is None else [keras, legacy]


def backend_of(model: Model) -> str:
    """Returns the backend that runs a model: `"tensorflow"`, `"jax"` or `"torch"`."""
    return "tensorflow" if is_legacy(model) else str(keras.backend.backend())


def unchanged_state(model: Model) -> contextlib.AbstractContextManager[Any]:
    """Returns a scope that keeps what a call updates out of the model.

    tf_keras updates variables by TensorFlow ops, which a trace of the call shows; it has no scope.
    """
    return contextlib.nullcontext() if is_legacy(model) else keras.StatelessScope()


def input_tensors(model: Model) -> Any:
    """Returns the nested `keras.KerasTensor`s of the inputs; `None` for subclassed models."""
    own = keras_of(model)
    if isinstance(model, own.Sequential):
        tensors = model.inputs[0] if model.built and model.inputs else None
    elif type(model).call is own.Model.call:
        return None
    else:
        try:
            tensors = model.input
        except (AttributeError, ValueError):
            return None
    if own is keras or tensors is None:
        return tensors
    return tf.nest.map_structure(_as_keras_tensor, tensors)


def _as_keras_tensor(tensor: Any) -> Any:
    spec = tensor.type_spec
    return keras.KerasTensor(
        tuple(tensor.shape),
        tensor.dtype.name,
        sparse=isinstance(spec, tf.SparseTensorSpec),
        name=tensor.name,
    )


def output_names(model: Model) -> list[str]:
    """Returns the names that a signature gives to the outputs in order; empty in Keras 3.

    Keras 3 leaves that to `tf.function`: `output_0`, or the keys of a dict. tf_keras takes the
    names of the output layers.
    """
    return list(getattr(model, "output_names", None) or ()) if is_legacy(model) else []


def write_export(model: Model, export_dir: str, input_signature: Any) -> None:
    """Calls the model's own `export`, without a message.

    Args:
        model: a built model.
        export_dir: where to write.
        input_signature: as `keras.Model.export` takes it; `None` where Keras knows the inputs.
            tf_keras does not take it: its models remember the specs of their first call.
    """
    if is_legacy(model):
        with _without_messages():
            model.export(export_dir)
    elif input_signature is None:
        model.export(export_dir, verbose=False)
    else:
        model.export(export_dir, verbose=False, input_signature=input_signature)


@contextlib.contextmanager
def _without_messages() -> Iterator[None]:
    """Keeps tf_keras from printing, which is a setting of the thread."""
    import tf_keras

    is_on = tf_keras.utils.is_interactive_logging_enabled()
    tf_keras.utils.disable_interactive_logging()
    try:
        yield
    finally:
        if is_on:
            tf_keras.utils.enable_interactive_logging()
