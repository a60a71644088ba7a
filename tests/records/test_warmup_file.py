"""Warmup files are written whole or not at all, and damage is found that a server accepts."""

from __future__ import annotations

import gzip
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import rich.console
import tensorflow as tf
from google.protobuf.message import EncodeError

from keras_warmup._protos import PredictionLog
from keras_warmup.errors import RecordsError
from keras_warmup.inspection import MAX_LISTED_RECORDS, list_records
from keras_warmup.options import MAX_RECORDS
from keras_warmup.records.warmup_file import (
    FRAME_BYTES,
    RecordProblem,
    masked_crc32c,
    parse_log,
    read_all_records,
    read_records,
    scan_records,
    warmup_path,
    write_records,
)
from tests.builders import predict_log


def log_of(*values: float) -> PredictionLog:
    return predict_log(x=np.array(values, "float32"))


def write(
    path: str, logs: Iterable[Any], max_records: int = 1000, max_bytes: int = 2**20
) -> list[int]:
    return write_records(path, logs, max_records=max_records, max_bytes=max_bytes)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return os.path.join(tmp_path, "assets.extra", "tf_serving_warmup_requests")


def test_written_records_read_back_from_file_and_export_dir(
    tmp_path: pathlib.Path, path: str
) -> None:
    logs = [log_of(1), log_of(1, 2, 3)]
    sizes = write(path, iter(logs))
    assert warmup_path(tmp_path) == path
    assert list(read_records(path)) == list(read_records(tmp_path)) == logs
    assert sizes == [log.ByteSize() for log in logs]
    assert os.path.getsize(path) == sum(sizes) + FRAME_BYTES * 2
    # The bytes TensorFlow's own writer and reader agree on.
    assert [record.numpy() for record in tf.data.TFRecordDataset(path)] == [
        data for _, data in scan_records(path)
    ]
    assert os.listdir(os.path.dirname(path)) == ["tf_serving_warmup_requests"]


def test_map_fields_are_written_in_key_order(path: str) -> None:
    names = [f"feature_{index}" for index in range(50)]
    logs = [PredictionLog(), PredictionLog()]
    for log, order in zip(logs, (names, names[::-1]), strict=True):
        for name in order:
            log.predict_log.request.inputs[name].dtype = 1
    write(path, logs)
    first, second = (data for _, data in scan_records(path))
    assert first == second


def test_other_file_systems_go_through_gfile() -> None:
    path = warmup_path("ram://records_test/1")
    write(path, [log_of(1)])
    assert list(read_records("ram://records_test/1")) == [log_of(1)]


def test_too_many_records_leave_the_old_file(path: str) -> None:
    write(path, [log_of(1)])
    with pytest.raises(RecordsError) as caught:
        write(path, [log_of(2)] * 3, max_records=2)
    assert str(caught.value) == (
        f"Warmup file {path!r} would hold more than 2 records (max_records). "
        "Ask for fewer signatures, batch sizes or output filters."
    )
    assert list(read_records(path)) == [log_of(1)]
    assert os.listdir(os.path.dirname(path)) == ["tf_serving_warmup_requests"]


def test_too_many_bytes_are_refused_before_they_are_written(path: str) -> None:
    size = log_of(1).ByteSize()
    write(path, [log_of(1)], max_bytes=size + FRAME_BYTES)
    with pytest.raises(RecordsError) as caught:
        write(path, [log_of(1)] * 2, max_bytes=2 * size + 2 * FRAME_BYTES - 1)
    assert str(caught.value) == (
        f"Warmup file {path!r} would hold at least {2 * size + 32} bytes with record 1 of {size} "
        f"bytes; max_bytes is {2 * size + 31}. Use smaller batch_sizes or raise max_bytes."
    )


def test_an_error_of_the_source_leaves_no_temporary_file(path: str) -> None:
    def logs() -> Iterator[PredictionLog]:
        yield log_of(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, logs())
    assert not os.path.exists(os.path.dirname(path))


def test_a_record_that_protobuf_does_not_serialize_is_named(path: str) -> None:
    class TooLarge:
        def SerializeToString(self, deterministic: bool) -> bytes:
            raise EncodeError("Failed to serialize proto")

    with pytest.raises(RecordsError) as caught:
        write(path, [log_of(1), TooLarge()])
    assert (
        str(caught.value)
        == "Record 1 cannot be serialized: Failed to serialize proto. Use smaller batches."
    )
    assert not os.path.exists(os.path.dirname(path))


