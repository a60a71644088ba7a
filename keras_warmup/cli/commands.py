"""`keras-warmup inspect | add | verify | bench | records | method-names`: faces that parse, call, print and return an exit code.

Exit codes: 0 good, 1 the check failed, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_warmup._version import __version__
from keras_warmup.cli.console import measuring, plain_warnings, say, show_report, working
from keras_warmup.errors import DataError, OptionsError, WarmupError
from keras_warmup.report import REQUEST_KINDS
from keras_warmup.serving.worker import DEFAULT_TIMEOUT_S, start_worker

if TYPE_CHECKING:
    from keras_warmup.bench.minimize import MinimizeReport

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
# What a shell gives a command that Ctrl-C ended.
EXIT_INTERRUPTED = 130

_INSPECT_EXAMPLE = """example:
  keras-warmup inspect ./digits/1
"""
_ADD_EXAMPLE = """examples:
  keras-warmup add ./digits/1 --data rows.npz        # arrays named as the model's inputs, rows first
  keras-warmup add ./digits/1 --data rows.npz --batch-size 1 --batch-size 32
  keras-warmup add ./digits/1                        # rows made up from the signatures, with a warning

An .npz file is written by numpy.savez("rows.npz", image=images[:8]).
"""
_VERIFY_EXAMPLE = """examples:
  keras-warmup verify ./digits/1 && mv ./digits/1 /models/digits/1
  keras-warmup verify ./unknown/1 --refuse-unsafe-ops --timeout 60 --memory-limit 2048

The model is run in a process of its own: where TensorFlow crashes on it, hangs or runs out of memory, that is a failure in
the report. It is no sandbox: a SavedModel is a program, and runs with your rights (see SECURITY.md).

Exit code 0: TensorFlow Serving would load the model and replay every record; 1: it would not, or there is no warmup file.
"""
_REQUESTS = 20
_BENCH_EXAMPLE = """examples:
  keras-warmup bench ./digits/1                                   # fresh processes, without and with the warmup file
  keras-warmup bench ./digits/1 --data rows.npz --plot digits.png
  keras-warmup bench ./digits/1 --minimize                        # which records warm nothing new
  keras-warmup bench ./digits/1 --model-server /usr/bin/tensorflow_model_server
  keras-warmup bench ./digits/1 --docker tensorflow/serving:2.19.1
  keras-warmup bench ./digits/1 --server localhost:8500           # one that runs already: gRPC port
"""
_METHOD_NAMES_EXAMPLE = """example:
  keras-warmup method-names ./taxi/1      # for servers with --enable_signature_method_name_check
