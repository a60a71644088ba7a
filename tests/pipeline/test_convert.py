"""`convert_existing`: a changed SavedModel takes its place, or nothing happens."""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest
import tensorflow as tf

from keras_warmup.errors import OptionsError, ProofError, PublishError, SignatureError
from keras_warmup.pipeline.convert import convert_existing
from keras_warmup.publishing.filesystem import copy_tree, tree_bytes
from tests.builders import predict_log, random_rows, save_function, write_warmup_file


@pytest.fixture
def export_dir(tmp_path: pathlib.Path) -> str:
    path = save_function(
        lambda x: {"y": x * 2.0},
        tmp_path / "1",
        [tf.TensorSpec([None, 4], tf.float32, name="x")],
    )
    write_warmup_file(path, predict_log(x=random_rows(4)))
    (tmp_path / "1" / "assets.extra" / "more").mkdir()
    (tmp_path / "1" / "assets.extra" / "more" / "notes.txt").write_text("kept")
    return path


def copy(source: str, directory: str) -> list[str]:
    """Copies a SavedModel without `assets.extra`, as a change that changes nothing."""
    shutil.copy(f"{source}/saved_model.pb", directory)
    copy_tree(f"{source}/variables", f"{directory}/variables")
    return ["nothing"]


def test_the_result_takes_the_place_of_the_source_with_all_its_extra_assets(
    export_dir: str,
) -> None:
    before = os.stat(export_dir).st_ino
    report = convert_existing(export_dir, None, copy)
    assert os.stat(export_dir).st_ino != before
    assert (report.export_dir, report.source, report.changes) == (
        export_dir,
        export_dir,
        ("nothing",),
    )
    assert report.num_records == 1
    assert report.comparisons["serving_default"].startswith("bit-identical to what a Session")
    assert pathlib.Path(export_dir, "assets.extra/more/notes.txt").read_text() == "kept"
    assert pathlib.Path(export_dir, "fingerprint.pb").exists()
    assert report.bytes_after == tree_bytes(export_dir)
    assert "serving_default" in report.to_dict()["comparisons"]


def test_a_version_without_a_numeric_name_gets_a_hint(
    export_dir: str, tmp_path: pathlib.Path
) -> None:
    report = convert_existing(export_dir, tmp_path / "frozen", copy)
    assert report.export_dir == str(tmp_path / "frozen")
    assert any("frozen" in note for note in report.notes)


def test_a_source_that_is_replaced_meanwhile_is_left(
    export_dir: str, tmp_path: pathlib.Path
) -> None:
    def change(source: str, directory: str) -> list[str]:
        changes = copy(source, directory)
        os.rename(source, tmp_path / "moved")
        shutil.copytree(tmp_path / "moved", source)
        return changes

    with pytest.raises(PublishError, match="another directory took its place meanwhile"):
        convert_existing(export_dir, tmp_path / "2", change)
    assert not (tmp_path / "2").exists()


def test_a_result_with_another_function_is_refused(export_dir: str, tmp_path: pathlib.Path) -> None:
    other = save_function(
        lambda x: {"y": x * 3.0}, tmp_path / "other", [tf.TensorSpec([None, 4], name="x")]
    )
    content = pathlib.Path(export_dir, "saved_model.pb").read_bytes()
    with pytest.raises(ProofError, match="for a predict request of signature 'serving_default'"):
        convert_existing(export_dir, None, lambda _, directory: copy(other, directory))
    assert pathlib.Path(export_dir, "saved_model.pb").read_bytes() == content


def test_paths_that_name_no_version_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionsError, match="name the version to change"):
        convert_existing(tmp_path / "{version}", None, copy)
    with pytest.raises(SignatureError, match="the directory does not exist"):
        convert_existing(tmp_path / "7", None, copy)
    with pytest.raises(SignatureError, match="but no saved_model"):
        convert_existing(tmp_path, None, copy)


def test_a_fifo_among_the_extra_assets_is_refused(export_dir: str) -> None:
    os.mkfifo(f"{export_dir}/assets.extra/pipe")
    with pytest.raises(PublishError, match="it is not a regular file"):
        convert_existing(export_dir, None, copy)
