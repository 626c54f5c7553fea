"""diskcache: threads that get and set, and threads that do so inside `transact`.

Its tutorial recommends ``transact`` for what has to be atomic: https://grantjenks.com/docs/diskcache/tutorial.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import diskcache

from dgents.benchmarks.clients import Case
from dgents.testing import Add, Client, MakeClient


class Cache:
    """One cache that many threads use."""

    def __init__(self, cache: Any, transact: bool) -> None:
        self._cache = cache
        self._update = self._update_transacting if transact else self._update_plainly

    async def read(self, key: str) -> Any:
        return await anyio.to_thread.run_sync(self._cache.get, key)

    async def write(self, key: str, value: Any) -> None:
        await anyio.to_thread.run_sync(self._cache.set, key, value)

    async def update(self, key: str, change: Add) -> None:
        await anyio.to_thread.run_sync(self._update, key, change)

    def _update_plainly(self, key: str, change: Add) -> None:
        self._cache[key] = change(self._cache[key])

    def _update_transacting(self, key: str, change: Add) -> None:
        with self._cache.transact():
            self._update_plainly(key, change)


@asynccontextmanager
async def opened(directory: Path, transact: bool) -> AsyncIterator[Client]:
    with diskcache.Cache(str(directory / "cache")) as cache:
        yield Cache(cache, transact)


def plain(directory: Path) -> MakeClient:
    return partial(opened, directory, False)


def transacting(directory: Path) -> MakeClient:
    return partial(opened, directory, True)


CASES = [
    Case("diskcache", "cache[key] = cache[key] + amount", plain, writers=8, each=50),
    Case("diskcache, transact", "with cache.transact(): ...", transacting, writers=8, each=50, safe=True),
]
