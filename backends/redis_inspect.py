"""Look at the states of a Redis from outside any actor: nothing is claimed, nothing is changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dgents.backends.redis_client import Client, Command, call_script
from dgents.backends.redis_commit import refused_value
from dgents.backends.redis_connect import connect
from dgents.backends.redis_errors import nonsense
from dgents.backends.redis_keys import PREFIX, RedisKeys, key_of
from dgents.backends.redis_record import decode_all, decode_requests
from dgents.backends.redis_scripts import HISTORY, REQUESTS, Script
from dgents.backends.redis_url import parse_redis_url
from dgents.runtime.contract import Record, Request

_ALL = 1_000_000  # more versions than a history is kept of


class RedisInspector:
    """Reads keys and records; made by `inspect_redis`, on asyncio."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def all_keys(self) -> AsyncIterator[str]:
        """Yield every key that holds a state, or what is left of one, each once, in no order."""
        seen: set[str] = set()
        async for name in self._client.scan(PREFIX + b"*}*"):
            key = key_of(name)
            if key is not None and key not in seen:
                seen.add(key)
                yield key

    async def records(self, key: str) -> list[Record]:
        """Return the stored versions of a state, oldest first, the current one last.

        Raises:
            StateCorruptionError: one of them can't be read.
            StorageError: the server can't be reached or refuses.
        """
        keys = RedisKeys(key)
        value, entries = await self._ask(HISTORY, key, (3, keys.state, keys.history, keys.requests, _ALL))
        return decode_all(key, value, entries, _ALL)

    async def requests(self, key: str) -> list[Request]:
        """Return the remembered request ids of a state, oldest first; raises as `records`."""
        keys = RedisKeys(key)
        return decode_requests(key, *await self._ask(REQUESTS, key, (2, keys.state, keys.requests)))

    async def _ask(self, script: Script, key: str, call: Command) -> Any:
        (reply,), _ = await call_script(self._client, script, [call])
        if isinstance(reply, Exception):
            raise refused_value(reply, key, self._client.place)
        if not isinstance(reply, list) or len(reply) != 2:
            raise nonsense(self._client.place, "rolled_back")
        return reply


@asynccontextmanager
async def inspect_redis(url: str) -> AsyncIterator[RedisInspector]:
    """Connect, on asyncio, while the block lasts.

    Raises:
        ValueError: it is no URL of a Redis.
    """
    client = connect(parse_redis_url(url))
    try:
        yield RedisInspector(client)
    finally:
        await client.close()
