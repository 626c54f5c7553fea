"""Hears of the changes that other processes make: one subscribed connection for all actors of a store.

A message is lost while nobody is connected. So each confirmation of a subscription, the first and every later
one, counts as a change: whoever listens reads the state again, and misses at most versions in between, never
the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from dgents.backends.redis_client import Client
from dgents.backends.redis_errors import FAILURES, translate
from dgents.runtime.contract import Resources
from dgents.runtime.errors import StorageError
from dgents.runtime.loops import running_loop

Listener = Callable[[bytes | None], None]

_PING_AFTER = 5.0  # seconds of silence; a connection that stays silent for as long again is given up
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds


class Subscriber:
    """Calls listeners, on the loop of the runtime, when a message comes for their channel.

    A listener is given the message, or None when messages may have been missed.
    """

    def __init__(self, client: Client, resources: Resources) -> None:
        self._client = client
        self._resources = resources
        self._loop = running_loop()
        self._listeners: dict[bytes, list[Listener]] = {}
        self._confirmed: dict[bytes, asyncio.Future[StorageError | None]] = {}
        self._failure: StorageError | None = None  # of the last attempt to listen
        self._task: asyncio.Task[None] | None = None
        self._pubsub: Any = None

    async def add(self, channel: bytes, listener: Listener) -> None:
        """Return once no message of the channel can be missed.

        Raises:
            StorageError: the server does not confirm it in time.
        """
        await self._resources.run_asyncio(self._add, channel, listener)

    async def remove(self, channel: bytes, listener: Listener) -> None:
        await self._resources.run_asyncio(self._remove, channel, listener)

    async def close(self) -> None:
        """Stop listening; called on the asyncio loop."""
        self._listeners.clear()
        for channel in list(self._confirmed):
            self._settle(channel, None)  # whoever waits is not to wait for a subscription that nobody wants
        self._confirmed.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _add(self, channel: bytes, listener: Listener) -> None:
        self._listeners.setdefault(channel, []).append(listener)
        confirmed = self._confirmed.get(channel)
        if confirmed is None:
            confirmed = self._confirmed[channel] = asyncio.get_running_loop().create_future()
            if self._task is None:
                self._task = asyncio.create_task(self._listen_for_ever())
            elif self._pubsub is not None:
                with suppress(*FAILURES):  # then the listening task fails too, and subscribes anew
                    await self._pubsub.subscribe(channel)
        limit = 2 * self._client.timeout
        done, _ = await asyncio.wait([confirmed], timeout=limit)
        late = self._failure or translate(TimeoutError(), self._client.place, outcome="rolled_back", waited=limit)
        failure = confirmed.result() if done else late
        if failure is not None:
            await self._remove(channel, listener)
            raise failure

    async def _remove(self, channel: bytes, listener: Listener) -> None:
        listeners = self._listeners.get(channel, [])
        if listener in listeners:
            listeners.remove(listener)
        if listeners or channel not in self._listeners:
            return
        del self._listeners[channel]
        self._settle(channel, None)  # whoever still waits for it
        del self._confirmed[channel]
        if not self._listeners:
            await self.close()
        elif self._pubsub is not None:
            with suppress(*FAILURES):
                await self._pubsub.unsubscribe(channel)

    async def _listen_for_ever(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._listen()
            except (*FAILURES, StorageError) as error:
                self._fail(error)
            if asyncio.get_running_loop().time() - started > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _listen(self) -> None:
        redis = await self._client.listener()
        pubsub: Any = redis.pubsub()
        self._pubsub = pubsub
        try:
            async with asyncio.timeout(2 * self._client.timeout):
                await pubsub.subscribe(*self._listeners)
            is_silent = False
            while True:
                message = await pubsub.get_message(timeout=_PING_AFTER)
                if message is not None:
                    is_silent = False
                    self._deliver(message)
                elif is_silent:
                    raise RedisConnectionError("the server fell silent")
                else:
                    is_silent = True
                    await pubsub.ping()
        finally:
            self._pubsub = None
            with suppress(*FAILURES):
                await pubsub.aclose()
                await redis.aclose()

    def _deliver(self, message: dict[str, Any]) -> None:
        channel, kind = message["channel"], message["type"]
        if kind not in ("message", "subscribe"):
            return
        if kind == "subscribe" and channel in self._confirmed:
            self._failure = None
            self._settle(channel, None)
        for listener in self._listeners.get(channel, ()):
            self._loop.call_threadsafe(listener, message["data"] if kind == "message" else None)

    def _settle(self, channel: bytes, failure: StorageError | None) -> None:
        """Tell those who wait for a channel that it is confirmed, or that it never will be."""
        if not self._confirmed[channel].done():
            self._confirmed[channel].set_result(failure)

    def _fail(self, error: Exception) -> None:
        place = self._client.place
        failure = error if isinstance(error, StorageError) else translate(error, place, outcome="rolled_back")
        self._failure = failure
        for channel in self._confirmed if not failure.retryable else ():
            self._settle(channel, failure)
        message = f"the subscription to {place.safe} was lost: {failure.message}; watchers read again"
        self._loop.call_threadsafe(lambda: self._resources.emit("warning", None, message=message))
