"""No mutant of a SavedModel or a warmup file hangs, crashes or exhausts its readers."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.records.warmup_file import WARMUP_PATH
from tests.trust.figures import HostileFigures
from tests.trust.fuzz import cases_of
from tests.trust.measured import Case, Outcome, figures_of, run_measured

_SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "savedmodels"


def _parse_examples(rows: tf.Tensor) -> dict[str, tf.Tensor]:
    features = tf.io.parse_example(
        rows,
        {
            "age": tf.io.FixedLenFeature([1], tf.float32, default_value=[0.0]),
            "words": tf.io.VarLenFeature(tf.string),
            "clicks": tf.io.RaggedFeature(tf.int64),
        },
    )
    return {"y": features["age"] + tf.cast(tf.size(features["clicks"].values), tf.float32)}


def _loop_and_branch(rows: tf.Tensor) -> dict[str, tf.Tensor]:
    text = tf.while_loop(lambda row: tf.constant(False), lambda row: (tf.identity(row),), (rows,))[
        0
    ]
    numbers = tf.cond(
        tf.size(text) > 3,
        lambda: tf.io.decode_csv(text, [[0.0], [""]])[0],
        lambda: tf.strings.to_number(text),
    )
    return {"y": numbers}


def _save_function(function: Callable[..., Any], path: pathlib.Path) -> None:
    module = tf.Module()
    module.serve = tf.function(function, input_signature=[tf.TensorSpec([None], tf.string, "rows")])
    tf.saved_model.save(module, str(path), signatures=module.serve)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    """SavedModels of different kinds."""
    base = tmp_path_factory.mktemp("fuzz")
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    kw.export_with_warmup(dense, str(base / "dense" / "1"), data=np.zeros([4, 3], np.float32))
    words = keras.Input((1,), dtype="string")
    looked_up = keras.layers.StringLookup(vocabulary=["a", "b"])(words)
    keras.Model(words, keras.layers.Embedding(3, 2)(looked_up)).export(
        str(base / "lookup" / "1"), verbose=False
    )
    _save_function(_parse_examples, base / "examples" / "1")
    _save_function(_loop_and_branch, base / "loop" / "1")
    made = [base / name / "1" for name in ("dense", "lookup", "examples", "loop")]
    return made + sorted(path.parent for path in _SHARED.glob("*/1/saved_model.pb"))


def _survive(cases: Sequence[Case]) -> list[Outcome]:
    outcomes = run_measured(cases)
    bad = [one for one in outcomes if not one.is_good]
    assert not bad, "\n".join(map(str, bad))
    assert len(outcomes) == len(cases)
    return outcomes


def _model_cases(exports: list[pathlib.Path], count: int) -> list[Case]:
    return cases_of("look_at_mutants", [path / "saved_model.pb" for path in exports], count)


def _record_cases(exports: list[pathlib.Path], count: int) -> list[Case]:
    return cases_of("look_at_mutants_of_records", [exports[0] / WARMUP_PATH], count)


def test_some_mutants_of_models_and_records_end_well(exports: list[pathlib.Path]) -> None:
    outcomes = _survive([*_model_cases(exports, 60), *_record_cases(exports, 60)])
    refused = sum(one.refused for one in outcomes)
    assert 10 < refused < 110  # mutations that break nothing, or everything, test little


@pytest.mark.trust
@pytest.mark.parametrize("what", ["saved_model.pb", "warmup"])
def test_thousands_of_mutants_end_well(
    exports: list[pathlib.Path], what: str, report_figures: Callable[[HostileFigures], None]
) -> None:
    count = 3500 if what == "saved_model.pb" else 3000
    cases = (
        _model_cases(exports, count) if what == "saved_model.pb" else _record_cases(exports, count)
    )
    outcomes = run_measured(cases)
    report_figures(figures_of(f"fuzzed {what} files, inspect", count, outcomes))
    assert len(outcomes) == len(cases)
