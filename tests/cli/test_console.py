"""What is printed beside a report: progress, status and warnings, on stderr."""

from __future__ import annotations

import warnings

import pytest

from keras_warmup.cli.console import (
    one_line_warnings,
    print_line,
    show_progress,
    show_status,
)


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("a\x1b[31mb")
    assert capsys.readouterr() == ("", "keras-warmup: a\\x1b[31mb\n")


def test_progress_is_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(quiet=False) as progress:
        assert progress is not None
        for done in range(1, 31):
            progress(done, 30, "step")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"keras-warmup: measuring {done}/30" for done in range(3, 31, 3)]


def test_with_json_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(quiet=True) as progress, show_status("working", quiet=True):
        assert progress is None
    assert capsys.readouterr() == ("", "")


def test_warnings_for_users_are_one_line_and_others_are_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with one_line_warnings():
            warnings.warn("made-up rows", stacklevel=1)
            warnings.warn("old name", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "keras-warmup: warning: made-up rows\n"
