"""Proves a binding: the replayed signature gives what the model itself gives on the same rows."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_warmup.data.batch import walk
from keras_warmup.errors import BindingError, ProofError
from keras_warmup.keras_api import Model, output_names
from keras_warmup.pipeline.keras_model import (
    OwnOutputs,
    arrange_inputs,
    arrange_named_arrays,
    call_model,
    compute_dtypes,
    inputs_fed_otherwise,
)
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.training.strategy import needs_all_workers

PROVED = "proved"
STATEFUL = "unproved: the model's call writes state, so it is not made to compare"
ALL_WORKERS = "unproved: the model's call would wait for the other workers of its strategy"
RANDOM = "unproved: outputs are random at inference (an equal request gives other outputs)"
NOT_DETERMINISTIC = "unproved: not deterministic (it differs from itself on the same rows)"
# A Session fuses and reorders what the eager call computes step by step. Bytes of a float -> the
# relative difference allowed.
_RELATIVE_TOLERANCE = {2: 5e-2, 4: 2e-3, 8: 1e-6}
# Largest difference that rounding of intermediate values may cause, as a share of an output's
# largest value: some units of 2**-8 and 2**-11.
INTERMEDIATE_ROUNDING = {"bfloat16": 3e-2, "float16": 5e-3}


def prove_request(
    model: Model,
    request: PlannedRequest,
    outputs: Mapping[str, np.ndarray],
    *,
    replay_again: Callable[[], Mapping[str, np.ndarray]],
    own_call: bool,
    is_plain: bool = True,
    mine: OwnOutputs | None = None,
) -> str:
    """Compares the replay of a request with the model's own call, as `prove_signature` does.

    Args:
        model: a built Keras model.
        request: the request that was replayed.
        outputs: output alias -> replayed array.
        replay_again: as `prove_signature` takes it.
        own_call: as `prove_signature` takes it.
        is_plain: whether the signature's graph draws no random numbers and writes no state.
        mine: as `prove_signature` takes it.

    Returns:
        `"proved"`, or a sentence that begins with `unproved:` and gives the reason.

    Raises:
        ProofError: the signature is the model's own call and gives other outputs.
    """
    x, rows = request.x(), request.rows_id
    if x is None and own_call and request.source != "synthetic":
        # The arrays of a `transform` go by the names of the signature's inputs.
        x, rows = arrange_named_arrays(model, request.arrays()), None
    if x is None:
        if request.source == "synthetic":
            return "unproved: made-up rows"
        return "unproved: the rows were sent in another form than the model takes"
    try:
        return prove_signature(
            model,
            request.signature_key,
            arrange_inputs(model, x).x,
            outputs,
            replay_again=replay_again,
            own_call=own_call,
            is_plain=own_call and is_plain,
            mine=mine,
            rows=rows,
        )
    except ProofError:
        raise
    # The rows are those of a custom endpoint: on them the model's own code may fail in any way.
    except Exception as error:
        if own_call:
            raise
        return (
            "unproved: bound by name (the model cannot be called on the endpoint's rows: "
            f"{type(error).__name__})"
        )


def prove_signature(
    model: Model,
    signature_key: str,
    x: Any,
    outputs: Mapping[str, np.ndarray],
    *,
    replay_again: Callable[[], Mapping[str, np.ndarray]],
    own_call: bool,
    is_plain: bool = False,
    mine: OwnOutputs | None = None,
    rows: Hashable = None,
) -> str:
    """Compares a replayed signature with the model's own call on the same rows.

    Args:
        model: a built Keras model.
        signature_key: the signature that was replayed with all its outputs.
        x: the request's rows in the model's own structure.
        outputs: output alias -> replayed array.
        replay_again: replays the same request once more; called only where the two differ.
        own_call: whether the signature is known to be the model's own call. Otherwise a difference
            may be what the endpoint adds.
        is_plain: whether the model's call is known to draw no random numbers and write no state.
        mine: the model's outputs, for several requests. Defaults to `None`: of this one.
        rows: as `OwnOutputs.on` takes it.

    Returns:
        `"proved"`, or a sentence that begins with `unproved:` and gives the reason.

    Raises:
        ProofError: the signature is the model's own call, the model agrees with itself, and the two
            differ: in floats, or in integers, bools or strings by more than ties (an argmax of
            near-equal values) explain.
    """
    if needs_all_workers(model):
        return ALL_WORKERS
    mine = mine or OwnOutputs(model)
    own = mine.on(x, rows=rows, plain=is_plain)
    if own is None:
        return STATEFUL
    names = output_names(model)
    pairs = _pair_outputs(own, outputs, names)
    if not pairs:
        return (
            "unproved: bound by name (the signature's outputs are not those of the model's own "
            "call)"
        )
    rounding = max(INTERMEDIATE_ROUNDING.get(dtype, 0.0) for dtype in compute_dtypes(model))
    differ = [name for name, both in pairs.items() if not same_values(*both, rounding=rounding)]
    if not differ:
        return PROVED
    if not own_call:
        return (
            "unproved: bound by name (a custom endpoint, whose outputs differ from the model's "
            "own call)"
        )
    # Dropout that is left on draws from a seed. The stateless call does not advance it, a Session
    # does.
    again = _pair_outputs(mine.on(x, plain=is_plain), replay_again(), names)
    if not again or any(
        not same_values(*both, rounding=rounding)
        for name in pairs
        for both in zip(pairs[name], again[name], strict=True)
    ):
        return NOT_DETERMINISTIC
    ties = _ties(pairs, differ)
    if ties:
        return f"unproved: {'; '.join(ties)} (ties?)"
    listed = "; ".join(f"{name!r} {describe_difference(*pairs[name])}" for name in differ)
    raise ProofError(
        f"Signature {signature_key!r} does not give what model {model.name!r} gives on the same "
        f"rows. Outputs that differ: {listed}. Inputs may be swapped, or the export does not hold "
        "the model's weights; nothing was published. Pass warmup={'transform': ...} to name the "
        "inputs, or export with export_fn=."
    )


def find_skewed_inputs(model: Model, x: Any) -> tuple[str, ...]:
    """Finds the inputs that `fit` filled with other features than the served signature does.

    `fit` passes a batch to the model as it is; the signature takes inputs by name. Keras flattens
    an `OrderedDict` (`make_csv_dataset` yields them) in its own order, so that a model of dict
    inputs may have been trained on swapped columns.

    Args:
        model: a built Keras model.
        x: rows exactly as they were captured, container types kept.

    Returns:
        Names of the inputs, where the model's call on `x` differs from its call by name; else
        empty.
    """
    try:
        names = inputs_fed_otherwise(model, x)
    except BindingError:  # a `transform` makes other rows of x
        return ()
    if not names:
        return ()
    with (
        warnings.catch_warnings(),
        contextlib.suppress(Exception),
    ):  # the user's code may not take x
        warnings.simplefilter("ignore")
        fed, by_name = call_model(model, x), call_model(model, arrange_inputs(model, x).x)
        pairs = zip(walk(fed), walk(by_name), strict=True)
        if fed is not None and not all(same_values(one, two) for (_, one), (_, two) in pairs):
            return names
    return ()


def describe_difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Returns shapes and the largest difference of two outputs, without their values."""
    if ours.shape != theirs.shape:
        return f"{list(theirs.shape)}, the model's {list(ours.shape)}"
    shape = list(ours.shape)
    if _is_exact(ours) or _is_exact(theirs):
        return f"{shape} in {int(np.sum(ours != theirs))} of {ours.size} values"
    gaps = np.abs(ours.astype(np.complex128) - theirs.astype(np.complex128))
    only_ours, only_theirs = np.isnan(ours), np.isnan(theirs)
    if np.any(only_ours != only_theirs):
        whose = "the signature's" if np.sum(only_theirs) > np.sum(only_ours) else "the model's"
        return f"{shape}, {whose} values are NaN where the other's are not"
    finite = gaps[np.isfinite(gaps)]
    return f"{shape} by up to {finite.max():.3g}" if finite.size else f"{shape} in infinite values"


