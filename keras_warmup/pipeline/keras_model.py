"""Reads what the pipeline needs of a Keras model: inputs, own call, export signature."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_warmup.binding.bind import bind_leaves
from keras_warmup.binding.match import CAPTURED_CURE, sanitize
from keras_warmup.data.batch import (
    Batch,
    FeaturePath,
    Source,
    describe,
    is_sequence,
    is_string_vector,
    map_leaves,
    render_path,
    render_shape,
    slice_rows,
    walk,
)
from keras_warmup.errors import BindingError, ExportError, WarmupError
from keras_warmup.keras_api import (
    Model,
    backend_of,
    input_tensors,
    is_legacy,
    is_model,
    keras_of,
    unchanged_state,
)
from keras_warmup.op_errors import quote_tracing_error
from keras_warmup.savedmodel.ops import WRITES
from keras_warmup.savedmodel.signatures import Signature, SignatureTensor

# Names that tf.function keeps as they are; others get a number from it, and the file tells whose.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_STRUCTURE_CURE = "Give x the structure the model was trained with, and without the targets."


def describe_backend(model: Model) -> str | None:
    """Returns why no server runs what a model exports; `None` where one does."""
    backend = backend_of(model)
    if backend in ("tensorflow", "jax"):
        return None
    return (
        f"the {backend} backend writes no SavedModel that TensorFlow Serving runs. Save the model "
        "with model.save('model.keras'), load it in a process with KERAS_BACKEND=tensorflow (or "
        "jax), and export it there, or pass export_fn= that writes the SavedModel."
    )


def require_exportable(model: Model) -> None:
    """Refuses a model of a backend that is not served.

    Raises:
        ExportError: there is no SavedModel of it to serve.
    """
    problem = describe_backend(model)
    if problem is not None:
        raise ExportError(f"Cannot export model {model.name!r}: {problem}")


def require_built(model: Model, batches: Sequence[Batch] = ()) -> None:
    """Refuses a model that was never built, unless it can be built from a training batch.

    A model with its own `train_step` may never have been called as a whole, although all its layers
    were trained. A call on a batch then builds it, and creates no weights.

    Args:
        model: the model to export.
        batches: rows in the structure of the model's call, as far as is known. The first batch is
            used that the model can be called on.

    Raises:
        WarmupError: the model has no weights, or cannot be called.
    """
    if model.built:
        return
    layers = model._flatten_layers(include_self=False)
    if has_call(model) and all(layer.built for layer in layers):
        # Keras keeps the shapes of a call that fails.
        for batch in (one for one in batches if try_export(model, one) is None):
            # Any error of the user's call.
            with contextlib.suppress(Exception), unchanged_state(model):
                model(map_leaves(_tensor_or_none, slice_rows(batch, 0, 1).x))
            if model.built:
                return
    if not model.built:
        cure = (
            "Call it on a batch, train it, or call model.build(input_shape) first."
            if has_call(model)
            else no_call_cure(model)
        )
        raise WarmupError(
            f"Cannot export model {model.name!r}: it was never built, so it has no signature. "
            f"{cure}"
        )


def has_call(model: Model) -> bool:
    """Returns whether the model has a call: a subclass may define only its `train_step`."""
    return type(model).call is not keras_of(model).Model.call


def no_call_cure(model: Model) -> str:
    """Returns what to do about a model that has no call to serve."""
    parts = [
        name
        for name, value in sorted(vars(model).items())
        if is_model(value) and not name.startswith("_")
    ]
    which = f"one of its parts ({', '.join(parts)})" if parts else "the model that is served"
    example = f"model.{parts[0]}" if parts else "..."
    return (
        f"{type(model).__name__} defines no call(), so there is nothing to serve. Define call(), "
        f"or export {which}, as in WarmupExport(..., export_model={example}), or with "
        "export_with_warmup after fit."
    )


@dataclasses.dataclass(frozen=True)
class ArrangedInputs:
    """Rows in the structure of a model's inputs.

    Attributes:
        x: the rows, in the structure that the model's own call takes.
        paths: path in `x` -> path of the same leaf in the structure given.
        ignored: rendered paths of the features that the model does not take.
    """

    x: Any
    paths: Mapping[FeaturePath, FeaturePath]
    ignored: tuple[str, ...] = ()


def arrange_inputs(model: Model, x: Any, *, source: Source = "data") -> ArrangedInputs:
    """Arranges rows in the structure of the model's inputs, by name where the model goes by name.

    Functional models take a dict by Input name for a list of Inputs, a flat list for any structure,
    and add or drop a last dimension of 1 (keras/src/models/functional.py). Subclassed models take
    what they are given.

    Args:
        model: a built Keras model.
        x: rows in the structure the user fed.
        source: where the rows come from; the cure in an error depends on it.

    Raises:
        BindingError: features are missing, or the structures cannot be reconciled.
    """
    structure = input_tensors(model)
    if structure is None:
        return ArrangedInputs(x, {path: path for path, _ in walk(x)})
    found = _find_leaves(model, structure, x, source)
    by_path = dict(walk(x))
    wanted = dict(walk(structure))
    missing = [path for path in wanted if path not in found]
    if any(not _is_optional(wanted[path]) for path in missing):
        raise BindingError(_missing_text(model, missing, wanted, by_path, source))

    def pick(path: FeaturePath, tensor: Any) -> Any:
        return _adjust_rank(by_path[found[path]], tensor) if path in found else None

    used = set(found.values())
    ignored = tuple(
        render_path(path) for path, leaf in by_path.items() if path not in used and leaf is not None
    )
    return ArrangedInputs(map_leaves(pick, _plain(structure)), found, ignored)


def arrange_named_arrays(model: Model, arrays: Mapping[str, Any]) -> Any:
    """Returns arrays keyed by Input name in the structure of the model's inputs.

    Args:
        model: a built Keras model.
        arrays: input name of the signature -> array.

    Returns:
        The structure; `None` where the names are not exactly those of the model's Inputs.
    """
    structure = input_tensors(model)
    if structure is None:
        return None
    names = {path: sanitize(tensor.name) for path, tensor in walk(structure)}
    if set(names.values()) != set(arrays) or len(names) != len(arrays):
        return None
    return map_leaves(lambda path, _: arrays[names[path]], _plain(structure))


def inputs_by_name(model: Model, arranged: ArrangedInputs) -> ArrangedInputs | None:
    """Returns the rows as a dict keyed by Input name; `None` where the model has no such names."""
    structure = input_tensors(model)
    if structure is None:
        return None
    leaves = dict(walk(arranged.x))
    names = {path: tensor.name for path, tensor in walk(structure)}
    named = {name: leaves[path] for path, name in names.items()}
    paths: dict[FeaturePath, FeaturePath] = {
        (names[path],): given for path, given in arranged.paths.items()
    }
    return ArrangedInputs(named, paths) if len(named) == len(leaves) else None


def input_names(model: Model, x: Any) -> dict[FeaturePath, tuple[str, ...]]:
    """Returns path in x -> names of the Input that takes it; empty where that is not known.

    They are its own, and its key in a dict of Inputs.
    """
    structure = input_tensors(model)
    if structure is None:
        return {}
    try:
        paths = arrange_inputs(model, x).paths
    except BindingError:
        return {}
    return {
        paths[path]: (tensor.name, *(part for part in path[-1:] if isinstance(part, str)))
        for path, tensor in walk(structure)
        if path in paths
    }


def inputs_fed_otherwise(model: Model, x: Any) -> tuple[str, ...]:
    """Returns the names of the Inputs that the model's call fills with other features than by name.

    Keras flattens an `OrderedDict` in its own order, a dict in the order of its keys.

    Args:
        model: a built Keras model.
        x: rows in the structure that was fed.
    """
    structure = input_tensors(model)
    if structure is None or is_legacy(model):  # tf_keras goes by name
        return ()
    paths = arrange_inputs(model, x).paths
    fed = keras.tree.flatten(map_leaves(lambda path, _: render_path(path), x))
    by_name = [render_path(paths[path]) for path, _ in walk(structure) if path in paths]
    names = [tensor.name for path, tensor in walk(structure) if path in paths]
    if len(fed) != len(by_name):
        return tuple(names)
    return tuple(name for name, got, meant in zip(names, fed, by_name, strict=True) if got != meant)


def describe_misfit(model: Model, batch: Batch, trained_on: Batch | None) -> str | None:
    """Returns why a batch does not fit the model's call; `None` where it does or is not known.

    Args:
        model: the model to export, after a step of training.
        batch: rows as they were fed to the model that is trained, or as `data.sources.first_batch`
            returns them.
        trained_on: a batch that `model` was trained on; `None` where that is not known.
    """
    structure = input_tensors(model)
    if structure is None:
        return _describe_other_call(model, batch, trained_on)
    if is_string_vector(batch) and not takes_one_string(model):
        return None  # serialized Examples, which the signature may parse
    stand_ins = map_leaves(lambda _, leaf: _stand_in(leaf), batch.x)
    specs = dict(walk(batch.x))
    try:
        arranged = arrange_inputs(model, stand_ins, source=batch.source)
    except BindingError as error:
        return str(error)
    inputs = {
        path: (tensor.name, tensor.dtype, _shape_to_check(tensor, specs[arranged.paths[path]]))
        for path, tensor in walk(structure)
        if path in arranged.paths
    }
    return _describe_mismatch(dataclasses.replace(batch, x=arranged.x), inputs)


def _describe_mismatch(
    batch: Batch, inputs: Mapping[FeaturePath, tuple[str, str, tuple[int | None, ...]]]
) -> str | None:
    """Returns which leaves do not fit these names, dtypes and shapes; `None` where all do."""
    tensors, paths = {}, {}
    for path, (name, dtype, shape) in inputs.items():
        # Numbers may become the bytes that a string input reads.
        if dtype != "string":
            tensors[name], paths[name] = SignatureTensor(name, "", dtype, shape), path
    try:
        bind_leaves(batch, Signature("serving_default", "", tensors, {}, frozenset()), paths)
    except BindingError as error:
        return str(error)
    return None


def _stand_in(leaf: Any) -> Any:
    """Returns an array for the spec of a leaf; a free dimension is 1."""
    if not isinstance(leaf, tf.TensorSpec):
        return leaf
    return np.zeros([size or 1 for size in leaf.shape], leaf.dtype.as_numpy_dtype)


def _shape_to_check(tensor: Any, leaf: Any) -> tuple[int | None, ...]:
    """Returns the shape of an Input, free where the spec of its leaf is free."""
    free = [False] * len(tensor.shape)
    if isinstance(leaf, tf.TensorSpec):
        free[: leaf.shape.rank] = [size is None for size in leaf.shape][: len(free)]
    return tuple(
        None if is_free else size for is_free, size in zip(free, tensor.shape, strict=True)
    )


def _describe_other_call(model: Model, batch: Batch, trained_on: Batch | None) -> str | None:
    """Returns why a batch is not what a subclassed model takes; `None` where that is not known."""
    if is_called_otherwise(model, batch):
        shapes = _built_shapes(model, batch.x)
        listed = [f"{render_path(path)} {list(shape)}" for path, shape in shapes.items()]
        return (
            f"{type(model).__name__} is called on other inputs than the batches hold "
            f"({', '.join(listed)})."
        )
    # Captured batches are those that some model was trained on.
    if batch.source == "captured" or (trained_on and _have_equal_specs(batch, trained_on)):
        return None
    if trained_on is not None and _paths_of(batch) == _paths_of(trained_on):
        stand_ins = map_leaves(lambda _, leaf: _stand_in(leaf), batch.x)
        inputs = {
            path: (_name_of(path), _dtype_of(leaf).name, (None,) * len(leaf.shape))
            for path, leaf in walk(trained_on.x)
            if leaf is not None
        }
        mismatch = _describe_mismatch(dataclasses.replace(batch, x=stand_ins), inputs)
        if mismatch:
            return mismatch
    error = try_export(model, batch)
    if error is None:
        return None
    got = ", ".join(f"{render_path(path)} ({describe(leaf)})" for path, leaf in walk(batch.x))
    return f"Called on {got}, {type(model).__name__} raises {quote_tracing_error(error)}."


def _name_of(path: FeaturePath) -> str:
    return str(path[0]) if len(path) == 1 and isinstance(path[0], str) else render_path(path)


def try_export(model: Model, batch: Batch | None) -> Exception | None:
    """Returns the error that `model.export` will raise; `None` where there is none or no trial.

    A `train_step` may call the model on something else than the batch, as graph networks and
    sequence models do, or call only its parts, as siamese networks do. Such models are called as
    the export will call them, in a graph of its own, where neither the state nor the random numbers
    of the training are touched.

    Args:
        model: the model that is trained, after a step.
        batch: rows as they were fed to it, or of `data=`; `None` where they are not known.
    """
    # tf_keras cannot compute the outputs of a call without running it.
    if input_tensors(model) is not None or not has_call(model) or is_legacy(model):
        return None
    layers = model._flatten_layers(include_self=False)
    # A call would build the other ones, which were not trained.
    if not all(layer.built for layer in layers):
        return None
    if batch is None or is_called_otherwise(model, batch):
        arguments = _guessed_arguments(model)
    elif model.built and batch.source == "captured":
        return None
    else:
        arguments = [map_leaves(_to_spec, batch.x)]
    try:
        if arguments:
            model.compute_output_spec(*arguments)
    except Exception as error:  # any error of the user's call
        # Keras raises its own advice about compute_output_spec `from None`.
        first = error.__context__ if error.__suppress_context__ else None
        return first if isinstance(first, Exception) else error
    return None


def is_called_otherwise(model: Model, batch: Batch) -> bool:
    """Returns whether a subclassed model was built by calls of another structure than a batch."""
    built = set(_built_shapes(model, batch.x))
    return bool(built) and built != _paths_of(batch)


def _paths_of(batch: Batch) -> set[FeaturePath]:
    return {path for path, leaf in walk(batch.x) if leaf is not None}


def _have_equal_specs(one: Batch, other: Batch) -> bool:
    """Returns whether two batches have the same structure, shapes and dtypes, besides the rows."""
    specs = [
        {
            path: (tuple(leaf.shape)[1:], _dtype_of(leaf))
            for path, leaf in walk(batch.x)
            if leaf is not None
        }
        for batch in (one, other)
    ]
    return specs[0] == specs[1]


def _to_spec(_path: FeaturePath, leaf: Any) -> Any:
    return None if leaf is None else keras.KerasTensor(tuple(leaf.shape), _dtype_of(leaf).name)


def _find_leaves(
    model: Model, structure: Any, x: Any, source: Source
) -> dict[FeaturePath, FeaturePath]:
    targets = list(walk(structure))
    leaves = list(walk(x))
    if isinstance(structure, Mapping) and isinstance(x, Mapping):
        present = {path for path, leaf in leaves if leaf is not None}
        return {path: path for path, _ in targets if path in present}
    if isinstance(x, Mapping):
        # A dict for a list (or a single Input): by Input name.
        found: dict[FeaturePath, FeaturePath] = {
            path: (tensor.name,) for path, tensor in targets if x.get(tensor.name) is not None
        }
        if not found and len(targets) == len(leaves) == 1:
            found = {targets[0][0]: leaves[0][0]}
        return found
    if len(leaves) != len(targets):
        raise BindingError(
            f"Cannot bind batch to model {model.name!r}: it takes {len(targets)} inputs "
            f"({', '.join(repr(tensor.name) for _, tensor in targets)}), the batch has "
            f"{len(leaves)} leaves "
            f"({', '.join(f'{render_path(path)} {describe(leaf)}' for path, leaf in leaves)}). "
            f"{CAPTURED_CURE if source == 'captured' else _STRUCTURE_CURE}"
        )
    return {
        target: path
        for (target, _), (path, leaf) in zip(targets, leaves, strict=True)
        if leaf is not None
    }


def _missing_text(
    model: Model,
    missing: list[FeaturePath],
    wanted: Mapping[FeaturePath, Any],
    got: Mapping[FeaturePath, Any],
    source: Source,
) -> str:
    names = ", ".join(
        f"{render_path(path)} ({wanted[path].name!r} {wanted[path].dtype} "
        f"{render_shape(wanted[path].shape)})"
        for path in missing
    )
    has = (
        ", ".join(f"{render_path(path)} ({describe(leaf)})" for path, leaf in got.items())
        or "nothing"
    )
    return (
        f"Cannot bind batch to model {model.name!r}: missing features {names}. "
        f"The batch has {has}. "
        + (CAPTURED_CURE if source == "captured" else "Add the features to the dataset.")
    )


def _is_optional(tensor: Any) -> bool:
    history = getattr(tensor, "_keras_history", None)
    return bool(getattr(getattr(history, "operation", None), "optional", False))


def _adjust_rank(leaf: Any, tensor: Any) -> Any:
    rank, wanted = len(leaf.shape), len(tensor.shape)
    if isinstance(leaf, np.ndarray):
        if rank == wanted - 1 and tensor.shape[-1] == 1:
            return leaf[..., np.newaxis]
        if rank == wanted + 1 and leaf.shape[-1] == 1:
            return leaf[..., 0]
    return leaf


def _plain(structure: Any) -> Any:
    """Returns the structure with Keras' tracked dicts and lists replaced by plain ones."""
    if isinstance(structure, Mapping):
        return {key: _plain(value) for key, value in structure.items()}
    if is_sequence(structure):
        items = [_plain(item) for item in structure]
        return tuple(items) if isinstance(structure, tuple) else items
    return structure


