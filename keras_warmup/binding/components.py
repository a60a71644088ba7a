"""Ragged and sparse tensors that a signature takes as several inputs, one for each component.

A `tf.function` of a `RaggedTensorSpec` is served with the inputs `x` (flat values) and `x_1`, ...
(row splits, the outermost first); one of a `SparseTensorSpec` with `x` (indices), `x_1` (values)
and `x_2` (dense shape). The first dimension of these arrays is not the batch, so that a request
cannot be sliced: it is sent whole. `Signature.structure` is `None` for such a signature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.binding.match import named_leaves, sanitize
from keras_warmup.data.batch import FeaturePath, render_path, walk
from keras_warmup.savedmodel.signatures import Signature, SignatureTensor


@dataclasses.dataclass(frozen=True)
class InputLeaf:
    """The leaf for an input of a signature.

    Attributes:
        leaf: array-like.
        where: its origin, for messages.
        rows: rows of the ragged or sparse tensor that it is a component of; `None` for others.
        path: rendered path of the leaf of the batch; empty where it is not of the batch.
    """

    leaf: Any
    where: str
    rows: int | None = None
    path: str = ""


def find_components(
    x: Any, signature: Signature
) -> tuple[FeaturePath, dict[str, InputLeaf]] | None:
    """Finds the ragged or sparse leaf whose components are the inputs of a signature.

    Args:
        x: nested dicts, lists and tuples of leaves.
        signature: the signature.

    Returns:
        The path of the leaf, and input name -> component. `None` if the inputs are not exactly the
        components of the only ragged or sparse leaf, or if other leaves could be meant.
    """
    leaves = [(path, leaf) for path, leaf in walk(x) if leaf is not None]
    composites = [(path, leaf) for path, leaf in leaves if _is_composite(leaf)]
    if len(composites) != 1:
        return None
    ((path, leaf),) = composites
    first = min(signature.inputs, key=len, default="")
    where = render_path(path)
    components = _components_of(first, InputLeaf(leaf, where, path=where), signature)
    if components is None or set(components) != set(signature.inputs):
        return None
    names = {other: sanitize(name) for name, other in named_leaves(x)}
    others = [names.get(other) for other, _ in leaves if other != path]
    if others and (names.get(path) != first or set(others) & set(components)):
        return None
    return path, components


def split_composites(leaves: Mapping[str, InputLeaf], signature: Signature) -> dict[str, InputLeaf]:
    """Replaces ragged and sparse leaves with their components where the signature takes these.

    Args:
        leaves: input name -> leaf; a ragged or sparse one under the name of its first component.
        signature: the signature.

    Returns:
        Input name -> leaf or component. A ragged or sparse leaf stays whole if the signature has no
        inputs of matching names, ranks and dtypes, or if these have leaves of their own.
    """
    split: dict[str, InputLeaf] = {}
    for name, whole in leaves.items():
        components = _components_of(name, whole, signature) if _is_composite(whole.leaf) else None
        if components is None or len(set(components) & set(leaves)) > 1:
            components = {name: whole}
        split.update(components)
    return split


def _is_composite(leaf: Any) -> bool:
    return isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor))


def _components_of(
    name: str, whole: InputLeaf, signature: Signature
) -> dict[str, InputLeaf] | None:
    """Returns input name -> component, the first as `name`; `None` if an input does not fit."""
    if signature.structure is not None:
        return None
    leaf = whole.leaf
    if isinstance(leaf, tf.RaggedTensor):
        rows = int(leaf.nrows())
        parts = {"flat_values": leaf.flat_values}
        for index, splits in enumerate(leaf.nested_row_splits):
            parts[f"nested_row_splits[{index}]"] = splits
    else:
        leaf = tf.sparse.reorder(leaf)
        rows = int(leaf.dense_shape[0])
        parts = {
            "indices": leaf.indices,
            "values": leaf.values,
            "dense_shape": leaf.dense_shape,
        }
    components = {}
    for index, (attribute, part) in enumerate(parts.items()):
        input_name = f"{name}_{index}" if index else name
        spec = signature.inputs.get(input_name)
        # Values may be cast, row splits and indices are integers.
        dtypes = None if attribute.endswith("values") else ("int32", "int64")
        if spec is None or (dtypes and spec.dtype not in dtypes) or not _fits(spec, part.shape):
            return None
        components[input_name] = InputLeaf(
            np.asarray(part), f"{whole.where}.{attribute}", rows, whole.path
        )
    return components


def _fits(spec: SignatureTensor, shape: tf.TensorShape) -> bool:
    return spec.shape is None or (
        len(spec.shape) == len(shape)
        and all(want in (None, got) for want, got in zip(spec.shape, shape, strict=True))
    )
