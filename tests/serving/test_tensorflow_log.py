"""TensorFlow's log quotes no values while records are replayed, and is unchanged afterwards."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from keras_warmup.serving import tensorflow_log

_SCRIPT = r"""
import os, sys, threading
import numpy as np
import tensorflow as tf
from keras_warmup._protos import PredictionLog
from keras_warmup.records.warmup_file import warmup_path, write_records
from keras_warmup.verification import verify

NUMBER, TEXT = 91827364, "MARKED_ROW"

def signature(call, dtype):
    return tf.function(lambda x: {"y": call(x)}, input_signature=[tf.TensorSpec([None], dtype)])

def parse(x):
    return tf.io.parse_example(x, {"f": tf.io.FixedLenFeature([], tf.float32)})["f"]

def checked(x):
    tf.debugging.assert_less(x, 5)
    return x

calls = {
    "gather": (lambda x: tf.gather(tf.constant([1.0, 2.0]), x), tf.int32, [NUMBER]),
    "number": (tf.strings.to_number, tf.string, [TEXT]),
    "slice": (lambda x: tf.slice(tf.zeros([4]), x, [1]), tf.int32, [NUMBER]),
    "reshape": (lambda x: tf.reshape(tf.zeros([4]), x), tf.int32, [NUMBER]),
    "assert": (checked, tf.int32, [NUMBER]),
    "file": (lambda x: tf.io.read_file(x[0]), tf.string, [TEXT]),
    "base64": (tf.io.decode_base64, tf.string, [TEXT + "!"]),
    "example": (parse, tf.string, [TEXT]),
    "json": (lambda x: tf.io.decode_json_example(x), tf.string, [TEXT]),
}
m = tf.Module()
m.functions = {key: signature(call, dtype) for key, (call, dtype, _) in calls.items()}
tf.saved_model.save(m, "model", signatures=m.functions)
logs = []
for key, (_, _, value) in calls.items():
    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = key
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(value))
    logs.append(log)
logs[0].predict_log.request.inputs["x"].tensor_content = str(NUMBER).encode()
write_records(warmup_path("model"), [*logs, *logs], max_records=100, max_bytes=10**6)

done = threading.Event()
def talk():
    count = 0
    while not done.is_set():
        os.write(2, b"other thread %d\n" % count)  # whole, whatever else is printed
        count += 1
        done.wait(0.001)
    print(f"other thread wrote {count} lines")
other = threading.Thread(target=talk)
other.start()
report = verify("model")
done.set()
other.join()
print(f"{len(report.failures)} of {len(report.records)} failed")
print("behind the replay", file=sys.stderr, flush=True)
for _ in range(40):  # of the user; TensorFlow logs the 1st, 2nd, 4th, 8th, ... of these errors
    try:
        tf.function(lambda x: tf.gather(tf.constant([1.0, 2.0]), x))(tf.constant([7654]))
    except tf.errors.InvalidArgumentError:
        pass
"""


def test_no_value_is_logged_and_nothing_of_other_threads_is_lost(tmp_path: pathlib.Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    ended = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    wrote, failed = ended.stdout.splitlines()
    assert failed == "18 of 18 failed"
    count = int(wrote.split()[3])
    assert count > 0
    # TensorFlow may have printed the beginning of a line before it.
    assert re.findall(r"other thread (\d+)\n", ended.stderr) == list(map(str, range(count)))
    if tensorflow_log.log_level_functions() is None:
        pytest.skip("this TensorFlow's log level is fixed when it is imported")
    for marker in ("91827364", "MARKED_ROW"):
        assert marker not in ended.stdout + ended.stderr
    # The user's own failure is logged as before.
    assert "7654" in ended.stderr.split("behind the replay")[1]


def test_the_level_is_restored_by_the_last_block_that_ends() -> None:
    functions = tensorflow_log.log_level_functions()
    if functions is None:
        pytest.skip("this TensorFlow's log level is fixed when it is imported")
    level, set_level = functions
    before = level()
    try:
        for own, quiet in ((0, 2), (3, 3)):
            set_level(own)
            with tensorflow_log.no_status_log():
                with tensorflow_log.no_status_log():
                    assert level() == quiet
                assert level() == quiet
            assert level() == own
    finally:
        set_level(before)
