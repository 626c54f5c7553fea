"""What happened to the actors: lifecycle events, and where to listen to them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from dgents.runtime.loops import give

if TYPE_CHECKING:
    from dgents.runtime.loops import Loop, Waiter

log = logging.getLogger("dgents")
_ALARMING = frozenset({"crashed", "escalated", "flush_failed", "dead_letter", "ownership_lost", "warning"})


class Event(msgspec.Struct, frozen=True):
    """One thing that happened.

    Attributes:
        kind: spawned, crashed, restarted, escalated, stopped, flushed, flush_failed, dead_letter, ownership_lost,
            activated, passivated, warning.
        actor: the name of the actor concerned, if it was one.
        at: when, UTC.
        details: what belongs to the kind: ``error``, ``delay``, ``message``, ...
    """

    kind: str
    actor: str | None
    at: datetime
    details: dict[str, Any]


class Events:
    """A publisher that never waits: a slow listener loses its oldest events, and learns how many."""

    def __init__(self, loop: Loop, on_event: Callable[[Event], object] | None, *, most_pending: int = 10_000) -> None:
        self._loop = loop
        self._on_event = on_event
        self._most_pending = most_pending
        self._listeners: set[EventStream] = set()

    def emit(self, kind: str, actor: str | None = None, **details: Any) -> None:
        """Publish an event to every listener, to ``on_event`` and, where it is alarming, to the log."""
        if not self._listeners and self._on_event is None and kind not in _ALARMING:
            return  # most programs listen to nothing, and a busy cache flushes thousands of times a second
        event = Event(kind, actor, datetime.now(UTC), details)
        if kind in _ALARMING:
            log.warning("%s %s %s", kind, actor or "", details)
        for listener in self._listeners:
            listener.push(event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                log.exception("the on_event callback failed; the event was %s", event)

    def listen(self) -> EventStream:
        """Return an iterator over the events from now on."""
        stream = EventStream(self._loop, self._most_pending, self._listeners.discard)
        self._listeners.add(stream)
        return stream

    def close(self) -> None:
        """End every listener's iteration."""
        for listener in list(self._listeners):
            listener.close()
        self._listeners.clear()


class EventStream(AsyncIterator[Event]):
    """An async iterator over events; ``lost`` counts those that a slow reader missed."""

    def __init__(self, loop: Loop, most_pending: int, on_close: Callable[[EventStream], object]) -> None:
        self._loop = loop
        self._pending: deque[Event] = deque(maxlen=most_pending)
        self._waiter: Waiter | None = None
        self._closed = False
        self._on_close = on_close
        self.lost = 0

    def push(self, event: Event) -> None:
        if len(self._pending) == self._pending.maxlen:
            self.lost += 1
        self._pending.append(event)
        self._wake()

    def close(self) -> None:
        """Stop listening; the iteration ends after what is pending."""
        self._closed = True
        self._on_close(self)
        self._wake()

    async def aclose(self) -> None:
        """Stop listening."""
        self.close()

    async def __anext__(self) -> Event:
        while not self._pending:
            if self._closed:
                raise StopAsyncIteration
            self._waiter = self._loop.waiter()
            await self._waiter
        return self._pending.popleft()

    def _wake(self) -> None:
        if self._waiter is not None:
            give(self._waiter, None)
