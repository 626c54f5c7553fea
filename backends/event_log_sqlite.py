"""The events of one stream in a table of a SQLite database, one row an event.

The table is one of states, in which no version is ever dropped: claim, fencing, request ids and checksums are those of
`sqlite_transactions`. Beside it, ``<table>_snapshots`` has at most three rows a stream: the newest state (``latest``),
the state in front of the oldest event that is kept (``floor``), and the head of its chain (``head``).

Invariant: the head of a chain is stored in the transaction of its event; a floor in the one that removes the events.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any
from zlib import crc32

import msgspec

from dgents.backends.chain import GENESIS
from dgents.backends.event_codec import StoredEvent, from_data, link_in
from dgents.backends.event_log import (
    CHUNK,
    Chunks,
    LogState,
    StateSnapshot,
    check_numbers,
    events_at_a_time,
    pack_snapshot,
    unpack_snapshot,
)
from dgents.backends.seal import Seal
from dgents.backends.sqlite import SqliteBackend
from dgents.backends.sqlite_store import SqliteStore
from dgents.backends.sqlite_tables import COLUMNS, StatesTable, corrupt, to_record
from dgents.runtime.contract import Ownership, Record, Request, Resources, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StorageError

_UNBOUNDED = 2**62  # versions kept: all of them


class EventsTable(StatesTable):
    """The statements for the events in one table."""

    kind = "events"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        rows, heads, snapshots = f'"{name}"', f'"{name}_heads"', f'"{name}_snapshots"'
        self.objects = (*self.objects, f"{name}_snapshots")
        self.create = (
            *self.create,
            f"""CREATE TABLE {snapshots} (
                key TEXT NOT NULL, kind TEXT NOT NULL, version INTEGER NOT NULL, checksum INTEGER NOT NULL,
                content BLOB NOT NULL, PRIMARY KEY (key, kind)
            )""",
        )
        self.after = f"""SELECT {", ".join(COLUMNS)} FROM {rows}
            WHERE key = ? AND version > ? AND version <= ? ORDER BY version LIMIT ?"""
        self.has = f"SELECT 1 FROM {rows} WHERE key = ? AND version = ?"
        self.kept = f"SELECT kind, version, checksum, content FROM {snapshots} WHERE key = ?"
        self.keep = f"INSERT OR REPLACE INTO {snapshots} VALUES (?, ?, ?, ?, ?)"
        self.owned = f"SELECT version FROM {heads} WHERE key = ? AND epoch = ?"
        self.raise_floor = f"UPDATE {heads} SET oldest = ? WHERE key = ?"


@lru_cache(maxsize=256)
def events_table(name: str) -> EventsTable:
    """Return the statements for the table ``name``, the same ones each time: a batch is grouped by them."""
    return EventsTable(name)


class SqliteLog:
    """One stream's events in ``table`` of the database at ``path``.

    Args:
        key: what the stream is called in the table.
        actor: its name, for errors.
        seal: makes the heads of a chain.
    """

    ownership: Ownership = "exclusive"

    def __init__(self, path: str, table: str, key: str, actor: str, seal: Seal, resources: Resources) -> None:
        self.path = self.place = path
        self.table = events_table(table)
        self.key = key
        self.actor = actor
        self.inner = SqliteBackend(path, self.table, key, resources, actor=actor, max_history=_UNBOUNDED)
        self.inner.refusal = self._lost
        self.inner.alongside = self._store_head
        self._seal = seal
        self._floor: StateSnapshot | None = None
        self._epoch = 0

    @property
    def store(self) -> SqliteStore | None:
        """The store that appends go to, one for all actors of the database; None while closed."""
        return self.inner.store

    async def open(self, least: int) -> LogState:
        """Claim the stream with the next epoch, and find its ends; raises as `SqliteBackend.open`."""
        opened = await self.inner.open()
        try:
            kept = await self._opened().database.read(self._read_kept)
            floor, latest = (
                unpack_snapshot(kept[kind], self.actor) if kind in kept else None for kind in ("floor", "latest")
            )
            record = opened.record
            version = record.version if record is not None else 0
            last = self._event(record) if record is not None and version > (floor.version if floor else 0) else None
        except BaseException:
            await self.inner.close()
            raise
        self._floor, self._epoch = floor, opened.epoch
        heads = (kept["head"],) if "head" in kept else None
        return LogState(version, last, opened.epoch, floor, latest, heads)

    def put(self, stored: StoredEvent, event: object) -> None:
        raise AssertionError("a database takes events by commit")

    def chunks(self, after: int, until: int) -> Chunks:
        """Return an iterator over the events from ``after`` + 1 to ``until``, in order; each step reads once."""
        limit = CHUNK

        async def step() -> Sequence[StoredEvent] | None:
            nonlocal after, limit
            if after >= until:
                return None
            read = partial(self._read, after=after, until=until, limit=limit)
            chunk = await self._opened().database.read(read)
            if not chunk:
                raise corrupt(self.path, self.key, f"events {after + 1} to {until} are missing")
            check_numbers(self.actor, chunk, after + 1)
            after = chunk[-1].version
            limit = events_at_a_time(chunk)
            return chunk

        return Chunks(step)

    async def requests(self) -> list[Request]:
        return await self.inner.requests()

    def remember(self, requests: Sequence[Request]) -> None:
        """Nothing to do: the database remembers them."""

    async def keep(self, snapshot: StateSnapshot) -> None:
        """Store the newest snapshot; it may be lost in a power cut, and the one before it is there then."""
        content = pack_snapshot(snapshot, self._seal)
        await self._opened().database.write_soon(
            lambda connection: self._keep(connection, "latest", snapshot.version, content)
        )

    async def seal(self, head: bytes) -> None:
        """Store the first head of a chain."""
        await self._opened().database.write(lambda connection: self._keep(connection, "head", 0, head))

    async def compact(self, floor: StateSnapshot, head: bytes | None) -> None:
        """Store the floor and remove the events in front of it, in one transaction.

        Raises:
            OwnershipLostError: a newer owner claimed the stream; nothing was changed.
        """
        await self._opened().database.write(lambda connection: self._compact(connection, floor, head))
        self._floor = floor

    async def close(self) -> None:
        """Give the stream back."""
        await self.inner.close()

    # What follows runs in the thread of a connection.

    def _read(self, connection: sqlite3.Connection, after: int, until: int, limit: int) -> list[StoredEvent]:
        rows = connection.execute(self.table.after, (self.key, after, until, limit)).fetchall()
        return [self._event(to_record(row, self.path)) for row in rows]

    def _event(self, record: Record) -> StoredEvent:
        try:
            return from_data(record)
        except msgspec.DecodeError as error:
            raise corrupt(self.path, self.key, f"version {record.version} is no event ({error})") from error

    def _read_kept(self, connection: sqlite3.Connection) -> dict[str, bytes]:
        kept: dict[str, bytes] = {}
        for kind, version, checksum, content in connection.execute(self.table.kept, (self.key,)):
            if checksum == _checksum(self.key, kind, version, content):
                kept[kind] = content
            elif kind != "latest":  # without that one, more is folded; the others can't be done without
                raise corrupt(self.path, self.key, f"its {kind} fails its checksum")
        return kept

    def _keep(self, connection: sqlite3.Connection, kind: str, version: int, content: bytes) -> None:
        checksum = _checksum(self.key, kind, version, content)
        connection.execute(self.table.keep, (self.key, kind, version, checksum, content))

    def _lost(self, connection: sqlite3.Connection, write: Write) -> DgentError | None:
        """Return the refusal of a write in front of which something is missing; whose it is, the head's move tells."""
        if not write.base:
            return None
        head = connection.execute(self.table.head, (self.key,)).fetchone()
        if head is None:
            return corrupt(self.path, self.key, f"its head is missing, which named event {write.base}")
        if head[0] == write.base and not connection.execute(self.table.has, (self.key, write.base)).fetchone():
            return corrupt(self.path, self.key, f"event {write.base}, its newest, is missing")
        return None

    def _store_head(self, connection: sqlite3.Connection, write: Write) -> None:
        last = write.records[-1]
        link = link_in(last.data)
        if link is None:
            return
        floor = self._floor
        at, floor_link = (floor.version, floor.link or GENESIS) if floor is not None else (0, GENESIS)
        self._keep(connection, "head", last.version, self._seal.make(last.version, link, at, floor_link))

    def _compact(self, connection: sqlite3.Connection, floor: StateSnapshot, head: bytes | None) -> None:
        owned = connection.execute(self.table.owned, (self.key, self._epoch)).fetchone()
        if owned is None:
            raise OwnershipLostError(
                f"the stream {self.key!r} in {self.path} is not {self.actor!r}'s any more",
                actor=self.actor,
                key=self.key,
                hint="nothing was changed; spawn it again",
            )
        self._keep(connection, "floor", floor.version, pack_snapshot(floor, self._seal))
        if head is not None:
            self._keep(connection, "head", owned[0], head)
        # The newest row stays, whatever the floor: the head of the state names it.
        removed = min(floor.version, owned[0] - 1)
        connection.execute(self.table.trim, (self.key, removed))
        connection.execute(self.table.raise_floor, (removed + 1, self.key))

    def _opened(self) -> SqliteStore:
        store = self.inner.store
        if store is None:
            raise StorageError(f"the stream {self.key!r} in {self.path} is not open", key=self.key, actor=self.actor)
        return store


def _checksum(key: str, kind: str, version: int, content: Any) -> int:
    return crc32(bytes(content), crc32(f"{key}\0{kind}\0{version}".encode()))