def test_a_place_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "warmup")
    with pytest.raises(RecordsError, match="^Cannot write warmup file '" + path):
        write(path, [log_of(1)])


@pytest.mark.parametrize("of", ["export_dir", "file"])
def test_a_directory_in_place_of_the_file_is_named(tmp_path: pathlib.Path, of: str) -> None:
    place = warmup_path(tmp_path)
    os.makedirs(place)
    with pytest.raises(RecordsError) as caught:
        read_records(tmp_path if of == "export_dir" else place)
    assert str(caught.value) == (
        f"Cannot read warmup file {place!r}: it is a directory. Remove it, and write the file with "
        "keras_warmup.add_warmup."
    )
    with pytest.raises(RecordsError) as caught:
        write(place, [log_of(1)])
    expected = f"Cannot write warmup file {place!r}: it is a directory. Remove it."
    assert str(caught.value) == expected
    assert os.listdir(os.path.dirname(place)) == [os.path.basename(place)]


def test_what_the_file_system_refuses_is_a_records_error(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, [log_of(1)])

    def refuse(*_: object) -> None:
        raise tf.errors.PermissionDeniedError(None, None, "Permission denied")

    monkeypatch.setattr(tf.io.gfile, "GFile", refuse)
    with pytest.raises(RecordsError) as caught:
        list(read_records(path))
    assert str(caught.value) == f"Cannot read warmup file {path!r}: Permission denied."


def frames(path: str | os.PathLike[str], *records: bytes) -> bytes:
    pathlib.Path(path).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return pathlib.Path(path).read_bytes()


def tensorflow_reads(path: pathlib.Path) -> int | str:
    """Returns how many records the server's reader gets before the end, or its error."""
    count = 0
    try:
        for _ in tf.data.TFRecordDataset(str(path)):
            count += 1
    except tf.errors.DataLossError as error:
        return error.message
    return count


WHOLE = 16 + 6  # bytes of a frame around six bytes
PROBLEMS = {
    "empty": (
        lambda data: b"",
        0,
        "empty",
        "the file is empty: the server silently loads the model cold",
    ),
    "five-bytes": (
        lambda data: b"abcde",
        0,
        "trailing",
        "5 bytes at byte 0 are too few for a record header: the server silently ignores them",
    ),
    "cut-in-header": (
        lambda data: data[: WHOLE + 11],
        1,
        "trailing",
        "11 bytes at byte 22 are too few for a record header: the server silently ignores them",
    ),
    "cut-behind-header": (
        lambda data: data[: WHOLE + 12],
        1,
        "truncated",
        "truncated record at byte 22: 10 bytes are missing",
    ),
    "cut-in-data": (
        lambda data: data[: WHOLE + 15],
        1,
        "truncated",
        "truncated record at byte 22: 7 bytes are missing",
    ),
    "cut-in-checksum": (
        lambda data: data[:-1],
        1,
        "truncated",
        "truncated record at byte 22: 1 bytes are missing",
    ),
    "text": (
        lambda data: b"not a record at all, just text",
        0,
        "corrupted",
        "corrupted record at byte 0 (Is this even a TFRecord file?)",
    ),
    "gzip": (
        lambda data: gzip.compress(data),
        0,
        "gzip",
        "it is GZIP; the server reads plain TFRecord only, so decompress it",
    ),
    "zeros-behind": (lambda data: data + bytes(20), 2, "corrupted", "corrupted record at byte 44"),
    "data-changed": (
        lambda data: data[: WHOLE + 12] + b"X" + data[WHOLE + 13 :],
        1,
        "corrupted",
        "corrupted record at byte 22: its data checksum is wrong",
    ),
}


