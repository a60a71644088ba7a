"""Files of a SavedModel that are safe to open: opening a fifo waits for a writer, and a device never ends."""

from __future__ import annotations

import os

from google.protobuf.message import DecodeError

from keras_warmup._protos import AssetFileDef, MetaGraphDef
from keras_warmup.errors import SignatureError
from keras_warmup.paths import scheme_of, why_not_a_file
from keras_warmup.savedmodel.graph_limits import shown


def read_assets(meta_graph: MetaGraphDef) -> list[AssetFileDef]:
    """Reads which tensors of a meta graph are fed the paths of which files in `assets/`.

    Args:
        meta_graph: the MetaGraphDef; TensorFlow 1 exports name their assets in a collection.

    Raises:
        SignatureError: the collection is damaged.
    """
    if meta_graph.asset_file_def:
        return list(meta_graph.asset_file_def)
    if "saved_model_assets" not in meta_graph.collection_def:  # indexing would add the key
        return []
    assets = []
    for packed in meta_graph.collection_def["saved_model_assets"].any_list.value:
        asset = AssetFileDef()
        try:
            packed.Unpack(asset)
        except DecodeError as error:
            raise SignatureError(
                "Cannot read the assets of the SavedModel: an entry of the collection 'saved_model_assets' is damaged. "
                "Export the model again."
            ) from error
        assets.append(asset)
    return assets


def is_inside_assets(name: str) -> bool:
    """Whether the file name of an asset stays in `assets/`."""
    return (
        bool(name) and not os.path.isabs(name) and ".." not in name.split("/") and "\0" not in name
    )


def check_load_files(export_dir: str, meta_graph: MetaGraphDef) -> None:
    """Checks the files that loading a SavedModel opens: those of its variables, and its assets.

    Args:
        export_dir: version directory of the SavedModel.
        meta_graph: the one that is loaded.

    Raises:
        SignatureError: one of them is no regular file, or an asset's name leads out of `assets/`.
    """
    variables = os.path.join(export_dir, "variables")
    try:
        found = [] if scheme_of(variables) else sorted(os.listdir(variables))
    except OSError:  # a model without variables; where they cannot be read, restoring them says so
        found = []
    paths = [os.path.join(variables, name) for name in found if name.startswith("variables.")]
    for asset in read_assets(meta_graph):
        name = asset.filename
        if not is_inside_assets(name):
            raise SignatureError(
                f"Cannot load SavedModel {export_dir!r}: its asset {shown(name)} is not inside 'assets/', so loading would "
                "read a file of another place. Load such a model only if you trust it; else export it again."
            )
        paths.append(os.path.join(export_dir, "assets", name))
    for path in paths:
        problem = why_not_a_file(path)
        if problem is not None:
            raise SignatureError(
                f"Cannot load SavedModel {export_dir!r}: {path!r} cannot be read: {problem}, expected a file."
            )
