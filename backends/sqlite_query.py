"""Questions in SQL about the states of one table, on a connection that can only read."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from dgents.backends.aggregate import Aggregate
from dgents.backends.sqlite_errors import primary_code
from dgents.backends.sqlite_tables import COLUMNS, StatesTable
from dgents.runtime.errors import StateError, UnsupportedOperationError

Parameters = Sequence[Any] | Mapping[str, Any]

_REFUSED = {sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY}
_REFUSALS = ("not authorized", "one statement at a time")
_ASKED_WRONGLY = {0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_MISMATCH}


def query_states(
    connection: sqlite3.Connection, table: StatesTable, sql: str, parameters: Parameters
) -> list[tuple[bytes, int]]:
    """Return the column ``state`` of what ``sql`` selects, and each one's schema version; no tombstones.

    Raises:
        UnsupportedOperationError: it would write, has no column ``state``, or leaves the schema version open.
        StateError: it is no valid SQL.
    """
    cursor = _execute(connection, sql, parameters)
    names = [column[0].lower() for column in cursor.description or ()]
    if "state" not in names:
        raise UnsupportedOperationError(
            "a query answers with states, and this one selects no column named state",
            hint="SELECT state FROM ..., or use aggregate",
        )
    state = names.index("state")
    rows = [row for row in cursor.fetchall() if row[state] is not None]
    if not all(isinstance(row[state], bytes) for row in rows):
        raise UnsupportedOperationError(
            "the column state of this query is not the stored one", hint="SELECT state as it is"
        )
    if "schema" in names:
        schema = names.index("schema")
        return [(row[state], int(row[schema])) for row in rows]
    only = _only_schema(connection, table)
    return [(row[state], only) for row in rows]


def aggregate_states(
    connection: sqlite3.Connection,
    table: StatesTable,
    aggregate: Aggregate,
    where: str | None,
    parameters: Parameters,
) -> Any:
    """Return the one value of ``aggregate`` over all rows of the table for which ``where`` holds.

    Raises:
        UnsupportedOperationError: a column is unknown, or ``where`` would write.
        StateError: ``where`` is no valid SQL.
    """
    sql = aggregate.to_sql(f'"{table.name}"', _column_sql, where)
    return _execute(connection, sql, parameters).fetchone()[0]


def _column_sql(name: str) -> str:
    column, _, path = name.partition(".")
    if column.lower() not in COLUMNS or (path and column.lower() != "state"):
        raise UnsupportedOperationError(
            f"there is no column {name!r}",
            hint=f"there are {', '.join(COLUMNS)}, and fields like state.score",
        )
    return f"json_extract(state_json(state), '$.{path}')" if path else f'"{column}"'


def _execute(connection: sqlite3.Connection, sql: str, parameters: Parameters) -> sqlite3.Cursor:
    try:
        return connection.execute(sql, parameters)
    except (sqlite3.Error, sqlite3.Warning) as error:
        code = primary_code(error) if isinstance(error, sqlite3.Error) else 0
        if code in _REFUSED or any(words in str(error) for words in _REFUSALS):
            raise UnsupportedOperationError(
                f"query refused: {error}",
                hint="it only reads, one SELECT at a time; change states by save or update",
            ) from error
        if code in _ASKED_WRONGLY:
            raise StateError(f"query failed: {error}", hint="see docs/sqlite-format.md for the tables") from error
        raise


def _only_schema(connection: sqlite3.Connection, table: StatesTable) -> int:
    lowest, highest = connection.execute(table.schemas, (table.name,)).fetchone()
    if lowest != highest:
        raise UnsupportedOperationError(
            f"table {table.name!r} holds schema versions {lowest} to {highest}; this query doesn't say which",
            hint="select the column schema too: SELECT state, schema FROM ...",
        )
    return int(lowest or 1)
