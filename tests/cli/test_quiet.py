"""TensorFlow's start-up messages: hidden when it starts, shown when it does not."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.builders import predict_log, save_function, write_warmup_file

ROOT = pathlib.Path(__file__).parents[2]
# As TensorFlow 2.21 and 2.19 log them, on machines with and without a GPU.
START_UP_LINES = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795647683.161003   13639 port.cc:153] oneDNN custom operations are on.
I0000 00:00:1795647712.574288   14049 cpu_feature_guard.cc:227] This TensorFlow binary is optimized.
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.
E0000 00:00:1758131045.203198 3722035 cuda_dnn.cc:8579] Unable to register cuDNN factory: twice
W0000 00:00:1744708234.960672 1370911 placer.cc:177] computation placer already registered
E0000 00:00:1795647695.941108   13760 cuda_platform.cc:52] failed call to cuInit: INTERNAL: 303
2025-09-17 14:44:05.157831: I external/local_xla/xla/tsl/cuda/cudart_stub.cc:32] No cuda drivers.
2025-09-17 14:44:05.176998: E external/local_xla/cuda_fft.cc:1] Unable to register cuFFT factory: x
2023-11-21 15:11:09.339551: W tensorflow/py_utils.cc:38] TF-TRT Warning: Could not find TensorRT
"""
OTHER_LINES = """\
W0000 00:00:1795647683.161003   13639 loader.cc:1] A library is missing.
E0000 00:00:1795647683.161003   13639 loader.cc:2] A library cannot be loaded.
a line of another program
"""


def run_python(
    code: str, *, path: pathlib.Path = ROOT, log_level: str = "2"
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
        "TF_CPP_MIN_LOG_LEVEL": log_level,
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def quiet_code(*statements: str) -> str:
    """Returns a program that runs statements while messages are hidden, then prints a line."""
    return "\n".join(
        [
            "import os, sys",
            "from keras_warmup.cli.quiet import quiet_start",
            "with quiet_start():",
            *(f"    {statement}" for statement in statements),
            "os.write(2, b'after\\n')",
        ]
    )


WRITE = f"os.write(2, {(START_UP_LINES + OTHER_LINES).encode()!r})"


def test_only_known_lines_are_hidden_where_tensorflow_starts() -> None:
    ended = run_python(quiet_code(WRITE))
    assert (ended.returncode, ended.stderr) == (0, OTHER_LINES + "after\n")


def test_a_line_without_an_end_is_kept() -> None:
    ended = run_python(quiet_code("os.write(2, b'half a line')"))
    assert ended.stderr == "half a lineafter\n"


def test_nothing_is_hidden_if_the_user_asks_for_all_messages() -> None:
    ended = run_python(quiet_code(WRITE), log_level="0")
    assert ended.stderr == START_UP_LINES + OTHER_LINES + "after\n"


def test_all_lines_are_shown_where_the_import_fails() -> None:
    ended = run_python(quiet_code(WRITE, "raise ImportError('no libtensorflow')"))
    assert ended.returncode == 1
    assert ended.stderr.startswith(START_UP_LINES + OTHER_LINES + "Traceback ")
    assert ended.stderr.endswith("ImportError: no libtensorflow\n")


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGKILL"])
def test_all_lines_are_shown_where_the_process_dies_in_the_import(name: str) -> None:
    ended = run_python(quiet_code(WRITE, f"os.kill(os.getpid(), {int(signal.Signals[name])})"))
    assert ended.returncode == -signal.Signals[name]
    assert ended.stderr == START_UP_LINES + OTHER_LINES


def test_an_interrupted_import_hides_the_known_lines() -> None:
    ended = run_python(quiet_code(WRITE, "raise KeyboardInterrupt"))
    assert ended.stderr.startswith(OTHER_LINES + "Traceback ")


@pytest.mark.parametrize(
    "command", ["inspect", "add", "bench", "minimize", "verify", "records", "repair", "freeze"]
)
def test_every_command_shows_why_tensorflow_cannot_be_imported(
    command: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "tensorflow.py").write_text(
        "import os\n"
        f"os.write(2, {START_UP_LINES.encode()!r})\n"
        "os.write(2, b'F0000 00:00:17.1 479 cpu_info.cc:1] Check failed: no AVX\\n')\n"
        "os.abort()\n"
    )
    code = f"from keras_warmup.cli import main; main([{command!r}, 'nowhere', '--json'])"
    ended = run_python(code, path=tmp_path)
    assert ended.returncode == -signal.SIGABRT
    assert ended.stderr == (
        START_UP_LINES + "F0000 00:00:17.1 479 cpu_info.cc:1] Check failed: no AVX\n"
    )


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model with a warmup file."""
    path = save_function(
        lambda x: {"y": tf.nn.relu(x)},
        tmp_path_factory.mktemp("quiet") / "m" / "1",
        [tf.TensorSpec([None, 3], tf.float32, name="x")],
    )
    return write_warmup_file(path, predict_log("serving_default", x=np.ones((2, 3), np.float32)))


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (("inspect",), []),
        (("records",), []),
        (("records", "--json"), []),
        (("verify",), ["keras-warmup: starting TensorFlow and replaying the warmup file ..."]),
        (
            ("add", "--append"),
            ["keras-warmup: adding warmup records ...", "keras_warmup: up to n REAL ROWS"],
        ),
        (("bench", "--processes", "1"), ["keras-warmup: measuring n/N"]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_command_prints_only_its_own_lines_on_stderr(
    arguments: tuple[str, ...], lines: list[str], export_dir: str
) -> None:
    command, *options = arguments
    argv = [sys.executable, "-m", "keras_warmup", command, export_dir, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL")
    ended = subprocess.run(
        argv, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    own = [line for line in ended.stderr.splitlines() if not line.startswith("keras-warmup: warn")]
    if tuple(map(int, tf.__version__.split(".")[:2])) < (
        2,
        21,
    ):  # TensorFlow logs when a Session runs first, too
        own = [line for line in own if not re.search(r"InitializeLog|MLIR V1 optimization", line)]
    # `add` may have added a record, in this process of the tests: then there is more to measure.
    own = [re.sub(r"up to \d+ REAL ROWS.*", "up to n REAL ROWS", line) for line in own]
    own = list(dict.fromkeys(re.sub(r"\d+/\d+", "n/N", line) for line in own))
    assert (ended.returncode, own) == (0, lines)
    assert ended.stdout
