"""One actor's state in a table of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from dgents.backends.aggregate import parse_aggregate
from dgents.backends.postgres_commit import digest
from dgents.backends.postgres_fence import Fence
from dgents.backends.postgres_place import PostgresPlace, parse_postgres_url, parse_table_name
from dgents.backends.postgres_query import Parameters, aggregate_states, query_states
from dgents.backends.postgres_store import Place, PostgresStore
from dgents.backends.postgres_tables import STATES
from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, StateIdentity, Write
from dgents.runtime.errors import StateCorruptionError, StorageError

_LONGEST_KEY = 2500  # bytes: an index entry has room for 2,704


class PostgresBackend:
    """The state ``key`` in ``table`` of the database at ``uri``.

    Durability: a commit is on the server's disk before it is answered (``synchronous_commit`` is never off).

    Ownership: shared: any number of processes write it, each by compare-and-set. Exclusive: the newest owner writes,
    earlier ones are refused with `OwnershipLostError`.

    Args:
        uri: as libpq takes it; see docs/postgresql.md.
        table: ``table`` or ``schema.table``.
        max_history: how many versions are kept, the current one among them; 0 keeps that one only.
        actor: the name to use in errors.
        kind: what the table holds: states, or the events of streams.

    Raises:
        ValueError: an argument can't be right; nothing was connected.
    """

    deltas = False

    def __init__(
        self,
        *,
        uri: str,
        table: str,
        key: str,
        resources: Resources,
        max_history: int = 100,
        ownership: Ownership = "shared",
        actor: str | None = None,
        kind: str = STATES,
    ) -> None:
        parse_table_name(table)
        self.server = parse_postgres_url(uri)
        self.table = table
        self.key = _check_key(key)
        self.digest = digest(table, key)
        self.actor = actor or key
        self.max_history = max_history
        self.ownership: Ownership = ownership
        self.fence = Fence(self.actor, key, ownership, kept=max(1, max_history), on_went_back=self._note_went_back)
        self._kept = max(1, max_history)
        self._kind = kind
        self._resources = resources
        self.went_back: tuple[int, int] | None = None  # (had, has), if the server lost what it had acknowledged
        self._store: PostgresStore | None = None
        self._listeners: dict[Callable[[], None], Callable[[int | None], None]] = {}

    @property
    def identity(self) -> StateIdentity:
        """Which state this is: the same in every agent that names this database, table and key."""
        place = ("postgresql", self.server.database, self.table)
        return StateIdentity(place, self.key, f"table {self.table!r} of {self.server.safe}")

    @property
    def store(self) -> PostgresStore | None:
        """The store that this state's writes go to; None while closed."""
        return self._store

    async def open(self) -> Opened:
        """Claim the state (if exclusive) and read it.

        Raises:
            StateCorruptionError: its rows fail their checksums, or one is missing.
            StorageError: the database can't be used, or has a table of this name that is not ours.
        """
        if self._store is None:
            self._store = await _acquire(self.server, self._resources)
        try:
            self._store.declare(self.table, self._kind)
            found = await (self._store.claim if self.ownership == "exclusive" else self._store.look)(self._place)
        except BaseException:
            await self.close()
            raise
        self.fence.see(found.head)
        return Opened(found.record, found.head.epoch)

    async def read(self) -> Record | None:
        """Return the version that is stored now, whoever wrote it."""
        found = await self._open_store.look(self._place)
        if self.ownership == "shared":
            self.fence.see(found.head)
        return found.record

    async def history(self, limit: int | None = None) -> list[Record]:
        """Return the kept versions, oldest first; the newest ``limit`` of them.

        Raises:
            StateCorruptionError: one of them fails its checksum or is missing.
        """
        count = self._kept if limit is None else min(limit, self._kept)
        return await self._open_store.history(self._place, count) if count > 0 else []

    async def requests(self) -> list[Request]:
        """Return the remembered request ids, oldest first."""
        return await self._open_store.requests(self._place)

    async def committed(self, write: Write) -> bool | None:
        """Find out whether a write was stored whose commit failed; None if others have written over it since.

        A write that has not arrived by now never will: the mark that it builds on is taken away from the state.
        """
        sent, stored = self.fence.sent, self.fence.stored
        if sent is None or sent.after.version != write.records[-1].version:
            return False  # it never went out
        if stored is not None:
            return stored
        try:
            found, mark = await self._open_store.settle(self._place, sent)
        except StateCorruptionError:
            return None
        if mark is None and found.head.version >= sent.after.version:
            return await self._was_remembered(write)
        if mark == sent.after.mark:
            self.fence.wrote()
        else:
            self.fence.refuse()
        self.fence.see(found.head)
        return self.fence.stored

    async def query(self, sql: str, parameters: Parameters = ()) -> list[tuple[bytes, int]]:
        """Return the stored states that ``sql`` selects, each with its schema version.

        It sees every state in the table, of every key and version, not only this actor's. Placeholders are ``?`` or
        psycopg's ``%s`` and ``%(name)s``.

        Raises:
            UnsupportedOperationError: it would write, or selects no column ``state``.
            StateError: it is no valid SQL.
        """
        store = self._open_store
        table = await store.prepare(self.table)
        return await store.ask(lambda connection: query_states(connection, table, sql, parameters))

    async def aggregate(
        self, expression: str, column: str = "state", where: str | None = None, parameters: Parameters = ()
    ) -> Any:
        """Return one value over all rows of the table in which ``column`` is not NULL and ``where`` holds.

        Raises:
            UnsupportedOperationError: ``expression`` is no aggregate of a column.
            StateError: ``where`` is no valid SQL.
        """
        aggregate = parse_aggregate(expression, column)
        store = self._open_store
        table = await store.prepare(self.table)
        return await store.ask(lambda it: aggregate_states(it, table, aggregate, where, parameters))

    async def subscribe(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever another process may have changed the state, from now on.

        It is called on the loop of the runtime, once at the start and after each lost connection too; then the state
        has to be read to know. The writes of exclusive owners are not announced.
        """

        def listener(mark: int | None) -> None:
            if mark is None or not self.fence.has_seen(mark):
                changed()

        self._listeners[changed] = listener
        await self._open_store.subscriber.add(self.digest, listener)

    async def unsubscribe(self, changed: Callable[[], None]) -> None:
        """Stop calling ``changed``."""
        listener = self._listeners.pop(changed, None)
        if listener is not None and self._store is not None:
            await self._store.subscriber.remove(self.digest, listener)

    async def close(self) -> None:
        """Let go of the state. Never raises for a server that is gone."""
        if self._store is None:
            return
        with anyio.CancelScope(shield=True):
            for changed in list(self._listeners):
                await self.unsubscribe(changed)
            self._store = None
            await self._resources.release(_name(self.server))

    @property
    def _place(self) -> Place:
        return Place(self.table, self.key)

    @property
    def _open_store(self) -> PostgresStore:
        if self._store is None:
            raise StorageError(f"{self.actor!r} is not open", actor=self.actor, key=self.key)
        return self._store

    async def _was_remembered(self, write: Write) -> bool | None:
        """Look among the request ids for a write whose version others have pushed out of the history."""
        remembered = {request.id: request.version for request in await self.requests()} if write.requests else {}
        return True if any(remembered.get(each.id) == each.version for each in write.requests) else None

    def _note_went_back(self, had: int, has: int) -> None:
        self.went_back = (had, has)
        self._resources.emit(
            "warning",
            self.actor,
            reason="went_back",
            message=f"{self.server.safe} went back from version {had} of {self.actor!r} to version {has}: "
            "it lost writes that it had acknowledged",
        )


def _check_key(key: str) -> str:
    if not key or "\0" in key:
        raise ValueError(f"key {key!r} is empty or has a NUL, which PostgreSQL can't hold")
    if len(key.encode()) > _LONGEST_KEY:
        raise ValueError(f"key {key[:40]!r}... has {len(key.encode()):,} bytes: use {_LONGEST_KEY:,} at most")
    return key


def _name(server: PostgresPlace) -> tuple[str, str]:
    return ("postgres", server.uri)


async def _acquire(server: PostgresPlace, resources: Resources) -> PostgresStore:
    async def make() -> PostgresStore:
        return PostgresStore(server, resources)

    return await resources.acquire(_name(server), make)


@asynccontextmanager
async def postgres_store(uri: str, resources: Resources) -> AsyncIterator[PostgresStore]:
    """Lend the store of a database, while the block lasts."""
    server = parse_postgres_url(uri)
    store = await _acquire(server, resources)
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await resources.release(_name(server))
