"""Writes and reads the warmup file, and finds damage that a server silently accepts.

The file is an uncompressed TFRecord file with one serialized `PredictionLog` in each record
(TensorFlow Serving, `saved_model_warmup_util.cc`). A record is its length (uint64), the masked
crc32c of the length (uint32), the data, and the masked crc32c of the data (uint32), all
little-endian.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Literal

import tensorflow as tf
from google.protobuf.message import DecodeError, EncodeError

from keras_warmup._protos import PredictionLog, checked_records
from keras_warmup.errors import RecordsError
from keras_warmup.options import MAX_RECORDS
from keras_warmup.paths import as_path, explained, why_not_a_file
from keras_warmup.publishing.filesystem import make_parents, remove_empty, replace_file
from keras_warmup.publishing.workspace import Workspace, sweep

WARMUP_PATH = "assets.extra/tf_serving_warmup_requests"
# Bytes that TFRecord adds to the data of each record.
FRAME_BYTES = 16
_HEADER_BYTES = 12
# protobuf neither serializes nor parses larger messages, in the server too.
MAX_RECORD_BYTES = 2**31 - 1
_GZIP_MAGIC = b"\x1f\x8b"

ProblemKind = Literal["empty", "trailing", "truncated", "corrupted", "gzip", "too_large"]


@dataclasses.dataclass(frozen=True)
class RecordProblem:
    """A reason why a warmup file cannot be read to its end.

    Attributes:
        kind: `empty` (the file has no bytes), `trailing` (fewer bytes than a record header at the
            end), `truncated` (the file ends inside a record), `corrupted` (a checksum is wrong: the
            file is text or a bare proto, or is damaged), `gzip`, or `too_large` (the header of a
            record claims more than `MAX_RECORD_BYTES`, whether the file holds them or not).
        detail: a description of the problem.
        loads: whether the server silently loads the model with the records before the problem;
            otherwise the load fails.
    """

    kind: ProblemKind
    detail: str
    loads: bool


def warmup_path(export_dir: str | os.PathLike[str]) -> str:
    """Returns the path of the warmup file of a SavedModel."""
    return os.path.join(os.fspath(export_dir), *WARMUP_PATH.split("/"))


def write_records(
    path: str | os.PathLike[str],
    logs: Iterable[PredictionLog | bytes],
    *,
    max_records: int,
    max_bytes: int,
) -> list[int]:
    """Writes a warmup file; a file at `path` is replaced only after all records are written.

    Args:
        path: the file; its directory is created.
        logs: `PredictionLog`s, serialized or not, in the order in which the server replays them.
        max_records: maximum number of records.
        max_bytes: maximum size of the file, bytes.

    Returns:
        Serialized size of each record, bytes.

    Raises:
        RecordsError: the file exceeds a limit, a record has 2 GiB or more, or the file cannot be
            written.
    """
    path = os.fspath(path)
    with draft_of(path) as draft:
        sizes = draft.write(logs, max_records=max_records, max_bytes=max_bytes)
        draft.publish()
    return sizes


@dataclasses.dataclass(frozen=True)
class RecordsDraft:
    """A warmup file under construction.

    Attributes:
        path: where it is written; there is no file before `write`.
        target: the path at which it is published.
    """

    path: str
    target: str

    def write(
        self, logs: Iterable[PredictionLog | bytes], *, max_records: int, max_bytes: int
    ) -> list[int]:
        """Writes the records.

        The arguments, the result and the errors are those of `write_records`.
        """
        sizes: list[int] = []
        with _explained(self.target, "write"):
            try:
                with tf.io.TFRecordWriter(self.path) as writer:
                    for log in logs:
                        data = _serialize(log, len(sizes))
                        sizes.append(len(data))
                        _check_limits(self.target, sizes, max_records, max_bytes)
                        writer.write(data)
                        del log, data  # frees the record before the next one is built
            except EncodeError as error:
                raise RecordsError(
                    f"Record {len(sizes)} cannot be serialized: {error}. Use smaller batches."
                ) from error
        return sizes

    def publish(self, *, flush: bool = True) -> None:
        """Moves the file to `target`.

        Args:
            flush: as in `filesystem.replace_file`.

        Raises:
            RecordsError: the file system refuses to replace the file.
        """
        with _explained(self.target, "write"):
            replace_file(self.path, self.target, flush=flush)


@contextlib.contextmanager
def draft_of(path: str) -> Iterator[RecordsDraft]:
    """Creates a hidden directory beside `path` to write a warmup file in.

    The directory is removed at the end of the block. Directories that killed processes left there
    are removed too, because they hold training data.

    Args:
        path: the warmup file; its directory is created, and removed at the end if it is empty.

    Raises:
        RecordsError: `path` is a directory, or the file system refuses an operation.
    """
    created: list[str] = []
    directory = os.path.dirname(path) or "."
    workspace: Workspace | None = None
    try:
        with _explained(path, "write"):
            if tf.io.gfile.isdir(path):
                raise RecordsError(
                    f"Cannot write warmup file {path!r}: it is a directory. Remove it."
                )
            make_parents(directory, created)
            sweep(directory)
            workspace = Workspace(path)
        yield RecordsDraft(workspace.build, path)
    finally:
        if workspace is not None:
            workspace.close()
        for made in reversed(created):
            remove_empty(made)


def _explained(path: str, doing: str) -> contextlib.AbstractContextManager[None]:
    return explained(path, f"{doing} warmup file", RecordsError)


def read_records(path: str | os.PathLike[str]) -> Iterator[PredictionLog]:
    """Reads a warmup file, one record at a time.

    Args:
        path: a warmup file, or a SavedModel that has one.

    Yields:
        `PredictionLog`s in the order in which the server replays them.

    Raises:
        RecordsError: there is no file (raised by the call), or it is damaged (raised when the
            iteration reaches the damage).
    """
    path = as_path(path)
    # A directory at the place of the warmup file is not a SavedModel.
    is_file = path.rstrip("/").endswith(WARMUP_PATH) or not tf.io.gfile.isdir(path)
    file = path if is_file else warmup_path(path)
    _size(file)  # raises at the call, not at the first record, where there is no file
    return _read(file)


def read_all_records(path: str | os.PathLike[str]) -> list[PredictionLog]:
    """Reads all records of a warmup file.

    Args:
        path: a warmup file, or a SavedModel that has one.

    Returns:
        `PredictionLog`s in the order in which the server replays them.

    Raises:
        RecordsError: as in `read_records`, or the file holds more than the `options.MAX_RECORDS`
            records that a server loads.
    """
    logs = list(itertools.islice(read_records(path), MAX_RECORDS + 1))
    if len(logs) > MAX_RECORDS:
        raise RecordsError(
            f"Cannot read warmup file of {os.fspath(path)!r}: it holds more than {MAX_RECORDS} "
            "records, and no server loads a model with so many. Write it again with fewer."
        )
    return logs


def scan_records(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes | RecordProblem]]:
    """Reads the records of a TFRecord file, and reports damage that a server silently accepts.

    Args:
        path: a warmup file.

    Yields:
        `(index, data)` for each whole record. Where the file is damaged, the last item holds a
        `RecordProblem` in place of the data.

    Raises:
        RecordsError: the file does not exist, or cannot be read.
    """
    path = os.fspath(path)
    size = _size(path)
    if size == 0:
        detail = "the file is empty: the server silently loads the model cold"
        yield 0, RecordProblem("empty", detail, True)
        return
    with _explained(path, "read"):
        yield from _scan(path, size)


def _scan(path: str, size: int) -> Iterator[tuple[int, bytes | RecordProblem]]:
    # TensorFlow's reader checks the data: crc32c in Python takes minutes for a record of images.
    checked = checked_records(path)
    position, index = 0, 0
    with tf.io.gfile.GFile(path, "rb") as frames:
        while position < size:
            frames.seek(position)
            header = frames.read(_HEADER_BYTES)
            item: bytes | RecordProblem | None = _header_problem(header, position, size)
            if item is None:
                try:
                    item = next(checked)
                except (tf.errors.DataLossError, StopIteration):
                    detail = f"corrupted record at byte {position}: its data checksum is wrong"
                    item = RecordProblem("corrupted", detail, False)
            yield index, item
            if isinstance(item, RecordProblem):
                return
            position += FRAME_BYTES + len(item)
            index += 1


def parse_log(data: bytes) -> PredictionLog | None:
    """Parses a record; returns `None` where it is not a `PredictionLog` and the load fails."""
    try:
        return PredictionLog.FromString(data)
    except DecodeError:
        return None


def _read(path: str) -> Iterator[PredictionLog]:
    for index, item in scan_records(path):
        if isinstance(item, RecordProblem):
            raise RecordsError(
                f"Cannot read warmup file {path!r} at record {index}: {item.detail}."
            )
        log = parse_log(item)
        if log is None:
            raise RecordsError(
                f"Record {index} of warmup file {path!r} is not a PredictionLog ({len(item)} "
                "bytes). Remove the file, and write it with keras_warmup.add_warmup."
            )
        del item  # it may be as large as the record
        yield log
        del log


def _size(path: str) -> int:
    problem = why_not_a_file(path)
    if problem is not None:
        raise RecordsError(
            f"Cannot read warmup file {path!r}: {problem}. Remove it, and write the file with "
            "keras_warmup.add_warmup."
        )
    with _explained(path, "read"):
        try:
            return int(tf.io.gfile.stat(path).length)
        except tf.errors.NotFoundError as error:
            raise RecordsError(
                f"No warmup file at {path!r}. Write one with keras_warmup.add_warmup."
            ) from error


def _serialize(log: PredictionLog | bytes, index: int) -> bytes:
    data = log if isinstance(log, bytes) else bytes(log.SerializeToString(deterministic=True))
    if len(data) > MAX_RECORD_BYTES:
        raise RecordsError(
            f"Record {index} has {len(data)} bytes; protobuf reads at most {MAX_RECORD_BYTES}. "
            "Use smaller batches."
        )
    return data


def _check_limits(path: str, sizes: list[int], max_records: int, max_bytes: int) -> None:
    if len(sizes) > max_records:
        raise RecordsError(
            f"Warmup file {path!r} would hold more than {max_records} records (max_records). "
            "Ask for fewer signatures, batch sizes or output filters."
        )
    total = sum(sizes) + FRAME_BYTES * len(sizes)
    if total > max_bytes:
        raise RecordsError(
            f"Warmup file {path!r} would hold at least {total} bytes with record {len(sizes) - 1} "
            f"of {sizes[-1]} bytes; max_bytes is {max_bytes}. Use smaller batch_sizes or raise "
            "max_bytes."
        )


def _header_problem(header: bytes, position: int, size: int) -> RecordProblem | None:
    if len(header) < _HEADER_BYTES:
        return RecordProblem(
            "trailing",
            f"{len(header)} bytes at byte {position} are too few for a record header: the server "
            "silently ignores them",
            True,
        )
    (length,) = struct.unpack("<Q", header[:8])
    if struct.unpack("<I", header[8:])[0] != masked_crc32c(header[:8]):
        if position == 0 and header.startswith(_GZIP_MAGIC):
            return RecordProblem(
                "gzip", "it is GZIP; the server reads plain TFRecord only, so decompress it", False
            )
        hint = " (Is this even a TFRecord file?)" if position == 0 else ""
        return RecordProblem("corrupted", f"corrupted record at byte {position}{hint}", False)
    if length > MAX_RECORD_BYTES:
        return RecordProblem(
            "too_large",
            f"the record at byte {position} claims {length} bytes; protobuf, and so the server, "
            f"parses at most {MAX_RECORD_BYTES}",
            False,
        )
    missing = position + FRAME_BYTES + length - size
    if missing > 0:
        return RecordProblem(
            "truncated", f"truncated record at byte {position}: {missing} bytes are missing", False
        )
    return None


def masked_crc32c(data: bytes) -> int:
    """Computes the checksum of the 8 bytes of a record's length, masked as TFRecord masks it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
