"""`verify` in a worker process reports the same, and survives what the model does to it."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog, SavedModel
from keras_warmup.errors import OptionsError, ReplayError, SignatureError
from keras_warmup.serving import child_process, worker
from keras_warmup.verification import VerifyReport, verify
from tests.builders import predict_log, write_warmup_file

ROWS = [1.0, 2.0]


class Functions(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def double(self, x: Any) -> dict[str, Any]:
        return {"y": x * 2}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def gather(self, x: Any) -> dict[str, Any]:
        return {"y": tf.gather(tf.constant([1.0, 2.0]), x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def forever(self, x: Any) -> dict[str, Any]:
        return {
            "y": tf.while_loop(lambda y: True, lambda y: [y + 1], [x], maximum_iterations=None)[0]
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def fill(self, x: Any) -> dict[str, Any]:
        return {"y": tf.random.uniform([x[0], 1024, 1024])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def printing(self, x: Any) -> dict[str, Any]:
        tf.raw_ops.PrintV2(input=tf.strings.as_string(x[0]))
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def abort(self, x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="on purpose")]):
            return {"y": tf.identity(x)}


@pytest.fixture(scope="session")
def functions_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("functions") / "1")
    m = Functions()
    keys = ["gather", "forever", "fill", "printing", "abort"]
    tf.saved_model.save(
        m, path, {"serving_default": m.double} | {key: getattr(m, key) for key in keys}
    )
    return path


@pytest.fixture
def export_dir(functions_dir: str, tmp_path: pathlib.Path) -> str:
    return shutil.copytree(functions_dir, str(tmp_path / "1"))


@pytest.fixture
def good_dir(tmp_path: pathlib.Path) -> str:
    path = str(tmp_path / "good" / "1")
    m = Functions()
    tf.saved_model.save(m, path, {"serving_default": m.double, "gather": m.gather})
    return write_warmup_file(
        path, predict_log("serving_default", x=ROWS), predict_log("gather", x=[1])
    )


@pytest.fixture(scope="session")
def crashing_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A graph whose import fails a CHECK in the shape function of QueueDequeueManyV2."""
    saved_model = SavedModel(saved_model_schema_version=1)
    meta_graph = saved_model.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    nodes = meta_graph.graph_def.node
    queue = nodes.add(name="queue", op="Placeholder")
    queue.attr["dtype"].type = tf.resource.as_datatype_enum
    count = nodes.add(name="count", op="Const")
    count.attr["dtype"].type = tf.int32.as_datatype_enum
    count.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([777, 778, 779]))
    dequeue = nodes.add(name="dequeue", op="QueueDequeueManyV2", input=["queue", "count"])
    dequeue.attr["component_types"].list.type.append(tf.float32.as_datatype_enum)
    path = tmp_path_factory.mktemp("crashing") / "1"
    path.mkdir()
    (path / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    return str(path)


def worker_pid() -> int:
    return worker._worker.process.pid


def without_times(report: VerifyReport) -> dict[str, Any]:
    plain = report.to_dict()
    for record in plain["records"]:
        assert (record["replay_ms"] is None) == (not record["ok"])
        del record["replay_ms"]
    return plain


def test_the_report_is_that_of_this_process(good_dir: str) -> None:
    isolated, here = verify(good_dir, isolated=True), verify(good_dir)
    assert isolated.ok
    assert without_times(isolated) == without_times(here)
    assert type(isolated) is type(here)
    assert isolated.records[0].replay_ms > 0


def test_failures_and_notes_are_those_of_this_process(good_dir: str) -> None:
    write_warmup_file(
        good_dir,
        predict_log("nope", x=ROWS),
        predict_log("gather", x=[7]),
        PredictionLog(),
        predict_log("gather", x=[0]),
    )
    isolated = verify(good_dir, isolated=True)
    assert len(isolated.failures) == 3
    assert without_times(isolated) == without_times(verify(good_dir))


def test_relative_paths_are_the_callers(good_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(os.path.dirname(good_dir))
    report = verify("1", isolated=True)
    assert (report.ok, report.export_dir) == (True, "1")


def test_errors_are_raised_as_in_this_process(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SignatureError) as isolated:
        verify(tmp_path / "none", isolated=True)
    with pytest.raises(SignatureError) as here:
        verify(tmp_path / "none")
    assert str(isolated.value) == str(here.value)


def test_the_worker_is_kept_for_the_next_call(good_dir: str) -> None:
    verify(good_dir, isolated=True)
    pid = worker_pid()
    started = time.perf_counter()
    assert verify(good_dir, isolated=True).ok
    assert worker_pid() == pid
    assert time.perf_counter() - started < 2  # importing TensorFlow alone takes longer


def test_a_crash_at_import_is_a_failure_in_the_report(crashing_dir: str, good_dir: str) -> None:
    report = verify(crashing_dir, isolated=True)
    assert not report.ok
    (failure,) = report.failures
    # The number of the line is TensorFlow's. The rest of what it printed counts elements.
    assert re.fullmatch(
        r"The process that ran the model died \(SIGABRT, a CHECK of TensorFlow failed at "
        r"tensor\.cc:\d+\) while loading the model\. A server would crash too\.",
        failure,
    )
    assert verify(good_dir, isolated=True).ok


def test_a_crash_in_a_record_names_it_and_keeps_the_verdicts_before(export_dir: str) -> None:
    write_warmup_file(
        export_dir,
        predict_log("serving_default", x=ROWS),
        predict_log("nope", x=ROWS),
        predict_log("abort", x=ROWS),
    )
    with pytest.warns(UserWarning, match="Abort"):
        report = verify(export_dir, isolated=True)
    assert [record.ok for record in report.records] == [True, False]
    assert report.failures[0].startswith("record 1: predict record for signature 'nope' ")
    assert report.failures[1].startswith("The process that ran the model died (SIGABRT")
    assert report.failures[1].endswith(" while replaying record 2. A server would crash too.")


@pytest.mark.filterwarnings("ignore:SavedModel")
def test_a_record_that_hangs_is_a_failure(export_dir: str, good_dir: str) -> None:
    verify(good_dir, isolated=True)
    started = time.perf_counter()
    report = verify(
        write_warmup_file(export_dir, predict_log("forever", x=ROWS)), isolated=True, timeout_s=3
    )
    assert report.failures == (
        "The process that ran the model was ended after 3 s while replaying record 0. Raise "
        "timeout_s (--timeout) if the model is that slow.",
    )
    assert time.perf_counter() - started < 10


@pytest.mark.trust  # TensorFlow tries for 10 s before it gives up
@pytest.mark.filterwarnings("ignore:SavedModel")
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="limits of memory need Linux")
def test_a_record_that_takes_too_much_memory_is_a_failure(export_dir: str, good_dir: str) -> None:
    write_warmup_file(export_dir, predict_log("fill", x=[1024]))  # 4 GiB
    report = verify(export_dir, isolated=True, memory_limit_bytes=2**30)
    (failure,) = report.failures
    assert failure.startswith(
        "record 0: predict record for signature 'fill' would keep TensorFlow Serving from loading "
        "the model: RESOURCE_EXHAUSTED: OOM when allocating tensor"
    )
    assert verify(good_dir, isolated=True).ok


def test_a_worker_that_was_killed_is_replaced(good_dir: str) -> None:
    verify(good_dir, isolated=True)
    pid = worker_pid()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert verify(good_dir, isolated=True).ok
    assert worker_pid() != pid


def test_threads_take_turns(good_dir: str) -> None:
    reports = []
    threads = [
        threading.Thread(target=lambda: reports.append(verify(good_dir, isolated=True)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert [report.ok for report in reports] == [True] * 4


def test_warnings_come_before_the_model_runs_and_point_at_the_caller(export_dir: str) -> None:
    write_warmup_file(export_dir, predict_log("printing", x=ROWS))
    with pytest.warns(UserWarning) as caught:
        report = verify(export_dir, isolated=True)
    assert report.ok
    with pytest.warns(UserWarning) as here:
        verify(export_dir)
    (warning,) = caught
    assert [(str(one.message), one.filename) for one in here] == [
        (str(warning.message), warning.filename)
    ]
    assert str(warning.message).startswith(
        f"SavedModel {export_dir!r} will be run. The model runs ops that act outside"
    )
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            verify(export_dir, isolated=True)
    assert worker._worker is None  # it was ended while it waited for the answer


def test_a_worker_that_cannot_start_says_so(
    good_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.close_worker()
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no' >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ReplayError) as caught:
        verify(good_dir, isolated=True)
    assert str(caught.value) == (
        "The worker process ended with exit code 1 (ModuleNotFoundError) before it was ready: "
        f"nothing was run. Check that {str(python)!r} can import tensorflow and keras_warmup, or "
        "verify without a worker (isolated=False)."
    )


def run_script(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int) -> bool:
    for _ in range(100):
        if not is_running(pid):
            return True
        time.sleep(0.1)
    return False


_START = """
import sys, os, time
from keras_warmup.serving import worker
worker.start_worker()
print(worker._worker.process.pid, flush=True)
"""


def test_the_worker_ends_with_its_caller() -> None:
    caller = run_script(_START)
    pid = int(caller.stdout.readline())
    assert caller.wait(timeout=60) == 0
    assert wait_until_gone(pid)
    caller.stdout.close()
    caller.stderr.close()


def test_the_worker_ends_where_its_caller_is_killed() -> None:
    caller = run_script(_START + "time.sleep(600)")
    pid = int(caller.stdout.readline())
    caller.kill()
    caller.communicate()
    assert wait_until_gone(pid)


def test_ctrl_c_ends_the_worker_and_what_runs_in_it(export_dir: str) -> None:
    write_warmup_file(export_dir, predict_log("forever", x=ROWS))
    caller = run_script(
        # A job in the background of a script starts with SIGINT ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        + _START
        + """
from keras_warmup.verification import verify
try:
    verify(sys.argv[1], isolated=True)
except KeyboardInterrupt:
    print("interrupted", worker._worker, flush=True)
""",
        export_dir,
    )
    pid = int(caller.stdout.readline())
    while "will be run" not in caller.stderr.readline():
        pass
    time.sleep(1)
    caller.send_signal(signal.SIGINT)
    out, _ = caller.communicate(timeout=60)
    assert out == "interrupted None\n"
    assert wait_until_gone(pid)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_leaves_the_worker_alone() -> None:
    code = (
        _START
        + """
pid = worker._worker.process.pid
child = os.fork()
if child == 0:
    print(worker._worker, flush=True)
    sys.exit()
os.waitpid(child, 0)
print(worker._worker.process.pid == pid and worker._worker.process.poll() is None)
worker._worker.wait_until_ready()
print("ready")
"""
    )
    caller = run_script(code)
    out, err = caller.communicate(timeout=120)
    assert out.splitlines()[1:] == ["None", "True", "ready"], err


def test_modules_in_the_directory_of_the_caller_hide_none_of_pythons(
    good_dir: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    code = """
import sys
sys.path.pop(0)
from keras_warmup.verification import verify
print(verify(sys.argv[1], isolated=True).ok)
"""
    caller = subprocess.run(
        [sys.executable, "-c", code, good_dir],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": child_process.PACKAGE_ROOT},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert caller.stdout == "True\n", caller.stderr


_OP_LIBRARY = """
#include <cstdlib>
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
REGISTER_OP("MoonbeamCopy").Attr("die: bool").Input("x: float").Output("y: float");
class MoonbeamCopyOp : public tensorflow::OpKernel {
 public:
  explicit MoonbeamCopyOp(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("die", &die_));
  }
  void Compute(tensorflow::OpKernelContext* context) override {
    if (die_) std::abort();
    context->set_output(0, context->input(0));
  }
 private:
  bool die_;
};
REGISTER_KERNEL_BUILDER(Name("MoonbeamCopy").Device(tensorflow::DEVICE_CPU), MoonbeamCopyOp);
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="loaded libraries are found on Linux only"
)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile an op library with")
def test_op_libraries_of_the_caller_are_loaded_in_the_worker(tmp_path: pathlib.Path) -> None:
    source, library = tmp_path / "moonbeam.cc", tmp_path / "moonbeam.so"
    source.write_text(_OP_LIBRARY)
    flags = [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-O0", "-w", str(source), "-o", str(library), *flags],
        check=True,
        timeout=300,
    )
    worker.close_worker()
    assert worker.loaded_op_libraries() == []
    ops = tf.load_op_library(str(library))
    assert worker.loaded_op_libraries() == [str(library)]
    for die in (False, True):
        m = tf.Module()
        m.copy = tf.function(
            lambda x, die=die: {"y": ops.moonbeam_copy(x=x, die=die)},
            input_signature=[tf.TensorSpec([None])],
        )
        path = str(tmp_path / f"{die}")
        tf.saved_model.save(
            m,
            path,
            {"serving_default": m.copy},
            tf.saved_model.SaveOptions(
                namespace_whitelist=["Moonbeam"], experimental_custom_gradients=False
            ),
        )
        write_warmup_file(path, predict_log("serving_default", x=ROWS))
        with pytest.warns(UserWarning, match="MoonbeamCopy"):
            report = verify(path, isolated=True)
        assert report.ok is not die, report.failures
    assert report.failures == (
        "The process that ran the model died (SIGABRT) while replaying record 0. A server would "
        "crash too.",
    )


@pytest.mark.parametrize(
    ("timeout_s", "memory_limit_bytes", "message"),
    [
        (0, None, "timeout_s must be a number > 0 and <= 604800, got 0."),
        (float("nan"), None, "timeout_s must be a number > 0 and <= 604800, got nan."),
        ("8", None, "timeout_s must be a number > 0 and <= 604800, got '8'."),
        (True, None, "timeout_s must be a number > 0 and <= 604800, got True."),
        (604801, None, "timeout_s must be a number > 0 and <= 604800, got 604801."),
        (8, 0, "memory_limit_bytes must be an integer >= 1 or None, got 0."),
        (8, 1.5, "memory_limit_bytes must be an integer >= 1 or None, got 1.5."),
    ],
    ids=["zero", "nan", "str", "bool", "weeks", "no-memory", "float-memory"],
)
def test_limits_out_of_range_are_refused(
    timeout_s: Any, memory_limit_bytes: Any, message: str
) -> None:
    with pytest.raises(OptionsError) as caught:
        worker.check_limits(timeout_s, memory_limit_bytes)
    assert str(caught.value) == message


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="limits of memory need Linux")
def test_limits_in_range_are_taken() -> None:
    worker.check_limits(604800, 1)
    worker.check_limits(0.5, None)
