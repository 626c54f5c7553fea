"""The events of one stream in a directory of its own: a journal, and small files beside it. See docs/streams.md.

    00000000000000000001.journal ...   the events, one record each (docs/journal.md)
    latest.snapshot  floor.snapshot    a state, and what is known of its event
    head                               with a chain: its head, in two slots, of which one is durable
    owner.lock                         who has it

A record is the MessagePack array ``[version, epoch, saved_at, schema, tag, event, link, request]``.

Invariants:

1. The number of a journal's record is the number of its event.
2. A snapshot and a head name only events that are durable: they are written after the commit.
3. `compact` first keeps the floor, then removes what is in front of it; what it could not remove is ignored.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import anyio
import anyio.to_thread
import msgspec

from dgents.backends import files
from dgents.backends.chain import GENESIS, Seal
from dgents.backends.event_codec import StoredEvent, is_linked, link_in
from dgents.backends.event_log import CHUNK, Chunks, LogState, StateSnapshot, check_numbers, nothing
from dgents.backends.head_file import HeadFile
from dgents.backends.journal import Journal
from dgents.backends.lock import OwnerLock
from dgents.backends.segment import LENGTH_BYTES, Batch
from dgents.backends.worker import Worker
from dgents.runtime.contract import Ownership, Record, Request, Resources, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StateCorruptionError, StorageError

T = TypeVar("T")

LATEST, FLOOR, HEAD, OWNER_LOCK = "latest.snapshot", "floor.snapshot", "head", "owner.lock"
REQUESTS_KEPT = 1000
_CALLS = 4  # threads at once: a commit, a snapshot, readers
_CHUNK_BYTES = 2**20
_SEGMENT_BYTES = 16 * 2**20  # the last one is read on opening
_MAGIC = b"DGSNAP1\n"
# [version u64, epoch u32, saved_at f64, schema u16, and the five that follow]
_FRONT = struct.Struct(">BBQBIBdBH")
_NIL = b"\xc0"

_encode = msgspec.msgpack.Encoder().encode
_decode_events = msgspec.msgpack.Decoder(list[StoredEvent]).decode
_decode_snapshot = msgspec.msgpack.Decoder(StateSnapshot).decode


class JournalLog:
    """One stream's events in ``directory``. It is its own store: no other stream commits there.

    Args:
        actor: the name of the stream, for errors.
        seal: makes the heads of a chain.
    """

    ownership: Ownership = "exclusive"
    max_history = 0
    deltas = False

    def __init__(self, directory: Path, actor: str, seal: Seal, resources: Resources) -> None:
        self.directory = directory
        self.key = actor
        self.actor = actor
        self._seal = seal
        self._resources = resources
        self._journal = Journal(directory, segment_bytes=_SEGMENT_BYTES)
        self._lock = OwnerLock(directory / OWNER_LOCK, actor=actor)
        self._worker: Worker | None = None
        self._limiter = anyio.CapacityLimiter(_CALLS)
        self._heads = HeadFile(directory / HEAD)
        self._floor: StateSnapshot | None = None
        self._requests: deque[Request] = deque(maxlen=REQUESTS_KEPT)
        self._is_open = False

    @property
    def store(self) -> JournalLog | None:
        """Itself while it is open."""
        return self if self._is_open else None

    async def open(self) -> LogState:
        """Lock the directory, cut what a crash left half-written, and find the ends of the log.

        Raises:
            StateLockedError: another process has it; names its pid and host.
            StateCorruptionError: a file is damaged; nothing was changed.
            StorageError: the directory can't be read or written.
        """
        try:
            if self._worker is None:
                self._worker = await self._resources.acquire(self._shared, _make_worker)
            found = await self._run(self._open)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close()
            raise
        self._is_open = True
        return found

    def put(self, stored: StoredEvent, event: object) -> None:
        raise AssertionError("a journal takes events by commit")

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Append the events of a batch with one write and one fdatasync; see `contract.Store.commit`."""
        assert self._worker is not None
        return await self._worker.call(self._commit, writes)

    def chunks(self, after: int, until: int) -> Chunks:
        """Return an iterator over the events from ``after`` + 1 to ``until``, in order; read in a worker thread."""
        if after >= until:
            return Chunks(nothing)
        return Chunks(partial(self._run, next, self._read(self._journal.batches(after + 1), after, until), None))

    async def requests(self) -> list[Request]:
        return list(self._requests)

    def remember(self, requests: Sequence[Request]) -> None:
        known = {request.id: request for request in (*self._requests, *requests)}
        self._requests = deque(sorted(known.values(), key=lambda it: it.version), REQUESTS_KEPT)

    async def keep(self, snapshot: StateSnapshot) -> None:
        """Write the newest snapshot, atomically."""
        await self._run(self._write_snapshot, LATEST, snapshot)

    async def seal(self, head: bytes) -> None:
        """Write the first head of a chain."""
        await self._run(self._heads.write, head, True)

    async def compact(self, floor: StateSnapshot, head: bytes | None) -> None:
        """Keep the floor, then remove every segment in front of it."""
        await self._run(self._compact, floor, head)

    async def close(self) -> None:
        """Let go of the files and of the lock."""
        self._is_open = False
        with anyio.CancelScope(shield=True):
            await self._run(self._close)
            if self._worker is not None:
                self._worker = None
                await self._resources.release(self._shared)

    @property
    def _shared(self) -> tuple[str, str]:
        return ("events", str(self.directory.parent))

    # What the contract asks of a store's backend; the actor asks the stream's own backend instead.

    async def read(self) -> Record | None:
        return None

    async def history(self, limit: int | None = None) -> list[Record]:
        return []

    async def committed(self, write: Write) -> bool | None:
        return None

    # What follows runs in worker threads.

    async def _run(self, fn: Callable[..., T], *args: Any) -> T:
        return await anyio.to_thread.run_sync(fn, *args, limiter=self._limiter)

    def _open(self) -> LogState:
        with files.storage_errors(self.directory, "open", actor=self.actor):
            files.layer.make_directories(self.directory)
            self._lock.acquire()
            self._journal.open()
            for name in (FLOOR, LATEST):
                files.remove_stale_temp(self.directory / name)
            self._floor = read_snapshot(self.directory / FLOOR, self.actor)
            latest = None
            with contextlib.suppress(StateCorruptionError):  # the log can do without it
                latest = read_snapshot(self.directory / LATEST, self.actor)
            head = self._heads.open()
        version = self._journal.next - 1
        floor = self._floor.version if self._floor is not None else 0
        if self._journal.first > floor + 1:
            raise self._damaged(f"events {floor + 1} to {self._journal.first - 1} are missing")
        last = None
        if version > floor:
            *_, batch = self._journal.batches(version)
            (last,) = self._decode([_last(batch)], 1, version, version - 1, version)
        elif version < floor:
            raise self._damaged(f"it ends at event {version}, and its floor is event {floor}")
        newest = last or self._floor
        self._requests.clear()
        for snapshot in (self._floor, latest):
            if snapshot is not None:
                self.remember(snapshot.requests)
        return LogState(version, last, (newest.epoch if newest else 0) + 1, self._floor, latest, head)

    def _commit(self, writes: Sequence[Write]) -> list[DgentError | None]:
        (write,) = writes  # no other stream commits here
        try:
            self._lock.check()
        except OwnershipLostError as refusal:
            return [refusal]
        if self._journal.next != write.base + 1:
            message = f"the log of {self.actor!r} ends at event {self._journal.next - 1}, not at {write.base}"
            return [OwnershipLostError(message, actor=self.actor, hint="nothing was written; load it again")]
        asked = {request.version: request.id for request in write.requests}
        self._journal.append([_pack(record, asked.get(record.version)) for record in write.records])
        self._requests.extend(write.requests)
        last = write.records[-1]
        link = link_in(last.data)
        if link is not None:
            floor = self._floor
            sealed = self._seal.make(
                last.version, link, floor.version if floor else 0, (floor.link if floor else None) or GENESIS
            )
            with contextlib.suppress(OSError):  # the events are durable, the next head says the same and more
                self._heads.write(sealed)
        return [None]

    def _read(self, batches: Iterator[Batch], after: int, until: int) -> Iterator[list[StoredEvent]]:
        """Yield the events of some batches, in chunks of a bounded size."""
        waiting: list[bytes] = []
        count, size = 0, 0
        first = 0
        for batch in batches:
            for number, records, data in _pieces(batch, after):
                if not waiting:
                    first = number
                waiting.append(data)
                count += records
                size += len(data)
                if count >= CHUNK or size >= _CHUNK_BYTES:
                    if chunk := self._decode(waiting, count, first, after, until):
                        yield chunk
                    waiting, count, size = [], 0, 0
            if batch.first + batch.count > until:
                break
        if waiting and (chunk := self._decode(waiting, count, first, after, until)):
            yield chunk

    def _decode(self, parts: list[bytes], count: int, first: int, after: int, until: int) -> list[StoredEvent]:
        data = b"".join((b"\xdd", count.to_bytes(4, "big"), *parts))
        try:
            chunk = _decode_events(data)
        except msgspec.DecodeError as error:
            raise self._damaged(f"among the events from {first} to {first + count - 1} is none: {error}") from error
        check_numbers(self.actor, chunk, first)
        if first > after and first + count - 1 <= until:
            return chunk
        return chunk[max(after + 1 - first, 0) : max(until + 1 - first, 0)]

    def _compact(self, floor: StateSnapshot, head: bytes | None) -> None:
        with files.storage_errors(self.directory, "compact", actor=self.actor):
            if head is not None:
                self._heads.write(head, True)
            self._write_snapshot(FLOOR, floor)
            self._floor = floor
            self._journal.roll()
            self._journal.trim(floor.version + 1)

    def _write_snapshot(self, name: str, snapshot: StateSnapshot) -> None:
        if not self._is_open:
            raise StorageError(f"the log {self.directory} is closed", actor=self.actor)
        content = _encode(msgspec.structs.replace(snapshot, requests=list(self._requests)))
        path = self.directory / name
        with files.storage_errors(path, "snapshot", actor=self.actor):
            files.write_atomically(path, _MAGIC + crc32(content).to_bytes(4, "big") + content)

    def _damaged(self, what: str) -> StateCorruptionError:
        return StateCorruptionError(
            f"the log {self.directory} of the stream {self.actor!r} is damaged: {what}",
            path=str(self.directory),
            actor=self.actor,
            hint="it was left as it is; restore a copy",
        )

    def _close(self) -> None:
        self._heads.close()
        self._journal.close()
        self._lock.release()


