"""The commands and options of `keras-warmup`."""

from __future__ import annotations

import argparse
from typing import Any, Literal

from keras_warmup._version import __version__
from keras_warmup.options import DEFAULT_FREEZE_MAX_BYTES, PRIVACY_MODES
from keras_warmup.report import REQUEST_KINDS
from keras_warmup.serving.worker import DEFAULT_TIMEOUT_S

_INSPECT_EXAMPLES = """example:
  keras-warmup inspect ./digits/1
"""
_ADD_EXAMPLES = """examples:
  keras-warmup add ./digits/1 --data rows.npz     # arrays named as the model's inputs, rows first
  keras-warmup add ./digits/1 --data rows.npz --batch-size 1 --batch-size 32
  keras-warmup add ./digits/1                     # rows made up from the signatures, with a warning

Write an .npz file with numpy.savez("rows.npz", image=images[:8]).
"""
_VERIFY_EXAMPLES = """examples:
  keras-warmup verify ./digits/1 && mv ./digits/1 /models/digits/1
  keras-warmup verify ./digits/1 --no-real-rows           # in a pipeline with compliance duties
  keras-warmup verify ./unknown/1 --refuse-unsafe-ops --timeout 60 --memory-limit 2048

The model runs in a process of its own: if TensorFlow crashes, hangs or runs out of memory, the
report says so. The process is not a sandbox: a SavedModel is a program, and runs with your rights
(see SECURITY.md).

Exit code 0: TensorFlow Serving would load the model and replay every record. Exit code 1: it would
not, there is no warmup file, or the file was made for another model.
"""
_BENCH_EXAMPLES = """examples:
  keras-warmup bench ./digits/1                           # in fresh processes
  keras-warmup bench ./digits/1 --data rows.npz --plot digits.png
  keras-warmup bench ./digits/1 --against ./plain/1       # time to ready of both
  keras-warmup bench ./digits/1 --model-server /usr/bin/tensorflow_model_server
  keras-warmup bench ./digits/1 --docker tensorflow/serving:2.19.1
  keras-warmup bench ./digits/1 --server localhost:8500   # a running server: its gRPC port
"""
_MINIMIZE_EXAMPLES = """examples:
  keras-warmup minimize ./digits/1
  keras-warmup minimize ./digits/1 --dry-run    # report the records, leave the file as it is

A record warms nothing new if its replay takes no longer than the same request later. Where the
noise of the machine does not allow a decision, the record is kept.
"""
_FREEZE_EXAMPLES = """examples:
  keras-warmup freeze ./digits/1 --output ./frozen/1
  keras-warmup freeze ./digits/1 --max-bytes 100000000    # larger variables stay variables

The result serves the same signatures, and cannot be trained further. Without --output it replaces
EXPORT_DIR in one step, once its outputs have been compared.
"""
_REDACT_EXAMPLES = """examples:
  keras-warmup redact ./digits/1                                  # no real value is left
  keras-warmup redact ./ranker/1 --privacy redacted --redact user_id --redact name

Values are replaced by others of the same dtype, shape and length. The new records are replayed
before the file is replaced, and assets.extra/keras_warmup.json says what real data is left.
"""
_METHOD_NAMES_EXAMPLES = """example:
  keras-warmup method-names ./taxi/1   # for servers with --enable_signature_method_name_check
"""
_REPAIR_EXAMPLES = """examples:
  keras-warmup repair ./digits/1                        # in place, in one step
  keras-warmup repair ./digits/1 --output ./digits/2

Repairs what Keras 3 writes: weights that are stored twice (model.export, ExportArchive), and
variables that no server restores ("Could not find variable": tf.saved_model.save of a Keras model).
The outputs are compared before anything is published, and the warmup file is kept. Where there is
nothing to repair, nothing is written and the exit code is 0.
"""
_RUN_EXAMPLES = """examples:
  keras-warmup run train.py --epochs 10
  keras-warmup run --privacy synthetic train.py
  keras-warmup run -m trainer.task --export-dir ./digits/1

The script is not changed. Model.fit remembers some batches; Model.export, ExportArchive.write_out
and tf.saved_model.save publish what they write with its warmup file (keras_warmup.enable). Where a
warmup fails, the model is written as without it, with a warning. Options of run come before SCRIPT.
The exit code is the script's.
"""
_RECORDS_EXAMPLES = """example:
  keras-warmup records ./digits/1 --json | jq '.records[].signature_key'
"""


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line; it puts the name of the command into `command`."""
    parser = argparse.ArgumentParser(
        prog="keras-warmup",
        description="Warmup files for TensorFlow Serving: no slow first request to a freshly "
        "loaded model.",
    )
    parser.add_argument("--version", action="version", version=f"keras-warmup {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    _add_command(
        commands,
        "inspect",
        "show the signatures of a SavedModel and what matters for warmup; runs no graph",
        _INSPECT_EXAMPLES,
    )
    _add_options_of_add(
        _add_command(
            commands, "add", "write the warmup file of an existing SavedModel", _ADD_EXAMPLES
        )
    )
    _add_options_of_bench(
        _add_command(
            commands,
            "bench",
            "measure the time to ready and the first request, without and with the warmup file",
            _BENCH_EXAMPLES,
        )
    )
    _add_options_of_minimize(
        _add_command(
            commands,
            "minimize",
            "measure which records warm nothing new, and drop them",
            _MINIMIZE_EXAMPLES,
        )
    )
    _add_options_of_verify(
        _add_command(
            commands,
            "verify",
            "replay the warmup file as TensorFlow Serving does at load",
            _VERIFY_EXAMPLES,
        )
    )
    _add_options_of_repair(
        _add_command(
            commands,
            "repair",
            "store doubled weights once, and restore the variables that signatures read",
            _REPAIR_EXAMPLES,
        )
    )
    _add_options_of_freeze(
        _add_command(
            commands,
            "freeze",
            "make a SavedModel serving-only: its variables become constants, which load faster",
            _FREEZE_EXAMPLES,
        )
    )
    _add_options_of_redact(
        _add_command(
            commands,
            "redact",
            "replace the real values in a warmup file",
            _REDACT_EXAMPLES,
        )
    )
    _add_command(
        commands,
        "method-names",
        "give Classify and Regress signatures their own method names, in place",
        _METHOD_NAMES_EXAMPLES,
    )
    _add_run(commands)
    _add_command(
        commands,
        "records",
        "list the records of a warmup file, without their values",
        _RECORDS_EXAMPLES,
    )
    return parser


def _add_run(commands: Any) -> None:
    summary = "run a Python script with warmup files for all that it exports"
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="keras-warmup run [options] (SCRIPT | -m MODULE) [ARGUMENT ...]",
        allow_abbrev=False,  # the script may have options that begin alike
    )
    parser.add_argument(
        "--freeze", action="store_true", help="export serving-only models, which load faster"
    )
    _add_warmup_options(parser, "rows")
    parser.add_argument(
        "-m", dest="is_module", action="store_true", help="run a module, as python -m does"
    )
    parser.add_argument("script", metavar="SCRIPT", help="the script, or with -m the module")
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="ARGUMENT",
        help="arguments of the script",
    )


def _add_command(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "export_dir",
        metavar="EXPORT_DIR",
        help="a SavedModel (version directory), local or remote",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _batch_size(value: str) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer or auto, got {value!r}") from None


def _add_options_of_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="rows to warm with: .npz (an array per input) or a TFRecord of tf.Examples",
    )
    parser.add_argument("--append", action="store_true", help="keep the records in the file")
    _add_warmup_options(parser, "the rows of FILE")
    _add_refuse_unsafe_ops(parser)


def _add_warmup_options(parser: argparse.ArgumentParser, rows: str) -> None:
    """Adds the options that are fields of `WarmupOptions`; `rows` names the rows to send."""
    parser.add_argument(
        "--signature",
        action="append",
        metavar="KEY",
        help="warm only this signature; may be repeated",
    )
    parser.add_argument(
        "--kind",
        action="append",
        metavar="KIND",
        choices=REQUEST_KINDS,
        help=f"write this request kind ({', '.join(REQUEST_KINDS)}); may be repeated",
    )
    parser.add_argument(
        "--batch-size",
        action="append",
        type=_batch_size,
        metavar="N|auto",
        help=f"warm exactly this batch size; may be repeated; auto: 1, 4, 16, ... up to {rows}, "
        "for signatures whose other sizes stay slow",
    )
    parser.add_argument(
        "--whole-batches",
        action="store_true",
        help=f"send all {rows.removeprefix('the ')} as one request (inputs that differ in their "
        "first dimension)",
    )
    parser.add_argument(
        "--output-filter",
        action="append",
        metavar="A,B",
        help="also warm this set of outputs; may be repeated",
    )
    parser.add_argument(
        "--batching-parameters",
        metavar="FILE",
        help="the server's --batching_parameters_file: one record for each allowed batch size",
    )
    parser.add_argument(
        "--xla",
        action="store_true",
        help="also warm signatures that compile with XLA (the server needs its flag)",
    )
    parser.add_argument(
        "--share-twins",
        action="store_true",
        help="let signatures that are the same function use the same tensors",
    )
    parser.add_argument(
        "--privacy",
        choices=PRIVACY_MODES,
        help="none: the records hold real rows; redacted: without the values of the features in "
        "--redact; synthetic: without any real value (default: KERAS_WARMUP_PRIVACY, else none)",
    )
    parser.add_argument(
        "--redact",
        action="append",
        metavar="NAME",
        help="with --privacy redacted, a feature to replace; may be repeated",
    )
    parser.add_argument(
        "--model-name",
        metavar="NAME",
        help="model name in the requests (default: the name of the base path)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the choice of rows (default: 0)"
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="do not replay the records before they are published",
    )


def _add_options_of_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="rows to send, as for add (default: the rows of the file in another order)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=5,
        metavar="N",
        help="fresh processes for each figure (default: 5)",
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=20,
        metavar="N",
        help="requests after the first one (default: 20)",
    )
    parser.add_argument(
        "--batch-size",
        action="append",
        type=int,
        metavar="N",
        help="also measure this batch size; may be repeated",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="also write a plot (needs matplotlib: keras-warmup[plot])",
    )
    parser.add_argument(
        "--against",
        metavar="OTHER_EXPORT_DIR",
        help="also measure the time to ready of this export of the model, such as model.export "
        "writes it; with the warmup file of EXPORT_DIR if it has none",
    )
    servers = parser.add_mutually_exclusive_group()
    servers.add_argument(
        "--server", metavar="HOST:PORT", help="use a running server; its gRPC port"
    )
    servers.add_argument(
        "--model-server",
        nargs="?",
        const="",
        metavar="PATH",
        help="start this tensorflow_model_server (default: the one that "
        "KERAS_WARMUP_MODEL_SERVER or PATH names)",
    )
    servers.add_argument(
        "--docker",
        nargs="?",
        const="tensorflow/serving",
        metavar="IMAGE",
        help="start the server in this image (default: tensorflow/serving)",
    )
    parser.add_argument(
        "--model-name",
        metavar="NAME",
        help="name the server serves the model by (default: the name of the base path)",
    )
    parser.add_argument(
        "--server-arg",
        action="append",
        default=[],
        metavar="FLAG",
        help="another flag for the started server; may be repeated",
    )
    _add_refuse_unsafe_ops(parser)


def _add_options_of_minimize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="only report the records, do not drop them"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=3,
        metavar="N",
        help="fresh processes for each figure, three or more (default: 3)",
    )
    _add_refuse_unsafe_ops(parser)


def _add_options_of_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="longest time for loading the model and for each record "
        f"(default: {DEFAULT_TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--memory-limit",
        type=int,
        metavar="MIB",
        help="memory the model may allocate, beside what TensorFlow itself takes (Linux only; "
        "default: no limit)",
    )
    parser.add_argument(
        "--no-real-rows",
        action="store_true",
        help="fail where the warmup file holds real values, or may hold some",
    )
    _add_refuse_unsafe_ops(parser)


def _add_options_of_repair(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    _add_refuse_unsafe_ops(parser)


def _add_options_of_freeze(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "--max-bytes",
        type=int,
        default=DEFAULT_FREEZE_MAX_BYTES,
        metavar="N",
        help="largest size of the constants; the largest variables stay variables until the others "
        f"fit (default: {DEFAULT_FREEZE_MAX_BYTES})",
    )
    _add_refuse_unsafe_ops(parser)


def _add_options_of_redact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--privacy",
        choices=PRIVACY_MODES[1:],
        default="synthetic",
        help="replace the values of some features, or all values (default: synthetic)",
    )
    parser.add_argument(
        "--redact",
        action="append",
        metavar="NAME",
        help="with --privacy redacted, a feature to replace; may be repeated",
    )
    _add_refuse_unsafe_ops(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="publish to this version directory; may hold {version} (default: replace EXPORT_DIR)",
    )


def _add_refuse_unsafe_ops(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--refuse-unsafe-ops",
        action="store_true",
        help="run nothing if the model has ops that touch files, network or processes "
        "(default: warn)",
    )
