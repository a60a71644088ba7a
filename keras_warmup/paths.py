"""Reads path arguments, splits paths, and explains the errors of file systems."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator

import tensorflow as tf

from keras_warmup.errors import OptionsError, PublishError, WarmupError

# file:/x, file:///x and file://localhost/x (RFC 8089).
_FILE_URL = re.compile(r"file:(?://(?P<host>[^/]*))?(?=/)", re.IGNORECASE)
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def as_path(path: str | os.PathLike[str]) -> str:
    """Returns a path argument as `str`.

    A `file:` scheme and trailing slashes are removed, and `~` is expanded.

    Args:
        path: a local path, or a URL that `tf.io.gfile` takes, such as `gs://bucket/models/1`.

    Raises:
        OptionsError: it is not a path, is empty, holds a NUL byte, is not UTF-8, is a `file:` URL
            of another host, or is a `pathlib.Path` made of a URL (which has lost a slash).
    """
    if not isinstance(path, (str, os.PathLike)):
        raise OptionsError(f"A path must be a str or os.PathLike, got {type(path).__name__}.")
    text = os.fsdecode(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionsError(
            f"The path {text!r} is not UTF-8, and TensorFlow takes no other paths. Rename it, or "
            "give a link to it."
        ) from None
    if "\0" in text:
        raise OptionsError(f"A path must not hold a NUL byte, got {text!r}.")
    url = _FILE_URL.match(text)
    if url is not None:
        if url["host"] not in (None, "", "localhost"):
            raise OptionsError(
                f"The path {text!r} names a file of the host {url['host']!r}. Give a local path."
            )
        text = text[url.end() :]
    elif not isinstance(path, str) and re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:/(?!/)", text):
        raise OptionsError(
            f"The path {text!r} was a URL before pathlib merged its slashes. Pass it as a str."
        )
    elif text.startswith("~"):
        text = os.path.expanduser(text)
    if not text:
        raise OptionsError("A path must not be empty.")
    return text.rstrip("/") or "/"


def absolute(path: str, directory: str) -> str:
    """Returns a local path relative to a directory as an absolute path; a URL unchanged.

    Links and `..` stay: `a/..` is not always the directory of `a`.
    """
    return path if scheme_of(path) else os.path.join(directory, path)


def scheme_of(path: str) -> str:
    """Returns the scheme of a URL, such as `gs` of `gs://bucket/m`; empty for a local path."""
    match = _SCHEME.match(path)
    return match[1].lower() if match else ""


def name_of(path: str) -> str:
    """Returns the last component; empty for a root, a bucket or a host, which have no name."""
    match = _SCHEME.match(path)
    rest = path[match.end() :] if match else path
    return rest.rpartition("/")[2] if not match or "/" in rest else ""


def parent_of(path: str) -> str:
    """Returns the parent directory: `.` for a relative name; a root or bucket is its own parent."""
    match = _SCHEME.match(path)
    if match and "/" not in path[match.end() :]:
        return path
    head, _, _ = path.rpartition("/")
    if head:
        return head
    return "/" if path.startswith("/") else "."


def join(directory: str, name: str) -> str:
    """Joins with one `/`, which `tf.io.gfile` accepts on every system."""
    return f"{directory.rstrip('/')}/{name}"


@contextlib.contextmanager
def explained(
    path: str, doing: str = "publish to", error_class: type[WarmupError] = PublishError
) -> Iterator[None]:
    """Turns errors of file systems into one of this package with the path and the reason.

    Args:
        path: the path to name.
        doing: what failed. Defaults to `"publish to"`.
        error_class: the error to raise. Defaults to `PublishError`.
    """
    try:
        yield
    except WarmupError:  # some are OSErrors too
        raise
    except (tf.errors.OpError, OSError) as error:
        raise error_class(f"Cannot {doing} {path!r}: {reason_of(error)}.") from error


def reason_of(error: BaseException) -> str:
    """Returns the reason of a file system error without paths, which may be of a hidden directory.

    An error without a message, which in-memory file systems raise, gives its kind.
    """
    if isinstance(error, tf.errors.OpError):
        message = str(error.message).rpartition("; ")[2].rstrip(".")
        kind = type(error).__name__.removesuffix("Error")
        return message or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()
    return getattr(error, "strerror", None) or type(error).__name__


_KINDS = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a directory",
}


def why_not_a_file(path: str) -> str | None:
    """Returns why a path must not be opened as a file, links followed.

    Args:
        path: a path on any file system of `tf.io.gfile`. Only local ones have fifos and devices.

    Returns:
        The reason, such as `it is a fifo`. `None` for a file, and for a path that does not exist or
        cannot be examined: TensorFlow reports that when it opens the path.
    """
    if scheme_of(path):
        return "it is a directory" if tf.io.gfile.isdir(path) else None
    try:
        path.encode()
        mode = os.stat(path).st_mode
    except UnicodeEncodeError:
        return "its name is not UTF-8, which TensorFlow cannot open"
    except ValueError:
        return "its name holds a NUL character"
    except OSError:
        return None
    if stat.S_ISREG(mode):
        return None
    return f"it is {_KINDS.get(stat.S_IFMT(mode), 'not a regular file')}"
