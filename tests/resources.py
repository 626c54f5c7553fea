"""The resources of a runtime without a runtime, for tests of a backend by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import sniffio

T = TypeVar("T")


class FakeResources:
    """Shares what backends acquire, and runs asyncio code under asyncio and under trio."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str | None, dict[str, Any]]] = []
        self._values: dict[Hashable, list[Any]] = {}
        self._locks: dict[Hashable, anyio.Lock] = {}
        self._portal: PortalThread | None = None

    async def acquire(self, key: Hashable, opener: Callable[[], Awaitable[T]]) -> T:
        async with self._locks.setdefault(key, anyio.Lock()):
            if key not in self._values:
                self._values[key] = [await opener(), 0]
            self._values[key][1] += 1
            value: T = self._values[key][0]
            return value

    async def release(self, key: Hashable) -> None:
        async with self._locks[key]:
            entry = self._values[key]
            entry[1] -= 1
            if not entry[1]:
                del self._values[key]
                await entry[0].close()

    async def run_asyncio(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        if sniffio.current_async_library() == "asyncio":
            task = asyncio.ensure_future(fn(*args))
            with anyio.CancelScope(shield=True):
                return await asyncio.shield(task)
        if self._portal is None:
            self._portal = PortalThread()
        portal = self._portal
        return await anyio.to_thread.run_sync(lambda: portal.call(fn, *args))

    def emit(self, kind: str, actor: str | None = None, **details: Any) -> None:
        self.events.append((kind, actor, details))

    def in_use(self) -> int:
        """Return how many values are open."""
        return len(self._values)

    def stop(self) -> None:
        """End the thread that a test under trio needed."""
        if self._portal is not None:
            self._portal.stop()


class PortalThread:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run ``fn`` there and wait for it."""

        async def run() -> T:
            return await fn(*args)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def stop(self) -> None:
        """Stop the loop and wait for its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@asynccontextmanager
async def fake_resources() -> AsyncIterator[FakeResources]:
    """Give a test its resources, and check that it gave everything back."""
    resources = FakeResources()
    try:
        yield resources
        assert resources.in_use() == 0
    finally:
        resources.stop()