def takes_one_string(model: Model) -> bool:
    """Returns whether the model has one string Input, whose data a vector of bytes then is."""
    structure = input_tensors(model)
    tensors = [tensor for _, tensor in walk(structure)] if structure is not None else []
    return len(tensors) == 1 and tensors[0].dtype == "string"


def is_subclassed(model: Model) -> bool:
    """Returns whether Keras has no Inputs of this model, only the shapes of its first call."""
    return input_tensors(model) is None


def export_signature(
    model: Model, batches: Sequence[Batch], example: Batch | None
) -> list[Any] | None:
    """Returns the `input_signature=` to export a model with.

    Args:
        model: a built Keras model.
        batches: the rows to send; may be empty.
        example: a batch that the model was trained on; `None` where that is not known. Its dtypes
            are served, unless the model is called on rows of another structure. Its shapes are
            where there are no rows, or the model cannot be called on them.

    Returns:
        As `captured_signature`; `None` where Keras knows the inputs: those of a functional model,
        and those of a subclassed one that its `train_step` calls on something else.
    """
    # tf_keras exports what the model was first called on.
    if not is_subclassed(model) or is_legacy(model):
        return None
    fits = bool(batches) and not is_called_otherwise(model, batches[0])
    if fits and (example is None or batches[0].source == "captured"):
        return captured_signature(model, batches)
    if example is None:
        return None
    if fits and (_have_equal_specs(batches[0], example) or try_export(model, batches[0]) is None):
        has_same_leaves = _paths_of(batches[0]) == _paths_of(example)
        return captured_signature(model, [example, *batches] if has_same_leaves else batches)
    return None if is_called_otherwise(model, example) else captured_signature(model, [example])


