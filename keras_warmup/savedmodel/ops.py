"""Op names that tell what a graph does; names as in TensorFlow's core/ops."""

from __future__ import annotations

import re

import tensorflow as tf

WRITES = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?$|AssignVariableXlaConcatND$|CountUpTo$|ResourceCountUpTo$|(Resource)?Scatter(Nd)?"
    r"(Add|Sub|Mul|Div|Min|Max|Update)$|(Resource|Sparse|ResourceSparse)?Apply[A-Z]|LookupTable(Insert|Import|Remove)"
    r"|ResourceStridedSliceAssign$|StridedSliceAssign$|RngSkip$|RngReadAndSkip$|Stateful(Random|StandardNormal"
    r"|TruncatedNormal|Uniform)|(Accumulator|ResourceAccumulator)(ApplyGradient|TakeGradient)$|Queue(Enqueue|Dequeue)"
    r"|MutableHashTableOfTensorsInsert$|BarrierInsertMany$"
)
RANDOM = re.compile(
    r"Random(Uniform|StandardNormal|Gamma|Poisson|Shuffle|Crop)|ParameterizedTruncatedNormal$|TruncatedNormal$"
    r"|Multinomial$|Stateful(Random|StandardNormal|TruncatedNormal|Uniform)|Stateless(Random|TruncatedNormal"
    r"|Multinomial|Parameterized|Shuffle|SampleDistortedBoundingBox)|RngReadAndSkip$|SampleDistortedBoundingBox"
    r"|(All|Fixed|Learned|LogUniform|Uniform|ThreadUnsafe)\w*CandidateSampler$"
)
# They run a Python function by its number in the process that registered it.
PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
CONVOLVES = re.compile(
    r"_?(Fused|Quantized)*(Depthwise)?Conv([123]D|2d)?(Native)?(Backprop|With|And|Per|V2|$)"
)
# tf.raw_ops leaves out private ops and those of the compilers, which a model server has too.
_CORE_PREFIXES = ("_", "Xla", "TPU", "DTensor")
_CORE_EXTRAS = frozenset(
    {"Skipgram", "AudioMicrofrontend", "KthOrderStatistic", "TopKUnique", "TopKWithUnique"}
)


def is_core(op: str) -> bool:
    """Whether core TensorFlow has an op.

    The process's op registry would not do: it grows with imports such as tensorflow_text, the model server's does not.
    """
    return hasattr(tf.raw_ops, op) or op.startswith(_CORE_PREFIXES) or op in _CORE_EXTRAS
