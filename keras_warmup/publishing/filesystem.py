"""File operations with the guarantees that publishing needs.

Local paths use the operating system directly: `tf.io.gfile` follows links when it removes a tree, cannot exchange two
directories and cannot fsync. Remote paths (`gs://`, `hdfs://`, ...) use `tf.io.gfile`, whose file systems have none of
these notions.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import stat
from collections.abc import Callable

import tensorflow as tf

from keras_warmup.errors import PublishError
from keras_warmup.paths import join, parent_of, scheme_of

MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
# Remote file systems that rename a directory in one step.
_ATOMIC_SCHEMES = frozenset({"hdfs", "viewfs"})
# renameat2(2), linux/fs.h.
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
# What renameat2 answers where the kernel, the C library or the file system does not have the flag, and what rename(2)
# may answer otherwise; EXDEV is that of overlay file systems for a directory of a lower layer.
_NO_FLAG = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV})
PARTIAL = ".partial"
# What fsync answers where a file system has nothing to flush, such as some FUSE ones for directories.
_NO_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EISDIR})


def exists(path: str) -> bool:
    """Returns whether something is at `path`; a link counts, also one that leads nowhere.

    Raises:
        OSError: the file system does not tell, such as for lack of permission: `tf.io.gfile.exists` and
            `os.path.exists` say `False` then.
    """
    if scheme_of(path):
        return bool(tf.io.gfile.exists(path))
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def remove_tree(path: str) -> None:
    """Removes a file, a link or a directory with all that is in it; what a link leads to is never touched.

    Args:
        path: what to remove. Nothing happens where there is nothing.

    Raises:
        OSError, tf.errors.OpError: something cannot be removed.
    """
    if scheme_of(path):
        if tf.io.gfile.exists(path):
            tf.io.gfile.rmtree(path)
        return
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(
                path
            )  # unlinks links, and descends by file descriptors where the system can
        else:
            os.unlink(path)


def sync_tree(directory: str) -> None:
    """Writes a directory tree to the disk: its regular files, then each directory, the deepest first.

    Without it a power cut after a rename can leave a version whose name is on the disk and whose files are empty.

    Args:
        directory: the root. Nothing happens for a remote one. Links are not followed.

    Raises:
        OSError: the disk is full, broken, or a file cannot be opened.
    """
    if scheme_of(directory):
        return
    for root, _, names in os.walk(directory, topdown=False, onerror=_raise):
        for name in names:
            path = os.path.join(root, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                sync(path)
        sync(root)


def sync(path: str) -> None:
    """Writes one local file, or the entries of one local directory, to the disk; nothing happens for a remote one."""
    # Windows opens no directories.
    if scheme_of(path) or (os.name == "nt" and os.path.isdir(path)):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def rename_new(source: str, target: str, *, model_last: bool = True) -> None:
    """Renames a directory to a name that is free; file by file where directories cannot be renamed (object stores).

    Args:
        source: a directory.
        target: its new name, on the same file system.
        model_last: for file by file, whether `saved_model.pb` comes last or first. Last where `target` is to be seen: a
            server that polls in between does not find the model and tries again, instead of loading one without its
            variables or, silently, without its warmup file. First where `source` was.

    Raises:
        FileExistsError: something is at `target`; an empty directory counts.
        OSError, tf.errors.OpError: the rename failed; what was moved was moved back.
    """
    if scheme_of(source):
        if tf.io.gfile.exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        if scheme_of(source) in _ATOMIC_SCHEMES:
            tf.io.gfile.rename(source, target)
        else:
            _move_files(source, target, model_last)
        return
    if _renameat2(source, target, _RENAME_NOREPLACE):
        return
    # rename(2) alone replaces an empty directory.
    if exists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        if error.errno != errno.EXDEV:
            raise
        # Overlay file systems (containers) refuse to rename a directory of a lower layer. Under its own name it appears
        # when it is whole.
        _move_files(source, target + PARTIAL, model_last)
        os.rename(target + PARTIAL, target)


def exchange(one: str, other: str) -> bool:
    """Swaps two directories in one step.

    Args:
        one: a directory.
        other: another one on the same file system.

    Returns:
        Whether they were swapped; `False` where the system or the file system cannot.

    Raises:
        FileNotFoundError: one of them does not exist.
        OSError: the exchange failed.
    """
    if scheme_of(one):
        return False
    return _renameat2(one, other, _RENAME_EXCHANGE)


def replace_file(source: str, target: str, *, flush: bool = True) -> None:
    """Puts a file in the place of another one, or of none, in one step.

    Args:
        source: the new file.
        target: the path it gets.
        flush: whether the new file is on the disk before and after the step. Not needed in a directory that is still
            going to be published.

    Raises:
        OSError, tf.errors.OpError: it failed; `target` is the old or the new file.
    """
    if scheme_of(source):
        tf.io.gfile.rename(source, target, overwrite=True)
        return
    if flush:
        sync(source)
    os.replace(source, target)
    if flush:
        sync(parent_of(target))


def make_directory(path: str, mode: int = 0o777) -> None:
    """Makes one directory with the permissions that the umask leaves of `mode`.

    Raises:
        FileExistsError: something is there.
        OSError, tf.errors.OpError: it cannot be made.
    """
    if scheme_of(path):
        tf.io.gfile.mkdir(path)
    else:
        os.mkdir(path, mode)


def make_parents(directory: str, created: list[str]) -> None:
    """Makes `directory`, and notes in `created` each directory that was not there, outermost first."""
    missing = []
    while not exists(directory) and parent_of(directory) != directory:
        missing.append(directory)
        directory = parent_of(directory)
    for ancestor in reversed(missing):
        created.append(ancestor)
        # Another process may make it at the same time.
        with contextlib.suppress(FileExistsError):
            make_directory(ancestor)
        sync(parent_of(ancestor))


def remove_empty(directory: str) -> None:
    """Removes a directory if nothing is in it."""
    with contextlib.suppress(tf.errors.OpError, OSError):
        if not scheme_of(directory):
            os.rmdir(directory)
        elif not tf.io.gfile.listdir(directory):
            tf.io.gfile.rmtree(directory)


def _raise(error: OSError) -> None:
    raise error


@functools.cache
def _c_renameat2() -> Callable[..., int] | None:
    """Returns renameat2 of the C library; `None` where it has none (glibc before 2.28, other systems)."""
    function = (
        getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if os.name == "posix"
        else None
    )
    if function is not None:
        function.argtypes = [
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint,
        ]
    return function


def _renameat2(source: str, target: str, flag: int) -> bool:
    """Renames with a flag; returns `False` where there is no such flag here."""
    function = _c_renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_FLAG:
        return False
    raise OSError(number, os.strerror(number), source, None, target)


def _move_files(source: str, target: str, model_last: bool) -> None:
    """Moves a directory file by file; when that fails, moves back what was moved, in reverse."""
    names = _files_of(source)
    names.sort(key=lambda name: ((name in MODEL_FILES) == model_last, name))
    moved: list[str] = []
    try:
        for name in names:
            tf.io.gfile.makedirs(parent_of(join(target, name)))
            moved.append(name)
            _rename_file(join(source, name), join(target, name))
    except BaseException:
        for name in reversed(moved):
            if exists(join(target, name)) and not exists(join(source, name)):
                _rename_file(join(target, name), join(source, name))
        remove_tree(target)
        raise
    remove_tree(source)


def _files_of(directory: str) -> list[str]:
    """Lists files and links below a directory, relative to it."""
    if scheme_of(directory):
        return [
            join(root, name)[len(directory) :].lstrip("/")
            for root, _, names in tf.io.gfile.walk(directory)
            for name in names
        ]
    found = []
    for root, directories, names in os.walk(directory, onerror=_raise):
        links = [name for name in directories if os.path.islink(os.path.join(root, name))]
        found += [os.path.relpath(os.path.join(root, name), directory) for name in [*names, *links]]
    return found


def _rename_file(source: str, target: str) -> None:
    if scheme_of(source):
        tf.io.gfile.rename(source, target)
    else:
        os.rename(source, target)


def occupied_error(target: str) -> PublishError:
    """Returns the error for a path that is taken; its `errno` is `EEXIST`."""
    kind = "a file"
    if tf.io.gfile.isdir(target):
        kind = "a directory" if tf.io.gfile.listdir(target) else "an empty directory"
    elif not scheme_of(target) and os.path.islink(target):
        kind = "a link"
    error = PublishError(
        f"Cannot publish to {target!r}: it exists ({kind}). Publish to {join(parent_of(target), '{version}')!r} for "
        "the next free version, remove it, or pass overwrite=True where the function takes it."
    )
    error.errno = errno.EEXIST
    return error
