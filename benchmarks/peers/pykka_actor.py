"""Pykka: a thread an actor, asked through its proxy, as in https://pykka.readthedocs.io/stable/quickstart/."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import anyio.to_thread
import pykka

from dgents.benchmarks.states import State


class Keeper(pykka.ThreadingActor):
    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state

    def load(self) -> State:
        return copy.deepcopy(self._state)

    def save(self, state: State) -> None:
        self._state = copy.deepcopy(state)

    def increment(self) -> None:
        self._state["visits"] += 1


class PykkaActor:
    """Asks from worker threads, because ``future.get()`` blocks."""

    name = "Pykka"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._refs = [Keeper.start(copy.deepcopy(state)) for _ in range(keys)]
        self._proxies = [ref.proxy() for ref in self._refs]

    async def load(self, key: int = 0) -> State:
        state: State = await anyio.to_thread.run_sync(self._proxies[key].load().get)
        return state

    async def save(self, state: State, key: int = 0) -> None:
        await anyio.to_thread.run_sync(self._proxies[key].save(state).get)

    async def increment(self, key: int = 0) -> None:
        await anyio.to_thread.run_sync(self._proxies[key].increment().get)

    async def close(self) -> None:
        for ref in self._refs:
            await anyio.to_thread.run_sync(ref.stop)
