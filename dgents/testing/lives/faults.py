"""Faults that happen to a real store: what it is asked is kept from it, or its answer is kept from the asker."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from time import monotonic
from typing import Any, Literal
from weakref import WeakKeyDictionary

import anyio
from msgspec.structs import replace

import dgents
from dgents.runtime.commit import Committer
from dgents.runtime.contract import Opened, Record, Request, Write
from dgents.runtime.errors import DgentError, StorageError

Kind = Literal[
    "before",  # a commit fails before it happens,
    "after",  # or after it happened,
    "slow",  # or is late
    "open",  # an opening fails
    "read",  # a read fails
    "away",  # a request of any kind fails
    "damaged",  # a version that is read is no state
]

_LASTS = 1.0  # seconds
_SLOW = 0.002  # seconds
_MOST = 5  # commits in a row to which something happens: who tries again waits longer each time
_NO_STATE = b"\xc1"  # the one byte that MessagePack never uses


class Faults:
    """What the next requests to the stores of one actor will meet.

    A fault is of one ``Kind``, and happens to the next so many requests; all are over a second after the last was
    added, for who asks a store that is away may wait until it is back.
    """

    def __init__(self) -> None:
        self.heal()

    def heal(self) -> None:
        """From now on all goes well."""
        self._commits: deque[Kind] = deque()
        self._others: Counter[Kind] = Counter()
        self._until = 0.0

    def add(self, kind: Kind, times: int) -> None:
        """Let something happen to the next requests; to commits, after what is to happen to them already."""
        self._until = monotonic() + _LASTS
        if kind in ("before", "after", "slow"):
            self._commits.extend([kind] * min(times, _MOST - len(self._commits)))
        else:
            self._others[kind] = times

    def __bool__(self) -> bool:
        """Whether something may happen yet."""
        if monotonic() > self._until:
            self.heal()
        return bool(self._commits or self._others)

    def of_commit(self) -> Kind | None:
        """Return what is to happen to the next commit."""
        if self._takes("away"):
            return "before"
        return self._commits.popleft() if self and self._commits else None

    def of_open(self) -> None:
        """Raise if the next opening is to fail."""
        if self._takes("open") or self._takes("away"):
            raise StorageError("injected: can't be opened", outcome="not_started")

    def of_read(self) -> None:
        """Raise if the next read is to fail."""
        if self._takes("read") or self._takes("away"):
            raise StorageError("injected: can't be read", outcome="not_started")

    def _takes(self, kind: Kind) -> bool:
        if not self or not self._others[kind]:
            return False
        self._others[kind] -= 1
        self._others += Counter()  # drops what is used up
        return True

    def seen(self, record: Record | None) -> Record | None:
        """Return a stored version as it is read."""
        if record is None or record.data is None or not self._takes("damaged"):
            return record
        return replace(record, data=_NO_STATE)


class FaultyStore:
    """A store before which faults happen."""

    def __init__(self, store: Any, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Commit, or not, or without saying so."""
        fault = self._faults.of_commit()
        if fault == "before":
            raise StorageError("injected: failed before it was applied")
        if fault == "slow":
            await anyio.sleep(_SLOW)
        answers: Sequence[DgentError | None] = await self._store.commit(writes)
        if fault == "after":
            raise StorageError("injected: failed after it was applied", outcome="unknown")
        return answers


class FaultyBackend:
    """A backend before which faults happen. What it does not know it passes on."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self.inner = inner
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    async def open(self) -> Opened:
        self._faults.of_open()
        opened: Opened = await self.inner.open()
        return Opened(self._faults.seen(opened.record), opened.epoch)

    async def read(self) -> Record | None:
        self._faults.of_read()
        return self._faults.seen(await self.inner.read())

    async def history(self, limit: int | None = None) -> list[Record]:
        self._faults.of_read()
        records: list[Record] = await self.inner.history(limit)
        return records

    async def requests(self) -> list[Request]:
        self._faults.of_read()
        requests: list[Request] = await self.inner.requests()
        return requests

    async def committed(self, write: Write) -> bool | None:
        self._faults.of_read()
        stored: bool | None = await self.inner.committed(write)
        return stored


class FaultyAgent:
    """An agent whose store has faults."""

    def __init__(self, agent: Any, faults: Faults) -> None:
        self._agent = agent
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._agent, name)

    def backend(self, name: str, resources: Any) -> FaultyBackend:
        return FaultyBackend(self._agent.backend(name, resources), self._faults)


class FaultyRuntime(dgents.Runtime):
    """A runtime to all of whose stores faults happen when they commit."""

    def __init__(self, faults: Faults, **options: Any) -> None:
        super().__init__(**options)
        self._faults = faults
        self._faulty: WeakKeyDictionary[Any, FaultyStore] = WeakKeyDictionary()

    def committer(self, store: Any) -> Committer:
        faulty = self._faulty.get(store)
        if faulty is None:
            faulty = self._faulty[store] = FaultyStore(store, self._faults)
        return super().committer(faulty)
