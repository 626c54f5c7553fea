"""The journal of write-behind caches: acknowledged writes, on a local disk until their stores have them.

One journal serves all actors of a runtime that name its directory. A record is MessagePack:
``[actor, version, epoch, saved_at, schema, data or nil, [[request id, version, result or nil], ...], delta or nil]``;
without data, ``delta`` is the change from the version before, and without both the state was deleted.
Exactly once: a record is replayed only if the store's version is smaller than its own.

Invariants
  1. One thread at a time uses the journal (``_io``).
  2. A batch is in ``_needed`` from before its append returns until the store has its last version; what is in
     ``_needed`` is never trimmed.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec

from dgents.backends.file_records import newest
from dgents.backends.journal import Journal
from dgents.backends.lock import OwnerLock
from dgents.runtime.contract import Record, Request, Resources, Write
from dgents.runtime.errors import DgentError, StateCorruptionError, StorageError

_SEGMENT = 1 << 20  # bytes after which stored writes are worth a new segment


class _Entry(msgspec.Struct, array_like=True, gc=False):
    actor: str
    version: int
    epoch: int
    saved_at: float
    schema: int
    data: bytes | None
    requests: list[tuple[str, int, bytes | None]]
    delta: bytes | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Entry).decode


class FlushJournal:
    """A store that only remembers: what is committed to it is on disk, and replayed after a crash."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = OwnerLock(directory.with_name(directory.name + ".lock"))
        self._journal = Journal(directory)
        self._broken = False
        self._is_closed = False
        self._is_trimming = False
        self._entries: dict[str, list[_Entry]] = {}  # what was found at the opening, by actor, until it is claimed
        # Of each actor, the batches that its store may not have: last version, first sequence.
        self._needed: dict[str, deque[tuple[int, int]]] = {}
        self._doubtful: set[str] = set()  # actors of an append that failed: it may be on the disk all the same
        self._io = threading.Lock()  # held for as long as the disk takes
        self._books = threading.Lock()  # of ``_needed``; held for microseconds

    @classmethod
    async def acquire(cls, directory: str | Path, resources: Resources) -> FlushJournal:
        """Return the runtime's journal in ``directory``, opening it on first use."""
        path = Path(await anyio.to_thread.run_sync(os.path.abspath, directory))

        async def opener() -> FlushJournal:
            journal = cls(path)
            await anyio.to_thread.run_sync(journal._open)
            return journal

        return await resources.acquire(("flush-journal", str(path)), opener)

    async def release(self, resources: Resources) -> None:
        """Give it back; the last one closes it."""
        await resources.release(("flush-journal", str(self._directory)))

    def _open(self) -> None:
        from dgents.backends.files import layer

        layer.make_directories(self._directory.parent)
        self._lock.acquire()
        try:
            self._journal.open()
            for sequence, data in self._journal.read():
                entry = self._parse(data)
                self._entries.setdefault(entry.actor, []).append(entry)
                self._need(entry.actor, entry.version, sequence)
        except BaseException:
            self._lock.release()
            raise

    def _parse(self, data: bytes) -> _Entry:
        try:
            return _decode(data)
        except msgspec.DecodeError as error:
            raise StateCorruptionError(
                f"the journal {self._directory} holds a record that is no write: {error}",
                path=str(self._directory),
            ) from error

    async def claim(self, actor: str) -> tuple[list[Record], list[Request]]:
        """Return the writes of an actor that the journal holds, oldest first."""
        entries = self._entries.pop(actor, None)
        if entries is None and (actor in self._needed or actor in self._doubtful):
            # Claimed before: its actor restarts, and trusts only the disk.
            entries = await anyio.to_thread.run_sync(self._read_again, actor)
        records: list[Record] = []
        requests: list[Request] = []
        for entry in entries or ():
            if records and records[-1].version >= entry.version:  # written again under a newer owner
                records = [record for record in records if record.version < entry.version]
                requests = [request for request in requests if request.version < entry.version]
            records.append(Record(entry.version, entry.epoch, entry.saved_at, entry.data, entry.schema, entry.delta))
            requests += [Request(*request) for request in entry.requests]
        return records, requests

    def _need(self, actor: str, version: int, sequence: int) -> None:
        with self._books:
            self._needed.setdefault(actor, deque()).append((version, sequence))

    def _read_again(self, actor: str) -> list[_Entry]:
        with self._io:
            self._reopen_if_broken()
            with self._books:
                needed = self._needed.get(actor)
                first = needed[0][1] if needed and actor not in self._doubtful else 0
            found = [(sequence, self._parse(data)) for sequence, data in self._journal.read(first)]
            mine = [(sequence, entry) for sequence, entry in found if entry.actor == actor]
            if actor in self._doubtful:  # the disk tells whether a failed append is there
                with self._books:
                    self._needed[actor] = deque((entry.version, sequence) for sequence, entry in mine)
                self._doubtful.discard(actor)
            return [entry for _, entry in mine]

    def _reopen_if_broken(self) -> None:
        """After a failed sync nothing is trusted: the journal is read again from the disk."""
        if self._broken:
            self._journal.close()
            self._journal.open()
            self._broken = False

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Append the writes in one batch, with one sync."""
        entries: list[bytes] = []
        batches: list[tuple[str, int, int]] = []  # actor, last version, number of its first entry
        for write in writes:
            requests = [(request.id, request.version, request.result) for request in write.requests]
            last = write.records[-1]
            batches.append((write.actor, last.version, len(entries)))
            for record in newest(write.records, max(write.backend.max_history, 1)):
                entries.append(_entry(write, record, requests if record is last else []))
        await anyio.to_thread.run_sync(self._append, entries, batches)
        return [None] * len(writes)

    def _append(self, entries: list[bytes], batches: list[tuple[str, int, int]]) -> None:
        with self._io:
            self._reopen_if_broken()
            try:
                first = self._journal.append(entries)
            except BaseException:
                self._broken = True
                self._doubtful.update(actor for actor, _, _ in batches)
                raise
            for actor, version, number in batches:
                self._need(actor, version, first + number)

    def forget(self, actor: str, stored: int) -> bool:
        """The actor's store has all up to version ``stored``; return whether the caller is to start a `trim`."""
        self._entries.pop(actor, None)
        with self._books:
            needed = self._needed.get(actor)
            if not needed or needed[0][0] > stored:
                return False
            while needed and needed[0][0] <= stored:
                needed.popleft()
            if not needed:
                del self._needed[actor]
        if self._is_trimming or self._journal.size <= _SEGMENT:
            return False
        self._is_trimming = True  # from now on: a thousand actors that were flushed in one commit ask for one trim
        return True

    async def trim(self) -> None:
        """Drop the segments in which no write is needed any more; what fails is left for the next time."""
        try:
            await anyio.to_thread.run_sync(self._trim)
        finally:
            self._is_trimming = False

    def _trim(self) -> None:
        with self._io:
            if self._broken or self._is_closed:
                return
            with self._books:
                before = min((needed[0][1] for needed in self._needed.values() if needed), default=self._journal.next)
            try:
                if before >= self._journal.next and self._journal.size > _SEGMENT:
                    self._journal.roll()  # all of it is stored: begin a new segment, so that the old one can go
                self._journal.trim(before)
            except StorageError:
                self._broken = True

    async def close(self) -> None:
        """Trim what is stored, and let go of the directory."""
        await anyio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        with self._io:
            self._is_closed = True
            try:
                if not self._needed and not self._broken and self._journal.next > self._journal.first:
                    self._journal.roll()
                    self._journal.trim(self._journal.next)
                self._journal.close()
            finally:
                self._lock.release()


def _entry(write: Write, record: Record, requests: list[Any]) -> bytes:
    delta = record.delta if record.data is None else None
    return _encode(
        _Entry(write.actor, record.version, record.epoch, record.saved_at, record.schema, record.data, requests, delta)
    )
