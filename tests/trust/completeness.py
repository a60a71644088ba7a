"""Judges whether a version directory is complete, from its bytes alone.

It uses nothing of this package's publishing.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import tempfile

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef

from keras_warmup._protos import PredictionLog, SavedModel, checked_records, serialized_fingerprint

RECORDS = "assets.extra/tf_serving_warmup_requests"
VARIABLES = ("variables/variables.index", "variables/variables.data-00000-of-00001")


class IncompleteError(Exception):
    """A version is incomplete: a server would load a part of it, or fail."""


@dataclasses.dataclass(frozen=True)
class Version:
    """The content of a complete version.

    Attributes:
        weights: generation of the weights.
        records: generation of the rows in the warmup file; `None` without one.
        has_fingerprint: whether `fingerprint.pb` exists; it matches then.
    """

    weights: int
    records: int | None
    has_fingerprint: bool

    @property
    def state(self) -> tuple[int, int | None]:
        """Generations of the weights and of the records."""
        return self.weights, self.records


def read_version(path: str | os.PathLike[str]) -> Version:
    """Reads a version directory of a model of `scenarios`.

    Raises:
        IncompleteError: a file is missing, cut or damaged, or two files do not belong together.
    """
    path = pathlib.Path(path)
    for name in ("saved_model.pb", *VARIABLES):
        if not (path / name).is_file():
            raise IncompleteError(f"{name} is missing")
    content = (path / "saved_model.pb").read_bytes()
    saved_model = SavedModel()
    try:
        saved_model.ParseFromString(content)
    except Exception as error:
        raise IncompleteError(f"saved_model.pb cannot be parsed: {error}") from error
    if (
        not saved_model.meta_graphs
        or "serving_default" not in saved_model.meta_graphs[0].signature_def
    ):
        raise IncompleteError("saved_model.pb has no serving_default")
    return Version(_weights_of(path), _records_of(path), _has_fingerprint(path))


def _weights_of(path: pathlib.Path) -> int:
    try:
        reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        # All tensors: the object graph comes after the weights in the file.
        tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    # A short file raises IndexError, a wrong checksum DataLossError.
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise IncompleteError(f"the variables cannot be read: {error}") from error
    weights = [tensor for tensor in tensors.values() if np.shape(tensor) in ((4, 3), (3,))]
    generations = {float(value) for tensor in weights for value in np.ravel(tensor)}
    if len(generations) != 1:
        raise IncompleteError(f"the variables hold the generations {sorted(generations)}")
    return int(generations.pop())


def _records_of(path: pathlib.Path) -> int | None:
    file = path / RECORDS
    if not file.exists():
        return None
    generations = set()
    try:
        for record in checked_records(str(file)):
            request = PredictionLog.FromString(record).predict_log.request
            generations |= {
                int(tf.make_ndarray(tensor).min()) for tensor in request.inputs.values()
            }
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise IncompleteError(f"{RECORDS} cannot be read: {error}") from error
    if len(generations) != 1:
        raise IncompleteError(f"{RECORDS} holds records of the generations {sorted(generations)}")
    return generations.pop()


def _has_fingerprint(path: pathlib.Path) -> bool:
    """Returns whether there is a fingerprint, which must be TensorFlow's for these files."""
    if not (path / "fingerprint.pb").exists():
        return False
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(path / "saved_model.pb", copy)
        shutil.copytree(path / "variables", f"{copy}/variables")
        expected = FingerprintDef.FromString(serialized_fingerprint(copy))
    try:
        found = FingerprintDef.FromString((path / "fingerprint.pb").read_bytes())
    except Exception as error:
        raise IncompleteError(f"fingerprint.pb cannot be parsed: {error}") from error
    # Each fingerprint has a random id of its own.
    found.uuid = expected.uuid = ""
    if found != expected:
        raise IncompleteError("fingerprint.pb does not belong to saved_model.pb")
    return True
