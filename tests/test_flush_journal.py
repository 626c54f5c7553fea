"""The journal behind write-behind caches: what a store does not have yet is never trimmed."""

from __future__ import annotations

import errno
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import dgents
from dgents.backends import files
from dgents.runtime.contract import Record, Request, Write
from dgents.supervisors import flush_journal
from dgents.supervisors.flush_journal import FlushJournal
from tests.calls import Call, calls
from tests.disk import FaultyLayer
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


async def test_actors_that_were_flushed_together_ask_for_one_trim(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        for version in (1, 2):
            await journal.commit([write(f"a{n}", version) for n in range(50)])
            assert sum(journal.forget(f"a{n}", version) for n in range(50)) == 1
            await journal.trim()
    assert await versions(tmp_path / "j", "a49") == []


async def test_a_write_that_came_while_the_one_before_was_flushed_stays(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        await journal.commit([write("a", 1)])
        await journal.commit([write("a", 2)])
        journal.forget("a", 1)  # the store has the first only
        await journal.trim()
    assert 2 in await versions(tmp_path / "j", "a")


async def test_an_update_is_taken_whose_state_and_result_together_are_larger_than_any_state(tmp_path: Path) -> None:
    state = b"x" * (33 * 2**20)
    backend: Any = SimpleNamespace(max_history=100, key="a")
    async with opened(tmp_path / "j") as journal:
        request = Request("r", 1, state)
        assert await journal.commit([Write(backend, 0, [Record(1, 1, 0.0, state)], [request], "a")]) == [None]
    async with opened(tmp_path / "j") as journal:
        assert await journal.claim("a") == ([Record(1, 1, 0.0, state)], [request])


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
        with anyio.fail_after(10):  # it is trimmed beside the writes
            while bytes_in(tmp_path / "j") >= 250_000:
                await anyio.lowlevel.checkpoint()


def bytes_in(folder: Path) -> int:
    """Return the size of all files, those that vanish meanwhile left out."""
    found = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


def behind(folder: Path, name: str) -> dgents.CachedAgent:
    """Describe a list that nothing but the journal keeps while the runtime is there."""
    return dgents.CachedAgent(
        dgents.VolatileAgent([]),
        dgents.PersistentAgent(folder / name),
        policy="write-behind",
        flush=dgents.Flush(max_delay=60, journal=folder / "j"),
    )


async def replayed(folder: Path, copy: Path) -> list[list[int]]:
    """Return what a next process would find if this one died now."""
    shutil.copytree(folder, copy)
    async with dgents.Runtime() as rt:
        return [await (await rt.spawn(name, behind(copy, name))).load() for name in "ab"]


@pytest.mark.parametrize("operation", ["fdatasync", "write_some"])
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("is_first", [True, False])
async def test_failed_appends_are_settled_by_what_the_disk_holds_and_nothing_is_lost_or_there_twice(
    operation: str, times: int, is_first: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "states"
    async with dgents.Runtime() as rt, calls() as run:
        group = await rt.supervisor("g", max_restarts=100, backoff=dgents.Backoff(0, 0))
        *refs, _ = [await group.spawn(name, behind(folder, name)) for name in "abc"]  # c keeps the journal open
        for ref in refs if not is_first else ():
            await ref.update(lambda items: [*items, -1])
        with files.use(FaultyLayer(operation, errno.EIO, times=times)):
            writes = [[run(ref.update, lambda items, n=n: [*items, n]) for n in range(20)] for ref in refs]
            results = [[await outcome(write) for write in mine] for mine in writes]
        held = [await ref.load() for ref in refs]
        assert await replayed(folder, tmp_path / "copy") == held
        for mine, state in zip(results, held, strict=True):
            assert len(state) == len(set(state))
            assert {n for n, result in enumerate(mine) if result == "stored"} <= set(state)
            assert not {n for n, result in enumerate(mine) if result in ("rolled_back", "not_started")} & set(state)
        held = [await ref.update(lambda items: [*items, 99]) for ref in refs]
        assert await replayed(folder, tmp_path / "another") == held


async def outcome(write: Call) -> str:
    """Return what its caller was told of a write."""
    try:
        await write.result()
    except dgents.StorageError as error:
        return error.outcome or "unknown"
    return "stored"
