"""How the events of a stream lie in its directory: records of a journal, and the files beside it. See docs/streams.md.

A record is the MessagePack array ``[version, epoch, saved_at, schema, tag, event, link, request]``; with a key, the
newest one of a commit has the signature of its link behind that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import msgspec

from dgents.backends import files
from dgents.backends.event_codec import is_linked
from dgents.backends.event_log import CHUNK, StateSnapshot, framed, unframed, unpack_snapshot
from dgents.backends.segment import LENGTH_BYTES, Batch, first_in_name
from dgents.runtime.contract import Record
from dgents.runtime.errors import StateCorruptionError

LATEST, FLOOR, HEAD, OWNER_LOCK = "latest.snapshot", "floor.snapshot", "head", "owner.lock"
CHUNK_BYTES = 2**20
# [version u64, epoch u32, saved_at f64, schema u16, and the five that follow]
_FRONT = struct.Struct(">BBQBIBdBH")
_NIL = b"\xc0"

_encode = msgspec.msgpack.Encoder().encode


def pack_event(record: Record, request: str | None) -> bytes:
    """Return an event as a record of the journal."""
    data = record.data
    assert data is not None
    front = _FRONT.pack(0x98, 0xCF, record.version, 0xCE, record.epoch, 0xCB, record.saved_at, 0xCD, record.schema)
    link = b"" if is_linked(data) else _NIL
    return b"".join((front, memoryview(data)[1:], link, _NIL if request is None else _encode(request)))


def signed(record: bytes, signature: bytes) -> bytes:
    """Return a record with the signature of its event."""
    return b"".join((b"\x99", memoryview(record)[1:], _encode(signature)))


def holds_events(directory: Path) -> bool:
    """Say whether there is a log of events in a directory, also an empty one."""
    return any(first_in_name(name) is not None for name in files.layer.entries(directory))


def write_snapshot(path: Path, content: bytes) -> None:
    """Keep a packed snapshot in place of the one before, atomically."""
    files.write_atomically(path, framed(content))


def read_snapshot(path: Path, actor: str) -> StateSnapshot | None:
    """Return what is kept in a snapshot's file, None if there is none.

    Raises:
        StateCorruptionError: it is damaged.
    """
    try:
        found = files.layer.read(path)
    except FileNotFoundError:
        return None
    content = unframed(found)
    if content is not None:
        return unpack_snapshot(content, actor)
    raise StateCorruptionError(
        f"the snapshot {path} is damaged, and the events in front of it were compacted",
        path=str(path),
        actor=actor,
        hint="it was left as it is; restore a copy",
    )


def last_record(batch: Batch) -> bytes:
    """Return the last record of a batch."""
    (length,) = struct.unpack_from("<I", batch.body, (batch.count - 1) * LENGTH_BYTES)
    return batch.body[len(batch.body) - length :]


def pieces(batch: Batch, after: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield a batch's records, joined, some thousands at a time: the number of the first, how many, their bytes.

    Of a large batch, those up to number ``after`` are left out.
    """
    start = batch.count * LENGTH_BYTES
    if batch.count <= CHUNK and len(batch.body) <= 2 * CHUNK_BYTES:
        yield batch.first, batch.count, batch.body[start:]
        return
    ends = list(accumulate(struct.unpack_from(f"<{batch.count}I", batch.body), initial=start))
    position = max(after + 1 - batch.first, 0)
    while position < batch.count:
        until = min(position + CHUNK, batch.count)
        while until > position + 1 and ends[until] - ends[position] > CHUNK_BYTES:
            until = position + (until - position) // 2
        yield batch.first + position, until - position, batch.body[ends[position] : ends[until]]
        position = until
