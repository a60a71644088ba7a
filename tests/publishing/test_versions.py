"""Tests of `keras_warmup.publishing.versions`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest
import tensorflow as tf

from keras_warmup.errors import OptionsError, PublishError
from keras_warmup.publishing.versions import (
    fields_of,
    format_filepath,
    has_version,
    model_name_of,
    read_version,
    resolve_version,
    version_hint,
)

gfile = tf.io.gfile


@pytest.fixture(params=["local", "ram"])
def base(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    """A base path that does not exist, on a file system with directories and on one without."""
    if request.param == "local":
        yield str(tmp_path / "models" / "m")
    else:
        root = f"ram://{tmp_path.name}"
        gfile.makedirs(root)
        yield f"{root}/models/m"
        gfile.rmtree(root)


# -- versions --------------------------------------------------------------------------------------


def test_next_version_reads_names_as_the_server_does(base: str) -> None:
    assert resolve_version(f"{base}/{{version}}") == f"{base}/1"
    for name in ["2", "00000123", ".999", "v7", "12a", "-5", "3.5", "99999999999999999999", "٤٥٦"]:
        gfile.makedirs(f"{base}/{name}")
    assert resolve_version(f"{base}/{{version}}") == f"{base}/124"
    with gfile.GFile(f"{base}/130", "w") as file:
        file.write("the server takes a file for a version too")
    assert resolve_version(f"{base}/{{version}}") == f"{base}/131"


def test_next_version_ends_at_int64(tmp_path: pathlib.Path) -> None:
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(PublishError) as caught:
        resolve_version(tmp_path / "{version}")
    assert str(caught.value) == (
        f"Cannot take the next version under '{tmp_path}/': 9223372036854775807 is the last one a "
        "server reads."
    )


@pytest.mark.parametrize(
    ("template", "there", "expected"),
    [
        ("{version}", ["4"], "5"),
        ("{version:08d}", ["00000004"], "00000005"),
        ("v{version}", ["v4", "9"], "v5"),
        ("{version}-3", ["4-3", "7-2"], "5-3"),
        ("{version}/{version}", ["4"], "5/5"),
        ("a{b}", ["4"], "a{b}"),
    ],
)
def test_resolve_version(
    tmp_path: pathlib.Path, template: str, there: list[str], expected: str
) -> None:
    for name in there:
        (tmp_path / name).mkdir()
    assert resolve_version(tmp_path / template) == str(tmp_path / expected)


def test_version_with_a_bad_format_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionsError) as caught:
        resolve_version(f"{tmp_path}/{{version:s}}")
    assert str(caught.value) == (
        f"Bad path '{tmp_path}/{{version:s}}': '{{version:s}}' cannot format an integer (Unknown "
        "format code 's' for "
        "object of type 'int'). Use {version} or {version:08d}."
    )


@pytest.mark.parametrize("path", ["m/best", "gs://bucket/m/{epoch}-{val_loss:.2f}", "m/v{version}"])
def test_hint_for_a_name_that_no_server_loads(path: str) -> None:
    assert version_hint(path) == (
        f"No TensorFlow Serving server loads '{path}': its last component is not an integer. "
        f"Publish to '{path}/1' or '{path}/{{version}}'."
    )


@pytest.mark.parametrize(
    "path", ["m/1", "m/00000123", "m/{version}", "m/{epoch:03d}/", pathlib.Path("m/7"), "5"]
)
def test_no_hint_for_a_version(path: str | os.PathLike[str]) -> None:
    assert version_hint(path) is None


# -- templates -------------------------------------------------------------------------------------


def test_format_filepath_fills_in_all_but_the_version() -> None:
    logs = {"val_loss": 0.12345, "accuracy": 0.5}
    assert (
        format_filepath("m-{epoch:02d}/{val_loss:.2f}/{version:04d}", 3, logs)
        == "m-03/0.12/{version:04d}"
    )
    assert format_filepath("m/{{a}}/{epoch}", 12) == "m/{a}/12"


def test_unknown_field_names_the_known_ones() -> None:
    with pytest.raises(OptionsError) as caught:
        format_filepath("m/{vall_loss}/{acc:.1f}/{version}", 1, {"val_loss": 0.1, "loss": 0.2})
    assert str(caught.value) == (
        "Cannot fill in filepath 'm/{vall_loss}/{acc:.1f}/{version}': unknown fields {vall_loss}, "
        "{acc}. Known fields: {version}, {epoch}, {loss}, {val_loss}."
    )


def test_format_that_does_not_fit_is_refused() -> None:
    with pytest.raises(OptionsError) as caught:
        format_filepath("m/{loss:d}", 1, {"loss": 0.2})
    assert str(caught.value) == (
        "Cannot fill in filepath 'm/{loss:d}': '{loss:d}' does not format a float (Unknown format "
        "code 'd' for object of type 'float')."
    )


@pytest.mark.parametrize("filepath", ["m/{}", "m/{0}", "m/{epoch.real}", "m/{epoch[0]}"])
def test_field_that_is_not_a_name_is_refused(filepath: str) -> None:
    field = filepath[2:]
    with pytest.raises(OptionsError) as caught:
        fields_of(filepath)
    assert str(caught.value) == (
        f"Bad filepath '{filepath}': unknown fields {field}. Known fields: {{version}}, {{epoch}} "
        "and the names of the "
        "metrics, such as {val_loss:.2f}."
    )


def test_unmatched_brace_is_refused() -> None:
    with pytest.raises(OptionsError) as caught:
        fields_of("m/{epoch")
    assert str(caught.value) == (
        "Bad filepath 'm/{epoch': expected '}' before end of string. Write fields as {version}, "
        "{epoch:02d} or {val_loss:.2f}, and a literal brace as {{ or }}."
    )


@pytest.mark.parametrize("filepath", ["m/{epoch:s}", "m/{version:s}"])
def test_integer_field_with_another_format_is_refused(filepath: str) -> None:
    with pytest.raises(OptionsError, match="Unknown format code 's' for object of type 'int'"):
        fields_of(filepath)


@pytest.mark.parametrize("name", ["1", "00000123", str(2**63 - 1)])
def test_decimal_integers_are_versions(name: str) -> None:
    assert read_version(name) == int(name)


@pytest.mark.parametrize("name", ["", "-5", "3.5", "v7", "12a", "٤٥٦", str(2**63)])
def test_other_names_are_no_versions(name: str) -> None:
    assert read_version(name) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [("/m/digits/1", "digits"), ("gs://b/digits/{version}", "digits"), ("/m/digits", "digits")],
)
def test_a_model_has_the_name_of_its_base_path(path: str, name: str) -> None:
    assert model_name_of(path) == name


def test_a_field_for_the_version_is_found() -> None:
    assert has_version("m/{version}") and has_version("m/v{version:08d}")
    assert not has_version("m/{epoch}") and not has_version("m/1")


def test_fields_are_listed_once_and_in_order() -> None:
    assert fields_of("m/{epoch:02d}-{val_loss:.2f}/{epoch}/{version}") == (
        "epoch",
        "val_loss",
        "version",
    )
