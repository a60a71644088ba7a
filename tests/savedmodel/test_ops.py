"""Tests of `keras_warmup.savedmodel.ops`."""

from __future__ import annotations

import pytest

from keras_warmup.savedmodel.ops import is_core


@pytest.mark.parametrize(
    "op", ["Const", "VarHandleOp", "ParseExampleV2", "XlaCallModule", "_Arg", "_FusedConv2D"]
)
def test_core_ops_are_core(op: str) -> None:
    assert is_core(op)


@pytest.mark.parametrize("op", ["SentencepieceOp", "TFText>RougeL", "Acme>Upper"])
def test_ops_of_other_libraries_are_not_core(op: str) -> None:
    assert not is_core(op)
