"""Runs `verify` in a worker process, so that a crash of TensorFlow is a finding and not the end of the caller.

TensorFlow checks the invariants of a graph with `CHECK`, which ends the process, and some malformed graphs make it
segfault. The worker isolates the caller from crashes, hangs and running out of memory. It is no sandbox: the model has
the rights of the user who runs it.

One worker is kept for all calls of a process, since importing TensorFlow takes seconds. Caller and worker exchange JSON,
a line a message: the caller sends a job; the worker answers with any number of `step`, `record` and `warning` messages
and one `report` or `error`. After a `warning` it waits for a line, so that a caller who turns warnings into errors stops
it before the model runs.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from keras_warmup import errors

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Message = dict[str, Any]

DEFAULT_TIMEOUT_S = 300.0
# Importing TensorFlow takes 5 s; a cold disk or a busy machine takes longer.
_START_TIMEOUT_S = 300.0
_STDERR_BYTES = 64 * 1024
# A worker that keeps more than this after a job, because TensorFlow leaks or the allocator holds it, is replaced.
_MAX_KEPT_BYTES = 256 * 2**20
_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Only the place: the rest of the line may quote values.
_FATAL_CHECK = re.compile(rb"^F\d{4} [^\n\]]*?([\w./-]+:\d+)\] Check failed", re.MULTILINE)
_PYTHON_ERROR = re.compile(rb"^([A-Za-z_.]+Error)\b", re.MULTILINE)
_TENSORFLOW_LIBRARY = b"libtensorflow_framework.so"
# What ends a process that runs the model's own code badly.
_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, getattr(signal, "SIGBUS", None)}
)
_ERRORS = {
    name: one
    for name, one in vars(errors).items()
    if isinstance(one, type) and issubclass(one, Exception)
}


class WorkerEndedError(Exception):
    """The worker process ended, or was ended, before it had finished its job.

    Attributes:
        how: such as `died (SIGSEGV)`.
        so: what follows from that, or what to do; a sentence.
    """

    def __init__(self, how: str, so: str) -> None:
        super().__init__(how)
        self.how = how
        self.so = so


def run_in_worker(
    job: Mapping[str, Any], *, timeout_s: float, on_message: Callable[[Message], None]
) -> Message:
    """Runs a job in the worker process of this process; starts one where there is none.

    Args:
        job: keyword arguments of `_run`.
        timeout_s: longest time between two messages of the worker, seconds.
        on_message: called with each `step`, `record` and `warning` message.

    Returns:
        The `report` message.

    Raises:
        WarmupError: the job raised it.
        WorkerEndedError: the worker died, ran out of memory, or took longer than `timeout_s`. The next call starts
            another one.
    """
    with _lock:
        worker = _current_worker()
        keep = False
        try:
            worker.wait_until_ready()
            answer = worker.run(job, timeout_s, on_message)
            keep = answer["kept_bytes"] <= _MAX_KEPT_BYTES and not _ran_out_of_memory(answer)
        finally:
            # Also on Ctrl-C, and where `on_message` raises: what runs in the worker must not go on.
            if not keep:
                close_worker()
    if "error" in answer:
        raise _error_of(answer["error"])
    return answer


def start_worker() -> None:
    """Starts the worker process where none is running; does not wait until it is ready."""
    _current_worker()


def _current_worker() -> _Worker:
    global _worker  # noqa: PLW0603
    with _lock:
        if _worker is not None and _worker.process.poll() is not None:
            close_worker()
        if _worker is None:
            try:
                _worker = _Worker()
            except OSError as error:
                raise errors.ReplayError(
                    f"Cannot start the worker process that verify runs the model in: {error.strerror or error}. Nothing was run."
                ) from error
        return _worker


def close_worker() -> None:
    """Ends the worker process, if there is one."""
    global _worker
    with _lock:
        worker, _worker = _worker, None
        if worker is not None:
            worker.close()


class _Worker:
    """The caller's side of a worker process.

    Attributes:
        process: the worker.
    """

    def __init__(self) -> None:
        # An empty directory, so that no module beside the caller hides one of Python's.
        self._directory = tempfile.mkdtemp(prefix="keras-warmup-")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keras_warmup.serving.worker"],
            cwd=self._directory,
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C in a terminal reaches the caller alone, which ends the worker.
            start_new_session=True,
        )
        self._is_ready = False
        self._said = b""
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name="keras_warmup worker", daemon=True)
            for target in (self._read_messages, self._read_stderr)
        ]
        for thread in self._threads:
            thread.start()

    def _read_messages(self) -> None:
        rest = b""
        with contextlib.suppress(
            OSError, ValueError
        ):  # closed, or a line that the worker did not write
            while chunk := self.process.stdout.read(64 * 1024):  # type: ignore[union-attr]
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._messages.put(json.loads(line))
        self._messages.put(None)

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := self.process.stderr.read(4096):  # type: ignore[union-attr]
                self._said = (self._said + chunk)[-_STDERR_BYTES:]

    def wait_until_ready(self) -> None:
        """Waits until the worker has imported TensorFlow."""
        if self._is_ready:
            return
        try:
            self._receive(_START_TIMEOUT_S)
        except WorkerEndedError as ended:
            raise errors.ReplayError(
                f"The worker process {ended.how} before it was ready: nothing was run. Check that {sys.executable!r} can "
                "import tensorflow and keras_warmup, or verify without a worker (isolated=False)."
            ) from None
        self._is_ready = True

    def run(
        self, job: Mapping[str, Any], timeout_s: float, on_message: Callable[[Message], None]
    ) -> Message:
        """Sends a job and receives messages until it is finished."""
        self._send(job)
        while True:
            message = self._receive(timeout_s)
            if "report" in message or "error" in message:
                return message
            on_message(message)
            if "warning" in message:
                self._send({})

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")  # type: ignore[union-attr]
        except OSError:
            raise self._ended() from None

    def _receive(self, timeout_s: float) -> Message:
        try:
            message = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            raise WorkerEndedError(
                f"was ended after {timeout_s:g} s",
                "Raise timeout_s (--timeout) if the model is that slow.",
            ) from None
        if message is None:
            raise self._ended()
        if "out_of_memory" in message:
            raise WorkerEndedError(
                "ran out of memory",
                "Raise memory_limit_bytes (--memory-limit) if the model needs more.",
            )
        return message

    def _ended(self) -> WorkerEndedError:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return WorkerEndedError("closed its pipe", "A model must not do that.")
        self._threads[1].join(timeout=5)
        crashed = -code in _CRASHES
        advice = (
            "A server would end too."
            if crashed
            else "Verify again; if it ends so every time, so may a server."
        )
        return WorkerEndedError(describe_exit(code, self._said), advice)

    def close(self) -> None:
        """Ends the process and frees what belongs to it."""
        self.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(timeout=5)
        self.close_pipes()
        self.remove_directory()

    def kill(self) -> None:
        """Ends the process, and those it may have started in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()

    def remove_directory(self) -> None:
        """Removes the worker's working directory."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def close_pipes(self) -> None:
        """Closes this process's ends of the pipes."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


