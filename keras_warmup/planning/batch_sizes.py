"""Batch sizes of the planned requests."""

from __future__ import annotations

from collections.abc import Sequence

from keras_warmup.errors import OptionsError
from keras_warmup.options import DEFAULT_BATCH_SIZE, WarmupOptions
from keras_warmup.planning.batching_parameters import BatchingParameters
from keras_warmup.planning.bound_signature import BoundSignature

# XLA compiles for each exact size, and clients of an online model send single rows.
DEFAULT_XLA_BATCH_SIZES = (1, 2)
# Kernels of convolutions and batched matrix products are prepared for each size; a size between two
# warmed ones costs little (measured: docs/benchmarks.md).
_AUTO_FACTOR = 4


def plan_batch_sizes(
    bound: BoundSignature,
    options: WarmupOptions,
    batching: BatchingParameters | None,
    training_batch_size: int = 0,
) -> list[int | None]:
    """Returns the batch sizes to warm; `[None]` where the inputs have no batch dimension.

    Args:
        bound: the signature.
        options: `batch_sizes` are taken as they are, unless the signature fixes its batch.
        batching: the batch sizes of a server with `--enable_batching`.
        training_batch_size: rows of the largest batch seen, for `batch_sizes="auto"`; 0 where it is
            not known.
    """
    if not any(one.row_inputs for one in bound.batches):
        return [None]
    fixed = bound.signature.fixed_batch_size
    if fixed is not None:
        return [fixed]
    if options.exact_batch_sizes:
        return list(dict.fromkeys(options.exact_batch_sizes))
    if batching is not None and batching.allowed_batch_sizes:
        return list(batching.allowed_batch_sizes)
    sizes: tuple[int, ...] = (
        DEFAULT_XLA_BATCH_SIZES if bound.facts.compiles else (DEFAULT_BATCH_SIZE,)
    )
    if options.batch_sizes == "auto" and bound.facts.size_matters:
        largest = max(training_batch_size, DEFAULT_BATCH_SIZE)
        if batching is not None:
            largest = min(largest, batching.max_batch_size)
        sizes = _sizes_up_to(largest)
    return [size for size in sizes if batching is None or size <= batching.max_batch_size] or [1]


def _sizes_up_to(largest: int) -> tuple[int, ...]:
    sizes, size = [], 1
    while size < largest:
        sizes.append(size)
        size *= _AUTO_FACTOR
    return (*sizes, largest)


def describe_ignored_sizes(
    keys: Sequence[str],
    options: WarmupOptions,
    batching: BatchingParameters | None,
    sizes: Sequence[int | None],
) -> list[str]:
    """Returns a note for each signature that cannot take some of the sizes asked for.

    Args:
        keys: keys of the signatures.
        options: what is asked for.
        batching: the batch sizes of a server with `--enable_batching`.
        sizes: the batch sizes planned for these signatures.
    """
    asked, name = options.exact_batch_sizes, "batch_sizes"
    if not asked and batching is not None:
        asked, name = batching.allowed_batch_sizes, "allowed_batch_sizes"
    left = [size for size in dict.fromkeys(asked) if size not in sizes]
    if not left:
        return []
    if list(sizes) == [None]:
        why = (
            "its inputs have no batch dimension, or whole batches are sent (parts of a ragged or "
            "sparse tensor, whole_batches=True)"
        )
    else:
        why = f"it fixes its batch at {sizes[0]}"
    return [f"Signature {key!r} cannot take {name} {left}, which stay cold: {why}." for key in keys]


def require_batchable(
    bound: BoundSignature, options: WarmupOptions, batching: BatchingParameters
) -> None:
    """Refuses signatures and sizes that fail in a batching session, and with them the model load.

    A batching session concatenates all inputs along one batch dimension (batching_session.cc).

    Args:
        bound: the signature.
        options: what is asked for.
        batching: the batch sizes of the server.

    Raises:
        OptionsError: an input has no batch dimension in common with the others, or a size is
            larger than `max_batch_size`.
    """
    key = bound.signature.key
    lacking = sorted(
        {name for one in bound.batches for name in one.arrays if name not in one.row_inputs}
    )
    if lacking:
        names = ", ".join(map(repr, lacking))
        raise OptionsError(
            f"Signature {key!r} cannot be served with --enable_batching: these inputs have no "
            "batch dimension in common with the others (rank 0, or another size of dimension 0): "
            f"{names}. Leave batching_parameters out, or leave this signature out with "
            "signatures=."
        )
    asked = (bound.signature.fixed_batch_size, *options.exact_batch_sizes)
    over = [size for size in asked if size is not None and size > batching.max_batch_size]
    if over:
        raise OptionsError(
            f"Signature {key!r}: batch sizes {over} are over the server's "
            f"max_batch_size={batching.max_batch_size}; such a record keeps the model from "
            "loading. Ask for smaller batch_sizes."
        )
