"""A change of a vector store as bytes: what its journal holds, one record a change.

length u16, front     MessagePack [version, epoch, saved_at, schema, request ids]
length u32, head      MessagePack [ids, states], or [ids] of those that are deleted
vectors               float32, little-endian, one after the other; nothing where ids are deleted
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import msgspec

from dgents.backends.segment import Buffer
from dgents.backends.vector_states import Id
from dgents.runtime.contract import Record

_encode = msgspec.msgpack.Encoder().encode


# What a `Record` of a vector store has for its data: two pieces, so that megabytes of vectors need not be copied.
Packed: TypeAlias = tuple[bytes, memoryview]

_NOTHING = memoryview(b"")


class Front(msgspec.Struct, frozen=True, array_like=True):
    """What is told of a change beside its content."""

    version: int
    epoch: int
    saved_at: float
    schema: int
    requests: list[str]


class Change(NamedTuple):
    """What a change holds. ``states`` is None where the ids are deleted, and ``vectors`` is empty then."""

    ids: list[Id]
    states: list[bytes] | None
    vectors: memoryview


_decode_front = msgspec.msgpack.Decoder(Front).decode
_decode_head = msgspec.msgpack.Decoder(list[Any]).decode


def pack_upsert(ids: Sequence[Id], states: Sequence[bytes], vectors: Any) -> Packed:
    """Return an upsert; ``vectors`` is a C-contiguous matrix of float32, which nobody may change any more."""
    head = _encode((ids, states))
    return len(head).to_bytes(4, "little") + head, memoryview(vectors).cast("B")


def pack_delete(ids: Sequence[Id]) -> Packed:
    """Return a deletion."""
    head = _encode((ids,))
    return len(head).to_bytes(4, "little") + head, _NOTHING


def pack_record(record: Record, requests: list[str]) -> tuple[Buffer, Buffer]:
    """Return a change, with what is told of it, as the two pieces of a record of the journal."""
    head, vectors = cast(Packed, record.data)
    front = _encode(Front(record.version, record.epoch, record.saved_at, record.schema, requests))
    return b"".join((len(front).to_bytes(2, "little"), front, head)), vectors


def unpack_record(record: bytes) -> tuple[Front, Change]:
    """Return what `pack_record` packed; raises `ValueError` for anything else."""
    data = memoryview(record)
    start = 2 + int.from_bytes(data[:2], "little")
    front = _decode_front(data[2:start])
    end = start + 4 + int.from_bytes(data[start : start + 4], "little")
    ids, *states = _decode_head(data[start + 4 : end])
    return front, Change(ids, states[0] if states else None, data[end:])
