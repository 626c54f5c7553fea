"""The storage of a stream: its log, its snapshots, and the states that they make.

Invariants:

1. What is replayed begins at a snapshot that the present fold and schema made, or at the floor, or at the initial
   state; a snapshot of another fold or schema is set aside, and that is said in an event.
2. Replays run in worker threads, a chunk at a time, on a state of their own.
3. Nothing is built on a log that has lost an event which something else knows of: `stream_checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import anyio
import anyio.to_thread

from dgents.backends.chain import GENESIS, LEFT_AS_IT_IS, Links, broken
from dgents.backends.event_codec import EventCodec, StoredEvent
from dgents.backends.event_log import Chunks, EventLog, LogState, StateSnapshot, check_signature
from dgents.backends.replay import cannot_fold, fingerprint, fold_all
from dgents.backends.seal import Seal
from dgents.backends.stream_checks import begins_chain, check_chain, check_length, check_snapshot, link_at_end
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, Store, Write
from dgents.runtime.errors import StateCorruptionError, StateError, StateNotFoundError
from dgents.runtime.roundtrip import find_difference
from dgents.runtime.turns import MISSING, Form

S = TypeVar("S")


class Point(NamedTuple):
    """A state, and the event that it is after."""

    state: Any
    version: int
    epoch: int
    saved_at: float
    link: bytes | None


class Plan(NamedTuple):
    """What a stream's agent says of it."""

    fold: Callable[[Any, Any], Any]
    initial: Any
    codec: Codec[Any]
    events: EventCodec[Any]
    chain: bool


