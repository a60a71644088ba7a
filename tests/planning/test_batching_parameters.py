"""The server's batching parameters decide the batch sizes, and what it would refuse is refused here."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_warmup as kw
from keras_warmup.errors import OptionsError
from keras_warmup.planning.batching_parameters import BatchingParameters, read_batching_parameters

GOOD = """
max_batch_size { value: 32 }
batch_timeout_micros { value: 1000 }
num_batch_threads { value: 4 }
allowed_batch_sizes: 8
allowed_batch_sizes: 32
pad_variable_length_inputs: true
"""


def written(tmp_path, text):
    path = tmp_path / "batching.txt"
    path.write_text(text)
    return path


def test_reads_the_servers_text_proto(tmp_path):
    assert read_batching_parameters(written(tmp_path, GOOD)) == BatchingParameters(32, (8, 32))
    assert read_batching_parameters(
        written(tmp_path, "max_batch_size { value: 4 }")
    ) == BatchingParameters(4, ())
    assert read_batching_parameters(written(tmp_path, "")) == BatchingParameters(1000, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: 4", "is no text proto of BatchingParameters"),
        ('{"max_batch_size": 4}', "is no text proto of BatchingParameters"),
        ("max_batch_size { value: 0 }", "must be >= 1"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [8, 4]", r"must ascend, got \[8, 4\]"),
        ("max_batch_size { value: 16 } allowed_batch_sizes: [4, 8]", "refuses them: got 8 and 16"),
    ],
)
def test_what_the_server_refuses_is_refused(text, message, tmp_path):
    with pytest.raises(OptionsError, match=message):
        read_batching_parameters(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OptionsError) as error:
        read_batching_parameters(tmp_path / "none")
    assert str(error.value) == f"batching_parameters: there is no file {str(tmp_path / 'none')!r}."


@pytest.fixture(scope="module")
def model():
    x = keras.Input((4,), name="x")
    return keras.Model(x, keras.layers.Dense(1)(x))


X = np.ones((3, 4), "float32")


def sizes(model, tmp_path, text, **options):
    path = written(tmp_path, text)
    report = kw.export_with_warmup(
        model, tmp_path / "1", data=X, warmup={"batching_parameters": path, **options}
    )
    return [record.batch_size for record in report.records]


def test_one_record_for_each_allowed_size(model, tmp_path):
    assert sizes(model, tmp_path, GOOD) == [8, 32]


def test_without_allowed_sizes_the_default_holds_up_to_the_maximum(model, tmp_path):
    assert sizes(model, tmp_path, "max_batch_size { value: 4 }") == [2]


def test_never_over_the_maximum(model, tmp_path):
    assert sizes(model, tmp_path, "max_batch_size { value: 1 }") == [1]


def test_asking_over_the_maximum_is_refused(model, tmp_path):
    with pytest.raises(
        OptionsError, match=r"batch sizes \[64\] are over the server's max_batch_size=32"
    ):
        sizes(model, tmp_path, GOOD, batch_sizes=[64])


def test_inputs_without_a_batch_are_refused(tmp_path):
    class Scaled(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.float32, name="x"),
                tf.TensorSpec([], tf.float32, name="t"),
            ]
        )
        def scale(self, x, t):
            return {"y": x * t}

    module = Scaled()
    with pytest.raises(
        OptionsError,
        match="cannot be served with --enable_batching: input 't' has no batch dimension",
    ):
        kw.save(
            module,
            tmp_path / "1",
            signatures=module.scale,
            data=X[:, 0],
            warmup={
                "batching_parameters": written(tmp_path, GOOD),
                "transform": lambda x: {"x": x, "t": np.float32(2)},
            },
        )
