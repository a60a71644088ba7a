"""Describes TensorFlow's errors without the values of tensors that some of their messages quote.

The values are training data, and ops put them anywhere in a message: a number out of range, a
string that cannot be parsed, a path. So only the beginning of a message is shown, and only if it
has one of the forms below, which hold no values. Of other messages the node and the op are named.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

WITHHELD = "(message withheld: it may hold tensor values)"
# Only this much of each end of a long message is read: it starts with the op's own text and ends
# with the node, and the patterns below take time quadratic in the length.
_END_CHARACTERS = 8192
# Characters quoted of the error that a model cannot be traced for; the whole error is the cause.
_MAX_QUOTED = 1000
_TERMINAL_STYLES = re.compile(r"\x1b\[\d*m")  # Keras prints some of its errors bold
# Names of statuses as the server prints them; tf.errors.INVALID_ARGUMENT is 3, and so on.
_STATUS = {
    code: name for name, code in vars(tf.errors).items() if isinstance(code, int) and name.isupper()
}
# A TensorFlow runs the exports of JAX up to some version of it: not JAX 0.11.2 here.
_FITTING_VERSIONS = "TensorFlow 2.21 and JAX 0.10.2 to 0.11.0"
_NEWER_JAX = "The model holds a StableHLO module that this TensorFlow cannot run"
_PYTHON_ERRORS = "|".join(
    name
    for name, one in vars(builtins).items()
    if isinstance(one, type) and issubclass(one, Exception)
)

# Beginnings of messages. A group is a value, which is shown as `...`; so is what follows a match.
# S and N stand for a shape and a name.
_FORMS = [
    # Shapes and dtypes.
    r"Incompatible shapes: S vs\. S",
    r"ConcatOp : [\w ]+: shape\[\d+\] = S vs\. shape\[\d+\] = S",
    r"Matrix size-incompatible: In\[0\]: S, In\[1\]: S",
    r"In\[0\] and In\[1\] has different ndims: S vs\. S",
    r"In\[0\] mismatch In\[1\] shape: \d+ vs\. \d+: S S",
    r"Must provide as many biases as the last dimension of the input tensor: S vs\. S",
    r"input (?:depth must be evenly divisible by|and) filter [\w ]*depth: \d+ vs\.? \d+",
    r"(?:convolution )?input must be \d-dimensional: ?S",
    r"Computed output size would be negative: -\d+ \[input_size: \d+",
    r"Shape of tensor N S is not compatible with expected shape S",
    r"Shapes of all inputs must match: values\[\d+\]\.shape = S != values\[\d+\]\.shape = S",
    r"Expected dimension \d+ at axis \d+ of the input shaped S but got dimension \d+",
    r"Input to reshape is a tensor with \d+ values, but the requested shape",
    r"OOM when allocating tensor",
    r"Expects arg\[\d+\] to be \w+ but \w+ is provided",
    r"Type mismatch between parsed tensor \(\w+\) and dtype \(\w+\)",
    # Indices.
    r"indices\[[\d,]+\] = (-?\d+) is not in \[0, \d+\)",
    r"indices\[[\d,]+\] = (\[[^\]]*\]) (?:does not index into (?:param )?shape|is out of bounds)",
    r"slice index (-?\d+) of dimension \d+ out of bounds",
    r"Expected (?:begin|size)\[\d+\] in \[0, \d+\], but got",
    # Strings that cannot be parsed.
    r"(?:Name: <unknown>, )?Feature: [^\n]* is required but could not be found\.",
    r"(?:Name: <unknown>, )?Key: [^\n]*, Index: \d+\.  (?:Number of \w+ v|Data types don't m)\w+",
    r"Could not parse (?:example input|`serialized` as TensorProto)",
    r"Error while parsing JSON|Invalid character found in base64",
    r"Unknown image file format|Expected image \([\w, ]*\), got",
    r"Input to DecodeRaw has length \d+ that is not a multiple of \d+",
    r"StringToNumberOp could not correctly convert string",
    r"Field \d+ in record \d+ is not a valid \w+|Expect \d+ fields but have \d+",
    r"(?:corrupted|truncated) record at \d+",
    # The graph, its variables and its tables.
    r"(?:Could not find variable|Attempting to use uninitialized value) N",
    r"Error while reading resource variable N",
    r"Table not initialized|HashTable has different value for same key",
    r"N is both fed and fetched\.|Endpoint \"N\" fed more than once\.|Must specify at least one",
    r"(?:FeedInputs: unable to find feed output|FetchOutputs node) N",
    r"(?:Op type not registered|You must feed a value for placeholder tensor) '[^'\n]*'",
    r"NodeDef mentions attr '\w+' not in Op<name=\w+",
    r"No OpKernel was registered to support Op '\w+'",
    r"Detected unsupported operations when trying to compile graph N\S* on \w+: \w+",
    r"Cannot deserialize computation|The current platform \w+ is not among the platforms required",
    r"(?:ValueError: )?callback pyfunc_\d+ is not found",
    # An error of a Python function of a dataset: its type alone.
    rf"(?:{_PYTHON_ERRORS})(?=: |\n|$)",
]
_STANDS_FOR = {"S": r"\[[\d,?]*\]", "N": r"[\w./:>\\-]*\w"}
_SHOWN = [
    re.compile(
        re.sub(r"(?<![A-Za-z\\])[SN](?![A-Za-z])", lambda found: _STANDS_FOR[found[0]], form)
    )
    for form in _FORMS
]
# Beginnings of messages of TensorFlow Serving that a client meets; `serving/rules.py` raises the
# others itself. They are shown up to the end of the line: they hold names, shapes and dtypes only.
_SERVER_TEXTS = (
    *("Serving signature key ", "No signature was found with ", "Requested signature not found "),
    *("input size does not match signature: ", "Signature input alias: ", "Input is empty"),
    *("output tensor alias not found in signature: ", "tensor parsing error: ", "Task size "),
    *("Input tensor must be the same for all Signatures", "Servable not found for request: "),
    *("Batching Run() input tensors must have ", "The batch scheduling queue to which this task "),
    *("failed to connect to all addresses", "Deadline Exceeded", "Received message larger than "),
)
# What precedes the op's own text.
_HEAD = re.compile(
    r"^(?:\{\{function_node [^}\s]*\}\}\s*)*(?:Graph execution error:\s+)?"
    r"(?:\d+ root error\(s\) found\.\s*\(0\) [A-Z_ a-z]+: )?"
    r"(?:Error in user-defined function passed to \w+(?::\d+)? transformation with iterator: "
    r"[\w:\[\]]+: )?"
)


def describe_op_error(error: Exception, graph_def: Any = None) -> str:
    """Describes a TensorFlow error and the node that failed, without values of tensors.

    Args:
        error: the error that TensorFlow raised.
        graph_def: the GraphDef that ran, to look up the op of the node.

    Returns:
        The part of the message that is known to hold no values, or `WITHHELD`; then the node and
        its op, if known.
    """
    message = message_of(error)
    nodes = _nodes_by_name(graph_def)
    name, node = _failed_node(message, nodes)
    text = _first_part(message)
    if text.startswith("assertion failed"):
        quoted = _assertion_of(node, nodes)
        shown = f"assertion failed: [{quoted}] ..." if quoted else f"assertion failed {WITHHELD}"
    else:
        shown = _shown(text, node.op if node is not None else "") if text else ""
    if not name:
        return shown
    return shown + (f" (node {node.name}, op {node.op})" if node is not None else f" (node {name})")


def text_of(error: Exception) -> str:
    """Returns the message without traces, for errors of steps that see no data, such as imports."""
    return _first_part(message_of(error))


def quote_tracing_error(error: Exception) -> str:
    """Returns the type and the text of an error, shortened, without a full stop at the end.

    Args:
        error: what was raised while a model was traced: that sees no data, so the text has none.
    """
    text = text_of(error) if isinstance(error, tf.errors.OpError) else str(error)
    text = _TERMINAL_STYLES.sub("", text).strip()
    if len(text) > _MAX_QUOTED:
        text = f"{text[:_MAX_QUOTED]} ..."
    return f"{type(error).__name__}: {text.rstrip('.')}"


def _first_part(message: str) -> str:
    text = _HEAD.sub("", message)
    return re.split(r"\n\s*\[\[|\n\nDetected at|\n\nOriginal stack|\n\t", text)[0].strip()


def _shown(text: str, op: str) -> str:
    line, _, more = text.partition("\n")
    if line.startswith(_SERVER_TEXTS):
        return line + (" ..." if more else "")
    # The shapes that BroadcastTo names are values: it takes one of them as a tensor.
    if text.startswith("Incompatible shapes") and (not op or op.startswith("Broadcast")):
        return WITHHELD
    for form in _SHOWN:
        match = form.match(text)
        if match:
            shown = match[0]
            if form.groups:
                shown = f"{text[: match.start(1)]}...{text[match.end(1) : match.end()]}"
            return shown + (" ..." if text[match.end() :].strip(" .,:;") else "")
    return WITHHELD


def _nodes_by_name(graph_def: Any) -> dict[str, list[Any]]:
    nodes: defaultdict[str, list[Any]] = defaultdict(list)
    if graph_def is not None:
        for body in (graph_def.node, *(one.node_def for one in graph_def.library.function)):
            for node in body:
                nodes[node.name].append(node)
    return nodes


def _failed_node(message: str, nodes: Mapping[str, Sequence[Any]]) -> tuple[str, Any]:
    """Finds the name of the node that failed, and its NodeDef where the graph tells its op."""
    names = re.findall(r"\{\{node ([^}\s]+)\}\}", message)
    for name in names:
        # Inlining puts the names of the calls that lead to a node before its own: call/call/node.
        parts = name.split("/")
        for start in range(len(parts)):
            found = nodes.get("/".join(parts[start:]), ())
            if len({node.op for node in found}) == 1:
                return name, found[0]
            if found:  # by one name in several functions
                break
    # TensorFlow appends the node that failed; names before it may be quoted from a tensor.
    return (names[-1] if names else ""), None


def _assertion_of(node: Any, nodes: Mapping[str, Sequence[Any]]) -> str:
    """Returns the message that the model's author gave an assertion, a constant of the graph."""
    if node is None or node.op != "Assert" or len(node.input) < 2:
        return ""
    datum = nodes.get(node.input[1].partition(":")[0], ())
    texts = {b"".join(one.attr["value"].tensor.string_val) for one in datum if one.op == "Const"}
    return texts.pop().decode(errors="replace").strip() if len(texts) == 1 else ""


