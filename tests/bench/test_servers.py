from __future__ import annotations

import os
import socket
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog
from keras_warmup.bench.benchmark import benchmark
from keras_warmup.bench.client import PredictionClient, RunningServer
from keras_warmup.bench.servers import (
    MODEL_SERVER_ENV,
    LaunchedServer,
    ServerCommand,
    _shown,
    docker_command,
    find_model_server,
)
from keras_warmup.errors import OptionsError, ReplayError, ServerError
from keras_warmup.records.warmup_file import warmup_path, write_records

DOUBLE = (
    sys.executable,
    os.path.join(os.path.dirname(os.path.abspath(__file__)), "serving_double.py"),
)
# The double imports the package it stands in for a server of.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Counting(tf.Module):
    """Counts the Predict requests it gets, so that a test sees which ones a server ran before."""

    def __init__(self):
        super().__init__()
        self.requests = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
    def predict(self, x):
        return {"count": self.requests.assign_add(1), "sum": tf.reduce_sum(x, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        return {
            "scores": tf.nn.softmax(x),
            "classes": tf.tile([["no", "yes"]], [tf.shape(x)[0], 1]),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs):
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        return {"outputs": tf.reduce_sum(x, axis=1)}


def predict_log(x, signature_key="serving_default"):
    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature_key
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.asarray(x, np.float32)))
    return log


def add_examples(request_input, rows):
    for row in rows:
        request_input.example_list.examples.add().features.feature["x"].float_list.value.extend(row)


def classify_log(rows, signature_key="classify"):
    log = PredictionLog()
    log.classify_log.request.model_spec.signature_name = signature_key
    add_examples(log.classify_log.request.input, rows)
    return log


def regress_log(rows):
    log = PredictionLog()
    log.regress_log.request.model_spec.signature_name = "regress"
    add_examples(log.regress_log.request.input, rows)
    return log


def multi_inference_log(rows):
    log = PredictionLog()
    task = log.multi_inference_log.request.tasks.add(method_name="tensorflow/serving/classify")
    task.model_spec.name = "whatever"
    task.model_spec.signature_name = "classify"
    add_examples(log.multi_inference_log.request.input, rows)
    return log


@pytest.fixture(scope="session")
def export_dir(tmp_path_factory):
    base = tmp_path_factory.mktemp("servers") / "counting"
    module = Counting()
    signatures = {
        "serving_default": module.predict,
        "classify": module.classify,
        "regress": module.regress,
    }
    # A higher version beside it: the server must get the one that was asked for.
    for version in ("3", "7"):
        tf.saved_model.save(module, str(base / version), signatures=signatures)
    return str(base / "3")


@pytest.fixture(scope="session")
def warmup_file(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("warmup") / "requests")
    write_records(path, [predict_log(np.ones((2, 2)))] * 3, max_records=10, max_bytes=2**20)
    return path


def add_to_pythonpath(monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    )
    # Spares the double the import of Keras.
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.serving)])
def command(request, monkeypatch):
    if request.param == "double":
        add_to_pythonpath(monkeypatch)
        return ServerCommand(DOUBLE, "serving_double.py")
    try:
        return find_model_server()
    except ServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def double(monkeypatch):
    add_to_pythonpath(monkeypatch)
    return ServerCommand(DOUBLE, "serving_double.py")


def count_of(response):
    return tf.make_ndarray(response.outputs["count"]).item()


def test_started_cold_a_server_has_run_nothing(command, export_dir):
    server = LaunchedServer(export_dir, command, model_name="counting")
    with server.started(None) as (client, load_ms):
        assert count_of(client.prepare(predict_log(np.ones((2, 2))))()) == 1
        assert load_ms > 0


def test_started_warm_a_server_has_replayed_each_record(command, export_dir, warmup_file):
    server = LaunchedServer(export_dir, command, model_name="counting")
    with server.started(warmup_file) as (client, _):
        assert count_of(client.prepare(predict_log(np.ones((2, 2))))()) == 4


