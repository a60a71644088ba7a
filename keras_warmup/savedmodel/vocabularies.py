"""Finds the vocabularies of lookup tables in a SavedModel."""

from __future__ import annotations

import tensorflow as tf

from keras_warmup._protos import MetaGraphDef
from keras_warmup.paths import join
from keras_warmup.savedmodel.files import is_inside_assets, read_assets

_MAX_ASSET_BYTES = 64 * 2**20


def vocabularies_in(meta_graph: MetaGraphDef, export_dir: str) -> list[list[bytes]]:
    """Returns the lists of strings in a SavedModel that may be vocabularies.

    They are its string constants of rank 1, and the lines of its assets.

    Args:
        meta_graph: the meta graph that a server loads.
        export_dir: the SavedModel.

    Returns:
        Lists of two strings or more, without empty ones.
    """
    graph_def = meta_graph.graph_def
    found: list[list[bytes]] = []
    for nodes in (graph_def.node, *(one.node_def for one in graph_def.library.function)):
        for node in nodes:
            if node.op == "Const" and node.attr["dtype"].type == tf.string.as_datatype_enum:
                tensor = node.attr["value"].tensor
                if len(tensor.tensor_shape.dim) == 1:
                    found.append(list(tensor.string_val))
    for asset in read_assets(meta_graph):
        path = join(export_dir, f"assets/{asset.filename}")
        if not is_inside_assets(asset.filename):
            continue
        try:
            if tf.io.gfile.stat(path).length <= _MAX_ASSET_BYTES:
                with tf.io.gfile.GFile(path, "rb") as file:
                    found.append(file.read().splitlines())
        except tf.errors.OpError:
            continue  # loading the model will tell
    words = [[word for word in one if word] for one in found]
    return [one for one in words if len(one) > 1]
