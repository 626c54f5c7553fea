"""Calls that run in the background of a test, and what became of each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from typing import Any

import anyio
from anyio.abc import TaskGroup


class Call:
    """One call in a task of its own: ``done``, then ``reply`` or ``error``."""

    def __init__(self) -> None:
        self.reply: Any = None
        self.error: BaseException | None = None
        self._finished = anyio.Event()
        self._scope = anyio.CancelScope()

    async def run(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        with self._scope:
            try:
                self.reply = await fn(*args)
            except Exception as error:
                self.error = error
        self._finished.set()

    @property
    def done(self) -> bool:
        return self._finished.is_set()

    def cancel(self) -> None:
        self._scope.cancel()

    async def result(self) -> Any:
        """Return the reply or raise the error; a call that hangs fails the test."""
        with anyio.fail_after(5):
            await self._finished.wait()
        if self.error is not None:
            raise self.error
        return self.reply


class Calls:
    """Starts calls; each in a context of its own, as a task of a stranger."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    def __call__(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> Call:
        call = Call()
        Context().run(self._group.start_soon, call.run, fn, *args)
        return call

    async def blocked(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> Call:
        """Start a call and return when it, and everything else, waits for something."""
        call = self(fn, *args)
        await anyio.wait_all_tasks_blocked()
        return call


@contextlib.asynccontextmanager
async def calls() -> AsyncIterator[Calls]:
    """Let calls run while the block lasts; what still runs at its end is cancelled."""
    async with anyio.create_task_group() as group:
        yield Calls(group)
        group.cancel_scope.cancel()
