"""The events of one stream in a directory of its own: a journal, and small files beside it. See docs/streams.md.

    00000000000000000001.journal ...   the events, one record each (docs/journal.md)
    latest.snapshot  floor.snapshot    a state, and what is known of its event
    head                               with a chain: its newest heads, in two slots, of which one is durable
    owner.lock                         who has it

Invariants:

1. The number of a journal's record is the number of its event.
2. A snapshot and a head name only events that are durable: they are written after the commit.
3. `compact` first keeps the floor, then removes what is in front of it; what it could not remove is ignored.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from dgents.backends import files
from dgents.backends.chain import GENESIS
from dgents.backends.event_codec import StoredEvent, link_in
from dgents.backends.event_log import (
    CHUNK,
    Chunks,
    LogState,
    StateSnapshot,
    check_numbers,
    nothing,
    pack_snapshot,
)
from dgents.backends.event_log_files import (
    CHUNK_BYTES,
    FLOOR,
    HEAD,
    LATEST,
    OWNER_LOCK,
    holds_events,
    last_record,
    pack_event,
    pieces,
    read_snapshot,
    signed,
    write_snapshot,
)
from dgents.backends.head_file import HeadFile
from dgents.backends.journal import Journal
from dgents.backends.lock import OwnerLock
from dgents.backends.seal import Seal
from dgents.backends.segment import Batch
from dgents.backends.worker import Worker
from dgents.runtime.contract import Ownership, Record, Request, Resources, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StateCorruptionError, StorageError

T = TypeVar("T")

REQUESTS_KEPT = 1000
_CALLS = 4  # threads at once: a commit, a snapshot, readers
_SEGMENT_BYTES = 16 * 2**20  # the last one is read on opening

_decode_events = msgspec.msgpack.Decoder(list[StoredEvent]).decode


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
        self.place = str(directory)
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

    async def open(self, least: int) -> LogState:
        """Lock the directory, cut what a crash left half-written, and find the ends of the log; see `EventLog.open`.

        Raises:
            StateLockedError: another process has it; names its pid and host.
            StateCorruptionError: a file is damaged; nothing was changed.
            StorageError: the directory can't be read or written.
        """
        try:
            if self._worker is None:
                self._worker = await self._resources.acquire(self._shared, _make_worker)
            found = await self._run(self._open, least)
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
        await self._run(self._heads.replace, 0, head)

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

    def _open(self, least: int) -> LogState:
        with files.storage_errors(self.directory, "open", actor=self.actor):
            files.layer.make_directories(self.directory)
            self._lock.acquire()
            for name in (FLOOR, LATEST, HEAD):
                files.remove_stale_temp(self.directory / name)
            self._floor = read_snapshot(self.directory / FLOOR, self.actor)
            latest = None
            with contextlib.suppress(StateCorruptionError):  # the log can do without it
                latest = read_snapshot(self.directory / LATEST, self.actor)
            heads = self._heads.open()
            if (least or self._floor or latest or heads) and not holds_events(self.directory):
                raise self._damaged("its events are gone")
            self._journal.open()
        version = self._journal.next - 1
        floor = self._floor.version if self._floor is not None else 0
        if self._journal.first > floor + 1:
            raise self._damaged(f"events {floor + 1} to {self._journal.first - 1} are missing")
        last = None
        if version > floor:
            *_, batch = self._journal.batches(version)
            (last,) = self._decode([last_record(batch)], 1, version, version - 1, version)
        newest = last or self._floor
        self._requests.clear()
        for snapshot in (self._floor, latest):
            if snapshot is not None:
                self.remember(snapshot.requests)
        epoch = (newest.epoch if newest else 0) + 1
        return LogState(version, last, epoch, self._floor, latest, heads)

    def _commit(self, writes: Sequence[Write]) -> list[DgentError | None]:
        (write,) = writes  # no other stream commits here
        try:
            self._lock.check()
        except OwnershipLostError as refusal:
            return [refusal]
        if self._journal.next != write.base + 1:
            message = f"the log of {self.actor!r} ends at event {self._journal.next - 1}, not at {write.base}"
            return [OwnershipLostError(message, actor=self.actor, hint="nothing was written; load it again")]
        last = write.records[-1]
        link = link_in(last.data)
        signature = self._seal.sign_event(last.version, link) if link is not None else None
        asked = {request.version: request.id for request in write.requests}
        records = [pack_event(record, asked.get(record.version)) for record in write.records]
        if signature is not None:
            records[-1] = signed(records[-1], signature)
        self._journal.append(records)
        self._requests.extend(write.requests)
        if link is not None:
            with contextlib.suppress(OSError):  # the events are durable, the next head says the same and more
                self._write_head(last.version, link)
        return [None]

    def _write_head(self, version: int, link: bytes) -> None:
        """Name the newest event; what a key signs, nobody can make again after it was lost, so that is synced."""
        floor = self._floor
        at, floor_link = (floor.version, floor.link or GENESIS) if floor is not None else (0, GENESIS)
        head = self._seal.make(version, link, at, floor_link, self._heads.stays)
        self._heads.write(version, head, self._seal.signs)

    def _read(self, batches: Iterator[Batch], after: int, until: int) -> Iterator[list[StoredEvent]]:
        """Yield the events of some batches, in chunks of a bounded size."""
        waiting: list[bytes] = []
        count, size = 0, 0
        first = 0
        for batch in batches:
            for number, records, data in pieces(batch, after):
                if not waiting:
                    first = number
                waiting.append(data)
                count += records
                size += len(data)
                if count >= CHUNK or size >= CHUNK_BYTES:
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
                self._heads.replace(self._journal.next - 1, head)
            self._write_snapshot(FLOOR, floor)
            self._floor = floor
            self._journal.roll()
            self._journal.trim(floor.version + 1)

    def _write_snapshot(self, name: str, snapshot: StateSnapshot) -> None:
        if not self._is_open:
            raise StorageError(f"the log {self.directory} is closed", actor=self.actor)
        content = pack_snapshot(msgspec.structs.replace(snapshot, requests=list(self._requests)), self._seal)
        path = self.directory / name
        with files.storage_errors(path, "snapshot", actor=self.actor):
            write_snapshot(path, content)

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


async def _make_worker() -> Worker:
    return Worker()
