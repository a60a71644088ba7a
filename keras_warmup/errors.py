"""The errors of this package, named for what went wrong.

Every error that this package raises for bad input is a `WarmupError`. Each subclass also inherits
the builtin that a caller would naturally catch. Messages say what failed, where, what was expected,
what was found and what to do. They hold names, shapes and dtypes, but never tensor values, which
are training data.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings


class WarmupError(Exception):
    """Base of every error raised by keras_warmup."""


class OptionsError(WarmupError, ValueError):
    """An option is unknown, has a wrong type or contradicts another."""


class DataError(WarmupError, ValueError):
    """The data given (or captured) cannot be read as batches, or there are no data."""


class NoDataError(DataError):
    """There are no rows for a signature, and `on_no_data="error"`."""


class BindingError(WarmupError, ValueError):
    """A batch does not fit the inputs of a signature."""


class SignatureError(WarmupError, LookupError):
    """A signature, input or output is not in the SavedModel, or the SavedModel cannot be read."""


class UnservableError(SignatureError):
    """No server can run a signature, because it calls Python functions."""


class RecordsError(WarmupError, ValueError):
    """A warmup file is malformed, too long or too large."""


class ReplayError(WarmupError, RuntimeError):
    """A model or a record fails the way TensorFlow Serving would fail at load.

    Attributes:
        status: the server's status, such as `INVALID_ARGUMENT`; empty for other failures.
    """

    def __init__(self, *args: object, status: str = "") -> None:
        super().__init__(*args)
        self.status = status


class ProofError(WarmupError, RuntimeError):
    """The outputs of a replayed signature differ from those of the model on the same rows."""


class ExportError(WarmupError, RuntimeError):
    """TensorFlow or Keras could not write the SavedModel; the cause holds their own error."""


class PublishError(WarmupError, OSError):
    """A directory cannot be published: its path is taken or cannot be written or resolved."""


class UnsafeOpsError(WarmupError, RuntimeError):
    """A SavedModel has ops that touch files, network or processes, and these are refused."""


class ServerError(WarmupError, ConnectionError):
    """A model server cannot be found, started or reached."""


def warn_or_print(text: str, stacklevel: int) -> None:
    """Issues a `UserWarning`, or prints to stderr where warnings are errors.

    For work that must continue after the warning.

    Args:
        text: the warning.
        stacklevel: as `warnings.warn` takes it, relative to the caller.
    """
    try:
        warnings.warn(text, stacklevel=stacklevel + 1)
    except UserWarning:
        print(text, file=sys.stderr)


def warn_caller(text: str) -> None:
    """Issues a `UserWarning` at the line outside this package that led here.

    Args:
        text: the warning.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    level, frame = 1, sys._getframe()
    ours = (package, contextlib.__file__)  # the frames of `with` are between ours
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def warn_caller_or_print(text: str) -> None:
    """Warns as `warn_caller`, or prints to stderr where warnings are errors.

    For code that did not ask for the work that warns.
    """
    try:
        warn_caller(text)
    except UserWarning:
        print(text, file=sys.stderr)
