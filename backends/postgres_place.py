"""Where a PostgreSQL is: its URL, what of it may be printed, and the names of tables in it."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from dgents.backends.sqlite_tables import check_table_name
from dgents.backends.url import ENCODE, check_characters, check_host

_CONNECT_TIMEOUT = 5  # seconds, for each host of the URL
_LONGEST_TABLE = 54  # PostgreSQL cuts names at 63 bytes, and ours end in `_requests`
_DATABASE = {"host": "", "hostaddr": "", "port": "5432", "user": "", "dbname": "", "options": ""}
_SECRETS = ("password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
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

    @property
    def options(self) -> dict[str, Any]:
        """How each connection is made, whatever the URL, the environment, the role or the database say.

        What is sent is UTF-8, so that the server knows what a key is; it may keep it in another encoding.
        """
        return {
            "client_encoding": "UTF8",
            "connect_timeout": self.connect_timeout,
            "fallback_application_name": "dgents",
        }

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
    authority, _, path = uri.partition("://")[2].partition("/")
    # libpq would take a piece of such a password for a host or a database, and print it.
    if authority.count("@") > 1 or "@" in path.partition("?")[0]:
        raise ValueError(f"db_uri has an @ where none can be; {ENCODE}")
    found = _read(uri)
    ports = [port for port in found.get("port", "").split(",") if port]
    timeout = found.get("connect_timeout", str(_CONNECT_TIMEOUT))
    if not all(_NUMBER.fullmatch(number) for number in (*ports, timeout)):
        raise ValueError(f"db_uri has a port or a connect_timeout that is no number; {ENCODE}")
    hosts = (found.get("host") or found.get("hostaddr") or "").split(",")
    named = [_shown(host) for host in hosts]
    if len(ports) == len(hosts):
        named = [f"{host}:{port}" for host, port in zip(named, ports, strict=True)]
    secrets = {value for name, value in found.items() if name in _SECRETS}
    secrets |= {quote(secret, safe="") for secret in secrets}
    return PostgresPlace(
        uri,
        f"postgresql://{','.join(named)}/{quote(found.get('dbname', ''))}",
        tuple(sorted((secret for secret in secrets if secret), key=len, reverse=True)),
        max(2, int(timeout)) if int(timeout) else _CONNECT_TIMEOUT,  # libpq knows no shorter one
        len(hosts),
        # The user, too: the first schema of a search path may be the user's own.
        tuple(found.get(name) or default for name, default in _DATABASE.items()),
    )


def _read(uri: str) -> dict[str, str]:
    """Return what libpq finds in a URL; its own errors repeat pieces of it, so they are not passed on."""
    check_characters(uri, "db_uri")
    found: dict[str, str] | None = None
    with suppress(psycopg.Error, ValueError):
        found = {name: str(value) for name, value in conninfo_to_dict(uri).items() if value is not None}
    if found is None:
        raise ValueError(f"db_uri is no URL that PostgreSQL takes; {ENCODE}")
    return found


def _shown(host: str) -> str:
    """Return a host as it may be printed: a name, an address, or a folder of sockets."""
    return quote(host, safe="") if host.startswith(("/", "@")) else check_host(host, "db_uri")


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
