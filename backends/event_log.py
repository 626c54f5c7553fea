"""What a stream asks of the log that keeps its events: the same few words for memory, a directory, a database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol
from zlib import crc32

import msgspec

from dgents.backends.chain import LEFT_AS_IT_IS, broken
from dgents.backends.event_codec import StoredEvent
from dgents.backends.seal import Seal
from dgents.runtime.contract import Request, Store
from dgents.runtime.errors import StateCorruptionError

_CHUNK_BYTES = 4 * 2**20
_MAGIC = b"DGSNAP1\n"
_encode = msgspec.msgpack.Encoder().encode

CHUNK = 4096  # events that are read, decoded and folded at a time: a millisecond or two


class StateSnapshot(msgspec.Struct, array_like=True, frozen=True):
    """The state after event ``version``, as it is kept beside a log.

    Attributes:
        epoch, saved_at, link: those of that event.
        schema: the version of the state's schema.
        fold: the fingerprint of the function that made it.
        state: encoded.
        requests: the request ids that were remembered then, where the log itself has no place for them.
        signature: of all that, by the key of the stream.
    """

    version: int
    epoch: int
    saved_at: float
    schema: int
    fold: str
    state: bytes
    link: bytes | None = None
    requests: list[Request] = []
    signature: bytes | None = None


class LogState(msgspec.Struct):
    """What a log holds, as it was found by `EventLog.open`.

    Attributes:
        version: of the newest event, also if `compact` removed it; 0 for none.
        last: the newest event, if it is there.
        epoch: the one to write with from now on.
        floor: the state in front of the oldest event that is kept; None if that is the very first.
        latest: the newest snapshot.
        heads: of the chain, as they were kept, b"" for a damaged one; None if there never was one.
    """

    version: int
    last: StoredEvent | None
    epoch: int
    floor: StateSnapshot | None = None
    latest: StateSnapshot | None = None
    heads: Sequence[bytes] | None = None


_decode_snapshot = msgspec.msgpack.Decoder(StateSnapshot).decode


class Chunks(AsyncIterator[Sequence[StoredEvent]]):
    """Events, some thousands at a time: what ``step`` returns, until that is None.

    Not an async generator: those have to be closed by whoever leaves them early.
    """

    def __init__(self, step: Callable[[], Awaitable[Sequence[StoredEvent] | None]]) -> None:
        self._step = step

    async def __anext__(self) -> Sequence[StoredEvent]:
        chunk = await self._step()
        if chunk is None:
            raise StopAsyncIteration
        return chunk


async def nothing() -> None:
    """Be the step of an iterator over no events."""


class EventLog(Protocol):
    """The events of one stream, owned by one actor.

    Attributes:
        place: where it is, as it may be printed.
    """

    place: str

    @property
    def store(self) -> Store | None:
        """Where its appends go; None for a log in memory, which takes them from `put`."""
        ...

    async def open(self, least: int) -> LogState:
        """Claim the log and find its ends. Called again after a failure, after `close`.

        Args:
            least: how many events it is known to hold: where they are gone, no new log is begun.

        Raises:
            StateLockedError: another process owns it.
            StateCorruptionError: it can't be read; it is left as it was.
            StorageError: it can't be reached or refuses.
        """
        ...

    def put(self, stored: StoredEvent, event: object) -> None:
        """Append to a log in memory."""
        ...

    def chunks(self, after: int, until: int) -> Chunks:
        """Return an iterator over the events from ``after`` + 1 to ``until``, in order.

        Raises:
            StateCorruptionError: at the place that can't be read.
        """
        ...

    async def requests(self) -> list[Request]:
        """Return the remembered request ids, oldest first: at most the last 1,000."""
        ...

    def remember(self, requests: Sequence[Request]) -> None:
        """Take over the request ids that were met in the events after the newest snapshot."""
        ...

    async def keep(self, snapshot: StateSnapshot) -> None:
        """Keep the newest snapshot in place of the one before."""
        ...

    async def seal(self, head: bytes) -> None:
        """Keep the first head of a chain, durably."""
        ...

    async def compact(self, floor: StateSnapshot, head: bytes | None) -> None:
        """Remove the events up to that of ``floor``, which is kept, and replace the head: all of it or nothing."""
        ...

    async def close(self) -> None:
        """Let go of the log. Never raises for one that is gone."""
        ...


def pack_snapshot(snapshot: StateSnapshot, seal: Seal) -> bytes:
    """Return a snapshot as it is kept, signed if there is a key."""
    content = _encode(snapshot)
    signature = seal.sign_snapshot(content)
    return content if signature is None else _encode(msgspec.structs.replace(snapshot, signature=signature))


def framed(content: bytes) -> bytes:
    """Return a packed snapshot with its checksum, for a log that keeps none itself."""
    return _MAGIC + crc32(content).to_bytes(4, "big") + content


def unframed(found: bytes) -> bytes | None:
    """Return the packed snapshot in a frame, None if it is damaged."""
    start = len(_MAGIC) + 4
    content = found[start:]
    intact = found[: len(_MAGIC)] == _MAGIC and crc32(content) == int.from_bytes(found[len(_MAGIC) : start], "big")
    return content if intact else None


def unpack_snapshot(content: bytes, actor: str) -> StateSnapshot:
    """Return a kept snapshot.

    Raises:
        StateCorruptionError: it is none.
    """
    try:
        return _decode_snapshot(content)
    except msgspec.DecodeError as error:
        raise StateCorruptionError(
            f"a snapshot of the stream {actor!r} can't be read: {error}", actor=actor, hint=LEFT_AS_IT_IS
        ) from error


def check_signature(snapshot: StateSnapshot, seal: Seal) -> None:
    """Check that a snapshot was kept by who has the key, if there is one.

    Raises:
        StateCorruptionError: it was not.
    """
    if seal.signs:
        content = _encode(msgspec.structs.replace(snapshot, signature=None))
        seal.check_snapshot(content, snapshot.signature, snapshot.version)


def events_at_a_time(chunk: Sequence[StoredEvent]) -> int:
    """Return how many events like these to read at a time: fewer of large ones."""
    size = sum(len(bytes(stored.payload)) for stored in chunk[:16]) // min(len(chunk), 16)
    return max(1, min(CHUNK, _CHUNK_BYTES // (size + 1)))


def check_numbers(actor: str, chunk: Sequence[StoredEvent], first: int) -> None:
    """Check that the events of a chunk have consecutive numbers from ``first`` on.

    Raises:
        StateCorruptionError: ``event`` is the first number that is missing.
    """
    if [stored.version for stored in chunk] == list(range(first, first + len(chunk))):
        return
    for expected, stored in enumerate(chunk, first):
        if stored.version != expected:
            raise broken(actor, expected, f"event {stored.version} stands in its place")
