"""What the backends of one runtime share: a connection a database, a lock a directory, a thread for asyncio."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Hashable
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from dgents.runtime.commit import innermost
from dgents.runtime.contract import Backend, StateIdentity
from dgents.runtime.errors import StateLockedError
from dgents.runtime.loops import Loop, give

T = TypeVar("T")


class Closeable(Protocol):
    async def close(self) -> None: ...


class SharedResources:
    """Values by key, opened by the first who asks, closed by the last who lets go."""

    def __init__(self, loop: Loop, emit: Callable[..., None]) -> None:
        self._loop = loop
        self._values: dict[Hashable, Any] = {}
        self._users: dict[Hashable, int] = {}
        self._locks: dict[Hashable, anyio.Lock] = {}
        self._claims: dict[Hashable, dict[str, tuple[tuple[Backend, str], ...]]] = {}  # by place and key: who has it
        self._threads = ExitStack()
        self._portal: BlockingPortal | None = None
        self.emit = emit

    async def acquire(self, key: Hashable, opener: Callable[[], Awaitable[T]]) -> T:
        """Return the value under ``key``, opening it on first use; concurrent callers wait for one opening."""
        value = self._values.get(key)
        if value is None:
            async with self._locks.setdefault(key, anyio.Lock()):
                value = self._values.get(key)
                if value is None:
                    value = self._values[key] = await opener()
                    self._users[key] = 0
        self._users[key] += 1
        return value

    async def release(self, key: Hashable) -> None:
        """Give it back; the last one to do so closes it."""
        self._users[key] -= 1
        if self._users[key]:
            return
        lock = self._locks.setdefault(key, anyio.Lock())
        with anyio.CancelScope(shield=True):
            async with lock:  # whoever reopens it waits until it is closed
                if self._users.get(key) == 0:  # nobody has asked for it meanwhile
                    value: Closeable = self._values.pop(key)
                    del self._users[key]
                    await value.close()
        if key not in self._values and not lock.locked():  # locked by one who opens it again
            self._locks.pop(key, None)

    def claim(self, backend: Backend, actor: str) -> None:
        """Take note that an actor is about to open a state.

        Raises:
            StateLockedError: another actor of this runtime has it, and not both are shared.
        """
        mine = innermost(backend)
        state: StateIdentity | None = getattr(mine, "identity", None)
        if state is None:
            return
        claims = self._claims.setdefault(state.place, {})
        users = claims.get(state.key, ())
        for theirs, other in users:
            if "exclusive" in (mine.ownership, theirs.ownership):
                raise StateLockedError(
                    f"{actor!r} can't have the state {state.key!r} in {state.text}: "
                    f"the actor {other!r} of this runtime has it",
                    pid=os.getpid(),
                    host=socket.gethostname(),
                    actor=actor,
                    key=state.key,
                    hint=f"use rt.get({other!r}), give {actor!r} a key of its own, or both ownership='shared'",
                )
        claims[state.key] = (*users, (mine, actor))

    def unclaim(self, backend: Backend) -> None:
        """Take note that a state was closed, or could not be opened."""
        mine = innermost(backend)
        state: StateIdentity | None = getattr(mine, "identity", None)
        if state is None:
            return
        claims = self._claims.get(state.place, {})
        others = tuple(user for user in claims.pop(state.key, ()) if user[0] is not mine)
        if others:
            claims[state.key] = others

    async def run_asyncio(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await ``fn(*args)`` on an asyncio loop, to its end even if the caller is cancelled."""
        if self._loop.name == "asyncio":
            with anyio.CancelScope(shield=True):
                return await fn(*args)
        return await self._in_portal(fn, args)

    async def _in_portal(self, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
        """Run it on the one asyncio loop that this runtime has beside trio, in a thread of its own."""
        if self._portal is None:
            self._portal = self._threads.enter_context(start_blocking_portal("asyncio"))
        waiter = self._loop.waiter()
        future = self._portal.start_task_soon(fn, *args)
        future.add_done_callback(lambda _: self._loop.call_threadsafe(give, waiter, None))
        await self._loop.wait_shielded(waiter)
        return future.result()

    async def close(self) -> None:
        """End the thread, if there is one."""
        if self._portal is not None:
            await anyio.to_thread.run_sync(self._threads.close)
            self._portal = None
