"""What TensorFlow's errors say, without the values of tensors that some of them quote.

Those values are training data, and ops put them anywhere in a message: a number out of range, a string that does not
parse, a path. So a message is shown only as far as it has a known form without values; of any other one is left which
node of which op failed.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

# Of very long messages, which quote what the graph or a request holds, these ends are looked at: the patterns below take
# time quadratic in the length. The words of the op stand first, its node last.
_END_CHARACTERS = 8192
_NODES_TRIED = 10
WITHHELD = "(message withheld: it may hold tensor values)"
# tf.errors.INVALID_ARGUMENT = 3 and so on: the names the server prints.
_STATUS = {
    code: name for name, code in vars(tf.errors).items() if isinstance(code, int) and name.isupper()
}
# Names of Python's own errors.
_PYTHON_ERRORS = sorted(
    name
    for name, one in vars(builtins).items()
    if isinstance(one, type) and issubclass(one, Exception)
)

_SHAPE = r"\[[\d,?]*\]"
_NAME = r"[\w./:>\\-]*\w"
_SET = r"\{[^{}\n]*\}"
# Beginnings of messages -> what is shown, all of the match by default. S, N and {} stand for a shape, a name, a set of
# names. What follows the match is cut: behind it come values, or numbers that may be values.
_FORMS: dict[str, str] = {
    # Shapes and dtypes.
    r"ConcatOp : Dimension \d+ in both shapes must be equal: shape\[\d+\] = S vs\. shape\[\d+\] = S": "",
    r"ConcatOp : Ranks of all input tensors should match: shape\[\d+\] = S vs\. shape\[\d+\] = S": "",
    # Behind the shapes some kernels say which of the two are transposed.
    r"(Matrix size-incompatible: In\[0\]: S, In\[1\]: S)(?: [01] [01]$)?": r"\1",
    r"In\[[01]\] ndims must be >= 2: \d+": "",
    r"In\[0\] (?:and In\[1\] has different ndims|mismatch In\[1\] shape): [\d\[\],?]+ vs\. [\d\[\],?]+(?:: S S)?": "",
    r"Must provide as many biases as the last dimension of the input tensor: S vs\. S": "",
    r"input depth must be evenly divisible by filter depth: \d+ vs\.? \d+": "",
    r"input and filter must have the same depth: \d+ vs\.? \d+": "",
    r"convolution input must be \d-dimensional: S": "",
    r"input must be \d-dimensional: ?S": "",
    r"Computed output size would be negative: -\d+ \[input_size: \d+, effective_filter_size: \d+, stride: \d+\]": "",
    r"Shape of tensor N S is not compatible with expected shape S\.": "",
    r"Can not squeeze dim\[\d+\], expected a dimension of 1, got \d+": "",
    r"transpose expects a vector of size \d+\. But input\(1\) is a vector of size \d+": "",
    r"Shapes of all inputs must match: values\[\d+\]\.shape = S != values\[\d+\]\.shape = S": "",
    r"Expected dimension \d+ at axis \d+ of the input shaped S but got dimension \d+": "",
    r"Inputs to operation N of type \w+ must have the same size and shape\.  Input \d+: S != input \d+: S": "",
    r"Input shape axis \d+ must equal \d+, got shape S": "",
    r"Number of ways to split should evenly divide the split dimension": "",
    r"Dimensions must be equal, but are \d+ and \d+ for": "",
    r"Expects arg\[\d+\] to be \w+ but \w+ is provided": "",
    r"Type mismatch between parsed tensor \(\w+\) and dtype \(\w+\)": "",
    r"Input to reshape is a tensor with \d+ values, but the requested shape": "",
    r"Expected (?:begin|size)\[\d+\] in \[0, \d+\], but got": "",
    r"input must have at least k columns\. Had \d+, needed": "",
    # Values out of range: which one, and where the limit is the size of a tensor, that.
    r"indices(\[[\d,]+\]) = -?\d+ is not in (\[0, \d+\))": r"indices\1 = ... is not in \2",
    r"(indices\[[\d,]+\]) = \[[^\]]*\] does not index into (param shape S)": r"\1 = [...] does not index into \2",
    r"(indices\[[\d,]+\]) = \[[^\]]*\] does not index into shape": r"\1 = [...] does not index into the shape",
    r"(indices\[[\d,]+\]) = \[[^\]]*\] is out of bounds": r"\1 = [...] is out of bounds",
    r"(segment_ids\[[\d,]+\]) = -?\d+ is out of range": r"\1 = ... is out of range",
    r"Trying to access element -?\d+ in a list with (\d+) elements": r"Trying to access element ... in a list of \1",
    r"slice index -?\d+ of dimension (\d+) out of bounds": r"slice index ... of dimension \1 out of bounds",
    r"Dimension -?\d+ must be >= 0": "Dimension ... must be >= 0",
    r"Received a label value of -?\d+ which is outside the valid range": "A label is outside the valid range",
    r"segment ids are not increasing|Integer division by zero|Input is not invertible": "",
    r"(?:[^\n]* : )?(Tensor had (?:NaN|-Inf|\+Inf|Inf)(?:(?:,| and)+ \W?(?:NaN|Inf))* values)$": r"\1",
    # Strings that do not parse: what was expected, and where.
    r"Field \d+ in record \d+ is not a valid \w+": "",
    r"Expect \d+ fields but have \d+(?: in record \d+)?": "",
    r"StringToNumberOp could not correctly convert string": "",
    r"Could not parse example input": "",
    r"Could not parse `serialized` as TensorProto": "",
    r"Error while parsing JSON": "",
    r"Invalid (?:pattern|character found in base64|formatting on input string)": "",
    r"Unknown image file format\. One of [A-Z, 0-9a-z]* required\.": "",
    r"Expected image \([\w, ]*\), got": "",
    r"Input to DecodeRaw has length \d+ that is not a multiple of \d+, the size of \w+": "",
    r"inflate\(\) failed with error -?\d+": "",
    r"Name: <unknown>, Feature: [^\n]* \(data type: \w+\) is required but could not be found\.": "",
    r"Name: <unknown>, Key: [^\n]*, Index: \d+\.  Number of \w+ values != expected\.  Values size: \d+ but output "
    r"shape: S": "",
    r"Name: <unknown>, Key: [^\n]*, Index: \d+\.  Data types don't match\. (?:Data type: \w+ but e|E)xpected type: "
    r"\w+": "",
    # The graph, its variables and its files.
    r"Could not find variable N": "",
    r"Attempting to use uninitialized value N": "",
    r"Error while reading resource variable N from Container: \w+": "",
    r"Table not initialized": "",
    r"You must feed a value for placeholder tensor '[^'\n]*' with dtype \w+(?: and shape S)?": "",
    r"N is both fed and fetched\.": "",
    r"Endpoint \"N\" fed more than once\.": "",
    r"(?:FeedInputs: unable to find feed output|FetchOutputs node|Tensor) N(?:, specified in |: not found)?": "",
    r"Op type not registered '[^'\n]*'": "",
    r"NodeDef mentions attr '\w+' not in Op<name=\w+": "",
    r"No OpKernel was registered to support Op '\w+'": "",
    r"\"?The name '[^'\n]*' refers to an? \w+ (?:which does not exist|not in the graph)": "",
    r"Detected unsupported operations when trying to compile graph N\S* on \w+: \w+": "",
    r"The current platform \w+ is not among the platforms required by the module: \[[\w, ]*\]": "",
    r"Cannot deserialize computation": "",
    r"(?:ValueError: )?callback pyfunc_\d+ is not found": "",
    r"Key N not found in checkpoint": "",
    r"Unsuccessful TensorSliceReader constructor: [\w ]+": "",
    r"tensor_name = N; shape in shape_and_slice spec S does not match the shape stored in checkpoint: S": "",
    r"Assign requires shapes of both tensors to match\. lhs shape= ?S rhs shape= ?S": "",
    r"(?:[^\n]*/)?(variables\.data-\d+-of-\d+; No such file or directory)": r"\1",
    r"HashTable has different value for same key": "",
    r"Checksum does not match|Read less bytes than requested": "",
    r"(?:corrupted|truncated) record at \d+": "",
    # A Python function of a dataset: the kind of its error, without its words.
    rf"(?:{'|'.join(_PYTHON_ERRORS)})(?=: |\n|$)": "",
    # What the server asks of a request, and of what it gets.
    r'Serving signature key "[^"\n]*" not found\.': "",
    r"input size does not match signature: \d+!=\d+ len\({}\) != len\({}\)\. Sent extra: {}\. Missing but required: "
    r"{}\.": "",
    r"Signature input alias: [^\n(]*\(feed name: N\) not found in request and no default value provided": "",
    r"Inputs contains invalid name\. Used request inputs: [^\n]*": "",
    r"(?:output tensor alias not found in signature|duplicate output tensor alias|tensor parsing error): [^\n]*": "",
    r"(?:No signature was found with the name|Requested signature not found in model graph): [^\n]*": "",
    r"(?:Duplicate evaluation of signature|Unsupported signature method_name): [^\n]*": "",
    r"Unsupported log_type for warmup: \d+|Servable not found for request: [^\n]*|Missing ModelSpec": "",
    r"Input is empty\.?|Found ModelSpec with an empty model name|All ModelSpecs in a MultiInferenceRequest must": "",
    r"Input tensor must be the same for all Signatures|Expected one input Tensor\.": "",
    r"Expected one(?: or two)? output Tensors?(?:, found \d+)?": "",
    r"No (?:classification|regression) (?:inputs|outputs) found in SignatureDef": "",
    r"Expected (?:classification|regression) signature (?:outputs to contain|method_name to be)[^\n]*": "",
    r"Expected Tensor shape: \[batch_size num_classes\] but got S": "",
    r"Expected output Tensor shape to be either \[batch_size\] or \[batch_size, 1\] but got S": "",
    r"Expected (?:classes|scores|output) Tensor of DT_\w+\. +Got: DT_\w+": "",
    r"Expected \w* ?output batch size (?:of|to be) \d+\. +Got: \d+": "",
    r"Tensors class and score should match in dim_size\(1\)\. Got \d+ vs\. \d+": "",
    r"Input batch size did not match output batch size: \d+ vs\. \d+": "",
    r"Task size \d+ is larger than maximum (?:input )?batch size \d+": "",
    r"Batching (?:session )?Run\(\) input tensors must have [\w -]+": "",
    r"The batch scheduling queue to which this task was submitted is full": "",
    r"failed to connect to all addresses|Deadline Exceeded": "",
    r"(?:Received|Sent) message larger than max \(\d+ vs\. \d+\)": "",
}
# Shapes too, but of ops that take the shape wanted as a tensor the values of that tensor.
_FORMS_OF_SHAPES: dict[str, str] = {
    r"Incompatible shapes: S vs\. S": "",
    r"OOM when allocating tensor with shape ?S and type \w+": "",
}
_SHAPE_IS_VALUE = frozenset(
    {
        "BroadcastTo",
        "BroadcastArgs",
        "Fill",
        "Empty",
        "Reshape",
        "Tile",
        "Pad",
        "PadV2",
        "MirrorPad",
        "Range",
        "OneHot",
    }
    | {
        "ScatterNd",
        "SparseToDense",
        "UnsortedSegmentSum",
        "DenseBincount",
        "Bincount",
        "TensorListReserve",
    }
)


# What stands before the words of the op that failed.
_HEAD = re.compile(
    r"^(?:\{\{function_node [^}\s]*\}\}\s*)*(Graph execution error:\s+)?(\d+ root error\(s\) found\.\s*\(0\) [A-Z_ a-z]+: )?"
    r"(Error in user-defined function passed to \w+(:\d+)? transformation with iterator: [\w:\[\]]+: )?"
)


def _compiled(forms: dict[str, str]) -> list[tuple[re.Pattern[str], str]]:
    def spelled(form: str) -> str:
        form = re.sub(r"(?<![A-Za-z\\])S(?![A-Za-z])", lambda _: _SHAPE, form)
        form = re.sub(r"(?<![A-Za-z\\])N(?![A-Za-z])", lambda _: _NAME, form)
        return form.replace("{}", _SET)

    return [(re.compile(spelled(form)), shown or r"\g<0>") for form, shown in forms.items()]


_SAFE, _SAFE_SHAPES = _compiled(_FORMS), _compiled(_FORMS_OF_SHAPES)


def describe_op_error(error: Exception, graph_def: Any = None) -> str:
    """What a TensorFlow error says, and of which node, without traces and without values of tensors.

    Args:
        error: what TensorFlow raised.
        graph_def: the GraphDef that ran; tells the node's op.

    Returns:
        The part of the message that is known to hold no values, or `WITHHELD`; then the node and its op, if known.
    """
    message = message_of(error)
    name, node = _failed_node(message, graph_def)
    op = node.op if node is not None else ""
    text = _first_part(message)
    where = ", ".join([f"node {name}"] * bool(name) + [f"op {op}"] * bool(op))
    shown = _shown(text, op, graph_def, node) if text else ""
    return shown + (f" ({where})" if where else "")


def text_of(error: Exception) -> str:
    """What a TensorFlow error says, whole but for traces: of what sees no data, such as the import of a graph."""
    return _first_part(message_of(error))


def _first_part(message: str) -> str:
    return re.split(r"\n\s*\[\[|\n\nDetected at|\n\nOriginal stack|\n\t", _HEAD.sub("", message))[
        0
    ].strip()


def _shown(text: str, op: str, graph_def: Any, node: Any) -> str:
    if text.startswith("assertion failed"):
        said = _assertion_of(graph_def, node)
        return f"assertion failed: [{said}] ..." if said else f"assertion failed {WITHHELD}"
    forms = _SAFE + (_SAFE_SHAPES if op and op not in _SHAPE_IS_VALUE else [])
    for pattern, shown in forms:
        match = pattern.match(text)
        if match:
            rest = text[match.end() :].strip(" .,:;")
            return match.expand(shown) + (" ..." if rest and not shown.endswith("...") else "")
    return WITHHELD


def _failed_node(message: str, graph_def: Any) -> tuple[str, Any]:
    """Name of the node that failed, and its NodeDef where the graph has it."""
    found = re.findall(r"(?:\{\{function_node ([^}\s]+)\}\}\s*)?\{\{node ([^}\s]+)\}\}", message)
    # A message may quote a text full of such names: TensorFlow's own stand at both ends.
    for function, name in (
        found if len(found) <= 2 * _NODES_TRIED else found[:_NODES_TRIED] + found[-_NODES_TRIED:]
    ):
        nodes = [node for where, node in _nodes_named(graph_def, name) if where == function]
        # A function that the optimizer specialized has a name of its own.
        nodes = nodes or [node for _, node in _nodes_named(graph_def, name)]
        nodes = nodes or list(_inlined(graph_def, name))
        if len({node.op for node in nodes}) == 1:
            return str(nodes[0].name), nodes[0]
    # The last one: TensorFlow appends it, behind whatever the message quotes.
    return (found[-1][1] if found else ""), None


def _nodes_named(graph_def: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every node of a name, with the function it stands in (empty for the main graph)."""
    if graph_def is None:
        return
    yield from (("", node) for node in graph_def.node if node.name == name)
    for function in graph_def.library.function:
        yield from (
            (function.signature.name, node) for node in function.node_def if node.name == name
        )