def _pair_outputs(
    mine: Any, outputs: Mapping[str, np.ndarray], output_names: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Pairs the model's outputs with the signature's, by key, else by the number of `tf.function`.

    Args:
        mine: the model's outputs.
        outputs: output alias -> the signature's array.
        output_names: as `keras_api.output_names` returns them.

    Returns:
        Output alias -> (the model's, the signature's); `None` where some output has no partner.
    """
    arrays = isinstance(mine, Mapping) and all(
        isinstance(leaf, np.ndarray) for leaf in mine.values()
    )
    if arrays and set(mine) == set(outputs):
        return {name: (mine[name], outputs[name]) for name in sorted(outputs)}
    leaves = [leaf for _, leaf in walk(mine) if leaf is not None]
    if len(output_names) == len(leaves) and set(output_names) == set(outputs):
        return {
            name: (leaf, outputs[name]) for name, leaf in zip(output_names, leaves, strict=True)
        }
    if set(outputs) == {f"output_{index}" for index in range(len(leaves))}:
        return {
            f"output_{index}": (leaf, outputs[f"output_{index}"])
            for index, leaf in enumerate(leaves)
        }
    if len(leaves) == len(outputs) == 1:
        name = next(iter(outputs))
        return {name: (leaves[0], outputs[name])}
    return None


def _ties(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], differ: Sequence[str]) -> list[str]:
    """Returns how few rows differ, where ties of exact outputs may explain it; else empty.

    Rounding flips an argmax or a bucket in a few rows, but not in all of them. Swapped inputs would
    also show in the floats, if there are any; one row that differs beside floats that agree is no
    evidence of a swap either.
    """
    floats = [name for name, both in pairs.items() if not any(map(_is_exact, both))]
    ties = []
    for name in differ:
        ours, theirs = pairs[name]
        if name in floats or ours.shape != theirs.shape:
            return []
        rows = max(1, ours.shape[0] if ours.ndim else 1)
        unequal = int(np.any((ours != theirs).reshape(rows, -1), axis=1).sum())
        if unequal == rows and (rows > 1 or not floats):
            return []
        ties.append(f"output {name!r} differs in {unequal} of {rows} rows")
    return ties


def _is_exact(array: np.ndarray) -> bool:
    return array.dtype.kind in "OSUbiu"


def same_values(ours: np.ndarray, theirs: np.ndarray, *, rounding: float = 0.0) -> bool:
    """Returns whether two outputs are equal up to the rounding of another kernel; NaN equals NaN.

    Args:
        ours: one output.
        theirs: the other.
        rounding: the difference allowed for any value, as a share of the largest value, where it is
            more than the outputs' dtype implies.
    """
    if ours.shape != theirs.shape:
        return False
    if _is_exact(ours) or _is_exact(theirs):
        return bool(np.array_equal(ours, theirs))
    width = min(ours.dtype.itemsize, theirs.dtype.itemsize) // (2 if ours.dtype.kind == "c" else 1)
    relative = _RELATIVE_TOLERANCE.get(width, 5e-2)
    wide = np.complex128 if ours.dtype.kind == "c" else np.float64
    left, right = ours.astype(wide), theirs.astype(wide)
    finite = np.abs(left[np.isfinite(left)])
    # Small values beside large ones have the rounding errors of the large ones.
    absolute = max(relative * 1e-2, rounding) * float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(left, right, rtol=relative, atol=absolute, equal_nan=True))


def same_outputs(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    """Returns whether two replays gave the same outputs, up to rounding."""
    return set(ours) == set(theirs) and all(same_values(ours[name], theirs[name]) for name in ours)
