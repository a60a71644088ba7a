"""Tests of `keras_warmup.savedmodel.files`."""

from __future__ import annotations

import os
import pathlib

import pytest

from keras_warmup._protos import AssetFileDef
from keras_warmup.errors import SignatureError
from keras_warmup.savedmodel.files import check_load_files, read_assets, require_file
from keras_warmup.savedmodel.signatures import read_meta_graph
from tests.trust.hostile_models import HOSTILE, tiny, write


def test_only_a_file_is_accepted(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    require_file(str(tmp_path / "file"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SignatureError) as caught:
        require_file(str(tmp_path / "fifo"))
    assert str(caught.value) == (
        f"Cannot read '{tmp_path}/fifo': it is a fifo, expected a file. Export the model again."
    )


def test_assets_of_tensorflow_1_are_read_from_their_collection() -> None:
    meta_graph = tiny().meta_graphs[0]
    assert read_assets(meta_graph) == []
    assert "saved_model_assets" not in meta_graph.collection_def  # reading must not add it
    asset = AssetFileDef(filename="words")
    meta_graph.collection_def["saved_model_assets"].any_list.value.add().Pack(asset)
    assert read_assets(meta_graph) == [asset]


def test_a_damaged_collection_of_assets_is_refused() -> None:
    meta_graph = tiny().meta_graphs[0]
    packed = meta_graph.collection_def["saved_model_assets"].any_list.value.add()
    packed.Pack(AssetFileDef(filename="words"))
    packed.value = b"\xff"
    with pytest.raises(SignatureError, match="an entry of the collection 'saved_model_assets' is"):
        read_assets(meta_graph)


def load_error(export_dir: pathlib.Path) -> str:
    with pytest.raises(SignatureError) as caught:
        check_load_files(str(export_dir), read_meta_graph(export_dir))
    return str(caught.value).removeprefix(f"Cannot load SavedModel {str(export_dir)!r}: ")


def test_a_load_opens_no_fifo_in_place_of_variables(tmp_path: pathlib.Path) -> None:
    HOSTILE["variables are fifos"](tmp_path / "1")
    path = str(tmp_path / "1" / "variables" / "variables.data-00000-of-00001")
    assert load_error(tmp_path / "1") == f"{path!r} cannot be read: it is a fifo, expected a file."


def test_a_load_opens_no_fifo_in_place_of_an_asset(tmp_path: pathlib.Path) -> None:
    HOSTILE["an asset is a fifo"](tmp_path / "1")
    path = str(tmp_path / "1" / "assets" / "vocabulary")
    assert load_error(tmp_path / "1") == f"{path!r} cannot be read: it is a fifo, expected a file."


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "a\0b"])
def test_an_asset_stays_in_assets(name: str, tmp_path: pathlib.Path) -> None:
    saved_model = tiny()
    asset = saved_model.meta_graphs[0].asset_file_def.add(filename=name)
    asset.tensor_info.name = "x:0"
    write(tmp_path / "1", saved_model)
    assert load_error(tmp_path / "1") == (
        f"its asset {name!r} is not inside 'assets/', so loading would read a file outside of the "
        "model. Load such a model only if you trust it, or export it again."
    )


def test_good_models_are_loaded(tmp_path: pathlib.Path, saved_models: pathlib.Path) -> None:
    write(tmp_path / "1", tiny())
    for export_dir in (
        tmp_path / "1",
        *(path.parent for path in saved_models.glob("*/1/saved_model.pb")),
    ):
        check_load_files(str(export_dir), read_meta_graph(export_dir))
