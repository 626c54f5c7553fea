"""dgents itself before the kit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

import dgents
from dgents.testing.client import Add, Client


class _Refs:
    """dgents behind the words of a `Client`: an actor a key, spawned when it is first needed."""

    def __init__(self, runtime: dgents.Runtime, make_agent: Callable[[], Any]) -> None:
        self._runtime = runtime
        self._make_agent = make_agent
        self._spawning = anyio.Lock()

    async def read(self, key: str) -> Any:
        return await (await self._ref(key)).load()

    async def write(self, key: str, value: Any) -> None:
        await (await self._ref(key)).save(value)

    async def update(self, key: str, change: Add) -> None:
        await (await self._ref(key)).update(change)

    async def _ref(self, key: str) -> dgents.Ref[Any]:
        async with self._spawning:
            try:
                return self._runtime.get(key)
            except KeyError:
                return await self._runtime.spawn(key, self._make_agent())


@asynccontextmanager
async def dgent_client(make_agent: Callable[[], Any]) -> AsyncIterator[Client]:
    """Open a `Client` whose values are the states of agents: ``partial(dgent_client, make_agent)`` makes clients.

    ``make_agent()`` describes the agent of one key; the key is its name.
    """
    async with dgents.Runtime() as runtime:
        yield _Refs(runtime, make_agent)
