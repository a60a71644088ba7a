"""Replaces the values in `PredictionLog`s, and lists their features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup._protos import PredictionLog, TensorProto
from keras_warmup.data.privacy import Hider, known_features
from keras_warmup.errors import RecordsError
from keras_warmup.records.build import encode_array
from keras_warmup.records.prediction_logs import log_kind
from keras_warmup.report import REQUEST_KINDS

# What of a request a replay reads; others, such as `client_id`, tell of the client.
_REQUEST_FIELDS = frozenset({"model_spec", "inputs", "output_filter", "input", "tasks"})


def hide_log(log: PredictionLog, hider: Hider) -> PredictionLog:
    """Returns a log with the same request, whose hidden features are replaced, and nothing else.

    Features are the inputs of a Predict request and the features of its Examples, and the features
    of the Examples of other requests. Responses and metadata, as the request log of a server has
    them, are left out.

    Args:
        log: a `PredictionLog`.
        hider: what to hide.

    Raises:
        RecordsError: the log is of a kind that a server does not replay, or cannot be read.
    """
    kind = log_kind(log)
    if kind not in REQUEST_KINDS:
        raise RecordsError(
            f"A record of kind {kind!r} cannot be redacted: no server replays it. Remove it."
        )
    hidden = PredictionLog()
    request = getattr(hidden, f"{kind}_log").request
    given = getattr(log, f"{kind}_log").request
    request.CopyFrom(given)
    request.DiscardUnknownFields()
    for name in {*request.DESCRIPTOR.fields_by_name} - _REQUEST_FIELDS:
        request.ClearField(name)
    if kind == "predict":
        arrays = {name: _read(name, proto) for name, proto in request.inputs.items()}
        for name, array in hider.hide_arrays(arrays).items():
            request.inputs[name].CopyFrom(TensorProto.FromString(encode_array(array)))
        return hidden
    hider.hide_examples(list(_examples_of(hidden)))
    return hidden


def log_features(log: PredictionLog) -> list[str]:
    """Returns the names of the features of a log, as `hide_log` counts them.

    Raises:
        RecordsError: a tensor cannot be read.
    """
    if log_kind(log) == "predict":
        inputs = log.predict_log.request.inputs
        strings = {
            name: _read(name, proto)
            for name, proto in inputs.items()
            if proto.dtype == tf.string.as_datatype_enum
        }
        return sorted({*known_features(strings), *(inputs.keys() - strings.keys())})
    return sorted({name for example in _examples_of(log) for name in example.features.feature})


def _read(name: str, proto: TensorProto) -> np.ndarray:
    try:
        return np.asarray(tf.make_ndarray(proto))
    except (TypeError, ValueError) as error:
        raise RecordsError(
            f"Cannot read input {name!r} of a record: its TensorProto is malformed. Remove the "
            "record."
        ) from error


def _examples_of(log: PredictionLog) -> Iterator[Any]:
    """Yields the Examples of a Classify, Regress or MultiInference request."""
    kind = log_kind(log)
    if kind in REQUEST_KINDS and kind != "predict":
        given = getattr(log, f"{kind}_log").request.input
        yield from given.example_list.examples
        yield from given.example_list_with_context.examples
        if given.HasField("example_list_with_context"):
            yield given.example_list_with_context.context