def captured_signature(model: Model, batches: Sequence[Batch]) -> list[Any]:
    """Returns the `input_signature=` to export a subclassed model with.

    `model.export` guesses float32 for every input of a subclassed model, so int ids and strings
    could not be served. The dtypes of the batches it was trained on are what its clients send; a
    dimension stays free where the model was built with it free or the batches differ.

    Args:
        model: a built subclassed model.
        batches: rows it was trained on; at least one batch. Those of another structure than the
            first one are left out: whether they fit is found when they are bound.

    Returns:
        A list with one nested structure of `tf.TensorSpec` (the batch free; dict keys as names).
    """
    built = _built_shapes(model, batches[0].x)
    leaves = [{path: leaf for path, leaf in walk(batch.x) if leaf is not None} for batch in batches]
    first_kind = [one for one in leaves if one.keys() == leaves[0].keys()]

    def spec(path: FeaturePath, leaf: Any) -> Any:
        if leaf is None:
            return None
        shapes = [tuple(one[path].shape) for one in first_kind]
        free = built.get(path, ())
        dims: list[int | None] = [None]
        for axis in range(1, len(leaf.shape)):
            sizes = {shape[axis] for shape in shapes if len(shape) > axis}
            fixed = len(sizes) == 1 and (axis >= len(free) or free[axis] is not None)
            dims.append(next(iter(sizes)) if fixed else None)
        name = (
            path[0]
            if len(path) == 1 and isinstance(path[0], str) and _NAME.fullmatch(path[0])
            else None
        )
        # tf.function takes `self` for the object of a method.
        return tf.TensorSpec(dims, _dtype_of(leaf), name=None if name == "self" else name)

    return [map_leaves(spec, batches[0].x)]


