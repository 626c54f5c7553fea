"""The log beside the file of a state: its earlier versions, byte for byte. Pure; no file is touched here.

As JSON, one line a commit behind a line that names the format; as MessagePack, one frame a commit:

    {"dgents-log": 1, "checksum": "0a1b2c3d", "start": 0, "requests": []}
    {"checksum": "0a1b2c3d", "versions": [{"version": 7, …, "state": {…}}], "requests": []}

    header   magic (8 bytes), format (u16), start (i64), CRC-32 of format and start (u32)
    frame    0xD6, length of the payload (u32), its CRC-32 (u32), CRC-32 of these 9 bytes (u32), payload, 0x0A

An offset in a log is *logical*: it stays what it is when the log is rewritten without its oldest versions.
``start`` is the logical offset of the first entry. A log of lines tells all by itself: its first line has the
requests that were remembered when it was made.

What a crash leaves of the last entry is told from damage: it is *torn* if the file ends within it, or if a whole
sector of it was never written (zeros), or if what stands there is far from an entry. Before others it is damage.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias
from zlib import crc32

import msgspec

from dgents.backends.compression import compress, decompress
from dgents.backends.file_format import (
    FORMAT_VERSION,
    SECTOR,
    Shape,
    check_version,
    corrupt,
    from_iso,
    has_unwritten_sector,
    nearly,
    to_iso,
)
from dgents.backends.tagged_json import from_json, to_json
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError

Kind: TypeAlias = Literal["lines", "frames"]

_FIRST_LINE = re.compile(rb'\{"dgents-log": ([0-9]{1,5}), "checksum": "([0-9a-f]{8})", (.*)\}\n')
_LINE_START = b'{"checksum": "'
_LINE_PREFIX = len(_LINE_START) + len('0a1b2c3d", ')
_MAGIC = b"\x89dgl\r\n\x1a\n"
_HEADER = struct.Struct(">8sHqI")
_FRAME = struct.Struct(">BIII")
_SUMMED = struct.Struct(">BII")
_MARK, _END = 0xD6, b"\n"


class Entry(msgspec.Struct, array_like=True):
    """What one commit appended: versions, oldest first, and the requests that it answered."""

    records: list[Record]
    requests: list[Request]


class LogHead(NamedTuple):
    """How a log is written; the logical offset of its first entry, and that one's place in the file."""

    kind: Kind
    start: int
    size: int
    requests: Sequence[Request] = ()

    def place(self, offset: int) -> int:
        """Return the place in the file of a logical offset."""
        return offset - self.start + self.size

    def offset(self, place: int) -> int:
        """Return the logical offset of a place in the file."""
        return place - self.size + self.start


