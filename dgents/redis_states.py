"""The states in a Redis, read from a program without an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from dgents.backends.redis import REMINDERS_KEY
from dgents.backends.redis_client import Client
from dgents.backends.redis_connect import connect
from dgents.backends.redis_inspect import RedisInspector
from dgents.backends.redis_url import parse_redis_url
from dgents.runtime.errors import StateCorruptionError
from dgents.stores import Entry, Other, Stored, entry

T = TypeVar("T")


@contextmanager
def open_redis(url: str) -> Iterator[RedisStates]:
    """Connect while the block lasts.

    Raises:
        ValueError: it is no URL of a Redis.
        StorageError: the server can't be reached, or refuses.
    """
    place = parse_redis_url(url)

    async def make() -> Client:
        return connect(place)

    with start_blocking_portal("asyncio") as portal:
        client = portal.call(make)
        try:
            yield RedisStates(portal, client)
        finally:
            portal.call(client.close)


class RedisStates:
    """A key a state; see `stores.Store`."""

    def __init__(self, portal: BlockingPortal, client: Client) -> None:
        self._portal = portal
        self._client = client
        self._inspector = RedisInspector(client)

    def entries(self) -> Iterator[Entry]:
        for key in self._call(self._keys):
            if key != REMINDERS_KEY:
                yield entry(partial(self._read, key))

    def find(self, key: str, table: str | None = None) -> list[Stored]:
        stored = self._read(key)
        return [stored] if stored.records else []

    def damage(self) -> Iterator[StateCorruptionError]:
        return iter(())

    def others(self) -> list[Other]:
        return [Other("reminders", True)] if self._read(REMINDERS_KEY).records else []

    def _read(self, key: str) -> Stored:
        records = self._call(partial(self._inspector.records, key))
        return Stored(None, key, records, self._call(partial(self._inspector.requests, key)) if records else [])

    async def _keys(self) -> list[str]:
        return sorted([key async for key in self._inspector.all_keys()])

    def _call(self, fn: Callable[[], Awaitable[T]]) -> T:
        return self._portal.call(fn)
