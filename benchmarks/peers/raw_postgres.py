"""The least that a durable state on PostgreSQL can cost: psycopg, a commit a save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import psycopg

from dgents.benchmarks.states import State

_TABLE = "CREATE TABLE IF NOT EXISTS raw (key TEXT PRIMARY KEY, version BIGINT NOT NULL, state BYTEA NOT NULL)"
_SAVE = (
    "INSERT INTO raw VALUES (%s, 1, %s)"
    " ON CONFLICT (key) DO UPDATE SET version = raw.version + 1, state = excluded.state"
)


class RawPostgres:
    """One connection to the server at ``url``: no history, no check, no owner."""

    name = "psycopg, a commit a save"

    def __init__(self, url: str) -> None:
        self._url = url

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._db = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        self._names = [f"{directory.name}/{key}" for key in range(keys)]
        await self._db.execute(_TABLE)
        if state is not None:
            for key in range(keys):
                await self.save(state, key)

    async def load(self, key: int = 0) -> State:
        cursor = await self._db.execute("SELECT state FROM raw WHERE key = %s", (self._names[key],), binary=True)
        (data,) = await cursor.fetchone() or (b"",)
        state: State = msgspec.msgpack.decode(data)
        return state

    async def save(self, state: State, key: int = 0) -> None:
        # Outside a transaction block: it commits by itself, and waits for the disk.
        await self._db.execute(_SAVE, (self._names[key], msgspec.msgpack.encode(state)))

    async def increment(self, key: int = 0) -> None:
        state = await self.load(key)
        state["visits"] += 1
        await self.save(state, key)

    async def close(self) -> None:
        await self._db.close()
