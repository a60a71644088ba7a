"""Tests of `keras_warmup.paths`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from keras_warmup.data.files import read_file
from keras_warmup.errors import DataError, OptionsError, PublishError
from keras_warmup.paths import (
    absolute,
    as_path,
    explained,
    join,
    name_of,
    parent_of,
    reason_of,
    scheme_of,
    why_not_a_file,
)
from keras_warmup.planning.batching_parameters import read_batching_parameters
from keras_warmup.records.warmup_file import read_records
from keras_warmup.savedmodel.signatures import read_meta_graph

# -- path arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (None, "A path must be a str or os.PathLike, got NoneType."),
        (b"models/1", "A path must be a str or os.PathLike, got bytes."),
        ("", "A path must not be empty."),
        ("a\0b", "A path must not hold a NUL byte, got 'a\\x00b'."),
        (
            pathlib.PurePosixPath("gs://b/m"),
            "The path 'gs:/b/m' was a URL before pathlib merged its slashes. Pass it as a str.",
        ),
    ],
    ids=["None", "bytes", "empty", "NUL", "merged URL"],
)
def test_a_path_argument_that_is_not_a_path_is_refused(path: Any, text: str) -> None:
    with pytest.raises(OptionsError) as caught:
        as_path(path)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("file:///models/1", "/models/1"),
        ("file://localhost/models/1/", "/models/1"),
        ("file:/models/1", "/models/1"),
        (pathlib.PurePosixPath("file:///models/1"), "/models/1"),
        ("~/models/1", os.path.expanduser("~/models/1")),
        ("models/~1", "models/~1"),
        ("gs://bucket/models/1/", "gs://bucket/models/1"),
    ],
)
def test_path_is_read_as_users_write_it(path: str | os.PathLike[str], expected: str) -> None:
    assert as_path(path) == expected


def test_file_url_of_another_host_is_refused() -> None:
    with pytest.raises(OptionsError) as caught:
        as_path("file://server/models/1")
    assert str(caught.value) == (
        "The path 'file://server/models/1' names a file of the host 'server'. Give a local path."
    )


def test_path_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(OptionsError) as caught:
        as_path(os.fsdecode(b"/models/\xff/1"))
    assert str(caught.value) == (
        "The path '/models/\\udcff/1' is not UTF-8, and TensorFlow takes no other paths. Rename "
        "it, or give a link to it."
    )


@pytest.mark.parametrize(
    "read", [read_meta_graph, read_records, read_file], ids=lambda read: read.__name__
)
def test_readers_refuse_a_path_that_is_not_utf8(read: Callable[[str], Any]) -> None:
    with pytest.raises(OptionsError, match="is not UTF-8"):
        read("a\udcff")


# -- parts of paths --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "scheme", "parent", "name"),
    [
        ("/models/m/1", "", "/models/m", "1"),
        ("/1", "", "/", "1"),
        ("/", "", "/", ""),
        ("1", "", ".", "1"),
        ("m/1", "", "m", "1"),
        ("GS://bucket/m/1", "gs", "GS://bucket/m", "1"),
        ("gs://bucket/m", "gs", "gs://bucket", "m"),
        ("gs://bucket", "gs", "gs://bucket", ""),
    ],
)
def test_paths_are_split(path: str, scheme: str, parent: str, name: str) -> None:
    assert (scheme_of(path), parent_of(path), name_of(path)) == (scheme, parent, name)


def test_paths_are_joined_with_one_slash() -> None:
    assert join("gs://bucket/", "1") == join("gs://bucket", "1") == "gs://bucket/1"
    assert absolute("m/../1", "/base") == "/base/m/../1"
    assert absolute("/m/1", "/base") == "/m/1"
    assert absolute("gs://bucket/m", "/base") == "gs://bucket/m"


# -- errors of file systems ------------------------------------------------------------------------


def test_reason_of_a_file_system_error_holds_no_path() -> None:
    assert reason_of(PermissionError(13, "Permission denied", "/hidden")) == "Permission denied"
    assert reason_of(OSError()) == "OSError"
    full = tf.errors.ResourceExhaustedError(None, None, "/hidden; No space left on device")
    assert reason_of(full) == "No space left on device"


def test_file_system_error_without_a_message_gives_its_kind() -> None:
    assert reason_of(tf.errors.NotFoundError(None, None, "")) == "not found"


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        tf.errors.UnknownError(None, None, "a; Permission denied"),
    ],
)
def test_file_system_errors_become_publish_errors(error: Exception) -> None:
    with pytest.raises(PublishError) as caught, explained("m/1", "read"):
        raise error
    assert str(caught.value) == "Cannot read 'm/1': Permission denied."
    assert caught.value.__cause__ is error


def test_errors_of_this_package_stay_as_they_are() -> None:
    error = PublishError("our own")
    with pytest.raises(PublishError) as caught, explained("m/1"):
        raise error
    assert caught.value is error


# -- files that must not be opened -----------------------------------------------------------------


def fifo(path: pathlib.Path) -> str:
    os.mkfifo(path)
    return "it is a fifo"


def directory(path: pathlib.Path) -> str:
    path.mkdir()
    return "it is a directory"


def device(path: pathlib.Path) -> str:
    path.symlink_to("/dev/zero")
    return "it is a character device"


def file(path: pathlib.Path) -> None:
    path.touch()


def link(path: pathlib.Path) -> None:
    (path.parent / "target").touch()
    path.symlink_to("target")


def absent(path: pathlib.Path) -> None:
    pass


@pytest.mark.parametrize("make", [fifo, directory, device, file, link, absent])
def test_only_files_may_be_opened(
    make: Callable[[pathlib.Path], str | None], tmp_path: pathlib.Path
) -> None:
    reason = make(tmp_path / "x")
    assert why_not_a_file(str(tmp_path / "x")) == reason


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a\udcff", "its name is not UTF-8, which TensorFlow cannot open"),
        ("a\0b", "its name holds a NUL character"),
        ("ram://keras_warmup_absent", None),
    ],
)
def test_names_that_cannot_be_opened_have_a_reason(path: str, reason: str | None) -> None:
    assert why_not_a_file(path) == reason


@pytest.mark.parametrize("name", ["rows.npz", "rows.tfrecord"])
def test_data_is_not_read_from_a_fifo(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert (
        str(caught.value) == f"Cannot read data from {str(path)!r}: it is a fifo, expected a file."
    )


def test_batching_parameters_are_not_read_from_a_fifo(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "parameters"
    os.mkfifo(path)
    with pytest.raises(OptionsError) as caught:
        read_batching_parameters(path)
    assert (
        str(caught.value)
        == f"batching_parameters: cannot read {str(path)!r}: it is a fifo, expected a file."
    )