def _inlined(graph_def: Any, path: str) -> Iterator[Any]:
    """The nodes that inlining may have named `call/call/node`, after the calls that lead to it from any graph or function."""
    if graph_def is None:
        return
    functions = {one.signature.name: one.node_def for one in graph_def.library.function}
    searched: set[tuple[str, str]] = set()

    def find(function: str, nodes: Iterable[Any], path: str) -> Iterator[Any]:
        if (function, path) in searched:  # names with slashes may be taken apart in many ways
            return
        searched.add((function, path))
        for node in nodes:
            if node.name == path:
                yield node
            elif "f" in node.attr and path.startswith(f"{node.name}/"):
                called = node.attr["f"].func.name
                yield from find(called, functions.get(called, ()), path[len(node.name) + 1 :])

    for function, nodes in [("", graph_def.node), *functions.items()]:
        yield from find(function, nodes, path)


def _assertion_of(graph_def: Any, node: Any) -> str:
    """What an assertion says that the model's author wrote: its first datum, where that is a constant of the graph."""
    if node is None or node.op != "Assert" or len(node.input) < 2:
        return ""
    name = node.input[1].partition(":")[0]
    found = [one for _, one in _nodes_named(graph_def, name) if one.op == "Const"]
    texts = {b"".join(one.attr["value"].tensor.string_val) for one in found}
    return texts.pop().decode(errors="replace").strip() if len(texts) == 1 else ""


