"""The snapshot of a vector store as bytes: its states, and behind them its index.

8 bytes ``DGVECS1\\n``; frames, each a length u64 and its content: the head (MessagePack), blocks of states (MessagePack
[ids, states]), an empty frame; SHA-256 of all that; then the index as `vector_snapshot` writes it, which has a digest
of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dgents.backends.vector_states import Id, StatesView
from dgents.runtime.contract import Request

if TYPE_CHECKING:
    from dgents.backends.vector_snapshot import Snapshot

_MAGIC = b"DGVECS1\n"
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
_BLOCK = 4096  # states


class Head(msgspec.Struct, frozen=True):
    """What a snapshot is of.

    Attributes:
        version, epoch, saved_at: of the newest change in it.
        schema: the version of the states' schema.
        next_id: what the next generated id is.
        requests: the request ids that are remembered; filled in when it is written.
    """

    version: int
    epoch: int
    saved_at: float
    schema: int
    next_id: int
    requests: tuple[Request, ...] = ()


class Capture(NamedTuple):
    """One moment of an actor, to be written while it goes on."""

    head: Head
    states: StatesView
    vectors: Snapshot

    def close(self) -> None:
        """Let go of the moment."""
        self.states.close()
        self.vectors.close()


def chunks(capture: Capture) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a snapshot."""
    digest = hashlib.sha256()
    for chunk in _heading(capture):
        digest.update(chunk)
        yield chunk
    yield digest.digest()
    yield from capture.vectors


def parse(content: memoryview) -> tuple[Head, Iterator[tuple[list[Id], list[bytes]]], memoryview]:
    """Return the head of a snapshot, its blocks of ids and states, and the bytes of its index, which are not checked.

    Raises:
        ValueError: it is none, or not as it was written. A block may raise `msgspec.MsgspecError`.
    """
    if content[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin as one")
    frames, end = _frames(content)
    if not frames or hashlib.sha256(content[:end]).digest() != content[end : end + _DIGEST_BYTES]:
        raise ValueError("it was changed since it was written: its digest differs")
    blocks = (msgspec.msgpack.decode(frame, type=tuple[list[Id], list[bytes]]) for frame in frames[1:])
    return msgspec.msgpack.decode(frames[0], type=Head), blocks, content[end + _DIGEST_BYTES :]


def _heading(capture: Capture) -> Iterator[bytes]:
    """Yield all of a snapshot that is in front of the index."""
    encode = msgspec.msgpack.encode
    yield _MAGIC + _frame(encode(capture.head))
    ids = iter(capture.vectors.ids())
    while some := list(islice(ids, _BLOCK)):
        yield _frame(encode((some, [capture.states.get(id) for id in some])))
    yield _frame(b"")


def _frame(content: bytes) -> bytes:
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content


def _frames(content: memoryview) -> tuple[list[memoryview], int]:
    """Return the frames up to the empty one, and where what follows begins."""
    frames: list[memoryview] = []
    at = len(_MAGIC)
    while True:
        if at + _LENGTH_BYTES > len(content):
            raise ValueError("it was cut short")
        length = int.from_bytes(content[at : at + _LENGTH_BYTES], "little")
        at += _LENGTH_BYTES
        if length > len(content) - at:
            raise ValueError(f"the frame at byte {at} is longer than the file")
        if not length:
            return frames, at
        frames.append(content[at : at + length])
        at += length
