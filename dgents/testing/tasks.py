"""The writers of one process: tasks that make changes, and note what was acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio

from dgents.testing.client import Add, Client
from dgents.testing.report import Outcome, judge


class Writers:
    """Makes changes and notes which of them were acknowledged."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.acknowledged: list[Any] = []
        self.refused: list[Any] = []

    async def change(self, key: str, change: Add, name: Any) -> bool:
        return await self.attempt(self.client.update(key, change), name)

    async def attempt(self, call: Any, name: Any) -> bool:
        try:
            await call
        except Exception:
            self.refused.append(name)
            return False
        self.acknowledged.append(name)
        return True

    def outcome(self, workload: str, found: Sequence[Any]) -> Outcome:
        """Judge changes that have names: each of them should have left its name in the state, once."""
        return judge(workload, self.acknowledged, self.refused, found)


async def together(work: Callable[[int], Any], count: int) -> None:
    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(work, number)
