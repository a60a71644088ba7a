"""A model that a server cannot load is refused with the failing step, the reason and the cure."""

from __future__ import annotations

import pathlib
import shutil
import traceback
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_warmup._protos import PredictionLog, SavedModel
from keras_warmup.errors import ReplayError, SignatureError
from keras_warmup.op_errors import WITHHELD
from keras_warmup.serving.replay import ServingSession, open_session
from tests.builders import predict_log

ROWS = np.array([1, 2, 3], "float32")
STRINGS = tf.TensorSpec([None], tf.string, "x")
SECRET = "SECRET4242"


class Scaled(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def serve(self, x: Any) -> dict[str, Any]:
        return {"y": x * self.scale}


@pytest.fixture(scope="session")
def scaled_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("scaled") / "1")
    m = Scaled()
    tf.saved_model.save(m, path, signatures=m.serve)
    return path


def refusal(session: ServingSession, log: PredictionLog) -> str:
    with pytest.raises(ReplayError) as caught:
        session.replay(log)
    return str(caught.value)


def test_the_keras_3_session_trap_is_found_and_its_cure_named(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    tf.saved_model.save(model, tmp_path)
    assert tf.saved_model.load(tmp_path).signatures["serving_default"](inputs=tf.ones([2, 3]))
    with open_session(tmp_path) as session:
        text = refusal(session, predict_log(inputs=np.ones((2, 3), "float32")))
    assert ": FAILED_PRECONDITION: Could not find variable " in text
    assert text.endswith(
        ". The SavedModel's restore op does not fill this variable: tf.saved_model.load works, "
        "a Session does not. tf.saved_model.save of a Keras 3 model writes such files; repair it "
        "with keras-warmup repair, or write the model with keras_warmup.save, model.export or "
        "keras.export.ExportArchive."
    )


def test_a_vocabulary_asset_of_tf2_is_found(tmp_path: pathlib.Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("cat\ndog\n")
    m = tf.Module()
    m.lookup = keras.layers.StringLookup(vocabulary=str(vocabulary))
    m.f = tf.function(
        lambda x: {"ids": m.lookup(x)}, input_signature=[tf.TensorSpec([None], tf.string)]
    )
    tf.saved_model.save(m, tmp_path / "1", signatures=m.f)
    vocabulary.unlink()
    with open_session(tmp_path / "1") as session:
        assert session.replay(predict_log(x=np.array([b"dog", b"cow"], object))).outputs[
            "ids"
        ].tolist() == [2, 0]


def test_an_op_of_another_library_fails_the_load(scaled_dir: str, tmp_path: pathlib.Path) -> None:
    saved_model = SavedModel.FromString(
        tf.io.gfile.GFile(f"{scaled_dir}/saved_model.pb", "rb").read()
    )
    saved_model.meta_graphs[0].graph_def.node.add(name="foreign", op="DecodeMoonbeam")
    (tmp_path / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    with pytest.raises(ReplayError) as caught:
        open_session(tmp_path)
    text = str(caught.value)
    assert text == (
        f"Cannot import the graph of SavedModel {str(tmp_path)!r}: Op type not registered "
        "'DecodeMoonbeam'. Import the library that registers the op; the model server must be "
        "built with it."
    )


def test_damaged_variables_fail_the_load(scaled_dir: str, tmp_path: pathlib.Path) -> None:
    path = f"{tmp_path}/1"
    for name in ("saved_model.pb", "variables/variables.index"):
        tf.io.gfile.makedirs(f"{path}/variables")
        tf.io.gfile.copy(f"{scaled_dir}/{name}", f"{path}/{name}")
    with pytest.raises(ReplayError) as caught:
        open_session(path)
    assert str(caught.value) == (
        f"Cannot restore the variables of SavedModel {path!r}: "
        f"{path}/variables/variables.data-00000-of-00001; No such file or directory. Export the "
        "model again, with all its files."
    )
    assert caught.value.status == "NOT_FOUND"


def test_garbage_in_the_variables_is_described_in_tensorflows_words(
    scaled_dir: str, tmp_path: pathlib.Path
) -> None:
    path = shutil.copytree(scaled_dir, str(tmp_path / "1"))
    with open(f"{path}/variables/variables.index", "wb") as file:
        file.write(b"garbage")
    with pytest.raises(ReplayError) as caught:
        open_session(path)
    text = str(caught.value)
    assert text.startswith(f"Cannot restore the variables of SavedModel {path!r}: ")
    assert text.endswith(". Export the model again, with all its files.")
    assert "sstable" in text
    assert WITHHELD not in text


def test_a_bad_graph_is_described_in_tensorflows_words(
    scaled_dir: str, tmp_path: pathlib.Path
) -> None:
    saved_model = SavedModel.FromString(
        tf.io.gfile.GFile(f"{scaled_dir}/saved_model.pb", "rb").read()
    )
    saved_model.meta_graphs[0].graph_def.node.add(name="lost", op="NoOp", input=["^nowhere"])
    (tmp_path / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    with pytest.raises(ReplayError) as caught:
        open_session(tmp_path)
    assert str(caught.value) == (
        f"Cannot import the graph of SavedModel {str(tmp_path)!r}: Node 'lost': Unknown input node "
        "'^nowhere'. Export the model again, with all its files."
    )


def test_an_exception_of_cpp_is_named_and_leaves_tensorflow_usable(
    scaled_dir: str, tmp_path: pathlib.Path
) -> None:
    """The shape function of XlaCallModule reads past the end of a list and leaves locks locked."""
    saved_model = SavedModel.FromString(
        tf.io.gfile.GFile(f"{scaled_dir}/saved_model.pb", "rb").read()
    )
    node = saved_model.meta_graphs[0].graph_def.node.add(name="module", op="XlaCallModule")
    node.attr["version"].i = 5
    node.attr["module"].s = b""
    node.attr["Tin"].list.SetInParent()
    node.attr["Tout"].list.type.append(tf.float32.as_datatype_enum)
    for _ in range(2):
        node.attr["Sout"].list.shape.add()
    (tmp_path / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    for _ in range(2):
        with pytest.raises(ReplayError) as caught:
            open_session(tmp_path)
        assert str(caught.value).startswith(
            f"Cannot import the graph of SavedModel {str(tmp_path)!r}: IndexError: vector"
        )
    with open_session(scaled_dir) as session:
        session.replay(predict_log(x=ROWS))


def test_missing_variables_are_not_taken_for_the_trap_of_keras_3(
    scaled_dir: str, tmp_path: pathlib.Path
) -> None:
    path = shutil.copytree(scaled_dir, str(tmp_path / "1"))
    shutil.rmtree(f"{path}/variables")
    with open_session(path) as session:
        text = refusal(session, predict_log(x=ROWS))
    assert ": FAILED_PRECONDITION: " in text
    assert text.endswith(
        ". The variables are missing: the SavedModel has no variables/variables.index. Copy it, or "
        "export it again, with all its files."
    )


def test_an_init_op_does_not_quote_the_vocabulary(tmp_path: pathlib.Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text(f"cat\n{SECRET}\ndog\n")
    m = tf.Module()
    m.lookup = keras.layers.StringLookup(vocabulary=str(vocabulary))
    m.f = tf.function(lambda x: {"ids": m.lookup(x)}, input_signature=[STRINGS], autograph=False)
    tf.saved_model.save(m, tmp_path / "1", signatures=m.f)
    (tmp_path / "1" / "assets" / "words.txt").write_text(f"cat\n{SECRET}\n{SECRET}\n")
    with pytest.raises(ReplayError) as caught:
        open_session(tmp_path / "1")
    text = str(caught.value)
    assert text.startswith(
        f"Cannot run the init op of SavedModel {str(tmp_path / '1')!r}: HashTable has different "
        "value"
    )
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_missing_model_is_a_signature_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SignatureError, match="No SavedModel at"):
        open_session(tmp_path)
