"""The handle on a stream: events go in, states and events come out."""

from __future__ import annotations

from _thread import get_ident
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import anyio.to_thread

from dgents.backends.stream_cell import StreamCell, no_such
from dgents.runtime.arguments import check_limit, check_number
from dgents.runtime.errors import StateNotFoundError
from dgents.runtime.phase import Phase
from dgents.runtime.ref import TURNS_BEFORE_REST, Ref
from dgents.runtime.turns import MISSING

if TYPE_CHECKING:
    from dgents.backends.event_log import Chunks
    from dgents.backends.stream_replays import Point

S = TypeVar("S")

_MASK = TURNS_BEFORE_REST - 1


class Events(AsyncIterator[Any]):
    """The events of a stream, in order."""

    def __init__(self, ref: StreamRef[Any], since: int) -> None:
        self._ref = ref
        self._since = since
        self._chunks: Chunks | None = None
        self._read: Iterator[Any] = iter(())

    async def __anext__(self) -> Any:
        for event in self._read:
            return event
        cell = self._ref._stream()
        if self._chunks is None:
            newest, _ = await cell.call(cell.newest, alone=True)
            self._chunks = cell.stream.chunks(self._since or cell.stream.oldest, newest)
        chunk = await anext(self._chunks)
        self._read = iter(await anyio.to_thread.run_sync(cell.events.unpack_all, chunk))
        return next(self._read)


