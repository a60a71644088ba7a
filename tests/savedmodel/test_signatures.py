"""Tests of `keras_warmup.savedmodel.signatures`."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
import tensorflow as tf
from google.protobuf import text_format

from keras_warmup._protos import MetaGraphDef, SavedModel
from keras_warmup.errors import SignatureError
from keras_warmup.inspection import inspect
from keras_warmup.savedmodel.request_kinds import servable_kinds
from keras_warmup.savedmodel.signatures import (
    Signature,
    SignatureTensor,
    read_meta_graph,
    read_saved_model,
    read_signatures,
)


def signatures_of(export_dir: str | os.PathLike[str]) -> dict[str, Signature]:
    return {signature.key: signature for signature in read_signatures(read_meta_graph(export_dir))}


class Functions(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(2.0)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="z"),
            tf.TensorSpec([None], tf.float32, name="a"),
        ]
    )
    def two(self, first: Any, second: Any) -> Any:
        return {"y": first - second * self.scale, "n": tf.shape(first)}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, name="text")])
    def any_rank(self, text: Any) -> Any:
        return tf.strings.length(text)


def save_functions(path: pathlib.Path, *names: str) -> dict[str, Signature]:
    """Saves functions of `Functions` as signatures under their names; reads the signatures."""
    module = Functions()
    tf.saved_model.save(module, path, signatures={name: getattr(module, name) for name in names})
    return signatures_of(path)


def test_signature_has_names_dtypes_and_shapes(tmp_path: pathlib.Path) -> None:
    signatures = save_functions(tmp_path, "two", "any_rank")
    assert list(signatures) == ["any_rank", "two"]
    two = signatures["two"]
    assert two.method_name == "tensorflow/serving/predict"
    assert two.inputs == {
        "a": SignatureTensor("a", "two_a:0", "float32", (None,)),
        "z": SignatureTensor("z", "two_z:0", "float32", (None,)),
    }
    assert {name: (spec.dtype, spec.shape) for name, spec in two.outputs.items()} == {
        "n": ("int32", (1,)),
        "y": ("float32", (None,)),
    }
    assert signatures["any_rank"].inputs["text"].shape is None
    assert signatures["any_rank"].inputs["text"].dtype == "string"
    assert two.tensors == (
        {"two_a:0", "two_z:0"},
        {two.outputs["n"].tensor, two.outputs["y"].tensor},
    )
    assert two.tensors != signatures["any_rank"].tensors


def test_signatures_that_feed_and_fetch_the_same_tensor_differ() -> None:
    x, y, z = (SignatureTensor(name, f"{name}:0", "float32", (None,)) for name in "xyz")
    one = Signature("one", "", {"x": x, "y": y}, {"z": z}, frozenset())
    other = Signature("other", "", {"x": x}, {"y": y, "z": z}, frozenset())
    assert one.tensors == ({"x:0", "y:0"}, {"z:0"})
    assert other.tensors == ({"x:0"}, {"y:0", "z:0"})


class Composites(tf.Module):
    @tf.function(input_signature=[tf.RaggedTensorSpec([None, None], tf.float32)])
    def ragged(self, x: Any) -> Any:
        return {"doubled": x * 2.0, "lengths": x.row_lengths()}

    @tf.function(input_signature=[tf.SparseTensorSpec([None, 4], tf.float32)])
    def sparse(self, x: Any) -> Any:
        return {"same": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def words(self, text: Any) -> Any:
        return {"words": tf.strings.split(text)}


@pytest.fixture(scope="session")
def composites_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("composites")
    m = Composites()
    tf.saved_model.save(
        m, path, signatures={"ragged": m.ragged, "sparse": m.sparse, "words": m.words}
    )
    return path


def test_composite_outputs_have_the_dtype_of_their_values_and_no_tensor(
    composites_dir: pathlib.Path,
) -> None:
    signatures = signatures_of(composites_dir)
    outputs = {
        key: {one: (s.tensor, s.dtype, s.shape) for one, s in signatures[key].outputs.items()}
        for key in signatures
    }
    assert outputs["words"] == {"words": ("", "string", None)}
    assert outputs["sparse"] == {"same": ("", "float32", (None, 4))}
    assert outputs["ragged"]["doubled"] == ("", "float32", None)
    assert outputs["ragged"]["lengths"][1:] == ("int64", (None,))
    assert servable_kinds(signatures["words"])["predict"] == (
        "its output 'words' is a composite (sparse or ragged) tensor, which a TensorProto cannot "
        "hold"
    )


def test_composite_inputs_are_the_tensors_behind_them(composites_dir: pathlib.Path) -> None:
    signatures = signatures_of(composites_dir)
    inputs = {
        key: {name: (s.dtype, s.shape) for name, s in signatures[key].inputs.items()}
        for key in signatures
    }
    assert inputs["ragged"] == {"x": ("float32", (None,)), "x_1": ("int64", (None,))}
    assert inputs["sparse"] == {
        "x": ("int64", (None, 2)),
        "x_1": ("float32", (None,)),
        "x_2": ("int64", (2,)),
    }


def test_a_model_with_composite_outputs_can_be_inspected(composites_dir: pathlib.Path) -> None:
    assert sorted(one.signature.key for one in inspect(composites_dir).signatures) == [
        "ragged",
        "sparse",
        "words",
    ]


def test_a_composite_type_without_a_dtype_is_a_variant() -> None:
    meta_graph = MetaGraphDef()
    meta_graph.signature_def["s"].outputs["y"].composite_tensor.components.add(name="y:0")
    (signature,) = read_signatures(meta_graph)
    assert signature.outputs == {"y": SignatureTensor("y", "", "variant", None)}


@pytest.mark.parametrize(("number", "side"), [(0, "input"), (77, "input"), (77, "output")])
def test_an_unknown_dtype_is_named(number: int, side: str) -> None:
    meta_graph = MetaGraphDef()
    getattr(meta_graph.signature_def["s"], f"{side}s")["x"].dtype = number
    with pytest.raises(SignatureError) as caught:
        read_signatures(meta_graph)
    assert str(caught.value) == (
        f"Cannot read signature 's': {side} 'x' is damaged: this TensorFlow does not know its "
        f"dtype (DataType {number} in saved_model.pb). Export the model again, or use the "
        "TensorFlow that wrote it."
    )


def test_inputs_with_a_default_are_listed(tmp_path: pathlib.Path) -> None:
    save_functions(tmp_path, "two")
    meta_graph = read_meta_graph(tmp_path)
    assert read_signatures(meta_graph)[0].defaults == frozenset()
    meta_graph.signature_def["two"].defaults["a"].CopyFrom(tf.make_tensor_proto([1.0]))
    assert read_signatures(meta_graph)[0].defaults == {"a"}


def test_a_text_saved_model_reads_like_a_binary_one(tmp_path: pathlib.Path) -> None:
    signatures = save_functions(tmp_path, "any_rank")
    binary = tmp_path / "saved_model.pb"
    proto = SavedModel.FromString(binary.read_bytes())
    (tmp_path / "saved_model.pbtxt").write_text(text_format.MessageToString(proto))
    binary.unlink()
    assert signatures_of(tmp_path) == signatures


def test_signatures_of_a_tf1_export_are_read(saved_models: pathlib.Path) -> None:
    signatures = signatures_of(saved_models / "half_plus_two_tf1" / "1")
    assert {key: list(signature.inputs) for key, signature in signatures.items()} == {
        "classify_x_to_y": ["inputs"],
        "regress_x2_to_y3": ["inputs"],
        "regress_x_to_y": ["inputs"],
        "regress_x_to_y2": ["inputs"],
        "serving_default": ["x"],
    }
    assert signatures["classify_x_to_y"].method_name == "tensorflow/serving/classify"


def error_of(export_dir: pathlib.Path) -> str:
    with pytest.raises(SignatureError) as caught:
        read_meta_graph(export_dir)
    return str(caught.value)


def test_a_missing_directory_is_named(tmp_path: pathlib.Path) -> None:
    assert (
        error_of(tmp_path / "no")
        == f"No SavedModel at {str(tmp_path / 'no')!r}: the directory does not exist."
    )


def test_a_base_path_gets_the_hint_to_its_version(tmp_path: pathlib.Path) -> None:
    (tmp_path / "7").mkdir()
    assert error_of(tmp_path) == (
        f"No SavedModel at {str(tmp_path)!r}: it holds ['7'], but no saved_model.pb. "
        f"Give a version directory, such as {str(tmp_path / '7')!r}."
    )


def test_a_directory_without_a_model_says_what_it_holds(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.keras").touch()
    assert (
        error_of(tmp_path)
        == f"No SavedModel at {str(tmp_path)!r}: it holds ['model.keras'], but no saved_model.pb."
    )


@pytest.mark.parametrize("name", ["saved_model.pb", "saved_model.pbtxt"])
def test_a_corrupt_file_is_named(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x0a\x7fno proto")
    path = str(tmp_path / name)
    assert (
        error_of(tmp_path)
        == f"Cannot parse {path!r}: it is not a SavedModel proto. Export the model again."
    )


def test_a_text_file_that_is_not_utf_8_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "saved_model.pbtxt").write_bytes(b"meta_graphs { \xff\xfe }")
    path = str(tmp_path / "saved_model.pbtxt")
    assert (
        error_of(tmp_path)
        == f"Cannot parse {path!r}: it is not a SavedModel proto. Export the model again."
    )


@pytest.mark.parametrize("name", ["saved_model.pb", "saved_model.pbtxt"])
def test_a_directory_in_place_of_the_file_is_named(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).mkdir()
    path = str(tmp_path / name)
    assert error_of(tmp_path) == (
        f"Cannot read {path!r}: it is a directory, expected a file. Export the model again."
    )


def test_the_error_of_the_file_system_is_passed_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "saved_model.pb")
    (tmp_path / "saved_model.pb").touch()

    def refuse(*_: Any) -> None:
        raise tf.errors.PermissionDeniedError(None, None, f"{path}; Permission denied")

    monkeypatch.setattr(tf.io.gfile, "GFile", refuse)
    assert error_of(tmp_path) == (
        f"Cannot read {path!r}: Permission denied. Make it readable for this user, or export the "
        "model again."
    )


def test_wrong_tags_are_listed(tmp_path: pathlib.Path) -> None:
    save_functions(tmp_path, "any_rank")
    path = tmp_path / "saved_model.pb"
    saved_model = SavedModel.FromString(path.read_bytes())
    saved_model.meta_graphs[0].meta_info_def.tags.append("gpu")
    path.write_bytes(saved_model.SerializeToString())
    assert error_of(tmp_path) == (
        f"SavedModel {str(tmp_path)!r} has no meta graph with tags ['serve']. Tags found: "
        "['gpu', 'serve']. Export the model with the tag 'serve'."
    )


@pytest.mark.parametrize(
    ("name", "limit"),
    [("saved_model.pb", "MAX_PROTO_BYTES"), ("saved_model.pbtxt", "MAX_TEXT_BYTES")],
)
def test_a_file_that_is_too_large_is_not_read(
    name: str, limit: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / name)
    (tmp_path / name).write_bytes(b"12345")
    monkeypatch.setattr(f"keras_warmup.savedmodel.signatures.{limit}", 4)
    with pytest.raises(SignatureError) as caught:
        read_saved_model(tmp_path)
    assert str(caught.value) == (
        f"Cannot read {path!r}: it has 5 bytes, more than the 4 that are read. Export the model "
        "again, as saved_model.pb and with large constants as variables."
    )


def test_more_signatures_than_the_limit_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    meta_graph = MetaGraphDef()
    for key in "abc":
        meta_graph.signature_def[key].method_name = "m"
    monkeypatch.setattr("keras_warmup.savedmodel.signatures.MAX_SIGNATURES", 2)
    with pytest.raises(SignatureError) as caught:
        read_signatures(meta_graph)
    assert str(caught.value) == (
        "Cannot read the signatures of the SavedModel: it has 3, more than the 2 that are read. "
        "Export fewer signatures."
    )


@pytest.mark.parametrize(
    ("shapes", "size"),
    [([(1,)], 1), ([(None, 3)], None), ([(None,), (4, 2)], 4), ([None], None), ([()], None)],
)
def test_the_batch_size_that_inputs_fix(
    shapes: list[tuple[int | None, ...] | None], size: int | None
) -> None:
    inputs = {
        f"x{index}": SignatureTensor(f"x{index}", f"x{index}:0", "float32", shape)
        for index, shape in enumerate(shapes)
    }
    assert Signature("s", "", inputs, {}, frozenset()).fixed_batch_size == size
