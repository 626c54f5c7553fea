"""Whether an actor's memory is what its store has, and who is told when it changes.

An exclusive owner's memory is always fresh, unless it is a cache with a time to live. A shared state's memory is fresh
only as far as the store confirms it, unless it is cached: then it is trusted until that time is over, or until the
store reports that another process wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dgents.runtime.contract import Backend
from dgents.runtime.errors import StorageError
from dgents.runtime.phase import Phase
from dgents.runtime.turns import StateTurns

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.loops import Loop, Timer
    from dgents.runtime.runtime import BaseRuntime


class Freshness(StateTurns):
    """The part of an actor that knows how far its memory may be trusted."""

    __slots__ = (
        "backend",
        "behind",
        "evictions",
        "expiry",
        "free",
        "fresh",
        "heard",
        "hit",
        "listening",
        "loop",
        "phase",
        "runtime",
    )

    runtime: BaseRuntime
    loop: Loop
    backend: Backend
    phase: Phase
    behind: Any
    fresh: bool  # the state in memory is the newest that we know of
    free: bool  # a turn may run in its caller's task
    hit: bool  # so may one that only reads: as `free`, and for a cached shared state that is fresh
    heard: int  # how often memory may have become older than the store
    listening: bool  # to what other processes change
    expiry: Timer | None  # when a cached state is to be read again
    evictions: int

    @property
    def is_shared(self) -> bool:
        """Whether other processes write this state too."""
        return self.backend is not None and self.backend.ownership == "shared"

    def rest(self) -> None:
        """Nothing is to be done: from now on turns run in their callers' tasks."""
        running = self.phase is Phase.RUNNING
        self.free = running and not self.is_shared and (self.fresh or self.ttl is None)
        self.hit = self.free or (running and self.is_cached and self.fresh)
        if self.behind is not None and self.behind.is_full:  # then writers wait, and loads only behind them
            self.free = False

    @property
    def is_cached(self) -> bool:
        """Whether memory may be trusted although the store is shared."""
        return bool(getattr(self.backend, "trusted", False))

    @property
    def ttl(self) -> float | None:
        """Seconds for which memory may be trusted; None: until it changes, or there is nothing else to read."""
        if not self.is_cached or (self.committer is None and self.behind is None):
            return None
        ttl: float | None = getattr(self.backend, "ttl", None)
        return ttl

    def is_fresh(self, heard: int) -> None:
        """Memory is what the store had when ``heard`` was as given; what was heard of since has made it old again."""
        self.fresh = heard == self.heard
        ttl = self.ttl
        if ttl is not None and self.fresh:
            if self.expiry is not None:
                self.expiry.cancel()
            self.expiry = self.runtime.timetable.call_later(ttl, self.expire)

    def expire(self) -> None:
        """Memory may not be what the store has: the next turn reads it again."""
        self.heard += 1
        if self.fresh:
            self.fresh = self.free = self.hit = False
            self.evictions += 1
        if self.watchers:
            self.notify()

    async def listen(self) -> None:
        """Hear of what other processes change, where the store tells."""
        subscribe = getattr(self.backend, "subscribe", None)
        if subscribe is None or self.listening or not (self.watchers or self.is_cached):
            return
        self.listening = True
        try:
            await subscribe(self.expire)
        except StorageError as error:
            self.listening = False
            self.runtime.emit("warning", self.name, message=f"changes by others are not heard of: {error}")

    def changed(self) -> None:
        """Take note of a new version that waits for no store."""
        if self.behind is not None:
            if self.phase is Phase.STOPPED:  # a turn has outlived its actor, which writes nothing more
                cast("Cell", self).refuse()
            self.behind.mark()
        if self.watchers:
            self.notify()

    def notify(self) -> None:
        """Tell the watchers that there is a newer version."""
        for watcher in list(self.watchers or ()):
            watcher.wake()
