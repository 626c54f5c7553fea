"""Caches and budgets: what is served from memory, what a failure leaves, and what is refused before it is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Record, Write
from dgents.runtime.errors import DgentError, StorageError
from dgents.runtime.phase import Phase
from tests.calls import calls
from tests.fake_store import FakeAgent, FakeStore, fails_after, fails_before, refuses

pytestmark = pytest.mark.anyio


def cached(agent: Any, **options: Any) -> dgents.CachedAgent:
    return dgents.CachedAgent(dgents.VolatileAgent(), agent, **options)


async def test_many_that_miss_at_once_are_served_by_one_load(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt, calls() as run:
        rt.register("user", lambda key: cached(FakeAgent(store)))
        ref = rt.ref("user/1")
        store.hold_openings()
        loads = [run(ref.load) for _ in range(100)]
        await anyio.wait_all_tasks_blocked()
        store.let_openings_go()
        for load in loads:
            with pytest.raises(dgents.StateNotFoundError):
                await load.result()
        assert len(store.opened) == 1


async def test_what_is_not_there_is_not_looked_for_again(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", cached(FakeAgent(store, "shared")))
        for _ in range(10):
            assert await ref.load(default="none") == "none"
            store.read_faults = 1  # a read would fail now
        assert rt.stats()["a"].hits >= 9
        store.read_faults = 0


async def test_a_write_through_that_fails_leaves_both_halves_as_they_were(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        group = await rt.supervisor("g", max_restarts=10, backoff=dgents.Backoff(0, 0))
        ref = await group.spawn("a", cached(FakeAgent(store)))
        await ref.save("old")
        store.faults.extend([fails_before, fails_before])
        with pytest.raises(dgents.StorageError) as failed:
            await ref.save("new")
        assert failed.value.outcome == "rolled_back"
        assert await ref.load() == "old"
        assert store.versions("a") == [1]


@pytest.mark.parametrize("fault", [fails_before, fails_after])
async def test_a_crash_with_writes_behind_loses_none_of_them(anyio_backend: str, fault: Any) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        flush = dgents.Flush(max_delay=60)
        ref = await rt.spawn("a", cached(FakeAgent(store), policy="write-behind", flush=flush))
        await ref.save(1)
        await ref.save(2)
        store.faults.append(fault)
        await ref.flush()
        assert (store.versions("a"), rt.stats()["a"].at_risk) == ([1, 2], 0)
        await ref.save(3)
    assert store.versions("a") == [1, 2, 3], "flushed on the way out"


async def test_passivation_flushes_what_was_acknowledged(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        flush = dgents.Flush(max_delay=3600)
        make = lambda key: cached(FakeAgent(store), policy="write-behind", flush=flush)  # noqa: E731
        rt.register("user", make, max_active=1)
        await rt.ref("user/1").save("kept")
        await rt.ref("user/2").save("other")
        with anyio.fail_after(5):
            while not store.records.get("user/1"):
                await anyio.lowlevel.checkpoint()
        assert await rt.ref("user/1").load() == "kept"


async def test_stopping_a_supervisor_flushes_its_children(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        group = await rt.supervisor("g")
        flush = dgents.Flush(max_delay=3600)
        ref = await group.spawn("a", cached(FakeAgent(store), policy="write-behind", flush=flush))
        await ref.save("kept")
        assert store.versions("a") == []
        await group.stop()
        assert store.versions("a") == [1]


@pytest.mark.parametrize("order", ["budget outside", "budget inside"])
@pytest.mark.parametrize("policy", ["write-through", "write-behind"])
async def test_a_budget_nests_with_a_cache_in_any_order(anyio_backend: str, order: str, policy: Any) -> None:
    store = FakeStore()
    if order == "budget outside":
        agent: Any = dgents.EntropyConstrainedAgent(cached(FakeAgent(store), policy=policy), 0.5, 100)
    else:
        agent = cached(dgents.EntropyConstrainedAgent(FakeAgent(store), 0.5, 100), policy=policy)
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent)
        await ref.save("x" * (50 - 2))
        with pytest.raises(dgents.StateTooLargeError) as refused:
            await ref.save("x" * 100)
        error = refused.value
        assert (error.size, error.limit, error.budget) == (len(Codec[str]().encode("x" * 100)), 50, 0.5)
        assert await ref.load() == "x" * 48
    assert store.versions("a") == [1]


@pytest.mark.parametrize("message", [False, True])
async def test_a_budget_holds_for_the_message_that_brings_an_actor_into_memory(
    anyio_backend: str, message: bool
) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        rt.register("user", lambda _: dgents.EntropyConstrainedAgent(FakeAgent(store), 0.5, 100))
        ref = rt.ref("user/1")
        with pytest.raises(dgents.StateTooLargeError):
            await (ref.ask(dgents.Save("x" * 100)) if message else ref.save("x" * 100))
        assert await ref.load(default="none") == "none"
    assert store.versions("user/1") == []


async def test_the_deeper_a_child_the_smaller_its_state(anyio_backend: str) -> None:
    limits = []
    async with dgents.Runtime() as rt:
        parent: Any = rt
        for depth in range(4):
            agent = dgents.EntropyConstrainedAgent(dgents.VolatileAgent(), None, 1200)
            ref = await parent.spawn(f"a{depth}", agent)
            with pytest.raises(dgents.StateTooLargeError) as refused:
                await ref.save("x" * 2000)
            limits.append(refused.value.limit)
            parent = await parent.supervisor(f"s{depth}")
    assert limits == [1200 // (depth + 1) for depth in range(4)]


async def test_a_journal_does_not_overwrite_what_another_owner_wrote_since(tmp_path: Path) -> None:
    flush = dgents.Flush(max_delay=60, journal=tmp_path / "j")
    store = dgents.SQLAgent(str(tmp_path / "a.db"), key="a")
    behind = dgents.CachedAgent(dgents.VolatileAgent(), store, policy="write-behind", flush=flush)
    program = (
        "import anyio, os, dgents\n"
        "async def main():\n"
        "    async with dgents.Runtime() as rt:\n"
        f"        flush = dgents.Flush(max_delay=60, journal={str(tmp_path / 'j')!r})\n"
        f"        store = dgents.SQLAgent({str(tmp_path / 'a.db')!r}, key='a')\n"
        "        agent = dgents.CachedAgent(dgents.VolatileAgent(), store, policy='write-behind', flush=flush)\n"
        "        ref = await rt.spawn('a', agent)\n"
        "        for n in range(5): await ref.save(n)\n"
        "        os.kill(os.getpid(), 9)\n"
        "anyio.run(main)\n"
    )
    await anyio.run_process([sys.executable, "-c", program], check=False)
    async with dgents.Runtime() as rt:  # opened without its journal, which is not replayed
        await (await rt.spawn("a", store)).save("mine")
    async with dgents.Runtime() as rt:
        with pytest.raises(dgents.StorageError, match="somebody else"):
            await rt.spawn("a", behind)
        assert await (await rt.spawn("a", store)).load() == "mine"
    other = dgents.CachedAgent(
        dgents.VolatileAgent(), dgents.SQLAgent(str(tmp_path / "a.db"), key="b"), policy="write-behind", flush=flush
    )
    async with dgents.Runtime() as rt:  # whom it was refused has let go of it
        assert await (await rt.spawn("b", other)).save("b") == 1


def behind(store: FakeStore, journal: Path | None = None) -> dgents.CachedAgent:
    return cached(FakeAgent(store), policy="write-behind", flush=dgents.Flush(max_delay=60, journal=journal))


@pytest.mark.parametrize("journaled", [False, True])
@pytest.mark.parametrize("found_by", ["a flush", "a restart"])
async def test_what_another_owner_wrote_meanwhile_is_not_taken_for_what_is_behind(
    anyio_backend: str, journaled: bool, found_by: str, tmp_path: Path
) -> None:
    store, events = FakeStore(), []

    def overtaken(store: FakeStore, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Another owner claims the state and writes it, and this commit fails."""
        store.epochs["a"] += 1
        store.records["a"].append(Record(2, store.epochs["a"], 0.0, Codec().encode("theirs")))
        raise StorageError("injected: failed before applying")

    async with dgents.Runtime(on_event=events.append) as rt, calls() as run:
        group = await rt.supervisor("g", strategy="one_for_all", max_restarts=9, backoff=dgents.Backoff(0.05, 0.05))
        ref = await group.spawn("a", behind(store, tmp_path / "j" if journaled else None))
        sibling = await group.spawn("b", FakeAgent(store))
        for state in ("ours 1", "ours 2"):
            await ref.save(state)
            await (ref.flush() if state == "ours 1" else anyio.lowlevel.checkpoint())
        store.faults.append(overtaken)
        crashing = run(ref.flush) if found_by == "a flush" else run(sibling.save, 1)
        with anyio.fail_after(5):
            while ref._cell.phase is not Phase.STOPPED:
                await anyio.lowlevel.checkpoint()
        if found_by == "a flush":
            with pytest.raises(dgents.OwnershipLostError, match=r"another owner has written version 2"):
                await crashing.result()
        with pytest.raises(dgents.ActorStoppedError):
            await ref.load()
    assert [record.data for record in store.records["a"]][1:] == [Codec().encode("theirs")]
    lost = [event.details.get("lost") for event in events if event.kind == "flush_failed"]
    assert journaled or lost[-1] == 1, "said, since nothing else has it"


