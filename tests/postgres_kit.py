"""Short words for the tests of the PostgreSQL backend: open one, write some versions, read the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from dgents.backends.postgres import PostgresBackend
from dgents.runtime.contract import Opened, Record, Request, Write
from dgents.runtime.errors import DgentError
from tests.resources import FakeResources, fake_resources


def make(url: str, resources: FakeResources, key: str = "user/7", **options: object) -> PostgresBackend:
    return PostgresBackend(uri=url, key=key, resources=resources, **{"table": "states", **options})  # type: ignore[arg-type]


@asynccontextmanager
async def opened(
    url: str, key: str = "user/7", *, resources: FakeResources | None = None, **options: object
) -> AsyncIterator[tuple[PostgresBackend, Opened]]:
    """Open the backend of one actor while the block lasts."""
    if resources is None:
        async with fake_resources() as own, opened(url, key, resources=own, **options) as pair:
            yield pair
        return
    backend = make(url, resources, key, **options)
    found = await backend.open()
    try:
        yield backend, found
    finally:
        await backend.close()


def record(version: int, data: bytes | None = b"state", epoch: int = 1) -> Record:
    return Record(version=version, epoch=epoch, saved_at=1.5, data=data)


def write(
    backend: PostgresBackend,
    base: int,
    *states: bytes | None,
    epoch: int = 1,
    requests: Sequence[Request] = (),
) -> Write:
    """Return the write of ``states`` as the versions after ``base``; None is a tombstone."""
    records = [record(base + n, state, epoch) for n, state in enumerate(states, 1)]
    return Write(backend, base, records, list(requests), backend.actor)


async def save(
    backend: PostgresBackend,
    base: int,
    *states: bytes | None,
    epoch: int = 1,
    requests: Sequence[Request] = (),
) -> DgentError | None:
    """Commit ``states`` and return the answer."""
    assert backend.store is not None
    (answer,) = await backend.store.commit([write(backend, base, *states, epoch=epoch, requests=requests)])
    return answer
