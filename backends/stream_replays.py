"""What the events of a log make: the states after each of them, folded again in worker threads, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import anyio.to_thread

from dgents.backends.chain import GENESIS, LEFT_AS_IT_IS, Links, broken
from dgents.backends.event_codec import EventCodec, StoredEvent
from dgents.backends.event_log import Chunks, EventLog, StateSnapshot
from dgents.backends.replay import cannot_fold, fold_all
from dgents.backends.stream_checks import check_snapshot
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Request
from dgents.runtime.errors import StateCorruptionError, StateError, StateNotFoundError
from dgents.runtime.roundtrip import find_difference
from dgents.runtime.turns import MISSING, Form


class Point(NamedTuple):
    """A state, and the event that it is after."""

    state: Any
    version: int
    epoch: int
    saved_at: float
    link: bytes | None


class Plan(NamedTuple):
    """What a stream's agent says of it; the initial state encoded."""

    fold: Callable[[Any, Any], Any]
    initial: bytes
    codec: Codec[Any]
    events: EventCodec[Any]
    chain: bool


class Replays:
    """The states of one stream, from its kept ones on.

    Attributes:
        inner: its log.
        floor, latest: the kept states that can be begun with.
        chained: whether events are linked by their hashes.
    """

    def __init__(self, actor: str, log: EventLog, plan: Plan) -> None:
        self.actor = actor
        self.inner = log
        self.plan = plan
        self.chained = plan.chain
        self.floor: StateSnapshot | None = None
        self.latest: StateSnapshot | None = None

    @property
    def oldest(self) -> int:
        """The number of the event in front of the oldest one that is kept."""
        return self.floor.version if self.floor is not None else 0

    def chunks(self, after: int, until: int) -> Chunks:
        """Return an iterator over the events from ``after`` + 1 to ``until``.

        Raises:
            StateNotFoundError: some of them were compacted.
            StateCorruptionError: at the first one that can't be read.
        """
        if after < self.oldest:
            raise StateNotFoundError(
                f"events {after + 1} to {self.oldest} of {self.actor!r} were compacted",
                actor=self.actor,
                hint=f"begin at since={self.oldest}",
            )
        return self.inner.chunks(after, until)

    async def state_at(self, version: int, until: float | None = None) -> Point:
        """Return the state after event ``version``; with ``until`` after the last one up to it saved by then.

        Raises:
            StateNotFoundError: that state was compacted.
        """
        return await self._replay(self._start(version, until), version, until=until)

    async def states(self, limit: int | None, version: int) -> list[Form]:
        """Return the states after each of the newest ``limit`` events up to ``version``, oldest first."""
        first = self.oldest if limit is None else max(version - limit, self.oldest)
        forms: list[Form] = []
        point = await self._replay(self._start(first), first)
        state = point.state
        async for chunk in self.chunks(first, version):
            state = await anyio.to_thread.run_sync(self._note_states, state, chunk, forms)
        return forms

    async def verify(self, version: int, link: bytes | None) -> int:
        """Read all events up to ``version``, check them and their links up to ``link``, and return how many they are.

        They are folded, too, up to the newest snapshot.

        Raises:
            StateCorruptionError: ``event`` is the first one that is not what was appended; None: the snapshot is not
                what they make.
        """
        floor = self.floor
        links = Links(self.actor, self.oldest, (floor.link if floor is not None else None) or GENESIS)
        at = self.oldest
        latest = self.latest
        kept = latest.version if latest is not None else 0
        state = self._start(at).state if kept > at else None
        try:
            async for chunk in self.inner.chunks(at, version):
                if self.chained:
                    await anyio.to_thread.run_sync(links.follow, chunk)
                if at < kept:
                    state = await self._fold(state, chunk[: kept - at])
                at = chunk[-1].version
        except StateCorruptionError as error:
            if error.event is None:
                error.event = at + 1
                error.message = f"event {at + 1} of the stream {self.actor!r}, or one soon after, {error.message}"
            raise
        if at != version:
            raise StateCorruptionError(
                f"events {at + 1} to {version} of the stream {self.actor!r} are missing", actor=self.actor, event=at + 1
            )
        if self.chained and links.link != link:
            raise broken(self.actor, version, "it is not the one that was appended last")
        if latest is not None and self.oldest < kept <= version:
            await anyio.to_thread.run_sync(self._compare, latest, state)
        return version - self.oldest

    def _start(self, version: int, until: float | None = None) -> Point:
        """Return the newest kept state that is not after event ``version``, nor saved after ``until``."""
        if version < self.oldest:
            raise self._compacted(f"the state after event {version}")
        for kept in (self.latest, self.floor):
            # A snapshot in front of the floor leads nowhere: the events after it are gone.
            if kept is None or not self.oldest <= kept.version <= version:
                continue
            if until is None or kept.saved_at <= until:
                state = self.plan.codec.decode(kept.state, kept.schema)
                return Point(state, kept.version, kept.epoch, kept.saved_at, kept.link)
        if self.floor is not None:
            raise self._compacted("the state of that time")
        return Point(self.plan.codec.decode(self.plan.initial), 0, 0, 0.0, None)

    def _compacted(self, what: str) -> StateNotFoundError:
        return StateNotFoundError(
            f"{what} of {self.actor!r} is not kept: events up to {self.oldest} were compacted",
            actor=self.actor,
            hint=f"the oldest state that is kept is version {self.oldest}",
        )

    async def _replay(self, point: Point, version: int, until: float | None = None, *, opening: bool = False) -> Point:
        """Return the state after event ``version``, from an earlier one that it may change."""
        state, last = point.state, None
        chunks = self._read_anew(point, version) if opening else self.inner.chunks(point.version, version)
        async for chunk in chunks:
            if until is not None and chunk[-1].saved_at > until:
                chunk = [stored for stored in chunk if stored.saved_at <= until]
                version = chunk[-1].version if chunk else 0
            state = await self._fold(state, chunk)
            last = chunk[-1] if chunk else last
            if last is None or last.version >= version:
                break
        if last is None:
            return point._replace(state=state)
        return Point(state, last.version, last.epoch, last.saved_at, last.link)

    def _read_anew(self, point: Point, version: int) -> Chunks:
        """Return the events after ``point`` of a log that was just opened: checked, and asked for their request ids."""
        after = point.version
        snapshot = self.latest if after > self.oldest else None
        # The event that the snapshot is of is read, too: it tells whether the two belong together.
        chunks = self.inner.chunks(after - 1 if snapshot is not None else after, version)
        links = Links(self.actor, after, point.link or GENESIS) if self.chained else None

        async def step() -> Sequence[StoredEvent] | None:
            nonlocal snapshot
            chunk = await anext(chunks, None)
            if chunk is not None and snapshot is not None:
                check_snapshot(self.actor, snapshot, chunk[0])
                snapshot = None
                chunk = chunk[1:] or await anext(chunks, None)
            if chunk is None:
                return None
            self.inner.remember([Request(it.request, it.version) for it in chunk if it.request is not None])
            if links is not None:
                await anyio.to_thread.run_sync(links.follow, chunk)
            return chunk

        return Chunks(step)

    async def _fold(self, state: Any, chunk: Sequence[StoredEvent]) -> Any:
        return await anyio.to_thread.run_sync(fold_all, self.plan.fold, state, chunk, self.plan.events, self.actor)

    def _compare(self, snapshot: StateSnapshot, state: Any) -> None:
        """Check that a snapshot is what the events before it make."""
        codec = self.plan.codec
        if codec.encode(state) == snapshot.state:
            return
        difference = find_difference(codec.decode(snapshot.state, snapshot.schema), state)
        if difference is not None:
            path, what, _ = difference
            raise StateCorruptionError(
                f"the snapshot after event {snapshot.version} of the stream {self.actor!r} is not what its events "
                f"make: {path}: {what}",
                actor=self.actor,
                hint=f"{LEFT_AS_IT_IS}, or raise the schema's version if the fold calls what has changed",
            )

    def _note_states(self, state: Any, chunk: Sequence[StoredEvent], forms: list[Form]) -> Any:
        fold, events, codec = self.plan.fold, self.plan.events, self.plan.codec
        for stored in chunk:
            event = events.unpack(stored)
            try:
                state = fold(state, event)
            except Exception as error:
                raise cannot_fold(self.actor, stored, error) from error
            if codec.is_immutable(state):
                form = Form(state, None, stored.version, stored.epoch, stored.saved_at)
            else:
                try:
                    data = codec.encode(state)
                except StateError as error:
                    error.message = f"{self.actor!r}: after event {stored.version} {error.message}"
                    raise
                form = Form(MISSING, data, stored.version, stored.epoch, stored.saved_at)
            forms.append(form)
        return state
