"""One connection to a PostgreSQL: made when it is first needed, thrown away when anything went wrong on it.

Invariants:

1. Everything on a connection happens in `Session.run`, one call at a time, on the asyncio loop that
   `Resources.run_asyncio` names.
2. A connection is used again only if its last call left it between transactions.
3. No call outlives its limit: the server gives up a statement first (``statement_timeout``); if even that answer does
   not come, the socket is shut down.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from dgents.backends.postgres_arrays import register_arrays
from dgents.backends.postgres_errors import is_harmless, translate
from dgents.backends.postgres_place import PostgresPlace
from dgents.runtime.errors import DgentError, Outcome, StorageError

T = TypeVar("T")
Work = Callable[[AsyncConnection[Any]], Awaitable[T]]

_GRACE = 1.0  # seconds between the server's limit and ours

# The limits, unless the URL or the role sets others; then what the server answers.
_LIMITS: str = """
SELECT extract(epoch FROM set_config('statement_timeout', CASE current_setting('statement_timeout')
    WHEN '0' THEN '10s' ELSE current_setting('statement_timeout') END, false)::interval)::float8,
  set_config('lock_timeout', CASE current_setting('lock_timeout')
    WHEN '0' THEN '5s' ELSE current_setting('lock_timeout') END, false),
  set_config('idle_in_transaction_session_timeout', CASE current_setting('idle_in_transaction_session_timeout')
    WHEN '0' THEN '30s' ELSE current_setting('idle_in_transaction_session_timeout') END, false),
  set_config('jit', 'off', false), current_setting('server_encoding'), current_setting('fsync')"""

# Our own statements join a batch of keys with an index. Left alone, the planner reads whole tables instead, as long as
# their statistics are those of an empty table, or the batch looks large beside them.
PLANS: str = """
SELECT set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),
  set_config('enable_mergejoin', 'off', false)"""

# Our own statements compare marks and lock heads, which tells writers apart under any isolation, and have to see what
# others committed while they waited. A stricter default refuses that, and so the making of a table by two at once.
ISOLATION: str = "SELECT set_config('default_transaction_isolation', 'read committed', false)"

# An acknowledged write is on the server's disk, whatever the role's defaults say; stricter ones are kept.
DURABLE: str = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"""


class Session:
    """A connection that one task at a time uses.

    Args:
        settings: run on each new connection.
        on_unsafe: called when the server does not fsync.
    """

    def __init__(
        self,
        place: PostgresPlace,
        *settings: str,
        on_unsafe: Callable[[], None] | None = None,
    ) -> None:
        self._place = place
        self._settings = settings
        self._on_unsafe = on_unsafe
        self._connection: AsyncConnection[Any] | None = None
        self._patience = 0.0
        self._is_late = False
        self._is_closed = False
        self._turn = asyncio.Lock()
        self._pid = os.getpid()

    async def run(self, work: Work[T], *, outcome: Outcome = "rolled_back") -> T:
        """Return what ``work(connection)`` returns; it may have opened a transaction only for itself.

        Args:
            outcome: what became of it if the connection fails in between.

        Raises:
            StorageError, StateCorruptionError: psycopg's error, translated, with that as its cause.
        """
        if os.getpid() != self._pid:
            raise StorageError(
                f"the connection to {self._place.safe} was opened before this process was forked",
                retryable=False,
                hint="open a runtime in the child",
            )
        async with self._turn:
            connection = self._usable() or await self.connect()
            self._connection, keep = None, False
            self._is_late = False
            timer = asyncio.get_running_loop().call_later(self._patience, self._cut, connection)
            try:
                result = await work(connection)
                keep = True
                return result
            except psycopg.Error as error:
                keep = is_harmless(error)
                raise self._translate(error, outcome) from error
            except Exception:
                keep = True  # not the connection's fault
                raise
            finally:
                timer.cancel()
                if keep and not self._is_closed and connection.pgconn.transaction_status == TransactionStatus.IDLE:
                    self._connection = connection
                else:
                    await _discard(connection)

    async def connect(self) -> AsyncConnection[Any]:
        """Return a new connection, which the caller closes.

        Raises:
            StorageError: the server can't be reached or refuses; nothing was asked of it.
        """
        place = self._place
        limit = place.connect_timeout * place.hosts + _GRACE
        try:
            # libpq's own limit does not cover the look-up of the name.
            async with asyncio.timeout(limit):
                connection = await AsyncConnection.connect(place.uri, autocommit=True, **place.options)
                try:
                    await self._configure(connection)
                except BaseException:
                    await _discard(connection)
                    raise
        except TimeoutError:
            raise self._late(limit, "?connect_timeout=5", "rolled_back") from None
        except StorageError:  # which is an OSError, too
            raise
        except (psycopg.Error, OSError) as error:
            raise translate(error, place, outcome="rolled_back") from error
        return connection

    async def close(self) -> None:
        """Close the connection; a call that is under way is waited for, one that comes later leaves none open."""
        self._is_closed = True
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await _discard(connection)

    def _usable(self) -> AsyncConnection[Any] | None:
        """Return the connection unless its server has ended it: who finds out only by writing is in doubt."""
        connection = self._connection
        if connection is not None:
            with suppress(psycopg.Error):
                connection.pgconn.consume_input()  # what the server said last,
                connection.pgconn.consume_input()  # and that it has hung up
                if not connection.closed:
                    return connection
            connection.pgconn.finish()
            self._connection = None
        return None

    async def _configure(self, connection: AsyncConnection[Any]) -> None:
        register_arrays(connection)
        for statement in self._settings:
            await connection.execute(statement)
        limits = await (await connection.execute(_LIMITS)).fetchone()
        assert limits is not None
        self._patience = limits[0] + _GRACE
        if limits[-2] == "EUC_JP":  # in which two characters are one, and so two keys would be
            raise StorageError(
                f"{self._place.safe} is in the encoding EUC_JP, which does not tell all keys apart",
                retryable=False,
                hint="use a database with ENCODING 'UTF8'",
            )
        if limits[-1] == "off" and self._on_unsafe is not None:
            self._on_unsafe()

    def _translate(self, error: psycopg.Error, outcome: Outcome) -> DgentError:
        if self._is_late:
            return self._late(self._patience, "?options=-cstatement_timeout%3D20s", outcome)
        return translate(error, self._place, outcome=outcome)

    def _late(self, limit: float, option: str, outcome: Outcome) -> StorageError:
        return StorageError(
            f"{self._place.safe} did not answer within {limit:g} s",
            outcome=outcome,
            hint=f"look whether it is paused or overloaded; {option} in the URL sets the limit",
        )

    def _cut(self, connection: AsyncConnection[Any]) -> None:
        """End a connection that does not answer: whoever waits for it gets an error at once."""
        self._is_late = True
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as end:
            end.shutdown(socket.SHUT_RDWR)


async def _discard(connection: AsyncConnection[Any]) -> None:
    with suppress(psycopg.Error, OSError):
        await connection.close()
