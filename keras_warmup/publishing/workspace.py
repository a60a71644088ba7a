"""Hidden directories that one writer owns while it builds what it is about to publish.

A workspace is a directory `.{name}.kw-{16 hex digits}` beside the path it is for. TensorFlow Serving takes only decimal
integers for versions (`file_system_storage_path_source.cc`), so no server looks into it. It holds

- `lock`: a file that its owner keeps locked (flock) as long as it lives; it names the boot of the owner's machine,
- `new/{name}`: what is being built,
- `old`: the version that is being replaced, while neither of both stands under its name.

A killed process leaves its workspace behind, and the system frees its lock. The next writer beside it sweeps it: it puts
`old` back if nothing is at the path, and removes the rest. File times do not tell who lives: `shutil.copytree` copies them,
and an export may run for days. Only a workspace of another boot has to be a day old as well: it is that of another machine,
whose locks some network file systems do not show, or of this one before it was started anew. Where a file system has no locks
(and on remote ones) nothing is swept.
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
    remove_empty,
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
# flock on a file system that has no locks.
_NO_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK})
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
        content: an empty directory in it.
        build: where to build what is published; a path in `content` at which nothing is yet.
        old: where the version that is being replaced waits.

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
                # A sweep took it for a dead one, between two of the calls.
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
        """Returns the workspace of a dead owner; `None` where the owner lives, or there is no workspace."""
        match = _NAME.fullmatch(name_of(path))
        if match is None or os.path.islink(path) or not os.path.isdir(path):
            return None
        try:
            lock = _lock(path)
        except OSError:
            return None
        if lock is None:  # no locks here: its owner may live
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
        """Removes the workspace; a version that waits in `old` is put back first where nothing is at `target`.

        What cannot be removed is worth a warning, not the failure of an export that is done.

        Args:
            tidy: puts back whatever else was moved aside, before the workspace is removed. Defaults to `None`: nothing.
        """
        if os.getpid() != self._pid:  # a child that the owner forked
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
            # Whatever close(2) answers, the lock is free behind it.
            with contextlib.suppress(OSError):
                if self._lock is not None:
                    self._lock.close()

    def give_up_old(self) -> None:
        """Leaves what is in `old` to be removed, because something else is at the target by now."""
        if scheme_of(self.old):
            remove_tree(self.old)
        elif exists(self.old):
            # Under another name first: half removed, it must never be put back.
            rename_new(self.old, join(self.path, f"removed-{secrets.token_hex(4)}"))

    def _remove(self) -> None:
        if not scheme_of(self.path):
            # Should its owner live after all, it finds nothing to publish, instead of half of it.
            path = _hidden_sibling(self.target)
            os.rename(self.path, path)
            self.path = path
        # The lock last: as long as it is there no sweep comes in between.
        for name in _names_in(self.path):
            if name != _LOCK:
                remove_tree(join(self.path, name))
        remove_tree(join(self.path, _LOCK))
        remove_empty(self.path)


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
            dead = Workspace.take_over(join(parent, name))
            if dead is not None:
                dead.close(tidy=tidy)


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
    """Returns what tells one start of a machine from another; empty where the system has no such name."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()
    return b""


def _is_of_this_boot(lock: IO[bytes]) -> bool:
    lock.seek(0)
    return lock.read() in (b"", _boot_id())


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
        return (
            [name.rstrip("/") for name in tf.io.gfile.listdir(directory)]
            if exists(directory)
            else []
        )
    return os.listdir(directory)


def _warn_of_remains(workspace: Workspace, error: Exception) -> None:
    is_remote = bool(scheme_of(workspace.path))
    if any(_is_there(path) for path in (workspace.old, workspace.old + PARTIAL)):
        again = (
            "Move it there yourself." if is_remote else "The next export to that path tries again."
        )
        text = (
            f"The old version of {workspace.target!r} is at {workspace.old!r}, and could not be put back "
            f"({reason_of(error)}). {again}"
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
