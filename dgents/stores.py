"""What a path or URL names, opened to look into it: nothing is claimed, locked, mended or written.

| named by | holds |
|---|---|
| a file that begins as SQLite's do, or is called `.db`, `.sqlite`, `.sqlite3`; `sqlite:///PATH` | tables of states |
| any other file | the state of a `PersistentAgent` |
| a folder, or a path that ends in `/` | a state a file |
| `redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `redis+cluster://` | a key a state |
| `postgresql://`, `postgres://` | tables of states |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

from dgents.runtime.contract import Record, Request
from dgents.runtime.describe import describe
from dgents.runtime.errors import StateCorruptionError, StorageError, UnsupportedOperationError

Kind: TypeAlias = Literal["sqlite", "postgres", "redis", "file", "folder"]

_SQLITE_MAGIC = b"SQLite format 3\0"
_CHECKPOINT_MAGIC = b"dgents-checkpoint"
_DATABASE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_POSTGRES_SCHEMES = ("postgresql", "postgres")


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


class Stored(NamedTuple):
    """One state: its versions, oldest first, the current one last, and the request ids that were applied to it.

    It has no versions if it was claimed and never saved, or has expired since it was listed.
    """

    table: str | None
    key: str
    records: list[Record]
    requests: list[Request]


class Summary(NamedTuple):
    """One state in a list of them.

    Attributes:
        version: the current one; 0 if it was never saved.
        versions: how many are kept.
        size: of the current version in bytes; None if it was deleted.
    """

    table: str | None
    key: str
    version: int
    versions: int
    size: int | None
    saved_at: float


class Entry(NamedTuple):
    """One state that is there, read when it is asked for.

    Either call raises `StateCorruptionError` where the state can't be trusted.
    """

    read: Callable[[], Stored]
    summary: Callable[[], Summary]


class Store(Protocol):
    """A place that is open for reading."""

    def entries(self) -> Iterator[Entry]:
        """Yield every state, by table and key."""
        ...

    def find(self, key: str, table: str | None = None) -> list[Stored]:
        """Return the state ``key``: from ``table``, or from each table that has one."""
        ...

    def damage(self) -> Iterator[StateCorruptionError]:
        """Yield what is wrong with the place itself; its states are checked as they are read."""
        ...


def locate(uri: str) -> Place:
    """Say what ``uri`` names, by its scheme, by what is there, or else by its name.

    Raises:
        ValueError: nothing that dgents knows. A URL is not in the message, since it may hold a password.
        OSError: it can't be looked at.
    """
    scheme, colon, rest = uri.partition(":")
    if colon and rest.startswith("//"):
        return _locate_url(scheme, uri)
    if not uri or "\0" in uri:
        raise ValueError("an empty path names nothing")
    path = Path(uri)
    if path.is_dir() or uri.endswith(os.sep):
        return Place("folder", os.path.join(uri, ""), uri)
    if path.suffix in _DATABASE_SUFFIXES or _begins_with(path, _SQLITE_MAGIC):
        return Place("sqlite", uri, uri)
    if _begins_with(path, _CHECKPOINT_MAGIC):
        raise ValueError(f"{uri} is a checkpoint of a runtime; bring it up with Runtime.restore and look there")
    return Place("file", uri, uri)


def open_store(place: Place, table: str | None = None) -> AbstractContextManager[Store]:
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
    if place.kind == "sqlite":
        return _open_sqlite(place, table)
    if place.kind == "redis":
        return _open_redis(place)
    if place.kind == "postgres":
        return _open_postgres(place, table)
    return _open_files(place)


def verify(store: Store) -> Iterator[Stored | StateCorruptionError]:
    """Read everything: yield each state that is whole, and each thing that is not, once."""
    told: set[str] = set()
    for finding in _findings(store):
        if isinstance(finding, StateCorruptionError):
            if str(finding) in told:
                continue
            told.add(str(finding))
        yield finding


def summarize(stored: Stored) -> Summary:
    """Return what a list says of a state."""
    if not stored.records:
        return Summary(stored.table, stored.key, 0, 0, None, 0.0)
    current = stored.records[-1]
    size = None if current.data is None else len(current.data)
    return Summary(stored.table, stored.key, current.version, len(stored.records), size, current.saved_at)


def entry(read: Callable[[], Stored]) -> Entry:
    """Return the entry of a state that has to be read to be summarized."""
    return Entry(read, lambda: summarize(read()))


def _findings(store: Store) -> Iterator[Stored | StateCorruptionError]:
    try:
        yield from store.damage()
        for one in store.entries():
            try:
                stored = one.read()
            except StateCorruptionError as error:
                yield error
            else:
                yield from _check_data(stored)
                yield stored
    except StateCorruptionError as error:
        yield error  # of the place as a whole


def _check_data(stored: Stored) -> Iterator[StateCorruptionError]:
    """What fits its checksum has to be a state, too."""
    for record in stored.records:
        try:
            if record.data is not None:
                describe(record.data)
        except StateCorruptionError as error:
            yield StateCorruptionError(
                f"version {record.version} of {stored.key!r} is damaged: {error}", path=stored.key
            )


def _locate_url(scheme: str, uri: str) -> Place:
    if scheme == "sqlite":
        from dgents.backends.sql import sqlite_path

        path = sqlite_path(uri)
        return Place("sqlite", path, path)
    if scheme in _REDIS_SCHEMES:
        from dgents.backends.redis_url import parse_redis_url

        return Place("redis", uri, parse_redis_url(uri).safe)
    if scheme in _POSTGRES_SCHEMES:
        host, slash, rest = uri.partition("//")[2].partition("/")
        safe = f"{scheme}://{host.rpartition('@')[2]}{slash}{rest.partition('?')[0]}"
        return Place("postgres", uri, safe)
    raise ValueError(f"{scheme[:20]!r} names no kind of store: use a path, sqlite:///, redis:// or postgresql://")


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except FileNotFoundError:
        return False


@contextmanager
def _open_sqlite(place: Place, table: str | None) -> Iterator[Store]:
    from dgents.backends.sqlite_inspect import SqliteInspector

    with SqliteInspector(place.uri) as database:
        yield _Tables(database, _chosen(database.tables(), table, place))


def _chosen(tables: list[str], table: str | None, place: Place) -> list[str]:
    if table is None:
        return tables
    if table not in tables:
        raise StorageError(f"there is no table {table!r} of states in {place.safe}", retryable=False)
    return [table]


class _StoredState(Protocol):
    """What an inspector of a database says of a state."""

    @property
    def key(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def versions(self) -> int: ...
    @property
    def size(self) -> int | None: ...
    @property
    def saved_at(self) -> float: ...


class _Inspector(Protocol):
    """A database of tables of states."""

    def states(self, table: str) -> Iterable[_StoredState]: ...
    def history(self, table: str, key: str) -> list[Record]: ...
    def requests(self, table: str, key: str) -> list[Request]: ...
    def verify(self) -> Iterable[StateCorruptionError]: ...


class _Tables:
    """The states in tables of a database."""

    def __init__(self, database: _Inspector, tables: list[str]) -> None:
        self._database = database
        self._tables = tables

    def entries(self) -> Iterator[Entry]:
        for table in self._tables:
            for state in self._database.states(table):
                yield self._entry(table, state)

    def find(self, key: str, table: str | None = None) -> list[Stored]:
        chosen = [name for name in self._tables if table in (None, name)]
        found = [self._read(name, key) for name in chosen]
        return [stored for stored in found if stored.records]

    def damage(self) -> Iterator[StateCorruptionError]:
        yield from self._database.verify()

    def _entry(self, table: str, state: _StoredState) -> Entry:
        summary = Summary(table, state.key, state.version, state.versions, state.size, state.saved_at)
        return Entry(lambda: self._read(table, state.key), lambda: summary)

    def _read(self, table: str, key: str) -> Stored:
        return Stored(table, key, self._database.history(table, key), self._database.requests(table, key))


@contextmanager
def _open_files(place: Place) -> Iterator[Store]:
    path = Path(place.uri)
    if not path.exists():
        raise StorageError(f"there is nothing at {place.safe}", retryable=False, hint="check the path")
    if path.is_dir() and any(path.glob("*.journal")):
        raise UnsupportedOperationError(
            f"{place.safe} is a journal, which holds no states by key",
            hint="open it with the agent that wrote it; a StreamAgent's ref has verify() and events()",
        )
    yield _Files(path)


class _Files:
    """The state in a file, or those in the files of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> Iterator[Entry]:
        for path in self._paths():
            yield self._entry(path)

    def find(self, key: str, table: str | None = None) -> list[Stored]:
        from dgents.backends.file_inspect import SUFFIX
        from dgents.backends.files import safe_name

        if self._path.is_dir():
            path = self._path / (safe_name(key) + SUFFIX)
            if path.exists():
                return [_read_file(path)]
        # A file of its own may be called anything.
        return [stored for stored in map(_read_file, self._paths()) if stored.key == key]

    def damage(self) -> Iterator[StateCorruptionError]:
        return iter(())

    def _paths(self) -> list[Path]:
        from dgents.backends.file_inspect import SUFFIX, state_files
        from dgents.backends.file_reader import LOG_SUFFIX
        from dgents.backends.file_state import LOCK_SUFFIX

        if not self._path.is_dir():
            return [self._path]
        found = set(state_files(self._path))
        for log in self._path.glob(f"*{LOG_SUFFIX}"):
            path = log.with_name(log.name.removesuffix(LOG_SUFFIX))
            # A history whose state is gone is damage, and is found by reading the state.
            if path.suffix == SUFFIX or path.with_name(path.name + LOCK_SUFFIX).exists():
                found.add(path)
        return sorted(found)

    def _entry(self, path: Path) -> Entry:
        return entry(lambda: _read_file(path))


def _read_file(path: Path) -> Stored:
    from dgents.backends.file_inspect import read_states

    ((key, records, requests),) = read_states(path)
    return Stored(None, key, records, requests)


@contextmanager
def _open_redis(place: Place) -> Iterator[Store]:
    try:
        from dgents.redis_states import open_redis
    except ImportError as error:
        raise UnsupportedOperationError(
            "Redis needs redis-py and hiredis", hint="pip install 'dgents[redis]'"
        ) from error
    with open_redis(place.uri) as store:
        yield store


def _open_postgres(place: Place, table: str | None) -> AbstractContextManager[Store]:
    raise UnsupportedOperationError(f"{place.safe}: PostgreSQL can't be looked into yet")
