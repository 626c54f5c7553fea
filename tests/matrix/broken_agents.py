"""Agents that break their promises, each in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import anyio

import dgents

Commit = Callable[[Any, Sequence[Any]], Any]


class Broken:
    """An agent whose store commits as ``commit(store, writes)`` does."""

    def __init__(self, agent: Any, commit: Commit) -> None:
        self._agent = agent
        self._commit = commit

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._agent, name)

    def backend(self, name: str, resources: Any) -> Any:
        return _Backend(self._agent.backend(name, resources), self._commit)


class _Backend:
    def __init__(self, inner: Any, commit: Commit) -> None:
        self.inner = inner
        self._commit = commit
        self._stores: dict[Any, _Store] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def store(self) -> Any:
        real = self.inner.store
        return self._stores.setdefault(real, _Store(real, self._commit)) if real is not None else None


class _Store:
    def __init__(self, real: Any, commit: Commit) -> None:
        self._real = real
        self._commit = commit

    async def commit(self, writes: Sequence[Any]) -> Any:
        return await self._commit(self._real, writes)


_turns = count()


async def forgets(store: Any, writes: Sequence[Any]) -> Any:
    """Say yes, and store six of seven."""
    return [None for _ in writes] if next(_turns) % 7 == 6 else await store.commit(writes)


async def says_no_and_stores(store: Any, writes: Sequence[Any]) -> Any:
    """Store it, and say of every seventh that it was rolled back."""
    answers = await store.commit(writes)
    if next(_turns) % 7 == 6:
        return [dgents.StorageError("no", outcome="rolled_back", retryable=False) for _ in writes]
    return answers


async def never_answers(store: Any, writes: Sequence[Any]) -> Any:
    """Do not come back from every seventh."""
    if next(_turns) % 7 == 6:
        await anyio.sleep(3600)
    return await store.commit(writes)
