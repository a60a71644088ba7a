"""ARCHITECTURE.md and CONTRIBUTING.md name the modules, and what is in them, as they are."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_warmup"
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md")
# `path.py`, `path.py:name` or `path.py:Class.method` in backticks.
_REFERENCE = re.compile(r"`((?:\.?\w+/)*\w+\.py)(?::([\w.]+))?`")
# `folder/` or `folder/file.ext` in backticks; other files than modules.
_PATH = re.compile(r"`((?:\.?[\w-]+/)+(?:[\w.-]+\.(?!py\b)\w+)?)`")


def modules_listed() -> list[str]:
    """Returns the modules of the tree in ARCHITECTURE.md, packages as their `__init__.py`."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\nkeras_warmup/\n(.*?)```", text, re.DOTALL)
    assert tree is not None, "ARCHITECTURE.md has no tree"
    listed = []
    package = ""
    for line in tree[1].splitlines():
        found = re.fullmatch(r"(  |    )(\w+\.py|\w+/) +(\S.*)", line)
        assert found is not None, f"this line of the tree is not understood: {line!r}"
        indent, name, _ = found.groups()
        if name.endswith("/"):
            package = name
            listed.append(f"{name}__init__.py")
        else:
            listed.append(name if indent == "  " else f"{package}{name}")
    return listed


def test_the_tree_has_every_module_once_and_no_other() -> None:
    listed = modules_listed()
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert sorted(modules - set(listed)) == []
    assert sorted(set(listed) - modules) == []
    assert len(listed) == len(set(listed))


def references() -> list[tuple[str, str, str]]:
    """Returns the page, the path and the name of each reference to a module."""
    return sorted(
        {
            (page, path, name)
            for page in PAGES
            for path, name in _REFERENCE.findall((ROOT / page).read_text(encoding="utf-8"))
            if not path.startswith("path.")
        }
    )


def names_in(module: ast.Module) -> set[str]:
    """Returns the names that a module or its classes define, methods as `Class.method`."""
    names: set[str] = set()
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, ast.FunctionDef)
            }
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize(("page", "path", "name"), references())
def test_references_exist(page: str, path: str, name: str) -> None:
    files = [file for file in (PACKAGE / path, ROOT / path) if file.is_file()]
    assert files, f"{page} names {path}, which does not exist"
    if name:
        tree = ast.parse(files[0].read_text(encoding="utf-8"))
        assert name in names_in(tree), f"{page} names {path}:{name}, which does not exist"


@pytest.mark.parametrize("page", PAGES)
def test_folders_and_other_files_exist(page: str) -> None:
    named = _PATH.findall((ROOT / page).read_text(encoding="utf-8"))
    assert [
        path for path in named if not (ROOT / path).exists() and not (PACKAGE / path).exists()
    ] == []
