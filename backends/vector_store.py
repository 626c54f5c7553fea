"""A vector store in a directory of its own: a snapshot, and a journal of the changes since. See docs/vectors.md.

    vectors.snapshot               the states and the index as of one version (backends/vector_file.py)
    00000000000000000001.journal   the changes, one record each (docs/journal.md, backends/vector_change.py)
    owner.lock                     who has it

Invariants:

1. The number of a journal's record is the version that it leads to. Every directory has a snapshot, from before its
   first change on: it says what dimension and metric the vectors have.
2. A snapshot holds only what is durable, is in place whole or not at all, and only then the journal before it is
   removed.
3. States and index of a snapshot are one file and name one version: they can't be of two moments.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import msgspec

from dgents.backends import files
from dgents.backends.journal import Journal
from dgents.backends.lock import OwnerLock
from dgents.backends.segment import Buffer, first_in_name
from dgents.backends.vector_change import Contents, Replay, pack_record
from dgents.backends.vector_file import Capture, Head, chunks, parse
from dgents.backends.vector_states import States
from dgents.backends.worker import Worker
from dgents.runtime.contract import Request, Resources, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StateCorruptionError

if TYPE_CHECKING:
    from dgents.backends.vector_index import VectorIndex

T = TypeVar("T")

MAX_CHANGE_BYTES = 2**30
REQUESTS_KEPT = 1000
SNAPSHOT = "vectors.snapshot"
_WORKER = "vectors"


class VectorStore:
    """One vector store's directory. It is its own store: nobody else commits there.

    Args:
        empty: makes the index of a new directory.
        restore: makes an index of the bytes of a snapshot, and says of which version it is.
        lift: brings a state of an older schema version to the current one.
    """

    def __init__(
        self,
        directory: Path,
        actor: str,
        resources: Resources,
        *,
        empty: Callable[[], VectorIndex],
        restore: Callable[[memoryview], tuple[VectorIndex, int]],
        lift: Callable[[bytes, int], bytes],
        schema: int,
    ) -> None:
        self.directory = directory
        self.actor = actor
        self.requests: deque[Request] = deque(maxlen=REQUESTS_KEPT)
        self._resources = resources
        self._empty = empty
        self._restore = restore
        self._lift = lift
        self._schema = schema
        self._path = directory / SNAPSHOT
        self._journal = Journal(directory, max_record_bytes=MAX_CHANGE_BYTES + 2**20)
        self._lock = OwnerLock(directory / "owner.lock", actor=actor)
        self._worker: Worker | None = None

    async def open(self) -> Contents:
        """Lock the directory, read the snapshot, and apply the changes since.

        Raises:
            StateLockedError: another process has it; names its pid and host.
            StateCorruptionError: a file is damaged or missing; nothing was changed.
            StorageError: the directory can't be read or written.
            UnsupportedOperationError: what is there has another dimension or metric.
        """
        try:
            if self._worker is None:
                self._worker = await self._resources.acquire(_WORKER, _make_worker)
            return await anyio.to_thread.run_sync(self._open)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close()
            raise

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Append the changes of a batch with one write and one fdatasync; see `contract.Store.commit`."""
        assert self._worker is not None
        return await self._worker.call(self._commit, writes)

    async def keep(self, capture: Capture, stop: threading.Event) -> None:
        """Put a snapshot in place of the one before, and remove the journal up to it; give up if ``stop`` is set."""
        await anyio.to_thread.run_sync(self._keep, capture, stop)

    async def close(self) -> None:
        """Let go of the files and of the lock."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close)
            if self._worker is not None:
                self._worker = None
                await self._resources.release(_WORKER)

    # What follows runs in worker threads.

    def _open(self) -> Contents:
        with files.storage_errors(self.directory, "open", actor=self.actor):
            files.layer.make_directories(self.directory)
            self._lock.acquire()
            files.remove_stale_temp(self._path)
            found = self._read_snapshot()
            self._check_present(found)
            self._journal.open()
        if found is None:
            if self._journal.next > 1:
                raise self._damaged("its snapshot is missing")
            found = Contents(self._empty(), States())
            with files.storage_errors(self._path, "open", actor=self.actor):
                self._write_first(found)
        replay = Replay(found, self._lift, self._schema)
        if self._journal.first > found.version + 1:
            raise self._damaged(f"changes {found.version + 1} to {self._journal.first - 1} are missing")
        if self._journal.next <= found.version:
            raise self._damaged(f"its journal ends at change {self._journal.next - 1}, before its snapshot")
        for number, record in self._journal.read(found.version + 1):
            try:
                self.requests.extend(replay.add(number, record))
            except (ValueError, msgspec.MsgspecError) as error:
                raise self._damaged(f"change {number} is none: {error}") from error
        replay.apply()
        return found

    def _check_present(self, found: Contents | None) -> None:
        """Refuse a directory whose journal is gone, before a new one is begun in it."""
        if found is not None and found.version:
            names = files.layer.entries(self.directory)
            if not any(first_in_name(name) is not None for name in names):
                raise self._damaged("its journal is missing")

    def _commit(self, writes: Sequence[Write]) -> list[DgentError | None]:
        (write,) = writes  # no other actor commits here
        try:
            self._lock.check()
        except OwnershipLostError as refusal:
            return [refusal]
        if self._journal.next != write.base + 1:
            message = f"the journal of {self.actor!r} ends at change {self._journal.next - 1}, not at {write.base}"
            return [OwnershipLostError(message, actor=self.actor, hint="nothing was written; open it again")]
        asked: dict[int, list[str]] = {}
        for request in write.requests:
            asked.setdefault(request.version, []).append(request.id)
        pieces: list[Buffer] = []
        sizes: list[int] = []
        for record in write.records:
            head, vectors = pack_record(record, asked.get(record.version, []))
            pieces += (head, vectors)
            sizes.append(len(head) + len(vectors))
        self._journal.append_pieces(pieces, sizes)
        self.requests.extend(write.requests)
        return [None]

    # Snapshots

    def _write_first(self, contents: Contents) -> None:
        head = Head(0, 0, 0.0, self._schema, 1)
        states = contents.states.view()
        with contents.index.snapshot() as vectors:
            self._write(Capture(head, states, vectors), threading.Event())
        states.close()

    def _keep(self, capture: Capture, stop: threading.Event) -> None:
        with files.storage_errors(self._path, "snapshot", actor=self.actor):
            self._lock.check()
            self._journal.roll()
            version = capture.head.version
            known = tuple(request for request in tuple(self.requests) if request.version <= version)
            head = msgspec.structs.replace(capture.head, requests=known)
            if self._write(capture._replace(head=head), stop):
                self._journal.trim(version + 1)

    def _write(self, capture: Capture, stop: threading.Event) -> bool:
        """Write a snapshot beside the old one, make it durable, and only then put it in its place."""
        temp = files.temp_path(self._path)
        layer = files.layer
        fd = layer.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            for chunk in chunks(capture):
                if stop.is_set():
                    layer.unlink(temp)
                    return False
                layer.write(fd, chunk)
            layer.step("snapshot-written")
            layer.fsync(fd)
        except OSError:
            layer.unlink(temp)
            raise
        finally:
            layer.close(fd)
        layer.step("snapshot-synced")
        layer.replace(temp, self._path)
        layer.step("snapshot-renamed")
        layer.fsync_directory(self.directory)
        layer.step("snapshot-in-place")
        return True

    def _read_snapshot(self) -> Contents | None:
        try:
            content = memoryview(files.layer.read(self._path))
        except FileNotFoundError:
            return None
        try:
            return self._parse(content)
        except StateCorruptionError as error:
            raise self._damaged(error.message, self._path) from error
        except (ValueError, IndexError, msgspec.MsgspecError) as error:
            raise self._damaged(f"its snapshot does not add up: {error}", self._path) from error

    def _parse(self, content: memoryview) -> Contents:
        head, blocks, behind = parse(content)
        index, version = self._restore(behind)
        if version != head.version:
            raise ValueError(f"its index is of version {version}, its states are of version {head.version}")
        states = States()
        for ids, encoded in blocks:
            states.set(ids, [self._lift(state, head.schema) for state in encoded])
        if len(states) != len(index) or not all(id in states for id in index):
            raise ValueError("its index and its states have different ids")
        self.requests.clear()
        self.requests.extend(head.requests)
        return Contents(index, states, head.version, head.epoch, head.saved_at, head.next_id)

    def _damaged(self, what: str, path: Path | None = None) -> StateCorruptionError:
        return StateCorruptionError(
            f"the vector store {self.directory} of {self.actor!r} is damaged: {what}",
            path=str(path or self.directory),
            actor=self.actor,
            hint="it was left as it is; restore a copy",
        )

    def _close(self) -> None:
        self._journal.close()
        self._lock.release()


async def _make_worker() -> Worker:
    return Worker()
