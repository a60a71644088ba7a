"""Tests of `keras_warmup.savedmodel.graph_bodies`."""

from __future__ import annotations

import pytest

from keras_warmup.savedmodel.graph_bodies import output_index


@pytest.mark.parametrize(
    ("tensor", "index"),
    [
        ("x", 0),
        ("x:2", 2),
        ("x:out:3", 3),
        ("x:" + "9" * 5000, 0),
        ("x:²", 0),
        ("x:٣", 0),
        ("x:-1", 0),
    ],
)
def test_the_index_of_an_output_is_read_or_zero(tensor: str, index: int) -> None:
    assert output_index(tensor) == index
