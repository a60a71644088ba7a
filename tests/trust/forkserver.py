"""A process that imports everything once, with the shim preloaded, and forks a child per trial.

Importing TensorFlow takes seconds, forking milliseconds. The server runs no op and opens no Session
before it forks, so that TensorFlow works in its children. `ForkServer` runs it as
`python -m tests.trust.forkserver` and exchanges lines of JSON with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from tests.trust import shim

_TESTS = pathlib.Path(__file__).resolve().parents[1]
TIMEOUT_S = 120.0


class TrialError(Exception):
    """A trial hangs, or its child failed in a way that the attack does not expect."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a child.

    Attributes:
        ended: `returned`, `raised`, `killed`, `stopped` or `died` (any other exit code or signal).
        value: return value of its function.
        error: class name of the exception it raised.
        message: text of that exception.
        known: whether the exception is a `WarmupError`.
        operations: file operations that the shim counted.
        log: path of the child's output.
    """

    ended: str
    value: Any = None
    error: str = ""
    message: str = ""
    known: bool = False
    operations: int = 0
    log: str = ""


class Child:
    """A process forked by the server."""

    def __init__(self, server: ForkServer, pid: int, result: pathlib.Path) -> None:
        self.pid = pid
        self._server = server
        self._result = result

    def wait(self, timeout: float = TIMEOUT_S) -> Outcome:
        """Waits until the child ends or stops.

        Raises:
            TrialError: it does neither within `timeout` seconds, and was killed.
        """
        deadline = time.monotonic() + timeout
        while (outcome := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TrialError(
                    f"a child hung for {timeout:.0f} s; its output is in {self._result}.log"
                )
            time.sleep(0.005)
        return outcome

    def poll(self) -> Outcome | None:
        """Returns how the child ended or stopped; `None` while it runs."""
        status = self._server.ask({"do": "poll", "pid": self.pid})
        if status is None:
            return None
        log = f"{self._result}.log"
        if os.WIFSTOPPED(status):
            return Outcome("stopped", log=log)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return Outcome("killed", log=log)
        if self._result.exists():
            return Outcome(**json.loads(self._result.read_text()), log=log)
        return Outcome("died", message=f"wait status {status}", log=log)

    def resume(self) -> None:
        """Continues a stopped child."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kills the child and waits for its end."""
        os.kill(self.pid, signal.SIGKILL)
        while (
            status := self._server.ask({"do": "poll", "pid": self.pid})
        ) is None or os.WIFSTOPPED(status):
            time.sleep(0.002)


class ForkServer:
    """Starts the server and forks children from it.

    A child calls a function named `module:function` with keyword arguments that JSON can hold.

    Args:
        library: the compiled shim.
        scratch: an empty directory, for results and logs.
    """

    def __init__(self, library: pathlib.Path, scratch: pathlib.Path) -> None:
        self._scratch = scratch
        self._number = 0
        paths = [str(_TESTS), str(_TESTS.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # A forked child has only the thread that forked, so the server needs few threads.
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        with open(scratch / "forkserver.log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.trust.forkserver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )

    def start(
        self,
        function: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        arm: shim.Arm | None = None,
        root: str | os.PathLike[str] = "",
        log: str | os.PathLike[str] | None = None,
    ) -> Child:
        """Forks a child that calls a function.

        Args:
            function: `module:function`.
            arguments: its keyword arguments.
            arm: how to disturb its file operations. Defaults to `None`: not at all.
            root: the directory below which operations count.
            log: file to log the operations to.
        """
        self._number += 1
        result = self._scratch / f"child-{self._number}"
        request = {
            "do": "start",
            "function": function,
            "arguments": arguments or {},
            "arm": None if arm is None else dataclasses.asdict(arm),
            "root": os.path.realpath(root) if root else "",
            "log": None if log is None else os.fspath(log),
            "result": str(result),
        }
        return Child(self, self.ask(request), result)

    def run(
        self, function: str, arguments: Mapping[str, Any] | None = None, **options: Any
    ) -> Outcome:
        """Forks a child and waits for it."""
        return self.start(function, arguments, **options).wait()

    def close(self) -> None:
        """Ends the server."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Sends a request to the server and returns its answer.

        Raises:
            TrialError: the server does not answer, or ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(request).encode() + b"\n")
        stdin.flush()
        if not select.select([stdout], [], [], TIMEOUT_S)[0]:
            raise TrialError("the fork server does not answer")
        answer = stdout.readline()
        if not answer:
            raise TrialError(f"the fork server ended; see {self._scratch / 'forkserver.log'}")
        return json.loads(answer)


def _serve() -> None:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    # The output of children must not be read as an answer.
    os.dup2(2, 1)
    _import_all()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["do"] == "start":
            answer: int | None = os.fork()
            if answer == 0:
                _run_child(request)
        else:
            pid, status = os.waitpid(request["pid"], os.WNOHANG | os.WUNTRACED)
            answer = status if pid else None
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _import_all() -> None:
    from keras_warmup import callbacks, export  # noqa: F401
    from keras_warmup.serving import replay  # noqa: F401
    from tests.trust import endurance, faults, links, races  # noqa: F401


def _run_child(request: Mapping[str, Any]) -> None:
    """Runs one request and ends the process, without the exit handlers of the server."""
    from keras_warmup.errors import WarmupError

    code = 0
    try:
        output = os.open(f"{request['result']}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        function = _find(request["function"])
        armed = request["arm"] is not None
        if armed:
            shim.arm(shim.Arm(**request["arm"]), request["root"], request["log"])
        try:
            outcome = Outcome("returned", function(**request["arguments"]))
        # The caller judges it: a child reports every exception.
        except BaseException as error:
            traceback.print_exc()
            outcome = Outcome(
                "raised",
                error=type(error).__name__,
                message=str(error),
                known=isinstance(error, WarmupError),
            )
        operations = shim.disarm() if armed else 0
        report = {**dataclasses.asdict(outcome), "operations": operations}
        del report["log"]
        temporary = f"{request['result']}.part"
        pathlib.Path(temporary).write_text(json.dumps(report))
        os.rename(temporary, request["result"])
    except BaseException:
        traceback.print_exc()
        code = 3
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _find(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    __import__(module)
    found: Callable[..., Any] = getattr(sys.modules[module], function)
    return found


if __name__ == "__main__":
    _serve()
