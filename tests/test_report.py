"""Tests of `keras_warmup.report`: names from a file are printed without control characters."""

from __future__ import annotations

import pytest
import rich.console

from keras_warmup.report import FrozenVariables, RecordReport, WarmupReport, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("größe [x] 模型 😀", "größe [x] 模型 😀"),
        ("\x1b[2J\r\n\t\x00\x9b", "\\x1b[2J\\r\\n\\t\\x00\\x9b"),
        ("a\u202eb\u200b", "a\\u202eb\\u200b"),
        ("\ud800", "\\ud800"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_names_are_shown_with_control_characters_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(name).encode()


def test_a_table_prints_names_without_markup_or_control_characters() -> None:
    record = RecordReport("k[/bold]\x1b[2J", "predict", 1, {"[red]\x07": (1,)}, ("\n",), "data", 7)
    console = rich.console.Console(width=200)
    with console.capture() as captured:
        console.print(WarmupReport("/m\x1b", None, (record,), notes=("a\nb\x1b",)))
    text = captured.get()
    for part in ("note: a\nb\\x1b", "/m\\x1b", "k[/bold]\\x1b[2J", "[red]\\x07 [1]", "\\n"):
        assert part in text
    assert "\x1b" not in text and "\x07" not in text


def test_a_frozen_model_is_reported_with_one_line_for_each_reason() -> None:
    stayed = {"a": "an op writes it", **{name: "it is large" for name in "bcdef"}}
    report = WarmupReport("/m", None, (), frozen=FrozenVariables(7, 70, stayed, 600))
    console = rich.console.Console(width=200)
    with console.capture() as captured:
        console.print(report)
    assert captured.get().splitlines() == [
        "no warmup records in /m",
        "frozen: 7 variables are constants (70 bytes), 6 stayed variables (600 bytes)",
        "frozen: 1 stayed because an op writes it: 'a'",
        "frozen: 5 stayed because it is large: 'b', 'c', 'd', ...",
    ]
    assert report.to_dict()["frozen"]["variables"] == stayed
