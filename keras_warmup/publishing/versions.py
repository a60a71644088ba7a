"""Reads paths and `filepath` templates, and numbers versions as TensorFlow Serving does."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from keras_warmup.errors import OptionsError, PublishError
from keras_warmup.paths import as_path, explained, join, name_of, parent_of, scheme_of

# The server reads versions as int64.
_MAX_VERSION = 2**63 - 1
_VERSION_FIELD = re.compile(r"\{version(?::(?P<spec>[^{}]*))?\}")


def resolve_version(path: str | os.PathLike[str]) -> str:
    """Fills in `{version}` (or `{version:08d}`): the highest version under the base path, plus 1.

    The first version is 1. The base path is the part before the component with the field; it need
    not exist. Names are read as the server reads them: decimal integers up to 2^63 - 1, leading
    zeros allowed (`00000123` is 123), files too. Hidden and other names are ignored. In a component
    such as `v{version}`, the integers are those in the names of siblings of the same form.

    Args:
        path: a path with or without `{version}`; other braces are literal.

    Raises:
        OptionsError: the format specification does not format an integer.
        PublishError: the highest version is the largest that a server reads.
    """
    template = as_path(path)
    first = _VERSION_FIELD.search(template)
    if first is None:
        return template
    start = template.rfind("/", 0, first.start()) + 1
    end = template.find("/", first.end())
    component = template[start : len(template) if end < 0 else end]
    literals = [re.escape(part) for part in re.split(r"\{version(?::[^{}]*)?\}", component)]
    pattern = re.compile(literals[0] + r"(\d+)" + r"\d+".join(literals[1:]), re.ASCII)
    version = _next_number(template[:start] or ".", pattern)
    try:
        return _VERSION_FIELD.sub(lambda field: format(version, field["spec"] or ""), template)
    except ValueError as error:
        raise OptionsError(
            f"Bad path {template!r}: {first[0]!r} cannot format an integer ({error}). Use "
            "{version} or {version:08d}."
        ) from error


def has_version(path: str) -> bool:
    """Returns whether `path` holds `{version}`."""
    return _VERSION_FIELD.search(path) is not None


def fields_of(filepath: str) -> tuple[str, ...]:
    """Returns the fields of a `filepath` template, each once, in order.

    Args:
        filepath: a template for `str.format`, as `keras.callbacks.ModelCheckpoint` takes it.

    Returns:
        The names, such as `("epoch", "version", "val_loss")`.

    Raises:
        OptionsError: braces do not match, a field is not a plain name, or the format of `{version}`
            or `{epoch}` does not format an integer.
    """
    try:
        parsed = [
            (field, spec or "")
            for _, field, spec, _ in string.Formatter().parse(filepath)
            if field is not None
        ]
        for spec in [spec for field, spec in parsed if field in ("version", "epoch")]:
            format(1, spec)
    except ValueError as error:
        raise OptionsError(
            f"Bad filepath {filepath!r}: {error}. Write fields as {{version}}, {{epoch:02d}} or "
            "{val_loss:.2f}, and a literal brace as {{ or }}."
        ) from error
    fields = [field for field, _ in parsed]
    wrong = [field for field in fields if not re.fullmatch(r"[^\W\d][^.\[\]]*", field)]
    if wrong:
        raise OptionsError(
            f"Bad filepath {filepath!r}: unknown fields {_braced(wrong)}. Known fields: "
            "{version}, {epoch} and the names of the metrics, such as {val_loss:.2f}."
        )
    return tuple(dict.fromkeys(fields))


def format_filepath(
    filepath: str, epoch: int | None = None, logs: Mapping[str, Any] | None = None
) -> str:
    """Fills in `{epoch}` and metrics, and keeps `{version}` for `resolve_version`.

    Args:
        filepath: the template.
        epoch: the epoch as users count it, from 1; `None` where no epoch ran.
        logs: metric name -> value at the end of that epoch.

    Raises:
        OptionsError: a field is unknown, or its format does not fit its value.
    """
    values = {**(logs or {}), **({} if epoch is None else {"epoch": epoch})}
    unknown = [field for field in fields_of(filepath) if field != "version" and field not in values]
    if unknown:
        raise OptionsError(
            f"Cannot fill in filepath {filepath!r}: unknown fields {_braced(unknown)}. Known "
            f"fields: {_braced(['version', *sorted(values)])}."
        )
    parts = []
    for literal, field, format_spec, conversion in string.Formatter().parse(filepath):
        parts.append(literal)
        if field is None:
            continue
        spec = f":{format_spec}" if format_spec else ""
        if field == "version":
            parts.append("{version" + spec + "}")
            continue
        replacement = "{" + field + (f"!{conversion}" if conversion else "") + spec + "}"
        try:
            parts.append(replacement.format(**{field: values[field]}))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise OptionsError(
                f"Cannot fill in filepath {filepath!r}: {replacement!r} does not format a "
                f"{type(values[field]).__name__} ({error})."
            ) from error
    return "".join(parts)


def version_hint(path: str | os.PathLike[str]) -> str | None:
    """Returns a hint where the last component of a path is not a version for TensorFlow Serving.

    Args:
        path: a path, or a template with `{version}`, `{epoch}` and metrics.

    Returns:
        The hint; `None` for a version.
    """
    template = as_path(path)
    name = re.sub(r"\{(?:version|epoch)(?::[^{}]*)?\}", "1", name_of(template))
    if read_version(name) is not None:
        return None
    return (
        f"No TensorFlow Serving server loads {template!r}: its last component is not an integer. "
        f"Publish to {join(template, '1')!r} or {join(template, '{version}')!r}."
    )


def model_name_of(path: str | os.PathLike[str]) -> str:
    """Returns the name that a server gives a model published at `path`.

    Args:
        path: a version directory, or a template of one.

    Returns:
        The name of the base path; the name of `path` itself where it is not a version.
    """
    template = as_path(path)
    absolute = template if scheme_of(template) else os.path.abspath(template)
    return name_of(absolute if version_hint(absolute) else parent_of(absolute))


def _braced(names: Iterable[str]) -> str:
    return ", ".join("{" + name + "}" for name in names)


def _next_number(base: str, pattern: re.Pattern[str]) -> int:
    with explained(base):
        entries = tf.io.gfile.listdir(base) if tf.io.gfile.isdir(base) else []
    matches = [pattern.fullmatch(entry.rstrip("/")) for entry in entries]
    versions = [int(match[1]) for match in matches if match and int(match[1]) <= _MAX_VERSION]
    version = max(versions, default=0) + 1
    if version > _MAX_VERSION:
        raise PublishError(
            f"Cannot take the next version under {base!r}: {version - 1} is the last one a server "
            "reads."
        )
    return version


def read_version(name: str) -> int | None:
    """Returns the version that the server reads in the name of a directory, or `None`."""
    if not re.fullmatch(r"\d+", name, re.ASCII) or int(name) > _MAX_VERSION:
        return None
    return int(name)
