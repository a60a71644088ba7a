"""Links that lead out of removed directories: their targets must survive."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import keras

import keras_warmup as kw
from tests.trust import shim
from tests.trust.completeness import IncompleteError, read_version
from tests.trust.faults import Trials
from tests.trust.figures import Figures, timed
from tests.trust.races import make_old
from tests.trust.scenarios import WARMUP, build_model, build_rows, files_of


def follow_links(trials: Trials) -> Figures:
    """Replaces, fails, sweeps and removes versions with links; files outside must survive."""
    figures = Figures("links that lead outside")
    with timed(figures):
        for name, case in CASES.items():
            root = trials.fresh("new")
            shared = root / "shared"
            shared.mkdir()
            (shared / "vocab.txt").write_text("a\nb\n")
            before = _contents(shared)
            figures.trials += 1
            if case is _leave_link_to_sweep:
                _kill_half_way(trials, root)
            outcome = trials.server.run(f"tests.trust.links:{case.__name__}", {"root": str(root)})
            if outcome.ended != "returned":
                figures.add(
                    "failed", f"{name}: {outcome.ended}: {outcome.error}: {outcome.message[:300]}"
                )
            elif outcome.value:
                figures.add("failed", f"{name}: {outcome.value}")
            if _contents(shared) != before:
                figures.add(
                    "missing",
                    f"{name}: outside, {sorted(before)} became {sorted(_contents(shared))}",
                )
            hidden = [entry for entry in files_of(root) if ".kw-" in entry]
            if hidden:
                figures.add("leftovers", f"{name}: {', '.join(sorted(hidden)[:5])}")
    return figures


def _contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {
        name: (directory / name).read_bytes()
        for name in files_of(directory)
        if (directory / name).is_file()
    }


def _plant(root: str, version: str) -> None:
    """Puts links to the shared directory, and to the file in it, into a version."""
    assets = pathlib.Path(root, "m", version, "assets")
    assets.mkdir(exist_ok=True)
    (assets / "vocab").symlink_to(f"{root}/shared")
    (assets / "vocab.txt").symlink_to(f"{root}/shared/vocab.txt")


def _replace_link(root: str) -> None:
    """Replaces an old version that holds links."""
    _plant(root, "1")
    kw.export_with_warmup(
        build_model(2), f"{root}/m/1", data=build_rows(2), warmup=WARMUP, overwrite=True
    )


def _save_over_link(root: str) -> None:
    """Replaces an old version that holds links, with `save`."""
    _plant(root, "1")
    kw.save(build_model(2), f"{root}/m/1", data=build_rows(2), warmup=WARMUP)


def _fail_with_link(root: str) -> str:
    """Exports with an `export_fn` that makes links and then fails."""

    def export(model: keras.Model, directory: str) -> None:
        model.export(directory, verbose=False)
        pathlib.Path(directory, "assets", "vocab").symlink_to(f"{root}/shared")
        raise ZeroDivisionError

    try:
        kw.export_with_warmup(
            build_model(2), f"{root}/m/{{version}}", data=build_rows(2), export_fn=export
        )
    except ZeroDivisionError:
        return ""
    return "the error of export_fn was lost"


def _replace_linked_version(root: str) -> str:
    """Replaces a version that is a link to a model elsewhere, which holds links itself."""
    _plant(root, "1")
    os.makedirs(f"{root}/archive")
    os.rename(f"{root}/m/1", f"{root}/archive/1")
    os.symlink(f"{root}/archive/1", f"{root}/m/1")
    kw.export_with_warmup(
        build_model(2), f"{root}/m/1", data=build_rows(2), warmup=WARMUP, overwrite=True
    )
    return _unless_generation(f"{root}/m/1", 2)


class _AtEpoch(keras.callbacks.Callback):
    """Calls a function at the end of epochs, after the export."""

    def __init__(self, function: Callable[[int], None]) -> None:
        super().__init__()
        self._function = function

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._function(epoch + 1)


def _fit(filepath: str, function: Callable[[int], None]) -> None:
    """Exports at three epochs, keeps one version, and calls a function after each export."""
    model = build_model(2)
    # The weights stay what they are.
    model.compile(keras.optimizers.SGD(0.0), "mse")
    rows = build_rows(2)
    export = kw.WarmupExport(filepath, save_freq="epoch", max_to_keep=1, warmup=WARMUP, verbose=0)
    model.fit(rows, rows[:, :3], epochs=3, verbose=0, callbacks=[export, _AtEpoch(function)])


def _remove_linked_version(root: str) -> str:
    """Moves a published version away and leaves a link, which `max_to_keep` then removes."""
    archived = pathlib.Path(root, "archive", "2")
    archived.parent.mkdir()

    def archive(epoch: int) -> None:
        if epoch == 1:
            os.rename(f"{root}/m/2", archived)
            os.symlink(archived, f"{root}/m/2")

    _fit(f"{root}/m/{{version}}", archive)
    try:
        read_version(archived)
    except IncompleteError as error:
        return f"the version behind the link: {error}"
    return ""


def _remove_version_with_link(root: str) -> None:
    """Puts links into a published version, which `max_to_keep` then removes."""
    _fit(f"{root}/m/{{version}}", lambda epoch: _plant(root, "2") if epoch == 1 else None)


def _kill_half_way(trials: Trials, root: pathlib.Path) -> None:
    """Kills an export, and makes its remains hold links and look older than a day."""
    trials.run("new", root, arm=shim.Arm.at(45, shim.KILL))
    left = next(path for path in (root / "m").rglob("variables") if ".kw-" in str(path))
    (left / "vocab").symlink_to(root / "shared")
    (left / "vocab.txt").symlink_to(root / "shared" / "vocab.txt")
    make_old(root / "m")


def _leave_link_to_sweep(root: str) -> None:
    """Exports where the remains of a killed export hold links; the export sweeps them."""
    kw.export_with_warmup(
        build_model(3), f"{root}/m/{{version}}", data=build_rows(3), warmup=WARMUP
    )


def _change_directory(root: str) -> str:
    """Publishes to a relative path in `fit`, while the working directory changes."""
    other = pathlib.Path(root, "elsewhere", "m")
    shutil.copytree(f"{root}/m/1", other / "1")
    shutil.copytree(f"{root}/m/1", other / "2")
    os.chdir(root)
    _fit("m/{version}", lambda epoch: os.chdir(other.parent) if epoch == 1 else None)
    for version in ("1", "2"):
        if why := _unless_generation(str(other / version), 1):
            return f"the other directory: {why}"
    return ""


def _unless_generation(path: str, generation: int) -> str:
    """Returns what is wrong with a version that must hold a generation, or an empty string."""
    try:
        found = read_version(path).state
    except IncompleteError as error:
        return f"{path} is not whole: {error}"
    return "" if found == (generation, generation) else f"{path} holds the generations {found}"


CASES: dict[str, Callable[[str], str | None]] = {
    "overwrite=True": _replace_link,
    "save": _save_over_link,
    "a failing export_fn": _fail_with_link,
    "a version that is a link, overwrite=True": _replace_linked_version,
    "a version that is a link, max_to_keep": _remove_linked_version,
    "sweep": _leave_link_to_sweep,
    "max_to_keep": _remove_version_with_link,
    "chdir during fit": _change_directory,
}
