"""Reads rows from data files, for `keras-warmup add --data FILE`."""

from __future__ import annotations

import io
import math
import os
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.errors import DataError
from keras_warmup.paths import as_path, reason_of, why_not_a_file

# The largest compression ratio of zlib (https://zlib.net/zlib_tech.html).
_MAX_DEFLATE_RATIO = 1032
# NumPy and zipfile raise the last six for damaged headers, encrypted entries and unknown
# compressions. MemoryError comes from the Python parser, for a header that nests too deeply.
_READ_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
    RuntimeError,
    NotImplementedError,
)


def read_file(path: str | os.PathLike[str]) -> Any:
    """Reads a data file, local or remote; the file name extension selects the format.

    Args:
        path: `.npz` as `numpy.savez` writes it; any other file is a TFRecord of serialized
            `tf.Example`s, with or without GZIP compression.

    Returns:
        A value that `data=` takes: for an `.npz` file a dict of array name -> array (names should
        be those of the model's inputs), else a `tf.data.Dataset` of serialized rows.

    Raises:
        DataError: the file does not exist or cannot be read. An `.npz` file is also refused if it
            holds no array, pickled objects (unpickling runs code), or an array of fixed-width bytes
            with a value shorter than the width: NumPy drops trailing NULs there, so serialized rows
            may be cut. Arrays of `str` are text and lose nothing.
    """
    where = as_path(path)
    if where.endswith(".npz"):
        return _read_npz(where)
    _check_is_file(where)
    records = tf.data.TFRecordDataset(where, "GZIP" if _read(where, 2) == b"\x1f\x8b" else "")
    try:
        with tf.init_scope(), tf.device("/CPU:0"):
            next(iter(records), None)
    except tf.errors.OpError as error:
        raise DataError(
            f"Cannot read data from {where!r}: its first record cannot be read, so it is not a "
            "TFRecord file or it is damaged. Give an .npz file, as "
            "numpy.savez(path, input_name=array) writes it, or a TFRecord file of serialized "
            "tf.Examples."
        ) from error
    return records


def _read(path: str, size: int = -1) -> bytes:
    """Reads the first `size` bytes of a file; all of them by default."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return bytes(file.read(size))
    except tf.errors.OpError as error:
        raise DataError(f"Cannot read data from {path!r}: {reason_of(error)}.") from error


def _check_is_file(path: str) -> None:
    problem = why_not_a_file(path)  # before gfile.exists, which raises for some names
    if problem == "it is a directory" or (problem is None and not tf.io.gfile.exists(path)):
        raise DataError(f"Cannot read data from {path!r}: there is no such file.")
    if problem is not None:
        raise DataError(f"Cannot read data from {path!r}: {problem}, expected a file.")


def _read_npz(path: str) -> dict[str, np.ndarray]:
    _check_is_file(path)
    content = _read(path)
    try:
        _check_claims(content)
        # zipfile seeks back from the end, which a GFile refuses on a short file.
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        # A zip archive may follow other content, such as an .npy array.
        arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {}
    except _READ_ERRORS as error:
        raise DataError(
            f"Cannot read data from {path!r}: {error}. It must be an .npz file of plain arrays, as "
            "numpy.savez writes it; store strings as a numpy str array, not as objects."
        ) from error
    if not arrays:
        raise DataError(
            f"Cannot read data from {path!r}: it has no named arrays. Write it with "
            "numpy.savez(path, input_name=array)."
        )
    cut = [name for name, array in arrays.items() if array.dtype.kind == "S" and _may_be_cut(array)]
    if cut:
        raise DataError(
            f"Cannot read data from {path!r}: the bytes in {', '.join(map(repr, sorted(cut)))} may "
            "be cut, since numpy drops trailing NULs of fixed-width bytes. Store text as a numpy "
            "str array, and serialized tf.Examples as a TFRecord file."
        )
    return arrays


def _check_claims(content: bytes) -> None:
    """Raises ValueError where an array of an `.npz` file claims more bytes than its entry can hold.

    NumPy allocates the claimed size before it reads the array.
    """
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not a zip file")
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            # The size in the zip directory may be false as well.
            most = min(entry.file_size, entry.compress_size * _MAX_DEFLATE_RATIO + 1)
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }.get(version)
                # Version 3.0 is only for structured arrays with field names outside Latin-1.
                if read_header is None:
                    raise ValueError(
                        f"{entry.filename!r} is of .npy version {version}, expected 1.0 or 2.0"
                    )
                shape, _, dtype = read_header(member)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed > most or any(size < 0 for size in shape):
                raise ValueError(
                    f"{entry.filename!r} claims {list(shape)} of {dtype}, but its entry is too "
                    "small for it"
                )


def _may_be_cut(array: np.ndarray) -> bool:
    """Returns whether a value is shorter than its fixed width."""
    return bool(array.size) and int(np.char.str_len(array).min()) < array.dtype.itemsize
