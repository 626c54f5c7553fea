"""A store in memory that does as it is told: holds commits back, fails before or after applying, refuses, lies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StorageError, VersionConflictError

Fault = Callable[["FakeStore", Sequence[Write]], Sequence[DgentError | None]]


def fails_before(store: FakeStore, writes: Sequence[Write]) -> Sequence[DgentError | None]:
    """Nothing is stored, and the commit says so."""
    raise StorageError("injected: failed before applying")


def fails_after(store: FakeStore, writes: Sequence[Write]) -> Sequence[DgentError | None]:
    """Everything is stored, but the reply is lost."""
    store.apply(writes)
    raise StorageError("injected: failed after applying", outcome="unknown")


def fails_badly(store: FakeStore, writes: Sequence[Write]) -> Sequence[DgentError | None]:
    """An error that is none of ours."""
    raise ZeroDivisionError("injected")


def refuses(store: FakeStore, writes: Sequence[Write]) -> Sequence[DgentError | None]:
    """Another owner is there."""
    return [OwnershipLostError("injected: a newer owner is there", actor=write.actor) for write in writes]


def lies(store: FakeStore, writes: Sequence[Write]) -> Sequence[DgentError | None]:
    """Nothing is stored, but the commit says that it is."""
    return [None for _ in writes]


class FakeStore:
    """The medium and the commits on it.

    ``faults`` is what the next commits do, None meaning that all goes well; ``open_faults`` and ``read_faults`` are
    how many of the next openings and reads fail. ``most_writes`` is how many writes a commit is given at most.
    """

    most_writes: int | None = None

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {}
        self.epochs: dict[str, int] = {}
        self.remembered: dict[str, list[Request]] = {}
        self.faults: deque[Fault | None] = deque()
        self.open_faults = 0
        self.read_faults = 0
        self.batches: list[dict[str, list[int]]] = []  # of each commit: the versions, by actor
        self.opened: list[str] = []
        self._held: anyio.Event | None = None
        self._openings_held: anyio.Event | None = None

    def hold(self) -> None:
        """Hold the commits back from now on."""
        self._held = anyio.Event()

    def let_go(self) -> None:
        """Let the commits go on."""
        if self._held is not None:
            self._held.set()
            self._held = None

    def hold_openings(self) -> None:
        """Hold back whoever opens a state from now on."""
        self._openings_held = anyio.Event()

    def let_openings_go(self) -> None:
        """Let the openings go on."""
        assert self._openings_held is not None
        self._openings_held.set()
        self._openings_held = None

    async def opening(self) -> None:
        """Wait as long as openings are held back."""
        if self._openings_held is not None:
            await self._openings_held.wait()

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        self.batches.append({write.actor: [record.version for record in write.records] for write in writes})
        while self._held is not None:
            await self._held.wait()
        fault = self.faults.popleft() if self.faults else None
        return self.apply(writes) if fault is None else fault(self, writes)

    def apply(self, writes: Sequence[Write]) -> list[DgentError | None]:
        return [self._apply(write) for write in writes]

    def _apply(self, write: Write) -> DgentError | None:
        key, first = write.backend.key, write.records[0]
        known = self.records.setdefault(key, [])
        stored = known[-1].version if known else 0
        if write.backend.ownership == "exclusive" and first.epoch != self.epochs[key]:
            return OwnershipLostError(f"epoch {first.epoch} is over", actor=write.actor)
        if stored != write.base:
            return VersionConflictError(write.base, stored, actor=write.actor)
        assert [one.version for one in write.records] == list(range(first.version, first.version + len(write.records)))
        assert first.version == stored + 1 or len(write.records) >= write.backend.max_history, "as many as are kept"
        known += write.records
        del known[: -write.backend.max_history]
        self.remembered.setdefault(key, []).extend(write.requests)
        return None

    def versions(self, key: str) -> list[int]:
        return [record.version for record in self.records.get(key, [])]


@dataclass(frozen=True, eq=False)
class FakeAgent:
    """A state in a `FakeStore`."""

    medium: FakeStore
    ownership: Ownership = "exclusive"
    schema: Any = None
    migrations: Any = None

    def backend(self, name: str, resources: Resources) -> FakeBackend:
        return FakeBackend(self.medium, name, self.ownership)


class FakeBackend:
    """The storage of one actor in a `FakeStore`."""

    max_history = 100
    deltas = False

    def __init__(self, store: FakeStore, key: str, ownership: Ownership) -> None:
        self.store = store
        self.key = key
        self.ownership: Ownership = ownership

    async def open(self) -> Opened:
        store = self.store
        store.opened.append(self.key)
        await store.opening()
        if store.open_faults:
            store.open_faults -= 1
            raise StorageError("injected: can't be opened", outcome="not_started")
        if self.ownership == "exclusive":
            store.epochs[self.key] = store.epochs.get(self.key, 0) + 1
        return Opened(await self.read(), store.epochs.get(self.key, 1))

    async def read(self) -> Record | None:
        self._fail_to_read()
        known = self.store.records.get(self.key)
        return known[-1] if known else None

    async def history(self, limit: int | None = None) -> list[Record]:
        self._fail_to_read()
        known = self.store.records.get(self.key, [])
        return list(known) if limit is None else known[max(len(known) - limit, 0) :]

    async def requests(self) -> list[Request]:
        self._fail_to_read()
        return self.store.remembered.get(self.key, [])[-1000:]

    async def committed(self, write: Write) -> bool | None:
        stored = self.store.records.get(self.key, [])
        return write.records[-1] in stored

    async def close(self) -> None:
        pass

    def _fail_to_read(self) -> None:
        if self.store.read_faults:
            self.store.read_faults -= 1
            raise StorageError("injected: can't be read")
