"""A chain of asks that comes back to an actor in its own turn is refused at once, and names the chain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio

import dgents
from tests.calls import Call, calls

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rt(anyio_backend: str) -> AsyncIterator[dgents.Runtime]:
    async with dgents.Runtime(shutdown_timeout=2) as rt:
        for name in "abc":
            await rt.spawn(name, dgents.VolatileAgent(0))
        yield rt


def asks(*refs: dgents.Ref[Any]) -> Callable[[int], Awaitable[int]]:
    """Return an update that asks the first of ``refs`` to ask the next, and so on."""

    async def fn(number: int) -> int:
        if refs:
            await refs[0].update(asks(*refs[1:]))
        return number + 1

    return fn


async def test_an_actor_that_asks_itself_is_refused_and_goes_on(rt: dgents.Runtime) -> None:
    a = rt.get("a")
    with anyio.fail_after(1), pytest.raises(dgents.DeadlockError) as caught:
        await a.update(asks(a))
    assert caught.value.chain == ("a", "a")
    assert await a.load() == 0


async def test_two_actors_that_ask_each_other_are_refused_and_the_chain_is_named(rt: dgents.Runtime) -> None:
    a, b = rt.get("a"), rt.get("b")
    with anyio.fail_after(1), pytest.raises(dgents.DeadlockError, match="'b'") as caught:
        await a.update(asks(b, a))
    assert caught.value.chain == ("b", "a", "b")
    assert (await a.load(), await b.load()) == (0, 0)


async def test_a_longer_chain_is_named_whole(rt: dgents.Runtime) -> None:
    a, b, c = (rt.get(name) for name in "abc")
    with anyio.fail_after(1), pytest.raises(dgents.DeadlockError) as caught:
        await a.update(asks(b, c, a))
    assert caught.value.chain == ("c", "a", "b", "c")


async def test_two_turns_that_cross_are_not_both_refused(rt: dgents.Runtime) -> None:
    a, b = rt.get("a"), rt.get("b")
    inside = [anyio.Event(), anyio.Event()]

    async def cross(mine: int, other: dgents.Ref[int]) -> int:
        inside[mine].set()
        await inside[1 - mine].wait()
        return await other.update(lambda n: n + 1)

    async with calls() as run:
        one = run(a.update, lambda _: cross(0, b))
        two = run(b.update, lambda _: cross(1, a))
        outcomes = []
        for call in (one, two):
            try:
                outcomes.append(await call.result())
            except dgents.DeadlockError:
                outcomes.append("refused")
    assert outcomes.count("refused") == 1


async def test_a_child_task_of_a_turn_belongs_to_the_turn(rt: dgents.Runtime) -> None:
    a = rt.get("a")

    async def fn(number: int) -> int:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.load)
        return number

    with anyio.fail_after(1), pytest.raises(BaseExceptionGroup) as caught:
        await a.update(fn)
    assert caught.group_contains(dgents.DeadlockError)


async def test_a_transaction_inside_another_may_not_ask_the_outer_one(rt: dgents.Runtime) -> None:
    a, b = rt.get("a"), rt.get("b")
    async with a.transaction():
        async with b.transaction():
            with anyio.fail_after(1), pytest.raises(dgents.DeadlockError):
                await a.load()
        with anyio.fail_after(1), pytest.raises(dgents.DeadlockError):
            await a.load()
        assert await b.load() == 0
    assert await a.load() == 0


async def test_transactions_that_are_nested_crosswise_are_not_both_refused(rt: dgents.Runtime) -> None:
    a, b, c = (rt.get(name) for name in "abc")
    inside = [anyio.Event(), anyio.Event()]

    async def first() -> None:
        async with a.transaction(), b.transaction():
            inside[0].set()
            await inside[1].wait()
            await c.load()

    async def second() -> None:
        async with c.transaction():
            inside[1].set()
            await inside[0].wait()
            await a.load()

    async with calls() as run:
        both = [run(first), run(second)]
        refused = 0
        for call in both:
            try:
                await call.result()
            except dgents.DeadlockError:
                refused += 1
    assert refused == 1


async def test_views_given_back_in_the_order_in_which_they_were_taken_leave_no_trace(rt: dgents.Runtime) -> None:
    a, b = rt.get("a"), rt.get("b")
    one, two = a.for_update(), b.for_update()
    await one.load()
    await two.load()
    await one.save(1)
    assert await a.load() == 1
    with anyio.fail_after(1), pytest.raises(dgents.DeadlockError):
        await b.load()
    await two.save(2)
    assert (await a.load(), await b.load()) == (1, 2)


async def test_stopping_an_actor_in_its_own_turn_is_a_deadlock(rt: dgents.Runtime) -> None:
    a = rt.get("a")
    async with a.transaction() as tx:
        with anyio.fail_after(1), pytest.raises(dgents.DeadlockError):
            await rt.stop(a)
        tx.state = 5
    assert await a.load() == 5


async def test_telling_oneself_is_no_deadlock(rt: dgents.Runtime) -> None:
    a = rt.get("a")

    async def fn(number: int) -> int:
        await a.tell(dgents.Update(lambda n: n + 10))
        return number + 1

    assert await a.update(fn) == 1
    assert await a.load() == 11


# Threads that come back


def in_thread(fn: Callable[..., Any], *args: Any) -> Awaitable[Any]:
    """Run a function in a worker thread, in the context of the caller."""
    return anyio.to_thread.run_sync(fn, *args)


async def test_a_turn_that_comes_back_from_a_thread_by_the_portal_is_refused(rt: dgents.Runtime) -> None:
    a = rt.get("a")

    async def fn(number: int) -> int:
        return number + await in_thread(rt.portal.call, a.load)  # type: ignore[no-any-return]

    with anyio.fail_after(1), pytest.raises(dgents.DeadlockError) as caught:
        await a.update(fn)
    assert caught.value.chain == ("a", "a")
    async with a.transaction():
        with anyio.fail_after(1), pytest.raises(dgents.DeadlockError):
            await in_thread(rt.portal.call, a.load)
    assert await in_thread(rt.portal.call, a.load) == 0


async def test_a_turn_that_comes_back_from_a_thread_by_anyio_is_refused(rt: dgents.Runtime) -> None:
    a = rt.get("a")

    async def fn(number: int) -> int:
        return number + await in_thread(anyio.from_thread.run, a.load)  # type: ignore[no-any-return]

    with anyio.fail_after(1), pytest.raises(dgents.DeadlockError):
        await a.update(fn)


async def test_a_chain_that_goes_through_two_threads_is_refused_and_named(rt: dgents.Runtime) -> None:
    a, b = rt.get("a"), rt.get("b")

    async def inner(number: int) -> int:
        return number + await in_thread(rt.portal.call, a.load)  # type: ignore[no-any-return]

    async def outer(number: int) -> int:
        return number + await in_thread(rt.portal.call, b.update, inner)  # type: ignore[no-any-return]

    with anyio.fail_after(1), pytest.raises(dgents.DeadlockError) as caught:
        await a.update(outer)
    assert caught.value.chain == ("b", "a", "b")


async def test_a_thread_of_a_turn_may_ask_others_and_a_thread_of_nobody_waits(rt: dgents.Runtime) -> None:
    a, b = rt.get("a"), rt.get("b")
    held = anyio.Event()

    async def fn(number: int) -> int:
        held.set()
        await in_thread(rt.portal.call, b.update, lambda n: n + 1)
        return number + 1

    async with calls() as run:
        updating = run(a.update, fn)
        await held.wait()
        loading = run(in_thread, rt.portal.call, a.load)
        assert (await updating.result(), await loading.result(), await b.load()) == (1, 1, 1)


def test_a_synchronous_program_is_refused_in_its_own_transaction() -> None:
    with dgents.open_sync() as rt:
        a, b = rt.spawn("a", dgents.VolatileAgent(0)), rt.spawn("b", dgents.VolatileAgent(0))

        async def fn(number: int) -> int:
            return number + await in_thread(a.load)  # type: ignore[no-any-return]

        with pytest.raises(dgents.DeadlockError):
            a.update(fn)
        with a.transaction() as tx:
            assert b.load() == 0
            with pytest.raises(dgents.DeadlockError):
                a.load()
            tx.state = 1
        assert a.load() == 1


# Tasks that a turn starts


class Background:
    """Starts tasks in the context of who starts them, in a group that is not the starter's."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def __call__(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        call = Call()
        self._run._group.start_soon(call.run, fn, *args)
        return call