@pytest.mark.parametrize(("damage", "good", "kind", "detail"), PROBLEMS.values(), ids=PROBLEMS)
def test_scan_reports_what_the_server_ignores(
    tmp_path: pathlib.Path,
    damage: Callable[[bytes], bytes],
    good: int,
    kind: str,
    detail: str,
) -> None:
    path = tmp_path / "warmup"
    path.write_bytes(damage(frames(path, b"abcdef", b"ghijkl")))
    *records, (index, problem) = scan_records(path)
    assert [data for _, data in records] == [b"abcdef", b"ghijkl"][:good]
    assert isinstance(problem, RecordProblem)
    assert (index, problem.kind, problem.detail) == (good, kind, detail)

    # TensorFlow's reader, which the server has, agrees on whether this is the end or an error.
    seen = tensorflow_reads(path)
    assert problem.loads == (seen == good)
    assert problem.loads or "record at" in str(seen)

    with pytest.raises(RecordsError) as caught:
        list(read_records(path))
    if good == 0:
        assert str(caught.value) == f"Cannot read warmup file {str(path)!r} at record 0: {detail}."


@pytest.mark.parametrize("length", [2**31, 3 * 2**30, 2**63])
def test_a_record_that_claims_more_than_protobuf_parses_is_not_read(
    tmp_path: pathlib.Path, length: int
) -> None:
    path = tmp_path / "warmup"
    header = struct.pack("<Q", length)
    content = frames(path, b"abcdef")
    path.write_bytes(content + header + struct.pack("<I", masked_crc32c(header)))
    # Sparse: the bytes may be there or not.
    os.truncate(path, min(len(content) + 16 + length, 2**33))
    _, (index, problem) = scan_records(path)
    assert isinstance(problem, RecordProblem)
    assert (index, problem.kind, problem.loads) == (1, "too_large", False)
    assert problem.detail == (
        f"the record at byte 22 claims {length} bytes; protobuf, and so the server, parses at most "
        "2147483647"
    )


@pytest.mark.parametrize("count", [MAX_RECORDS, MAX_RECORDS + 1])
def test_all_records_are_read_of_a_file_that_a_server_would_load(path: str, count: int) -> None:
    frames(path, *[log_of(1).SerializeToString()] * count)
    if count == MAX_RECORDS:
        assert len(read_all_records(path)) == count
        return
    with pytest.raises(RecordsError) as caught:
        read_all_records(path)
    assert str(caught.value) == (
        f"Cannot read warmup file of {path!r}: it holds more than 1000 records, and no server "
        "loads a model with so many. Write it again with fewer."
    )


@pytest.mark.parametrize("count", [MAX_LISTED_RECORDS, MAX_LISTED_RECORDS + 1])
def test_a_listing_stops_and_says_so(path: str, count: int) -> None:
    frames(path, *[b""] * count)
    listed = list_records(path)
    assert len(listed.records) == len(listed.to_dict()["records"]) == MAX_LISTED_RECORDS
    assert listed.truncated == listed.to_dict()["truncated"] == (count > MAX_LISTED_RECORDS)
    console = rich.console.Console(width=100)
    with console.capture() as captured:
        console.print(listed)
    assert (
        "only the first 2000 records are listed; the file holds more" in captured.get()
    ) == listed.truncated


def test_a_fifo_in_place_of_the_file_is_named(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    os.mkfifo(path)
    with pytest.raises(RecordsError) as caught:
        read_records(path)
    assert str(caught.value) == (
        f"Cannot read warmup file {path!r}: it is a fifo. Remove it, and write the file with "
        "keras_warmup.add_warmup."
    )


def test_scan_of_a_whole_file_has_no_problem(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "warmup"
    frames(path, b"abcdef", b"", b"x" * 100_000)
    assert [data for _, data in scan_records(path)] == [b"abcdef", b"", b"x" * 100_000]


def test_a_record_of_another_kind_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "warmup"
    frames(path, log_of(1).SerializeToString(), b"abcdef")
    records = read_records(path)
    assert next(records) == log_of(1)
    with pytest.raises(RecordsError) as caught:
        next(records)
    assert str(caught.value) == (
        f"Record 1 of warmup file {str(path)!r} is not a PredictionLog (6 bytes). Remove the file, "
        "and write it with keras_warmup.add_warmup."
    )
    assert parse_log(b"abcdef") is None


def test_a_missing_file_is_named_at_the_call(tmp_path: pathlib.Path) -> None:
    path = warmup_path(tmp_path)
    with pytest.raises(RecordsError) as caught:
        read_records(tmp_path)
    assert (
        str(caught.value) == f"No warmup file at {path!r}. Write one with keras_warmup.add_warmup."
    )
