"""eventsourcing: an aggregate in an application on SQLite, saved with optimistic concurrency control.

As in https://eventsourcing.readthedocs.io/en/stable/topics/tutorial/part3.html; a save that came too late raises
``IntegrityError``, after which the aggregate is read again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import anyio
import anyio.to_thread
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import IntegrityError

from dgents.benchmarks.states import State


class Keeper(Aggregate):
    @event("Began")
    def __init__(self, key: int, state: dict[str, Any]) -> None:
        self.key = key
        self.state = state

    @staticmethod
    def create_id(key: int) -> UUID:
        return uuid5(NAMESPACE_URL, f"/states/{key}")

    @event("Replaced")
    def replace(self, state: dict[str, Any]) -> None:
        self.state = state

    @event("Incremented")
    def increment(self) -> None:
        self.state["visits"] += 1


class EventSourced:
    """Used from one worker thread at a time, because it blocks and more of them only collide.

    Args:
        in_hand: keep the aggregate between two increments, which only its one user may do, instead of reading it again.
    """

    name = "eventsourcing, SQLite"

    def __init__(self, *, in_hand: bool = False) -> None:
        self._in_hand = in_hand
        self._held: Any = None

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        env = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(directory / "events.db")}
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._application: Any = Application(env=env)
        if state is not None:
            for key in range(keys):
                self._application.save(Keeper(key, state))

    async def load(self, key: int = 0) -> State:
        state: State = (await self._run(self._get, key)).state
        return state

    async def save(self, state: State, key: int = 0) -> None:
        await self._run(self._change, key, "replace", state)

    async def increment(self, key: int = 0) -> None:
        await self._run(self._change, key, "increment")

    async def increment_many(self, count: int) -> None:
        """Append so many events in one save."""
        await self._run(self._change_often, count)

    async def close(self) -> None:
        await self._run(self._application.close)

    def _get(self, key: int) -> Any:
        return self._application.repository.get(Keeper.create_id(key))

    def _change(self, key: int, method: str, *args: Any) -> None:
        while True:
            aggregate = self._held if self._held is not None else self._get(key)
            if self._in_hand:
                self._held = aggregate
            getattr(aggregate, method)(*args)
            try:
                self._application.save(aggregate)
                return
            except IntegrityError:
                continue

    def _change_often(self, count: int) -> None:
        aggregate = self._get(0)
        for _ in range(count):
            aggregate.increment()
        self._application.save(aggregate)

    async def _run(self, function: Any, *args: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *args, limiter=self._one_at_a_time)
