"""What the errors of a PostgreSQL server and of psycopg mean here, and what to do about each."""

from __future__ import annotations

import re

import psycopg

from dgents.backends.postgres_place import PostgresPlace
from dgents.runtime.errors import DgentError, Outcome, StateCorruptionError, StorageError

# The server's code, or the class of it: (what happened, whether trying again can help, what to do).
_MEANINGS: dict[str, tuple[str, bool, str | None]] = {
    "22": ("it can't hold this value", False, "use a database with ENCODING 'UTF8'"),
    "23505": ("somebody wrote rows into the tables beside dgents", False, "run `dgents verify` on it"),
    "25006": (
        "it is read-only",
        True,
        "name the primary of a standby (?target_session_attrs=read-write finds it), or look at its "
        "default_transaction_read_only",
    ),
    "25P03": ("it ended a transaction that took too long", True, None),
    "28": ("it refused the user or the password", False, "check user and password of the URL, and pg_hba.conf"),
    "3D000": ("there is no such database", False, "create it, or check the URL"),
    "3F000": ("there is no such schema", False, "create it, or check the table's name"),
    "40": ("other transactions were in the way", True, None),
    "42501": ("this role may not do that", False, "grant it what docs/postgresql.md lists"),
    "42P01": ("a table is not there any more", True, "it is made anew when the state is opened again"),
    "53100": ("its disk is full", True, "free some space; nothing of this write was kept"),
    "53200": ("it ran out of memory", True, None),
    "53300": ("it has too many connections", True, "raise max_connections, or use fewer processes"),
    "53": ("it lacks resources", True, None),
    "54": ("a limit of PostgreSQL was reached", False, "split the state"),
    "55000": ("it takes no connections to this database", True, None),
    "55P03": ("another transaction holds a lock", True, "find the program that holds a transaction open"),
    "57014": ("it did not finish in time", True, "look at its load; ?options=-cstatement_timeout%3D20s sets the limit"),
    "57P03": ("it is starting or stopping", True, None),
    "57": ("it is shutting down, or an administrator ended the connection", True, None),
    "58": ("its disk failed", True, "look at its log and its disk"),
}
# What libpq tells in words alone: the server said it before it took the connection.
_WORDS = {
    r'database ".*" does not exist': "3D000",
    r'role ".*" does not exist': "28",
    "password authentication failed": "28",
    "no password supplied": "28",
    "no pg_hba.conf entry": "28",
    "is not permitted to log in": "28",
    "permission denied for database": "42501",
    "is not currently accepting connections": "55000",
    "too many connections": "53300",
    "too many clients": "53300",
    "remaining connection slots": "53300",
    "the database system is": "57P03",
    "database system is in recovery": "57P03",
}
_CORRUPT = {"XX001", "XX002"}
# After these the transaction may have been committed all the same, or nobody can say.
_UNKNOWN = ("08", "57P01", "57P02", "57P03", "57P04", "57P05", "XX")
# After these the connection is as good as before.
_HARMLESS = ("22", "23", "40", "42", "54", "55")


def code_of(error: BaseException | None) -> str:
    """Return the server's code, empty for an error that never came from a server."""
    return (error.sqlstate or "") if isinstance(error, psycopg.Error) else ""


def is_harmless(error: psycopg.Error) -> bool:
    """Say whether the connection may be used again."""
    return code_of(error).startswith(_HARMLESS)


def translate(error: BaseException, place: PostgresPlace, *, outcome: Outcome) -> DgentError:
    """Return the typed error for what a server answered or a connection met.

    Only the first line of the server's own message is repeated: the others may hold the contents of rows.

    Args:
        outcome: what became of the write if the error itself does not say so.
    """
    code = code_of(error)
    if code in _CORRUPT:
        return StateCorruptionError(
            f"{place.safe} is damaged: {_text(error, place)}",
            path=place.safe,
            hint="look at the server's log; restore a backup",
        )
    if code and not code.startswith(_UNKNOWN):
        outcome = "rolled_back"
    meaning = _MEANINGS.get(code or _code_in_words(error)) or _MEANINGS.get(code[:2])
    if meaning is not None:
        what, retryable, hint = meaning
        return StorageError(
            f"{place.safe} refused: {what} ({_text(error, place)})", retryable=retryable, outcome=outcome, hint=hint
        )
    if code and not code.startswith("08"):
        text = f"{place.safe} refused: {_text(error, place)} ({code})"
        return StorageError(text, retryable=code.startswith("XX"), outcome=outcome)
    text = _text(error, place)
    if "certificate" in text or "SSL" in text:
        return StorageError(
            f"{place.safe} refused the connection: {text}",
            retryable=False,
            outcome=outcome,
            hint="check sslmode and the certificates that the URL names",
        )
    return StorageError(f"{place.safe} can't be reached: {text}", outcome=outcome, hint="look whether it runs")


def _code_in_words(error: BaseException) -> str:
    """Return the code of what a server said before it took the connection: libpq passes on the words alone."""
    text = str(error)
    return next((code for words, code in _WORDS.items() if re.search(words, text)), "")


def _text(error: BaseException, place: PostgresPlace) -> str:
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    lines = (primary or str(error) or type(error).__name__).splitlines()
    return place.scrub(lines[0].strip() if lines else type(error).__name__)[:300]
