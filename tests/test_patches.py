"""Patches of which a store keeps only the change: what was accepted can be opened again, with its history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dgents
from dgents.runtime.bounds import Bounds

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["alone", "write-through", "write-behind", "journaled"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Return what makes an agent with a file of changes; ``initial`` and ``migrations`` are as they are given."""

    def agent(initial: Any = None, **options: Any) -> Any:
        file: Any = dgents.PersistentAgent(tmp_path / "a", format="msgpack", **options)
        if request.param == "alone" and initial is None:
            return file
        memory: Any = dgents.VolatileAgent() if initial is None else dgents.VolatileAgent(initial)
        if request.param in ("alone", "write-through"):
            return dgents.CachedAgent(memory, file)
        flush = dgents.Flush(max_delay=3600, journal=tmp_path / "j" if request.param == "journaled" else None)
        return dgents.CachedAgent(memory, file, policy="write-behind", flush=flush)

    return agent


async def reopened(agent: Any) -> tuple[Any, list[Any]]:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent)
        return await ref.load(), await ref.history()


async def test_the_patch_that_makes_a_state_too_large_is_refused(anyio_backend: str, make: Any) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", make())
        ref._cell.codec.bounds = Bounds(10_000, 256)
        await ref.save({})
        for n in range(9):
            await ref.patch({f"k{n}": "x" * 1000})
        with pytest.raises(dgents.StateTooLargeError) as refused:
            await ref.patch({"k9": "x" * 1000})
        assert (refused.value.limit, refused.value.actor) == (10_000, "a")
        await ref.patch({"k0": "small"})  # it goes on where it was
        state = await ref.load()
    found, history = await reopened(make())
    assert (found, found["k0"], len(found)) == (state, "small", 9)
    assert [len(one) for one in history] == [*range(10), 9]


async def test_patches_of_the_same_part_are_not_counted_up(anyio_backend: str, make: Any) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", make())
        ref._cell.codec.bounds = Bounds(10_000, 256)
        await ref.save({"k": ""})
        for n in range(50):
            await ref.patch({"k": f"{n}" * 1000})
    assert (await reopened(make()))[0] == {"k": "49" * 1000}


async def test_the_patch_that_nests_a_state_too_deeply_is_refused(anyio_backend: str, make: Any) -> None:
    def nested(levels: int) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for _ in range(levels):
            state = {"a": state}
        return state

    path = ".".join("a" * 200)
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", make())
        await ref.save(nested(200))
        with pytest.raises(dgents.StateSerializationError):
            await ref.patch({path: nested(56)})
        await ref.patch({path: nested(50), "b": nested(200)})
        state = await ref.load()
    assert (await reopened(make()))[0] == state == {"a": nested(249), "b": nested(200)}


async def test_the_first_patch_of_an_initial_state_is_stored_as_a_whole(anyio_backend: str, make: Any) -> None:
    agent = make(initial={"n": 0, "m": 0})
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent)
        await ref.patch({"n": 1})
        await ref.patch({"n": 2})
    assert await reopened(agent) == ({"n": 2, "m": 0}, [{"n": 1, "m": 0}, {"n": 2, "m": 0}])


async def test_the_first_patch_of_a_lifted_state_is_stored_as_a_whole(anyio_backend: str, make: Any) -> None:
    async with dgents.Runtime() as rt:
        await (await rt.spawn("a", make())).save({"old": 1})
    agent = make(migrations={1: lambda state: {"new": {"n": state["old"]}}})
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent)
        await ref.patch({"new.n": 2})
        await ref.patch({"new.n": 3})
    assert await reopened(agent) == ({"new": {"n": 3}}, [{"new": {"n": n}} for n in (1, 2, 3)])
