"""Short words for the tests of the Redis backend: open one, write one version, read the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from dgents.backends.redis import RedisAgent, RedisBackend
from dgents.runtime.contract import Opened, Record, Request, Write
from dgents.runtime.errors import DgentError
from tests.resources import FakeResources, fake_resources


@asynccontextmanager
async def opened(
    url: str, name: str = "user/7", *, resources: FakeResources | None = None, **options: Any
) -> AsyncIterator[tuple[RedisBackend, Opened]]:
    """Open the backend of one actor while the block lasts."""
    if resources is None:
        async with fake_resources() as own, opened(url, name, resources=own, **options) as pair:
            yield pair
        return
    backend = RedisAgent(url, **options).backend(name, resources)
    found = await backend.open()
    try:
        yield backend, found
    finally:
        await backend.close()


def record(version: int, data: bytes | None = b"state", epoch: int = 1) -> Record:
    return Record(version=version, epoch=epoch, saved_at=1.5, data=data)


def write(
    backend: RedisBackend, version: int, data: bytes | None = b"state", requests: Sequence[Request] = ()
) -> Write:
    """Return the write of one version on top of the one before."""
    return Write(backend, version - 1, [record(version, data)], list(requests))


async def commit(backend: RedisBackend, version: int, data: bytes | None = b"state") -> DgentError | None:
    """Write one version and return the answer to it."""
    assert backend.store is not None
    (answer,) = await backend.store.commit([write(backend, version, data)])
    return answer
