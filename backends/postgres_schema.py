"""Finds the tables of a name, makes them on first use, and leaves alone what is not ours."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import AsyncConnection
from psycopg.errors import InsufficientPrivilege

from dgents.backends.postgres_place import PostgresPlace, TableName
from dgents.backends.postgres_tables import FORMAT, STATES, StatesTable
from dgents.runtime.errors import StateCorruptionError, StorageError

# The advisory lock under which tables are made ("dgents"): of two processes that begin at once, one waits.
_LOCK = 0x6467656E7473

LOCATE: str = """
SELECT n.nspname::text, to_regclass(quote_ident(n.nspname) || '.dgents_tables') IS NOT NULL,
    ARRAY(SELECT relname::text FROM pg_class WHERE relnamespace = n.oid AND relname = ANY(%(names)s))
FROM pg_namespace AS n WHERE n.nspname = coalesce(%(schema)s, (
    SELECT s.name FROM unnest(current_schemas(false)) WITH ORDINALITY AS s(name, i)
    JOIN pg_namespace AS own ON own.nspname = s.name
    JOIN pg_class AS c ON c.relnamespace = own.oid AND c.relname = %(name)s ORDER BY i LIMIT 1), current_schema())"""


async def open_table(
    connection: AsyncConnection, name: TableName, place: PostgresPlace, kind: str = STATES
) -> StatesTable:
    """Return the tables of the states ``name``, made if they aren't there.

    Raises:
        StorageError: something else has one of the names, a newer release made them, or this role may not make them;
            then the hint has the statements.
    """
    table, is_ready = await find_table(connection, name, place, kind)
    if is_ready:
        return table
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            table, is_ready = await find_table(connection, name, place, kind)
            for statement in () if is_ready else table.ddl:
                await connection.execute(statement)
    except InsufficientPrivilege as error:
        script = "".join(f"{statement};\n" for statement in table.ddl)
        raise StorageError(
            f"table {table.name!r} is not in {place.safe}, and this role may not make it: {error.diag.message_primary}",
            retryable=False,
            hint=f"let a role that may run this, and grant as docs/postgresql.md says:\n{script}",
        ) from error
    return table


async def find_table(
    connection: AsyncConnection, name: TableName, place: PostgresPlace, kind: str = STATES
) -> tuple[StatesTable, bool]:
    """Return the tables of the states ``name`` and whether they are there; nothing is changed.

    Raises:
        StorageError: something else has one of the names, or a newer release made them.
        StateCorruptionError: some of the tables are there, and some are not.
    """
    names = list(StatesTable("", name.name, kind).objects)
    values = {"schema": name.schema, "name": name.name, "names": names}
    found = await (await connection.execute(LOCATE, values)).fetchone()
    if found is None:
        raise StorageError(
            f"{place.safe} has no schema {name.schema or 'in the search_path'}",
            retryable=False,
            hint="create it, or name another: schema.table",
        )
    schema, has_registry, taken = found
    table = StatesTable(schema, name.name, kind)
    if not taken:
        return table, False
    entry = None
    if has_registry:
        entry = await (await connection.execute(table.registered, {"name": table.name})).fetchone()
    check_entry(table, entry, taken, place)
    return table, True


def check_entry(table: StatesTable, entry: tuple[str, int] | None, taken: Sequence[str], place: PostgresPlace) -> None:
    """Check what the registry says of the tables ``taken``, which are there; None: nothing.

    Raises:
        StorageError: they are not ours, or of a newer release.
        StateCorruptionError: some of ours are not there.
    """
    if entry is None or entry[0] != table.kind:
        raise StorageError(
            f"{place.safe} has a {taken[0]!r} in schema {table.schema!r} that dgents did not make for {table.kind}",
            retryable=False,
            hint="it was not touched; name another table",
        )
    if entry[1] > FORMAT:
        raise StorageError(
            f"table {table.name!r} of {place.safe} has format {entry[1]}, this release reads up to {FORMAT}",
            retryable=False,
            hint="it was not touched; use a newer dgents",
        )
    gone = [kept for kept in table.kept if kept not in taken]
    if gone:
        raise StateCorruptionError(
            f"table {gone[0]!r} is gone from schema {table.schema!r} of {place.safe}, while {taken[0]!r} is there",
            path=place.safe,
            hint="nothing was made anew; restore it, or drop what is left beside it too",
        )
