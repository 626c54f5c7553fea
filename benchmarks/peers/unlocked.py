"""Load, await, save, with copies and no lock: what everybody writes first, and what loses updates."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

from dgents.benchmarks.states import State


class Unlocked:
    """A state in memory that any task may load and save at any time."""

    name = "load, await, save"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._states: list[State] = [copy.deepcopy(state) for _ in range(keys)]

    async def load(self, key: int = 0) -> State:
        return copy.deepcopy(self._states[key])

    async def save(self, state: State, key: int = 0) -> None:
        self._states[key] = copy.deepcopy(state)

    async def increment(self, key: int = 0) -> None:
        state = await self.load(key)
        await asyncio.sleep(0)  # whatever the caller has to wait for, between reading and writing
        state["visits"] += 1
        await self.save(state, key)

    async def close(self) -> None:
        pass