def message_of(error: Exception) -> str:
    """The message, without its middle where it is very long; TensorFlow's Python cannot decode one that quotes bytes."""
    if isinstance(error, UnicodeDecodeError):
        text = bytes(error.object).decode(errors="replace")
    else:
        text = str(error.message if isinstance(error, tf.errors.OpError) else error)
    if len(text) <= 2 * _END_CHARACTERS:
        return text
    return f"{text[:_END_CHARACTERS]} ... {text[-_END_CHARACTERS:]}"


def status_of(error: Exception) -> str:
    """Canonical name of its status, as the server prints it: `INVALID_ARGUMENT`."""
    return (
        str(_STATUS.get(error.error_code, "UNKNOWN"))
        if isinstance(error, tf.errors.OpError)
        else "UNKNOWN"
    )


def cure_of(error: Exception, *, no_variables: bool = False) -> str:
    """What to do about an error whose text alone does not tell, starting with a full stop; else empty.

    Args:
        error: what TensorFlow raised.
        no_variables: whether the SavedModel lacks the files of its variables.
    """
    text = message_of(error)
    if isinstance(error, tf.errors.FailedPreconditionError) and "variable" in text.lower():
        if no_variables:
            return (
                ". The variables are missing: the SavedModel has no variables/variables.index. Copy it, or export it "
                "again, with all its files."
            )
        return (
            ". The SavedModel's restore op does not fill this variable: tf.saved_model.load works, a Session does not. "
            "tf.saved_model.save of a Keras 3 model gives such files; write it with keras_warmup.save, model.export or "
            "keras.export.ExportArchive."
        )
    if "StableHLO" in text or "Cannot deserialize computation" in text:
        return (
            ". The model holds a StableHLO module that this TensorFlow cannot run: use a TensorFlow (and a model "
            "server) newer than the JAX that exported it, or export with an older JAX."
        )
    return ""
