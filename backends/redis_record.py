"""How one version of a state lies in Redis: 77 bytes of header, then the encoded state.

| bytes | field | meaning |
|---|---|---|
| 0-3 | magic | `DGR2` |
| 4-11 | version | of the state; 0: claimed, never saved |
| 12-19 | mark | new with each claim and each shared write; with the version it is the **stamp** |
| 20-27 | claims | the epoch of the newest owner |
| 28-31 | checksum | CRC-32 of what follows, begun with the version |
| 32-39 | writer | the mark of the write that stored these data: the proof of whose they are |
| 40-47 | epoch | the epoch of the owner who wrote them |
| 48-55 | saved_at | seconds since 1970 |
| 56-59 | schema | |
| 60 | tombstone | 1: deleted |
| 61-68 | oldest | version that the history must have, and all from there on; 0: there is no history |
| 69-76 | requests | how many request ids were ever remembered |
| 77- | data | |

Integers are big-endian. A write is refused unless the stored stamp is the one it builds on. A version alone would not
do: after a restart that lost data, or an expiry, the same version may come again with other contents.

History and request ids are keys of their own, which an eviction or a hand can take alone. The header says what has to
be there, so that a part which is gone is found and not taken for one that never was.
"""

from __future__ import annotations

import struct
from typing import Any
from zlib import crc32

import msgspec

from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError

MAGIC = b"DGR2"
STAMP_SIZE = 20
HEADER_SIZE = 77
MAX_REQUESTS = 1000

_HEAD = struct.Struct(">4sQQQI")
_BODY = struct.Struct(">QQdIBQQ")
_STAMP = struct.Struct(">4sQQ")
_SEED = 0xFFFFFFFF


class Header(msgspec.Struct, frozen=True, gc=False):
    """The part of a stored value that decides about writes."""

    version: int
    mark: int
    claims: int
    writer: int
    oldest: int = 0  # version that the history must have; 0: there is none
    requests: int = 0  # how many ids were ever remembered

    @property
    def stamp(self) -> bytes:
        """What a write that builds on this must find stored."""
        return stamp_of(self.version, self.mark)


def stamp_of(version: int, mark: int) -> bytes:
    """Return the bytes that stand at the head of a value of this version and mark."""
    return _STAMP.pack(MAGIC, version, mark)


def encode(record: Record, head: Header) -> bytes:
    """Return a record as it is stored by the write that makes the header ``head`` with its newest record."""
    data = record.data
    body = _BODY.pack(
        head.writer, record.epoch, record.saved_at, record.schema, data is None, head.oldest, head.requests
    ) + (data or b"")
    return _HEAD.pack(MAGIC, record.version, head.mark, head.claims, crc32(body, record.version & _SEED)) + body


def blank(mark: int) -> bytes:
    """Return the value of a state that was claimed for the first time and never saved."""
    return encode(Record(version=0, epoch=0, saved_at=0.0, data=None), Header(0, mark, 1, mark))


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
    writer, _, _, _, _, oldest, requests = _BODY.unpack_from(value, 32)
    return Header(version, mark, claims, writer, oldest, requests)


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
    _, epoch, saved_at, schema, deleted, _, _ = _BODY.unpack_from(value, 32)
    data = None if deleted else value[HEADER_SIZE:]
    return header, Record(version=header.version, epoch=epoch, saved_at=saved_at, data=data, schema=schema)


def decode_all(key: str, value: bytes | None, entries: list[Any], count: int) -> list[Record]:
    """Return the versions in a state and the newest ``count`` entries of its history (newest first), oldest first.

    Raises:
        StateCorruptionError: one of them can't be read, or is missing: of those that the history must have.
    """
    if value is None:
        return []
    header, current = decode(value, key)
    if current is None or not header.oldest:
        return [] if current is None else [current]
    records = [record for _, fields in reversed(entries) if (record := decode(fields[1], key)[1]) is not None]
    first = max(header.oldest, header.version - count + 1)
    missing = {*range(first, header.version + 1)} - {record.version for record in records}
    if missing:
        raise torn(key, f"version {min(missing)} is not in its history ({len(missing)} of them are missing)")
    return [*(record for record in records if record.version < header.version), current]


def decode_requests(key: str, value: bytes, stored: list[bytes]) -> list[Request]:
    """Return the remembered request ids of a state, oldest first; ``value`` is its header, empty if it is absent.

    Raises:
        StateCorruptionError: some that should be remembered are missing, or can't be read.
    """
    expected = min(decode_header(value, key).requests, MAX_REQUESTS) if value else 0
    if not expected:
        return []  # what is there then is of a state that has just expired
    if len(stored) != expected:
        raise torn(key, f"{len(stored)} of its {expected} request ids are there")
    try:
        return [decode_request(data) for data in stored]
    except msgspec.DecodeError as error:
        raise torn(key, f"a request id can't be read ({error})") from error


def decode_request(data: bytes) -> Request:
    """Return a remembered request id."""
    return msgspec.msgpack.decode(data, type=Request)


def torn(key: str, what: str) -> StateCorruptionError:
    """Return the error for a state of which a part is gone."""
    return StateCorruptionError(
        f"the state {key!r} in Redis is damaged: {what}",
        path=key,
        key=key,
        hint="an eviction or a hand took it (docs/redis.md); nothing was changed: restore a copy, or delete its keys",
    )
