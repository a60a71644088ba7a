"""Seven ways to publish, which are attacked; a forked child runs each in a fresh directory.

Every model is a dense layer whose weights, and every warmup record a batch whose rows, encode a
number, the *generation*. So the content of a version shows whether it mixes two exports.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import warnings
from typing import Any

import keras
import numpy as np

import keras_warmup as kw

EPOCHS = 3
WARMUP = {"batch_sizes": [2]}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A way to publish under attack.

    Attributes:
        name: `new`, `overwrite`, `save`, `add`, `add_with_twins`, `repair` or `fit`.
        allowed: version -> the generations (of weights, of records) that it may hold after a
            disturbed run.
        versions: the sets of versions that may be listed after a disturbed run.
        done: the generations that the newest version holds after an undisturbed run.
    """

    name: str
    allowed: dict[int, frozenset[tuple[int, int | None]]]
    versions: frozenset[frozenset[int]]
    done: tuple[int, int]


def _scenario(
    name: str,
    done: tuple[int, int],
    allowed: dict[int, set[tuple[int, int | None]]],
    *versions: set[int],
) -> Scenario:
    return Scenario(
        name,
        {version: frozenset(states) for version, states in allowed.items()},
        frozenset(frozenset(one) for one in versions),
        done,
    )


# Version 1 of generation 1 exists before the run, which makes generation 2. `add` keeps the
# weights; before `add_with_twins` there is no warmup file. `repair` keeps both. `fit` publishes 2,
# 3 and 4, and keeps the last.
SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        _scenario("new", (2, 2), {1: {(1, 1)}, 2: {(2, 2)}}, {1}, {1, 2}),
        _scenario("overwrite", (2, 2), {1: {(1, 1), (2, 2)}}, {1}),
        _scenario("save", (2, 2), {1: {(1, 1), (2, 2)}}, {1}),
        _scenario("add", (1, 2), {1: {(1, 1), (1, 2)}}, {1}),
        _scenario("add_with_twins", (1, 2), {1: {(1, None), (1, 2)}}, {1}),
        _scenario("repair", (1, 1), {1: {(1, 1)}}, {1}),
        _scenario(
            "fit",
            (4, 2),
            # The next epoch takes the number of a failed export; a version that cannot be removed
            # stays.
            {1: {(1, 1)}, 2: {(2, 2), (3, 2), (4, 2)}, 3: {(3, 2), (4, 2)}, 4: {(4, 2)}},
            *({1, *own} for own in ([], [2], [2, 3], [3], [3, 4], [4], [2, 4], [2, 3, 4])),
        ),
    ]
}


def build_model(generation: int) -> keras.Model:
    """Builds a model whose weights are all `generation`."""
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="dense")])
    _set_generation(model, generation)
    return model


def _set_generation(model: keras.Model, generation: int) -> None:
    model.set_weights([np.full(weight.shape, generation, "float32") for weight in model.weights])


def build_rows(generation: int) -> np.ndarray:
    """Makes rows of values from `generation` up to, but not including, the next one."""
    return (generation + np.arange(32, dtype="float32").reshape(8, 4) / 64).astype("float32")


def prepare(name: str, base: str) -> None:
    """Makes the version that exists before the scenario runs."""
    if name == "add_with_twins":
        build_model(1).export(f"{base}/1", verbose=False)
    elif name == "repair":  # each weight is stored twice
        build_model(1).export(f"{base}/1", verbose=False)
        kw.add_warmup(f"{base}/1", build_rows(1), warmup=WARMUP)
    else:
        kw.export_with_warmup(build_model(1), f"{base}/1", data=build_rows(1), warmup=WARMUP)


def run(name: str, base: str, generation: int = 2) -> dict[str, Any]:
    """Runs a scenario.

    Returns:
        `warned`: the texts of the warnings.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _RUNS[name](base, generation)
    return {"warned": [str(one.message) for one in caught]}


def _run_new(base: str, generation: int) -> None:
    kw.export_with_warmup(
        build_model(generation), f"{base}/{{version}}", data=build_rows(generation), warmup=WARMUP
    )


def _run_overwrite(base: str, generation: int) -> None:
    kw.export_with_warmup(
        build_model(generation),
        f"{base}/1",
        data=build_rows(generation),
        warmup=WARMUP,
        overwrite=True,
    )


def _run_save(base: str, generation: int) -> None:
    kw.save(build_model(generation), f"{base}/1", data=build_rows(generation), warmup=WARMUP)


def _run_add(base: str, generation: int) -> None:
    kw.add_warmup(f"{base}/1", build_rows(generation), warmup=WARMUP)


def _run_add_with_twins(base: str, generation: int) -> None:
    kw.add_warmup(
        f"{base}/1", build_rows(generation), warmup={**WARMUP, "share_twin_signatures": True}
    )


def _run_repair(base: str, generation: int) -> None:
    kw.repair(f"{base}/1")


class FitEndedError(Exception):
    """A failed export ended a training after it had begun."""


class _SpellEpoch(keras.callbacks.Callback):
    """Sets the weights to another generation at each epoch."""

    epochs = 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1
        _set_generation(self.model, epoch + 2)


def _run_fit(base: str, generation: int) -> None:
    model = build_model(2)
    model.compile("sgd", "mse")
    rows = build_rows(generation)
    export = kw.WarmupExport(
        f"{base}/{{version}}", save_freq="epoch", max_to_keep=1, warmup=WARMUP, verbose=0
    )
    spell = _SpellEpoch()
    try:
        model.fit(
            rows,
            rows[:, :3],
            batch_size=8,
            epochs=EPOCHS,
            shuffle=False,
            verbose=0,
            callbacks=[spell, export],
        )
    except Exception as error:
        # Before the first step the path may be refused; after it, no export may end a training.
        if spell.epochs:
            raise FitEndedError(
                f"after {spell.epochs} epochs: {type(error).__name__}: {error}"
            ) from error
        raise


_RUNS = {
    "new": _run_new,
    "overwrite": _run_overwrite,
    "save": _run_save,
    "add": _run_add,
    "add_with_twins": _run_add_with_twins,
    "repair": _run_repair,
    "fit": _run_fit,
}


def verify(path: str) -> list[str]:
    """Loads a version as a server does and replays its records; returns the failures."""
    return [str(failure) for failure in kw.verify(path).failures]


def versions_of(base: str | os.PathLike[str]) -> list[int]:
    """Lists the versions that a server sees."""
    return sorted(int(entry) for entry in os.listdir(base) if entry.isdecimal())


def files_of(root: str | os.PathLike[str]) -> frozenset[str]:
    """Lists every file and every directory below `root`."""
    return frozenset(str(path.relative_to(root)) for path in pathlib.Path(root).rglob("*"))
