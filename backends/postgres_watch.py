"""Hears of the changes that other processes make: one listening connection for all actors of a store.

A notification is lost while nobody is connected. So each new connection, the first and every later one, counts as a
change: whoever listens reads the state again, and misses at most versions in between, never the last.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
from psycopg import AsyncConnection

from dgents.backends.postgres_commit import NOTICE_SIZE
from dgents.backends.postgres_errors import translate
from dgents.backends.postgres_place import PostgresPlace
from dgents.backends.postgres_session import Session
from dgents.backends.postgres_tables import CHANNEL
from dgents.runtime.contract import Resources
from dgents.runtime.errors import DgentError, StorageError
from dgents.runtime.loops import running_loop

Listener = Callable[[int | None], None]

_PING_AFTER = 5.0  # seconds of silence; a connection that does not answer for as long again is given up
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds


class Subscriber:
    """Calls listeners, on the loop of the runtime, when their state was written.

    A listener is given the mark of the write, or None when notifications may have been missed.
    """

    def __init__(self, place: PostgresPlace, resources: Resources) -> None:
        self._place = place
        self._resources = resources
        self._loop = running_loop()
        self._session = Session(place)
        self._listeners: dict[bytes, list[Listener]] = {}
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()  # it listens, or `_failure` says why it can't
        self._failure: DgentError | None = None
        self._pause = _FIRST_PAUSE

    async def add(self, state: bytes, listener: Listener) -> None:
        """Return once no change of the state (the `digest` of it) can be missed.

        Raises:
            StorageError: the server can't be listened to.
        """
        await self._resources.run_asyncio(self._add, state, listener)

    async def remove(self, state: bytes, listener: Listener) -> None:
        await self._resources.run_asyncio(self._remove, state, listener)

    async def close(self) -> None:
        """Stop listening; called on the asyncio loop."""
        self._listeners.clear()
        settled, self._settled, self._failure = self._settled, asyncio.Event(), None
        settled.set()  # whoever still waits is not to wait for what nobody wants
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _add(self, state: bytes, listener: Listener) -> None:
        self._listeners.setdefault(state, []).append(listener)
        if self._settled.is_set() and self._failure is None:
            self._loop.call_threadsafe(listener, None)
            return
        if self._task is None:
            self._task = asyncio.create_task(self._listen_for_ever())
        limit = 2 * self._place.connect_timeout * self._place.hosts
        try:
            async with asyncio.timeout(limit):
                await self._settled.wait()
            failure = self._failure
        except TimeoutError:
            failure = self._failure or StorageError(
                f"{self._place.safe} can't be listened to: no connection within {limit} s",
                hint="look whether it runs; LISTEN needs a direct connection, not a pooler of transactions",
            )
        if failure is not None:
            await self._remove(state, listener)
            raise failure

    async def _remove(self, state: bytes, listener: Listener) -> None:
        listeners = self._listeners.get(state, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            self._listeners.pop(state, None)
        if not self._listeners:
            await self.close()

    async def _listen_for_ever(self) -> None:
        while True:
            try:
                await self._listen()
            except DgentError as error:
                self._fail(error)
            except (psycopg.Error, OSError) as error:
                self._fail(translate(error, self._place, outcome="rolled_back"))
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    async def _listen(self) -> None:
        connection = await self._session.connect()
        try:
            async with asyncio.timeout(_PING_AFTER):
                await connection.execute(f"LISTEN {CHANNEL}")
            self._failure = None
            self._settled.set()
            self._pause = _FIRST_PAUSE
            for listeners in self._listeners.values():
                self._tell(listeners, None)
            while True:
                async for notification in connection.notifies(timeout=_PING_AFTER):
                    for state, mark in _notices(notification.payload):
                        self._tell(self._listeners.get(state, ()), mark)
                async with asyncio.timeout(_PING_AFTER):
                    await connection.execute("SELECT 1")
        finally:
            self._settled.clear()
            await _finish(connection)

    def _tell(self, listeners: Any, mark: int | None) -> None:
        for listener in listeners:
            self._loop.call_threadsafe(listener, mark)

    def _fail(self, error: DgentError) -> None:
        self._failure = error
        if not getattr(error, "retryable", False):
            self._settled.set()  # it will not heal by itself: nobody is to wait for that
        message = f"not listening to changes by others: {error.message}; watchers read again"
        self._loop.call_threadsafe(partial(self._resources.emit, "warning", None, message=message))


def _notices(payload: str) -> Iterator[tuple[bytes, int]]:
    """Yield each state that a notification names, and the mark of the write; one of a stranger's names none."""
    try:
        data = b64decode(payload, validate=True)
    except ValueError:
        return
    for at in range(0, len(data) - NOTICE_SIZE + 1, NOTICE_SIZE):
        yield data[at : at + 8], int.from_bytes(data[at + 8 : at + NOTICE_SIZE])


async def _finish(connection: AsyncConnection[Any]) -> None:
    with suppress(psycopg.Error, OSError):
        await connection.close()
