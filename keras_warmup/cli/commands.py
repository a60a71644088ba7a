"""Runs the commands of `keras-warmup`: each calls one function and prints its report.

Exit codes: 0 good, 1 the check failed, 2 usage.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import importlib.machinery
import os
import runpy
import sys
import types
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, Literal

from keras_warmup.bench.model_server import ModelServer
from keras_warmup.cli.console import (
    one_line_warnings,
    print_line,
    print_report,
    show_progress,
    show_status,
)
from keras_warmup.cli.parser import build_parser
from keras_warmup.cli.quiet import quiet_start
from keras_warmup.errors import DataError, OptionsError, WarmupError
from keras_warmup.options import WarmupOptions
from keras_warmup.serving.worker import start_worker

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
# As shells report a command that was ended by Ctrl-C.
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code.

    Args:
        argv: the arguments after the program's name. Defaults to `sys.argv[1:]`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(argv)
    if arguments.command == "run":
        arguments.arguments = _script_arguments(argv, arguments.arguments)
        return _run(arguments)  # what the script prints and raises is its own
    # Hides TensorFlow's information and warnings, unless the user has set a level.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with one_line_warnings():
            return _COMMANDS[arguments.command](arguments)
    except BrokenPipeError:
        # The reader (such as `head`) has closed the pipe. Without a new stdout, Python would report
        # the same error again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        print_line("interrupted")
        return EXIT_INTERRUPTED
    except (WarmupError, OSError) as error:
        print_line(f"error: {error}")
        return EXIT_USAGE if isinstance(error, OptionsError) else EXIT_FAILED


def _inspect(arguments: argparse.Namespace) -> int:
    with quiet_start():
        from keras_warmup.inspection import inspect

    print_report(inspect(arguments.export_dir), arguments.json)
    return EXIT_OK


def _read_batch_sizes(
    sizes: list[int | Literal["auto"]] | None,
) -> list[int] | Literal["auto"] | None:
    """Returns `WarmupOptions.batch_sizes` of the values of `--batch-size`."""
    exact = [size for size in sizes or () if size != "auto"]
    if sizes and len(exact) < len(sizes):
        if exact:
            raise OptionsError("--batch-size auto plans the sizes itself; give it alone")
        return "auto"
    return exact or None


def _read_warmup_options(arguments: argparse.Namespace, *, freeze: bool = False) -> WarmupOptions:
    return WarmupOptions(
        freeze=freeze,
        signatures=arguments.signature,
        batch_sizes=_read_batch_sizes(arguments.batch_size),
        whole_batches=arguments.whole_batches,
        output_filters=[filter_.split(",") for filter_ in arguments.output_filter]
        if arguments.output_filter
        else None,
        kinds=arguments.kind,
        xla=arguments.xla,
        batching_parameters=arguments.batching_parameters,
        share_twin_signatures=True if arguments.share_twins else None,
        privacy=arguments.privacy,
        redact=arguments.redact,
        model_name=arguments.model_name,
        seed=arguments.seed,
        verify=not arguments.no_verify,
    )


def _add(arguments: argparse.Namespace) -> int:
    options = _read_warmup_options(arguments)
    with quiet_start():
        from keras_warmup.export import add_warmup

        _find_devices()
    data = _read_data(arguments)
    with show_status("adding warmup records", arguments.json):
        report = add_warmup(
            arguments.export_dir,
            data,
            warmup=options,
            append=arguments.append,
            refuse_unsafe_ops=arguments.refuse_unsafe_ops,
        )
    print_report(report, arguments.json)
    return EXIT_OK


def _bench(arguments: argparse.Namespace) -> int:
    server = _read_server(arguments)
    with quiet_start():
        from keras_warmup.bench.benchmark import benchmark
        from keras_warmup.bench.plot import check_plot_path, plot_report

        _find_devices()
    if arguments.plot:
        check_plot_path(arguments.plot)
    data = _read_data(arguments)
    with show_progress(arguments.json) as progress:
        report = benchmark(
            arguments.export_dir,
            data=data,
            processes=arguments.processes,
            requests=arguments.requests,
            batch_sizes=arguments.batch_size,
            server=server,
            against=arguments.against,
            progress=progress,
            refuse_unsafe_ops=arguments.refuse_unsafe_ops,
        )
    print_report(report, arguments.json)
    if arguments.plot:
        plot_report(report, arguments.plot)
        print_line(f"wrote {arguments.plot}")
    return EXIT_OK


def _minimize(arguments: argparse.Namespace) -> int:
    with quiet_start():
        from keras_warmup.bench.minimize import minimize

    with show_progress(arguments.json) as progress:
        report = minimize(
            arguments.export_dir,
            processes=arguments.processes,
            dry_run=arguments.dry_run,
            refuse_unsafe_ops=arguments.refuse_unsafe_ops,
            progress=progress,
        )
    print_report(report, arguments.json)
    return EXIT_OK


def _verify(arguments: argparse.Namespace) -> int:
    with show_status("starting TensorFlow and replaying the warmup file", arguments.json):
        # The worker imports TensorFlow at the same time as this process.
        start_worker()
        with quiet_start():
            from keras_warmup.publishing.versions import version_hint
            from keras_warmup.verification import verify

        limit = arguments.memory_limit
        report = verify(
            arguments.export_dir,
            isolated=True,
            timeout_s=arguments.timeout,
            memory_limit_bytes=None if limit is None else limit * 2**20,
            refuse_unsafe_ops=arguments.refuse_unsafe_ops,
            no_real_rows=arguments.no_real_rows,
        )
    print_report(report, arguments.json)
    if os.path.isdir(arguments.export_dir):
        hint = version_hint(os.path.abspath(arguments.export_dir))
        if hint:
            print_line(hint)
    return EXIT_OK if report.ok else EXIT_FAILED


def _change(
    arguments: argparse.Namespace, name: str, status: str, *given: Any, **options: Any
) -> int:
    """Calls a function of `keras_warmup.export` that changes a SavedModel which exists."""
    with quiet_start():
        function = getattr(importlib.import_module("keras_warmup.export"), name)
        _find_devices()
    with show_status(status, arguments.json):
        report = function(
            arguments.export_dir,
            *given,
            refuse_unsafe_ops=arguments.refuse_unsafe_ops,
            **options,
        )
    print_report(report, arguments.json)
    return EXIT_OK


def _freeze(arguments: argparse.Namespace) -> int:
    status = "freezing and comparing outputs"
    return _change(arguments, "freeze", status, arguments.output, max_bytes=arguments.max_bytes)


def _redact(arguments: argparse.Namespace) -> int:
    status = "replacing values and replaying the warmup file"
    return _change(arguments, "redact", status, arguments.privacy, redact=arguments.redact)


def _repair(arguments: argparse.Namespace) -> int:
    return _change(arguments, "repair", "repairing the SavedModel", arguments.output)


def _method_names(arguments: argparse.Namespace) -> int:
    with quiet_start():
        from keras_warmup.inspection import inspect
        from keras_warmup.records.manifest import read_manifest, renew_manifest
        from keras_warmup.savedmodel.rewriting import name_methods

    before = read_manifest(arguments.export_dir)
    name_methods(arguments.export_dir)
    renew_manifest(arguments.export_dir, before)
    print_report(inspect(arguments.export_dir), arguments.json)
    return EXIT_OK


def _run(arguments: argparse.Namespace) -> int:
    """Runs a script as `python SCRIPT` does, with `keras_warmup.enable()`."""
    from keras_warmup.automatic import enable

    script = arguments.script
    try:
        if not arguments.is_module and not os.path.exists(script):
            raise OptionsError(f"run: no script {script!r}. Options of run come before the script.")
        # Until the end of the process, as what the script starts may outlive its last line.
        enable(_read_warmup_options(arguments, freeze=arguments.freeze))
    except OptionsError as error:
        print_line(f"error: {error}")
        return EXIT_USAGE
    sys.argv = [script, *arguments.arguments]
    # Python leaves the directory of a script out of sys.path where it is told to.
    has_directory = not getattr(sys.flags, "safe_path", False)
    if arguments.is_module:
        if has_directory:
            sys.path[0] = os.getcwd()
        return _run_module(script)
    if os.path.isdir(script) or zipfile.is_zipfile(script):
        sys.path[:has_directory] = [script]  # in any case, since its modules are there
        return _run_module("__main__")
    if has_directory:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    # runpy.run_path would take the module away at the end, and give it a relative path.
    module = types.ModuleType("__main__")
    # AutoGraph reads the source by this name, also after the script has changed the directory.
    path = module.__file__ = os.path.abspath(script)
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    vars(module).update(__builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, vars(module))
    return EXIT_OK


def _run_module(name: str) -> int:
    """Runs a module as `python -m` does, or the `__main__` of a directory or zip file."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    # runpy.run_module would take the module away at the end, before threads and atexit functions.
    runpy._run_module_as_main(name, alter_argv=name != "__main__")  # type: ignore[attr-defined]
    return EXIT_OK


