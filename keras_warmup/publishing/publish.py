"""Publishes a directory: it is built in a hidden place, then gets its name at once or not at all.

TensorFlow Serving decides the design. Its polling source (`file_system_storage_path_source.cc`)
lists the base path every few seconds. It takes each child whose whole name is a decimal integer as
a version, file or directory, and starts to load it at once; it ignores all other names. So:

- A version is built in a hidden workspace beside the target, on the same file system
  (`workspace.py`).
- The whole tree is written to the disk, then one rename makes it visible, then the parent directory
  is written. Only then are old versions removed: a power cut leaves the old version or the new one,
  never an empty one.
- A new version never replaces a path that came into being meanwhile (`RENAME_NOREPLACE`). Replacing
  a version exchanges the two directories in one step (`RENAME_EXCHANGE`), so that each listing
  shows one. Where the system cannot exchange, the old one is moved aside first; after a kill in
  between, the next export moves it back.
- Object stores (`gs://`, `s3://`, ...) cannot rename directories, and a version is listed as soon
  as its first object exists. There the files are renamed one by one, `saved_model.pb` last: a
  server that polls in between does not find the model and tries again later
  (`--max_num_load_retries`, `--load_retry_interval_micros`). Two exporters that take the same
  version at the same moment notice each other only where renaming is atomic.
- A server that serves a version does not load it again after it is replaced: publish to
  `{version}`.
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
from keras_warmup.paths import as_path, explained, join, name_of, parent_of, reason_of, scheme_of
from keras_warmup.publishing.filesystem import (
    MODEL_FILES,
    exchange,
    exists,
    make_directory,
    make_parents,
    remove_empty,
    rename_new,
    sync,
    sync_tree,
)
from keras_warmup.publishing.versions import has_version, read_version, resolve_version
from keras_warmup.publishing.workspace import Workspace, sweep

# Names of directories in a SavedModel.
_INSIDE = frozenset({"variables", "assets", "assets.extra", "debug"})


@dataclasses.dataclass(frozen=True)
class Published:
    """A directory that was published, with an identity that no later directory at its path has.

    Attributes:
        path: its path.
        identity: device and inode of the directory, inode and modification time of its `variables`.
            File systems give the inode of a removed directory to the next one, but `variables` does
            not change after publishing. `None` for a remote directory.
    """

    path: str
    identity: tuple[int, ...] | None


class Staging:
    """A directory under construction, usable as a path (`os.fspath`, `os.path.join`).

    Attributes:
        directory: the hidden directory to build in; it exists and is empty at first.
        target: where it is going to be published, `{version}` filled in; the next version where
            another exporter takes this one.
    """

    def __init__(self, directory: str, target: str) -> None:
        self.directory = directory
        self.target = target
        self._published: Published | None = None

    def __fspath__(self) -> str:
        return self.directory

    @property
    def published(self) -> Published:
        """Returns what was published, with `{version}` filled in, after the block of `staged`."""
        if self._published is None:
            raise RuntimeError(f"{self.directory!r} is not published yet")
        return self._published

    @published.setter
    def published(self, published: Published) -> None:
        self._published = published


@contextlib.contextmanager
def staged(
    path: str | os.PathLike[str], *, overwrite: bool, replaces: Published | None = None
) -> Iterator[Staging]:
    """Builds a directory in a hidden workspace, and publishes it as `path` when the block ends.

    When the block raises, the workspace and the parents created for it are removed, `path` is
    unchanged, and the error propagates. A `KeyboardInterrupt` during publishing leaves the old
    version or the new one.

    Args:
        path: where to publish. `{version}` takes the next free version when the block ends,
            whatever `overwrite` is.
        overwrite: replace the SavedModel at `path`. It is removed after the new one is visible and
            on the disk.
        replaces: with `overwrite`, the only version that may be replaced. Defaults to `None`: any.

    Yields:
        The `Staging` to build in. `.published` is set when the block has ended.

    Raises:
        PublishError: as from `check_publishable`; nothing was built; `path` was taken meanwhile; or
            a file operation failed.
    """
    template = as_path(path)
    overwrite = overwrite and not has_version(template)
    target = check_publishable(template, overwrite)
    created: list[str] = []
    workspace: Workspace | None = None
    try:
        with explained(target):
            make_parents(parent_of(target), created)
            workspace = Workspace(target)
            # With the permissions of the umask: a server may run as another user.
            make_directory(workspace.build)
        staging = Staging(workspace.build, target)
        yield staging
        staging.published = _publish(workspace, template, target, overwrite, replaces)
    except BaseException:
        if workspace is not None:
            # An interrupt can come between an exchange and its flush; the old version must not be
            # removed before a flush.
            with contextlib.suppress(OSError):
                sync(parent_of(target))
            workspace.close()
        for directory in reversed(created):
            remove_empty(directory)
        raise
    workspace.close()


def check_publishable(path: str | os.PathLike[str], overwrite: bool) -> str:
    """Checks that `path` can be published, and removes what killed exports left beside it.

    Args:
        path: where to publish; may hold `{version}`.
        overwrite: whether a SavedModel at `path` may be replaced.

    Returns:
        The path as it would be published now: `{version}` filled in, a final symbolic link
        followed.

    Raises:
        OptionsError: `path` is not a path.
        PublishError: the path exists (an empty directory counts; `errno` is `EEXIST`), and
            `overwrite` is false or it is not a SavedModel; it is inside a SavedModel; or nothing
            can be written beside it.
    """
    template = as_path(path)
    with explained(template):
        target = target_of(template)
        if name_of(target) in ("", ".", ".."):
            raise PublishError(
                f"Cannot publish to {template!r}: it does not name a new directory. Publish below "
                f"it, such as to {join(target, '{version}')!r}."
            )
        _check_outside_saved_models(target, template)
        sweep(parent_of(target))
        while exists(target):
            if overwrite:
                _check_replaceable(target, target)
                break
            # Another exporter may have taken this version since the directory was listed.
            following = target_of(template)
            if following == target:
                raise _occupied_error(target)
            target = following
    check_writable(parent_of(target), template)
    return target


def check_writable(directory: str, path: str | None = None) -> None:
    """Checks that files can be created in `directory`, or in its nearest ancestor that exists.

    Args:
        directory: the directory; it need not exist yet.
        path: the path to name in the error. Defaults to `None`: `directory`.

    Raises:
        PublishError: an ancestor is a file, or nothing can be written.
    """
    path = directory if path is None else path
    with explained(path):
        existing = directory
        while not exists(existing) and parent_of(existing) != existing:
            existing = parent_of(existing)
        if exists(existing) and not tf.io.gfile.isdir(existing):
            raise PublishError(
                f"Cannot publish to {path!r}: {existing!r} is a file, expected a directory. "
                "Publish to a path below a directory."
            )
    try:
        if scheme_of(existing):
            _probe_remote(existing)
        else:
            sweep(existing)
            Workspace(join(existing, "probe")).close()
    except (tf.errors.OpError, OSError) as error:
        raise PublishError(
            f"Cannot publish to {path!r}: no file can be written in {existing!r} "
            f"({reason_of(error)}). Publish below a directory that this user can write to."
        ) from error


def check_free(path: str) -> None:
    """Checks that `path` does not exist.

    Raises:
        PublishError: it exists (an empty directory counts); `errno` is `EEXIST`.
    """
    with explained(path):
        if exists(path):
            raise _occupied_error(path)


def target_of(path: str | os.PathLike[str]) -> str:
    """Returns the path that would be published now.

    `{version}` is filled in, and a final symbolic link is followed: a local link, such as
    `latest -> 3`, stays, and its target is published.
    """
    target = resolve_version(path)
    return os.path.realpath(target) if not scheme_of(target) and os.path.islink(target) else target


def published_at(path: str) -> Published:
    """Returns the identity of a directory that exists, so that only it is replaced later.

    Args:
        path: a directory; not a link.

    Raises:
        PublishError: it does not exist, or the file system does not say.
    """
    with explained(path, "read"):
        return Published(path, _identity_of(path))


def is_still_there(published: Published) -> bool:
    """Returns whether the directory at a path is the one that was published there.

    Raises:
        PublishError: the file system does not say.
    """
    with explained(published.path):
        return exists(published.path) and _identity_of(published.path) == published.identity


def remove_published(published: Published) -> None:
    """Removes a published directory; it is hidden first, so that no server sees a part of it.

    Args:
        published: `Staging.published` of the directory. Nothing happens where it no longer exists.

    Raises:
        PublishError: another directory is at its path, which stays; or it cannot be hidden.
    """
    path = published.path
    with explained(path):
        if not exists(path):
            return
        if is_still_there(published):
            workspace = Workspace(path)
            try:
                rename_new(path, workspace.build, model_last=False)
                # Checked again: another directory may have come there since the first check.
                if _identity_of(workspace.build) == published.identity:
                    return
                rename_new(workspace.build, path)
            finally:
                workspace.close()
        raise PublishError(
            f"Cannot remove {path!r}: it is not the directory that was published there; somebody "
            "has replaced it since."
        )


def _publish(
    workspace: Workspace, template: str, target: str, overwrite: bool, replaces: Published | None
) -> Published:
    """Moves what was built to `target`; with `{version}` to the version that is next now."""
    with explained(target):
        if not tf.io.gfile.listdir(workspace.build):
            raise PublishError(
                f"Nothing to publish to {target!r}: no file was written to the directory given."
            )
        sync_tree(workspace.build)
        identity = _identity_of(workspace.build)
    versioned = has_version(template)
    if versioned and has_version(name_of(template)):
        target = target_of(template)
    while True:
        with explained(target):
            make_parents(parent_of(target), [])
            try:
                if overwrite and exists(target):
                    _replace(workspace, target, replaces)
                else:
                    _make_visible(workspace, target)
                return Published(target, identity)
            except FileExistsError as error:
                # Another exporter took it between the check and the rename.
                if overwrite:
                    continue
                following = target_of(template)
                if not versioned or following == target:
                    raise _occupied_error(target) from error
                target = following


def _make_visible(workspace: Workspace, target: str) -> None:
    """Moves what was built to `target`; moves it back where the parent cannot be flushed."""
    rename_new(workspace.build, target)
    try:
        sync(parent_of(target))
    except OSError:
        rename_new(target, workspace.build)
        raise


def _replace(workspace: Workspace, target: str, replaces: Published | None) -> None:
    """Moves what was built to the path of a SavedModel, which is kept in the workspace."""
    _check_replaceable(target, target, replaces)
    try:
        exchanged = exchange(workspace.build, target)
    except FileNotFoundError:
        # Another process removed it meanwhile.
        return _make_visible(workspace, target)
    if not exchanged:
        return _replace_in_two_steps(workspace, target, replaces)
    try:
        # Checked again: another directory may have come there since the first check.
        _check_replaceable(workspace.build, target, replaces)
        sync(parent_of(target))
    except (OSError, tf.errors.OpError):
        exchange(workspace.build, target)
        raise
    return None


def _replace_in_two_steps(workspace: Workspace, target: str, replaces: Published | None) -> None:
    """Moves the old version into the workspace, then what was built to its path.

    After a failure `Workspace.close` moves the old version back.
    """
    workspace.target = target
    rename_new(target, workspace.old, model_last=False)
    _check_replaceable(workspace.old, target, replaces)
    try:
        _make_visible(workspace, target)
    except FileExistsError:
        # Another exporter was faster: its version replaces the same old one.
        workspace.give_up_old()
        raise
    workspace.give_up_old()


def _check_replaceable(directory: str, target: str, replaces: Published | None = None) -> None:
    """Raises where a path must not be replaced, because that would remove all of its content.

    Args:
        directory: the directory that would be removed; it must be a SavedModel.
        target: the path to name in the error.
        replaces: the only version that may be replaced. Defaults to `None`: any.
    """
    if not tf.io.gfile.isdir(directory) or (not scheme_of(directory) and os.path.islink(directory)):
        raise _irreplaceable(target, "it is a file, not a SavedModel")
    if replaces is not None and _identity_of(directory) != replaces.identity:
        raise _irreplaceable(target, "somebody has replaced the version that was published there")
    entries = [entry.rstrip("/") for entry in tf.io.gfile.listdir(directory)]
    versions = [entry for entry in entries if read_version(entry) is not None]
    if versions:
        raise _irreplaceable(
            target, f"it holds {len(versions)} versions of a model, such as {min(versions)!r}"
        )
    if entries and not any(name in entries for name in MODEL_FILES):
        raise _irreplaceable(
            target, f"it is not a SavedModel, but holds {len(entries)} other entries"
        )


def _irreplaceable(target: str, why: str) -> PublishError:
    error = PublishError(
        f"Cannot replace {target!r}: {why}, and replacing would remove all of it. Publish to "
        f"{join(target, '{version}')!r} or another path, or remove it yourself."
    )
    error.errno = errno.EEXIST
    return error


def _occupied_error(target: str) -> PublishError:
    kind = "a file"
    if tf.io.gfile.isdir(target):
        kind = "a directory" if tf.io.gfile.listdir(target) else "an empty directory"
    elif not scheme_of(target) and os.path.islink(target):
        kind = "a link"
    error = PublishError(
        f"Cannot publish to {target!r}: it exists ({kind}). Publish to "
        f"{join(parent_of(target), '{version}')!r} for the next free version, remove it, or pass "
        "overwrite=True where the function takes it."
    )
    error.errno = errno.EEXIST
    return error


def _check_outside_saved_models(target: str, template: str) -> None:
    """Raises for a path inside a SavedModel: replacing that model would remove it."""
    path = target if scheme_of(target) else os.path.abspath(target)
    below = ""
    while parent_of(path) != path:
        directory, entry = parent_of(path), name_of(path)
        if (not below or entry in _INSIDE) and any(
            exists(join(directory, name)) for name in MODEL_FILES
        ):
            raise PublishError(
                f"Cannot publish to {template!r}: it would publish inside the SavedModel "
                f"{directory!r}. Publish beside it."
            )
        path, below = directory, entry


def _identity_of(directory: str) -> tuple[int, ...] | None:
    if scheme_of(directory):
        return None
    status = os.lstat(directory)
    identity = (status.st_dev, status.st_ino)
    with contextlib.suppress(FileNotFoundError):
        variables = os.lstat(os.path.join(directory, "variables"))
        return (*identity, variables.st_ino, variables.st_mtime_ns)
    return identity


def _probe_remote(directory: str) -> None:
    probe = join(directory, f".kw-probe-{secrets.token_hex(8)}")
    try:
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("probe")
    finally:
        if tf.io.gfile.exists(probe):
            tf.io.gfile.remove(probe)
