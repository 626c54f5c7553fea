"""Write-behind: what is acknowledged and not stored yet outlives whatever happens meanwhile, its request ids too."""

from __future__ import annotations

import contextlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents.runtime.errors import DgentError, StateCorruptionError, StateTooLargeError, StorageError
from dgents.supervisors.tree import SiblingCrashed
from dgents.testing.lives.faults import Faults, FaultyRuntime
from tests.caches import behind
from tests.calls import calls
from tests.fake_store import FakeAgent, FakeStore, fails_after, fails_before
from tests.held import Door, HeldAgent

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("journaled", [False, True])
async def test_what_is_not_flushed_outlives_its_time_in_the_cache(
    anyio_backend: str, journaled: bool, tmp_path: Path
) -> None:
    store, journal = FakeStore(), tmp_path / "j" if journaled else None
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", behind(FakeAgent(store), ttl=3600, journal=journal))
        for state in (1, 2):
            await ref.save(state)
            ref._cell.expire()
            assert await ref.load() == state
        await ref.flush()
        await ref.save(3)
        ref._cell.expire()  # now the store has an older version
        assert await ref.load() == 3
        assert await ref.history() == [1, 2, 3]
    assert store.versions("a") == [1, 2, 3]


async def test_a_turn_that_was_running_when_the_time_was_over_is_not_forgotten(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt, calls() as run:
        ref = await rt.spawn("a", behind(FakeAgent(store), ttl=3600))
        started, go_on = anyio.Event(), anyio.Event()

        async def slow(n: int) -> int:
            started.set()
            await go_on.wait()
            return n + 1

        update = run(lambda: ref.update(slow, default=0))
        await started.wait()
        ref._cell.expire()
        load = run(ref.load)
        go_on.set()
        assert (await update.result(), await load.result()) == (1, 1)


async def test_a_state_that_was_read_again_is_the_base_of_the_next_flush(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", behind(FakeAgent(store), ttl=3600))
        for state in ("one", "two", "three"):
            await ref.update(lambda _, state=state: state, default="", request_id=state)
            await ref.flush()
            ref._cell.expire()
            assert await ref.load() == state
            assert await ref.update(lambda _: "again", request_id="one") == "one"
    assert store.versions("a") == [1, 2, 3]


async def test_the_initial_state_is_there_after_its_time_in_the_cache(anyio_backend: str) -> None:
    async with dgents.Runtime() as rt:
        for policy in ("write-through", "write-behind"):
            agent = dgents.CachedAgent(
                dgents.VolatileAgent({"n": 0}),
                FakeAgent(FakeStore()),
                policy=policy,  # type: ignore[arg-type]
                ttl=3600,
            )
            ref = await rt.spawn(policy, agent)
            ref._cell.expire()
            assert await ref.load() == {"n": 0}
            assert await ref.patch({"n": 1}) == 1


# At the bound


async def fill(ref: dgents.Ref[int], store: FakeStore, run: Any, ids: list[str]) -> list[Any]:
    """Let a flush hang, and add one for each id, until some must wait."""
    store.hold()
    await ref.update(lambda n: n + 1)
    await anyio.wait_all_tasks_blocked()  # the flush is under way
    updates = [run(lambda id=id: ref.update(lambda n: n + 1, request_id=id)) for id in ids]
    await anyio.wait_all_tasks_blocked()
    return updates


async def test_request_ids_are_stored_with_what_they_applied_also_at_the_bound(anyio_backend: str) -> None:
    store, ids = FakeStore(), [str(n) for n in range(60)]
    async with dgents.Runtime() as rt, calls() as run:
        ref = await rt.spawn("a", behind(FakeAgent(store), initial=0, max_pending=1))
        updates = await fill(ref, store, run, ids)
        store.let_go()
        for update in updates:
            await update.result()
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", behind(FakeAgent(store), initial=0))
        for id in ids:
            await ref.update(lambda n: n + 1, request_id=id)
        assert await ref.load() == 61


@pytest.mark.parametrize("journaled", [False, True])
async def test_at_the_bound_writers_wait_and_readers_do_not(
    anyio_backend: str, journaled: bool, tmp_path: Path
) -> None:
    store, journal = FakeStore(), tmp_path / "j" if journaled else None
    async with dgents.Runtime() as rt, calls() as run:
        ref = await rt.spawn("a", behind(FakeAgent(store), initial=0, max_pending=1, journal=journal))
        store.hold()
        for _ in range(16):
            await ref.update(lambda n: n + 1)
        assert await ref.load() == 16
        writers = [run(ref.update, lambda n: n + 1) for _ in range(5)]
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert not any(writer.done for writer in writers)
        assert rt.stats()["a"].at_risk == 16
        store.let_go()
        assert sorted([await writer.result() for writer in writers]) == [17, 18, 19, 20, 21]
        assert await ref.update(lambda n: n + 1) == 22


@pytest.mark.parametrize("operation", ["flush", "history", "stop", "transaction"])
async def test_what_waits_for_a_flush_is_answered_also_at_the_bound(anyio_backend: str, operation: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt, calls() as run:
        ref = await rt.spawn("a", behind(FakeAgent(store), initial=0, max_pending=1))

        async def transact() -> None:
            async with ref.transaction() as tx:
                tx.state += 1

        waits = {"flush": ref.flush, "history": ref.history, "stop": lambda: rt.stop("a"), "transaction": transact}
        writers = await fill(ref, store, run, [str(n) for n in range(30)])
        waiting = run(waits[operation])
        await anyio.wait_all_tasks_blocked()
        assert not waiting.done
        store.let_go()
        for call in (*writers, waiting):
            await call.result()


async def test_at_the_bound_a_shutdown_that_can_not_wait_answers_everybody(anyio_backend: str) -> None:
    store = FakeStore()
    rt = dgents.Runtime(shutdown_timeout=0.05)
    async with calls() as run:
        await rt.__aenter__()
        ref = await rt.spawn("a", behind(FakeAgent(store), initial=0, max_pending=1))
        writers = await fill(ref, store, run, [str(n) for n in range(30)])
        with pytest.raises(StorageError, match="not flushed: 'a'"):
            await rt.__aexit__(None, None, None)
        for writer in writers:
            with contextlib.suppress(DgentError):
                await writer.result()
        store.let_go()


async def test_who_is_spawned_while_its_supervisor_is_given_up_flushes_nothing_later(
    anyio_backend: str, tmp_path: Path
) -> None:
    opening, old, new = Door(), tmp_path / "old", tmp_path / "new"

    def agent(folder: Path, **options: Any) -> Any:
        file = dgents.PersistentAgent(folder / "a")
        return behind(HeldAgent(file, opening=opening), journal=folder / "j", **options)

    async with dgents.Runtime() as rt, calls() as run:
        await (await rt.spawn("a", agent(old))).save(1)
        shutil.copytree(old, new)  # as a kill leaves it: only the journal has the state
        await rt.stop("a")
        team = await rt.supervisor("team", strategy="one_for_all", max_restarts=0)
        sibling = await team.spawn("sibling", dgents.VolatileAgent(0))
        opening.shut()
        spawn = run(team.spawn, "a", agent(new, max_delay=0))
        await opening.reached()
        while "sibling" in rt.names():
            sibling._live().crash(StorageError("injected"))
            await anyio.sleep(0.01)
        opening.open()
        with pytest.raises(dgents.ActorStoppedError):
            await spawn.result()
        await anyio.sleep(0.2)  # longer than a flush that failed waits before it opens the store again
        assert await (await rt.spawn("a", agent(new))).load() == 1


# A store that has become damaged


@pytest.mark.parametrize("journaled", [False, True])
@pytest.mark.parametrize("found_by", ["a flush", "an opening"])
async def test_what_waits_for_a_store_that_is_found_damaged_is_answered(
    anyio_backend: str, journaled: bool, found_by: str, tmp_path: Path
) -> None:
    store, events = FakeStore(), list[dgents.Event]()
    damage = StateCorruptionError("injected: it is damaged")

    def is_damaged(store: FakeStore, writes: Any) -> Any:
        raise damage

    async def opening() -> None:
        raise damage

    journal = tmp_path / "j" if journaled else None
    async with dgents.Runtime(on_event=events.append) as rt:
        ref = await rt.spawn("a", behind(FakeAgent(store), initial=0, journal=journal))
        await ref.update(lambda n: n + 1)
        store.faults.append(is_damaged if found_by == "a flush" else fails_before)
        store.opening = opening  # type: ignore[method-assign]
        with anyio.fail_after(10), pytest.raises((StateCorruptionError, dgents.ActorStoppedError)):
            await ref.flush()
    told = [event.details for event in events if event.kind == "flush_failed" and "lost" in event.details]
    assert [(each["error"], each["lost"]) for each in told] == [(damage, 1)]
    assert store.versions("a") == []


# What can't be stored


@pytest.mark.parametrize("state", ["\ud800", b"x" * (64 * 2**20)], ids=["a lone surrogate", "64 MiB"])
async def test_what_could_not_be_stored_later_is_refused_now(anyio_backend: str, state: Any) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", behind(FakeAgent(store)))
        await ref.save("old")
        with pytest.raises(dgents.StateError):
            await ref.save(state)
        with pytest.raises(dgents.StateError):
            await ref.update(lambda _: state)
        assert await ref.load() == "old"
    assert store.versions("a") == [1]


async def test_what_the_store_will_never_take_is_not_tried_for_ever(anyio_backend: str) -> None:
    def refuses_size(store: FakeStore, writes: Any) -> list[DgentError]:
        return [StateTooLargeError("injected: too large", size=2, limit=1) for _ in writes]

    store, events = FakeStore(), []
    async with dgents.Runtime(on_event=events.append) as rt:
        ref = await rt.spawn("a", behind(FakeAgent(store)))
        await ref.save("large")
        store.faults.append(refuses_size)
        with pytest.raises(StateTooLargeError), anyio.fail_after(5):
            await ref.flush()
        with pytest.raises(dgents.ActorStoppedError):
            await ref.load()
    assert [event.details["lost"] for event in events if event.kind == "flush_failed"] == [1]


# Request ids of other operations


@pytest.mark.parametrize("policy", ["none", "write-through", "write-behind"])
async def test_deleting_what_is_not_there_is_remembered_too(anyio_backend: str, policy: str) -> None:
    store = FakeStore()
    agents: dict[str, Any] = {
        "none": FakeAgent(store),
        "write-through": dgents.CachedAgent(dgents.VolatileAgent(), FakeAgent(store)),
        "write-behind": behind(FakeAgent(store)),
    }
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agents[policy])
        await ref.delete(request_id="d")
        await ref.save("new")
        await ref.delete(request_id="d")
        assert await ref.load() == "new"
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agents[policy])
        await ref.delete(request_id="d")
        assert await ref.load() == "new"


async def test_an_update_is_not_answered_with_the_result_of_another_operation(anyio_backend: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", behind(FakeAgent(FakeStore())))
        await ref.save(1, request_id="one")
        with pytest.raises(ValueError, match="a save, patch or delete had the request id 'one'"):
            await ref.update(lambda n: n + 1, request_id="one")
        assert await ref.update(lambda n: n + 1, request_id="two") == 2
        assert await ref.save(7, request_id="two") == 2
        assert await ref.load() == 2


async def test_request_ids_of_versions_that_the_store_lost_are_stored_again(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", behind(FakeAgent(store), initial=0))
        for id in "ab":
            await ref.update(lambda n: n + 1, request_id=id)
        await ref.flush()
        store.records["a"].pop()  # restarted, without its newest data
        store.remembered["a"].pop()
        await ref.update(lambda n: n + 1)
        await ref.flush()
    assert [request.id for request in store.remembered["a"]] == ["a", "b"]


@pytest.mark.parametrize("format", ["json", "msgpack"])
async def test_a_request_id_is_known_while_the_store_is_opened_again(
    anyio_backend: str, format: Any, tmp_path: Path
) -> None:
    faults, opening = Faults(), Door()
    file = HeldAgent(dgents.PersistentAgent(tmp_path / "a", format=format), opening=opening)
    async with FaultyRuntime(faults) as rt, calls() as run:
        ref = await rt.spawn("a", behind(file, initial=0, ttl=3600))
        assert await ref.update(lambda n: n + 1, request_id="one") == 1
        await ref.flush()
        ref._cell.expire()
        assert await ref.load() == 1  # read again: what memory knew of request ids is forgotten
        opening.shut()
        faults.add("before", 1)
        await ref.save(5)
        flush = run(ref.flush)
        await opening.reached()
        again = run(partial(ref.update, lambda n: n + 1, request_id="one"))
        await anyio.wait_all_tasks_blocked()
        assert not again.done
        opening.open()
        assert await again.result() == 1
        await flush.result()
        assert await ref.load() == 5


# Caches in caches


@pytest.mark.parametrize(
    ("outer", "journals"),
    [
        *(("write-behind", journals) for journals in ("none", "inside", "outside", "both")),
        *(("write-through", journals) for journals in ("none", "inside")),
    ],
)
async def test_a_cache_in_a_cache_is_flushed_and_replayed(
    anyio_backend: str, outer: Any, journals: str, tmp_path: Path
) -> None:
    journal = tmp_path / "j"
    file = dgents.PersistentAgent(tmp_path / "a")
    inner = behind(file, journal=journal if journals in ("inside", "both") else None)
    flush = dgents.Flush(max_delay=3600, journal=journal if journals in ("outside", "both") else None)
    agent = dgents.CachedAgent(
        dgents.VolatileAgent(), inner, policy=outer, flush=flush if outer == "write-behind" else None
    )
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent)
        await ref.save(1)
        await ref.save(2)
        assert rt.stats()["a"].at_risk == 2
        assert await ref.history() == [1, 2]
        await ref.save(3)
    async with dgents.Runtime() as rt:
        assert await (await rt.spawn("a", file)).history() == [1, 2, 3]


async def test_two_journals_of_one_state_are_refused(tmp_path: Path) -> None:
    inner = behind(dgents.PersistentAgent(tmp_path / "a"), journal=tmp_path / "one")
    async with dgents.Runtime() as rt:
        with pytest.raises(ValueError, match="two journals"):
            await rt.spawn("a", behind(inner, journal=tmp_path / "two"))


# Under a newer epoch


@pytest.mark.parametrize("journaled", [False, True])
@pytest.mark.parametrize("fault", [fails_before, fails_after])
async def test_what_was_acknowledged_before_the_store_was_opened_again_is_ours(
    anyio_backend: str, journaled: bool, fault: Any, tmp_path: Path
) -> None:
    store, failed = FakeStore(), anyio.Event()

    def note(event: dgents.Event) -> None:
        if event.kind == "flush_failed":
            failed.set()

    async with dgents.Runtime(on_event=note) as rt:
        journal = tmp_path / "j" if journaled else None
        ref = await rt.spawn("a", behind(FakeAgent(store), max_delay=0, journal=journal))
        store.faults.append(fault)
        await ref.save(1)
        await failed.wait()
        ref._cell.crash(SiblingCrashed("a sibling crashed"))  # it waits until the flush has opened the store again
        ref._cell.wake()
        with anyio.fail_after(5):
            await ref.flush()
        assert await ref.load() == 1
    assert store.versions("a") == [1]