def _pack(record: Record, request: str | None) -> bytes:
    """Return an event as a record of the journal."""
    data = record.data
    assert data is not None
    front = _FRONT.pack(0x98, 0xCF, record.version, 0xCE, record.epoch, 0xCB, record.saved_at, 0xCD, record.schema)
    link = b"" if is_linked(data) else _NIL
    return b"".join((front, memoryview(data)[1:], link, _NIL if request is None else _encode(request)))


def read_snapshot(path: Path, actor: str) -> StateSnapshot | None:
    """Return what is kept in a snapshot's file, None if there is none.

    Raises:
        StateCorruptionError: it is damaged.
    """
    try:
        found = files.layer.read(path)
    except FileNotFoundError:
        return None
    start = len(_MAGIC) + 4
    content = found[start:]
    if found[: len(_MAGIC)] == _MAGIC and crc32(content) == int.from_bytes(found[len(_MAGIC) : start], "big"):
        with contextlib.suppress(msgspec.DecodeError):
            return _decode_snapshot(content)
    raise StateCorruptionError(
        f"the snapshot {path} is damaged, and the events in front of it were compacted",
        path=str(path),
        actor=actor,
        hint="it was left as it is; restore a copy",
    )


async def _make_worker() -> Worker:
    return Worker()


def _last(batch: Batch) -> bytes:
    """Return the last record of a batch."""
    (length,) = struct.unpack_from("<I", batch.body, (batch.count - 1) * LENGTH_BYTES)
    return batch.body[len(batch.body) - length :]


def _pieces(batch: Batch, after: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield a batch's records, joined, some thousands at a time: the number of the first, how many, their bytes.

    Of a large batch, those up to number ``after`` are left out.
    """
    start = batch.count * LENGTH_BYTES
    if batch.count <= CHUNK and len(batch.body) <= 2 * _CHUNK_BYTES:
        yield batch.first, batch.count, batch.body[start:]
        return
    ends = list(accumulate(struct.unpack_from(f"<{batch.count}I", batch.body), initial=start))
    position = max(after + 1 - batch.first, 0)
    while position < batch.count:
        until = min(position + CHUNK, batch.count)
        while until > position + 1 and ends[until] - ends[position] > _CHUNK_BYTES:
            until = position + (until - position) // 2
        yield batch.first + position, until - position, batch.body[ends[position] : ends[until]]
        position = until
