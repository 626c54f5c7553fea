"""The journal behind write-behind caches: what a store does not have yet is never trimmed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dgents
from dgents.runtime.contract import Record, Write
from dgents.supervisors import flush_journal
from dgents.supervisors.flush_journal import FlushJournal
from tests.resources import fake_resources

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_journal, "_SEGMENT", 0)


def write(actor: str, version: int) -> Write:
    backend: Any = SimpleNamespace(max_history=100, key=actor)
    return Write(backend, version - 1, [Record(version, 1, 0.0, f"{actor}{version}".encode())], [], actor)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[FlushJournal]:
    async with fake_resources() as resources:
        journal = await FlushJournal.acquire(path, resources)
        yield journal
        await journal.release(resources)


async def versions(path: Path, actor: str) -> list[int]:
    """Return what a next process would replay."""
    async with opened(path) as journal:
        records, _ = await journal.claim(actor)
        return [record.version for record in records]


async def test_what_the_store_has_is_trimmed(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        for version in range(1, 6):
            await journal.commit([write("a", version)])
        assert journal.forget("a", 5)
        await journal.trim()
    assert await versions(tmp_path / "j", "a") == []


async def test_a_write_that_came_while_the_one_before_was_flushed_stays(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        await journal.commit([write("a", 1)])
        await journal.commit([write("a", 2)])
        journal.forget("a", 1)  # the store has the first only
        await journal.trim()
    assert 2 in await versions(tmp_path / "j", "a")


async def test_one_actor_that_is_stored_does_not_take_those_of_another_along(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        await journal.commit([write("a", 1), write("b", 1)])
        await journal.commit([write("a", 2)])
        journal.forget("a", 2)
        await journal.trim()
    assert await versions(tmp_path / "j", "b") == [1]


async def test_nothing_is_forgotten_that_is_newer_than_what_the_store_has(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        await journal.commit([write("a", 7)])
        assert not journal.forget("a", 6)
        await journal.trim()
    assert await versions(tmp_path / "j", "a") == [7]


async def test_a_journal_under_constant_writes_does_not_grow_for_ever(tmp_path: Path) -> None:
    behind = dgents.CachedAgent(
        dgents.VolatileAgent(),
        dgents.SQLAgent(str(tmp_path / "a.db")),
        policy="write-behind",
        flush=dgents.Flush(max_delay=0.0, journal=tmp_path / "j"),
    )
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", behind)
        for n in range(50):
            await ref.save("x" * 10_000 + str(n))
            await ref.flush()
        assert sum(path.stat().st_size for path in (tmp_path / "j").iterdir()) < 250_000