def _script_arguments(argv: Sequence[str], parsed: Sequence[str]) -> list[str]:
    """Returns the arguments of the script, with the first `--`, which argparse drops."""
    start = len(argv) - len(parsed)
    if parsed and (list(argv[start:]) != list(parsed) or argv[start - 1] == "--"):
        start -= 1
    return list(argv[start:])


def _records(arguments: argparse.Namespace) -> int:
    with quiet_start():
        from keras_warmup.inspection import list_records

    print_report(list_records(arguments.export_dir), arguments.json)
    return EXIT_OK


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "inspect": _inspect,
    "add": _add,
    "bench": _bench,
    "minimize": _minimize,
    "verify": _verify,
    "repair": _repair,
    "freeze": _freeze,
    "redact": _redact,
    "method-names": _method_names,
    "records": _records,
}


def _find_devices() -> None:
    """Lets TensorFlow look for GPUs now: where there is no driver, it logs an error."""
    import tensorflow as tf

    tf.config.list_physical_devices()


def _read_data(arguments: argparse.Namespace) -> Any:
    """Reads the file of `--data`.

    Raises:
        OptionsError: the file cannot be read, so the argument is wrong.
    """
    if arguments.data is None:
        return None
    from keras_warmup.data.files import read_file

    try:
        return read_file(arguments.data)
    except DataError as error:
        raise OptionsError(str(error)) from error


def _read_server(arguments: argparse.Namespace) -> ModelServer | None:
    """Returns the model server that the options ask for; `None` for fresh processes."""
    chosen = (arguments.server, arguments.model_server, arguments.docker)
    if all(option is None for option in chosen):
        if arguments.model_name or arguments.server_arg:
            raise OptionsError(
                "--model-name and --server-arg need --server, --model-server or --docker."
            )
        return None
    return ModelServer(
        address=arguments.server,
        command=arguments.model_server or None,
        docker=arguments.docker,
        model_name=arguments.model_name,
        args=arguments.server_arg,
    )
