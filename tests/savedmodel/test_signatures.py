import collections

import keras
import numpy as np
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
    read_signatures,
)

FLOATS = tf.TensorSpec([None], tf.float32)
Pair = collections.namedtuple("Pair", "late early")


def signatures_of(export_dir) -> dict[str, Signature]:
    return {signature.key: signature for signature in read_signatures(read_meta_graph(export_dir))}


class Sum(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(
            tf.add_n([leaf * (rank + 1) for rank, leaf in enumerate(keras.tree.flatten(x))])
        )


def functional(structure):
    inputs = [keras.Input((3,), name=name) for name in ("zz", "aa")]
    outputs = keras.layers.Dense(2)(keras.layers.Concatenate()(inputs))
    return keras.Model(structure(*inputs), outputs)


def subclassed(x):
    model = Sum()
    model(x)
    return model


ROWS = np.ones((2, 3), "float32")


def export(model, path):
    model.export(path, verbose=False)


@pytest.mark.parametrize("save", [export, tf.saved_model.save], ids=["export", "saved_model"])
@pytest.mark.parametrize(
    ("make", "structure"),
    [
        (lambda: functional(lambda z, a: {"p": z, "q": a}), {"p": 0, "q": 1}),
        (lambda: functional(lambda z, a: {"q": z, "p": a}), {"p": 0, "q": 1}),
        (lambda: functional(lambda z, a: [z, a]), [0, 1]),
        (lambda: subclassed(ROWS), 0),
        (lambda: subclassed({"k2": ROWS, "k1": [ROWS, ROWS]}), {"k1": [0, 1], "k2": 2}),
        (lambda: subclassed([ROWS] * 12), list(range(12))),
    ],
    ids=["dict", "dict-swapped", "list", "tensor", "nested", "twelve"],
)
def test_structure_pairs_input_names_with_the_models_arguments(tmp_path, make, structure, save):
    model = make()
    save(model, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    signature = signatures_of(tmp_path)["serving_default"]
    assert len(signature.structure) == 1
    names = signature.structure[0]
    tf.nest.assert_same_structure(names, structure)

    # Input k gets k + 1 in every entry: a swap of any two inputs changes the sum.
    x = tf.nest.map_structure(lambda rank: np.full((2, 3), rank + 1, "float32"), structure)
    feeds = dict(zip(tf.nest.flatten(names), tf.nest.flatten(x), strict=True))
    outputs = loaded.signatures["serving_default"](
        **{name: tf.constant(value) for name, value in feeds.items()}
    )
    (output,) = outputs.values()
    np.testing.assert_allclose(output, model(x), rtol=1e-5)


class Functions(tf.Module):
    def __init__(self):
        super().__init__()
        self.scale = tf.Variable(2.0)

    @tf.function
    def nested(self, a, b, training=False):
        return {"y": a["x"] * self.scale + b[0]}

    @tf.function
    def two(self, first, second):
        return {"y": first - second * self.scale, "n": tf.shape(first)}

    @tf.function
    def keywords(self, *, first, second):
        return first - second

    @tf.function
    def ragged(self, rows):
        return rows.to_tensor()

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, name="text")])
    def any_rank(self, text):
        return tf.strings.length(text)


def save_functions(path, **signatures):
    module = Functions()
    tf.saved_model.save(
        module, path, signatures={key: make(module) for key, make in signatures.items()}
    )
    return signatures_of(path)


def named(name):
    return tf.TensorSpec([None], tf.float32, name=name)


