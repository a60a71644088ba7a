"""Casts of bound arrays: those of `fit` and those that change no value, and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.binding.bind import bind_batch
from keras_warmup.data.batch import Batch
from keras_warmup.errors import BindingError
from tests.builders import filled_rows, make_signature

FLOATS_4 = ("float32", (None, 4))


@pytest.mark.parametrize(
    ("array", "dtype", "cast"),
    [
        pytest.param(
            filled_rows(1.5, 4, dtype="float64"), "float32", "float64 -> float32", id="as fit casts"
        ),
        pytest.param(
            filled_rows(7, 4, dtype="int32"), "float32", "int32 -> float32", id="ids survive"
        ),
        pytest.param(
            filled_rows(200, 4, dtype="uint8"), "float32", "uint8 -> float32", id="bytes survive"
        ),
        pytest.param(
            filled_rows(7, 4, dtype="int64"), "int32", "int64 -> int32", id="narrower survives"
        ),
        pytest.param(
            filled_rows(1.5, 4, dtype="float32"),
            "bfloat16",
            "float32 -> bfloat16",
            id="mixed precision",
        ),
        pytest.param(filled_rows(np.nan, 4), "float32", None, id="nan is a value"),
    ],
)
def test_casts_of_fit_and_lossless_casts_are_made_and_reported(
    array: np.ndarray[Any, Any], dtype: str, cast: str | None
) -> None:
    (bound,) = bind_batch(Batch(array, 3), make_signature({"a": (dtype, (None, 4))}))
    assert bound.arrays["a"].dtype == tf.as_dtype(dtype).as_numpy_dtype
    assert bound.casts == ({"a": cast} if cast else {})
    np.testing.assert_array_equal(bound.arrays["a"].astype("float64"), array.astype("float64"))


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        pytest.param(filled_rows(300, 4, dtype="int32"), "uint8", id="overflow"),
        pytest.param(filled_rows(-1, 4, dtype="int64"), "uint64", id="sign"),
        pytest.param(
            filled_rows(2**24 + 1, 4, dtype="int64"), "float32", id="float32 cannot hold it"
        ),
        pytest.param(filled_rows(1.0, 4), "int32", id="float for int"),
        pytest.param(np.array([["a"] * 4] * 3), "float32", id="string for number"),
        pytest.param(filled_rows(2, 4, dtype="int32"), "bool", id="two is no bool"),
        pytest.param(filled_rows(70000, 4, dtype="int32"), "float16", id="float16 cannot hold it"),
    ],
)
def test_casts_that_change_values_are_refused(array: np.ndarray[Any, Any], dtype: str) -> None:
    with pytest.raises(BindingError):
        bind_batch(Batch(array, 3), make_signature({"a": (dtype, (None, 4))}))


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [
        (1e300, "float64", "float32"),
        (1e6, "float32", "float16"),
        (1e39, "float64", "bfloat16"),
        (1e300, "complex128", "complex64"),
    ],
)
def test_finite_values_that_become_infinite_are_refused(
    value: float, dtype: str, wanted: str
) -> None:
    with pytest.raises(BindingError, match=r"\(dtype differs: some sampled values overflow\)"):
        bind_batch(
            Batch(filled_rows(value, 4, dtype=dtype), 3), make_signature({"a": (wanted, (None, 4))})
        )


def test_infinity_and_nan_are_kept() -> None:
    array = np.array([[np.inf, -np.inf, np.nan, 1.0]])
    (bound,) = bind_batch(Batch(array, 1), make_signature({"a": ("float16", (None, 4))}))
    np.testing.assert_array_equal(bound.arrays["a"], array.astype("float16"))


def test_strings_become_bytes_and_big_endian_becomes_native() -> None:
    (text,) = bind_batch(
        Batch(np.array(["é", "b", "c"]), 3), make_signature({"a": ("string", (None,))})
    )
    assert text.arrays["a"].tolist() == ["é".encode(), b"b", b"c"]
    (big,) = bind_batch(
        Batch(filled_rows(1.5, 4).astype(">f4"), 3), make_signature({"a": FLOATS_4})
    )
    assert big.arrays["a"].dtype.byteorder in "=<"
    assert big.arrays["a"].tolist() == filled_rows(1.5, 4).tolist()
