"""The commands and their help."""

from __future__ import annotations

import pytest

from keras_warmup.cli.parser import build_parser

COMMANDS = [
    "inspect",
    "add",
    "bench",
    "minimize",
    "verify",
    "repair",
    "freeze",
    "method-names",
    "records",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "example" in out and f"  keras-warmup {command} ./" in out
    assert "--json" in out and "EXPORT_DIR" in out


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.strip()} >= set(COMMANDS)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["inspect"],
        ["nope", "./m/1"],
        ["add", "./m/1", "--kind", "nope"],
        ["bench", "./m/1", "--server", "localhost:8500", "--docker"],
        ["bench", "./m/1", "--minimize"],
        ["add", "./m/1", "--minimize"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: keras-warmup")
