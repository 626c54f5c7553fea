"""Projections: a second state that follows a stream, each event applied once.

The position is where it can't disagree with the state: a batch of events is one turn of the target, under a request id
that names the stream and the last event of the batch. The target's store keeps request ids in the same atomic step as
the state, so after any crash the newest id that it remembers is the position.

Invariants
  1. A batch begins with the event after the position, and is applied whole or not at all.
  2. Only durable events are applied: a projection is never ahead of its stream.
  3. One projection of a stream into a target at a time; the target may have other writers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import anyio.to_thread

from dgents.backends.stream_cell import StreamCell
from dgents.runtime.errors import (
    ActorStoppedError,
    NameTakenError,
    StateCorruptionError,
    StorageError,
    UnsupportedOperationError,
)
from dgents.runtime.ref import Ref
from dgents.runtime.turns import MISSING

if TYPE_CHECKING:
    from dgents.runtime.loops import Waiter

S = TypeVar("S")

REQUESTS_KEPT = 1000  # by every store, for each state
_BATCH = 256  # events in one turn of the target

_running: WeakKeyDictionary[Any, dict[tuple[str, str], Projection[Any]]] = WeakKeyDictionary()


class Projection(Generic[S]):
    """``fn(state, event)`` applied to a target for each event of a stream, once; awaiting it waits until it caught up.

    Attributes:
        position: the number of the last event that was applied.
        error: what stopped it, if something did.
    """

    def __init__(self, source: Ref[Any], fn: Callable[[S, Any], S], into: Ref[S], default: Any = MISSING) -> None:
        for ref in (source, into):
            if not isinstance(ref, Ref):
                raise TypeError(f"project: {ref!r} is no ref; give what spawn or rt.get(name) returns")
        if not callable(fn):
            raise TypeError(f"project: {fn!r} is no function; give one of the target's state and an event")
        cell = source._live()
        if not isinstance(cell, StreamCell):
            raise UnsupportedOperationError(
                f"project: {source.name!r} is no stream", actor=source.name, hint="spawn it as a StreamAgent"
            )
        if isinstance(into._live(), StreamCell):
            raise UnsupportedOperationError(
                f"project: {into.name!r} is a stream, which can't be updated",
                actor=into.name,
                hint="give another agent",
            )
        cell.runtime.check_thread()
        self.position = 0
        self.error: BaseException | None = None
        self._source, self._into, self._fn, self._default = source, into, fn, default
        self._cell = cell
        self._stopped = False
        self._began = False  # the position is known
        self._changed: Waiter | None = None
        self._waiting: list[tuple[float, Waiter]] = []
        running = _running.setdefault(cell.runtime, {})
        self._name = (source.name, into.name)
        if self._name in running:
            raise NameTakenError(
                f"{source.name!r} is projected into {into.name!r} already", hint="stop that projection first"
            )
        running[self._name] = self
        cell.loop.start(self._run)

    def __await__(self) -> Generator[Any, None, Projection[S]]:
        return self.caught_up().__await__()

    async def caught_up(self) -> Projection[S]:
        """Return when every event that is durable now was applied.

        Raises:
            Exception: what ``fn`` raised; the events before that one are applied, and nothing after it.
            StateCorruptionError: the target has events that the stream has not: it has lost them.
            ActorStoppedError: the stream, the target or the projection was stopped.
        """
        newest, _ = await self._cell.call(self._cell.newest, alone=True)
        while not (self._ended or self._has_applied(newest)):
            waiter = self._cell.loop.waiter()
            self._waiting.append((newest, waiter))
            await waiter
        if self.error is not None or self.position < newest:
            raise self.error or ActorStoppedError(
                f"the projection of {self._source.name!r} into {self._into.name!r} was stopped",
                actor=self._into.name,
                hint="call rt.project again: it goes on where it stopped",
            )
        return self

    async def stop(self) -> None:
        """Stop after the batch that is being applied. `rt.project` goes on from there."""
        self._stopped = True
        self.wake()
        while not self._ended:
            waiter = self._cell.loop.waiter()
            self._waiting.append((inf, waiter))
            await waiter

    @property
    def _ended(self) -> bool:
        return _running.get(self._cell.runtime, {}).get(self._name) is not self

    def _has_applied(self, number: float) -> bool:
        return self._began and self.position >= number

    def wake(self) -> None:
        """Take note that the stream has a new durable event, or has stopped."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def _run(self) -> None:
        cell = self._cell
        watchers = cell.watch_with(self)
        try:
            self.position = await self._remembered()
            await self._check_position()
            self._began = True
            self._answer()
            while not self._stopped:
                self._changed = cell.loop.waiter()
                newest, _ = await cell.call(cell.newest, alone=True)
                if self.position < newest:
                    await self._apply_up_to(newest)
                else:
                    await self._changed
        except ActorStoppedError as error:
            self.error = error
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # its function's: the event loop goes on
            self.error = error
            message = f"the projection of {self._source.name!r} into {self._into.name!r} has stopped"
            cell.runtime.emit("warning", self._into.name, message=message, error=error)
        finally:
            watchers.discard(self)
            del _running[cell.runtime][self._name]
            self._answer()

    async def _apply_up_to(self, newest: int) -> None:
        async for chunk in self._cell.stream.chunks(self.position, newest):
            events = await anyio.to_thread.run_sync(self._cell.events.unpack_all, chunk)
            for start in range(0, len(events), _BATCH):
                if self._stopped:
                    return
                await self._apply(events[start : start + _BATCH])

    async def _apply(self, events: Sequence[Any]) -> None:
        """Apply a batch in one turn; if an event of it is refused, those before it."""
        try:
            await self._update(events)
        except (StorageError, ActorStoppedError):
            raise
        except Exception as error:
            if len(events) == 1:
                error.add_note(f"event {self.position + 1} of {self._source.name!r} could not be projected")
                raise
            for event in events:
                await self._apply([event])

    async def _update(self, events: Sequence[Any]) -> None:
        fn = self._fn

        def apply(state: S) -> S:
            for event in events:
                state = fn(state, event)
            return state

        position = self.position + len(events)
        cell = self._into._live()
        # As `Ref.update` does, but the state need not be kept a second time as the request's answer.
        turn = cell.apply_queued, (apply, (), self._default), False
        await cell.call(cell.once, f"{self._prefix}{position}", *turn)
        self.position = position
        self._answer()

    @property
    def _prefix(self) -> str:
        return f"dgents.project/{self._source.name}/"

    async def _remembered(self) -> int:
        """Return the number of the last event that the target has.

        Raises:
            UnsupportedOperationError: other request ids have pushed out the projection's: it is not known any more.
        """
        cell = self._into._live()
        requests = await cell.call(cell.remembered, alone=True)
        known = [int(id.removeprefix(self._prefix)) for id in requests if id.startswith(self._prefix)]
        if not known and len(requests) >= REQUESTS_KEPT:
            raise UnsupportedOperationError(
                f"how far {self._source.name!r} was projected into {self._into.name!r} is not known any more: "
                f"{len(requests)} other request ids came since",
                actor=self._into.name,
                hint="project into a state of its own",
            )
        return max(known, default=0)

    async def _check_position(self) -> None:
        """Check that the stream has the event that the target has.

        Raises:
            StateCorruptionError: it has not: what comes next would be taken for what was applied.
        """
        newest, _ = await self._cell.call(self._cell.newest, alone=True)
        if self.position > newest:
            raise StateCorruptionError(
                f"the stream {self._source.name!r} has lost events: it ends at event {newest}, and event "
                f"{self.position} was projected into {self._into.name!r}",
                actor=self._source.name,
                event=newest + 1,
                hint="restore a copy of the log, or project it into a new target",
            )

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for number, waiter in waiting:
            if waiter.done():
                continue
            if self._ended or self._has_applied(number):
                waiter.set_result(None)
            else:
                self._waiting.append((number, waiter))
