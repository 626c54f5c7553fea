"""What the tests of the gate and of supervision have in common: a runtime on a fake store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dgents
from dgents.runtime.events import Event
from tests.calls import Calls, calls
from tests.fake_store import FakeAgent, FakeStore


class Bench:
    """A runtime, a fake store, and what happened."""

    def __init__(self, rt: dgents.Runtime, run: Calls, events: list[Event]) -> None:
        self.rt = rt
        self.run = run
        self.events = events
        self.store = FakeStore()

    async def spawn(self, name: str = "a", **options: Any) -> dgents.Ref[Any]:
        return await self.rt.spawn(name, FakeAgent(self.store), **options)

    def kinds(self, name: str = "a") -> list[str]:
        return [event.kind for event in self.events if event.actor == name]


@asynccontextmanager
async def open_bench() -> AsyncIterator[Bench]:
    """Open a runtime whose calls run in the background; those that still wait at the end are cancelled."""
    events: list[Event] = []
    async with dgents.Runtime(on_event=events.append, shutdown_timeout=5) as rt, calls() as run:
        yield Bench(rt, run, events)
