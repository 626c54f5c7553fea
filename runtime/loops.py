"""The few things that the runtime asks of an event loop, for asyncio and for trio.

The hot paths use the loop's own primitives: an asyncio future costs a third of a portable event. Tasks started here
belong to the runtime, not to the caller: no cancel scope of a caller's reaches them, and the runtime waits for each of
them before it closes.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Protocol

# What runs in the runtime's own tasks starts from an empty context, not from that of whoever happened to wake it.
_BLANK = contextvars.Context()


class Waiter(Protocol):
    """A one-shot result that one task awaits; it is set by `give`. A task that is cancelled abandons its waiter."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def __await__(self) -> Generator[Any, None, Any]: ...


def give(waiter: Waiter, result: Any) -> None:
    """Set the result of a waiter, unless it has one, or nobody awaits it any more."""
    if not waiter.done():
        waiter.set_result(result)


class Timer(Protocol):
    """A call that will happen later, unless cancelled."""

    def cancel(self) -> None: ...


class Loop(Protocol):
    """What the runtime needs of an event loop. Times are monotonic seconds of the loop's own clock."""

    name: str
    waiter: Callable[[], Waiter]
    current_task: Callable[[], Any]
    time: Callable[[], float]

    def start(
        self,
        fn: Callable[..., Coroutine[Any, Any, None]],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> None: ...
    def call_later(self, delay: float, fn: Callable[..., Any], *args: Any) -> Timer: ...
    def call_threadsafe(self, fn: Callable[..., Any], *args: Any) -> None: ...
    async def checkpoint(self) -> None: ...
    async def sleep(self, seconds: float) -> None: ...

    async def wait_shielded(self, waiter: Waiter) -> Any:
        """Await a waiter to its end, and only then let a cancellation through.

        For the few waits that must not be left half-way: a runtime that closes, a commit in flight.
        """
        ...


class AsyncioLoop:
    """The running asyncio loop."""

    name = "asyncio"

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiter: Callable[[], Waiter] = self._loop.create_future
        self.time = self._loop.time
        self.current_task = _current_task_of(self._loop)

    def start(
        self,
        fn: Callable[..., Coroutine[Any, Any, None]],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> None:
        task = self._loop.create_task(fn(*args), context=_BLANK.copy() if context is None else context)
        self._tasks.add(task)  # asyncio itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    def call_later(self, delay: float, fn: Callable[..., Any], *args: Any) -> Timer:
        return self._loop.call_later(delay, fn, *args)

    def call_threadsafe(self, fn: Callable[..., Any], *args: Any) -> None:
        self._loop.call_soon_threadsafe(fn, *args)

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def wait_shielded(self, waiter: Any) -> Any:
        cancelled: asyncio.CancelledError | None = None
        while not waiter.done():
            try:
                await asyncio.shield(waiter)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return waiter.result()


def _current_task_of(loop: asyncio.AbstractEventLoop) -> Callable[[], Any]:
    """Return `asyncio.current_task` for one loop: before 3.12 it is not in C, and half of a turn's time."""
    if sys.version_info >= (3, 12):
        return partial(asyncio.current_task, loop)
    else:  # noqa: RET505  (so that mypy follows the version)
        return partial(asyncio.tasks._current_tasks.get, loop)  # type: ignore[attr-defined]


class TrioLoop:
    """The running trio loop. Tasks are system tasks: they live until the runtime has waited for them."""

    name = "trio"

    def __init__(self) -> None:
        import trio  # an optional dependency: only a program that runs under trio comes here

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self.time = trio.current_time
        self.current_task: Callable[[], Any] = trio.lowlevel.current_task
        self.waiter: Callable[[], Waiter] = partial(_TrioWaiter, trio)

    def start(
        self,
        fn: Callable[..., Coroutine[Any, Any, None]],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> None:
        self._trio.lowlevel.spawn_system_task(fn, *args, context=_BLANK.copy() if context is None else context)

    def call_later(self, delay: float, fn: Callable[..., Any], *args: Any) -> Timer:
        scope = self._trio.CancelScope()

        async def fire() -> None:
            with scope:
                await self._trio.sleep(delay)
                fn(*args)

        self.start(fire)
        return scope

    def call_threadsafe(self, fn: Callable[..., Any], *args: Any) -> None:
        self._token.run_sync_soon(fn, *args)

    async def checkpoint(self) -> None:
        await self._trio.lowlevel.checkpoint()

    async def sleep(self, seconds: float) -> None:
        await self._trio.sleep(seconds)

    async def wait_shielded(self, waiter: Any) -> Any:
        with self._trio.CancelScope(shield=True):
            return await waiter


class _TrioWaiter:
    """An asyncio future's few lines, for trio."""

    __slots__ = ("_done", "_result", "_task", "_trio")

    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self._task: Any = None
        self._result: Any = None
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Any) -> None:
        self._done = True
        self._result = result
        if self._task is not None:
            self._trio.lowlevel.reschedule(self._task)
            self._task = None

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._done:
            self._task = self._trio.lowlevel.current_task()

            def abort(_: Any) -> Any:
                self._task = None
                self._done = True
                return self._trio.lowlevel.Abort.SUCCEEDED

            yield from self._trio.lowlevel.wait_task_rescheduled(abort).__await__()
        return self._result


def running_loop() -> Loop:
    """Return the event loop that runs here.

    Raises:
        RuntimeError: there is none.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return TrioLoop()
    try:
        return AsyncioLoop()
    except RuntimeError:
        raise RuntimeError(
            "no event loop is running: use `async with dgents.Runtime()` inside asyncio or trio, "
            "or `with dgents.open_sync()` in a synchronous program"
        ) from None