def test_every_kind_of_request_is_answered(command, export_dir):
    server = LaunchedServer(export_dir, command, model_name="counting")
    with server.started(None) as (client, _):
        predicted = client.prepare(predict_log([[1, 2], [3, 4]]))()
        assert tf.make_ndarray(predicted.outputs["sum"]).tolist() == [3, 7]
        classified = client.prepare(classify_log([[0, 0]]))()
        assert [one.label for one in classified.result.classifications[0].classes] == ["no", "yes"]
        regressed = client.prepare(regress_log([[1, 2], [3, 4]]))()
        assert [one.value for one in regressed.result.regressions] == [3, 7]
        inferred = client.prepare(multi_inference_log([[0, 0], [0, 0]]))()
        assert len(inferred.results[0].classification_result.classifications) == 2
        # Over gRPC's own limit of 4 MB, there and back.
        large = client.prepare(predict_log(np.ones((2**20 + 1, 2))))()
        assert len(tf.make_ndarray(large.outputs["sum"])) == 2**20 + 1
        assert len(client.time_requests([predict_log(np.ones((2, 2)))], 3)) == 3


def test_a_failing_request_says_what_the_server_said_without_values(command, export_dir):
    server = LaunchedServer(export_dir, command, model_name="counting")
    with server.started(None) as (client, _):
        with pytest.raises(ReplayError) as caught:
            client.prepare(predict_log(np.ones((2, 2)), "nope"))()
        assert str(caught.value) == (
            f"predict request for signature 'nope', sent to {client.address}, failed: FAILED_PRECONDITION: "
            'Serving signature key "nope" not found.'
        )
        streamed = PredictionLog()
        streamed.session_run_log.request.SetInParent()
        with pytest.raises(
            ReplayError, match="cannot be sent to a server: expected one of predict_log, "
        ):
            client.prepare(streamed)


def test_a_server_that_refuses_the_model_shows_its_own_error(command, export_dir, tmp_path):
    bad = str(tmp_path / "bad")
    write_records(bad, [predict_log(np.ones((2, 2)), "nope")], max_records=10, max_bytes=2**20)
    server = LaunchedServer(export_dir, command, model_name="counting")
    with pytest.raises(ReplayError) as caught, server.started(bad):
        pass
    message = str(caught.value)
    assert message.startswith(
        f"{command.name} did not load {export_dir!r}: it ended with exit code "
    )
    assert 'Serving signature key "nope" not found.' in message


def test_the_server_is_stopped_however_the_block_ends(double, export_dir):
    server = LaunchedServer(export_dir, double, model_name="counting")
    with pytest.raises(KeyboardInterrupt), server.started(None) as (client, _):
        address = client.address
        raise KeyboardInterrupt
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0


def test_the_version_served_is_the_one_given_and_a_name_that_is_no_number_becomes_one(
    double, export_dir, tmp_path
):
    named = tmp_path / "candidate"
    tf.saved_model.save(Counting(), str(named))
    (named / "assets.extra").mkdir()
    (named / "assets.extra" / "notes.txt").write_text("mine")
    write_records(
        warmup_path(named), [predict_log(np.ones((2, 2)), "nope")], max_records=1, max_bytes=2**20
    )
    before = sorted(path.name for path in (named / "assets.extra").iterdir())
    asked = ServerCommand(
        (
            sys.executable,
            "-c",
            "import os, sys; sys.exit(print(os.listdir(sys.argv[1])))",
            "{base_path}",
        ),
        "ls",
    )
    for directory, version in ((export_dir, "3"), (str(named), "1")):
        with (
            pytest.raises(ReplayError) as caught,
            LaunchedServer(directory, asked, model_name="m").started(None),
        ):
            pass
        assert (
            str(caught.value)
            == f"ls did not load {directory!r}: it ended with exit code 0. It said:\n['{version}']"
        )
    assert sorted(path.name for path in (named / "assets.extra").iterdir()) == before


