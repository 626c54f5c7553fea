"""The way in from other threads, and a runtime for synchronous programs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from dgents.runtime.deadlock import called_by_thread, current_turn
from dgents.runtime.loops import context_for
from dgents.runtime.seen import Seen

if TYPE_CHECKING:
    from dgents.runtime.runtime import BaseRuntime

T = TypeVar("T")


class Portal:
    """Calls from other threads into the runtime's event loop."""

    def __init__(self, runtime: BaseRuntime) -> None:
        self._runtime = runtime
        self._local = threading.local()
        self._waiting: set[Future[Any]] = set()

    def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``fn(*args, **kwargs)``, sync or async, in the runtime's thread; wait for its result and return it.

        It runs in a copy of the caller's context: it sees the caller's context variables, and the turn that the caller
        belongs to. What it raises is raised here, whatever it is, and touches nothing else.

        Raises:
            RuntimeError: called from the runtime's own thread, where it would wait for itself.
            ActorStoppedError: the runtime is closed.
            concurrent.futures.CancelledError: the call was cancelled in the event loop.
        """
        if not callable(fn):
            raise TypeError(f"portal.call: {fn!r} is no function; give one, and its arguments: portal.call(ref.load)")
        if self._runtime.is_here():
            raise RuntimeError("portal.call waits, so it can't be used in the runtime's own thread: await the method")
        future: Future[Any] = Future()
        context = context_for(self._runtime.loop.name)
        self._waiting.add(future)
        try:
            self._runtime.enter_from_thread(context, self._run, future, self._seen(), fn, args, kwargs)
            return future.result()
        finally:
            self._waiting.discard(future)
            if (turn := context.get(current_turn)) is not current_turn.get():
                current_turn.set(turn)  # a transaction that the call began or ended is this thread's

    def abandon(self, error: BaseException) -> None:
        """Answer those who still wait: the event loop has ended."""
        for future in list(self._waiting):
            with suppress(InvalidStateError):
                future.set_exception(error)

    def _seen(self) -> Seen:
        """Return what this thread has seen: each of its calls runs in a new task, but they are one sequence."""
        seen: Seen | None = getattr(self._local, "seen", None)
        if seen is None:
            seen = self._local.seen = Seen()
        return seen

    async def _run(self, future: Future[Any], seen: Seen, fn: Any, args: Any, kwargs: Any) -> None:
        try:
            with self._runtime.coop.lend(seen), called_by_thread(self._runtime.loop.current_task()):
                result = fn(*args, **kwargs)
                if hasattr(type(result), "__await__"):
                    result = await result
        except anyio.get_cancelled_exc_class():
            future.set_exception(self._runtime.closed_error() if self._runtime.closed else CancelledError())
            raise
        except BaseException as error:  # an interrupt or an exit too: it is the caller's, the event loop goes on
            future.set_exception(error)
        else:
            future.set_result(result)


class SyncProxy:
    """The same object, whose methods wait instead of being awaited."""

    __slots__ = ("_portal", "_target")

    def __init__(self, portal: Portal, target: Any) -> None:
        object.__setattr__(self, "_portal", portal)
        object.__setattr__(self, "_target", target)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target, name, value)

    def __repr__(self) -> str:
        return f"<sync {self._target!r}>"

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **kwargs: self._wrap(self._portal.call(attribute, *args, **kwargs))

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                yield self._wrap(self._portal.call(self._target.__anext__))
            except StopAsyncIteration:
                return

    def __enter__(self) -> Any:
        self._portal.call(self._target.__aenter__)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._portal.call(self._target.__aexit__, *exc)

    def _wrap(self, result: Any) -> Any:
        """Return refs, lenses, transactions and iterators as proxies, and data as it is."""
        module = type(result).__module__
        waits = any(hasattr(type(result), name) for name in ("__anext__", "__aenter__", "load", "spawn"))
        return SyncProxy(self._portal, result) if waits and module.startswith("dgents.") else result


@contextmanager
def in_thread(make_runtime: Callable[[], BaseRuntime]) -> Iterator[SyncProxy]:
    """Run a runtime in a thread of its own; its methods, and those of its refs, wait instead of being awaited."""
    started: Future[BaseRuntime] = Future()
    ended = threading.Event()

    async def live() -> None:
        async with make_runtime() as runtime:
            started.set_result(runtime)
            await anyio.to_thread.run_sync(ended.wait)

    result: Future[None] = Future()

    def run() -> None:
        try:
            anyio.run(live)
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            result.set_exception(error)
        else:
            result.set_result(None)

    thread = threading.Thread(target=run, name="dgents", daemon=True)
    thread.start()
    try:
        runtime = started.result()
        yield SyncProxy(runtime.portal, runtime)
    finally:
        ended.set()
        thread.join()
    result.result()
