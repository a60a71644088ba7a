from __future__ import annotations

import os
import pathlib
import shutil

import keras
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import fingerprint_pb2

from keras_warmup import endpoints
from keras_warmup._protos import serialized_fingerprint
from keras_warmup.errors import BindingError, OptionsError, SignatureError
from keras_warmup.savedmodel import rewriting
from keras_warmup.savedmodel.rewriting import complete_fingerprint, recover, rewrite_method_names
from keras_warmup.savedmodel.saving import save_saved_model
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures
from keras_warmup.serving.replay import open_session


@pytest.fixture
def export_dir(tmp_path):
    model = keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1)])
    spec = {"x": tf.io.FixedLenFeature([1], tf.float32)}
    functions = {"c": endpoints.classify(model, spec), "r": endpoints.regress(model, spec)}
    functions["p"] = endpoints.predict_examples(model, spec)
    save_saved_model(model, str(tmp_path / "1"), functions)
    warmup = tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests"
    warmup.parent.mkdir()
    warmup.write_bytes(b"records")
    return tmp_path / "1"


def method_names(export_dir):
    return {found.key: found.method_name for found in read_signatures(read_meta_graph(export_dir))}


def files(export_dir):
    return {
        str(path.relative_to(export_dir)): path.read_bytes()
        for path in sorted(pathlib.Path(export_dir).rglob("*"))
        if path.is_file()
    }


def test_names_are_set_and_nothing_but_the_model_and_its_fingerprint_changes(export_dir):
    before = files(export_dir)
    old = tf.saved_model.experimental.read_fingerprint(str(export_dir))
    rewrite_method_names(export_dir, {"c": "classify", "r": "regress"})
    assert method_names(export_dir) == {
        "c": "tensorflow/serving/classify",
        "p": "tensorflow/serving/predict",
        "r": "tensorflow/serving/regress",
    }
    after = files(export_dir)
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} == {
        "saved_model.pb",
        "fingerprint.pb",
    }
    new = tf.saved_model.experimental.read_fingerprint(str(export_dir))
    assert new.saved_model_checksum != old.saved_model_checksum
    assert new.checkpoint_hash == old.checkpoint_hash
    with open_session(export_dir) as session:
        assert session.load_ms > 0
    assert tf.saved_model.load(str(export_dir)).signatures["r"] is not None


def test_names_can_be_set_back(export_dir):
    before = method_names(export_dir)
    rewrite_method_names(export_dir, {"c": "classify"})
    rewrite_method_names(export_dir, {"c": "predict"})
    assert method_names(export_dir) == before


def test_a_model_without_a_fingerprint_gets_none(export_dir):
    (export_dir / "fingerprint.pb").unlink()
    rewrite_method_names(export_dir, {"c": "classify"})
    assert not (export_dir / "fingerprint.pb").exists()


@pytest.mark.parametrize(
    ("kinds", "error", "text"),
    [
        (
            {"c": "multi_inference"},
            OptionsError,
            "Signature 'c': kind must be one of ['classify', 'predict', 'regress'], got 'multi_inference'.",
        ),
        (
            {"c": "regress"},
            BindingError,
            "Signature 'c' cannot serve regress requests: Regress reads exactly one output, 'outputs', and it has "
            "['classes', 'scores'].",
        ),
        (
            {"c": "classify", "nope": "regress"},
            SignatureError,
            "SavedModel {path!r} has no signatures ['nope']. It has ['c', 'p', 'r'].",
        ),
    ],
    ids=["kind", "cannot_serve", "unknown"],
)
def test_refusals_leave_the_model_as_it_was(kinds, error, text, export_dir):
    before = files(export_dir)
    with pytest.raises(error) as raised:
        rewrite_method_names(export_dir, kinds)
    assert str(raised.value) == text.format(path=str(export_dir))
    assert files(export_dir) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), (b"garbage\xff", "it is not a SavedModel proto")],
    ids=["absent", "garbage"],
)
def test_what_is_no_saved_model_is_refused(content, reason, tmp_path):
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(SignatureError) as error:
        rewrite_method_names(tmp_path, {"c": "classify"})
    assert (
        str(error.value)
        == f"Cannot read a SavedModel from {str(tmp_path / 'saved_model.pb')!r}: {reason}."
    )


