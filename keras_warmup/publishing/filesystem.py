"""File operations with the guarantees that publishing needs.

Local paths use the operating system directly: `tf.io.gfile` follows links when it removes a tree,
cannot exchange two directories and cannot fsync. Remote paths (`gs://`, `hdfs://`, ...) use
`tf.io.gfile`; their file systems do not have links, exchange or fsync.
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

from keras_warmup.paths import join, parent_of, scheme_of

MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
# Remote file systems that rename a directory in one step.
_ATOMIC_SCHEMES = frozenset({"hdfs", "viewfs"})
# renameat2(2), linux/fs.h.
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
# Errors of renameat2 where the kernel, the C library or the file system does not have the flag,
# while rename(2) may succeed. Overlay file systems give EXDEV for a directory of a lower layer.
_NO_FLAG = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV})
# Suffix of a local directory that is moved file by file and is not complete.
PARTIAL = ".partial"
# Errors of fsync where a file system has nothing to flush, such as FUSE for directories.
_NO_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EISDIR})


def exists(path: str) -> bool:
    """Returns whether `path` exists; a link counts, even where its target does not exist.

    Raises:
        OSError: the file system does not say, for example for lack of permission.
            `tf.io.gfile.exists` and `os.path.exists` return `False` then.
    """
    if scheme_of(path):
        return bool(tf.io.gfile.exists(path))
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def remove_tree(path: str) -> None:
    """Removes a file, a link or a directory tree; targets of links are never touched.

    Args:
        path: what to remove. Nothing happens where it does not exist.

    Raises:
        OSError, tf.errors.OpError: something cannot be removed.
    """
    if scheme_of(path):
        if tf.io.gfile.exists(path):
            tf.io.gfile.rmtree(path)
        return
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            # Unlinks links, and descends by file descriptors where the system can.
            shutil.rmtree(path)
        else:
            os.unlink(path)


def copy_tree(source: str, target: str) -> None:
    """Copies the files below a directory; links are followed.

    Args:
        source: a directory.
        target: the copy, which does not exist yet. Its parent exists.

    Raises:
        OSError, tf.errors.OpError: a file cannot be copied, or is not a regular file.
    """
    if not scheme_of(source) and not scheme_of(target):
        make_directory(target)
        for name in sorted(os.listdir(source)):
            path = os.path.join(source, name)
            if os.path.isdir(path):
                copy_tree(path, join(target, name))
            else:
                _copy_regular(path, join(target, name))
        return
    for name in _files_of(source):
        tf.io.gfile.makedirs(parent_of(join(target, name)))
        tf.io.gfile.copy(join(source, name), join(target, name))


def _copy_regular(source: str, target: str) -> None:
    # Opening a fifo would wait for a writer.
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", source)
    shutil.copyfile(source, target)


def tree_bytes(directory: str) -> int:
    """Returns the size of the files below a directory, bytes."""
    return sum(
        int(tf.io.gfile.stat(join(root, name)).length)
        for root, _, names in tf.io.gfile.walk(directory)
        for name in names
    )


def sync_tree(directory: str) -> None:
    """Writes a directory tree to the disk: regular files, then directories, the deepest first.

    Without it a power cut after a rename can leave a version whose name is on the disk and whose
    files are empty.

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
    """Writes one local file, or the entries of one local directory, to the disk.

    Nothing happens for a remote path.
    """
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
    """Renames a directory to a path that is free.

    Object stores cannot rename directories; there the files are renamed one by one.

    Args:
        source: a directory.
        target: its new path, on the same file system.
        model_last: where files are renamed one by one, rename `saved_model.pb` last. Use it where a
            server may see `target`: a server that polls in between does not find the model and
            tries again. Otherwise it would load the model without its variables or, silently,
            without its warmup file. `False` renames `saved_model.pb` first: use it where a server
            may see `source`. Defaults to `True`.

    Raises:
        FileExistsError: `target` exists; an empty directory counts.
        OSError, tf.errors.OpError: the rename failed; files that were moved were moved back.
    """
    scheme = scheme_of(source)
    if not scheme and _renameat2(source, target, _RENAME_NOREPLACE):
        return
    # rename(2) alone replaces an empty directory.
    if exists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    if scheme in _ATOMIC_SCHEMES:
        tf.io.gfile.rename(source, target)
        return
    if scheme:
        _move_files(source, target, model_last)
        return
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        if error.errno != errno.EXDEV:
            raise
        # Overlay file systems (containers) refuse to rename a directory of a lower layer. The copy
        # gets its name when it is complete.
        _move_files(source, target + PARTIAL, model_last)
        os.rename(target + PARTIAL, target)


def exchange(one: str, other: str) -> bool:
    """Swaps two directories in one step.

    Args:
        one: a directory.
        other: another directory on the same file system.

    Returns:
        `True`; `False` where the system or the file system cannot swap directories.

    Raises:
        FileNotFoundError: one of them does not exist.
        OSError: the exchange failed.
    """
    return not scheme_of(one) and _renameat2(one, other, _RENAME_EXCHANGE)


def replace_file(source: str, target: str, *, flush: bool = True) -> None:
    """Moves a file to a path in one step; a file at that path is replaced.

    Args:
        source: the new file.
        target: the path that it gets.
        flush: write the file to the disk before the step, and its directory after. A directory that
            is still going to be published does not need it. Defaults to `True`.

    Raises:
        OSError, tf.errors.OpError: the move failed; `target` is the old or the new file.
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
    """Makes one directory with the permissions of `mode` that the umask leaves.

    Raises:
        FileExistsError: the path exists.
        OSError, tf.errors.OpError: the directory cannot be made.
    """
    if scheme_of(path):
        tf.io.gfile.mkdir(path)
    else:
        os.mkdir(path, mode)


def make_parents(directory: str, created: list[str]) -> None:
    """Makes a directory and its parents.

    Args:
        directory: the directory; it may exist.
        created: gets the path of each directory that is made, the outermost first. It is filled
            while the function runs, so that the caller can remove them after a failure.
    """
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
    """Removes a directory if it is empty."""
    with contextlib.suppress(tf.errors.OpError, OSError):
        if not scheme_of(directory):
            os.rmdir(directory)
        elif not tf.io.gfile.listdir(directory):
            tf.io.gfile.rmtree(directory)


def _raise(error: OSError) -> None:
    raise error


@functools.cache
def libc_renameat2() -> Callable[..., int] | None:
    """Returns renameat2 of the C library; `None` where it is missing (old glibc, other systems)."""
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
    """Renames with a flag; returns `False` where the flag is not supported."""
    function = libc_renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_FLAG:
        return False
    raise OSError(number, os.strerror(number), source, None, target)


def _move_files(source: str, target: str, model_last: bool) -> None:
    """Moves a directory file by file; after a failure moves the files back, in reverse order."""
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
