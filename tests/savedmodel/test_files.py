"""What is looked at before it is opened."""

from __future__ import annotations

import os

import pytest

from keras_warmup.data.files import read_file
from keras_warmup.errors import DataError, OptionsError, SignatureError
from keras_warmup.paths import why_not_a_file
from keras_warmup.planning.batching_parameters import read_batching_parameters
from keras_warmup.records.warmup_file import read_records
from keras_warmup.savedmodel.files import check_load_files
from keras_warmup.savedmodel.signatures import read_meta_graph
from tests.trust.hostile_models import HOSTILE, tiny, write


def fifo(path):
    os.mkfifo(path)
    return "it is a fifo"


def directory(path):
    path.mkdir()
    return "it is a directory"


def device(path):
    path.symlink_to("/dev/zero")
    return "it is a character device"


def file(path):
    path.touch()


def link(path):
    (path.parent / "target").touch()
    path.symlink_to("target")


def absent(path):
    pass


@pytest.mark.parametrize("make", [fifo, directory, device, file, link, absent])
def test_only_files_may_be_opened(make, tmp_path):
    reason = make(tmp_path / "x")
    assert why_not_a_file(str(tmp_path / "x")) == reason


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a\udcff", "its name is not UTF-8, which TensorFlow cannot open"),
        ("a\0b", "its name holds a NUL character"),
        ("ram://keras_warmup_absent", None),
    ],
)
def test_names_that_cannot_be_opened_are_told(path, reason):
    assert why_not_a_file(path) == reason


@pytest.mark.parametrize(
    "read", [read_meta_graph, read_records, read_file], ids=lambda read: read.__name__
)
def test_path_that_is_not_utf8_is_refused(read):
    with pytest.raises(OptionsError, match="is not UTF-8"):
        read("a\udcff")


@pytest.mark.parametrize("name", ["rows.npz", "rows.tfrecord"])
def test_data_is_not_read_from_a_fifo(name, tmp_path):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert (
        str(caught.value) == f"Cannot read data from {str(path)!r}: it is a fifo, expected a file."
    )


def test_batching_parameters_are_not_read_from_a_fifo(tmp_path):
    path = tmp_path / "parameters"
    os.mkfifo(path)
    with pytest.raises(OptionsError) as caught:
        read_batching_parameters(path)
    assert (
        str(caught.value)
        == f"batching_parameters: cannot read {str(path)!r}: it is a fifo, expected a file."
    )


def load_error(export_dir) -> str:
    with pytest.raises(SignatureError) as caught:
        check_load_files(str(export_dir), read_meta_graph(export_dir))
    return str(caught.value).removeprefix(f"Cannot load SavedModel {str(export_dir)!r}: ")


def test_a_load_opens_no_fifo_in_place_of_variables(tmp_path):
    HOSTILE["variables are fifos"](tmp_path / "1")
    path = str(tmp_path / "1" / "variables" / "variables.data-00000-of-00001")
    assert load_error(tmp_path / "1") == f"{path!r} cannot be read: it is a fifo, expected a file."


def test_a_load_opens_no_fifo_in_place_of_an_asset(tmp_path):
    HOSTILE["an asset is a fifo"](tmp_path / "1")
    path = str(tmp_path / "1" / "assets" / "vocabulary")
    assert load_error(tmp_path / "1") == f"{path!r} cannot be read: it is a fifo, expected a file."


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "a\0b"])
def test_an_asset_stays_in_assets(name, tmp_path):
    saved_model = tiny()
    asset = saved_model.meta_graphs[0].asset_file_def.add(filename=name)
    asset.tensor_info.name = "x:0"
    write(tmp_path / "1", saved_model)
    assert load_error(tmp_path / "1").startswith(f"its asset {name!r} is not inside 'assets/'")


def test_good_models_are_loaded(tmp_path, saved_models):
    write(tmp_path / "1", tiny())
    for export_dir in (
        tmp_path / "1",
        *(path.parent for path in saved_models.glob("*/1/saved_model.pb")),
    ):
        check_load_files(str(export_dir), read_meta_graph(export_dir))
