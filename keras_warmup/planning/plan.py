"""Plans the requests that make a model warm: the fewest, from what TensorFlow Serving does lazily.

Measured with TensorFlow Serving's own warmup code: it builds one executor for each *set* of feeds
and fetches, so each signature over tensors of its own and each set of outputs needs a record. The
first matrix product with more than one row costs 50 to 100 ms, once, so a lone record has 2 rows,
never 1. XLA compiles for each exact shape, and convolutions keep primitives for each shape. The
second run of a frozen model with convolutions is slow, too. Nothing else depends on shapes,
iterations or order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_warmup.binding.bind import BoundBatch
from keras_warmup.errors import OptionsError
from keras_warmup.options import XLA_FLAGS, WarmupOptions
from keras_warmup.planning.batch_sizes import (
    describe_ignored_sizes,
    plan_batch_sizes,
    require_batchable,
)
from keras_warmup.planning.batching_parameters import BatchingParameters
from keras_warmup.planning.bound_signature import BoundSignature
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.report import RequestKind
from keras_warmup.savedmodel.graph import GraphFacts
from keras_warmup.savedmodel.signatures import Signature

# Each further shape lengthens the load by a compilation or a convolution. More shapes stay cold.
MAX_SHAPES = 32


@dataclasses.dataclass(frozen=True)
class Plan:
    """The requests to write, and what they leave cold.

    Attributes:
        requests: in the order in which they should be replayed.
        skipped: signature_key -> why no request warms it.
        shape_coverage: signature_key -> share of the shapes seen, 0 to 1, that have a record; only
            where a shape needs a record of its own.
        notes: sentences for the report.
    """

    requests: tuple[PlannedRequest, ...]
    skipped: Mapping[str, str]
    shape_coverage: Mapping[str, float]
    notes: tuple[str, ...]


def plan_requests(
    signatures: Sequence[BoundSignature],
    options: WarmupOptions,
    *,
    taken: int = 0,
    batching: BatchingParameters | None = None,
    twins: Mapping[str, str] | None = None,
    shapes_seen: int = 0,
    training_batch_size: int = 0,
) -> Plan:
    """Plans the fewest requests that warm each signature, output set, batch size and shape.

    Args:
        signatures: signatures with rows bound to their inputs.
        options: what is asked for.
        taken: number of records that the file already holds.
        batching: the batch sizes of a server with `--enable_batching`.
        twins: signature_key -> key of the signature whose tensors it is going to use.
        shapes_seen: number of row shapes seen while sampling; the rows at hand may have fewer.
        training_batch_size: rows of the largest batch seen, for `batch_sizes="auto"`.

    Returns:
        The plan. Equal signatures and options give equal plans.

    Raises:
        OptionsError: the request does not fit `max_records`, `max_bytes` or the server's batching,
            or no signature can serve a kind or an output filter.
    """
    _require_known(signatures, options)
    requests: list[PlannedRequest] = []
    skipped: dict[str, str] = {}
    coverage: dict[str, float] = {}
    notes: list[str] = []
    groups = _group_by_tensors(signatures, twins or {})
    for group in groups:
        lead = group[0]
        keys = tuple(one.key for one in group)
        if lead.facts.compiles and not options.xla:
            why = (
                "it compiles with XLA, which a stock server has switched off: a record for it "
                f"would keep the model from loading. Start the server with {XLA_FLAGS} and pass "
                "xla=True."
            )
            skipped.update(dict.fromkeys(keys, why))
            continue
        if lead.facts.compiles:
            notes.append(
                f"Signature {lead.key!r} compiles with XLA: the server needs {XLA_FLAGS}, else the "
                "model does not load."
            )
        if batching is not None:
            require_batchable(lead, options, batching)
        sizes = plan_batch_sizes(lead, options, batching, training_batch_size)
        notes += _describe_repeated_rows(lead, sizes, options)
        notes += describe_ignored_sizes(keys, options, batching, sizes)
        shapes = _shapes_of(lead)
        kept = shapes[:MAX_SHAPES] if _shape_matters(lead.facts) else shapes[:1]
        total = max(len(shapes), shapes_seen)
        if _shape_matters(lead.facts) and total > 1:
            coverage[lead.key] = round(len(kept) / total, 4)
        requests += [
            _plan_request(lead, kind, size, shape, options, aliases, warms=keys)
            for kind, aliases in _output_sets(group, options)
            for size in sizes
            for shape in kept
        ]
    requests += _plan_missing_kinds(signatures, requests, options, batching)
    requests += _plan_multi_inference([group[0] for group in groups], options, batching)
    _check_limits(requests, options, taken)
    repeat = _repeat_of(requests, signatures) if options.freeze else None
    if repeat is not None and _fits([*requests, repeat], options, taken):
        requests.append(repeat)
        notes.append(
            f"The largest record, for signature {repeat.signature_key!r}, is in the file twice: "
            "the second run of a frozen model with convolutions is slow, too."
        )
    return Plan(tuple(requests), skipped, coverage, tuple(notes))


def fetched_aliases(signature: Signature, kind: RequestKind) -> frozenset[str]:
    """Returns the output aliases that a request without an output filter fetches.

    Args:
        signature: the signature.
        kind: the request kind (classifier.cc, regressor.cc, predict_util.cc).
    """
    if kind == "classify":
        return frozenset(signature.outputs) & {"classes", "scores"}
    return frozenset({"outputs"}) if kind == "regress" else frozenset(signature.outputs)


def _group_by_tensors(
    signatures: Sequence[BoundSignature], twins: Mapping[str, str]
) -> list[list[BoundSignature]]:
    """Groups signatures over the same tensors, which share an executor; `serving_default` first."""
    tensors = {one.key: one.signature.tensors for one in signatures}
    groups: dict[tuple[frozenset[str], frozenset[str]], list[BoundSignature]] = {}
    for one in sorted(signatures, key=lambda one: (one.key != "serving_default", one.key)):
        groups.setdefault(tensors[twins.get(one.key, one.key)], []).append(one)
    return list(groups.values())


def _output_sets(
    group: Sequence[BoundSignature], options: WarmupOptions
) -> list[tuple[RequestKind, tuple[str, ...]]]:
    """Returns a request kind and output filter for each set of output tensors.

    A request of another kind over the same set, or a filter that lists every output, runs the same
    executor and warms nothing new.
    """
    lead = group[0].signature
    alias_of = {spec.tensor: alias for alias, spec in lead.outputs.items()}
    found: dict[frozenset[str], tuple[RequestKind, tuple[str, ...]]] = {}
    for kind in group[0].kinds:
        found.setdefault(fetched_aliases(lead, kind), (kind, ()))
    if group[0].can_predict:
        for one in group:
            outputs = one.signature.outputs
            for asked in options.filters_for(one.key, list(outputs)):
                # The request uses the lead's aliases; another signature may have other ones.
                aliases = tuple(alias_of.get(outputs[alias].tensor, alias) for alias in asked)
                found.setdefault(frozenset(aliases), ("predict", aliases))
    return list(found.values())


def _plan_missing_kinds(
    signatures: Sequence[BoundSignature],
    requests: Sequence[PlannedRequest],
    options: WarmupOptions,
    batching: BatchingParameters | None,
) -> list[PlannedRequest]:
    """Plans one request of each kind in `kinds=` whose sets other kinds have already warmed."""
    planned = {request.kind for request in requests}
    added = []
    for kind in dict.fromkeys(options.kinds or ()):
        able = [one for one in signatures if kind in one.kinds]
        if able and kind not in planned and not able[0].facts.compiles:
            size = plan_batch_sizes(able[0], options, batching)[0]
            added.append(_plan_request(able[0], kind, size, _shapes_of(able[0])[0], options))
    return added


def _plan_multi_inference(
    leads: Sequence[BoundSignature], options: WarmupOptions, batching: BatchingParameters | None
) -> list[PlannedRequest]:
    """Plans one MultiInference over all Classify and Regress signatures, each set of tensors once.

    The server feeds the Examples of the request to the input tensor of each task
    (multi_inference.cc).
    """
    tasks = [one for one in leads if one.task is not None and not one.facts.compiles]
    if not tasks:
        return []
    lead = tasks[0]
    named = tuple((one.key, one.task) for one in tasks if one.task is not None)
    shape = _shapes_of(lead)[0]
    return [
        dataclasses.replace(
            _plan_request(lead, "multi_inference", size, shape, options, warms=()),
            signature_key="+".join(key for key, _ in named),
            tasks=named,
        )
        for size in plan_batch_sizes(lead, options, batching)
    ]


def _plan_request(
    bound: BoundSignature,
    kind: RequestKind,
    size: int | None,
    shape: tuple[Any, ...],
    options: WarmupOptions,
    output_filter: tuple[str, ...] = (),
    warms: tuple[str, ...] | None = None,
) -> PlannedRequest:
    pool = [one for one in bound.batches if one.shapes == shape]
    pool = [pool[index] for index in np.random.default_rng(options.seed).permutation(len(pool))]
    picks = None
    if size is not None:
        # Before rows are picked: an absurd size must not fill the memory first.
        first = pool[0]
        row_bytes = sum(first.arrays[name][:1].nbytes for name in first.row_inputs)
        _check_bytes(size * row_bytes, options)
        picks = tuple(_pick_rows(pool, size))
    keys = (bound.key,) if warms is None else warms
    return PlannedRequest(bound.key, kind, tuple(pool), picks, output_filter, keys)


def _pick_rows(pool: Sequence[BoundBatch], size: int) -> list[tuple[int, int]]:
    """Picks `(batch, row)` of each row; rows are repeated where there are too few.

    Whole batches come first, so that the rows stay views.
    """
    picks = [(index, row) for index, one in enumerate(pool) for row in range(one.size)]
    return [picks[index % len(picks)] for index in range(size)]


def _describe_repeated_rows(
    bound: BoundSignature, sizes: Sequence[int | None], options: WarmupOptions
) -> list[str]:
    """Returns a note where `batch_sizes="auto"` asks for more rows than there are."""
    rows = sum(one.size for one in bound.batches)
    over = [size for size in sizes if size is not None and size > rows]
    if options.batch_sizes != "auto" or not over:
        return []
    return [
        f"Signature {bound.key!r}: the {rows} rows at hand are repeated in the requests of batch "
        f"sizes {over}."
    ]


def _shape_matters(facts: GraphFacts) -> bool:
    return facts.compiles or facts.convolves


def _shapes_of(bound: BoundSignature) -> list[tuple[Any, ...]]:
    """Returns the shapes of the sampled rows, the most frequent first."""
    counts: dict[tuple[Any, ...], int] = {}
    for one in bound.batches:
        counts[one.shapes] = counts.get(one.shapes, 0) + one.size
    return sorted(counts, key=lambda shape: (-counts[shape], shape))


def _require_known(signatures: Sequence[BoundSignature], options: WarmupOptions) -> None:
    """Refuses options that no signature can serve: no option is accepted and ignored."""
    outputs = {one.key: sorted(one.signature.outputs) for one in signatures}
    if not outputs:
        return
    filters = options.output_filters or ()
    if isinstance(filters, Mapping):
        unknown = sorted(set(filters) - set(outputs))
        if unknown:
            raise OptionsError(
                f"output_filters name signatures {unknown}, which are not warmed. Warmed: "
                f"{sorted(outputs)}."
            )
    else:
        useless = [
            list(one)
            for one in filters
            if not any(set(one) <= set(names) for names in outputs.values())
        ]
        if useless:
            raise OptionsError(
                f"output_filters {useless} fit no signature. Outputs by signature: {outputs}."
            )
    served = {kind for one in signatures for kind in one.kinds}
    if any(one.task for one in signatures):
        served.add("multi_inference")
    missing = [kind for kind in options.kinds or () if kind not in served]
    if missing:
        raise OptionsError(
            f"No signature can serve the kinds {missing} that kinds= asks for; keras-warmup "
            f"inspect gives the reasons. Signatures: {sorted(outputs)}."
        )


def _repeat_of(
    requests: Sequence[PlannedRequest], signatures: Sequence[BoundSignature]
) -> PlannedRequest | None:
    """Returns the largest request that runs convolutions; `None` where several are that large.

    Measured with frozen MobileNetV2, batches of 4, in the C++ Session of `keras-warmup bench`, 20
    processes: after one run the next one takes 1.6 times as long as later ones, after two runs 1.2
    times. The difference is page faults: the threads that TensorFlow runs ops on have heaps of
    their own (with `MALLOC_ARENA_MAX=1` there are none). It is the same in unfrozen models, but
    small beside their steady time.
    """
    keys = {one.key for one in signatures if one.facts.convolves}
    convolving = [request for request in requests if request.signature_key in keys]
    sizes = [request.wire_bytes for request in convolving]
    largest = max(sizes, default=0)
    return convolving[sizes.index(largest)] if sizes.count(largest) == 1 else None


def _fits(requests: Sequence[PlannedRequest], options: WarmupOptions, taken: int) -> bool:
    size = sum(request.wire_bytes for request in requests)
    return len(requests) + taken <= options.max_records and size <= options.max_bytes


def _check_limits(requests: Sequence[PlannedRequest], options: WarmupOptions, taken: int) -> None:
    if len(requests) + taken > options.max_records:
        held = f" beside the {taken} already in the file" if taken else ""
        raise OptionsError(
            f"The options ask for {len(requests)} warmup records{held}, over "
            f"max_records={options.max_records}. Ask for fewer batch_sizes, output_filters or "
            "signatures."
        )
    _check_bytes(sum(request.wire_bytes for request in requests), options)


def _check_bytes(size: int, options: WarmupOptions) -> None:
    if size > options.max_bytes:
        raise OptionsError(
            f"The options ask for at least {size} bytes of warmup records, over "
            f"max_bytes={options.max_bytes}. Ask for smaller or fewer batch_sizes, or raise "
            "max_bytes."
        )
