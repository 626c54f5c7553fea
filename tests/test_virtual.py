"""Virtual actors: woken by a message, sent out of memory by idleness or by the cap, and nobody notices."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import dgents
from dgents.runtime import virtual
from dgents.runtime.events import Event
from tests.calls import calls
from tests.fake_store import FakeAgent, FakeStore
from tests.held import Door, HeldAgent

pytestmark = pytest.mark.anyio


class Stage:
    """A runtime whose virtual actors are kept in a fake store."""

    def __init__(self, rt: dgents.Runtime, events: list[Event]) -> None:
        self.rt = rt
        self.store = FakeStore()
        self._events = events
        self._stream = rt.events()

    def happened(self, kind: str) -> list[str]:
        return [event.actor or "" for event in self._events if event.kind == kind]

    async def passivated(self, name: str) -> None:
        """Wait until the actor has left memory."""
        with anyio.fail_after(5):
            while name not in self.happened("passivated"):
                await anext(self._stream)


@pytest.fixture
async def stage(anyio_backend: str) -> AsyncIterator[Stage]:
    events: list[Event] = []
    async with dgents.Runtime(on_event=events.append) as rt:
        yield Stage(rt, events)


async def test_the_first_message_activates_an_actor_and_a_ref_alone_does_not(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store))
    ref = stage.rt.ref("user/42")
    assert stage.rt.names() == []
    assert await ref.save("x") == 1
    assert stage.rt.names() == ["user/42"]
    assert stage.store.opened == ["user/42"]


async def test_many_that_are_idle_leave_some_at_a_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual, "_AT_ONCE", 2)
    stage.rt.register("user/", lambda key: FakeAgent(stage.store), idle_timeout=0.02)
    names = [f"user/{number}" for number in range(5)]
    for name in names:
        await stage.rt.ref(name).save(1)
    for name in names:
        await stage.passivated(name)
    assert stage.rt.names() == []
    assert [await stage.rt.ref(name).load() for name in names] == [1] * 5


async def test_the_factory_is_given_the_key(stage: Stage) -> None:
    keys: list[str] = []
    stage.rt.register("user", lambda key: keys.append(key) or FakeAgent(stage.store))
    await stage.rt.ref("user/a/b").save(1)
    assert keys == ["a/b"]


async def test_a_name_of_no_family_is_unknown(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store))
    for name in ("users/1", "other"):
        with pytest.raises(KeyError):
            stage.rt.ref(name)
    with pytest.raises(dgents.NameTakenError):
        await stage.rt.spawn("user/1", FakeAgent(stage.store))
    with pytest.raises(dgents.NameTakenError):
        stage.rt.register("user", lambda key: FakeAgent(stage.store))


async def test_an_idle_actor_leaves_memory_and_its_ref_never_notices(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store), idle_timeout=0.02)
    ref = stage.rt.ref("user/1")
    await ref.save("x")
    await stage.passivated("user/1")
    assert stage.happened("passivated") == ["user/1"]
    assert await ref.load() == "x"
    assert await ref.save("y", if_version=1) == 2
    assert stage.store.opened == ["user/1", "user/1"]


async def test_an_actor_that_is_used_stays(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store), idle_timeout=0.05)
    busy, idle = stage.rt.ref("user/busy"), stage.rt.ref("user/idle")
    await busy.save(1)
    await idle.save(1)
    with anyio.fail_after(5):
        while "user/idle" in stage.rt.names():
            await busy.load()
            await anyio.lowlevel.checkpoint()
    assert stage.rt.names() == ["user/busy"]


async def test_the_cap_sends_the_least_recently_used_out_first(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store), max_active=3)
    refs = [stage.rt.ref(f"user/{n}") for n in range(5)]
    for ref in refs[:3]:
        await ref.save(0)
    await refs[0].load()  # now 1 is the least recently used, then 2
    await refs[3].save(0)
    await stage.passivated("user/1")
    await refs[4].save(0)
    await stage.passivated("user/2")
    assert stage.happened("passivated") == ["user/1", "user/2"]
    assert sorted(stage.rt.names()) == ["user/0", "user/3", "user/4"]


async def test_an_actor_leaves_only_when_its_writes_are_durable(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store), max_active=1)
    first, second = stage.rt.ref("user/1"), stage.rt.ref("user/2")
    async with calls() as run:
        await first.save("old")
        stage.store.hold()
        write = await run.blocked(first.save, "new")
        await run.blocked(second.load)
        assert "user/1" in stage.rt.names()
        stage.store.let_go()
        assert await write.result() == 2
    assert stage.store.versions("user/1") == [1, 2]


async def test_a_message_that_races_with_passivation_is_answered(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store), max_active=1)
    one, two = stage.rt.ref("user/1"), stage.rt.ref("user/2")
    async with calls() as run:
        replies = [
            run(lambda ref=ref, n=n: ref.update(lambda items: [*items, n], default=[]))
            for n in range(50)
            for ref in (one, two)
        ]
        for reply in replies:
            await reply.result()
        for ref in (one, two):
            assert sorted(await ref.load()) == list(range(50))


async def test_a_storm_of_a_thousand_keys_over_a_small_cap_loses_nothing(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store), max_active=50)

    async def visit(n: int) -> None:
        await stage.rt.ref(f"user/{n}").update(lambda visits: visits + 1, default=0)

    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            for n in range(1000):
                tasks.start_soon(visit, n)
    await anyio.wait_all_tasks_blocked()
    for n in range(1000):
        assert await stage.rt.ref(f"user/{n}").load() == 2
    await anyio.wait_all_tasks_blocked()
    assert len(stage.rt.names()) <= 51


async def test_an_activation_that_fails_answers_its_callers_and_the_next_message_tries_again(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store))
    stage.store.open_faults = 1
    ref = stage.rt.ref("user/1")
    async with calls() as run:
        waiting = [run(ref.load), run(lambda: ref.save(1))]
        for call in waiting:
            with pytest.raises(dgents.StorageError):
                await call.result()
    assert stage.rt.names() == []
    assert await ref.save("x") == 1


async def test_a_stopped_virtual_actor_wakes_again(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store))
    ref = stage.rt.ref("user/1")
    await ref.save("x")
    await stage.rt.stop(ref)
    assert stage.rt.names() == []
    assert await ref.load() == "x"


async def test_coming_and_going_leaves_nothing_behind(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: FakeAgent(stage.store), idle_timeout=60, max_active=10)
    ref = stage.rt.ref("user/1")
    for _ in range(500):
        await ref.load(default=None)
        await stage.rt.stop(ref)
    (family,) = stage.rt._families
    assert len(family._heap) < 100


async def test_a_passivated_actor_is_gone_before_the_garbage_collector_comes(stage: Stage) -> None:
    stage.rt.register("user/", lambda key: dgents.VolatileAgent(0), max_active=1)
    gc.disable()
    try:
        for number in range(20):
            await stage.rt.ref(f"user/{number}").load()
        await stage.passivated("user/18")
        await anyio.wait_all_tasks_blocked()
        assert list(stage.rt._virtual) == ["user/19"]
    finally:
        gc.enable()


async def test_what_was_told_to_a_sleeping_actor_is_done_before_the_runtime_closes(
    anyio_backend: str, tmp_path: Path
) -> None:
    async with dgents.Runtime() as rt:
        rt.register("user/", lambda key: dgents.SQLAgent(str(tmp_path / "s.db"), key=key))
        rt.ref("user/1").tell(dgents.Save("told"))
    async with dgents.Runtime() as rt:
        rt.register("user/", lambda key: dgents.SQLAgent(str(tmp_path / "s.db"), key=key))
        assert await rt.ref("user/1").load() == "told"


@pytest.mark.anyio
async def test_a_burst_over_the_cap_leaves_no_more_than_the_cap_in_memory(anyio_backend: str) -> None:
    async with dgents.Runtime() as rt:
        rt.register("user", lambda key: dgents.VolatileAgent(0), max_active=10)

        async def slow(n: int) -> int:
            await anyio.sleep(0.01)
            return n + 1

        async with anyio.create_task_group() as tasks:
            for n in range(100):
                tasks.start_soon(rt.ref(f"user/{n}").update, slow)
        with anyio.fail_after(10):
            while len(rt.names()) > 10:  # noqa: ASYNC110 (nothing tells of it)
                await anyio.sleep(0.01)


@pytest.mark.parametrize("kind", ["file", "sqlite", "behind"])
async def test_a_stop_in_the_middle_of_a_passivation_answers_what_is_queued(
    anyio_backend: str, kind: str, tmp_path: Path
) -> None:
    closing = Door()
    file = dgents.PersistentAgent(tmp_path / "f.json")
    agent = {
        "file": file,
        "sqlite": dgents.SQLAgent(str(tmp_path / "s.db")),
        "behind": dgents.CachedAgent(dgents.VolatileAgent(), file, policy="write-behind"),
    }[kind]
    async with dgents.Runtime() as rt, calls() as run:
        rt.register("user", lambda key: HeldAgent(agent, closing=closing), idle_timeout=0.02)
        ref = rt.ref("user/1")
        await ref.save(1)
        closing.shut()
        await closing.reached()
        writes = [await run.blocked(ref.update, lambda n: n + 1) for _ in range(2)]
        stop = await run.blocked(rt.stop, "user/1")
        closing.open()
        assert [await write.result() for write in writes] == [2, 3]
        await stop.result()
        assert await ref.load() == 3, "and it wakes again"