_worker: _Worker | None = None
_lock = threading.RLock()


def _forget_worker() -> None:
    """After a fork the worker is the parent's: the child lets go of it, and starts its own when it needs one."""
    global _worker, _lock  # noqa: PLW0603
    _lock = threading.RLock()
    worker, _worker = _worker, None
    if worker is not None:
        worker.close_pipes()
        # It is the parent's to wait for: Popen would warn of a process that still runs.
        worker.process.returncode = 0


def _kill_at_exit() -> None:
    """Ends the worker without waiting for a thread that holds the lock: its job would keep the process from ending."""
    worker = _worker
    if worker is not None:
        worker.kill()
        worker.remove_directory()


atexit.register(_kill_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_worker)


def child_environment() -> dict[str, str]:
    """Environment of a child process that runs this package: the caller's, TensorFlow quiet and on the CPU."""
    path = os.pathsep.join(filter(None, [_PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # The Session runs on the CPU; starting a GPU would only take its memory.
        "CUDA_VISIBLE_DEVICES": "-1",
        # `import tensorflow` then leaves Keras 3 alone, which halves it (https://www.tensorflow.org/guide/keras).
        "TF_USE_LEGACY_KERAS": "1",
    }


def describe_exit(code: int, stderr: bytes) -> str:
    """Describes how a process ended, and which CHECK of TensorFlow failed, without values.

    Args:
        code: its return code as `subprocess` gives it.
        stderr: what it printed last.
    """
    if code >= 0:
        raised = _PYTHON_ERROR.findall(stderr)
        return f"ended with exit code {code}" + (f" ({raised[-1].decode()})" if raised else "")
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    checks = _FATAL_CHECK.findall(stderr)
    if checks:
        name += f", a CHECK of TensorFlow failed at {checks[-1].decode(errors='replace')}"
    elif code == -signal.SIGKILL:
        name += "; the machine may be short of memory"
    return f"died ({name})"


def _ran_out_of_memory(answer: Message) -> bool:
    """Whether C++ threw `std::bad_alloc`, which is a MemoryError in Python: TensorFlow keeps its locks then, and hangs."""
    return any("MemoryError" in failure for failure in answer.get("report", {}).get("failures", ()))


def _error_of(error: Mapping[str, str]) -> Exception:
    cls = _ERRORS.get(error["type"], errors.WarmupError)
    if cls is errors.ReplayError:
        return errors.ReplayError(error["message"], status=error["status"])
    return cls(error["message"])


def loaded_op_libraries() -> list[str]:
    """Lists the op libraries loaded into this process besides TensorFlow's own; empty where there is no /proc.

    They are the files mapped into the process that link against TensorFlow's framework library.
    """
    tensorflow = sys.modules.get("tensorflow")
    own = os.path.dirname(getattr(tensorflow, "__file__", None) or "") if tensorflow else ""
    if not own:
        return []
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            mapped = [line.rstrip("\n").split(maxsplit=5) for line in file]
    except OSError:
        return []
    paths = dict.fromkeys(fields[5] for fields in mapped if len(fields) == 6 and "x" in fields[1])
    own = os.path.realpath(own) + os.sep
    return [path for path in paths if not path.startswith(own) and _links_tensorflow(path)]


def _links_tensorflow(path: str) -> bool:
    if ".so" not in os.path.basename(path):
        return False
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return content.find(_TENSORFLOW_LIBRARY) >= 0
    except (OSError, ValueError):  # gone since, or empty
        return False


# From here on: the worker's side.


class _Caller:
    """The worker's way to its caller; also told how far `verify` is."""

    def __init__(self) -> None:
        # The model's ops may print to stdout and read stdin.
        self._out, self._in = os.dup(1), os.dup(0)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        self._jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._in, 64 * 1024):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._jobs.put(json.loads(line))
        os._exit(0)  # the caller is gone, whatever runs here

    def send(self, message: Message) -> None:
        """Sends a message."""
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._out, data) :]

    def receive(self) -> Message:
        """Waits for the next message."""
        return self._jobs.get()

    def step(self, doing: str) -> None:
        """Says what is done next."""
        self.send({"step": doing})

    def judged(self, record: Any) -> None:
        """Sends a record's verdict."""
        self.send({"record": record.to_dict()})

    def warn(self, text: str) -> None:
        """Sends a warning and waits until it was taken."""
        self.send({"warning": text})
        self.receive()


