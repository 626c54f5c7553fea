"""The tables that hold states: their SQL, their checksums, and whether they are ours.

The table that the user names has one row a version; beside it ``<table>_heads`` says which version of each
state is the current one, of which epoch, and who owns it; ``<table>_requests`` remembers the request ids that
were applied; ``<table>_current`` is a view of the current versions. docs/sqlite-format.md has every column.
"""

from __future__ import annotations

import re
import sqlite3
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from zlib import crc32

from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError, StorageError

FORMAT = 1
KIND = "states"
COLUMNS = ("key", "version", "epoch", "timestamp", "schema", "checksum", "state")

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}", re.ASCII)
_NUMBERS = struct.Struct("<qqqd?")
_REQUEST_NUMBERS = struct.Struct("<qq?")

REGISTRY = """
CREATE TABLE IF NOT EXISTS dgents_tables (
    name TEXT NOT NULL PRIMARY KEY, kind TEXT NOT NULL, format INTEGER NOT NULL,
    lowest_schema INTEGER, highest_schema INTEGER
) WITHOUT ROWID"""


def check_table_name(name: str) -> str:
    """Return ``name`` if it can name a table: letters, digits and underscores, 60 at most.

    Raises:
        ValueError: it can't, or it is reserved for SQLite or for this library.
    """
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"table {name!r} is no name for a table: use letters, digits and underscores, 60 at most")
    if name.lower().startswith(("sqlite_", "dgents_", "pg_")):
        raise ValueError(f"table {name!r} is a reserved name: choose one that does not begin so")
    return name


class StatesTable:
    """The statements for the states in one table; see `states_table`."""

    kind = KIND

    def __init__(self, name: str) -> None:
        self.name = check_table_name(name)
        rows, heads, requests = f'"{name}"', f'"{name}_heads"', f'"{name}_requests"'
        self.objects: tuple[str, ...] = (name, f"{name}_heads", f"{name}_requests", f"{name}_current")
        columns = ", ".join(COLUMNS)
        # Rows are stored in the order of their arrival, not of their keys: a batch of 1,000 keys then fills
        # 150 pages one after the other, where it would change 1,000 pages all over the file.
        self.create: tuple[str, ...] = (
            f"""CREATE TABLE {rows} (
                key TEXT NOT NULL, version INTEGER NOT NULL, epoch INTEGER NOT NULL, timestamp REAL NOT NULL,
                schema INTEGER NOT NULL, checksum INTEGER NOT NULL, state BLOB, PRIMARY KEY (key, version)
            )""",
            f"""CREATE TABLE {heads} (
                key TEXT NOT NULL PRIMARY KEY, version INTEGER NOT NULL, epoch INTEGER NOT NULL,
                oldest INTEGER NOT NULL, requests INTEGER NOT NULL, owner TEXT
            ) WITHOUT ROWID""",
            f"""CREATE TABLE {requests} (
                key TEXT NOT NULL, number INTEGER NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL,
                checksum INTEGER NOT NULL, result BLOB, PRIMARY KEY (key, number)
            )""",
            f"""CREATE VIEW "{name}_current" AS SELECT {rows}.* FROM {heads}
                JOIN {rows} USING (key, version) WHERE state IS NOT NULL""",
        )
        self.head = f"SELECT version, epoch, oldest, owner FROM {heads} WHERE key = ?"
        self.newest = f"SELECT {columns} FROM {rows} WHERE key = ? ORDER BY version DESC LIMIT ?"
        self.version = f"SELECT {columns} FROM {rows} WHERE key = ? AND version = ?"
        self.keys = f"SELECT key FROM {rows} UNION SELECT key FROM {heads} ORDER BY key"
        self.summary = f"""SELECT key, version, r.epoch, timestamp, length(state),
            (SELECT count(*) FROM {rows} AS kept WHERE kept.key = h.key)
            FROM {heads} AS h JOIN {rows} AS r USING (key, version) ORDER BY key"""
        self.claim = f"""INSERT INTO {heads} VALUES (?1, 0, 1, 1, 0, ?2)
            ON CONFLICT (key) DO UPDATE SET epoch = epoch + 1, owner = ?2"""
        self.release = f"UPDATE {heads} SET owner = NULL WHERE key = ? AND owner = ?"
        self.advance_owned = f"""UPDATE {heads} SET version = ?1, oldest = max(oldest, ?2)
            WHERE key = ?3 AND version = ?4 AND epoch = ?5"""
        self.advance_shared = f"""UPDATE {heads} SET version = ?1, oldest = max(oldest, ?2)
            WHERE key = ?3 AND version = ?4 AND owner IS NULL"""
        self.begin_shared = f"INSERT OR IGNORE INTO {heads} VALUES (?3, ?1, ?4, ?2, 0, NULL)"
        self.insert = f"INSERT INTO {rows} VALUES (?, ?, ?, ?, ?, ?, ?)"
        self.replace = f"""UPDATE {rows} SET version = ?2, epoch = ?3, timestamp = ?4, schema = ?5, checksum = ?6,
            state = ?7 WHERE key = ?1 AND version = ?8"""
        self.trim = f"DELETE FROM {rows} WHERE key = ? AND version <= ?"
        self.count_requests = f"UPDATE {heads} SET requests = requests + ? WHERE key = ?"
        self.requests_so_far = f"SELECT requests FROM {heads} WHERE key = ?"
        self.insert_request = f"INSERT INTO {requests} VALUES (?, ?, ?, ?, ?, ?)"
        self.trim_requests = f"DELETE FROM {requests} WHERE key = ? AND number <= ?"
        self.read_requests = f"SELECT * FROM {requests} WHERE key = ? ORDER BY number"
        self.schemas = "SELECT lowest_schema, highest_schema FROM dgents_tables WHERE name = ?"
        self.add_schema = """UPDATE dgents_tables SET lowest_schema = min(coalesce(lowest_schema, ?1), ?1),
            highest_schema = max(coalesce(highest_schema, ?1), ?1)
            WHERE name = ?2 AND (lowest_schema IS NULL OR ?1 NOT BETWEEN lowest_schema AND highest_schema)"""

    def is_ready(self, connection: sqlite3.Connection, path: str) -> bool:
        """Say whether the tables are there; nothing is changed.

        Raises:
            StorageError: something else has one of the names, or a newer release made them.
        """
        marks = ", ".join("?" * len(self.objects))
        taken = connection.execute(
            f"SELECT name FROM sqlite_schema WHERE name COLLATE NOCASE IN ({marks})", self.objects
        ).fetchall()
        if not taken:
            return False
        entry = None
        if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'dgents_tables'").fetchone():
            select = "SELECT kind, format FROM dgents_tables WHERE name = ?"
            entry = connection.execute(select, (self.name,)).fetchone()
        if entry is None or entry[0] != self.kind:
            raise StorageError(
                f"the database {path} has a {taken[0][0]!r} that dgents did not make for {self.kind}",
                retryable=False,
                hint="it was not touched; name another table",
            )
        if entry[1] > FORMAT:
            raise StorageError(
                f"table {self.name!r} of {path} has format {entry[1]}, this release reads up to {FORMAT}",
                retryable=False,
                hint="it was not touched; use a newer dgents",
            )
        return True

    def make(self, connection: sqlite3.Connection) -> None:
        """Create the tables; the caller is in a transaction and has found that they are not there."""
        connection.execute(REGISTRY)
        for statement in self.create:
            connection.execute(statement)
        connection.execute("INSERT INTO dgents_tables VALUES (?, ?, ?, NULL, NULL)", (self.name, self.kind, FORMAT))


