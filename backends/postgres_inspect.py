"""A look into a PostgreSQL database from outside, for the command line: blocking, and only reading."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import psycopg

from dgents.backends.event_codec import StoredEvent
from dgents.backends.postgres_errors import translate
from dgents.backends.postgres_place import parse_postgres_url, parse_table_name
from dgents.backends.postgres_read import decode_history, decode_requests
from dgents.backends.postgres_schema import LOCATE, check_entry
from dgents.backends.postgres_tables import EVENTS, STATES, StatesTable
from dgents.backends.sqlite_inspect import StoredState, to_event
from dgents.backends.sqlite_tables import COLUMNS, to_record
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError, StorageError

_EVERYTHING = 2**62


class PostgresInspector:
    """Reads the states of a database that other processes may be using.

    Raises:
        ValueError: ``uri`` is no URL of a PostgreSQL.
        StorageError: it can't be reached, or refuses.
    """

    def __init__(self, uri: str) -> None:
        self.place = parse_postgres_url(uri)
        try:
            self._connection = psycopg.connect(uri, autocommit=True, **self.place.options)
            self._connection.read_only = True
        except psycopg.Error as error:
            raise translate(error, self.place, outcome="rolled_back") from error
        self._located = lru_cache(self._locate)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    verifies_streams = False

    def streams(self) -> tuple[int, int]:
        """Return how many streams the database holds, and how many events."""
        places = [parse_table_name(name) for name in self.tables(EVENTS)]
        (first,) = self._rows("SELECT current_schema()")[0]
        counts = [
            self._rows(f'SELECT count(DISTINCT key), count(*) FROM "{schema or first}"."{name}"')[0]
            for schema, name in places
        ]
        return sum(streams for streams, _ in counts), sum(events for _, events in counts)

    def stream(self, key: str) -> Iterator[tuple[str, list[StoredEvent]]]:
        """Yield the events of the streams of this name, each with the table that it is in.

        Raises:
            StateCorruptionError: an event fails its checksum.
        """
        (first,) = self._rows("SELECT current_schema()")[0]
        for name in self.tables(EVENTS):
            schema, bare = parse_table_name(name)
            columns = ", ".join(COLUMNS)
            sql = f'SELECT {columns} FROM "{schema or first}"."{bare}" WHERE key = %(key)s ORDER BY version'
            if rows := self._rows(sql, {"key": key}):
                yield name, [to_event(row, self.place.safe) for row in rows]

    def tables(self, kind: str = STATES) -> list[str]:
        """Return the tables that hold states, each with its schema if that is not the first of the search path."""
        found = []
        schemas = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'dgents_tables' ORDER BY 1"
        (first,) = self._rows("SELECT current_schema()")[0]
        for (schema,) in self._rows(schemas):
            bare = schema.strip('"')
            names = self._rows(f'SELECT name FROM "{bare}".dgents_tables WHERE kind = %s ORDER BY name', (kind,))
            found += [name if bare == first else f"{bare}.{name}" for (name,) in names]
        return found

    def states(self, table: str) -> Iterator[StoredState]:
        """Yield the states of ``table`` that were ever saved, by key."""
        yield from (StoredState(*row) for row in self._rows(self._located(table).summary))

    def history(self, table: str, key: str) -> list[Record]:
        """Return every version of one state that is kept, oldest first.

        Raises:
            StateCorruptionError: one fails its checksum or is missing.
        """
        rows = self._rows(self._located(table).history, {"key": key, "limit": _EVERYTHING})
        return decode_history(rows, key, _EVERYTHING, self.place.safe)

    def requests(self, table: str, key: str) -> list[Request]:
        """Return the remembered request ids of one state, oldest first.

        Raises:
            StateCorruptionError: one fails its checksum or is missing.
        """
        return decode_requests(self._rows(self._located(table).read_requests, {"key": key}), key, self.place.safe)

    def verify(self) -> Iterator[StateCorruptionError]:
        """Yield what is wrong with the tables: rows, missing versions, lost heads."""
        for name in self.tables():
            for (key,) in self._rows(self._located(name).keys):
                yield from self._verify_state(name, key)

    def _verify_state(self, name: str, key: str) -> Iterator[StateCorruptionError]:
        table, damaged = self._located(name), False
        columns = ", ".join(COLUMNS)
        for row in self._rows(f"SELECT {columns} FROM {table.rows} WHERE key = %(key)s", {"key": key}):
            try:
                to_record(row, self.place.safe)
            except StateCorruptionError as error:
                damaged = True
                yield error
        for check in (self.requests, self.history)[: 1 if damaged else 2]:
            try:
                check(name, key)
            except StateCorruptionError as error:
                yield error

    def _locate(self, name: str) -> StatesTable:
        """Return a table's statements.

        Raises:
            StorageError: there is none, or it is not ours.
        """
        schema, bare = parse_table_name(name)
        names = list(StatesTable("", bare).objects)
        rows = self._rows(LOCATE, {"schema": schema, "name": bare, "names": names})
        if not rows or not rows[0][2]:
            raise StorageError(f"there is no table {name!r} of states in {self.place.safe}", retryable=False)
        found, has_registry, taken = rows[0]
        table = StatesTable(found, bare)
        entries = self._rows(table.registered, {"name": bare}) if has_registry else []
        check_entry(table, entries[0] if entries else None, taken, self.place)
        return table

    def _rows(self, sql: str, values: Any = None) -> list[Any]:
        try:
            # As binary: text would depend on settings, as on how many digits of a time are told.
            return self._connection.cursor(binary=True).execute(sql.encode(), values).fetchall()
        except psycopg.Error as error:
            raise translate(error, self.place, outcome="rolled_back") from error
