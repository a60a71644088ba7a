"""Checks the files that loading a SavedModel opens.

Opening a fifo waits for a writer, and reading a device may never end.
"""

from __future__ import annotations

import os

from google.protobuf.message import DecodeError

from keras_warmup._protos import AssetFileDef, MetaGraphDef
from keras_warmup.errors import SignatureError
from keras_warmup.paths import scheme_of, why_not_a_file
from keras_warmup.savedmodel.graph_limits import shown


def require_file(path: str) -> None:
    """Raises a `SignatureError` where a path must not be opened as a file."""
    problem = why_not_a_file(path)
    if problem is not None:
        raise SignatureError(
            f"Cannot read {path!r}: {problem}, expected a file. Export the model again."
        )


def read_assets(meta_graph: MetaGraphDef) -> list[AssetFileDef]:
    """Returns the assets of a meta graph: the file in `assets/`, and the tensor for its path.

    Args:
        meta_graph: the MetaGraphDef. TensorFlow 1 exports list their assets in a collection.

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
                "Cannot read the assets of the SavedModel: an entry of the collection "
                "'saved_model_assets' is damaged. Export the model again."
            ) from error
        assets.append(asset)
    return assets


def is_inside_assets(name: str) -> bool:
    """Returns whether the file name of an asset stays in `assets/`."""
    return (
        bool(name) and not os.path.isabs(name) and ".." not in name.split("/") and "\0" not in name
    )


def check_load_files(export_dir: str, meta_graph: MetaGraphDef) -> None:
    """Checks the files of the variables and the assets of a SavedModel.

    Args:
        export_dir: version directory of the SavedModel.
        meta_graph: the MetaGraphDef that is loaded.

    Raises:
        SignatureError: one of them is not a regular file, or the name of an asset leads out of
            `assets/`.
    """
    variables = os.path.join(export_dir, "variables")
    try:
        found = [] if scheme_of(variables) else sorted(os.listdir(variables))
    except OSError:  # no variables; restoring reports those that cannot be read
        found = []
    paths = [os.path.join(variables, name) for name in found if name.startswith("variables.")]
    for asset in read_assets(meta_graph):
        name = asset.filename
        if not is_inside_assets(name):
            raise SignatureError(
                f"Cannot load SavedModel {export_dir!r}: its asset {shown(name)} is not inside "
                "'assets/', so loading would read a file outside of the model. Load such a model "
                "only if you trust it, or export it again."
            )
        paths.append(os.path.join(export_dir, "assets", name))
    for path in paths:
        problem = why_not_a_file(path)
        if problem is not None:
            raise SignatureError(
                f"Cannot load SavedModel {export_dir!r}: {path!r} cannot be read: {problem}, "
                "expected a file."
            )
