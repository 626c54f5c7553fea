"""The store that commits the states of one SQLite database, for all actors of one runtime."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dgents.backends.batcher import Batcher
from dgents.backends.sqlite_connection import BUSY_TIMEOUT
from dgents.backends.sqlite_database import SqliteDatabase
from dgents.backends.sqlite_transactions import (
    Claim,
    Place,
    claim_states,
    locked_by,
    read_history,
    read_requests,
    read_states,
    release_states,
    was_written,
    write_states,
)
from dgents.runtime.contract import Opened, Record, Request, Resources, Write
from dgents.runtime.errors import DgentError

if TYPE_CHECKING:
    from dgents.backends.sqlite import SqliteBackend


class SqliteStore:
    """Commits what many actors write in one transaction, and reads what many of them ask for in another.

    Survives failures of its database: the next `claim` or `look` opens it anew.
    """

    def __init__(self, path: str, resources: Resources, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.path = path
        self.database = SqliteDatabase(path, resources, busy_timeout=busy_timeout)
        self._holders: dict[tuple[str, str], object] = {}
        self._claims: Batcher[Claim, Opened] = Batcher(self._claim_all)
        self._looks: Batcher[Place, Opened] = Batcher(self._look_all)
        self._releases: Batcher[Place, None] = Batcher(self._release_all)
        self._questions: Batcher[str, bool] = Batcher(self._has_tables)

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Make the writes durable in one transaction with one fsync; see `contract.Store.commit`."""
        schemas, owners = self.database.schemas, self.database.owners
        answers = await self.database.write(lambda connection: write_states(connection, writes, schemas, owners))
        for write, refusal in zip(writes, answers, strict=True):
            backend: SqliteBackend = write.backend  # type: ignore[assignment]  # a store gets only its own
            if backend.kept == 1 and refusal is None and backend.ownership == "exclusive":
                backend.has_one_row = True
        return answers

    async def claim(self, place: Place, actor: str, holder: object) -> Opened:
        """Make a state ``holder``'s own, with the next epoch.

        Raises:
            StateLockedError: another process owns it, or another holder in this runtime.
            StateCorruptionError: it can't be trusted.
            StorageError: the database failed.
        """
        name = (place.table.name, place.key)
        if self._holders.setdefault(name, holder) is not holder:
            here = self.database.owners.states.get(name)
            raise locked_by(os.getpid(), socket.gethostname(), here, place, actor, self.path)
        self.database.owners.states[name] = actor
        await self.database.prepare(place.table)
        return await self._claims.submit(Claim(place, actor))

    async def release(self, place: Place, holder: object) -> None:
        """Give a state back for others to own; also after a `claim` that failed or was cancelled."""
        name = (place.table.name, place.key)
        if self._holders.get(name) is not holder:
            return
        try:
            await self._releases.submit(place)
        finally:
            self._holders.pop(name, None)
            self.database.owners.states.pop(name, None)

    async def look(self, place: Place) -> Opened:
        """Return a state as any process last committed it, and its epoch."""
        await self.database.prepare(place.table)
        return await self._looks.submit(place)

    async def history(self, place: Place, limit: int) -> list[Record]:
        """Return the newest ``limit`` versions, oldest first."""
        return await self.database.read(lambda connection: read_history(connection, place, limit, self.path))

    async def requests(self, place: Place) -> list[Request]:
        """Return the remembered requests, oldest first."""
        return await self.database.read(lambda connection: read_requests(connection, place, self.path))

    async def was_written(self, place: Place, record: Record) -> bool | None:
        """Tell whether exactly this version was stored; None if that can't be known any more."""
        return await self.database.read(lambda connection: was_written(connection, place, record, self.path))

    async def has_table(self, name: str) -> bool:
        """Say whether the database has a table; nothing is made."""
        return await self._questions.submit(name)

    async def close(self) -> None:
        """Close the database; the last one of the runtime's actors has let go of it."""
        await self.database.close()

    async def _claim_all(self, claims: list[Claim]) -> Sequence[Opened | Exception]:
        owners, path = self.database.owners, self.path
        return await self.database.write(lambda connection: claim_states(connection, claims, owners, path))

    async def _look_all(self, places: list[Place]) -> Sequence[Opened | Exception]:
        return await self.database.read(lambda connection: read_states(connection, places, self.path))

    async def _release_all(self, places: list[Place]) -> Sequence[None]:
        token = self.database.owners.token
        await self.database.write_soon(lambda connection: release_states(connection, places, token))
        return [None] * len(places)

    async def _has_tables(self, names: list[str]) -> Sequence[bool]:
        rows = await self.database.read(lambda it: it.execute("SELECT name FROM sqlite_schema").fetchall())
        return [(name,) in rows for name in names]
