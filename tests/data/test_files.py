"""Data files are read completely or refused."""

from __future__ import annotations

import gzip
import pathlib
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from keras_warmup.data.files import read_file
from keras_warmup.errors import DataError


def test_npz_gives_its_arrays_by_name(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.arange(4.0), text=np.array(["a", "größer", ""]))
    arrays = read_file(path)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "x": [0.0, 1.0, 2.0, 3.0],
        "text": ["a", "größer", ""],
    }


def test_bytes_that_numpy_may_have_cut_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(
        path, examples=np.array([b"ab\x00", b"abc"]), more=np.array([b"abc", b"abc"]), x=np.zeros(2)
    )
    with pytest.raises(DataError) as error:
        read_file(path)
    assert str(error.value) == (
        f"Cannot read data from {str(path)!r}: the bytes in 'examples' may be cut, since numpy "
        "drops trailing NULs of fixed-width bytes. Store text as a numpy str array, and serialized "
        "tf.Examples as a TFRecord file."
    )


def test_bytes_of_full_width_have_lost_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, codes=np.array([b"\x00a", b"bc"]))
    assert read_file(path)["codes"].tolist() == [b"\x00a", b"bc"]


@pytest.mark.parametrize("ending", [".tfrecord", ".gz", ""])
def test_records_are_read_compressed_or_not_with_any_extension(
    tmp_path: pathlib.Path, ending: str
) -> None:
    path = tmp_path / f"rows{ending}"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"a\x00")
        writer.write(b"")
    if ending == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_file(path).as_numpy_iterator()) == [b"a\x00", b""]


@pytest.mark.parametrize("name", ["none.npz", "none.tfrecord", ""])
def test_a_missing_file_or_a_directory_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    path = str(tmp_path / name)
    with pytest.raises(DataError) as error:
        read_file(path)
    assert str(error.value) == f"Cannot read data from {path!r}: there is no such file."


def test_pickled_objects_are_not_loaded(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.array([b"a", None], dtype=object))
    with pytest.raises(DataError, match="store strings as a numpy str array, not as objects"):
        read_file(path)


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_other_content_in_an_npz_file_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"It must be an \.npz file of plain arrays"):
        read_file(path)


def test_an_npz_without_arrays_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path)
    with pytest.raises(DataError, match="it has no named arrays"):
        read_file(path)


@pytest.mark.parametrize("name", ["rows.npy", "rows.csv", "rows.tfrecord.gz"])
def test_other_formats_are_refused_at_once(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, np.arange(12.0))
    else:
        path.write_bytes(b"\x1f\x8b garbage" if name.endswith("gz") else b"a,b\n1,2\n3,4\n")
    with pytest.raises(DataError) as error:
        read_file(path)
    assert str(error.value) == (
        f"Cannot read data from {str(path)!r}: its first record cannot be read, so it is not a "
        "TFRecord file or it is damaged. Give an .npz file, as numpy.savez(path, input_name=array) "
        "writes it, or a TFRecord file of serialized tf.Examples."
    )


def npy(
    shape: tuple[int, ...], dtype: str = "<f4", content: bytes = b"", header: str | None = None
) -> bytes:
    """Returns an .npy file with a given header."""
    text = header or f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + content


CLAIMS = {
    "elements": (
        npy((2**40,)),
        "'x.npy' claims [1099511627776] of float32, but its entry is too small for it",
    ),
    "overflow": (
        npy((2**62, 2**62)),
        f"'x.npy' claims [{2**62}, {2**62}] of float32, but its entry is too small for it",
    ),
    "width": (
        npy((1,), "|V2147483647"),
        "'x.npy' claims [1] of |V2147483647, but its entry is too small for it",
    ),
    "negative": (npy((-5,)), "'x.npy' claims [-5] of float32, but its entry is too small for it"),
}


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"]
)
@pytest.mark.parametrize(("content", "problem"), CLAIMS.values(), ids=CLAIMS)
def test_an_array_that_claims_more_than_its_entry_holds_is_refused(
    content: bytes, problem: str, compression: int, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "rows.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(DataError) as error:
        read_file(path)
    assert str(error.value).startswith(f"Cannot read data from {str(path)!r}: {problem}.")


def test_a_false_size_in_the_zip_directory_is_not_trusted(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "rows.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy((2**29,)))
        archive.infolist()[0].file_size = 2**31 - 1  # what the directory at the end is written from
    with pytest.raises(
        DataError, match="claims \\[536870912\\] of float32, but its entry is too small for it"
    ):
        read_file(path)


@pytest.mark.parametrize(
    "content",
    [
        npy((1,), header="(" * 5000),
        npy((1,), header="-" * 9000 + "1"),
        npy((1,), header="{'descr': " + "[" * 300),
        npy((1,), "O", b"\x80\x04."),
        b"\x93NUMPY\x09\x00",
        b"short",
    ],
    ids=["parentheses", "minus", "brackets", "pickle", "version", "short"],
)
def test_a_header_that_numpy_cannot_read_is_refused(content: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(DataError, match="Cannot read data from"):
        read_file(path)


def test_a_bare_array_that_claims_too_much_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.npz"
    path.write_bytes(npy((2**40,)))
    with pytest.raises(DataError, match="it is not a zip file"):
        read_file(path)


def test_compressed_arrays_are_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez_compressed(
        path,
        x=np.zeros([1000, 1000]),
        empty=np.zeros([0, 3]),
        scalar=np.float32(1),
        text=np.array(["ü"]),
    )
    assert {name: array.shape for name, array in read_file(path).items()} == {
        "x": (1000, 1000),
        "empty": (0, 3),
        "scalar": (),
        "text": (1,),
    }
    assert path.stat().st_size < 10**5  # a ratio near the limit
