"""Where a PostgreSQL is: its URL, what of it may be printed, and the names of tables in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from dgents.backends.sqlite_tables import check_table_name

_CONNECT_TIMEOUT = 5  # seconds, for each host of the URL
_LONGEST_TABLE = 54  # PostgreSQL cuts names at 63 bytes, and ours end in `_requests`
_DATABASE = {"host": "", "hostaddr": "", "port": "5432", "user": "", "dbname": "", "options": ""}
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)


@dataclass(frozen=True)
class PostgresPlace:
    """One database, or several servers of which one has it.

    Attributes:
        safe: as it may be printed: without user, password and options.
        connect_timeout: seconds for one host, of ``hosts``.
        database: what decides which database and schema it is; the same for another password or timeout.
    """

    uri: str = field(repr=False)
    safe: str
    secrets: tuple[str, ...] = field(repr=False)
    connect_timeout: int
    hosts: int
    database: tuple[str, ...] = field(repr=False)

    def scrub(self, text: str) -> str:
        """Return ``text`` without what must not be printed."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


@lru_cache(maxsize=256)
def parse_postgres_url(uri: str) -> PostgresPlace:
    """Read ``postgresql://[user[:password]@]host[:5432][,host...]/database[?option=value]``, as libpq does.

    Raises:
        ValueError: it is no such URL. Nothing of it is in the message.
    """
    authority, _, path = uri.partition("://")[2].partition("?")[0].partition("/")
    hint = "in user and password write %40 for @, %2F for /, %3A for : and %3F for ?"
    # libpq would take a piece of such a password for a host or a database, and print it.
    if authority.count("@") > 1 or "@" in path:
        raise ValueError(f"db_uri has an @ where none can be; {hint}")
    try:
        found = {name: str(value) for name, value in conninfo_to_dict(uri).items() if value is not None}
        ports = [int(port) for port in found.get("port", "").split(",") if port]
        timeout = int(found.get("connect_timeout", _CONNECT_TIMEOUT))
    except (psycopg.Error, ValueError):
        raise ValueError(f"db_uri is no URL that PostgreSQL takes; {hint}") from None
    hosts = (found.get("host") or found.get("hostaddr") or "").split(",")
    named = [host if host and not host.startswith(("/", "@")) else quote(host, safe="") for host in hosts]
    if len(ports) == len(hosts):
        named = [f"{host}:{port}" for host, port in zip(named, ports, strict=True)]
    password = found.get("password", "")
    secrets = {secret for secret in (password, quote(password, safe=""), found.get("sslpassword", "")) if secret}
    return PostgresPlace(
        uri,
        f"postgresql://{','.join(named)}/{found.get('dbname', '')}",
        tuple(sorted(secrets, key=len, reverse=True)),
        max(2, timeout) if timeout > 0 else _CONNECT_TIMEOUT,  # libpq knows no shorter one
        len(hosts),
        # The user, too: the first schema of a search path may be the user's own.
        tuple(found.get(name) or default for name, default in _DATABASE.items()),
    )


class TableName(NamedTuple):
    """The name of a table; ``schema`` None: the first of the connection's ``search_path`` that has it."""

    schema: str | None
    name: str


@lru_cache(maxsize=256)
def parse_table_name(table: str) -> TableName:
    """Read ``table`` or ``schema.table``.

    Raises:
        ValueError: it can't name a table: letters, digits and underscores, 54 at most.
    """
    schema, dot, name = table.rpartition(".")
    check_table_name(name)
    if len(name) > _LONGEST_TABLE:
        raise ValueError(f"table {name!r} has {len(name)} characters: use {_LONGEST_TABLE} at most in PostgreSQL")
    if dot and (not _SCHEMA.fullmatch(schema) or schema.lower().startswith("pg_")):
        raise ValueError(f"schema {schema!r} is no name for a schema: use letters, digits and underscores")
    return TableName(schema if dot else None, name)
