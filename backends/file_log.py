"""The log beside the file of a state: its earlier versions, byte for byte. Pure; no file is touched here.

As JSON, one line a commit behind a line that names the format; as MessagePack, one frame a commit:

    {"dgents-log": 1, "checksum": "0a1b2c3d", "start": 0, "requests": []}
    {"checksum": "0a1b2c3d", "versions": [{"version": 7, …, "state": {…}}], "requests": []}

    header   magic (8 bytes), format (u16), start (i64), CRC-32 of format and start (u32)
    frame    0xD6, length of the payload (u32), its CRC-32 (u32), CRC-32 of these 9 bytes (u32), payload, 0x0A

An offset in a log is *logical*: it stays what it is when the log is rewritten without its oldest versions.
``start`` is the logical offset of the first entry. A log of lines tells all by itself: its first line has the
requests that were remembered when it was made.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias
from zlib import crc32

import msgspec

from dgents.backends.compression import compress, decompress
from dgents.backends.file_format import (
    FORMAT_VERSION,
    Shape,
    check_version,
    corrupt,
    from_iso,
    to_iso,
)
from dgents.backends.tagged_json import from_json, to_json
from dgents.runtime.contract import Record, Request

Kind: TypeAlias = Literal["lines", "frames"]

_FIRST_LINE = re.compile(rb'\{"dgents-log": ([0-9]{1,5}), "checksum": "([0-9a-f]{8})", (.*)\}\n')
LINE_START = b'{"checksum": "'
LINE_PREFIX = len(LINE_START) + len('0a1b2c3d", ')
_MAGIC = b"\x89dgl\r\n\x1a\n"
_HEADER = struct.Struct(">8sHqI")
FRAME = struct.Struct(">BIII")
SUMMED = struct.Struct(">BII")
FRAME_MARK, FRAME_END = 0xD6, b"\n"


class Entry(msgspec.Struct, array_like=True):
    """What one commit appended: versions, oldest first, and the requests that it answered."""

    records: list[Record]
    requests: Sequence[Request]


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


class _Version(msgspec.Struct):
    version: int
    epoch: int
    saved_at: str
    schema: int
    state: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Line(msgspec.Struct):
    versions: list[_Version]
    requests: Sequence[Request]


class _FirstLine(msgspec.Struct):
    start: int
    requests: Sequence[Request]


_parse_line = msgspec.json.Decoder(_Line).decode
_decode_first_line = msgspec.json.Decoder(_FirstLine).decode
_encode_payload = msgspec.msgpack.Encoder().encode
_parse_payload = msgspec.msgpack.Decoder(Entry).decode


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


def encode_entry(records: Sequence[Record], requests: Sequence[Request], shape: Shape) -> bytes:
    """Return one commit as bytes to append."""
    if shape.lines:
        versions = b", ".join([_encode_version(record) for record in records])
        rest = b'"versions": [%s], "requests": %s}' % (versions, msgspec.json.encode(requests))
        return b'%s%08x", %s\n' % (LINE_START, crc32(rest), rest)
    payload = _encode_payload(Entry(list(records), requests))
    if shape.compression:
        payload = compress(payload, shape.compression)
    summed = SUMMED.pack(FRAME_MARK, len(payload), crc32(payload))
    return b"".join((summed, crc32(summed).to_bytes(4, "big"), payload, FRAME_END))


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


def decode_line(text: bytes) -> Entry:
    """Return the entry that a line holds, without its checksum; raises ValueError if it is none."""
    line = _parse_line(text)
    return Entry([_decode_version(version) for version in line.versions], line.requests)


def decode_payload(payload: bytes, path: str) -> Entry:
    """Return the entry that a frame holds; raises ValueError if it is none."""
    entry: Entry = _parse_payload(decompress(payload, path)[0])
    return entry
