"""Watching a state: an iterator over its versions, in which the latest wins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakSet

from dgents.runtime.errors import ActorStoppedError, StateNotFoundError
from dgents.runtime.turns import Snapshot

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Waiter
    from dgents.runtime.ref import Ref

S = TypeVar("S")


class Watch(AsyncIterator[Snapshot[S]], Generic[S]):
    """Yields a snapshot of each version that is newer than the one before; ends when the actor has stopped."""

    def __init__(self, ref: Ref[S]) -> None:
        self._ref = ref
        self._last: tuple[int, int] | None = None
        self._waiter: Waiter | None = None
        self._changed = True  # begin with the current version
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
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def aclose(self) -> None:
        """Stop watching."""
        self._cell.watchers.discard(self)

    async def __anext__(self) -> Snapshot[S]:
        while True:
            while not self._changed:
                self._waiter = self._cell.loop.waiter()
                await self._waiter
            self._changed = False
            snapshot = await self._newer()
            if snapshot is not None:
                return snapshot

    async def _newer(self) -> Snapshot[S] | None:
        try:
            cell = self._ref._live()
            if cell is not self._cell:  # it was stopped and spawned again
                self._join(cell)
                self._last = None
            snapshot: Snapshot[Any] = await self._ref.snapshot()
        except StateNotFoundError:
            return None
        except ActorStoppedError:
            raise StopAsyncIteration from None
        if (snapshot.epoch, snapshot.version) == self._last:
            return None
        self._last = (snapshot.epoch, snapshot.version)
        return snapshot
