"""The SQLite backend by itself, under asyncio and trio, against the protocol in runtime/contract.py."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from dgents.backends.sqlite import SqliteBackend
from dgents.runtime.contract import Opened, Record, Request, Write
from dgents.runtime.errors import (
    OwnershipLostError,
    StateTooLargeError,
)
from tests.resources import FakeResources, fake_resources
from tests.sqlite_kit import make, save, state

pytestmark = pytest.mark.anyio


@pytest.fixture
async def resources(anyio_backend: str) -> AsyncIterator[FakeResources]:
    async with fake_resources() as resources:
        yield resources


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


async def test_a_state_that_was_never_saved_opens_empty_and_claims_the_first_epoch(path, resources):
    backend = make(path, resources)
    assert await backend.open() == Opened(None, 1)
    assert await backend.read() is None
    assert await backend.history() == []
    assert await backend.requests() == []
    await backend.close()


async def test_what_was_committed_is_there_when_opened_again_under_the_next_epoch(path, resources):
    backend = make(path, resources)
    await backend.open()
    assert await save(backend, 0, {"a": 1}) is None
    await backend.close()
    opened = await backend.open()
    assert (state(opened.record), opened.record.version, opened.epoch) == ({"a": 1}, 1, 2)
    await backend.close()


async def test_a_batch_of_many_versions_keeps_the_newest_as_far_as_the_bound(path, resources):
    backend = make(path, resources, max_history=10)
    await backend.open()
    await save(backend, 0, *range(4))
    await save(backend, 4, *range(4, 40))
    assert [record.version for record in await backend.history()] == list(range(31, 41))
    assert [state(record) for record in await backend.history(3)] == [37, 38, 39]
    assert await backend.history(0) == []
    await backend.close()


async def test_no_history_keeps_the_current_version_only(path, resources):
    backend = make(path, resources, max_history=0)
    await backend.open()
    for base in range(3):
        await save(backend, base, base)
    assert [record.version for record in await backend.history()] == [3]
    assert await backend.aggregate("COUNT(*)") == 1
    await backend.close()


async def test_a_tombstone_is_a_version_and_versions_go_on_after_it(path, resources):
    backend = make(path, resources)
    await backend.open()
    await save(backend, 0, "a", None)
    assert await backend.read() == Record(2, 1, pytest.approx(time.time(), abs=60), None)
    await save(backend, 2, "b")
    assert [state(record) for record in await backend.history()] == ["a", None, "b"]
    await backend.close()


async def test_the_last_thousand_requests_are_remembered_in_order(path, resources):
    backend = make(path, resources)
    await backend.open()
    first = tuple(Request(f"r{n}", 1, b"x") for n in range(700))
    await save(backend, 0, "a", requests=first)
    second = tuple(Request(f"s{n}", 2) for n in range(600))
    await save(backend, 1, "b", requests=second)
    assert await backend.requests() == [*first, *second][-1000:]
    await backend.close()


async def test_a_refused_write_stores_neither_states_nor_requests_and_leaves_the_others_alone(path, resources):
    good, bad = make(path, resources, "good"), make(path, resources, "bad")
    await good.open()
    await bad.open()
    record = Record(1, 1, 0.0, b"\x01")
    stale = Record(1, 0, 0.0, b"\x01")
    answers = await good.store.commit([Write(bad, 0, [stale], [Request("r", 1)]), Write(good, 0, [record], [])])
    assert isinstance(answers[0], OwnershipLostError)
    assert answers[1] is None
    assert (await bad.read(), await bad.requests(), await good.read()) == (None, [], record)
    await good.close()
    await bad.close()


async def test_keys_that_look_alike_are_different_states(path, resources):
    keys = [
        "a",
        "A",
        "a ",
        "a/b",
        "a/../b",
        "a\0",
        "a\0b",
        "ä",
        "a\u0308",
        "\u202ea",
        "x" * 4096,
        "'; DROP TABLE states",
    ]
    backends = [make(path, resources, key) for key in keys]
    for number, backend in enumerate(backends):
        await backend.open()
        await save(backend, 0, number)
    assert [state(await backend.read()) for backend in backends] == list(range(len(keys)))
    for backend in backends:
        await backend.close()


async def test_a_state_over_sqlites_own_limit_is_refused_and_the_rest_of_the_batch_is_kept(path, resources):
    large, small = make(path, resources, "large"), make(path, resources, "small")
    await large.open()
    await small.open()
    writer = large.store.database
    await writer.read(lambda connection: connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000))
    writes = [Write(it, 0, [Record(1, 1, 0.0, bytes(size))], []) for it, size in ((large, 99_000), (small, 90_000))]
    refused, kept = await large.store.commit(writes)
    assert isinstance(refused, StateTooLargeError)
    assert refused.size == 99_000
    assert kept is None
    await large.close()
    await small.close()


async def test_a_thousand_states_open_in_a_few_transactions(path, resources, monkeypatch):
    backends = [make(path, resources, f"user/{n}") for n in range(1000)]
    await backends[0].open()
    batches: list[int] = []
    claims = backends[0].store._claims
    run = claims._run

    async def counting(items):
        batches.append(len(items))
        return await run(items)

    monkeypatch.setattr(claims, "_run", counting)
    async with anyio.create_task_group() as tasks:
        for backend in backends[1:]:
            tasks.start_soon(backend.open)
    assert sum(batches) == 999
    assert len(batches) < 100
    async with anyio.create_task_group() as tasks:
        for backend in backends:
            tasks.start_soon(backend.close)


async def test_backends_that_close_and_open_in_any_order_share_one_store(path, resources):
    backends = [make(path, resources, f"k{n}") for n in range(20)]

    async def live(backend: SqliteBackend, number: int) -> None:
        for base in range(number % 5 + 2):
            opened = await backend.open()
            assert (opened.record.version if opened.record else 0) == base
            assert await save(backend, base, base, epoch=opened.epoch) is None
            await backend.close()

    async with anyio.create_task_group() as tasks:
        for number, backend in enumerate(backends):
            tasks.start_soon(live, backend, number)
    assert resources.in_use() == 0


async def test_an_open_that_is_cancelled_leaves_nothing_behind(path, resources):
    for _ in range(30):
        backend = make(path, resources)
        with anyio.move_on_after(0):
            await backend.open()
            await backend.close()
        if backend.store is not None:
            await backend.close()
        assert resources.in_use() == 0
    backend = make(path, resources)
    await backend.open()
    await backend.close()
