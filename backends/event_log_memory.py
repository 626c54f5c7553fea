"""Events in memory: a list of the user's, or one that is gone with its actor."""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import Any

import msgspec

from dgents.backends.chain import GENESIS, link_of
from dgents.backends.event_codec import EventCodec, StoredEvent
from dgents.backends.event_log import CHUNK, Chunks, LogState, StateSnapshot
from dgents.runtime.contract import Request


class MemoryLog:
    """The events of one stream, in this process.

    Args:
        given: the list that it begins with, and to which each event is added; None: nobody else sees it.
        codec: of the events.
        chain: whether events are linked by their hashes.
    """

    store = None
    place = "memory"

    def __init__(self, given: list[Any] | None, codec: EventCodec[Any], *, chain: bool) -> None:
        self._given = given
        self._codec = codec
        self._chain = chain
        self._events: list[StoredEvent] | None = None
        self._floor: StateSnapshot | None = None

    async def open(self, least: int) -> LogState:
        """Take up the given list; raises what the codec raises of an event in it."""
        if self._events is None:
            self._events = []
            link, now = GENESIS, time()
            for version, event in enumerate(self._given or (), 1):
                packed = self._codec.pack(event)
                if self._chain:
                    link = link_of(link, version, now, packed.schema, packed.head, packed.payload)
                payload = msgspec.Raw(packed.payload)
                links = link if self._chain else None
                self._events.append(StoredEvent(version, 1, now, packed.schema, packed.tag, payload, links))
        last = self._events[-1] if self._events else None
        version = last.version if last is not None else self._base
        return LogState(version, last, 1, self._floor)

    def put(self, stored: StoredEvent, event: object) -> None:
        """Append an event; the given list gets a copy of it."""
        assert self._events is not None
        self._events.append(stored)
        if self._given is not None:
            self._given.append(self._codec.unpack(stored))

    def chunks(self, after: int, until: int) -> Chunks:
        """Return an iterator over the events from ``after`` + 1 to ``until``, in order."""
        events = self._events or []
        end = until - self._base
        starts = iter(range(after - self._base, end, CHUNK))

        async def step() -> Sequence[StoredEvent] | None:
            start = next(starts, None)
            return None if start is None else events[start : min(start + CHUNK, end)]

        return Chunks(step)

    async def requests(self) -> list[Request]:
        return []

    def remember(self, requests: Sequence[Request]) -> None:
        pass

    async def keep(self, snapshot: StateSnapshot) -> None:
        pass

    async def seal(self, head: bytes) -> None:
        pass

    async def compact(self, floor: StateSnapshot, head: bytes | None) -> None:
        """Forget the events up to that of ``floor``; the given list keeps them."""
        assert self._events is not None
        # A new list: whoever is in the middle of `chunks` goes on in the old one.
        self._events = self._events[floor.version - self._base :]
        self._floor = floor

    async def close(self) -> None:
        pass

    @property
    def _base(self) -> int:
        return self._floor.version if self._floor is not None else 0
