"""A caller's function runs in the caller's context, whether the actor was idle, busy, shared, or in another thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import dgents
from tests.calls import calls
from tests.test_reminders import soon, until

pytestmark = pytest.mark.anyio

who: ContextVar[str] = ContextVar("who", default="nobody")

State = dict[str, str]


def put(state: State) -> State:
    return {**state, "by": who.get()}


async def put_slowly(state: State) -> State:
    before = who.get()
    await anyio.lowlevel.checkpoint()
    assert who.get() == before
    return {**state, "by": who.get()}


def part(_: str) -> str:
    return who.get()


async def part_slowly(_: str) -> str:
    await anyio.lowlevel.checkpoint()
    return who.get()


def think(_: None, state: State) -> tuple[None, State]:
    return None, put(state)


async def think_slowly(_: None, state: State) -> tuple[None, State]:
    return None, await put_slowly(state)


Way = Callable[[dgents.Ref[State]], Awaitable[Any]]


async def told(ref: dgents.Ref[State], fn: Any) -> None:
    ref.tell(dgents.Update(fn))
    await ref.flush()


WAYS: dict[str, Way] = {
    "update": lambda ref: ref.update(put),
    "update-async": lambda ref: ref.update(put_slowly),
    "request": lambda ref: ref.update(put, request_id="r"),
    "request-async": lambda ref: ref.update(put_slowly, request_id="r"),
    "lens": lambda ref: ref.at("by").update(part),
    "lens-async": lambda ref: ref.at("by").update(part_slowly),
    "symbiont": lambda ref: dgents.Symbiont(think, ref)(None),
    "symbiont-async": lambda ref: dgents.Symbiont(think_slowly, ref)(None),
    "ask": lambda ref: ref.ask(dgents.Update(put)),
    "ask-async": lambda ref: ref.ask(dgents.Update(put_slowly)),
    "tell": lambda ref: told(ref, put),
    "tell-async": lambda ref: told(ref, put_slowly),
}


@pytest.fixture(params=["volatile", "sqlite", "shared"])
async def ref(request: pytest.FixtureRequest, anyio_backend: str, tmp_path: Path) -> AsyncIterator[dgents.Ref[Any]]:
    agents: dict[str, Any] = {
        "volatile": dgents.VolatileAgent(),
        "sqlite": dgents.SQLAgent(str(tmp_path / "s.db")),
        "shared": dgents.SQLAgent(str(tmp_path / "s.db"), ownership="shared"),
    }
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agents[request.param])
        await ref.save({"by": "first"})
        yield ref


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_a_function_sees_the_variables_of_its_caller(ref: dgents.Ref[State], way: Way, busy: bool) -> None:
    async def call(name: str) -> None:
        who.set(name)
        await way(ref)

    async with calls() as run:
        if busy:
            go_on = anyio.Event()

            async def hold() -> None:
                async with ref.transaction():
                    await go_on.wait()

            await run.blocked(hold)
        running = await run.blocked(call, "Ada")
        if busy:
            go_on.set()
        await running.result()
        assert await ref.load() == {"by": "Ada"}


async def test_each_of_many_queued_functions_has_the_variables_of_its_own_caller(ref: dgents.Ref[State]) -> None:
    async def call(name: str) -> None:
        who.set(name)
        state = await ref.update(put_slowly if name in "bdf" else put)
        assert state == {"by": name}

    async with calls() as run:
        for one in [run(call, name) for name in "abcdefg"]:
            await one.result()


async def test_a_function_that_is_run_again_sees_what_its_caller_had_set_and_not_what_it_set_itself(
    anyio_backend: str, tmp_path: Path
) -> None:
    agent = dgents.SQLAgent(str(tmp_path / "s.db"), ownership="shared")
    seen: list[str] = []
    async with dgents.Runtime() as rt, dgents.Runtime() as other:
        ref, there = await rt.spawn("a", agent), await other.spawn("a", agent)
        await ref.save({})

        async def disturbed(state: State) -> State:
            seen.append(who.get())
            who.set("changed in the turn")
            if len(seen) < 3:
                await there.update(lambda state: {**state, "n": str(len(seen))})
            return state

        who.set("Ada")
        await ref.update(disturbed)
    assert seen == ["Ada"] * 3


async def test_a_call_from_a_thread_brings_the_variables_of_the_thread(ref: dgents.Ref[State]) -> None:
    portal = ref._cell.runtime.portal

    def work() -> Any:
        who.set("a thread")
        return portal.call(ref.update, put), portal.call(ref.update, put_slowly)

    assert await anyio.to_thread.run_sync(work) == ({"by": "a thread"}, {"by": "a thread"})
    assert who.get() == "nobody"


def test_an_async_call_into_a_runtime_of_another_kind_of_loop_knows_where_it_is() -> None:
    async def here(state: State) -> State:
        await anyio.lowlevel.checkpoint()
        return {"by": who.get()}

    with dgents.open_sync() as rt:
        ref = rt.spawn("a", dgents.VolatileAgent({}))

        async def main() -> None:
            who.set("trio")
            assert ref.update(here) == {"by": "trio"}

        anyio.run(main, backend="trio")


async def test_a_reminder_has_the_variables_of_nobody(anyio_backend: str) -> None:
    who.set("Ada")
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent({}))
        await ref.remind("r", dgents.Update(put_remindable), at=soon())
        assert await until(ref, lambda state: state != {}) == {"by": "nobody"}


@dgents.remindable
def put_remindable(state: State) -> State:
    return put(state)