async def test_a_task_that_a_turn_starts_and_does_not_await_waits_for_its_end(rt: dgents.Runtime) -> None:
    a = rt.get("a")
    async with calls() as run:
        start = Background(run)
        async with a.transaction() as tx:
            in_block = start(a.load)
            await anyio.wait_all_tasks_blocked()
            assert not in_block.done
            tx.state = 5
        assert await in_block.result() == 5

        async def fn(number: int) -> int:
            asked.append(start(a.update, lambda n: n + 1))
            await anyio.wait_all_tasks_blocked()
            return number + 10

        asked: list[Any] = []
        assert await a.update(fn) == 15
        assert await asked[0].result() == 16


async def test_a_task_that_a_turn_does_not_await_may_go_through_another_actor(rt: dgents.Runtime) -> None:
    a, b = rt.get("a"), rt.get("b")
    async with calls() as run:
        async with a.transaction() as tx:
            asking = Background(run)(b.update, asks(a))
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(1), pytest.raises(dgents.DeadlockError) as caught:
                await b.load()  # it would wait for b, which waits for this turn
            assert caught.value.chain == ("a", "b", "a")
            tx.state = 1
        assert await asking.result() == 1
        assert await a.load() == 2


async def test_a_task_whose_turn_comes_to_its_end_waiting_for_it_is_refused(rt: dgents.Runtime) -> None:
    a, b = rt.get("a"), rt.get("b")

    async def fn() -> None:
        async with a.transaction(), anyio.create_task_group() as tasks:
            tasks.start_soon(a.load)
            tasks.start_soon(b.update, asks(a))
            await anyio.wait_all_tasks_blocked()

    with anyio.fail_after(3), pytest.raises(BaseExceptionGroup) as caught:
        await fn()
    assert caught.group_contains(dgents.DeadlockError, match="'a'")
    assert (await a.load(), await b.load()) == (0, 0)


