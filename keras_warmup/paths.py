"""Paths: reading path arguments, taking them apart, and what file systems say of them."""

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
    """Reads a path argument: as `str`, without a `file:` scheme and trailing slashes, `~` filled in.

    Args:
        path: a local path, or a URL that `tf.io.gfile` takes, such as `gs://bucket/models/1`.

    Raises:
        OptionsError: it is not a path, is empty, holds a NUL byte, is not UTF-8, is a `file:` URL of another host, or is a
            `pathlib.Path` made of a URL (which has lost a slash).
    """
    if not isinstance(path, (str, os.PathLike)):
        raise OptionsError(f"A path must be a str or os.PathLike, got {type(path).__name__}.")
    text = os.fsdecode(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionsError(
            f"The path {text!r} is not UTF-8, and TensorFlow takes no other paths. Rename it, or give a link to it."
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
            f"The path {text!r} was a URL before pathlib folded its slashes. Pass it as a str."
        )
    elif text.startswith("~"):
        text = os.path.expanduser(text)
    if not text:
        raise OptionsError("A path must not be empty.")
    return text.rstrip("/") or "/"


def absolute(path: str, directory: str) -> str:
    """Returns a local path as seen from a directory; a URL as it is.

    Links and `..` are kept as they are: `a/..` is not always the directory of `a`.
    """
    return path if scheme_of(path) else os.path.join(directory, path)


def scheme_of(path: str) -> str:
    """`gs` of `gs://bucket/m`; empty for a local path."""
    match = _SCHEME.match(path)
    return match[1].lower() if match else ""


def name_of(path: str) -> str:
    """The last component; empty for a root, a bucket or a host, as which nothing can be published."""
    match = _SCHEME.match(path)
    rest = path[match.end() :] if match else path
    return rest.rpartition("/")[2] if not match or "/" in rest else ""


def parent_of(path: str) -> str:
    """The directory above; `.` above a relative name, and the root or bucket itself above them."""
    match = _SCHEME.match(path)
    if match and "/" not in path[match.end() :]:
        return path
    head, _, _ = path.rpartition("/")
    if head:
        return head
    return "/" if path.startswith("/") else "."


def join(directory: str, name: str) -> str:
    """Joins with one `/`, which `tf.io.gfile` takes everywhere."""
    return f"{directory.rstrip('/')}/{name}"


@contextlib.contextmanager
def explained(path: str, doing: str = "publish to") -> Iterator[None]:
    """Turns the errors of file systems into a `PublishError` with the path and the reason.

    Args:
        path: the path to name.
        doing: what failed. Defaults to `"publish to"`.
    """
    try:
        yield
    except WarmupError:  # some are OSErrors too
        raise
    except (tf.errors.OpError, OSError) as error:
        raise PublishError(f"Cannot {doing} {path!r}: {reason_of(error)}.") from error


def reason_of(error: BaseException) -> str:
    """Returns the reason alone, without paths, which may be those of a hidden directory."""
    if isinstance(error, tf.errors.OpError):
        # In-memory file systems give a status without words.
        words = str(error.message).rpartition("; ")[2].rstrip(".")
        return (
            words
            or re.sub(
                r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")
            ).lower()
        )
    return getattr(error, "strerror", None) or type(error).__name__


_KINDS = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a directory",
}


def why_not_a_file(path: str) -> str | None:
    """Tells why a path must not be opened as a file, links followed.

    Args:
        path: local, or of any file system `tf.io.gfile` knows; only local ones have fifos and devices.

    Returns:
        The reason, such as `it is a fifo`; `None` for a file, and for one that is not there or cannot be looked at:
        TensorFlow says so when it opens it.
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
    return f"it is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}"
