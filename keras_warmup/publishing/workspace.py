"""Hidden directories that one writer owns while it builds what it is about to publish.

A workspace is a directory `.{name}.kw-{16 hex digits}` beside the path it is for. TensorFlow
Serving reads only decimal integers as versions (`file_system_storage_path_source.cc`), so no server
reads it. It holds

- `lock`: a file that its owner keeps locked (flock) as long as it lives. It holds the boot id of
  the owner's machine.
- `new/{name}`: what is being built.
- `old`: the version that is being replaced, while neither version has the public name.

A killed process leaves its workspace behind, and the system frees its lock. The next writer beside
it sweeps it: it moves `old` back if the path is free, and removes the rest. File times do not show
whether an owner is alive: `shutil.copytree` copies them, and an export may run for days. A
workspace of another boot must also be a day old: it belongs to another machine, whose locks some
network file systems do not show, or to this machine before a restart. Nothing is swept on file
systems without locks, and on remote ones.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import time
from collections.abc import Callable
from typing import IO

import tensorflow as tf

from keras_warmup.errors import warn_or_print
from keras_warmup.paths import join, name_of, parent_of, reason_of, scheme_of
from keras_warmup.publishing.filesystem import (
    PARTIAL,
    exists,
    make_directory,
    remove_tree,
    rename_new,
    sync,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\.(?P<name>.+)\.kw-[0-9a-f]{16}", re.DOTALL)
_LOCK = "lock"
_NEW = "new"
_OLD = "old"
_STALE_AFTER_S = 24 * 60 * 60
# Errors of flock on a file system without locks.
_NO_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK})
# For its owner only: what is built holds training rows.
_PRIVATE = 0o700
_ATTEMPTS = 100


class Workspace:
    """A hidden directory beside `target`, locked until it is closed.

    Args:
        target: the path that is going to be published; its parent must exist.

    Attributes:
        target: the same.
        path: the hidden directory.
        content: an empty directory in it.
        build: the path to build at, in `content`; it does not exist yet.
        old: the path of the version that is being replaced.

    Raises:
        OSError, tf.errors.OpError: it cannot be made.
    """

    def __init__(self, target: str) -> None:
        for _ in range(_ATTEMPTS):
            path = _hidden_sibling(target)
            make_directory(path, _PRIVATE)
            lock = None
            try:
                lock = None if scheme_of(target) else _lock(path)
                self._own(target, path, lock)
                make_directory(self.content)
                return
            except BaseException as error:
                if lock is not None:
                    lock.close()
                # A sweep between two of the calls found it without a lock, and removed it.
                if isinstance(error, (BlockingIOError, FileNotFoundError)):
                    continue
                with contextlib.suppress(OSError, tf.errors.OpError):
                    remove_tree(path)
                raise
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)

    def _own(self, target: str, path: str, lock: IO[bytes] | None) -> None:
        self.target = target
        self.path = path
        self.content = join(path, _NEW)
        self.build = join(self.content, name_of(target))
        self.old = join(path, _OLD)
        self._lock = lock
        self._pid = os.getpid()

    @classmethod
    def take_over(cls, path: str) -> Workspace | None:
        """Takes over the workspace of a dead owner.

        Returns:
            The workspace; `None` where the owner may be alive, or `path` is not a workspace.
        """
        match = _NAME.fullmatch(name_of(path))
        if match is None or os.path.islink(path) or not os.path.isdir(path):
            return None
        try:
            lock = _lock(path)
        except OSError:
            return None
        if lock is None:  # a file system without locks: the owner may be alive
            return None
        if (
            not _is_of_this_boot(lock)
            and time.time() - os.fstat(lock.fileno()).st_mtime < _STALE_AFTER_S
        ):
            lock.close()
            return None
        workspace = cls.__new__(cls)
        workspace._own(join(parent_of(path), match["name"]), path, lock)
        return workspace

    def close(self, *, tidy: Callable[[Workspace], None] | None = None) -> None:
        """Removes the workspace; first moves a version in `old` back where `target` is free.

        Issues a warning for what cannot be removed, because the export itself is done.

        Args:
            tidy: moves other files back, before the workspace is removed. Defaults to `None`.
        """
        if os.getpid() != self._pid:  # a child process that the owner forked
            return
        try:
            _put_back(self.old, self.target)
            if exists(self.old + PARTIAL) or (scheme_of(self.old) and exists(self.old)):
                raise FileExistsError(errno.EEXIST, "parts of it are at both places", self.old)
            self.give_up_old()
            if tidy is not None:
                tidy(self)
            self._remove()
        except (OSError, tf.errors.OpError) as error:
            _warn_of_remains(self, error)
        finally:
            # The lock is free after close(2), even where that fails.
            with contextlib.suppress(OSError):
                if self._lock is not None:
                    self._lock.close()

    def give_up_old(self) -> None:
        """Marks the version in `old` for removal, because the target exists again."""
        if scheme_of(self.old):
            remove_tree(self.old)
        elif exists(self.old):
            # Renamed first: a version that is partly removed must never be moved back.
            rename_new(self.old, join(self.path, f"removed-{secrets.token_hex(4)}"))

    def _remove(self) -> None:
        if not scheme_of(self.path):
            # If its owner is alive after all, it finds nothing to publish, instead of a part.
            path = _hidden_sibling(self.target)
            os.rename(self.path, path)
            self.path = path
            # The lock goes last: no other sweep takes the workspace while it is there.
            for name in os.listdir(path):
                if name != _LOCK:
                    remove_tree(join(path, name))
        remove_tree(self.path)


def sweep(parent: str, *, tidy: Callable[[Workspace], None] | None = None) -> None:
    """Removes the workspaces of dead owners, and moves back the versions in them.

    Args:
        parent: the directory that holds them; it need not exist. Nothing happens for a remote one.
        tidy: as in `Workspace.close`.
    """
    if scheme_of(parent):
        return
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(parent) if _NAME.fullmatch(name)]
        for name in names:
            dead = Workspace.take_over(join(parent, name))
            if dead is not None:
                dead.close(tidy=tidy)


def _lock(path: str) -> IO[bytes] | None:
    """Locks a workspace; makes its lock file where it does not exist.

    Returns:
        The file that holds the lock until it is closed; `None` where the file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock.
        FileNotFoundError: the workspace was removed meanwhile.
        OSError: the lock file cannot be made.
    """
    if fcntl is None:
        return None
    path = os.path.join(path, _LOCK)
    # A file object and not a descriptor: it closes itself if an interrupt loses it.
    file = open(path, "a+b", opener=_open_private)  # noqa: SIM115 - open as long as the workspace
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been removed, and the lock with it, between the two calls.
        status = os.fstat(file.fileno())
        if not os.path.samestat(status, os.stat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if status.st_size == 0:
            file.write(_boot_id())
            file.flush()
    except BaseException as error:
        with contextlib.suppress(OSError):
            file.close()
        if isinstance(error, OSError) and error.errno in _NO_LOCKS:
            return None
        raise
    return file


@functools.cache
def _boot_id() -> bytes:
    """Returns the id of this start of the machine; empty where the system has none."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()
    return b""


