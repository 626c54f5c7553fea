"""Watching a state: an iterator over its versions, in which the latest wins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakSet

from dgents.runtime.errors import ActorStoppedError, StateNotFoundError
from dgents.runtime.loops import give
from dgents.runtime.phase import Phase
from dgents.runtime.turns import Snapshot

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Waiter
    from dgents.runtime.ref import Ref

S = TypeVar("S")


class Watch(AsyncIterator[Snapshot[S]], Generic[S]):
    """Yields a snapshot of each version that is newer than the one before; ends when the actor has stopped.

    The last version arrives before the end, unless it is not known to be durable.

    Cancellation: an `anext` that is cancelled, or fails, loses nothing; the next one goes on from there.

    Raises:
        RuntimeError: two tasks iterate over one watch; each needs its own.
    """

    def __init__(self, ref: Ref[S]) -> None:
        self._ref = ref
        self._last: tuple[int, int] | None = None
        self._waiter: Waiter | None = None
        self._changed = True  # begin with the current version
        self._closed = False
        self._in_use = False
        cell = ref._live()
        cell.runtime.check_thread()
        self._join(cell)

    def _join(self, cell: Cell) -> None:
        if cell.watchers is None:
            cell.watchers = WeakSet()  # one that is no longer iterated vanishes by itself
        cell.watchers.add(self)
        cell.observed = True
        cell.loop.start(cell.listen)
        self._cell = cell

    def wake(self) -> None:
        """Take note that there is a newer version, or none any more."""
        self._changed = True
        if self._waiter is not None:
            give(self._waiter, None)

    async def aclose(self) -> None:
        """Stop watching: the iteration ends, also one that waits in another task."""
        self._closed = True
        self._cell.watchers.discard(self)
        self.wake()

    async def __anext__(self) -> Snapshot[S]:
        if self._in_use:
            raise RuntimeError(f"another task iterates over this watch of {self._ref.name!r}; call ref.watch() in each")
        self._in_use = True
        try:
            while not self._closed:
                if not self._changed:
                    self._waiter = self._cell.loop.waiter()
                    await self._waiter
                elif (snapshot := await self._newer()) is not None:
                    return snapshot
        finally:
            self._in_use = False
        raise StopAsyncIteration

    async def _newer(self) -> Snapshot[S] | None:
        """Return the current version, or None if it has been seen; what is new is new until it is returned."""
        self._changed = False
        try:
            cell = self._ref._live()
            if cell is not self._cell:  # it was stopped and spawned again
                self._join(cell)
                self._last = None
            snapshot = await self._ref.snapshot()
        except StateNotFoundError:
            return None
        except ActorStoppedError:
            if self._cell.takes_messages:  # raised for another reason
                raise
            return self._last_state(self._cell)
        except BaseException:
            self._changed = True
            raise
        return self._unless_seen(snapshot)

    def _last_state(self, cell: Cell) -> Snapshot[S] | None:
        """Return what an actor ended with that takes no more messages; None while it is about to end."""
        if cell.draining and cell.phase is not Phase.STOPPED:
            return None  # it wakes its watchers when it has stopped
        self._changed = True
        form = cell.last_form()
        snapshot = self._unless_seen(form.snapshot(cell.codec)) if form is not None else None
        if snapshot is None:
            raise StopAsyncIteration
        return snapshot

    def _unless_seen(self, snapshot: Snapshot[S]) -> Snapshot[S] | None:
        seen, self._last = self._last, (snapshot.epoch, snapshot.version)
        return snapshot if self._last != seen else None
