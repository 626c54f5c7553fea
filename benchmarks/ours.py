"""dgents behind the words of a `Peer`, so that the same rounds run on both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dgents
from dgents.benchmarks.loops import run_tasks, yielding
from dgents.benchmarks.peers import Operation
from dgents.benchmarks.states import State

MakeAgent = Callable[[Path], Any]

_NO_HURRY = 3_600.0  # seconds to close; what writes behind may have a hundred thousand states to flush


class Dgent:
    """Actors of one kind in a runtime of their own.

    Args:
        name: what the row calls it.
        agent: makes the description of one actor, given the directory that it may store into.
        awaits: increment with an async function that awaits once, between reading and writing.

    Attributes:
        refs: the actors, by key; while set up.
    """

    load: Operation
    save: Operation
    increment: Operation

    def __init__(self, name: str, agent: MakeAgent, *, awaits: bool = False) -> None:
        self.name = name
        self._agent = agent
        self._awaits = awaits

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        async with AsyncExitStack() as opening:
            runtime = self.runtime = await opening.enter_async_context(dgents.Runtime(shutdown_timeout=_NO_HURRY))
            refs: dict[int, Any] = {}

            async def begin(key: int) -> None:
                # Servers outlive a round: its directory's name keeps its states apart from those of the others.
                refs[key] = await runtime.spawn(f"{directory.name}/{key}", self._agent(directory))
                if state is not None:
                    await refs[key].save(state)

            await run_tasks(begin, keys)
            self._closing = opening.pop_all()
        self.refs = [refs[key] for key in range(keys)]
        bump = _bump_later(yielding()) if self._awaits else _bump
        if keys == 1:  # nothing stands between the caller and the actor
            (ref,) = self.refs
            self.load, self.save, self.increment = ref.load, ref.save, partial(ref.update, bump)
        else:
            self.load = lambda key=0: self.refs[key].load()
            self.save = lambda state, key=0: self.refs[key].save(state)
            self.increment = lambda key=0: self.refs[key].update(bump)

    async def close(self) -> None:
        await self._closing.aclose()


def _bump(state: Any) -> Any:
    if type(state) is int:
        return state + 1
    state["visits"] += 1
    return state


def _bump_later(pause: Callable[[], Awaitable[None]]) -> Callable[[State], Awaitable[State]]:
    async def bump(state: State) -> State:
        await pause()
        result: State = _bump(state)
        return result

    return bump


def volatile(initial: Any = None) -> MakeAgent:
    """Return what makes volatile agents."""
    return lambda directory: dgents.VolatileAgent(initial)


def sqlite(max_history: int = 100, ownership: Literal["exclusive", "shared"] = "exclusive") -> MakeAgent:
    """Return what makes agents of one SQLite database."""
    return lambda directory: dgents.SQLAgent(str(directory / "state.db"), max_history=max_history, ownership=ownership)


def on_server(agent: Callable[..., Any], url: str, **options: Any) -> MakeAgent | None:
    """Return what makes agents of one server; None without a URL."""
    return (lambda directory: agent(url, **options)) if url else None


def file(format: Literal["json", "msgpack"] = "json") -> MakeAgent:
    """Return what makes agents of one folder, with a file each."""
    return lambda directory: dgents.PersistentAgent(f"{directory}/states/", format=format)


def cached() -> MakeAgent:
    """Return what makes write-through caches over SQLite."""
    return lambda directory: _cached(directory, policy="write-through")


def behind(*, journal: bool) -> MakeAgent:
    """Return what makes write-behind caches over SQLite."""

    def make(directory: Path) -> Any:
        flush = dgents.Flush(journal=f"{directory}/journal" if journal else None)
        return _cached(directory, policy="write-behind", flush=flush)

    return make


def _cached(directory: Path, **options: Any) -> Any:
    return dgents.CachedAgent(dgents.VolatileAgent(), sqlite()(directory), **options)
