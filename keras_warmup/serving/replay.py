"""Runs warmup records as TensorFlow Serving runs them when it loads a model (`saved_model_warmup.cc`).

What is asked of a request is in `serving_rules.py`, how the model gets into a Session in `loading.py`; here is the way
of a request through both, as in TensorFlow Serving 2.20's `predict_util.cc`, `classifier.cc`, `regressor.cc` and
`multi_inference.cc`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from keras_warmup._protos import (
    CallableOptions,
    ClassificationRequest,
    MetaGraphDef,
    MultiInferenceRequest,
    PredictionLog,
    PredictRequest,
    RegressionRequest,
    SignatureDef,
)
from keras_warmup.errors import ReplayError
from keras_warmup.op_errors import cure_of, describe_op_error, status_of
from keras_warmup.records.prediction_logs import log_kind, log_signature_key
from keras_warmup.savedmodel.signatures import DEFAULT_SIGNATURE_KEY, SERVE_TAGS, read_meta_graph
from keras_warmup.serving.rules import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    Outputs,
    ServerStatusError,
    check_classification,
    check_feed_dtypes,
    check_input_names,
    check_regression,
    classify_tensors,
    host_array,
    output_aliases,
    refuse,
    regress_tensors,
    to_array,
    to_examples,
)
from keras_warmup.serving.session import (
    TENSORFLOW_ERRORS,
    lacks_variables,
    left_locks,
    load_session,
    named,
    never_free,
)
from keras_warmup.serving.tensorflow_log import no_status_log


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What one record did.

    Attributes:
        ms: wall time from the parsed request to its outputs on the host, milliseconds.
        outputs: output alias -> array; for MultiInference `signature_key/alias`. Empty for a record with no log type.
    """

    ms: float
    outputs: Outputs