# -- interrupted rewrites ----------------------------------------------------------------------------------------------


def has_matching_fingerprint(export_dir):
    """Whether `fingerprint.pb` is that of `saved_model.pb`; `None` where there is none."""
    path = export_dir / "fingerprint.pb"
    if not path.exists():
        return None
    written = tf.saved_model.experimental.read_fingerprint(str(export_dir))
    graph = fingerprint_pb2.FingerprintDef.FromString(serialized_fingerprint(str(export_dir)))
    return written.saved_model_checksum == graph.saved_model_checksum


@pytest.mark.parametrize(
    "step", range(3), ids=["fingerprint away", "graph replaced", "fingerprint in place"]
)
def test_interrupted_rewrite_leaves_a_graph_with_its_fingerprint(step, export_dir, monkeypatch):
    replace_file = rewriting.replace_file
    steps = []

    def interrupted(source, target, *, flush=True):
        if len(steps) == step:
            monkeypatch.undo()
            raise KeyboardInterrupt
        steps.append(target)
        replace_file(source, target, flush=flush)
        assert has_matching_fingerprint(export_dir) in (None, True)

    before = files(export_dir)
    monkeypatch.setattr(rewriting, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rewrite_method_names(export_dir, {"c": "classify"})
    assert has_matching_fingerprint(export_dir)
    assert set(files(export_dir)) == set(before)
    assert step == 2 or files(export_dir) == before


@pytest.mark.parametrize("graph", ["old", "new"])
def test_killed_rewrite_is_recovered_with_the_fingerprint_of_the_graph_that_is_there(
    graph, export_dir, tmp_path
):
    shutil.copytree(export_dir, tmp_path / "new")
    rewrite_method_names(tmp_path / "new", {"c": "classify"})
    workspace = export_dir / ".saved_model.pb.kw-0123456789abcdef"
    dead = workspace / "new"
    dead.mkdir(parents=True)
    (export_dir / "fingerprint.pb").rename(dead / "fingerprint.old")
    shutil.copy(tmp_path / "new" / "fingerprint.pb", dead)
    shutil.copy(tmp_path / "new" / "saved_model.pb", dead if graph == "old" else export_dir)
    recover(str(export_dir))
    assert not workspace.exists()
    assert has_matching_fingerprint(export_dir)
    assert (method_names(export_dir)["c"] == "tensorflow/serving/classify") == (graph == "new")


def test_fingerprint_without_the_hash_of_the_variables_is_completed(export_dir):
    path = export_dir / "fingerprint.pb"
    whole = fingerprint_pb2.FingerprintDef.FromString(path.read_bytes())
    lacking = fingerprint_pb2.FingerprintDef()
    lacking.CopyFrom(whole)
    lacking.checkpoint_hash = 0
    path.write_bytes(lacking.SerializeToString())
    complete_fingerprint(str(export_dir))
    assert (
        fingerprint_pb2.FingerprintDef.FromString(path.read_bytes()).checkpoint_hash
        == whole.checkpoint_hash
    )
    completed = path.read_bytes()
    complete_fingerprint(str(export_dir))
    assert path.read_bytes() == completed
    path.unlink()
    complete_fingerprint(str(export_dir))
    assert not path.exists()


@pytest.mark.parametrize("name", ["saved_model.pb", "fingerprint.pb"])
def test_fifo_is_refused_before_it_is_opened(export_dir, name):
    (export_dir / name).unlink()
    os.mkfifo(export_dir / name)
    with pytest.raises(SignatureError, match=f"{name}': it is a fifo, expected a file"):
        rewrite_method_names(export_dir, {"c": "classify"})


def test_model_behind_a_link_is_rewritten(export_dir, tmp_path):
    (tmp_path / "latest").symlink_to(export_dir)
    rewrite_method_names(tmp_path / "latest", {"c": "classify"})
    assert method_names(export_dir)["c"] == "tensorflow/serving/classify"
