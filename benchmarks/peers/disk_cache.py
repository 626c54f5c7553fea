"""diskcache: get and set inside `transact`, as in https://grantjenks.com/docs/diskcache/tutorial.html.

``sqlite_synchronous=2`` (FULL): its default would not wait for the disk, as the others here do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio.to_thread
import diskcache

from dgents.benchmarks.states import State


class DiskCache:
    """Used from worker threads, because it blocks."""

    name = "diskcache, transact"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._cache: Any = diskcache.Cache(str(directory / "cache"), sqlite_synchronous=2)
        if state is not None:
            for key in range(keys):
                await self.save(state, key)

    async def load(self, key: int = 0) -> State:
        state: State = await anyio.to_thread.run_sync(self._cache.get, key)
        return state

    async def save(self, state: State, key: int = 0) -> None:
        await anyio.to_thread.run_sync(self._cache.set, key, state)

    async def increment(self, key: int = 0) -> None:
        await anyio.to_thread.run_sync(self._increment, key)

    def _increment(self, key: int) -> None:
        with self._cache.transact():
            state = self._cache[key]
            state["visits"] += 1
            self._cache[key] = state

    async def close(self) -> None:
        await anyio.to_thread.run_sync(self._cache.close)
