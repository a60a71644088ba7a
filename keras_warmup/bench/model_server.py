"""`ModelServer`: the server that `benchmark` measures. Imports neither TensorFlow nor gRPC."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

from keras_warmup.errors import OptionsError

DEFAULT_LOAD_TIMEOUT_S = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelServer:
    """A TensorFlow Serving model server: one that is running, or one that `benchmark` starts.

    At most one of `address`, `command` and `docker` may be given. With none of them, the
    `tensorflow_model_server` that the environment variable `KERAS_WARMUP_MODEL_SERVER` or `PATH`
    names is started.

    Args:
        address: `"HOST:PORT"`, the gRPC port of a running server that has loaded the model. Its
            cold start is over, so only warm requests can be measured.
        command: path of the `tensorflow_model_server` to start, or a sequence of arguments that
            starts one; the server's flags are added to it. `{port}` and `{base_path}` in the
            sequence are replaced.
        docker: Docker image to start, such as `"tensorflow/serving:2.19.1"`.
        model_name: name that the server serves the model by. Defaults to the name of the directory
            that holds the export directory.
        args: more flags for the server that is started, such as
            `["--xla_cpu_compilation_enabled"]`.
        load_timeout_s: seconds to wait until the model is loaded; at most 10 for a running server.

    Raises:
        OptionsError: an option is out of range, or contradicts another.
    """

    address: str | None = None
    command: str | os.PathLike[str] | Sequence[str] | None = None
    docker: str | None = None
    model_name: str | None = None
    args: Sequence[str] = ()
    load_timeout_s: float = DEFAULT_LOAD_TIMEOUT_S

    def __post_init__(self) -> None:
        problems = []
        given = [name for name in ("address", "command", "docker") if getattr(self, name)]
        if len(given) > 1:
            problems.append(f"{' and '.join(given)} exclude each other")
        if self.address is not None and not re.fullmatch(r"\S+:\d+", str(self.address)):
            problems.append(
                f"address must be 'HOST:PORT' (the gRPC port, usually 8500), got {self.address!r}"
            )
        command, args = self.command, _read_strings(self.args)
        if isinstance(command, (str, os.PathLike)):
            command = os.fspath(command)
        elif command is not None:
            command = _read_strings(command) or ()
        if command is not None and not command:
            problems.append(
                f"command must be a path or a non-empty sequence of str, got {self.command!r}"
            )
        for name in ("docker", "model_name"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                problems.append(f"{name} must be a non-empty str, got {value!r}")
        if args is None:
            problems.append(f"args must be a sequence of str, got {self.args!r}")
        elif self.address is not None and args:
            problems.append("args are flags for a server that is started, not for a running one")
        seconds = self.load_timeout_s
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds > 0:
            problems.append(f"load_timeout_s must be a number of seconds > 0, got {seconds!r}")
        if problems:
            raise OptionsError("Bad model server: " + "; ".join(problems) + ".")
        object.__setattr__(self, "command", command)
        object.__setattr__(self, "args", args)


def _read_strings(value: object) -> tuple[str, ...] | None:
    """Returns a sequence of `str` as a tuple; `None` where it is something else."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return None
    return tuple(value) if all(isinstance(part, str) for part in value) else None


def read_server(server: ModelServer | str) -> ModelServer:
    """Reads the `server=` argument of `benchmark`.

    Args:
        server: a `ModelServer`, or the address of a running server.

    Raises:
        OptionsError: it is something else, or not an address.
    """
    if isinstance(server, ModelServer):
        return server
    if isinstance(server, str):
        return ModelServer(address=server)
    raise OptionsError(
        f"server must be a ModelServer, 'HOST:PORT' or None, got {type(server).__name__}."
    )
