"""Builders of models, SavedModels and rows that more than one test module uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_warmup.savedmodel.signatures import Signature, SignatureTensor


def make_signature(
    inputs: Mapping[str, tuple[str, tuple[int | None, ...] | None]],
    *,
    structure: Any = None,
    defaults: Iterable[str] = (),
    key: str = "serving_default",
) -> Signature:
    """A predict signature of inputs given as name -> (dtype, shape), with one float output."""
    tensors = {
        name: SignatureTensor(name, f"{name}:0", dtype, shape)
        for name, (dtype, shape) in inputs.items()
    }
    outputs = {"output_0": SignatureTensor("output_0", "out:0", "float32", (None, 1))}
    return Signature(
        key, "tensorflow/serving/predict", tensors, outputs, frozenset(defaults), structure
    )


def filled_rows(
    value: float, *shape: int, dtype: str = "float32", size: int = 3
) -> np.ndarray[Any, Any]:
    """`size` rows of this shape that hold one value."""
    return np.full((size, *shape), value, dtype)
