"""`WarmupOptions`: what a warmup file must warm, and within which limits."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from keras_warmup.errors import OptionsError
from keras_warmup.report import REQUEST_KINDS, PrivacyMode, RequestKind

# TensorFlow Serving fails the load on record 1001 (saved_model_warmup_util.h, kMaxNumRecords).
MAX_RECORDS = 1000
# protobuf refuses messages of 2 GiB; a warmup file near that size lengthens every load for nothing.
DEFAULT_MAX_BYTES = 256 * 2**20

# Constants of a frozen model, bytes. What a constant saves, the restoring of one variable, does not
# depend on its size; what it costs does: a server holds it in the proto, in the graph and in the
# kernel, and TensorFlow's graph optimizer copies the graph in its passes. So most variables of a
# model are worth it, and the few large ones of a large model are not. Measured with EfficientNetB4
# and a 12-layer transformer: up to here the server takes no more memory than for `model.export`.
DEFAULT_FREEZE_MAX_BYTES = 16 * 2**20
# A SavedModel proto ends at 2 GiB.
MAX_FREEZE_BYTES = 2**31 - 1

# A batch of 1 never warms the first matrix product with more than one row.
DEFAULT_BATCH_SIZE = 2
# A stock server has XLA compilation switched off (model_servers/main.cc).
XLA_FLAGS = "--xla_cpu_compilation_enabled (CPU) or --xla_gpu_compilation_enabled (GPU)"

# From the least private one on.
PRIVACY_MODES: tuple[PrivacyMode, ...] = ("none", "redacted", "synthetic")
PRIVACY_VARIABLE, REDACT_VARIABLE = "KERAS_WARMUP_PRIVACY", "KERAS_WARMUP_REDACT"

Transform = Callable[[Any], Mapping[str, Any]]
OutputFilters = Sequence[Sequence[str]] | Mapping[str, Sequence[Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Privacy:
    """What of the real values may not be in a warmup file.

    Attributes:
        mode: `"none"`: real values may be; `"redacted"`: not those of some features;
            `"synthetic"`: none.
        features: with `"redacted"`, the names of these features; else empty.
    """

    mode: PrivacyMode = "none"
    features: frozenset[str] = frozenset()

    def covers(self, other: Privacy) -> bool:
        """Returns whether what hides this also hides all of `other`."""
        if self.mode == "synthetic" or other.mode == "none":
            return True
        return self.mode == other.mode and self.features >= other.features


REAL = Privacy()


def least_privacy() -> Privacy:
    """Returns the least private mode that the environment allows.

    `KERAS_WARMUP_PRIVACY` is the mode, `KERAS_WARMUP_REDACT` the features of `redacted`, separated
    by commas. It is read at each use, so that an object that was made before obeys it too.

    Raises:
        OptionsError: the variables have a wrong value.
    """
    mode = os.environ.get(PRIVACY_VARIABLE, "").strip().lower() or "none"
    names = frozenset(filter(None, map(str.strip, os.environ.get(REDACT_VARIABLE, "").split(","))))
    if mode not in PRIVACY_MODES:
        raise OptionsError(
            f"{PRIVACY_VARIABLE} must be one of {', '.join(PRIVACY_MODES)}, got {mode!r}."
        )
    if mode == "redacted" and not names:
        raise OptionsError(
            f"{PRIVACY_VARIABLE}=redacted needs the names of the features: set {REDACT_VARIABLE}, "
            "such as user_id,name."
        )
    if mode == "none" and names:
        mode = "redacted"
    return Privacy(mode, names if mode == "redacted" else frozenset())  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupOptions:
    """What the warmup file must warm, and within which limits.

    Args:
        signatures: signature keys to warm. Defaults to `None`: every servable signature.
        batch_sizes: exact batch sizes to warm. `"auto"`: the sizes of `batching_parameters`, else
            1, 4, 16, ... up to and including the training batch, for signatures with convolutions
            or batched matrix products (attention), whose other sizes stay slow; one size for the
            other signatures. Defaults to `None`: one batch of 2 rows for each set of tensors (a
            batch of 1 never warms the first matrix product), or the batch that the signature fixes.
        output_filters: sets of output aliases that clients ask for in
            `PredictRequest.output_filter`, *in addition* to all outputs. A list of lists applies to
            each signature that has those aliases; a dict keyed by signature_key restricts them.
        kinds: request kinds to write, among `predict`, `classify`, `regress` and `multi_inference`,
            for each signature that can serve them. Defaults to `None`: Classify or Regress where
            the signature has their inputs and outputs, else Predict.
        freeze: publish a serving-only SavedModel whose variables are constants: a server loads it
            faster. `tf.saved_model.load` of it gives signatures alone, nothing to train. Only in
            exports this package makes; for other ones there is `keras_warmup.freeze`.
        freeze_max_bytes: with `freeze`, largest size of the constants, bytes: the largest variables
            stay variables until the others fit. Defaults to `None`: 16 MiB. More makes requests of
            large models faster, and loading slower: measure it.
        whole_batches: send each batch whole, as one request, for models whose inputs differ in
            their first dimension (a graph's nodes and edges). Defaults to `False`: rows are picked.
        transform: `transform(x) -> {input name: array}`; replaces binding. `x` is a batch as the
            model was fed it.
        xla: also write a record for each exact batch size of signatures that compile with XLA. The
            server must run with `--xla_cpu_compilation_enabled` or `--xla_gpu_compilation_enabled`,
            else it refuses the model.
        batching_parameters: the server's `--batching_parameters_file`: one record for each of its
            `allowed_batch_sizes`, none over its `max_batch_size`. Signatures that batching cannot
            take are refused.
        share_twin_signatures: let signatures that are the same function of the same inputs (`serve`
            and `serving_default` of `model.export`) use the same tensors: one record then warms
            both, in half the load time. Defaults to `None`: in exports this package makes, not in
            `add_warmup`.
        max_load_seconds: warn where replaying the records takes longer than this. It is a lower
            bound of the load time that they add, since the process that replays is warm already;
            `keras-warmup bench` measures it. Defaults to `None`: never.
        privacy: `"none"`: records hold real rows. `"redacted"`: the features in `redact` are
            replaced, by values of the same dtype, shape and length inside their range, or by words
            of a vocabulary. `"synthetic"`: all of them are, and no real value is kept longer than
            the step that showed it. Defaults to `None`: the mode in `KERAS_WARMUP_PRIVACY`, below
            which no mode may be, else `"none"`.
        redact: with `privacy="redacted"`, the names of features: keys of x, features of serialized
            Examples, or inputs of signatures; `"x[0]"` for the first of a list. Those in
            `KERAS_WARMUP_REDACT` are redacted in any case.
        max_records: largest number of records, 1 to 1000 (TensorFlow Serving fails the load on the
            1001st).
        max_bytes: largest size of the warmup file, bytes.
        method_name: give Classify and Regress signatures their own method names, for servers that
            run with `--enable_signature_method_name_check`. Only in exports this package makes; for
            other ones there is `keras-warmup method-names`.
        model_name: `model_spec.name` of the requests; MultiInference needs one. Defaults to `None`:
            the name of the base path.
        seed: seed of every random choice. Equal seeds and data give equal files, but for the
            values that a privacy mode makes up.
        verify: replay the records in a Session before publishing.
        on_no_data: `"synthesize"` makes rows up from the signature with a warning, `"error"`
            refuses.

    Raises:
        OptionsError: an option is unknown or out of range.
    """

    signatures: Sequence[str] | None = None
    batch_sizes: Sequence[int] | Literal["auto"] | None = None
    output_filters: OutputFilters | None = None
    kinds: Sequence[RequestKind] | None = None
    freeze: bool = False
    freeze_max_bytes: int | None = None
    whole_batches: bool = False
    transform: Transform | None = None
    xla: bool = False
    batching_parameters: str | os.PathLike[str] | None = None
    share_twin_signatures: bool | None = None
    max_load_seconds: float | None = None
    privacy: PrivacyMode | None = None
    redact: Sequence[str] | None = None
    max_records: int = MAX_RECORDS
    max_bytes: int = DEFAULT_MAX_BYTES
    method_name: bool = False
    model_name: str | None = None
    seed: int = 0
    verify: bool = True
    on_no_data: Literal["synthesize", "error"] = "synthesize"

    def __new__(cls, *unnamed: object, **options: object) -> WarmupOptions:
        """Refuses what `__init__` does not take, with an `OptionsError` of the nearest name."""
        if unnamed:
            raise OptionsError(f"WarmupOptions takes keyword arguments only, got {unnamed!r}.")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise OptionsError(
                    f"Unknown warmup option {name!r}.{hint} Known options: {', '.join(known)}."
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        problems: list[str] = []
        # Iterators are read once, here; numpy integers become plain ones.
        for name, items in (
            ("signatures", "a sequence of signature keys"),
            ("kinds", "a sequence of request kinds"),
            ("redact", "a sequence of names of features"),
            ("batch_sizes", '"auto" or a sequence of integers >= 1'),
        ):
            value = getattr(self, name)
            is_auto = isinstance(value, str) and (name, value) == ("batch_sizes", "auto")
            if value is not None and not is_auto:
                object.__setattr__(self, name, _read_sequence(name, items, value, problems))
        if any(not isinstance(key, str) for key in self.signatures or ()):
            problems.append(f"signatures must hold signature keys (str), got {self.signatures!r}")
        if isinstance(self.batch_sizes, str):
            pass
        elif not all(is_integer(size, at_least=1) for size in self.batch_sizes or ()):
            problems.append(
                f"batch_sizes must hold integers >= 1, got {list(self.batch_sizes or ())!r}"
            )
        elif self.batch_sizes:
            object.__setattr__(self, "batch_sizes", tuple(map(int, self.batch_sizes)))
        if any(kind not in REQUEST_KINDS for kind in self.kinds or ()):
            known = ", ".join(map(repr, REQUEST_KINDS))
            problems.append(f"kinds must be among {known}, got {list(self.kinds or ())!r}")
        object.__setattr__(self, "output_filters", _read_filters(self.output_filters, problems))
        if self.model_name is not None and (
            not isinstance(self.model_name, str) or not self.model_name
        ):
            problems.append(f"model_name must be a non-empty str, got {self.model_name!r}")
        if self.transform is not None and not callable(self.transform):
            problems.append(f"transform must be callable, got {type(self.transform).__name__}")
        if not is_integer(self.max_records, at_least=1) or self.max_records > MAX_RECORDS:
            problems.append(
                f"max_records must be 1 to {MAX_RECORDS} (TensorFlow Serving refuses more), got "
                f"{self.max_records!r}"
            )
        parameters = self.batching_parameters
        if parameters is not None and not isinstance(parameters, (str, os.PathLike)):
            problems.append(f"batching_parameters must be a path, got {type(parameters).__name__}")
        for name in ("xla", "verify", "method_name", "whole_batches", "freeze"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} must be True or False, got {getattr(self, name)!r}")
        limit = self.freeze_max_bytes
        if limit is not None and (not is_integer(limit, at_least=1) or limit > MAX_FREEZE_BYTES):
            problems.append(
                f"freeze_max_bytes must be 1 to {MAX_FREEZE_BYTES} (a SavedModel proto ends at "
                f"2 GiB), got {limit!r}"
            )
        elif limit is not None and not self.freeze:
            problems.append("freeze_max_bytes needs freeze=True")
        share = self.share_twin_signatures
        if share is not None and not isinstance(share, bool):
            problems.append(f"share_twin_signatures must be True, False or None, got {share!r}")
        seconds = self.max_load_seconds
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0
        ):
            problems.append(f"max_load_seconds must be a number of seconds > 0, got {seconds!r}")
        if self.verify is False and seconds is not None:
            # An option is not accepted and then ignored.
            problems.append(
                f"max_load_seconds={seconds!r} needs the replay that verify=False leaves out"
            )
        problems += self._problems_of_privacy()
        if not is_integer(self.max_bytes, at_least=1):
            problems.append(f"max_bytes must be a positive integer, got {self.max_bytes!r}")
        if not is_integer(self.seed, at_least=0):
            problems.append(f"seed must be an integer >= 0, got {self.seed!r}")
        if self.on_no_data not in ("synthesize", "error"):
            problems.append(f"on_no_data must be 'synthesize' or 'error', got {self.on_no_data!r}")
        if problems:
            raise OptionsError("Bad warmup options: " + "; ".join(problems) + ".")

    def _problems_of_privacy(self) -> list[str]:
        problems = []
        if self.privacy is not None and self.privacy not in PRIVACY_MODES:
            return [f"privacy must be one of {', '.join(PRIVACY_MODES)}, got {self.privacy!r}"]
        if any(not isinstance(name, str) or not name for name in self.redact or ()):
            problems.append(f"redact must hold names of features (str), got {self.redact!r}")
        if self.redact and self.privacy != "redacted":
            problems.append("redact needs privacy='redacted'")
        least = least_privacy()
        if self.privacy == "redacted" and not (self.redact or least.features):
            problems.append("privacy='redacted' needs redact=, the names of the features")
        if self.privacy is not None and PRIVACY_MODES.index(self.privacy) < PRIVACY_MODES.index(
            least.mode
        ):
            problems.append(
                f"privacy={self.privacy!r} was asked for, but {PRIVACY_VARIABLE} in the "
                f"environment allows no less than {least.mode!r}: leave out privacy, or ask who "
                "set it"
            )
        return problems

    def effective_privacy(self) -> Privacy:
        """Returns the mode asked for, or that of the environment where it is more private.

        Raises:
            OptionsError: less was asked for than the environment allows by now.
        """
        problems = self._problems_of_privacy()
        if problems:
            raise OptionsError("Bad warmup options: " + "; ".join(problems) + ".")
        least = least_privacy()
        mode = self.privacy or least.mode
        features = least.features.union(self.redact or ()) if mode == "redacted" else frozenset()
        return Privacy(mode, features)

    @property
    def exact_batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that `batch_sizes` lists; empty for `"auto"` and `None`."""
        sizes = self.batch_sizes
        return tuple(sizes) if sizes is not None and not isinstance(sizes, str) else ()

    def filters_for(self, signature_key: str, outputs: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns the output filters asked of one signature, in the order given.

        Args:
            signature_key: key of the signature.
            outputs: its output aliases.

        Raises:
            OptionsError: a filter keyed to this signature has an output that the signature lacks.
        """
        if self.output_filters is None:
            return []
        if isinstance(self.output_filters, Mapping):
            asked = [tuple(filter_) for filter_ in self.output_filters.get(signature_key, ())]
            for filter_ in asked:
                missing = [alias for alias in filter_ if alias not in outputs]
                if missing:
                    raise OptionsError(
                        f"output_filters for signature {signature_key!r} name {missing}, which it "
                        f"does not have. Its outputs: {sorted(outputs)}."
                    )
        else:
            asked = [tuple(filter_) for filter_ in self.output_filters]
            asked = [filter_ for filter_ in asked if set(filter_) <= set(outputs)]
        return list(dict.fromkeys(asked))


def as_options(warmup: WarmupOptions | Mapping[str, Any] | None) -> WarmupOptions:
    """Reads the `warmup=` argument of the public functions.

    Args:
        warmup: `WarmupOptions`, a mapping of its fields, or `None` for the defaults.

    Raises:
        OptionsError: it is something else, or a field is unknown or out of range.
    """
    if warmup is None:
        return WarmupOptions()
    if isinstance(warmup, WarmupOptions):
        return warmup
    if isinstance(warmup, Mapping):
        return WarmupOptions(**{str(name): value for name, value in warmup.items()})
    raise OptionsError(
        "warmup must be a WarmupOptions, a mapping of its options or None, got "
        f"{type(warmup).__name__}."
    )


def is_integer(value: object, *, at_least: int) -> bool:
    """Returns whether a value is an integer, numpy's included, but no bool, and large enough."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return False
    return int(value) >= at_least


def _read_sequence(
    name: str, items: str, value: Any, problems: list[str]
) -> tuple[Any, ...] | None:
    """Returns a sequence option as a tuple; adds a problem where it is no sequence, or empty."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        problems.append(f"{name} must be {items}, got {value!r}")
        return None
    read = tuple(value)
    if not read:
        problems.append(f"{name} must not be empty; leave it out for the default")
    return read


def _read_filters(filters: Any, problems: list[str]) -> Any:
    """Returns `output_filters` as tuples of tuples, or a dict of them; adds problems."""
    if filters is None:
        return None
    groups = dict(filters) if isinstance(filters, Mapping) else {"": filters}
    read: dict[str, tuple[tuple[str, ...], ...]] = {}
    for key, group in groups.items():
        asked = (
            []
            if isinstance(group, (str, Mapping)) or not isinstance(group, Iterable)
            else list(group)
        )
        if not asked or any(
            isinstance(one, (str, Mapping)) or not isinstance(one, Iterable) for one in asked
        ):
            problems.append(
                "output_filters must hold lists of output aliases, such as [['scores']], got "
                f"{filters!r}"
            )
            return None
        read[key] = tuple(tuple(one) for one in asked)
        for one in read[key]:
            if not one or any(not isinstance(alias, str) for alias in one):
                problems.append(
                    f"output_filters must hold non-empty lists of output aliases, got {list(one)!r}"
                )
            elif len(set(one)) != len(one):
                problems.append(f"output_filters must not name an output twice, got {list(one)!r}")
    return read if isinstance(filters, Mapping) else read[""]
