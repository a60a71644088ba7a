"""Frozen reports: what was written, what was proved, and what the reader should know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

PrivacyMode = Literal["none", "redacted", "synthetic"]
RequestKind = Literal["predict", "classify", "regress", "multi_inference"]
# Names that are printed of variables that stayed in a frozen model; a report holds them all.
_MAX_LISTED_VARIABLES = 3
REQUEST_KINDS: tuple[RequestKind, ...] = ("predict", "classify", "regress", "multi_inference")


class Report:
    """Base of the reports: frozen dataclasses that can be printed with `rich` and made JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as values that `json.dumps` takes."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def _repr_html_(self) -> str:
        """Returns the report as a notebook shows it."""
        import io

        from rich.console import Console

        console = Console(record=True, file=io.StringIO(), width=120)
        console.print(self)
        style = "white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace"
        return console.export_html(
            inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>'
        )


@dataclasses.dataclass(frozen=True)
class RecordReport(Report):
    """One record of a warmup file.

    Attributes:
        signature_key: the signature it runs; for MultiInference the tasks' keys joined by `+`.
        kind: the request kind.
        batch_size: number of rows; `None` where the inputs have no batch dimension.
        shapes: input name -> shape.
        output_filter: output aliases asked for; empty means all outputs.
        source: where its rows come from: `captured`, `data`, `synthetic`, or `log` for a record
            that the file already held.
        bytes: serialized size of the record.
        replay_ms: wall time of its first replay in a fresh Session, milliseconds; `None` where it
            was not replayed.
        warms: keys of the signatures whose first request it makes fast.
        real_features: names of its features that hold real values: inputs of the signature, or
            features of serialized Examples.
    """

    signature_key: str
    kind: RequestKind
    batch_size: int | None
    shapes: Mapping[str, tuple[int, ...]]
    output_filter: tuple[str, ...]
    source: str
    bytes: int
    replay_ms: float | None = None
    warms: tuple[str, ...] = ()
    real_features: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FrozenVariables(Report):
    """The variables of a frozen model: constants, or still variables, and why.

    Attributes:
        constants: number of variables that are constants now.
        constant_bytes: their size.
        variables: name of each variable that stayed -> the reason.
        variable_bytes: their size.
    """

    constants: int
    constant_bytes: int
    variables: Mapping[str, str]
    variable_bytes: int

    def lines(self) -> list[str]:
        """Returns what to print: one line for the constants, and one for each reason."""
        names_of: dict[str, list[str]] = {}
        for name, why in self.variables.items():
            names_of.setdefault(why, []).append(name)
        lines = [
            f"{self.constants} variables are constants ({self.constant_bytes} bytes), "
            f"{len(self.variables)} stayed variables ({self.variable_bytes} bytes)"
        ]
        for why, names in names_of.items():
            shown = ", ".join(map(repr, names[:_MAX_LISTED_VARIABLES]))
            more = ", ..." if len(names) > _MAX_LISTED_VARIABLES else ""
            lines.append(f"{len(names)} stayed because {why}: {shown}{more}")
        return lines


