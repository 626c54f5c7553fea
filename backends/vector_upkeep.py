"""What a vector store does beside its turns: rebuild its index, and write a snapshot, one at a time.

Invariant: a snapshot is of a moment between two turns, and is written once all changes in it are durable.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from dgents.runtime.errors import DgentError

if TYPE_CHECKING:
    from dgents.backends.vector_cell import VectorCell
    from dgents.backends.vector_store import VectorStore

# So many changes at least lie between two snapshots.
LEAST_CHANGES = 100_000


def snapshot_is_due(changes: int, live: int, rebuilt: bool) -> bool:
    """Decide whether to write a snapshot, so that writing them costs no more than the changes themselves.

    Args:
        changes: entries changed since the last one.
        live: entries there are.
        rebuilt: whether the index was built since: then the snapshot saves building it again.
    """
    return changes >= max(LEAST_CHANGES, live) or (rebuilt and 4 * changes >= live)


class Upkeep:
    """Keeps the index of one actor fast and its journal short, from `adopt` to `close`.

    Args:
        changes: how many entries were changed since the last snapshot.
    """

    def __init__(self, cell: VectorCell, store: VectorStore | None, changes: int) -> None:
        assert cell.index is not None
        self._cell = cell
        self._index = cell.index
        self._store = store
        self._stop = threading.Event()
        self._busy = anyio.Lock()
        self._running = False
        self._changes = changes
        self._rebuilt = False

    def wrote(self, count: int) -> None:
        """Take note of changes, and begin to work if something is due. Call it at the end of a turn."""
        self._changes += count
        if not self._running and not self._stop.is_set() and (self._index.needs_rebuild or self._snapshot_is_due):
            self._running = True
            self._cell.loop.start(self._run)

    async def stop(self) -> None:
        """Give up what is under way; return when nothing touches the index or the files any more."""
        self._stop.set()
        async with self._busy:
            pass

    @property
    def _snapshot_is_due(self) -> bool:
        return self._store is not None and snapshot_is_due(self._changes, len(self._index), self._rebuilt)

    async def _run(self) -> None:
        while not self._stop.is_set():
            if self._index.needs_rebuild:
                if not await self._rebuild():
                    break
            elif self._snapshot_is_due and not self._cell.applying:  # if so, the end of that turn comes back here
                await self._snapshot()
            else:
                break
        self._running = False

    async def _rebuild(self) -> bool:
        async with self._busy:
            if self._stop.is_set():
                return False
            try:
                rebuilt = await anyio.to_thread.run_sync(self._index.rebuild, self._stop)
            except (RuntimeError, MemoryError) as error:
                self._warn(f"the index {self._index.index!r} could not be built, searches go on without: {error!r}")
                return True
        self._rebuilt = self._rebuilt or rebuilt
        return rebuilt

    async def _snapshot(self) -> None:
        store = self._store
        assert store is not None
        capture, gate = self._cell.capture(), self._cell.gate
        self._changes, self._rebuilt = 0, False
        try:
            if gate is not None:
                await gate.wait()
            async with self._busy:
                if not self._stop.is_set():
                    await store.keep(capture, self._stop)
        except (DgentError, RuntimeError, MemoryError) as error:  # the latter two of faiss, which copies its index
            self._warn(f"no snapshot at version {capture.head.version}, the journal stays: {error}")
        finally:
            capture.close()

    def _warn(self, message: str) -> None:
        self._cell.runtime.emit("warning", self._cell.name, message=message)
