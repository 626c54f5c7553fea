"""Caches over every store and in every order, in random sequences with crashes: compared with a plain model."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

import dgents
from dgents.supervisors.tree import SiblingCrashed
from tests.calls import calls
from tests.fake_store import FakeAgent, FakeStore, fails_after, fails_before
from tests.seeds import seeded

pytestmark = pytest.mark.anyio

ABSENT = object()
STEPS = 40
STORES = ["fake", "fake shared", "json", "msgpack", "sqlite", "sqlite shared"]
WRAPPERS: dict[str, list[str]] = {
    "through": ["through"],
    "through, ttl": ["through ttl"],
    "behind": ["behind"],
    "behind, ttl": ["behind ttl"],
    "journal": ["journal"],
    "journal, ttl": ["journal ttl"],
    "budget in a cache": ["budget", "journal ttl"],
    "cache in a budget": ["behind ttl", "budget"],
    "through over behind": ["behind ttl", "through ttl"],
    "behind over through": ["through", "behind"],
    "behind over behind": ["journal", "budget", "behind ttl"],
}


class World:
    """One composition: what it is made of, where it is, and what it must have."""

    def __init__(self, store: str, wrappers: list[str], folder: Path, random: Random) -> None:
        self.medium = FakeStore()
        self.folder = folder
        self.max_history = 100 if store.startswith("fake") else random.choice([0, 1, 3, 100])
        self.max_delay = random.choice([0.0, 3600.0])
        self.max_pending = random.choice([1, 3, 1000])
        self.store, self.wrappers = store, wrappers
        self.loses = any("behind" in one for one in wrappers) and not any("journal" in one for one in wrappers)
        self.versions: list[Any] = []  # each version's state, ABSENT where it was deleted
        self.ids: dict[str, int] = {}

    @property
    def can_be_copied(self) -> bool:
        """Whether it is in files that nobody writes meanwhile (one of JSON is shown a little later)."""
        return self.store in ("msgpack", "sqlite", "sqlite shared")

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is flushed before it is asked for."""
        return self.max_delay > 0 and self.max_pending >= 1000

    @property
    def state(self) -> Any:
        return self.versions[-1] if self.versions else ABSENT

    def history(self) -> list[Any]:
        kept = self.versions[-max(self.max_history, 1) :]
        return [state for state in kept if state is not ABSENT]

    def agent(self) -> Any:
        options = {"max_history": self.max_history}
        agent: Any
        match self.store.split():
            case ["fake", *shared]:
                agent = FakeAgent(self.medium, "shared" if shared else "exclusive")
            case ["sqlite", *shared]:
                owner: Any = "shared" if shared else "exclusive"
                agent = dgents.SQLAgent(str(self.folder / "a.db"), ownership=owner, **options)
            case [format]:
                agent = dgents.PersistentAgent(self.folder / "a", format=format, **options)  # type: ignore[arg-type]
        for wrapper in self.wrappers:
            agent = self.wrapped(agent, *wrapper.split())
        return agent

    def wrapped(self, agent: Any, kind: str, ttl: str = "") -> Any:
        if kind == "budget":
            return dgents.EntropyConstrainedAgent(agent, 1, 1000)
        seconds = 3600 if ttl else None
        if kind == "through":
            return dgents.CachedAgent(dgents.VolatileAgent(), agent, ttl=seconds)
        journal = self.folder / "j" if kind == "journal" else None
        flush = dgents.Flush(self.max_delay, self.max_pending, journal=journal)
        return dgents.CachedAgent(dgents.VolatileAgent(), agent, policy="write-behind", ttl=seconds, flush=flush)


