"""The storage of a stream: its log, its snapshots, and the states that they make.

Invariants:

1. What is replayed begins at a snapshot that the present fold and schema made, or at the floor, or at the initial
   state; a snapshot of another fold or schema is set aside, and that is said in an event.
2. Replays run in worker threads, a chunk at a time, on a state of their own.
3. Nothing is built on a log that has lost an event which something else knows of: `stream_checks`.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import anyio
import anyio.to_thread

from dgents.backends.chain import GENESIS
from dgents.backends.event_log import EventLog, LogState, StateSnapshot, check_signature
from dgents.backends.replay import fingerprint
from dgents.backends.seal import Seal
from dgents.backends.stream_checks import begins_chain, check_chain, check_length, link_at_end
from dgents.backends.stream_replays import Plan, Point, Replays
from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, Store, Write
from dgents.runtime.errors import StateCorruptionError, StateError

S = TypeVar("S")


class StreamBackend(Replays, Generic[S]):
    """The log of one stream and what is folded from it.

    Args:
        key: what the stream is called in its log.
        actor: its name, for errors.
        seal: makes and checks the heads of a chain.

    Attributes:
        point: the newest state, once open; the actor takes it over.
        stored: the event of the newest snapshot.
        acknowledged: the newest event that this process knows to be durable.
    """

    ownership: Ownership = "exclusive"
    max_history = 0
    deltas = False

    def __init__(self, key: str, actor: str, log: EventLog, plan: Plan, seal: Seal, resources: Resources) -> None:
        super().__init__(actor, log, plan)
        self.key = key
        self.fingerprint = fingerprint(plan.fold)
        self.point: Point | None = None
        self.acknowledged = 0
        self._seal = seal
        self._resources = resources
        self._keeping = anyio.Lock()

    @property
    def store(self) -> Store | None:
        """The store that appends go to; None for a log in memory."""
        return self.inner.store

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

    def _name(self, error: StateError) -> None:
        """Say of which stream an error tells, and where that is."""
        if error.actor is None:
            error.actor = self.actor
            if repr(self.actor) not in error.message:
                error.message = f"{self.actor!r}: {error.message}"
        error.key = error.key or self.key
        if isinstance(error, StateCorruptionError) and error.path is None:
            error.path = self.inner.place
