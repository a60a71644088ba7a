"""Freezes a SavedModel: a serving-only copy whose variables are constants.

A server restores each variable by itself and optimizes a graph that it does not know the values of.
With constants it restores nothing, and folds into them what does not depend on a request. The
conversion is TensorFlow's own, of the graph that a Session loaded, so that all signatures use one
set of constants, and so is the optimization of the result. (`convert_variables_to_constants_v2`
takes one function at a time and loses handles of tables.)

What may not become a constant stays a variable: see `savedmodel/variable_uses.py`. It is restored
from a checkpoint of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from google.protobuf.message import Error as ProtobufError

from keras_warmup._protos import (
    GraphDef,
    MetaGraphDef,
    NodeDef,
    SavedModel,
    VariableDef,
    registered_op,
)
from keras_warmup.errors import ExportError, OptionsError
from keras_warmup.op_errors import text_of
from keras_warmup.options import DEFAULT_FREEZE_MAX_BYTES, MAX_FREEZE_BYTES, is_integer
from keras_warmup.paths import explained, join
from keras_warmup.pipeline.convert import convert_existing, find_source
from keras_warmup.pipeline.proof import INTERMEDIATE_ROUNDING
from keras_warmup.pipeline.warm import require_restorable
from keras_warmup.publishing.filesystem import copy_tree, exists, remove_tree
from keras_warmup.report import ConversionReport, FrozenVariables
from keras_warmup.savedmodel.graph import ASSIGNS, VARIABLES, ModelGraph, VariableIdentity
from keras_warmup.savedmodel.graph_bodies import attribute, identity_of, input_of
from keras_warmup.savedmodel.graph_limits import function_attributes, functions_in
from keras_warmup.savedmodel.optimized_graph import optimize_graph
from keras_warmup.savedmodel.rewriting import share_tensors
from keras_warmup.savedmodel.served_graph import (
    copy_restoring_part,
    copy_served_part,
    drop_empty_init_op,
    keep_equal_alternatives,
)
from keras_warmup.savedmodel.signatures import MAX_PROTO_BYTES, read_meta_graph, read_signatures
from keras_warmup.savedmodel.twins import find_twins
from keras_warmup.savedmodel.variable_uses import (
    VariableUse,
    find_variable_uses,
    split_gathers,
    variables_in_functions,
)
from keras_warmup.serving.session import load_session, with_type
from keras_warmup.serving.tensorflow_log import no_status_log

LOST = (
    "The model is frozen, for serving only: what tf.saved_model.load returns has .signatures, but "
    "no .serve or other methods, and no variables to train or to read but those that stayed."
)
_LEFT_OUT = (
    "nodes that only save, functions that only a loader calls, and debug information are left out; "
    "functions are inlined, and what does not depend on a request is computed"
)
# What the protos around the constants may take: node names, dtypes and shapes.
_PROTO_MARGIN = 16 * 2**20
_MAX_LISTED = 3
_IMPORTS = frozenset({"LookupTableImportV2"})
# Ops with state that restoring runs, besides those that make a variable or table.
_RESTORING = frozenset(
    {"RestoreV2", "Restore", "RestoreSlice", "AssignVariableOp", "Assign", "ReadVariableOp"}
    | {"LookupTableImportV2", "StatefulPartitionedCall", "VarIsInitializedOp", "If", "Assert"}
)
_TABLES = frozenset(
    {"HashTableV2", "MutableHashTableV2", "MutableHashTableOfTensorsV2", "MutableDenseHashTableV2"}
)
_HANDLE_TYPES = frozenset({tf.resource.as_datatype_enum, tf.variant.as_datatype_enum})
# The errors that TensorFlow's conversion, which is written in Python, runs into.
_CONVERSION_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    ProtobufError,
    RuntimeError,
    TypeError,
    ValueError,
    tf.errors.OpError,
)


@dataclasses.dataclass(frozen=True)
class FreezeResult:
    """What freezing a SavedModel did.

    Attributes:
        frozen: which variables are constants now.
        twins: signature_key -> key of the twin whose tensors it uses now.
        structures: signature_key -> structure of its arguments, which the frozen model does not
            record.
    """

    frozen: FrozenVariables
    twins: Mapping[str, str]
    structures: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _RestoredState:
    """What the restore op of a SavedModel fills.

    Attributes:
        variables: the variables.
        tables: names of the nodes of the tables.
    """

    variables: frozenset[VariableIdentity]
    tables: frozenset[str]


def freeze_saved_model(
    source: str,
    directory: str,
    *,
    max_bytes: int = DEFAULT_FREEZE_MAX_BYTES,
    share_twins: bool = True,
) -> FreezeResult:
    """Writes a SavedModel with constants in place of variables.

    Signature keys, the names of inputs and outputs, their tensors besides those of twins, method
    names, tables and assets stay. The warmup file is neither read nor written.

    Args:
        source: version directory of the SavedModel.
        directory: where to write `saved_model.pb`, `variables/` and `assets/`; may be `source`,
            where no server watches it. A `fingerprint.pb` there is removed: the caller computes it
            (`rewriting.renew_fingerprint`).
        max_bytes: largest size of the constants, bytes. The largest variables stay variables until
            the others fit.
        share_twins: whether signatures that are the same function use the same tensors, and so one
            executor. Defaults to `True`.

    Returns:
        The variables that stayed, with the reasons, and what the frozen model does not record.

    Raises:
        SignatureError: the SavedModel cannot be read.
        ReplayError: it cannot be loaded into a Session.
        ExportError: it has variables, and none of them can become a constant; or TensorFlow's
            conversion fails.
        PublishError: a file cannot be written.
    """
    meta_graph = read_meta_graph(source)
    signatures = read_signatures(meta_graph)
    graph = ModelGraph(meta_graph)
    require_restorable(graph, signatures, source)
    restored = _find_restored(graph, source)
    saved_model = SavedModel(saved_model_schema_version=1)
    served = saved_model.meta_graphs.add()
    copy_served_part(meta_graph, served)
    drop_empty_init_op(served)
    twins = find_twins(served, signatures) if share_twins else {}
    share_tensors(served, twins)
    served_graph = ModelGraph(served)
    uses = find_variable_uses(served_graph)
    _require_handles(served_graph, uses, restored, source)
    sizes: dict[str, int] = {}
    kept: dict[str, str] = {}
    state = _State(served, uses, restored)
    if uses or state.tables:
        restoring = MetaGraphDef()
        handles = [*uses, *(node.name for node in state.tables)]
        copy_restoring_part(meta_graph, handles, restoring)
        with no_status_log():
            session = load_session(source, restoring, only_restore=True)
        with contextlib.closing(session):
            sizes.update((name, _size_of(session, use.node)) for name, use in uses.items())
            room = MAX_PROTO_BYTES - _PROTO_MARGIN - served.ByteSize()
            kept = _choose_kept(uses, sizes, min(max_bytes, room))
            for name in kept:
                if identity_of(uses[name].node) not in restored.variables:
                    kept[name] = "the init op fills it"
            state.keep(kept)
            if uses:
                converted = _convert(session, served_graph, uses, kept, source)
            with explained(directory, "write the frozen variables to"):
                _write_variables(session, directory, state)
        # The variables in the Session are freed before the constants are copied; and the constants
        # are copied by way of their bytes, as CopyFrom would hold them three times.
        del session, meta_graph, graph, served_graph
        if uses:
            content = converted.SerializeToString()
            del converted
            served.graph_def.ParseFromString(content)
            del content
            keep_equal_alternatives(served.graph_def)
    else:
        with explained(directory, "write the frozen variables to"):
            _remove(join(directory, "variables"))
    with no_status_log():
        optimize_graph(served, state.nodes())
    state.add_restore_op()
    with explained(directory, "write the frozen model to"):
        _write(source, directory, saved_model)
    constants = sizes.keys() - kept.keys()
    return FreezeResult(
        FrozenVariables(
            constants=len(constants),
            constant_bytes=sum(sizes[name] for name in constants),
            variables=kept,
            variable_bytes=sum(sizes[name] for name in kept),
        ),
        twins,
        {one.key: one.structure for one in signatures if one.structure is not None},
    )


def freeze_existing(
    export_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    *,
    max_bytes: int,
    refuse_unsafe_ops: bool,
) -> ConversionReport:
    """Freezes a SavedModel that exists, as `convert_existing` changes one.

    Args:
        export_dir: version directory of the SavedModel.
        output: version directory to publish to; `None` replaces the SavedModel.
        max_bytes: as `freeze_saved_model` takes it.
        refuse_unsafe_ops: as `convert_existing` takes it.

    Returns:
        The report.

    Raises:
        WarmupError: a subclass of it for each kind of failure; the SavedModel is unchanged.
    """
    if not is_integer(max_bytes, at_least=1) or max_bytes > MAX_FREEZE_BYTES:
        raise OptionsError(
            f"max_bytes must be 1 to {MAX_FREEZE_BYTES} (a SavedModel proto ends at 2 GiB), got "
            f"{max_bytes!r}."
        )
    found = find_source(export_dir)
    results: list[FrozenVariables] = []

    def change(source: str, directory: str) -> list[str]:
        frozen = freeze_saved_model(source, directory, max_bytes=max_bytes).frozen
        results.append(frozen)
        return [*frozen.lines(), _LEFT_OUT]

    report = convert_existing(
        found.path,
        output,
        change,
        rounding=_rounding_of(read_meta_graph(found.path)),
        refuse_unsafe_ops=refuse_unsafe_ops,
        found=found,
    )
    return dataclasses.replace(report, frozen=results[0], notes=(*report.notes, LOST))


def _rounding_of(meta_graph: MetaGraphDef) -> float:
    """Returns the rounding that the dtypes of a graph allow, as `proof.same_values` takes it."""
    graph_def = meta_graph.graph_def
    found = {
        number
        for nodes in (graph_def.node, *(one.node_def for one in graph_def.library.function))
        for node in nodes
        for value in node.attr.values()
        for number in (value.type, *value.list.type)
    }
    return max(
        (
            rounding
            for name, rounding in INTERMEDIATE_ROUNDING.items()
            if tf.dtypes.as_dtype(name).as_datatype_enum in found
        ),
        default=0.0,
    )


def _find_restored(graph: ModelGraph, source: str) -> _RestoredState:
    """Finds what the restore op fills, by the ops that do it.

    Raises:
        ExportError: it fills something else than variables and tables.
    """
    ops = graph.ops_run_by(graph.restore_nodes)
    others = sorted(op for op in ops - _RESTORING - VARIABLES - _TABLES if _has_state(op))
    if others:
        raise ExportError(
            f"Cannot freeze SavedModel {source!r}: its restore op runs {', '.join(others)}, which "
            "restores something else than variables and lookup tables. Serve it as it is."
        )
    variables, tables = set(), set()
    for frame, node in graph.nodes_run_by(graph.restore_nodes, ASSIGNS | _IMPORTS):
        origin = graph.origin(frame, input_of(node, 0))
        if origin is None:
            continue
        where, handle = origin
        if handle.op in VARIABLES:
            variables.add(identity_of(handle))
        elif where.caller is None:
            tables.add(handle.name)
    return _RestoredState(frozenset(variables), frozenset(tables))


def _has_state(op: str) -> bool:
    definition = registered_op(op)
    return definition is not None and bool(definition.is_stateful)


def _require_handles(
    graph: ModelGraph, uses: Mapping[str, VariableUse], restored: _RestoredState, source: str
) -> None:
    """Raises an `ExportError` for restored variables of which only a function has the handle."""
    known = {identity_of(use.node) for use in uses.values()}
    for function, node in variables_in_functions(graph):
        if identity_of(node) in restored.variables - known:
            raise ExportError(
                f"Cannot freeze SavedModel {source!r}: function {function!r} holds the variable "
                f"{node.name!r}, which is not in the main graph. Serve it as it is."
            )


def _reader_of(session: Any, node: NodeDef) -> Any:
    """Returns the tensor with the value of a variable, by the name that the conversion reads.

    Raises:
        ExportError: another node has the name.
    """
    graph = session.graph
    if node.op != "VarHandleOp":
        return graph.get_tensor_by_name(f"{node.name}:0")
    name = f"{node.name}/Read/ReadVariableOp"
    try:
        operation = graph.get_operation_by_name(name)
    except KeyError:
        with graph.as_default():
            return tf.raw_ops.ReadVariableOp(
                resource=graph.get_tensor_by_name(f"{node.name}:0"),
                dtype=node.attr["dtype"].type,
                name=f"{name}/",  # the slash keeps the name as it is
            )
    if operation.type != "ReadVariableOp" or operation.inputs[0].op.name != node.name:
        raise ExportError(
            f"Cannot freeze the variable {node.name!r}: TensorFlow's conversion reads it as "
            f"{name!r}, which is another node. Serve the model as it is."
        )
    return operation.outputs[0]


def _size_of(session: Any, node: NodeDef) -> int:
    """Returns the bytes of a variable, of its value where the graph does not tell."""
    dtype = tf.dtypes.as_dtype(node.attr["dtype"].type)
    shape = tf.TensorShape(node.attr["shape"].shape)
    if shape.is_fully_defined() and dtype != tf.string:
        return int(shape.num_elements() * dtype.size)
    try:
        value = session.run(_reader_of(session, node))
    except tf.errors.FailedPreconditionError:  # the init op, which did not run, fills it
        return 0
    if dtype == tf.string:
        return sum(map(len, value.reshape(-1).tolist()))
    return int(value.nbytes)


def _choose_kept(
    uses: Mapping[str, VariableUse], sizes: Mapping[str, int], max_bytes: int
) -> dict[str, str]:
    """Returns the variables that must stay variables -> the reason.

    Groups of variables are kept by their size, the largest first, until the others fit.
    """
    kept = {name: use.obstacle for name, use in uses.items() if use.obstacle}
    groups: dict[int, list[str]] = {}
    for name, use in uses.items():
        if name not in kept:
            groups.setdefault(use.group, []).append(name)
    total = sum(sizes[name] for names in groups.values() for name in names)
    for names in sorted(
        groups.values(), key=lambda names: sum(sizes[name] for name in names), reverse=True
    ):
        if total <= max_bytes:
            break
        for name in names:
            kept[name] = f"the constants would exceed {max_bytes} bytes"
            total -= sizes[name]
    return kept


def _convert(
    session: Any,
    graph: ModelGraph,
    uses: Mapping[str, VariableUse],
    kept: Mapping[str, str],
    source: str,
) -> GraphDef:
    """Returns the graph with constants, as TensorFlow converts it.

    Raises:
        ExportError: no variable can become a constant; TensorFlow's conversion fails, or leaves a
            variable.
    """
    constants = {name: use for name, use in uses.items() if name not in kept}
    if not constants:
        shown = "; ".join(f"{name!r}: {why}" for name, why in list(kept.items())[:_MAX_LISTED])
        more = "; ..." if len(kept) > _MAX_LISTED else ""
        raise ExportError(
            f"Cannot freeze SavedModel {source!r}: none of its {len(kept)} variables can become a "
            f"constant ({shown}{more}). Leave out freeze; where the size is the reason, raise "
            "freeze_max_bytes."
        )
    split_gathers(graph, constants)
    graph_def = graph.meta_graph.graph_def
    names = [function.signature.name for function in graph_def.library.function]
    problem = ""
    for use in constants.values():
        _reader_of(session, use.node)
    try:
        with _no_deprecation_warning(), no_status_log():
            converted = tf.compat.v1.graph_util.convert_variables_to_constants(
                session,
                graph_def,
                [node.name for node in graph_def.node],
                variable_names_blacklist=list(kept),
            )
    except _CONVERSION_ERRORS as error:
        # Outside of the except block: a chained error would be printed with all its text.
        problem = with_type(error, text_of(error))
    if problem:
        raise ExportError(
            f"Cannot freeze SavedModel {source!r}: TensorFlow's convert_variables_to_constants "
            f"failed: {problem.rstrip('.')}. Serve the model as it is."
        )
    left = [node for node in converted.node if node.name in constants and node.op != "Const"]
    if left:
        raise ExportError(
            f"Cannot freeze SavedModel {source!r}: TensorFlow's convert_variables_to_constants "
            f"left {len(left)} variables as they were (the first is {left[0].name!r}, op "
            f"{left[0].op}). Serve the model as it is."
        )
    _complete(converted, names)
    return converted


def _complete(graph_def: GraphDef, old_names: Sequence[str]) -> None:
    """Corrects what the conversion leaves behind.

    - It renames functions, but not in a call that it met before it changed the function.
    - It renames the output of what was a `ReadVariableOp` where nodes read it, but not where the
      function returns it.
    - It leaves the description of a handle at arguments that are values now.

    Args:
        graph_def: the converted graph, which is changed.
        old_names: names of its functions before the conversion, in the same order.
    """
    library = graph_def.library
    pairs = zip(old_names, library.function, strict=True)
    renamed = {old: function.signature.name for old, function in pairs}
    for nodes in (graph_def.node, *(function.node_def for function in library.function)):
        for node in nodes:
            for name in function_attributes(node.op) or ():
                for called in functions_in(attribute(node, name)):
                    called.name = renamed.get(called.name, called.name)
    for gradient in library.gradient:
        for name in ("function_name", "gradient_func"):
            old = str(getattr(gradient, name))
            setattr(gradient, name, renamed.get(old, old))
    for function in library.function:
        values = {node.name for node in function.node_def if node.op == "Identity"}
        for name, tensor in list(function.ret.items()):
            source, _, output = tensor.partition(":")
            if output == "value:0" and source in values:
                function.ret[name] = f"{source}:output:0"
        for index, argument in enumerate(function.signature.input_arg):
            if _forget_handle(argument) and index in function.resource_arg_unique_id:
                del function.resource_arg_unique_id[index]
        for argument in function.signature.output_arg:
            _forget_handle(argument)


def _forget_handle(argument: Any) -> bool:
    """Removes the description of a handle from an argument that is none; returns whether so."""
    if argument.type in _HANDLE_TYPES:
        return False
    argument.ClearField("handle_data")
    argument.ClearField("experimental_full_type")
    return True


@contextlib.contextmanager
def _no_deprecation_warning() -> Iterator[None]:
    """Drops TensorFlow's warnings that its conversion is of TensorFlow 1: there is no other one."""
    logger = tf.get_logger()

    def is_other(record: logging.LogRecord) -> bool:
        return "is deprecated" not in str(record.msg)

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


