"""Tests of `keras_warmup.publishing.publish`."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tensorflow as tf

from keras_warmup.errors import PublishError
from keras_warmup.publishing import filesystem, publish, workspace
from keras_warmup.publishing.versions import resolve_version

gfile = tf.io.gfile


class BuildError(Exception):
    """A failure of the block that builds a directory."""


def build(directory: str | os.PathLike[str], text: str = "new", *, warmup: bool = True) -> None:
    """Writes files with the names of those of a SavedModel."""
    files = ["saved_model.pb", "variables/variables.index", "fingerprint.pb"]
    for name in files + (["assets.extra/tf_serving_warmup_requests"] if warmup else []):
        path = f"{os.fspath(directory)}/{name}"
        gfile.makedirs(path.rpartition("/")[0])
        with gfile.GFile(path, "w") as file:
            file.write(text)


def read(path: str | os.PathLike[str]) -> str:
    with gfile.GFile(f"{os.fspath(path)}/saved_model.pb") as file:
        return str(file.read())


def publish_to(path: str | os.PathLike[str], text: str = "new", *, overwrite: bool = False) -> str:
    with publish.staged(path, overwrite=overwrite) as staging:
        build(staging, text)
    return staging.published.path


def tree(root: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def can_exchange(directory: pathlib.Path) -> bool:
    one, other = directory / "one", directory / "other"
    one.mkdir()
    other.mkdir()
    exchanged = filesystem.exchange(str(one), str(other))
    one.rmdir()
    other.rmdir()
    return exchanged


@pytest.fixture(params=["local", "ram"])
def base(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    """A base path that does not exist, on a file system with directories and on one without."""
    if request.param == "local":
        yield str(tmp_path / "models" / "m")
    else:
        root = f"ram://{tmp_path.name}"
        gfile.makedirs(root)
        yield f"{root}/models/m"
        gfile.rmtree(root)


# -- staged ----------------------------------------------------------------------------------------


def test_staged_publishes_all_files_and_leaves_nothing_else(base: str) -> None:
    with publish.staged(f"{base}/1", overwrite=False) as staging:
        assert not gfile.exists(f"{base}/1")
        assert re.search(r"/\.1\.kw-[0-9a-f]{16}/new/1$", os.fspath(staging))
        build(staging)
    assert staging.published.path == f"{base}/1"
    assert read(f"{base}/1") == "new"
    assert gfile.exists(f"{base}/1/assets.extra/tf_serving_warmup_requests")
    assert gfile.exists(f"{base}/1/variables/variables.index")
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["1"]


@pytest.mark.parametrize("kind", [BuildError, KeyboardInterrupt, SystemExit])
def test_staged_leaves_no_trace_of_a_failed_block(tmp_path: pathlib.Path, kind: Any) -> None:
    (tmp_path / "models").mkdir()
    error = kind("boom")
    with (
        pytest.raises(kind) as caught,
        publish.staged(tmp_path / "models" / "a" / "b" / "1", overwrite=False) as staging,
    ):
        build(staging)
        raise error
    assert caught.value is error
    assert tree(tmp_path) == ["models"]


def test_staged_keeps_parents_that_others_filled_meanwhile(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BuildError), publish.staged(tmp_path / "m" / "1", overwrite=False):
        (tmp_path / "m" / "7").mkdir()
        raise BuildError
    assert tree(tmp_path) == ["m", "m/7"]


def test_staged_removes_the_hidden_directory_on_a_flat_store_too(base: str) -> None:
    with pytest.raises(BuildError), publish.staged(f"{base}/1", overwrite=False) as staging:
        build(staging)
        raise BuildError
    assert not gfile.exists(f"{base}/1")
    assert not gfile.exists(staging.directory)


def test_staged_refuses_to_publish_nothing(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(PublishError) as caught,
        publish.staged(tmp_path / "m" / "1", overwrite=False),
    ):
        pass
    assert str(caught.value) == (
        f"Nothing to publish to '{tmp_path}/m/1': no file was written to the directory given."
    )
    assert tree(tmp_path) == []


def test_published_directory_has_the_permissions_of_the_umask(tmp_path: pathlib.Path) -> None:
    umask = os.umask(0o022)
    try:
        publish_to(tmp_path / "m" / "1")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "m" / "1").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o755


def test_saved_model_pb_arrives_last_and_leaves_first_on_a_flat_store(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = f"ram://{tmp_path.name}"
    renamed: list[str] = []
    rename = gfile.rename

    def recorded(src: str, dst: str, overwrite: bool = False) -> None:
        renamed.append(dst)
        rename(src, dst, overwrite)

    monkeypatch.setattr(gfile, "rename", recorded)
    publish_to(f"{base}/1", "old")
    assert renamed == [
        f"{base}/1/assets.extra/tf_serving_warmup_requests",
        f"{base}/1/fingerprint.pb",
        f"{base}/1/variables/variables.index",
        f"{base}/1/saved_model.pb",
    ]
    renamed.clear()
    publish_to(f"{base}/1", "new", overwrite=True)
    assert renamed[0].endswith("/old/saved_model.pb") and "/.1.kw-" in renamed[0]
    assert renamed[-1] == f"{base}/1/saved_model.pb"
    assert read(f"{base}/1") == "new"


def test_flat_store_failure_in_the_middle_publishes_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = f"ram://{tmp_path.name}"
    rename = gfile.rename

    def failing(src: str, dst: str, overwrite: bool = False) -> None:
        if dst.endswith("/1/saved_model.pb"):
            raise tf.errors.UnavailableError(None, None, "the store is away")
        rename(src, dst, overwrite)

    gfile.makedirs(base)
    monkeypatch.setattr(gfile, "rename", failing)
    with pytest.raises(PublishError) as caught:
        publish_to(f"{base}/1")
    assert str(caught.value) == f"Cannot publish to '{base}/1': the store is away."
    assert gfile.listdir(base) == []


@pytest.mark.parametrize("name", ["old", "new", "lock"])
def test_name_may_be_that_of_an_entry_of_a_workspace(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(BuildError), publish.staged(tmp_path / name, overwrite=False) as staging:
        build(staging)
        raise BuildError
    assert os.listdir(tmp_path) == []
    publish_to(tmp_path / name)
    publish_to(tmp_path / name, "newer", overwrite=True)
    assert read(tmp_path / name) == "newer"
    assert os.listdir(tmp_path) == [name]


def test_savers_of_one_remote_path_end(tmp_path: pathlib.Path) -> None:
    base = f"ram://{tmp_path.name}"
    publish_to(f"{base}/1", "old")
    with (
        publish.staged(f"{base}/1", overwrite=True) as one,
        publish.staged(f"{base}/1", overwrite=True) as two,
    ):
        build(one, "one")
        build(two, "two")
    assert read(f"{base}/1") == "one"


def test_clean_up_that_fails_does_not_mask_the_error_where_warnings_are_errors(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BuildError), publish.staged(tmp_path / "1", overwrite=False) as staging:
            build(staging)
            monkeypatch.setattr(workspace, "remove_tree", failing)
            raise BuildError
    assert "(Permission denied). The next export beside it tries again." in capsys.readouterr().err


def test_model_far_above_is_no_obstacle(tmp_path: pathlib.Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    assert publish_to(tmp_path / "models" / "m" / "1") == str(tmp_path / "models" / "m" / "1")


# -- overwrite -------------------------------------------------------------------------------------


def test_overwrite_replaces_all_that_was_there(base: str) -> None:
    publish_to(f"{base}/1", "old")
    with gfile.GFile(f"{base}/1/assets.extra/other", "w") as file:
        file.write("other")
    with publish.staged(f"{base}/1", overwrite=True) as staging:
        build(staging, "new", warmup=False)
        assert read(f"{base}/1") == "old"
    assert read(f"{base}/1") == "new"
    assert not gfile.exists(f"{base}/1/assets.extra/other")
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["1"]


def test_overwrite_publishes_where_nothing_or_an_empty_directory_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "1").mkdir()
    assert publish_to(tmp_path / "1", overwrite=True) == str(tmp_path / "1")
    assert publish_to(tmp_path / "2", overwrite=True) == str(tmp_path / "2")
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_every_listing_while_a_version_is_replaced_has_one(tmp_path: pathlib.Path) -> None:
    if not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange directories")
    publish_to(tmp_path / "1", "old")
    stop = threading.Event()
    seen: list[bool] = []

    def poll() -> None:
        while not stop.is_set():
            seen.append((tmp_path / "1" / "saved_model.pb").exists())

    reader = threading.Thread(target=poll)
    reader.start()
    for turn in range(50):
        publish_to(tmp_path / "1", str(turn), overwrite=True)
    stop.set()
    reader.join()
    assert all(seen) and len(seen) > 50
    assert read(tmp_path / "1") == "49"


def test_failed_block_leaves_the_old_model(base: str) -> None:
    publish_to(f"{base}/1", "old")
    with pytest.raises(BuildError), publish.staged(f"{base}/1", overwrite=True) as staging:
        build(staging)
        raise BuildError
    assert read(f"{base}/1") == "old"
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["1"]


@pytest.fixture
def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot exchange two directories in one step."""
    monkeypatch.setattr(filesystem, "libc_renameat2", lambda: None)


