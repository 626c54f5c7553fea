"""A batch of turns on a shared state has one fate, whatever comes in the middle of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import dgents
from dgents.backends.sqlite_store import SqliteStore
from tests.bench import Bench, open_bench
from tests.fake_store import FakeAgent, FakeStore, fails_before
from tests.held import Door, HeldAgent

pytestmark = pytest.mark.anyio

NO_PAUSE = dgents.Backoff(0, 0)


@pytest.fixture
async def bench(anyio_backend: str) -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


class Slow:
    """An async function that waits in its turn until it is told to go on."""

    def __init__(self) -> None:
        self.runs = 0
        self.begun, self.go_on = anyio.Event(), anyio.Event()

    async def __call__(self, state: list[Any], item: Any) -> list[Any]:
        self.runs += 1
        self.begun.set()
        await self.go_on.wait()
        return [*state, item]


def open_files() -> list[str]:
    return [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]


async def siblings(bench: Bench, agent: Any) -> tuple[Any, Any]:
    """Return an actor of ``agent``, and a sibling in a store of its own whose crash restarts both."""
    group = await bench.rt.supervisor("group", strategy="one_for_all", backoff=NO_PAUSE)
    sibling = await group.spawn("sibling", FakeAgent(bench.store))
    return await group.spawn("a", agent), sibling


@pytest.mark.parametrize("ownership", ["exclusive", "shared"])
async def test_an_update_that_a_siblings_crash_finds_in_its_turn_is_applied_once(bench: Bench, ownership: Any) -> None:
    medium = FakeStore()
    a, sibling = await siblings(bench, FakeAgent(medium, ownership))
    await a.save([0])
    slow = Slow()
    update = bench.run(lambda: a.update(slow, 1))
    await slow.begun.wait()
    bench.store.faults.append(fails_before)
    await sibling.save("x")
    medium.hold()
    slow.go_on.set()
    await anyio.wait_all_tasks_blocked()
    medium.let_go()
    assert await update.result() == [0, 1]
    assert await a.load() == [0, 1]
    assert (slow.runs, medium.versions("a")) == (1, [1, 2])
    assert "restarted" in bench.kinds("a")


async def test_a_siblings_crash_during_a_commit_and_the_turn_after_it_ends_no_owner(bench: Bench) -> None:
    medium = FakeStore()
    a, sibling = await siblings(bench, FakeAgent(medium))
    medium.hold()
    first = await bench.run.blocked(a.save, [0])
    slow = Slow()
    update = bench.run(lambda: a.update(slow, 1))
    await slow.begun.wait()
    bench.store.faults.append(fails_before)
    await sibling.save("x")
    slow.go_on.set()
    await anyio.wait_all_tasks_blocked()
    medium.let_go()
    assert await first.result() == 1
    assert await update.result() == [0, 1]
    assert "restarted" in bench.kinds("a")


async def test_loads_whose_state_changes_under_them_during_a_siblings_crash_are_answered(bench: Bench) -> None:
    medium, reading = FakeStore(), Door()
    a, sibling = await siblings(bench, HeldAgent(FakeAgent(medium, "shared"), reading=reading))
    await a.save([0])
    reading.shut()
    load = bench.run(a.load)
    await reading.reached()
    bench.store.faults.append(fails_before)
    await sibling.save("x")
    medium.records["a"].append(msgspec.structs.replace(medium.records["a"][-1], version=2))
    reading.open()
    assert await load.result() == [0]


async def test_a_database_that_is_opened_again_for_a_retry_is_closed_with_its_actor(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, commit, faults = tmp_path / "a.db", SqliteStore.commit, [dgents.StorageError("injected")]

    async def fails_once(self: SqliteStore, writes: Any) -> Any:
        if faults:
            raise faults.pop()
        return await commit(self, writes)

    monkeypatch.setattr(SqliteStore, "commit", fails_once)
    a = await bench.rt.spawn("a", dgents.SQLAgent(str(path)))
    assert await a.save(1) == 1
    assert "restarted" in bench.kinds("a")
    await bench.rt.stop(a)
    assert not [name for name in open_files() if name.startswith(str(path))]


@pytest.mark.parametrize("during", ["read", "commit"])
async def test_what_a_cache_hears_of_while_it_asks_its_store_is_not_forgotten(bench: Bench, during: str) -> None:
    reading = Door()
    agent = HeldAgent(FakeAgent(bench.store, "shared"), reading=reading)
    a = await bench.rt.spawn("a", dgents.CachedAgent(dgents.VolatileAgent(), agent))
    await a.save(1)
    if during == "read":
        a._cell.expire()
        reading.shut()
        call = bench.run(a.load)
        await reading.reached()
    else:
        bench.store.hold()
        call = await bench.run.blocked(a.save, 2)
    a._cell.expire()  # another process has written, as its store reports
    if during == "read":
        reading.open()
    else:
        bench.store.let_go()
    await call.result()
    last = bench.store.records["a"][-1]
    bench.store.records["a"].append(msgspec.structs.replace(last, version=last.version + 1, data=b"\x09"))
    assert await a.load() == 9