def message_of(error: Exception) -> str:
    """Returns the message of an error; a long one without its middle."""
    if isinstance(error, UnicodeDecodeError):  # the message quotes bytes that are not UTF-8
        text = bytes(error.object).decode(errors="replace")
    else:
        text = str(error.message if isinstance(error, tf.errors.OpError) else error)
    if len(text) <= 2 * _END_CHARACTERS:
        return text
    return f"{text[:_END_CHARACTERS]} ... {text[-_END_CHARACTERS:]}"


def status_of(error: Exception) -> str:
    """Returns the name of an error's status as the server prints it, such as `INVALID_ARGUMENT`."""
    if not isinstance(error, tf.errors.OpError):
        return "UNKNOWN"
    return str(_STATUS.get(error.error_code, "UNKNOWN"))


def cure_of(error: Exception, *, no_variables: bool = False) -> str:
    """Returns what to do about an error whose message does not tell, after a full stop; or nothing.

    Args:
        error: the error that TensorFlow raised.
        no_variables: whether the SavedModel lacks the files of its variables.
    """
    text = message_of(error)
    if isinstance(error, tf.errors.FailedPreconditionError) and "variable" in text.lower():
        if no_variables:
            return (
                ". The variables are missing: the SavedModel has no variables/variables.index. "
                "Copy it, or export it again, with all its files."
            )
        return (
            ". The SavedModel's restore op does not fill this variable: tf.saved_model.load works, "
            "a Session does not. tf.saved_model.save of a Keras 3 model writes such files; repair "
            "it with keras-warmup repair, or write the model with keras_warmup.save, model.export "
            "or keras.export.ExportArchive."
        )
    if "StableHLO" in text or "Cannot deserialize computation" in text:
        return (
            f". {_NEWER_JAX} ({_listed_versions()}): use a TensorFlow (and a model server) newer "
            "than the JAX that exported it, or export with an older JAX. "
            f"{_FITTING_VERSIONS} were tried and fit."
        )
    return ""


def runs_on_no_server(error: Exception) -> bool:
    """Returns whether an error, with its cure, says that it is the model that cannot be run."""
    return _NEWER_JAX in str(error)


def _listed_versions() -> str:
    jax = getattr(sys.modules.get("jax"), "__version__", None)
    return f"TensorFlow {tf.__version__}" + (f", JAX {jax}" if jax else "")
