"""Classifies ops by name: which write state, are random, run Python, or are not core TensorFlow.

The names are those of TensorFlow's core/ops.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import tensorflow as tf

WRITES = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?$|AssignVariableXlaConcatND$|CountUpTo$|ResourceCountUpTo$"
    r"|(Resource)?Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)$"
    r"|(Resource|Sparse|ResourceSparse)?Apply[A-Z]|LookupTable(Insert|Import|Remove)"
    r"|ResourceStridedSliceAssign$|StridedSliceAssign$|RngSkip$|RngReadAndSkip$"
    r"|Stateful(Random|StandardNormal|TruncatedNormal|Uniform)"
    r"|(Accumulator|ResourceAccumulator)(ApplyGradient|TakeGradient)$|Queue(Enqueue|Dequeue)"
    r"|MutableHashTableOfTensorsInsert$|BarrierInsertMany$"
)
RANDOM = re.compile(
    r"Random(Uniform|StandardNormal|Gamma|Poisson|Shuffle|Crop)|ParameterizedTruncatedNormal$"
    r"|TruncatedNormal$|Multinomial$|Stateful(Random|StandardNormal|TruncatedNormal|Uniform)"
    r"|Stateless(Random|TruncatedNormal|Multinomial|Parameterized|Shuffle"
    r"|SampleDistortedBoundingBox)|RngReadAndSkip$|SampleDistortedBoundingBox"
    r"|(All|Fixed|Learned|LogUniform|Uniform|ThreadUnsafe)\w*CandidateSampler$"
)
# They call a Python function by its number in the process that registered it.
PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
CONVOLVES = re.compile(
    r"_?(Fused|Quantized)*(Depthwise)?Conv([123]D|2d)?(Native)?(Backprop|With|And|Per|V2|$)"
)
MULTIPLIES_BATCHES = re.compile(r"_?(Fused)?(BatchMatMul(V2|V3)?|Einsum)$")
# Ops of libraries that the stock model server is built with (TensorFlow Serving's
# model_servers/BUILD, SUPPORTED_TENSORFLOW_OPS): TensorFlow Text 2.21 and the inference of
# TensorFlow Decision Forests. A Python process has them once the library is imported.
_TEXT_OPS = frozenset(
    {"CaseFoldUTF8", "ConstrainedSequence", "FastBertNormalize", "FastWordpieceTokenizeWithOffsets"}
    | {"FindSourceOffsets", "MaxSpanningTree", "NormalizeUTF8", "NormalizeUTF8WithOffsetsMap"}
    | {"PhraseTokenize", "RegexSplitWithOffsets", "RougeL", "SentenceFragments"}
    | {"SentenceFragmentsV2", "SplitMergeTokenizeWithOffsets", "TokenizerFromLogits"}
    | {"UnicodeScriptTokenizeWithOffsets", "WhitespaceTokenizeWithOffsets"}
    | {"WordpieceTokenizeWithOffsets"}
)
_SERVED_LIBRARIES = (
    (
        "tensorflow_text",
        re.compile(rf"TFText>|Sentencepiece\w*Op$|(?:{'|'.join(sorted(_TEXT_OPS))})$"),
    ),
    ("tensorflow_decision_forests", re.compile(r"SimpleML")),
)
# `tf.raw_ops` lacks private ops and those of the compilers, which a model server has too.
_CORE_PREFIXES = ("_", "Xla", "TPU", "DTensor")
_CORE_EXTRAS = frozenset(
    {"Skipgram", "AudioMicrofrontend", "KthOrderStatistic", "TopKUnique", "TopKWithUnique"}
)


def is_core(op: str) -> bool:
    """Returns whether core TensorFlow has an op.

    The op registry of this process does not show it: imports such as tensorflow_text add ops that a
    model server does not have.
    """
    return hasattr(tf.raw_ops, op) or op.startswith(_CORE_PREFIXES) or op in _CORE_EXTRAS


def library_of(op: str) -> str:
    """Returns the Python package that registers an op which the stock model server has.

    Args:
        op: an op that core TensorFlow does not have.

    Returns:
        The package, such as `tensorflow_text`; empty for other ops.
    """
    for library, pattern in _SERVED_LIBRARIES:
        if pattern.match(op):
            return library
    return ""


def describe_foreign_ops(ops: Iterable[str]) -> list[str]:
    """Returns what a server needs for ops that core TensorFlow does not have, one clause each."""
    by_library: dict[str, list[str]] = {}
    for op in ops:
        by_library.setdefault(library_of(op), []).append(op)
    clauses = []
    for library, found in sorted(by_library.items()):
        listed = ", ".join(found)
        if library:
            clauses.append(
                f"ops of {library} ({listed}), which the stock model server has; import {library} "
                "before a replay in Python"
            )
        else:
            clauses.append(
                f"ops outside core TensorFlow ({listed}), which a stock model server does not have"
            )
    return clauses
