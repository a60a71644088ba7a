"""MkDocs hooks: files at the top of the repository become pages, and commands show their help.

On a page, `<!-- help: add -->` becomes the output of `keras-warmup add --help`.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ROOT = Path(__file__).resolve().parents[1]
# Path in the repository -> path in docs/ that the site shows it under.
_PUBLISHED = {
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "ARCHITECTURE.md": "architecture.md",
    "README.md": "index.md",
    "benchmarks/results/first_request.png": "first_request.png",
    "benchmarks/results/time_to_ready.png": "time_to_ready.png",
}
_HELP = re.compile(r"<!-- help: ([\w-]+) -->")
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
# Columns of a help text: argparse reads them there.
os.environ["COLUMNS"] = "92"


def on_files(files: Any, *, config: Any) -> Any:
    """Adds the files of the repository that the site shows."""
    for source, path in _PUBLISHED.items():
        if files.get_file_from_path(path) is None and (_ROOT / source).exists():
            files.append(File.generated(config, path, abs_src_path=str(_ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Fills in help texts, and turns links between repository files into links of the site."""
    path = page.file.src_uri
    own = {shown: source for source, shown in _PUBLISHED.items() if source != "README.md"}
    source = own.get(path, f"docs/{path}")

    def localise(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        if target.startswith("docs/"):
            shown = target.removeprefix("docs/")
        elif target in _PUBLISHED:
            shown = _PUBLISHED[target]
        elif (_ROOT / target).exists():
            return link["text"]  # a file that only the repository has
        else:
            return link[0]  # MkDocs warns of it
        there = posixpath.relpath(shown, posixpath.dirname(path) or ".")
        return f"[{link['text']}]({there}{link['anchor'] or ''})"

    markdown = _LINK.sub(localise, markdown)
    return _HELP.sub(lambda comment: f"```text\n{help_of(comment[1])}```", markdown)


def help_of(command: str) -> str:
    """Returns what `keras-warmup COMMAND --help` prints."""
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
    from keras_warmup.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            main([command, "--help"])
        except SystemExit as exit_:
            if exit_.code:
                raise ValueError(f"keras-warmup has no command {command!r}") from exit_
    return printed.getvalue()