async def test_a_task_group_that_a_turn_cancels_before_its_end_is_no_deadlock(rt: dgents.Runtime) -> None:
    a = rt.get("a")
    async with a.transaction() as tx:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.load)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        tx.state = 1
    assert await a.load() == 1


async def test_what_can_not_be_told_is_a_warning(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgents.runtime.deadlock._LOOK_EVERY", 0.01)
    monkeypatch.setattr("dgents.runtime.deadlock._WARN_AFTER", 0.02)
    warned = anyio.Event()

    def note(event: Any) -> None:
        if event.kind == "warning":
            assert event.actor == "a"
            assert "waited" in event.details["message"]
            warned.set()

    async with dgents.Runtime(on_event=note) as rt, calls() as run:
        a = await rt.spawn("a", dgents.VolatileAgent(0))
        async with a.transaction():
            asking = Background(run)(a.load)
            with anyio.fail_after(5):
                await warned.wait()
        assert await asking.result() == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestAsyncioTasks:
    """What asyncio has besides task groups."""

    @pytest.mark.parametrize(
        "awaits",
        [
            lambda task: task,
            lambda task: asyncio.gather(task, asyncio.sleep(0)),
            lambda task: asyncio.wait([task]),
            lambda task: asyncio.wait_for(task, 20),
            lambda task: asyncio.shield(task),
            lambda task: asyncio.gather(asyncio.shield(asyncio.wait_for(task, 20))),
        ],
    )
    @pytest.mark.parametrize("late", [False, True])
    async def test_a_task_that_the_turn_awaits_is_refused(self, rt: dgents.Runtime, awaits: Any, late: bool) -> None:
        a = rt.get("a")

        async def fn(number: int) -> int:
            task = asyncio.create_task(a.load())
            if late:
                await anyio.wait_all_tasks_blocked()
            await awaits(task)
            return number + await task

        with anyio.fail_after(5), pytest.raises(dgents.DeadlockError):
            await a.update(fn)
        with anyio.fail_after(5), pytest.raises(dgents.DeadlockError):
            async with a.transaction() as tx:
                tx.state = await fn(tx.state)
        assert await a.load() == 0

    async def test_a_group_of_asyncios_own_is_refused_at_its_end(self, rt: dgents.Runtime) -> None:
        a = rt.get("a")
        with anyio.fail_after(5), pytest.raises(BaseExceptionGroup) as caught:
            async with a.transaction(), asyncio.TaskGroup() as tasks:
                tasks.create_task(a.load())
        assert caught.group_contains(dgents.DeadlockError)

    async def test_a_task_that_is_kept_and_not_awaited_waits(self, rt: dgents.Runtime) -> None:
        a = rt.get("a")
        async with a.transaction() as tx:
            task = asyncio.create_task(a.load())
            gathered = asyncio.gather(asyncio.create_task(a.load()))
            await anyio.wait_all_tasks_blocked()
            tx.state = 7
        assert (await task, await gathered) == (7, [7])


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_nursery_that_was_opened_before_the_turn_is_not_awaited_by_it(rt: dgents.Runtime) -> None:
    a = rt.get("a")
    loaded: list[int] = []

    async def load() -> None:
        loaded.append(await a.load())

    async with trio.open_nursery() as nursery, a.transaction() as tx:
        nursery.start_soon(load)
        await anyio.wait_all_tasks_blocked()
        tx.state = 3
    assert loaded == [3]