@pytest.mark.parametrize(
    ("make", "structure"),
    [
        (
            lambda m: m.nested.get_concrete_function({"x": named("q")}, [named("r")]),
            ({"x": "q"}, ["r"]),
        ),
        (
            lambda m: m.nested.get_concrete_function({"x": named("q")}, [named("r")], True),
            ({"x": "q"}, ["r"]),
        ),
        (
            lambda m: m.nested.get_concrete_function(
                {"x": named("q")}, Pair(named("r"), named("s"))
            ),
            ({"x": "q"}, ("r", "s")),
        ),
        # The trace in the object graph has other argument names (a_x, b_late): no evidence.
        (lambda m: m.nested.get_concrete_function({"x": FLOATS}, Pair(FLOATS, FLOATS)), None),
        (lambda m: m.two.get_concrete_function(named("z.b"), named("A")), ("z.b", "A")),
        (lambda m: m.any_rank, ("text",)),
        (lambda m: m.keywords.get_concrete_function(first=FLOATS, second=FLOATS), None),
        (lambda m: m.ragged.get_concrete_function(tf.RaggedTensorSpec([None, None])), None),
    ],
    ids=[
        "nested",
        "python-value",
        "namedtuple",
        "unnamed",
        "sanitized-names",
        "unknown-rank",
        "keywords",
        "ragged",
    ],
)
def test_structure_of_a_function_holds_its_tensor_arguments(tmp_path, make, structure):
    assert save_functions(tmp_path, f=make)["f"].structure == structure


def test_signature_has_names_dtypes_and_shapes(tmp_path):
    signatures = save_functions(
        tmp_path,
        two=lambda m: m.two.get_concrete_function(named("z"), named("a")),
        text=lambda m: m.any_rank,
    )
    assert list(signatures) == ["text", "two"]
    two = signatures["two"]
    assert two.method_name == "tensorflow/serving/predict"
    assert two.tags == ("serve",)
    assert two.inputs == {
        "a": SignatureTensor("a", "two_a:0", "float32", (None,)),
        "z": SignatureTensor("z", "two_z:0", "float32", (None,)),
    }
    assert {name: (spec.dtype, spec.shape) for name, spec in two.outputs.items()} == {
        "n": ("int32", (1,)),
        "y": ("float32", (None,)),
    }
    assert signatures["text"].inputs["text"].shape is None
    assert signatures["text"].inputs["text"].dtype == "string"
    assert two.tensors == (
        {"two_a:0", "two_z:0"},
        {two.outputs["n"].tensor, two.outputs["y"].tensor},
    )
    assert two.tensors != signatures["text"].tensors


def test_a_tensor_fed_here_and_fetched_there_tells_signatures_apart():
    x, y, z = (SignatureTensor(name, f"{name}:0", "float32", (None,)) for name in "xyz")
    one = Signature("one", "", {"x": x, "y": y}, {"z": z}, frozenset())
    other = Signature("other", "", {"x": x}, {"y": y, "z": z}, frozenset())
    assert one.tensors == ({"x:0", "y:0"}, {"z:0"})
    assert other.tensors == ({"x:0"}, {"y:0", "z:0"})


def namesake(order, body):
    """A function named `call` over the tensors named in `order`, which takes a dict where `order` is a set."""
    specs = {name: named(name) for name in (sorted(order) if isinstance(order, set) else order)}
    if isinstance(order, set):

        def call(d):
            return {"o": body(d["a"], d["b"])}

        return tf.function(call, input_signature=[specs])

    def call(one, two):
        return {"o": body(one, two)}

    return tf.function(call, input_signature=list(specs.values()))


@pytest.mark.parametrize(
    ("tracked", "exported"),
    [
        # The same nodes over the same types, but the first tensor has another name.
        (namesake({"a", "b"}, lambda a, b: 2.0 * a - b), namesake("ba", lambda b, a: 2.0 * b - a)),
        # The same names, but the nodes read other tensors.
        (namesake("ab", lambda a, b: 2.0 * a - b), namesake("ab", lambda a, b: 2.0 * b - a)),
        # The same nodes but for a constant.
        (namesake("ab", lambda a, b: 2.0 * a - b), namesake("ab", lambda a, b: 3.0 * a - b)),
        # The same nodes but in a function that is called.
        (
            namesake("ab", lambda a, b: tf.function(lambda x, y: x - y)(a, b)),
            namesake("ab", lambda a, b: tf.function(lambda x, y: y - x)(a, b)),
        ),
    ],
    ids=["names", "inputs", "attributes", "called"],
)
def test_a_namesake_in_the_object_graph_tells_no_structure(tmp_path, tracked, exported):
    module = tf.Module()
    module.tracked = tracked
    tf.saved_model.save(module, tmp_path, signatures=exported.get_concrete_function())
    found = read_meta_graph(tmp_path).object_graph_def.concrete_functions
    assert [name.rpartition("_")[0] for name in sorted(found)] == [
        "__inference_call",
        "__inference_signature_wrapper",
    ]
    assert signatures_of(tmp_path)["serving_default"].structure is None