class TornError(Exception):
    """The last entry was not written to its end; ``place`` is where it begins."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class _Version(msgspec.Struct):
    version: int
    epoch: int
    saved_at: str
    schema: int
    state: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Line(msgspec.Struct):
    versions: list[_Version]
    requests: list[Request]


class _FirstLine(msgspec.Struct):
    start: int
    requests: list[Request]


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_first_line = msgspec.json.Decoder(_FirstLine).decode
_encode_payload = msgspec.msgpack.Encoder().encode
_decode_payload = msgspec.msgpack.Decoder(Entry).decode


def kind_of(shape: Shape) -> Kind:
    """Return the kind of log that belongs to a file of this shape."""
    return "lines" if shape.lines else "frames"


def encode_head(kind: Kind, start: int, requests: Sequence[Request]) -> bytes:
    """Return the beginning of a log; only one of lines keeps ``requests``."""
    if kind == "frames":
        checksum = crc32(struct.pack(">Hq", FORMAT_VERSION, start))
        return _HEADER.pack(_MAGIC, FORMAT_VERSION, start, checksum)
    rest = b'"start": %d, "requests": %s' % (start, msgspec.json.encode(requests))
    checksum = crc32(rest, crc32(b"%d" % FORMAT_VERSION))
    return b'{"dgents-log": %d, "checksum": "%08x", %s}\n' % (FORMAT_VERSION, checksum, rest)


def decode_head(content: bytes, path: str) -> LogHead:
    """Return how the log at ``path`` is written, from its beginning.

    Raises:
        StateCorruptionError: it does not begin as a log.
        StorageError: a newer dgents wrote it.
    """
    if content.startswith(_MAGIC) and len(content) >= _HEADER.size:
        _, version, start, checksum = _HEADER.unpack_from(content)
        if checksum != crc32(struct.pack(">Hq", version, start)):
            raise corrupt(path, 0, "the checksum of its header does not fit")
        check_version(version, path)
        return LogHead("frames", start, _HEADER.size)
    first = _FIRST_LINE.match(content)
    if first is None or int(first[2], 16) != crc32(first[3], crc32(first[1])):
        raise corrupt(path, 0, "it does not begin as a log does")
    check_version(int(first[1]), path)
    try:
        line = _decode_first_line(b"{%s}" % first[3])
    except ValueError as error:
        raise corrupt(path, 0, str(error)) from error
    return LogHead("lines", line.start, first.end(), line.requests)


def head_is_whole(content: bytes) -> bool:
    """Say whether so much of a log is enough for `decode_head`, or more of it would not help."""
    return content.startswith(_MAGIC[:1]) or b"\n" in content


def encode_entry(records: Sequence[Record], requests: list[Request], shape: Shape) -> bytes:
    """Return one commit as bytes to append."""
    if shape.lines:
        versions = b", ".join([_encode_version(record) for record in records])
        rest = b'"versions": [%s], "requests": %s}' % (versions, msgspec.json.encode(requests))
        return b'%s%08x", %s\n' % (_LINE_START, crc32(rest), rest)
    payload = _encode_payload(Entry(list(records), requests))
    if shape.compression:
        payload = compress(payload, shape.compression)
    summed = _SUMMED.pack(_MARK, len(payload), crc32(payload))
    return b"".join((summed, crc32(summed).to_bytes(4, "big"), payload, _END))


def _encode_version(record: Record) -> bytes:
    state = b"" if record.data is None else b', "state": ' + to_json(record.data)
    return b'{"version": %d, "epoch": %d, "saved_at": "%s", "schema": %d%s}' % (
        record.version,
        record.epoch,
        to_iso(record.saved_at).encode(),
        record.schema,
        state,
    )


def _decode_version(version: _Version) -> Record:
    data = None if isinstance(version.state, msgspec.UnsetType) else from_json(version.state)
    return Record(version.version, version.epoch, from_iso(version.saved_at), data, version.schema)


def decode_entries(content: bytes, shape: Shape, path: str) -> Iterator[Record]:
    """Yield the versions in entries that stand for themselves.

    Raises:
        StateCorruptionError: one of them was changed.
    """
    try:
        for _, entry in LogReader(content, LogHead(kind_of(shape), 0, 0), path).entries(0):
            yield from entry.records
    except TornError as error:
        raise corrupt(path, error.place, "an earlier version in it is not whole") from error


class LogReader:
    """The entries of a log, or of the rest of one.

    Args:
        content: what the file holds from ``skipped`` on, a multiple of the sector size.
    """

    def __init__(self, content: bytes, head: LogHead, path: str, *, skipped: int = 0) -> None:
        assert skipped % SECTOR == 0
        self._content = content
        self._path = path
        self._skipped = skipped
        self._read = self._read_line if head.kind == "lines" else self._read_frame

    def entries(self, place: int) -> Iterator[tuple[int, Entry]]:
        """Yield each entry from ``place`` in the file on, and the place behind it.

        Raises:
            TornError: the last entry is incomplete.
            StateCorruptionError: an entry was changed.
        """
        at = place - self._skipped
        while at < len(self._content):
            at, entry = self._read(at)
            yield at + self._skipped, entry

    def _read_line(self, at: int) -> tuple[int, Entry]:
        end = self._content.find(b"\n", at)
        rest = self._content[at + _LINE_PREFIX : end]  # without the last byte, where there is no end
        fits = self._content[at : at + _LINE_PREFIX] == b'%s%08x", ' % (_LINE_START, crc32(rest))
        if end < 0 or not fits:
            raise self._damaged(at, "the checksum of this entry does not fit") if fits else self._bad_line(at, end)
        try:
            line = _decode_line(b"{" + rest)
            records = [_decode_version(version) for version in line.versions]
        except (ValueError, RecursionError) as error:
            raise self._damaged(at, str(error)) from error
        return end + 1, Entry(records, line.requests)

    def _bad_line(self, at: int, end: int) -> Exception:
        """Return the error for a line that does not fit: torn if it is the last, and not just changed."""
        content = self._content
        if end >= 0:
            start = content[at : at + len(_LINE_START)]
            unwritten = has_unwritten_sector(content, at, end) or not any(start)
            if self._line_follows(end + 1) or (nearly(start, _LINE_START) and not unwritten):
                return self._damaged(at, "the checksum of this entry does not fit")
        return TornError(at + self._skipped)

    def _line_follows(self, at: int) -> bool:
        while (end := self._content.find(b"\n", at)) >= 0:
            checksum = crc32(self._content[at + _LINE_PREFIX : end])
            if self._content[at : at + _LINE_PREFIX] == b'%s%08x", ' % (_LINE_START, checksum):
                return True
            at = end + 1
        return False

    def _read_frame(self, at: int) -> tuple[int, Entry]:
        content, body = self._content, at + _FRAME.size
        if len(content) < body:
            raise TornError(at + self._skipped)
        mark, length, checksum, own = _FRAME.unpack_from(content, at)
        if mark != _MARK or own != crc32(content[at : at + _SUMMED.size]):
            raise self._torn_or_damaged(at, body)
        end = body + length + 1
        if end > len(content):
            raise TornError(at + self._skipped)
        payload = content[body : end - 1]
        if crc32(payload) != checksum or content[end - 1 : end] != _END:
            if end == len(content) and has_unwritten_sector(content, at, end):
                raise TornError(at + self._skipped)
            raise self._damaged(at, "the checksum of this entry does not fit")
        try:
            entry: Entry = _decode_payload(decompress(payload, self._path)[0])
        except (ValueError, RecursionError) as error:
            raise self._damaged(at, str(error)) from error
        return end, entry

    def _torn_or_damaged(self, at: int, body: int) -> Exception:
        """Return the error for what begins no frame: damage if it nearly does, or if a frame follows."""
        content = self._content
        if not has_unwritten_sector(content, at, body) and (
            _is_one_bit_off(content[at:body]) or _frame_follows(content, at + 1)
        ):
            return self._damaged(at, "an entry should begin here")
        return TornError(at + self._skipped)

    def _damaged(self, at: int, reason: str) -> StateCorruptionError:
        return corrupt(self._path, at + self._skipped, reason)


def _is_one_bit_off(frame: bytes) -> bool:
    value = int.from_bytes(frame, "big")
    for bit in range(8 * len(frame)):
        mended = (value ^ 1 << bit).to_bytes(len(frame), "big")
        if mended[0] == _MARK and crc32(mended[: _SUMMED.size]) == int.from_bytes(mended[_SUMMED.size :], "big"):
            return True
    return False


def _frame_follows(content: bytes, place: int) -> bool:
    while (place := content.find(bytes([_MARK]), place)) >= 0:
        summed = content[place : place + _SUMMED.size]
        own = content[place + _SUMMED.size : place + _FRAME.size]
        if len(own) == 4 and crc32(summed) == int.from_bytes(own, "big"):
            return True
        place += 1
    return False
