"""Tests of `keras_warmup.savedmodel.rewriting`."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

import keras_warmup as kw
from keras_warmup import endpoints
from keras_warmup._protos import FingerprintDef, SavedModel, serialized_fingerprint
from keras_warmup.errors import PublishError, SignatureError
from keras_warmup.savedmodel import rewriting
from keras_warmup.savedmodel.rewriting import (
    complete_fingerprint,
    name_methods,
    recover,
    share_tensors,
    write_saved_model,
)
from keras_warmup.savedmodel.saving import save_saved_model
from keras_warmup.savedmodel.signatures import (
    read_meta_graph,
    read_saved_model,
    read_signatures,
    serving_meta_graph,
)
from keras_warmup.serving.replay import open_session
from tests.builders import predict_log


@pytest.fixture
def export_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    model = keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1)])
    spec = {"x": tf.io.FixedLenFeature([1], tf.float32)}
    functions = {"c": endpoints.classify(model, spec), "r": endpoints.regress(model, spec)}
    functions["p"] = endpoints.predict_examples(model, spec)
    save_saved_model(model, str(tmp_path / "1"), functions)
    warmup = tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests"
    warmup.parent.mkdir()
    warmup.write_bytes(b"records")
    return tmp_path / "1"


def method_names(export_dir: pathlib.Path) -> dict[str, str]:
    return {found.key: found.method_name for found in read_signatures(read_meta_graph(export_dir))}


def files(export_dir: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(export_dir)): path.read_bytes()
        for path in sorted(export_dir.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("has_links", [True, False])
def test_names_are_set_and_only_the_model_and_its_fingerprint_change(
    has_links: bool, export_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "symlink", no_links)
    before = files(export_dir)
    old = tf.saved_model.experimental.read_fingerprint(str(export_dir))
    name_methods(export_dir)
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


def test_a_model_without_a_fingerprint_gets_none(export_dir: pathlib.Path) -> None:
    (export_dir / "fingerprint.pb").unlink()
    name_methods(export_dir)
    assert not (export_dir / "fingerprint.pb").exists()


def test_a_model_in_the_text_form_is_not_rewritten(export_dir: pathlib.Path) -> None:
    path = export_dir / "saved_model.pb"
    text = text_format.MessageToString(SavedModel.FromString(path.read_bytes()))
    (export_dir / "saved_model.pbtxt").write_text(text)
    path.unlink()
    with pytest.raises(PublishError, match=r"saved_model.pb': No such file or directory"):
        name_methods(export_dir)


# -- interrupted rewrites --------------------------------------------------------------------------


def has_matching_fingerprint(export_dir: pathlib.Path) -> bool | None:
    """Returns whether `fingerprint.pb` is that of `saved_model.pb`; `None` where it is absent."""
    path = export_dir / "fingerprint.pb"
    if not path.exists():
        return None
    written = tf.saved_model.experimental.read_fingerprint(str(export_dir))
    graph = FingerprintDef.FromString(serialized_fingerprint(str(export_dir)))
    return bool(written.saved_model_checksum == graph.saved_model_checksum)


@pytest.mark.parametrize(
    "step", range(3), ids=["fingerprint away", "graph replaced", "fingerprint in place"]
)
def test_interrupted_rewrite_leaves_a_graph_with_its_fingerprint(
    step: int, export_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = rewriting.replace_file
    steps: list[str] = []

    def interrupted(source: str, target: str, *, flush: bool = True) -> None:
        if len(steps) == step:
            monkeypatch.undo()
            raise KeyboardInterrupt
        steps.append(target)
        replace_file(source, target, flush=flush)
        assert has_matching_fingerprint(export_dir) in (None, True)

    before = files(export_dir)
    monkeypatch.setattr(rewriting, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        name_methods(export_dir)
    assert has_matching_fingerprint(export_dir)
    assert set(files(export_dir)) == set(before)
    assert step == 2 or files(export_dir) == before


@pytest.mark.parametrize("graph", ["old", "new"])
def test_killed_rewrite_is_recovered_with_the_fingerprint_of_the_graph_that_is_there(
    graph: str, export_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(export_dir, tmp_path / "new")
    name_methods(tmp_path / "new")
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


def test_fingerprint_without_the_hash_of_the_variables_is_completed(
    export_dir: pathlib.Path,
) -> None:
    path = export_dir / "fingerprint.pb"
    whole = FingerprintDef.FromString(path.read_bytes())
    lacking = FingerprintDef()
    lacking.CopyFrom(whole)
    lacking.checkpoint_hash = 0
    path.write_bytes(lacking.SerializeToString())
    complete_fingerprint(str(export_dir))
    assert FingerprintDef.FromString(path.read_bytes()).checkpoint_hash == whole.checkpoint_hash
    completed = path.read_bytes()
    complete_fingerprint(str(export_dir))
    assert path.read_bytes() == completed
    path.unlink()
    complete_fingerprint(str(export_dir))
    assert not path.exists()


@pytest.mark.parametrize("name", ["saved_model.pb", "fingerprint.pb"])
def test_fifo_is_refused_before_it_is_opened(export_dir: pathlib.Path, name: str) -> None:
    (export_dir / name).unlink()
    os.mkfifo(export_dir / name)
    with pytest.raises(SignatureError, match=f"{name}': it is a fifo, expected a file"):
        name_methods(export_dir)


def test_model_behind_a_link_is_rewritten(export_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "latest").symlink_to(export_dir)
    name_methods(tmp_path / "latest")
    assert method_names(export_dir)["c"] == "tensorflow/serving/classify"


# -- shared tensors --------------------------------------------------------------------------------


def test_sharing_changes_nothing_for_load_tfsmlayer_and_a_session(tmp_path: pathlib.Path) -> None:
    rows = np.random.default_rng(0).random((6, 4), "float32")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, {"a": keras.layers.Dense(2)(x), "b": keras.layers.Dense(1)(x)})
    apart_dir, shared_dir = tmp_path / "apart", tmp_path / "shared"
    model.export(apart_dir, verbose=False)
    model.export(shared_dir, verbose=False)
    before = (shared_dir / "fingerprint.pb").read_bytes()
    saved_model = read_saved_model(shared_dir)
    share_tensors(serving_meta_graph(saved_model, shared_dir), {"serve": "serving_default"})
    write_saved_model(shared_dir, saved_model)

    apart, shared = tf.saved_model.load(apart_dir), tf.saved_model.load(shared_dir)
    assert dir(apart) == dir(shared)
    assert dict(apart.signatures.items()).keys() == dict(shared.signatures.items()).keys()
    for key in ("serve", "serving_default"):
        log = predict_log(key, x=rows)
        with open_session(apart_dir) as one, open_session(shared_dir) as other:
            expected, replayed = one.replay(log).outputs, other.replay(log).outputs
        assert expected.keys() == {"a", "b"}
        for alias, value in expected.items():
            np.testing.assert_array_equal(replayed[alias], value)
            np.testing.assert_array_equal(
                shared.signatures[key](tf.constant(rows))[alias],
                apart.signatures[key](tf.constant(rows))[alias],
            )
    layer = keras.layers.TFSMLayer(str(shared_dir), call_endpoint="serve")
    for outputs in (shared.serve(rows), layer(rows)):
        np.testing.assert_array_equal(outputs["a"], apart.serve(rows)["a"])
    assert [one.same_tensors_as for one in kw.inspect(shared_dir).signatures] == [
        ("serving_default",),
        ("serve",),
    ]
    # The old fingerprint would describe another file.
    assert (shared_dir / "fingerprint.pb").read_bytes() != before
    assert has_matching_fingerprint(shared_dir)
