"""Loads a SavedModel into a Session, as TensorFlow Serving does.

Follows TensorFlow's `cc/saved_model/loader.cc`: import the graph, run the restore op, run the init
op. It is a Session, not `tf.saved_model.load`, because a server has a Session, and some exports
fail there only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from typing import Any, NamedTuple

import tensorflow as tf
from google.protobuf.message import Error as ProtobufError

from keras_warmup._protos import MetaGraphDef
from keras_warmup.errors import ReplayError
from keras_warmup.op_errors import describe_op_error, message_of, status_of, text_of
from keras_warmup.paths import reason_of
from keras_warmup.publishing.filesystem import exists
from keras_warmup.savedmodel.files import check_load_files, read_assets
from keras_warmup.savedmodel.ops import library_of
from keras_warmup.savedmodel.signatures import INIT_COLLECTIONS, INIT_OP_KEY
from keras_warmup.serving.grappler import leave_all_unoptimized, optimizing_only_signatures

# Errors that TensorFlow raises for a damaged graph: its own, and those that its C++ and Python code
# runs into, such as IndexError and UnicodeDecodeError for attributes, or MemoryError for
# std::bad_alloc.
TENSORFLOW_ERRORS = (
    tf.errors.OpError,
    ProtobufError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)
# Errors whose message tells what failed without their type.
_SELF_EXPLAINING_ERRORS = (tf.errors.OpError, KeyError, TypeError, ValueError)
RESTORE, INIT = "restore the variables", "run the init op"


def load_session(
    export_dir: str,
    meta_graph: MetaGraphDef,
    *,
    optimize_load: bool = True,
    only_restore: bool = False,
) -> Any:
    """Imports a graph into a Session, restores its variables and runs its init op.

    Args:
        export_dir: version directory of the SavedModel.
        meta_graph: the meta graph to load.
        optimize_load: restore the variables and run the init op through TensorFlow's graph
            optimizer, as a server does. Without it, loading takes less time and memory
            (`grappler.py`). Defaults to `True`.
        only_restore: restore the variables, and neither run the init op nor optimize anything.
            This changes `meta_graph`. Defaults to `False`.

    Returns:
        A `tf.compat.v1.Session` on the CPU, with a graph of its own.

    Raises:
        SignatureError: a file that the load reads is not a regular file.
        ReplayError: one of the three steps fails; the message says which, and what to do.
    """
    check_load_files(export_dir, meta_graph)
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0}, allow_soft_placement=True)
    if only_restore:
        leave_all_unoptimized(meta_graph, config)
    graph = tf.Graph()
    with (
        contextlib.nullcontext()
        if optimize_load or only_restore
        else optimizing_only_signatures(meta_graph, config)
    ):
        problem = _import(graph, meta_graph)
    if problem is not None:
        raise load_error(
            f"Cannot import the graph of SavedModel {export_dir!r}",
            problem,
            with_type(problem, text_of(problem)),
        )
    steps = load_steps(export_dir, meta_graph)
    if only_restore:
        steps = [step for step in steps if step.name == RESTORE]
    session = tf.compat.v1.Session(graph=graph, config=config)
    running = ""
    try:
        for step in steps:
            running = step.name
            session.run(graph.get_operation_by_name(step.operation), step.feeds)
    except TENSORFLOW_ERRORS as error:
        problem = error
        if left_locks(error):
            never_free(session)
        else:
            session.close()
    if problem is not None:
        # Outside of the except block: a chained error would be printed with the values it quotes.
        # An init op quotes vocabularies; the restore op reads no data but the variables.
        text = (
            describe_op_error(problem, meta_graph.graph_def).removesuffix(" ...")
            if running == INIT
            else text_of(problem)
        )
        raise load_error(
            f"Cannot {running} of SavedModel {export_dir!r}", problem, with_type(problem, text)
        )
    return session


class LoadStep(NamedTuple):
    """An op that a load runs.

    Attributes:
        name: what it does: `RESTORE` or `INIT`.
        operation: name of the op.
        feeds: name of a tensor -> the path it is fed.
    """

    name: str
    operation: str
    feeds: dict[str, str]


def load_steps(export_dir: str, meta_graph: MetaGraphDef) -> list[LoadStep]:
    """Returns the ops that a load runs in the imported graph, in order.

    Args:
        export_dir: version directory of the SavedModel.
        meta_graph: the meta graph to load; its graph is not read.

    Raises:
        SignatureError: the list of the assets is damaged.
        ReplayError: it cannot be found out whether there are variables.
    """
    assets = {
        asset.tensor_info.name: os.path.join(export_dir, "assets", asset.filename)
        for asset in read_assets(meta_graph)
    }
    steps = []
    if meta_graph.HasField("saver_def") and not lacks_variables(export_dir, meta_graph):
        saver = meta_graph.saver_def
        feeds = {saver.filename_tensor_name: _variables_prefix(export_dir), **assets}
        steps.append(LoadStep(RESTORE, saver.restore_op_name, feeds))
    init_op = _init_op(meta_graph)
    if init_op:
        steps.append(LoadStep(INIT, init_op, assets))
    return steps


def with_type(error: Exception, text: str) -> str:
    """Prefixes the text of an error with its type where the text alone does not explain it."""
    if isinstance(error, _SELF_EXPLAINING_ERRORS):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def lacks_variables(export_dir: str, meta_graph: MetaGraphDef) -> bool:
    """Returns whether the graph restores variables from files that do not exist.

    A server silently loads such a model, and fails each request that reads a variable.
    """
    index = _variables_prefix(export_dir) + ".index"
    try:
        return meta_graph.HasField("saver_def") and not exists(index)
    except OSError as error:
        raise ReplayError(
            f"Cannot restore the variables of SavedModel {export_dir!r}: {index!r}: "
            f"{reason_of(error)}."
        ) from error


def _variables_prefix(export_dir: str) -> str:
    return os.path.join(export_dir, "variables", "variables")


def _import(graph: tf.Graph, meta_graph: MetaGraphDef) -> Exception | None:
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(meta_graph.graph_def, name="")
    except TENSORFLOW_ERRORS as error:
        if left_locks(error):
            never_free(graph)
        return error
    return None


def left_locks(error: Exception) -> bool:
    """Returns whether an error may be a C++ exception that left locks of the graph locked.

    `std::bad_alloc` is one. Failures that TensorFlow checks for are statuses instead, which are an
    `OpError` here, or an error that Python raised while it handled one.
    """
    if isinstance(error, (tf.errors.OpError, AttributeError, KeyError, TypeError, UnicodeError)):
        return False
    return not isinstance(error.__context__, tf.errors.OpError)


def never_free(thing: object) -> None:
    """Prevents a graph or session from being freed: TensorFlow would wait for its locks forever."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def load_error(what: str, error: Exception, text: str) -> ReplayError:
    """Returns the error for a model that cannot be loaded: what failed, the cause, what to do.

    Args:
        what: the step that failed, and the SavedModel.
        error: the error that TensorFlow raised.
        text: what to show of its message.
    """
    cure = "Export the model again, with all its files."
    if "Op type not registered" in message_of(error):
        found = re.search(r"Op type not registered '([^']*)'", message_of(error))
        library = library_of(found[1]) if found else ""
        cure = (
            f"Import {library} before the replay; the stock model server has its ops."
            if library
            else "Import the library that registers the op; the model server must be built with it."
        )
        text = describe_op_error(error).removesuffix(" ...")  # drops advice about TensorFlow 1
    status = status_of(error) if isinstance(error, tf.errors.OpError) else ""
    return ReplayError(f"{what}: {text.rstrip(' .')}. {cure}", status=status)


def _init_op(meta_graph: MetaGraphDef) -> str:
    """Returns the name of the op that fills tables, from where TensorFlow 2 or 1 stores it."""
    if INIT_OP_KEY in meta_graph.signature_def:
        name = str(meta_graph.signature_def[INIT_OP_KEY].outputs[INIT_OP_KEY].name)
        return name.split(":", maxsplit=1)[0]
    for collection in INIT_COLLECTIONS:
        if collection in meta_graph.collection_def:
            nodes = meta_graph.collection_def[collection].node_list.value
            if nodes:
                return str(nodes[0])
    return ""