def test_without_exchange_the_old_version_is_moved_aside_and_removed(
    tmp_path: pathlib.Path, without_exchange: None
) -> None:
    publish_to(tmp_path / "1", "old")
    publish_to(tmp_path / "1", "new", overwrite=True)
    assert read(tmp_path / "1") == "new"
    assert os.listdir(tmp_path) == ["1"]


@pytest.mark.parametrize("kind", ["error", "interrupt before", "interrupt after"])
def test_old_model_is_put_back_when_the_new_one_cannot_be_moved_in(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, without_exchange: None, kind: Any
) -> None:
    publish_to(tmp_path / "1", "old")
    rename_new = publish.rename_new

    def failing(source: str, target: str, *, model_last: bool = True) -> None:
        if target == str(tmp_path / "1"):
            if kind == "error":
                raise PermissionError(errno.EACCES, "Permission denied", source)
            if kind == "interrupt after":
                rename_new(source, target)
            raise KeyboardInterrupt
        rename_new(source, target, model_last=model_last)

    monkeypatch.setattr(publish, "rename_new", failing)
    with pytest.raises(PublishError if kind == "error" else KeyboardInterrupt) as caught:
        publish_to(tmp_path / "1", "new", overwrite=True)
    if kind == "error":
        assert str(caught.value) == f"Cannot publish to '{tmp_path}/1': Permission denied."
    assert read(tmp_path / "1") == ("new" if kind == "interrupt after" else "old")
    assert os.listdir(tmp_path) == ["1"]