@dataclasses.dataclass(frozen=True)
class WarmupReport(Report):
    """The result of an export.

    Attributes:
        export_dir: the published SavedModel.
        warmup_path: its warmup file; `None` where no record could be written.
        records: the records of the file, in the order the server replays them.
        proofs: signature_key -> `proved`, or why the binding was not proved against the model.
        skipped: signature_key -> why no record warms it.
        casts: input name -> cast applied to the data, such as `float64 -> float32`.
        ignored_features: features of the data that no signature takes.
        shape_coverage: signature_key -> share of the shapes seen, 0 to 1, that have a record; only
            where a shape needs a record of its own.
        notes: what the reader should know, one sentence each.
        synthetic: whether any record holds made-up rows.
        synthetic_reasons: signature_key -> why its rows are made up although `fit` saw batches.
        seed: the seed of the choice of rows.
        verified: whether every record was replayed before publishing.
        random_signatures: keys of signatures that give other outputs for an equal request.
        training_serving_skew: signature_key -> names of the inputs that `fit` filled with other
            features than the signature does: training and serving disagree.
        real_rows: number of real rows in the records, an upper bound; records that were kept do not
            count.
        real_features: names of the features of the records that hold real values.
        privacy: the privacy mode: `none`, `redacted` or `synthetic`.
        redacted: names of features, of which no record holds a real value.
        not_found: names of features that were to be redacted, but that no row has.
        cold: why the model has no warmup file; empty where it has one, or no signature that a
            request can reach.
        published: whether anything was published.
        frozen: which variables are constants; `None` where the model is not frozen.
        shared_signatures: signature_key -> the twin whose tensors it uses since this export.
        load_added_ms: sum of the replays, a lower bound of the load time that the file adds (the
            process that replays is warm already); `None` where nothing was replayed.
        load_ms: time to load the SavedModel into the Session that replayed it, milliseconds;
            TensorFlow's graph optimizer is left out of it where that makes no difference.
    """

    export_dir: str
    warmup_path: str | None
    records: tuple[RecordReport, ...]
    proofs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    casts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored_features: tuple[str, ...] = ()
    shape_coverage: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    synthetic: bool = False
    synthetic_reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0
    verified: bool = True
    shared_signatures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    load_added_ms: float | None = None
    load_ms: float | None = None
    random_signatures: tuple[str, ...] = ()
    training_serving_skew: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    real_rows: int = 0
    real_features: tuple[str, ...] = ()
    privacy: PrivacyMode = "none"
    redacted: tuple[str, ...] = ()
    not_found: tuple[str, ...] = ()
    cold: str = ""
    published: bool = True
    frozen: FrozenVariables | None = None

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        lines = (
            [records_table(self.records, f"warmup records of {self.export_dir}")]
            if self.records
            else []
        )
        texts = [] if self.records else [f"no warmup records in {self.export_dir}"]
        texts += [f"proof {key}: {proof}" for key, proof in self.proofs.items()]
        texts += [f"cold {key}: {why}" for key, why in self.skipped.items()]
        texts += [f"cast {name}: {cast}" for name, cast in self.casts.items()]
        texts += [
            f"shared {key}: uses the tensors of {kept}"
            for key, kept in self.shared_signatures.items()
        ]
        texts += [
            f"shapes {key}: {share:.0%} of those seen are covered"
            for key, share in self.shape_coverage.items()
        ]
        texts += [
            f"random {key}: an equal request gives other outputs" for key in self.random_signatures
        ]
        texts += [
            f"skew {key}: fit fed other features to {', '.join(names)} than requests do"
            for key, names in self.training_serving_skew.items()
        ]
        if self.frozen is not None:
            texts += [f"frozen: {line}" for line in self.frozen.lines()]
        if self.cold and not self.skipped:
            texts.append(f"cold: {self.cold}")
        texts += [f"note: {note}" for note in self.notes]
        # A note may quote an error of several lines.
        return Group(
            *lines, *(Text("\n".join(map(printable, text.splitlines()))) for text in texts)
        )


@dataclasses.dataclass(frozen=True)
class RecordList(Report):
    """The records of a warmup file, without their values.

    Attributes:
        warmup_path: the file.
        records: in the order the server replays them. What neither the file nor its manifest
            records (`replay_ms`, `warms`; without a manifest also `source` and `real_features`) is
            empty.
        truncated: whether the file holds more records than are listed.
        privacy: the privacy mode that the manifest tells; empty where it is not known.
    """

    warmup_path: str
    records: tuple[RecordReport, ...]
    truncated: bool = False
    privacy: str = ""

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        lines = [self._real_data()]
        if self.truncated:
            lines.append(
                f"only the first {len(self.records)} records are listed; the file holds more"
            )
        return Group(
            records_table(self.records, self.warmup_path),
            Text("\n".join(map(printable, lines))),
        )

    def _real_data(self) -> str:
        real = sorted({name for record in self.records for name in record.real_features})
        if not self.privacy:
            return "real values: not known, there is no manifest that describes this file"
        return f"privacy: {self.privacy}; features with real values: {', '.join(real) or '-'}"


