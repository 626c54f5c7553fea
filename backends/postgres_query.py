"""Questions in SQL about the states of one table, in transactions that can only read."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncCursor

from dgents.backends.aggregate import Aggregate
from dgents.backends.postgres_errors import code_of
from dgents.backends.postgres_tables import COLUMNS, StatesTable
from dgents.runtime.errors import StateError, UnsupportedOperationError

Parameters = Sequence[Any] | Mapping[str, Any]

# Where a `?` is no placeholder: quoted, or in a comment.
_QUOTED = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|--[^\n]*|/\*.*?\*/"
_MARK = re.compile(rf"{_QUOTED}|(?P<mark>\?)|(?P<percent>%)", re.DOTALL)
_PSYCOPG_MARK = re.compile(r"%(?:s|b|t|\(\w+\)[sbt])")
_READS = re.compile(r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:SELECT|WITH|VALUES|TABLE)\b", re.IGNORECASE | re.DOTALL)
_REFUSED = ("25", "42501", "0A000")
_NOT_ITS_FAULT = ("08", "53", "57P", "58", "XX")  # the server's, not the query's


async def query_states(
    connection: AsyncConnection[Any], table: StatesTable, sql: str, parameters: Parameters
) -> list[tuple[bytes, int]]:
    """Return the column ``state`` of what ``sql`` selects, and each one's schema version; no tombstones.

    Raises:
        UnsupportedOperationError: it would write, has no column ``state``, or leaves the schema version open.
        StateError: it is no valid SQL, or took too long.
    """
    async with _reading(connection):
        cursor = await _execute(connection, sql, parameters)
        names = [column.name.lower() for column in cursor.description or ()]
        if "state" not in names:
            raise UnsupportedOperationError(
                "a query answers with states, and this one selects no column named state",
                hint="SELECT state FROM ..., or use aggregate",
            )
        state = names.index("state")
        rows = [row for row in await cursor.fetchall() if row[state] is not None]
        if not all(isinstance(row[state], bytes) for row in rows):
            raise UnsupportedOperationError(
                "the column state of this query is not the stored one", hint="SELECT state as it is"
            )
        if "schema" in names:
            schema = names.index("schema")
            if not all(isinstance(row[schema], int) for row in rows):
                raise UnsupportedOperationError(
                    "the column schema of this query is not the stored one", hint="SELECT state, schema as they are"
                )
            return [(row[state], row[schema]) for row in rows]
        only = await _only_schema(connection, table)
        return [(row[state], only) for row in rows]


async def aggregate_states(
    connection: AsyncConnection[Any],
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
    is_total = aggregate.function == "TOTAL"  # SQLite's sum that is 0.0 of nothing
    sql = (aggregate._replace(function="SUM") if is_total else aggregate).to_sql(table.rows, _column_sql, where)
    async with _reading(connection):
        row = await (await _execute(connection, sql, parameters)).fetchone()
    value = row[0] if row else None
    if isinstance(value, Decimal):
        value = int(value) if aggregate.function == "SUM" and value == value.to_integral_value() else float(value)
    return float(value or 0) if is_total else value


def to_psycopg(sql: str, parameters: Parameters) -> str:
    """Return ``sql`` with psycopg's placeholders in place of ``?``, which SQLite's have."""
    if isinstance(parameters, Mapping) or not parameters or _PSYCOPG_MARK.search(sql):
        return sql

    def replace(match: re.Match[str]) -> str:
        return "%s" if match["mark"] else match[0].replace("%", "%%")

    return _MARK.sub(replace, sql)


def _column_sql(name: str) -> str:
    column, _, path = name.partition(".")
    if path and column.lower() == "state":
        raise UnsupportedOperationError(
            f"PostgreSQL can't look into a state for {name!r}: it is stored as MessagePack",
            hint="query the states and compute in Python",
        )
    if path or column.lower() not in COLUMNS:
        raise UnsupportedOperationError(f"there is no column {name!r}", hint=f"there are {', '.join(COLUMNS)}")
    return f'"{column.lower()}"'


@asynccontextmanager
async def _reading(connection: AsyncConnection[Any]) -> AsyncIterator[None]:
    """Begin a transaction in which nothing can be changed, and end it by a rollback."""
    await connection.set_read_only(True)
    async with connection.transaction(force_rollback=True):
        yield


async def _execute(connection: AsyncConnection[Any], sql: str, parameters: Parameters) -> AsyncCursor[Any]:
    if not _READS.match(sql):
        raise UnsupportedOperationError(
            "query refused: it is no SELECT", hint="it only reads; change states by save or update"
        )
    cursor = connection.cursor(binary=True)  # which also keeps it to one statement
    try:
        return await cursor.execute(to_psycopg(sql, parameters), parameters or None)
    except UnicodeEncodeError as error:
        raise StateError(f"query failed: a parameter can't be sent ({error.reason})") from error
    except psycopg.Error as error:
        code = code_of(error)
        text = error.diag.message_primary or str(error)
        if code.startswith(_REFUSED) or "multiple commands" in text:
            raise UnsupportedOperationError(
                f"query refused: {text}",
                hint="it only reads, one SELECT at a time; change states by save or update",
            ) from error
        if isinstance(error, psycopg.errors.QueryCanceled):
            hint = "?options=-cstatement_timeout%3D60s in the URL sets the limit"
            raise StateError(f"query given up: {text}", hint=hint) from error
        asked_wrongly = isinstance(error, psycopg.ProgrammingError | psycopg.DataError)
        if asked_wrongly or (code and not code.startswith(_NOT_ITS_FAULT)):
            raise StateError(f"query failed: {text}", hint="see docs/postgresql.md for the tables") from error
        raise


async def _only_schema(connection: AsyncConnection[Any], table: StatesTable) -> int:
    cursor = await connection.execute(table.schemas, {"name": table.name})
    lowest, highest = await cursor.fetchone() or (None, None)
    if lowest != highest:
        raise UnsupportedOperationError(
            f"table {table.name!r} holds schema versions {lowest} to {highest}; this query doesn't say which",
            hint="select the column schema too: SELECT state, schema FROM ...",
        )
    return int(lowest or 1)