"""
_RECORDS_EXAMPLE = """example:
  keras-warmup records ./digits/1 --json | jq '.records[].signature_key'
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        argv: the arguments after the program's name. Defaults to `sys.argv[1:]`.
    """
    arguments = _parser().parse_args(argv)
    # TensorFlow's start-up chatter belongs in no report; the user's own setting wins.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with plain_warnings():
            return int(arguments.run(arguments))
    except BrokenPipeError:
        # The reader (such as `head`) has seen enough; without this Python complains once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except (WarmupError, OSError) as error:
        say(f"error: {error}")
        return EXIT_USAGE if isinstance(error, OptionsError) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-warmup",
        description="Warmup files for TensorFlow Serving: no slow first request to a freshly loaded model.",
    )
    parser.add_argument("--version", action="version", version=f"keras-warmup {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def verb(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument(
            "export_dir",
            metavar="EXPORT_DIR",
            help="a SavedModel (version directory), local or remote",
        )
        one.add_argument("--json", action="store_true", help="print JSON")
        one.set_defaults(run=run)
        return one

    verb(
        "inspect",
        _inspect,
        "show the signatures of a SavedModel and what matters for warmup; runs no graph",
        _INSPECT_EXAMPLE,
    )
    add = verb("add", _add, "write the warmup file of a SavedModel that exists", _ADD_EXAMPLE)
    add.add_argument(
        "--data",
        metavar="FILE",
        help="rows to warm with: .npz (an array per input) or a TFRecord of tf.Examples",
    )
    add.add_argument("--append", action="store_true", help="keep the records that are there")
    add.add_argument(
        "--signature",
        action="append",
        metavar="KEY",
        help="warm this signature only; may be repeated",
    )
    add.add_argument(
        "--kind",
        action="append",
        metavar="KIND",
        choices=REQUEST_KINDS,
        help="write this request kind; may be repeated",
    )
    add.add_argument(
        "--batch-size",
        action="append",
        type=int,
        metavar="N",
        help="warm exactly this size; may be repeated",
    )
    add.add_argument(
        "--output-filter",
        action="append",
        metavar="A,B",
        help="also warm this set of outputs; may be repeated",
    )
    add.add_argument(
        "--batching-parameters",
        metavar="FILE",
        help="the server's --batching_parameters_file: a record per allowed size",
    )
    add.add_argument(
        "--xla",
        action="store_true",
        help="also warm signatures that compile with XLA (the server needs its flag)",
    )
    add.add_argument(
        "--share-twins",
        action="store_true",
        help="let signatures that are the same function name the same tensors",
    )
    add.add_argument(
        "--minimize",
        action="store_true",
        help="measure in fresh processes, and drop records that warm nothing new",
    )
    add.add_argument(
        "--model-name", metavar="NAME", help="name in the requests (default: the base path's)"
    )
    add.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the choice of rows (default: 0)"
    )
    add.add_argument(
        "--no-verify",
        action="store_true",
        help="do not replay the records before they are published",
    )
    _refuses_unsafe_ops(add)
    bench = verb(
        "bench",
        _bench,
        "measure the first request without and with the warmup file",
        _BENCH_EXAMPLE,
    )
    bench.add_argument(
        "--data",
        metavar="FILE",
        help="rows to send, as for add (default: those of the file in another order)",
    )
    bench.add_argument(
        "--processes",
        type=int,
        default=5,
        metavar="N",
        help="fresh processes for each figure (default: 5)",
    )
    bench.add_argument(
        "--requests",
        type=int,
        metavar="N",
        help=f"requests after the first one (default: {_REQUESTS})",
    )
    bench.add_argument(
        "--batch-size",
        action="append",
        type=int,
        metavar="N",
        help="also measure this size; may be repeated",
    )
    bench.add_argument(
        "--plot",
        metavar="FILE.png",
        help="also draw a picture (needs matplotlib: keras-warmup[plot])",
    )
    bench.add_argument(
        "--minimize", action="store_true", help="find records that warm nothing new instead"
    )
    servers = bench.add_mutually_exclusive_group()
    servers.add_argument("--server", metavar="HOST:PORT", help="a running server's gRPC port")
    servers.add_argument(
        "--model-server",
        nargs="?",
        const=True,
        metavar="PATH",
        help="start this tensorflow_model_server (default: the one found)",
    )
    servers.add_argument(
        "--docker",
        nargs="?",
        const=True,
        metavar="IMAGE",
        help="start this image (default: tensorflow/serving)",
    )
    bench.add_argument(
        "--model-name",
        metavar="NAME",
        help="name the server serves the model by (default: the base path's)",
    )
    bench.add_argument(
        "--server-arg",
        action="append",
        default=[],
        metavar="FLAG",
        help="one more flag for the started server",
    )
    _refuses_unsafe_ops(bench)
    verify = verb(
        "verify",
        _verify,
        "replay the warmup file as TensorFlow Serving does at load",
        _VERIFY_EXAMPLE,
    )
    verify.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help=f"longest time for loading the model and for each record (default: {DEFAULT_TIMEOUT_S:g})",
    )
    verify.add_argument(
        "--memory-limit",
        type=int,
        metavar="MIB",
        help="what the model may allocate, beside what TensorFlow itself takes (Linux only; default: no limit)",
    )
    _refuses_unsafe_ops(verify)
    verb(
        "method-names",
        _method_names,
        "give Classify and Regress signatures their own method names, in place",
        _METHOD_NAMES_EXAMPLE,
    )
    verb(
        "records",
        _records,
        "list the records of a warmup file, without their values",
        _RECORDS_EXAMPLE,
    )
    return parser


def _refuses_unsafe_ops(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--refuse-unsafe-ops",
        action="store_true",
        help="run nothing where the model has ops that touch files, network or processes (default: warn)",
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from keras_warmup.inspection import inspect

    show_report(inspect(arguments.export_dir), arguments.json)
    return EXIT_OK


def _add(arguments: argparse.Namespace) -> int:
    from keras_warmup.export import add_warmup
    from keras_warmup.options import WarmupOptions

    options = WarmupOptions(
        signatures=arguments.signature,
        batch_sizes=arguments.batch_size,
        output_filters=[filter_.split(",") for filter_ in arguments.output_filter]
        if arguments.output_filter
        else None,
        kinds=arguments.kind,
        xla=arguments.xla,
        batching_parameters=arguments.batching_parameters,
        share_twin_signatures=True if arguments.share_twins else None,
        model_name=arguments.model_name,
        seed=arguments.seed,
        verify=not arguments.no_verify,
    )
    data = _read_data(arguments)
    with working("adding warmup records", arguments.json):
        report = add_warmup(
            arguments.export_dir,
            data,
            warmup=options,
            append=arguments.append,
            refuse_unsafe_ops=arguments.refuse_unsafe_ops,
        )
    if not arguments.minimize:
        show_report(report, arguments.json)
        return EXIT_OK
    from keras_warmup.bench.minimize import drop_records

    if not arguments.json:
        show_report(report, as_json=False)
    minimized = _minimize(arguments.export_dir, 3, arguments.json)
    drop_records(minimized)
    if arguments.json:
        print(json.dumps({**report.to_dict(), "minimized": minimized.to_dict()}, indent=2))
    else:
        show_report(minimized, as_json=False)
    return EXIT_OK


# What `bench` takes to measure, and `bench --minimize` does not.
_NOT_MINIMIZED = (
    "data",
    "requests",
    "batch_size",
    "plot",
    "server",
    "model_server",
    "docker",
    "model_name",
    "server_arg",
)


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.minimize:
        others = [
            f"--{name.replace('_', '-')}" for name in _NOT_MINIMIZED if getattr(arguments, name)
        ]
        if others:
            raise OptionsError(
                f"--minimize takes only --processes and --json, got {', '.join(others)}: it replays the file's own records in "
                "fresh processes. Leave the others out."
            )
        from keras_warmup.savedmodel.unsafe_ops import check_saved_model

        check_saved_model(arguments.export_dir, refuse=arguments.refuse_unsafe_ops)
        show_report(
            _minimize(arguments.export_dir, arguments.processes, arguments.json), arguments.json
        )
        return EXIT_OK
    from keras_warmup.bench.benchmark import benchmark
    from keras_warmup.bench.plot import check_plot_path, plot_report

    if arguments.plot:
        check_plot_path(arguments.plot)
    data = _read_data(arguments)
    with measuring(arguments.json) as progress:
        report = benchmark(
            arguments.export_dir,
            data=data,
            processes=arguments.processes,
            requests=_REQUESTS if arguments.requests is None else arguments.requests,
            batch_sizes=arguments.batch_size,
            server=arguments.server,
            model_server=arguments.model_server,
            docker=arguments.docker,
            model_name=arguments.model_name,
            server_args=arguments.server_arg,
            progress=progress,
            refuse_unsafe_ops=arguments.refuse_unsafe_ops,
        )
    show_report(report, arguments.json)
    if arguments.plot:
        plot_report(report, arguments.plot)
        say(f"wrote {arguments.plot}")
    return EXIT_OK


def _read_data(arguments: argparse.Namespace) -> Any:
    """What `--data` names; a file that cannot be read is a wrong argument."""
    if arguments.data is None:
        return None
    from keras_warmup.data.files import read_file

    try:
        return read_file(arguments.data)
    except DataError as error:
        raise OptionsError(str(error)) from error


def _minimize(export_dir: str, processes: int, quiet: bool) -> MinimizeReport:
    from keras_warmup.bench.minimize import minimize

    with measuring(quiet) as progress:
        return minimize(export_dir, processes=processes, progress=progress)


def _method_names(arguments: argparse.Namespace) -> int:
    from keras_warmup.inspection import inspect
    from keras_warmup.savedmodel.rewriting import name_methods

    name_methods(arguments.export_dir)
    show_report(inspect(arguments.export_dir), arguments.json)
    return EXIT_OK


def _verify(arguments: argparse.Namespace) -> int:
    with working("starting TensorFlow and replaying the warmup file", arguments.json):
        # The worker imports TensorFlow while this process does.
        start_worker()
        from keras_warmup.publishing.versions import version_hint
        from keras_warmup.verification import verify

        report = verify(
            arguments.export_dir,
            isolated=True,
            timeout_s=arguments.timeout,
            memory_limit_bytes=None
            if arguments.memory_limit is None
            else arguments.memory_limit * 2**20,
            refuse_unsafe_ops=arguments.refuse_unsafe_ops,
        )
    show_report(report, arguments.json)
    hint = (
        version_hint(os.path.abspath(arguments.export_dir))
        if os.path.isdir(arguments.export_dir)
        else None
    )
    if hint:
        say(hint)
    return EXIT_OK if report.ok else EXIT_FAILED


def _records(arguments: argparse.Namespace) -> int:
    from keras_warmup.inspection import list_records

    show_report(list_records(arguments.export_dir), arguments.json)
    return EXIT_OK
