"""Watching: the last state arrives, whatever becomes of the watcher's own calls, and of the actor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

import dgents
from tests.bench import Bench, open_bench
from tests.calls import calls
from tests.fake_store import FakeAgent, FakeStore, fails_after, fails_before, refuses
from tests.held import Door, HeldAgent

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(anyio_backend: str) -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


async def states(watch: Any) -> list[Any]:
    return [snapshot.state async for snapshot in watch]


@pytest.mark.parametrize("ownership", ["exclusive", "shared"])
async def test_a_version_that_a_cancelled_anext_was_about_to_bring_arrives_with_the_next(
    bench: Bench, ownership: Any
) -> None:
    a = await bench.rt.spawn("a", FakeAgent(bench.store, ownership))
    await a.save(1)
    watch = a.watch()
    assert (await anext(watch)).state == 1
    await a.save(2)
    bench.store.hold()
    save = await bench.run.blocked(a.save, 3)
    waiting = await bench.run.blocked(watch.__anext__)  # waits for version 3 to be durable
    waiting.cancel()
    await anyio.wait_all_tasks_blocked()
    bench.store.let_go()
    assert await save.result() == 3
    assert (await (await bench.run.blocked(watch.__anext__)).result()).state == 3


async def test_an_anext_that_fails_loses_nothing_either(bench: Bench) -> None:
    opening = Door()
    a = await bench.rt.spawn("a", HeldAgent(FakeAgent(bench.store), opening=opening), while_restarting="fail")
    watch = a.watch()
    await a.save(1)
    opening.shut()
    bench.store.faults.append(fails_before)
    save = bench.run(a.save, 2)
    await opening.reached()
    with pytest.raises(dgents.StorageError, match="restarted"):
        await anext(watch)
    opening.open()
    await save.result()
    assert (await (await bench.run.blocked(watch.__anext__)).result()).state == 2


@pytest.mark.parametrize("k", range(6))
async def test_an_anext_cancelled_at_any_of_its_waits_loses_nothing(bench: Bench, k: int) -> None:
    a = await bench.rt.spawn("a", FakeAgent(bench.store, "shared"))
    watch = a.watch()
    for n in (1, 2, 3):
        call = bench.run(watch.__anext__)
        for _ in range(k):
            await anyio.lowlevel.checkpoint()
        call.cancel()
        await anyio.wait_all_tasks_blocked()
        await a.save(n)
    seen = [] if call.reply is None else [call.reply.state]
    if 3 not in seen:
        seen.append((await (await bench.run.blocked(watch.__anext__)).result()).state)
    assert seen[-1] == 3


@pytest.mark.parametrize("agent", ["volatile", "exclusive", "shared"])
async def test_the_last_state_arrives_before_the_end_of_a_stopped_actor(bench: Bench, agent: Any) -> None:
    a = await bench.rt.spawn("a", dgents.VolatileAgent() if agent == "volatile" else FakeAgent(bench.store, agent))
    slow, ready = a.watch(), a.watch()
    waiting = await bench.run.blocked(states, ready)
    for n in (1, 2, 3):
        await a.save(n)
    await bench.rt.stop(a)
    assert await states(slow) == [3]
    assert (await waiting.result())[-1] == 3
    assert await states(slow) == []


async def test_the_last_state_arrives_when_the_runtime_closes_under_a_save(anyio_backend: str) -> None:
    store = dgents.VolatileAgent()
    async with calls() as run:
        async with dgents.Runtime() as rt:
            a = await rt.spawn("a", store)
            go_on = anyio.Event()

            async def slow(_: Any) -> int:
                await go_on.wait()
                return 2

            await a.save(1)
            watching = await run.blocked(states, a.watch())
            await run.blocked(a.update, slow)
            go_on.set()
        assert (await watching.result())[-1] == 2


async def test_what_was_refused_by_the_store_is_shown_to_no_watcher(bench: Bench) -> None:
    a = await bench.spawn()
    await a.save(1)
    watch = a.watch()
    assert (await anext(watch)).state == 1
    bench.store.faults.append(refuses)
    with pytest.raises(dgents.OwnershipLostError):
        await a.save(2)
    assert await states(watch) == []


async def test_a_watch_that_is_closed_ends_and_another_begins_with_the_current_state(bench: Bench) -> None:
    a = await bench.rt.spawn("a", dgents.VolatileAgent(1))
    watch: Any = a.watch()
    waiting = await bench.run.blocked(states, watch)
    await watch.aclose()
    assert await waiting.result() == [1]
    await a.save(2)
    assert await states(watch) == []
    assert (await anext(a.watch())).state == 2


async def test_two_tasks_that_share_a_watch_are_told_so(bench: Bench) -> None:
    a = await bench.rt.spawn("a", dgents.VolatileAgent())
    watch = a.watch()
    waiting = await bench.run.blocked(watch.__anext__)
    with pytest.raises(RuntimeError, match="in each"):
        await anext(watch)
    await a.save(1)
    assert (await waiting.result()).state == 1


async def test_the_watchers_of_an_actor_that_is_not_in_memory_end_with_its_runtime(anyio_backend: str) -> None:
    async with calls() as run:
        async with dgents.Runtime() as rt:
            rt.register("v", lambda key: FakeAgent(store), max_active=1)
            store = Bench(rt, run, []).store
            a = rt.ref("v/a")
            await a.save(1)
            watching = await run.blocked(states, a.watch())
            await rt.ref("v/b").save(1)
            while "v/a" in rt.names():
                await anyio.lowlevel.checkpoint()
        assert await watching.result() == [1]


async def test_what_a_restart_finds_stored_arrives(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt, calls() as run:
        ref = await rt.spawn("a", FakeAgent(store))
        changes = ref.watch()
        first = await run.blocked(changes.__anext__)
        store.faults.append(fails_after)
        await ref.save("stored, and not answered")
        assert (await first.result()).state == "stored, and not answered"