class StreamBackend(Generic[S]):
    """The log of one stream and what is folded from it.

    Args:
        key: what the stream is called in its log.
        actor: its name, for errors.
        seal: makes and checks the heads of a chain.

    Attributes:
        point: the newest state, once open; the actor takes it over.
        stored: the event of the newest snapshot.
        chained: whether events are linked by their hashes.
        acknowledged: the newest event that this process knows to be durable.
    """

    ownership: Ownership = "exclusive"
    max_history = 0
    deltas = False

    def __init__(self, key: str, actor: str, log: EventLog, plan: Plan, seal: Seal, resources: Resources) -> None:
        self.key = key
        self.actor = actor
        self.inner = log
        self.plan = plan
        self.fingerprint = fingerprint(plan.fold)
        self.chained = plan.chain
        self.floor: StateSnapshot | None = None
        self.latest: StateSnapshot | None = None
        self.point: Point | None = None
        self.acknowledged = 0
        self._seal = seal
        self._resources = resources
        self._initial = plan.codec.encode(plan.initial)
        self._keeping = anyio.Lock()

    @property
    def store(self) -> Store | None:
        """The store that appends go to; None for a log in memory."""
        return self.inner.store

    @property
    def oldest(self) -> int:
        """The number of the event in front of the oldest one that is kept."""
        return self.floor.version if self.floor is not None else 0

    @property
    def stored(self) -> int:
        return max(self.oldest, self.latest.version if self.latest is not None else 0)

    async def open(self) -> Opened:
        """Open the log and fold it, from the newest snapshot on.

        Raises:
            StateLockedError: another process owns the stream.
            StateCorruptionError: an event or the floor can't be trusted; everything was left as it was.
            StateSerializationError: an event, or the state in front of the first one, fits no class or schema.
            StorageError: the log can't be reached or refuses.
        """
        try:
            found = await self.inner.open(self.acknowledged)
            check_length(self.actor, found, self.acknowledged)
            for snapshot in (found.floor, found.latest):
                if snapshot is not None:
                    check_signature(snapshot, self._seal)
            self.floor = found.floor
            self.latest = self._trusted(found.latest, found.version)
            self._check_floor()
            await self._join_chain(found)
            last = found.last
            point = await self._replay(self._start(found.version), found.version, opening=True)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.inner.close()
            if isinstance(error, StateError):
                self._name(error)
            raise
        self.point = point
        self.acknowledged = found.version
        epoch = last.epoch if last is not None else point.epoch
        record = Record(point.version, epoch, point.saved_at, b"", self.plan.codec.version) if point.version else None
        return Opened(record, found.epoch)

    async def read(self) -> Record | None:
        return None

    async def history(self, limit: int | None = None) -> list[Record]:
        return []

    async def requests(self) -> list[Request]:
        """Return the remembered request ids, oldest first."""
        return await self.inner.requests()

    async def committed(self, write: Write) -> bool | None:
        return None

    async def close(self) -> None:
        """Let go of the log, after a snapshot that is being written."""
        with anyio.CancelScope(shield=True):
            async with self._keeping:
                await self.inner.close()

    # Reading

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

    # Snapshots

    def snapshot(self, version: int, epoch: int, saved_at: float, link: bytes | None, state: bytes) -> StateSnapshot:
        """Return a state as it is kept beside the log."""
        return StateSnapshot(version, epoch, saved_at, self.plan.codec.version, self.fingerprint, state, link)

    async def keep(self, snapshot: StateSnapshot) -> None:
        """Keep the newest snapshot; its event is durable."""
        async with self._keeping:
            if self.inner.store is None:
                return
            with anyio.CancelScope(shield=True):
                await self.inner.keep(snapshot)
            self.latest = snapshot

    async def compact(self, before: int, version: int, link: bytes | None) -> int:
        """Remove the events before number ``before``; return how many are kept of those up to ``version``."""
        floor = min(before - 1, version)
        if floor > self.oldest:
            point = await self.state_at(floor)
            codec = self.plan.codec
            kept = self.snapshot(floor, point.epoch, point.saved_at, point.link, codec.encode(point.state))
            head = None
            if self.chained:
                head = self._seal.make(version, link or GENESIS, floor, point.link or GENESIS)
            async with self._keeping:
                with anyio.CancelScope(shield=True):
                    await self.inner.compact(kept, head)
            self.floor = kept
        return version - self.oldest

    # Inside

    def _trusted(self, latest: StateSnapshot | None, version: int) -> StateSnapshot | None:
        """Return the newest snapshot if it is one of this fold and schema and of this log."""
        if latest is None or not self.oldest <= latest.version <= version:
            return None
        reason = None
        if latest.schema != self.plan.codec.version:
            reason = f"schema version {latest.schema}, not {self.plan.codec.version},"
        elif latest.fold != self.fingerprint:
            reason = "another fold"
        else:
            try:
                self.plan.codec.decode(latest.state, latest.schema)
                return latest
            except StateError:
                reason = "another schema"
        self._resources.emit(
            "warning",
            self.actor,
            message=f"the snapshot after event {latest.version} is of {reason} and is not used: "
            f"events {self.oldest + 1} to {version} are folded again",
        )
        return None

    def _check_floor(self) -> None:
        """Say so if the state in front of the oldest event is of another fold: there is nothing else to begin with."""
        floor = self.floor
        if floor is not None and (floor.schema, floor.fold) != (self.plan.codec.version, self.fingerprint):
            self._resources.emit(
                "warning",
                self.actor,
                message=f"events up to {floor.version} were compacted into a state by another fold or schema",
            )

    async def _join_chain(self, found: LogState) -> None:
        """Go on with the chain that the log has, or begin one."""
        self.chained = begins_chain(self.actor, found, self.plan.chain)
        if self.inner.store is None or not self.chained:
            return
        if found.heads is None and not found.version:
            await self.inner.seal(self._seal.make(0, GENESIS, 0, GENESIS))
            return
        try:
            await check_chain(self.actor, found, self._seal, self.inner.chunks)
        except StateCorruptionError:
            # It may tell of an earlier event: a removed one, for example.
            await self.verify(found.version, link_at_end(found) or GENESIS)
            raise

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
        return Point(self.plan.codec.decode(self._initial), 0, 0, 0.0, None)

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
            path, what = difference
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
                form = Form(MISSING, codec.encode(state), stored.version, stored.epoch, stored.saved_at)
            forms.append(form)
        return state

    def _name(self, error: StateError) -> None:
        """Say of which stream an error tells, and where that is."""
        if error.actor is None:
            error.actor = self.actor
            if repr(self.actor) not in error.message:
                error.message = f"{self.actor!r}: {error.message}"
        error.key = error.key or self.key
        if isinstance(error, StateCorruptionError) and error.path is None:
            error.path = self.inner.place
