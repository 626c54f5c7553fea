"""What is done to states inside one transaction: claim, read, write, give back.

Invariants:

1. A head names the version of the newest row of its state; no row is newer, and none between ``oldest`` and
   it is missing. What breaks this was not done by this code: `StateCorruptionError`.
2. A row is added only in a transaction that moved the head from the version and epoch that its writer named.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dgents.backends.sqlite_owners import Owners
from dgents.backends.sqlite_tables import (
    COLUMNS,
    StatesTable,
    corrupt,
    to_record,
    to_request,
    to_request_row,
    to_row,
)
from dgents.runtime.contract import Opened, Record, Request, Write
from dgents.runtime.errors import (
    DgentError,
    OwnershipLostError,
    StateLockedError,
    StateTooLargeError,
    StorageError,
    VersionConflictError,
)

if TYPE_CHECKING:
    from dgents.backends.sqlite import SqliteBackend

REQUESTS_KEPT = 1000
_SCHEMA = COLUMNS.index("schema")
_ROW_OVERHEAD = 4096  # bytes that a row may need besides its state


class Place(NamedTuple):
    """Where one state is."""

    table: StatesTable
    key: str


class Claim(NamedTuple):
    """A state that someone wants to own."""

    place: Place
    actor: str


def read_states(connection: sqlite3.Connection, places: Sequence[Place], path: str) -> list[Opened | DgentError]:
    """Return the current version of each state, and its epoch (1 for a state that never was)."""
    answers: list[Opened | DgentError] = []
    for place in places:
        try:
            head, record = _current(connection, place, path)
        except DgentError as error:
            answers.append(error)
        else:
            answers.append(Opened(record, head[1] if head else 1))
    return answers


def claim_states(
    connection: sqlite3.Connection, claims: Sequence[Claim], owners: Owners, path: str
) -> list[Opened | DgentError]:
    """Make each state this runtime's own, with the next epoch, unless a living process owns it."""
    owners.hold()
    living: dict[str | None, StateLockedError | None] = {}
    answers: list[Opened | DgentError] = []
    for place, actor in claims:
        try:
            head, record = _current(connection, place, path)
        except DgentError as error:
            answers.append(error)
            continue
        owner = head[3] if head else None
        if owner not in living:
            living[owner] = owners.holder(owner)
        locked = living[owner]
        if locked is not None:
            here = owners.actor_here(str(owner), _name(place))
            answers.append(locked_by(locked.pid, locked.host, here, place, actor, path))
            continue
        connection.execute(place.table.claim, (place.key, owners.token))
        answers.append(Opened(record, head[1] + 1 if head else 1))
    return answers


def release_states(connection: sqlite3.Connection, places: Iterable[Place], token: str) -> None:
    """Give states back, where they are still this runtime's own."""
    for table, key in places:
        connection.execute(table.release, (key, token))


def read_history(connection: sqlite3.Connection, place: Place, limit: int, path: str) -> list[Record]:
    """Return the newest ``limit`` versions, oldest first.

    Raises:
        StateCorruptionError: a version fails its checksum or is missing.
    """
    head = connection.execute(place.table.head, (place.key,)).fetchone()
    rows = connection.execute(place.table.newest, (place.key, limit)).fetchall()
    records = [to_record(row, path) for row in reversed(rows)]
    current, oldest = (head[0], head[2]) if head else (0, 1)
    expected = range(max(oldest, current - limit + 1), current + 1)
    check_versions([record.version for record in records], expected, place.key, path)
    return records


def check_versions(found: Sequence[int], expected: range, key: str, path: str) -> None:
    """Check that exactly the ``expected`` versions are there.

    Raises:
        StateCorruptionError: naming the first one that is missing, or is too much.
    """
    if list(expected) == list(found):
        return
    missing = sorted(set(expected) - set(found))
    if missing:
        raise corrupt(path, key, f"version {missing[0]} is missing ({len(missing)} of {len(expected)} are)")
    extra = sorted(set(found) - set(expected))
    raise corrupt(path, key, f"version {extra[0]} is there, and the current version is {expected.stop - 1}")


def was_written(connection: sqlite3.Connection, place: Place, record: Record, path: str) -> bool | None:
    """Tell whether exactly this version is, or was, stored; None if newer ones have pushed it out."""
    row = connection.execute(place.table.version, (place.key, record.version)).fetchone()
    if row is not None:
        return to_record(row, path) == Record(record.version, record.epoch, record.saved_at, record.data, record.schema)
    head = connection.execute(place.table.head, (place.key,)).fetchone()
    return False if head is None or head[0] < record.version else None


