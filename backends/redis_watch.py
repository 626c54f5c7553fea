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
        self._confirmed: dict[bytes, asyncio.Event] = {}
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
        for confirmed in self._confirmed.values():
            confirmed.set()  # whoever still waits is not to wait for a subscription that nobody wants
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
            confirmed = self._confirmed[channel] = asyncio.Event()
            if self._task is None:
                self._task = asyncio.create_task(self._listen_for_ever())
            elif self._pubsub is not None:
                with suppress(*FAILURES):  # then the listening task fails too, and subscribes anew
                    await self._pubsub.subscribe(channel)
        try:
            async with asyncio.timeout(2 * self._client.timeout):
                await confirmed.wait()
        except TimeoutError as error:
            await self._remove(channel, listener)
            raise translate(error, self._client.place, outcome="rolled_back", waited=2 * self._client.timeout) from None

    async def _remove(self, channel: bytes, listener: Listener) -> None:
        listeners = self._listeners.get(channel, [])
        if listener in listeners:
            listeners.remove(listener)
        if listeners or channel not in self._listeners:
            return
        del self._listeners[channel]
        self._confirmed.pop(channel).set()  # whoever still waits for it
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
                self._report(error)
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
            self._confirmed[channel].set()
        for listener in self._listeners.get(channel, ()):
            self._loop.call_threadsafe(listener, message["data"] if kind == "message" else None)

    def _report(self, error: Exception) -> None:
        text = self._client.place.scrub(str(error))
        message = f"the subscription to {self._client.place.safe} was lost: {text}; watchers read again"
        self._loop.call_threadsafe(lambda: self._resources.emit("warning", None, message=message))
