"""Virtual actors: always addressable, in memory only while they are used (Orleans; Bykov et al., 2011).

A family makes the actors of one prefix on demand. The first message activates one; idleness, or the cap (least recently
used first), passivates it after its writes are durable; the next message brings it back. Recency is counted in turns
of the runtime, so a turn costs no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dgents.runtime.arguments import check_count, check_seconds
from dgents.runtime.contract import Agent
from dgents.runtime.phase import Phase

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Timer
    from dgents.runtime.runtime import BaseRuntime

_SHRINK_AFTER = 0.05  # seconds
_AT_ONCE = 256  # so many idle ones leave in one turn of the event loop, then the others' messages have theirs
_SWEEPS_PER_TIMEOUT = 4  # an actor is passivated after 1 to 1.25 times its idle timeout


class Family:
    """The virtual actors of one prefix.

    Invariant: every active actor of the family is in ``_active`` and, at least once, in the heap, under a recency that
    is not newer than its true one.
    """

    def __init__(
        self,
        runtime: BaseRuntime,
        prefix: str,
        factory: Callable[[str], Agent],
        idle_timeout: float | None,
        max_active: int | None,
    ) -> None:
        if idle_timeout is not None:
            check_seconds("idle_timeout", idle_timeout, default="; None is never")
        if max_active is not None:
            check_count("max_active", max_active, of="number of actors")
        self._runtime = runtime
        self.prefix = prefix
        self.factory = factory
        self.idle_timeout = idle_timeout
        self.max_active = max_active
        self.ref_type: type[Any] | None = None
        self._active: dict[str, Cell] = {}
        self._heap: list[tuple[int, str]] = []
        self._idle_sweeps: dict[str, tuple[int, int]] = {}  # name -> (recency seen, sweeps without a change)
        self._leaving: set[str] = set()
        self._timer: Timer | None = None
        self._shrinking: Timer | None = None
        self._idle: list[Cell] = []  # found by the last sweep, and not on their way out yet
        self._dismissing: Timer | None = None

    def key(self, name: str) -> str:
        """Return the part of the name after the prefix."""
        return name[len(self.prefix) :].removeprefix("/")

    def matches(self, name: str) -> bool:
        return name.startswith(self.prefix if self.prefix.endswith("/") else self.prefix + "/")

    def make(self, name: str) -> Agent:
        """Return the description of the actor of this name."""
        return self.factory(self.key(name))

    async def activate(self, cell: Cell) -> None:
        """Bring an actor into memory, and send the least recently used one out if there are too many."""
        self._active[cell.name] = cell  # counted from now on: many may be on their way in at once
        try:
            if self.max_active is not None:
                self._make_room(cell)
            await cell.start()
        except BaseException:
            del self._active[cell.name]
            raise
        cell.touched = cell.coop.turn
        if self.max_active is not None:
            if len(self._heap) > 2 * len(self._active) + 16:  # entries of actors that left by another way
                self._heap = [(other.touched, name) for name, other in self._active.items()]
                heapq.heapify(self._heap)
            heapq.heappush(self._heap, (cell.touched, cell.name))
        if self.idle_timeout is not None and self._timer is None:
            self._schedule()

    def forget(self, cell: Cell) -> None:
        """Take note that an actor has left memory."""
        self._active.pop(cell.name, None)
        self._leaving.discard(cell.name)
        self._idle_sweeps.pop(cell.name, None)

    def _make_room(self, newcomer: Cell | None) -> None:
        assert self.max_active is not None
        busy: list[tuple[int, str]] = []
        excess = len(self._active) - len(self._leaving) - self.max_active
        while excess > 0 and self._heap:
            touched, name = heapq.heappop(self._heap)
            cell = self._active.get(name)
            if cell is None or cell is newcomer or cell.on_idle is not None:
                continue
            if cell.touched != touched:
                heapq.heappush(self._heap, (cell.touched, name))
            elif cell.phase is Phase.RUNNING and (cell.free or cell.is_idle):
                self._passivate(cell)
                excess -= 1
            else:
                busy.append((touched, name))
        for entry in busy:
            heapq.heappush(self._heap, entry)
        if excess > 0 and self._shrinking is None:  # those that are busy now leave a little later
            self._shrinking = self._runtime.loop.call_later(_SHRINK_AFTER, self._shrink)

    def _shrink(self) -> None:
        self._shrinking = None
        if not self._runtime.closing:
            self._make_room(None)

    def _passivate(self, cell: Cell) -> None:
        self._leaving.add(cell.name)
        cell.on_idle = self._passivated
        cell.wake()

    def _passivated(self, cell: Cell) -> None:
        self.forget(cell)
        self._runtime.passivated(cell)
        cell.supervision = None  # it refers to the cell: without this circle, the memory is free at once

    def _schedule(self) -> None:
        assert self.idle_timeout is not None
        self._timer = self._runtime.loop.call_later(self.idle_timeout / _SWEEPS_PER_TIMEOUT, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._idle = []
        for name, cell in list(self._active.items()):
            recency, sweeps = self._idle_sweeps.get(name, (-1, 0))
            if cell.touched != recency or not cell.is_idle:
                self._idle_sweeps[name] = (cell.touched, 0)
            elif sweeps + 1 >= _SWEEPS_PER_TIMEOUT:
                self._idle.append(cell)
            else:
                self._idle_sweeps[name] = (recency, sweeps + 1)
        if self._idle and self._dismissing is None:
            self._dismiss()
        if self._active and not self._runtime.closing:
            self._schedule()

    def _dismiss(self) -> None:
        """Send out those that the sweep found, if nobody has used them since; some at a time."""
        self._dismissing = None
        if self._runtime.closing:
            return
        some = self._idle[-_AT_ONCE:]
        del self._idle[-_AT_ONCE:]
        for cell in some:
            recency, _ = self._idle_sweeps.get(cell.name, (-1, 0))
            if cell.touched == recency and cell.is_idle and cell.on_idle is None and cell.phase is Phase.RUNNING:
                self._passivate(cell)
        if self._idle:
            self._dismissing = self._runtime.loop.call_later(0, self._dismiss)

    def close(self) -> None:
        """Stop looking for idle actors."""
        for timer in (self._timer, self._shrinking, self._dismissing):
            if timer is not None:
                timer.cancel()
        self._timer = self._shrinking = self._dismissing = None