class _State:
    """The variables and tables that a frozen model restores, and their restore op.

    Args:
        meta_graph: the frozen model; the restore op is added to it.
        names: names of the nodes of its variables.
        restored: what the restore op of the model fills.
    """

    def __init__(
        self, meta_graph: MetaGraphDef, names: Collection[str], restored: _RestoredState
    ) -> None:
        self._meta_graph = meta_graph
        nodes = meta_graph.graph_def.node
        # Copies: the graph is replaced by the converted one.
        self.variables = [
            _copy(node)
            for node in nodes
            if node.name in names and identity_of(node) in restored.variables
        ]
        self.tables = [_copy(node) for node in nodes if node.name in restored.tables]

    def keep(self, names: Collection[str]) -> None:
        """Leaves out the variables that become constants."""
        self.variables = [node for node in self.variables if node.name in names]

    def nodes(self) -> list[str]:
        """Returns the names of the nodes of the variables and tables."""
        return [node.name for node in (*self.variables, *self.tables)]

    def tensors(self, session: Any) -> dict[str, Any]:
        """Returns name in the checkpoint -> tensor with the value, in the order of `dtypes`."""
        tensors = {node.name: _reader_of(session, node) for node in self.variables}
        with session.graph.as_default():
            for node in self.tables:
                tensors[f"{node.name}/keys"], tensors[f"{node.name}/values"] = (
                    tf.raw_ops.LookupTableExportV2(
                        table_handle=session.graph.get_tensor_by_name(f"{node.name}:0"),
                        Tkeys=node.attr["key_dtype"].type,
                        Tvalues=node.attr["value_dtype"].type,
                    )
                )
        return tensors

    def add_restore_op(self) -> None:
        """Adds the nodes that restore the checkpoint of `tensors`, and the SaverDef."""
        entries: dict[str, int] = {node.name: node.attr["dtype"].type for node in self.variables}
        for node in self.tables:
            entries[f"{node.name}/keys"] = node.attr["key_dtype"].type
            entries[f"{node.name}/values"] = node.attr["value_dtype"].type
        if not entries:
            return
        nodes = self._meta_graph.graph_def.node
        names = {node.name for node in nodes}
        scope = "restore_variables"
        while any(name == scope or name.startswith(f"{scope}/") for name in names):
            scope += "_1"
        filename = nodes.add(name=f"{scope}/filename", op="Placeholder")
        filename.attr["dtype"].type = tf.string.as_datatype_enum
        filename.attr["shape"].shape.SetInParent()
        _add_strings(nodes, f"{scope}/names", entries)
        _add_strings(nodes, f"{scope}/slices", [""] * len(entries))
        restore = nodes.add(
            name=f"{scope}/RestoreV2",
            op="RestoreV2",
            input=[filename.name, f"{scope}/names", f"{scope}/slices"],
        )
        restore.attr["dtypes"].list.type.extend(entries.values())
        done = nodes.add(name=f"{scope}/done", op="NoOp")
        for index, node in enumerate(self.variables):
            assign = nodes.add(
                name=f"{scope}/assign_{index}", input=[node.name, f"{restore.name}:{index}"]
            )
            if node.op == "VarHandleOp":
                assign.op = "AssignVariableOp"
                assign.attr["dtype"].type = node.attr["dtype"].type
                self._add_definition(node, assign.name, names)
            else:
                assign.op = "Assign"
                assign.attr["T"].type = node.attr["dtype"].type
                assign.attr["validate_shape"].b = False
            done.input.append(f"^{assign.name}")
        for index, node in enumerate(self.tables):
            first = len(self.variables) + 2 * index
            fill = nodes.add(
                name=f"{scope}/import_{index}",
                op="LookupTableImportV2",
                input=[node.name, f"{restore.name}:{first}", f"{restore.name}:{first + 1}"],
            )
            fill.attr["Tin"].type = node.attr["key_dtype"].type
            fill.attr["Tout"].type = node.attr["value_dtype"].type
            done.input.append(f"^{fill.name}")
        saver = self._meta_graph.saver_def
        saver.filename_tensor_name = f"{filename.name}:0"
        # Savers must name one; a server saves nothing.
        saver.save_tensor_name = saver.filename_tensor_name
        saver.restore_op_name = done.name
        saver.version = saver.V2

    def _add_definition(self, node: NodeDef, assign: str, names: Collection[str]) -> None:
        """Adds a variable to the collection from which `tf.saved_model.load` makes its objects."""
        definition = VariableDef(
            variable_name=f"{node.name}:0",
            initializer_name=assign,
            snapshot_name=f"{node.name}/Read/ReadVariableOp:0",
            is_resource=True,
        )
        if f"{node.name}/Read/ReadVariableOp" not in names:
            reader = self._meta_graph.graph_def.node.add(
                name=f"{node.name}/Read/ReadVariableOp", op="ReadVariableOp", input=[node.name]
            )
            reader.attr["dtype"].type = node.attr["dtype"].type
        packed = definition.SerializeToString(deterministic=True)
        self._meta_graph.collection_def["variables"].bytes_list.value.append(packed)


