"""Data files that hold rows: what `keras-warmup add --data FILE` reads."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import tensorflow as tf

from keras_warmup.errors import DataError


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads an `.npz` file as `numpy.savez` writes it.

    Args:
        path: the file, local or remote.

    Returns:
        Array name -> array; names are meant to be those of the model's inputs.

    Raises:
        DataError: there is no such file, it is no `.npz`, holds no array, or holds pickled objects (which are never loaded:
            unpickling runs code).
    """
    where = os.fspath(path)
    if not tf.io.gfile.exists(where) or tf.io.gfile.isdir(where):
        raise DataError(f"Cannot read data from {where!r}: there is no such file.")
    with tf.io.gfile.GFile(where, "rb") as file:
        try:
            # zipfile seeks back from the end, which a GFile refuses on a short file; NpzFile reads lazily.
            loaded = np.load(io.BytesIO(file.read()), allow_pickle=False)
            arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else None
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"Cannot read data from {where!r}: {error}. It must be an .npz file of plain arrays, as numpy.savez writes it; "
                "store strings as a numpy str or bytes array, not as objects."
            ) from error
    if not arrays:
        raise DataError(
            f"Cannot read data from {where!r}: it holds no named array. Write it with numpy.savez(path, input_name=array)."
        )
    return arrays