@pytest.mark.parametrize("journaled", [False, True])
async def test_a_store_that_has_lost_versions_gets_them_again(
    anyio_backend: str, journaled: bool, tmp_path: Path
) -> None:
    store, events = FakeStore(), []
    async with dgents.Runtime(on_event=events.append) as rt:
        ref = await rt.spawn("a", behind(store, tmp_path / "j" if journaled else None))
        await ref.save(1)
        await ref.save(2)
        await ref.flush()
        store.records["a"].pop()  # restarted, without its newest data
        await ref.save(3)
        with anyio.fail_after(5):
            await ref.flush()
    assert store.versions("a") == [1, 2, 3]
    assert "went back from version 2 to 1" in str([event.details for event in events if event.kind == "warning"])


async def test_what_a_store_refused_for_good_stays_in_the_journal(anyio_backend: str, tmp_path: Path) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        ref, other = [await rt.spawn(name, behind(store, tmp_path / "j")) for name in ("a", "b")]
        await ref.save(1)
        await ref.flush()
        await ref.save(2)
        store.faults.append(refuses)
        with pytest.raises(dgents.OwnershipLostError):
            await ref.flush()
        for n in range(2):  # others go on, and what they have stored is trimmed
            await other.save(n)
            await other.flush()
    async with dgents.Runtime() as rt:
        assert await (await rt.spawn("a", behind(store, tmp_path / "j"))).load() == 2


async def test_a_turn_that_outlives_its_actor_is_refused_and_takes_the_store_from_nobody(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt, calls() as run:
        ref = await rt.spawn("a", behind(store))
        await ref.save(1)
        await ref.flush()
        started, go_on = anyio.Event(), anyio.Event()

        async def slow(n: int) -> int:
            started.set()
            await go_on.wait()
            return n + 1

        await ref.save(5)
        late = run(ref.update, slow)
        await started.wait()
        store.faults.append(refuses)
        ref._cell.behind._hurry()  # the flush comes now: the actor loses its store in the middle of the turn
        while store.faults:  # noqa: ASYNC110 (the store tells nobody)
            await anyio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        with pytest.raises(dgents.ActorStoppedError, match="a newer owner is there"):
            await late.result()
        await anyio.wait_all_tasks_blocked()
    assert (store.opened, store.versions("a")) == (["a"], [1])


async def test_a_cache_of_a_state_in_memory_keeps_it_past_its_time(anyio_backend: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", cached(dgents.VolatileAgent(), ttl=0.001))
        await ref.save("kept")
        await anyio.sleep(0.02)
        assert await ref.load() == "kept"