def test_a_server_that_never_gets_ready_is_stopped_and_its_output_shown(export_dir):
    idle = ServerCommand(
        (sys.executable, "-c", "import time; print('thinking', flush=True); time.sleep(60)"), "idle"
    )
    server = LaunchedServer(export_dir, idle, model_name="counting", timeout_s=2)
    with pytest.raises(ServerError) as caught, server.started(None):
        pass
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("Model 'counting' did not get AVAILABLE at 127.0.0.1:")
    assert lines[0].endswith(
        " Check the address (the gRPC port), the model name and the server's own output."
    )
    assert lines[1:] == ["idle said:", "thinking"]


def test_a_running_server_is_asked_and_not_stopped(double, export_dir):
    with LaunchedServer(export_dir, double, model_name="counting").started(None) as (client, _):
        sample = RunningServer(client.address, "counting").sample(
            [predict_log(np.ones((2, 2)))], 3, None
        )
        assert len(sample.request_ms) == 3
        assert count_of(client.prepare(predict_log(np.ones((2, 2))))()) == 4
        with pytest.raises(ServerError) as caught:
            RunningServer(client.address, "other", timeout_s=0.5).sample(
                [predict_log(np.ones((2, 2)))], 1, None
            )
        assert str(caught.value) == (
            f"Model 'other' did not get AVAILABLE at {client.address} within 0.5 s; the server last said: NOT_FOUND: Could not "
            "find any versions of model other. Check the address (the gRPC port), the model name and the server's own output."
        )
        report = benchmark(export_dir, server=client.address, requests=2)
    assert report.engine == "server"
    assert {(entry.signature_key, entry.kind) for entry in report.entries} == {
        ("serving_default", "predict"),
        ("classify", "classify"),
        ("regress", "regress"),
    }
    assert all(
        entry.cold_ms is None and entry.warm_ms > 0 and entry.faster is None
        for entry in report.entries
    )
    assert report.load_ms is None and report.load_added_ms is None and report.processes == 1
    assert report.noise == "Noise: one figure each, so no spread is known and no gain is claimed."


def test_benchmark_starts_servers_cold_and_warm(command, export_dir, tmp_path):
    warm = tmp_path / "counting" / "1"
    module = Counting()
    tf.saved_model.save(
        module,
        str(warm),
        signatures={"serving_default": module.predict, "classify": module.classify},
    )
    logs = [predict_log([[1, 2], [3, 4]]), classify_log([[1, 2], [3, 4]])]
    write_records(warmup_path(warm), logs, max_records=10, max_bytes=2**20)
    report = benchmark(warm, model_server=command.argv, processes=1, requests=2)
    assert report.engine == "model_server"
    assert [
        (entry.signature_key, entry.kind, entry.batch_size, entry.rows) for entry in report.entries
    ] == [
        ("serving_default", "predict", 2, "reordered"),
        ("classify", "classify", 2, "reordered"),
    ]
    assert all(entry.cold_ms > 0 and entry.warm_ms > 0 for entry in report.entries)
    assert report.load_ms > 0


def test_an_address_is_host_and_port():
    with pytest.raises(OptionsError) as caught:
        PredictionClient("localhost", "m")
    assert (
        str(caught.value)
        == "A server is given as HOST:PORT (its gRPC port, usually 8500), got 'localhost'."
    )


def test_two_kinds_of_server_are_refused(export_dir):
    with pytest.raises(OptionsError) as caught:
        benchmark(export_dir, server="localhost:8500", docker=True)
    assert str(caught.value) == "server and docker were given: ask for one of them."


