"""`ModelServer`: what it takes, and what it refuses."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import pytest

from keras_warmup.bench.model_server import ModelServer, read_server
from keras_warmup.errors import OptionsError


def test_a_string_is_the_address_of_a_running_server() -> None:
    assert read_server("localhost:8500") == ModelServer(address="localhost:8500")
    server = ModelServer(docker="tensorflow/serving")
    assert read_server(server) is server


def test_paths_and_sequences_are_read_once(tmp_path: pathlib.Path) -> None:
    assert ModelServer(command=tmp_path).command == str(tmp_path)
    server = ModelServer(command=["docker", "run"], args=["--a", "--b"])
    assert (server.command, server.args) == (("docker", "run"), ("--a", "--b"))
    hash(server)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"address": "localhost:8500", "docker": "an/image"},
            "address and docker exclude each other",
        ),
        (
            {"command": "a", "docker": "an/image"},
            "command and docker exclude each other",
        ),
        (
            {"address": "localhost"},
            "address must be 'HOST:PORT' (the gRPC port, usually 8500), got 'localhost'",
        ),
        ({"command": ""}, "command must be a path or a non-empty sequence of str, got ''"),
        ({"command": []}, "command must be a path or a non-empty sequence of str, got []"),
        ({"command": 1}, "command must be a path or a non-empty sequence of str, got 1"),
        ({"docker": True}, "docker must be a non-empty str, got True"),
        ({"model_name": ""}, "model_name must be a non-empty str, got ''"),
        ({"args": "--flag"}, "args must be a sequence of str, got '--flag'"),
        ({"args": [1]}, "args must be a sequence of str, got [1]"),
        (
            {"address": "localhost:8500", "args": ["--flag"]},
            "args are flags for a server that is started, not for a running one",
        ),
        ({"load_timeout_s": 0}, "load_timeout_s must be a number of seconds > 0, got 0"),
        ({"load_timeout_s": True}, "load_timeout_s must be a number of seconds > 0, got True"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionsError) as caught:
        ModelServer(**options)
    assert str(caught.value) == f"Bad model server: {problem}."


def test_a_server_is_described_without_tensorflow_and_grpc() -> None:
    code = (
        "import sys, keras_warmup as kw; kw.ModelServer(); "
        "print(sorted({'tensorflow', 'grpc'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == "[]\n"
