"""Measures the first request to each model of a zoo: with no warmup file, common ones, and ours.

    python benchmarks/first_request.py --output benchmarks/results

Writes first_request.json, first_request.png and first_request.md to the output directory; with
`--readme` also a short table into the README and the full one into docs/benchmarks.md beside it.
Each figure is the median of fresh processes that take turns; clients send a batch of 4 rows that no
warmup file holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from first_request_report import (
    APART,
    BATCH_1,
    COPIES,
    DEFAULT_ONLY,
    NONE,
    OURS,
    SMALLEST,
    claims_of,
    is_warm,
    legend_of,
    read_results,
    table_of,
    update_tables,
    write_results,
)
from zoo import CLIENT_BATCH, SCORE, ZOO, Specimen, batches_of

import keras_warmup as kw
from keras_warmup.bench.plot import new_figure
from keras_warmup.bench.probes import Probe, plan_probes
from keras_warmup.bench.processes import ProcessEngine, RunTiming, Timings
from keras_warmup.errors import OptionsError
from keras_warmup.options import WarmupOptions
from keras_warmup.pipeline.bind_signatures import ExportInputs, bind_signatures
from keras_warmup.planning.bound_signature import BoundSignature
from keras_warmup.planning.planned_request import PlannedRequest
from keras_warmup.records.build import build_log
from keras_warmup.records.warmup_file import read_records, warmup_path, write_records
from keras_warmup.savedmodel.signatures import read_meta_graph, read_signatures

EXAMPLE = """example:
  python benchmarks/first_request.py --output benchmarks/results
  python benchmarks/first_request.py --output benchmarks/results --readme README.md
  python benchmarks/first_request.py --models MLP LSTM --processes 3 --output /tmp/first_request
"""
RESULTS = "benchmarks/results"


@dataclasses.dataclass
class Variant:
    """A SavedModel with a warmup file, and its timings.

    Attributes:
        name: name of the warmup file in tables.
        export_dir: the SavedModel.
        file: the warmup file to replay; `None` for none.
        records: number of records in it.
        samples: for each probe, the timings of its processes.
    """

    name: str
    export_dir: str
    file: str | None
    records: int
    samples: list[list[RunTiming]] = dataclasses.field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of the warmup file; 0 without one."""
        return 0 if self.file is None else os.path.getsize(self.file)

    def first(self, probe: int) -> Timings:
        """Returns the timings of the first requests of a probe."""
        return Timings(tuple(sample.request_ms[0] for sample in self.samples[probe]))

    @property
    def load_added(self) -> Timings:
        """Timings of the replay of the whole file."""
        return Timings(tuple(sum(sample.replay_ms) for group in self.samples for sample in group))


