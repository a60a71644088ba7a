"""Model servers: how they are found, started, stopped and quoted."""

from __future__ import annotations

import os
import pathlib
import socket
import sys

import numpy as np
import pytest

from keras_warmup.bench.client import RunningServer
from keras_warmup.bench.model_server import ModelServer
from keras_warmup.bench.servers import (
    MODEL_SERVER_ENV,
    LaunchedServer,
    ServerCommand,
    docker_command,
    find_model_server,
    open_engine,
    redact_line,
)
from keras_warmup.errors import ReplayError, ServerError
from keras_warmup.records.warmup_file import write_records
from tests.bench.models import RequestCounter, count_in
from tests.builders import predict_log, write_warmup_file

ONES = predict_log("serving_default", x=np.ones((2, 2), np.float32))


def write_script(path: pathlib.Path, *lines: str) -> str:
    """Writes a shell script that can be run, and returns its path."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def test_started_cold_a_server_has_run_nothing(
    server_command: ServerCommand, counter_dir: str
) -> None:
    server = LaunchedServer(counter_dir, server_command, model_name="counter")
    with server.started(None) as (client, load_ms):
        assert count_in(client.prepare(ONES)()) == 1
        assert load_ms > 0


def test_started_warm_a_server_has_replayed_each_record(
    server_command: ServerCommand, counter_dir: str, warmup_file: str
) -> None:
    server = LaunchedServer(counter_dir, server_command, model_name="counter")
    with server.started(warmup_file) as (client, _):
        assert count_in(client.prepare(ONES)()) == 4


def test_a_server_that_cannot_load_the_model_shows_its_own_error(
    server_command: ServerCommand, counter_dir: str, tmp_path: pathlib.Path
) -> None:
    bad_file = str(tmp_path / "bad")
    write_records(bad_file, [predict_log("nope")], max_records=10, max_bytes=2**20)
    server = LaunchedServer(counter_dir, server_command, model_name="counter")
    with pytest.raises(ReplayError) as caught, server.started(bad_file):
        pass
    message = str(caught.value)
    assert message.startswith(
        f"{server_command.name} did not load {counter_dir!r}: it exited with code "
    )
    assert 'Serving signature key "nope" not found.' in message


def test_the_server_is_stopped_however_the_block_ends(
    double: ServerCommand, counter_dir: str
) -> None:
    server = LaunchedServer(counter_dir, double, model_name="counter")
    with pytest.raises(KeyboardInterrupt), server.started(None) as (client, _):
        address = client.address
        raise KeyboardInterrupt
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0


def test_only_the_given_version_is_served_and_the_model_is_not_changed(
    counter_dir: str, tmp_path: pathlib.Path
) -> None:
    named = tmp_path / "candidate"
    RequestCounter().save(named, "serving_default")
    write_warmup_file(named, ONES)
    (named / "assets.extra" / "notes.txt").write_text("mine")
    before = sorted(path.name for path in (named / "assets.extra").iterdir())
    code = "import os, sys; sys.exit(print(os.listdir(sys.argv[1])))"
    ls = ServerCommand((sys.executable, "-c", code, "{base_path}"), "ls")
    # A server ignores a directory whose name is not an integer: such a model is version 1.
    for directory, version in ((counter_dir, "3"), (str(named), "1")):
        server = LaunchedServer(directory, ls, model_name="m")
        with pytest.raises(ReplayError) as caught, server.started(None):
            pass
        assert str(caught.value) == (
            f"ls did not load {directory!r}: it exited with code 0. Its output:\n['{version}']"
        )
    assert sorted(path.name for path in (named / "assets.extra").iterdir()) == before


def test_a_server_that_does_not_load_in_time_is_stopped_and_its_output_shown(
    counter_dir: str,
) -> None:
    code = "import time; print('thinking', flush=True); time.sleep(60)"
    idle = ServerCommand((sys.executable, "-c", code), "idle")
    server = LaunchedServer(counter_dir, idle, model_name="counter", timeout_s=2)
    with pytest.raises(ServerError) as caught, server.started(None):
        pass
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("Model 'counter' did not become AVAILABLE at 127.0.0.1:")
    assert lines[0].endswith(
        " Check the address (the gRPC port), the model name and the server's own output."
    )
    assert lines[1:] == ["Output of idle:", "thinking"]


def test_the_model_is_named_after_the_directory_that_holds_it() -> None:
    server = ModelServer(address="localhost:8500")
    kind, engine = open_engine("/models/digits/1", server)
    assert kind == "server" and isinstance(engine, RunningServer)
    assert (engine.address, engine.model_name) == ("localhost:8500", "digits")
    # A running server has loaded its model: it is not waited for as long as for a started one.
    assert (server.load_timeout_s, engine.timeout_s) == (300, 10)
    server = ModelServer(address="localhost:8500", model_name="other", load_timeout_s=3)
    _, engine = open_engine("/models/digits/1", server)
    assert isinstance(engine, RunningServer)
    assert (engine.model_name, engine.timeout_s) == ("other", 3)


def test_a_model_server_is_found_by_path_environment_or_on_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.delenv(MODEL_SERVER_ENV, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError) as caught:
        open_engine("/models/digits/1", ModelServer())
    assert str(caught.value) == (
        "No model server on PATH, and KERAS_WARMUP_MODEL_SERVER is not set. Install "
        "tensorflow_model_server, give its path, or use a Docker image such as "
        "'tensorflow/serving'."
    )
    on_path = write_script(tmp_path / "tensorflow_model_server")
    other = write_script(tmp_path / "other_server")
    assert find_model_server() == ServerCommand((on_path,), "tensorflow_model_server")
    monkeypatch.setenv(MODEL_SERVER_ENV, other)
    assert find_model_server() == ServerCommand((other,), "other_server")
    absent = tmp_path / "absent"
    with pytest.raises(ServerError) as caught:
        open_engine("/models/digits/1", ModelServer(command=absent))
    assert str(caught.value).startswith(f"No model server at {str(absent)!r}. ")


def test_a_docker_image_is_started_by_a_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError) as caught:
        docker_command("an/image")
    assert str(caught.value) == (
        "No docker on PATH. Install it, or give the path of a tensorflow_model_server."
    )
    docker = write_script(tmp_path / "docker")
    command = docker_command("tensorflow/serving:2.19.1")
    container = command.stop[-1]
    assert command.stop == (docker, "rm", "--force", container)
    assert command.argv == (
        *(docker, "run", "--rm", "--init", "--name", container),
        *("--publish", "127.0.0.1:{port}:{port}"),
        *("--volume", "{base_path}:{base_path}:ro"),
        *("--entrypoint", "tensorflow_model_server", "tensorflow/serving:2.19.1"),
    )


def test_a_container_is_removed_after_the_server_was_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, counter_dir: str
) -> None:
    calls = tmp_path / "calls"
    write_script(
        tmp_path / "docker",
        f'echo "$@" >> {calls}',
        'echo "Cannot connect to the Docker daemon" >&2',
        "exit 125",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    kind, engine = open_engine(counter_dir, ModelServer(docker="an/image", args=["--flag=1"]))
    assert kind == "docker"
    with pytest.raises(ReplayError) as caught:
        engine.time_run([ONES], 1, None)
    assert str(caught.value) == (
        f"tensorflow_model_server of Docker image 'an/image' did not load {counter_dir!r}: it "
        "exited with code 125. Its output:\nCannot connect to the Docker daemon"
    )
    run, stop = calls.read_text().splitlines()
    assert run.endswith("--enable_model_warmup=false --max_num_load_retries=0 --flag=1")
    assert stop.startswith("rm --force keras-warmup-")


@pytest.mark.serving
def test_a_docker_image_serves_cold_and_warm(counter_dir: str, warmup_file: str) -> None:
    image = os.environ.get("KERAS_WARMUP_DOCKER_IMAGE")
    if not image:
        pytest.skip("KERAS_WARMUP_DOCKER_IMAGE is not set")
    server = LaunchedServer(counter_dir, docker_command(image), model_name="counter")
    with server.started(warmup_file) as (client, _):
        assert count_in(client.prepare(ONES)()) == 4


START_ERROR = (
    "E server.cc] Failed to start server. Error: Unknown: 1 servable(s) did not become available: "
    "{{name: m version: 1} due to error: Invalid argument: "
)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            START_ERROR + "indices[0,0] = 4711 is not in [0, 10), }",
            START_ERROR + "indices[0,0] = ... is not in [0, 10) ...",
        ),
        (
            "E retrier.cc] Loading servable: {name: m version: 1} failed: INVALID_ARGUMENT: "
            'Serving signature key "a" not found.',
            None,
        ),
        ("unknown argument: --flag", None),
        ("Error: [[4711 4712]]", "(message withheld: it may hold tensor values)"),
    ],
    ids=["values", "safe", "flag", "printed"],
)
def test_a_server_that_has_run_requests_is_quoted_without_values(
    line: str, shown: str | None
) -> None:
    assert redact_line(line) == (line if shown is None else shown)