def _dtype_of(leaf: Any) -> tf.DType:
    dtype = leaf.dtype if isinstance(leaf.dtype, tf.DType) else None
    if dtype is None:
        dtype = tf.string if leaf.dtype.kind in "OSU" else tf.as_dtype(leaf.dtype)
    # Keras autocasts float64 to its float type before the first layer sees it.
    return tf.as_dtype(keras.config.floatx()) if dtype == tf.float64 else dtype


def _built_shape(model: Model, x: Any) -> Any:
    """Returns the nested shapes that the model was built with, arranged as `x` if it can be."""
    config = model.get_build_config() or {}
    shape = config.get("input_shape", config.get("shapes_dict"))
    if isinstance(shape, Mapping) and len(shape) == 1 and not isinstance(x, Mapping):
        return next(iter(shape.values()))
    return shape


def _is_shape(node: Any) -> bool:
    return is_sequence(node) and all(size is None or isinstance(size, int) for size in node)


def _built_shapes(model: Model, x: Any) -> dict[FeaturePath, tuple[int | None, ...]]:
    """Returns the shapes the model was built with, by path in `x`, where they correspond."""
    found: dict[FeaturePath, tuple[int | None, ...]] = {}

    def visit(node: Any, path: FeaturePath) -> None:
        if _is_shape(node):
            found[path] = tuple(node)
        elif isinstance(node, Mapping):
            for key, value in node.items():
                visit(value, (*path, key))
        elif is_sequence(node):
            for index, value in enumerate(node):
                visit(value, (*path, index))

    visit(_built_shape(model, x), ())
    return found


