"""SavedModels and model servers that several tests of this folder use."""

from __future__ import annotations

import os
import pathlib
import sys

import numpy as np
import pytest

from keras_warmup.bench.servers import ServerCommand, find_model_server
from keras_warmup.errors import ServerError
from keras_warmup.records.warmup_file import write_records
from tests.bench.models import WARMED_ROWS, RequestCounter, TwoSignatures
from tests.builders import predict_log, write_warmup_file

_SERVING_DOUBLE = pathlib.Path(__file__).parent / "serving_double.py"
_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cold_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of two signatures, without a warmup file."""
    path = tmp_path_factory.mktemp("bench") / "cold" / "1"
    TwoSignatures().save(path)
    return str(path)


@pytest.fixture(scope="session")
def warm_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model with a record for its default signature."""
    path = tmp_path_factory.mktemp("bench") / "warm" / "1"
    TwoSignatures().save(path)
    return write_warmup_file(
        path, predict_log("serving_default", x=np.array(WARMED_ROWS, np.float32))
    )


@pytest.fixture(scope="session")
def counter_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that counts its requests, with a higher version beside it."""
    base_path = tmp_path_factory.mktemp("servers") / "counter"
    for version in ("3", "7"):
        RequestCounter().save(base_path / version, "serving_default", "classify", "regress")
    return str(base_path / "3")


@pytest.fixture(scope="session")
def warmup_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three records for the counting model."""
    path = str(tmp_path_factory.mktemp("warmup") / "requests")
    log = predict_log("serving_default", x=np.ones((2, 2), np.float32))
    write_records(path, [log] * 3, max_records=10, max_bytes=2**20)
    return path


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> ServerCommand:
    """The command of the server double, which imports this package."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    # Without it, the double would also import Keras.
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    return ServerCommand((sys.executable, str(_SERVING_DOUBLE)), "serving_double.py")


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.serving)])
def server_command(request: pytest.FixtureRequest) -> ServerCommand:
    """The double, and in tests marked `serving` a real server."""
    if request.param == "double":
        command: ServerCommand = request.getfixturevalue("double")
        return command
    try:
        return find_model_server()
    except ServerError as error:
        pytest.skip(str(error))
