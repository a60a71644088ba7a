"""Starts TensorFlow Serving model servers, from a binary or from a Docker image.

TensorFlow Serving 2.20 (`model_servers/main.cc`, `server_core.cc`) listens only after its models
are loaded and warm, and exits with an error when one of them cannot be loaded. Without
`--max_num_load_retries=0` it would first retry for minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.client import PredictionClient, RunningServer, without_values
from keras_warmup.bench.model_server import DEFAULT_LOAD_TIMEOUT_S, ModelServer
from keras_warmup.bench.processes import Engine, RunTiming
from keras_warmup.bench.report import EngineKind
from keras_warmup.errors import ReplayError, ServerError
from keras_warmup.records.warmup_file import warmup_path

MODEL_SERVER_ENV = "KERAS_WARMUP_MODEL_SERVER"
MODEL_SERVER_NAME = "tensorflow_model_server"

# A running server has loaded its model; it only has to answer.
_MAX_RUNNING_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_MAX_SHOWN_LINES = 5
# Text that server_core.cc and retrier.cc put before the error of a load.
_LOAD_ERROR_LINE = re.compile(
    r"^(.*?(?:servable\(s\) did not become available: \{+name: \S+ version: \d+\} due to error|"
    r"Loading servable: \{name: \S+ version: \d+\} failed): "
    r"(?:[A-Z_]+: |[A-Z][a-z]+(?: [a-z]+)?: )?)(.*)$"
)
# Errors of the server itself, which quote no request.
_SERVER_ERROR_LINE = re.compile(
    r"[Uu]nknown (?:argument|flag)|already in use|Docker daemon|Unable to find image|"
    r"shared libraries"
)
_ERROR_LINE = re.compile(
    r"(^E\b|^[EF]\d{4} |: [EF] |\b[Ee]rror\b|\b[Ff]ailed\b|unknown (flag|argument))"
)


@dataclasses.dataclass(frozen=True)
class ServerCommand:
    """The command that starts a server.

    Attributes:
        argv: arguments before the server's flags. `{port}` and `{base_path}` in them are replaced.
        name: name of the server in messages.
        stop: command that stops the server where a signal to the started process does not; empty
            where it does.
    """

    argv: tuple[str, ...]
    name: str
    stop: tuple[str, ...] = ()


def open_engine(export_dir: str, server: ModelServer) -> tuple[EngineKind, Engine]:
    """Returns the kind of a model server, and the engine that times requests to it.

    Args:
        export_dir: a SavedModel.
        server: the server to start or to connect to.

    Raises:
        ServerError: the binary or `docker` cannot be found.
    """
    parent = os.path.dirname(os.path.abspath(export_dir))
    model_name = server.model_name or os.path.basename(parent) or "model"
    if server.address is not None:
        timeout_s = min(server.load_timeout_s, _MAX_RUNNING_TIMEOUT_S)
        return "server", RunningServer(server.address, model_name, timeout_s)
    kind: EngineKind = "model_server"
    if server.docker is not None:
        kind, command = "docker", docker_command(server.docker)
    elif server.command is None or isinstance(server.command, (str, os.PathLike)):
        command = find_model_server(server.command)
    else:
        command = ServerCommand(tuple(server.command), os.path.basename(server.command[-1]))
    return kind, LaunchedServer(
        export_dir,
        command,
        model_name=model_name,
        server_args=server.args,
        timeout_s=server.load_timeout_s,
    )


def find_model_server(path: str | os.PathLike[str] | None = None) -> ServerCommand:
    """Returns the command of a `tensorflow_model_server`.

    Args:
        path: the binary. Defaults to the one that the environment variable
            `KERAS_WARMUP_MODEL_SERVER` names, else the one on `PATH`.

    Raises:
        ServerError: there is no such binary.
    """
    requested = os.fspath(path) if path else os.environ.get(MODEL_SERVER_ENV, "")
    found = shutil.which(requested or MODEL_SERVER_NAME)
    if found is None:
        where = f"at {requested!r}" if requested else f"on PATH, and {MODEL_SERVER_ENV} is not set"
        raise ServerError(
            f"No model server {where}. Install {MODEL_SERVER_NAME}, give its path, or use a Docker "
            "image such as 'tensorflow/serving'."
        )
    return ServerCommand((found,), os.path.basename(found))


def docker_command(image: str) -> ServerCommand:
    """Returns the command of the server in a Docker image.

    The base path is mounted at the same path in the container.

    Raises:
        ServerError: there is no `docker`.
    """
    docker = shutil.which("docker")
    if docker is None:
        raise ServerError(
            "No docker on PATH. Install it, or give the path of a tensorflow_model_server."
        )
    container = f"keras-warmup-{secrets.token_hex(6)}"
    argv = (
        # --init: without it the server is process 1, which ignores SIGTERM.
        *(docker, "run", "--rm", "--init", "--name", container),
        *("--publish", "127.0.0.1:{port}:{port}"),
        *("--volume", "{base_path}:{base_path}:ro"),
        *("--entrypoint", MODEL_SERVER_NAME, image),
    )
    name = f"{MODEL_SERVER_NAME} of Docker image {image!r}"
    return ServerCommand(argv, name, stop=(docker, "rm", "--force", container))


@dataclasses.dataclass(frozen=True)
class LaunchedServer:
    """Starts a server for each run, and stops it afterwards.

    Attributes:
        export_dir: a SavedModel.
        command: command that starts the server.
        model_name: name to serve the model by.
        server_args: more flags for the server, such as `--xla_cpu_compilation_enabled`.
        timeout_s: seconds to wait until the model is loaded.
    """

    export_dir: str
    command: ServerCommand
    model_name: str
    server_args: Sequence[str] = ()
    timeout_s: float = DEFAULT_LOAD_TIMEOUT_S

    def time_run(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        """Starts the server with the warmup file, or cold, and times `count` requests in turn.

        Raises:
            ReplayError: the server cannot load the model, or a request fails; with its own error.
            ServerError: the server cannot be started, or does not load the model in time.
        """
        with self.started(warmup_file) as (client, load_ms):
            return RunTiming(load_ms, (), client.time_requests(requests, count))

    @contextlib.contextmanager
    def started(self, warmup_file: str | None) -> Iterator[tuple[PredictionClient, float]]:
        """Runs a server that has loaded the model, and stops it at the end of the block.

        Args:
            warmup_file: TFRecord of records to replay; `None` for a cold start
                (`--enable_model_warmup=false`).

        Yields:
            A client, and the milliseconds from the start until the model was `AVAILABLE`.
        """
        with contextlib.ExitStack() as stack:
            base_path = stack.enter_context(tempfile.TemporaryDirectory(prefix="keras-warmup-"))
            # A server in a container may run as another user.
            os.chmod(base_path, 0o755)
            version_dir = os.path.join(base_path, _version_of(self.export_dir))
            _link_model(self.export_dir, version_dir, warmup_file)
            output = stack.enter_context(tempfile.TemporaryFile())
            port = _free_port()
            argv = [
                *(
                    part.replace("{port}", str(port)).replace("{base_path}", base_path)
                    for part in self.command.argv
                ),
                f"--port={port}",
                "--rest_api_port=0",
                f"--model_name={self.model_name}",
                f"--model_base_path={base_path}",
                f"--enable_model_warmup={'false' if warmup_file is None else 'true'}",
                "--max_num_load_retries=0",
                *self.server_args,
            ]
            start = time.perf_counter()
            try:
                server = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                )
            except OSError as error:
                raise ServerError(f"Cannot start {self.command.name}: {error.strerror}.") from error
            stack.callback(_stop, server, self.command.stop)

            client = stack.enter_context(PredictionClient(f"127.0.0.1:{port}", self.model_name))
            try:
                client.wait_available(self.timeout_s, lambda: server.poll() is None)
            except (ReplayError, ServerError) as error:
                lines = _error_lines(output, replayed=warmup_file is not None)
                if server.poll() is not None:
                    raise ReplayError(
                        f"{self.command.name} did not load {self.export_dir!r}: it exited with "
                        f"code {server.returncode}. Its output:\n{lines}"
                    ) from None
                raise type(error)(f"{error}\nOutput of {self.command.name}:\n{lines}") from error
            yield client, (time.perf_counter() - start) * 1000


def _version_of(export_dir: str) -> str:
    """Returns the version to serve: servers ignore directories whose names are not integers."""
    name = os.path.basename(export_dir.rstrip("/"))
    return name if name.isdecimal() else "1"


def _link_model(export_dir: str, version_dir: str, warmup_file: str | None) -> None:
    """Puts the SavedModel and the warmup file into a new directory, as hard links if possible.

    A server loads the newest version under its base path, so the model needs a base path that
    holds no other version.
    """
    for directory, _, names in tf.io.gfile.walk(export_dir):
        target = os.path.join(version_dir, os.path.relpath(directory, export_dir))
        os.makedirs(target, exist_ok=True)
        for name in names:
            _link(os.path.join(directory, name), os.path.join(target, name))
    if warmup_file is not None:
        path = warmup_path(version_dir)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.remove(path)
        _link(warmup_file, path)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or a remote one
        tf.io.gfile.copy(source, target)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(server: subprocess.Popen[bytes], command: Sequence[str]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    if command:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )


def _error_lines(output: Any, *, replayed: bool) -> str:
    """Returns the last error lines of a server's output, or its last lines where it has no errors.

    A server that has replayed records may quote them, so its lines are then shown without values.
    """
    # pread, not seek: the server writes at the position of this file description.
    data = os.pread(output.fileno(), os.fstat(output.fileno()).st_size, 0)
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.search(line)]
    shown = (errors or lines)[-_MAX_SHOWN_LINES:]
    if replayed:
        shown = [redact_line(line) for line in shown]
    return "\n".join(dict.fromkeys(shown)) or "(none)"


def redact_line(line: str) -> str:
    """Removes tensor values from an error line of a server.

    The part that describes the server or the load is kept. The error of a failed record is reduced
    to what is known to hold no values.
    """
    load_error = _LOAD_ERROR_LINE.match(line)
    if load_error is not None:
        return load_error.group(1) + without_values(load_error.group(2))
    return line if _SERVER_ERROR_LINE.search(line) else without_values(line)
