"""Random sequences of operations, compared with a plain model of what an actor is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import anyio
import pytest

import dgents
from tests.calls import Calls, calls
from tests.contract.world import World
from tests.seeds import seeded

pytestmark = pytest.mark.anyio

KEPT = 4  # versions
ABSENT = object()


class Model:
    """What is stored, and what must come of each operation on it."""

    def __init__(self) -> None:
        self.versions: list[Any] = []  # each version's state, ABSENT where it was deleted
        self.requests: dict[str, int] = {}

    @property
    def version(self) -> int:
        return len(self.versions)

    @property
    def state(self) -> Any:
        return self.versions[-1] if self.versions else ABSENT

    def write(self, state: Any) -> int:
        self.versions.append(state)
        return self.version

    def history(self, limit: int | None = None) -> list[Any]:
        kept = [state for state in self.versions[-KEPT:] if state is not ABSENT]
        return kept if limit is None else kept[max(len(kept) - limit, 0) :]


class Steps:
    """One random operation at a time, on the actor and on the model."""

    def __init__(self, world: World, ref: dgents.Ref[Any], run: Calls, random: Random) -> None:
        self.world, self.ref, self.run, self.random = world, ref, run, random
        self.model = Model()
        self.done: list[str] = []

    def fresh(self) -> dict[str, int]:
        return {"n": self.random.randrange(100), "m": self.random.randrange(3)}

    async def step(self) -> None:
        names = sorted(name for name in dir(self) if name.startswith("do_"))
        name = self.random.choice(names)
        self.done.append(name)
        operation: Callable[[], Awaitable[None]] = getattr(self, name)
        await operation()
        assert await self.ref.load(default=ABSENT) == self.model.state, self.done
        if self.model.state is not ABSENT:
            assert (await self.ref.snapshot()).version == self.model.version, self.done

    async def do_save(self) -> None:
        state = self.fresh()
        assert await self.ref.save(state) == self.model.write(state)

    async def do_save_as_a_stranger(self) -> None:
        state = self.fresh()
        assert await self.run(self.ref.save, state).result() == self.model.write(state)
        if self.random.random() < 0.5:
            return
        with pytest.raises(dgents.StaleStateError):
            await self.ref.save(self.fresh())

    async def do_compare_and_set(self) -> None:
        current = 0 if self.model.state is ABSENT else self.model.version
        state, expected = self.fresh(), self.random.choice([0, current, self.model.version + 1])
        if expected == current:
            assert await self.ref.save(state, if_version=expected) == self.model.write(state)
        else:
            with pytest.raises(dgents.VersionConflictError):
                await self.ref.save(state, if_version=expected)

    async def do_update(self) -> None:
        old = {} if self.model.state is ABSENT else self.model.state
        new = {**old, "n": old.get("n", 0) + 1}
        self.model.write(new)
        slow = self.random.random() < 0.5

        async def slowly(state: dict[str, int]) -> dict[str, int]:
            await anyio.lowlevel.checkpoint()
            return {**state, "n": state.get("n", 0) + 1}

        fn = slowly if slow else lambda state: {**state, "n": state.get("n", 0) + 1}
        assert await self.ref.update(fn, default={}) == new

    async def do_fail(self) -> None:
        with pytest.raises(ZeroDivisionError):
            await self.ref.update(lambda state: state.update(n=1 // 0), default={})

    async def do_patch(self) -> None:
        number = self.random.randrange(100)
        if self.model.state is ABSENT:
            with pytest.raises(dgents.StateNotFoundError):
                await self.ref.patch({"n": number})
        else:
            new = {**self.model.state, "n": number}
            assert await self.ref.patch({"n": number}) == self.model.write(new)

    async def do_lens(self) -> None:
        if self.model.state is not ABSENT:
            number = self.random.randrange(100)
            new = {**self.model.state, "m": number}
            assert await self.ref.at("m").update(lambda _: number) == number if "m" in self.model.state else True
            if "m" in self.model.state:
                self.model.write(new)

    async def do_delete(self) -> None:
        await self.ref.delete()
        if self.model.state is not ABSENT:
            self.model.write(ABSENT)

    async def do_transaction(self) -> None:
        state, commits = self.fresh(), self.random.random() < 0.5
        try:
            async with self.ref.transaction() as tx:
                tx.state = state
                if not commits:
                    raise KeyError
        except KeyError:
            return
        if state != self.model.state:
            self.model.write(state)

    async def do_once(self) -> None:
        request_id = str(self.random.randrange(5))
        state = self.fresh()
        if request_id not in self.model.requests:
            self.model.requests[request_id] = self.model.write(state)
        expected = self.model.requests[request_id]
        assert await self.ref.save(state, request_id=request_id) == expected
        await self.ref.load(default=None)

    async def do_history(self) -> None:
        limit = self.random.choice([None, 0, 1, 2, 9])
        assert await self.ref.history(limit) == self.model.history(limit), self.done

    async def do_load_a_version(self) -> None:
        version = self.random.randrange(self.model.version + 2)
        kept = range(max(self.model.version - KEPT, 0) + 1, self.model.version + 1)
        expected = self.model.versions[version - 1] if version in kept else ABSENT
        assert await self.ref.load(version=version, default=ABSENT) == expected, self.done

    async def do_reopen(self) -> None:
        if self.world.is_durable and self.random.random() < 0.3:
            self.ref = await self.world.reopen()


async def _compare(world: World, steps: int) -> None:
    ref = await world.spawn(max_history=KEPT)
    async with calls() as run:
        walk = Steps(world, ref, run, seeded())
        await ref.load(default=None)  # from now on this task has seen the newest version
        for _ in range(steps):
            await walk.step()


async def test_an_actor_does_what_the_model_does(world: World) -> None:
    await _compare(world, 120)


@pytest.mark.torture
async def test_an_actor_does_what_the_model_does_for_a_long_time(world: World) -> None:
    await _compare(world, 5000)
