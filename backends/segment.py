"""One segment of a journal: its bytes, and what they say when they are read back. See docs/journal.md.

    header  b"DGJOURNL"  version u32  salt u32  first u64  zero u32  crc u32                       32 bytes
    batch   b"DGB1"  crc u32  first u64  count u32  body crc u32  body length u64                  32 bytes
            a length u32 for each record, then the records                                         the body

Little-endian, CRC-32 as in zlib. A batch's ``crc`` covers the 24 bytes behind it and starts from the
segment's salt, so that a journal's bytes inside a record are not mistaken for the journal's own. A batch of
no records is a *mark*: everything before it is durable. It is written after the sync, and the next batch
goes over it.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from dgents.backends import files
from dgents.runtime.errors import StateCorruptionError, StorageError

Buffer: TypeAlias = bytes | memoryview

FORMAT_VERSION = 1
HEADER_BYTES = 32
BATCH_BYTES = 32
LENGTH_BYTES = 4
_SEGMENT_MAGIC = b"DGJOURNL"
_BATCH_MAGIC = b"DGB1"
_HEADER = struct.Struct("<8sIIQI")
_BATCH = struct.Struct("<QIIQ")
_CRC = struct.Struct("<I")
_READ_BYTES = 2**20
# More pieces than this are joined before their checksum is taken, which costs a copy and saves as many calls.
_FEW = 64
# Pieces from this size on are written one by one: to join them costs a copy, in which no other thread can run.
_LARGE = 2**20
_NAME = re.compile(r"(\d{20})\.journal")


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as it was read: its records' first sequence, their number, where it stands, and its body."""

    offset: int
    first: int
    count: int
    body: bytes

    @property
    def end(self) -> int:
        """The offset of the byte after it."""
        return self.offset + BATCH_BYTES + len(self.body)

    def records(self) -> list[bytes]:
        """Return the records, in order."""
        lengths = struct.unpack_from(f"<{self.count}I", self.body)
        found = []
        start = self.count * LENGTH_BYTES
        for length in lengths:
            found.append(self.body[start : start + length])
            start += length
        return found


def segment_path(directory: Path, first: int) -> Path:
    """Return the path of the segment whose first record is number ``first``."""
    return directory / f"{first:020d}.journal"


def first_in_name(name: str) -> int | None:
    """Return the sequence in a segment's file name, None for any other file."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def new_salt() -> int:
    """Return a salt for a new segment."""
    return int.from_bytes(os.urandom(4), "little")


def pack_header(first: int, salt: int) -> bytes:
    """Return the header of a new segment."""
    head = _HEADER.pack(_SEGMENT_MAGIC, FORMAT_VERSION, salt, first, 0)
    return head + _CRC.pack(zlib.crc32(head))


def batch_size(sizes: Sequence[int]) -> int:
    """Return how many bytes a batch of records of these sizes takes."""
    return BATCH_BYTES + LENGTH_BYTES * len(sizes) + sum(sizes)


def pack_batch(salt: int, first: int, pieces: Sequence[Buffer], sizes: Sequence[int]) -> list[Buffer]:
    """Return what to write for the batch of the records whose bytes are ``pieces``, one after the other.

    That is one piece, unless some are large. ``sizes`` are the lengths of the records.
    """
    table = struct.pack(f"<{len(sizes)}I", *sizes)
    if len(pieces) > _FEW:
        pieces = (b"".join(pieces),)
    checksum = zlib.crc32(table)
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    head = _BATCH.pack(first, len(sizes), checksum, len(table) + sum(sizes))
    small: list[Buffer] = [_BATCH_MAGIC, _CRC.pack(zlib.crc32(head, salt)), head, table]
    found: list[Buffer] = []
    for piece in pieces:
        if len(piece) < _LARGE:
            small.append(piece)
        else:
            found += (b"".join(small), piece)
            small = []
    return [*found, b"".join(small)] if small else found


def pack_mark(salt: int, following: int) -> bytes:
    """Return the mark before record ``following``."""
    head = _BATCH.pack(following, 0, 0, 0)
    return _BATCH_MAGIC + _CRC.pack(zlib.crc32(head, salt)) + head


@dataclass(frozen=True, slots=True)
class Tail:
    """How a segment ends: the next record's number, the last batch with records, whether a mark follows."""

    next: int
    last: Batch | None
    marked: bool

    @property
    def end(self) -> int:
        """Where the next batch goes."""
        return self.last.end if self.last else HEADER_BYTES

    @property
    def kept(self) -> int:
        """How many bytes of the file are intact."""
        return self.end + BATCH_BYTES * self.marked