@lru_cache(maxsize=256)
def states_table(name: str) -> StatesTable:
    """Return the statements for the table ``name``, the same ones each time: a batch is grouped by them.

    Raises:
        ValueError: ``name`` can't name a table.
    """
    return StatesTable(name)


def to_row(key: str, record: Record) -> tuple[Any, ...]:
    """Return the columns of one version, in the order of `COLUMNS`."""
    return (
        key,
        record.version,
        record.epoch,
        record.saved_at,
        record.schema,
        _row_checksum(key, record.version, record.epoch, record.schema, record.saved_at, record.data),
        record.data,
    )


def to_record(row: Sequence[Any], path: str) -> Record:
    """Return the version in ``row``.

    Raises:
        StateCorruptionError: it is not what was written.
    """
    key, version, epoch, saved_at, schema, checksum, data = row
    try:
        intact = checksum == _row_checksum(key, version, epoch, schema, saved_at, data)
    except (TypeError, AttributeError, struct.error):
        intact = False
    if not intact:
        raise corrupt(path, key, f"version {version} fails its checksum")
    return Record(version, epoch, saved_at, data, schema)


def to_request_row(key: str, number: int, request: Request) -> tuple[Any, ...]:
    """Return the columns of a remembered request."""
    checksum = _request_checksum(key, number, request.id, request.version, request.result)
    return key, number, request.id, request.version, checksum, request.result


def to_request(row: Sequence[Any], path: str) -> Request:
    """Return the remembered request in ``row``.

    Raises:
        StateCorruptionError: it is not what was written.
    """
    key, number, id, version, checksum, result = row
    try:
        intact = checksum == _request_checksum(key, number, id, version, result)
    except (TypeError, AttributeError, struct.error):
        intact = False
    if not intact:
        raise corrupt(path, key, f"request {number} fails its checksum")
    return Request(id, version, result)


def corrupt(path: str, key: str, what: str) -> StateCorruptionError:
    """Return the error for a state that can't be trusted."""
    return StateCorruptionError(
        f"the state {key!r} in the database {path} is damaged: {what}",
        path=path,
        key=key,
        hint="it was left as it is; run `dgents verify` on the database, or restore a copy",
    )


def _row_checksum(key: str, version: int, epoch: int, schema: int, saved_at: float, data: bytes | None) -> int:
    start = crc32(key.encode(), crc32(_NUMBERS.pack(version, epoch, schema, saved_at, data is None)))
    return crc32(data or b"", start)


def _request_checksum(key: str, number: int, id: str, version: int, result: bytes | None) -> int:
    start = crc32(
        id.encode(),
        crc32(key.encode() + b"\0", crc32(_REQUEST_NUMBERS.pack(number, version, result is None))),
    )
    return crc32(result or b"", start)
