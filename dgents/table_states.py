"""The states in the tables of a database, read without owning them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from dgents.backends.event_codec import StoredEvent
from dgents.backends.files import storage_errors
from dgents.backends.sql import REMINDERS
from dgents.backends.sqlite_inspect import SqliteInspector
from dgents.places import SQLITE_MAGIC
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError, StorageError
from dgents.stores import Entry, NotOurs, Other, Store, Stored, Summary, counted, stored_stream


@contextmanager
def open_sqlite(path: str, table: str | None = None) -> Iterator[Store]:
    """Open the database at ``path`` while the block lasts; to see only ``table`` of it, if that is given.

    Raises:
        StorageError: there is no such database, or no such table in it.
        StateCorruptionError: it is no database, or a broken one.
    """
    if os.path.isfile(path):
        _check_magic(path)
    with SqliteInspector(path) as database:
        yield _tables_of(database, path, table)


@contextmanager
def open_postgres(uri: str, table: str | None = None) -> Iterator[Store]:
    """Connect to the database at ``uri`` while the block lasts; to see only ``table`` of it, if that is given.

    Raises:
        StorageError: it can't be reached or refuses, or there is no such table in it.
    """
    from dgents.backends.postgres_inspect import PostgresInspector  # its driver is an optional dependency

    with PostgresInspector(uri) as database:
        yield _tables_of(database, database.place.safe, table)


def _check_magic(path: str) -> None:
    with storage_errors(path, "read"), open(path, "rb") as file:
        beginning = file.read(len(SQLITE_MAGIC))
    if beginning and beginning != SQLITE_MAGIC:
        raise NotOurs(
            f"{path} is no SQLite database: it does not begin as one",
            path=path,
            offset=0,
            hint="it was left as it is; check the path, or restore a copy if it was one",
        )


def _tables_of(database: Inspector, place: str, table: str | None) -> TableStates:
    tables = database.tables()
    if table is not None and table not in tables:
        names = ", ".join(repr(name) for name in tables if name != REMINDERS)
        raise StorageError(
            f"there is no table {table!r} of states in {place}",
            retryable=False,
            hint=f"there are {names}" if names else "there is no table of states at all",
        )
    return TableStates(database, [name for name in tables if name != REMINDERS] if table is None else [table])


class StoredState(Protocol):
    """What an inspector of a database says of a state."""

    @property
    def key(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def versions(self) -> int: ...
    @property
    def size(self) -> int | None: ...
    @property
    def saved_at(self) -> float: ...


class Inspector(Protocol):
    """A database of tables of states."""

    def tables(self) -> list[str]: ...
    def states(self, table: str) -> Iterable[StoredState]: ...
    def history(self, table: str, key: str) -> list[Record]: ...
    def requests(self, table: str, key: str) -> list[Request]: ...
    def verify(self) -> Iterable[StateCorruptionError]: ...

    @property
    def verifies_streams(self) -> bool: ...
    def streams(self) -> tuple[int, int]: ...
    def stream(self, key: str) -> Iterable[tuple[str, list[StoredEvent]]]: ...


class TableStates:
    """A row a version; see `stores.Store`."""

    def __init__(self, database: Inspector, tables: list[str]) -> None:
        self._database = database
        self._tables = tables

    def entries(self) -> Iterator[Entry]:
        for table in self._tables:
            for state in self._database.states(table):
                yield self._entry(table, state)

    def find(self, key: str, table: str | None = None) -> list[Stored]:
        chosen = [name for name in self._tables if table in (None, name)]
        found = [self._read(name, key) for name in chosen]
        streams = self._database.stream(key) if table is None else []
        return [
            *(stored for stored in found if stored.records),
            *(stored_stream(name, key, events) for name, events in streams),
        ]

    def damage(self) -> Iterator[StateCorruptionError]:
        yield from self._database.verify()

    def others(self) -> list[Other]:
        streams, events = self._database.streams()
        found = []
        if streams:
            what = f"{counted(streams, 'stream')} with {counted(events, 'event')}"
            found.append(Other(what, self._database.verifies_streams))
        if REMINDERS in self._database.tables() and any(self._database.states(REMINDERS)):
            found.append(Other("reminders", True))
        return found

    def _entry(self, table: str, state: StoredState) -> Entry:
        summary = Summary(table, state.key, state.version, state.versions, state.size, state.saved_at)
        return Entry(lambda: self._read(table, state.key), lambda: summary)

    def _read(self, table: str, key: str) -> Stored:
        return Stored(table, key, self._database.history(table, key), self._database.requests(table, key))
