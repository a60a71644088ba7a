"""Tests of `keras_warmup.publishing.workspace`."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat
import subprocess
import sys
import time

import pytest

from keras_warmup.publishing import workspace
from keras_warmup.publishing.workspace import Workspace, sweep


def dead_workspace(
    parent: pathlib.Path, name: str = "1", token: str = "0123456789abcdef"
) -> pathlib.Path:
    """Makes a workspace as a killed process leaves it."""
    directory = parent / f".{name}.kw-{token}"
    (directory / "new" / name).mkdir(parents=True)
    (directory / "new" / name / "saved_model.pb").write_text("half")
    (directory / "lock").touch()
    return directory


def test_workspace_is_hidden_private_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    made = Workspace(str(tmp_path / "1"))
    (name,) = os.listdir(tmp_path)
    assert made.path == str(tmp_path / name) and made.build == f"{made.path}/new/1"
    assert stat.S_IMODE(os.stat(made.path).st_mode) == 0o700
    assert not os.path.exists(made.build)
    made.close()
    assert os.listdir(tmp_path) == []


def test_sweep_removes_what_killed_processes_left(tmp_path: pathlib.Path) -> None:
    dead_workspace(tmp_path)
    (tmp_path / ".2.kw-fedcba9876543210").mkdir()  # killed before it had a lock
    kept = [".1.kw-mine", "1.kw-0123456789abcdef", ".hidden", "3"]
    for name in kept:
        (tmp_path / name).mkdir()
    sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_sweep_leaves_the_workspace_of_a_living_process(tmp_path: pathlib.Path) -> None:
    mine = Workspace(str(tmp_path / "1"))
    os.utime(mine.path, (0, 0))  # shutil.copytree copies old times
    sweep(str(tmp_path))
    assert os.path.isdir(mine.path)
    script = "import sys; from keras_warmup.publishing.workspace import sweep; sweep(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        check=True,
        cwd=pathlib.Path(workspace.__file__).parents[2],
    )
    assert os.path.isdir(mine.path)
    mine.close()


@pytest.mark.parametrize(("days", "swept"), [(0.9, False), (1.1, True)])
def test_workspace_of_another_boot_is_swept_after_a_day(
    tmp_path: pathlib.Path, days: float, swept: bool
) -> None:
    dead = dead_workspace(tmp_path)
    (dead / "lock").write_text("that of another machine")
    then = time.time() - days * 24 * 60 * 60
    os.utime(dead / "lock", (then, then))
    sweep(str(tmp_path))
    assert dead.exists() != swept


def test_version_that_is_only_partly_moved_aside_is_left_and_named(tmp_path: pathlib.Path) -> None:
    dead = dead_workspace(tmp_path)
    (dead / "old.partial").mkdir()
    (tmp_path / "1").mkdir()
    with pytest.warns(
        UserWarning, match=r"The old version of .*/1' is at .*parts of it are at both places"
    ):
        sweep(str(tmp_path))
    assert (dead / "old.partial").exists()


def test_child_that_was_forked_does_not_close_the_workspace(tmp_path: pathlib.Path) -> None:
    script = """
import os, sys
from keras_warmup.publishing.workspace import Workspace
made = Workspace(sys.argv[1] + "/1")
child = os.fork()
if child == 0:
    made.close()
    os._exit(0)
os.waitpid(child, 0)
assert os.path.isdir(made.path)
made.close()
"""
    root = pathlib.Path(workspace.__file__).parents[2]
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, cwd=root)
    assert os.listdir(tmp_path) == []


def test_sweep_removes_the_copy_of_a_living_workspace(tmp_path: pathlib.Path) -> None:
    mine = Workspace(str(tmp_path / "1"))
    shutil.copytree(mine.path, tmp_path / ".1.kw-0123456789abcdef")
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == [os.path.basename(mine.path)]
    mine.close()


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_sweep_puts_an_orphaned_old_version_back_where_its_name_is_free(
    tmp_path: pathlib.Path, taken: bool
) -> None:
    dead = dead_workspace(tmp_path)
    (dead / "old").mkdir()
    (dead / "old" / "saved_model.pb").write_text("old")
    if taken:
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "saved_model.pb").write_text("new")
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == ["1"]
    assert (tmp_path / "1" / "saved_model.pb").read_text() == ("new" if taken else "old")


def test_sweep_does_not_follow_links(tmp_path: pathlib.Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    base = tmp_path / "base"
    base.mkdir()
    (base / ".1.kw-0123456789abcdef").symlink_to(outside)
    (dead_workspace(base, token="a" * 16) / "new" / "1" / "assets").symlink_to(outside)
    linked = dead_workspace(base, token="b" * 16)
    (linked / "lock").unlink()
    (linked / "lock").symlink_to(outside / "file")
    sweep(str(base))
    assert (outside / "file").exists()
    # A workspace that is a link, or whose lock is a link, is not one that this package made.
    assert sorted(os.listdir(base)) == [".1.kw-0123456789abcdef", f".1.kw-{'b' * 16}"]


def test_sweep_of_a_directory_that_does_not_exist_does_nothing(tmp_path: pathlib.Path) -> None:
    sweep(str(tmp_path / "nowhere"))


def test_what_cannot_be_removed_is_a_warning_with_the_reason(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Workspace(str(tmp_path / "1"))

    def failing(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(workspace, "remove_tree", failing)
    with pytest.warns(UserWarning) as caught:
        made.close()
    (warning,) = caught
    assert str(warning.message) == (
        f"Could not remove {made.path!r} (Permission denied). The next export beside it tries "
        "again."
    )
    monkeypatch.undo()
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_lost_workspace_frees_its_lock(tmp_path: pathlib.Path) -> None:
    lost = Workspace(str(tmp_path / "1"))
    with pytest.warns(ResourceWarning):
        del lost
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_sweeps_and_exports_side_by_side_do_not_disturb_each_other(tmp_path: pathlib.Path) -> None:
    script = """
import os, sys
from keras_warmup.publishing.workspace import Workspace, sweep
for turn in range(300):
    sweep(sys.argv[1])
    made = Workspace(sys.argv[1] + "/1")
    os.mkdir(made.build)
    open(made.build + "/file", "w").close()
    sweep(sys.argv[1])
    assert os.path.exists(made.build + "/file")
    made.close()
"""
    start = time.monotonic()
    root = pathlib.Path(workspace.__file__).parents[2]
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", script, tmp_path], cwd=root)
        for _ in range(3)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0], (
        time.monotonic() - start
    )
    assert os.listdir(tmp_path) == []
