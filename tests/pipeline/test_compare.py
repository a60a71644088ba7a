"""Two SavedModels are compared on the same requests, in a Session or with tf.saved_model.load."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup._protos import SavedModel
from keras_warmup.errors import ProofError, ReplayError
from keras_warmup.pipeline.compare import compare_models
from keras_warmup.serving.rules import CLASSIFY_METHOD, REGRESS_METHOD
from tests.builders import multi_inference_log, predict_log, save_function, task_log

ROWS = np.arange(6, dtype="float32").reshape(2, 3)
SESSION = "what a Session gives for the source"
LOADED = "what tf.saved_model.load gives for the source (no Session can run it)"


def saved(
    path: pathlib.Path, function: Callable[[Any], Any], dtype: Any = tf.float32, **tracked: Any
) -> str:
    return save_function(function, path, [tf.TensorSpec([None, 3], dtype, name="x")], **tracked)


def test_equal_models_are_bit_identical_on_records_and_on_made_up_rows(
    tmp_path: pathlib.Path,
) -> None:
    one = saved(tmp_path / "1", lambda x: {"y": x * 2.0, "z": x})
    other = saved(tmp_path / "2", lambda x: {"y": x * 2.0, "z": x})
    record, filtered = predict_log(x=ROWS), predict_log(x=ROWS, output_filter=["y"])
    assert compare_models(one, other, [record]) == {
        "serving_default": f"bit-identical to {SESSION}, on 1 records of the warmup file"
    }
    assert compare_models(one, other, [filtered]) == {
        "serving_default": f"bit-identical to {SESSION}, on 1 records of the warmup file and "
        "made-up rows"
    }
    assert compare_models(one, other, []) == {
        "serving_default": f"bit-identical to {SESSION}, on made-up rows"
    }


def test_rounding_is_allowed_only_where_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    one = saved(tmp_path / "1", lambda x: {"y": x * 2.0})
    other = saved(tmp_path / "2", lambda x: {"y": x * 2.000001})
    with pytest.raises(ProofError, match=r"Outputs that differ: 'y' \[2, 3\] by up to "):
        compare_models(one, other, [predict_log(x=ROWS)])
    found = compare_models(one, other, [predict_log(x=ROWS)], rounding=0.0)
    assert found["serving_default"].startswith(f"equal up to rounding to {SESSION}, ")
    third = saved(tmp_path / "3", lambda x: {"y": x * 2.1})
    with pytest.raises(ProofError):
        compare_models(one, third, [predict_log(x=ROWS)], rounding=0.0)
    assert compare_models(one, third, [predict_log(x=ROWS)], rounding=0.1)


def test_another_interface_is_refused(tmp_path: pathlib.Path) -> None:
    one = saved(tmp_path / "1", lambda x: {"y": x})
    with pytest.raises(ProofError, match="in the outputs of 'serving_default'"):
        compare_models(one, saved(tmp_path / "2", lambda x: {"z": x}), [])
    with pytest.raises(ProofError, match="in the inputs of 'serving_default'"):
        compare_models(one, saved(tmp_path / "3", lambda x: {"y": x}, tf.float64), [])
    renamed = saved(tmp_path / "4", lambda x: {"y": x})
    file = pathlib.Path(renamed, "saved_model.pb")
    saved_model = SavedModel.FromString(file.read_bytes())
    definitions = saved_model.meta_graphs[0].signature_def
    definitions["other"].CopyFrom(definitions["serving_default"])
    file.write_bytes(saved_model.SerializeToString())
    with pytest.raises(ProofError, match=r"has the signatures \['other', 'serving_default'\]"):
        compare_models(one, renamed, [])


def test_random_outputs_are_not_compared(tmp_path: pathlib.Path) -> None:
    def noise(seed: int) -> Callable[[Any], dict[str, Any]]:
        return lambda x: {"y": x + tf.random.uniform([2, 3], seed=seed)}

    one, other = saved(tmp_path / "1", noise(1)), saved(tmp_path / "2", noise(2))
    assert compare_models(one, other, [predict_log(x=ROWS)]) == {
        "serving_default": "not compared: an equal request gives other outputs"
    }


def test_outputs_that_depend_on_state_are_compared_request_by_request(
    tmp_path: pathlib.Path,
) -> None:
    count = tf.Variable(0.0)

    def counting(x: Any) -> dict[str, Any]:
        return {"y": x + count.assign_add(1.0)}

    one = saved(tmp_path / "1", counting, count=count)
    other = saved(tmp_path / "2", counting, count=count)
    found = compare_models(one, other, [predict_log(x=ROWS), predict_log(x=ROWS)])
    assert found["serving_default"].startswith(f"bit-identical to {SESSION}, on 2 records")


def test_made_up_rows_that_do_not_run_are_said(tmp_path: pathlib.Path) -> None:
    def picky(x: Any) -> dict[str, Any]:
        return {"y": tf.reshape(x, [9])}

    one, other = saved(tmp_path / "1", picky), saved(tmp_path / "2", picky)
    assert compare_models(one, other, []) == {
        "serving_default": "not compared: made-up rows do not run"
    }
    with pytest.raises(ReplayError):
        compare_models(one, other, [predict_log(x=ROWS)])


def test_python_functions_and_unknown_ranks_are_not_compared(tmp_path: pathlib.Path) -> None:
    def calls(x: Any) -> dict[str, Any]:
        return {"y": tf.py_function(lambda one: one, [x], tf.float32)}

    one = saved(tmp_path / "1", calls)
    assert compare_models(one, one, []) == {
        "serving_default": "not compared: it calls Python functions"
    }
    free = save_function(
        lambda x: {"y": x}, tmp_path / "2", [tf.TensorSpec(None, tf.float32, name="x")]
    )
    (found,) = compare_models(free, free, []).values()
    assert found.startswith("not compared: Cannot make up rows")


@pytest.fixture(scope="module")
def unservable_and_cured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An export with all request kinds that no Session can run, and the same that one can."""
    spec = {"f": tf.io.FixedLenFeature([3], tf.float32)}
    x = keras.Input((3,), name="f")
    model = keras.Model(x, keras.layers.Dense(1, activation="sigmoid")(x))
    module = tf.Module()
    module.model = model
    signatures = {
        "serving_default": model_function(model),
        "classify": classify_function(model, spec),
        "regress": regress_function(model, spec),
    }
    base = tmp_path_factory.mktemp("kinds")
    tf.saved_model.save(module, str(base / "1"), signatures=signatures)
    kw.repair(base / "1", output=base / "2")
    return str(base / "1"), str(base / "2")


