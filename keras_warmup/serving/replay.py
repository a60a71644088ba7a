"""Runs warmup records as TensorFlow Serving runs them when it loads a model.

Follows `saved_model_warmup.cc`, `predict_util.cc`, `classifier.cc`, `regressor.cc` and
`multi_inference.cc` of TensorFlow Serving 2.20: `session.py` loads the model, and `rules.py` checks
the requests and the outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
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
from keras_warmup.savedmodel.signatures import DEFAULT_SIGNATURE_KEY, read_meta_graph
from keras_warmup.serving.rules import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    ExamplesTask,
    Outputs,
    ServerStatusError,
    check_feed_dtypes,
    check_input_names,
    classify_task,
    host_array,
    output_aliases,
    refuse,
    regress_task,
    to_array,
    to_examples,
)
from keras_warmup.serving.session import (
    TENSORFLOW_ERRORS,
    lacks_variables,
    left_locks,
    load_session,
    never_free,
    with_type,
)
from keras_warmup.serving.tensorflow_log import no_status_log

_TASK_OF_METHOD = {CLASSIFY_METHOD: classify_task, REGRESS_METHOD: regress_task}


@dataclasses.dataclass(frozen=True)
class Replayed:
    """The outputs and the time of one replayed record.

    Attributes:
        ms: wall time from the parsed request to its outputs on the host, milliseconds.
        outputs: output alias -> array; for MultiInference `signature_key/alias` -> array. Empty for
            a record with no log type.
    """

    ms: float
    outputs: Outputs


class ServingSession(contextlib.AbstractContextManager["ServingSession"]):
    """A SavedModel in a Session of its own on the CPU: a context manager that `open_session` opens.

    Args:
        export_dir: the SavedModel.
        meta_graph: the meta graph to load.
        optimize_load: as `load_session` takes it.

    Attributes:
        export_dir: the SavedModel.
        meta_graph: its `MetaGraphDef`.
        load_ms: time to import the graph, restore its variables and run its init op, milliseconds.
    """

    def __init__(
        self, export_dir: str, meta_graph: MetaGraphDef, *, optimize_load: bool = True
    ) -> None:
        started = time.perf_counter()
        self.export_dir = export_dir
        self.meta_graph = meta_graph
        self._is_locked = False  # whether an exception of C++ left locks in the Session
        # One executor for each set of feeds and fetches, as DirectSession keeps them: without that,
        # no request would ever be warm.
        self._executors: dict[
            tuple[tuple[str, ...], tuple[str, ...]], Callable[..., Sequence[Any]]
        ] = {}
        with no_status_log():
            self._session: Any = load_session(export_dir, meta_graph, optimize_load=optimize_load)
        self.load_ms = (time.perf_counter() - started) * 1000

    def __exit__(self, *_: object) -> None:
        """Frees the model; nothing can be replayed afterwards."""
        self._executors.clear()
        if not self._is_locked:
            self._session.close()

    def replay(self, log: PredictionLog) -> Replayed:
        """Runs one record.

        Args:
            log: a `PredictionLog`. As in the server, a `SessionRunLog` or a `PredictStreamedLog` is
                refused, and a log with no log type runs nothing.

        Returns:
            Its outputs and the time it took. The first record of a set of tensors takes as long as
            a first request of a client.

        Raises:
            ReplayError: the server would refuse to load the model with this record. The message
                holds the server's, without values of tensors, and `status` its status.
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
        # Outside of the except block: a chained error would be printed with the values it quotes.
        raise ReplayError(
            f"{_describe(log)} would keep TensorFlow Serving from loading the model: "
            f"{refusal.status}: {refusal}",
            status=refusal.status,
        )

    def _outputs(self, log: PredictionLog) -> Outputs:
        match log.WhichOneof("log_type"):
            case "predict_log":
                return self._predict(log.predict_log.request)
            case "classify_log":
                return self._examples(classify_task, log.classify_log.request)
            case "regress_log":
                return self._examples(regress_task, log.regress_log.request)
            case "multi_inference_log":
                return self._multi_inference(log.multi_inference_log.request)
            case None:
                return {}
            case kind:
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

    def _examples(
        self,
        task_of: Callable[[SignatureDef], ExamplesTask],
        request: ClassificationRequest | RegressionRequest,
    ) -> Outputs:
        key = request.model_spec.signature_name or DEFAULT_SIGNATURE_KEY
        if key not in self.meta_graph.signature_def:
            refuse("INVALID_ARGUMENT", f"No signature was found with the name: {key}")
        task = task_of(self.meta_graph.signature_def[key])
        examples = to_examples(request.input)
        outputs = self._run([(task.feed, examples)], task.fetches)
        task.check(outputs, len(examples))
        return outputs

    def _multi_inference(self, request: MultiInferenceRequest) -> Outputs:
        model_name = ""
        tasks: dict[str, ExamplesTask] = {}
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
            if task.method_name not in _TASK_OF_METHOD:
                refuse("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
            tasks[key] = _TASK_OF_METHOD[task.method_name](self.meta_graph.signature_def[key])
        examples = to_examples(request.input)
        # Tasks may read different input tensors: the server feeds each of them the same Examples.
        outputs = self._run(
            [(feed, examples) for feed in {task.feed for task in tasks.values()}],
            {
                f"{key}/{alias}": tensor
                for key, task in tasks.items()
                for alias, tensor in task.fetches.items()
            },
        )
        for key, task in tasks.items():
            own = {alias: outputs[f"{key}/{alias}"] for alias in task.fetches}
            task.check(own, len(examples))
        return outputs

    def _run(self, feeds: Sequence[tuple[str, np.ndarray]], fetches: Mapping[str, str]) -> Outputs:
        # Repeated names are kept: TensorFlow refuses them here as it does in the server.
        feeds = sorted(feeds, key=lambda feed: feed[0])
        check_feed_dtypes(self._session.graph, feeds)
        feed_names = tuple(name for name, _ in feeds)
        fetch_names = tuple(sorted(set(fetches.values())))
        try:
            executor = self._executors.get((feed_names, fetch_names))
            if executor is None:
                options = CallableOptions(feed=feed_names, fetch=fetch_names)
                # Session.run would check the static shapes of placeholders; the server does not.
                executor = self._session._make_callable_from_options(options)
                self._executors[feed_names, fetch_names] = executor
            fetched = dict(zip(fetch_names, executor(*(array for _, array in feeds)), strict=True))
        except TENSORFLOW_ERRORS as error:
            if left_locks(error):
                self._is_locked = True
                never_free(self._session)
            text = with_type(error, describe_op_error(error, self.meta_graph.graph_def))
            cure = cure_of(error, no_variables=lacks_variables(self.export_dir, self.meta_graph))
            raise ServerStatusError(status_of(error), text + cure) from None
        return {alias: host_array(fetched[tensor]) for alias, tensor in fetches.items()}


def open_session(export_dir: str | os.PathLike[str]) -> ServingSession:
    """Loads a SavedModel as TensorFlow Serving does, on the CPU.

    Args:
        export_dir: version directory of a SavedModel.

    Returns:
        A context manager.

    Raises:
        SignatureError: there is no SavedModel, or no meta graph with the tag `serve`.
        ReplayError: its graph cannot be imported, its variables cannot be restored, or its init op
            fails.
    """
    return ServingSession(os.fspath(export_dir), read_meta_graph(export_dir))


def _describe(log: PredictionLog) -> str:
    kind, key = log_kind(log), log_signature_key(log)
    return f"{kind} record for signature {key!r}" if key else f"{kind} record"