def test_old_model_that_cannot_be_put_back_is_named_and_put_back_by_the_next_export(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, without_exchange: None
) -> None:
    publish_to(tmp_path / "1", "old")
    broken = True

    rename_new = filesystem.rename_new

    def failing(source: str, target: str, *, model_last: bool = True) -> None:
        if broken and target == str(tmp_path / "1"):
            raise OSError(errno.EIO, "Input/output error", source)
        rename_new(source, target, model_last=model_last)

    monkeypatch.setattr(publish, "rename_new", failing)
    monkeypatch.setattr(workspace, "rename_new", failing)
    with (
        pytest.raises(PublishError, match="Input/output error"),
        pytest.warns(
            UserWarning, match=r"The old version of .*/1' is at .*/\.1\.kw-[0-9a-f]{16}/old'"
        ),
    ):
        publish_to(tmp_path / "1", "new", overwrite=True)
    broken = False
    publish_to(tmp_path / "2")
    assert read(tmp_path / "1") == "old"
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_savers_of_one_path_leave_one_whole_version_and_no_copies(
    tmp_path: pathlib.Path, without_exchange: None
) -> None:
    publish_to(tmp_path / "1", "old")

    def save(turn: int) -> None:
        for _ in range(5):
            publish_to(tmp_path / "1", str(turn), overwrite=True)

    savers = [threading.Thread(target=save, args=(turn,)) for turn in range(4)]
    for saver in savers:
        saver.start()
    for saver in savers:
        saver.join()
    assert os.listdir(tmp_path) == ["1"]
    text = read(tmp_path / "1")
    with gfile.GFile(f"{tmp_path}/1/variables/variables.index") as file:
        assert file.read() == text


def test_replaced_directory_that_is_not_a_saved_model_is_given_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange directories")
    publish_to(tmp_path / "1", "old")
    exchange = publish.exchange
    turns: list[int] = []

    def overtaken(one: str, other: str) -> bool:
        if not turns:
            os.rename(other, f"{other}-moved")
            pathlib.Path(other).mkdir()
            pathlib.Path(other, "thesis.tex").write_text("x")
        turns.append(1)
        return exchange(one, other)

    monkeypatch.setattr(publish, "exchange", overtaken)
    with pytest.raises(PublishError, match="it is not a SavedModel"):
        publish_to(tmp_path / "1", "new", overwrite=True)
    assert (tmp_path / "1" / "thesis.tex").exists()
    assert sorted(os.listdir(tmp_path)) == ["1", "1-moved"]