@dataclasses.dataclass(frozen=True)
class ConversionReport(Report):
    """The changes made to a SavedModel that exists, and how the result was compared with it.

    Attributes:
        export_dir: the changed SavedModel; the source where nothing was changed.
        source: the SavedModel that was read.
        changes: what was changed, one sentence each; empty where nothing was.
        bytes_before: size of the files of the source, bytes.
        bytes_after: size of the files of the result, bytes.
        num_records: number of records of the warmup file, which was kept.
        comparisons: signature_key -> how its outputs were compared with those of the source, or
            `not compared: ` and the reason. Empty where nothing was changed.
        notes: what the reader should know, one sentence each.
        frozen: which variables are constants; `None` where the model was not frozen.
    """

    export_dir: str
    source: str
    changes: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    num_records: int = 0
    comparisons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    frozen: FrozenVariables | None = None

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        lines = [f"changed: {change}" for change in self.changes]
        lines += [f"outputs {key}: {how}" for key, how in self.comparisons.items()]
        lines += [f"note: {note}" for note in self.notes]
        if self.changes:
            lines.append(f"warmup records kept: {self.num_records}")
            lines.append(f"{self.export_dir}: {self.bytes_after} bytes, was {self.bytes_before}")
        else:
            lines.append(f"{self.export_dir}: nothing to change")
        return Text("\n".join(map(printable, lines)))


def count_real_rows(records: Sequence[RecordReport]) -> int:
    """Returns the number of rows in records with real values, an upper bound."""
    return sum(record.batch_size or 1 for record in records if record.real_features)


def _lines_of(signature_key: str) -> list[str]:
    """Returns the tasks of a MultiInference, one on each line."""
    first, *others = signature_key.split("+")
    return [first, *(f"+ {key}" for key in others)]


def records_table(records: Sequence[RecordReport], title: str) -> Table:
    """Returns a table with a row for each record.

    Args:
        records: the records.
        title: title of the table.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, not str: rich reads a str as markup, and names may hold brackets.
    table = Table(
        title=Text(printable(title)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    filtered = any(record.output_filter for record in records)
    names = [
        "signature",
        "kind",
        "inputs",
        *(["outputs"] if filtered else []),
        "rows",
        "bytes",
        "replay ms",
    ]
    for name in names:
        # The table must stay readable in 80 columns: only shapes and outputs fold.
        table.add_column(
            name,
            justify="right" if name in ("bytes", "replay ms") else "left",
            no_wrap=name not in ("inputs", "outputs"),
        )
    for record in records:
        also = [key for key in record.warms if key != record.signature_key]
        shapes = [f"{name} {list(shape)}" for name, shape in record.shapes.items()]
        cells: list[list[str]] = [
            [*_lines_of(record.signature_key), *(f"also {key}" for key in also)],
            [record.kind or ""],  # a record of the file may have no kind
            shapes,
            *([[", ".join(record.output_filter) or "all"]] if filtered else []),
            [record.source or "-"],
            [str(record.bytes)],
            ["-" if record.replay_ms is None else f"{record.replay_ms:.1f}"],
        ]
        table.add_row(*(Text("\n".join(map(printable, lines))) for lines in cells))
    return table


def printable(name: str) -> str:
    """Returns a text of a file with control characters and lone surrogates escaped.

    Control characters steer terminals.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in name
    )


def to_plain(report: Any) -> Any:
    """Converts reports and their contents into dicts, lists and scalars for `json.dumps`."""
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        return {
            field.name: to_plain(getattr(report, field.name))
            for field in dataclasses.fields(report)
        }
    if isinstance(report, Mapping):
        return {str(key): to_plain(value) for key, value in report.items()}
    if isinstance(report, (list, tuple)):
        return [to_plain(item) for item in report]
    if isinstance(report, (set, frozenset)):
        return sorted(to_plain(item) for item in report)
    return report
