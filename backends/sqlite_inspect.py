"""A look into a database from outside, for the command line: blocking, and without changing a byte of it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import msgspec

from dgents.backends.chain import GENESIS, Links
from dgents.backends.chain_head import check_head, check_reach, reach_of
from dgents.backends.event_codec import StoredEvent, from_data
from dgents.backends.event_log import CHUNK, LogState, unpack_snapshot
from dgents.backends.event_log_sqlite import EventsTable, events_table
from dgents.backends.seal import read_head
from dgents.backends.sqlite_connection import BUSY_TIMEOUT, attempt, connect_readonly, transact
from dgents.backends.sqlite_tables import COLUMNS, KIND, corrupt, states_table, to_record
from dgents.backends.sqlite_transactions import Place, read_history, read_requests, read_states
from dgents.backends.stream_checks import check_length
from dgents.runtime.contract import Opened, Record, Request
from dgents.runtime.errors import StateCorruptionError, StorageError

T = TypeVar("T")

_EVERYTHING = 2**62


class StoredState(NamedTuple):
    """One state of a table; ``size`` in bytes is that of the current version, None if it was deleted."""

    key: str
    version: int
    epoch: int
    saved_at: float
    size: int | None
    versions: int


class SqliteInspector:
    """Reads the states of a database that other processes may be using.

    Raises:
        StorageError: there is no such file, or it can't be opened.

    Example:
        with SqliteInspector("state.db") as database:
            for state in database.states("states"):
                print(state.key, state.version)
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not os.path.isfile(path):
            raise StorageError(f"there is no database {path}", retryable=False, hint="check the path")
        self._connection = connect_readonly(path, BUSY_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def tables(self) -> list[str]:
        """Return the tables that hold states.

        Raises:
            StateCorruptionError: the file is no database, or a broken one.
        """
        names = self._read(_table_names)
        for name in names:
            self._read(partial(states_table(name).is_ready, path=self.path))
        return names

    def states(self, table: str) -> Iterator[StoredState]:
        """Yield the states of ``table`` that were ever saved, by key."""
        yield from (StoredState(*row) for row in self._rows(states_table(table).summary))

    def current(self, table: str, key: str) -> Record | None:
        """Return the current version of one state.

        Raises:
            StateCorruptionError: it can't be trusted.
        """
        place = Place(states_table(table), key)
        (answer,) = self._read(lambda connection: read_states(connection, [place], self.path))
        if not isinstance(answer, Opened):
            raise answer
        return answer.record

    def history(self, table: str, key: str) -> list[Record]:
        """Return every version of one state that is kept, oldest first.

        Raises:
            StateCorruptionError: one fails its checksum or is missing.
        """
        place = Place(states_table(table), key)
        return self._read(lambda connection: read_history(connection, place, _EVERYTHING, self.path))

    def requests(self, table: str, key: str) -> list[Request]:
        """Return the remembered request ids of one state, oldest first.

        Raises:
            StateCorruptionError: one fails its checksum or is missing.
        """
        place = Place(states_table(table), key)
        return self._read(lambda connection: read_requests(connection, place, self.path))

    verifies_streams = True

    def streams(self) -> tuple[int, int]:
        """Return how many streams the database holds, and how many events."""
        counts = [
            self._rows(f'SELECT count(DISTINCT key), count(*) FROM "{name}"')[0]
            for name in self._read(partial(_table_names, kind="events"))
        ]
        return sum(streams for streams, _ in counts), sum(events for _, events in counts)

    def stream(self, key: str) -> Iterator[tuple[str, list[StoredEvent]]]:
        """Yield the events of the streams of this name, each with the table that it is in.

        Raises:
            StateCorruptionError: an event fails its checksum.
        """
        for name in self._read(partial(_table_names, kind="events")):
            sql = f'SELECT {", ".join(COLUMNS)} FROM "{name}" WHERE key = ? ORDER BY version'
            if rows := self._rows(sql, (key,)):
                yield name, [to_event(row, self.path) for row in rows]

    def verify(self) -> Iterator[StateCorruptionError]:
        """Yield what is wrong with the database: pages, rows, missing versions, lost heads."""
        for (answer,) in self._rows("PRAGMA integrity_check"):
            if answer != "ok":
                yield StateCorruptionError(f"the database {self.path} is damaged: {answer}", path=self.path)
        for name in self.tables():
            table = states_table(name)
            for (key,) in self._rows(table.keys):
                yield from self._verify_state(Place(table, key))
        for name in self._read(partial(_table_names, kind="events")):
            events = events_table(name)
            for (key,) in self._rows(events.keys):
                yield from self._verify_state(Place(events, key))
                yield from self._verify_chain(events, key)

    def _verify_state(self, place: Place) -> Iterator[StateCorruptionError]:
        damaged = False
        for row in self._rows(place.table.newest, (place.key, _EVERYTHING)):
            try:
                to_record(row, self.path)
            except StateCorruptionError as error:
                damaged = True
                yield error
        checks: list[Callable[[sqlite3.Connection], object]] = [
            lambda connection: read_requests(connection, place, self.path)
        ]
        if not damaged:
            checks.append(lambda connection: read_history(connection, place, _EVERYTHING, self.path))
        for check in checks:
            try:
                self._read(check)
            except StateCorruptionError as error:
                yield error

    def _verify_chain(self, table: EventsTable, key: str) -> Iterator[StateCorruptionError]:
        kept = {kind: content for kind, _, _, content in self._rows(table.kept, (key,))}
        try:
            floor, latest = (unpack_snapshot(kept[kind], key) if kind in kept else None for kind in ("floor", "latest"))
            after = floor.version if floor is not None else 0
            links = Links(key, after, (floor.link if floor is not None else None) or GENESIS)
            reach = reach_of(key, [read_head(key, kept["head"])]) if "head" in kept else None
            until = reach.head.version if reach is not None else _EVERYTHING  # an owner may append meanwhile
            while rows := self._rows(table.after, (key, after, until, CHUNK)):
                events = [from_data(to_record(row, self.path)) for row in rows]
                after = events[-1].version
                if events[0].link is not None:
                    links.follow(events)
            check_length(key, LogState(after, None, 0, floor, latest), 0)
            if reach is not None:
                check_reach(key, reach, after)
                check_head(key, reach.head, after, links.link)
        except msgspec.DecodeError as error:
            yield StateCorruptionError(f"an event of {key!r} in {self.path} can't be read: {error}", path=self.path)
        except StateCorruptionError as error:
            yield error

    def _rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        return self._read(lambda connection: connection.execute(sql, parameters).fetchall())

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return attempt(self._connection, lambda it: transact(it, "DEFERRED", work), self.path, BUSY_TIMEOUT)


def to_event(row: Sequence[Any], path: str) -> StoredEvent:
    """Return the event in a row of a database; raises `StateCorruptionError` if there is none."""
    record = to_record(row, path)
    try:
        return from_data(record)
    except msgspec.DecodeError as error:
        raise corrupt(path, row[0], f"event {record.version} can't be read: {error}") from error


def _table_names(connection: sqlite3.Connection, kind: str = KIND) -> list[str]:
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'dgents_tables'").fetchone():
        return []
    rows = connection.execute("SELECT name FROM dgents_tables WHERE kind = ? ORDER BY name", (kind,))
    return [name for (name,) in rows]
