"""Tests of `keras_warmup.planning.batching_parameters`."""

from __future__ import annotations

import pathlib

import pytest

from keras_warmup.errors import OptionsError
from keras_warmup.planning.batching_parameters import BatchingParameters, read_batching_parameters

ALL_FIELDS = """
max_batch_size { value: 32 }
batch_timeout_micros { value: 1000 }
num_batch_threads { value: 4 }
allowed_batch_sizes: 8
allowed_batch_sizes: 32
pad_variable_length_inputs: true
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "batching.txt"


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        pytest.param(ALL_FIELDS, BatchingParameters(32, (8, 32)), id="all fields"),
        pytest.param("max_batch_size { value: 4 }", BatchingParameters(4, ()), id="maximum only"),
        pytest.param("", BatchingParameters(1000, ()), id="defaults of the server"),
    ],
)
def test_reads_the_text_proto_of_the_server(
    text: str, parameters: BatchingParameters, path: pathlib.Path
) -> None:
    path.write_text(text)
    assert read_batching_parameters(path) == parameters


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: 4", "is not a text proto of BatchingParameters"),
        ('{"max_batch_size": 4}', "is not a text proto of BatchingParameters"),
        ("max_batch_size { value: 0 }", "must be >= 1"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: [8, 4]",
            r"must be ascending, got \[8, 4\]",
        ),
        ("max_batch_size { value: 16 } allowed_batch_sizes: [4, 8]", "refuses them: got 8 and 16"),
    ],
)
def test_files_that_the_server_refuses_are_refused(
    text: str, message: str, path: pathlib.Path
) -> None:
    path.write_text(text)
    with pytest.raises(OptionsError, match=message):
        read_batching_parameters(path)


def test_a_missing_file_is_named(path: pathlib.Path) -> None:
    with pytest.raises(OptionsError) as error:
        read_batching_parameters(path)
    assert str(error.value) == f"batching_parameters: {str(path)!r} does not exist."


def test_a_directory_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionsError) as error:
        read_batching_parameters(tmp_path)
    assert str(error.value) == (
        f"batching_parameters: cannot read {str(tmp_path)!r}: it is a directory, expected a file."
    )
