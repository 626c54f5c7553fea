"""One actor's state in a table of a SQLite database."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio

from dgents.backends.acknowledged import Acknowledged
from dgents.backends.aggregate import parse_aggregate
from dgents.backends.sqlite_connection import BUSY_TIMEOUT, FileIdentity
from dgents.backends.sqlite_query import Parameters, aggregate_states, query_states
from dgents.backends.sqlite_store import SqliteStore
from dgents.backends.sqlite_tables import StatesTable
from dgents.backends.sqlite_transactions import Place
from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, StateIdentity, Write
from dgents.runtime.errors import DgentError, StorageError


class SqliteBackend:
    """The state ``key`` in ``table`` of the database at ``path``.

    Durability: a commit is fsynced before it is answered (WAL, ``synchronous=FULL``).

    Ownership: exclusive: one process owns the state while it is open here, and its death frees it at once.
    Shared: any number of processes write it, each by compare-and-set on the version.

    Args:
        actor: the name to use in errors.
        max_history: how many versions are kept, the current one among them; 0 keeps that one only.
        busy_timeout: how long to wait for another process's transaction, in seconds.
    """

    deltas = False

    def __init__(
        self,
        path: str,
        table: StatesTable,
        key: str,
        resources: Resources,
        *,
        actor: str | None = None,
        max_history: int = 100,
        ownership: Ownership = "exclusive",
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> None:
        self.path = path
        self.place = Place(table, key)
        self.table = table
        self.key = key
        self.actor = actor or key
        self.max_history = max_history
        self.ownership: Ownership = ownership
        self.kept = max(1, max_history)
        self.has_one_row = False  # an owner's that keeps one version: known after its first commit
        self.acknowledged = Acknowledged()
        self._files: FileIdentity | None = None  # that were open before
        self._busy_timeout = busy_timeout
        self._resources = resources
        # For a log of events: why a write is refused, and what else is stored in its transaction.
        self.refusal: Callable[[sqlite3.Connection, Write], DgentError | None] | None = None
        self.alongside: Callable[[sqlite3.Connection, Write], None] | None = None
        self._acquired: tuple[str, str] | None = None
        self._store: SqliteStore | None = None

    @property
    def identity(self) -> StateIdentity:
        """Which state this is: the same in every agent that names this database, table and key."""
        path = os.path.abspath(self.path)
        return StateIdentity(("sqlite", path, self.table.name), self.key, f"table {self.table.name!r} of {path}")

    @property
    def store(self) -> SqliteStore | None:
        """The store that this state's writes go to; None while closed."""
        return self._store

    async def open(self) -> Opened:
        """Claim the state (if exclusive) and read it.

        Raises:
            StateLockedError: another process owns it; it names that process and its host.
            StateCorruptionError: its rows fail their checksums, or one is missing, or all that this backend once saw.
            StorageError: the database can't be used, or has a table of this name that is not ours, or has several
                names; or this backend had it open before, and it is gone.
        """
        try:
            self.has_one_row = False
            store = await self._acquire()
            if self._files is not None:
                store.database.must_exist(self.table, self._files)
                self._check(await store.look(self.place))  # before a claim changes anything
            opened = await (
                store.claim(self.place, self.actor, self) if self.ownership == "exclusive" else store.look(self.place)
            )
            self._check(opened)
            self._files = store.database.identity
            return opened
        except BaseException:
            await self.close()
            raise

    async def read(self) -> Record | None:
        """Return the version that is stored now, whoever wrote it."""
        return self._check(await self._open_store().look(self.place))

    async def history(self, limit: int | None = None) -> list[Record]:
        """Return the kept versions, oldest first; the newest ``limit`` of them.

        Raises:
            StateCorruptionError: one of them fails its checksum or is missing.
        """
        count = self.kept if limit is None else min(limit, self.kept)
        return await self._open_store().history(self.place, count) if count > 0 else []

    async def requests(self) -> list[Request]:
        """Return the remembered request ids, oldest first."""
        return await self._open_store().requests(self.place)

    async def committed(self, write: Write) -> bool | None:
        """Tell whether a write that failed was stored after all; None if newer versions pushed it out."""
        return await self._open_store().was_written(self.place, write.records[-1])

    async def query(self, sql: str, parameters: Parameters = ()) -> list[tuple[bytes, int]]:
        """Return the stored states that ``sql`` selects, each with its schema version.

        It sees every state in the table, of every key and version, not only this actor's.

        Raises:
            UnsupportedOperationError: it would write, or selects no column ``state``.
            StateError: it is no valid SQL.
        """
        database = self._open_store().database
        return await database.query(lambda connection: query_states(connection, self.table, sql, parameters))

    async def aggregate(
        self, expression: str, column: str = "state", where: str | None = None, parameters: Parameters = ()
    ) -> Any:
        """Return one value over all rows of the table in which ``column`` is not NULL and ``where`` holds.

        Raises:
            UnsupportedOperationError: ``expression`` is no aggregate of a column or of a field of the state.
            StateError: ``where`` is no valid SQL.
        """
        aggregate = parse_aggregate(expression, column)
        database = self._open_store().database
        return await database.query(lambda it: aggregate_states(it, self.table, aggregate, where, parameters))

    async def close(self) -> None:
        """Give the state back to other processes; the last one to close closes the database."""
        store, acquired = self._store, self._acquired
        if store is None or acquired is None:
            return
        self._store = self._acquired = None
        with anyio.CancelScope(shield=True):
            try:
                if self.ownership == "exclusive":
                    # If the database is gone: the lock in the row dies with this runtime.
                    with suppress(DgentError):
                        await store.release(self.place, self)
            finally:
                await self._resources.release(acquired)

    def _check(self, opened: Opened) -> Record | None:
        """Return what was found, which is never older than what was known."""
        self.acknowledged.check(opened.record, self.path, actor=self.actor, key=self.key)
        self.acknowledged.note(opened.record)
        return opened.record

    async def _acquire(self) -> SqliteStore:
        self._store, self._acquired = await _acquire(self.path, self._resources, self._busy_timeout)
        return self._store

    def _open_store(self) -> SqliteStore:
        if self._store is None:
            raise StorageError(f"the state {self.key!r} in {self.path} is not open", key=self.key, actor=self.actor)
        return self._store


async def _acquire(path: str, resources: Resources, busy_timeout: float) -> tuple[SqliteStore, tuple[str, str]]:
    """Return the one store of a database in a runtime, and the name under which it is to be released."""
    if not os.path.isabs(path):
        path = await anyio.to_thread.run_sync(os.path.abspath, path)

    async def opener() -> SqliteStore:
        return SqliteStore(path, resources, busy_timeout=busy_timeout)

    name = ("sqlite", path)
    return await resources.acquire(name, opener), name


@asynccontextmanager
async def sqlite_store(path: str, resources: Resources) -> AsyncIterator[SqliteStore]:
    """Lend the store of a database, while the block lasts."""
    store, name = await _acquire(path, resources, BUSY_TIMEOUT)
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await resources.release(name)
