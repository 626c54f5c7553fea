"""Ray: an async actor in a process of its own, as in https://docs.ray.io/en/latest/ray-core/actors/async_api.html."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray

from dgents.benchmarks.states import State


@ray.remote
class Keeper:
    def __init__(self, state: State) -> None:
        self._state = state

    async def load(self) -> State:
        return self._state

    async def save(self, state: State) -> None:
        self._state = state

    async def increment(self) -> None:
        self._state["visits"] += 1


class RayActor:
    """Ray is started once, and stays until this process ends."""

    name = "Ray"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        if not ray.is_initialized():
            ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        keeper: Any = Keeper  # what `remote` made of it
        self._actors = [keeper.options(num_cpus=0).remote(state) for _ in range(keys)]
        await self.load(keys - 1)

    async def load(self, key: int = 0) -> State:
        state: State = await self._actors[key].load.remote()
        return state

    async def save(self, state: State, key: int = 0) -> None:
        await self._actors[key].save.remote(state)

    async def increment(self, key: int = 0) -> None:
        await self._actors[key].increment.remote()

    async def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
