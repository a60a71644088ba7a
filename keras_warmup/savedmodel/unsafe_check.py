"""Says which unsafe ops a SavedModel has, before it is run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from keras_warmup.errors import UnsafeOpsError
from keras_warmup.savedmodel.graph import ModelGraph
from keras_warmup.savedmodel.signatures import Signature, read_meta_graph, read_signatures
from keras_warmup.savedmodel.unsafe_ops import find_unsafe_ops, render_unsafe_ops


def describe_unsafe_ops(
    export_dir: str, graph: ModelGraph, signatures: Sequence[Signature], *, refuse: bool = False
) -> str:
    """Returns the warning about the unsafe ops of a SavedModel; empty where it has none.

    Args:
        export_dir: the SavedModel, for the text.
        graph: its graph.
        signatures: those that may be run.
        refuse: raise instead.

    Raises:
        UnsafeOpsError: it has unsafe ops, and `refuse` is set.
        SignatureError: the graph holds more calls than can be followed.
    """
    ops = find_unsafe_ops(graph, signatures)
    if not ops:
        return ""
    if refuse:
        raise UnsafeOpsError(
            f"Refused to run SavedModel {export_dir!r}: nothing was run. {render_unsafe_ops(ops)} To run it all the same, "
            "leave out refuse_unsafe_ops (--refuse-unsafe-ops)."
        )
    return f"SavedModel {export_dir!r} will be run. {render_unsafe_ops(ops)}"


def check_saved_model(export_dir: str, *, refuse: bool) -> None:
    """Warns of the unsafe ops of a SavedModel that is about to be run.

    Args:
        export_dir: version directory of a SavedModel.
        refuse: raise instead.

    Raises:
        UnsafeOpsError: it has unsafe ops, and `refuse` is set.
        SignatureError: there is no SavedModel, or it is damaged.
    """
    meta_graph = read_meta_graph(export_dir)
    text = describe_unsafe_ops(export_dir, ModelGraph(meta_graph), read_signatures(meta_graph), refuse=refuse)
    if text:
        warnings.warn(text, stacklevel=3)