def _copy(node: NodeDef) -> NodeDef:
    copied = NodeDef()
    copied.CopyFrom(node)
    return copied


def _add_strings(nodes: Any, name: str, values: Iterable[str]) -> None:
    constant = nodes.add(name=name, op="Const")
    constant.attr["dtype"].type = tf.string.as_datatype_enum
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(list(values), tf.string))


def _write_variables(session: Any, directory: str, state: _State) -> None:
    """Writes the checkpoint of the state; the variables of a source were read into the Session."""
    variables = join(directory, "variables")
    _remove(variables)
    tensors = state.tensors(session)
    if not tensors:
        return
    tf.io.gfile.makedirs(variables)
    with session.graph.as_default():
        save = tf.raw_ops.SaveV2(
            prefix=join(variables, "variables"),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
    with no_status_log():
        session.run(save)


def _write(source: str, directory: str, saved_model: SavedModel) -> None:
    """Writes `saved_model.pb` and copies the assets; removes what is out of date."""
    for name in ("debug", "saved_model.pbtxt", "fingerprint.pb"):
        _remove(join(directory, name))
    with tf.io.gfile.GFile(join(directory, "saved_model.pb"), "wb") as file:
        file.write(saved_model.SerializeToString(deterministic=True))
    if directory != source and exists(join(source, "assets")):
        copy_tree(join(source, "assets"), join(directory, "assets"))


def _remove(path: str) -> None:
    if exists(path):
        remove_tree(path)
