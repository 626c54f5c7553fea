"""What SQLite's result codes mean here, and what to do about each."""

from __future__ import annotations

import sqlite3

from dgents.runtime.errors import DgentError, StateCorruptionError, StorageError

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

# code: (what happened, whether trying again can help, what to do)
_MEANINGS = {
    sqlite3.SQLITE_FULL: ("the disk is full", True, "free some space; nothing of this write was kept"),
    sqlite3.SQLITE_IOERR: (
        "the disk failed or refused",
        True,
        "check the disk, its quota and the process's file-size limit",
    ),
    sqlite3.SQLITE_READONLY: (
        "it is read-only",
        False,
        "make the file and its folder writable for this user",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "it can't be opened",
        False,
        "check that the path is a file and may be read and written",
    ),
    sqlite3.SQLITE_PERM: ("access was refused", False, "make the file and its folder writable for this user"),
    sqlite3.SQLITE_NOMEM: ("memory ran out", True, "free some memory"),
}


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, 0 for an error that never came from SQLite."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Say whether another connection is merely in the way, so that the same may work in a moment."""
    return primary_code(error) in _BUSY


def translate(error: sqlite3.Error, path: str, waited: float) -> DgentError:
    """Return the typed error for ``error`` in the database at ``path``; ``waited`` is in seconds."""
    code = primary_code(error)
    if code in _CORRUPT or (not code and "UTF-8" in str(error)):
        return StateCorruptionError(
            f"the database {path} can't be read: {error}",
            path=path,
            hint="it was left as it is; run `dgents verify` on it, or restore a copy",
        )
    if code in _BUSY:
        return StorageError(
            f"the database {path} was locked by another connection for {waited:.1f} s",
            retryable=True,
            hint="find the program that holds a transaction open",
        )
    what, retryable, hint = _MEANINGS.get(code, ("SQLite refused", False, None))
    return StorageError(f"the database {path}: {what} ({error})", retryable=retryable, hint=hint)
