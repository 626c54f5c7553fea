"""xoscar: asyncio actors in a pool, as in its README (``create_actor``): https://github.com/xorbitsai/xoscar."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import xoscar

from dgents.benchmarks.states import State


class Keeper(xoscar.Actor):
    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state

    def load(self) -> State:
        return copy.deepcopy(self._state)

    def save(self, state: State) -> None:
        self._state = copy.deepcopy(state)

    def increment(self) -> None:
        self._state["visits"] += 1


class XoscarActor:
    """A pool in this process: another one would only be slower."""

    name = "xoscar"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._pool = await xoscar.create_actor_pool(address, n_process=0)
        self._refs = [
            await xoscar.create_actor(Keeper, copy.deepcopy(state), address=address, uid=str(key))
            for key in range(keys)
        ]

    async def load(self, key: int = 0) -> State:
        state: State = await self._refs[key].load()
        return state

    async def save(self, state: State, key: int = 0) -> None:
        await self._refs[key].save(state)

    async def increment(self, key: int = 0) -> None:
        await self._refs[key].increment()

    async def close(self) -> None:
        await self._pool.stop()