def measure(specimen: Specimen, directory: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Exports a model in its variants and measures them; returns the figures, ready for JSON."""
    keras.utils.set_random_seed(0)
    model = specimen.build()
    plain = os.path.join(directory, "plain", "1")
    specimen.export(model, plain)
    data = specimen.rows(64, 1)
    variants = [Variant(NONE, plain, None, 0), *ours_of(specimen, model, directory, data)]
    meta_graph = read_meta_graph(plain)
    probes = probes_of(specimen, meta_graph, variants[-1].export_dir)
    candidates = bind_signatures(
        meta_graph, read_signatures(meta_graph), ExportInputs(batches_of(data)), WarmupOptions()
    ).bound
    # `serving_default` first: it serves clients that name no signature, and tutorials warm it.
    candidates.sort(key=lambda one: one.signature.key != "serving_default")
    ones = [request_of(candidate, 1) for candidate in candidates]
    variants[1:1] = [
        variant_of(DEFAULT_ONLY, plain, directory, ones[:1]),
        variant_of(BATCH_1, plain, directory, ones),
        variant_of(COPIES, plain, directory, ones[:1] * 100),
    ]
    if not arguments.no_trial:
        ours = next(variant for variant in variants if variant.name == OURS)
        # On the warm export, whose signatures share tensors where they can: fewest records suffice.
        variants.append(smallest_by_trial(specimen, ours.export_dir, directory, candidates, probes))
    for turn in range(arguments.processes):
        for index, probe in enumerate(probes):
            order = variants[turn % len(variants) :] + variants[: turn % len(variants)]
            for variant in order if index % 2 == 0 else reversed(order):
                variant.samples += [[] for _ in range(len(probes) - len(variant.samples))]
                variant.samples[index].append(sample(variant, probe, arguments.requests + 1))
        print(
            f"{specimen.name}: turn {turn + 1} of {arguments.processes}",
            file=sys.stderr,
            flush=True,
        )
    return summary_of(specimen, variants, probes)


def ours_of(specimen: Specimen, model: keras.Model, directory: str, data: Any) -> list[Variant]:
    """Makes the warm export, and one with twin signatures left apart where that differs."""
    options = specimen.options(**({"batch_sizes": [CLIENT_BATCH]} if specimen.sizes_matter else {}))
    made: list[Variant] = []
    for name, shared in ((OURS, True), (APART, False)):
        path = os.path.join(directory, name.replace(" ", "_"), "1")
        options["share_twin_signatures"] = shared
        report = kw.export_with_warmup(
            model, path, data=data, warmup=options, export_fn=specimen.export_fn
        )
        if made and len(report.records) == made[0].records:
            continue
        made.append(Variant(name, path, warmup_path(path), len(report.records)))
    return made


def probes_of(specimen: Specimen, meta_graph: Any, export_dir: str) -> list[Probe]:
    """Plans the requests: each signature and output set of our file, with rows no file holds."""
    logs = list(read_records(export_dir))
    probes, notes = plan_probes(
        meta_graph, logs, batches=batches_of(specimen.rows(64, 2)), batch_sizes=[CLIENT_BATCH]
    )
    asked = [probe for probe in probes if probe.batch_size == CLIENT_BATCH]
    if not asked or any(probe.rows != "data" for probe in asked):
        raise SystemExit(
            f"{specimen.name}: no request, or none with rows of the data, can be made: {notes}"
        )
    return asked


def request_of(candidate: BoundSignature, size: int) -> Any:
    """Builds a record of the first rows bound to a signature."""
    picks = tuple((0, row) for row in range(size))
    request = PlannedRequest(
        candidate.signature.key, candidate.kinds[0], tuple(candidate.batches[:1]), picks, (), ()
    )
    return build_log(request, "model")


def variant_of(name: str, export_dir: str, directory: str, logs: Sequence[Any]) -> Variant:
    """Writes a warmup file of these records for a SavedModel."""
    path = os.path.join(directory, f"{name.replace(' ', '_').replace(',', '')}.tfrecord")
    write_records(path, logs, max_records=1000, max_bytes=2**30)
    return Variant(name, export_dir, path, len(logs))


def sample(variant: Variant, probe: Probe, count: int) -> RunTiming:
    """Measures in one fresh process."""
    return ProcessEngine(variant.export_dir).time_run(probe.logs, count, variant.file)


def smallest_by_trial(
    specimen: Specimen,
    export_dir: str,
    directory: str,
    candidates: Sequence[BoundSignature],
    probes: Sequence[Probe],
) -> Variant:
    """Finds, by trial alone, a set of records that warms every probe and needs each of them.

    Starts from records of batch 1 and 2 (or the clients' size) for each signature and output set,
    and removes one after the other where all probes stay warm without it.
    """
    records: list[tuple[str, tuple[str, ...], Any]] = []
    for size in (1, CLIENT_BATCH if specimen.sizes_matter else 2):
        for candidate in candidates:
            log = request_of(candidate, size)
            records.append((candidate.signature.key, (), log))
            if SCORE[0] in candidate.signature.outputs and candidate.kinds[0] == "predict":
                filtered = type(log)()
                filtered.CopyFrom(log)
                filtered.predict_log.request.output_filter.extend(SCORE)
                records.append((candidate.signature.key, tuple(SCORE), filtered))
    if not _all_warm(
        variant_of(SMALLEST, export_dir, directory, [log for _, _, log in records]), probes
    ):
        raise SystemExit(
            f"{specimen.name}: some requests are cold even with all records. Is the machine busy?"
        )
    for one in list(records):
        rest = [other for other in records if other is not one]
        # The probe of the removed record first: it is the most likely to be cold.
        ordered = sorted(
            probes, key=lambda probe: (probe.signature_key, probe.output_filter) != one[:2]
        )
        if rest and _all_warm(
            variant_of(SMALLEST, export_dir, directory, [log for _, _, log in rest]), ordered
        ):
            records = rest
    print(f"{specimen.name}: records that suffice: {len(records)}", file=sys.stderr, flush=True)
    return variant_of(SMALLEST, export_dir, directory, [log for _, _, log in records])


def _all_warm(variant: Variant, probes: Sequence[Probe]) -> bool:
    return all(_warm_in(variant, probe) for probe in probes)


def _warm_in(variant: Variant, probe: Probe) -> bool:
    """Returns whether the probe is warm in one of two processes: one outlier rules nothing out."""
    for _ in range(2):
        first, *later = sample(variant, probe, 12).request_ms
        if is_warm(first, Timings(tuple(later)).median):
            return True
    return False


def summary_of(
    specimen: Specimen, variants: Sequence[Variant], probes: Sequence[Probe]
) -> dict[str, Any]:
    """Sums up the figures of one model, ready for JSON."""
    steady = [
        Timings(
            tuple(
                ms
                for variant in variants
                for one in variant.samples[index]
                for ms in one.request_ms[1:]
            )
        ).median
        for index in range(len(probes))
    ]
    rows = []
    for variant in variants:
        firsts = [variant.first(index) for index in range(len(probes))]
        rows.append(
            {
                "file": variant.name,
                "records": variant.records,
                "bytes": variant.bytes,
                "first_ms": [figures.median for figures in firsts],
                "first_range_ms": [list(figures.range) for figures in firsts],
                "load_added_ms": variant.load_added.median if variant.file else 0.0,
                "load_added_range_ms": list(variant.load_added.range)
                if variant.file
                else [0.0, 0.0],
                "warm": [
                    is_warm(figures.median, ms) for figures, ms in zip(firsts, steady, strict=True)
                ],
            }
        )
    return {
        "model": specimen.name,
        "probes": [
            {
                "signature_key": one.signature_key,
                "kind": one.kind,
                "output_filter": list(one.output_filter),
            }
            for one in probes
        ],
        "steady_ms": steady,
        "files": rows,
    }


def main() -> int:
    """Measures the models and writes the results; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [specimen.name for specimen in ZOO]
    parser.add_argument(
        "--output", default=RESULTS, help="directory to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names)
    )
    parser.add_argument(
        "--processes", type=int, default=5, help="fresh processes for each figure (default: 5)"
    )
    parser.add_argument(
        "--requests", type=int, default=20, help="requests after the first one (default: 20)"
    )
    parser.add_argument(
        "--no-trial",
        action="store_true",
        help="do not look for the smallest sufficient set of records",
    )
    parser.add_argument(
        "--readme",
        metavar="FILE",
        help="also write the results into this README, and docs/benchmarks.md beside it",
    )
    parser.add_argument(
        "--redraw",
        action="store_true",
        help="measure nothing: render the results in --output again",
    )
    arguments = parser.parse_args()
    if set(arguments.models) != set(names) and (arguments.readme or arguments.output == RESULTS):
        parser.error("--models measures some of the zoo: give another --output, and no --readme.")
    try:
        new_figure(1)  # Fails without matplotlib, before the first model is measured.
    except OptionsError as error:
        parser.error(str(error))
    warnings.simplefilter("ignore")
    os.makedirs(arguments.output, exist_ok=True)
    if arguments.redraw:
        found = read_results(arguments.output)
        results, about = found["results"], found["about"]
        write_results(results, about, arguments.output)
    else:
        results = run_zoo(arguments)
    if arguments.readme:
        about = read_results(arguments.output)["about"]
        update_tables(results, about["cpus"], arguments.readme)
    print(table_of(results) + "\n" + legend_of(results) + "\n" + "\n".join(claims_of(results)))
    return 0


def run_zoo(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one model after the other; returns the figures of all."""
    started = time.perf_counter()
    results: list[dict[str, Any]] = []
    for specimen in ZOO:
        if specimen.name in arguments.models:
            with tempfile.TemporaryDirectory(prefix="keras-warmup-zoo-") as directory:
                results.append(measure(specimen, directory, arguments))
            # After each model, since a run takes long and may be interrupted.
            write_results(
                results, about_run(arguments, time.perf_counter() - started), arguments.output
            )
    return results


def about_run(arguments: argparse.Namespace, seconds: float) -> Mapping[str, Any]:
    """Returns the machine, versions and settings of a run."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "processes": arguments.processes,
        "client_batch_size": CLIENT_BATCH,
        "seconds": round(seconds),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
