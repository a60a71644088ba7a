"""Starting model servers: one launcher that takes an argv; Docker is only another argv.

TensorFlow Serving 2.20 (`model_servers/main.cc`, `server_core.cc`) listens only when its models are loaded and warm,
and ends with an error when one of them cannot be; `--max_num_load_retries=0` spares the minutes of retries before that.
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
from keras_warmup.bench.client import PredictionClient, without_values
from keras_warmup.bench.processes import RunTiming
from keras_warmup.errors import ReplayError, ServerError
from keras_warmup.records.warmup_file import WARMUP_PATH

MODEL_SERVER_ENV = "KERAS_WARMUP_MODEL_SERVER"
MODEL_SERVER_NAME = "tensorflow_model_server"
DEFAULT_IMAGE = "tensorflow/serving"
DEFAULT_LOAD_TIMEOUT_S = 300.0

_STOP_S = 10.0
_SHOWN_LINES = 5
# What server_core.cc and retrier.cc put around the error of a load.
_FRAMED = re.compile(
    r"^(.*?(?:servable\(s\) did not become available: \{+name: \S+ version: \d+\} due to error|"
    r"Loading servable: \{name: \S+ version: \d+\} failed): (?:[A-Z_]+: |[A-Z][a-z]+(?: [a-z]+)?: )?)(.*)$"
)
_OWN_TROUBLE = re.compile(
    r"[Uu]nknown (?:argument|flag)|already in use|Docker daemon|Unable to find image|shared libraries"
)
_ERROR_LINE = re.compile(
    r"(^E\b|^[EF]\d{4} |: [EF] |\b[Ee]rror\b|\b[Ff]ailed\b|unknown (flag|argument))"
)


@dataclasses.dataclass(frozen=True)
class ServerCommand:
    """How to start a server.

    Attributes:
        argv: what comes before the server's flags; `{port}` and `{base_path}` in it are filled in.
        stop: a command that stops it where a signal to `argv` does not; empty where it does.
        name: what to call it in messages.
    """

    argv: tuple[str, ...]
    name: str
    stop: tuple[str, ...] = ()


def find_model_server(path: str | os.PathLike[str] | None = None) -> ServerCommand:
    """The `tensorflow_model_server` to start.

    Args:
        path: the binary. Defaults to the environment variable `KERAS_WARMUP_MODEL_SERVER`, else the one on `PATH`.

    Raises:
        ServerError: there is none.
    """
    asked = os.fspath(path) if path else os.environ.get(MODEL_SERVER_ENV, "")
    found = shutil.which(asked or MODEL_SERVER_NAME)
    if found is None:
        where = f"at {asked!r}" if asked else f"on PATH, and {MODEL_SERVER_ENV} is not set"
        raise ServerError(
            f"No model server {where}. Install {MODEL_SERVER_NAME}, give its path, or use a Docker image such as "
            f"{DEFAULT_IMAGE!r}."
        )
    return ServerCommand((found,), os.path.basename(found))


def docker_command(image: str = DEFAULT_IMAGE) -> ServerCommand:
    """Starts the server of a Docker image, with the base path mounted where it is outside.

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
        # --init: as process 1 the server would not hear SIGTERM.
        *(
            docker,
            "run",
            "--rm",
            "--init",
            "--name",
            container,
            "--publish",
            "127.0.0.1:{port}:{port}",
        ),
        *("--volume", "{base_path}:{base_path}:ro", "--entrypoint", MODEL_SERVER_NAME, image),
    )
    return ServerCommand(
        argv, f"{MODEL_SERVER_NAME} of Docker image {image!r}", (docker, "rm", "--force", container)
    )


