"""Write-behind: an actor's writes are acknowledged first, and reach the store a little later, many as one.

The actor keeps its versions in memory, as a volatile one does; this carries them to the store. Nothing is copied
when a write is acknowledged: a flush takes what is newer than the store from the actor's memory, and of that only what
the history bound would keep.

Invariants
  1. What was acknowledged is in the actor's memory until the store has it; with a journal it is on disk as well.
  2. One flush at a time; ``stored`` grows only when the store has answered.
  3. While the store is away nothing is dropped: the flush is tried again with backoff, and once `_MOST_BEHIND` times
     ``max_pending`` writes are at risk, the actor takes no more turns (``is_full``).

| the actor is | becomes     | by                                                           |
|--------------|-------------|--------------------------------------------------------------|
| clean        | dirty       | `mark`, a write was acknowledged                             |
| dirty        | flushing    | `_begin`, after ``max_delay`` or ``max_pending``             |
| flushing     | clean/dirty | `_flushed`, the store has it                                 |
| flushing     | dirty       | `_try_again`, the store failed: it is reopened and asked     |

A flush is no task: a hundred thousand actors that are dirty at once would each have one. It begins in the runtime's
timetable and ends in the store's commit; only what has to be tried again is a task.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from dgents.runtime.commit import Staged
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import DgentError, OwnershipLostError, StorageError
from dgents.runtime.loops import give
from dgents.supervisors.flush import Flush, as_flush_error, may_help
from dgents.supervisors.policy import Backoff
from dgents.supervisors.unstored import Unstored

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.timetable import Appointment
    from dgents.supervisors.cached import WriteBehindBackend


_MOST_BEHIND = 16
_BACKOFF = Backoff(0.05, 5.0)


class WriteBehind:
    """What one actor has acknowledged and its store does not have yet."""

    def __init__(self, cell: Cell, backend: WriteBehindBackend, flush: Flush, stored: int) -> None:
        assert backend.inner.store is not None, "write-behind needs a store"
        self.journaled = flush.journal is not None
        self.acknowledged = stored  # the newest version that may be stored: with a journal, it has it
        self.stored = stored  # the newest version that the store is known to have
        self.since: float | None = None  # when the oldest write at risk was acknowledged, on the loop's clock
        self.unstored = Unstored(cell, backend.max_history, journaled=self.journaled)
        self._cell = cell
        self._backend = backend
        self._flush = flush
        self._hurried = stored + flush.max_pending  # the version at which a flush no longer waits
        self._most = _MOST_BEHIND * flush.max_pending
        self._attempts = 0
        self._abandoned = False
        self._ending = False
        self._pause: Any = None  # between a flush that failed and the next attempt
        self._next: Appointment | None = None  # when the next flush begins
        self._in_use = False  # the store: by a flush, by a recovery that opens it again, or by a read
        self._others = 0  # than flushes, which use it, or wait until they may
        self._let_go: list[Any] = []  # who waits until it is not in use
        self._in_flight: Staged | None = None
        self._waiters: list[tuple[int, Any]] = []
        self._room: Any = None  # who waits until it is not full any more

    @property
    def count(self) -> int:
        """How many writes are at risk."""
        return self.acknowledged - self.stored

    @property
    def is_full(self) -> bool:
        """Whether so much is at risk that the actor takes no more turns."""
        return self.count >= self._most

    @property
    def age(self) -> float:
        """How many seconds ago the oldest write at risk was acknowledged."""
        return self._cell.loop.time() - self.since if self.since is not None and self.count else 0.0

    @property
    def bytes(self) -> int:
        """How many bytes of states are at risk."""
        return self.unstored.size(self.stored)

    def mark(self, version: int | None = None) -> None:
        """Take note that the actor acknowledged a version: its newest, if it is not given."""
        version = self.acknowledged = self._cell.version if version is None else version
        if self.since is None:
            self.since = self._cell.loop.time()
        if version >= self._hurried:
            self._hurry()
            if self.is_full:
                self._cell.free = False
        elif self._next is None and not self._in_use:
            self._next = self._cell.runtime.timetable.call_later(self._flush.max_delay, self._begin)

    def acknowledge(self, staged: Staged) -> None:
        """Take note that the journal has these versions."""
        self.unstored.take(staged.records, staged.requests, self.stored)
        self.mark(staged.last)

    def resume(self, stored: int, journaled: list[Record], requests: list[Request]) -> None:
        """Begin anew after an opening: the store has all up to ``stored``; the journal, or memory, the rest."""
        if self.count and not self.journaled:
            self.stored = stored
            return
        self.begin_at(stored)
        self.unstored.begin(journaled, requests)
        if journaled:
            self.mark(journaled[-1].version)

    def begin_at(self, version: int) -> None:
        """Nothing is at risk: what the store has, up to ``version``, is all that there is."""
        self.acknowledged = self.stored = version
        self.since = None
        self._hurried = version + self._flush.max_pending
        self.unstored.begin()

    async def flush(self) -> None:
        """Return when all that was acknowledged until now is in the store."""
        if self.count == 0:
            return
        waiter = self._cell.loop.waiter()
        self._waiters.append((self.acknowledged, waiter))
        self._hurry()
        error = await waiter
        if error is not None:
            raise error

    def abandon(self, error: DgentError) -> None:
        """The runtime has ended without waiting: nothing more is flushed; a journal has it all, for the next time."""
        self._abandoned = True
        self._make_room()
        self._answer(error)

    async def end(self, error: BaseException | None) -> None:
        """The actor has ended: write once more what only memory has, name what is not taken, and leave the store."""
        self._ending = True
        if self._pause is not None:
            give(self._pause, None)
        await self._unused()
        if self.count and not self.journaled and not self._abandoned:
            self._begin(last=True)
            await self._unused()
        if self.count and not self.journaled:
            cell = self._cell
            cell.runtime.emit("flush_failed", cell.name, error=error, version=self.acknowledged, lost=self.count)
        self._answer(as_flush_error(error) if isinstance(error, Exception) else None)

    async def _unused(self) -> None:
        """Return once nobody uses the store."""
        while self._in_use:
            waiter = self._cell.loop.waiter()
            self._let_go.append(waiter)
            await waiter

    @asynccontextmanager
    async def store_alone(self) -> AsyncIterator[None]:
        """Keep flushes off the store while it is read or opened again; wait until none is in the middle of a write.

        Nor is it read while a flush that failed opens it again: a store that is half open knows of nothing.
        """
        self._others += 1
        try:
            await self._unused()
            self._in_use = True
            try:
                yield
            finally:
                self._in_use = False
        finally:
            self._others -= 1
            self._go_on()

    def _begin(self, *, last: bool = False) -> None:
        """Hand what is at risk to the store, unless that is in use; the last time once the actor has ended."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._in_use or self._others or self._is_over(last) or not self.count:
            return
        self._in_use = True
        staged = self._in_flight = Staged(self._cell)
        try:
            staged.records = self.unstored.records(self.stored)
            staged.base = self.stored
            assert staged.records, "invariant 1"
            staged.requests = self.unstored.requests(self.stored, staged.last)
            store = self._backend.inner.store  # another one after each reopening
            if store is None:
                raise StorageError(f"the store of {self._cell.name!r} is not open", actor=self._cell.name)
            self._cell.runtime.committer(store).submit(staged)
        except Exception as failure:
            self.settled(staged, as_flush_error(failure))

    def settled(self, staged: Staged, error: DgentError | None) -> bool:
        """Take note of what became of a flush; return False if ``staged`` is none."""
        if staged is not self._in_flight:
            return False
        self._in_flight = None
        if error is None:
            self._flushed(staged.last)
        elif may_help(error):
            self._cell.loop.start(self._recover, error)
            return True
        else:
            self._lost(error)
        self._in_use = False
        self._go_on()
        return True

    async def _recover(self, error: DgentError) -> None:
        try:
            await self._try_again(error)
        except Exception as failure:
            self._lost(as_flush_error(failure))
        self._in_use = False
        self._go_on()

    def _go_on(self) -> None:
        """The store is not in use any more: what is at risk is next."""
        if self._let_go:
            waiting, self._let_go = self._let_go, []
            for waiter in waiting:
                give(waiter, None)
        elif self.count and not self._in_use and not self._is_over() and self._next is None:
            in_a_hurry = self._waiters or self.acknowledged >= self._hurried
            delay = 0.0 if in_a_hurry else self._flush.max_delay
            self._next = self._cell.runtime.timetable.call_later(delay, self._begin)

    def _is_over(self, last: bool = False) -> bool:
        return self._abandoned or (self._ending and not last)

    def _flushed(self, version: int) -> None:
        writes, self._attempts = version - self.stored, 0
        self.stored = version
        self.since = self._cell.loop.time() if self.count else None
        self._hurried = version + self._flush.max_pending
        self._cell.runtime.emit("flushed", self._cell.name, version=version, writes=writes)
        self._make_room()
        self._answer(None)
        self._backend.forget_journal(self._cell)

    def _answer(self, error: DgentError | None) -> None:
        waiting, self._waiters = self._waiters, []
        for version, waiter in waiting:
            if error is None and version > self.stored:
                self._waiters.append((version, waiter))
            elif not waiter.done():
                waiter.set_result(error)

    def _lost(self, error: DgentError) -> None:
        """The store refuses for good: say what was not written, and stop."""
        self._cell.runtime.emit(
            "flush_failed", self._cell.name, error=error, version=self.acknowledged, lost=self.count
        )
        if isinstance(error, OwnershipLostError):
            self._cell.runtime.emit("ownership_lost", self._cell.name, error=error)
        self.stored = self.acknowledged
        self._make_room()
        self._answer(error)
        self._cell.stop_after(error)

    async def _try_again(self, error: DgentError) -> None:
        """The store is away: reopen it after a pause, and find out what it has."""
        self._attempts += 1
        delay = _BACKOFF.delay(self._attempts)
        self._cell.runtime.emit(
            "flush_failed", self._cell.name, error=error, version=self.acknowledged, at_risk=self.count, delay=delay
        )
        if not self._is_over():
            self._pause = self._cell.loop.waiter()
            timer = self._cell.loop.call_later(delay, lambda: give(self._pause, None))
            await self._pause
            timer.cancel()
        if self._is_over():
            return
        try:
            opened = await self._backend.reopen()
        except DgentError as reason:
            if not may_help(reason):
                self._lost(reason)
            return  # the next flush finds out whether it is still away
        if self.is_overtaken():
            return
        self._cell.epoch = opened.epoch
        stored = opened.record.version if opened.record is not None else 0
        if stored > self.stored:
            self._flushed(min(stored, self.acknowledged))
        elif stored < self.stored:  # it has lost versions: what memory has of them is written once more
            if getattr(self._backend, "went_back", None) != (self.stored, stored):  # else it has said so itself
                message = f"the store went back from version {self.stored} to {stored}"
                self._cell.runtime.emit("warning", self._cell.name, message=message)
            self.stored = stored

    def is_overtaken(self) -> bool:
        """Say whether another owner has written since; then what is at risk is lost, and the actor stops.

        Call it after the store was opened, and before the cell takes over the new epoch: what is newer in the store
        than ``stored`` is ours unless it has a newer one than ours.
        """
        record = self._backend.found
        if not self.count or record is None or record.version <= self.stored or record.epoch <= self._cell.epoch:
            return False
        self._lost(
            OwnershipLostError(
                f"another owner has written version {record.version} of {self._cell.name!r} meanwhile; what was "
                f"acknowledged since version {self.stored}, up to {self.acknowledged}, may not be in the store",
                actor=self._cell.name,
                outcome="unknown",
                hint="let one runtime at a time own a state that is written behind",
            )
        )
        return True

    # Waiting

    def room(self) -> Any:
        """Return a waiter for the next flush, or the end."""
        self._room = self._cell.loop.waiter()
        return self._room

    def _make_room(self) -> None:
        if self._room is not None:
            give(self._room, None)
            self._room = None
        elif not self._cell.draining:
            self._cell.rest()

    def _hurry(self) -> None:
        """Begin as soon as the turn in progress is over; if the store is in use, when it is not any more."""
        if not self._in_use and (self._next is None or self._next.due > self._cell.loop.time()):
            if self._next is not None:
                self._next.cancel()
            self._next = self._cell.runtime.timetable.call_later(0.0, self._begin)