def _is_of_this_boot(lock: IO[bytes]) -> bool:
    lock.seek(0)
    return lock.read() in (b"", _boot_id())


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _put_back(old: str, target: str) -> None:
    """Moves a version back to its path where that is free."""
    if exists(old) and not exists(target):
        with contextlib.suppress(FileExistsError):
            rename_new(old, target)
            sync(parent_of(target))


def _warn_of_remains(workspace: Workspace, error: Exception) -> None:
    is_remote = bool(scheme_of(workspace.path))
    if any(_is_there(path) for path in (workspace.old, workspace.old + PARTIAL)):
        again = (
            "Move it there yourself." if is_remote else "The next export to that path tries again."
        )
        text = (
            f"The old version of {workspace.target!r} is at {workspace.old!r}, and could not be "
            f"put back ({reason_of(error)}). {again}"
        )
    else:
        again = "Remove it yourself." if is_remote else "The next export beside it tries again."
        text = f"Could not remove {workspace.path!r} ({reason_of(error)}). {again}"
    warn_or_print(text, stacklevel=4)


def _is_there(path: str) -> bool:
    try:
        return exists(path)
    except (OSError, tf.errors.OpError):
        return False


def _hidden_sibling(path: str) -> str:
    name = f".{name_of(path)}.kw-{secrets.token_hex(8)}"
    parent = parent_of(path)
    return name if parent == "." and not path.startswith("./") else join(parent, name)