def read_requests(connection: sqlite3.Connection, place: Place, path: str) -> list[Request]:
    """Return the remembered requests, oldest first.

    Raises:
        StateCorruptionError: one fails its checksum, or one between the first and the last is missing.
    """
    rows = connection.execute(place.table.read_requests, (place.key,)).fetchall()
    total = connection.execute(place.table.requests_so_far, (place.key,)).fetchone()
    numbers = [row[1] for row in rows]
    last = total[0] if total else 0
    if numbers != list(range(max(last - REQUESTS_KEPT, 0) + 1, last + 1)):
        raise corrupt(path, place.key, f"of its {last} requests, some that should be remembered are missing")
    return [to_request(row, path) for row in rows]


def write_states(
    connection: sqlite3.Connection, writes: Sequence[Write], schemas: set[tuple[str, int]], owners: Owners
) -> list[DgentError | None]:
    """Move the head of each state and add its new versions; refuse what doesn't fit what is there.

    Args:
        schemas: the tables and schema versions that are known to be registered; some may be added.
    """
    rows: dict[StatesTable, list[tuple[Any, ...]]] = defaultdict(list)
    replaced: dict[StatesTable, list[tuple[Any, ...]]] = defaultdict(list)
    trims: dict[StatesTable, list[tuple[str, int]]] = defaultdict(list)
    answers = _advance_all(connection, writes, owners)
    for write, refusal in zip(writes, answers, strict=True):
        if refusal is not None:
            continue
        backend: SqliteBackend = write.backend  # type: ignore[assignment]  # a store gets only its own
        table, key, kept = backend.table, backend.key, backend.kept
        if backend.has_one_row:
            replaced[table].append((*to_row(key, write.records[-1]), write.base))
        else:
            # A version that the bound would drop again within this very batch need not be written.
            rows[table].extend([to_row(key, record) for record in write.records[-kept:]])
            oldest = write.records[-1].version - kept + 1
            if oldest > 1 and write.base:
                trims[table].append((key, oldest - 1))
        if write.requests:
            _remember(connection, backend.place, write.requests)
        if backend.alongside is not None:
            backend.alongside(connection, write)
    for table, inserted in rows.items():
        connection.executemany(table.insert, inserted)
    for table, changed in replaced.items():
        if connection.executemany(table.replace, changed).rowcount != len(changed):
            raise StorageError(f"a row is missing in table {table.name!r}; nothing was written", outcome="rolled_back")
    for written in (rows, replaced):
        for table, some in written.items():
            for schema in {row[_SCHEMA] for row in some}:
                _register(connection, table, schema, schemas)
    for table, trimmed in trims.items():
        connection.executemany(table.trim, trimmed)
    return answers


def locked_by(
    pid: int | None, host: str | None, here: str | None, place: Place, actor: str, path: str
) -> StateLockedError:
    """Return the error for a state that another process owns, or ``here``, another actor of this one."""
    by = f"pid {pid} on {host}"
    return StateLockedError(
        f"the state {place.key!r} in table {place.table.name!r} of {path} is owned by "
        + (f"the actor {here!r} of this process ({by})" if here is not None else by),
        pid=pid,
        host=host,
        actor=actor,
        key=place.key,
        hint="stop that one, or use ownership='shared' in both",
    )


def _name(place: Place) -> tuple[str, str]:
    return place.table.name, place.key


def _current(connection: sqlite3.Connection, place: Place, path: str) -> tuple[Any, Record | None]:
    head = connection.execute(place.table.head, (place.key,)).fetchone()
    row = connection.execute(place.table.newest, (place.key, 1)).fetchone()
    record = to_record(row, path) if row else None
    version = head[0] if head else 0
    found = record.version if record else 0
    if version != found:
        raise corrupt(path, place.key, f"its head names version {version}, its newest version is {found}")
    return head, record


def _advance_all(connection: sqlite3.Connection, writes: Sequence[Write], owners: Owners) -> list[DgentError | None]:
    """Move the heads: those of one table's owners by one statement, unless one of them is refused."""
    largest = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) - _ROW_OVERHEAD
    backends: list[SqliteBackend] = [write.backend for write in writes]  # type: ignore[misc]  # only its own
    refusals: list[DgentError | None] = [
        _too_large(write, largest) or (backend.refusal(connection, write) if backend.refusal is not None else None)
        for write, backend in zip(writes, backends, strict=True)
    ]
    table = backends[0].table
    if (
        len(writes) > 1
        and not any(refusals)
        and all(backend.ownership == "exclusive" and backend.table is table for backend in backends)
    ):
        connection.execute("SAVEPOINT heads")
        moves = [
            (*_move(write, backend), write.records[-1].epoch) for write, backend in zip(writes, backends, strict=True)
        ]
        if connection.executemany(table.advance_owned, moves).rowcount == len(writes):
            connection.execute("RELEASE heads")
            return refusals
        connection.execute("ROLLBACK TO heads")
        connection.execute("RELEASE heads")
    return [
        refusal or _advance(connection, backend, write, owners)
        for refusal, backend, write in zip(refusals, backends, writes, strict=True)
    ]


