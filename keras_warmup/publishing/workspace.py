"""Hidden directories that one writer owns while it builds what it is about to publish.

A workspace is a directory `.{name}.kw-{16 hex digits}` beside the path it is for. TensorFlow Serving takes only decimal
integers for versions (`file_system_storage_path_source.cc`), so no server looks into it. It holds

- `lock`: a file that its owner keeps locked (flock) as long as it lives,
- `{name}`: what is being built,
- `old`: the version that is being replaced, while neither of both stands under its name.

A killed process leaves its workspace behind, and the system frees its lock. The next writer beside it sweeps it: it puts
`old` back if nothing is at the path, and removes the rest. File times do not tell: `shutil.copytree` copies them, and an
export may run for days. Where a file system has no locks (and on remote ones) nothing is swept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import warnings
from collections.abc import Callable
from typing import IO

import tensorflow as tf

from keras_warmup.publishing.filesystem import (
    exists,
    make_directory,
    remove_empty,
    remove_tree,
    rename_new,
    sync,
)
from keras_warmup.versions import join, name_of, parent_of, reason_of, scheme_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\.(?P<name>.+)\.kw-[0-9a-f]{16}", re.DOTALL)
_LOCK = "lock"
_OLD = "old"
# Its owner only: what is built holds training rows.
_PRIVATE = 0o700
_ATTEMPTS = 100


class Workspace:
    """A hidden directory beside `target`, locked until it is closed.

    Args:
        target: the path that is going to be published; its parent must exist.

    Attributes:
        target: that path.
        path: the hidden directory.
        build: where to build what is published; a path in `path` at which nothing is yet.
        old: where the version that is being replaced waits.

    Raises:
        OSError, tf.errors.OpError: it cannot be made.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        for _ in range(_ATTEMPTS):
            self.path = _hidden_sibling(target)
            make_directory(self.path, _PRIVATE)
            try:
                self._lock = None if scheme_of(target) else _lock(self.path)
            except (BlockingIOError, FileNotFoundError):
                # A sweep took it for a dead one, between the two calls.
                continue
            except BaseException:
                remove_tree(self.path)
                raise
            break
        else:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), self.path)
        self.build = join(self.path, name_of(target))
        self.old = join(self.path, _OLD)

    def close(self, *, tidy: Callable[[Workspace], None] | None = None) -> None:
        """Removes the workspace; a version that waits in `old` is put back first where nothing is at `target`.

        What cannot be removed is worth a warning, not the failure of an export that is done.

        Args:
            tidy: puts back whatever else was moved aside, before the workspace is removed. Defaults to `None`: nothing.
        """
        try:
            _put_back(self.old, self.target)
            self.give_up_old()
            if tidy is not None:
                tidy(self)
            # The lock last: as long as it is there no sweep comes in between.
            for name in _names_in(self.path):
                if name != _LOCK:
                    remove_tree(join(self.path, name))
            remove_tree(join(self.path, _LOCK))
            remove_empty(self.path)
        except (OSError, tf.errors.OpError) as error:
            _warn_of_remains(self, error)
        finally:
            # Whatever close(2) answers, the lock is free behind it.
            with contextlib.suppress(OSError):
                if self._lock is not None:
                    self._lock.close()

    def give_up_old(self) -> None:
        """Leaves what is in `old` to be removed, because something else is at the target by now."""
        # On a remote file system nothing is ever put back by a sweep.
        if exists(self.old) and not scheme_of(self.old):
            # Under another name first: half removed, it must never be put back.
            rename_new(self.old, join(self.path, f"removed-{secrets.token_hex(4)}"))


def sweep(parent: str, *, tidy: Callable[[Workspace], None] | None = None) -> None:
    """Removes the workspaces in a local directory whose owners are dead, and puts back what they had moved aside.

    Args:
        parent: the directory; it may not exist.
        tidy: as in `Workspace.close`.
    """
    if scheme_of(parent):
        return
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(parent) if _NAME.fullmatch(name)]
        for name in names:
            dead = _take_over(join(parent, name))
            if dead is not None:
                dead.close(tidy=tidy)


def _take_over(path: str) -> Workspace | None:
    """Returns the workspace at `path` as this process's own; `None` where its owner lives, or it is none."""
    match = _NAME.fullmatch(name_of(path))
    if match is None or os.path.islink(path) or not os.path.isdir(path):
        return None
    try:
        lock = _lock(path)
    except OSError:
        return None
    if lock is None:  # no locks here: its owner may live
        return None
    workspace = Workspace.__new__(Workspace)
    workspace.target = join(parent_of(path), match["name"])
    workspace.path = path
    workspace.build = join(path, match["name"])
    workspace.old = join(path, _OLD)
    workspace._lock = lock
    return workspace


def _lock(path: str) -> IO[bytes] | None:
    """Locks a workspace; makes its lock file where it has none.

    Returns:
        The file that holds the lock until it is closed; `None` where the file system has no locks.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: the workspace was removed meanwhile.
        OSError: the lock file cannot be made.
    """
    if fcntl is None:
        return None
    path = os.path.join(path, _LOCK)
    # A file object and not a descriptor: should an interrupt lose it, it closes itself.
    file = open(path, "ab", opener=_open_private)  # noqa: SIM115 - open as long as the workspace
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been removed, and the lock with it, between the two calls.
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    except (BlockingIOError, FileNotFoundError):
        file.close()
        raise
    except OSError:
        file.close()
        return None
    return file


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _put_back(old: str, target: str) -> None:
    """Puts a version that was moved aside under its name again, where nothing has taken that meanwhile."""
    if exists(old) and not exists(target):
        with contextlib.suppress(FileExistsError):
            rename_new(old, target)
            sync(parent_of(target))


def _names_in(directory: str) -> list[str]:
    if scheme_of(directory):
        return [name.rstrip("/") for name in tf.io.gfile.listdir(directory)] if exists(directory) else []
    return os.listdir(directory)


def _warn_of_remains(workspace: Workspace, error: Exception) -> None:
    if exists(workspace.old) and not exists(workspace.target):
        text = (
            f"The old version of {workspace.target!r} is at {workspace.old!r}, and could not be put back "
            f"({reason_of(error)}). The next export to that path puts it back; or move it there yourself."
        )
    else:
        text = f"Could not remove {workspace.path!r} ({reason_of(error)}). The next export beside it tries again."
    warnings.warn(text, stacklevel=4)


def _hidden_sibling(path: str) -> str:
    name = f".{name_of(path)}.kw-{secrets.token_hex(8)}"
    parent = parent_of(path)
    return name if parent == "." and not path.startswith("./") else join(parent, name)
