"""Compares functions of a function library by their content, not by their names."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Mapping

from keras_warmup._protos import FunctionDef
from keras_warmup.savedmodel.graph_limits import VisitBudget, functions_in

# Attributes that differ between two traces of the same code and change no result: names that users
# gave to arguments, names of gradient functions, and where and with which options of TensorFlow the
# trace was made. Keras 2 draws a random `api_implements` for each trace of an LSTM or GRU.
TRACE_ATTRIBUTES = (
    "_user_specified_name",
    "_gradient_op_type",
    "forward_function_name",
    "backward_function_name",
    "_construction_context",
    "config_proto",
    "api_implements",
)


class FunctionDigests:
    """Digests of the functions of a library: equal ones belong to functions that compute the same.

    Tracing numbers functions, so two traces of the same code have different names, and so do the
    functions that they call. A digest therefore covers the body of a function with each called
    function replaced by its own digest, and without `TRACE_ATTRIBUTES`.

    Args:
        functions: the library, name -> FunctionDef.
        budget: the nodes of each function are spent from it, once.
    """

    def __init__(self, functions: Mapping[str, FunctionDef], budget: VisitBudget) -> None:
        self._functions = functions
        self._budget = budget
        self._sizes = collections.Counter(map(_size_of, functions.values()))
        self._digests: dict[str, str] = {}

    def of(self, name: str) -> str | None:
        """Returns the digest of a function; `None` where the library does not hold it.

        Raises:
            SignatureError: the budget is exhausted.
        """
        function = self._functions.get(name)
        if function is not None and name not in self._digests:
            # No other function equals one of a unique size, so its name can stand for its body: a
            # large function need not be read. It also ends the recursion of one that calls itself.
            self._digests[name] = f"function {name}"
            if self._sizes[_size_of(function)] > 1:
                self._digests[name] = self._compute(function)
        return self._digests.get(name)

    def _compute(self, function: FunctionDef) -> str:
        self._budget.spend(len(function.node_def), function.signature.name)
        body = FunctionDef()
        body.CopyFrom(function)
        body.signature.name = ""
        for part in (body, *body.arg_attr.values(), *body.node_def):
            for attribute in TRACE_ATTRIBUTES:
                part.attr.pop(attribute, None)
        for node in body.node_def:
            for value in node.attr.values():
                for called in functions_in(value):
                    called.name = self.of(called.name) or called.name
            node.op = self.of(node.op) or node.op  # of a v1 Defun the op is the function's name
        body.node_def.sort(key=lambda node: str(node.name))
        # As bytes: protos that hold NaN differ from themselves.
        return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()


def _size_of(function: FunctionDef) -> tuple[int, int, int]:
    signature = function.signature
    return len(function.node_def), len(signature.input_arg), len(signature.output_arg)