def _guessed_arguments(model: Model) -> list[Any]:
    """Returns the arguments that `model.export` guesses from the shapes the model was built with.

    Empty where it was not built by a call.
    """

    def visit(node: Any) -> Any:
        if _is_shape(node):
            return keras.KerasTensor((None, *node[1:]), model.input_dtype)
        if isinstance(node, Mapping):
            return {key: visit(value) for key, value in node.items()}
        return [visit(value) for value in node]

    config = model.get_build_config() or {}
    if "shapes_dict" in config:
        return [visit(shape) for shape in config["shapes_dict"].values()]
    return [visit(config["input_shape"])] if config.get("input_shape") else []


class OwnOutputs:
    """A model's own outputs on the rows of several requests, which often are the same rows.

    Args:
        model: a built Keras model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._traced = _trace_calls(model)
        self._last: tuple[Hashable, Any] = (None, None)

    def on(self, x: Any, *, rows: Hashable = None, plain: bool) -> Any:
        """Returns what `call_model` returns.

        Args:
            x: as `call_model` takes it.
            rows: what is equal for equal `x`: then the model is not called twice in succession.
                Defaults to `None`: it is called.
            plain: as `call_model` takes it.
        """
        if rows is None or rows != self._last[0]:
            self._last = (rows, call_model(self._model, x, plain=plain, traced=self._traced))
        return self._last[1]


def _trace_calls(model: Model) -> Any:
    """Returns a `tf.function` of a model's call, which several calls of `call_model` can share."""

    def call(x: Any) -> Any:
        with unchanged_state(model):
            return model(x)

    return tf.function(call, autograph=False)


