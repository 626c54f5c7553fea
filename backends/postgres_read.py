"""What is asked of a state's rows: claimed, read, settled; each function is one piece of work for a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection

from dgents.backends.postgres_arrays import Integers, Texts
from dgents.backends.postgres_fence import ABSENT, Found, Head, Sent, new_mark
from dgents.backends.postgres_tables import REQUESTS_KEPT, StatesTable
from dgents.backends.sqlite_tables import corrupt, to_record, to_request
from dgents.backends.sqlite_transactions import check_versions
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import DgentError

Connection = AsyncConnection[Any]


async def fetch(connection: Connection, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return all rows of a statement of ours."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(sql, values, prepare=True)
    return await cursor.fetchall()


async def look_at(
    connection: Connection, table: StatesTable, keys: Sequence[str], place: str
) -> list[Found | DgentError]:
    """Return what is stored under each of ``keys``, as of one moment."""
    rows = await fetch(connection, table.look, {"keys": Texts.of([key.encode() for key in keys])})
    return [_found(key, row, place) for key, row in zip(keys, rows, strict=True)]


async def claim_states(
    connection: Connection, table: StatesTable, keys: Sequence[str], place: str
) -> list[Found | DgentError]:
    """Give each state the next epoch and a new mark, and return it as it is then.

    The keys are sorted: two processes that claim the same ones don't wait for each other in a circle.
    """
    values = {"keys": Texts.of([key.encode() for key in keys]), "marks": Integers.of([new_mark() for _ in keys])}
    async with connection.transaction():
        await connection.execute(table.claim, values, prepare=True)
        # A statement of its own: the claim may have waited for a commit that its own view of the rows has not.
        return await look_at(connection, table, keys, place)


async def settle(
    connection: Connection, table: StatesTable, key: str, sent: Sent, place: str
) -> tuple[Found, int | None]:
    """Take the mark away that a write in doubt builds on, unless it is stored, and return what is stored then.

    It waits for a transaction that holds the head, so one that is just being committed is seen.
    """
    before, after = sent
    sql = table.settle if before.mark else table.settle_absent
    async with connection.transaction():
        values = {"key": key, "mark": before.mark, "new": new_mark()}
        await connection.execute(sql, values)
        (found,) = await look_at(connection, table, [key], place)
        marks = await fetch(connection, table.mark_of, {"key": key, "version": after.version})
    if isinstance(found, DgentError):
        raise found
    return found, marks[0][0] if marks else None


async def read_history(connection: Connection, table: StatesTable, key: str, limit: int, place: str) -> list[Record]:
    """Return the newest ``limit`` versions, oldest first.

    Raises:
        StateCorruptionError: a version fails its checksum or is missing.
    """
    rows = await fetch(connection, table.history, {"key": key, "limit": limit})
    return decode_history(rows, key, limit, place)


async def read_requests(connection: Connection, table: StatesTable, key: str, place: str) -> list[Request]:
    """Return the remembered requests, oldest first.

    Raises:
        StateCorruptionError: one fails its checksum, or is missing.
    """
    return decode_requests(await fetch(connection, table.read_requests, {"key": key}), key, place)


def decode_history(rows: Sequence[tuple[Any, ...]], key: str, limit: int, place: str) -> list[Record]:
    """Return the versions in the rows of `StatesTable.history`."""
    records = [to_record(row[2:], place) for row in rows if row[2] is not None]
    current, oldest = rows[0][:2]
    expected = range(max(oldest, current - limit + 1), current + 1)
    check_versions([record.version for record in records], expected, key, place)
    return records


def decode_requests(rows: Sequence[tuple[Any, ...]], key: str, place: str) -> list[Request]:
    """Return the requests in the rows of `StatesTable.read_requests`."""
    total = rows[0][0]
    found = [(number, bytes(id).decode(), *rest) for _, number, id, *rest in rows if number is not None]
    if [row[0] for row in found] != list(range(max(total - REQUESTS_KEPT, 0) + 1, total + 1)):
        raise corrupt(place, key, f"of its {total} requests, some that should be remembered are missing")
    return [to_request((key, *row), place) for row in found]


def _found(key: str, row: tuple[Any, ...], place: str) -> Found | DgentError:
    if row[-1]:
        return corrupt(place, key, "it has versions or request ids, and no head that names them")
    if row[0] is None:
        return Found(ABSENT, None)
    head = Head(*row[:5])
    try:
        record = to_record(row[5:-1], place) if row[5] is not None else None
    except DgentError as error:
        return error
    if head.version and record is None:
        return corrupt(place, key, f"its head names version {head.version}, which is missing")
    return Found(head, record)
