"""Endpoints of a Keras 3 model that take serialized tf.Examples: Classify, Regress and Predict.

Each function returns a `tf.function` for `save(model, path, signatures={"classify": ...})` or
`ExportArchive.add_endpoint("classify", ...)` (which must also `track(model)`). Its inputs and
outputs are those that TensorFlow Serving requires of the request kind: input `inputs`, and outputs
`classes` [b, n] of string and `scores` [b, n] of float32 for Classify, or one output `outputs` [b,
1] of float32 for Regress. MultiInference takes several Classify and Regress endpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_warmup.data.batch import render_shape
from keras_warmup.errors import BindingError, OptionsError

FeatureSpecs = Mapping[str, Any]


def classify(
    model: Any,
    feature_spec: FeatureSpecs,
    classes: Sequence[str] | None = None,
    *,
    output: str | int | None = None,
) -> Any:
    """Returns an endpoint for Classify requests.

    Args:
        model: built Keras model whose output, as float32 [b, n], is the scores. They are served as
            they are: a model that gives logits serves logits.
        feature_spec: feature key -> `tf.io.FixedLenFeature` and the like, as `tf.io.parse_example`
            takes them. Keys are the names of the model's inputs (or their keys, where it takes a
            dict); one feature fits a model of one input.
        classes: label of each score. A model with one output a row and two classes (a sigmoid)
            serves the scores `[1 - p, p]`. Defaults to `None`: `"0"`, `"1"`, ...
        output: which output, by key or position, of a model with several. Defaults to `None`: its
            only one.

    Returns:
        A traced `tf.function` of `inputs` (string [b]) with outputs `classes` and `scores`.

    Raises:
        BindingError: the features do not fit the model's inputs, or its output is no [b, n] of
            numbers.
        OptionsError: `classes` or `output` do not fit the model's outputs.
    """
    call = _reader(model, feature_spec)
    labels = None if classes is None else [str(label) for label in classes]

    def classify_examples(inputs: Any) -> dict[str, Any]:
        scores = _only_output(model, call(inputs), output, "classify")
        if scores.shape.rank != 2 or scores.dtype == tf.string:
            raise BindingError(
                f"Cannot classify with model {model.name!r}: its output must be [batch_size, "
                f"num_classes] of numbers, got {_render(scores)}. Choose another with output=."
            )
        scores = tf.cast(scores, tf.float32)
        width = scores.shape[1]
        if labels is not None and len(labels) == 2 and width == 1:
            scores, width = tf.concat([1.0 - scores, scores], axis=1), 2
        if labels is not None and width is not None and len(labels) != width:
            raise OptionsError(
                f"classes holds {len(labels)} labels, but model {model.name!r} gives {width} "
                "scores a row."
            )
        names = (
            tf.as_string(tf.range(tf.shape(scores)[1])) if labels is None else tf.constant(labels)
        )
        return {"classes": tf.tile(names[tf.newaxis], [tf.shape(scores)[0], 1]), "scores": scores}

    return _traced(classify_examples, "inputs")


def regress(model: Any, feature_spec: FeatureSpecs, *, output: str | int | None = None) -> Any:
    """Returns an endpoint for Regress requests.

    Args:
        model: built Keras model whose output is [b] or [b, 1] of numbers.
        feature_spec: as `classify` takes it.
        output: which output, by key or position, of a model with several. Defaults to `None`: its
            only one.

    Returns:
        A traced `tf.function` of `inputs` (string [b]) with output `outputs`, float32.

    Raises:
        BindingError: the features do not fit the model's inputs, or its output is no [b] or [b, 1]
            of numbers.
        OptionsError: `output` does not fit the model's outputs.
    """
    call = _reader(model, feature_spec)

    def regress_examples(inputs: Any) -> dict[str, Any]:
        value = _only_output(model, call(inputs), output, "regress")
        if value.dtype == tf.string or not (
            value.shape.rank == 1 or (value.shape.rank == 2 and value.shape[1] == 1)
        ):
            raise BindingError(
                f"Cannot regress with model {model.name!r}: its output must be [batch_size] or "
                f"[batch_size, 1] of numbers, got {_render(value)}. Choose another with output=."
            )
        return {"outputs": tf.cast(value, tf.float32)}

    return _traced(regress_examples, "inputs")


def predict_examples(model: Any, feature_spec: FeatureSpecs) -> Any:
    """Returns an endpoint for Predict requests that send serialized Examples.

    Args:
        model: built Keras model.
        feature_spec: as `classify` takes it.

    Returns:
        A traced `tf.function` of `examples` (string [b]). Its outputs are those of the model: the
        keys of a dict, `output_0`, `output_1`, ... of a sequence, `outputs` of a tensor.

    Raises:
        BindingError: the features do not fit the model's inputs.
    """
    call = _reader(model, feature_spec)

    def predict_from_examples(examples: Any) -> dict[str, Any]:
        found = call(examples)
        if isinstance(found, Mapping):
            return {str(key): value for key, value in found.items()}
        if isinstance(found, (list, tuple)):
            return {f"output_{index}": value for index, value in enumerate(found)}
        return {"outputs": found}

    return _traced(predict_from_examples, "examples")


def _traced(function: Callable[[Any], dict[str, Any]], name: str) -> Any:
    """Returns a traced `tf.function`.

    Tracing shows mismatches early, and `ExportArchive` refuses a function that was never called.
    """
    signature = [tf.TensorSpec([None], tf.string, name=name)]
    traced = tf.function(function, input_signature=signature, autograph=False)
    traced.get_concrete_function()
    return traced


def _reader(model: Any, feature_spec: FeatureSpecs) -> Callable[[Any], Any]:
    """Returns a function that parses Examples and calls the model on them."""
    features = dict(feature_spec)
    if not features:
        raise BindingError(
            f"Cannot make an endpoint of model {model.name!r}: feature_spec is empty."
        )
    try:
        leaves = model.inputs
    except (AttributeError, ValueError):
        leaves = None
    if not leaves and isinstance(model, keras.Sequential):
        raise BindingError(
            f"Cannot make an endpoint of model {model.name!r}: it is not built. Give it an Input "
            "layer."
        )
    if not leaves:
        # A subclassed model says nothing of its inputs: it gets the features as parse_example gives
        # them.
        return lambda serialized: model(tf.io.parse_example(serialized, features), training=False)
    struct = getattr(model, "input", None) if isinstance(model, keras.Model) else None
    struct = leaves[0] if struct is None and len(leaves) == 1 else struct
    paired = _pair(model, features, leaves, struct)

    def call(serialized: Any) -> Any:
        parsed = tf.io.parse_example(serialized, features)
        placed = [_fit(parsed[key], leaf, key) for key, leaf in paired]
        return model(keras.tree.pack_sequence_as(struct, placed), training=False)

    return call


def _pair(
    model: Any, features: FeatureSpecs, leaves: Sequence[Any], struct: Any
) -> list[tuple[str, Any]]:
    """Returns the feature key of each model input in flatten order.

    It is the input's name, else its key in a dict of inputs.
    """
    flat = keras.tree.flatten(struct)
    keys: list[Any] = (
        sorted(struct)
        if isinstance(struct, Mapping) and len(struct) == len(flat)
        else [None] * len(flat)
    )
    if len(flat) == 1 and len(features) == 1:
        return [(next(iter(features)), flat[0])]
    by_name = all(leaf.name in features for leaf in flat)
    named = [leaf.name if by_name else key for leaf, key in zip(flat, keys, strict=True)]
    missing = [leaf.name for leaf, name in zip(flat, named, strict=True) if name not in features]
    if missing or len(flat) != len(leaves):
        raise BindingError(
            f"Cannot make an endpoint of model {model.name!r}: feature_spec has "
            f"{sorted(features)}, but the model's inputs are {[leaf.name for leaf in leaves]}. "
            "Name the features after the inputs."
        )
    return list(zip(named, flat, strict=True))


def _fit(value: Any, leaf: Any, key: str) -> Any:
    """Returns a parsed feature as a model input: dense, with its rank and dtype."""
    if isinstance(value, tf.SparseTensor) and not getattr(leaf, "sparse", False):
        value = tf.sparse.to_dense(value)
    elif isinstance(value, tf.RaggedTensor) and not getattr(leaf, "ragged", False):
        value = value.to_tensor()
    shape, dtype = tuple(leaf.shape), tf.as_dtype(keras.backend.standardize_dtype(leaf.dtype))
    where = (
        f"feature {key!r} parses to {_render(value)}, and input {leaf.name!r} takes {dtype.name} "
        f"{render_shape(shape)}"
    )
    is_text, wants_text = value.dtype == tf.string, dtype == tf.string
    if is_text != wants_text or (value.dtype.is_floating and dtype.is_integer):
        raise BindingError(
            f"Cannot make an endpoint: {where}. Give the feature the dtype of the input."
        )
    if isinstance(value, tf.Tensor):
        if value.shape.rank == len(shape) - 1 and shape[-1] == 1:
            value = tf.expand_dims(value, -1)
        elif value.shape.rank == len(shape) + 1 and value.shape[-1] == 1:
            value = tf.squeeze(value, -1)
        if not value.shape.is_compatible_with(shape):
            raise BindingError(
                f"Cannot make an endpoint: {where}. Give the feature the shape of the input."
            )
    return value if is_text else tf.cast(value, dtype)


def _only_output(model: Any, found: Any, output: str | int | None, verb: str) -> Any:
    if isinstance(found, Mapping):
        options: list[Any] = sorted(found)
    elif isinstance(found, (list, tuple)):
        options = list(range(len(found)))
    else:
        if output is not None:
            raise OptionsError(
                f"output={output!r} chooses among several outputs, but model {model.name!r} has "
                "one."
            )
        return found
    if output is None and len(options) == 1:
        output = options[0]
    if output not in options:
        raise OptionsError(
            f"Cannot {verb} with model {model.name!r}, which has the outputs {options}: got "
            f"output={output!r}. Choose one with output=."
        )
    return found[output]


def _render(tensor: Any) -> str:
    shape = None if tensor.shape.rank is None else tuple(tensor.shape)
    return f"{tensor.dtype.name} {render_shape(shape)}"
