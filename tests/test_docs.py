"""Every code block of README.md and docs/ runs; the pages hold every option, name and message.

The blocks of a page run in order, in one namespace and one directory. A comment before a block,
such as `<!-- needs: server -->`, says why it cannot run here; it is compiled, and its arguments are
checked.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import pathlib
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup import errors
from keras_warmup.cli.commands import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
# Blocks of these are shown only.
SHOWN = ("text",)

_FENCE = re.compile(r"^```(\w*)$")
_NEEDS = re.compile(r"^<!-- needs: (.+) -->$")
_COMMENT = re.compile(r"^<!-- .+ -->$")


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        place: page and line, for messages.
        line: line of its first line of code, from 1.
        language: what its fence names.
        code: its text.
        needs: what keeps it from running here; empty where nothing does.
    """

    place: str
    line: int
    language: str
    code: str
    needs: str


def read_blocks(page: pathlib.Path) -> Iterator[Block]:
    """Yields the code blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language, needs = None, "", ""
    for number, line in enumerate(lines, start=1):
        if start is None:
            if fence := _FENCE.match(line):
                start, language = number + 1, fence[1]
            elif comment := _NEEDS.match(line):
                needs = comment[1]
            elif not _COMMENT.match(line):
                needs = ""
        elif line == "```":
            code = "\n".join(lines[start - 1 : number - 1])
            yield Block(f"{page}:{start}", start, language, code, needs)
            start, needs = None, ""
    assert start is None, f"{page}:{start}: the block is not closed"


def commands_in(code: str) -> Iterator[list[str]]:
    """Yields the simple commands of a shell script as lists of words."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|", line.partition(" #")[0]):
            if words := shlex.split(command):
                yield words


def run_page(page: pathlib.Path, names: dict[str, Any]) -> None:
    """Runs the blocks of a page in the working directory, with these names."""
    for block in read_blocks(page):
        if block.language == "python":
            # Blank lines first, so that a traceback shows the line of the page.
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            if block.needs:
                check_calls(block)
            else:
                exec(code, names)
        elif block.language == "bash":
            subprocess.run(["bash", "-n", "-c", block.code], check=True)
            run_commands(block)
        else:
            assert block.language in SHOWN, f"{block.place}: unknown language {block.language!r}"


def run_commands(block: Block) -> None:
    """Runs the `keras-warmup` commands of a block, or checks their arguments."""
    for words in commands_in(block.code):
        if words[0] == "keras-warmup":
            if block.needs:
                check_arguments(words[1:], block.place)
            else:
                assert main(words[1:]) == 0, f"{block.place}: {' '.join(words)}"
        else:
            assert block.needs, (
                f"{block.place}: {words[0]!r} does not run here, and nothing says so"
            )


class ParsedError(Exception):
    """Ends the command line once its arguments were parsed."""


def check_arguments(arguments: Sequence[str], place: str) -> None:
    """Parses arguments of the command line without running it."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *given: Any, **options: Any) -> None:
        parse(self, *given, **options)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        try:
            main(arguments)
        except ParsedError:
            return
        except SystemExit:
            pytest.fail(f"{place}: the command line refuses {shlex.join(arguments)}")


def check_calls(block: Block) -> None:
    """Checks that calls of public functions in a block fit their signatures."""
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("kw."):
            function = getattr(kw, ast.unparse(node.func).removeprefix("kw."))
            keywords = {str(one.arg): None for one in node.keywords}
            try:
                inspect.signature(function).bind(*node.args, **keywords)
            except TypeError as error:
                pytest.fail(f"{block.place}: {ast.unparse(node)}: {error}")


def small_model() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A compiled model, x and y, as README.md and the first page leave them to the reader."""
    x = np.random.default_rng(0).random((64, 8), dtype="float32")
    image = keras.Input((8,), name="image")
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="digit")(image))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model, x, np.arange(64) % 3


def prepare_model() -> dict[str, Any]:
    """`model`, `x`, `y`, and `x.npz`."""
    model, x, y = small_model()
    np.savez("x.npz", image=x)
    return {"model": model, "x": x, "y": y}


def prepare_estimator() -> dict[str, Any]:
    """`./taxi/1`, signatures as an estimator exports them, and Examples in `taxi.tfrecord`."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        serialized = tf.compat.v1.placeholder(tf.string, [None], name="examples")
        spec = {"miles": tf.io.FixedLenFeature([1], tf.float32)}
        miles = tf.io.parse_example(serialized, spec)["miles"]
        weight = tf.compat.v1.get_variable("weight", [1, 2])
        scores = tf.nn.softmax(miles @ weight)
        session.run(tf.compat.v1.global_variables_initializer())
        utils = tf.compat.v1.saved_model
        builder = utils.Builder("./taxi/1")
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "classification": utils.classification_signature_def(serialized, None, scores),
                "regression": utils.regression_signature_def(serialized, scores[:, :1]),
                "predict": utils.predict_signature_def({"examples": serialized}, {"p": scores}),
            },
        )
        builder.save()
    with tf.io.TFRecordWriter("taxi.tfrecord") as writer:
        for miles in (1.0, 2.0, 3.0):
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=[miles]))
            features = tf.train.Features(feature={"miles": feature})
            writer.write(tf.train.Example(features=features).SerializeToString())
    return {}


# What a page leaves to its reader.
PREPARE: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": prepare_model,
    "docs/index.md": prepare_model,
    "docs/guides/existing_models.md": prepare_estimator,
}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_blocks_run(
    page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    prepare = PREPARE.get(str(page.relative_to(ROOT)))
    run_page(page, prepare() if prepare else {})


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files(page: pathlib.Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if ":" not in link and not (page.parent / link).exists()]
    assert missing == []


def first_cells(heading: str) -> list[str]:
    """Names in the first column of the tables below a heading of docs/options.md."""
    text = (DOCS / "options.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_every_option_has_a_row() -> None:
    options = [field.name for field in dataclasses.fields(kw.WarmupOptions)]
    assert sorted(first_cells("WarmupOptions")) == sorted(options)
    assert first_cells("WarmupExport") == list(inspect.signature(kw.WarmupExport).parameters)


def test_every_public_name_is_in_the_api_reference() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: keras_warmup\.(\w+)$", text, re.MULTILINE))
    assert set(kw.__all__) - {"__version__"} <= shown


def test_every_error_is_in_the_api_reference() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^        - (\w+)$", text, re.MULTILINE))
    known = {name for name, one in vars(errors).items() if isinstance(one, type)}
    assert shown == known - {"WarmupError"}


def test_every_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    text = (DOCS / "command_line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^<!-- help: ([\w-]+) -->$", text, re.MULTILINE)) == set(commands)


def strings_in(directory: pathlib.Path) -> str:
    """All string literals of the sources below a directory; adjacent ones are joined."""
    found = []
    for path in directory.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", text, re.MULTILINE)
    known = strings_in(ROOT / "keras_warmup")
    assert len(messages) > 40
    assert [message for message in messages if message not in known] == []
