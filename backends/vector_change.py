"""A change of a vector store as bytes, one record of its journal, and how such records are applied when it is opened.

length u16, front     MessagePack [version, epoch, saved_at, schema, request ids]
length u32, head      MessagePack [ids, states], or [ids] of those that are deleted
vectors               float32, little-endian, one after the other; nothing where ids are deleted
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import msgspec

from dgents.backends.segment import Buffer
from dgents.backends.vector_states import Id, States, following
from dgents.runtime.contract import Record, Request

if TYPE_CHECKING:
    from dgents.backends.vector_index import VectorIndex

_encode = msgspec.msgpack.Encoder().encode


# What a `Record` of a vector store has for its data: two pieces, so that megabytes of vectors need not be copied.
Packed: TypeAlias = tuple[bytes, memoryview]

_NOTHING = memoryview(b"")
_AT_ONCE = 4096  # vectors that are applied together


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


@dataclass
class Contents:
    """The entries of a vector store, and what is known of the newest change.

    Attributes:
        changes: how many entries were changed since the snapshot.
    """

    index: VectorIndex
    states: States
    version: int = 0
    epoch: int = 0
    saved_at: float = 0.0
    next_id: int = 1
    changes: int = 0


class Replay:
    """Applies changes in order, many upserts at a time: one by one they would take ten times as long.

    Args:
        lift: brings a state of an older schema version to ``schema``.
    """

    def __init__(self, contents: Contents, lift: Callable[[bytes, int], bytes], schema: int) -> None:
        self._contents = contents
        self._lift = lift
        self._schema = schema
        self._ids: list[Id] = []
        self._states: list[bytes] = []
        self._vectors: list[memoryview] = []

    def add(self, number: int, record: bytes) -> list[Request]:
        """Take over one change of the journal, and return the request ids in it.

        Raises:
            ValueError: it is none, or not number ``number``.
        """
        contents = self._contents
        front, change = unpack_record(record)
        if front.version != number or number != contents.version + 1:
            raise ValueError(f"it says that it is change {front.version}")
        contents.version, contents.epoch, contents.saved_at = front.version, front.epoch, front.saved_at
        contents.changes += len(change.ids)
        if change.states is None:
            self.apply()
            contents.index.delete(change.ids)
            contents.states.delete(change.ids)
        else:
            self._ids += change.ids
            self._states += [self._lift(state, front.schema) for state in change.states]
            self._vectors.append(change.vectors)
            contents.next_id = max(contents.next_id, following(change.ids))
            if len(self._ids) >= _AT_ONCE:
                self.apply()
        return [Request(id, number) for id in front.requests]

    def apply(self) -> None:
        """Apply the upserts that were gathered."""
        if not self._ids:
            return
        import numpy as np  # an optional dependency; it was imported with the index

        index = self._contents.index
        matrix = np.frombuffer(b"".join(self._vectors), "<f4").reshape(len(self._ids), index.dimension)
        index.upsert(self._ids, matrix)
        self._contents.states.set(self._ids, self._states)
        self._ids, self._states, self._vectors = [], [], []