def model_function(model: Any) -> Any:
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def predict(x: Any) -> dict[str, Any]:
        return {"y": model(x)}

    return predict


def classify_function(model: Any, spec: Any) -> Any:
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(inputs: Any) -> dict[str, Any]:
        return {"scores": model(tf.io.parse_example(inputs, spec)["f"])}

    return classify


def regress_function(model: Any, spec: Any) -> Any:
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(inputs: Any) -> dict[str, Any]:
        return {"outputs": model(tf.io.parse_example(inputs, spec)["f"])}

    return regress


def test_every_request_kind_is_compared_with_what_load_gives(
    unservable_and_cured: tuple[str, str],
) -> None:
    example = tf.train.Example()
    example.features.feature["f"].float_list.value.extend([1.0, 2.0, 3.0])
    logs = [
        predict_log(x=ROWS),
        task_log("classify", "classify", example),
        task_log("regress", "regress", example, example),
        multi_inference_log(
            ("classify", CLASSIFY_METHOD), ("regress", REGRESS_METHOD), examples=[example]
        ),
    ]
    found = compare_models(*unservable_and_cured, logs)
    assert set(found) == {"classify", "regress", "serving_default"}
    for line in found.values():
        assert f"to {LOADED}, on " in line
        assert "not compared" not in line


@pytest.mark.parametrize(
    "log",
    [predict_log("nope", x=ROWS), predict_log(y=ROWS)],
    ids=["unknown_signature", "unknown_input"],
)
def test_a_record_that_no_server_runs_is_refused(
    log: Any, unservable_and_cured: tuple[str, str]
) -> None:
    with pytest.raises(ReplayError):
        compare_models(*unservable_and_cured, [log])


def test_a_result_that_no_session_can_run_is_refused(
    unservable_and_cured: tuple[str, str],
) -> None:
    unservable, cured = unservable_and_cured
    with pytest.raises(ReplayError, match="Repair the SavedModel with keras-warmup repair"):
        compare_models(cured, unservable, [])
