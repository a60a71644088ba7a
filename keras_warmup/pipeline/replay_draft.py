"""The draft of a warmup file: read back, replayed, its bindings proved and its twins compared."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from keras_warmup.errors import ProofError, ReplayError
from keras_warmup.options import WarmupOptions
from keras_warmup.pipeline.candidates import ExportInputs
from keras_warmup.pipeline.proof import RANDOM_OR_STATEFUL, prove_signature, same_values
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import build_log
from keras_warmup.records.prediction_logs import describe_log
from keras_warmup.records.warmup_file import read_records
from keras_warmup.savedmodel.graph import GraphFacts
from keras_warmup.serving.replay import ServingSession, open_session

# What made-up values can bring about; a missing file or kernel fails whatever the rows are.
_FAULTS_OF_ROWS = ("INVALID_ARGUMENT", "OUT_OF_RANGE")


@dataclasses.dataclass
class Replays:
    """What reading the draft back and replaying it gave: description and milliseconds by record, proof by signature_key,
    errors of made-up rows by record, and the keys of twins that gave the same, or something else.
    """

    described: list[dict[str, Any]]
    ms: list[float | None]
    proofs: dict[str, str]
    failed: dict[int, str] = dataclasses.field(default_factory=dict)
    alike: list[str] = dataclasses.field(default_factory=list)
    apart: list[str] = dataclasses.field(default_factory=list)
    load_ms: float | None = None


def replay_draft(
    export_dir: str,
    draft: str,
    requests: Sequence[PlannedRequest | None],
    rows: ExportInputs,
    options: WarmupOptions,
    twins: Mapping[str, str],
    facts: Mapping[str, GraphFacts],
) -> Replays:
    """Reads the draft back and replays it, as the server will.

    Args:
        export_dir: the SavedModel, every signature over tensors of its own still.
        draft: the file of its records.
        requests: what each record was planned as; `None` for one that the old file held.
        rows: what the records were made of; with a model they are proved against it.
        options: whether to replay at all.
        twins: signature key -> twin whose record is to warm it.
        facts: what running a signature involves, by signature key.

    Returns:
        What came of it; the twins that are `apart` are none, and what follows the first of them was not replayed.

    Raises:
        ReplayError: the model cannot be loaded, or a record of real rows fails.
        ProofError: a signature gives something else than the model.
    """
    if not options.verify:
        keys = (
            [key for request in requests for key in warms_of(request)]
            if rows.model is not None
            else []
        )
        unproved = dict.fromkeys(keys, "unproved: verify=False")
        return Replays(
            [describe_log(log) for log in _drafted(draft, requests)],
            [None] * len(requests),
            unproved,
        )
    # Of a twin the results are wanted, not the time that its set of tensors would cost a server: it will have none. A record
    # that the file held may ask for any signature.
    compared = {key for one in requests if _compares(one) for key in warms_of(one) if key in twins}
    if compared and None not in requests:
        # Whatever is amiss then, rounding to another whole number as well, is judged by running all as a server does.
        with (
            contextlib.suppress(ReplayError, ProofError),
            open_session(export_dir, unoptimized=compared) as session,
        ):
            done = _replay_in(session, draft, requests, rows, twins, facts)
            if not done.apart and not done.failed:
                return done
    # Without a record the Session is opened all the same: a model that cannot be loaded is never published.
    with open_session(export_dir, unoptimized=()) as session:
        return _replay_in(session, draft, requests, rows, twins, facts)


def _replay_in(
    session: ServingSession,
    draft: str,
    requests: Sequence[PlannedRequest | None],
    rows: ExportInputs,
    twins: Mapping[str, str],
    facts: Mapping[str, GraphFacts],
) -> Replays:
    """Replays the draft, proves what it can, and compares twins until two give something else."""
    done = Replays([], [], {}, load_ms=session.load_ms)
    for index, (log, request) in enumerate(zip(_drafted(draft, requests), requests, strict=True)):
        done.described.append(describe_log(log))
        try:
            replayed = session.replay(log)
        except ReplayError as error:
            # Made-up rows may be nonsense to the model: that is no fault of the export.
            if (
                request is None
                or request.source != "synthetic"
                or error.status not in _FAULTS_OF_ROWS
            ):
                raise
            done.failed[index] = f"made-up rows do not run, pass data=. {error}"
            done.ms.append(None)
            continue
        done.ms.append(replayed.ms)
        if request is None or not _compares(request):
            continue
        for key in request.warms:
            if key in twins:
                alike = _gives_the_same(session, request, key, replayed.outputs)
                (done.alike if alike else done.apart).append(key)
        if done.apart:
            break
        if rows.model is not None:
            _add_proofs(
                done, request, log, replayed.outputs, session, rows, facts[request.signature_key]
            )
    return done


def _drafted(draft: str, requests: Sequence[PlannedRequest | None]) -> Iterator[Any]:
    return read_records(draft) if requests else iter(())


def _compares(request: PlannedRequest | None) -> bool:
    """Whether a record gives all that its signatures give: to prove them by, and to compare twins."""
    return request is not None and not request.output_filter and not request.tasks


def _add_proofs(
    done: Replays,
    request: PlannedRequest,
    log: Any,
    outputs: Mapping[str, Any],
    session: ServingSession,
    rows: ExportInputs,
    facts: GraphFacts,
) -> None:
    """Proves the signatures a record warms and no earlier one has proved."""
    to_prove = [key for key in request.warms if key not in done.proofs]
    if not to_prove:
        return
    if facts.random or facts.writes_state:
        # Such a call could change the training that goes on after this export.
        proof = RANDOM_OR_STATEFUL
    else:
        again = partial(_outputs_of, session, log)
        own_call = not rows.own_calls.isdisjoint(request.warms)
        proof = _prove(request, to_prove[0], outputs, rows.model, again, own_call)
    # The keys of one request are one set of tensors, or twins: if they turn out to be none, all is made anew.
    done.proofs.update(dict.fromkeys(to_prove, proof))


def _gives_the_same(
    session: ServingSession, request: PlannedRequest, key: str, outputs: Mapping[str, Any]
) -> bool:
    """Whether a twin, still over tensors of its own, gives what the other one gave for the same rows."""
    try:
        theirs = session.replay(build_log(dataclasses.replace(request, signature_key=key))).outputs
    except (
        ReplayError
    ):  # as no twin it is replayed by itself, as a server would run it, and may be refused
        return False
    return set(theirs) == set(outputs) and all(
        same_values(outputs[alias], theirs[alias]) for alias in outputs
    )


def _outputs_of(session: ServingSession, log: Any) -> Mapping[str, Any]:
    return session.replay(log).outputs


def _prove(
    request: PlannedRequest,
    key: str,
    outputs: Mapping[str, Any],
    model: Any,
    replay_again: Callable[[], Mapping[str, Any]],
    own_call: bool,
) -> str:
    x = request.x()
    if x is None:
        made_up = request.source == "synthetic"
        return f"unproved: {'made-up rows' if made_up else 'the rows were sent in another form than the model takes'}"
    try:
        return prove_signature(model, key, x, outputs, replay_again=replay_again, own_call=own_call)
    except ProofError:
        raise
    # The rows are those of a custom endpoint; the model's own code may take them or fail in any way.
    except Exception as error:
        if own_call:
            raise
        return f"unproved: bound by name (the model cannot be called on the endpoint's rows: {type(error).__name__})"


def warms_of(request: PlannedRequest | None) -> tuple[str, ...]:
    """Signature keys that a record warms; of one that the file held, it is not known."""
    return () if request is None else request.warms
