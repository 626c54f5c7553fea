"""A chain of asks that comes back to an actor in its own turn is refused at once, and names the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest

import dgents
from tests.calls import calls

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
