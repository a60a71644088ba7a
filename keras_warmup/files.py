"""Data files that hold rows: what `keras-warmup add --data FILE` reads."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from keras_warmup.errors import DataError
from keras_warmup.versions import reason_of


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
    where = os.fspath(path)
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
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise DataError(f"Cannot read data from {path!r}: there is no such file.")


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
    where = os.fspath(path)
    _require_file(where)
    content = _content_of(where)
    try:
        # zipfile seeks back from the end, which a GFile refuses on a short file; NpzFile reads lazily.
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
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


def _may_be_cut(array: np.ndarray) -> bool:
    return bool(array.size) and int(np.char.str_len(array).min()) < array.dtype.itemsize
