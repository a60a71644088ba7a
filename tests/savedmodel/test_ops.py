"""Tests of `keras_warmup.savedmodel.ops`."""

from __future__ import annotations

import pytest

from keras_warmup.savedmodel.ops import describe_foreign_ops, is_core, library_of


@pytest.mark.parametrize(
    "op", ["Const", "VarHandleOp", "ParseExampleV2", "XlaCallModule", "_Arg", "_FusedConv2D"]
)
def test_core_ops_are_core(op: str) -> None:
    assert is_core(op)


@pytest.mark.parametrize("op", ["SentencepieceOp", "TFText>RougeL", "Acme>Upper"])
def test_ops_of_other_libraries_are_not_core(op: str) -> None:
    assert not is_core(op)


@pytest.mark.parametrize(
    ("op", "library"),
    [
        ("TFText>WhitespaceTokenizeWithOffsetsV2", "tensorflow_text"),
        ("TFText>FastSentencepieceTokenize", "tensorflow_text"),
        ("FastWordpieceTokenizeWithOffsets", "tensorflow_text"),
        ("SentencepieceOp", "tensorflow_text"),
        ("SentencepieceTokenizeWithOffsetsOp", "tensorflow_text"),
        ("RougeL", "tensorflow_text"),
        ("SimpleMLInferenceOpWithHandle", "tensorflow_decision_forests"),
        ("RougeLength", ""),
        ("Acme>Upper", ""),
        ("DecodeMoonbeam", ""),
    ],
)
def test_ops_of_libraries_that_the_stock_server_has_name_their_library(
    op: str, library: str
) -> None:
    assert library_of(op) == library
    assert not is_core(op)


def test_what_a_server_needs_is_described_once_a_library() -> None:
    ops = ["Acme>Upper", "RougeL", "SentencepieceOp", "SimpleMLCreateModelResource"]
    assert describe_foreign_ops(ops) == [
        "ops outside core TensorFlow (Acme>Upper), which a stock model server does not have",
        "ops of tensorflow_decision_forests (SimpleMLCreateModelResource), which the stock model "
        "server has; import tensorflow_decision_forests before a replay in Python",
        "ops of tensorflow_text (RougeL, SentencepieceOp), which the stock model server has; "
        "import tensorflow_text before a replay in Python",
    ]
    assert describe_foreign_ops([]) == []
