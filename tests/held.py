"""Agents at a door: a test decides how long their openings, readings and closings take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from dgents.runtime.contract import Agent, Backend, Resources
from dgents.supervisors.wrapper import Wrapper


class Door:
    """Who comes while it is shut waits until it is opened."""

    def __init__(self) -> None:
        self._opened: anyio.Event | None = None
        self._reached = anyio.Event()

    def shut(self) -> None:
        self._opened = anyio.Event()

    def open(self) -> None:
        assert self._opened is not None
        self._opened.set()
        self._opened = None

    async def reached(self) -> None:
        """Return when somebody stands before it."""
        with anyio.fail_after(5):
            await self._reached.wait()

    def before(self, fn: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
        """Return ``fn`` with this door before it."""

        async def behind() -> Any:
            if self._opened is not None:
                self._reached.set()
                await self._opened.wait()
            return await fn()

        return behind


class HeldAgent(Wrapper):
    """An agent with a door before each opening of its backend, one before each reading, and one before each closing."""

    def __init__(
        self, inner: Agent, *, opening: Door | None = None, reading: Door | None = None, closing: Door | None = None
    ) -> None:
        super().__init__(inner)
        self._opening = opening or Door()
        self._reading = reading or Door()
        self._closing = closing or Door()

    def backend(self, name: str, resources: Resources) -> Backend:
        backend: Any = self.inner.backend(name, resources)
        backend.open = self._opening.before(backend.open)
        backend.read = self._reading.before(backend.read)
        backend.close = self._closing.before(backend.close)
        return backend  # type: ignore[no-any-return]
