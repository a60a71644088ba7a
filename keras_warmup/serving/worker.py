"""Runs `verify` in a worker process, so that a crash of TensorFlow does not end the caller.

TensorFlow checks the invariants of a graph with `CHECK`, which ends the process, and some malformed
graphs make it segfault. The worker isolates the caller from crashes, hangs and a lack of memory. It
is not a sandbox: the model has the rights of the user who runs it.

A process keeps one worker for all its calls, since importing TensorFlow takes seconds. Caller and
worker exchange lines of JSON: the caller sends a job; the worker answers with any number of `step`,
`record` and `warning` messages and one `report` or `error`. After a `warning` the worker waits for
a line, so that a caller that turns warnings into errors stops it before the model runs.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import mmap
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from keras_warmup import errors
from keras_warmup.options import is_integer
from keras_warmup.serving.child_process import child_environment, describe_exit

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from keras_warmup.serving.verify import RecordVerdict, VerifyReport

Message = dict[str, Any]

DEFAULT_TIMEOUT_S = 300.0
# A week; `queue.get` takes at most a few centuries.
_MAX_TIMEOUT_S = 7 * 24 * 3600
# Importing TensorFlow takes 5 s, longer on a busy machine.
_START_TIMEOUT_S = 300.0
_STDERR_BYTES = 64 * 1024
# A worker that keeps more memory than this after a job is replaced: TensorFlow leaks, and the
# allocator holds memory.
_MAX_KEPT_BYTES = 256 * 2**20
_TENSORFLOW_LIBRARY = b"libtensorflow_framework.so"
# Signals of a crash in the code that runs the model.
_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, getattr(signal, "SIGBUS", None)}
)
# Errors that `verify_here` raises.
_ERRORS = {one.__name__: one for one in (errors.SignatureError, errors.UnsafeOpsError)}


class WorkerEndedError(Exception):
    """The worker process ended, or was ended, before it had finished its job.

    Attributes:
        ending: what happened, such as `died (SIGSEGV)`.
        advice: what follows from that, or what to do; a sentence.
    """

    def __init__(self, ending: str, advice: str) -> None:
        super().__init__(ending)
        self.ending = ending
        self.advice = advice


def check_limits(timeout_s: float, memory_limit_bytes: int | None) -> None:
    """Checks the limits of a worker.

    Raises:
        OptionsError: a limit is out of range, or this system cannot limit memory.
    """
    is_number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    if not is_number or not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise errors.OptionsError(
            f"timeout_s must be a number > 0 and <= {_MAX_TIMEOUT_S}, got {timeout_s!r}."
        )
    if memory_limit_bytes is None:
        return
    if not is_integer(memory_limit_bytes, at_least=1):
        raise errors.OptionsError(
            f"memory_limit_bytes must be an integer >= 1 or None, got {memory_limit_bytes!r}."
        )
    if not os.path.exists("/proc/self/status"):
        raise errors.OptionsError("memory_limit_bytes needs Linux: leave it out on this system.")


def verify_in_worker(
    export_dir: str, *, timeout_s: float, memory_limit_bytes: int | None, refuse_unsafe_ops: bool
) -> VerifyReport:
    """Verifies a warmup file in the worker process; starts one where there is none.

    Args:
        export_dir: version directory of a SavedModel.
        timeout_s: maximum time between two messages of the worker, seconds.
        memory_limit_bytes: the memory that the model may allocate, bytes; `None` for no limit.
        refuse_unsafe_ops: whether to raise where the model has unsafe ops, instead of a warning.

    Returns:
        The report. Where the worker ended, it has the verdicts up to then and no notes.

    Raises:
        WarmupError: as in `verify_here`, or the worker cannot be started.
    """
    # Imports TensorFlow; the caller may start a worker before that.
    from keras_warmup.serving.verify import RecordVerdict, VerifyReport, failures_of

    step = "loading op libraries"
    records: list[RecordVerdict] = []

    def on_message(message: Message) -> None:
        nonlocal step
        if "step" in message:
            step = message["step"]
        elif "record" in message:
            records.append(RecordVerdict(**message["record"]))
        else:
            errors.warn_caller(message["warning"])

    job = {
        "export_dir": export_dir,
        "directory": _working_directory(),
        "refuse_unsafe_ops": refuse_unsafe_ops,
        "op_libraries": loaded_op_libraries(),
        "memory_limit_bytes": None if memory_limit_bytes is None else int(memory_limit_bytes),
    }
    try:
        report = _run_in_worker(job, timeout_s, on_message)["report"]
    except WorkerEndedError as ended:
        failures = (
            *failures_of(records),
            f"The process that ran the model {ended.ending} while {step}. {ended.advice}",
        )
        return VerifyReport(export_dir, False, tuple(records), failures, server_notes=())
    return VerifyReport(
        export_dir=report["export_dir"],
        ok=report["ok"],
        records=tuple(RecordVerdict(**record) for record in report["records"]),
        failures=tuple(report["failures"]),
        server_notes=tuple(report["server_notes"]),
    )


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return None


def _run_in_worker(
    job: Mapping[str, Any], timeout_s: float, on_message: Callable[[Message], None]
) -> Message:
    """Runs a job, the keyword arguments of `_verify`, and returns the `report` message."""
    with _lock:
        worker = start_worker()
        keep = False
        try:
            worker.wait_until_ready()
            answer = worker.run(job, timeout_s, on_message)
            keep = answer["kept_bytes"] <= _MAX_KEPT_BYTES and not _ran_out_of_memory(answer)
        finally:
            # Also on Ctrl-C, and where `on_message` raises: the job must not go on in the worker.
            if not keep:
                close_worker()
    if "error" in answer:
        raise _ERRORS.get(answer["error"], errors.WarmupError)(answer["message"])
    return answer


def start_worker() -> _Worker:
    """Returns the worker; starts one where none is running, and does not wait until it is ready."""
    global _worker  # noqa: PLW0603
    with _lock:
        if _worker is not None and _worker.process.poll() is not None:
            close_worker()
        if _worker is None:
            try:
                _worker = _Worker()
            except OSError as error:
                raise errors.ReplayError(
                    "Cannot start the worker process that verify runs the model in: "
                    f"{error.strerror or error}. Nothing was run."
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
    """A worker process, as its caller uses it.

    Attributes:
        process: the worker.
    """

    def __init__(self) -> None:
        # An empty directory, so that no module in the caller's hides one of Python's.
        self._directory = tempfile.mkdtemp(prefix="keras-warmup-")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keras_warmup.serving.worker"],
            cwd=self._directory,
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C in a terminal reaches only the caller, which ends the worker.
            start_new_session=True,
        )
        self._is_ready = False
        self._stderr_end = b""
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name="keras_warmup worker", daemon=True)
            for target in (self._read_messages, self._read_stderr)
        ]
        for thread in self._threads:
            thread.start()

    def _read_messages(self) -> None:
        # ValueError: the pipe was closed, or the model wrote a line to it.
        with (
            contextlib.suppress(OSError, ValueError),
            io.BufferedReader(self.process.stdout) as lines,  # type: ignore[type-var]
        ):
            for line in lines:
                self._messages.put(json.loads(line))
        self._messages.put(None)

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := self.process.stderr.read(4096):  # type: ignore[union-attr]
                self._stderr_end = (self._stderr_end + chunk)[-_STDERR_BYTES:]

    def wait_until_ready(self) -> None:
        """Waits until the worker has imported TensorFlow."""
        if self._is_ready:
            return
        try:
            self._receive(_START_TIMEOUT_S)
        except WorkerEndedError as ended:
            raise errors.ReplayError(
                f"The worker process {ended.ending} before it was ready: nothing was run. Check "
                f"that {sys.executable!r} can import tensorflow and keras_warmup, or verify "
                "without a worker (isolated=False)."
            ) from None
        self._is_ready = True

    def run(
        self, job: Mapping[str, Any], timeout_s: float, on_message: Callable[[Message], None]
    ) -> Message:
        """Sends a job, receives its messages, and returns the last, a `report` or `error`."""
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
            line = json.dumps(message).encode() + b"\n"
            self.process.stdin.write(line)  # type: ignore[union-attr]
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
            return WorkerEndedError("closed its pipe", "A model must not close files.")
        self._threads[1].join(timeout=5)
        crashed = -code in _CRASHES
        advice = (
            "A server would crash too."
            if crashed
            else "Verify again; if it ends every time, a server may end too."
        )
        return WorkerEndedError(describe_exit(code, self._stderr_end), advice)

    def close(self) -> None:
        """Ends the process and removes its pipes and its directory."""
        self.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(timeout=5)
        self.close_pipes()
        self.remove_directory()

    def kill(self) -> None:
        """Ends the process, and processes that it may have started in its session."""
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
    """Drops the worker in a forked child: it belongs to the parent; the child starts its own."""
    global _worker, _lock  # noqa: PLW0603
    _lock = threading.RLock()
    worker, _worker = _worker, None
    if worker is not None:
        worker.close_pipes()
        # The parent waits for it; without a return code Popen would warn that it still runs.
        worker.process.returncode = 0


def _kill_at_exit() -> None:
    """Ends the worker without the lock: a thread whose job runs may hold it forever."""
    worker = _worker
    if worker is not None:
        worker.kill()
        worker.remove_directory()


atexit.register(_kill_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_worker)


def _ran_out_of_memory(answer: Message) -> bool:
    """Returns whether a record raised MemoryError, after which TensorFlow may hang.

    It stands for `std::bad_alloc`, which leaves TensorFlow's locks locked.
    """
    return any("MemoryError" in failure for failure in answer.get("report", {}).get("failures", ()))


def loaded_op_libraries() -> list[str]:
    """Returns the op libraries that are loaded into this process besides TensorFlow's own.

    They are the files mapped into the process that link against TensorFlow's framework library.
    Without /proc the list is empty.
    """
    import tensorflow as tf

    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            mapped = [line.rstrip("\n").split(maxsplit=5) for line in file]
    except OSError:
        return []
    paths = dict.fromkeys(fields[5] for fields in mapped if len(fields) == 6 and "x" in fields[1])
    own = os.path.realpath(os.path.dirname(tf.__file__)) + os.sep
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
    except (OSError, ValueError):  # removed, or empty
        return False


# The rest of this module runs in the worker process.


class _Caller:
    """The caller of the worker process, as the worker uses it."""

    def __init__(self) -> None:
        # The model's ops may print to stdout and read stdin.
        self._out, self._in = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        self._jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._in:
            self._jobs.put(json.loads(line))
        os._exit(0)  # the caller has ended; a job may still run here

    def send(self, message: Message) -> None:
        """Sends a message."""
        print(json.dumps(message), file=self._out, flush=True)

    def receive(self) -> Message:
        """Waits for the next message."""
        return self._jobs.get()

    def warn(self, text: str) -> None:
        """Sends a warning and waits until the caller has issued it."""
        self.send({"warning": text})
        self.receive()


def _serve() -> None:
    caller = _Caller()
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dumps
    import tensorflow as tf

    # TensorFlow's thread pools start with the first Session: they are part of the worker, not of a
    # model's memory.
    with tf.compat.v1.Session(graph=tf.Graph()):
        pass
    import keras_warmup.serving.verify  # noqa: F401 - so that the first job need not wait for it

    start_bytes = _data_bytes()
    caller.send({"ready": True})
    while True:
        job = caller.receive()
        limit = job.pop("memory_limit_bytes")
        try:
            with _memory_limit(None if limit is None else start_bytes + limit):
                answer = _verify(caller, **job)
        except MemoryError:
            answer = {"out_of_memory": True}
        except errors.WarmupError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        caller.send({**answer, "kept_bytes": _data_bytes() - start_bytes})


def _verify(
    caller: _Caller,
    *,
    export_dir: str,
    directory: str | None,
    refuse_unsafe_ops: bool,
    op_libraries: list[str],
) -> Message:
    """Verifies one SavedModel; relative paths start from `directory`."""
    import tensorflow as tf

    from keras_warmup.serving.verify import verify_here

    for path in op_libraries:
        # Where a library cannot be loaded, loading the model names the op that is not registered.
        with contextlib.suppress(tf.errors.OpError):
            tf.load_op_library(path)
    if directory is not None:
        os.chdir(directory)
    report = verify_here(
        export_dir,
        refuse_unsafe_ops=refuse_unsafe_ops,
        warn=caller.warn,
        on_step=lambda step: caller.send({"step": step}),
        on_record=lambda record: caller.send({"record": record.to_dict()}),
    )
    return {"report": report.to_dict()}


def _data_bytes() -> int:
    """Returns the memory of this process that RLIMIT_DATA counts, bytes; 0 without /proc."""
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
    # Without the `resource` module, `check_limits` has refused the limit.
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
