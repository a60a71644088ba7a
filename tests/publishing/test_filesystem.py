"""Tests of `keras_warmup.publishing.filesystem`."""

from __future__ import annotations

import errno
import os
import pathlib

import pytest
import tensorflow as tf

from keras_warmup.publishing import filesystem

gfile = tf.io.gfile


def write_files(directory: pathlib.Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)


def test_a_link_to_nothing_exists(tmp_path: pathlib.Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert filesystem.exists(str(tmp_path / "link"))
    assert not filesystem.exists(str(tmp_path / "nowhere"))
    assert not filesystem.exists(str(tmp_path / "link" / "below"))


def test_removing_a_tree_does_not_follow_links(tmp_path: pathlib.Path) -> None:
    write_files(tmp_path, "outside/kept", "tree/file")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    for name in ("tree", "link", "nothing"):
        filesystem.remove_tree(str(tmp_path / name))
    assert os.listdir(tmp_path) == ["outside"]
    assert (tmp_path / "outside" / "kept").exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_is_no_error(
    number: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    filesystem.sync(str(tmp_path))


def test_a_broken_disk_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        filesystem.sync_tree(str(tmp_path))


@pytest.mark.parametrize("has_renameat2", [True, False])
def test_a_directory_is_renamed_to_a_free_path_only(
    has_renameat2: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_renameat2:
        monkeypatch.setattr(filesystem, "libc_renameat2", lambda: None)
    write_files(tmp_path, "new/file", "new2/file")
    filesystem.rename_new(str(tmp_path / "new"), str(tmp_path / "1"))
    (tmp_path / "2").mkdir()  # rename(2) would replace an empty directory
    for taken in ("1", "2"):
        with pytest.raises(FileExistsError):
            filesystem.rename_new(str(tmp_path / "new2"), str(tmp_path / taken))
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "new2"]


def test_a_remote_directory_is_renamed_to_a_free_path_only(tmp_path: pathlib.Path) -> None:
    root = f"ram://{tmp_path.name}"
    for name in ("new/a/file", "taken/file"):
        gfile.makedirs(f"{root}/{name}".rpartition("/")[0])
        with gfile.GFile(f"{root}/{name}", "w") as file:
            file.write(name)
    with pytest.raises(FileExistsError):
        filesystem.rename_new(f"{root}/new", f"{root}/taken")
    filesystem.rename_new(f"{root}/new", f"{root}/1")
    assert gfile.exists(f"{root}/1/a/file") and not gfile.exists(f"{root}/new")


def test_directories_are_exchanged_or_left_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, "one/1", "other/2")
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    exchanged = filesystem.exchange(one, other)
    assert os.listdir(one) == (["2"] if exchanged else ["1"])
    assert not filesystem.exchange("ram://one", "ram://other")
    monkeypatch.setattr(filesystem, "libc_renameat2", lambda: None)
    assert not filesystem.exchange(one, other)


def test_a_directory_that_does_not_exist_is_not_exchanged(tmp_path: pathlib.Path) -> None:
    if filesystem.libc_renameat2() is None:
        pytest.skip("this system cannot exchange directories")
    (tmp_path / "one").mkdir()
    with pytest.raises(FileNotFoundError):
        filesystem.exchange(str(tmp_path / "one"), str(tmp_path / "other"))


@pytest.mark.parametrize("flush", [True, False])
def test_a_file_is_replaced_in_one_step(flush: bool, tmp_path: pathlib.Path) -> None:
    write_files(tmp_path, "new", "target")
    filesystem.replace_file(str(tmp_path / "new"), str(tmp_path / "target"), flush=flush)
    assert os.listdir(tmp_path) == ["target"]
    assert (tmp_path / "target").read_text() == "new"


def test_parents_that_are_made_are_listed(tmp_path: pathlib.Path) -> None:
    created: list[str] = []
    filesystem.make_parents(str(tmp_path / "a" / "b"), created)
    assert created == [str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    filesystem.make_parents(str(tmp_path / "a" / "b"), created)
    assert len(created) == 2


def test_only_an_empty_directory_is_removed(tmp_path: pathlib.Path) -> None:
    write_files(tmp_path, "full/file")
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty", "nothing"):
        filesystem.remove_empty(str(tmp_path / name))
    assert os.listdir(tmp_path) == ["full"]
