"""Models with ops of TensorFlow Text, which a process has only once the library is imported.

This module must not import it: ops that are registered stay registered.
"""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import keras_warmup as kw

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow_text") is None, reason="needs tensorflow_text"
    ),
    pytest.mark.skipif(
        "tensorflow_text" in sys.modules, reason="this process has imported tensorflow_text"
    ),
]

OPS = "TFText>WhitespaceTokenizeWithOffsetsV2"
CLAUSE = (
    f"ops of tensorflow_text ({OPS}), which the stock model server has; import tensorflow_text "
    "before a replay in Python"
)
EXPORT = """
    import sys
    import warnings

    import keras
    import numpy as np
    import tensorflow as tf
    import tensorflow_text

    import keras_warmup as kw

    warnings.simplefilter("error", UserWarning)


    class Lengths(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.tokenizer = tensorflow_text.WhitespaceTokenizer()

        def call(self, x):
            tokens = self.tokenizer.tokenize(x[:, 0])
            return tf.cast(tokens.row_lengths(), tf.float32)[:, tf.newaxis]

        def compute_output_shape(self, shape):
            return (shape[0], 1)


    x = keras.Input((1,), dtype="string", name="text")
    model = keras.Model(x, keras.layers.Dense(1)(Lengths()(x)))
    model.compile("sgd", "mse")
    text = np.array([["a b c"], ["d"], ["e f"], ["g h i j"]], object)
    data = tf.data.Dataset.from_tensor_slices((text.astype("S8"), np.ones((4, 1)))).batch(2)
    export = kw.WarmupExport(sys.argv[1], on_error="raise", verbose=0)
    model.fit(data, shuffle=False, verbose=0, callbacks=[export])
    (report,) = export.reports
    assert report.proofs["serving_default"] == "proved", report.proofs
    assert kw.verify(sys.argv[1]).ok
    assert kw.verify(sys.argv[1], isolated=True, refuse_unsafe_ops=True).ok
    print(*report.notes, sep="\\n")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    """Returns an export made in a process that imports the library, and the notes of its report."""
    path = tmp_path_factory.mktemp("text") / "1"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXPORT), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def test_a_model_is_exported_proved_and_verified_where_the_library_is_imported(
    exported: tuple[pathlib.Path, str],
) -> None:
    _, notes = exported
    assert f"Signature 'serving_default' needs {CLAUSE}." in notes.splitlines()


def test_without_the_import_the_failure_names_it(exported: tuple[pathlib.Path, str]) -> None:
    path, _ = exported
    report = kw.verify(path)
    assert not report.ok
    assert report.failures[0] == (
        f"Cannot import the graph of SavedModel '{path}': Op type not registered '{OPS}'. Import "
        "tensorflow_text before the replay; the stock model server has its ops."
    )
    assert f"The model needs {CLAUSE}." in report.server_notes
    with pytest.raises(kw.WarmupError, match="Import tensorflow_text before the replay"):
        kw.add_warmup(path, np.array([[b"a b"]]))


def test_inspect_needs_no_import(exported: tuple[pathlib.Path, str]) -> None:
    path, _ = exported
    inspection = kw.inspect(path)
    assert inspection.unsafe_ops == ()
    (default,) = (one for one in inspection.signatures if one.signature.key == "serving_default")
    assert default.facts.foreign_ops == (OPS,)
