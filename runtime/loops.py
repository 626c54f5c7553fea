"""The few things that the runtime asks of an event loop, for asyncio and for trio.

The hot paths use the loop's own primitives: an asyncio future costs a third of a portable event. Tasks started here
belong to the runtime, not to the caller: no cancel scope of a caller's reaches them, and the runtime waits for each of
them before it closes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator
from functools import partial
from types import coroutine
from typing import Any, Protocol


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

    def awaits(self, task: Any, other: Any) -> bool:
        """Say whether ``task`` waits for ``other`` now, directly or through others, as far as that can be seen."""
        ...

    async def wait_shielded(self, waiter: Waiter) -> Any:
        """Await a waiter to its end, and only then let a cancellation through.

        For the few waits that must not be left half-way: a runtime that closes, a commit in flight.
        """
        ...


class AsyncioLoop:
    """The running asyncio loop."""

    name = "asyncio"

    def __init__(self) -> None:
        self._blank = blank_context(self.name)
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
        task = self._loop.create_task(fn(*args), context=self._blank.copy() if context is None else context)
        self._tasks.add(task)  # asyncio itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    def call_later(self, delay: float, fn: Callable[..., Any], *args: Any) -> Timer:
        return self._loop.call_later(delay, fn, *args, context=self._blank.copy())

    def call_threadsafe(self, fn: Callable[..., Any], *args: Any) -> None:
        self._loop.call_soon_threadsafe(fn, *args)

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def awaits(self, task: Any, other: Any) -> bool:
        # Up from what is awaited, by the callbacks of futures: what they will wake, or complete.
        to_see: list[asyncio.Future[Any]] = [other]
        seen = set()
        while to_see:
            future = to_see.pop()
            seen.add(future)
            for callback, *_ in getattr(future, "_callbacks", None) or ():
                for target in _targets(callback):
                    if target is task:
                        return True
                    if isinstance(target, concurrent.futures.Future):
                        return True  # a thread waits, and it got the task's context from the turn
                    if isinstance(target, asyncio.Future) and target not in seen:
                        to_see.append(target)
        return False

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


def blank_context(loop: str) -> contextvars.Context:
    """Return what the runtime's own tasks and timers begin with: nothing of whoever happens to have made them."""
    return contextvars.Context().run(context_for, loop)


def context_for(loop: str) -> contextvars.Context:
    """Return a copy of the running context, of another thread's, for tasks of this kind of event loop."""
    context = contextvars.copy_context()
    if (sniffio := sys.modules.get("sniffio")) is not None:  # by it anyio knows which loop it is in
        context.run(sniffio.current_async_library_cvar.set, loop)
    return context


def _targets(callback: Any) -> Iterator[Any]:
    """Yield what the callback of a future refers to, as `gather`, `wait`, `shield` and task groups make it."""
    referred = [getattr(callback, "__self__", None), *getattr(callback, "args", ())]
    for cell in getattr(callback, "__closure__", None) or ():
        try:
            referred.append(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            continue
    for target in referred:
        yield target
        yield getattr(target, "_on_completed_fut", None)  # what a task group waits for at its end


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

        self._blank = blank_context(self.name)
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
        self._trio.lowlevel.spawn_system_task(fn, *args, context=self._blank.copy() if context is None else context)

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

    def awaits(self, task: Any, other: Any) -> bool:
        # Up from what is awaited, by the nurseries that their parents wait at the end of.
        while (nursery := other.parent_nursery) is not None and getattr(nursery, "_parent_waiting_in_aexit", True):
            other = nursery.parent_task
            if other is task:
                return True
        return False

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


@coroutine
def in_context(context: contextvars.Context, pending: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await a coroutine in the running task, each step of it in ``context``."""
    step, argument = pending.send, None
    while True:
        try:
            awaited = context.run(step, argument)
        except StopIteration as done:
            return done.value
        try:
            step, argument = pending.send, (yield awaited)
        except BaseException as error:  # for the coroutine to deal with
            step, argument = pending.throw, error


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
