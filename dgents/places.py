"""What a path or URL names, opened to look into it: nothing is claimed, locked, mended or written.

| named by | holds |
|---|---|
| a file that begins as SQLite's do, or is called `.db`, `.sqlite`, `.sqlite3`; `sqlite:///PATH` | tables of states |
| any other file | the state of a `PersistentAgent` |
| a folder with `vectors.snapshot` in it | the states of a `VectorAgent`, by id |
| the folder of a stream's events, or one of nothing but such folders | streams |
| any other folder, or a path that ends in `/` | a state a file, and whatever else of the above is in it (`parts`) |
| `postgresql://` | tables of states |
| `redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `redis+cluster://` | a key a state |
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from dgents.backends.url import is_half_a_url, scheme_of
from dgents.runtime.errors import UnsupportedOperationError
from dgents.stores import Store

Kind: TypeAlias = Literal["sqlite", "postgres", "redis", "file", "folder", "vectors", "streams"]

SQLITE_MAGIC = b"SQLite format 3\0"
_CHECKPOINT_MAGIC = b"dgents-checkpoint"
_DATABASE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


@dataclass(frozen=True)
class Place:
    """What a path or URL names; nothing needs to be there.

    Attributes:
        uri: as the agents take it.
        safe: as it may be printed: without user and password.
    """

    kind: Kind
    uri: str = field(repr=False)
    safe: str

    @property
    def has_tables(self) -> bool:
        """Whether states are in tables there."""
        return self.kind in ("sqlite", "postgres")


def locate(uri: str) -> Place:
    """Say what ``uri`` names, by its scheme, by what is there, or else by its name.

    Raises:
        ValueError: nothing that dgents knows. A URL is not in the message, since it may hold a password.
        OSError: it can't be looked at.
    """
    scheme, colon, rest = uri.partition(":")
    if colon and rest.startswith("//"):
        return _locate_url(scheme, uri)
    if is_half_a_url(uri):
        raise ValueError("a URL of a server has two slashes after its scheme: postgresql://HOST/DATABASE, redis://HOST")
    if not uri or "\0" in uri:
        raise ValueError("an empty path names nothing")
    path = Path(uri)
    if path.is_dir():
        from dgents.log_states import kind_of

        if (kind := kind_of(path)) is not None:
            return Place(kind, uri, uri)
    if path.is_dir() or uri.endswith(os.sep):
        return Place("folder", os.path.join(uri, ""), uri)
    if is_database(path):
        return Place("sqlite", uri, uri)
    if _begins_with(path, _CHECKPOINT_MAGIC):
        raise ValueError(f"{uri} is a checkpoint of a runtime; bring it up with Runtime.restore and look there")
    return Place("file", uri, uri)


def is_database(path: Path) -> bool:
    """Say whether a file is, or would be, a SQLite database: by its name, or by its beginning."""
    return path.suffix in _DATABASE_SUFFIXES or _begins_with(path, SQLITE_MAGIC)


def open_place(place: Place, table: str | None = None) -> AbstractContextManager[Store]:
    """Open a place to look into it, while the block lasts.

    Args:
        table: look into this table only, where there are tables.

    Raises:
        StorageError: there is nothing, or it can't be reached.
        StateCorruptionError: it is damaged as a whole.
        UnsupportedOperationError: the driver for it is not installed.
    """
    if table is not None and not place.has_tables:
        raise ValueError(f"there are no tables in {place.safe}")
    # What reads a place is imported with what it needs: drivers are slow to import, or optional.
    if place.kind == "sqlite":
        from dgents.table_states import open_sqlite

        return open_sqlite(place.uri, table)
    if place.kind == "postgres":
        return _open_postgres(place, table)
    if place.kind == "redis":
        return _open_redis(place)
    if place.kind in ("vectors", "streams"):
        from dgents.log_states import StreamStates, VectorStates

        path = Path(place.uri)
        return nullcontext(VectorStates(path) if place.kind == "vectors" else StreamStates(path))
    from dgents.file_states import open_files

    return open_files(place.uri)


def _open_postgres(place: Place, table: str | None) -> AbstractContextManager[Store]:
    try:
        import psycopg  # noqa: F401  # an optional dependency, said by name before anything needs it
    except ImportError as error:
        raise UnsupportedOperationError("PostgreSQL needs psycopg", hint="pip install 'dgents[postgres]'") from error
    from dgents.table_states import open_postgres

    return open_postgres(place.uri, table)


def _open_redis(place: Place) -> AbstractContextManager[Store]:
    try:
        from dgents.redis_states import open_redis
    except ImportError as error:
        raise UnsupportedOperationError(
            "Redis needs redis-py and hiredis", hint="pip install 'dgents[redis]'"
        ) from error
    return open_redis(place.uri)


def _locate_url(scheme: str, uri: str) -> Place:
    if scheme == "sqlite":
        from dgents.backends.sql import sqlite_path

        path = sqlite_path(uri)
        return Place("sqlite", path, path)
    if scheme in ("postgresql", "postgres"):
        return Place("postgres", uri, _safe_postgres(uri))
    if scheme in _REDIS_SCHEMES:
        from dgents.backends.redis_url import parse_redis_url

        return Place("redis", uri, parse_redis_url(uri).safe)
    kind = repr(scheme_of(uri)) if scheme_of(uri) else "this URL"
    raise ValueError(f"{kind} names no kind of store: use a path, sqlite:///, postgresql:// or redis://")


def _safe_postgres(uri: str) -> str:
    try:
        from dgents.backends.postgres_place import parse_postgres_url
    except ImportError:
        return "postgresql://..."
    return parse_postgres_url(uri).safe


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except FileNotFoundError:
        return False