def test_a_model_server_is_found_by_path_environment_or_on_path(monkeypatch, tmp_path):
    monkeypatch.delenv(MODEL_SERVER_ENV, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError) as caught:
        find_model_server()
    assert str(caught.value) == (
        "No model server on PATH, and KERAS_WARMUP_MODEL_SERVER is not set. Install tensorflow_model_server, give its path, or "
        "use a Docker image such as 'tensorflow/serving'."
    )
    for name in ("tensorflow_model_server", "other_server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert find_model_server().argv == (str(tmp_path / "tensorflow_model_server"),)
    monkeypatch.setenv(MODEL_SERVER_ENV, str(tmp_path / "other_server"))
    assert find_model_server().argv == (str(tmp_path / "other_server"),)
    with pytest.raises(ServerError) as caught:
        find_model_server(tmp_path / "absent")
    assert str(caught.value).startswith(f"No model server at {str(tmp_path / 'absent')!r}. ")


def test_docker_is_only_another_argv(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError) as caught:
        docker_command()
    assert (
        str(caught.value)
        == "No docker on PATH. Install it, or give the path of a tensorflow_model_server."
    )
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    docker.chmod(0o755)
    made = docker_command("tensorflow/serving:2.19.1")
    container = made.stop[-1]
    assert made.stop == (str(docker), "rm", "--force", container)
    assert made.argv == (
        str(docker), "run", "--rm", "--init", "--name", container, "--publish", "127.0.0.1:{port}:{port}",
        "--volume", "{base_path}:{base_path}:ro", "--entrypoint", "tensorflow_model_server", "tensorflow/serving:2.19.1",
    )  # fmt: skip


def test_a_container_is_removed_after_the_server_was_stopped(monkeypatch, tmp_path, export_dir):
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/said\necho "Cannot connect to the Docker daemon" >&2\nexit 125\n'
    )
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    server = LaunchedServer(
        export_dir, docker_command("an/image"), model_name="m", server_args=["--flag=1"]
    )
    with pytest.raises(ReplayError) as caught, server.started(None):
        pass
    assert str(caught.value) == (
        f"tensorflow_model_server of Docker image 'an/image' did not load {export_dir!r}: it ended with exit code 125. It said:\n"
        "Cannot connect to the Docker daemon"
    )
    run, stopped = (tmp_path / "said").read_text().splitlines()
    assert run.endswith("--enable_model_warmup=false --max_num_load_retries=0 --flag=1")
    assert stopped.startswith("rm --force keras-warmup-")


@pytest.mark.serving
def test_a_docker_image_serves_cold_and_warm(export_dir, warmup_file):
    image = os.environ.get("KERAS_WARMUP_DOCKER_IMAGE")
    if not image:
        pytest.skip("KERAS_WARMUP_DOCKER_IMAGE names no image")
    server = LaunchedServer(export_dir, docker_command(image), model_name="counting")
    with server.started(warmup_file) as (client, _):
        assert count_of(client.prepare(predict_log(np.ones((2, 2))))()) == 4


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "E server.cc] Failed to start server. Error: Unknown: 1 servable(s) did not become available: {{name: m version: 1} "
            "due to error: Invalid argument: indices[0,0] = 4711 is not in [0, 10), }",
            "E server.cc] Failed to start server. Error: Unknown: 1 servable(s) did not become available: {{name: m version: 1} "
            "due to error: Invalid argument: indices[0,0] = ... is not in [0, 10) ...",
        ),
        (
            'E retrier.cc] Loading servable: {name: m version: 1} failed: INVALID_ARGUMENT: Serving signature key "a" not found.',
            'E retrier.cc] Loading servable: {name: m version: 1} failed: INVALID_ARGUMENT: Serving signature key "a" not found.',
        ),
        ("unknown argument: --flag", "unknown argument: --flag"),
        ("Error: [[4711 4712]]", "(message withheld: it may hold tensor values)"),
    ],
    ids=["values", "safe", "flag", "printed"],
)
def test_a_server_that_has_run_requests_is_quoted_without_values(line, shown):
    assert _shown(line) == shown