class LaunchedServer:
    """Starts a server for each sample and stops it again.

    Args:
        export_dir: a SavedModel.
        command: what to start.
        model_name: the name to serve it under.
        server_args: more flags for the server, such as `--xla_cpu_compilation_enabled`.
        timeout_s: seconds to wait until the model is loaded.
    """

    def __init__(
        self,
        export_dir: str,
        command: ServerCommand,
        *,
        model_name: str,
        server_args: Sequence[str] = (),
        timeout_s: float = DEFAULT_LOAD_TIMEOUT_S,
    ) -> None:
        self._export_dir = export_dir
        self._command = command
        self._model_name = model_name
        self._server_args = tuple(server_args)
        self._timeout_s = timeout_s

    def sample(
        self, requests: Sequence[PredictionLog], count: int, warmup_file: str | None
    ) -> RunTiming:
        """Starts the server cold (`--enable_model_warmup=false`) or with the warmup file, and sends the requests.

        Raises:
            ReplayError: the server refuses the model, with what it said; or a request.
            ServerError: it cannot be started or does not get ready.
        """
        with self.started(warmup_file) as (client, load_ms):
            return RunTiming(load_ms, (), client.time_requests(requests, count))

    @contextlib.contextmanager
    def started(self, warmup_file: str | None) -> Iterator[tuple[PredictionClient, float]]:
        """A server that has loaded the model; stopped when the block ends, however it ends.

        Yields:
            A client, and milliseconds from the start until the model was `AVAILABLE`.
        """
        with contextlib.ExitStack() as stack:
            base_path = stack.enter_context(tempfile.TemporaryDirectory(prefix="keras-warmup-"))
            # A server in a container may run as another user.
            os.chmod(base_path, 0o755)
            _mirror(
                self._export_dir,
                os.path.join(base_path, _version_of(self._export_dir)),
                warmup_file,
            )
            output = stack.enter_context(tempfile.TemporaryFile())
            port = _free_port()
            argv = [
                *(
                    part.replace("{port}", str(port)).replace("{base_path}", base_path)
                    for part in self._command.argv
                ),
                f"--port={port}",
                "--rest_api_port=0",
                f"--model_name={self._model_name}",
                f"--model_base_path={base_path}",
                f"--enable_model_warmup={'false' if warmup_file is None else 'true'}",
                "--max_num_load_retries=0",
                *self._server_args,
            ]
            begun = time.perf_counter()
            try:
                server = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                )
            except OSError as error:
                raise ServerError(
                    f"Cannot start {self._command.name}: {error.strerror}."
                ) from error
            stack.callback(_stop, server, self._command.stop)

            def check() -> None:
                if server.poll() is not None:
                    raise ReplayError(
                        f"{self._command.name} did not load {self._export_dir!r}: it ended with exit code "
                        f"{server.returncode}. It said:\n{_errors_in(output, replayed=warmup_file is not None)}"
                    )

            client = stack.enter_context(PredictionClient(f"127.0.0.1:{port}", self._model_name))
            try:
                client.wait_available(self._timeout_s, check)
            except (ReplayError, ServerError) as error:
                if server.poll() is not None:
                    raise
                raise type(error)(
                    f"{error}\n{self._command.name} said:\n{_errors_in(output, replayed=warmup_file is not None)}"
                ) from error
            yield client, (time.perf_counter() - begun) * 1000


def _version_of(export_dir: str) -> str:
    """The version to serve: servers pass over directories whose names are no numbers."""
    name = os.path.basename(export_dir.rstrip("/"))
    return name if name.isdecimal() else "1"


def _mirror(export_dir: str, target: str, warmup_file: str | None) -> None:
    """The SavedModel alone under a base path of its own, with the warmup file asked for; hard links where possible."""
    for directory, _, names in tf.io.gfile.walk(export_dir):
        inside = (
            os.path.join(target, os.path.relpath(directory, export_dir))
            if directory != export_dir
            else target
        )
        os.makedirs(inside, exist_ok=True)
        for name in names:
            _link(os.path.join(directory, name), os.path.join(inside, name))
    if warmup_file is not None:
        path = os.path.join(target, *WARMUP_PATH.split("/"))
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


def _stop(server: subprocess.Popen[bytes], stop: Sequence[str]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    if stop:
        subprocess.run(
            stop,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )


def _errors_in(output: Any, *, replayed: bool) -> str:
    """The server's own last errors, else its last lines; without values where it has run requests."""
    # Not seek: the server writes where this file description stands.
    said = os.pread(output.fileno(), os.fstat(output.fileno()).st_size, 0)
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.search(line)]
    shown = [_shown(line) if replayed else line for line in (errors or lines)[-_SHOWN_LINES:]]
    return "\n".join(dict.fromkeys(shown)) or "nothing"


def _shown(line: str) -> str:
    """An error line without values: what the server says of itself, and of a failed record what is known to be safe."""
    framed = _FRAMED.match(line)
    if framed is not None:
        return framed.group(1) + without_values(framed.group(2))
    return line if _OWN_TROUBLE.search(line) else without_values(line)
