"""Decides which request kinds a signature can serve, from its SignatureDef alone.

The rules are those of TensorFlow Serving (`predict_util.cc`, `classifier.cc`, `regressor.cc`,
`multi_inference.cc`). Its check of `method_name` is off by default
(`--enable_signature_method_name_check`), so method names decide nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras_warmup.data.batch import render_shape
from keras_warmup.report import RequestKind
from keras_warmup.savedmodel.signatures import Signature

# Dtypes that a TensorProto cannot hold, so that no client can send or receive them.
_HANDLES = frozenset({"resource", "variant"})
METHOD_NAMES: Mapping[RequestKind, str] = {
    "predict": "tensorflow/serving/predict",
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
}
# Shown to people who serve with TFRT; no decision depends on it.
TFRT_NOTE = (
    "On the TFRT runtime Classify and Regress run the whole function of the signature, with every "
    "output, and of two Classify outputs one must be 'classes' and the other 'scores' (TensorFlow "
    "Serving's tfrt_classifier.cc and tfrt_regressor.cc)."
)


def servable_kinds(signature: Signature) -> dict[RequestKind, str | None]:
    """Returns the request kinds, and why a signature cannot serve them.

    Args:
        signature: the signature.

    Returns:
        Each request kind -> `None` where the signature can serve it; otherwise the reason, as a
        clause without a full stop.
    """
    classify, regress = _why_not_classify(signature), _why_not_regress(signature)
    tasks = (
        None
        if classify is None or regress is None
        else "its tasks are Classify and Regress, and neither is possible"
    )
    return {
        "predict": _why_not_predict(signature),
        "classify": classify,
        "regress": regress,
        "multi_inference": tasks,
    }


def default_kind(signature: Signature) -> RequestKind:
    """Returns the kind of a record where no kind is asked for.

    Returns:
        `classify` or `regress` where the signature has the inputs and outputs of that kind,
        otherwise `predict`.
    """
    kinds = servable_kinds(signature)
    if kinds["classify"] is None:
        return "classify"
    return "regress" if kinds["regress"] is None else "predict"


def _why_not_predict(signature: Signature) -> str | None:
    for role, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for name, spec in specs.items():
            if not spec.tensor:
                return (
                    f"its {role} {name!r} is a composite (sparse or ragged) tensor, which a "
                    "TensorProto cannot hold"
                )
            if spec.dtype in _HANDLES:
                return f"its {role} {name!r} is a {spec.dtype}, which a TensorProto cannot hold"
    return None if signature.outputs else "it has no outputs"


def _why_not_examples(signature: Signature, kind: str) -> str | None:
    """Checks the input of Classify and Regress: `inputs`, a vector of serialized Examples."""
    names = sorted(signature.inputs)
    if len(names) != 1:
        return f"{kind} feeds exactly one input, 'inputs', and it has {len(names)}: {names}"
    if names != ["inputs"]:
        return f"{kind} feeds an input named 'inputs', and its input is named {names[0]!r}"
    spec = signature.inputs["inputs"]
    if not spec.tensor:
        return "its input 'inputs' is a composite (sparse or ragged) tensor"
    if spec.dtype != "string":
        return (
            f"{kind} feeds serialized tf.Examples (string), and its input 'inputs' is {spec.dtype}"
        )
    if spec.shape is not None and len(spec.shape) != 1:
        return (
            f"{kind} feeds serialized tf.Examples of shape [n], and its input 'inputs' is "
            f"{render_shape(spec.shape)}"
        )
    return None


def _why_not_classify(signature: Signature) -> str | None:
    problem = _why_not_examples(signature, "Classify")
    if problem:
        return problem
    outputs = signature.outputs
    if len(outputs) not in (1, 2):
        return f"Classify takes one or two outputs, and it has {len(outputs)}: {sorted(outputs)}"
    if not {"classes", "scores"} & set(outputs):
        return f"Classify reads the outputs 'classes' and 'scores', and it has {sorted(outputs)}"
    for name, dtype in (("classes", "string"), ("scores", "float32")):
        if name not in outputs:
            continue
        spec = outputs[name]
        if not spec.tensor or spec.dtype != dtype:
            found = spec.dtype if spec.tensor else "composite"
            return f"Classify reads {name!r} as {dtype}, and it is {found}"
        if spec.shape is not None and len(spec.shape) != 2:
            return (
                f"Classify reads {name!r} as [batch_size, num_classes], and it is "
                f"{render_shape(spec.shape)}"
            )
    shapes = [outputs[name].shape for name in ("classes", "scores") if name in outputs]
    widths = {shape[1] for shape in shapes if shape is not None} - {None}
    if len(widths) == 2:
        return (
            "Classify reads 'classes' and 'scores' of equal width, and they are "
            f"{render_shape(shapes[0])} and {render_shape(shapes[1])}"
        )
    return None


def _why_not_regress(signature: Signature) -> str | None:
    problem = _why_not_examples(signature, "Regress")
    if problem:
        return problem
    if list(signature.outputs) != ["outputs"]:
        return (
            f"Regress reads exactly one output, 'outputs', and it has {sorted(signature.outputs)}"
        )
    spec = signature.outputs["outputs"]
    if not spec.tensor or spec.dtype != "float32":
        found = spec.dtype if spec.tensor else "composite"
        return f"Regress reads 'outputs' as float32, and it is {found}"
    shape = spec.shape
    if shape is not None and not (len(shape) == 1 or (len(shape) == 2 and shape[1] in (1, None))):
        return (
            "Regress reads 'outputs' as [batch_size] or [batch_size, 1], and it is "
            f"{render_shape(shape)}"
        )
    return None
