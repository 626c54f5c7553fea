"""What is given to an actor is copied: a function may change what it gets, and a caller what it gave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

import dgents
from dgents.runtime.contract import Record
from tests.bench import Bench, open_bench
from tests.fake_store import FakeAgent, fails_before

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(anyio_backend: str) -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


def append(items: list[int]) -> list[int]:
    items.append(1)
    return items


async def append_async(items: list[int]) -> list[int]:
    await anyio.lowlevel.checkpoint()
    return append(items)


@pytest.mark.parametrize("fn", [append, append_async])
class TestDefaults:
    async def test_each_run_after_a_commit_that_failed_gets_a_copy_of_its_own(self, bench: Bench, fn: Any) -> None:
        a = await bench.rt.spawn("a", FakeAgent(bench.store, "shared"))
        default: list[int] = []
        bench.store.faults.append(fails_before)
        assert await a.update(fn, default=default) == [1]
        assert (await a.load(), default) == ([1], [])

    async def test_each_run_after_a_conflict_gets_a_copy_of_its_own(self, bench: Bench, fn: Any) -> None:
        a = await bench.rt.spawn("a", FakeAgent(bench.store, "shared"))
        default: list[int] = []
        bench.store.hold()
        update = await bench.run.blocked(lambda: a.update(fn, default=default))
        bench.store.records["a"] = [Record(1, 1, 0.0, None)]  # somebody else saved and deleted
        bench.store.let_go()
        assert await update.result() == [1]
        assert default == []

    async def test_two_actors_share_none(self, bench: Bench, fn: Any) -> None:
        default: list[int] = []
        message = dgents.Update(fn, default=default)
        for name in ("a", "b"):
            ref = await bench.rt.spawn(name, dgents.VolatileAgent())
            assert await ref.update(fn, default=default) == [1]
            await ref.delete()
            assert await ref.ask(message) == [1]
        assert default == []

    async def test_a_symbiont_begins_with_the_same_each_time(self, bench: Bench, fn: Any) -> None:
        default: list[int] = []
        for name in ("a", "b"):
            ref = await bench.rt.spawn(name, dgents.VolatileAgent())
            symbiont = dgents.Symbiont(lambda value, items: (value, append(items)), ref, default=default)
            assert await symbiont("x") == "x"
            assert await ref.load() == [1]

    async def test_one_that_is_told_is_the_one_of_that_moment(self, bench: Bench, fn: Any) -> None:
        a = await bench.rt.spawn("a", dgents.VolatileAgent())
        default: list[int] = []
        a.tell(dgents.Update(fn, default=default))
        default.append(5)
        assert await a.load() == [1]


async def test_a_sentinel_is_handed_to_the_function_as_it_is(bench: Bench) -> None:
    a = await bench.rt.spawn("a", dgents.VolatileAgent())
    nothing = object()
    assert await a.update(lambda state: [] if state is nothing else state, default=nothing) == []


async def test_a_default_that_cant_be_copied_is_refused(bench: Bench) -> None:
    a = await bench.rt.spawn("a", dgents.VolatileAgent())
    with pytest.raises(dgents.StateSerializationError, match="can't be copied"):
        await a.update(append, default=[anyio.Event, (n for n in "x")])


async def test_a_patch_that_is_told_sets_what_it_held_at_that_moment(bench: Bench) -> None:
    a = await bench.rt.spawn("a", dgents.VolatileAgent({"items": []}))
    items = [1]
    a.tell(dgents.Patch({"items": items}))
    items.append(2)
    assert await a.load() == {"items": [1]}


@pytest.mark.parametrize("wrap", ["volatile", "cached", "stream"])
async def test_actors_of_one_description_begin_with_what_it_was_made_of(bench: Bench, wrap: str) -> None:
    initial = [1]
    volatile: Any = dgents.VolatileAgent(initial)
    agent = {
        "volatile": volatile,
        "cached": dgents.CachedAgent(volatile, FakeAgent(bench.store)),
        "stream": dgents.StreamAgent(lambda items, event: [*items, event], initial),
    }[wrap]
    a = await bench.rt.spawn("a", agent)
    (await a.load()).append(2)
    initial.append(3)
    b = await bench.rt.spawn("b", agent)
    assert (await a.load(), await b.load()) == ([1], [1])


async def test_an_actor_that_is_restarted_begins_with_what_its_description_was_made_of(bench: Bench) -> None:
    group = await bench.rt.supervisor("group", strategy="one_for_all", backoff=dgents.Backoff(0, 0))
    initial = [1]
    a = await group.spawn("a", dgents.VolatileAgent(initial))
    sibling = await group.spawn("sibling", FakeAgent(bench.store))
    initial.append(2)
    bench.store.faults.append(fails_before)
    await sibling.save("x")
    assert await a.load() == [1]
    assert "restarted" in bench.kinds("a")
