"""One SQLite database of one runtime: a connection that writes, and one that only reads.

Invariants:

1. A transaction is one function that runs in the connection's thread in one hop. Cancelling an await never
   cancels SQLite, so a transaction of several hops could be left open in the middle, and lock everybody else
   out.
2. After any failure but a busy database the connections are closed; the next call opens new ones and reads
   what is really stored. SQLite's cache is not asked again after a failed fsync.
3. A database is created by the first `prepare` of a runtime and never again: one that was there and is gone
   is an error, not an empty database. Also for an actor that comes back to it, see `must_exist`.
4. What is read or written counts only if the files are the ones that the connection has open.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import aiosqlite

from dgents.backends.sqlite_connection import (
    BUSY_TIMEOUT,
    FileIdentity,
    Work,
    attempt,
    connect,
    connect_for_queries,
    create_private,
    transact,
    use_write_ahead_log,
)
from dgents.backends.sqlite_errors import is_busy
from dgents.backends.sqlite_owners import Owners
from dgents.backends.sqlite_tables import StatesTable
from dgents.runtime.contract import Resources
from dgents.runtime.errors import DgentError, StateCorruptionError, StorageError

T = TypeVar("T")

_RELEASE_TIMEOUT = 0.25  # seconds; a lock that is not given back in time is free when the process ends


class SqliteDatabase:
    """The connections to one database, for all actors, tables and stores of one runtime.

    Args:
        path: the file.
        resources: those of the runtime; aiosqlite runs on their asyncio loop.
        busy_timeout: how long to wait for another process's transaction, in seconds.
    """

    def __init__(self, path: str, resources: Resources, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.path = path
        self.owners = Owners(path)
        self._resources = resources
        self._busy_timeout = busy_timeout
        self._process = os.getpid()
        self._existed = False
        self._made: set[str] = set()  # tables that were there
        self._before: FileIdentity | None = None  # the files that were open before these
        self._opening: asyncio.Lock | None = None
        self._preparing: asyncio.Lock | None = None
        self._identities: dict[sqlite3.Connection, FileIdentity] = {}
        self._reset()

    def must_exist(self, table: StatesTable, before: FileIdentity) -> None:
        """Never create the database, nor ``table`` in it: whoever opens it had it open before, as these files."""
        self._existed = True
        self._made.add(table.name)
        self._before = before

    async def prepare(self, table: StatesTable) -> None:
        """Make sure that ``table`` is there and is ours; the first table makes the database.

        Raises:
            StorageError: it is someone else's, of a newer format, or the database can't be opened.
            StateCorruptionError: the file is no database.
        """
        if table.name not in self._ready:
            await self._resources.run_asyncio(self._prepare, table)

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in one transaction, durable on return; it may run again if the database was busy.

        Raises:
            StorageError: nothing was kept, except where SQLite itself failed in the commit: then it is not
                known.
        """
        job = partial(transact, mode="IMMEDIATE", work=work, before_commit=self._check_identity)
        return await self._resources.run_asyncio(self._run, self._attempt, job, self._busy_timeout)

    async def write_soon(self, work: Work[T]) -> T:
        """Run ``work`` in one transaction that others see at once and the next `write` makes durable."""
        return await self._resources.run_asyncio(self._run, self._attempt, partial(_unsynced, work), _RELEASE_TIMEOUT)

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on one consistent view of the database, that of the newest commit of any process."""
        job: Work[T] = partial(transact, mode="DEFERRED", work=work, before_commit=self._check_identity)
        return await self._resources.run_asyncio(self._run, self._attempt, job, self._busy_timeout)

    async def query(self, work: Work[T]) -> T:
        """Run ``work`` on the connection that can only read."""

        def job(connection: sqlite3.Connection) -> T:
            result = work(connection)
            self._check_identity(connection)
            return result

        return await self._resources.run_asyncio(self._run_reader, job)

    async def close(self) -> None:
        """Close the connections and give the owner lock back."""
        await self._resources.run_asyncio(self._close)

    def _reset(self) -> None:
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None
        self._ready: set[str] = set()
        self.schemas: set[tuple[str, int]] = set()
        self.identity = FileIdentity(self.path)

    # What follows runs on the asyncio loop.

    async def _run(self, step: Callable[..., T], job: Any, patience: float) -> T:
        writer = await self._open_writer() if self._writer is None else self._writer
        self._check_process()
        try:
            return await _in_thread(writer, step, job, patience)
        except (StorageError, StateCorruptionError) as error:
            if _is_suspect(error):
                await self._retire(writer)
            raise

    async def _prepare(self, table: StatesTable) -> None:
        if self._preparing is None:
            self._preparing = asyncio.Lock()
        async with self._preparing:  # of a thousand actors that are spawned at once, one does it
            if table.name not in self._ready:
                await self._run(self._make_ready, table, self._busy_timeout)

    async def _run_reader(self, work: Work[T]) -> T:
        self._check_process()
        if self._reader is None:
            async with self._turn():
                if self._reader is None:
                    self._reader = await _open(self._connect_reader)
        return await _in_thread(self._reader, self._attempt, work, self._busy_timeout)

    async def _open_writer(self) -> aiosqlite.Connection:
        async with self._turn():
            if self._writer is None:
                self._writer = await _open(self._connect_writer)
            return self._writer

    def _turn(self) -> asyncio.Lock:
        if self._opening is None:
            self._opening = asyncio.Lock()
        return self._opening

    async def _retire(self, writer: aiosqlite.Connection) -> None:
        if self._writer is writer:
            reader = self._reader
            self._before = self.identity
            self._reset()
            await self._close_one(writer)
            if reader is not None:
                await self._close_one(reader)

    async def _close_one(self, connection: aiosqlite.Connection) -> None:
        inner = connection._conn
        # What can't be closed in order is closed all the same; there is nobody to whom it would matter.
        with suppress(sqlite3.Error, ValueError):
            await connection.close()
        self._identities.pop(inner, None)

    async def _close(self) -> None:
        async with self._turn():
            writer, reader = self._writer, self._reader
            self._reset()
            if os.getpid() != self._process:
                return  # after a fork, threads and locks are the parent's
            for connection in (reader, writer):
                if connection is not None:
                    await self._close_one(connection)
            await asyncio.to_thread(self.owners.release)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise StorageError(
                f"the database {self.path} belongs to process {self._process}, this is {os.getpid()}",
                retryable=False,
                hint="open a new Runtime after a fork",
            )

    # What follows runs in the thread of a connection.

    def _connect_writer(self) -> sqlite3.Connection:
        if not self._existed:
            create_private(self.path)
        identity = self.identity
        identity.pin()
        if self._before is not None:
            self._before.check_left_log()
        connection = connect(self.path, self._busy_timeout)
        self._identities[connection] = identity
        self._existed = True
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        connection = connect_for_queries(self.path, self._busy_timeout)
        self._identities[connection] = self.identity
        return connection

    def _check_identity(self, connection: sqlite3.Connection) -> None:
        # Of this connection: while one is closed and the next is opened, there are two.
        self._identities[connection].check(connection)

    def _attempt(self, connection: sqlite3.Connection, job: Work[T], patience: float) -> T:
        return attempt(connection, job, self.path, patience)

    def _make_ready(self, connection: sqlite3.Connection, table: StatesTable, patience: float) -> None:
        def is_ready(connection: sqlite3.Connection) -> bool:
            return table.is_ready(connection, self.path)

        def make(connection: sqlite3.Connection) -> None:
            if not is_ready(connection):
                table.make(connection)

        # Whether the table is ours is asked first: a database in which it isn't stays as it was, to the last
        # byte.
        ready = attempt(connection, is_ready, self.path, patience)
        if not ready and table.name in self._made:
            raise StateCorruptionError(
                f"the database {self.path} has no table {table.name!r} any more: it was replaced while it was in use",
                path=self.path,
                hint="it was left as it is; put the old one back, or start the actors anew to begin anew",
            )
        attempt(connection, use_write_ahead_log, self.path, patience)
        if not ready:
            attempt(connection, partial(transact, mode="IMMEDIATE", work=make), self.path, patience)
        attempt(connection, is_ready, self.path, patience)  # now at the latest it has its log open
        self._identities[connection].pin_log()
        attempt(connection, self._check_identity, self.path, patience)
        self._ready.add(table.name)
        self._made.add(table.name)


def _unsynced(work: Work[T], connection: sqlite3.Connection) -> T:
    connection.execute("PRAGMA synchronous = NORMAL")
    try:
        return transact(connection, "IMMEDIATE", work)
    finally:
        connection.execute("PRAGMA synchronous = FULL")


def _is_suspect(error: DgentError) -> bool:
    """Say whether the connection may hold something else than the disk does."""
    if isinstance(error.__cause__, sqlite3.Error):
        return not is_busy(error.__cause__)
    return isinstance(error, StorageError)


async def _open(connector: Callable[[], sqlite3.Connection]) -> aiosqlite.Connection:
    connection = aiosqlite.Connection(connector, iter_chunk_size=64)
    # A program that ends without closing its runtime must end, as if it had been killed.
    connection._thread.daemon = True
    try:
        return await connection
    except BaseException:
        # aiosqlite stops its thread and does not wait for it: it would answer a loop that may have ended.
        await asyncio.to_thread(connection._thread.join)
        raise


async def _in_thread(connection: aiosqlite.Connection, fn: Callable[..., T], *args: Any) -> T:
    """Run ``fn(sqlite3_connection, *args)`` in the thread of ``connection``: one hop for all statements.

    aiosqlite's public methods are a hop each: a commit would cost five of them, and could be left half-way.
    """
    result: T = await connection._execute(fn, connection._conn, *args)  # type: ignore[no-untyped-call]
    return result
