"""A store in memory that fails when it is told to, to measure how long a repair takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dgents
from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, Write


class FailingStore:
    """What its backends hold; the next commit fails after ``fail`` was set."""

    def __init__(self) -> None:
        self.fail = False
        self.records: dict[str, Record] = {}

    async def commit(self, writes: Sequence[Write]) -> Sequence[dgents.DgentError | None]:
        if self.fail:
            self.fail = False
            raise dgents.StorageError("it was told to fail", retryable=True)
        for write in writes:
            self.records[write.backend.key] = write.records[-1]
        return [None] * len(writes)


@dataclass(frozen=True)
class FailingAgent:
    """A state in a `FailingStore`."""

    store: FailingStore
    schema: Any = None
    migrations: Any = None

    def backend(self, name: str, resources: Resources) -> FailingBackend:
        return FailingBackend(self.store, name)


class FailingBackend:
    """The storage of one actor, of which the newest version is kept."""

    ownership: Ownership = "exclusive"
    max_history = 0
    deltas = False

    def __init__(self, store: FailingStore, key: str) -> None:
        self.store = store
        self.key = key

    async def open(self) -> Opened:
        record = self.store.records.get(self.key)
        return Opened(record, 1 if record is None else record.epoch + 1)

    async def read(self) -> Record | None:
        return self.store.records.get(self.key)

    async def history(self, limit: int | None = None) -> list[Record]:
        record = self.store.records.get(self.key)
        return [record] if record and limit != 0 else []

    async def requests(self) -> list[Request]:
        return []

    async def committed(self, write: Write) -> bool | None:
        return None

    async def close(self) -> None:
        pass
