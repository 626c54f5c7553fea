"""Supervision: whom a strategy restarts, when it is given up, and what its callers are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import dgents
from dgents.runtime.events import Event
from tests.bench import Bench, open_bench
from tests.calls import calls
from tests.fake_store import FakeAgent, FakeStore, fails_before
from tests.held import Door, HeldAgent

pytestmark = pytest.mark.anyio

NO_PAUSE = dgents.Backoff(0, 0)


@pytest.fixture
async def bench(anyio_backend: str) -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


class TestSupervisors:
    async def test_stopping_a_supervisor_stops_its_children_newest_first(self, anyio_backend: str) -> None:
        events: list[Event] = []
        async with dgents.Runtime(on_event=events.append) as rt:
            group = await rt.supervisor("group")
            inner = await group.supervisor("inner")
            for name, parent in (("a", inner), ("b", group), ("c", group)):
                await parent.spawn(name, dgents.VolatileAgent(0))
            await group.stop()
            assert [event.actor for event in events if event.kind == "stopped"] == ["c", "b", "a"]
            assert (rt.names(), rt.children()) == ([], [])

    async def test_a_name_is_unique_among_actors_and_supervisors(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            await rt.supervisor("x")
            with pytest.raises(dgents.NameTakenError):
                await rt.spawn("x", dgents.VolatileAgent(0))
            with pytest.raises(dgents.NameTakenError):
                await rt.supervisor("x")
            assert rt.children() == ["x"]

    async def test_a_child_can_be_stopped_by_its_supervisor_only(self, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            group = await rt.supervisor("group")
            await rt.spawn("elsewhere", dgents.VolatileAgent(0))
            child = await group.spawn("child", dgents.VolatileAgent(0))
            with pytest.raises(KeyError):
                await group.stop("elsewhere")
            await group.stop(child)
            assert rt.names() == ["elsewhere"]

    @pytest.mark.parametrize(
        "options", [{"strategy": "one_for_two"}, {"max_restarts": -1}, {"within": 0}, {"strategy": None}]
    )
    async def test_what_can_not_be_right_is_refused(self, anyio_backend: str, options: Any) -> None:
        async with dgents.Runtime() as rt:
            with pytest.raises(ValueError, match=r"."):
                await rt.supervisor("x", **options)
            for bad in ({"restart": "sometimes"}, {"while_restarting": "panic"}):
                with pytest.raises(ValueError, match=r"."):
                    await rt.spawn("a", dgents.VolatileAgent(0), **bad)
            assert rt.children() == []

    async def test_what_always_crashes_below_a_supervisor_is_given_up_in_the_end(self, anyio_backend: str) -> None:
        store, events = FakeStore(), []
        async with dgents.Runtime(on_event=events.append) as rt:
            group = await rt.supervisor("group", max_restarts=2, backoff=dgents.Backoff(0, 0))
            a = await group.spawn("a", FakeAgent(store))
            store.faults.append(fails_before)
            store.open_faults = 10**9
            with anyio.fail_after(5), pytest.raises(dgents.StorageError):
                await a.save(1)
        assert len(store.opened) < 20

    async def test_a_storm_of_crashes_is_survived(self, anyio_backend: str) -> None:
        stores = [FakeStore() for _ in range(200)]
        async with dgents.Runtime() as rt, calls() as run:
            refs = [await rt.spawn(f"a{n}", FakeAgent(store)) for n, store in enumerate(stores)]
            for store in stores:
                store.faults.append(fails_before)
            saves = [run(ref.save, 1) for ref in refs]
            assert [await save.result() for save in saves] == [1] * 200


async def test_a_write_of_an_actor_that_its_supervisor_stops_is_answered_when_its_commit_fails(
    anyio_backend: str,
) -> None:
    """The group is given up while a commit of a sibling is in flight; that commit then fails."""
    bad, good = FakeStore(), FakeStore()
    async with dgents.Runtime(shutdown_timeout=1) as rt, calls() as run:
        group = await rt.supervisor("group", max_restarts=0, backoff=NO_PAUSE)
        a = await group.spawn("a", FakeAgent(bad))
        b = await group.spawn("b", FakeAgent(good))
        for _ in range(3):  # the root's budget
            bad.faults.append(fails_before)
            await a.save(0)
        good.hold()
        good.faults.append(fails_before)
        write = await run.blocked(b.save, 1)
        bad.faults.append(fails_before)
        with pytest.raises(dgents.DgentError):
            await a.save(0)
        good.let_go()
        with pytest.raises(dgents.DgentError):
            await write.result()


@pytest.mark.parametrize(
    ("strategy", "restarted"), [("one_for_one", "b"), ("one_for_all", "abc"), ("rest_for_one", "bc")]
)
async def test_a_strategy_restarts_whom_it_says(anyio_backend: str, strategy: Any, restarted: str) -> None:
    stores = {name: FakeStore() for name in "abc"}
    async with dgents.Runtime() as rt:
        group = await rt.supervisor("group", strategy=strategy, backoff=NO_PAUSE)
        refs = {name: await group.spawn(name, FakeAgent(store)) for name, store in stores.items()}
        stores["b"].faults.append(fails_before)
        assert await refs["b"].save(1) == 1
        for ref in refs.values():
            assert await ref.load(default=None) == (1 if ref.name == "b" else None)
        assert "".join(name for name, store in stores.items() if len(store.opened) == 2) == restarted


async def test_a_spent_budget_is_escalated_and_the_group_is_restarted_as_a_whole(anyio_backend: str) -> None:
    stores = {name: FakeStore() for name in "ab"}
    events: list[Event] = []
    async with dgents.Runtime(on_event=events.append) as rt:
        group = await rt.supervisor("group", max_restarts=1, backoff=NO_PAUSE)
        refs = {name: await group.spawn(name, FakeAgent(store)) for name, store in stores.items()}
        for _ in range(2):
            stores["a"].faults.append(fails_before)
            await refs["a"].save(1)
        await refs["b"].save(1)
        assert len(stores["b"].opened) == 2
    (escalated,) = [event for event in events if event.kind == "escalated"]
    assert (escalated.actor, escalated.details["supervisor"], escalated.details["to"]) == ("a", "group", "root")


async def test_a_temporary_actor_is_not_restarted(bench: Bench) -> None:
    a = await bench.spawn(restart="temporary")
    bench.store.faults.append(fails_before)
    with pytest.raises(dgents.StorageError) as caught:
        await a.save("x")
    assert caught.value.outcome == "unknown"
    assert bench.store.opened == ["a"]
    with pytest.raises(dgents.ActorStoppedError):
        await a.load()


async def test_an_actor_that_fails_fast_refuses_messages_during_a_restart(bench: Bench) -> None:
    a = await bench.spawn(while_restarting="fail")
    bench.store.hold()
    bench.store.faults.append(fails_before)
    save = await bench.run.blocked(a.save, "x")
    bench.store.hold_openings()
    bench.store.let_go()
    await anyio.wait_all_tasks_blocked()
    with pytest.raises(dgents.StorageError, match="is being restarted"):
        await a.load()
    bench.store.let_openings_go()
    assert await save.result() == 1


async def test_siblings_are_unharmed_by_an_actor_that_is_given_up(bench: Bench) -> None:
    good = await bench.rt.spawn("good", FakeAgent(FakeStore()))
    a = await bench.spawn()
    bench.store.faults.append(fails_before)
    bench.store.open_faults = 1000
    with pytest.raises(dgents.StorageError):
        await a.save("x")
    assert await good.save("fine") == 1
    assert bench.rt.names() == ["good"]


async def test_a_spawn_whose_supervisor_is_given_up_meanwhile_is_refused_and_leaves_the_state_free(
    anyio_backend: str, tmp_path: Path
) -> None:
    door, agent = Door(), dgents.PersistentAgent(tmp_path / "b.json")
    async with dgents.Runtime() as rt, calls() as run:
        group = await rt.supervisor("group", max_restarts=0, backoff=NO_PAUSE)
        sibling = await group.spawn("sibling", dgents.VolatileAgent(0))
        door.shut()
        spawn = run(group.spawn, "b", HeldAgent(agent, opening=door))
        await door.reached()
        while "sibling" in rt.names():
            sibling._live().crash(dgents.StorageError("injected"))
            await anyio.lowlevel.checkpoint()
        door.open()
        with pytest.raises(dgents.ActorStoppedError, match="its supervisor was given up"):
            await spawn.result()
        assert await (await rt.spawn("b", agent)).save("free") == 1
