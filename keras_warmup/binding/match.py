"""Finds the leaf of a batch for each input of a signature; never guesses from shapes.

The evidence is the structure of arguments that the exported function was traced with, if the
SavedModel stores it, else the names. A batch in which a name could mean several leaves is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from keras_warmup.data.batch import (
    FeaturePath,
    Source,
    describe,
    is_sequence,
    render_path,
    render_shape,
    walk,
)
from keras_warmup.errors import BindingError
from keras_warmup.savedmodel.signatures import Signature

# The user's `train_step` may take the batches of `fit` apart: they are as it wants them.
CAPTURED_CURE = "Pass data= with rows that fit, or warmup={'transform': ...}."
_CURE = "Add the features to the dataset, or pass warmup={'transform': ...}."


def match_inputs(
    x: Any, signature: Signature, *, source: Source = "data"
) -> tuple[dict[str, FeaturePath], tuple[str, ...]]:
    """Finds the leaf of `x` for each input of a signature.

    Args:
        x: nested dicts, lists and tuples of leaves.
        signature: the signature; inputs with a default may be absent.
        source: where the rows come from; the cure in an error depends on it.

    Returns:
        Input name -> path in `x`, and the rendered paths of the leaves that no input takes.

    Raises:
        BindingError: an input has no leaf, or the evidence allows several.
    """
    leaves = [(path, leaf) for path, leaf in walk(x) if leaf is not None]
    found = _match_structure(x, signature)
    if found is None:
        found = _match_names(x, leaves, signature)
    missing = sorted(set(signature.inputs) - set(found) - signature.defaults)
    if missing:
        if not isinstance(x, Mapping) and len(leaves) >= len(signature.inputs) > 1:
            raise BindingError(
                f"Cannot bind batch to signature {signature.key!r}: x has {len(leaves)} unnamed "
                "leaves and the SavedModel does not store their order among the inputs "
                f"{sorted(signature.inputs)}. Pass "
                f"{'data=' if source == 'captured' else 'x'} as a dict keyed by input name, or "
                "pass warmup={'transform': ...}."
            )
        has_composite = any(
            isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)) for _, leaf in leaves
        )
        hint = hint_of_components(missing, signature) if has_composite else ""
        got = ", ".join(f"{render_path(path)} ({describe(leaf)})" for path, leaf in leaves)
        raise BindingError(
            f"Cannot bind batch to signature {signature.key!r}: missing inputs {missing}. The "
            f"signature takes {render_inputs(signature)}; the batch has {got or 'nothing'}."
            f"{hint} {CAPTURED_CURE if source == 'captured' else _CURE}"
        )
    used = set(found.values())
    return found, tuple(render_path(path) for path, _ in leaves if path not in used)


def named_leaves(x: Any) -> Iterator[tuple[str, FeaturePath]]:
    """Yields `(name, path)` of each leaf in a dict; its name is the innermost dict key."""

    def visit(node: Any, path: FeaturePath, name: str | None) -> Iterator[tuple[str, FeaturePath]]:
        if isinstance(node, Mapping):
            for key in sorted(node):
                yield from visit(node[key], (*path, key), str(key))
        elif is_sequence(node):
            for index, item in enumerate(node):
                yield from visit(item, (*path, index), name)
        elif node is not None and name is not None:
            yield name, path

    return visit(x, (), None)


def sanitize(name: str) -> str:
    """Returns a name as `tf.function` sanitizes it.

    See `sanitize_arg_name` in tensorflow/core/function/polymorphism/function_type.py.
    """
    cleaned = "".join(character if character.isalnum() else "_" for character in name)
    return cleaned if cleaned[:1].isalpha() else f"arg_{cleaned}"


def render_inputs(signature: Signature) -> str:
    """Renders the names, dtypes and shapes of the inputs, for messages."""
    return ", ".join(
        f"{name!r} {spec.dtype} {render_shape(spec.shape)}"
        for name, spec in sorted(signature.inputs.items())
    )


def hint_of_components(names: Iterable[str], signature: Signature) -> str:
    """Returns a sentence for errors about inputs that may be components of a composite tensor."""
    numbered = any(name.rpartition("_")[0] in signature.inputs for name in names)
    if signature.structure is not None or not numbered:
        return ""
    return (
        " If a ragged or sparse argument of the function is served as several inputs, such as x "
        "and x_1, a transform must return the tensor under the name of the first one."
    )


def _match_structure(x: Any, signature: Signature) -> dict[str, FeaturePath] | None:
    """Pairs `x` with the positional arguments the exported function was traced with.

    Returns:
        Input name -> path; `None` if the SavedModel does not store the arguments or they differ.
    """
    if signature.structure is None:
        return None
    arguments = signature.structure
    target = arguments[0] if is_sequence(arguments) and len(arguments) == 1 else arguments
    found: dict[str, FeaturePath] = {}
    if _pair(target, x, (), found):
        return found
    names = [name for _, name in walk(target)]
    flat = [path for path, leaf in walk(x) if leaf is not None]
    if isinstance(x, Mapping):
        top = {key: value for key, value in x.items() if value is not None}
        by_name = {
            sanitize(str(key)): (key,) for key, value in top.items() if not _is_structure(value)
        }
        if isinstance(target, Mapping) and any(
            target.get(key) not in (None, sanitize(str(key))) for key in top
        ):
            # x is keyed by feature and lacks some: its keys are not names of inputs.
            return {}
        if len(by_name) == len(top) and set(names) <= set(by_name):
            return {name: by_name[name] for name in names}
        # With one leaf on each side nothing can be confused.
        return {names[0]: flat[0]} if len(names) == len(flat) == 1 else None
    # Sequences flatten in their own order. A dict in the arguments defines no order for them.
    ordered = not any(isinstance(part, str) for path, _ in walk(target) for part in path)
    return dict(zip(names, flat, strict=True)) if ordered and len(names) == len(flat) else None


def _pair(target: Any, x: Any, path: FeaturePath, found: dict[str, FeaturePath]) -> bool:
    """Adds the path of each leaf of `target` to `found`; returns whether the structures agree."""
    if isinstance(target, Mapping):
        if not isinstance(x, Mapping) or not set(target) <= set(x):
            return False
        return all(_pair(target[key], x[key], (*path, key), found) for key in target)
    if is_sequence(target):
        items = (
            [(index, item) for index, item in enumerate(x) if item is not None]
            if is_sequence(x)
            else []
        )
        if not is_sequence(x) or len(items) != len(target):
            return False
        return all(
            _pair(part, item, (*path, index), found)
            for part, (index, item) in zip(target, items, strict=True)
        )
    if target is None:
        return True
    if _is_structure(x) or x is None:
        return False
    found[target] = path
    return True


def _match_names(
    x: Any, leaves: list[tuple[FeaturePath, Any]], signature: Signature
) -> dict[str, FeaturePath]:
    if not isinstance(x, Mapping):
        if len(leaves) == len(signature.inputs) == 1:
            return {next(iter(signature.inputs)): leaves[0][0]}
        return {}
    named = list(named_leaves(x))
    found: dict[str, list[FeaturePath]] = {}
    for name in signature.inputs:
        # A name that tf.function would sanitize was chosen by the exporter and is taken literally.
        is_literal = name != sanitize(name)
        paths = [path for key, path in named if (key if is_literal else sanitize(key)) == name]
        if paths:
            found[name] = paths
    by_path = dict(leaves)
    ambiguous = [
        f"input {name!r} may be "
        + " or ".join(f"{render_path(path)} ({describe(by_path[path])})" for path in paths)
        for name, paths in sorted(found.items())
        if len(paths) > 1
    ]
    if ambiguous:
        raise BindingError(
            f"Cannot bind batch to signature {signature.key!r}: {'; '.join(ambiguous)}, and the "
            "SavedModel does not say which. Pass warmup={'transform': ...} to name the inputs."
        )
    matched = {name: paths[0] for name, paths in found.items()}
    _refuse_renumbered(matched, [path for path, _ in leaves], signature)
    return matched


def _refuse_renumbered(
    found: Mapping[str, FeaturePath], order: Sequence[FeaturePath], signature: Signature
) -> None:
    """Raises BindingError where names `x`, `x_1`, ... may be numbers instead of keys.

    `tf.function` numbers unnamed leaves and equal names in flatten order, in which the key `x_10`
    precedes `x_2`: the input `x_2` may then be the leaf of either.
    """
    for base in sorted(found):
        series = [base]
        while f"{base}_{len(series)}" in found:
            series.append(f"{base}_{len(series)}")
        places = [order.index(found[name]) for name in series]
        if places != sorted(places):
            raise BindingError(
                f"Cannot bind batch to signature {signature.key!r}: the names of the inputs "
                f"{series} may be keys of the batch, or numbers that TensorFlow assigned in "
                "another order, and the SavedModel does not say which. Pass warmup={'transform': "
                "...} to name the inputs."
            )


def _is_structure(value: Any) -> bool:
    return isinstance(value, Mapping) or is_sequence(value)
