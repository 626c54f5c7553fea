"""Connections to one SQLite database, and transactions on them: blocking code for aiosqlite's threads.

The files of a database are opened and closed by SQLite alone: a process that closes such a file itself drops
all POSIX locks that SQLite holds on it, and another process may then write in the middle of a transaction.
"""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from dgents.backends import files
from dgents.backends.sqlite_errors import is_busy, translate
from dgents.runtime.errors import StateCorruptionError, StorageError
from dgents.runtime.extensions import Tree

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Mode = Literal["IMMEDIATE", "DEFERRED"]

BUSY_TIMEOUT = 5.0  # seconds

# How long to pause before asking for a locked database again, in seconds. SQLite's own handler backs off to
# 100 ms without jitter, and of several busy writers the late ones starve.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02

_TICK = 100_000_000  # nanoseconds: longer than a tick of any file system's clock

_NO_FILE = (-1, -1)
_CACHE_KIB = 16_384  # the heads of 100,000 states fit

_TREE = Tree(room=100)
_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


def create_private(path: str) -> None:
    """Make an empty database at ``path`` that only this user may read, unless there is one.

    Raises:
        StorageError: the folder can't be written, or something else than a file is there.
        StateCorruptionError: there is only its log.
    """
    with files.storage_errors(path, "creation"):
        files.layer.make_directories(Path(path).parent)
        if not os.path.lexists(path):
            _check_log(path)
            # Neither `open` nor `umask`: one would have to close the file, the other is of the whole process.
            with suppress(FileExistsError):
                os.mknod(path, 0o600 | stat.S_IFREG)
            files.layer.fsync_directory(Path(path).parent)


def connect(path: str, patience: float) -> sqlite3.Connection:
    """Open the database that exists at ``path`` for reading and writing, fsynced at every commit.

    Raises:
        StorageError: it can't be opened, or a symbolic link is in its place.
        StateCorruptionError: it is no database.
    """
    if os.path.islink(path):
        raise StorageError(f"the database {path} is a symbolic link", retryable=False, hint="name the file itself")
    return _connect(
        path,
        "rw",
        patience,
        (
            "synchronous = FULL",
            "fullfsync = ON",  # macOS: fsync alone leaves the data in the drive's cache
            "cell_size_check = ON",
            f"cache_size = -{_CACHE_KIB}",
        ),
    )


def connect_readonly(path: str, patience: float) -> sqlite3.Connection:
    """Open the database at ``path`` so that nothing in it can be changed; raises like `connect`."""
    return _connect(path, "ro", patience, ("query_only = ON",))


def connect_for_queries(path: str, patience: float) -> sqlite3.Connection:
    """Open the database at ``path`` for SQL of a user's: SELECT and nothing else, with ``state_json``."""
    connection = connect_readonly(path, patience)
    connection.create_function("state_json", 1, state_json, deterministic=True)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    # No PRAGMA, no ATTACH, no BEGIN: a statement that isn't a SELECT can't even be prepared.
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY)
    return connection


def use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Let readers and the writer not wait for each other; this is a lasting property of the database."""
    connection.execute("PRAGMA journal_mode = WAL").fetchall()


def state_json(state: bytes | None) -> str | None:
    """Return the stored ``state`` as JSON text, for SQLite's JSON functions; a tombstone is NULL."""
    return None if state is None else msgspec.json.encode(_TREE.decode(state), enc_hook=_to_json).decode()


def attempt(connection: sqlite3.Connection, work: Work[T], path: str, patience: float) -> T:
    """Run ``work`` until no other connection is in its way, for ``patience`` seconds at most.

    ``work`` may run several times; it leaves no transaction open when it raises.

    Raises:
        StorageError, StateCorruptionError: SQLite's error, translated.
    """
    started = time.monotonic()
    pause = _FIRST_PAUSE
    while True:
        try:
            return work(connection)
        except sqlite3.Error as error:
            waited = time.monotonic() - started
            if not is_busy(error) or waited >= patience:
                raise translate(error, path, waited) from error
        time.sleep(random.uniform(0, pause))
        pause = min(2 * pause, _LONGEST_PAUSE)


