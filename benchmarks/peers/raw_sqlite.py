"""sqlite3 itself, with nothing round it: WAL, synchronous=FULL, one commit a save or one for many."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from dgents.benchmarks.states import State

_INSERT = "INSERT INTO states (key, version, timestamp, state) VALUES (?, ?, ?, ?)"
_LAST = "SELECT state FROM states WHERE key = ? ORDER BY version DESC LIMIT 1"


class RawSqlite:
    """One row a version, written from the calling thread: no hop to another one, no check, no owner."""

    name = "sqlite3, a commit a save"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._db = sqlite3.connect(directory / "raw.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS states (key TEXT NOT NULL, version INTEGER NOT NULL,"
            " timestamp REAL NOT NULL, state BLOB NOT NULL, PRIMARY KEY (key, version)) WITHOUT ROWID"
        )
        self._version = self._db.execute("SELECT coalesce(max(version), 0) FROM states").fetchone()[0]
        if state is not None:
            self.save_all((state, key) for key in range(keys))

    async def load(self, key: int = 0) -> State:
        (data,) = self._db.execute(_LAST, (str(key),)).fetchone()
        state: State = msgspec.msgpack.decode(data)
        return state

    async def save(self, state: State, key: int = 0) -> None:
        self._db.execute(_INSERT, self._row(state, key))  # outside a transaction: it commits by itself

    async def increment(self, key: int = 0) -> None:
        state = await self.load(key)
        state["visits"] += 1
        await self.save(state, key)

    def save_all(self, states: Iterable[tuple[State, int]]) -> None:
        """Save (state, key) pairs in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(_INSERT, [self._row(state, key) for state, key in states])
        self._db.execute("COMMIT")

    async def close(self) -> None:
        self._db.close()

    def _row(self, state: State, key: int) -> tuple[str, int, float, bytes]:
        self._version += 1
        return str(key), self._version, time.time(), msgspec.msgpack.encode(state)