def call_model(model: Model, x: Any, *, plain: bool = False, traced: Any = None) -> Any:
    """Returns the model's own outputs on rows, on the CPU; training is not affected.

    The stateless scope keeps Keras' own updates (batch statistics, seed generators, metrics) out of
    the model, but not the assignment of a raw `tf.Variable`, nor draws from a random generator with
    state. So a call that is not known to be plain is traced first, and is not run if its graph
    writes state; a traced call draws nothing from the eager generator. The call is the one that
    `model.export` traces, with its `training` default.

    Args:
        model: a built Keras model.
        x: rows in the model's own structure, leaves `np.ndarray [rows, ...]` or `None`.
        plain: the call is known, from the graph of an export, to write no state and draw no random
            numbers.
        traced: what `_trace_calls` returned for the model. Defaults to `None`: made here.

    Returns:
        The outputs as nested structure of `np.ndarray`; `None` where the call would change state.
    """
    with tf.device("CPU:0"):
        tensors = map_leaves(_tensor_or_none, x)
        # With another backend all state is in keras.Variables, which the scope keeps.
        if plain or backend_of(model) != "tensorflow":
            with unchanged_state(model):
                outputs = model(tensors)
        else:
            traced = traced or _trace_calls(model)
            concrete = traced.get_concrete_function(tensors)
            definition = concrete.graph.as_graph_def()
            nodes = [
                *definition.node,
                *(node for function in definition.library.function for node in function.node_def),
            ]
            if any(WRITES.match(node.op) for node in nodes):
                return None
            outputs = traced(tensors)
    return map_leaves(
        lambda _, leaf: None if leaf is None else np.asarray(keras.ops.convert_to_numpy(leaf)),
        _plain(outputs),
    )


def _tensor_or_none(_: FeaturePath, leaf: Any) -> Any:
    return None if leaf is None else _tensor(leaf)


def _tensor(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray) and leaf.dtype == np.float64:
        leaf = leaf.astype(tf.as_dtype(keras.config.floatx()).as_numpy_dtype)
    return keras.ops.convert_to_tensor(leaf) if leaf.dtype.kind != "O" else tf.constant(leaf)


def compute_dtypes(model: Model) -> set[str]:
    """Returns the names of the dtypes that the model's layers, nested ones included, compute in."""
    return {str(layer.compute_dtype) for layer in model._flatten_layers()}
