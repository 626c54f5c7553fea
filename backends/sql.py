"""An actor whose state is in a SQL database."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, get_args

from dgents.backends.sql_ref import SQLRef
from dgents.backends.sqlite import SqliteBackend, sqlite_store
from dgents.backends.sqlite_tables import check_table_name, states_table
from dgents.backends.url import is_half_a_url, scheme_of
from dgents.runtime.arguments import check_choice, check_database_key, check_history, check_path
from dgents.runtime.contract import Backend, Ownership, Resources
from dgents.runtime.errors import UnsupportedOperationError
from dgents.runtime.ledger import Entries, Ledger
from dgents.runtime.migrations import Migrations
from dgents.runtime.state_type import S

_SQLITE = "sqlite:///"
REMINDERS = "_dgents_reminders"  # the table


@dataclass(frozen=True)
class SQLAgent(Generic[S]):
    """A state in a table of a SQL database, one row a version.

    Args:
        db_uri: a path, ``sqlite:///relative.db``, ``sqlite:////absolute.db``, or ``postgresql://user@host/database``.
        table: the table; made if it isn't there. Letters, digits, underscores; ``schema.table`` in PostgreSQL.
        schema: the type of the state; None for plain builtins.
        key: what the state is called in the table; None for the actor's name.
        max_history: how many versions are kept, the current one among them; 0 keeps that one only.
        ownership: ``"exclusive"`` (one owner at a time; the default for a file) or ``"shared"`` (compare-and-set, any
            number of processes; the default for a server).
        migrations: by schema version, the function that lifts a state from it to the next.

    Raises:
        ValueError, TypeError: an argument can't be right; nothing was opened.

    Example:
        >>> SQLAgent("state.db", schema=dict).table
        'states'
    """

    db_uri: str = field(repr=False)  # it may hold a password
    table: str = "states"
    schema: type[S] | None = None
    _: KW_ONLY
    key: str | None = None
    max_history: int = 100
    ownership: Ownership | None = None
    migrations: Mapping[int, Callable[[Any], Any]] | None = None

    if TYPE_CHECKING:

        @property
        def ref_type(self) -> type[SQLRef[S]]: ...
    else:
        ref_type = SQLRef

    def __post_init__(self) -> None:
        object.__setattr__(self, "db_uri", check_path("db_uri", self.db_uri))
        check_choice("ownership", self.ownership, (None, *get_args(Ownership)))
        check_history(self.max_history)
        Migrations(self.migrations, None)
        check_database_key("table", self.table)
        if self.key is not None:
            check_database_key("key", self.key)
        if is_postgres(self.db_uri):
            check_postgres(self.db_uri, self.table)
        else:
            check_table_name(self.table)
            sqlite_path(self.db_uri)

    def reminders(self, name: str) -> Ledger:
        """Return where the reminders of the actor ``name`` are kept: in a table of the same database."""
        return sql_ledger(self.db_uri, self.table)

    def backend(self, name: str, resources: Resources) -> Backend:
        """Make the backend of the actor ``name``; no I/O happens before `Backend.open`.

        Raises:
            ValueError: ``name`` is to be the key and is no text that a database can hold.
            UnsupportedOperationError: psycopg is not installed.
        """
        key = self.key if self.key is not None else check_database_key("the actor's name", name)
        if is_postgres(self.db_uri):
            return self._in_postgres(name, key, resources)
        return SqliteBackend(
            sqlite_path(self.db_uri),
            states_table(self.table),
            key,
            resources,
            actor=name,
            max_history=self.max_history,
            ownership=self.ownership or "exclusive",
        )

    def _in_postgres(self, name: str, key: str, resources: Resources) -> Backend:
        try:
            from dgents.backends.postgres import PostgresBackend
        except ImportError as error:
            raise needs_psycopg(error, name) from error
        return PostgresBackend(
            uri=self.db_uri,
            table=self.table,
            key=key,
            resources=resources,
            actor=name,
            max_history=self.max_history,
            ownership=self.ownership or "shared",
        )


_POSTGRES = ("postgresql://", "postgres://")


def is_postgres(db_uri: str) -> bool:
    """Say whether it names a PostgreSQL database."""
    return db_uri.startswith(_POSTGRES)


def needs_psycopg(error: ImportError, actor: str | None = None) -> UnsupportedOperationError:
    """Return the error for a driver that is not installed."""
    hint = "pip install 'dgents[postgres]'"
    wrapped = UnsupportedOperationError("PostgreSQL needs psycopg", actor=actor, hint=hint)
    wrapped.__cause__ = error
    return wrapped


def check_postgres(db_uri: str, table: str) -> None:
    """Check what can be checked without a connection, if its optional driver is there."""
    try:
        from dgents.backends.postgres_place import parse_postgres_url, parse_table_name
    except ImportError:
        return  # said when an actor is spawned
    parse_postgres_url(db_uri)
    parse_table_name(table)


@lru_cache(maxsize=64)
def sql_ledger(db_uri: str, key: str) -> Ledger:
    """Return the ledger ``key`` of reminders in a database; any number of processes may share it."""
    agent = SQLAgent(db_uri, REMINDERS, Entries, key=key, max_history=0, ownership="shared")

    async def exists(resources: Resources) -> bool:
        if is_postgres(db_uri):
            from dgents.backends.postgres import postgres_store

            async with postgres_store(db_uri, resources) as postgres:
                return await postgres.has_table(REMINDERS)
        path = sqlite_path(db_uri)
        if not os.path.exists(path):  # noqa: ASYNC240 (a microsecond, where a thread costs a hundred)
            return False  # to look must not make it
        async with sqlite_store(path, resources) as sqlite:
            return await sqlite.has_table(REMINDERS)

    return Ledger(agent, exists)


def sqlite_path(db_uri: str) -> str:
    """Return the path that ``db_uri`` names: itself, or what follows ``sqlite:///``.

    Raises:
        ValueError: it names no file, or another kind of database.
    """
    path = db_uri.removeprefix(_SQLITE)
    if "://" in path or path.startswith("file:") or is_half_a_url(path):
        kind = scheme_of(path)
        raise ValueError(
            f"db_uri is a URL of {f'the kind {kind!r}' if kind else 'no kind that is known'}: "
            "use a path, sqlite:///PATH or postgresql://; redis:// is a RedisAgent's"
        )
    if path in ("", ":memory:"):
        raise ValueError("db_uri names no file: a state in memory is a VolatileAgent's")
    if "\0" in path or ("?" in path and path != db_uri):
        raise ValueError("db_uri: a path has no NUL, and sqlite:/// takes no options after a '?'")
    return path
