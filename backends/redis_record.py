"""How one version of a state lies in Redis: 61 bytes of header, then the encoded state.

| bytes | field | meaning |
|---|---|---|
| 0-3 | magic | `DGR1` |
| 4-11 | version | of the state; 0: claimed, never saved |
| 12-19 | mark | new with each claim and each shared write; with the version it is the **stamp** |
| 20-27 | claims | the epoch of the newest owner |
| 28-31 | checksum | CRC-32 of what follows, begun with the version |
| 32-39 | writer | the mark of the write that stored these data: the proof of whose they are |
| 40-47 | epoch | the epoch of the owner who wrote them |
| 48-55 | saved_at | seconds since 1970 |
| 56-59 | schema | |
| 60 | tombstone | 1: deleted |
| 61- | data | |

Integers are big-endian. A write is refused unless the stored stamp is the one it builds on. A version alone
would not
do: after a restart that lost data, or an expiry, the same version may come again with other contents.
"""

from __future__ import annotations

import struct
from typing import Any
from zlib import crc32

import msgspec

from dgents.runtime.contract import Record
from dgents.runtime.errors import StateCorruptionError

MAGIC = b"DGR1"
STAMP_SIZE = 20
HEADER_SIZE = 61

_HEAD = struct.Struct(">4sQQQI")
_BODY = struct.Struct(">QQdIB")
_STAMP = struct.Struct(">4sQQ")
_SEED = 0xFFFFFFFF


class Header(msgspec.Struct, frozen=True, gc=False):
    """The part of a stored value that decides about writes."""

    version: int
    mark: int
    claims: int
    writer: int

    @property
    def stamp(self) -> bytes:
        """What a write that builds on this must find stored."""
        return stamp_of(self.version, self.mark)


def stamp_of(version: int, mark: int) -> bytes:
    """Return the bytes that stand at the head of a value of this version and mark."""
    return _STAMP.pack(MAGIC, version, mark)


def encode(record: Record, mark: int, claims: int) -> bytes:
    """Return a record as it is stored, written under ``mark``."""
    data = record.data
    deleted = data is None
    body = _BODY.pack(mark, record.epoch, record.saved_at, record.schema, deleted) + (data or b"")
    return _HEAD.pack(MAGIC, record.version, mark, claims, crc32(body, record.version & _SEED)) + body


def blank(mark: int) -> bytes:
    """Return the value of a state that was claimed for the first time and never saved."""
    return encode(Record(version=0, epoch=0, saved_at=0.0, data=None), mark, 1)


def decode_header(value: bytes, key: str) -> Header:
    """Return the header of a stored value.

    Raises:
        StateCorruptionError: somebody else's value is under the key.
    """
    if len(value) < HEADER_SIZE or value[:4] != MAGIC:
        raise StateCorruptionError(
            f"the Redis key of {key!r} holds something that dgents did not write",
            path=key,
            key=key,
            offset=0,
            hint="it was left as it is; move it away, or give the agent another key=",
        )
    _, version, mark, claims, _ = _HEAD.unpack_from(value)
    return Header(version, mark, claims, int.from_bytes(value[32:40], "big"))


def decode(value: bytes, key: str) -> tuple[Header, Record | None]:
    """Return the header of a stored value and its record; None for a state that was never saved.

    Raises:
        StateCorruptionError: it is not ours, or its checksum does not match.
    """
    header = decode_header(value, key)
    if crc32(memoryview(value)[32:], header.version & _SEED) != int.from_bytes(value[28:32], "big"):
        raise StateCorruptionError(
            f"the Redis value of {key!r} (version {header.version}) does not match its checksum",
            path=key,
            key=key,
            offset=28,
            hint="it was left as it is; restore it from a copy",
        )
    if header.version == 0:
        return header, None
    _, epoch, saved_at, schema, deleted = _BODY.unpack_from(value, 32)
    data = None if deleted else value[HEADER_SIZE:]
    return header, Record(version=header.version, epoch=epoch, saved_at=saved_at, data=data, schema=schema)


def decode_all(key: str, value: bytes | None, entries: list[Any]) -> list[Record]:
    """Return the versions in a state and its history entries (newest first), oldest first.

    Raises:
        StateCorruptionError: one of them can't be read.
    """
    current = decode(value, key)[1] if value is not None else None
    if current is None:
        return []
    records = (decode(fields[1], key)[1] for _, fields in reversed(entries))
    return [*(record for record in records if record and record.version < current.version), current]
