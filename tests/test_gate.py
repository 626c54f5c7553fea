"""The output gate, group commit, and recovery, on a store that fails as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

import dgents
from tests.bench import Bench, open_bench
from tests.calls import Calls, calls
from tests.fake_store import FakeAgent, FakeStore, fails_after, fails_badly, fails_before, lies, refuses

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(anyio_backend: str) -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


# The gate


async def test_a_save_is_answered_after_its_commit_and_not_before(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.hold()
    save = await bench.run.blocked(a.save, "x")
    assert not save.done
    assert bench.store.batches == [{"a": [1]}]
    bench.store.let_go()
    assert await save.result() == 1


@pytest.mark.parametrize("read", ["load", "snapshot", "history"])
async def test_not_even_a_later_read_is_answered_before_the_commit_it_depends_on(bench: Bench, read: str) -> None:
    a = await bench.spawn()
    bench.store.hold()
    await bench.run.blocked(a.save, "x")
    reading = await bench.run.blocked(getattr(a, read))
    assert not reading.done
    bench.store.let_go()
    reply = await reading.result()
    assert getattr(reply, "state", reply) in ("x", ["x"])


async def test_a_refused_save_that_shows_an_uncommitted_version_waits_for_its_commit_too(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.hold()
    await bench.run.blocked(a.save, "x")
    conflict = await bench.run.blocked(lambda: a.save("y", if_version=0))
    assert not conflict.done, "the error tells of version 1, which a crash may still undo"
    bench.store.let_go()
    with pytest.raises(dgents.VersionConflictError):
        await conflict.result()


async def test_a_watcher_sees_a_version_only_once_it_is_durable(bench: Bench) -> None:
    a = await bench.spawn()
    watch = a.watch()
    seen = await bench.run.blocked(watch.__anext__)
    bench.store.hold()
    await bench.run.blocked(a.save, "x")
    assert not seen.done
    bench.store.let_go()
    assert (await seen.result()).state == "x"


async def test_turns_that_arrive_during_a_commit_share_the_next_one(bench: Bench) -> None:
    a, b = await bench.spawn("a"), await bench.spawn("b")
    bench.store.hold()
    saves = [await bench.run.blocked(ref.save, n) for n in range(5) for ref in (a, b)]
    bench.store.let_go()
    assert [await save.result() for save in saves] == [n for n in range(1, 6) for _ in "ab"]
    assert bench.store.batches == [{"a": [1]}, {"b": [1, 2, 3, 4, 5], "a": [2, 3, 4, 5]}]


# Recovery


async def test_who_has_just_been_answered_shares_the_next_commit_of_a_local_store(bench: Bench) -> None:
    refs = [await bench.spawn(f"a{n}") for n in range(10)]
    for ref in refs:
        await ref.save(0)
    before = len(bench.store.batches)

    async def write(ref: Any) -> None:
        for _ in range(20):
            await ref.update(lambda n: n + 1)

    writers = [bench.run(write, ref) for ref in refs]
    for writer in writers:
        await writer.result()
    # Without that, one writer and the nine others would take turns: 40 commits.
    assert len(bench.store.batches) - before <= 25


async def test_a_store_that_works_beside_us_gets_its_writes_in_parts_and_in_order(bench: Bench) -> None:
    bench.store.most_writes = 3
    refs = [await bench.spawn(f"a{n}") for n in range(8)]
    bench.store.hold()
    saves = [await bench.run.blocked(ref.save, n) for n, ref in enumerate(refs)]
    more = [await bench.run.blocked(refs[n].save, "later") for n in (7, 0)]
    bench.store.let_go()
    for save in saves + more:
        await save.result()
    assert bench.store.batches == [
        {"a0": [1]},
        {"a1": [1], "a2": [1], "a3": [1]},
        {"a4": [1], "a5": [1], "a6": [1]},
        {"a7": [1, 2], "a0": [2]},
    ]


async def test_a_failed_commit_that_was_applied_is_answered_as_done_and_not_applied_again(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.faults.append(fails_after)
    assert await a.save("x") == 1
    assert bench.store.versions("a") == [1]
    assert (await a.snapshot()).epoch == 2


@pytest.mark.parametrize("fault", [fails_before, fails_badly])
async def test_a_failed_commit_that_was_not_applied_is_done_once_more(bench: Bench, fault: Any) -> None:
    a = await bench.spawn()
    bench.store.faults.append(fault)
    assert await a.save("x") == 1
    assert bench.store.versions("a") == [1]
    assert bench.kinds() == ["spawned", "crashed", "restarted"]


async def test_a_commit_that_fails_twice_is_rolled_back_and_memory_is_what_is_stored(bench: Bench) -> None:
    a = await bench.spawn()
    await a.save("old")
    bench.store.faults.extend([fails_before, fails_before])
    with pytest.raises(dgents.StorageError) as caught:
        await a.save("new")
    assert caught.value.outcome == "rolled_back"
    assert await a.load() == "old"
    assert (await a.snapshot()).version == 1


async def test_everyone_behind_a_commit_that_fails_twice_gets_the_error(bench: Bench) -> None:
    """The second batch builds on the first: neither is stored, so neither may be acknowledged."""
    a = await bench.spawn()
    bench.store.hold()
    bench.store.faults.extend([fails_before, fails_before])
    first = await bench.run.blocked(a.save, "1")
    second = await bench.run.blocked(a.save, "2")
    third = await bench.run.blocked(a.load)
    bench.store.let_go()
    for call in (first, second, third):
        with pytest.raises(dgents.StorageError):
            await call.result()
    assert bench.store.versions("a") == []


async def test_an_error_of_a_failed_commit_names_the_actor(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.faults.extend([fails_before, fails_before])
    with pytest.raises(dgents.StorageError) as caught:
        await a.save("x")
    assert caught.value.actor == "a"


async def test_the_second_batch_is_kept_when_only_the_first_reached_the_store(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.hold()
    bench.store.faults.append(fails_after)
    first = await bench.run.blocked(a.save, "1")
    second = await bench.run.blocked(a.save, "2")
    bench.store.let_go()
    assert (await first.result(), await second.result()) == (1, 2)
    assert bench.store.versions("a") == [1, 2]


async def test_an_async_update_that_was_called_on_a_state_that_is_rolled_back_runs_on_the_stored_one(
    bench: Bench,
) -> None:
    a = await bench.spawn()
    await a.save(["stored"])
    bench.store.hold()
    bench.store.faults.extend([fails_before, fails_before])
    lost = await bench.run.blocked(a.save, ["lost"])

    async def append(items: list[str]) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [*items, "more"]

    bench.store.let_go()  # the commit fails as soon as somebody waits, with the update not begun yet
    update = bench.run(a.update, append)
    with pytest.raises(dgents.StorageError):
        await lost.result()
    try:
        expected = await update.result()
    except dgents.StorageError:
        expected = ["stored"]
    assert await a.load() == expected
    assert "lost" not in expected


async def test_a_reader_is_not_told_what_a_rolled_back_write_said(bench: Bench) -> None:
    a = await bench.spawn()
    await a.save("stored")
    bench.store.hold()
    bench.store.faults.extend([fails_before, fails_before])
    await bench.run.blocked(a.save, "lost")
    reading = await bench.run.blocked(a.load)
    bench.store.let_go()
    try:
        assert await reading.result() == "stored"
    except dgents.StorageError:
        assert await a.load() == "stored"


async def test_when_the_restart_budget_is_spent_every_caller_gets_an_error(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.hold()
    bench.store.faults.append(fails_before)
    bench.store.open_faults = 1000
    waiting = [await bench.run.blocked(a.save, n) for n in range(3)]
    waiting += [bench.run(a.load), bench.run(a.history), bench.run(a.update, str)]
    bench.store.let_go()
    for call in waiting:
        with pytest.raises(dgents.DgentError):
            await call.result()
    with pytest.raises(dgents.ActorStoppedError, match="'a'"):
        await a.load()
    assert "escalated" in bench.kinds()


async def test_a_write_whose_fate_can_not_be_found_out_is_unknown(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.faults.append(fails_after)
    bench.store.open_faults = 1000
    with pytest.raises(dgents.StorageError) as caught:
        await a.save("x")
    assert caught.value.outcome == "unknown"
    assert bench.store.versions("a") == [1]


async def test_an_owner_that_was_replaced_stops_and_says_so(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.faults.append(refuses)
    with pytest.raises(dgents.OwnershipLostError):
        await a.save("x")
    with pytest.raises(dgents.ActorStoppedError):
        await a.load()
    assert "ownership_lost" in bench.kinds()
    assert bench.store.versions("a") == []


async def test_an_owner_that_was_replaced_refuses_what_it_had_staged_behind(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.hold()
    bench.store.faults.append(refuses)
    writes = [await bench.run.blocked(a.save, n) for n in range(3)]
    bench.store.let_go()
    for write in writes:
        with pytest.raises(dgents.OwnershipLostError):
            await write.result()
    assert len(bench.store.batches) == 1


async def test_the_mailbox_survives_a_restart(bench: Bench) -> None:
    a = await bench.spawn()
    await a.save(0)
    bench.store.hold()
    bench.store.faults.append(fails_before)
    failing = await bench.run.blocked(a.update, lambda n: n + 1)
    queued = [await bench.run.blocked(a.ask, dgents.Update(lambda n: n + 1)) for _ in range(5)]
    bench.store.let_go()
    assert await failing.result() == 1
    assert [await call.result() for call in queued] == [2, 3, 4, 5, 6]
    assert bench.store.versions("a") == [1, 2, 3, 4, 5, 6, 7]


async def test_a_poison_message_is_answered_and_set_aside_after_the_second_crash(bench: Bench) -> None:
    a = await bench.spawn()
    await a.save("x")
    bench.store.read_faults = 1  # the message crashes the actor,
    poison = bench.run(a.history)
    await anyio.wait_all_tasks_blocked()
    assert await poison.result() == ["x"]  # and is tried once more
    assert "dead_letter" not in bench.kinds()


@pytest.mark.parametrize("told", [False, True])
async def test_a_message_that_crashes_the_actor_twice_is_one_dead_letter(bench: Bench, told: bool) -> None:
    a = await bench.spawn()
    await a.save("x")
    a._cell.backend.history = _always_fails  # type: ignore[method-assign]
    if told:
        a.tell(dgents.History())
    else:
        with pytest.raises(dgents.StorageError, match="poison"):
            await a.history()
    assert await a.load() == "x"
    assert bench.kinds().count("dead_letter") == 1


async def _always_fails(limit: int | None) -> list[Any]:
    raise dgents.StorageError("poison")


async def test_a_store_that_lies_is_found_out_at_the_next_opening(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.faults.extend([lies, fails_before])
    assert await a.save("acknowledged") == 1
    with pytest.raises(dgents.DgentError):
        await a.save("next")
    assert "warning" in bench.kinds()


async def test_request_ids_are_stored_with_the_write_and_applied_once_after_a_failure(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.faults.append(fails_after)
    assert await a.save("x", request_id="r1") == 1
    assert await a.save("y", request_id="r1") == 1
    assert bench.store.versions("a") == [1]


async def test_a_request_id_of_a_rolled_back_write_is_forgotten(bench: Bench) -> None:
    a = await bench.spawn()
    bench.store.faults.extend([fails_before, fails_before])
    with pytest.raises(dgents.StorageError):
        await a.save("x", request_id="r1")
    assert await a.save("y", request_id="r1") == 1
    assert await a.load() == "y"


# The end of the runtime


async def test_leaving_a_runtime_whose_store_hangs_answers_everybody_in_time(anyio_backend: str) -> None:
    store = FakeStore()
    waiting = []

    async def live(run: Calls) -> None:
        async with dgents.Runtime(shutdown_timeout=0.05) as rt:
            a = await rt.spawn("a", FakeAgent(store))
            store.hold()
            waiting.append(await run.blocked(a.save, 1))  # in flight
            waiting.append(await run.blocked(a.save, 2))  # gathering behind it

    async with calls() as run:
        with anyio.fail_after(5), pytest.raises(dgents.StorageError, match="'a'"):
            await live(run)
        for call in waiting:
            with pytest.raises(dgents.DgentError) as caught:
                await call.result()
            assert caught.value.outcome == "unknown"
        store.let_go()


# Stores that break their contract


def _is_cancelled(store: FakeStore, writes: Any) -> Any:
    raise asyncio.CancelledError


def _forgets_to_answer(store: FakeStore, writes: Any) -> Any:
    return []


@pytest.mark.parametrize("fault", [_is_cancelled, _forgets_to_answer])
async def test_a_commit_that_ends_as_none_should_is_a_failed_commit(bench: Bench, fault: Any) -> None:
    a = await bench.spawn()
    bench.store.faults.append(fault)
    save = bench.run(a.save, "x")
    assert await save.result() == 1
    assert bench.store.versions("a") == [1]


async def test_a_backend_that_can_not_be_closed_does_not_hold_up_the_end(bench: Bench) -> None:
    a = await bench.spawn()
    await a.save("x")

    async def fail() -> None:
        raise OSError("injected")

    a._cell.backend.close = fail  # type: ignore[method-assign]
    with anyio.fail_after(2):
        await bench.rt.stop("a")
    assert bench.kinds()[-2:] == ["warning", "stopped"]


# Shared stores


async def spawn_shared(bench: Bench) -> dgents.Ref[int]:
    ref: dgents.Ref[int] = await bench.rt.spawn("a", FakeAgent(bench.store, "shared"))
    await ref.save(0)
    return ref


@pytest.mark.parametrize("fault", [fails_before, fails_after, fails_badly])
async def test_an_update_of_a_shared_state_is_applied_once_when_its_commit_fails(bench: Bench, fault: Any) -> None:
    a = await spawn_shared(bench)
    bench.store.faults.append(fault)
    assert await a.update(lambda n: n + 1) == 1
    assert (await a.load(), bench.store.versions("a")) == (1, [1, 2])


async def test_a_shared_transaction_whose_commit_was_applied_is_done(bench: Bench) -> None:
    a = await spawn_shared(bench)
    bench.store.faults.append(fails_after)
    async with a.transaction() as tx:
        tx.state += 1
    assert await a.load() == 1


async def test_a_shared_transaction_whose_commit_failed_says_what_became_of_it(bench: Bench) -> None:
    a = await spawn_shared(bench)
    bench.store.faults.append(fails_before)
    with pytest.raises(dgents.StorageError, match="was not stored: injected") as caught:
        async with a.transaction() as tx:
            tx.state += 1
    assert (caught.value.outcome, caught.value.actor) == ("rolled_back", "a")
    assert await a.load() == 0
