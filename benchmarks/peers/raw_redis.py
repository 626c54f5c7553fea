"""The least that a state on Redis can cost: redis-py, a SET at a time or a thousand of them in a pipeline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
from redis.asyncio import Redis

from dgents.benchmarks.measure import Sample
from dgents.benchmarks.states import State, profile


class RawRedis:
    """One client of the server at ``url``, which keeps the round's states apart by its directory's name."""

    name = "redis-py, a SET a save"

    def __init__(self, url: str) -> None:
        self._url = url

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._redis: Any = Redis.from_url(self._url)
        self._names = [f"{directory.name}/{key}" for key in range(keys)]
        if state is not None:
            await self.save_all([state] * keys)

    async def load(self, key: int = 0) -> State:
        state: State = msgspec.msgpack.decode(await self._redis.get(self._names[key]))
        return state

    async def save(self, state: State, key: int = 0) -> None:
        await self._redis.set(self._names[key], msgspec.msgpack.encode(state))

    async def increment(self, key: int = 0) -> None:
        state = await self.load(key)
        state["visits"] += 1
        await self.save(state, key)

    async def save_all(self, states: list[State]) -> None:
        """Save the state of every key in one pipeline."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, state in zip(self._names, states, strict=True):
                pipe.set(name, msgspec.msgpack.encode(state))
            await pipe.execute()

    async def close(self) -> None:
        await self._redis.aclose()


def pipelines(url: str, keys: int, count: int) -> Callable[[Path], Awaitable[Sample]]:
    """Save ``keys`` states in one pipeline, ``count`` times; the last of each must be there."""

    async def round(directory: Path) -> Sample:
        peer = RawRedis(url)
        await peer.setup(directory, profile(), keys)
        try:
            started = perf_counter()
            for visits in range(1, count + 1):
                await peer.save_all([profile(visits) for _ in range(keys)])
            seconds = perf_counter() - started
            found = [(await peer.load(key))["visits"] for key in range(keys)]
        finally:
            await peer.close()
        return Sample(operations=keys * count, seconds=seconds, expected=[count] * keys, found=found)

    return round