def transact(connection: sqlite3.Connection, mode: Mode, work: Work[T], before_commit: Work[None] | None = None) -> T:
    """Run ``work`` as one transaction, and roll back what raises."""
    connection.execute(f"BEGIN {mode}")
    try:
        result = work(connection)
        if before_commit is not None:
            before_commit(connection)
        connection.execute("COMMIT")
    except BaseException:
        # A rollback that fails too was done by SQLite itself; or the connection is about to be closed, which
        # does it.
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return result


class FileIdentity:
    """Finds out that the files behind an open connection were removed or replaced.

    SQLite does not: it goes on writing to files that nobody will ever read again.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._main: tuple[int, int] | None = None
        self._companions: dict[str, tuple[int, int]] = {}  # the log and its index
        self._folder: tuple[int, int] | None = None  # as it was when they were last looked at

    def pin(self) -> None:
        """Take note of the database that is about to be opened.

        Raises:
            StorageError: there is none, or it has several names; its log would have as many.
        """
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise self._gone() from error
        files.check_only_name(found, self._path)
        self._main = found.st_dev, found.st_ino

    def pin_log(self) -> None:
        """Take note of the log and its index; the connection has them open."""
        for name in (self._path + "-wal", self._path + "-shm"):
            if name not in self._companions and (found := _identify(name)) is not None:
                self._companions[name] = found

    def check(self, _: sqlite3.Connection) -> None:
        """Compare with what was pinned.

        Raises:
            StorageError: another file, or none, is there now.
        """
        try:
            folder = os.stat(os.path.dirname(self._path))
        except OSError as error:
            raise self._gone() from error
        if _identify(self._path) != self._main:
            raise self._gone()
        # The log is asked for its inode only when a name in the folder has changed: where timestamps have many grains
        # (Linux 6.13), a `stat` before each write makes each fsync write the inode too, and a commit costs a fifth
        # more.
        if (folder.st_ino, folder.st_ctime_ns) == self._folder:
            return
        if any(_identify(name) != known for name, known in self._companions.items()):
            raise self._gone()
        # Of two changes within one tick of the file system's clock the second one doesn't show.
        is_old = time.time_ns() - folder.st_ctime_ns > _TICK
        self._folder = (folder.st_ino, folder.st_ctime_ns) if is_old else None

    def check_left_log(self) -> None:
        """Refuse to open another file in the database's place while its log is still there: SQLite would mix the two.

        Raises:
            StateCorruptionError: the log belongs to the file that was replaced.
        """
        log = self._path + "-wal"
        if _identify(self._path) != self._main and _identify(log) == self._companions.get(log, _NO_FILE):
            raise StateCorruptionError(
                f"the database {self._path} was replaced, and the log of the one before is still there",
                path=self._path,
                hint="both were left as they are; put the old database back, or move the log away with it",
            )

    def _gone(self) -> StorageError:
        return StorageError(
            f"the database {self._path} was removed or replaced while it was open",
            retryable=False,
            hint="put the file and its -wal back, or start the actors anew to begin anew",
        )


def _identify(path: str) -> tuple[int, int] | None:
    """Say which file ``path`` names now; None if none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _to_json(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _check_log(path: str) -> None:
    """Refuse a log without its database, which SQLite would delete when it opened an empty one of that name.

    Raises:
        StateCorruptionError: the database is missing or empty, and what was committed to its log is there.
    """
    log = path + "-wal"
    with suppress(OSError):
        if os.stat(log).st_size and (not os.path.exists(path) or not os.stat(path).st_size):
            raise StateCorruptionError(
                f"the database {path} is missing or empty, and its log {log} is there",
                path=path,
                hint="both were left as they are; restore the database, or remove the log as well to begin anew",
            )


def _connect(path: str, mode: str, patience: float, settings: Sequence[str]) -> sqlite3.Connection:
    _check_log(path)
    try:
        # A connection is used by one thread at a time: aiosqlite's, which need not be the one that made it.
        connection = sqlite3.connect(
            f"file:{quote(path)}?mode={mode}",
            uri=True,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise translate(error, path, 0.0) from error

    def configure(connection: sqlite3.Connection) -> None:
        for setting in (*settings, "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {setting}")

    try:
        attempt(connection, configure, path, patience)
    except BaseException:
        connection.close()
        raise
    return connection