class Life:
    """The steps of one runtime's life."""

    def __init__(self, world: World, rt: dgents.Runtime, random: Random, done: list[str]) -> None:
        self.world, self.rt, self.random, self.done = world, rt, random, done
        self.ref = rt.ref("x/a")
        self.faults = 2  # more would spend the budget of restarts

    async def step(self) -> str:
        names = sorted(name for name in dir(self) if name.startswith("do_"))
        name = self.random.choice(names)
        self.done.append(name)
        operation: Callable[[], Awaitable[str | None]] = getattr(self, name)
        ending = await operation()
        if ending is None:
            assert await self.ref.load(default=ABSENT) == self.world.state
        return ending or ""

    def write(self, state: Any, id: str | None = None) -> int:
        self.world.versions.append(state)
        if id is not None:
            self.world.ids[id] = len(self.world.versions)
        return len(self.world.versions)

    def any_id(self) -> str | None:
        """Return no request id, a new one, or one that was used before by the same operation."""
        operation = self.done[-1]
        used = sorted(id for id in self.world.ids if id.startswith(operation))
        return self.random.choice([None, f"{operation}{len(self.done)}", *used[-2:]])

    def fresh(self) -> dict[str, Any]:
        return {"n": self.random.randrange(100), "d": {"k": "x" * self.random.randrange(200)}}

    async def do_save(self) -> None:
        state, id = self.fresh(), self.any_id()
        await self.ref.load(default=None)
        version = await self.ref.save(state, request_id=id)
        assert version == (self.world.ids[id] if id in self.world.ids else self.write(state, id))

    async def do_update(self) -> None:
        id = self.any_id()
        slow = self.random.random() < 0.3

        async def later(state: dict[str, Any]) -> dict[str, Any]:
            await anyio.lowlevel.checkpoint()
            return {**state, "n": state["n"] + 1}

        now = lambda state: {**state, "n": state["n"] + 1}  # noqa: E731
        before = {"n": 0, "d": {}} if self.world.state is ABSENT else self.world.state
        new = await self.ref.update(later if slow else now, default={"n": 0, "d": {}}, request_id=id)
        if id not in self.world.ids:
            assert new == now(before)
            self.write(new, id)
        else:
            assert new == self.world.versions[self.world.ids[id] - 1]

    async def do_patch(self) -> None:
        if self.world.state is ABSENT:
            with pytest.raises(dgents.StateNotFoundError):
                await self.ref.patch({"n": 1})
            return
        id, changes = self.any_id(), {"n": self.random.randrange(100), "d.k": "y" * self.random.randrange(200)}
        version = await self.ref.patch(changes, request_id=id)
        if id not in self.world.ids:
            state = self.world.state
            assert version == self.write({"n": changes["n"], "d": {**state["d"], "k": changes["d.k"]}}, id)

    async def do_lens(self) -> None:
        if self.world.state is not ABSENT:
            assert await self.ref.at("n").update(lambda n: n + 5) == self.world.state["n"] + 5
            self.write({**self.world.state, "n": self.world.state["n"] + 5})

    async def do_delete(self) -> None:
        id = self.any_id()
        await self.ref.delete(request_id=id)
        if id not in self.world.ids and (id is not None or self.world.state is not ABSENT):
            self.write(ABSENT, id)

    async def do_transaction(self) -> None:
        new = self.fresh()
        if "shared" in self.world.store:  # nobody could run the block again
            self.world.medium.faults.clear()
        async with self.ref.transaction() as tx:
            tx.state = new
        if new != self.world.state:
            self.write(new)

    async def do_too_large(self) -> None:
        if "budget" in self.world.wrappers:
            with pytest.raises(dgents.StateTooLargeError):
                await self.ref.save({"n": 0, "d": {"k": "x" * 2000}}, if_version=None)

    async def do_many(self) -> None:
        if self.world.state is ABSENT:
            return
        async with calls() as run:
            ids = [f"do_update{len(self.done)}.{n}" for n in range(self.random.choice([5, 40]))]
            adds = [run(lambda id=id: self.ref.update(_add, request_id=id)) for id in ids]
            for add in adds:
                await add.result()
        for n, id in sorted((add.reply["n"], id) for add, id in zip(adds, ids, strict=True)):
            self.write({**self.world.state, "n": n}, id)

    async def do_history(self) -> None:
        assert await self.ref.history() == self.world.history()

    async def do_expire(self) -> None:
        self.ref._cell.expire()

    async def do_flush(self) -> None:
        await self.ref.flush()

    async def do_fail(self) -> None:
        if self.faults and not self.world.medium.faults:
            self.faults -= 1
            self.world.medium.faults.append(self.random.choice([fails_before, fails_after]))

    async def do_crash(self) -> None:
        self.ref._cell.crash(SiblingCrashed("a sibling crashed"))

    async def do_passivate(self) -> None:
        await self.ref.load(default=None)
        cell = self.ref._cell
        if cell.on_idle is None and cell.phase.value == "running":
            self.rt._families[0]._passivate(cell)

    async def do_restart(self) -> str:
        return "restart"

    async def do_kill(self) -> str:
        return "kill"


def _add(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "n": state["n"] + 1}


async def live(world: World, random: Random, done: list[str]) -> str:
    """Let a runtime live until it is left, killed, or has taken its steps."""
    async with dgents.Runtime() as rt:
        rt.register("x", lambda _: world.agent())
        life = Life(world, rt, random, done)
        while len(done) < STEPS:
            ending = await life.step()
            if ending == "restart":
                return ending
            if ending == "kill" and world.can_be_copied:
                if world.loses or not world.is_quiet:
                    await life.ref.flush()
                copy = world.folder.with_name(f"life{len(done)}")
                copy_folder(world.folder, copy)
                world.folder = copy
                return ending
    return "end"


def copy_folder(folder: Path, copy: Path) -> None:
    """Copy what a killed process would leave; a log that its last reader is just closing vanishes meanwhile."""
    for _ in range(10):
        try:
            shutil.copytree(folder, copy)
        except shutil.Error:
            shutil.rmtree(copy)
        else:
            return
    raise AssertionError(f"{folder} does not stand still")


@pytest.mark.parametrize(
    ("store", "wrappers"),
    [
        (store, name)
        for store in STORES
        for name, parts in WRAPPERS.items()
        if "shared" not in store or not any("behind" in part or "journal" in part for part in parts)  # not a shared one
    ],
)
async def test_caches_keep_what_they_acknowledged(
    anyio_backend: str, store: str, wrappers: str, tmp_path: Path
) -> None:
    random, done = seeded(), list[str]()
    world = World(store, WRAPPERS[wrappers], tmp_path / "life0", random)
    world.folder.mkdir()
    with anyio.fail_after(60):
        try:
            while await live(world, random, done) != "end":
                pass
            async with dgents.Runtime() as rt:
                ref = await rt.spawn("x/a", world.agent())
                assert await ref.load(default=ABSENT) == world.state
                assert await ref.history() == world.history()
        except BaseException:
            print(world.max_history, world.max_delay, world.max_pending, done)
            raise