class ServingSession:
    """A SavedModel in a Session of its own on the CPU; use it as a context manager, through `open_session`.

    Args:
        export_dir: the SavedModel.
        meta_graph: what to load of it; changed by `unoptimized`.
        unoptimized: as in `open_session`.

    Attributes:
        export_dir: the SavedModel.
        meta_graph: its `MetaGraphDef`.
        load_ms: time to import the graph, restore its variables and run its init op, milliseconds.
    """

    def __init__(
        self, export_dir: str, meta_graph: MetaGraphDef, unoptimized: Collection[str] = ()
    ) -> None:
        started = time.perf_counter()
        self.export_dir = export_dir
        self.meta_graph = meta_graph
        # DirectSession keeps one executor for each set of feeds and fetches; so do we, or nothing would ever be warm.
        self._is_locked = False  # for good, by an exception of C++
        self._executors: dict[
            tuple[tuple[str, ...], tuple[str, ...]], Callable[..., Sequence[Any]]
        ] = {}
        with no_status_log():
            self._session: Any = load_session(export_dir, meta_graph, unoptimized)
        self.load_ms = (time.perf_counter() - started) * 1000

    def __enter__(self) -> ServingSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model; the session cannot replay afterwards."""
        self._executors.clear()
        if not self._is_locked:
            self._session.close()

    def replay(self, log: PredictionLog) -> Replayed:
        """Runs one record.

        Args:
            log: a `PredictionLog`. `SessionRunLog` and `PredictStreamedLog` are refused as the server refuses them; a
                log with no log type runs nothing.

        Returns:
            Its outputs and the time it took. The first record over a set of tensors pays what a first client would,
            unless its signature was left unoptimized.

        Raises:
            ReplayError: the server would refuse to load the model with this record; the message holds the server's, as
                far as that quotes no values, and `status` its status.
        """
        started = time.perf_counter()
        try:
            with no_status_log():
                outputs = self._outputs(log)
        except ServerStatusError as error:
            refusal = error
        except MemoryError:
            refusal = ServerStatusError(
                "RESOURCE_EXHAUSTED", "MemoryError: its tensors do not fit into memory"
            )
        else:
            return Replayed(
                (time.perf_counter() - started) * 1000 if log_kind(log) != "none" else 0.0, outputs
            )
        # Out of the except block: a chained error would be printed with all that its message quotes.
        raise ReplayError(
            f"{_describe(log)} would keep TensorFlow Serving from loading the model: {refusal.status}: {refusal}",
            status=refusal.status,
        )

    def _outputs(self, log: PredictionLog) -> Outputs:
        kind = log.WhichOneof("log_type")
        if kind == "predict_log":
            return self._predict(log.predict_log.request)
        if kind == "classify_log":
            return self._classify(log.classify_log.request)
        if kind == "regress_log":
            return self._regress(log.regress_log.request)
        if kind == "multi_inference_log":
            return self._multi_inference(log.multi_inference_log.request)
        if kind is None:
            return {}
        number = PredictionLog.DESCRIPTOR.fields_by_name[kind].number
        refuse("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")

    def _predict(self, request: PredictRequest) -> Outputs:
        key = request.model_spec.signature_name or DEFAULT_SIGNATURE_KEY
        if key not in self.meta_graph.signature_def:
            refuse("FAILED_PRECONDITION", f'Serving signature key "{key}" not found.')
        definition = self.meta_graph.signature_def[key]
        check_input_names(definition, request)
        feeds = {}
        for name in sorted(definition.inputs):
            proto = request.inputs[name] if name in request.inputs else definition.defaults[name]
            feeds[name] = (definition.inputs[name].name, to_array(name, proto))
        aliases = output_aliases(definition, request)
        return self._run(
            list(feeds.values()), {alias: definition.outputs[alias].name for alias in aliases}
        )

    def _classify(self, request: ClassificationRequest) -> Outputs:
        definition = self._definition(request.model_spec.signature_name)
        feed, fetches = classify_tensors(definition)
        examples = to_examples(request.input)
        outputs = self._run([(feed, examples)], fetches)
        check_classification(outputs, len(examples))
        return outputs

    def _regress(self, request: RegressionRequest) -> Outputs:
        definition = self._definition(request.model_spec.signature_name)
        feed, fetches = regress_tensors(definition)
        examples = to_examples(request.input)
        outputs = self._run([(feed, examples)], fetches)
        check_regression(outputs, len(examples))
        return outputs

    def _definition(self, signature_name: str) -> SignatureDef:
        key = signature_name or DEFAULT_SIGNATURE_KEY
        if key not in self.meta_graph.signature_def:
            refuse("INVALID_ARGUMENT", f"No signature was found with the name: {key}")
        return self.meta_graph.signature_def[key]

    def _multi_inference(self, request: MultiInferenceRequest) -> Outputs:
        model_name, feed = "", ""
        tasks: dict[str, tuple[Callable[[Outputs, int], None], dict[str, str]]] = {}
        for task in request.tasks:
            if not task.model_spec.name:
                refuse("INVALID_ARGUMENT", "Found ModelSpec with an empty model name.")
            if model_name and task.model_spec.name != model_name:
                refuse(
                    "INVALID_ARGUMENT",
                    "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
                )
            model_name = task.model_spec.name
            key = task.model_spec.signature_name or DEFAULT_SIGNATURE_KEY
            if key in tasks:
                refuse("INVALID_ARGUMENT", f"Duplicate evaluation of signature: {key}")
            if key not in self.meta_graph.signature_def:
                refuse("INVALID_ARGUMENT", f"Requested signature not found in model graph: {key}")
            definition = self.meta_graph.signature_def[key]
            if task.method_name == CLASSIFY_METHOD:
                task_feed, fetches = classify_tensors(definition)
                tasks[key] = (check_classification, fetches)
            elif task.method_name == REGRESS_METHOD:
                task_feed, fetches = regress_tensors(definition)
                tasks[key] = (check_regression, fetches)
            else:
                refuse("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
            if feed and task_feed != feed:
                refuse("INVALID_ARGUMENT", "Input tensor must be the same for all Signatures.")
            feed = task_feed
        examples = to_examples(request.input)
        outputs = self._run(
            [(feed, examples)],
            {
                f"{key}/{alias}": tensor
                for key, (_, own) in tasks.items()
                for alias, tensor in own.items()
            },
        )
        for key, (check, own) in tasks.items():
            check({alias: outputs[f"{key}/{alias}"] for alias in own}, len(examples))
        return outputs

    def _run(self, feeds: Sequence[tuple[str, np.ndarray]], fetches: Mapping[str, str]) -> Outputs:
        # The names as they stand, repeated ones too: TensorFlow itself must refuse what it would refuse in the server.
        feeds = sorted(feeds, key=lambda feed: feed[0])
        check_feed_dtypes(self._session.graph, feeds)
        feed_names = tuple(name for name, _ in feeds)
        fetch_names = tuple(sorted(set(fetches.values())))
        try:
            executor = self._executors.get((feed_names, fetch_names))
            if executor is None:
                options = CallableOptions(feed=feed_names, fetch=fetch_names)
                # Session.run also checks the static shapes of placeholders, which the server does not.
                executor = self._session._make_callable_from_options(options)
                self._executors[feed_names, fetch_names] = executor
            fetched = dict(zip(fetch_names, executor(*(array for _, array in feeds)), strict=True))
        except TENSORFLOW_ERRORS as error:
            if left_locks(error):
                self._is_locked = True
                never_free(self._session)
            said = named(error, describe_op_error(error, self.meta_graph.graph_def))
            cure = cure_of(error, no_variables=lacks_variables(self.export_dir, self.meta_graph))
            raise ServerStatusError(status_of(error), said + cure) from None
        return {alias: host_array(fetched[tensor]) for alias, tensor in fetches.items()}


def open_session(
    export_dir: str | os.PathLike[str],
    tags: Sequence[str] = SERVE_TAGS,
    *,
    unoptimized: Collection[str] = (),
) -> ServingSession:
    """Loads a SavedModel as TensorFlow Serving does, on the CPU.

    Args:
        export_dir: version directory of a SavedModel.
        tags: exact tags of the meta graph to load.
        unoptimized: keys of signatures whose results are wanted, not their time: TensorFlow's graph optimizer is left out of what
            only they run, and of loading. Defaults to none: all is optimized, as in a server.

    Returns:
        A context manager.

    Raises:
        SignatureError: there is no SavedModel, or no meta graph with these tags.
        ReplayError: its graph cannot be imported, its variables not restored, or its init op fails.
    """
    return ServingSession(os.fspath(export_dir), read_meta_graph(export_dir, tags), unoptimized)


def _describe(log: PredictionLog) -> str:
    kind, key = log_kind(log), log_signature_key(log)
    return f"{kind} record for signature {key!r}" if key else f"{kind} record"
