"""Gathers what depends on how a server is built and started, while records are replayed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from keras_warmup._protos import PredictionLog
from keras_warmup.data.batch import render_shape
from keras_warmup.options import XLA_FLAGS
from keras_warmup.records.prediction_logs import log_kind, log_signature_key, log_signature_keys
from keras_warmup.savedmodel.graph import GraphFacts
from keras_warmup.savedmodel.ops import describe_foreign_ops
from keras_warmup.savedmodel.signatures import Signature
from keras_warmup.serving.replay import Replayed
from keras_warmup.serving.rules import CLASSIFY_METHOD, PREDICT_METHOD, REGRESS_METHOD

_PYTHON_CURE = "Replace tf.py_function/tf.numpy_function by TensorFlow ops: a server has no Python."


def describe_python_ops(key: str, facts: GraphFacts, consequence: str) -> str:
    """Describes what calling Python functions does to a signature."""
    ops = ", ".join(facts.python_ops)
    return f"Signature {key!r} calls Python functions ({ops}){consequence}. {_PYTHON_CURE}"


class ServerNotes:
    """Notes on the servers and flags under which a model or its records fail.

    Args:
        signatures: the signatures of the model, by signature key.
        facts: what running each signature involves, by signature key.

    Attributes:
        requested: keys of the signatures that records run.
    """

    def __init__(
        self, signatures: Mapping[str, Signature], facts: Mapping[str, GraphFacts]
    ) -> None:
        self.requested: set[str] = set()
        self._signatures = signatures
        self._facts = facts
        # Reasons by signature key; dicts, so that a reason is kept once and in order.
        self._unbatchable: dict[str, dict[str, None]] = {}
        self._method_names: dict[str, dict[str, None]] = {}
        self._several_inputs: dict[str, None] = {}
        for key, signature in signatures.items():
            for name, spec in signature.inputs.items():
                if spec.shape == ():
                    self._add_unbatchable(key, f"input {name!r} is a scalar")

    def add(self, log: PredictionLog, replayed: Replayed) -> None:
        """Adds a record that was replayed without an error."""
        kind, key = log_kind(log), log_signature_key(log)
        if kind == "predict":
            self._add_predict(key, log, replayed)
        elif kind == "classify":
            self._expect_method_name(key, "Classify", CLASSIFY_METHOD)
        elif kind == "regress":
            self._expect_method_name(key, "Regress", REGRESS_METHOD)
        elif kind == "multi_inference":
            self._add_multi_inference(key, log)

    def _add_predict(self, key: str, log: PredictionLog, replayed: Replayed) -> None:
        self._expect_method_name(key, "Predict", PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD)
        inputs = log.predict_log.request.inputs
        shapes = {
            name: [dim.size for dim in inputs[name].tensor_shape.dim] for name in sorted(inputs)
        }
        for name, shape in shapes.items():
            if not shape:
                self._add_unbatchable(key, f"input {name!r} is a scalar")
        sizes = {shape[0] for shape in shapes.values() if shape}
        if len(sizes) > 1:
            listed = ", ".join(f"{name} {render_shape(shape)}" for name, shape in shapes.items())
            self._add_unbatchable(key, f"its inputs differ in dimension 0 ({listed})")
        elif sizes:
            (size,) = sizes
            for alias, array in replayed.outputs.items():
                if array.ndim == 0 or len(array) != size:
                    self._add_unbatchable(
                        key,
                        f"output {alias!r} is {render_shape(array.shape)} for a batch of {size}, "
                        "so it is not batch-major",
                    )

    def _add_multi_inference(self, key: str, log: PredictionLog) -> None:
        task_keys = log_signature_keys(log)
        for task_key, task in zip(task_keys, log.multi_inference_log.request.tasks, strict=True):
            self._expect_method_name(task_key, "MultiInference", task.method_name)
        tensors = {
            spec.tensor for one in task_keys for spec in self._signatures[one].inputs.values()
        }
        if len(tensors) > 1:
            self._several_inputs[key] = None

    def _add_unbatchable(self, key: str, reason: str) -> None:
        self._unbatchable.setdefault(key, {})[reason] = None

    def _expect_method_name(self, key: str, request: str, *expected: str) -> None:
        method_name = self._signatures[key].method_name
        if method_name not in expected:
            wanted = " or ".join(map(repr, expected))
            reason = f"its method_name is {method_name!r}, {request} expects {wanted}"
            self._method_names.setdefault(key, {})[reason] = None

    def lines(self) -> Iterator[str]:
        """Yields the notes, one sentence or two each."""
        for key, fact in self._facts.items():
            if fact.compiles:
                effect = "."
                if key in self.requested:
                    effect = "; without the flag its records keep the model from loading."
                yield (
                    f"Signature {key!r} must be compiled by XLA: a server needs {XLA_FLAGS} to run "
                    f"it{effect}"
                )
        foreign = sorted({op for fact in self._facts.values() for op in fact.foreign_ops})
        for clause in describe_foreign_ops(foreign):
            yield f"The model needs {clause}."
        for key, fact in self._facts.items():
            if fact.python_ops and key not in self.requested:
                yield describe_python_ops(key, fact, ": requests for it fail")
        for key, reasons in self._unbatchable.items():
            yield f"Signature {key!r} does not work with --enable_batching: {'; '.join(reasons)}."
        for key in self._several_inputs:
            yield (
                f"TensorFlow Serving before 2.4 refuses to load the model with the MultiInference "
                f"records for {key!r}: their tasks read different input tensors."
            )
        for key, fact in self._facts.items():
            if fact.writes_state and key in self.requested:
                yield (
                    f"Signature {key!r} writes state: the warmup requests change it before the "
                    "first request of a client."
                )
        for key, reasons in self._method_names.items():
            yield (
                f"With --enable_signature_method_name_check the records of signature {key!r} keep "
                f"the model from loading: {'; '.join(reasons)}. "
                "tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater changes it."
            )