class StreamRef(Ref[S]):
    """A `Ref` on a stream. The version of its state is the number of its newest event.

    ``history``, ``snapshot`` and ``watch`` are those of every `Ref`: ``history`` gives the states after each event,
    oldest first, folded anew from the log.
    """

    __slots__ = ()

    # Appending

    async def append(self, event: Any, *, if_version: int | None = None, request_id: str | None = None) -> int:
        """Append an event and return its number, once it is durable.

        Ordering: concurrent appends are numbered in the order in which they are applied, without gaps.

        Args:
            if_version: append only if this many events are there.
            request_id: the same id again is answered with the first number, and nothing is appended.

        Raises:
            Exception: whatever the fold raises, with a note that names the event; nothing was appended, and the
                state is as it was.
            VersionConflictError: the version is not ``if_version``.
            StateSerializationError: the event is of no declared class, or holds what can't be stored.
            StateTooLargeError: the event is larger than ``max_event_bytes``, or the state than its budget.
        """
        cell = self._stream()
        packed = (cell.pack(event),)
        coop = cell.coop
        coop.turn = turn = coop.turn + 1
        if not turn & _MASK:
            await cell.loop.checkpoint()
        if not cell.free or request_id is not None or get_ident() != cell.thread:
            return await self._ask(cell, request_id, cell.append, packed, if_version)  # type: ignore[no-any-return]
        cell.turns += 1
        cell.touched = turn
        try:
            version = cell.append(packed, if_version)
        except Exception:
            if cell.gate is not None:  # the error may tell of an event that is not durable yet
                await cell.gate.wait()
            raise
        if cell.gate is not None and (failure := await cell.gate.join()) is not None:
            raise failure.again()
        return version

    append_event = append

    async def append_all(
        self, events: Iterable[Any], *, if_version: int | None = None, request_id: str | None = None
    ) -> int:
        """Append events, all of them or none, and return the number of the last one, once all are durable.

        Raises as `append`.
        """
        cell = self._stream()
        if isinstance(events, str | bytes | Mapping) or not isinstance(events, Iterable):
            raise TypeError(f"append_all to {self.name!r}: give a list of events; append(event) takes a single one")
        packed: list[Any] = []
        for event in events:
            packed.append(cell.pack(event))
            if not len(packed) & 1023:
                await cell.loop.checkpoint()
        version: int = await self._ask(cell, request_id, cell.append, packed, if_version)
        return version

    # Reading

    async def load(self, *, default: Any = MISSING, version: int | None = None, at: datetime | None = None) -> S:
        """Return the caller's own copy of the state.

        Args:
            default: accepted as by every `Ref`; a stream always has a state.
            version: the state after this many events.
            at: the state as of this time (with a timezone): after the last event that was appended by then.

        Raises:
            StateNotFoundError: there are not so many events, or that state was compacted.
            ValueError: ``at`` has no timezone, or both are given.
        """
        if version is None and at is None:
            return await super().load()
        if version is not None:
            check_number(f"load of {self.name!r}", "version", version)
        if at is not None:
            if not isinstance(at, datetime):
                raise TypeError(f"load of {self.name!r}: at is {at!r}; give a datetime with a time zone")
            if version is not None:
                raise ValueError("load: give version= or at=, not both")
            if at.tzinfo is None:
                raise ValueError(f"at={at!r} has no timezone: give datetime.now(UTC) or the like")
        try:
            point = await self._state_at(version, at)
        except StateNotFoundError:
            if default is MISSING:
                raise
            return default  # type: ignore[no-any-return]
        return point.state  # type: ignore[no-any-return]

    async def _state_at(self, version: int | None, at: datetime | None) -> Point:
        cell = self._stream()
        newest, _ = await cell.call(cell.newest, alone=True)
        if version is not None and not 0 <= version <= newest:
            raise StateNotFoundError(
                f"{self.name!r} has no version {version}: its newest event is {newest}",
                actor=self.name,
                hint="load() gives the newest state",
            )
        wanted = newest if version is None else version
        return await cell.stream.state_at(wanted, at.timestamp() if at is not None else None)

    async def history(self, limit: int | None = None) -> list[S]:
        """Return the states after each event, oldest first; the newest ``limit`` of them.

        Cost: folds the log anew, from the newest snapshot before them; other messages are not kept waiting.
        """
        check_limit(f"history of {self.name!r}", limit)
        cell = self._stream()
        newest, _ = await cell.call(cell.newest, alone=True)
        return [form.decode(cell.codec) for form in await cell.stream.states(limit, newest)]

    def events(self, since: int = 0) -> AsyncIterator[Any]:
        """Iterate over the events after number ``since``, in order, up to the newest one when the iteration begins.

        Memory: some thousands of events, however long the stream. 0 begins with the oldest one that is kept.

        Raises:
            ValueError: ``since`` is negative.
            StateNotFoundError: events after ``since`` were compacted.
        """
        check_number(f"events of {self.name!r}", "since", since)
        if since < 0:
            raise ValueError(f"since is {since}; give the number of an event, or 0")
        return Events(self, since)

    async def verify(self) -> int:
        """Check every event that is kept, and with ``chain=True`` its link to all before it; return how many they are.

        Raises:
            StateCorruptionError: ``event`` is the number of the first one that is not what was appended: changed,
                removed, reordered, or cut off at the end.
        """
        cell = self._stream()
        return await cell.stream.verify(*await cell.call(cell.newest, alone=True))

    async def compact(self, *, before: int) -> int:
        """Remove the events before number ``before``; the state in front of it is kept. Return how many events remain.

        Earlier versions, and times, can't be loaded any more; numbers go on as they were.
        """
        if before < 1:
            raise ValueError(f"before is {before}; give the number of the oldest event to keep")
        cell = self._stream()
        kept: int = await cell.call(cell.compact, before, alone=True)
        return kept

    # What a stream has not

    async def save(self, state: Any, *, if_version: int | None = None, request_id: str | None = None) -> int:
        """Raise `UnsupportedOperationError`: append an event instead."""
        raise no_such(self.name, "save")

    async def update(
        self, fn: Callable[..., Any], *args: Any, default: Any = MISSING, request_id: str | None = None
    ) -> S:
        """Raise `UnsupportedOperationError`: append an event instead."""
        raise no_such(self.name, "update")

    async def patch(self, changes: Mapping[str, Any], *, request_id: str | None = None) -> int:
        """Raise `UnsupportedOperationError`: append an event instead."""
        raise no_such(self.name, "patch")

    async def delete(self, *, request_id: str | None = None) -> None:
        """Raise `UnsupportedOperationError`: append an event instead."""
        raise no_such(self.name, "delete")

    def at(self, path: str) -> NoReturn:
        """Raise `UnsupportedOperationError`: append an event instead."""
        raise no_such(self.name, "at")

    def transaction(self) -> NoReturn:
        """Raise `UnsupportedOperationError`: append with ``if_version`` instead."""
        raise no_such(self.name, "transaction")

    def for_update(self, *, lease: float = 30.0) -> NoReturn:
        """Raise `UnsupportedOperationError`: append with ``if_version`` instead."""
        raise no_such(self.name, "for_update")

    def _stream(self) -> StreamCell:
        cell = self._cell
        if cell.phase is Phase.STOPPED:
            cell = self._live()
        return cell  # type: ignore[return-value]  # the agent says which cell it is made of
