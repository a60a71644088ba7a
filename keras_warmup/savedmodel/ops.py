"""Classifies ops by name: which write state, are random, run Python, or are not core TensorFlow.

The names are those of TensorFlow's core/ops.
"""

from __future__ import annotations

import re

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