def test_a_second_trace_that_calls_functions_tells_the_structure(tmp_path):
    module = tf.Module()
    module.tracked = namesake({"a", "b"}, lambda a, b: tf.function(lambda x, y: x - y)(a, b))
    specs = {"a": named("a"), "b": named("b")}
    module.again = tf.function(module.tracked.python_function)
    tf.saved_model.save(module, tmp_path, signatures=module.again.get_concrete_function(specs))
    assert signatures_of(tmp_path)["serving_default"].structure == ({"a": "a", "b": "b"},)


class Composites(tf.Module):
    @tf.function(input_signature=[tf.RaggedTensorSpec([None, None], tf.float32)])
    def ragged(self, x):
        return {"doubled": x * 2.0, "lengths": x.row_lengths()}

    @tf.function(input_signature=[tf.SparseTensorSpec([None, 4], tf.float32)])
    def sparse(self, x):
        return {"same": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def words(self, text):
        return {"words": tf.strings.split(text)}


@pytest.fixture(scope="session")
def composites_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("composites")
    m = Composites()
    tf.saved_model.save(
        m, path, signatures={"ragged": m.ragged, "sparse": m.sparse, "words": m.words}
    )
    return path


def test_composite_outputs_have_the_dtype_of_their_values_and_no_tensor(composites_dir):
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
        "its output 'words' is a composite (sparse or ragged) tensor, which no TensorProto carries"
    )
    assert signatures["words"].structure == ("text",)


def test_composite_inputs_are_the_tensors_behind_them(composites_dir):
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
    assert signatures["ragged"].structure is None
    assert signatures["sparse"].structure is None


def test_a_model_with_composite_outputs_can_be_inspected(composites_dir):
    assert sorted(one.signature.key for one in inspect(composites_dir).signatures) == [
        "ragged",
        "sparse",
        "words",
    ]


def test_a_composite_type_that_does_not_tell_its_dtype_is_a_variant():
    meta_graph = MetaGraphDef()
    meta_graph.signature_def["s"].outputs["y"].composite_tensor.components.add(name="y:0")
    (signature,) = read_signatures(meta_graph)
    assert signature.outputs == {"y": SignatureTensor("y", "", "variant", None)}


@pytest.mark.parametrize(("number", "side"), [(0, "input"), (77, "input"), (77, "output")])
def test_a_dtype_that_is_none_is_named(number, side):
    meta_graph = MetaGraphDef()
    getattr(meta_graph.signature_def["s"], f"{side}s")["x"].dtype = number
    with pytest.raises(SignatureError) as caught:
        read_signatures(meta_graph)
    assert str(caught.value) == (
        f"Cannot read signature 's': {side} 'x' is damaged: its dtype is none that this TensorFlow knows (DataType "
        f"{number} in saved_model.pb). Export the model again, or use the TensorFlow that wrote it."
    )


def test_inputs_with_a_default_are_listed(tmp_path):
    save_functions(tmp_path, two=lambda m: m.two.get_concrete_function(named("z"), named("a")))
    meta_graph = read_meta_graph(tmp_path)
    assert read_signatures(meta_graph)[0].defaults == frozenset()
    meta_graph.signature_def["two"].defaults["a"].CopyFrom(tf.make_tensor_proto([1.0]))
    assert read_signatures(meta_graph)[0].defaults == {"a"}