@pytest.mark.parametrize("can_exchange", [True, False], ids=["exchanged", "in two steps"])
def test_only_the_version_asked_for_is_replaced(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(filesystem, "libc_renameat2", lambda: None)
    with publish.staged(tmp_path / "1", overwrite=False) as first:
        build(first, "ours")
    with publish.staged(tmp_path / "1", overwrite=True, replaces=first.published) as second:
        build(second, "newer")
    with (
        pytest.raises(
            PublishError, match="somebody has replaced the version that was published there"
        ),
        publish.staged(tmp_path / "1", overwrite=True, replaces=second.published) as third,
    ):
        build(third, "newest")
        shutil.rmtree(tmp_path / "1")
        build(tmp_path / "1", "theirs")
    assert read(tmp_path / "1") == "theirs"
    assert os.listdir(tmp_path) == ["1"]


def test_directory_without_a_model_is_never_replaced(tmp_path: pathlib.Path) -> None:
    (tmp_path / "site" / "assets").mkdir(parents=True)
    (tmp_path / "site" / "assets" / "logo.png").touch()
    with pytest.raises(PublishError, match="it is not a SavedModel, but holds 1 other entries"):
        publish_to(tmp_path / "site", overwrite=True)
    assert (tmp_path / "site" / "assets" / "logo.png").exists()


def test_overwrite_refuses_a_base_path_with_versions(tmp_path: pathlib.Path) -> None:
    publish_to(tmp_path / "m" / "1")
    publish_to(tmp_path / "m" / "2")
    with pytest.raises(PublishError) as caught:
        publish.check_publishable(tmp_path / "m", overwrite=True)
    assert str(caught.value) == (
        f"Cannot replace '{tmp_path}/m': it holds 2 versions of a model, such as '1', and "
        f"replacing would remove all of it. Publish to '{tmp_path}/m/{{version}}' or another path, "
        "or remove it yourself."
    )


def test_overwrite_refuses_what_is_not_a_saved_model(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PublishError) as caught:
        publish_to(tmp_path / "thesis", overwrite=True)
    assert str(caught.value) == (
        f"Cannot replace '{tmp_path}/thesis': it is not a SavedModel, but holds 1 other entries, "
        f"and replacing would remove all of it. Publish to '{tmp_path}/thesis/{{version}}' or "
        "another path, or remove it yourself."
    )
    with pytest.raises(PublishError, match="it is a file, not a SavedModel"):
        publish_to(tmp_path / "file", overwrite=True)
    assert tree(tmp_path) == ["file", "thesis", "thesis/chapter.tex"]


def test_directory_of_a_lower_layer_is_moved_file_by_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_to(tmp_path / "1", "old")
    (tmp_path / "1" / "assets").symlink_to(tmp_path / "nowhere")
    rename = os.rename

    def across_layers(source: str, target: str) -> None:
        if str(source) == str(tmp_path / "1") and os.path.isdir(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    # As on overlayfs: neither renameat2 nor rename moves the directory.
    monkeypatch.setattr(filesystem, "libc_renameat2", lambda: None)
    monkeypatch.setattr(os, "rename", across_layers)
    publish_to(tmp_path / "1", "new", overwrite=True)
    assert read(tmp_path / "1") == "new"
    assert os.listdir(tmp_path) == ["1"]


# -- flushing --------------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The fsync and rename calls, in order, each with its path."""
    calls: list[tuple[str, str]] = []
    fsync, rename_new, exchange = os.fsync, publish.rename_new, publish.exchange

    def recorded_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recorded_rename(source: str, target: str, *, model_last: bool = True) -> None:
        calls.append(("rename", str(target)))
        rename_new(source, target, model_last=model_last)

    def recorded_exchange(one: str, other: str) -> bool:
        calls.append(("rename", str(other)))
        return exchange(one, other)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(publish, "rename_new", recorded_rename)
    monkeypatch.setattr(publish, "exchange", recorded_exchange)
    return calls


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="reads names of descriptors from /proc"
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_tree_is_flushed_before_the_rename_and_the_parent_after(
    tmp_path: pathlib.Path, disk: list[tuple[str, str]], overwrite: bool
) -> None:
    if overwrite:
        publish_to(tmp_path / "1", "old")
        disk.clear()
    publish_to(tmp_path / "1", overwrite=overwrite)
    renamed = disk.index(("rename", str(tmp_path / "1")))
    before = {path.split("/1/", 1)[1] if "/1/" in path else "" for _, path in disk[:renamed]}
    assert before >= {
        "saved_model.pb",
        "fingerprint.pb",
        "variables",
        "variables/variables.index",
        "assets.extra",
        "assets.extra/tf_serving_warmup_requests",
    }
    assert disk[renamed - 1][1].endswith("/1")
    assert disk[renamed + 1] == ("fsync", str(tmp_path))


def test_directory_that_cannot_be_flushed_after_the_rename_takes_the_version_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if (tmp_path / "1").exists() and os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(
        PublishError, match=f"Cannot publish to '{tmp_path}/1': Input/output error."
    ):
        publish_to(tmp_path / "1")
    assert os.listdir(tmp_path) == []


# -- links -----------------------------------------------------------------------------------------


@pytest.fixture
def vocabulary(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory outside that versions link to; it must not change."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "words").write_text("a\nb\n")
    yield shared
    assert (shared / "words").read_text() == "a\nb\n"


def test_target_of_a_link_in_a_replaced_version_is_not_touched(
    tmp_path: pathlib.Path, vocabulary: pathlib.Path
) -> None:
    publish_to(tmp_path / "m" / "1", "old")
    (tmp_path / "m" / "1" / "assets").symlink_to(vocabulary)
    publish_to(tmp_path / "m" / "1", "new", overwrite=True)
    assert os.listdir(tmp_path / "m") == ["1"]


def test_target_of_a_link_in_a_failed_export_is_not_touched(
    tmp_path: pathlib.Path, vocabulary: pathlib.Path
) -> None:
    with (
        pytest.raises(BuildError),
        publish.staged(tmp_path / "m" / "1", overwrite=False) as staging,
    ):
        pathlib.Path(staging, "assets").symlink_to(vocabulary)
        raise BuildError


def test_version_that_became_a_link_is_not_removed(
    tmp_path: pathlib.Path, vocabulary: pathlib.Path
) -> None:
    with publish.staged(tmp_path / "m" / "1", overwrite=False) as staging:
        build(staging)
    os.rename(tmp_path / "m" / "1", tmp_path / "elsewhere")
    (tmp_path / "m" / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PublishError, match="it is not the directory that was published there"):
        publish.remove_published(staging.published)
    assert read(tmp_path / "elsewhere") == "new"


def test_target_of_a_link_in_a_swept_workspace_is_not_touched(
    tmp_path: pathlib.Path, vocabulary: pathlib.Path
) -> None:
    dead = tmp_path / "m" / ".1.kw-0123456789abcdef"
    build(dead / "1")
    (dead / "1" / "assets").symlink_to(vocabulary)
    publish_to(tmp_path / "m" / "2")
    assert os.listdir(tmp_path / "m") == ["2"]


def test_target_of_a_link_in_a_removed_version_is_not_touched(
    tmp_path: pathlib.Path, vocabulary: pathlib.Path
) -> None:
    with publish.staged(tmp_path / "m" / "1", overwrite=False) as staging:
        build(staging)
        pathlib.Path(staging, "assets").symlink_to(vocabulary)
    publish.remove_published(staging.published)
    assert os.listdir(tmp_path / "m") == []


def test_symbolic_link_stays_and_its_target_is_replaced(tmp_path: pathlib.Path) -> None:
    publish_to(tmp_path / "real" / "3", "old")
    (tmp_path / "latest").symlink_to(tmp_path / "real" / "3")
    assert publish_to(tmp_path / "latest", "new", overwrite=True) == str(tmp_path / "real" / "3")
    assert (tmp_path / "latest").is_symlink()
    assert read(tmp_path / "latest") == "new"


@pytest.mark.parametrize("overwrite", [False, True])
def test_base_path_that_is_a_link_is_published_below(
    tmp_path: pathlib.Path, overwrite: bool
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "base").symlink_to(tmp_path / "real")
    if overwrite:
        publish_to(tmp_path / "base" / "1", "old")
    assert publish_to(tmp_path / "base" / "1", overwrite=overwrite) == str(tmp_path / "base" / "1")
    assert read(tmp_path / "real" / "1") == "new"
    assert os.listdir(tmp_path / "real") == ["1"]


# -- check_publishable -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.mkdir(), "an empty directory"),
        (lambda path: path.write_text("x"), "a file"),
        (lambda path: publish_to(path), "a directory"),
    ],
    ids=["empty", "file", "model"],
)
def test_existing_path_is_refused_with_the_cure(
    tmp_path: pathlib.Path, make: Callable[[pathlib.Path], Any], kind: Any
) -> None:
    make(tmp_path / "1")
    before = tree(tmp_path)
    with pytest.raises(PublishError) as caught, publish.staged(tmp_path / "1", overwrite=False):
        pytest.fail("the block must not run")
    assert str(caught.value) == (
        f"Cannot publish to '{tmp_path}/1': it exists ({kind}). Publish to "
        f"'{tmp_path}/{{version}}' for the next free version, remove it, or pass overwrite=True "
        "where the function takes it."
    )
    assert caught.value.errno == errno.EEXIST
    assert tree(tmp_path) == before


def test_path_taken_while_the_block_ran_is_not_touched(base: str) -> None:
    with (
        pytest.raises(PublishError, match=r"it exists \(a directory\)"),
        publish.staged(f"{base}/1", overwrite=False) as staging,
    ):
        build(staging)
        publish_to(f"{base}/1", "theirs")
    assert read(f"{base}/1") == "theirs"
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["1"]


def test_path_below_a_file_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PublishError) as caught:
        publish.check_publishable(tmp_path / "file" / "m" / "1", overwrite=False)
    assert str(caught.value) == (
        f"Cannot publish to '{tmp_path}/file/m/1': '{tmp_path}/file' is a file, expected a "
        "directory. Publish to a path below a directory."
    )


