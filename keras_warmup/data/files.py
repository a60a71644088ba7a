"""Data files that hold rows: what `keras-warmup add --data FILE` reads."""

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

# What zlib can make of a byte at most (https://zlib.net/zlib_tech.html: 1032).
_MAX_DEFLATE_RATIO = 1032
# Of numpy, zipfile and zlib, which raise the last six for damaged headers, passwords and compressions they lack;
# MemoryError is the Python parser's, for a header that nests too deep.
_READ_ERRORS = (
    *(ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error),
    *(
        SyntaxError,
        tokenize.TokenError,
        RecursionError,
        MemoryError,
        RuntimeError,
        NotImplementedError,
    ),
)


def read_file(path: str | os.PathLike[str]) -> Any:
    """Reads a data file by its ending.

    Args:
        path: `.npz` as `numpy.savez` writes it, or a TFRecord of serialized `tf.Example`s (`.tfrecord`, `.tfrecords`, `.gz` for
            GZIP, or any other ending).

    Returns:
        What `data=` takes.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    where = as_path(path)
    if where.endswith(".npz"):
        return read_npz(where)
    _require_file(where)
    records = tf.data.TFRecordDataset(where, "GZIP" if _content_of(where, 2) == b"\x1f\x8b" else "")
    try:
        with tf.init_scope(), tf.device("/CPU:0"):
            next(iter(records), None)
    except tf.errors.OpError as error:
        raise DataError(
            f"Cannot read data from {where!r}: its first record cannot be read, so it is no TFRecord file, or a damaged "
            "one. Give an .npz file, as numpy.savez(path, input_name=array) writes it, or a TFRecord file of serialized "
            "tf.Examples."
        ) from error
    return records


def _content_of(path: str, size: int = -1) -> bytes:
    """The first `size` bytes of a file; all of them by default."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return bytes(file.read(size))
    except tf.errors.OpError as error:
        raise DataError(f"Cannot read data from {path!r}: {reason_of(error)}.") from error


def _require_file(path: str) -> None:
    problem = why_not_a_file(path)  # first: it finds the names that TensorFlow cannot take
    if problem == "it is a directory" or (problem is None and not tf.io.gfile.exists(path)):
        raise DataError(f"Cannot read data from {path!r}: there is no such file.")
    if problem is not None:
        raise DataError(f"Cannot read data from {path!r}: {problem}, expected a file.")


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads an `.npz` file as `numpy.savez` writes it.

    Args:
        path: the file, local or remote.

    Returns:
        Array name -> array; names are meant to be those of the model's inputs.

    Raises:
        DataError: there is no such file, it is no `.npz`, holds no array, or holds pickled objects (which are never loaded:
            unpickling runs code). Also for arrays of numpy's fixed-width bytes with a value shorter than the width: numpy drops
            trailing NULs of these, so that serialized rows may be cut (arrays of `str` are text, and lose nothing a text has).
    """
    where = as_path(path)
    _require_file(where)
    content = _content_of(where)
    try:
        _check_claims(content)
        # zipfile seeks back from the end, which a GFile refuses on a short file; NpzFile reads lazily.
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else None
    except _READ_ERRORS as error:
        raise DataError(
            f"Cannot read data from {where!r}: {error}. It must be an .npz file of plain arrays, as numpy.savez writes it; "
            "store strings as a numpy str array, not as objects."
        ) from error
    if not arrays:
        raise DataError(
            f"Cannot read data from {where!r}: it holds no named array. Write it with numpy.savez(path, input_name=array)."
        )
    cut = [name for name, array in arrays.items() if array.dtype.kind == "S" and _may_be_cut(array)]
    if cut:
        raise DataError(
            f"Cannot read data from {where!r}: the bytes in {', '.join(map(repr, sorted(cut)))} may be cut, since numpy drops "
            "trailing NULs of fixed-width bytes. Store text as a numpy str array, and serialized tf.Examples as a TFRecord file."
        )
    return arrays


def _check_claims(content: bytes) -> None:
    """Checks what the arrays of an `.npz` claim to hold: numpy allocates that before it reads them.

    Raises:
        ValueError: an array claims more bytes than its entry can hold.
    """
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no zip file")
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            # The size that the directory claims is a claim too.
            most = min(entry.file_size, entry.compress_size * _MAX_DEFLATE_RATIO + 1)
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }.get(version)
                if (
                    read_header is None
                ):  # 3.0: names of fields that are not Latin-1, in structured arrays only
                    raise ValueError(
                        f"{entry.filename!r} is of .npy version {version}, expected 1.0 or 2.0"
                    )
                shape, _, dtype = read_header(member)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed > most or any(size < 0 for size in shape):
                raise ValueError(
                    f"{entry.filename!r} claims {list(shape)} of {dtype}, but its entry is too small for it"
                )


def _may_be_cut(array: np.ndarray) -> bool:
    return bool(array.size) and int(np.char.str_len(array).min()) < array.dtype.itemsize
