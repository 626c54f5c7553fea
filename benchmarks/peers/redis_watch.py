"""redis-py: WATCH, GET, MULTI, SET, and again if somebody else was faster.

As in https://redis.readthedocs.io/en/stable/advanced_features.html#pipelines, on one client with a pool that waits.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import WatchError

from dgents.benchmarks.servers import redis_executable, redis_server
from dgents.benchmarks.states import State

_CONNECTIONS = 10


class RedisWatch:
    """A server of its own, which keeps everything in memory."""

    name = "redis-py, WATCH"

    def __init__(self) -> None:
        redis_executable()  # it is missed now, and not in the middle of a run

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._server = ExitStack()
        url = self._server.enter_context(redis_server())
        self._pool = BlockingConnectionPool.from_url(url, max_connections=_CONNECTIONS, timeout=60)
        self._redis: Any = Redis(connection_pool=self._pool)
        for key in range(keys):
            await self.save(state, key)

    async def load(self, key: int = 0) -> State:
        state: State = msgspec.msgpack.decode(await self._redis.get(str(key)))
        return state

    async def save(self, state: State, key: int = 0) -> None:
        await self._redis.set(str(key), msgspec.msgpack.encode(state))

    async def increment(self, key: int = 0) -> None:
        async with self._redis.pipeline() as pipe:
            while True:
                try:
                    await pipe.watch(str(key))
                    state = msgspec.msgpack.decode(await pipe.get(str(key)))
                    state["visits"] += 1
                    pipe.multi()
                    pipe.set(str(key), msgspec.msgpack.encode(state))
                    await pipe.execute()
                    return
                except WatchError:
                    continue

    async def close(self) -> None:
        await self._redis.aclose()
        await self._pool.disconnect()
        self._server.close()