def test_a_text_saved_model_reads_like_a_binary_one(tmp_path):
    signatures = save_functions(tmp_path, text=lambda m: m.any_rank)
    binary = tmp_path / "saved_model.pb"
    proto = SavedModel.FromString(binary.read_bytes())
    (tmp_path / "saved_model.pbtxt").write_text(text_format.MessageToString(proto))
    binary.unlink()
    assert signatures_of(tmp_path) == signatures


def test_a_tf1_export_has_no_structure(saved_models):
    signatures = signatures_of(saved_models / "half_plus_two_tf1" / "1")
    assert {key: (list(one.inputs), one.structure) for key, one in signatures.items()} == {
        "classify_x_to_y": (["inputs"], None),
        "regress_x2_to_y3": (["inputs"], None),
        "regress_x_to_y": (["inputs"], None),
        "regress_x_to_y2": (["inputs"], None),
        "serving_default": (["x"], None),
    }
    assert signatures["classify_x_to_y"].method_name == "tensorflow/serving/classify"


def error_of(export_dir, tags=None) -> str:
    with pytest.raises(SignatureError) as caught:
        read_meta_graph(export_dir, tags)
    return str(caught.value)


def test_a_missing_directory_is_named(tmp_path):
    assert (
        error_of(tmp_path / "no")
        == f"No SavedModel at {str(tmp_path / 'no')!r}: the directory does not exist."
    )


def test_a_base_path_gets_the_hint_to_its_version(tmp_path):
    (tmp_path / "7").mkdir()
    assert error_of(tmp_path) == (
        f"No SavedModel at {str(tmp_path)!r}: it holds ['7'], but no saved_model.pb. "
        f"Give a version directory, such as {str(tmp_path / '7')!r}."
    )


def test_a_directory_without_a_model_says_what_it_holds(tmp_path):
    (tmp_path / "model.keras").touch()
    assert (
        error_of(tmp_path)
        == f"No SavedModel at {str(tmp_path)!r}: it holds ['model.keras'], but no saved_model.pb."
    )


@pytest.mark.parametrize("name", ["saved_model.pb", "saved_model.pbtxt"])
def test_a_corrupt_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x0a\x7fno proto")
    path = str(tmp_path / name)
    assert (
        error_of(tmp_path)
        == f"Cannot parse {path!r}: it is not a SavedModel proto. Export the model again."
    )


def test_a_text_file_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "saved_model.pbtxt").write_bytes(b"meta_graphs { \xff\xfe }")
    path = str(tmp_path / "saved_model.pbtxt")
    assert (
        error_of(tmp_path)
        == f"Cannot parse {path!r}: it is not a SavedModel proto. Export the model again."
    )


@pytest.mark.parametrize("name", ["saved_model.pb", "saved_model.pbtxt"])
def test_a_directory_in_place_of_the_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    path = str(tmp_path / name)
    assert error_of(tmp_path) == (
        f"Cannot read {path!r}: it is a directory, expected a file. Export the model again."
    )


def test_what_the_file_system_says_is_passed_on(tmp_path, monkeypatch):
    path = str(tmp_path / "saved_model.pb")
    (tmp_path / "saved_model.pb").touch()

    def refuse(*_):
        raise tf.errors.PermissionDeniedError(None, None, f"{path}; Permission denied")

    monkeypatch.setattr(tf.io.gfile, "GFile", refuse)
    assert (
        error_of(tmp_path)
        == f"Cannot read {path!r}: Permission denied. Make it readable for this user."
    )


def test_wrong_tags_are_listed(tmp_path):
    save_functions(tmp_path, text=lambda m: m.any_rank)
    assert error_of(tmp_path, ["serve", "gpu"]) == (
        f"SavedModel {str(tmp_path)!r} has no meta graph with tags ['gpu', 'serve']. Tags found: ['serve']. "
        "Export the model with the tag 'serve'."
    )