@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="needs a directory that not even root can write to"
)
def test_unwritable_parent_is_refused() -> None:
    with pytest.raises(PublishError) as caught:
        publish.check_publishable("/proc/m/{version}", overwrite=False)
    assert str(caught.value) == (
        "Cannot publish to '/proc/m/{version}': no file can be written in '/proc' (No such file or "
        "directory). Publish below a directory that this user can write to."
    )


def test_unknown_file_system_is_a_publish_error() -> None:
    with pytest.raises(PublishError) as caught:
        publish.check_publishable("nosuch://bucket/m/1", overwrite=False)
    assert str(caught.value) == (
        "Cannot publish to 'nosuch://bucket/m/1': File system scheme 'nosuch' not implemented ("
        "file: 'nosuch://bucket/m/saved_model.pb')."
    )


@pytest.mark.parametrize("path", [".", "..", "/", "a/..", "ram://bucket"])
def test_path_without_a_new_name_is_refused(path: Any) -> None:
    with pytest.raises(PublishError, match="it does not name a new directory"):
        publish.check_publishable(path, overwrite=True)


@pytest.mark.parametrize("name", ["5", "{version}"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_published_inside_a_saved_model(base: str, name: str, overwrite: bool) -> None:
    publish_to(f"{base}/1")
    before = sorted(gfile.listdir(f"{base}/1"))
    with (
        pytest.raises(PublishError) as caught,
        publish.staged(f"{base}/1/{name}", overwrite=overwrite),
    ):
        pass
    assert str(caught.value) == (
        f"Cannot publish to '{base}/1/{name}': it would publish inside the SavedModel '{base}/1'. "
        "Publish beside it."
    )
    assert sorted(gfile.listdir(f"{base}/1")) == before


def test_check_publishable_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    target = publish.check_publishable(tmp_path / "a" / "m" / "{version}", overwrite=False)
    assert target == str(tmp_path / "a" / "m" / "1")
    assert tree(tmp_path) == []


def test_relative_paths_are_published_below_the_working_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert publish_to("export") == "export"
    assert publish_to("./m/{version}") == "./m/1"
    assert publish_to("{version}/") == "1"
    assert sorted(os.listdir(tmp_path)) == ["1", "export", "m"]


@pytest.mark.parametrize("inside", ["assets/2", "assets.extra/a/b/{version}"])
def test_nothing_is_published_deep_inside_a_saved_model(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    publish_to(tmp_path / "1")
    monkeypatch.chdir(tmp_path / "1")
    for path in (tmp_path / "1" / inside, inside):
        with pytest.raises(PublishError) as caught:
            publish.check_publishable(path, overwrite=False)
        assert str(caught.value) == (
            f"Cannot publish to '{path}': it would publish inside the SavedModel '{tmp_path}/1'. "
            "Publish beside it."
        )


# -- {version} -------------------------------------------------------------------------------------


def test_next_version_ignores_models_under_construction(tmp_path: pathlib.Path) -> None:
    with publish.staged(tmp_path / "5", overwrite=False) as staging:
        assert resolve_version(tmp_path / "{version}") == str(tmp_path / "1")
        build(staging)
    assert resolve_version(tmp_path / "{version}") == str(tmp_path / "6")


def test_version_counts_up(base: str) -> None:
    assert [publish_to(f"{base}/{{version}}") for _ in range(3)] == [
        f"{base}/{version}" for version in (1, 2, 3)
    ]


def test_two_exporters_take_two_versions(base: str) -> None:
    with (
        publish.staged(f"{base}/{{version}}", overwrite=False) as one,
        publish.staged(f"{base}/{{version}}", overwrite=False) as two,
    ):
        build(one, "one")
        build(two, "two")
    assert (one.published.path, two.published.path) == (f"{base}/2", f"{base}/1")
    assert (read(f"{base}/1"), read(f"{base}/2")) == ("two", "one")


def test_version_taken_between_check_and_rename_gives_the_next(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename_new = publish.rename_new
    theirs = iter(["1", "2"])

    def overtaken(source: str, target: str, *, model_last: bool = True) -> None:
        name = next(theirs, None)
        if name:
            build(tmp_path / name, "theirs")
        rename_new(source, target, model_last=model_last)

    monkeypatch.setattr(publish, "rename_new", overtaken)
    assert publish_to(tmp_path / "{version}", "ours") == str(tmp_path / "3")
    assert [read(tmp_path / name) for name in "123"] == ["theirs", "theirs", "ours"]
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "3"]


def test_version_taken_between_listing_and_check_gives_the_next(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = publish.resolve_version

    def overtaken(path: str | os.PathLike[str]) -> str:
        target = real(path)
        if target.endswith(("/1", "/2")):
            build(target, "theirs")
        return target

    monkeypatch.setattr(publish, "resolve_version", overtaken)
    assert publish.check_publishable(tmp_path / "{version}", overwrite=False) == str(tmp_path / "3")


def test_version_of_another_exporter_is_never_overwritten(tmp_path: pathlib.Path) -> None:
    with publish.staged(tmp_path / "{version}", overwrite=True) as staging:
        build(staging, "ours")
        build(tmp_path / "1", "theirs")
    assert staging.published.path == str(tmp_path / "2")
    assert (read(tmp_path / "1"), read(tmp_path / "2")) == ("theirs", "ours")


# -- removing --------------------------------------------------------------------------------------


def test_remove_published(base: str) -> None:
    published = []
    for _ in range(2):
        with publish.staged(f"{base}/{{version}}", overwrite=False) as staging:
            build(staging)
        published.append(staging.published)
    publish.remove_published(published[0])
    publish.remove_published(published[0])
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["2"]


def test_directory_that_replaced_a_published_one_is_not_removed(tmp_path: pathlib.Path) -> None:
    with publish.staged(tmp_path / "1", overwrite=False) as staging:
        build(staging)
    assert publish.is_still_there(staging.published)
    shutil.rmtree(tmp_path / "1")
    build(tmp_path / "1", "theirs")  # the file system may give it the same inode
    assert not publish.is_still_there(staging.published)
    with pytest.raises(PublishError) as caught:
        publish.remove_published(staging.published)
    assert str(caught.value) == (
        f"Cannot remove '{tmp_path}/1': it is not the directory that was published there; somebody "
        "has replaced it since."
    )
    assert read(tmp_path / "1") == "theirs"
    assert os.listdir(tmp_path) == ["1"]


def test_version_that_got_a_new_warmup_file_is_still_ours(tmp_path: pathlib.Path) -> None:
    with publish.staged(tmp_path / "1", overwrite=False) as staging:
        build(staging, warmup=False)
    (tmp_path / "1" / "assets.extra").mkdir()
    (tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests").write_text("x")
    publish.remove_published(staging.published)
    assert os.listdir(tmp_path) == []
