"""Clients of the kit for concurrent writers, in their own module so that other processes can open them too."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

import dgents
from dgents.testing import Add, Client


class StaleError(Exception):
    """The value is not the one that the writer read."""


class Unlocked:
    """What everybody writes first: read, wait, write."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def read(self, key: str) -> Any:
        return self.values[key]

    async def write(self, key: str, value: Any) -> None:
        self.values[key] = value

    async def update(self, key: str, change: Add) -> None:
        value = await self.read(key)
        await anyio.lowlevel.checkpoint()
        await self.write(key, change(value))


class Locked(Unlocked):
    """The same behind a lock; a write is refused to a task that read another value than there is now."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = anyio.Lock()
        self._seen: dict[int, Any] = {}

    async def read(self, key: str) -> Any:
        self._seen[anyio.get_current_task().id] = self.values[key]
        return self.values[key]

    async def write(self, key: str, value: Any) -> None:
        seen = self._seen.pop(anyio.get_current_task().id, None)
        if seen is not None and seen is not self.values[key]:
            raise StaleError(key)
        self.values[key] = value

    async def update(self, key: str, change: Add) -> None:
        async with self._lock:
            await super().update(key, change)


class Repeating(Unlocked):
    """Applies each change, and then once more."""

    async def update(self, key: str, change: Add) -> None:
        self.values[key] = change(change(self.values[key]))


class Failing(Unlocked):
    """Refuses every change."""

    async def update(self, key: str, change: Add) -> None:
        raise OSError("the disk is full")


class AnsweringLate(Locked):
    """Applies each change, and then says that it failed."""

    async def update(self, key: str, change: Add) -> None:
        await super().update(key, change)
        raise TimeoutError


class UnlockedFiles(Unlocked):
    """A file a value, shared by processes that know nothing of each other."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    async def read(self, key: str) -> Any:
        return json.loads((self._folder / key).read_text())

    async def write(self, key: str, value: Any) -> None:
        temporary = self._folder / f"{key}.{id(value)}"
        temporary.write_text(json.dumps(value))
        temporary.replace(self._folder / key)


@asynccontextmanager
async def opened(client: Callable[[], Client]) -> AsyncIterator[Client]:
    yield client()


def sqlite_agent(path: str, ownership: Any = "exclusive") -> dgents.SQLAgent[Any]:
    return dgents.SQLAgent(path, ownership=ownership)
