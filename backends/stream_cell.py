"""The actor of a stream: it folds what is appended, and hands out states.

Invariants
  1. ``folded`` is the state after event ``version``; nobody outside has it, unless it can't be changed.
  2. ``value`` or ``data`` is a form of ``folded`` that no fold can change: it is made before an event is appended, so
     there is no event after which the state can't be kept; and what a fold left half-changed is made again from it.
  3. A snapshot is written only of events that are durable, one at a time, beside the turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

import msgspec

from dgents.backends.chain import GENESIS, link_of
from dgents.backends.event_codec import Packed, StoredEvent, to_data
from dgents.backends.event_log import StateSnapshot
from dgents.backends.stream_backend import StreamBackend
from dgents.runtime.actor import Cell
from dgents.runtime.contract import Agent, Opened, Record
from dgents.runtime.errors import (
    DgentError,
    StateError,
    StateSerializationError,
    UnsupportedOperationError,
    VersionConflictError,
)
from dgents.runtime.turns import MISSING, Form

if TYPE_CHECKING:
    from dgents.runtime.commit import Staged
    from dgents.runtime.runtime import BaseRuntime


class StreamCell(Cell):
    """One stream. Everything here runs in the runtime's thread, replays excepted."""

    __slots__ = (
        "events",
        "fold",
        "folded",
        "keeping",
        "link",
        "snapshot_every",
        "stored",
        "stream",
        "waiting",
    )

    def __init__(self, runtime: BaseRuntime, name: str, agent: Agent) -> None:
        super().__init__(runtime, name, agent)
        self.fold = agent.fold  # type: ignore[attr-defined]
        plan = agent.plan()  # type: ignore[attr-defined]
        self.codec, self.events = plan.codec, plan.events
        self.snapshot_every: int = agent.snapshot_every  # type: ignore[attr-defined]
        self.stream: StreamBackend[Any] = None  # type: ignore[assignment]  # there from `start` on
        self.keeping = False  # a snapshot is being written
        self.waiting: tuple[StateSnapshot, Staged | None] | None = None  # the next one

    def clear(self) -> None:
        super().clear()
        self.folded: Any = MISSING
        self.link: bytes | None = None
        self.stored = 0  # the event of the newest snapshot, written or on its way

    async def start(self) -> None:
        """Make the backend, open it, and fold what it holds."""
        await super().start()
        self._snapshot_if_due()

    def adopt(self, opened: Opened) -> None:
        """Take over what the log holds."""
        self.stream = _stream_of(self)
        store = self.backend.store
        self.committer = self.runtime.committer(store) if store is not None else None
        self.clear()
        point = self.stream.point
        assert point is not None
        self.folded, self.version, self.saved_at = point.state, point.version, point.saved_at
        self.link = (point.link or GENESIS) if self.stream.chained else None
        self.epoch = opened.epoch
        self.stored = self.stream.stored
        self.stream.point = None
        self.value, self.data = self.encode(self.folded)

    # Reading

    @property
    def absent(self) -> bool:
        return False

    async def history(self, limit: int | None) -> list[Form]:
        """Return the states after the newest ``limit`` events, oldest first."""
        await self.flush()
        return await self.reading(self.stream.states(limit, self.version))

    async def newest(self) -> tuple[int, bytes | None]:
        """Return the number and the link of the newest event, once it is durable."""
        await self.flush()
        return self.version, self.link

    # Writing

    def pack(self, event: Any) -> Packed:
        """Return an event as it will be appended; raises when it can't be stored."""
        try:
            packed: Packed = self.events.pack(event)
        except StateError as error:
            raise self.named(error) from error.__cause__
        return packed

    def save_event(self, event: Any) -> bytes:
        """Return an event as it is kept outside of the log, in a reminder or a checkpoint."""
        packed = self.pack(event)
        return msgspec.msgpack.encode(StoredEvent(0, 0, 0.0, packed.schema, packed.tag, msgspec.Raw(packed.payload)))

    def load_event(self, body: bytes) -> Any:
        """Return an event that was kept by `save_event`."""
        return self.events.unpack(msgspec.msgpack.decode(body, type=StoredEvent))

    def append(self, packed: Sequence[Packed], if_version: int | None = None) -> int:
        """Append events, all or none, and return the number of the last one.

        An exception of the fold is raised as it is, with a note that names the event.

        Raises:
            StateSerializationError: the fold returned what is no state, or can't be kept.
        """
        if if_version is not None and if_version != self.version:
            raise VersionConflictError(if_version, self.version, actor=self.name, hint="load it again and decide anew")
        state, fold = self.folded, self.fold
        number = self.version
        try:
            for each in packed:
                number += 1
                new = fold(state, each[0])
                if type(new) is not type(state):
                    self._check_result(new, state)
                state = new
            value, data = self.encode(state)
        except BaseException as error:
            self.folded = self.current()
            if packed and not isinstance(error, DgentError):
                tag = packed[number - self.version - 1].tag
                error.add_note(f"event {number} ({tag}) of {self.name!r} was refused by the fold: nothing was appended")
            raise
        if not packed:
            return self.version
        self.folded, self.value, self.data = state, value, data
        self.saved_at = max(time(), self.saved_at)
        for each in packed:
            self._add(each)
        self._snapshot_if_due()
        if self.committer is None and self.observed:
            self.changed()
        return self.version

    def _add(self, packed: Packed) -> None:
        """Give an event its number and its link, and hand it to the store."""
        self.version += 1
        event, tag, schema, head, payload = packed
        saved_at, link = self.saved_at, self.link
        if link is not None:
            self.link = link = link_of(link, self.version, saved_at, schema, head, payload)
        if self.committer is not None:
            self.stage(Record(self.version, self.epoch, saved_at, to_data(head, payload, link), schema))
        else:
            stored = StoredEvent(self.version, self.epoch, saved_at, schema, tag, msgspec.Raw(payload), link)
            self.stream.inner.put(stored, event)

    def _check_result(self, new: Any, state: Any) -> None:
        """Refuse what is no state."""
        if new is None and state is not None:
            raise StateSerializationError(
                f"append to {self.name!r} refused: the fold returned None",
                actor=self.name,
                hint="return the new state (a fold that changes its argument in place must return it too)",
            )
        if hasattr(type(new), "__await__"):
            if isinstance(new, CoroutineType):
                new.close()
            raise TypeError("the fold is async; it must be a plain function of the state and the event")
        self.encode(new)

    def encode(self, state: Any) -> tuple[Any, bytes | None]:
        """Return the forms of what the fold made; raises when it can't be stored."""
        try:
            return super().encode(state)
        except StateSerializationError as error:
            error.message = error.message.replace("the state", "the state that the fold returned", 1)
            raise

    def settle(self, staged: Staged, refusal: DgentError | None) -> None:
        """Take note of what became of a commit."""
        if refusal is None:
            self.stream.acknowledged = staged.last
        super().settle(staged, refusal)

    # Snapshots

    def _snapshot_if_due(self) -> None:
        """Begin to write the state if the last one that was written is ``snapshot_every`` events ago."""
        if self.version - self.stored < self.snapshot_every or self.committer is None:
            return
        self.stored = self.version
        assert self.data is not None, "invariant 2: a state that is stored is encoded"
        snapshot = self.stream.snapshot(self.version, self.epoch, self.saved_at, self.link, self.data)
        self.waiting = (snapshot, self.gate)
        if not self.keeping:
            self.keeping = True
            self.loop.start(self._keep_snapshots)

    async def _keep_snapshots(self) -> None:
        """Write the newest snapshot, as long as there is a newer one."""
        while self.waiting is not None:
            (snapshot, gate), self.waiting = self.waiting, None
            try:
                if gate is not None:
                    await gate.wait()
                await self.stream.keep(snapshot)
            except DgentError as error:
                message = f"no snapshot after event {snapshot.version}: {error}"
                self.runtime.emit("warning", self.name, message=message)
        self.keeping = False

    async def compact(self, before: int) -> int:
        """Remove the events before number ``before``; return how many are kept."""
        await self.flush()
        return await self.reading(self.stream.compact(before, self.version, self.link))

    def watch_with(self, watcher: Any) -> WeakSet[Any]:
        """Wake ``watcher`` for each new durable event, and at the end, until it leaves the set."""
        if self.watchers is None:
            self.watchers = WeakSet()
        self.watchers.add(watcher)
        self.observed = True
        return self.watchers  # type: ignore[no-any-return]

    # What a stream has not

    def put(self, *_: Any, **__: Any) -> NoReturn:
        raise no_such(self.name, "save")

    def apply(self, *_: Any, **__: Any) -> NoReturn:
        raise no_such(self.name, "update")

    def patch(self, *_: Any, **__: Any) -> NoReturn:
        raise no_such(self.name, "patch")

    def delete(self) -> NoReturn:
        raise no_such(self.name, "delete")

    def put_part(self, *_: Any, **__: Any) -> NoReturn:
        raise no_such(self.name, "save of a part")


def no_such(name: str, operation: str) -> UnsupportedOperationError:
    """Return the error for an operation that would change the state past its events."""
    return UnsupportedOperationError(
        f"{operation} of {name!r}: the state of a stream is what its events make of it",
        actor=name,
        hint="append an event: `await ref.append(event)`",
    )


def _stream_of(cell: Cell) -> StreamBackend[Any]:
    """Return the stream inside the wrappers of a backend."""
    backend: Any = cell.backend
    if cell.behind is not None:
        raise UnsupportedOperationError(
            f"{cell.name!r}: events can't be written behind, an append is acknowledged when its log has it",
            actor=cell.name,
            hint="leave the cache out: a stream keeps its state in memory anyway",
        )
    while not isinstance(backend, StreamBackend):
        backend = backend.inner
    return backend
