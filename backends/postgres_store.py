"""One PostgreSQL database as the actors of a runtime share it: their writes go out together, and so do their reads.

A batch of writes is one statement, so one round trip and one fsync; only several tables, or more than 32 MiB, make
it a transaction of several. Writes, reads and queries have a connection each; a slow query delays no commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from random import random
from typing import Any, NamedTuple, TypeVar

import anyio
from psycopg import AsyncConnection

from dgents.backends.batcher import Batcher
from dgents.backends.postgres_commit import CommitBatch, Statement
from dgents.backends.postgres_errors import code_of
from dgents.backends.postgres_fence import Found, Sent
from dgents.backends.postgres_place import PostgresPlace, parse_table_name
from dgents.backends.postgres_read import claim_states, look_at, read_history, read_requests, settle
from dgents.backends.postgres_schema import find_table, open_table
from dgents.backends.postgres_session import DURABLE, ISOLATION, PLANS, Session
from dgents.backends.postgres_tables import STATES, StatesTable, commit_statement
from dgents.backends.postgres_watch import Subscriber
from dgents.runtime.contract import Record, Request, Resources, Write
from dgents.runtime.errors import DgentError, StorageError
from dgents.runtime.loops import running_loop

T = TypeVar("T")
Connection = AsyncConnection[Any]
Tables = dict[str, StatesTable]

_ATTEMPTS = 5
_PAUSE = 0.005  # seconds, at most before the second attempt
_IN_THE_WAY = ("40001", "40P01")  # serialization failure, deadlock
_ONE_IS_BAD = ("22", "23", "54")  # an error of one row that undid the whole batch


class Place(NamedTuple):
    """Where one state is."""

    table: str
    key: str


class PostgresStore:
    """Commits what many actors write in one transaction. Survives failures: the next call connects anew."""

    most_writes = 256  # in one commit: the server works on them while we prepare the next

    def __init__(self, place: PostgresPlace, resources: Resources) -> None:
        self.place = place
        self.subscriber = Subscriber(place, resources)
        self._resources = resources
        self._loop = running_loop()
        self._writer = Session(place, PLANS, ISOLATION, DURABLE, on_unsafe=self._warn)
        self._reader = Session(place, PLANS, ISOLATION)
        self._asker = Session(place)
        self._tables: Tables = {}
        self._kinds: dict[str, str] = {}
        self._making = anyio.Lock()
        self._schemas: set[tuple[str, int]] = set()
        self._claims: Batcher[Place, Found] = Batcher(self._claim_all)
        self._looks: Batcher[Place, Found] = Batcher(self._look_all)
        self._questions: Batcher[str, bool] = Batcher(self._has_tables)

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Compare and set; see `contract.Store.commit`.

        Raises:
            StorageError: the connection failed in between (``unknown``), the server refused the batch, or it lost
                writes of an exclusive owner, who has to open its state again.
        """
        batch = CommitBatch(writes)
        for backend in batch.strangers():
            backend.fence.see((await self.look(Place(backend.table, backend.key))).head)
        batch.refuse_strangers()
        if batch.todo:
            tables = await self._prepare_all(name for name, _ in batch.schemas())
            await self._resources.run_asyncio(self._commit, batch, tables)
        crash = batch.crash()
        if crash is not None:
            raise crash
        return batch.answers

    async def prepare(self, table: str) -> StatesTable:
        """Return the table, made if it isn't there.

        Raises:
            StorageError: it can't be made, or is not ours.
        """
        async with self._making:
            if table not in self._tables:
                kind = self._kinds.get(table, STATES)
                work = partial(open_table, name=parse_table_name(table), place=self.place, kind=kind)
                self._tables[table] = await self._run(self._writer, work)
            return self._tables[table]

    async def _prepare_all(self, names: Iterable[str]) -> Tables:
        """Return the tables of these names: the caller's own, since a failure elsewhere forgets the shared ones."""
        return {name: self._tables.get(name) or await self.prepare(name) for name in names}

    def declare(self, table: str, kind: str) -> None:
        """Say what a table holds, before it is used; two kinds in one table are refused by the database's registry."""
        if self._kinds.setdefault(table, kind) != kind:
            raise StorageError(
                f"table {table!r} of {self.place.safe} holds {self._kinds[table]}, not {kind}",
                retryable=False,
                hint="name another table",
            )

    async def has_table(self, name: str) -> bool:
        """Say whether there are states of this name; nothing is made."""
        return await self._questions.submit(name)

    async def claim(self, place: Place) -> Found:
        """Make a state one's own, with the next epoch; earlier owners can't write from now on."""
        await self.prepare(place.table)
        return await self._claims.submit(place)

    async def look(self, place: Place) -> Found:
        """Return a state as any process last committed it."""
        await self.prepare(place.table)
        return await self._looks.submit(place)

    async def history(self, place: Place, limit: int) -> list[Record]:
        """Return the newest ``limit`` versions, oldest first."""
        table = await self.prepare(place.table)
        return await self._run(self._reader, lambda it: read_history(it, table, place.key, limit, self.place.safe))

    async def requests(self, place: Place) -> list[Request]:
        """Return the remembered requests, oldest first."""
        table = await self.prepare(place.table)
        return await self._run(self._reader, lambda it: read_requests(it, table, place.key, self.place.safe))

    async def settle(self, place: Place, sent: Sent) -> tuple[Found, int | None]:
        """Make sure that a write which has not arrived never will, and return what is stored.

        Returns:
            the state, and the mark of the version that the write would have made, None if that is not kept.
        """
        table = await self.prepare(place.table)
        return await self._run(self._writer, lambda it: settle(it, table, place.key, sent, self.place.safe))

    async def ask(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a query of a user's on a connection of its own."""
        return await self._run(self._asker, work)

    async def look_up(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a read of ours."""
        return await self._run(self._reader, work)

    async def change(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a change of ours besides the commits."""
        return await self._run(self._writer, work)

    async def close(self) -> None:
        """Close the connections; the last one of the runtime's actors has let go of them."""
        await self._resources.run_asyncio(self._close)

    async def _close(self) -> None:
        await self.subscriber.close()
        for session in (self._writer, self._reader, self._asker):
            await session.close()

    async def _run(self, session: Session, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return await self._resources.run_asyncio(session.run, work)
        except StorageError as error:
            self._forget_tables(error)
            raise

    def _forget_tables(self, error: StorageError) -> None:
        """Look for the tables anew after they turned out to be gone, or the server came back with other data."""
        if code_of(error.__cause__) in ("42P01", ""):
            self._tables.clear()
            self._schemas.clear()

    async def _commit(self, batch: CommitBatch, tables: Tables) -> None:
        """Store a batch; on the asyncio loop."""
        statements = batch.statements()
        try:
            refused = await self._execute(statements, tables, batch.schemas() - self._schemas)
        except StorageError as error:
            self._forget_tables(error)
            if error.outcome == "unknown":
                raise
            batch.roll_back()
            if code_of(error.__cause__).startswith(_ONE_IS_BAD) and len(batch.todo) > 1:
                await self._commit_singly(batch, tables)
            elif error.retryable:
                raise
            else:
                batch.refuse_all(error)
            return
        lost = batch.take(statements, refused)
        if lost:
            places = [Place(*batch.place(i)) for i in lost]
            for i, found in zip(lost, await self._by_table(self._writer, look_at, places, tables), strict=True):
                if isinstance(found, Found):
                    batch.refuse(i, found.head)
                else:
                    batch.answers[i] = found

    async def _commit_singly(self, batch: CommitBatch, tables: Tables) -> None:
        """Store what can be stored of a batch in which one write has something that the server won't take."""
        for i, single in batch.singles():
            await self._commit(single, tables)
            batch.answers[i] = single.answers[0]

    async def _execute(
        self, statements: list[Statement], tables: Tables, schemas: set[tuple[str, int]]
    ) -> list[set[str]]:
        """Execute a batch as one transaction, again if others were in the way; return the keys that were refused."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if schemas:
                    await self._writer.run(lambda it: self._register(it, tables, schemas))
                return await self._writer.run(lambda it: _transact(it, statements, tables), outcome="unknown")
            except StorageError as error:
                if attempt == _ATTEMPTS or code_of(error.__cause__) not in _IN_THE_WAY:
                    raise
            await asyncio.sleep(random() * _PAUSE * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _register(self, connection: Connection, tables: Tables, schemas: set[tuple[str, int]]) -> None:
        """Note which schema versions are in a table, before they are: a query may ask for states without saying."""
        for name, schema in schemas:
            table = tables[name]
            await connection.execute(table.add_schema, {"name": table.name, "schema": schema})
            self._schemas.add((name, schema))

    async def _claim_all(self, places: list[Place]) -> Sequence[Found | Exception]:
        return await self._together(self._writer, claim_states, places)

    async def _has_tables(self, names: list[str]) -> Sequence[bool]:
        found = {}
        for name in set(names):
            work = partial(find_table, name=parse_table_name(name), place=self.place)
            _, found[name] = await self._run(self._reader, work)
        return [found[name] for name in names]

    async def _look_all(self, places: list[Place]) -> Sequence[Found | Exception]:
        return await self._together(self._reader, look_at, places)

    async def _together(self, session: Session, work: Any, places: list[Place]) -> Sequence[Found | DgentError]:
        tables = await self._prepare_all({place.table for place in places})
        try:
            return await self._resources.run_asyncio(self._by_table, session, work, places, tables)
        except StorageError as error:
            self._forget_tables(error)
            raise

    async def _by_table(
        self, session: Session, work: Any, places: list[Place], tables: Tables
    ) -> Sequence[Found | DgentError]:
        """Ask for many states: one statement a table, and one more for each time that a key comes again."""
        answers: dict[int, Found | DgentError] = {}
        rest = list(range(len(places)))
        while rest:
            table = places[rest[0]].table
            chosen: dict[str, int] = {}
            for i in rest:
                if places[i].table == table:
                    chosen.setdefault(places[i].key, i)
            keys = sorted(chosen, key=str.encode)
            found = await self._ask_of(session, partial(work, table=tables[table], place=self.place.safe), keys)
            answers |= {chosen[key]: one for key, one in zip(keys, found, strict=True)}
            rest = [i for i in rest if i not in answers]
        return [answers[i] for i in range(len(places))]

    async def _ask_of(self, session: Session, work: Any, keys: list[str]) -> Sequence[Found | DgentError]:
        """Ask for states; a key that the database can't hold is refused alone."""
        try:
            found: Sequence[Found | DgentError] = await session.run(partial(work, keys=keys))
            return found
        except StorageError as error:
            if not code_of(error.__cause__).startswith(_ONE_IS_BAD):
                raise
            if len(keys) == 1:
                return [error]
        return [one for key in keys for one in await self._ask_of(session, work, [key])]

    def _warn(self) -> None:
        message = f"{self.place.safe} has fsync=off: a crash of its machine loses acknowledged writes"
        self._loop.call_threadsafe(partial(self._resources.emit, "warning", None, reason="fsync", message=message))


async def _transact(connection: Connection, statements: list[Statement], tables: Tables) -> list[set[str]]:
    """Execute the statements of a batch; return the keys that each of them refused."""
    if len(statements) == 1:
        return [await _refused(connection, statements[0], tables)]
    async with connection.transaction():
        return [await _refused(connection, statement, tables) for statement in statements]


async def _refused(connection: Connection, statement: Statement, tables: Tables) -> set[str]:
    sql = commit_statement(tables[statement.table], statement.parts)
    cursor = connection.cursor(binary=True)
    await cursor.execute(sql, statement.values, prepare=True)
    return {key for (key,) in await cursor.fetchall()}
