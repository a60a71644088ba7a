"""Moving directories so that a server sees all of one or nothing, and hidden siblings to build them in."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import time
import warnings

import tensorflow as tf

from keras_warmup.errors import PublishError
from keras_warmup.versions import join, name_of, parent_of, reason_of, scheme_of

_ATOMIC_SCHEMES = frozenset({"", "hdfs", "viewfs"})
_STAGING_NAME = re.compile(r"^\..+\.kw-[0-9a-f]{16}$")
_STALE_AFTER_S = 24 * 60 * 60
MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")


def move(source: str, target: str, *, model_last: bool) -> None:
    """Renames a directory; file by file where directories cannot be renamed.

    Args:
        source: the directory.
        target: its new name; nothing may be there.
        model_last: whether the files that make it a SavedModel come last, else first: a server then meets a version with all
            of its files, or none.

    Raises:
        PublishError: something is at `target`.
        tf.errors.OpError: a rename failed; what was moved was moved back.
    """
    if tf.io.gfile.exists(target):
        raise occupied_error(target)
    if scheme_of(source) not in _ATOMIC_SCHEMES:
        _move_files(source, target, model_last)
        return
    try:
        tf.io.gfile.rename(source, target)
    except tf.errors.UnimplementedError:
        # EXDEV: overlay file systems (containers) refuse to rename a directory of a lower layer.
        _move_files(source, target, model_last)
    except tf.errors.OpError as error:
        if tf.io.gfile.exists(target):
            raise occupied_error(target) from error
        raise


def _move_files(source: str, target: str, model_last: bool) -> None:
    """Renames file by file; when that fails, moves back what was moved, in reverse."""
    names = [
        join(directory, name)[len(source) :].lstrip("/")
        for directory, _, files in tf.io.gfile.walk(source)
        for name in files
    ]
    names.sort(key=lambda name: ((name in MODEL_FILES) == model_last, name))
    moved: list[str] = []
    try:
        for name in names:
            tf.io.gfile.makedirs(parent_of(join(target, name)))
            moved.append(name)
            tf.io.gfile.rename(join(source, name), join(target, name))
    except BaseException:
        for name in reversed(moved):
            if tf.io.gfile.exists(join(target, name)) and not tf.io.gfile.exists(join(source, name)):
                tf.io.gfile.rename(join(target, name), join(source, name))
        discard(target)
        raise
    discard(source)


def hidden_sibling(path: str, mark: str = "") -> str:
    """A new name beside `path` that no server takes for a version."""
    name = f".{name_of(path)}.kw-{mark}{secrets.token_hex(8)}"
    parent = parent_of(path)
    return name if parent == "." and not path.startswith("./") else join(parent, name)


def make_parents(directory: str, created: list[str]) -> None:
    """Makes `directory`, and notes in `created` each ancestor that was not there, outermost first."""
    missing = []
    while not tf.io.gfile.exists(directory) and parent_of(directory) != directory:
        missing.append(directory)
        directory = parent_of(directory)
    for ancestor in reversed(missing):
        created.append(ancestor)
        tf.io.gfile.makedirs(ancestor)


def remove_empty(directory: str) -> None:
    """Removes a directory if nothing is in it."""
    with contextlib.suppress(tf.errors.OpError, OSError):
        if not scheme_of(directory):
            os.rmdir(directory)
        elif not tf.io.gfile.listdir(directory):
            tf.io.gfile.rmtree(directory)


def discard(directory: str) -> None:
    """Removes a hidden directory. Leaving it there is worth a warning, not the failure of an export that is done."""
    try:
        if tf.io.gfile.exists(directory):
            tf.io.gfile.rmtree(directory)
    except (tf.errors.OpError, OSError) as error:
        warnings.warn(f"Could not remove {directory!r} ({reason_of(error)}). It can be removed by hand.", stacklevel=2)


def sweep_stale(parent: str) -> None:
    """Removes hidden directories that a killed process left, once nothing was created in them for a day."""
    # Object stores keep no modification time for a prefix.
    if scheme_of(parent):
        return
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if not _STAGING_NAME.match(entry.name) or not entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_AFTER_S:
                    discard(entry.path)


def occupied_error(target: str) -> PublishError:
    """The error for a path that is taken; its `errno` is `EEXIST`."""
    kind = "a file"
    if tf.io.gfile.isdir(target):
        kind = "a directory" if tf.io.gfile.listdir(target) else "an empty directory"
    error = PublishError(
        f"Cannot publish to {target!r}: it exists ({kind}). Publish to {join(parent_of(target), '{version}')!r} for "
        "the next free version, remove it, or pass overwrite=True where the function takes it."
    )
    error.errno = errno.EEXIST
    return error
