"""Which requests make this model warm: the fewest, from what TensorFlow Serving does lazily.

Measured with TensorFlow Serving's own warmup code: one executor is built for each *set* of feeds and fetches, so every
signature over tensors of its own and every set of outputs needs a record. The first matrix product with more than one row
costs 50 to 100 ms once, so a lone record has 2 rows, never 1. XLA compiles for every exact shape, and convolutions keep
primitives per shape; nothing else depends on shapes, iterations or order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_warmup.binding.bind import BoundBatch
from keras_warmup.errors import OptionsError
from keras_warmup.options import DEFAULT_BATCH_SIZE, XLA_FLAGS, WarmupOptions
from keras_warmup.planning.batching_parameters import BatchingParameters
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.report import RequestKind
from keras_warmup.savedmodel.graph import GraphFacts
from keras_warmup.savedmodel.signatures import Signature

# XLA compiles per exact size and clients of an online model send single rows.
DEFAULT_XLA_BATCH_SIZES = (1, 2)
# One record per shape lengthens the load by a compilation or a convolution each; shapes beyond these stay cold.
MAX_SHAPES = 32


@dataclasses.dataclass(frozen=True)
class BoundSignature:
    """A signature with what the planner must know of it.

    Attributes:
        signature: the signature.
        facts: what its graph does.
        bound: rows bound to its inputs; at least one.
        kinds: request kinds to write for it, the first one preferred; none where it is only a task.
        task: kind of the MultiInference task it can be; `None` where it cannot, or MultiInference is not asked for.
        can_predict: whether a Predict request, and so an output filter, can reach it.
    """

    signature: Signature
    facts: GraphFacts
    bound: Sequence[BoundBatch]
    kinds: Sequence[RequestKind] = ("predict",)
    task: RequestKind | None = None
    can_predict: bool = True


@dataclasses.dataclass(frozen=True)
class Plan:
    """The requests, and what they leave cold.

    Attributes:
        requests: in the order they should be replayed.
        skipped: signature_key -> why no request warms it.
        shape_coverage: signature_key -> share of the shapes seen that have a record, where a shape needs one of its own.
        notes: sentences for the report.
    """

    requests: tuple[PlannedRequest, ...]
    skipped: Mapping[str, str]
    shape_coverage: Mapping[str, float]
    notes: tuple[str, ...]


def plan_requests(
    candidates: Sequence[BoundSignature],
    options: WarmupOptions,
    *,
    taken: int = 0,
    batching: BatchingParameters | None = None,
    twins: Mapping[str, str] | None = None,
    shapes_seen: int = 0,
) -> Plan:
    """Plans the fewest requests that warm each signature, output set, batch size and shape asked for.

    Args:
        candidates: signatures with rows bound to their inputs.
        options: what is asked for.
        taken: records the file already holds.
        batching: the batch sizes a server with `--enable_batching` runs.
        twins: signature_key -> key of the signature whose tensors it is going to name.
        shapes_seen: how many row shapes were met while sampling; the rows at hand may hold fewer.

    Returns:
        The plan; the same candidates and options give the same plan.

    Raises:
        OptionsError: what is asked for does not fit `max_records`, `max_bytes` or the server's batching, or an output filter
            is unknown.
    """
    _require_known(candidates, options)
    requests: list[PlannedRequest] = []
    skipped: dict[str, str] = {}
    coverage: dict[str, float] = {}
    notes: list[str] = []
    for group in _share_tensors(candidates, twins or {}):
        lead = group[0]
        keys = tuple(candidate.signature.key for candidate in group)
        if lead.facts.compiles and not options.xla:
            why = (
                f"it compiles with XLA, which a stock server has switched off: a record for it would keep the model from "
                f"loading. Start the server with {XLA_FLAGS} and pass xla=True."
            )
            skipped.update(dict.fromkeys(keys, why))
            continue
        if lead.facts.compiles:
            notes.append(
                f"Signature {lead.signature.key!r} compiles with XLA: the server needs {XLA_FLAGS}, else the model does not load."
            )
        if batching is not None:
            _require_batchable(lead, options, batching)
        sizes = _batch_sizes(lead, options, batching)
        notes += _unheeded_sizes(keys, options, batching, sizes)
        shapes = _shapes_of(lead)
        kept = _shapes_to_warm(lead, shapes)
        total = max(len(shapes), shapes_seen)
        if _shape_matters(lead.facts) and total > 1:
            coverage[lead.signature.key] = round(len(kept) / total, 4)
        for kind, asked in _executors(group, options):
            for size in sizes:
                requests += [
                    _request(lead, keys, shape, size, asked, options, kind) for shape in kept
                ]
    requests += _missing_kinds(candidates, requests, options, batching)
    requests += _multi_inferences(candidates, options, batching, twins or {})
    _check_limits(requests, options, taken)
    return Plan(tuple(requests), skipped, coverage, tuple(notes))


def _share_tensors(
    candidates: Sequence[BoundSignature], twins: Mapping[str, str]
) -> list[list[BoundSignature]]:
    """Groups signatures over the same tensors, `serving_default` first: they share one executor."""
    tensors = {candidate.signature.key: candidate.signature.tensors for candidate in candidates}
    groups: dict[tuple[frozenset[str], frozenset[str]], list[BoundSignature]] = {}
    for candidate in sorted(
        candidates, key=lambda one: (one.signature.key != "serving_default", one.signature.key)
    ):
        key = candidate.signature.key
        groups.setdefault(tensors[twins.get(key, key)], []).append(candidate)
    return list(groups.values())


def _executors(
    group: Sequence[BoundSignature], options: WarmupOptions
) -> list[tuple[RequestKind, tuple[str, ...]]]:
    """`(kind, output filter)` of each set of tensors that is fetched: a request of another kind over the same set, or a
    filter that names every output, runs the same executor and warms nothing new.
    """
    lead = group[0].signature
    alias_of = {spec.tensor: alias for alias, spec in lead.outputs.items()}
    found: dict[frozenset[str], tuple[RequestKind, tuple[str, ...]]] = {}
    for kind in group[0].kinds:
        found.setdefault(fetched_aliases(lead, kind), (kind, ()))
    if group[0].can_predict:
        for candidate in group:
            outputs = candidate.signature.outputs
            for asked in options.filters_for(candidate.signature.key, list(outputs)):
                # The request names the lead's aliases; the others may call the same tensors otherwise.
                aliases = tuple(alias_of.get(outputs[alias].tensor, alias) for alias in asked)
                found.setdefault(frozenset(aliases), ("predict", aliases))
    return list(found.values())


def fetched_aliases(signature: Signature, kind: RequestKind) -> frozenset[str]:
    """Aliases of the outputs that a request of this kind, without an output filter, fetches (classifier.cc, regressor.cc)."""
    if kind == "classify":
        return frozenset(signature.outputs) & {"classes", "scores"}
    return frozenset({"outputs"}) if kind == "regress" else frozenset(signature.outputs)


def _missing_kinds(
    candidates: Sequence[BoundSignature],
    requests: Sequence[PlannedRequest],
    options: WarmupOptions,
    batching: BatchingParameters | None,
) -> list[PlannedRequest]:
    """A kind asked for by name is written at least once, even where another kind has warmed its set already."""
    added = []
    for kind in dict.fromkeys(options.kinds or ()):
        able = [candidate for candidate in candidates if kind in candidate.kinds]
        if (
            able
            and kind not in {request.kind for request in requests}
            and not able[0].facts.compiles
        ):
            shape, size = _shapes_of(able[0])[0], _batch_sizes(able[0], options, batching)[0]
            added.append(
                _request(able[0], (able[0].signature.key,), shape, size, (), options, kind)
            )
    return added


def _multi_inferences(
    candidates: Sequence[BoundSignature],
    options: WarmupOptions,
    batching: BatchingParameters | None,
    twins: Mapping[str, str],
) -> list[PlannedRequest]:
    """One MultiInference over all Classify and Regress signatures that share an input tensor, which the server demands;
    signatures over the same tensors are one task.
    """
    by_input: dict[str, list[BoundSignature]] = {}
    for group in _share_tensors(candidates, twins):
        lead = group[0]
        if lead.task is not None and not lead.facts.compiles:
            (spec,) = lead.signature.inputs.values()
            by_input.setdefault(spec.tensor, []).append(lead)
    made = []
    for tasks in by_input.values():
        lead = tasks[0]
        named = tuple(
            (candidate.signature.key, candidate.task) for candidate in tasks if candidate.task
        )
        key = "+".join(key for key, _ in named)
        for size in _batch_sizes(lead, options, batching):
            request = _request(lead, (), _shapes_of(lead)[0], size, (), options, "multi_inference")
            made.append(dataclasses.replace(request, signature_key=key, tasks=named))
    return made


def _batch_sizes(
    candidate: BoundSignature, options: WarmupOptions, batching: BatchingParameters | None
) -> list[int | None]:
    if not any(bound.row_inputs for bound in candidate.bound):
        return [None]
    fixed = candidate.signature.fixed_batch_size
    if fixed is not None:
        return [fixed]
    if options.batch_sizes is not None:
        return list(dict.fromkeys(options.batch_sizes))
    if batching is not None and batching.allowed_batch_sizes:
        return list(batching.allowed_batch_sizes)
    sizes = DEFAULT_XLA_BATCH_SIZES if candidate.facts.compiles else (DEFAULT_BATCH_SIZE,)
    return [size for size in sizes if batching is None or size <= batching.max_batch_size] or [1]


def _unheeded_sizes(
    keys: Sequence[str],
    options: WarmupOptions,
    batching: BatchingParameters | None,
    sizes: Sequence[int | None],
) -> list[str]:
    """What becomes of sizes that these signatures cannot take; others may well take them."""
    asked, name = options.batch_sizes, "batch_sizes"
    if asked is None and batching is not None:
        asked, name = batching.allowed_batch_sizes, "allowed_batch_sizes"
    left = [size for size in dict.fromkeys(asked or ()) if size not in sizes]
    if not left:
        return []
    why = (
        "its inputs have no batch dimension, or are the parts of a ragged or sparse tensor, which are sent whole"
        if list(sizes) == [None]
        else f"it fixes its batch at {sizes[0]}"
    )
    return [f"Signature {key!r} cannot take {name} {left}, which stay cold: {why}." for key in keys]


def _require_known(candidates: Sequence[BoundSignature], options: WarmupOptions) -> None:
    """Refuses what is asked for and no signature can give: an option is never accepted and ignored."""
    outputs = {one.signature.key: sorted(one.signature.outputs) for one in candidates}
    filters = options.output_filters or ()
    if isinstance(filters, Mapping):
        unknown = sorted(set(filters) - set(outputs))
        if unknown and outputs:
            raise OptionsError(
                f"output_filters name signatures {unknown}, which are not warmed. Warmed: {sorted(outputs)}."
            )
    else:
        useless = [
            list(one)
            for one in filters
            if not any(set(one) <= set(names) for names in outputs.values())
        ]
        if useless and outputs:
            raise OptionsError(
                f"output_filters {useless} fit no signature. Outputs by signature: {outputs}."
            )
    written = {kind for one in candidates for kind in one.kinds} | (
        {"multi_inference"} if any(one.task for one in candidates) else set()
    )
    missing = [kind for kind in options.kinds or () if kind not in written]
    if missing and candidates:
        raise OptionsError(
            f"No signature can serve the kinds {missing} that kinds= asks for; keras-warmup inspect says why not. Signatures: "
            f"{sorted(outputs)}."
        )


def _require_batchable(
    candidate: BoundSignature, options: WarmupOptions, batching: BatchingParameters
) -> None:
    """Refuses what a batching session fails on, and a model with it: it concatenates all inputs along one batch."""
    signature = candidate.signature
    if signature.inputs and any(set(bound.arrays) - bound.row_inputs for bound in candidate.bound):
        lacking = sorted(
            {name for bound in candidate.bound for name in set(bound.arrays) - bound.row_inputs}
        )
        raise OptionsError(
            f"Signature {signature.key!r} cannot be served with --enable_batching: input{'s' * (len(lacking) > 1)} "
            f"{', '.join(map(repr, lacking))} {'has' if len(lacking) == 1 else 'have'} no batch dimension in common with the "
            "others (rank 0, or another size of dimension 0). Leave batching_parameters away, or leave this signature out with "
            "signatures=."
        )
    fixed = signature.fixed_batch_size
    asked = [size for size in (fixed, *(options.batch_sizes or ())) if size is not None]
    over = [size for size in asked if size > batching.max_batch_size]
    if over:
        raise OptionsError(
            f"Signature {signature.key!r}: batch sizes {over} are over the server's max_batch_size={batching.max_batch_size}; "
            "such a record keeps the model from loading. Ask for smaller batch_sizes."
        )


def _shape_matters(facts: GraphFacts) -> bool:
    return facts.compiles or facts.convolves


def _shapes_of(candidate: BoundSignature) -> list[tuple[Any, ...]]:
    """Shapes of the sampled rows, the most frequent first."""
    counts: dict[tuple[Any, ...], int] = {}
    for bound in candidate.bound:
        counts[bound.shapes] = counts.get(bound.shapes, 0) + bound.size
    return sorted(counts, key=lambda shape: (-counts[shape], shape))


def _shapes_to_warm(
    candidate: BoundSignature, shapes: list[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    return shapes[:MAX_SHAPES] if _shape_matters(candidate.facts) else shapes[:1]


def _request(
    candidate: BoundSignature,
    keys: tuple[str, ...],
    shape: tuple[Any, ...],
    size: int | None,
    output_filter: tuple[str, ...],
    options: WarmupOptions,
    kind: RequestKind,
) -> PlannedRequest:
    pool = [bound for bound in candidate.bound if bound.shapes == shape]
    pool = [pool[index] for index in np.random.default_rng(options.seed).permutation(len(pool))]
    if size is not None:
        # Before a row is picked: an absurd size must not fill the memory first.
        row_bytes = sum(
            array[:1].nbytes for name, array in pool[0].arrays.items() if name in pool[0].row_inputs
        )
        _check_bytes(size * row_bytes, options)
    picks = None if size is None else tuple(_pick_rows(pool, size))
    return PlannedRequest(candidate.signature.key, kind, tuple(pool), picks, output_filter, keys)


def _pick_rows(pool: Sequence[BoundBatch], size: int) -> list[tuple[int, int]]:
    """`(batch, row)` of each row: whole batches first, so that rows stay views; repeated where there are too few."""
    picks = [(index, row) for index, bound in enumerate(pool) for row in range(bound.size)]
    return [picks[index % len(picks)] for index in range(size)]


def _check_limits(requests: Sequence[PlannedRequest], options: WarmupOptions, taken: int) -> None:
    total = len(requests) + taken
    if total > options.max_records:
        held = f" beside the {taken} already in the file" if taken else ""
        raise OptionsError(
            f"What is asked for needs {len(requests)} warmup records{held}, over max_records={options.max_records}. Ask for "
            "fewer batch_sizes, output_filters or signatures."
        )
    _check_bytes(sum(request.wire_bytes for request in requests), options)


def _check_bytes(size: int, options: WarmupOptions) -> None:
    if size > options.max_bytes:
        raise OptionsError(
            f"What is asked for needs at least {size} bytes of warmup records, over max_bytes={options.max_bytes}. Ask for "
            "smaller or fewer batch_sizes, or raise max_bytes."
        )
