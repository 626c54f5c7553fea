"""The events of one stream in a table of a PostgreSQL database, one row an event.

The table is one of states, in which no version is ever dropped: claims, fencing, request ids and checksums are those of
every state in PostgreSQL (docs/postgresql.md). Beside it, ``<table>_snapshots`` has at most two rows a stream: the
newest state (``latest``) and the one in front of the oldest event that is kept (``floor``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple
from zlib import crc32

import msgspec
from psycopg import AsyncConnection

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
from dgents.backends.postgres import PostgresBackend
from dgents.backends.postgres_read import fetch
from dgents.backends.postgres_store import PostgresStore
from dgents.backends.postgres_tables import EVENTS, StatesTable
from dgents.backends.seal import Seal
from dgents.backends.sqlite_tables import COLUMNS, corrupt, to_record
from dgents.runtime.contract import Ownership, Record, Request, Resources
from dgents.runtime.errors import OwnershipLostError, StateCorruptionError, StorageError

_UNBOUNDED = 2**62  # versions kept: all of them
_SNAPSHOTS = "_snapshots"


class _Opened(NamedTuple):
    store: PostgresStore
    table: StatesTable


class PostgresLog:
    """One stream's events in ``table`` of the database at ``uri``. The newest owner wins: an older one writes nothing.

    Args:
        key: what the stream is called in the table.
        actor: its name, for errors.
        seal: makes the head of a chain, which is the newest event itself here.
    """

    ownership: Ownership = "exclusive"

    def __init__(self, uri: str, table: str, key: str, actor: str, seal: Seal, resources: Resources) -> None:
        self.inner = PostgresBackend(
            uri=uri,
            table=table,
            key=key,
            resources=resources,
            max_history=_UNBOUNDED,
            ownership="exclusive",
            actor=actor,
            kind=EVENTS,
        )
        self.place = self.inner.server.safe
        self.key = key
        self.actor = actor
        self._seal = seal
        self._epoch = 0

    @property
    def store(self) -> PostgresStore | None:
        """The store that appends go to, one for all actors of the database; None while closed."""
        return self.inner.store

    async def open(self, least: int) -> LogState:
        """Claim the stream with the next epoch, and find its ends; raises as `PostgresBackend.open`."""
        opened = await self.inner.open()
        record = opened.record
        version = record.version if record is not None else 0
        try:
            await self._check_newest()
            kept = await self._read_kept()
            floor, latest = kept.get("floor"), kept.get("latest")
            at, floor_link = (floor.version, floor.link or GENESIS) if floor is not None else (0, GENESIS)
            last = self._event(record) if record is not None and version > at else None
        except BaseException:
            await self.inner.close()
            raise
        self._epoch = opened.epoch
        link = link_in(record.data) if record is not None else None
        heads = (self._seal.make(version, link, at, floor_link),) if link is not None else None
        return LogState(version, last, opened.epoch, floor, latest, heads)

    def put(self, stored: StoredEvent, event: object) -> None:
        raise AssertionError("a server takes events by commit")

    def chunks(self, after: int, until: int) -> Chunks:
        """Return an iterator over the events from ``after`` + 1 to ``until``, in order; each step reads once."""
        limit = CHUNK

        async def step() -> Sequence[StoredEvent] | None:
            nonlocal after, limit
            if after >= until:
                return None
            store, table = await self._opened()
            columns = ", ".join(COLUMNS)
            sql = f"""SELECT {columns} FROM {table.rows} WHERE key = %(key)s AND version > %(after)s
                AND version <= %(until)s ORDER BY version LIMIT %(limit)s"""
            values = {"key": self.key, "after": after, "until": until, "limit": limit}
            rows = await store.look_up(partial(fetch, sql=sql, values=values))
            chunk = [self._event(to_record(row, store.place.safe)) for row in rows]
            if not chunk:
                raise corrupt(store.place.safe, self.key, f"events {after + 1} to {until} are missing")
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
        """Store the newest snapshot."""
        store, table = await self._opened()
        await store.change(partial(self._keep, table=table, kind="latest", snapshot=snapshot))

    async def seal(self, head: bytes) -> None:
        """Nothing to do: the newest event is the head."""

    async def compact(self, floor: StateSnapshot, head: bytes | None) -> None:
        """Store the floor and remove the events in front of it, in one transaction.

        Raises:
            OwnershipLostError: a newer owner claimed the stream; nothing was changed.
        """
        store, table = await self._opened()
        await store.change(partial(self._compact, table=table, floor=floor))

    async def close(self) -> None:
        """Let go of the stream."""
        await self.inner.close()

    # Work on a connection

    async def _check_newest(self) -> None:
        """Check that no event is newer than the head says; one that was just made says that there is none.

        Raises:
            StateCorruptionError: one is; a head that was made by the claim is taken away again.
        """
        store, table = await self._opened()
        sql = f"""SELECT h.version, (SELECT max(r.version) FROM {table.rows} AS r WHERE r.key = h.key)
            FROM {table.heads} AS h WHERE h.key = %(key)s"""
        rows = await store.look_up(partial(fetch, sql=sql, values={"key": self.key}))
        version, newest = rows[0] if rows else (0, None)
        if newest is None or newest <= version:
            return
        seen = self.inner.fence.seen
        if not version and seen is not None:
            sql = f"DELETE FROM {table.heads} WHERE key = %s AND mark = %s AND epoch = 1"
            await store.change(partial(_execute, sql=sql, values=(self.key, seen.mark)))
        what = f"its head names event {version} as the newest" if version else "its head is missing"
        raise corrupt(store.place.safe, self.key, f"{what}, and event {newest} is there")

    async def _read_kept(self) -> dict[str, StateSnapshot]:
        store, table = await self._opened()
        sql = f"SELECT kind, version, checksum, content FROM {_snapshots(table)} WHERE key = %(key)s"
        kept: dict[str, StateSnapshot] = {}
        for kind, version, checksum, content in await store.look_up(partial(fetch, sql=sql, values={"key": self.key})):
            try:
                if checksum == _checksum(self.key, kind, version, content):
                    kept[kind] = unpack_snapshot(content, self.actor)
                    continue
            except StateCorruptionError:
                pass
            if kind != "latest":  # without that one, more is folded; the floor can't be done without
                raise corrupt(store.place.safe, self.key, f"its {kind} can't be read")
        return kept

    async def _keep(
        self, connection: AsyncConnection[Any], table: StatesTable, kind: str, snapshot: StateSnapshot
    ) -> None:
        content = pack_snapshot(snapshot, self._seal)
        values = (self.key, kind, snapshot.version, _checksum(self.key, kind, snapshot.version, content), content)
        await connection.execute(
            f"""INSERT INTO {_snapshots(table)} VALUES (%s, %s, %s, %s, %s) ON CONFLICT (key, kind) DO UPDATE
            SET version = excluded.version, checksum = excluded.checksum, content = excluded.content""",
            values,
        )

    async def _compact(self, connection: AsyncConnection[Any], table: StatesTable, floor: StateSnapshot) -> None:
        async with connection.transaction():
            sql = f"SELECT version, epoch FROM {table.heads} WHERE key = %s FOR UPDATE"
            found = await (await connection.execute(sql, (self.key,))).fetchone()
            if found is None or found[1] != self._epoch:
                raise OwnershipLostError(
                    f"the stream {self.key!r} is not {self.actor!r}'s any more",
                    actor=self.actor,
                    key=self.key,
                    hint="nothing was changed; spawn it again",
                )
            await self._keep(connection, table, "floor", floor)
            # The newest row stays, whatever the floor: the head of the state names it.
            removed = min(floor.version, found[0] - 1)
            await connection.execute(f"DELETE FROM {table.rows} WHERE key = %s AND version <= %s", (self.key, removed))

    def _event(self, record: Record) -> StoredEvent:
        try:
            return from_data(record)
        except msgspec.DecodeError as error:
            raise corrupt(
                self.inner.server.safe, self.key, f"version {record.version} is no event ({error})"
            ) from error

    async def _opened(self) -> _Opened:
        store = self.inner.store
        if store is None:
            raise StorageError(f"the stream {self.actor!r} is not open", actor=self.actor, key=self.key)
        return _Opened(store, await store.prepare(self.inner.table))


async def _execute(connection: AsyncConnection[Any], sql: str, values: tuple[Any, ...]) -> None:
    await connection.execute(sql, values)


def _snapshots(table: StatesTable) -> str:
    return f'"{table.schema}"."{table.name}{_SNAPSHOTS}"'


def _checksum(key: str, kind: str, version: int, content: Any) -> int:
    return crc32(bytes(content), crc32(f"{key}\0{kind}\0{version}".encode()))
