"""`verify` checks its options, and runs nothing that it was asked to refuse."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import tensorflow as tf

import keras_warmup
from keras_warmup import verification
from keras_warmup.errors import OptionsError, UnsafeOpsError
from keras_warmup.verification import verify
from tests.builders import predict_log, write_warmup_file

ROWS = [1.0, 2.0]


def test_the_names_of_the_module_are_its_public_ones() -> None:
    assert verification.__all__ == ["RecordVerdict", "VerifyReport", "verify"]
    assert keras_warmup.verify is verify


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "timeout_s must be a number > 0 and <= 604800, got 0."),
        (
            {"memory_limit_bytes": 0, "isolated": True},
            "memory_limit_bytes must be an integer >= 1 or None, got 0.",
        ),
        (
            {"memory_limit_bytes": 2**30},
            "memory_limit_bytes limits the worker process: pass isolated=True with it.",
        ),
    ],
    ids=["timeout", "memory", "memory-here"],
)
def test_options_out_of_range_are_refused(
    tmp_path: pathlib.Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionsError) as caught:
        verify(tmp_path, **options)
    assert str(caught.value) == message


def test_unsafe_ops_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    marker = tmp_path / "marker"
    m = tf.Module()
    m.write = tf.function(
        lambda x: [tf.io.write_file(str(marker), "here"), {"y": x}][1],
        input_signature=[tf.TensorSpec([None])],
    )
    path = str(tmp_path / "writes")
    tf.saved_model.save(m, path, {"serving_default": m.write})
    write_warmup_file(path, predict_log("serving_default", x=ROWS))
    for isolated in (False, True):
        with pytest.raises(UnsafeOpsError) as caught:
            verify(path, isolated=isolated, refuse_unsafe_ops=True)
        text = str(caught.value)
        assert text.startswith(f"Refused to run SavedModel {path!r}: nothing was run. ")
        assert "WriteFile (writes files: signature 'serving_default'" in text.replace(
            "'WriteFile'", "WriteFile"
        )
        assert text.endswith(
            " To run it all the same, leave out refuse_unsafe_ops (--refuse-unsafe-ops)."
        )
        assert not marker.exists()
    with pytest.warns(UserWarning, match="WriteFile"):
        assert verify(path).ok
    assert marker.exists()
