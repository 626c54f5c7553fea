"""asyncio.Lock and aiosqlite: connect, insert a version, commit, as one writes it first, but behind a lock.

The connection a call is the pattern of https://aiosqlite.omnilib.dev/en/stable/; without the lock it fails with
"database is locked". WAL; ``synchronous`` is FULL, which is SQLite's default.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiosqlite

from dgents.benchmarks.states import State

_LAST = "SELECT state, version FROM states WHERE key = ? ORDER BY version DESC LIMIT 1"
_INSERT = "INSERT INTO states (key, state, version, timestamp) VALUES (?, ?, ?, ?)"


class AiosqliteLock:
    """A row a version; one lock for all keys, because a database has one writer."""

    name = "asyncio.Lock + aiosqlite"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._path = directory / "states.db"
        self._lock = asyncio.Lock()
        async with aiosqlite.connect(self._path) as db:
            await db.execute("PRAGMA journal_mode = WAL")
            await db.execute(
                "CREATE TABLE IF NOT EXISTS states (key INTEGER, state TEXT, version INTEGER, timestamp REAL,"
                " PRIMARY KEY (key, version))"
            )
            if state is not None:
                await db.executemany(_INSERT, [(key, json.dumps(state), 0, time.time()) for key in range(keys)])
            await db.commit()

    async def load(self, key: int = 0) -> State:
        async with self._lock, aiosqlite.connect(self._path) as db:
            return (await _last(db, key))[0]

    async def save(self, state: State, key: int = 0) -> None:
        async with self._lock, aiosqlite.connect(self._path) as db:
            await _insert(db, key, state, (await _last(db, key))[1] + 1)

    async def increment(self, key: int = 0) -> None:
        async with self._lock, aiosqlite.connect(self._path) as db:
            state, version = await _last(db, key)
            state["visits"] += 1
            await _insert(db, key, state, version + 1)

    async def close(self) -> None:
        pass


async def _last(db: aiosqlite.Connection, key: int) -> tuple[State, int]:
    async with db.execute(_LAST, (key,)) as cursor:
        row: Any = await cursor.fetchone()
    return json.loads(row[0]), row[1]


async def _insert(db: aiosqlite.Connection, key: int, state: State, version: int) -> None:
    await db.execute(_INSERT, (key, json.dumps(state), version, time.time()))
    await db.commit()
