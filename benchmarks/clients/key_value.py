"""py-key-value: `get` and `put`; its protocol has no compare-and-set and no update.

Source: https://github.com/strawgate/py-key-value, ``AsyncKeyValue``; it has no word on concurrent writers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from key_value.aio.stores.memory import MemoryStore

from dgents.benchmarks.clients import Case
from dgents.testing import Add, Client, MakeClient


class Store:
    """One store in memory; the values are dictionaries, as it wants them."""

    def __init__(self) -> None:
        self._store: Any = MemoryStore()

    async def read(self, key: str) -> Any:
        return (await self._store.get(key=key))["value"]

    async def write(self, key: str, value: Any) -> None:
        await self._store.put(key=key, value={"value": value})

    async def update(self, key: str, change: Add) -> None:
        value = await self.read(key)
        await asyncio.sleep(0)  # whatever the caller has to wait for
        await self.write(key, change(value))


@asynccontextmanager
async def opened() -> AsyncIterator[Client]:
    yield Store()


def memory(directory: Path) -> MakeClient:
    return opened


CASES = [Case("py-key-value", "store.get, store.put", memory, writers=4, each=10, stale=True)]
