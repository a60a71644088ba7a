"""Runs warmup records as TensorFlow Serving runs them when it loads a model.

Follows `saved_model_warmup.cc` of TensorFlow Serving 2.20: `session.py` loads the model,
`requests.py` reads the records, and `rules.py` checks the requests and the outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from keras_warmup._protos import CallableOptions, MetaGraphDef, PredictionLog
from keras_warmup.op_errors import cure_of, describe_op_error, status_of
from keras_warmup.savedmodel.signatures import read_meta_graph
from keras_warmup.serving.requests import TensorRun, read_run, refused_load
from keras_warmup.serving.rules import (
    Outputs,
    ServerStatusError,
    check_feed_dtypes,
    host_array,
    to_array,
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
                run = read_run(self.meta_graph.signature_def, log, to_array)
                outputs = self._run(run) if run is not None else {}
        except ServerStatusError as error:
            refusal = error
        except MemoryError:
            refusal = ServerStatusError(
                "RESOURCE_EXHAUSTED", "MemoryError: its tensors do not fit into memory"
            )
        else:
            ms = (time.perf_counter() - started) * 1000 if run is not None else 0.0
            return Replayed(ms, outputs)
        # Outside of the except block: a chained error would be printed with the values it quotes.
        raise refused_load(log, refusal)

    def _run(self, run: TensorRun) -> Outputs:
        check_feed_dtypes(self._session.graph, run.feeds)
        feed_names = tuple(name for name, _ in run.feeds)
        fetch_names = tuple(sorted(set(run.fetches.values())))
        try:
            executor = self._executors.get((feed_names, fetch_names))
            if executor is None:
                options = CallableOptions(feed=feed_names, fetch=fetch_names)
                # Session.run would check the static shapes of placeholders; the server does not.
                executor = self._session._make_callable_from_options(options)
                self._executors[feed_names, fetch_names] = executor
            values = executor(*(array for _, array in run.feeds))
        except TENSORFLOW_ERRORS as error:
            if left_locks(error):
                self._is_locked = True
                never_free(self._session)
            text = with_type(error, describe_op_error(error, self.meta_graph.graph_def))
            cure = cure_of(error, no_variables=lacks_variables(self.export_dir, self.meta_graph))
            raise ServerStatusError(status_of(error), text + cure) from None
        fetched = dict(zip(fetch_names, values, strict=True))
        outputs = {alias: host_array(fetched[tensor]) for alias, tensor in run.fetches.items()}
        run.check(outputs)
        return outputs


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
