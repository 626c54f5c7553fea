"""The smallest actor that is one: a task, an asyncio.Queue, and a future for each reply."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from dgents.benchmarks.states import State

Message: TypeAlias = tuple[Callable[[State], Any], asyncio.Future[Any]]


class QueueActor:
    """A state that only its own task touches; there is one task and one queue a state."""

    name = "actor on asyncio.Queue"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        self._queues: list[asyncio.Queue[Message]] = [asyncio.Queue() for _ in range(keys)]
        self._tasks = [asyncio.create_task(_serve(copy.deepcopy(state), queue)) for queue in self._queues]

    async def load(self, key: int = 0) -> State:
        return copy.deepcopy(await self._ask(key, _same))

    async def save(self, state: State, key: int = 0) -> None:
        kept = copy.deepcopy(state)
        await self._ask(key, lambda current: _replace(current, kept))

    async def increment(self, key: int = 0) -> None:
        await self._ask(key, _increment)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, key: int, turn: Callable[[State], Any]) -> Any:
        reply: asyncio.Future[Any] = self._loop.create_future()
        self._queues[key].put_nowait((turn, reply))
        return await reply


async def _serve(state: State, queue: asyncio.Queue[Message]) -> None:
    while True:
        turn, reply = await queue.get()
        result = turn(state)
        if not reply.done():
            reply.set_result(result)


def _same(state: State) -> State:
    return state


def _replace(state: State, new: State) -> None:
    state.clear()
    state.update(new)


def _increment(state: State) -> None:
    state["visits"] += 1
