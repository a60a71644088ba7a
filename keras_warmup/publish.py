"""Publishing: a directory is built out of sight, then appears under its name at once, or not at all.

What TensorFlow Serving sees decides the design. Its polling source (`file_system_storage_path_source.cc`) lists the
base path every few seconds, takes every child whose whole name is a decimal integer for a version, file or directory,
and starts to load it the moment it is listed; everything else is ignored. So:

- Work is done in a hidden, non-numeric sibling of the target, `.{name}.kw-{random}`, on the same file system.
- Where a directory can be renamed atomically (local paths, HDFS) one rename publishes it.
- Object stores (`gs://`, `s3://`, ...) have no directories to rename, and a version is listed as soon as its first
  object is there. There the files are renamed one by one, `saved_model.pb` last: a server that polls in between does
  not find the model and tries again later (`--max_num_load_retries`, `--load_retry_interval_micros`), instead of
  loading one without its variables or, silently, without its warmup file. Two exporters that take one version at the
  same moment are told apart only where renaming is atomic.
- A version that is replaced in place is not loaded again by a server that serves it already: publish to `{version}`.

A killed process leaves its hidden directory behind. It is harmless; a later export beside it, on a local file system,
removes it when nothing was created in it for a day. What `overwrite=True` moved aside (`.{name}.kw-old-{random}`) is
never swept: after a kill between the two renames it is the only copy of the old model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import secrets
from collections.abc import Iterator

import tensorflow as tf

from keras_warmup.errors import PublishError
from keras_warmup.moving import (
    MODEL_FILES,
    discard,
    hidden_sibling,
    make_parents,
    move,
    occupied_error,
    remove_empty,
    sweep_stale,
)
from keras_warmup.versions import (
    as_path,
    explained,
    has_version,
    join,
    name_of,
    parent_of,
    read_version,
    reason_of,
    resolve_version,
    scheme_of,
)

_SAVED_MODEL_ENTRIES = frozenset(
    {*MODEL_FILES, "fingerprint.pb", "keras_metadata.pb", "variables", "assets", "assets.extra", "debug"}
)


@dataclasses.dataclass
class Staging:
    """A directory under construction.

    Usable wherever a path is (`os.fspath`, `os.path.join`).

    Attributes:
        directory: the hidden directory to build in; it exists and is empty at first.
        published: where it went, with `{version}` filled in; `None` until it is published.
    """

    directory: str
    published: str | None = None

    def __fspath__(self) -> str:
        return self.directory


@contextlib.contextmanager
def staged(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Staging]:
    """Builds a directory in a hidden sibling and renames it onto `path` when the block ends well.

    When the block raises, `KeyboardInterrupt` included, the hidden directory and the parents created for it are
    removed, `path` is as it was, and the error propagates.

    Args:
        path: where to publish; `{version}` takes the next free version when the block ends.
        overwrite: replace the SavedModel that is there. The old one is moved aside, removed after the new one is in
            place, and put back if that fails.

    Yields:
        The `Staging` to build in. `.published` is set when the block has ended.

    Raises:
        PublishError: as `check_publishable`; nothing was built; `path` was taken meanwhile; or a rename failed.
    """
    template = as_path(path)
    target = check_publishable(template, overwrite)
    parent = parent_of(target)
    staging = Staging(hidden_sibling(target))
    created: list[str] = []
    try:
        with explained(target):
            make_parents(parent, created)
            sweep_stale(parent)
            # mkdir, not tempfile.mkdtemp: its 0700 would shut out a server that runs as another user.
            tf.io.gfile.mkdir(staging.directory)
        yield staging
        staging.published = _publish(staging.directory, template, target, overwrite)
    except BaseException:
        discard(staging.directory)
        for directory in reversed(created):
            remove_empty(directory)
        raise


def check_publishable(path: str | os.PathLike[str], overwrite: bool) -> str:
    """Checks up front that `path` can be published; changes nothing (a probe file is written and removed).

    Args:
        path: where to publish; may hold `{version}`.
        overwrite: whether a SavedModel that is there may be replaced.

    Returns:
        The path as it would be published now: `{version}` filled in, a final symbolic link followed.

    Raises:
        OptionsError: `path` is not a path.
        PublishError: something is there (an empty directory counts; `errno` is `EEXIST`) and `overwrite` is false or it
            is no SavedModel; it lies inside a SavedModel; or nothing can be written beside it.
    """
    template = as_path(path)
    with explained(template):
        target = target_of(template)
        if name_of(target) in ("", ".", ".."):
            raise PublishError(
                f"Cannot publish to {template!r}: it names no new directory. Publish below it, such as to "
                f"{join(target, '{version}')!r}."
            )
        if tf.io.gfile.exists(target):
            if not overwrite:
                raise occupied_error(target)
            _check_replaceable(target)
        parent = parent_of(target)
        if any(tf.io.gfile.exists(join(parent, name)) for name in MODEL_FILES):
            raise PublishError(
                f"Cannot publish to {template!r}: it would publish inside the SavedModel {parent!r}. Publish beside it."
            )
    check_writable(parent_of(target), template)
    return target


def check_writable(directory: str, path: str | None = None) -> None:
    """Checks that files can be created in `directory`, or in its nearest ancestor that exists.

    Args:
        directory: the directory; it may not exist yet.
        path: the path to name in the error. Defaults to `None`: `directory`.

    Raises:
        PublishError: an ancestor is a file, or a probe file cannot be written.
    """
    path = directory if path is None else path
    with explained(path):
        existing = directory
        while not tf.io.gfile.exists(existing) and parent_of(existing) != existing:
            existing = parent_of(existing)
        if tf.io.gfile.exists(existing) and not tf.io.gfile.isdir(existing):
            raise PublishError(
                f"Cannot publish to {path!r}: {existing!r} is a file, expected a directory. Publish to a path below a "
                "directory."
            )
        probe = join(existing, f".kw-probe-{secrets.token_hex(8)}")
        try:
            try:
                with tf.io.gfile.GFile(probe, "w") as file:
                    file.write("probe")
            finally:
                if tf.io.gfile.exists(probe):
                    tf.io.gfile.remove(probe)
        except (tf.errors.OpError, OSError) as error:
            raise PublishError(
                f"Cannot publish to {path!r}: no file can be written in {existing!r} ({reason_of(error)}). Publish "
                "below a directory that this user can write to."
            ) from error


def check_free(path: str) -> None:
    """Checks that nothing is at `path`.

    Raises:
        PublishError: something is (an empty directory counts); `errno` is `EEXIST`.
    """
    with explained(path):
        if tf.io.gfile.exists(path):
            raise occupied_error(path)


def target_of(path: str | os.PathLike[str]) -> str:
    """Where `path` would be published now: `{version}` filled in, a final symbolic link followed.

    A local link, such as `latest -> 3`, stays, and what it names is published.
    """
    target = resolve_version(path)
    return os.path.realpath(target) if not scheme_of(target) and os.path.islink(target) else target


def remove_published(path: str) -> None:
    """Removes a published directory; out of sight first, so that no server sees half of it.

    Args:
        path: what `Staging.published` said. Nothing happens where it is gone.

    Raises:
        PublishError: it cannot be moved out of sight.
    """
    with explained(path):
        if not tf.io.gfile.exists(path):
            return
        aside = hidden_sibling(path)
        move(path, aside, model_last=False)
    discard(aside)


def _publish(staging: str, template: str, target: str, overwrite: bool) -> str:
    """Moves `staging` to `target`; with `{version}` to the version that is next by now."""
    with explained(target):
        if not tf.io.gfile.listdir(staging):
            raise PublishError(f"Nothing to publish to {target!r}: no file was written to the directory given.")
    versioned = has_version(template)
    if versioned and has_version(name_of(template)):
        target = target_of(template)
    while True:
        try:
            with explained(target):
                tf.io.gfile.makedirs(parent_of(target))
                if overwrite and tf.io.gfile.exists(target):
                    _replace(staging, target)
                else:
                    move(staging, target, model_last=True)
            return target
        except PublishError as error:
            # Another exporter took this version between our look and our rename.
            following = target_of(template)
            if error.errno != errno.EEXIST or not versioned or following == target:
                raise
            target = following


def _replace(staging: str, target: str) -> None:
    _check_replaceable(target)
    aside = hidden_sibling(target, "old-")
    try:
        move(target, aside, model_last=False)
        move(staging, target, model_last=True)
    except BaseException:
        # An interrupt can also fall between a rename and the next line: look what is there instead of remembering.
        if tf.io.gfile.exists(aside):
            if not tf.io.gfile.exists(target):
                move(aside, target, model_last=True)
            elif not tf.io.gfile.exists(staging):
                discard(aside)
        raise
    discard(aside)


def _check_replaceable(target: str) -> None:
    """Refuses to replace what is no SavedModel: replacing removes all that is there."""
    if tf.io.gfile.isdir(target):
        entries = [entry.rstrip("/") for entry in tf.io.gfile.listdir(target)]
        versions = [entry for entry in entries if read_version(entry) is not None]
        if versions:
            raise _irreplaceable(target, f"it holds {len(versions)} versions of a model, such as {min(versions)!r}")
        if set(entries) <= _SAVED_MODEL_ENTRIES or any(name in entries for name in MODEL_FILES):
            return
        raise _irreplaceable(target, f"it is not a SavedModel, but holds {len(entries)} other entries")
    raise _irreplaceable(target, "it is a file, not a SavedModel")


def _irreplaceable(target: str, why: str) -> PublishError:
    error = PublishError(
        f"Cannot replace {target!r}: {why}, and replacing would remove all of it. Publish to "
        f"{join(target, '{version}')!r} or another path, or remove it yourself."
    )
    error.errno = errno.EEXIST
    return error