def _move(write: Write, backend: SqliteBackend) -> tuple[int, int, str, int]:
    """Return where a head goes: its version, the oldest one that is kept; and whose it is, where it must be."""
    version = write.records[-1].version
    return version, version - backend.kept + 1, backend.key, write.base


def _advance(connection: sqlite3.Connection, backend: SqliteBackend, write: Write, owners: Owners) -> DgentError | None:
    table, key = backend.place
    last = write.records[-1]
    moved = _move(write, backend)
    oldest = moved[1]
    if backend.ownership == "exclusive":
        if connection.execute(table.advance_owned, (*moved, last.epoch)).rowcount:
            return None
    elif connection.execute(table.advance_shared, moved).rowcount:
        return None
    elif write.base == 0:
        begun = (last.version, max(oldest, 1), key, last.epoch)
        if connection.execute(table.begin_shared, begun).rowcount:
            return None
    head = connection.execute(table.head, (key,)).fetchone() or (0, 0, 1, None)
    if backend.ownership == "shared" and head[3] is not None:
        locked = _locked(backend, head[3], owners)
        if locked is None:  # its owner is dead
            connection.execute(table.release, (key, head[3]))
            return _advance(connection, backend, write, owners)
        return locked
    return _refusal(backend, write.base, last.epoch, version=head[0], epoch=head[1])


def _locked(backend: SqliteBackend, token: str, owners: Owners) -> StateLockedError | None:
    """Return the refusal of a shared write to a state that is owned; None if its owner has died."""
    here = owners.actor_here(token, _name(backend.place))
    if token == owners.token:  # of this runtime, unless it is given back
        pid, host = os.getpid(), socket.gethostname()
        return locked_by(pid, host, here, backend.place, backend.actor, backend.path) if here is not None else None
    locked = owners.holder(token)
    if locked is None:
        return None
    return locked_by(locked.pid, locked.host, here, backend.place, backend.actor, backend.path)


def _refusal(backend: SqliteBackend, base: int, own: int, *, version: int, epoch: int) -> DgentError:
    if backend.ownership == "shared":
        return VersionConflictError(base, version, actor=backend.actor, key=backend.key)
    if epoch != own:
        what = f"a newer owner claimed it (epoch {epoch}, this one has {own})"
    else:
        what = f"a shared writer took it to version {version}, this owner knew version {base}"
    return OwnershipLostError(
        f"the state {backend.key!r} in {backend.path} is not {backend.actor!r}'s any more: {what}",
        actor=backend.actor,
        key=backend.key,
        hint="nothing was written; load it again, or use ownership='shared' in every process that writes it",
    )


def _too_large(write: Write, largest: int) -> StateTooLargeError | None:
    for record in write.records:
        if record.data is not None and len(record.data) > largest:
            return StateTooLargeError(
                f"the state {write.backend.key!r} is {len(record.data):,} bytes, SQLite takes {largest:,}",
                key=write.backend.key,
                size=len(record.data),
                limit=largest,
                hint="split the state",
            )
    return None


def _register(connection: sqlite3.Connection, table: StatesTable, schema: int, known: set[tuple[str, int]]) -> None:
    # Only what an earlier transaction registered is known: this one may yet be rolled back.
    if (table.name, schema) not in known and not connection.execute(table.add_schema, (schema, table.name)).rowcount:
        known.add((table.name, schema))


def _remember(connection: sqlite3.Connection, place: Place, requests: Sequence[Request]) -> None:
    table, key = place
    connection.execute(table.count_requests, (len(requests), key))
    (total,) = connection.execute(table.requests_so_far, (key,)).fetchone()
    first = total - len(requests) + 1
    rows = [to_request_row(key, first + n, request) for n, request in enumerate(requests)]
    connection.executemany(table.insert_request, rows[-REQUESTS_KEPT:])
    if total > REQUESTS_KEPT:
        connection.execute(table.trim_requests, (key, total - REQUESTS_KEPT))