def _serve() -> None:
    caller = _Caller()
    _forbid_core_dumps()
    import tensorflow as tf

    # TensorFlow's thread pools start with the first Session: they belong to the worker, not to a model.
    with tf.compat.v1.Session(graph=tf.Graph()):
        pass
    import keras_warmup.verification  # noqa: F401 - so that the first job does not pay for it

    start_bytes = _data_bytes()
    caller.send({"ready": True})
    while True:
        job = caller.receive()
        limit = job.pop("memory_limit_bytes")
        try:
            with _memory_limit(None if limit is None else start_bytes + limit):
                answer = _run(caller, **job)
        except MemoryError:
            answer = {"out_of_memory": True}
        except errors.WarmupError as error:
            answer = {"error": {"type": type(error).__name__, "message": str(error), "status": ""}}
            if isinstance(error, errors.ReplayError):
                answer["error"]["status"] = error.status
        caller.send({**answer, "kept_bytes": _data_bytes() - start_bytes})


def _run(
    caller: _Caller,
    *,
    export_dir: str,
    directory: str | None,
    refuse_unsafe_ops: bool,
    op_libraries: list[str],
) -> Message:
    """Verifies one SavedModel; `directory` is the one that relative paths start from."""
    import tensorflow as tf

    from keras_warmup.verification import verify_here

    for path in op_libraries:
        # A library that cannot be loaded here leaves an op that is not registered, which the load will name.
        with contextlib.suppress(tf.errors.OpError):
            tf.load_op_library(path)
    if directory is not None:
        os.chdir(directory)
    report = verify_here(export_dir, refuse_unsafe_ops=refuse_unsafe_ops, progress=caller)
    return {"report": report.to_dict()}


def _forbid_core_dumps() -> None:
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _data_bytes() -> int:
    """Memory of this process that RLIMIT_DATA counts; 0 where there is no /proc."""
    with (
        contextlib.suppress(OSError),
        open("/proc/self/status", encoding="ascii", errors="replace") as file,
    ):
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def _memory_limit(max_bytes: int | None) -> Iterator[None]:
    # Where there is none, `verify` has refused the limit.
    if max_bytes is None or resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


if __name__ == "__main__":
    _serve()
