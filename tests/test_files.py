"""Data files: what is read, and what is refused rather than read cut."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.errors import DataError
from keras_warmup.files import read_file, read_npz


def test_npz_gives_its_arrays_by_name(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.arange(4.0), text=np.array(["a", "größer", ""]))
    arrays = read_file(path)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "x": [0.0, 1.0, 2.0, 3.0],
        "text": ["a", "größer", ""],
    }


def test_bytes_that_numpy_may_have_cut_are_refused(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, examples=np.array([b"ab\x00", b"abc"]), more=np.array([b"abc", b"abc"]), x=np.zeros(2))
    with pytest.raises(DataError) as error:
        read_npz(path)
    assert str(error.value) == (
        f"Cannot read data from {str(path)!r}: the bytes in 'examples' may be cut, since numpy drops trailing NULs of "
        "fixed-width bytes. Store text as a numpy str array, and serialized tf.Examples as a TFRecord file."
    )


def test_bytes_of_full_width_have_lost_nothing(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, codes=np.array([b"\x00a", b"bc"]))
    assert read_npz(path)["codes"].tolist() == [b"\x00a", b"bc"]


@pytest.mark.parametrize("ending", [".tfrecord", ".gz", ""])
def test_records_are_read_compressed_or_not_whatever_their_ending(tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"a\x00")
        writer.write(b"")
    if ending == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_file(path).as_numpy_iterator()) == [b"a\x00", b""]


@pytest.mark.parametrize("name", ["none.npz", "none.tfrecord", ""])
def test_a_missing_file_or_a_directory_is_refused(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(DataError) as error:
        read_file(path)
    assert str(error.value) == f"Cannot read data from {path!r}: there is no such file."


def test_pickled_objects_are_never_loaded(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.array([b"a", None], dtype=object))
    with pytest.raises(DataError, match="store strings as a numpy str array, not as objects"):
        read_npz(path)


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_what_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"It must be an \.npz file of plain arrays"):
        read_npz(path)


def test_an_npz_without_arrays_is_refused(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path)
    with pytest.raises(DataError, match="it holds no named array"):
        read_npz(path)


@pytest.mark.parametrize("name", ["rows.npy", "rows.csv", "rows.tfrecord.gz"])
def test_what_is_neither_npz_nor_tfrecord_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, np.arange(12.0))
    else:
        path.write_bytes(b"\x1f\x8b garbage" if name.endswith("gz") else b"a,b\n1,2\n3,4\n")
    with pytest.raises(DataError) as error:
        read_file(path)
    assert str(error.value) == (
        f"Cannot read data from {str(path)!r}: its first record cannot be read, so it is no TFRecord file, or a damaged "
        "one. Give an .npz file, as numpy.savez(path, input_name=array) writes it, or a TFRecord file of serialized "
        "tf.Examples."
    )
