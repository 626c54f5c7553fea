"""One asyncio.Lock round a state: nothing is lost as long as everybody remembers to take it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgents.benchmarks.states import State


class Lock:
    """A state behind a lock.

    Args:
        copies: hand out copies, as an actor does; without them every caller holds the one state itself.
        awaits: await once while the lock is held, so that the others do have to wait.
    """

    def __init__(self, *, copies: bool = False, awaits: bool = False) -> None:
        self.name = "asyncio.Lock" + (" + deepcopy" if copies else "") + (", holder awaits" if awaits else "")
        self._copy: Callable[[State], State] = copy.deepcopy if copies else _itself
        if awaits:
            self.increment = self._increment_awaiting
        else:
            self.increment = self._increment_copying if copies else self._increment

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._states: list[State] = [copy.deepcopy(state) for _ in range(keys)]
        self._locks = [asyncio.Lock() for _ in range(keys)]

    async def load(self, key: int = 0) -> State:
        async with self._locks[key]:
            return self._copy(self._states[key])

    async def save(self, state: State, key: int = 0) -> None:
        async with self._locks[key]:
            self._states[key] = self._copy(state)

    async def _increment(self, key: int = 0) -> None:
        async with self._locks[key]:
            self._states[key]["visits"] += 1

    async def _increment_copying(self, key: int = 0) -> None:
        async with self._locks[key]:
            state = copy.deepcopy(self._states[key])
            state["visits"] += 1
            self._states[key] = copy.deepcopy(state)

    async def _increment_awaiting(self, key: int = 0) -> None:
        async with self._locks[key]:
            state = self._copy(self._states[key])
            await asyncio.sleep(0)
            state["visits"] += 1
            self._states[key] = self._copy(state)

    async def close(self) -> None:
        pass


def _itself(state: State) -> State:
    return state