class SegmentReader:
    """Reads one open segment, its first ``limit`` bytes, a buffer's length at a time.

    Raises:
        StateCorruptionError: the header is broken, or not the one of this file.
        StorageError: it was written by a newer version of the library.
    """

    def __init__(self, path: Path, fd: int, limit: int) -> None:
        self.path = path
        self.limit = limit
        self._fd = fd
        self._buffer = b""
        self._buffered_from = 0
        head = self._get(0, HEADER_BYTES)
        if len(head) < HEADER_BYTES or _CRC.unpack(head[-4:])[0] != zlib.crc32(head[:-4]):
            raise self.broken(0, "its header is broken")
        magic, version, self.salt, self.first, _ = _HEADER.unpack(head[:-4])
        if magic != _SEGMENT_MAGIC or self.first != first_in_name(path.name):
            raise self.broken(0, "its header is not the one of this file")
        if version != FORMAT_VERSION:
            raise StorageError(
                f"{path} has journal format {version}, this version of dgents reads {FORMAT_VERSION}",
                retryable=False,
                hint="read it with the dgents that wrote it, or a newer one",
            )

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield every batch and mark that holds or follows record ``start``, each one checked.

        Raises:
            StateCorruptionError: at ``offset``, no whole batch with the next sequence stands there.
        """
        offset = HEADER_BYTES
        expected = self.first
        while offset < self.limit:
            head = self._head(offset)
            if head is None:
                raise self.broken(offset, "no batch starts there")
            first, count, body_crc, length = head
            if first != expected:
                raise self.broken(offset, f"record {first} stands where {expected} belongs")
            if length > self.limit - offset - BATCH_BYTES:
                raise self.broken(offset, "the batch there is incomplete")
            expected += count
            if expected > start or not count:
                body = self._get(offset + BATCH_BYTES, length)
                batch = Batch(offset, first, count, body)
                if len(body) != length or zlib.crc32(body) != body_crc or not _adds_up(batch):
                    raise self.broken(offset, "the batch there fails its checksum")
                yield batch
            offset += BATCH_BYTES + length

    def whole(self, start: int, following: int) -> Iterator[Batch]:
        """Yield every batch of records that holds or follows record ``start``; the last record is ``following`` - 1.

        Raises:
            StateCorruptionError: on reaching a broken batch, or the end too early.
        """
        expected = self.first
        for batch in self.batches(start):
            expected = batch.first + batch.count
            if batch.count:
                yield batch
        if expected != following:
            raise self.broken(self.limit, f"records {expected} to {following - 1} are missing")

    def tail(self) -> Tail:
        """Find where the last segment ends; what is broken there is a torn write if nothing follows.

        Raises:
            StateCorruptionError: something intact follows what is broken.
        """
        tail = Tail(self.first, None, False)
        try:
            for batch in self.batches():
                tail = Tail(batch.first + batch.count, batch if batch.count else tail.last, not batch.count)
        except StateCorruptionError as error:
            if error.offset is None or self._is_followed(error.offset, tail.next):
                raise
        return tail

    def _is_followed(self, offset: int, expected: int) -> bool:
        """Tell whether an intact batch or mark later than ``expected`` starts at ``offset`` or behind it.

        Only then was what stood at ``offset`` acknowledged: a batch is written after the sync of the one
        before.
        """
        while offset < self.limit:
            part = self._get(offset, min(_READ_BYTES, self.limit - offset))
            if not part:
                return False
            at = part.find(_BATCH_MAGIC)
            while at >= 0:
                head = self._head(offset + at)
                if head is not None and head[0] > expected:
                    return True
                at = part.find(_BATCH_MAGIC, at + 1)
            offset += max(len(part) - len(_BATCH_MAGIC) + 1, 1)
        return False

    def broken(self, offset: int, what: str) -> StateCorruptionError:
        """Return the error for a segment that says ``what`` at ``offset``."""
        return StateCorruptionError(
            f"the journal segment {self.path} can't be read at byte {offset}: {what}",
            path=str(self.path),
            offset=offset,
            hint="it was left as it is; restore a copy, or read what is before that byte",
        )

    def _head(self, offset: int) -> tuple[int, int, int, int] | None:
        head = self._get(offset, BATCH_BYTES)
        if len(head) < BATCH_BYTES or head[:4] != _BATCH_MAGIC:
            return None
        if _CRC.unpack_from(head, 4)[0] != zlib.crc32(head[8:], self.salt):
            return None
        first, count, body_crc, length = _BATCH.unpack_from(head, 8)
        return first, count, body_crc, length

    def _get(self, offset: int, size: int) -> bytes:
        size = min(size, self.limit - offset)
        at = offset - self._buffered_from
        if at < 0 or at + size > len(self._buffer):
            wanted = min(max(size, _READ_BYTES), self.limit - offset)
            self._buffer = files.layer.pread(self._fd, wanted, offset)
            self._buffered_from = offset
            at = 0
        return self._buffer[at : at + size]


def _adds_up(batch: Batch) -> bool:
    table = batch.count * LENGTH_BYTES
    if table > len(batch.body):
        return False
    lengths: tuple[int, ...] = struct.unpack_from(f"<{batch.count}I", batch.body)
    return sum(lengths) == len(batch.body) - table
