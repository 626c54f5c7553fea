"""Each operation is cancelled at its n-th suspension, for every n: the state is as before or as after, and the actor
answers the next caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import dgents
from dgents.testing.lives.leaving import cancelled_at as leave_at
from tests.calls import calls
from tests.contract.world import World

pytestmark = pytest.mark.anyio

BEFORE, AFTER = {"x": 0}, {"x": 1}
MOST_SUSPENSIONS = 200


async def cancelled_at(fn: Callable[..., Awaitable[Any]], suspension: int, *args: Any) -> bool:
    """Run ``fn(*args)``, cancelled at a suspension; return whether it came that far."""
    with anyio.CancelScope() as scope:
        count, _ = await leave_at(fn(*args), suspension, scope)
        return count >= suspension
    return True


async def slowly(_: Any) -> dict[str, int]:
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    return AFTER


async def in_transaction(ref: dgents.Ref[Any]) -> None:
    async with ref.transaction() as tx:
        await anyio.lowlevel.checkpoint()
        tx.state = AFTER


async def for_update(ref: dgents.Ref[Any]) -> None:
    view = ref.for_update(lease=0.05)
    await view.load()
    await view.save(AFTER)


async def tell(ref: dgents.Ref[Any]) -> None:
    await ref.tell(dgents.Save(AFTER))


OPERATIONS: dict[str, Callable[[dgents.Ref[Any]], Awaitable[Any]]] = {
    "load": lambda ref: ref.load(),
    "snapshot": lambda ref: ref.snapshot(),
    "history": lambda ref: ref.history(),
    "flush": lambda ref: ref.flush(),
    "watch": lambda ref: anext(ref.watch()),
    "save": lambda ref: ref.save(AFTER),
    "save once": lambda ref: ref.save(AFTER, request_id=f"{id(object())}"),
    "update": lambda ref: ref.update(lambda _: AFTER),
    "async update": lambda ref: ref.update(slowly),
    "patch": lambda ref: ref.patch({"x": 1}),
    "lens save": lambda ref: ref.at("x").save(1),
    "lens update": lambda ref: ref.at("x").update(lambda n: n + 1),
    "transaction": in_transaction,
    "for update": for_update,
    "ask": lambda ref: ref.ask(dgents.Update(slowly), timeout=10),
    "tell": tell,
    "symbiont": lambda ref: dgents.Symbiont(lambda value, _: (value, AFTER), ref)(5),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelled_anywhere_an_operation_happens_whole_or_not_at_all(world: World, operation: str) -> None:
    ref = await world.spawn()
    async with calls() as run:
        for suspension in range(1, MOST_SUSPENSIONS):
            await run(ref.save, BEFORE).result()
            reached = await run(cancelled_at, OPERATIONS[operation], suspension, ref).result()
            assert await run(ref.load).result() in (BEFORE, AFTER)
            assert await run(ref.update, lambda state: {"x": state["x"] + 10}).result() in ({"x": 10}, {"x": 11})
            if not reached:
                break
        else:
            raise AssertionError(f"{operation} never came to its end")
    assert not world.rt.stats()["a"].mailbox


async def test_cancelled_in_a_queue_an_update_leaves_no_trace(world: World) -> None:
    ref = await world.spawn()
    await ref.save(BEFORE)
    async with calls() as run:
        async with ref.transaction():
            waiting = [run(ref.update, fn) for fn in (slowly, lambda _: AFTER) for _ in range(3)]
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            for call in waiting:
                call.cancel()
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
        assert await run(ref.load).result() == BEFORE


async def test_cancelled_anywhere_a_deletion_happens_whole_or_not_at_all(world: World) -> None:
    ref = await world.spawn()
    async with calls() as run:
        for suspension in range(1, MOST_SUSPENSIONS):
            await run(ref.save, BEFORE).result()
            reached = await run(cancelled_at, ref.delete, suspension).result()
            assert await run(lambda: ref.load(default=None)).result() in (BEFORE, None)
            if not reached:
                return
    raise AssertionError("delete never came to its end")


async def test_cancelled_anywhere_a_spawn_leaves_nothing_behind(world: World) -> None:
    """No name that stays taken, no lock that stays held: the next spawn succeeds."""
    for suspension in range(1, MOST_SUSPENSIONS):
        reached = await cancelled_at(world.spawn, suspension)
        if "a" in world.rt.names():
            await world.rt.stop("a")
        with anyio.fail_after(5):
            ref = await world.spawn()
        assert await ref.update(lambda n: n + 1, default=0) >= 1
        await world.rt.stop("a")
        if not reached:
            return
    raise AssertionError("spawn never came to its end")


async def test_cancelled_anywhere_a_stop_still_stops(world: World) -> None:
    for suspension in range(1, MOST_SUSPENSIONS):
        ref = await world.spawn()
        await ref.update(lambda n: n + 1, default=0)
        reached = await cancelled_at(world.rt.stop, suspension, "a")
        with anyio.fail_after(5):
            while "a" in world.rt.names():
                await anyio.lowlevel.checkpoint()
        if not reached:
            return
    raise AssertionError("stop never came to its end")
